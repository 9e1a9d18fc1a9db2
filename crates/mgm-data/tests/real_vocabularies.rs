//! Label masks with the vocabularies of the released models: which ids are learnt, worked out from published encodings
//! (`▁Hello` 15043, `▁World` 2787, `!` 29991, `▁A` 319, `▁chat` 13563, `</s>` 2 in the Llama vocabulary).

#![allow(clippy::unwrap_used)]

use std::path::{Path, PathBuf};

use mgm_data::{Conversation, MaskMismatch, Sequence, TokeniseSettings, tokenise};
use mgm_text::{GgufVocab, Role, Tokenizer};

fn text_fixture(name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR"))
        .join("../mgm-text/tests/fixtures")
        .join(name)
}

fn vicuna() -> Tokenizer {
    let mut vocab = GgufVocab::read(text_fixture("ggml-vocab-llama-spm.gguf")).unwrap();
    // Vicuna's tokeniser is the slow one with `legacy: false`; `<unk>` is its padding.
    vocab.legacy = Some(false);
    Tokenizer::from_gguf_metadata(&vocab).unwrap()
}

fn conversation(image: bool, texts: &[&str]) -> Conversation {
    Conversation {
        messages: texts
            .iter()
            .enumerate()
            .map(|(number, text)| {
                (
                    if number % 2 == 0 {
                        Role::User
                    } else {
                        Role::Assistant
                    },
                    (*text).to_owned(),
                )
            })
            .collect(),
        images: if image {
            vec!["a.png".into()]
        } else {
            Vec::new()
        },
    }
}

fn sequence(template: &str, tokenizer: &Tokenizer, image: bool, texts: &[&str]) -> Sequence {
    let settings = TokeniseSettings {
        template: template.into(),
        max_length: 2048,
        visual_tokens: 576,
        mismatch: MaskMismatch::Error,
    };
    tokenise(&settings, &conversation(image, texts), tokenizer).unwrap()
}

fn learnt(sequence: &Sequence) -> Vec<i64> {
    sequence
        .labels
        .iter()
        .copied()
        .filter(|&label| label != -100)
        .collect()
}

#[test]
fn vicuna_learns_answers_and_their_end() {
    let tokenizer = vicuna();
    let texts = ["<image>\nGreet.", "Hello World!", "And?", "A chat"];
    assert_eq!(
        learnt(&sequence("vicuna_v1", &tokenizer, true, &texts)),
        [15043, 2787, 29991, 2, 319, 13563, 2]
    );
    let texts = ["Greet.", "Hello World!", "And?", "A chat", "More?", "A"];
    assert_eq!(
        learnt(&sequence("vicuna_v1", &tokenizer, false, &texts)),
        [15043, 2787, 29991, 2, 319, 13563, 2, 319, 2]
    );
}

#[test]
fn vicuna_plain_caption_ends_with_a_newline() {
    let tokenizer = vicuna();
    let sequence = sequence("plain", &tokenizer, true, &["<image>\nDescribe.", "A chat"]);
    // BOS, picture, ▁A ▁chat ⏎: the caption is a text of its own after the picture and gets the dummy space.
    assert_eq!(sequence.ids, [1, -200, 319, 13563, 13]);
    assert_eq!(sequence.labels, [-100, -100, 319, 13563, 13]);
}

#[test]
fn mixtral_learns_answers_and_their_end() {
    let tokenizer = Tokenizer::from_file(text_fixture("mistral-v1.tokenizer.model")).unwrap();
    for (image, question) in [(true, "<image>\nGreet."), (false, "Greet.")] {
        let sequence = sequence(
            "mistral_instruct",
            &tokenizer,
            image,
            &[question, "Hello World!", "And?", "Yes"],
        );
        let ids = learnt(&sequence);
        assert_eq!(ids.iter().filter(|&&id| id == 2).count(), 2);
        assert_eq!(ids.last(), Some(&2));
        let ids: Vec<u32> = ids
            .into_iter()
            .filter_map(|id| u32::try_from(id).ok())
            .collect();
        let text = tokenizer.decode(&ids, true);
        assert_eq!(
            text.split_whitespace().collect::<Vec<_>>(),
            ["Hello", "World!", "Yes"],
            "{text:?}"
        );
    }
}

#[test]
fn the_small_model_learns_answers_and_their_end() {
    let file = Path::new(env!("CARGO_MANIFEST_DIR"))
        .join("../../models/smol/smollm2-135m-instruct.q4_1.gguf");
    let tokenizer = Tokenizer::from_file(&file).unwrap();
    let end = i64::from(tokenizer.token_to_id("<|im_end|>").unwrap());
    for template in ["smol", "smollm2"] {
        for answer in [
            "A cat.",
            "12,345.67 \n",
            " A dog.",
            "naïve 日本 🙂",
            "assistant\nassistant",
        ] {
            let sequence = sequence(
                template,
                &tokenizer,
                true,
                &["<image>\nWhat is this?", answer, "Sure?", "Yes."],
            );
            let ids = learnt(&sequence);
            assert_eq!(ids.iter().filter(|&&id| id == end).count(), 2);
            let ids: Vec<u32> = ids
                .into_iter()
                .filter_map(|id| u32::try_from(id).ok())
                .collect();
            assert_eq!(
                tokenizer.decode(&ids, false),
                format!("{answer}<|im_end|>Yes.<|im_end|>")
            );
        }
    }
    // A leading line break would be one token with the header's: never trained silently.
    let settings = TokeniseSettings {
        template: "smol".into(),
        max_length: 2048,
        visual_tokens: 576,
        mismatch: MaskMismatch::Error,
    };
    let error = tokenise(
        &settings,
        &conversation(false, &["Well?", "\n\nYes"]),
        &tokenizer,
    )
    .unwrap_err();
    assert!(
        error.to_string().contains("begin with white space"),
        "{error}"
    );
}
