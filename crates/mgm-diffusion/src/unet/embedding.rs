//! Embeddings of the time, the guidance scale and the picture's sizes.

use candle_core::{Device, Tensor};
use mgm_nn::{Activation, Bias, Linear, WeightSource};

use crate::error::Result;

/// `[values, width]`: cosines and sines of each value at geometrically falling frequencies.
pub(super) fn sinusoids(
    values: &[f64],
    width: usize,
    cosine_first: bool,
    shift: f64,
    device: &Device,
) -> Result<Tensor> {
    let half = width / 2;
    let mut out = Vec::with_capacity(values.len() * width);
    for &value in values {
        let angle = |index: usize| {
            // In f32, as the reference does: angles reach a thousand radians.
            let exponent = -(10_000f64.ln()) * index as f64 / (half as f64 - shift);
            value as f32 * (exponent as f32).exp()
        };
        let sines = (0..half).map(|index| angle(index).sin());
        let cosines = (0..half).map(|index| angle(index).cos());
        match cosine_first {
            true => out.extend(cosines.chain(sines)),
            false => out.extend(sines.chain(cosines)),
        }
        if !width.is_multiple_of(2) {
            out.push(0.0);
        }
    }
    Ok(Tensor::from_vec(out, (values.len(), width), device)?)
}

/// Embedding of the guidance scale in models distilled to need no second pass, `[batch, width]` (diffusers' `get_guidance_scale_embedding`).
pub(super) fn guidance_embedding(
    guidance: f64,
    batch: usize,
    width: usize,
    device: &Device,
) -> Result<Tensor> {
    let scaled = vec![(guidance - 1.0) * 1000.0; batch];
    sinusoids(&scaled, width, false, 1.0, device)
}

/// Two linear layers with a SiLU between them.
pub(super) struct TimeEmbedding {
    condition: Option<Linear>,
    linear_1: Linear,
    linear_2: Linear,
}

impl TimeEmbedding {
    pub(super) fn load(
        weights: &WeightSource,
        input: usize,
        width: usize,
        condition: Option<usize>,
    ) -> Result<Self> {
        Ok(Self {
            condition: match condition {
                Some(condition) => Some(weights.linear("cond_proj", condition, input, Bias::No)?),
                None => None,
            },
            linear_1: weights.linear("linear_1", input, width, Bias::Yes)?,
            linear_2: weights.linear("linear_2", width, width, Bias::Yes)?,
        })
    }

    pub(super) fn forward(&self, x: &Tensor, condition: Option<&Tensor>) -> Result<Tensor> {
        let x = match (&self.condition, condition) {
            (Some(projection), Some(condition)) => (x + projection.forward(condition)?)?,
            _ => x.clone(),
        };
        let inner = self.linear_1.forward_with(&x, Activation::Silu)?;
        Ok(self.linear_2.forward(&inner)?)
    }
}
