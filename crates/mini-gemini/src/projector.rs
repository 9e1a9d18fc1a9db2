//! From visual features to the language model's width (spec: model §6).

use candle_core::Tensor;
use mgm_nn::{Bias, Linear, WeightSource, ops};

use crate::error::{Error, Result};

/// `mm_projector`.
pub enum Projector {
    /// Passes features through.
    Identity,
    /// `Linear → (GELU → Linear)*`; a single linear layer is the case of depth 1.
    Layers(Vec<Linear>),
}

impl Projector {
    /// Loads the projector that `kind` names: `linear`, `identity` or `mlp{N}x_gelu`. `weights` stands at `model`.
    ///
    /// # Errors
    /// When `kind` is none of these or a tensor does not fit.
    pub fn load(kind: &str, input: usize, hidden: usize, weights: &WeightSource) -> Result<Self> {
        let depth = kind
            .strip_prefix("mlp")
            .and_then(|rest| rest.strip_suffix("x_gelu"))
            .and_then(|depth| depth.parse::<usize>().ok());
        match (kind, depth) {
            ("identity", _) => Ok(Self::Identity),
            ("linear", _) => Ok(Self::Layers(vec![weights.linear(
                "mm_projector",
                input,
                hidden,
                Bias::Yes,
            )?])),
            (_, Some(depth)) if depth > 0 => {
                let weights = weights.pp("mm_projector");
                let layers = (0..depth)
                    .map(|index| {
                        let width = if index == 0 { input } else { hidden };
                        // GELUs take the odd places of the sequence.
                        weights.linear(&(2 * index).to_string(), width, hidden, Bias::Yes)
                    })
                    .collect::<Result<Vec<_>, _>>()?;
                Ok(Self::Layers(layers))
            }
            _ => Err(Error::Input(format!(
                "mm_projector_type is `{kind}`: expected `linear`, `identity` or `mlp{{N}}x_gelu`"
            ))),
        }
    }

    /// `[rows, features]` to `[rows, hidden]`.
    ///
    /// # Errors
    /// When a tensor operation fails.
    pub fn forward(&self, features: &Tensor) -> Result<Tensor> {
        let Self::Layers(layers) = self else {
            return Ok(features.clone());
        };
        let mut hidden = features.clone();
        for (index, layer) in layers.iter().enumerate() {
            if index > 0 {
                hidden = ops::gelu_erf(&hidden)?;
            }
            hidden = layer.forward(&hidden)?;
        }
        Ok(hidden)
    }
}
