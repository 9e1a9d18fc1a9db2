use std::path::PathBuf;

use thiserror::Error;

/// Why training cannot start or go on, as one clear line.
#[derive(Debug, Error)]
pub enum TrainError {
    /// A recipe is unreadable or contradicts itself.
    #[error("{path}: {message}")]
    Recipe {
        /// The recipe file, or `recipe`.
        path: String,
        /// What was expected and what was found.
        message: String,
    },
    /// The training data is wrong.
    #[error(transparent)]
    Data(#[from] mgm_data::DataError),
    /// A picture (or a file of features) of a record cannot be used.
    #[error("{record}: {path}: {message}")]
    Picture {
        /// Which record asks for it.
        record: String,
        /// The file.
        path: PathBuf,
        /// What is wrong.
        message: String,
    },
    /// The model cannot be loaded or refuses its input.
    #[error(transparent)]
    Model(#[from] mini_gemini::Error),
    /// A model that paints cannot be loaded or refuses its input.
    #[error(transparent)]
    Painter(#[from] mgm_diffusion::Error),
    /// A tensor operation failed.
    #[error("tensor operation: {0}")]
    Tensor(#[from] candle_core::Error),
    /// The recipe's selection of parameters does not fit the model.
    #[error("{0}")]
    Parameters(String),
    /// A file cannot be read or written.
    #[error("cannot {action} {path}: {source}")]
    Io {
        /// `read`, `write`, …
        action: &'static str,
        /// The file.
        path: PathBuf,
        /// What the operating system said.
        source: std::io::Error,
    },
    /// A checkpoint is damaged or belongs to another run.
    #[error("{path}: {message}")]
    Checkpoint {
        /// The checkpoint's folder or one of its files.
        path: PathBuf,
        /// What was expected and what was found.
        message: String,
    },
    /// Loss or gradients stopped being numbers.
    #[error(
        "step {step}: the {what} is {value} at learning rate {learning_rate:.2e}; training stopped, {kept}"
    )]
    Diverged {
        /// The step, from 1.
        step: u64,
        /// `loss` or `gradient norm`.
        what: &'static str,
        /// Its value.
        value: f32,
        /// The learning rate of the step.
        learning_rate: f64,
        /// What there is to go on from.
        kept: String,
    },
    /// The processes of a data-parallel run cannot talk.
    #[error("data-parallel exchange: {0}")]
    Collective(String),
    /// The background loader ended without saying why.
    #[error("the data loader stopped unexpectedly")]
    Loader,
}

impl TrainError {
    pub(crate) fn io(
        action: &'static str,
        path: impl Into<PathBuf>,
    ) -> impl FnOnce(std::io::Error) -> Self {
        let path = path.into();
        move |source| Self::Io {
            action,
            path,
            source,
        }
    }
}
