//! What can go wrong between a model directory, a picture and an answer.

use std::path::PathBuf;

/// Any failure of this crate; one clear line each.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// The model path does not exist.
    #[error("no model at {path}: expected a directory with config.json or the name `smol`")]
    ModelNotFound {
        /// What was asked for.
        path: PathBuf,
    },
    /// The built-in model's folder is in none of the places searched.
    #[error(
        "the built-in model's files were not found; looked in {searched}; set MGM_MODELS_DIR to the folder that holds `smol`"
    )]
    BuiltInNotFound {
        /// The folders tried, comma separated.
        searched: String,
    },
    /// A file the model directory must hold is missing.
    #[error("model directory {directory} lacks {file}")]
    MissingFile {
        /// The model directory.
        directory: PathBuf,
        /// The missing file, relative to it.
        file: String,
    },
    /// A configuration file or value is unusable.
    #[error("{file}: {message}")]
    Config {
        /// The file it stands in.
        file: PathBuf,
        /// What was found and what was expected.
        message: String,
    },
    /// The prompt does not fit the context.
    #[error(
        "the prompt does not fit: {text} text tokens + {visual} visual tokens = {total}, the limit is {limit}",
        total = text + visual
    )]
    ContextOverflow {
        /// Text tokens of the rendered prompt.
        text: usize,
        /// Visual tokens of its pictures.
        visual: usize,
        /// Positions the model accepts.
        limit: usize,
    },
    /// Placeholders and pictures disagree.
    #[error("the prompt holds {placeholders} `<image>` marks but {images} pictures were given")]
    PlaceholderCount {
        /// `<image>` marks found.
        placeholders: usize,
        /// Pictures given.
        images: usize,
    },
    /// A picture was given to a model without a vision tower.
    #[error("this model has no vision tower: it cannot look at pictures")]
    NoVision,
    /// An option has a value outside its range.
    #[error("{name} is {value}: expected {expected}")]
    Option {
        /// The option.
        name: &'static str,
        /// Its value as given.
        value: String,
        /// What is allowed.
        expected: &'static str,
    },
    /// Inputs of a training or low-level call disagree.
    #[error("{0}")]
    Input(String),
    /// File access failed.
    #[error("{path}: {source}")]
    Io {
        /// The file.
        path: PathBuf,
        /// The system's reason.
        source: std::io::Error,
    },
    /// A picture could not be prepared.
    #[error(transparent)]
    Image(#[from] mgm_image::ImageError),
    /// Tokeniser or template trouble.
    #[error(transparent)]
    Text(#[from] mgm_text::TextError),
    /// A weight file or layer is wrong.
    #[error(transparent)]
    Weights(#[from] mgm_nn::Error),
    /// A tensor operation failed (shape or device).
    #[error("tensor operation: {0}")]
    Tensor(#[from] candle_core::Error),
}

/// Result of this crate.
pub type Result<T, E = Error> = std::result::Result<T, E>;
