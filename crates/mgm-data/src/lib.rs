//! Training data for Mini-Gemini: reading LLaVA-format JSON, checking and normalising conversations, turning them into token ids
//! with label masks, and deciding the order in which records are seen.
//!
//! Everything here is deterministic: the order of records is a function of a seed and a position, so training can stop anywhere
//! and continue with exactly the record it would have seen next.
//!
//! * [`Dataset`] indexes one or more JSON files in one pass and reads single records on demand.
//! * [`Conversation`] is a record after the official normalisation (roles, alternation, `<image>` placement).
//! * [`tokenise`] renders a conversation with a template and masks everything but the answers ([`Sequence`]).
//! * [`Sampler`] yields the record indices of micro batch number `n`.

#![cfg_attr(test, allow(clippy::unwrap_used))]

mod conversation;
mod dataset;
mod error;
mod image_path;
mod index;
mod mask;
mod random;
mod record;
mod sampler;
mod sequence;

pub use conversation::{Conversation, IMAGE_PLACEHOLDER};
pub use dataset::{Dataset, InvalidRecords};
pub use error::{DataError, MaskError};
pub use image_path::resolve_image;
pub use mask::{ConversationEncoder, MaskMismatch, MaskRule, mask_rendered};
pub use random::RandomStream;
pub use record::{Record, Sentence};
pub use sampler::{Grouping, Sampler, SamplerSettings, group_by_modality_length, random_order};
pub use sequence::{Sequence, TokeniseSettings, tokenise};
