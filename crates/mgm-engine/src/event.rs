//! What a client is told.

use std::time::Duration;

/// Where a prompt's positions come from.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct PromptAccount {
    /// Text tokens of the rendered prompt.
    pub text_tokens: usize,
    /// Visual tokens of its pictures.
    pub visual_tokens: usize,
    /// Positions, of both kinds, that other requests had read already.
    pub cached_tokens: usize,
}

impl PromptAccount {
    /// Positions of the prompt.
    pub fn total(&self) -> usize {
        self.text_tokens + self.visual_tokens
    }
}

/// One token and how likely it was.
#[derive(Clone, Debug, PartialEq)]
pub struct TokenInfo {
    /// Its id.
    pub id: u32,
    /// Log probability under the model (temperature 1, after penalties and biases); with [`Sampling::logprobs`](crate::Sampling::logprobs).
    pub logprob: Option<f32>,
    /// The likeliest tokens in falling order, as many as asked for.
    pub top: Vec<(u32, f32)>,
}

/// Why an answer ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum FinishReason {
    /// The model ended its turn, or one of the stop texts came.
    Stop,
    /// The token limit or the end of the context was reached.
    Length,
    /// The client left.
    Cancelled,
    /// The request's deadline passed.
    Deadline,
    /// The engine shut down before the answer was finished.
    Shutdown,
}

/// What an answer cost.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Usage {
    /// The prompt.
    pub prompt: PromptAccount,
    /// Tokens generated for this choice, an end-of-turn token included.
    pub new_tokens: usize,
}

/// Where an answer's time went (wall clock).
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Timings {
    /// From submission until a place was free.
    pub queued: Duration,
    /// Looking at pictures not seen before.
    pub encode: Duration,
    /// From the first position read to the first token chosen.
    pub prefill: Duration,
    /// From submission to the first token chosen.
    pub first_token: Duration,
    /// From the first token to the last.
    pub decode: Duration,
}

/// What happens to a request. Its choices are told apart by number, from 0.
#[derive(Clone, Debug, PartialEq)]
pub enum EngineEvent {
    /// Accepted; so many requests stand before it.
    Queued {
        /// Requests before it.
        position: usize,
    },
    /// It has a place, its prompt is being read.
    Started {
        /// Where the prompt's positions come from.
        prompt: PromptAccount,
    },
    /// More of an answer. Text may be empty while characters or the beginning of a stop text are held back, or more than these tokens'
    /// once they are let go; the texts of one choice put together are its answer.
    Token {
        /// Which choice.
        choice: usize,
        /// Text that is now certain. Never ends inside a character.
        text: String,
        /// The token. Without one, held-back text is let go at the end.
        token: Option<TokenInfo>,
    },
    /// A choice is complete.
    Finished {
        /// Which choice.
        choice: usize,
        /// Why.
        reason: FinishReason,
        /// The stop text that ended it.
        stop: Option<String>,
        /// What it cost.
        usage: Usage,
        /// Where the time went.
        timings: Timings,
    },
    /// The request failed after it was accepted; it ends here, choices and all. Other requests go on.
    Failed {
        /// One line.
        error: String,
    },
}
