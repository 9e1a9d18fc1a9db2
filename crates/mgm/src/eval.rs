//! `mgm eval`: scores a model on questions with known answers.

use std::path::Path;
use std::time::{Duration, Instant};

use mgm_eval::{DataFile, ModelAnswerer, Progress, Report, RunOptions};
use mgm_text::protocol;

use crate::cli::EvalArgs;
use crate::failure::Failure;
use crate::{interrupt, meter, model, ocr, stdout};

/// How often a line is printed when stderr is no terminal.
const LINE_INTERVAL: Duration = Duration::from_secs(30);

/// Runs the command.
pub(crate) fn run(args: EvalArgs) -> Result<(), Failure> {
    model::prepare(&args.model)?;
    let files = args
        .data
        .iter()
        .map(|path| DataFile::read(path, args.image_folder.as_deref()))
        .collect::<Result<Vec<_>, _>>()?;
    check_pictures(&files, args.limit.map(std::num::NonZeroUsize::get))?;
    let reader = match args.ocr {
        true => Some(ocr::open(args.reading.ocr_models.as_deref())?),
        false => None,
    };
    let model = model::load(&args.model, None)?;
    let watch = interrupt::watch();
    let mut answerer = ModelAnswerer::new(&model, args.without_high_res, args.max_new_tokens.get());
    if let Some(reader) = &reader {
        let stop = watch.flag();
        answerer = answerer.with_hints(Box::new(move |image| {
            let page = reader.read(image, stop)?;
            let lines = page.lines.iter();
            Ok(protocol::ocr_suffix(
                lines.map(|line| (line.text.as_str(), line.confidence)),
            ))
        }));
    }
    let options = RunOptions {
        limit: args.limit.map(std::num::NonZeroUsize::get),
        answers: args.answers.clone(),
        resume: args.resume,
    };

    let mut meter = Meter::new();
    let report = mgm_eval::run(
        &files,
        &options,
        &mut answerer,
        &mut |progress| meter.show(progress),
        watch.flag(),
    );
    meter.finish();
    let report = report?;
    publish(&report, args.json.as_deref())?;
    if report.interrupted {
        let kept = match &args.answers {
            Some(_) => "; --resume goes on from here",
            None => "",
        };
        return Err(Failure::interrupted(format!(
            "interrupted after {} of {} records{kept}",
            report.total.answered, report.total.records
        )));
    }
    match (args.fail_under, report.total.accuracy) {
        (Some(floor), Some(accuracy)) if 100.0 * accuracy < floor => Err(Failure::failed(format!(
            "accuracy {:.2} % is below {floor} %",
            100.0 * accuracy
        ))),
        _ => Ok(()),
    }
}

/// A missing picture is found now rather than an hour into the run.
fn check_pictures(files: &[DataFile], limit: Option<usize>) -> Result<(), Failure> {
    for file in files {
        for record in file.records.iter().take(limit.unwrap_or(usize::MAX)) {
            if let Some(picture) = file.picture(record)
                && !picture.is_file()
            {
                return Err(Failure::failed(format!(
                    "{}, record {}: there is no picture {}",
                    file.name,
                    record.id,
                    picture.display()
                ))
                .hint("--image-folder says where the pictures are"));
            }
        }
    }
    Ok(())
}

/// The table on stdout, or the JSON report where it was asked for.
fn publish(report: &Report, json: Option<&Path>) -> Result<(), Failure> {
    match json {
        Some(path) if path == Path::new("-") => return stdout::write_json(report),
        Some(path) => {
            let mut text = serde_json::to_string_pretty(report).map_err(|error| {
                Failure::failed(format!("the report cannot be written: {error}"))
            })?;
            text.push('\n');
            std::fs::write(path, text)
                .map_err(|error| Failure::failed(format!("{}: {error}", path.display())))?;
        }
        None => {}
    }
    stdout::write(report.to_string())
}

/// A bar on a terminal, a line now and then elsewhere.
struct Meter {
    bar: Option<indicatif::ProgressBar>,
    started: Instant,
    last_line: Instant,
}

impl Meter {
    fn new() -> Self {
        Self {
            bar: None,
            started: Instant::now(),
            last_line: Instant::now(),
        }
    }

    fn show(&mut self, progress: Progress) {
        let accuracy = 100.0 * progress.tally.accuracy().unwrap_or(0.0);
        let rate = progress.answered_now as f64 / self.started.elapsed().as_secs_f64().max(1e-9);
        let bar = self
            .bar
            .get_or_insert_with(|| meter::bar(progress.total as u64));
        if bar.is_hidden() {
            if self.last_line.elapsed() >= LINE_INTERVAL {
                self.last_line = Instant::now();
                note!(
                    "{}/{} answered, {accuracy:.1} % right, {rate:.1}/s",
                    progress.done,
                    progress.total
                );
            }
        } else {
            bar.set_message(format!("{accuracy:.1} % right · {rate:.1}/s"));
            bar.set_position(progress.done as u64);
        }
    }

    fn finish(&self) {
        if let Some(bar) = &self.bar {
            bar.finish_and_clear();
        }
    }
}
