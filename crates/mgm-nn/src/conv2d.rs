//! The convolution layer and the group normalisation that usually stands before it.

use std::sync::Arc;

use candle_core::{Result, Tensor};
use mgm_kernels::gemm::Activation;
use mgm_kernels::group_norm::ChannelAffine;

use crate::FrozenWeight;
use crate::host::Host;
use crate::ops::{self, ConvParams, FrozenBias, FrozenConv, conv2d, group_norm_affine};

/// A convolution over `[batch, height, width, channels]`, with its weight trainable, packed, quantised or dense on a device.
pub struct Conv2d {
    matrix: Matrix,
    bias: Option<Bias>,
    params: ConvParams,
    channels: usize,
}

pub(crate) enum Matrix {
    /// `[out, channels, kernel, kernel]`, trainable or on a device.
    Dense(Tensor),
    /// `[out, kernel · kernel · channels]`.
    Frozen(Arc<FrozenWeight>),
}

pub(crate) enum Bias {
    Dense(Tensor),
    Frozen(Arc<[f32]>),
}

/// Group normalisation over channels-last maps.
pub struct GroupNorm {
    gamma: Tensor,
    beta: Tensor,
    groups: usize,
    eps: f64,
}

impl GroupNorm {
    /// From scale and shift, `[channels]` each.
    pub fn new(gamma: Tensor, beta: Tensor, groups: usize, eps: f64) -> Self {
        Self {
            gamma,
            beta,
            groups,
            eps,
        }
    }

    /// `x [batch, .., channels]` to the same shape.
    pub fn forward(&self, x: &Tensor, activation: Activation) -> Result<Tensor> {
        ops::group_norm(
            x,
            self.groups,
            &self.gamma,
            &self.beta,
            self.eps,
            activation,
        )
    }

    fn is_tracked(&self) -> bool {
        self.gamma.track_op() || self.beta.track_op()
    }
}

impl Conv2d {
    pub(crate) fn from_parts(
        matrix: Matrix,
        bias: Option<Bias>,
        params: ConvParams,
        channels: usize,
    ) -> Self {
        Self {
            matrix,
            bias,
            params,
            channels,
        }
    }

    /// Bytes that the weight takes, without the bias.
    pub fn bytes(&self) -> usize {
        match &self.matrix {
            Matrix::Dense(weight) => weight.elem_count() * weight.dtype().size_in_bytes(),
            Matrix::Frozen(weight) => weight.bytes(),
        }
    }

    /// `x [batch, height, width, channels]` → `[batch, height', width', out]`.
    pub fn forward(&self, x: &Tensor) -> Result<Tensor> {
        self.forward_with(x, self.params)
    }

    /// The layer with rows below and columns right cut off its (enlarged) input.
    pub fn forward_trimmed(&self, x: &Tensor, trim: [usize; 2]) -> Result<Tensor> {
        self.forward_with(
            x,
            ConvParams {
                trim,
                ..self.params
            },
        )
    }

    fn forward_with(&self, x: &Tensor, params: ConvParams) -> Result<Tensor> {
        match self.fusible(x) {
            Some(weight) => self.fused(x, weight, params, None, self.frozen_bias()),
            None => self.unfused(x, &params),
        }
    }

    /// The convolution of `activation(norm(x))`, plus `shift [batch, out]` at every position. Where no gradient is asked for the normalised
    /// map is never stored.
    pub fn forward_normed(
        &self,
        x: &Tensor,
        norm: &GroupNorm,
        activation: Activation,
        shift: Option<&Tensor>,
    ) -> Result<Tensor> {
        let tracked = norm.is_tracked() || shift.is_some_and(|shift| shift.track_op());
        match self.fusible(x).filter(|_| !tracked) {
            Some(weight) => {
                let affine = group_norm_affine(x, norm.groups, &norm.gamma, &norm.beta, norm.eps)?;
                let bias = match shift {
                    None => self.frozen_bias(),
                    Some(shift) => FrozenBias::PerPicture(self.shifted_bias(shift, x.dims()[0])?),
                };
                self.fused(x, weight, self.params, Some((affine, activation)), bias)
            }
            None => {
                let y = self.unfused(&norm.forward(x, activation)?, &self.params)?;
                match shift {
                    Some(shift) => y.broadcast_add(&shift.unsqueeze(1)?.unsqueeze(1)?),
                    None => Ok(y),
                }
            }
        }
    }

    /// The weight, if this product can be one fused operation.
    fn fusible(&self, x: &Tensor) -> Option<&Arc<FrozenWeight>> {
        match &self.matrix {
            Matrix::Frozen(weight)
                if !x.track_op() && !matches!(self.bias, Some(Bias::Dense(_))) =>
            {
                Some(weight)
            }
            _ => None,
        }
    }

    fn frozen_bias(&self) -> FrozenBias {
        match &self.bias {
            Some(Bias::Frozen(bias)) => FrozenBias::Shared(bias.clone()),
            _ => FrozenBias::None,
        }
    }

    /// Bias and `shift [batch, out]` together.
    fn shifted_bias(&self, shift: &Tensor, batch: usize) -> Result<Vec<f32>> {
        let host = Host::new(shift);
        let mut values = host.values("convolution")?.into_owned();
        if let Some(Bias::Frozen(bias)) = &self.bias {
            if shift.dims() != [batch, bias.len()] {
                candle_core::bail!(
                    "convolution: shift has shape {:?}, expected [{batch}, {}]",
                    shift.dims(),
                    bias.len()
                );
            }
            for row in values.chunks_exact_mut(bias.len().max(1)) {
                row.iter_mut().zip(bias.iter()).for_each(|(v, b)| *v += b);
            }
        }
        Ok(values)
    }

    fn fused(
        &self,
        x: &Tensor,
        weight: &Arc<FrozenWeight>,
        params: ConvParams,
        affine: Option<(ChannelAffine, Activation)>,
        bias: FrozenBias,
    ) -> Result<Tensor> {
        x.apply_op1(FrozenConv {
            weight: weight.clone(),
            channels: self.channels,
            params,
            affine,
            bias,
        })
    }

    fn unfused(&self, x: &Tensor, params: &ConvParams) -> Result<Tensor> {
        let weight = match &self.matrix {
            Matrix::Dense(weight) => weight.clone(),
            Matrix::Frozen(weight) => {
                let kernel = self.params.kernel;
                weight
                    .to_tensor()?
                    .reshape((weight.out_features(), kernel, kernel, self.channels))?
                    .permute((0, 3, 1, 2))?
                    .contiguous()?
                    .to_device(x.device())?
            }
        };
        let bias = match &self.bias {
            None => None,
            Some(Bias::Dense(bias)) => Some(bias.clone()),
            Some(Bias::Frozen(bias)) => Some(Tensor::from_slice(bias, bias.len(), x.device())?),
        };
        conv2d(x, &weight, bias.as_ref(), params)
    }
}
