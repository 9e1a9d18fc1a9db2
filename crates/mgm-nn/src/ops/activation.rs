//! Activation functions, plain and as the gate of a gated MLP.

use candle_core::{CpuStorage, CustomOp1, CustomOp2, Layout, Result, Shape, Tensor};
use mgm_kernels::elementwise;
use mgm_kernels::gemm::Activation;
use rayon::prelude::*;

use crate::host::{self, Host};

const SQRT_2_OVER_PI: f32 = 0.797_884_6;
const GELU_CUBIC: f32 = 0.044_715;
const INVERSE_SQRT_2_PI: f32 = 0.398_942_3;

/// Elements a task works on: input, gradient and result stay in the first-level caches.
const BLOCK: usize = 4096;

/// Applies any activation, with a gradient.
pub fn activation(x: &Tensor, kind: Activation) -> Result<Tensor> {
    match kind {
        Activation::None => Ok(x.clone()),
        _ if x.device().is_cpu() => x.apply_op1(Activate(kind)),
        _ => composed(x, kind),
    }
}

/// GELU with the error function, `x·Φ(x)`.
pub fn gelu_erf(x: &Tensor) -> Result<Tensor> {
    activation(x, Activation::GeluErf)
}

/// GELU's tanh approximation.
pub fn gelu_tanh(x: &Tensor) -> Result<Tensor> {
    activation(x, Activation::GeluTanh)
}

/// OpenAI CLIP's `x·sigmoid(1.702·x)`.
pub fn quick_gelu(x: &Tensor) -> Result<Tensor> {
    activation(x, Activation::QuickGelu)
}

/// `x·sigmoid(x)`.
pub fn silu(x: &Tensor) -> Result<Tensor> {
    activation(x, Activation::Silu)
}

/// `min(max(x, 0), 6)`.
pub fn relu6(x: &Tensor) -> Result<Tensor> {
    activation(x, Activation::Relu6)
}

/// `f(gate)·up`.
pub(super) fn gated(gate: &Tensor, up: &Tensor, kind: Activation) -> Result<Tensor> {
    if gate.shape() != up.shape() {
        candle_core::bail!(
            "gated activation: gate {:?} and up {:?} differ",
            gate.dims(),
            up.dims()
        );
    }
    if gate.device().is_cpu() {
        gate.apply_op2(up, Gated(kind))
    } else {
        composed(gate, kind)? * up
    }
}

pub(crate) fn composed(x: &Tensor, kind: Activation) -> Result<Tensor> {
    let sigmoid = |x: &Tensor| (x.neg()?.exp()? + 1.0)?.recip();
    match kind {
        Activation::None => Ok(x.clone()),
        Activation::GeluErf => x.gelu_erf(),
        Activation::GeluTanh => x.gelu(),
        Activation::QuickGelu => x * sigmoid(&(x * 1.702)?)?,
        Activation::Silu => x.silu(),
        Activation::Relu6 => x.clamp(0f32, 6f32),
    }
}

/// Applies the function to a slice in place, in parallel when it is long.
pub(crate) fn apply_in_place(kind: Activation, values: &mut [f32]) {
    match kind {
        Activation::None => {}
        Activation::GeluErf => elementwise::gelu_erf(values),
        Activation::GeluTanh => elementwise::gelu_tanh(values),
        Activation::QuickGelu => elementwise::quick_gelu(values),
        Activation::Silu => elementwise::silu(values),
        Activation::Relu6 => values
            .iter_mut()
            .for_each(|value| *value = value.clamp(0.0, 6.0)),
    }
}

/// `derivative[i] = f'(x[i])`, given `y = f(x)`.
///
/// All but ReLU6 have the form `y = x·p(x)` with a smooth step `p`, so `p = y/x` saves a second exponential.
fn derivative(kind: Activation, x: &[f32], y: &[f32], derivative: &mut [f32]) {
    let step = |x: f32, y: f32| if x == 0.0 { 0.5 } else { y / x };
    let each = derivative.iter_mut().zip(x.iter().zip(y));
    match kind {
        Activation::None => derivative.fill(1.0),
        Activation::Silu => each.for_each(|(d, (&x, &y))| {
            let p = step(x, y);
            *d = p + y * (1.0 - p);
        }),
        Activation::QuickGelu => each.for_each(|(d, (&x, &y))| {
            let p = step(x, y);
            *d = p + 1.702 * y * (1.0 - p);
        }),
        Activation::GeluTanh => each.for_each(|(d, (&x, &y))| {
            let p = step(x, y);
            let slope = 2.0 * SQRT_2_OVER_PI * (1.0 + 3.0 * GELU_CUBIC * x * x);
            *d = p + y * (1.0 - p) * slope;
        }),
        Activation::GeluErf => {
            derivative
                .iter_mut()
                .zip(x)
                .for_each(|(d, &x)| *d = -0.5 * x * x);
            elementwise::exp(derivative);
            derivative
                .iter_mut()
                .zip(x.iter().zip(y))
                .for_each(|(d, (&x, &y))| {
                    *d = step(x, y) + x * INVERSE_SQRT_2_PI * *d;
                });
        }
        Activation::Relu6 => {
            each.for_each(|(d, (&x, _))| *d = if x > 0.0 && x < 6.0 { 1.0 } else { 0.0 })
        }
    }
}

struct Activate(Activation);

impl CustomOp1 for Activate {
    fn name(&self) -> &'static str {
        "activation"
    }

    fn cpu_fwd(&self, storage: &CpuStorage, layout: &Layout) -> Result<(CpuStorage, Shape)> {
        let x = host::values(storage, layout, self.name())?;
        let out = host::output(x.len(), |out| {
            out.par_chunks_mut(BLOCK)
                .zip(x.par_chunks(BLOCK))
                .for_each(|(out, x)| {
                    out.copy_from_slice(x);
                    apply_in_place(self.0, out);
                });
        });
        Ok((out, layout.shape().clone()))
    }

    fn bwd(&self, x: &Tensor, y: &Tensor, grad: &Tensor) -> Result<Option<Tensor>> {
        let (x_host, y_host, grad_host) = (Host::new(x), Host::new(y), Host::new(grad));
        let (x_values, y_values) = (x_host.values(self.name())?, y_host.values(self.name())?);
        let grad = grad_host.values(self.name())?;
        let mut dx = vec![0.0; x_values.len()];
        dx.par_chunks_mut(BLOCK)
            .enumerate()
            .for_each(|(block, dx)| {
                let range = block * BLOCK..block * BLOCK + dx.len();
                derivative(
                    self.0,
                    &x_values[range.clone()],
                    &y_values[range.clone()],
                    dx,
                );
                dx.iter_mut().zip(&grad[range]).for_each(|(d, &g)| *d *= g);
            });
        Ok(Some(host::tensor(dx, x.shape())?))
    }
}

struct Gated(Activation);

impl CustomOp2 for Gated {
    fn name(&self) -> &'static str {
        "gated activation"
    }

    fn cpu_fwd(
        &self,
        s1: &CpuStorage,
        l1: &Layout,
        s2: &CpuStorage,
        l2: &Layout,
    ) -> Result<(CpuStorage, Shape)> {
        let gate = host::values(s1, l1, self.name())?;
        let up = host::values(s2, l2, self.name())?;
        let out = host::output(gate.len(), |out| {
            out.par_chunks_mut(BLOCK)
                .zip(gate.par_chunks(BLOCK).zip(up.par_chunks(BLOCK)))
                .for_each(|(out, (gate, up))| {
                    out.copy_from_slice(gate);
                    apply_in_place(self.0, out);
                    out.iter_mut().zip(up).for_each(|(out, &up)| *out *= up);
                });
        });
        Ok((out, l1.shape().clone()))
    }

    fn bwd(
        &self,
        gate: &Tensor,
        up: &Tensor,
        _: &Tensor,
        grad: &Tensor,
    ) -> Result<(Option<Tensor>, Option<Tensor>)> {
        let (gate_host, up_host, grad_host) = (Host::new(gate), Host::new(up), Host::new(grad));
        let (x, up_values) = (gate_host.values(self.name())?, up_host.values(self.name())?);
        let grad = grad_host.values(self.name())?;
        let mut d_gate = vec![0.0; x.len()];
        let mut d_up = vec![0.0; x.len()];
        d_gate
            .par_chunks_mut(BLOCK)
            .zip(d_up.par_chunks_mut(BLOCK))
            .enumerate()
            .for_each(|(block, (d_gate, d_up))| {
                let range = block * BLOCK..block * BLOCK + d_gate.len();
                let (x, up, grad) = (&x[range.clone()], &up_values[range.clone()], &grad[range]);
                d_up.copy_from_slice(x);
                apply_in_place(self.0, d_up);
                derivative(self.0, x, d_up, d_gate);
                for ((d_gate, d_up), (&up, &grad)) in
                    d_gate.iter_mut().zip(d_up).zip(up.iter().zip(grad))
                {
                    *d_gate *= grad * up;
                    *d_up *= grad;
                }
            });
        Ok((
            Some(host::tensor(d_gate, gate.shape())?),
            Some(host::tensor(d_up, up.shape())?),
        ))
    }
}
