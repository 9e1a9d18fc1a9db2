//! Differentiable operations.
//!
//! Every function takes and returns candle tensors of `f32`. On the CPU it is one custom operation with a backward, over
//! `mgm-kernels`; on another device it is a composition of candle's operations, which the tests hold equal to the CPU
//! version. None of them ends the gradient tape in silence: those without a backward say so when one is asked for.

mod activation;
mod attach;
mod attention;
mod bilinear;
mod checkpoint;
mod conv2d;
mod cross_attention;
mod cross_entropy;
mod depthwise;
mod frozen_linear;
mod gated_halves;
mod group_norm;
mod head_loss;
mod linear;
mod mlp;
mod norm;
mod paged;
mod region;
mod rope;

pub use activation::{activation, gelu_erf, gelu_tanh, quick_gelu, relu6, silu};
pub use attention::{AttentionSpec, attention, cached_attention};
pub use bilinear::bilinear;
pub use checkpoint::{GradientSink, checkpoint};
pub use conv2d::{ConvParams, conv2d};
pub(crate) use conv2d::{FrozenBias, FrozenConv};
pub use cross_attention::{AttentionPrecision, cross_attention};
pub use cross_entropy::{IGNORE_LABEL, cross_entropy};
pub use depthwise::{DepthwiseParams, depthwise};
pub(crate) use frozen_linear::{Adapter, FrozenLinear};
pub use frozen_linear::{frozen_linear, frozen_linear_transposed};
pub use gated_halves::geglu;
pub(crate) use group_norm::affine as group_norm_affine;
pub use group_norm::group_norm;
pub use head_loss::linear_cross_entropy;
pub(crate) use linear::lora_linear;
pub use linear::{linear, linear_bias, linear_transposed};
pub use mlp::{NormSpec, gated_mlp, residual_mlp};
pub use norm::{layer_norm, layer_norm_without_affine, rms_norm};
pub use paged::{PagedRows, paged_attention};
pub use region::{CellWindow, RegionCells, region_attention, region_attention_weights};
pub use rope::{RopeStyle, RopeTable, rope};

#[cfg(test)]
mod tests;
