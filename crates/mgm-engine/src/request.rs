//! What a client may ask for.

use std::time::Instant;

use crate::picture::Picture;

pub use mgm_text::Role;

/// One piece of a message.
#[derive(Clone, Debug)]
pub enum Part {
    /// Text. Whatever stands in it is text: `<image>` is no place for a picture and `</s>` no control token (unless
    /// [`Sampling::parse_special`] says otherwise for the latter).
    Text(String),
    /// A picture.
    Image(Picture),
}

/// One turn of a conversation.
#[derive(Clone, Debug)]
pub struct ChatMessage {
    /// Who speaks. The last system message replaces the template's own system text.
    pub role: Role,
    /// What is said and shown. Pictures that stand before or after all of the turn's text are shown before it, one a line, as the models
    /// were trained; pictures between two texts stay where they are. Only the user shows pictures.
    pub parts: Vec<Part>,
}

impl ChatMessage {
    /// A turn of text alone.
    pub fn text(role: Role, text: impl Into<String>) -> Self {
        Self {
            role,
            parts: vec![Part::Text(text.into())],
        }
    }
}

/// What the model is to read.
#[derive(Clone, Debug)]
pub enum Input {
    /// A conversation whose next turn is asked for, rendered with a conversation template.
    Chat {
        /// The turns so far, oldest first.
        messages: Vec<ChatMessage>,
        /// A template's name in place of the model's own.
        template: Option<String>,
    },
    /// A text to go on with, as it is; the tokeniser's beginning-of-text token is put before it where it has one.
    Text(String),
    /// Token ids to go on with, exactly these.
    Tokens(Vec<u32>),
}

/// How tokens are chosen and when an answer ends.
#[derive(Clone, Debug)]
pub struct Sampling {
    /// 0 is greedy; above, logits are divided by it before sampling.
    pub temperature: f32,
    /// Only the k most likely tokens are sampled from.
    pub top_k: Option<usize>,
    /// Only the smallest set of tokens whose probability reaches this share is sampled from; in (0, 1].
    pub top_p: f32,
    /// Seed of the sampler; drawn from the system when absent. Choice `i` of several uses `seed + i`.
    pub seed: Option<u64>,
    /// Longest answer in tokens; what is left of the context when absent. More than what is left ends with [`FinishReason::Length`] there.
    ///
    /// [`FinishReason::Length`]: crate::FinishReason::Length
    pub max_new_tokens: Option<usize>,
    /// Texts that end the answer; they are not part of it. Text that may be the beginning of one is held back until that is decided.
    pub stop: Vec<String>,
    /// Taken from the logit of every token that the answer holds already; in −2..=2.
    pub presence_penalty: f32,
    /// Taken from a token's logit once for each time the answer holds it already; in −2..=2.
    pub frequency_penalty: f32,
    /// Added to logits by token id; in −100..=100.
    pub logit_bias: Vec<(u32, f32)>,
    /// Tells the log probability of each token and of so many likeliest ones.
    pub logprobs: Option<usize>,
    /// Whether control strings in texts become control tokens, as in the official code. Never for text of people one does not trust.
    pub parse_special: bool,
    /// Goes on to [`Self::max_new_tokens`] whatever the model says: end-of-turn tokens are not chosen. For load tests.
    pub ignore_end: bool,
}

impl Default for Sampling {
    fn default() -> Self {
        Self {
            temperature: 0.0,
            top_k: None,
            top_p: 1.0,
            seed: None,
            max_new_tokens: None,
            stop: Vec::new(),
            presence_penalty: 0.0,
            frequency_penalty: 0.0,
            logit_bias: Vec::new(),
            logprobs: None,
            parse_special: false,
            ignore_end: false,
        }
    }
}

/// A request: something to read, how to answer, and how it stands beside others.
#[derive(Clone, Debug)]
pub struct Request {
    /// What the model is to read.
    pub input: Input,
    /// How it answers.
    pub sampling: Sampling,
    /// Answers wanted; they share the reading of the prompt.
    pub choices: usize,
    /// When to end an answer that is not finished, with [`FinishReason::Deadline`](crate::FinishReason::Deadline).
    pub deadline: Option<Instant>,
    /// Who asks: requests of different clients take turns, requests of one client stand in line.
    pub client: u64,
}

impl Request {
    /// A request with every option at its default.
    pub fn new(input: Input) -> Self {
        Self {
            input,
            sampling: Sampling::default(),
            choices: 1,
            deadline: None,
            client: 0,
        }
    }

    /// A conversation with the model's own template.
    pub fn chat(messages: Vec<ChatMessage>) -> Self {
        Self::new(Input::Chat {
            messages,
            template: None,
        })
    }
}
