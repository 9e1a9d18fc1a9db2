//! `mgm models list`.

use mini_gemini::{BUILT_IN_NAME, ModelSource};

use super::{files, megabytes};
use crate::failure::Failure;
use crate::stdout;

/// Prints the models that `--model` accepts by name.
pub(super) fn run() -> Result<(), Failure> {
    let directory = ModelSource::BuiltIn.directory()?;
    let directory = directory.canonicalize().unwrap_or(directory);
    let size = files(&directory)?.iter().map(|(_, size)| size).sum();
    stdout::write(format!(
        "{BUILT_IN_NAME}  {}  {}\n",
        megabytes(size),
        directory.display()
    ))
}
