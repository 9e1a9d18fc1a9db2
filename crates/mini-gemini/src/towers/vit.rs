//! The pre-norm transformer block that CLIP and DINOv2 share.

use candle_core::Tensor;
use mgm_nn::ops::{self, NormSpec};
use mgm_nn::{Activation, Bias, Linear, WeightSource};

use crate::error::{Error, Result};

/// Where a tower keeps the parts of a block.
pub(super) struct BlockNames {
    pub(super) norm1: &'static str,
    pub(super) norm2: &'static str,
    pub(super) query: &'static str,
    pub(super) key: &'static str,
    pub(super) value: &'static str,
    pub(super) output: &'static str,
    /// Names of the two layer scales, if the tower has them.
    pub(super) scales: Option<[&'static str; 2]>,
}

struct Norm {
    gamma: Tensor,
    beta: Tensor,
}

impl Norm {
    fn load(weights: &WeightSource, name: &str, width: usize) -> Result<Self> {
        Ok(Self {
            gamma: weights.tensor(&format!("{name}.weight"), [width])?,
            beta: weights.tensor(&format!("{name}.bias"), [width])?,
        })
    }
}

pub(super) struct Block {
    norm1: Norm,
    query: Linear,
    key: Linear,
    value: Linear,
    output: Linear,
    scale1: Option<Tensor>,
    norm2: Norm,
    fc1: Linear,
    fc2: Linear,
    scale2: Option<Tensor>,
    heads: usize,
    eps: f64,
    activation: Activation,
}

impl Block {
    pub(super) fn load(
        weights: &WeightSource,
        names: &BlockNames,
        width: usize,
        heads: usize,
        eps: f64,
        activation: Activation,
    ) -> Result<Self> {
        let inner = match weights.shape("mlp.fc1.weight").as_deref() {
            Some([inner, _]) => *inner,
            found => {
                return Err(Error::Input(format!(
                    "{}mlp.fc1.weight: expected a matrix, found {found:?}",
                    weights.prefix()
                )));
            }
        };
        let scale = |index: usize| -> Result<Option<Tensor>> {
            match names.scales {
                Some(scales) => Ok(Some(weights.tensor(scales[index], [width])?)),
                None => Ok(None),
            }
        };
        Ok(Self {
            norm1: Norm::load(weights, names.norm1, width)?,
            query: weights.linear(names.query, width, width, Bias::Yes)?,
            key: weights.linear(names.key, width, width, Bias::Yes)?,
            value: weights.linear(names.value, width, width, Bias::Yes)?,
            output: weights.linear(names.output, width, width, Bias::Yes)?,
            scale1: scale(0)?,
            norm2: Norm::load(weights, names.norm2, width)?,
            fc1: weights.linear("mlp.fc1", width, inner, Bias::Yes)?,
            fc2: weights.linear("mlp.fc2", inner, width, Bias::Yes)?,
            scale2: scale(1)?,
            heads,
            eps,
            activation,
        })
    }

    /// `[views · tokens, width]` to the same; attention stays inside each view.
    pub(super) fn forward(&self, input: &Tensor, views: usize) -> Result<Tensor> {
        let (rows, width) = input.dims2()?;
        let head_dim = width / self.heads;
        let normed = ops::layer_norm(input, &self.norm1.gamma, &self.norm1.beta, self.eps)?;
        let split = |tensor: Tensor| tensor.reshape((rows, self.heads, head_dim));
        let layers = [&self.query, &self.key, &self.value];
        let [query, key, value] = Linear::forward_each(layers, &normed)?;
        let (query, key, value) = (split(query)?, split(key)?, split(value)?);
        let scale = 1.0 / (head_dim as f32).sqrt();
        let attended = ops::cross_attention(
            &query,
            &key,
            &value,
            views,
            scale,
            self.query.attention_precision(),
        )?
        .reshape((rows, width))?;
        let attended = scaled(self.output.forward(&attended)?, self.scale1.as_ref())?;
        let hidden = (input + attended)?;
        let norm = NormSpec {
            gamma: &self.norm2.gamma,
            beta: &self.norm2.beta,
            eps: self.eps,
        };
        let (fc1, fc2) = (&self.fc1, &self.fc2);
        let scale = self.scale2.as_ref();
        Ok(ops::residual_mlp(
            &hidden,
            &norm,
            fc1,
            self.activation,
            fc2,
            scale,
            &hidden,
        )?)
    }
}

fn scaled(tensor: Tensor, scale: Option<&Tensor>) -> Result<Tensor> {
    match scale {
        Some(scale) => Ok(tensor.broadcast_mul(scale)?),
        None => Ok(tensor),
    }
}

/// Patches of pictures `[views, 3, size, size]` as rows `[views · patches, 3 · patch · patch]`, each flattened as a convolution weight is.
pub(super) fn patch_rows(pictures: &Tensor, patch: usize) -> Result<Tensor> {
    let (views, channels, height, width) = pictures.dims4()?;
    let (rows, columns) = (height / patch, width / patch);
    Ok(pictures
        .reshape(vec![views, channels, rows, patch, columns, patch])?
        .permute([0, 2, 4, 1, 3, 5].as_slice())?
        .contiguous()?
        .reshape((views * rows * columns, channels * patch * patch))?)
}
