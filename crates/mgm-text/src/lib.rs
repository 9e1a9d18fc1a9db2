//! Tokenisers, conversation templates, image-aware tokenisation and incremental detokenising.
//!
//! * [`Tokenizer`] reads `tokenizer.json`, SentencePiece `tokenizer.model` and the vocabulary embedded in a GGUF file,
//!   and reproduces the ids of the official Python code for every released Mini-Gemini family.
//! * [`Template`] renders a conversation exactly as the official `get_prompt` does.
//! * [`Prompt`] is a rendered conversation that remembers who wrote what, so that a typed `</s>` stays text.
//! * [`encode_with_images`] is the official `tokenizer_image_token`.
//! * [`DetokenizeStream`] turns ids into text as they arrive, never splitting a UTF-8 character.
//! * [`protocol`] has the small text conventions around the model: image numbering, OCR hints, picture prompts.

mod added;
mod clip;
mod detokenize;
mod directory;
mod error;
mod export;
mod gguf;
mod gguf_bpe;
mod images;
mod json;
mod merge;
mod passage;
mod pieces;
mod prompt;
pub mod protocol;
mod sentencepiece;
mod template;
mod tokenizer;

pub use clip::{ClipTokenizer, ClipWindow};
pub use detokenize::DetokenizeStream;
pub use error::TextError;
pub use export::GgufVocabValue;
pub use gguf::{GgufTokenType, GgufVocab};
pub use images::{IMAGE_PLACEHOLDER, encode_with_images};
pub use prompt::{Prompt, Segment};
pub use template::{Message, Piece, Places, Role, Template};
pub use tokenizer::Tokenizer;

/// Id that stands for the visual tokens of one image in a prompt (official `IMAGE_TOKEN_INDEX`).
pub const IMAGE_TOKEN: i64 = -200;

/// Label of a position that does not count in the loss (official `IGNORE_INDEX`).
pub const IGNORE_LABEL: i64 = -100;
