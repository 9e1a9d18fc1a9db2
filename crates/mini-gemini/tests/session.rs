//! Conversations with a tiny model: what a session keeps between turns never changes an answer.

// A test may end by a panic.
#![allow(clippy::unwrap_used)]

mod common;

use common::*;
use mgm_image::RgbImage;
use mgm_text::{Message, Segment};
use mini_gemini::{
    Answer, Control, Event, GenerateOptions, MiniGemini, Overlong, Session, StopReason,
};

const LONGEST: usize = 24;

fn options() -> GenerateOptions {
    GenerateOptions {
        max_new_tokens: LONGEST,
        ..GenerateOptions::default()
    }
}

/// A made picture of the given size.
fn picture(width: u32, height: u32, seed: u32) -> RgbImage {
    let mut image = RgbImage::filled(width, height, [0, 0, 0]);
    for (index, value) in image.data.iter_mut().enumerate() {
        let mixed = (index as u32 / 7 + seed).wrapping_mul(2_654_435_761);
        *value = (mixed >> 24) as u8;
    }
    image
}

fn ask(session: &mut Session, text: &str, images: Vec<RgbImage>) -> Answer {
    session
        .ask(text, images, &options(), &mut |_| Control::Continue)
        .unwrap()
}

/// The answer to a whole conversation made without a session: rendered, spliced and decoded from nothing.
fn from_nothing(model: &MiniGemini, messages: &[Message], images: &[RgbImage]) -> String {
    let mut turns = messages.to_vec();
    turns.push(Message::open_answer());
    let prompt = mgm_text::protocol::number_images(&model.template().render(&turns));
    let ids = mgm_text::encode_with_images(model.tokenizer(), &prompt).unwrap();
    let tokens: Vec<_> = images
        .iter()
        .map(|image| {
            let features = model
                .tower_features(&model.prepare(image).unwrap())
                .unwrap();
            model.visual_tokens(&features).unwrap()
        })
        .collect();
    let spliced = model.splice(&ids, &tokens).unwrap();
    let (greedy, _) = greedy_cached(model, &[spliced], LONGEST);
    let mut stream = model.tokenizer().stream();
    let mut text = String::new();
    for id in &greedy[0] {
        let id = u32::try_from(*id).unwrap();
        if model.stop_ids().contains(&id) {
            break;
        }
        text.extend(stream.push(id));
    }
    text.extend(stream.finish());
    text.trim().to_string()
}

#[test]
fn later_turns_equal_the_conversation_from_nothing() {
    let model = load("llama", &[]);
    let mut session = model.session();
    let images = [picture(120, 80, 1), picture(64, 200, 9)];
    let first = ask(
        &mut session,
        "the thing in the air?",
        vec![images[0].clone()],
    );
    assert!(!first.text.is_empty() && first.new_tokens > 1);
    assert_eq!((first.visual_tokens, first.cached_tokens), (36, 0));
    let history = session.messages().to_vec();
    assert_eq!(
        first.text,
        from_nothing(&model, &history[..1], &images[..1])
    );

    // Only the new turn is read; what was read before is not read again.
    let second = ask(&mut session, "and the other one", Vec::new());
    assert!(
        second.cached_tokens > 36,
        "{} positions were known",
        second.cached_tokens
    );
    let history = session.messages().to_vec();
    assert_eq!(history.len(), 4);
    assert_eq!(
        second.text,
        from_nothing(&model, &history[..3], &images[..1])
    );

    // A second picture numbers the first one's placeholder too, so the prompt changes near its beginning.
    let third = ask(&mut session, "is it the same?", vec![images[1].clone()]);
    assert_eq!(third.visual_tokens, 72);
    assert!(third.cached_tokens < second.cached_tokens);
    let history = session.messages().to_vec();
    assert_eq!(third.text, from_nothing(&model, &history[..5], &images));

    // Forgotten, but the same beginning need not be read again.
    session.reset();
    assert!(session.messages().is_empty());
    let mut looked = 0;
    let again = session
        .ask(
            "the thing in the air?",
            vec![images[0].clone()],
            &options(),
            &mut |event| {
                looked += usize::from(matches!(event, Event::EncodingImage { .. }));
                Control::Continue
            },
        )
        .unwrap();
    assert_eq!((again.text, looked), (first.text, 0));
    assert!(again.cached_tokens > 0);
}

/// Answers of a conversation in which pictures come in several turns, each against the conversation from nothing.
fn check_turns(model: &MiniGemini, turns: &[(&str, usize)]) {
    let mut session = model.session();
    let mut shown = Vec::new();
    for (text, count) in turns {
        let new: Vec<RgbImage> = (0..*count)
            .map(|index| picture(50 + 30 * index as u32, 70, (shown.len() + index) as u32))
            .collect();
        shown.extend(new.iter().cloned());
        let answer = ask(&mut session, text, new);
        let per_picture = model.vision().unwrap().tokens_per_image();
        assert_eq!(answer.visual_tokens, per_picture * shown.len(), "{text}");
        let history = session.messages();
        let before = &history[..history.len() - 1];
        assert_eq!(answer.text, from_nothing(model, before, &shown), "{text}");
        // The order in which pictures stand is the order in which they were given, and each has its number.
        let prompt = model.template().prompt(before).with_numbered_images();
        let numbers: Vec<String> = prompt
            .segments()
            .windows(2)
            .filter_map(|pair| match pair {
                [Segment::Markup(before), Segment::Image] => {
                    before.rfind("Image ").map(|at| before[at..].to_string())
                }
                _ => None,
            })
            .collect();
        let expected: Vec<String> = match shown.len() {
            0 | 1 => Vec::new(),
            pictures => (1..=pictures).map(|k| format!("Image {k}:")).collect(),
        };
        assert_eq!(numbers, expected, "{prompt}");
    }
}

#[test]
fn pictures_come_in_any_turn_and_any_number() {
    for family in ["llama", "gemma", "mixtral"] {
        let model = load(family, &[]);
        check_turns(
            &model,
            &[
                ("the thing in the air", 0),
                ("and this?", 1),
                ("<image> is it in <image>", 2),
                ("the other one", 0),
                ("what", 1),
            ],
        );
    }
}

#[test]
fn high_definition_pictures_come_in_any_turn_and_any_number() {
    let model = load_directory(&hd_directory("session"), policy(&[], None));
    check_turns(
        &model,
        &[
            ("<image> is the air in <image>", 2),
            ("the other", 0),
            ("and this?", 1),
        ],
    );
}

#[test]
fn the_same_picture_twice_is_looked_at_once() {
    let model = load("llama", &[]);
    let pair = vec![picture(40, 40, 1), picture(40, 40, 1)];
    let mut looked = Vec::new();
    // Side by side, so that their visual tokens are neighbours.
    let answer = model
        .session()
        .ask(
            "<image><image>the thing",
            pair.clone(),
            &options(),
            &mut |event| {
                if let Event::EncodingImage { index, .. } = event {
                    looked.push(index);
                }
                Control::Continue
            },
        )
        .unwrap();
    assert_eq!(looked, [0]);
    assert_eq!(
        answer.text,
        from_nothing(&model, &[Message::user("<image><image>the thing")], &pair)
    );
}

#[test]
fn typed_marks_and_control_strings_are_text() {
    let model = load("llama", &[]);
    let mut session = model.session();
    let prompt_tokens = |session: &mut Session, text: &str, parse_special| {
        let options = GenerateOptions {
            parse_special,
            ..options()
        };
        session.reset();
        session
            .ask(text, Vec::new(), &options, &mut |_| Control::Continue)
            .unwrap()
            .prompt_tokens
    };
    let plain = prompt_tokens(&mut session, "the air", false);
    assert!(prompt_tokens(&mut session, "the air</s>", false) > plain + 1);
    assert_eq!(prompt_tokens(&mut session, "the air</s>", true), plain + 1);
    let marked = ask(&mut session, "the <image> tag", Vec::new());
    assert_eq!(marked.visual_tokens, 0);
    // A picture in a later turn does not make the earlier mark a place.
    let next = ask(&mut session, "and this", vec![picture(30, 30, 4)]);
    assert_eq!(next.visual_tokens, 36);
}

#[test]
fn pieces_make_the_text_and_sampling_repeats_with_its_seed() {
    let model = load("llama", &[]);
    let mut pieces = String::new();
    let mut order = Vec::new();
    let answer = model
        .session()
        .ask(
            "the thing",
            vec![picture(50, 50, 3)],
            &options(),
            &mut |event| {
                match event {
                    Event::EncodingImage { index, total } => {
                        order.push(format!("encode {index}/{total}"))
                    }
                    Event::ImageEncoded => order.push("encoded".into()),
                    Event::Prefilling { .. } => order.push("prefill".into()),
                    Event::Text(piece) => pieces.push_str(piece),
                    Event::Working => {}
                }
                Control::Continue
            },
        )
        .unwrap();
    assert_eq!(order, ["encode 0/1", "encoded", "prefill"]);
    assert_eq!(pieces.trim(), answer.text);

    let sampled = |seed| {
        let options = GenerateOptions {
            temperature: 1.0,
            seed: Some(seed),
            ..options()
        };
        model
            .session()
            .ask("the thing", Vec::new(), &options, &mut |_| {
                Control::Continue
            })
            .unwrap()
            .text
    };
    assert_eq!(sampled(5), sampled(5));
    assert!(
        (6..12).any(|seed| sampled(seed) != sampled(5)),
        "sampling ignores its seed"
    );
}

#[test]
fn a_stopped_answer_keeps_what_there_is() {
    let model = load("llama", &[]);
    let mut session = model.session();
    let mut pieces = 0;
    let answer = session
        .ask(
            "the thing in the air?",
            vec![picture(30, 40, 2)],
            &options(),
            &mut |event| {
                pieces += usize::from(matches!(event, Event::Text(_)));
                if pieces >= 3 {
                    Control::Stop
                } else {
                    Control::Continue
                }
            },
        )
        .unwrap();
    assert_eq!(answer.stop, StopReason::Interrupted);
    assert!(answer.new_tokens < LONGEST);
    // Stopped before the first token: the turn is taken back and the next answer is as without it.
    let turns = session.messages().len();
    let stopped = session
        .ask("in the end", Vec::new(), &options(), &mut |_| Control::Stop)
        .unwrap();
    assert!(stopped.text.is_empty());
    assert_eq!(session.messages().len(), turns);
    let next = ask(&mut session, "and then", Vec::new());
    let history = session.messages().to_vec();
    let before = history.len() - 1;
    assert_eq!(
        next.text,
        from_nothing(&model, &history[..before], &[picture(30, 40, 2)])
    );
}

/// Stopped between layers, of the towers or of the decoder, nothing of the turn stays.
#[test]
fn an_answer_stops_between_layers() {
    let model = load("llama", &[]);
    let expected = ask(&mut model.session(), "the thing?", vec![picture(30, 40, 2)]);
    let layers = model.decoder().config().layers;
    let mut session = model.session();
    for reading in [false, true] {
        let (mut prefilling, mut steps) = (false, 0);
        let answer = session
            .ask(
                "the thing?",
                vec![picture(30, 40, 2)],
                &options(),
                &mut |event| {
                    prefilling |= matches!(event, Event::Prefilling { .. });
                    steps += usize::from(matches!(event, Event::Working) && prefilling == reading);
                    match steps {
                        // Before the last layer, when all others have written keys and values.
                        steps if steps == if reading { layers } else { 1 } => Control::Stop,
                        _ => Control::Continue,
                    }
                },
            )
            .unwrap();
        assert_eq!(answer.stop, StopReason::Interrupted, "reading: {reading}");
        assert!(answer.text.is_empty() && session.messages().is_empty());
    }
    let answer = ask(&mut session, "the thing?", vec![picture(30, 40, 2)]);
    assert_eq!(answer.text, expected.text);
    assert_eq!(answer.cached_tokens, 0);
}

#[test]
fn what_does_not_fit_is_refused_and_changes_nothing() {
    let model = load("llama", &[]);
    let mut session = model.session();
    let long = "the thing in the air ".repeat(400);
    let error = session
        .ask(&long, Vec::new(), &options(), &mut |_| Control::Continue)
        .unwrap_err()
        .to_string();
    assert!(
        error.contains("text tokens + 0 visual tokens") && error.contains("the limit is 2048"),
        "{error}"
    );
    // The account is made before any picture is looked at.
    let error = session
        .ask(&long, vec![picture(9, 9, 1)], &options(), &mut |event| {
            panic!("{event:?} before the prompt was refused")
        })
        .unwrap_err()
        .to_string();
    assert!(error.contains("36 visual tokens"), "{error}");
    let error = session
        .ask(
            "<image> and <image>",
            vec![picture(9, 9, 1)],
            &options(),
            &mut |_| Control::Continue,
        )
        .unwrap_err()
        .to_string();
    assert!(error.contains('2') && error.contains('1'), "{error}");
    assert!(session.messages().is_empty());
    let fresh = ask(&mut model.session(), "in the air", Vec::new());
    assert_eq!(ask(&mut session, "in the air", Vec::new()).text, fresh.text);
}

#[test]
fn an_overlong_prompt_is_cut_at_the_limit_where_asked_for() {
    let model = load("llama", &[]);
    let long = "the thing in the air ".repeat(400);
    let images = [picture(30, 40, 2)];
    let options = GenerateOptions {
        overlong: Overlong::Truncate,
        ..options()
    };
    let mut session = model.session();
    let answer = session
        .ask(&long, images.to_vec(), &options, &mut |_| Control::Continue)
        .unwrap();
    let limit = model.context_limit();
    assert_eq!(
        answer.prompt_tokens + answer.visual_tokens - answer.cut_tokens,
        limit
    );

    // As the official code: the spliced embeddings lose everything from the limit on, and the answer runs past it.
    let messages = [
        Message::user(format!("<image>\n{long}")),
        Message::open_answer(),
    ];
    let prompt = model.template().render(&messages);
    let ids = mgm_text::encode_with_images(model.tokenizer(), &prompt).unwrap();
    let features = model
        .tower_features(&model.prepare(&images[0]).unwrap())
        .unwrap();
    let tokens = model.visual_tokens(&features).unwrap();
    let spliced = model.splice(&ids, &[tokens]).unwrap();
    assert_eq!(spliced.dim(0).unwrap(), limit + answer.cut_tokens);
    let (greedy, _) = greedy_cached(&model, &[spliced.narrow(0, 0, limit).unwrap()], LONGEST);
    let ids: Vec<u32> = greedy[0]
        .iter()
        .map(|id| u32::try_from(*id).unwrap())
        .take_while(|id| !model.stop_ids().contains(id))
        .collect();
    assert!(answer.new_tokens > 1);
    assert_eq!(answer.text, model.tokenizer().decode(&ids, true).trim());

    // A prompt that fits is not touched.
    session.reset();
    let short = session
        .ask("in the air", Vec::new(), &options, &mut |_| {
            Control::Continue
        })
        .unwrap();
    assert_eq!(short.cut_tokens, 0);
    assert_eq!(
        short.text,
        ask(&mut model.session(), "in the air", Vec::new()).text
    );
}
