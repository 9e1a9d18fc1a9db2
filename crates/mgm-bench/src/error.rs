//! What can go wrong.

use std::path::PathBuf;

/// Any failure of this crate; one clear line each.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// A file could not be read.
    #[error("{path}: {source}")]
    Io {
        /// The file.
        path: PathBuf,
        /// The system's reason.
        source: std::io::Error,
    },
    /// A file is no report of an earlier run.
    #[error("{path}: expected a report of `mgm bench --json`: {message}")]
    Report {
        /// The file.
        path: PathBuf,
        /// What was found.
        message: String,
    },
    /// A length cannot be measured with this model.
    #[error("{what} of {value} tokens: the model has {limit} positions")]
    TooLong {
        /// Prefill or context.
        what: &'static str,
        /// As asked.
        value: usize,
        /// Positions there are.
        limit: usize,
    },
    /// Reports of this version are not understood.
    #[error("{path}: report of version {found}, expected {expected}")]
    Version {
        /// The file.
        path: PathBuf,
        /// Its version.
        found: u32,
        /// The version this program writes.
        expected: u32,
    },
    /// The picture cannot be read.
    #[error(transparent)]
    Image(#[from] mgm_image::ImageError),
    /// The random weights cannot be made.
    #[error(transparent)]
    Weights(#[from] mgm_nn::Error),
    /// The model failed.
    #[error(transparent)]
    Model(#[from] mini_gemini::Error),
}

/// Result of this crate.
pub type Result<T> = std::result::Result<T, Error>;
