//! The engine under load, without a server: what answering together gains, what knowing a picture saves, how long clients wait.
//!
//! `cargo run --release -p mgm-engine --example load [picture file [seconds of mixed load]]`

use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use mgm_engine::{ChatMessage, Engine, EngineEvent, EngineOptions, Part, Request, Role};
use mini_gemini::{LoadOptions, MiniGemini, ModelSource};

type Failure = Box<dyn std::error::Error + Send + Sync>;

/// Layers allocate and free buffers of megabytes all the time; the system's allocator gives each back to the kernel.
#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

const QUESTIONS: [&str; 8] = [
    "Write about the sea.",
    "How do trees grow?",
    "Tell me a story about a dog and a cat.",
    "What is the weather like in the mountains in winter?",
    "Name some fruits.",
    "Why is the sky blue? Explain it to a child.",
    "What should I cook tonight?",
    "Describe a city at night.",
];

fn question(number: usize, new_tokens: usize) -> Request {
    let text = QUESTIONS[number % QUESTIONS.len()];
    let mut request = Request::chat(vec![ChatMessage::text(Role::User, text)]);
    request.sampling.max_new_tokens = Some(new_tokens);
    request.sampling.ignore_end = true;
    request
}

fn about(engine: &Engine, file: &[u8], text: &str, new_tokens: usize) -> Result<Request, Failure> {
    let picture = engine.picture_from_file(file, &Default::default())?;
    let mut request = Request::chat(vec![ChatMessage {
        role: Role::User,
        parts: vec![Part::Image(picture), Part::Text(text.into())],
    }]);
    request.sampling.max_new_tokens = Some(new_tokens);
    request.sampling.ignore_end = true;
    Ok(request)
}

/// Seconds to the first token, counted from `start`, and tokens.
fn answer(engine: &Engine, start: Instant, request: Request) -> Result<(f64, usize), Failure> {
    let (mut first, mut tokens) = (None, 0);
    for event in engine.submit(request)? {
        match event {
            EngineEvent::Token { token: Some(_), .. } => {
                first.get_or_insert_with(|| start.elapsed().as_secs_f64());
                tokens += 1;
            }
            EngineEvent::Failed { error } => return Err(error.into()),
            _ => {}
        }
    }
    Ok((first.ok_or("no token came")?, tokens))
}

/// `clients` clients, each with `each` questions one after another; tokens per second of all.
fn throughput(engine: &Engine, clients: usize, each: usize) -> Result<f64, Failure> {
    let start = Instant::now();
    let tokens = std::thread::scope(|scope| {
        let threads: Vec<_> = (0..clients)
            .map(|client| {
                scope.spawn(move || -> Result<usize, Failure> {
                    (0..each)
                        .map(|round| {
                            let request = question(client * each + round, 64);
                            Ok(answer(engine, Instant::now(), request)?.1)
                        })
                        .sum()
                })
            })
            .collect();
        threads
            .into_iter()
            .map(|thread| {
                thread
                    .join()
                    .map_err(|_| Failure::from("a client panicked"))?
            })
            .sum::<Result<usize, Failure>>()
    })?;
    Ok(tokens as f64 / start.elapsed().as_secs_f64())
}

/// The file of a picture nobody has seen: the given one with its last pixels' bytes changed would not decode, so it is cut smaller.
fn unseen(image: &mgm_image::RgbImage, number: u32) -> mgm_image::RgbImage {
    mgm_image::resize(
        image,
        image.width - number,
        image.height,
        mgm_image::Filter::Bilinear,
    )
}

fn median(values: &mut [f64]) -> f64 {
    values.sort_by(f64::total_cmp);
    values.get(values.len() / 2).copied().unwrap_or(f64::NAN)
}

fn main() -> Result<(), Failure> {
    mgm_kernels::process::set_default_variable("CANDLE_NUM_THREADS", "1");
    let path = std::env::args()
        .nth(1)
        .unwrap_or_else(|| concat!(env!("CARGO_MANIFEST_DIR"), "/../../examples/cat.jpg").into());
    let file = std::fs::read(path)?;
    let model = Arc::new(MiniGemini::load(
        &ModelSource::BuiltIn,
        &LoadOptions::default(),
    )?);
    let start =
        |model: &Arc<MiniGemini>| Engine::start(Arc::clone(model), EngineOptions::default());

    let engine = start(&model)?;
    throughput(&engine, 1, 1)?;
    let mut ratios = Vec::new();
    for _ in 0..3 {
        let one = throughput(&engine, 1, 8)?;
        let eight = throughput(&engine, 8, 1)?;
        println!(
            "64-token answers: {one:.1} tokens/s one after another, {eight:.1} eight together"
        );
        ratios.push(eight / one);
    }
    println!("ratio {:.2}", median(&mut ratios));

    let (mut first, mut second) = (Vec::new(), Vec::new());
    let image = mgm_image::decode(&file, &Default::default())?;
    for number in 0..7 {
        let shown = unseen(&image, number);
        for (text, times) in [
            ("What is in the picture?", &mut first),
            ("What colour is it?", &mut second),
        ] {
            let start = Instant::now();
            let mut request = about(&engine, &file, text, 4)?;
            if number > 0 {
                let picture = engine.picture(&shown)?;
                if let mgm_engine::Input::Chat { messages, .. } = &mut request.input {
                    messages[0].parts[0] = Part::Image(picture);
                }
            }
            times.push(answer(&engine, start, request)?.0);
        }
    }
    println!(
        "first question about the file: {:.1} ms, second {:.1} ms",
        first[0] * 1e3,
        second[0] * 1e3
    );
    let (first, second) = (median(&mut first), median(&mut second));
    println!(
        "median over pictures: first question {:.1} ms, second {:.1} ms, {:.1} times",
        first * 1e3,
        second * 1e3,
        first / second
    );

    let seconds = std::env::args().nth(2).and_then(|text| text.parse().ok());
    mixed(
        &start(&model)?,
        &image,
        Duration::from_secs(seconds.unwrap_or(10)),
    )
}

/// 32 clients with text and pictures, new and known, for a while.
fn mixed(engine: &Engine, image: &mgm_image::RgbImage, time: Duration) -> Result<(), Failure> {
    let end = Instant::now() + time;
    let times = Mutex::new(Vec::new());
    std::thread::scope(|scope| {
        let threads: Vec<_> = (0..32usize)
            .map(|client| {
                let times = &times;
                scope.spawn(move || -> Result<(), Failure> {
                    for round in 0.. {
                        if Instant::now() >= end {
                            return Ok(());
                        }
                        let start = Instant::now();
                        let mut request = question(client + round, 8 + client * 3 % 40);
                        if client % 2 == 0 {
                            let number = (client / 4 + round / 2) as u32;
                            let picture = engine.picture(&unseen(image, number))?;
                            if let mgm_engine::Input::Chat { messages, .. } = &mut request.input {
                                messages[0].parts.insert(0, Part::Image(picture));
                            }
                        }
                        request.client = client as u64;
                        let (first, _) = answer(engine, start, request)?;
                        let mut times = times.lock().unwrap_or_else(PoisonError::into_inner);
                        times.push(first);
                    }
                    Ok(())
                })
            })
            .collect();
        threads.into_iter().try_for_each(|thread| {
            thread
                .join()
                .map_err(|_| Failure::from("a client panicked"))?
        })
    })?;
    let mut times = times.into_inner().unwrap_or_else(PoisonError::into_inner);
    let middle = median(&mut times);
    let longest = times.last().copied().unwrap_or(f64::NAN);
    println!(
        "32 mixed clients: {} answers, first token after {:.0} ms (median), {:.0} ms (longest), {:.1} times",
        times.len(),
        middle * 1e3,
        longest * 1e3,
        longest / middle
    );
    println!("{:#?}", engine.metrics());
    Ok(())
}
