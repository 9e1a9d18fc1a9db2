//! The autoencoder's configuration.

use serde::Deserialize;

use super::{MAX_COUNT, four, thirty_two, yes};
use crate::error::{Error, Result};

/// `vae/config.json`.
#[derive(Clone, Debug, Deserialize)]
pub struct VaeConfig {
    /// Channels of a picture.
    #[serde(default = "three")]
    pub in_channels: usize,
    /// Channels of a decoded picture.
    #[serde(default = "three")]
    pub out_channels: usize,
    /// Channels of the latents.
    #[serde(default = "four")]
    pub latent_channels: usize,
    /// Channels of each level, finest first.
    pub block_out_channels: Vec<usize>,
    /// Residual blocks of an encoder level; decoder levels have one more.
    #[serde(default = "one_layer")]
    pub layers_per_block: usize,
    /// Groups of all group normalisations.
    #[serde(default = "thirty_two")]
    pub norm_num_groups: usize,
    /// Side of the pictures it was trained on; the side of tiles.
    #[serde(default = "sample_side")]
    pub sample_size: usize,
    /// Latents are divided by it before decoding.
    #[serde(default = "scaling_factor")]
    pub scaling_factor: f64,
    /// Mean of each latent channel, where the model has been trained on standardised latents.
    #[serde(default)]
    pub latents_mean: Option<Vec<f64>>,
    /// Standard deviation of each latent channel.
    #[serde(default)]
    pub latents_std: Option<Vec<f64>>,
    /// Whether a 1×1 convolution follows the encoder.
    #[serde(default = "yes")]
    pub use_quant_conv: bool,
    /// Whether a 1×1 convolution precedes the decoder.
    #[serde(default = "yes")]
    pub use_post_quant_conv: bool,
    /// Whether the middle blocks have attention.
    #[serde(default = "yes")]
    pub mid_block_add_attention: bool,
}

fn three() -> usize {
    3
}
fn one_layer() -> usize {
    1
}
fn sample_side() -> usize {
    32
}
fn scaling_factor() -> f64 {
    0.18215
}

impl VaeConfig {
    /// The configuration of SDXL's VAE, for checkpoints that bring none.
    pub fn sdxl() -> Self {
        Self {
            in_channels: 3,
            out_channels: 3,
            latent_channels: 4,
            block_out_channels: vec![128, 256, 512, 512],
            layers_per_block: 2,
            norm_num_groups: 32,
            sample_size: 1024,
            scaling_factor: 0.13025,
            latents_mean: None,
            latents_std: None,
            use_quant_conv: true,
            use_post_quant_conv: true,
            mid_block_add_attention: true,
        }
    }

    /// Pixels along the side of one latent position.
    pub fn scale(&self) -> usize {
        1 << (self.block_out_channels.len() - 1)
    }

    /// Refuses sizes that cannot be.
    ///
    /// # Errors
    /// One line that names the entry.
    pub fn check(&self, file: &str) -> Result<()> {
        let blocks = self.block_out_channels.len();
        if !(1..=8).contains(&blocks) {
            return Err(Error::config(
                file,
                "block_out_channels: expected 1 to 8 levels",
            ));
        }
        let sizes = [
            self.in_channels,
            self.out_channels,
            self.latent_channels,
            self.layers_per_block,
            self.sample_size,
        ];
        if sizes.iter().any(|n| !(1..=MAX_COUNT).contains(n)) {
            return Err(Error::config(
                file,
                "channels, layers and sample_size must be positive",
            ));
        }
        if self.in_channels != 3 || self.out_channels != 3 {
            return Err(Error::config(file, "expected 3 colour channels"));
        }
        for &channels in &self.block_out_channels {
            if channels == 0
                || channels > MAX_COUNT
                || self.norm_num_groups == 0
                || !channels.is_multiple_of(self.norm_num_groups)
            {
                return Err(Error::config(
                    file,
                    format!(
                        "{channels} channels cannot be split into {} groups",
                        self.norm_num_groups
                    ),
                ));
            }
        }
        if !self.scaling_factor.is_finite() || self.scaling_factor <= 0.0 {
            return Err(Error::config(
                file,
                "scaling_factor: expected a positive number",
            ));
        }
        for list in [&self.latents_mean, &self.latents_std]
            .into_iter()
            .flatten()
        {
            if list.len() != self.latent_channels {
                return Err(Error::config(
                    file,
                    "latents_mean, latents_std: expected one number for each latent channel",
                ));
            }
        }
        Ok(())
    }
}
