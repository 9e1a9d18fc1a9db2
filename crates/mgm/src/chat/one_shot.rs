//! One question, one answer.

use std::time::Instant;

use mini_gemini::{Answer, StopReason};
use serde::Serialize;

use crate::cli::ChatArgs;
use crate::failure::Failure;
use crate::ocr::JsonLine;
use crate::{interrupt, model, stdout};

use super::display::{self, Display};
use super::generation::{Generation, Picture};
use super::reading::Reading;

/// The object that `--json` prints.
#[derive(Debug, Serialize)]
struct JsonAnswer<'a> {
    model: &'a str,
    answer: &'a str,
    stop: &'static str,
    tokens: JsonTokens,
    timings: JsonTimings,
    #[serde(skip_serializing_if = "Option::is_none")]
    ocr: Option<JsonReading>,
    #[serde(skip_serializing_if = "Option::is_none")]
    picture: Option<JsonPicture>,
}

/// The text that was read in the pictures, and what of it the model was told.
#[derive(Debug, Serialize)]
struct JsonReading {
    hint: Option<String>,
    pictures: Vec<JsonPage>,
}

#[derive(Debug, Serialize)]
struct JsonPage {
    lines: Vec<JsonLine>,
}

/// The picture that was painted.
#[derive(Debug, Serialize)]
struct JsonPicture {
    file: String,
    prompt: String,
    seed: u64,
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
    if args.ocr && pictures.is_empty() {
        return Err(Failure::usage(
            "--ocr reads pictures: it needs at least one --image",
        ));
    }
    let mut generation = Generation::open(args)?;
    let mut reading = Reading::open(args)?;
    let load_started = Instant::now();
    let model = model::load(&args.model, args.template.as_deref())?;
    let loading = load_started.elapsed();

    let watch = interrupt::watch();
    if let Some(reading) = &mut reading {
        reading.read(&pictures, &watch)?;
    }
    let hint = reading.as_ref().and_then(Reading::hint);
    let mut display = Display::new(&watch, !args.json);
    let mut session = model.session();
    let answer = session.ask(
        &super::with_additions(args, prompt, hint.as_deref()),
        pictures,
        &super::generate_options(args),
        &mut |event| display.on_event(event),
    )?;
    display.finish()?;
    display::note_cut(&answer);
    let first_text = display.first_text().map(|first| first - started);
    let name = model.name().to_string();
    // Painting needs memory of its own.
    drop(session);
    drop(model);
    let picture = match (&mut generation, answer.stop) {
        (None, _) | (_, StopReason::Interrupted) => None,
        (Some(generation), _) => paint(generation, &answer, args.json, &watch)?,
    };
    let asked_in_vain = generation.is_some() && picture.is_none();
    if args.json {
        stdout::write_json(&JsonAnswer {
            model: &name,
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
            ocr: reading.map(|reading| JsonReading {
                hint,
                pictures: reading
                    .into_pages()
                    .into_iter()
                    .map(|page| JsonPage {
                        lines: page.lines.into_iter().map(JsonLine::from).collect(),
                    })
                    .collect(),
            }),
            picture: picture.map(|picture| JsonPicture {
                file: picture.file.display().to_string(),
                prompt: picture.prompt,
                seed: picture.seed,
            }),
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
        StopReason::EndOfTurn | StopReason::Length if asked_in_vain => Err(Failure::failed(
            "the model wrote no picture prompt between <h> and </h>",
        )),
        StopReason::EndOfTurn | StopReason::Length => Ok(()),
    }
}

/// Paints the prompt that an answer holds, if it holds one, and tells where the picture is.
fn paint(
    generation: &mut Generation,
    answer: &Answer,
    json: bool,
    watch: &interrupt::Watch,
) -> Result<Option<Picture>, Failure> {
    let Some(prompt) = Generation::prompt_of(&answer.text) else {
        return Ok(None);
    };
    let picture = generation.paint(prompt, true, watch)?;
    if !json {
        stdout::write(format!("{}\n", picture.file.display()))?;
    }
    Ok(Some(picture))
}

fn stop_name(answer: &Answer) -> &'static str {
    match answer.stop {
        StopReason::EndOfTurn => "end_of_turn",
        StopReason::Length => "length",
        StopReason::Interrupted => "interrupted",
    }
}
