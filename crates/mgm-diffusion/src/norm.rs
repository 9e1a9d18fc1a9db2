//! Layer normalisation with its weights, and the precision of attention that goes with them.

use candle_core::Tensor;
use mgm_nn::ops::AttentionPrecision;
use mgm_nn::{WeightSource, WeightStorage, ops};

use crate::error::Result;

pub(crate) struct LayerNorm {
    gamma: Tensor,
    beta: Tensor,
    eps: f64,
}

impl LayerNorm {
    pub(crate) fn load(weights: &WeightSource, name: &str, width: usize, eps: f64) -> Result<Self> {
        Ok(Self {
            gamma: weights.tensor(&format!("{name}.weight"), [width])?,
            beta: weights.tensor(&format!("{name}.bias"), [width])?,
            eps,
        })
    }

    pub(crate) fn forward(&self, x: &Tensor) -> Result<Tensor> {
        Ok(ops::layer_norm(x, &self.gamma, &self.beta, self.eps)?)
    }
}

/// Attention rounds as the products with the weights around it do.
pub(crate) fn attention_precision(weights: &WeightSource) -> AttentionPrecision {
    match weights.policy().storage {
        WeightStorage::Bf16 | WeightStorage::Q8_0 | WeightStorage::Int8 => AttentionPrecision::Bf16,
        _ => AttentionPrecision::Full,
    }
}
