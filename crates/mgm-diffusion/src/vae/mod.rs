//! The variational autoencoder between pictures and latents.
//!
//! Activations are `f32` whatever the weights are, so that nothing overflows (SDXL's VAE does in half precision).

mod blocks;
mod tiling;

use candle_core::Tensor;
use mgm_nn::ops::ConvParams;
use mgm_nn::{Bias, Conv2d, WeightSource};

use self::blocks::{Decoder, Encoder};
pub use self::tiling::Tiling;
use crate::config::VaeConfig;
use crate::error::{Error, Result};

/// AutoencoderKL. Encoder and decoder are loaded apart: painting needs only the latter.
pub struct Vae {
    encoder: Option<(Encoder, Option<Conv2d>)>,
    decoder: Option<(Option<Conv2d>, Decoder)>,
    config: VaeConfig,
}

/// Which half of the autoencoder to load.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum VaeParts {
    /// Pictures to latents.
    Encoder,
    /// Latents to pictures.
    Decoder,
    /// Both.
    Both,
}

impl Vae {
    /// Loads the parts; `weights` stands where `decoder` is.
    ///
    /// # Errors
    /// When a tensor is missing or has another shape.
    pub fn load(weights: &WeightSource, config: &VaeConfig, parts: VaeParts) -> Result<Self> {
        config.check("the VAE's configuration")?;
        let pointwise = |name: &str, channels: usize| {
            weights.conv2d(name, channels, channels, ConvParams::same(1), Bias::Yes)
        };
        let latent = config.latent_channels;
        let encoder = match parts {
            VaeParts::Decoder => None,
            _ => {
                let quant = match config.use_quant_conv {
                    true => Some(pointwise("quant_conv", 2 * latent)?),
                    false => None,
                };
                Some((Encoder::load(&weights.pp("encoder"), config)?, quant))
            }
        };
        let decoder = match parts {
            VaeParts::Encoder => None,
            _ => {
                let quant = match config.use_post_quant_conv {
                    true => Some(pointwise("post_quant_conv", latent)?),
                    false => None,
                };
                Some((quant, Decoder::load(&weights.pp("decoder"), config)?))
            }
        };
        Ok(Self {
            encoder,
            decoder,
            config: config.clone(),
        })
    }

    /// The configuration it was loaded with.
    pub fn config(&self) -> &VaeConfig {
        &self.config
    }

    /// Pictures `[batch, height, width, 3]` in ±1 → mean and logarithm of the variance of their latents, both
    /// `[batch, height', width', latent]`, not scaled.
    ///
    /// # Errors
    /// When the encoder was not loaded.
    pub fn encode(&self, pictures: &Tensor) -> Result<(Tensor, Tensor)> {
        let Some((encoder, quant)) = &self.encoder else {
            return Err(Error::Input("VAE: the encoder was not loaded".into()));
        };
        let moments = encoder.forward(pictures)?;
        let moments = match quant {
            Some(quant) => quant.forward(&moments)?,
            None => moments,
        };
        let latent = self.config.latent_channels;
        let part = |start: usize| moments.narrow(3, start, latent)?.contiguous();
        // diffusers keeps the variance within these bounds.
        Ok((part(0)?, part(latent)?.clamp(-30f32, 20f32)?))
    }

    /// Unscaled latents `[batch, height, width, latent]` → pictures `[batch, height', width', 3]`, about ±1.
    ///
    /// # Errors
    /// When the decoder was not loaded.
    pub fn decode(&self, latents: &Tensor) -> Result<Tensor> {
        let Some((quant, decoder)) = &self.decoder else {
            return Err(Error::Input("VAE: the decoder was not loaded".into()));
        };
        match quant {
            Some(quant) => decoder.forward(&quant.forward(latents)?),
            None => decoder.forward(latents),
        }
    }

    /// [`Self::decode`] of latents as the UNet knows them: scaled, and standardised where the configuration says so.
    ///
    /// # Errors
    /// As [`Self::decode`]; [`Error::Interrupted`] when `keep_going` says no between two tiles.
    pub fn decode_scaled(
        &self,
        latents: &Tensor,
        tiling: Option<Tiling>,
        keep_going: &mut dyn FnMut() -> bool,
    ) -> Result<Tensor> {
        let mut latents = (latents / self.config.scaling_factor)?;
        let row = |values: &[f64]| {
            let values: Vec<f32> = values.iter().map(|&v| v as f32).collect();
            Tensor::from_slice(&values, values.len(), latents.device())
        };
        if let (Some(mean), Some(std)) = (&self.config.latents_mean, &self.config.latents_std) {
            latents = latents
                .broadcast_mul(&row(std)?)?
                .broadcast_add(&row(mean)?)?;
        }
        match tiling {
            Some(tiling) => tiling.decode(self, &latents, keep_going),
            None => self.decode(&latents),
        }
    }
}
