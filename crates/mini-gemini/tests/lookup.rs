//! Reading several tokens of an answer at a time never changes the answer.

// A test may end by a panic.
#![allow(clippy::unwrap_used)]

mod common;

use common::*;
use mini_gemini::{
    Answer, Control, Event, GenerateOptions, LoadOptions, MiniGemini, ModelSource, StopReason,
};

fn ask(model: &MiniGemini, question: &str, options: &GenerateOptions) -> Answer {
    model
        .session()
        .ask(question, Vec::new(), options, &mut |_| Control::Continue)
        .unwrap()
}

/// The same question with and without; the answers must be equal in every respect that a user sees.
fn both(model: &MiniGemini, question: &str, options: &GenerateOptions) -> Answer {
    let with = ask(model, question, options);
    let off = GenerateOptions {
        lookup: false,
        ..options.clone()
    };
    let without = ask(model, question, &off);
    assert_eq!(with.text, without.text, "{} {options:?}", model.name());
    assert_eq!(with.new_tokens, without.new_tokens);
    assert_eq!(with.stop, without.stop);
    assert_eq!((without.drafts.drafted, without.drafts.accepted), (0, 0));
    with
}

#[test]
fn tiny_models_of_every_family_say_the_same() {
    let mut accepted = 0;
    for family in FAMILIES {
        let model = load(family, &[]);
        for temperature in [0.0, 0.4] {
            let options = GenerateOptions {
                max_new_tokens: 40,
                temperature,
                seed: Some(5),
                ..GenerateOptions::default()
            };
            let answer = both(
                &model,
                "the thing in the air and the thing in the",
                &options,
            );
            accepted += answer.drafts.accepted;
        }
    }
    // Models with random weights fall into repetition, so there must have been something to look up.
    assert!(accepted > 20, "{accepted} tokens were read ahead");
}

#[test]
fn the_built_in_model_says_the_same() {
    let model = MiniGemini::load(&ModelSource::BuiltIn, &LoadOptions::default()).unwrap();
    // The prompt of a picture repeats what the answer said before it.
    let list = "draw a big glass of orange juice <GEN>";
    let options = GenerateOptions {
        max_new_tokens: 60,
        ..GenerateOptions::default()
    };
    let repeated = both(&model, list, &options);
    assert!(
        repeated.drafts.accepted > 2,
        "{:?}: {}",
        repeated.drafts,
        repeated.text
    );
    let sampled = GenerateOptions {
        temperature: 0.7,
        seed: Some(3),
        ..options
    };
    both(&model, list, &sampled);
    both(&model, "What is the capital of France?", &sampled);
}

#[test]
fn what_was_read_ahead_leaves_no_trace() {
    let options = GenerateOptions {
        max_new_tokens: 30,
        ..GenerateOptions::default()
    };
    let question = "the thing in the air and the thing in the";
    // Not every model with random weights falls into repetition.
    let repeats = |family: &&str| {
        let model = load(family, &[]);
        let whole = ask(&model, question, &options);
        (whole.drafts.accepted > 3).then_some((model, whole))
    };
    let (model, whole) = FAMILIES.iter().find_map(repeats).unwrap();
    // Stopped after some number of pieces, then asked again: the answer goes the same way.
    for pieces in 1..12 {
        let mut session = model.session();
        let mut seen = 0;
        let stopped = session
            .ask(question, Vec::new(), &options, &mut |event| {
                seen += usize::from(matches!(event, Event::Text(_)));
                match seen == pieces {
                    true => Control::Stop,
                    false => Control::Continue,
                }
            })
            .unwrap();
        assert_eq!(stopped.stop, StopReason::Interrupted);
        session.reset();
        let again = session
            .ask(question, Vec::new(), &options, &mut |_| Control::Continue)
            .unwrap();
        assert_eq!(again.text, whole.text, "after {pieces} pieces");
    }
}

#[test]
fn limits_hold_to_the_token() {
    let model = load("llama", &[]);
    for limit in 1..20 {
        let options = GenerateOptions {
            max_new_tokens: limit,
            ..GenerateOptions::default()
        };
        let answer = both(
            &model,
            "the thing in the air and the thing in the",
            &options,
        );
        assert!(answer.new_tokens <= limit);
    }
}
