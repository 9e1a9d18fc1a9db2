//! What can go wrong while scoring.

use std::path::PathBuf;

/// Why a picture got no hint.
pub type HintError = Box<dyn std::error::Error + Send + Sync>;

/// Any failure of this crate; one clear line each.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum EvalError {
    /// A file cannot be read or written.
    #[error("{path}: {source}")]
    Io {
        /// The file.
        path: PathBuf,
        /// The system's reason.
        source: std::io::Error,
    },
    /// A data file is not what it should be.
    #[error("{path}: {message}")]
    Data {
        /// The data file.
        path: PathBuf,
        /// What was found and what was expected.
        message: String,
    },
    /// The answers of an earlier run do not belong to this one.
    #[error("{path}, line {line}: {message}")]
    Answers {
        /// The file of answers.
        path: PathBuf,
        /// Line, counted from 1.
        line: usize,
        /// What was found and what was expected.
        message: String,
    },
    /// One picture cannot be used.
    #[error("record {id}: {source}")]
    Picture {
        /// The record that names it.
        id: String,
        /// Which picture, and why not.
        source: mgm_image::ImageError,
    },
    /// The text in a picture could not be read.
    #[error("record {id}: {source}")]
    Hint {
        /// The record.
        id: String,
        /// The reader's reason.
        source: HintError,
    },
    /// The model failed on one record.
    #[error("record {id}: {source}")]
    Model {
        /// The record.
        id: String,
        /// The model's reason.
        source: Box<mini_gemini::Error>,
    },
}
