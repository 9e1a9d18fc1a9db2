//! Answers given together equal answers given alone, to the last bit of their probabilities.

// A test may end by a panic.
#![allow(clippy::unwrap_used)]

mod common;

use std::sync::Arc;
use std::time::Duration;

use common::*;
use mgm_engine::{ChatMessage, Engine, EngineOptions, Input, Part, Request, Role};
use mini_gemini::{MiniGemini, Precision};

struct Random(u64);

impl Random {
    fn below(&mut self, bound: usize) -> usize {
        self.0 = self
            .0
            .wrapping_mul(6_364_136_223_846_793_005)
            .wrapping_add(1_442_695_040_888_963_407);
        (self.0 >> 33) as usize % bound
    }
}

/// Requests of every kind: short and long prompts, common beginnings, conversations, pictures, sampled and greedy.
fn requests(engine: &Engine, random: &mut Random, count: usize) -> Vec<Request> {
    let words = ["the thing", "in the air", "is it", "and the other", "what?"];
    (0..count)
        .map(|index| {
            let max_new_tokens = 1 + random.below(20);
            let mut text = String::new();
            for _ in 0..=random.below(12) {
                text.push_str(words[random.below(words.len())]);
                text.push(' ');
            }
            let input = match index % 4 {
                0 => tokens(random.below(3), 1 + random.below(200)),
                1 => Input::Text(text),
                2 => {
                    let mut turns = vec![ChatMessage::text(Role::User, text)];
                    for _ in 0..random.below(3) {
                        turns.push(ChatMessage::text(Role::Assistant, "the air"));
                        turns.push(ChatMessage::text(Role::User, "is it?"));
                    }
                    Input::Chat {
                        messages: turns,
                        template: None,
                    }
                }
                _ => {
                    let mut parts: Vec<Part> = (0..=random.below(2))
                        .map(|_| {
                            let image = picture(40, 30, random.below(3) as u32);
                            Part::Image(engine.picture(&image).unwrap())
                        })
                        .collect();
                    parts.push(Part::Text(text));
                    Input::Chat {
                        messages: vec![user(parts)],
                        template: None,
                    }
                }
            };
            let mut request = limited(Request::new(input), max_new_tokens);
            request.sampling.logprobs = Some(2);
            request.client = random.below(3) as u64;
            match random.below(3) {
                0 => sampled(request, index as u64),
                _ => request,
            }
        })
        .collect()
}

/// `mixes` random mixes of requests, each request's answer against the one it gets alone.
fn check_mixes(model: &Arc<MiniGemini>, kinds: usize, mixes: usize, seed: u64) {
    let mut random = Random(seed);
    let engine = Engine::start(Arc::clone(model), small_steps()).unwrap();
    let requests = requests(&engine, &mut random, kinds);
    let alone: Vec<Done> = requests
        .iter()
        .map(|request| alone(model, request.clone()))
        .collect();
    let mut largest = 0;
    for mix in 0..mixes {
        // A new engine from time to time: with and without a past to take beginnings from.
        let engine = if mix % 4 == 0 {
            Engine::start(
                Arc::clone(model),
                EngineOptions {
                    max_running: 2 + random.below(10),
                    prefill_rows: 1 + random.below(60),
                    ..small_steps()
                },
            )
            .unwrap()
        } else {
            engine.clone()
        };
        let picked: Vec<usize> = (0..2 + random.below(9))
            .map(|_| random.below(kinds))
            .collect();
        let submissions: Vec<_> = picked
            .iter()
            .map(|index| {
                std::thread::sleep(Duration::from_micros(random.below(1500) as u64));
                engine.submit(requests[*index].clone()).unwrap()
            })
            .collect();
        for (index, submission) in picked.iter().zip(submissions) {
            let done = collect(submission).unwrap().remove(0);
            assert_eq!(
                done.content(),
                alone[*index].content(),
                "mix {mix}, request {index}: {:?}",
                requests[*index]
            );
        }
        let batch = engine.metrics().batch;
        let mut rows = batch.bounds.iter().zip(&batch.counts);
        let met = rows.rfind(|(_, count)| **count > 0);
        largest = largest.max(met.map_or(0, |(bound, _)| *bound as usize));
    }
    assert!(largest >= 4, "no more than {largest} answers ever met");
}

#[test]
fn two_hundred_random_mixes() {
    check_mixes(&llama(), 40, 200, 1);
}

#[test]
fn every_family_of_models() {
    for family in ["gemma", "llama3", "mistral", "mixtral", "qwen2"] {
        check_mixes(&load(family), 16, 16, 2);
    }
}

/// An engine's greedy answer is the one that a conversation of [`mini_gemini::Session`] gives.
#[test]
fn engines_and_sessions_answer_alike() {
    for family in ["llama", "gemma", "qwen2"] {
        let model = load(family);
        let engine = Engine::start(Arc::clone(&model), small_steps()).unwrap();
        let images = [picture(60, 40, 5), picture(30, 50, 6)];
        let pictures = images
            .each_ref()
            .map(|image| engine.picture(image).unwrap());
        let options = mini_gemini::GenerateOptions {
            max_new_tokens: 12,
            ..Default::default()
        };
        let mut session = model.session();
        let mut turns = Vec::new();
        for (text, shown) in [("the thing?", 0..1), ("is it", 0..0), ("and this?", 1..2)] {
            let answer = session
                .ask(text, images[shown.clone()].to_vec(), &options, &mut |_| {
                    mini_gemini::Control::Continue
                })
                .unwrap();
            let mut parts: Vec<Part> = pictures[shown].iter().cloned().map(Part::Image).collect();
            parts.push(Part::Text(text.into()));
            turns.push(user(parts));
            let mut request = Request::chat(turns.clone());
            request.sampling.max_new_tokens = Some(12);
            let done = run(&engine, request);
            assert_eq!(done.text.trim(), answer.text, "{family} {text}");
            assert_eq!(
                done.usage.prompt.total(),
                answer.prompt_tokens + answer.visual_tokens
            );
            assert_eq!(done.usage.new_tokens, answer.new_tokens);
            if answer.text.is_empty() {
                break;
            }
            turns.push(ChatMessage::text(Role::Assistant, answer.text));
        }
    }
}

/// The built-in model, in f32 and, where integer products give each row its own bits, as it is stored.
#[test]
#[ignore = "minutes; run by the gate"]
fn the_built_in_model() {
    use mgm_kernels::level::{Level, level};
    let built_in = |precision| load_from(&mini_gemini::ModelSource::BuiltIn, precision);
    check_mixes(&built_in(Precision::F32), 12, 12, 3);
    if level() == Level::Avx512 {
        check_mixes(&built_in(Precision::Auto), 20, 30, 4);
    }
}
