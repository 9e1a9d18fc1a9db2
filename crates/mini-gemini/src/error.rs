//! What can go wrong between a model directory, a picture and an answer.

use std::path::PathBuf;

/// Any failure of this crate; one clear line each.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// Nothing is where the model was looked for.
    #[error("no model {path}: looked for a folder or file in {searched}")]
    ModelNotFound {
        /// What was asked for.
        path: PathBuf,
        /// The places tried, comma separated.
        searched: String,
        /// The hub repository it may be downloaded from.
        repository: Option<String>,
    },
    /// A path that is neither a model's folder nor a GGUF file.
    #[error("{path} is neither a model's folder nor a .gguf file")]
    NotAModel {
        /// The path.
        path: PathBuf,
    },
    /// A folder without a model's files.
    #[error(
        "{directory} holds no model: expected config.json with *.safetensors or pytorch_model*.bin, mm_projector.bin, adapter_config.json, or a .gguf file"
    )]
    NoModelHere {
        /// The folder.
        directory: PathBuf,
    },
    /// A directory that a configuration names is nowhere.
    #[error("{what}: no folder with the weights of `{name}`; looked in {searched}")]
    NotFound {
        /// What the directory is.
        what: &'static str,
        /// The name as configured.
        name: String,
        /// The places tried, comma separated.
        searched: String,
    },
    /// A tower's directory holds the weights of something else.
    #[error("{what}: {folder} holds no tensors {expected}; its first is {found}")]
    WrongTower {
        /// The directory.
        folder: PathBuf,
        /// Which tower.
        what: &'static str,
        /// The names of a tower's tensors.
        expected: &'static str,
        /// The name of a tensor found.
        found: String,
    },
    /// An adapter does not fit.
    #[error("{file}: {message}")]
    Adapter {
        /// The adapter's weights.
        file: PathBuf,
        /// What was found and what was expected.
        message: String,
    },
    /// Two things that the options ask for exclude each other.
    #[error("{0}")]
    Conflict(String),
    /// Tensors the model needs are missing or of another shape.
    #[error("{model}: {problems}")]
    Tensors {
        /// The model's directory.
        model: PathBuf,
        /// Which, compactly.
        problems: String,
    },
    /// The folder of the built-in model or painter is in none of the places searched.
    #[error(
        "the built-in model's files were not found; looked in {searched}; set MGM_MODELS_DIR to the folder they are in"
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
    /// A file that would be written is there already.
    #[error("{path} is there already")]
    OutputExists {
        /// The file.
        path: PathBuf,
    },
    /// The caller asked to stop.
    #[error("stopped")]
    Stopped,
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
