//! One question, one answer.

use std::time::Instant;

use mini_gemini::{Answer, StopReason};
use serde::Serialize;

use crate::cli::ChatArgs;
use crate::failure::Failure;
use crate::{interrupt, model, stdout};

use super::display::{self, Display};

/// The object that `--json` prints.
#[derive(Debug, Serialize)]
struct JsonAnswer<'a> {
    model: &'a str,
    answer: &'a str,
    stop: &'static str,
    tokens: JsonTokens,
    timings: JsonTimings,
}

#[derive(Debug, Serialize)]
struct JsonTokens {
    prompt: usize,
    visual: usize,
    cut: usize,
    new: usize,
    drafted: usize,
    accepted: usize,
}

/// Seconds, and tokens per second.
#[derive(Debug, Serialize)]
struct JsonTimings {
    load: f64,
    encode: f64,
    prefill: f64,
    decode: f64,
    start_to_first_token: Option<f64>,
    tokens_per_second: Option<f64>,
}

/// Answers `prompt`.
pub(super) fn run(args: &ChatArgs, prompt: &str, started: Instant) -> Result<(), Failure> {
    // Pictures first: what is wrong with them is known before the model is loaded.
    let pictures = args
        .images
        .iter()
        .map(|image| image.load())
        .collect::<Result<Vec<_>, _>>()?;
    let load_started = Instant::now();
    let model = model::load(&args.model, args.template.as_deref())?;
    let loading = load_started.elapsed();

    let watch = interrupt::watch();
    let mut display = Display::new(&watch, !args.json);
    let mut session = model.session();
    let answer = session.ask(
        prompt,
        pictures,
        &super::generate_options(args),
        &mut |event| display.on_event(event),
    )?;
    display.finish()?;
    display::note_cut(&answer);
    let first_text = display.first_text().map(|first| first - started);
    if args.json {
        stdout::write_json(&JsonAnswer {
            model: model.name(),
            answer: &answer.text,
            stop: stop_name(&answer),
            tokens: JsonTokens {
                prompt: answer.prompt_tokens,
                visual: answer.visual_tokens,
                cut: answer.cut_tokens,
                new: answer.new_tokens,
                drafted: answer.drafts.drafted,
                accepted: answer.drafts.accepted,
            },
            timings: JsonTimings {
                load: loading.as_secs_f64(),
                encode: answer.timings.encode.as_secs_f64(),
                prefill: answer.timings.prefill.as_secs_f64(),
                decode: answer.timings.decode.as_secs_f64(),
                start_to_first_token: first_text.map(|time| time.as_secs_f64()),
                tokens_per_second: display::tokens_per_second(&answer),
            },
        })?;
    }
    if args.timings {
        note!(
            "{}",
            display::timing_line(&answer, first_text, Some(loading))
        );
    }
    match answer.stop {
        StopReason::Interrupted => Err(Failure::interrupted(
            "interrupted: the answer is not complete",
        )),
        StopReason::EndOfTurn | StopReason::Length => Ok(()),
    }
}

fn stop_name(answer: &Answer) -> &'static str {
    match answer.stop {
        StopReason::EndOfTurn => "end_of_turn",
        StopReason::Length => "length",
        StopReason::Interrupted => "interrupted",
    }
}
