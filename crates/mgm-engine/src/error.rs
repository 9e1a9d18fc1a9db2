//! Why a request is not accepted.

use crate::event::PromptAccount;

/// A request that is not accepted. Nothing of it remains.
#[derive(Clone, Debug, thiserror::Error, PartialEq)]
#[non_exhaustive]
pub enum SubmitError {
    /// As many requests wait as may. Asking again later may help.
    #[error("{queued} requests are waiting already: try again later")]
    QueueFull {
        /// Requests waiting.
        queued: usize,
    },
    /// Pictures of waiting requests fill the memory set aside for them. Asking again later may help.
    #[error(
        "the pictures of waiting requests take {held} bytes, the limit is {limit}: try again later"
    )]
    PicturesFull {
        /// Bytes held.
        held: usize,
        /// The limit.
        limit: usize,
    },
    /// The prompt does not fit the model's context, or leaves no room for an answer.
    #[error(
        "the prompt does not fit: {text} text tokens + {visual} visual tokens = {total}, the limit is {limit}",
        text = .account.text_tokens, visual = .account.visual_tokens, total = .account.total()
    )]
    PromptTooLong {
        /// The prompt.
        account: PromptAccount,
        /// Positions a prompt may fill.
        limit: usize,
    },
    /// Prompt and answer together need more key-value memory than there is, however long one waits.
    #[error(
        "prompt and answer need {needed} positions of memory, there are {limit}: ask for fewer tokens"
    )]
    MemoryTooSmall {
        /// Positions needed.
        needed: usize,
        /// Positions there are.
        limit: usize,
    },
    /// An option has a value outside its range.
    #[error("{name} is {value}: expected {expected}")]
    InvalidOption {
        /// The option, as OpenAI's API spells it where that has it.
        name: &'static str,
        /// Its value.
        value: String,
        /// What is allowed.
        expected: String,
    },
    /// The input cannot be read: no messages, an unknown template, a token outside the vocabulary.
    #[error("{message}")]
    InvalidInput {
        /// One line.
        message: String,
    },
    /// A picture for a model without a vision tower.
    #[error("this model has no vision tower: it cannot look at pictures")]
    NoVision,
    /// A picture that cannot be read.
    #[error("{0}")]
    BadPicture(String),
    /// The engine is shutting down, or its thread has ended.
    #[error("the engine is shutting down")]
    ShuttingDown,
}

impl SubmitError {
    /// Whether the same request may be accepted later.
    pub fn is_retryable(&self) -> bool {
        matches!(
            self,
            Self::QueueFull { .. } | Self::PicturesFull { .. } | Self::ShuttingDown
        )
    }
}

/// An engine that did not start.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum StartError {
    /// The system gave no thread.
    #[error("the engine's thread: {0}")]
    Thread(#[from] std::io::Error),
    /// An option has a value outside its range.
    #[error("{name} is {value}: expected {expected}")]
    InvalidOption {
        /// The option.
        name: &'static str,
        /// Its value.
        value: String,
        /// What is allowed.
        expected: &'static str,
    },
}
