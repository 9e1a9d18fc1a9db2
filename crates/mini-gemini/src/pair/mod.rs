//! The GGUF pair: a language file that llama.cpp loads, and beside it a file of our own with towers, miner and projector.
//!
//! [`open`] reads a pair (or any GGUF file of a supported language model alone), [`quantize`] writes one from any checkpoint. Every key and
//! tensor of both files is described in `docs/formats.md`.

mod language;
mod mix;
mod names;
mod open;
mod plan;
mod quantize;
mod values;
mod vision;

pub use mix::Scheme;
pub use open::{PairParts, mmproj_beside, open};
pub use quantize::{QuantizeOptions, QuantizeProgress, QuantizeReport, WrittenFile, quantize};

/// Version of our own keys; files of a later version are refused.
const VERSION: u32 = 1;
/// Key of the version in a language file.
const VERSION_KEY: &str = "mini_gemini.version";
/// `general.architecture` of a vision file, and prefix of its keys.
const VISION_ARCHITECTURE: &str = "mini_gemini_mmproj";
