//! What the integration tests share.

#![allow(dead_code)]

use std::path::Path;
use std::sync::{Arc, OnceLock};
use std::time::{Duration, Instant};

use mgm_engine::{
    ChatMessage, Engine, EngineEvent, EngineOptions, FinishReason, Input, Part, Picture, Request,
    Role, Sampling, Snapshot, Submission, Timings, Usage,
};
use mgm_image::RgbImage;
use mini_gemini::{LoadOptions, MiniGemini, ModelSource, Precision};

/// A tiny random model of one of the families, with f32 arithmetic.
pub(crate) fn load(family: &str) -> Arc<MiniGemini> {
    let path = Path::new(env!("CARGO_MANIFEST_DIR"))
        .join("../mini-gemini/tests/fixtures")
        .join(family);
    load_from(&ModelSource::Path(path), Precision::F32)
}

pub(crate) fn load_from(source: &ModelSource, precision: Precision) -> Arc<MiniGemini> {
    let options = LoadOptions {
        precision,
        ..LoadOptions::default()
    };
    Arc::new(MiniGemini::load(source, &options).unwrap())
}

pub(crate) fn llama() -> Arc<MiniGemini> {
    static MODEL: OnceLock<Arc<MiniGemini>> = OnceLock::new();
    Arc::clone(MODEL.get_or_init(|| load("llama")))
}

pub(crate) fn start(options: EngineOptions) -> Engine {
    Engine::start(llama(), options).unwrap()
}

/// Options with which several prompts and chunks meet in nearly every step.
pub(crate) fn small_steps() -> EngineOptions {
    EngineOptions {
        prefill_rows: 16,
        kv_bytes: Some(64 << 20),
        encode_slice: Duration::ZERO,
        ..EngineOptions::default()
    }
}

/// A made picture.
pub(crate) fn picture(width: u32, height: u32, seed: u32) -> RgbImage {
    let mut image = RgbImage::filled(width, height, [0, 0, 0]);
    for (index, value) in image.data.iter_mut().enumerate() {
        let mixed = (index as u32 / 7 + seed).wrapping_mul(2_654_435_761);
        *value = (mixed >> 24) as u8;
    }
    image
}

/// A picture as a BMP file.
pub(crate) fn bmp(image: &RgbImage) -> Vec<u8> {
    let row = (image.width as usize * 3).next_multiple_of(4);
    let size = 54 + row * image.height as usize;
    let mut file = b"BM".to_vec();
    file.extend((size as u32).to_le_bytes());
    file.extend([0; 4]);
    file.extend(54u32.to_le_bytes());
    file.extend(40u32.to_le_bytes());
    file.extend(image.width.to_le_bytes());
    file.extend(image.height.to_le_bytes());
    file.extend([1, 0, 24, 0]);
    file.extend([0; 24]);
    for y in (0..image.height).rev() {
        let start = file.len();
        for pixel in image.row(y).chunks(3) {
            file.extend([pixel[2], pixel[1], pixel[0]]);
        }
        file.resize(start + row, 0);
    }
    file
}

pub(crate) fn user(parts: Vec<Part>) -> ChatMessage {
    ChatMessage {
        role: Role::User,
        parts,
    }
}

pub(crate) fn ask(text: &str) -> Request {
    limited(Request::chat(vec![ChatMessage::text(Role::User, text)]), 12)
}

pub(crate) fn ask_about(picture: Picture, text: &str) -> Request {
    let parts = vec![Part::Image(picture), Part::Text(text.into())];
    limited(Request::chat(vec![user(parts)]), 12)
}

/// A prompt of `length` token ids that begins like all others of the same seed.
pub(crate) fn tokens(seed: usize, length: usize) -> Input {
    let id = |index: usize| ((seed * 7919 + index * 104_729) % 140 + 10) as u32;
    Input::Tokens((0..length).map(id).collect())
}

pub(crate) fn go_on(seed: usize, length: usize, max_new_tokens: usize) -> Request {
    limited(Request::new(tokens(seed, length)), max_new_tokens)
}

pub(crate) fn limited(mut request: Request, max_new_tokens: usize) -> Request {
    request.sampling.max_new_tokens = Some(max_new_tokens);
    // A random model ends its turn whenever it likes.
    request.sampling.ignore_end = true;
    request
}

pub(crate) fn sampled(mut request: Request, seed: u64) -> Request {
    request.sampling = Sampling {
        temperature: 1.0,
        top_p: 0.95,
        seed: Some(seed),
        ..request.sampling
    };
    request
}

/// One finished answer.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct Done {
    pub(crate) text: String,
    /// Ids and, where asked for, the bits of their log probabilities.
    pub(crate) tokens: Vec<Chosen>,
    pub(crate) reason: FinishReason,
    pub(crate) stop: Option<String>,
    pub(crate) usage: Usage,
    pub(crate) timings: Timings,
}

impl Done {
    /// What must not depend on who else was there.
    pub(crate) fn content(&self) -> (&str, &[Chosen], FinishReason) {
        (&self.text, &self.tokens, self.reason)
    }
}

/// A token's id and the bits of its log probability.
type Chosen = (u32, Option<u32>);

/// Everything that happened to a request, its choices in order.
pub(crate) fn collect(events: impl Iterator<Item = EngineEvent>) -> Result<Vec<Done>, String> {
    let mut texts: Vec<(String, Vec<Chosen>)> = Vec::new();
    let mut done: Vec<Option<Done>> = Vec::new();
    for event in events {
        match event {
            EngineEvent::Queued { .. } | EngineEvent::Started { .. } => {}
            EngineEvent::Token {
                choice,
                text,
                token,
            } => {
                if texts.len() <= choice {
                    texts.resize_with(choice + 1, Default::default);
                }
                texts[choice].0.push_str(&text);
                let token = token.map(|token| (token.id, token.logprob.map(f32::to_bits)));
                texts[choice].1.extend(token);
            }
            EngineEvent::Finished {
                choice,
                reason,
                stop,
                usage,
                timings,
            } => {
                if texts.len() <= choice {
                    texts.resize_with(choice + 1, Default::default);
                }
                if done.len() <= choice {
                    done.resize_with(choice + 1, || None);
                }
                let (text, tokens) = texts[choice].clone();
                let before = done[choice].replace(Done {
                    text,
                    tokens,
                    reason,
                    stop,
                    usage,
                    timings,
                });
                assert_eq!(before, None, "finished twice");
            }
            EngineEvent::Failed { error } => return Err(error),
        }
    }
    done.into_iter()
        .collect::<Option<Vec<_>>>()
        .filter(|done| !done.is_empty())
        .ok_or_else(|| "the events ended before the answers".to_string())
}

pub(crate) fn run(engine: &Engine, request: Request) -> Done {
    let mut done = collect(engine.submit(request).unwrap()).unwrap();
    assert_eq!(done.len(), 1);
    done.remove(0)
}

/// The answer of an engine that has never seen anything else.
pub(crate) fn alone(model: &Arc<MiniGemini>, request: Request) -> Done {
    let options = EngineOptions {
        kv_bytes: Some(64 << 20),
        ..EngineOptions::default()
    };
    run(&Engine::start(Arc::clone(model), options).unwrap(), request)
}

/// Waits until the metrics are as wanted.
pub(crate) fn wait_for(engine: &Engine, what: &str, wanted: impl Fn(&Snapshot) -> bool) {
    let start = Instant::now();
    loop {
        let snapshot = engine.metrics();
        if wanted(&snapshot) {
            return;
        }
        // Generous: this is about whether, not how fast.
        assert!(
            start.elapsed() < Duration::from_secs(120),
            "waited for {what}: {snapshot:?}"
        );
        std::thread::sleep(Duration::from_millis(2));
    }
}

/// Takes events up to the first token of a request.
pub(crate) fn first_token(submission: &mut Submission) {
    for event in submission.by_ref() {
        match event {
            EngineEvent::Token { .. } => return,
            EngineEvent::Queued { .. } | EngineEvent::Started { .. } => {}
            other => panic!("{other:?} before the first token"),
        }
    }
    panic!("no token came");
}
