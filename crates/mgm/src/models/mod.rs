//! `mgm models`: what models there are, what they hold, and turning one into another.

mod inspect;
mod list;
mod merge;
#[cfg(feature = "hub")]
mod pull;
mod quantize;

use std::path::{Path, PathBuf};

use crate::cli::ModelsCommand;
use crate::failure::Failure;

/// Runs the command.
pub(crate) fn run(command: ModelsCommand) -> Result<(), Failure> {
    match command {
        ModelsCommand::List(args) => list::run(&args),
        #[cfg(feature = "hub")]
        ModelsCommand::Pull(args) => pull::run(&args),
        ModelsCommand::Inspect(args) => inspect::run(&args),
        ModelsCommand::Merge(args) => merge::run(args),
        ModelsCommand::Quantize(args) => quantize::run(args),
    }
}

/// The files of a directory with their sizes in bytes, by name.
pub(super) fn files(directory: &Path) -> Result<Vec<(PathBuf, u64)>, Failure> {
    let failure =
        |error: std::io::Error| Failure::failed(format!("{}: {error}", directory.display()));
    let mut files = Vec::new();
    for entry in std::fs::read_dir(directory).map_err(failure)? {
        let path = entry.map_err(failure)?.path();
        // Through links, as the loader sees them.
        if let Ok(metadata) = path.metadata()
            && metadata.is_file()
        {
            files.push((path, metadata.len()));
        }
    }
    files.sort();
    Ok(files)
}

pub(super) fn megabytes(bytes: u64) -> String {
    format!("{:.1} MB", bytes as f64 / 1e6)
}
