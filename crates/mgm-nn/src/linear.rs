//! The linear layer in all its storages.

use std::sync::Arc;

use candle_core::{Device, Result, Tensor};
use mgm_kernels::gemm::Activation;
use mgm_kernels::int8::GatedWeight;
use mgm_kernels::mlp::MlpWeight;
use rayon::prelude::*;

use crate::FrozenWeight;
use crate::ops::{self, Adapter, AttentionPrecision, FrozenLinear};

/// `y = x·Wᵀ + b`, with W trainable, packed, quantised or dense on a device, and an optional low-rank adapter.
/// Cheap to clone: clones share the weights.
#[derive(Clone)]
pub struct Linear {
    matrix: Matrix,
    bias: Option<Bias>,
    lora: Option<Lora>,
}

#[derive(Clone)]
pub(crate) enum Matrix {
    Trainable(Tensor),
    Frozen(Arc<FrozenWeight>),
}

#[derive(Clone)]
pub(crate) enum Bias {
    Trainable(Tensor),
    Frozen(Arc<[f32]>),
}

#[derive(Clone)]
pub(crate) enum Lora {
    Trainable {
        a: Tensor,
        b: Tensor,
        scale: f32,
    },
    /// The scale is already in the upper factor.
    Frozen(Adapter),
}

impl Linear {
    pub(crate) fn from_parts(matrix: Matrix, bias: Option<Bias>, lora: Option<Lora>) -> Self {
        Self { matrix, bias, lora }
    }

    /// A layer over tensors of one's own (`weight [out, in]`, `bias [out]`), which get gradients if they are on the tape.
    pub fn from_tensors(weight: Tensor, bias: Option<Tensor>) -> Result<Self> {
        let (out_features, _) = weight.dims2()?;
        if let Some(bias) = &bias
            && bias.dims() != [out_features]
        {
            candle_core::bail!(
                "linear: bias has shape {:?}, expected [{out_features}]",
                bias.dims()
            );
        }
        Ok(Self {
            matrix: Matrix::Trainable(weight),
            bias: bias.map(Bias::Trainable),
            lora: None,
        })
    }

    /// A layer over a frozen weight and bias (one value for each output feature).
    pub fn frozen(weight: Arc<FrozenWeight>, bias: Option<Vec<f32>>) -> Result<Self> {
        if let Some(bias) = &bias
            && bias.len() != weight.out_features()
        {
            candle_core::bail!(
                "linear: bias has {} values, expected {}",
                bias.len(),
                weight.out_features()
            );
        }
        Ok(Self {
            matrix: Matrix::Frozen(weight),
            bias: bias.map(|bias| Bias::Frozen(bias.into())),
            lora: None,
        })
    }

    /// Size of the last axis of the input.
    pub fn in_features(&self) -> usize {
        match &self.matrix {
            Matrix::Trainable(weight) => weight.dims()[1],
            Matrix::Frozen(weight) => weight.in_features(),
        }
    }

    /// Size of the last axis of the output.
    pub fn out_features(&self) -> usize {
        match &self.matrix {
            Matrix::Trainable(weight) => weight.dims()[0],
            Matrix::Frozen(weight) => weight.out_features(),
        }
    }

    /// Bytes that the weight matrix takes, without bias and adapter; for one that stays in its file, bytes of the file.
    pub fn bytes(&self) -> usize {
        match &self.matrix {
            Matrix::Trainable(weight) => weight.elem_count() * weight.dtype().size_in_bytes(),
            Matrix::Frozen(weight) => weight.bytes(),
        }
    }

    /// `x [.., in_features] → [.., out_features]`.
    pub fn forward(&self, x: &Tensor) -> Result<Tensor> {
        self.forward_with(x, Activation::None)
    }

    /// What each of several layers makes of the same `x`. On the CPU they run side by side: a thread that has nothing left to do in one goes on
    /// with the next, where one after another each would wait for its slowest thread.
    pub fn forward_each<const N: usize>(layers: [&Self; N], x: &Tensor) -> Result<[Tensor; N]> {
        let results: Result<Vec<Tensor>> = match x.device().is_cpu() {
            true => layers
                .into_par_iter()
                .map(|layer| layer.forward(x))
                .collect(),
            false => layers.into_iter().map(|layer| layer.forward(x)).collect(),
        };
        let results: [Tensor; N] = results?
            .try_into()
            .map_err(|_| candle_core::Error::Msg("one result for each layer".into()))?;
        Ok(results)
    }

    /// The layer followed by an activation, in one pass over the output where no gradient is asked for.
    pub fn forward_with(&self, x: &Tensor, activation: Activation) -> Result<Tensor> {
        match &self.matrix {
            Matrix::Trainable(weight) => {
                let y = match self.bias_on(x.device())? {
                    Some(bias) => ops::linear_bias(x, weight, &bias)?,
                    None => ops::linear(x, weight)?,
                };
                ops::activation(&y, activation)
            }
            Matrix::Frozen(weight) => match &self.lora {
                Some(Lora::Trainable { a, b, scale }) => ops::activation(
                    &self.with_trainable_adapter(x, weight, a, b, *scale)?,
                    activation,
                ),
                Some(Lora::Frozen(adapter)) => {
                    self.all_frozen(x, weight, Some(adapter.clone()), activation)
                }
                None => self.all_frozen(x, weight, None, activation),
            },
        }
    }

    fn all_frozen(
        &self,
        x: &Tensor,
        weight: &Arc<FrozenWeight>,
        adapter: Option<Adapter>,
        activation: Activation,
    ) -> Result<Tensor> {
        let fused = weight.as_dense().is_none()
            && !x.track_op()
            && !matches!(self.bias, Some(Bias::Trainable(_)));
        let bias = match &self.bias {
            Some(Bias::Frozen(bias)) => Some(bias.clone()),
            _ => None,
        };
        let inner = if fused { activation } else { Activation::None };
        let y = FrozenLinear {
            weight: weight.clone(),
            bias,
            adapter,
            activation: inner,
        }
        .apply(x)?;
        if fused {
            return Ok(y);
        }
        ops::activation(&self.add_trainable_bias(y)?, activation)
    }

    fn with_trainable_adapter(
        &self,
        x: &Tensor,
        weight: &Arc<FrozenWeight>,
        a: &Tensor,
        b: &Tensor,
        scale: f32,
    ) -> Result<Tensor> {
        let bias = match &self.bias {
            Some(Bias::Frozen(bias)) => Some(bias),
            _ => None,
        };
        let y = if weight.as_dense().is_none() {
            ops::lora_linear(x, weight, bias, a, b, scale)?
        } else {
            let frozen = FrozenLinear {
                weight: weight.clone(),
                bias: bias.cloned(),
                adapter: None,
                activation: Activation::None,
            };
            let low = (ops::linear(x, a)? * f64::from(scale))?;
            (frozen.apply(x)? + ops::linear(&low, b)?)?
        };
        self.add_trainable_bias(y)
    }

    fn add_trainable_bias(&self, y: Tensor) -> Result<Tensor> {
        match &self.bias {
            Some(Bias::Trainable(bias)) => y.broadcast_add(bias),
            _ => Ok(y),
        }
    }

    fn bias_on(&self, device: &Device) -> Result<Option<Tensor>> {
        match &self.bias {
            None => Ok(None),
            Some(Bias::Trainable(bias)) => Ok(Some(bias.clone())),
            Some(Bias::Frozen(bias)) => Tensor::from_slice(bias, bias.len(), device).map(Some),
        }
    }

    /// `x [.., out_features]·W → [.., in_features]`, without the bias: the product with the transposed weight, which
    /// folds a projection into what it is multiplied with. Gradients as in [`forward`](Self::forward).
    pub fn forward_transposed(&self, x: &Tensor) -> Result<Tensor> {
        let base = match &self.matrix {
            Matrix::Trainable(weight) => return ops::linear_transposed(x, weight),
            Matrix::Frozen(weight) => ops::frozen_linear_transposed(x, weight)?,
        };
        match &self.lora {
            None => Ok(base),
            Some(Lora::Trainable { a, b, scale }) => {
                base + (ops::linear_transposed(&ops::linear_transposed(x, b)?, a)?
                    * f64::from(*scale))?
            }
            Some(Lora::Frozen(adapter)) => base + adapter.transposed(x)?,
        }
    }

    /// The bias `[out_features]` on `device`; a trainable one is its variable.
    pub fn bias(&self, device: &Device) -> Result<Option<Tensor>> {
        self.bias_on(device)
    }

    /// The weight as dense `f32` `[out_features, in_features]`: the variable itself if it is trainable, else a decoded
    /// copy on the CPU. A low-rank adapter is added in.
    pub fn weight(&self) -> Result<Tensor> {
        let base = match &self.matrix {
            Matrix::Trainable(weight) => return Ok(weight.clone()),
            Matrix::Frozen(weight) => weight.to_tensor()?,
        };
        match &self.lora {
            None => Ok(base),
            Some(Lora::Trainable { a, b, scale }) => {
                base + (b
                    .to_device(&Device::Cpu)?
                    .matmul(&a.to_device(&Device::Cpu)?)?
                    * f64::from(*scale))?
            }
            Some(Lora::Frozen(adapter)) => base + adapter.to_tensor()?,
        }
    }

    /// In what precision attention goes with this layer: what its products round to bf16 or 8 bits need not be multiplied in `f32` afterwards.
    pub fn attention_precision(&self) -> AttentionPrecision {
        match &self.matrix {
            Matrix::Frozen(weight) if weight.rounds_rows() => AttentionPrecision::Bf16,
            _ => AttentionPrecision::Full,
        }
    }

    /// [`Self::attention_precision`] over keys and values that are held in `f32` and rounded anew for every token. With blocks that are multiplied as
    /// they are stored attention stays `f32`: a few rows of a small model would pay more for the rounding than for the products.
    pub fn cached_attention_precision(&self) -> AttentionPrecision {
        match &self.matrix {
            Matrix::Frozen(weight) if weight.is_in_blocks() => AttentionPrecision::Full,
            _ => self.attention_precision(),
        }
    }

    /// Whether any part of the layer is trained.
    pub fn is_trainable(&self) -> bool {
        matches!(self.matrix, Matrix::Trainable(_))
            || matches!(self.bias, Some(Bias::Trainable(_)))
            || matches!(self.lora, Some(Lora::Trainable { .. }))
    }

    /// The packed matrix and the bias of a layer of which nothing learns, for operations that fuse several layers.
    pub(crate) fn plain_packed(&self) -> Option<(MlpWeight<'_>, Option<&[f32]>)> {
        let (Matrix::Frozen(weight), None) = (&self.matrix, &self.lora) else {
            return None;
        };
        let bias = match &self.bias {
            None => None,
            Some(Bias::Frozen(bias)) => Some(&**bias),
            Some(Bias::Trainable(_)) => return None,
        };
        Some((weight.as_mlp_weight()?, bias))
    }

    /// The matrix of a layer that has neither bias nor adapter as a part of a gated perceptron in 8 bits, if it can be one.
    pub(crate) fn gated_weight(&self) -> Option<GatedWeight<'_>> {
        self.plain_frozen_matrix()?.as_gated_weight()
    }

    /// The frozen matrix of a layer that has neither bias nor adapter, for operations that fuse the product.
    pub(crate) fn plain_frozen_matrix(&self) -> Option<&Arc<FrozenWeight>> {
        match (&self.matrix, &self.bias, &self.lora) {
            (Matrix::Frozen(weight), None, None) => Some(weight),
            _ => None,
        }
    }
}

impl std::fmt::Debug for Linear {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let kind = match &self.matrix {
            Matrix::Trainable(_) => "trainable".to_string(),
            Matrix::Frozen(weight) => format!("{weight:?}"),
        };
        let bias = if self.bias.is_some() { ", bias" } else { "" };
        let lora = if self.lora.is_some() { ", LoRA" } else { "" };
        write!(
            f,
            "Linear({} -> {}, {kind}{bias}{lora})",
            self.in_features(),
            self.out_features()
        )
    }
}
