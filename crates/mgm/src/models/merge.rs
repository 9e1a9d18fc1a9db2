//! `mgm models merge`.

use std::path::PathBuf;

use mini_gemini::{Checkpoint, Control, LoadOptions, ModelSource, SHARD_BYTES, merge};

use super::megabytes;
use crate::cli::MergeArgs;
use crate::failure::Failure;
use crate::{interrupt, meter, stdout};

/// Writes a model with its adapter merged.
pub(super) fn run(args: MergeArgs) -> Result<(), Failure> {
    let options = LoadOptions {
        model_zoo: args.model_zoo,
        base: args.model_base,
        adapter: args.adapter,
        ..LoadOptions::default()
    };
    let checkpoint = Checkpoint::open(&ModelSource::parse(&args.model), &options)?;
    if checkpoint.lora.is_none() {
        return Err(
            Failure::usage(format!("{} has no adapter to merge", checkpoint.name))
                .hint("--adapter DIR names a PEFT adapter folder"),
        );
    }
    for text in &checkpoint.notes {
        note!("{text}");
    }
    let watch = interrupt::watch();
    let bar = meter::bar(0);
    bar.set_message("MB");
    let merged = merge(&checkpoint, &args.output, SHARD_BYTES, &mut |progress| {
        bar.set_length(progress.total / 1_000_000);
        bar.set_position(progress.done / 1_000_000);
        if watch.stopped() {
            Control::Stop
        } else {
            Control::Continue
        }
    });
    bar.finish_and_clear();
    let Some(merged) = merged? else {
        return Err(Failure::interrupted("interrupted: nothing was written"));
    };
    let output: PathBuf = args.output;
    stdout::write(format!(
        "{}: {} tensors, {} of them with an adapter merged, {} in {} file{}\n",
        output.display(),
        merged.tensors,
        merged.adapted,
        megabytes(merged.bytes),
        merged.shards,
        if merged.shards == 1 { "" } else { "s" }
    ))
}
