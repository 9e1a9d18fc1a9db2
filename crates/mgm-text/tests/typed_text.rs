//! What people type is text: control strings in it never become control tokens, and where there are none the ids are those
//! of the official whole-string encoding.

#![allow(clippy::unwrap_used)]

mod support;

use mgm_text::{
    IMAGE_TOKEN, Message, Piece, Places, Role, Segment, Template, Tokenizer, encode_with_images,
};
use support::{fetched, fixture, repository, sentencepiece};

/// Every released family's tokeniser with its template; those that are not in the repository where they are at hand.
fn families() -> Vec<(&'static str, Tokenizer)> {
    let smollm2 = repository("models/smol/smollm2-135m-instruct.q4_1.gguf");
    let mut families = vec![
        ("vicuna_v1", sentencepiece("vicuna")),
        (
            "vicuna_v1",
            Tokenizer::from_file(fixture("ggml-vocab-llama-spm.gguf")).unwrap(),
        ),
        ("mistral_instruct", sentencepiece("mistral-fast")),
        ("mistral_instruct", sentencepiece("mistral-modern")),
        ("mistral_instruct", sentencepiece("mistral-strips")),
        ("chatml_direct", sentencepiece("mistral-chatml")),
        ("smollm2", Tokenizer::from_file(&smollm2).unwrap()),
        ("smol", Tokenizer::from_file(&smollm2).unwrap()),
    ];
    for (template, file) in [
        ("gemma", "gemma.tokenizer.json"),
        ("mistral_instruct", "mistral.tokenizer.json"),
        ("llama_3", "ggml-vocab-llama-bpe.gguf"),
        ("smollm2", "ggml-vocab-qwen2.gguf"),
    ] {
        if let Some(path) = fetched(file) {
            families.push((template, Tokenizer::from_file(path).unwrap()));
        }
    }
    families
}

const QUESTIONS: [&str; 6] = [
    "What is in this picture?",
    "  two  spaces, then a line\n\nand 漢字 😀 ▁ at the end ",
    "a < b and b > a, |x| = 2 </div>",
    "x",
    "\n",
    "[INST] not a token [/INST] <<SYS>>",
];

const ANSWERS: [&str; 3] = ["A cat.", " It is\n 3 < 4 ", "▁"];

/// Conversations of one and two turns, without a picture, with one, with two in one turn and with one in the second turn.
fn conversations(first: &str, answer: &str, second: &str) -> Vec<Vec<Message>> {
    let user = |pictures: usize, text: &str| {
        Message::user(mgm_text::protocol::place_images(text, pictures))
    };
    let open = Message::open_answer;
    vec![
        vec![user(0, first), open()],
        vec![user(1, first), open()],
        vec![
            user(2, first),
            Message::assistant(answer),
            user(0, second),
            open(),
        ],
        vec![
            user(1, first),
            Message::assistant(answer),
            user(1, second),
            open(),
        ],
        vec![
            user(0, first),
            Message::assistant(answer),
            Message::user(format!("{second} <image>")),
            open(),
        ],
    ]
}

#[test]
fn ids_are_the_official_ones_where_nobody_types_a_control_string() {
    let mut compared = 0;
    for (name, tokenizer) in families() {
        let template = Template::by_name(name).unwrap();
        for (index, first) in QUESTIONS.iter().enumerate() {
            let second = QUESTIONS[(index + 1) % QUESTIONS.len()];
            for messages in conversations(first, ANSWERS[index % ANSWERS.len()], second) {
                let prompt = template.prompt(&messages).with_numbered_images();
                let official = mgm_text::protocol::number_images(&template.render(&messages));
                assert_eq!(prompt.to_string(), official, "{name}");
                let ids = prompt.encode(&tokenizer, false).unwrap();
                assert_eq!(
                    ids,
                    encode_with_images(&tokenizer, &official).unwrap(),
                    "{name} {official:?}"
                );
                assert_eq!(
                    ids.iter().filter(|id| **id == IMAGE_TOKEN).count(),
                    prompt.image_count()
                );
                compared += 1;
            }
        }
    }
    assert!(compared >= 8 * 30);
}

/// Everything that is a control token in some family, alone and where it could join with what stands beside it.
const CONTROL: [&str; 20] = [
    "<s>",
    "</s>",
    "<unk>",
    "<bos>",
    "<eos>",
    "<pad>",
    "<start_of_turn>",
    "<end_of_turn>",
    "<|im_start|>",
    "<|im_end|>",
    "<|endoftext|>",
    "<|begin_of_text|>",
    "<|end_of_text|>",
    "<|start_header_id|>",
    "<|end_header_id|>",
    "<|eot_id|>",
    "<|reserved_special_token_0|>",
    "<mask>",
    "<image>",
    "<|startoftext|>",
];

#[test]
fn typed_control_strings_are_text() {
    for (name, tokenizer) in families() {
        let template = Template::by_name(name).unwrap();
        let encode = |text: &str, parse_special: bool| {
            let messages = [
                Message::user(text).without_images(),
                Message::assistant(text).without_images(),
                Message::user("And?").without_images(),
                Message::open_answer(),
            ];
            let prompt = template.prompt(&messages).with_numbered_images();
            assert!(
                prompt.segments().contains(&Segment::Content(text.into())),
                "{name}"
            );
            prompt.encode(&tokenizer, parse_special).unwrap()
        };
        let controls = |ids: &[i64]| -> Vec<i64> {
            let is_control =
                |id: &&i64| u32::try_from(**id).map_or(true, |id| tokenizer.is_special(id));
            ids.iter().filter(is_control).copied().collect()
        };
        let of_the_template = controls(&encode("x", false));
        for control in CONTROL {
            for text in [
                control.to_string(),
                format!("a{control}b"),
                format!(" {control} "),
                format!("{control}\n{control}"),
                format!("{control}{control}"),
                // What is left of one when another is taken out, and a beginning that the template's next marker completes.
                format!("<{control}s>"),
                control[..control.len() - 1].to_string(),
                control[..1].to_string(),
            ] {
                let ids = encode(&text, false);
                assert_eq!(controls(&ids), of_the_template, "{name} {text:?}");
            }
        }
        // Asked for, they are parsed as the official code does.
        let end = template.stop_token_names()[0];
        let id = i64::from(tokenizer.token_to_id(end).unwrap());
        let count = |ids: &[i64]| ids.iter().filter(|found| **found == id).count();
        let text = format!("a{end}b");
        assert_eq!(
            count(&encode(&text, true)),
            count(&encode(&text, false)) + 2,
            "{name}"
        );
    }
}

#[test]
fn typed_control_strings_survive_the_round_trip() {
    for (name, tokenizer) in families() {
        for control in CONTROL {
            let text = format!("a {control} b");
            let ids = tokenizer.encode_parse(&text, false, false).unwrap();
            assert_eq!(tokenizer.decode(&ids, true), text, "{name}");
        }
    }
}

#[test]
fn an_image_mark_is_a_place_only_in_messages_with_pictures() {
    let template = Template::by_name("vicuna_v1").unwrap();
    let messages = [
        Message::user("<image>\nWhat?"),
        Message::assistant("An <image> tag.").without_images(),
        Message::user("Why <image>?").without_images(),
        Message::open_answer(),
    ];
    let prompt = template.prompt(&messages).with_numbered_images();
    assert_eq!(prompt.image_count(), 1);
    assert!(prompt.to_string().contains(
        "USER: <image>\nWhat? ASSISTANT: An <image> tag.</s>USER: Why <image>? ASSISTANT:"
    ));
    let ids = prompt.encode(&sentencepiece("vicuna"), false).unwrap();
    assert_eq!(ids.iter().filter(|id| **id == IMAGE_TOKEN).count(), 1);

    // Even asked for, a typed mark without a picture is text.
    let ids = prompt.encode(&sentencepiece("vicuna"), true).unwrap();
    assert_eq!(ids.iter().filter(|id| **id == IMAGE_TOKEN).count(), 1);
    let announcing = Template::by_name("v1_mmtag").unwrap();
    assert_eq!(announcing.prompt(&messages).image_count(), 1);
    assert_eq!(announcing.prompt(&messages[2..]).image_count(), 0);
}

#[test]
fn pieces_place_pictures_and_leave_typed_marks_alone() {
    let pieces = [
        Piece::Text("A typed <image>, "),
        Piece::Image,
        Piece::Text("<image>"),
        Piece::Image,
    ];
    let message = Message::from_pieces(Role::User, pieces);
    assert_eq!(
        message.text.as_deref(),
        Some("A typed <image>, <image><image><image>")
    );
    for (name, places) in [("vicuna_v1", 2), ("smol", 2), ("gemma", 2), ("v1_mmtag", 1)] {
        let template = Template::by_name(name).unwrap();
        let prompt = template.prompt(&[message.clone(), Message::open_answer()]);
        assert_eq!(prompt.image_count(), places, "{name}");
        let typed: String = prompt
            .segments()
            .iter()
            .filter_map(|segment| match segment {
                Segment::Content(text) => Some(text.as_str()),
                _ => None,
            })
            .collect();
        assert_eq!(typed, "A typed <image>, <image>", "{name}");
    }
    // Offsets that are no marks are ignored, not trusted.
    let wrong = Message {
        places: Places::At(vec![1, 8, 8, 9, 4000]),
        ..message
    };
    let prompt = Template::by_name("vicuna_v1").unwrap().prompt(&[wrong]);
    assert_eq!(prompt.image_count(), 1);
}
