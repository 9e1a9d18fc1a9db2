//! What one pass of the decoder costs by the number of sequences it advances and of prompt positions it reads.
//!
//! `cargo run --release -p mini-gemini --example steps [model folder, or - for the built-in one [sequences, rows each]]`

use std::time::Instant;

use mini_gemini::decoder::KvCache;
use mini_gemini::{LoadOptions, MiniGemini, ModelSource, Read, Result, Slot};

/// Positions every sequence holds before it is timed.
const HELD: usize = 100;
const ROUNDS: usize = 25;

/// Milliseconds of the fastest of some passes in which `sequences` sequences of [`HELD`] positions each read `rows` more.
fn pass(model: &MiniGemini, sequences: usize, rows: usize) -> Result<f64> {
    let slot = |position: usize| Slot::Text((7 * position % 1000 + 20) as u32);
    let held: Vec<Slot> = (0..HELD).map(slot).collect();
    let new: Vec<Slot> = (HELD..HELD + rows).map(slot).collect();
    let mut caches: Vec<KvCache> = (0..sequences)
        .map(|_| model.decoder().new_cache())
        .collect();
    let read = |caches: &mut [KvCache], slots: &[Slot]| {
        let mut reads: Vec<Read> = caches
            .iter_mut()
            .map(|cache| Read {
                cache,
                slots,
                logits: 1,
            })
            .collect();
        model.read(&mut reads, &|_| None)
    };
    read(&mut caches, &held)?;
    let mut best = f64::INFINITY;
    for _ in 0..ROUNDS {
        let start = Instant::now();
        read(&mut caches, &new)?;
        best = best.min(start.elapsed().as_secs_f64());
        caches.iter_mut().for_each(|cache| cache.truncate(HELD));
    }
    Ok(best * 1e3)
}

fn main() -> Result<()> {
    mgm_kernels::process::set_default_variable("CANDLE_NUM_THREADS", "1");
    let arguments: Vec<String> = std::env::args().collect();
    let source = match arguments.get(1).map(String::as_str) {
        Some("-") | None => ModelSource::BuiltIn,
        Some(path) => ModelSource::Path(path.into()),
    };
    let model = MiniGemini::load(&source, &LoadOptions::default())?;
    let number = |index: usize| arguments.get(index).and_then(|text| text.parse().ok());
    if let (Some(sequences), Some(rows)) = (number(2), number(3)) {
        let time = pass(&model, sequences, rows)?;
        println!("{sequences} sequences, {rows} rows each: {time:.2} ms");
        return Ok(());
    }
    let one = pass(&model, 1, 1)?;
    for sequences in [1, 2, 4, 8, 16, 32] {
        let time = pass(&model, sequences, 1)?;
        println!(
            "{sequences:3} sequences, one token each: {time:7.2} ms, {:5.1} tokens/s, {:.2} times one alone",
            sequences as f64 / time * 1e3,
            sequences as f64 * one / time
        );
    }
    for rows in [2, 4, 8, 12, 16, 24, 32, 64, 128, 256] {
        let time = pass(&model, 1, rows)?;
        println!(
            "{rows:3} prompt positions: {time:7.2} ms, {:.2} ms each",
            time / rows as f64
        );
    }
    Ok(())
}
