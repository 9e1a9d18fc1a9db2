//! Configuration files of the diffusers layout. What is not named here does not change the arithmetic; what would, and is not supported,
//! is refused by the `check` of each.

mod text_encoder;
mod unet;
mod vae;

use std::path::Path;

use serde::Deserialize;
use serde::de::DeserializeOwned;

pub use self::text_encoder::TextEncoderConfig;
pub use self::unet::UNetConfig;
pub use self::vae::VaeConfig;
use crate::error::{Error, Result};

/// Most a configuration file may hold; real ones are a few kilobytes.
const MAX_CONFIG_BYTES: u64 = 4 << 20;
/// Most layers, blocks or channels that a configuration may ask for: beyond any real model, far from an overflow.
const MAX_COUNT: usize = 1 << 20;

/// One number, or one for each block.
#[derive(Clone, Debug, Deserialize, PartialEq)]
#[serde(untagged)]
pub enum PerBlock {
    /// The same for all blocks.
    All(usize),
    /// One for each down block.
    Each(Vec<usize>),
}

impl PerBlock {
    /// The number of a block; 0 where the list is too short.
    pub fn of(&self, block: usize) -> usize {
        match self {
            Self::All(count) => *count,
            Self::Each(counts) => counts.get(block).copied().unwrap_or(0),
        }
    }

    fn fits(&self, blocks: usize) -> bool {
        match self {
            Self::All(count) => (1..=MAX_COUNT).contains(count),
            Self::Each(counts) => {
                counts.len() == blocks && counts.iter().all(|count| (1..=MAX_COUNT).contains(count))
            }
        }
    }
}

fn four() -> usize {
    4
}
fn thirty_two() -> usize {
    32
}
fn norm_eps() -> f64 {
    1e-5
}
fn yes() -> bool {
    true
}

/// Reads a JSON file.
pub(crate) fn read_json<T: DeserializeOwned>(path: &Path) -> Result<T> {
    let io = |source| Error::Io {
        path: path.to_path_buf(),
        source,
    };
    let size = std::fs::metadata(path).map_err(io)?.len();
    if size > MAX_CONFIG_BYTES {
        return Err(Error::config(
            path.display().to_string(),
            format!("{size} bytes, expected a configuration of at most {MAX_CONFIG_BYTES}"),
        ));
    }
    let text = std::fs::read(path).map_err(io)?;
    serde_json::from_slice(&text)
        .map_err(|error| Error::config(path.display().to_string(), error.to_string()))
}
