//! The errors of this crate: one clear line each, naming file and tensor where there is one.

use std::path::PathBuf;

/// What can go wrong when weights are read or written.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// A file could not be opened, read or written.
    #[error("{}: {action} failed: {source}", path.display())]
    Io {
        /// The file.
        path: PathBuf,
        /// What was being done.
        action: &'static str,
        /// The operating system's reason.
        source: std::io::Error,
    },
    /// A file is damaged or not of the format it should be.
    #[error("{file}: {message}")]
    Format {
        /// The file.
        file: String,
        /// What was expected and what was found.
        message: String,
    },
    /// A tensor that the model needs is not there.
    #[error("tensor {name} not found in {searched}")]
    Missing {
        /// Full name of the tensor.
        name: String,
        /// The files that were searched.
        searched: String,
    },
    /// A tensor has another shape than the model needs.
    #[error("{file}: tensor {name} has shape {found:?}, expected {expected:?}")]
    Shape {
        /// The file.
        file: String,
        /// Full name of the tensor.
        name: String,
        /// The shape the model needs.
        expected: Vec<usize>,
        /// The shape in the file.
        found: Vec<usize>,
    },
    /// A tensor has a type that cannot be used for the purpose.
    #[error("{file}: tensor {name} has type {found}, expected {expected}")]
    Type {
        /// The file.
        file: String,
        /// Full name of the tensor.
        name: String,
        /// The usable types.
        expected: &'static str,
        /// The type in the file.
        found: String,
    },
    /// A candle operation failed.
    #[error(transparent)]
    Tensor(#[from] candle_core::Error),
}

impl Error {
    pub(crate) fn format(file: impl Into<String>, message: impl Into<String>) -> Self {
        Self::Format {
            file: file.into(),
            message: one_line(message.into()),
        }
    }
}

/// Messages may quote what a damaged file calls its tensors: without line breaks, and not without end.
fn one_line(message: String) -> String {
    const MOST: usize = 500;
    let mut out = String::with_capacity(message.len().min(MOST));
    for character in message.chars() {
        if out.len() >= MOST {
            out.push('…');
            break;
        }
        if character.is_control() {
            out.extend(character.escape_default());
        } else {
            out.push(character);
        }
    }
    out
}

impl From<Error> for candle_core::Error {
    fn from(error: Error) -> Self {
        match error {
            Error::Tensor(inner) => inner,
            other => candle_core::Error::wrap(other),
        }
    }
}

/// Result of reading or writing weights.
pub type Result<T> = std::result::Result<T, Error>;
