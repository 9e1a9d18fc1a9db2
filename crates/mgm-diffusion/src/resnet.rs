//! The residual block that UNet and VAE share.

use candle_core::Tensor;
use mgm_nn::ops::ConvParams;
use mgm_nn::{Activation, Bias, Conv2d, GroupNorm, Linear, WeightSource};

use crate::error::Result;

/// Two normalised 3×3 convolutions beside a shortcut; in a UNet the time is added between them.
pub(crate) struct ResidualBlock {
    norm1: GroupNorm,
    conv1: Conv2d,
    time: Option<Linear>,
    norm2: GroupNorm,
    conv2: Conv2d,
    shortcut: Option<Conv2d>,
}

/// Sizes of a residual block.
#[derive(Clone, Copy)]
pub(crate) struct ResidualSizes {
    pub(crate) input: usize,
    pub(crate) output: usize,
    /// Width of the embedding of the time, in a UNet.
    pub(crate) time: Option<usize>,
    pub(crate) groups: usize,
    pub(crate) eps: f64,
}

impl ResidualBlock {
    pub(crate) fn load(weights: &WeightSource, sizes: ResidualSizes) -> Result<Self> {
        let ResidualSizes {
            input,
            output,
            groups,
            eps,
            ..
        } = sizes;
        let conv = |name: &str, from: usize, kernel: usize| {
            weights.conv2d(name, from, output, ConvParams::same(kernel), Bias::Yes)
        };
        Ok(Self {
            norm1: weights.group_norm("norm1", groups, input, eps)?,
            conv1: conv("conv1", input, 3)?,
            time: match sizes.time {
                Some(width) => Some(weights.linear("time_emb_proj", width, output, Bias::Yes)?),
                None => None,
            },
            norm2: weights.group_norm("norm2", groups, output, eps)?,
            conv2: conv("conv2", output, 3)?,
            shortcut: match input == output {
                true => None,
                false => Some(conv("conv_shortcut", input, 1)?),
            },
        })
    }

    /// `x [batch, height, width, input]` → `[batch, height, width, output]`; `time [batch, time]` is SiLU of the embedding.
    pub(crate) fn forward(&self, x: &Tensor, time: Option<&Tensor>) -> Result<Tensor> {
        let shift = match (&self.time, time) {
            (Some(projection), Some(time)) => Some(projection.forward(time)?),
            _ => None,
        };
        let hidden = self
            .conv1
            .forward_normed(x, &self.norm1, Activation::Silu, shift.as_ref())?;
        let hidden = self
            .conv2
            .forward_normed(&hidden, &self.norm2, Activation::Silu, None)?;
        match &self.shortcut {
            Some(shortcut) => Ok((shortcut.forward(x)? + hidden)?),
            None => Ok((x + hidden)?),
        }
    }
}
