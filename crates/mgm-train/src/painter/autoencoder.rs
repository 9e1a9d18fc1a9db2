use candle_core::{D, Device, Tensor};
use mgm_diffusion::{ModelFiles, Noise, Part, Vae, VaeParts};
use mgm_nn::Parameters;

use super::pictures::Pictures;
use super::recipe::PainterRecipe;
use super::trainable;
use crate::error::TrainError;

/// Learns to give pictures back from their latents.
pub(super) struct Autoencoder {
    vae: Vae,
    pub(super) parameters: Parameters,
    crop: usize,
}

impl Autoencoder {
    pub(super) fn new(
        recipe: &PainterRecipe,
        files: &ModelFiles,
        pictures: &Pictures,
    ) -> Result<Self, TrainError> {
        let weights = trainable(files, Part::Vae)?;
        let vae = Vae::load(&weights, &files.vae, VaeParts::Both)?;
        let crop = recipe.crop.unwrap_or(pictures.side);
        let scale = files.vae.scale();
        for side in [crop, pictures.side] {
            if side == 0 || side > pictures.side || !side.is_multiple_of(scale) {
                return Err(TrainError::Parameters(format!(
                    "squares of {side} pixels: expected multiples of {scale} up to {}",
                    pictures.side
                )));
            }
        }
        Ok(Self {
            vae,
            parameters: weights.parameters().clone(),
            crop,
        })
    }

    /// Pictures of a step, and the side of the squares that are learnt from them.
    pub(super) fn batch(&self, recipe: &PainterRecipe, side: usize, step: u64) -> (usize, usize) {
        if (step as f64) < recipe.crop_until * recipe.steps as f64 {
            return (recipe.batch, self.crop);
        }
        let share = (side / self.crop).pow(2).max(1);
        (recipe.batch.div_ceil(share), side)
    }

    /// Mean absolute difference of pixels and of neighbouring pixels' differences, and the latents' divergence from a normal
    /// distribution.
    pub(super) fn loss(
        &self,
        recipe: &PainterRecipe,
        pictures: &Pictures,
        records: &[usize],
        side: usize,
        noise: &mut Noise,
    ) -> Result<Tensor, TrainError> {
        let count = records.len();
        let mut pixels = Vec::with_capacity(count * side * side * 3);
        for &picture in records {
            let free = pictures.side - side + 1;
            let corner = (noise.below(free), noise.below(free));
            pictures.append(picture, side, corner, &mut pixels);
        }
        let target = Tensor::from_vec(pixels, (count, side, side, 3), &Device::Cpu)?;
        let (mean, log_variance) = self.vae.encode(&target)?;
        let fresh = noise.values(mean.elem_count());
        let fresh = Tensor::from_vec(fresh, mean.shape(), &Device::Cpu)?;
        let latents = (&mean + ((&log_variance * 0.5)?.exp()? * fresh)?)?;
        let error = (self.vae.decode(&latents)? - target)?;
        let mut loss = error.abs()?.mean_all()?;
        if recipe.edge_weight > 0.0 {
            for axis in [1, 2] {
                let edges =
                    (error.narrow(axis, 1, side - 1)? - error.narrow(axis, 0, side - 1)?)?;
                loss = (loss + (edges.abs()?.mean_all()? * recipe.edge_weight)?)?;
            }
        }
        let divergence = (((mean.sqr()? + log_variance.exp()?)? - log_variance)? - 1.0)?;
        let divergence = (divergence.mean(D::Minus1)?.mean_all()? * (0.5 * recipe.kl_weight))?;
        Ok((loss + divergence)?)
    }
}
