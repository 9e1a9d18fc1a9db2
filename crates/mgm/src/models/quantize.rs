//! `mgm models quantize`.

use mgm_nn::ImportanceMatrix;
use mini_gemini::pair::{self, QuantizeOptions, WrittenFile};
use mini_gemini::{Checkpoint, Control, Error, LoadOptions, ModelSource};

use super::megabytes;
use crate::cli::QuantizeArgs;
use crate::failure::Failure;
use crate::{interrupt, meter, stdout};

/// Writes the pair and says what is in it.
pub(super) fn run(args: QuantizeArgs) -> Result<(), Failure> {
    let options = LoadOptions {
        model_zoo: args.model_zoo,
        base: args.model_base,
        adapter: args.adapter,
        ..LoadOptions::default()
    };
    let checkpoint = Checkpoint::open(&ModelSource::parse(&args.model), &options)?;
    for text in &checkpoint.notes {
        note!("{text}");
    }
    let importance = args
        .imatrix
        .map(|file| ImportanceMatrix::read(&file))
        .transpose()
        .map_err(|error| Failure::from_error(&error))?;
    let options = QuantizeOptions {
        scheme: args.scheme,
        directory: args.output,
        name: args.name,
        importance,
        overwrite: args.force,
    };

    let watch = interrupt::watch();
    let bar = meter::bar(0);
    let result = pair::quantize(&checkpoint, &options, &mut |progress| {
        // Millions of weights.
        bar.set_length(progress.total / 1_000_000);
        bar.set_position(progress.done / 1_000_000);
        bar.set_message(format!(
            "million weights · {} {}",
            progress.tensor, progress.element_type
        ));
        if watch.stopped() {
            Control::Stop
        } else {
            Control::Continue
        }
    });
    bar.finish_and_clear();
    let report = match result {
        Err(Error::Stopped) => {
            return Err(Failure::interrupted("interrupted: nothing was written"));
        }
        Err(error @ Error::OutputExists { .. }) => {
            return Err(Failure::from_error(&error).hint("--force replaces it"));
        }
        other => other?,
    };
    for text in &report.notes {
        note!("{text}");
    }
    let mut text = line(&report.language);
    if let Some(vision) = &report.vision {
        text.push_str(&line(vision));
    }
    stdout::write(text)
}

/// Path, size, and how many tensors have which type.
fn line(file: &WrittenFile) -> String {
    let types: Vec<String> = file
        .tensors
        .iter()
        .map(|(name, count)| format!("{count} {name}"))
        .collect();
    format!(
        "{}  {}  {}\n",
        file.path.display(),
        megabytes(file.bytes),
        types.join(", ")
    )
}
