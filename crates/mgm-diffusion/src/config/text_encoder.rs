//! The text encoders' configuration.

use serde::Deserialize;

use super::norm_eps;
use crate::error::{Error, Result};

/// `text_encoder/config.json`, `text_encoder_2/config.json`.
#[derive(Clone, Debug, Deserialize)]
pub struct TextEncoderConfig {
    /// Tokens of the vocabulary.
    #[serde(default = "clip_vocabulary")]
    pub vocab_size: usize,
    /// Width of the states.
    #[serde(default = "clip_width")]
    pub hidden_size: usize,
    /// Width inside the MLP.
    #[serde(default = "clip_inner")]
    pub intermediate_size: usize,
    /// Layers.
    #[serde(default = "clip_layers")]
    pub num_hidden_layers: usize,
    /// Heads.
    #[serde(default = "clip_heads")]
    pub num_attention_heads: usize,
    /// Tokens of a window.
    #[serde(default = "clip_window")]
    pub max_position_embeddings: usize,
    /// `quick_gelu` or `gelu`.
    #[serde(default = "clip_activation")]
    pub hidden_act: String,
    /// Epsilon of the normalisations.
    #[serde(default = "norm_eps")]
    pub layer_norm_eps: f64,
    /// Width of the pooled projection.
    #[serde(default = "clip_width")]
    pub projection_dim: usize,
    /// The token at which states are pooled. Old files say 2 and mean the token with the largest number.
    #[serde(default = "clip_end")]
    pub eos_token_id: u32,
}

fn clip_vocabulary() -> usize {
    49408
}
fn clip_width() -> usize {
    512
}
fn clip_inner() -> usize {
    2048
}
fn clip_layers() -> usize {
    12
}
fn clip_heads() -> usize {
    8
}
fn clip_window() -> usize {
    77
}
fn clip_activation() -> String {
    "quick_gelu".into()
}
fn clip_end() -> u32 {
    49407
}

impl TextEncoderConfig {
    /// SDXL's first encoder, CLIP ViT-L.
    pub fn sdxl_first() -> Self {
        Self {
            vocab_size: 49408,
            hidden_size: 768,
            intermediate_size: 3072,
            num_hidden_layers: 12,
            num_attention_heads: 12,
            max_position_embeddings: 77,
            hidden_act: "quick_gelu".into(),
            layer_norm_eps: 1e-5,
            projection_dim: 768,
            eos_token_id: 2,
        }
    }

    /// SDXL's second encoder, OpenCLIP ViT-bigG.
    pub fn sdxl_second() -> Self {
        Self {
            hidden_size: 1280,
            intermediate_size: 5120,
            num_hidden_layers: 32,
            num_attention_heads: 20,
            hidden_act: "gelu".into(),
            projection_dim: 1280,
            ..Self::sdxl_first()
        }
    }

    /// Refuses what cannot be.
    ///
    /// # Errors
    /// One line that names the entry.
    pub fn check(&self, file: &str) -> Result<()> {
        let sizes = [
            self.vocab_size,
            self.hidden_size,
            self.intermediate_size,
            self.num_hidden_layers,
            self.num_attention_heads,
            self.projection_dim,
        ];
        if sizes.iter().any(|n| !(1..=1 << 24).contains(n))
            || self.max_position_embeddings < 2
            || self.max_position_embeddings > 1 << 16
        {
            return Err(Error::config(
                file,
                "sizes must be positive, and a window must have two tokens or more",
            ));
        }
        if !self.hidden_size.is_multiple_of(self.num_attention_heads) {
            return Err(Error::config(
                file,
                format!(
                    "a width of {} cannot be split into {} heads",
                    self.hidden_size, self.num_attention_heads
                ),
            ));
        }
        if !["quick_gelu", "gelu"].contains(&self.hidden_act.as_str()) {
            return Err(Error::config(
                file,
                format!(
                    "hidden_act {:?} is not supported, expected \"quick_gelu\" or \"gelu\"",
                    self.hidden_act
                ),
            ));
        }
        Ok(())
    }
}
