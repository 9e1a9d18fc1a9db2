//! The errors of this crate: one clear line each.

use std::path::PathBuf;

/// What can go wrong when a picture is painted.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// A weight file or tensor is missing, damaged or of the wrong shape.
    #[error(transparent)]
    Weights(#[from] mgm_nn::Error),
    /// A tensor operation failed.
    #[error(transparent)]
    Tensor(#[from] candle_core::Error),
    /// A tokeniser's files are damaged.
    #[error(transparent)]
    Tokenizer(#[from] mgm_text::TextError),
    /// A file could not be read.
    #[error("{}: {source}", path.display())]
    Io {
        /// The file.
        path: PathBuf,
        /// The operating system's reason.
        source: std::io::Error,
    },
    /// A file of the model is not there.
    #[error("{}: {what}", path.display())]
    Missing {
        /// Where it was looked for.
        path: PathBuf,
        /// What was expected there.
        what: String,
    },
    /// A configuration file says something that cannot be.
    #[error("{file}: {message}")]
    Config {
        /// The file.
        file: String,
        /// What was found and what was expected.
        message: String,
    },
    /// What was asked for cannot be done.
    #[error("{0}")]
    Input(String),
    /// The caller stopped the work.
    #[error("interrupted")]
    Interrupted,
}

impl Error {
    pub(crate) fn config(file: impl Into<String>, message: impl Into<String>) -> Self {
        Self::Config {
            file: file.into(),
            message: message.into(),
        }
    }
}

/// Result of this crate.
pub type Result<T> = std::result::Result<T, Error>;
