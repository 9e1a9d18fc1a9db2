//! Rendered prompts and image-aware ids against the official code (tools/fixtures/text_prompts.py ran it).

#![allow(clippy::unwrap_used)]

mod support;

use mgm_text::{
    GgufVocab, IMAGE_TOKEN, Message, Template, Tokenizer, encode_with_images, protocol,
};
use serde::Deserialize;
use support::{fetched, fixture, repository, sentencepiece};

#[derive(Deserialize)]
struct Official {
    prompts: Vec<Prompt>,
    image_ids: Vec<ImageIds>,
}

#[derive(Deserialize)]
struct Prompt {
    template: String,
    messages: Vec<(String, Option<String>)>,
    prompt: String,
}

#[derive(Deserialize)]
struct ImageIds {
    vectors: String,
    prompt: String,
    ids: Vec<i64>,
}

fn official() -> Official {
    serde_json::from_slice(&std::fs::read(fixture("official_prompts.json")).unwrap()).unwrap()
}

fn render(template: &str, messages: &[Message]) -> String {
    Template::by_name(template).unwrap().render(messages)
}

const S1: &str = "A chat between a curious user and an artificial intelligence assistant. The assistant gives helpful, detailed, and polite answers to the user's questions.";
const S2: &str = "You are a helpful language and vision assistant. You are able to understand the visual content that the user provides, and assist the user with a variety of tasks using natural language.";

#[test]
fn every_template_renders_as_the_official_code() {
    let prompts = official().prompts;
    assert!(prompts.len() > 100);
    for case in prompts {
        let messages: Vec<Message> = case
            .messages
            .iter()
            .map(|(role, text)| match (role.as_str(), text) {
                ("user", text) => Message {
                    text: text.clone(),
                    ..Message::user("")
                },
                (_, text) => Message {
                    text: text.clone(),
                    ..Message::open_answer()
                },
            })
            .collect();
        // The announcing templates act on placeholders as the official tuple form does; the official code given plain
        // strings does not.
        if case.template.ends_with("mmtag") && case.prompt.contains("<image>") {
            continue;
        }
        assert_eq!(
            render(&case.template, &messages),
            case.prompt,
            "{} {:?}",
            case.template,
            case.messages
        );
    }
}

#[test]
fn first_turns_of_the_released_families() {
    let messages = [
        Message::user(protocol::place_images("Q", 1)),
        Message::open_answer(),
    ];
    assert_eq!(
        render("vicuna_v1", &messages),
        format!("{S1} USER: <image>\nQ ASSISTANT:")
    );
    assert_eq!(
        render("mistral_instruct", &messages),
        "[INST] <image>\nQ [/INST]"
    );
    assert_eq!(
        render("gemma", &messages),
        "<start_of_turn>user\n<image>\nQ<end_of_turn>\n<start_of_turn>model\n"
    );
    assert_eq!(
        render("chatml_direct", &messages),
        "<|im_start|>system\nAnswer the questions.<|im_end|><|im_start|>user\n<image>\nQ<|im_end|><|im_start|>assistant\n"
    );
    assert_eq!(
        render("llama_3", &messages),
        format!(
            "<|start_header_id|>system<|end_header_id|>\n\n{S2}<|eot_id|><|start_header_id|>user<|end_header_id|>\n\n<image>\nQ<|eot_id|><|start_header_id|>system<|end_header_id|>\n\n"
        )
    );
    assert_eq!(
        render("smollm2", &messages),
        "<|im_start|>system\nYou are a helpful AI assistant named SmolLM, trained by Hugging Face<|im_end|>\n<|im_start|>user\n<image>\nQ<|im_end|>\n<|im_start|>assistant\n"
    );
    assert_eq!(
        render("smol", &messages),
        "<|im_start|>user\n<image>\nQ<|im_end|>\n<|im_start|>assistant\n"
    );
}

#[test]
fn second_turns_of_the_released_families() {
    let messages = [
        Message::user("<image>\nQ"),
        Message::assistant("A"),
        Message::user("Q2"),
        Message::open_answer(),
    ];
    assert_eq!(
        render("vicuna_v1", &messages),
        format!("{S1} USER: <image>\nQ ASSISTANT: A</s>USER: Q2 ASSISTANT:")
    );
    assert_eq!(
        render("mistral_instruct", &messages),
        "[INST] <image>\nQ [/INST] A </s><s>[INST] Q2 [/INST]"
    );
    assert_eq!(
        render("gemma", &messages),
        "<start_of_turn>user\n<image>\nQ<end_of_turn>\n<start_of_turn>model\nA<end_of_turn>\n<eos><start_of_turn>user\nQ2<end_of_turn>\n<start_of_turn>model\n"
    );
    assert!(
        render("chatml_direct", &messages).ends_with(
            "assistant\nA<|im_end|><|im_start|>user\nQ2<|im_end|><|im_start|>assistant\n"
        )
    );
    assert!(render("llama_3", &messages).ends_with(
        "system<|end_header_id|>\n\nA<|eot_id|><|start_header_id|>user<|end_header_id|>\n\nQ2<|eot_id|><|start_header_id|>system<|end_header_id|>\n\n"
    ));
    assert_eq!(
        render("smol", &messages),
        "<|im_start|>user\n<image>\nQ<|im_end|>\n<|im_start|>assistant\nA<|im_end|>\n<|im_start|>user\nQ2<|im_end|>\n<|im_start|>assistant\n"
    );
}

#[test]
fn system_messages_replace_the_templates_own() {
    let messages = [
        Message::system("Be brief."),
        Message::user("Q"),
        Message::open_answer(),
    ];
    assert_eq!(
        render("vicuna_v1", &messages),
        "Be brief. USER: Q ASSISTANT:"
    );
    assert_eq!(
        render("mistral_instruct", &messages),
        "[INST] <<SYS>>\nBe brief.\n<</SYS>>\n\nQ [/INST]"
    );
    assert_eq!(
        render("gemma", &messages),
        "<start_of_turn>user\nBe brief.\n\nQ<end_of_turn>\n<start_of_turn>model\n"
    );
    assert_eq!(
        render("smol", &messages),
        "<|im_start|>system\nBe brief.<|im_end|>\n<|im_start|>user\nQ<|im_end|>\n<|im_start|>assistant\n"
    );
    assert!(render("llama_3", &messages).starts_with(
        "<|start_header_id|>system<|end_header_id|>\n\nBe brief.<|eot_id|><|start_header_id|>user"
    ));
}

#[test]
fn announcing_templates_say_so_before_the_first_text() {
    let messages = [Message::user("<image>\nQ"), Message::open_answer()];
    assert!(render("v1_mmtag", &messages).ends_with(
        "</Image>. USER: <Image><image></Image> ASSISTANT: Received.</s>USER: Q ASSISTANT:"
    ));
    assert!(render("v0_mmtag", &messages).ends_with(
        "</Image>.###Human: <Image><image></Image>###Assistant: Received.###Human: Q###Assistant:"
    ));
}

#[test]
fn plain_is_the_texts_alone() {
    assert_eq!(
        render(
            "plain",
            &[Message::user("<image>"), Message::assistant("A cat.")]
        ),
        "<image>\nA cat.\n"
    );
}

#[test]
fn templates_are_chosen_by_model_name() {
    for (model, expected) in [
        ("MGM-8x7B-HD", "mistral_instruct"),
        ("work_dirs/MGM-34B", "chatml_direct"),
        ("MGM-8B", "llama_3"),
        ("MGM-8B-HD", "llama_3"),
        ("MGM-2B", "gemma"),
        ("MGM-7B", "vicuna_v1"),
        ("MGM-13B-HD", "vicuna_v1"),
        ("some-32b", "vicuna_v1"),
        ("some-12b", "vicuna_v1"),
        ("SmolLM2-135M-Instruct", "smollm2"),
        ("models/smol", "smol"),
    ] {
        assert_eq!(Template::for_model_name(model).name(), expected, "{model}");
    }
    assert_eq!(
        Template::for_model("my-finetune", 128_256).name(),
        "llama_3"
    );
    assert_eq!(Template::for_model("MGM-7B", 32_000).name(), "vicuna_v1");
    let error = Template::by_name("vicuna").unwrap_err().to_string();
    assert!(
        error.contains("\"vicuna\"") && error.contains("vicuna_v1, "),
        "{error}"
    );
    assert_eq!(Template::names().len(), 22);
    for name in Template::names() {
        assert!(Template::by_name(name).is_ok());
    }
}

#[test]
fn stop_tokens_by_family() {
    let vicuna = Tokenizer::from_file(fixture("ggml-vocab-llama-spm.gguf")).unwrap();
    assert_eq!(
        Template::by_name("vicuna_v1")
            .unwrap()
            .stop_token_ids(&vicuna),
        [2]
    );
    let smol =
        Tokenizer::from_file(repository("models/smol/smollm2-135m-instruct.q4_1.gguf")).unwrap();
    assert_eq!(
        Template::by_name("smol").unwrap().stop_token_ids(&smol),
        [0, 2]
    );
    if let Some(path) = fetched("gemma.tokenizer.json") {
        let gemma = Tokenizer::from_file(path).unwrap();
        assert_eq!(
            Template::by_name("gemma").unwrap().stop_token_ids(&gemma),
            [1, 107]
        );
    }
    if let Some(path) = fetched("ggml-vocab-llama-bpe.gguf") {
        let llama = Tokenizer::from_file(path).unwrap();
        assert_eq!(
            Template::by_name("llama_3").unwrap().stop_token_ids(&llama),
            [128_001, 128_009]
        );
    }
    let mixtral = sentencepiece("mistral-legacy");
    assert_eq!(
        Template::by_name("mistral_instruct")
            .unwrap()
            .stop_token_ids(&mixtral),
        [2]
    );
    // Yi's settings over another vocabulary, in which its end of a turn has the id 32001 and `<|endoftext|>` is no token.
    let yi = sentencepiece("mistral-yi");
    assert_eq!(
        Template::by_name("chatml_direct")
            .unwrap()
            .stop_token_ids(&yi),
        [32_001]
    );
    assert_eq!(
        Template::by_name("chatml_direct")
            .unwrap()
            .stop_token_names(),
        ["<|im_end|>", "<|endoftext|>"]
    );
    assert_eq!(
        Template::by_name("llava_v0").unwrap().stop_strings(),
        ["###"]
    );
    assert_eq!(
        Template::by_name("vicuna_v1").unwrap().stop_strings(),
        ["</s>"]
    );
    assert_eq!(
        Template::by_name("smol").unwrap().stop_strings(),
        ["<|im_end|>"]
    );
    assert!(
        Template::by_name("plain")
            .unwrap()
            .stop_strings()
            .is_empty()
    );
}

#[test]
fn image_aware_ids_equal_the_official_ones() {
    let official = official();
    assert!(official.image_ids.len() >= 40);
    let mut loaded: Vec<(String, Tokenizer)> = Vec::new();
    for case in official.image_ids {
        if loaded.iter().all(|(name, _)| *name != case.vectors) {
            loaded.push((case.vectors.clone(), sentencepiece(&case.vectors)));
        }
        let (_, tokenizer) = loaded
            .iter()
            .find(|(name, _)| *name == case.vectors)
            .unwrap();
        assert_eq!(
            encode_with_images(tokenizer, &case.prompt).unwrap(),
            case.ids,
            "{} {:?}",
            case.vectors,
            case.prompt
        );
    }
}

#[test]
fn a_dummy_space_stands_on_both_sides_of_an_image() {
    let mut vocab = GgufVocab::read(fixture("ggml-vocab-llama-spm.gguf")).unwrap();
    vocab.legacy = Some(false);
    let tokenizer = Tokenizer::from_gguf_metadata(&vocab).unwrap();
    let ids = encode_with_images(&tokenizer, "USER: <image>\nQ").unwrap();
    let at = ids.iter().position(|&id| id == IMAGE_TOKEN).unwrap();
    assert_eq!(ids[0], 1);
    assert_eq!(ids[at - 1], 29871);
    assert_eq!(&ids[at + 1..at + 3], [29871, 13]);
}

#[test]
fn a_tokeniser_without_bos_loses_nothing_around_images() {
    let tokenizer =
        Tokenizer::from_file(repository("models/smol/smollm2-135m-instruct.q4_1.gguf")).unwrap();
    let prompt = render(
        "smol",
        &[Message::user("<image>\nWhat?"), Message::open_answer()],
    );
    let ids = encode_with_images(&tokenizer, &prompt).unwrap();
    // The text before the image begins with the id that the file calls BOS; it must stay.
    assert_eq!(ids[0], 1);
    let text_ids: Vec<u32> = ids
        .iter()
        .filter_map(|&id| u32::try_from(id).ok())
        .collect();
    assert_eq!(
        tokenizer.decode(&text_ids, false),
        prompt.replace("<image>", "")
    );
    assert_eq!(ids.iter().filter(|&&id| id == IMAGE_TOKEN).count(), 1);
}
