//! `mgm bench`: how fast each stage is here, and how fast it could be.

use std::num::NonZeroUsize;
use std::path::Path;
use std::time::Duration;

use mgm_bench::{Comparison, Options, Progress, Report, Stage, Subject, WeightFormat};
use mgm_kernels::level::{self, Level};
use mini_gemini::ModelSource;

use crate::cli::{BenchArgs, LevelChoice};
use crate::failure::Failure;
use crate::{interrupt, meter, model, stdout};

/// Caps the instruction-set level; must come before anything asks for it.
pub(crate) fn set_level(args: &BenchArgs) -> Result<(), Failure> {
    let Some(choice) = args.level else {
        return Ok(());
    };
    let wanted = match choice {
        LevelChoice::Portable => Level::Portable,
        LevelChoice::Avx2 => Level::Avx2,
        LevelChoice::Avx512 => Level::Avx512,
        LevelChoice::Amx => Level::Amx,
    };
    let found = match level::cap(wanted) {
        Ok(()) => level::level(),
        Err(in_use) => in_use,
    };
    if found != wanted {
        return Err(Failure::failed(format!(
            "this machine has no {}: its best level up to that is {}",
            wanted.name(),
            found.name()
        )));
    }
    Ok(())
}

/// Runs the command.
pub(crate) fn run(args: BenchArgs) -> Result<(), Failure> {
    model::prepare(&args.model)?;
    // A file that cannot be read or written is known before anything is measured.
    let before = args.compare.as_deref().map(Report::read).transpose()?;
    if let Some(path) = &args.json {
        check_folder(path)?;
    }
    let subject = subject(&args)?;
    let options = options(&args);

    let watch = interrupt::watch();
    let spinner = meter::spinner("");
    let report = mgm_bench::run(
        &subject,
        &options,
        &mut |progress| match progress {
            Progress::Loading(what) => spinner.set_message(format!("loading {what}")),
            Progress::Ceilings => spinner.set_message("measuring what the machine can do"),
            Progress::Waiting(name) => {
                spinner.set_message(format!("{name}: waiting for an idle machine"));
            }
            Progress::Measuring(name) => spinner.set_message(name.to_string()),
            Progress::Done(cell) if spinner.is_hidden() => {
                note!("{}: {:.3} ms", cell.name, 1e3 * cell.time.median);
            }
            Progress::Done(_) => {}
            Progress::Note(text) => spinner.suspend(|| note!("{text}")),
        },
        watch.flag(),
    );
    spinner.finish_and_clear();
    let report = report?;
    publish(&report, args.json.as_deref())?;
    if let Some(before) = before {
        let comparison = Comparison::new(&before, &report);
        match args.json.as_deref() {
            // Standard output holds the JSON object alone.
            Some(path) if path == Path::new("-") => note!("{comparison}"),
            _ => stdout::write(format!("\n{comparison}"))?,
        }
    }
    if report.interrupted {
        return Err(Failure::interrupted(format!(
            "interrupted after {} lines",
            report.cells.len()
        )));
    }
    Ok(())
}

fn subject(args: &BenchArgs) -> Result<Subject, Failure> {
    let shape = args.shape.as_deref().and_then(mgm_bench::Shape::parse);
    Ok(match shape {
        Some(shape) => Subject::Random {
            shape,
            hd: args.hd,
            format: args
                .weights
                .clone()
                .unwrap_or(WeightFormat::Float(mgm_nn::ElementType::Bf16)),
            precision: model::options(&args.model, None)?.precision,
        },
        None => Subject::Model {
            source: ModelSource::parse(&args.model.model),
            options: model::options(&args.model, None)?,
        },
    })
}

fn options(args: &BenchArgs) -> Options {
    let numbers = |numbers: &[NonZeroUsize]| numbers.iter().map(|number| number.get()).collect();
    Options {
        stages: if args.stages.is_empty() {
            Stage::ALL.to_vec()
        } else {
            args.stages.clone()
        },
        prefill: numbers(&args.prefill),
        context: numbers(&args.context),
        batch: numbers(&args.batch),
        runs: args.runs.get(),
        gate: (!args.no_gate).then(|| Duration::from_secs(args.gate)),
        picture: args.image.clone(),
        ..Options::default()
    }
}

/// The table on stdout, or the JSON object where it was asked for there. A file gets the object, and stdout the table.
fn publish(report: &Report, json: Option<&Path>) -> Result<(), Failure> {
    match json {
        Some(path) if path == Path::new("-") => return stdout::write_json(report),
        Some(path) => {
            let mut text = serde_json::to_string_pretty(report).map_err(|error| {
                Failure::failed(format!("the report cannot be written: {error}"))
            })?;
            text.push('\n');
            write_beside(path, &text)?;
        }
        None => {}
    }
    stdout::write(report.to_string())
}

/// Whether the folder that a file is to be written to is there.
fn check_folder(path: &Path) -> Result<(), Failure> {
    match path.parent() {
        Some(folder) if !folder.as_os_str().is_empty() && !folder.is_dir() => {
            Err(Failure::failed(format!(
                "{}: there is no folder {}",
                path.display(),
                folder.display()
            )))
        }
        _ => Ok(()),
    }
}

/// Writes a file whole or not at all.
fn write_beside(path: &Path, text: &str) -> Result<(), Failure> {
    let mut name = path.as_os_str().to_owned();
    name.push(".part");
    let part = std::path::PathBuf::from(name);
    std::fs::write(&part, text)
        .and_then(|()| std::fs::rename(&part, path))
        .map_err(|error| {
            // What is there of it is of no use to anybody.
            let _ = std::fs::remove_file(&part);
            Failure::failed(format!("{}: {error}", path.display()))
        })
}
