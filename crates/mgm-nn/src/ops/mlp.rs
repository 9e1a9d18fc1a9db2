//! The perceptrons of a block, as one operation each where nothing of them learns: the plain one with its norm, scale and residual, and the
//! gated one of language models.

use candle_core::{CpuStorage, InplaceOp2, Layout, Result, Tensor};
use mgm_kernels::gemm::Activation;
use mgm_kernels::int8;
use mgm_kernels::mlp::{self, MlpWeight};
use rayon::prelude::*;

use super::activation::gated;
use super::linear::with_last;
use super::{activation, layer_norm};
use crate::Linear;
use crate::host::{self, Host};

/// Most bytes of a gated MLP's inner rows: enough of them to pay for reading the matrices again.
const INNER_BYTES: usize = 24 << 20;
/// They are divided at multiples of this number of rows, as the products divide them.
const SLAB_ROWS: usize = 256;

/// Scale `gamma [c]`, shift `beta [c]` and epsilon of a LayerNorm.
#[derive(Clone, Copy, Debug)]
pub struct NormSpec<'a> {
    /// Scale.
    pub gamma: &'a Tensor,
    /// Shift.
    pub beta: &'a Tensor,
    /// Added to the variance.
    pub eps: f64,
}

/// `residual + scale ⊙ second(f(first(norm(x))))` over rows `[rows, c]`; `scale` is `[c]`.
///
/// On the CPU, with packed frozen weights (floats or 8 bits) and inputs that are not on the gradient tape, the rows go through all of it at once; otherwise layer
/// by layer, with gradients.
pub fn residual_mlp(
    x: &Tensor,
    norm: &NormSpec,
    first: &Linear,
    activation_kind: Activation,
    second: &Linear,
    scale: Option<&Tensor>,
    residual: &Tensor,
) -> Result<Tensor> {
    let constants = [
        Some(x),
        Some(norm.gamma),
        Some(norm.beta),
        scale,
        Some(residual),
    ];
    let constant = constants
        .into_iter()
        .flatten()
        .all(|tensor| tensor.device().is_cpu() && !tensor.track_op());
    if let (true, Some(first), Some(second)) =
        (constant, first.plain_packed(), second.plain_packed())
    {
        let operation = ResidualMlp {
            gamma: norm.gamma,
            beta: norm.beta,
            eps: norm.eps as f32,
            first,
            activation: activation_kind,
            second,
            scale,
        };
        return operation.apply(x, residual);
    }
    let hidden = first.forward(&layer_norm(x, norm.gamma, norm.beta, norm.eps)?)?;
    let result = second.forward(&activation(&hidden, activation_kind)?)?;
    let result = match scale {
        Some(scale) => result.broadcast_mul(scale)?,
        None => result,
    };
    residual + result
}

/// `down(f(gate(x)) ⊙ up(x))`, `x [.., c]` to the width of `down`.
///
/// On the CPU, with matrices in 8 bits (or blocks that are widened to 8) and an input that is not on the gradient tape, the inner rows never go
/// through memory; otherwise layer by layer, with gradients.
pub fn gated_mlp(
    x: &Tensor,
    gate: &Linear,
    up: &Linear,
    down: &Linear,
    activation_kind: Activation,
) -> Result<Tensor> {
    const NAME: &str = "gated MLP";
    if let (true, Some(first), Some(second), Some(third)) = (
        x.device().is_cpu() && !x.track_op(),
        gate.gated_weight(),
        up.gated_weight(),
        down.gated_weight(),
    ) {
        let weights = [first, second, third];
        let (rows, width) = host::rows_and_width(x.shape(), NAME)?;
        let [(inner, c), _, (out_width, down_inner)] = weights.map(|w| w.features());
        if weights[1].features() != (inner, c) || down_inner != inner || width != c {
            candle_core::bail!(
                "{NAME}: rows of {width}, weights [{inner}, {c}], {:?} and [{out_width}, {down_inner}]",
                weights[1].features()
            );
        }
        if int8::takes_gated_mlp(rows, &weights) {
            let host = Host::new(x);
            let values = host.values(NAME)?;
            let mut out = vec![0.0; rows * out_width];
            int8::gated_mlp(rows, &values, weights, activation_kind, &mut out);
            return host::tensor(out, with_last(x.shape(), out_width));
        }
    }
    if !x.device().is_cpu() || x.track_op() || gate.is_trainable() || up.is_trainable() {
        let inner = gated(&gate.forward(x)?, &up.forward(x)?, activation_kind)?;
        return down.forward(&inner);
    }
    // The inner rows are the largest of a decoder: some of them at a time, multiplied where they are, for nobody else holds them.
    let (rows, width) = host::rows_and_width(x.shape(), NAME)?;
    let most = INNER_BYTES / (4 * gate.out_features()).max(1);
    let most = (most / SLAB_ROWS * SLAB_ROWS).max(SLAB_ROWS);
    let slab = |x: &Tensor| {
        let (inner, up) = rayon::join(|| gate.forward_with(x, activation_kind), || up.forward(x));
        let inner = inner?;
        inner.inplace_op2(&up?, &Multiply)?;
        down.forward(&inner)
    };
    if rows <= most {
        return slab(x);
    }
    let flat = x.reshape((rows, width))?;
    let slabs = (0..rows)
        .step_by(most)
        .map(|start| slab(&flat.narrow(0, start, most.min(rows - start))?))
        .collect::<Result<Vec<_>>>()?;
    Tensor::cat(&slabs, 0)?.reshape(with_last(x.shape(), down.out_features()))
}

/// `x ⊙= y`.
struct Multiply;

impl InplaceOp2 for Multiply {
    fn name(&self) -> &'static str {
        "multiply in place"
    }

    fn cpu_fwd(
        &self,
        s1: &mut CpuStorage,
        l1: &Layout,
        s2: &CpuStorage,
        l2: &Layout,
    ) -> Result<()> {
        /// Values that one thread multiplies at a time.
        const PIECE: usize = 1 << 15;
        let factors = host::values(s2, l2, self.name())?;
        let (CpuStorage::F32(values), Some((start, end))) = (s1, l1.contiguous_offsets()) else {
            candle_core::bail!("{}: expected contiguous f32 values", self.name());
        };
        let values = &mut values[start..end];
        if values.len() != factors.len() {
            candle_core::bail!(
                "{}: {} values and {} factors",
                self.name(),
                values.len(),
                factors.len()
            );
        }
        values
            .par_chunks_mut(PIECE)
            .zip(factors.par_chunks(PIECE))
            .for_each(|(values, factors)| {
                for (value, factor) in values.iter_mut().zip(factors) {
                    *value *= factor;
                }
            });
        Ok(())
    }
}

/// A packed matrix and its bias.
type Packed<'a> = (MlpWeight<'a>, Option<&'a [f32]>);

struct ResidualMlp<'a> {
    gamma: &'a Tensor,
    beta: &'a Tensor,
    eps: f32,
    first: Packed<'a>,
    activation: Activation,
    second: Packed<'a>,
    scale: Option<&'a Tensor>,
}

impl ResidualMlp<'_> {
    fn apply(&self, x: &Tensor, residual: &Tensor) -> Result<Tensor> {
        const NAME: &str = "residual MLP";
        let (rows, c) = x.dims2()?;
        let channels = [c];
        let shapes = [
            ("residual", residual.dims(), &[rows, c][..]),
            ("gamma", self.gamma.dims(), &channels),
            ("beta", self.beta.dims(), &channels),
            (
                "scale",
                self.scale.map_or(&channels[..], Tensor::dims),
                &channels,
            ),
        ];
        for (what, found, expected) in shapes {
            if found != expected {
                candle_core::bail!("{NAME}: {what} has shape {found:?}, expected {expected:?}");
            }
        }
        let (first, first_bias) = self.first;
        let (second, second_bias) = self.second;
        if (first.k(), second.n(), second.k()) != (c, c, first.n()) {
            candle_core::bail!(
                "{NAME}: rows of {c}, weights [{}, {}] and [{}, {}]",
                first.n(),
                first.k(),
                second.n(),
                second.k()
            );
        }
        let (x, residual) = (Host::new(x), Host::new(residual));
        let (gamma, beta) = (Host::new(self.gamma), Host::new(self.beta));
        let scale = self.scale.map(Host::new);
        let (gamma, beta) = (gamma.values(NAME)?, beta.values(NAME)?);
        let scale = scale.as_ref().map(|scale| scale.values(NAME)).transpose()?;
        let weights = mlp::Mlp {
            norm: Some(mlp::LayerNorm {
                gamma: &gamma,
                beta: &beta,
                eps: self.eps,
            }),
            first,
            first_bias,
            activation: self.activation,
            second,
            second_bias,
            scale: scale.as_deref(),
        };
        let mut out = vec![0.0; rows * c];
        mlp::mlp(
            rows,
            &x.values(NAME)?,
            &weights,
            &residual.values(NAME)?,
            &mut out,
        );
        host::tensor(out, (rows, c))
    }
}
