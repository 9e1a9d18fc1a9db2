//! `y = x·Wᵀ (+ b)` with a trainable weight, and the same over a frozen weight with a trainable low-rank adapter.

use std::sync::Arc;

use candle_core::{CpuStorage, CustomOp2, CustomOp3, Layout, Result, Shape, Tensor};
use mgm_kernels::gemm::{Epilogue, matmul};

use crate::FrozenWeight;
use crate::host::{self, Host};
use crate::reduce;

/// `x [.., k]·weight [n, k]ᵀ → [.., n]`; gradients for both.
pub fn linear(x: &Tensor, weight: &Tensor) -> Result<Tensor> {
    if x.device().is_cpu() {
        x.apply_op2(weight, Linear)
    } else {
        composed(x, weight, None)
    }
}

/// `x [.., k]·weight [n, k]ᵀ + bias [n] → [.., n]`; gradients for all three.
pub fn linear_bias(x: &Tensor, weight: &Tensor, bias: &Tensor) -> Result<Tensor> {
    if x.device().is_cpu() {
        x.apply_op3(weight, bias, LinearBias)
    } else {
        composed(x, weight, Some(bias))
    }
}

pub(crate) fn composed(x: &Tensor, weight: &Tensor, bias: Option<&Tensor>) -> Result<Tensor> {
    let (rows, k) = host::rows_and_width(x.shape(), "linear")?;
    let (n, _) = weight.dims2()?;
    let y = x.reshape((rows, k))?.matmul(&weight.t()?)?;
    let y = match bias {
        Some(bias) => y.broadcast_add(bias)?,
        None => y,
    };
    y.reshape(with_last(x.shape(), n))
}

/// `shape` with its last axis replaced.
pub(crate) fn with_last(shape: &Shape, last: usize) -> Shape {
    let mut dims = shape.dims().to_vec();
    if let Some(end) = dims.last_mut() {
        *end = last;
    }
    Shape::from(dims)
}

/// Rows, inputs and outputs of a product, checked.
pub(crate) fn product_shape(
    x: &Shape,
    weight: &[usize],
    operation: &'static str,
) -> Result<(usize, usize, usize)> {
    let (m, k) = host::rows_and_width(x, operation)?;
    match *weight {
        [n, weight_k] if weight_k == k => Ok((m, k, n)),
        _ => candle_core::bail!(
            "{operation}: weight {weight:?} does not fit input {:?}",
            x.dims()
        ),
    }
}

struct Linear;

impl CustomOp2 for Linear {
    fn name(&self) -> &'static str {
        "linear"
    }

    fn cpu_fwd(
        &self,
        s1: &CpuStorage,
        l1: &Layout,
        s2: &CpuStorage,
        l2: &Layout,
    ) -> Result<(CpuStorage, Shape)> {
        let (m, k, n) = product_shape(l1.shape(), l2.dims(), self.name())?;
        let (x, w) = (
            host::values(s1, l1, self.name())?,
            host::values(s2, l2, self.name())?,
        );
        let out = host::output(m * n, |out| {
            matmul(false, true, m, n, k, &x, &w, out, false)
        });
        Ok((out, with_last(l1.shape(), n)))
    }

    fn bwd(
        &self,
        x: &Tensor,
        w: &Tensor,
        _: &Tensor,
        grad: &Tensor,
    ) -> Result<(Option<Tensor>, Option<Tensor>)> {
        gradients(x, w, grad)
    }
}

struct LinearBias;

impl CustomOp3 for LinearBias {
    fn name(&self) -> &'static str {
        "linear"
    }

    fn cpu_fwd(
        &self,
        s1: &CpuStorage,
        l1: &Layout,
        s2: &CpuStorage,
        l2: &Layout,
        s3: &CpuStorage,
        l3: &Layout,
    ) -> Result<(CpuStorage, Shape)> {
        let (m, k, n) = product_shape(l1.shape(), l2.dims(), self.name())?;
        if l3.dims() != [n] {
            candle_core::bail!("linear: bias has shape {:?}, expected [{n}]", l3.dims());
        }
        let (x, w) = (
            host::values(s1, l1, self.name())?,
            host::values(s2, l2, self.name())?,
        );
        let bias = host::values(s3, l3, self.name())?;
        let out = host::output(m * n, |out| {
            out.chunks_exact_mut(n.max(1))
                .for_each(|row| row.copy_from_slice(&bias));
            matmul(false, true, m, n, k, &x, &w, out, true);
        });
        Ok((out, with_last(l1.shape(), n)))
    }

    fn bwd(
        &self,
        x: &Tensor,
        w: &Tensor,
        b: &Tensor,
        _: &Tensor,
        grad: &Tensor,
    ) -> Result<(Option<Tensor>, Option<Tensor>, Option<Tensor>)> {
        let (dx, dw) = gradients(x, w, grad)?;
        let db = if b.track_op() {
            Some(column_sums(grad)?)
        } else {
            None
        };
        Ok((dx, dw, db))
    }
}

/// Sum over all rows, `[.., n] → [n]`.
pub(crate) fn column_sums(grad: &Tensor) -> Result<Tensor> {
    let (m, n) = host::rows_and_width(grad.shape(), "linear")?;
    let grad = Host::new(grad);
    let grad = grad.values("linear")?;
    host::tensor(
        reduce::sum_rows(m, n, |row, total| {
            reduce::add_scaled(total, 1.0, &grad[row * n..][..n])
        }),
        n,
    )
}

fn gradients(x: &Tensor, w: &Tensor, grad: &Tensor) -> Result<(Option<Tensor>, Option<Tensor>)> {
    let (m, k, n) = product_shape(x.shape(), w.dims(), "linear")?;
    let grad = Host::new(grad);
    let grad = grad.values("linear")?;
    let dx = if x.track_op() {
        let w = Host::new(w);
        let w = w.values("linear")?;
        let mut dx = vec![0.0; m * k];
        matmul(false, false, m, k, n, &grad, &w, &mut dx, false);
        Some(host::tensor(dx, x.shape())?)
    } else {
        None
    };
    let dw = if w.track_op() {
        let x = Host::new(x);
        let x = x.values("linear")?;
        let mut dw = vec![0.0; n * k];
        matmul(true, false, n, k, m, &grad, &x, &mut dw, false);
        Some(host::tensor(dw, (n, k))?)
    } else {
        None
    };
    Ok((dx, dw))
}

/// `x·Wᵀ + bias + scale·(x·Aᵀ)·Bᵀ` with W frozen and the adapter A `[rank, k]`, B `[n, rank]` trainable
/// ("LoRA", arXiv 2106.09685). One operation, so that no intermediate of the size of the output is kept.
pub(crate) fn lora_linear(
    x: &Tensor,
    weight: &Arc<FrozenWeight>,
    bias: Option<&Arc<[f32]>>,
    a: &Tensor,
    b: &Tensor,
    scale: f32,
) -> Result<Tensor> {
    x.apply_op3(
        a,
        b,
        LoraLinear {
            weight: weight.clone(),
            bias: bias.cloned(),
            scale,
        },
    )
}

struct LoraLinear {
    weight: Arc<FrozenWeight>,
    bias: Option<Arc<[f32]>>,
    scale: f32,
}

impl LoraLinear {
    /// `scale·x·Aᵀ`, `[m, rank]`.
    fn down(&self, m: usize, k: usize, rank: usize, x: &[f32], a: &[f32]) -> Vec<f32> {
        let mut low = vec![0.0; m * rank];
        matmul(false, true, m, rank, k, x, a, &mut low, false);
        low.iter_mut().for_each(|value| *value *= self.scale);
        low
    }
}

impl CustomOp3 for LoraLinear {
    fn name(&self) -> &'static str {
        "LoRA linear"
    }

    fn cpu_fwd(
        &self,
        s1: &CpuStorage,
        l1: &Layout,
        s2: &CpuStorage,
        l2: &Layout,
        s3: &CpuStorage,
        l3: &Layout,
    ) -> Result<(CpuStorage, Shape)> {
        let dims = [self.weight.out_features(), self.weight.in_features()];
        let (m, k, n) = product_shape(l1.shape(), &dims, self.name())?;
        let (rank, _) = l2.shape().dims2()?;
        if l2.dims() != [rank, k] || l3.dims() != [n, rank] {
            candle_core::bail!(
                "LoRA linear: adapter {:?}, {:?} does not fit weight {dims:?}",
                l2.dims(),
                l3.dims()
            );
        }
        let (x, a) = (
            host::values(s1, l1, self.name())?,
            host::values(s2, l2, self.name())?,
        );
        let b = host::values(s3, l3, self.name())?;
        let mut out = vec![0.0; m * n];
        self.weight.multiply(
            m,
            &x,
            &mut out,
            &Epilogue {
                bias: self.bias.as_deref(),
                ..Epilogue::default()
            },
        )?;
        let low = self.down(m, k, rank, &x, &a);
        matmul(false, true, m, n, rank, &low, &b, &mut out, true);
        Ok((CpuStorage::F32(out), with_last(l1.shape(), n)))
    }

    fn bwd(
        &self,
        x: &Tensor,
        a: &Tensor,
        b: &Tensor,
        _: &Tensor,
        grad: &Tensor,
    ) -> Result<(Option<Tensor>, Option<Tensor>, Option<Tensor>)> {
        let (m, k, rank) = product_shape(x.shape(), a.dims(), self.name())?;
        let n = self.weight.out_features();
        let (x_host, a_host, b_host, grad_host) =
            (Host::new(x), Host::new(a), Host::new(b), Host::new(grad));
        let (x_values, a_values) = (x_host.values(self.name())?, a_host.values(self.name())?);
        let (b_values, grad) = (b_host.values(self.name())?, grad_host.values(self.name())?);

        // Gradient of scale·x·Aᵀ, and through the scale.
        let mut d_low = vec![0.0; m * rank];
        matmul(
            false, false, m, rank, n, &grad, &b_values, &mut d_low, false,
        );
        d_low.iter_mut().for_each(|value| *value *= self.scale);
        let mut da = vec![0.0; rank * k];
        matmul(true, false, rank, k, m, &d_low, &x_values, &mut da, false);
        let low = self.down(m, k, rank, &x_values, &a_values);
        let mut db = vec![0.0; n * rank];
        matmul(true, false, n, rank, m, &grad, &low, &mut db, false);
        let dx = if x.track_op() {
            let mut dx = vec![0.0; m * k];
            self.weight.multiply_transposed(m, &grad, &mut dx, false)?;
            matmul(false, false, m, k, rank, &d_low, &a_values, &mut dx, true);
            Some(host::tensor(dx, x.shape())?)
        } else {
            None
        };
        Ok((
            dx,
            Some(host::tensor(da, (rank, k))?),
            Some(host::tensor(db, (n, rank))?),
        ))
    }
}

/// `x [.., n]·weight [n, k] → [.., k]`, the product with the transposed weight; gradients for both.
pub fn linear_transposed(x: &Tensor, weight: &Tensor) -> Result<Tensor> {
    if x.device().is_cpu() {
        return x.apply_op2(weight, LinearTransposed);
    }
    let (rows, n) = host::rows_and_width(x.shape(), "linear")?;
    let (_, k) = weight.dims2()?;
    x.reshape((rows, n))?
        .matmul(weight)?
        .reshape(with_last(x.shape(), k))
}

struct LinearTransposed;

impl LinearTransposed {
    fn shape(x: &Shape, weight: &[usize]) -> Result<(usize, usize, usize)> {
        let (m, n) = host::rows_and_width(x, "transposed linear")?;
        match *weight {
            [weight_n, k] if weight_n == n => Ok((m, n, k)),
            _ => candle_core::bail!(
                "transposed linear: weight {weight:?} does not fit input {:?}",
                x.dims()
            ),
        }
    }
}

impl CustomOp2 for LinearTransposed {
    fn name(&self) -> &'static str {
        "transposed linear"
    }

    fn cpu_fwd(
        &self,
        s1: &CpuStorage,
        l1: &Layout,
        s2: &CpuStorage,
        l2: &Layout,
    ) -> Result<(CpuStorage, Shape)> {
        let (m, n, k) = Self::shape(l1.shape(), l2.dims())?;
        let (x, w) = (
            host::values(s1, l1, self.name())?,
            host::values(s2, l2, self.name())?,
        );
        let out = host::output(m * k, |out| {
            matmul(false, false, m, k, n, &x, &w, out, false)
        });
        Ok((out, with_last(l1.shape(), k)))
    }

    fn bwd(
        &self,
        x: &Tensor,
        w: &Tensor,
        _: &Tensor,
        grad: &Tensor,
    ) -> Result<(Option<Tensor>, Option<Tensor>)> {
        let (m, n, k) = Self::shape(x.shape(), w.dims())?;
        let (x_host, w_host, grad_host) = (Host::new(x), Host::new(w), Host::new(grad));
        let grad = grad_host.values(self.name())?;
        let dx = if x.track_op() {
            let mut dx = vec![0.0; m * n];
            matmul(
                false,
                true,
                m,
                n,
                k,
                &grad,
                &w_host.values(self.name())?,
                &mut dx,
                false,
            );
            Some(host::tensor(dx, x.shape())?)
        } else {
            None
        };
        let dw = if w.track_op() {
            let mut dw = vec![0.0; n * k];
            matmul(
                true,
                false,
                n,
                k,
                m,
                &x_host.values(self.name())?,
                &grad,
                &mut dw,
                false,
            );
            Some(host::tensor(dw, (n, k))?)
        } else {
            None
        };
        Ok((dx, dw))
    }
}
