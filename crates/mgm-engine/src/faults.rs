//! A fault in one request takes down nobody else.

use std::sync::Arc;
use std::time::Duration;

use mgm_image::{PreparedImage, RgbImage};
use mgm_text::DetokenizeStream;
use mini_gemini::decoder::CachePool;
use mini_gemini::{Error, MiniGemini, MiningAttention, PictureKey, Read, Slot, VisualTokens};

use crate::brain::{Brain, FindPicture, Pause};
use crate::event::{EngineEvent, FinishReason};
use crate::options::EngineOptions;
use crate::picture::Picture;
use crate::request::{ChatMessage, Input, Part, Request, Role};
use crate::test_model::{picture, tiny};
use crate::{Engine, SubmitError};

/// Tokens that the faulty model cannot read.
const FAILS: u32 = 201;
const PANICS: u32 = 202;

/// A model with faults.
struct Faulty {
    model: Arc<MiniGemini>,
    fails: PictureKey,
    panics: PictureKey,
}

impl Brain for Faulty {
    fn read(
        &self,
        reads: &mut [Read<'_>],
        pictures: &FindPicture<'_>,
    ) -> Result<Vec<Vec<f32>>, Error> {
        let holds = |reads: &[Read], id| {
            let mut slots = reads.iter().flat_map(|read| read.slots);
            slots.any(|slot| *slot == Slot::Text(id))
        };
        if holds(reads, FAILS) {
            return Err(Error::Input("cannot read it".into()));
        }
        let panics = holds(reads, PANICS);
        let result = self.model.read(reads, pictures);
        // After the caches have changed.
        assert!(!panics, "a bad place");
        result
    }

    fn look_at(&self, image: &PreparedImage, pause: &mut Pause<'_>) -> Result<VisualTokens, Error> {
        let key = PictureKey::of(image);
        pause()?;
        assert!(key != self.panics, "a terrible picture");
        if key == self.fails {
            return Err(Error::Input("a bad picture".into()));
        }
        self.model.look_at(image, pause)
    }

    fn mining_attention(
        &self,
        image: &RgbImage,
        pause: &mut Pause<'_>,
    ) -> Result<MiningAttention, Error> {
        self.model.mining_attention(image, pause)
    }

    fn cache_pool(&self) -> CachePool {
        self.model.decoder().cache_pool()
    }

    fn stop_ids(&self) -> &[u32] {
        self.model.stop_ids()
    }

    fn stream(&self) -> DetokenizeStream {
        self.model.tokenizer().stream()
    }
}

fn engine() -> Engine {
    let key = |seed| PictureKey::of(&tiny().prepare(&picture(40, 30, seed)).unwrap());
    let brain = Faulty {
        model: Arc::clone(tiny()),
        fails: key(1),
        panics: key(2),
    };
    let options = EngineOptions {
        prefill_rows: 16,
        kv_bytes: Some(16 << 20),
        encode_slice: Duration::ZERO,
        ..EngineOptions::default()
    };
    Engine::start_with(Arc::clone(tiny()), Arc::new(brain), options).unwrap()
}

/// A prompt of `length` tokens with `odd` at the place 40.
fn prompt(seed: u32, length: u32, odd: Option<u32>) -> Request {
    let mut ids: Vec<u32> = (0..length).map(|index| 20 + (index * seed) % 50).collect();
    if let Some(odd) = odd {
        ids[40] = odd;
    }
    limited(Request::new(Input::Tokens(ids)))
}

fn limited(mut request: Request) -> Request {
    request.sampling.max_new_tokens = Some(20);
    request.sampling.ignore_end = true;
    // Neither may come as an answer.
    request.sampling.logit_bias = vec![(FAILS, -100.0), (PANICS, -100.0)];
    request
}

fn show(picture: Picture) -> Request {
    limited(Request::chat(vec![ChatMessage {
        role: Role::User,
        parts: vec![Part::Image(picture), Part::Text("what".into())],
    }]))
}

/// The text of a request's first choice and how it ended, or why it failed.
fn outcome(events: impl Iterator<Item = EngineEvent>) -> Result<(String, FinishReason), String> {
    let mut answer = String::new();
    let mut end = None;
    let mut failures = Vec::new();
    for event in events {
        match event {
            EngineEvent::Token {
                choice: 0, text, ..
            } => answer.push_str(&text),
            EngineEvent::Finished {
                choice: 0, reason, ..
            } => end = Some(reason),
            EngineEvent::Failed { error } => failures.push(error),
            _ => {}
        }
    }
    assert!(failures.len() <= 1, "failed once: {failures:?}");
    match failures.pop() {
        Some(failure) => Err(failure),
        None => Ok((answer, end.unwrap())),
    }
}

#[test]
fn a_prompt_that_cannot_be_read_fails_alone() {
    let engine = engine();
    let expected: Vec<_> = (1..4)
        .map(|seed| outcome(engine.submit(prompt(seed, 90, None)).unwrap()).unwrap())
        .collect();
    for odd in [FAILS, PANICS] {
        for choices in [1, 3] {
            let bad = Request {
                choices,
                ..prompt(7, 90, Some(odd))
            };
            // Good ones before and behind the bad one, other beginnings than those already known.
            let good: Vec<_> = (1..4)
                .map(|seed| engine.submit(prompt(seed, 90, None)).unwrap())
                .collect();
            let bad = engine.submit(bad).unwrap();
            let fresh = engine.submit(prompt(11, 90, None)).unwrap();
            let error = outcome(bad).unwrap_err();
            assert!(error.contains(if odd == FAILS {
                "cannot read it"
            } else {
                "a bad place"
            }));
            for (good, expected) in good.into_iter().zip(&expected) {
                assert_eq!(outcome(good).as_ref(), Ok(expected));
            }
            assert_eq!(outcome(fresh).unwrap().1, FinishReason::Length);
        }
    }
    // What stood before the fault was kept, nothing behind it.
    let cached = engine
        .submit(prompt(7, 90, None))
        .unwrap()
        .find_map(|event| match event {
            EngineEvent::Started { prompt } => Some(prompt.cached_tokens),
            _ => None,
        });
    assert!(cached.is_some_and(|cached| cached <= 40), "{cached:?}");
    let metrics = engine.metrics();
    assert_eq!(metrics.requests.failed, 4);
    assert!(engine.shutdown(Duration::from_secs(600)));
    assert_eq!(engine.metrics().kv.positions_reserved, 0);
}

#[test]
fn an_answer_that_cannot_go_on_fails_alone() {
    let engine = engine();
    let expected = outcome(engine.submit(prompt(1, 30, None)).unwrap()).unwrap();
    for odd in [FAILS, PANICS] {
        let mut bad = prompt(5, 30, None);
        bad.choices = 2;
        // The first token is the one that cannot be read.
        bad.sampling.logit_bias = vec![(odd, 100.0)];
        let good = engine.submit(prompt(1, 30, None)).unwrap();
        let bad = engine.submit(bad).unwrap();
        assert!(outcome(bad).is_err());
        assert_eq!(outcome(good).as_ref(), Ok(&expected));
    }
    assert!(engine.shutdown(Duration::from_secs(600)));
    let metrics = engine.metrics();
    assert_eq!(
        (metrics.requests.failed, metrics.kv.positions_reserved),
        (2, 0)
    );
}

#[test]
fn a_picture_that_cannot_be_looked_at_fails_those_who_show_it() {
    let engine = engine();
    let shown = |seed| engine.picture(&picture(40, 30, seed)).unwrap();
    let expected = outcome(engine.submit(show(shown(3))).unwrap()).unwrap();
    for seed in [1, 2] {
        let submissions = [
            engine.submit(show(shown(seed))).unwrap(),
            engine.submit(show(shown(3))).unwrap(),
            engine.submit(show(shown(seed))).unwrap(),
            engine.submit(show(shown(4))).unwrap(),
        ];
        let outcomes = submissions.map(outcome);
        assert!(outcomes[0].is_err() && outcomes[2].is_err(), "{outcomes:?}");
        assert_eq!(outcomes[1].as_ref(), Ok(&expected));
        assert!(outcomes[3].is_ok());
    }
    assert_eq!(engine.metrics().requests.failed, 4);
    assert!(engine.shutdown(Duration::from_secs(600)));
    let late = engine.submit(prompt(1, 30, None)).map(|_| ());
    assert_eq!(late, Err(SubmitError::ShuttingDown));
}
