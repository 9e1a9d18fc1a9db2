//! RMSNorm and LayerNorm over the last axis.

use candle_core::{CpuStorage, CustomOp1, CustomOp2, CustomOp3, D, Layout, Result, Shape, Tensor};
use mgm_kernels::elementwise;
use rayon::prelude::*;

use crate::host::{self, Host};
use crate::reduce;

/// `x / sqrt(mean(x²) + eps) · (offset + weight)` over the last axis; `weight` is `[c]`, `offset` 0 (Llama) or 1 (Gemma).
pub fn rms_norm(x: &Tensor, weight: &Tensor, eps: f64, offset: f32) -> Result<Tensor> {
    if x.device().is_cpu() {
        x.apply_op2(
            weight,
            RmsNorm {
                eps: eps as f32,
                offset,
            },
        )
    } else {
        composed_rms_norm(x, weight, eps, offset)
    }
}

/// `(x − mean) / sqrt(var + eps) · weight + bias` over the last axis, population variance; `weight`, `bias` are `[c]`.
pub fn layer_norm(x: &Tensor, weight: &Tensor, bias: &Tensor, eps: f64) -> Result<Tensor> {
    if x.device().is_cpu() {
        x.apply_op3(weight, bias, LayerNorm { eps: eps as f32 })
    } else {
        composed_layer_norm(x, eps)?
            .broadcast_mul(weight)?
            .broadcast_add(bias)
    }
}

/// `(x − mean) / sqrt(var + eps)` over the last axis.
pub fn layer_norm_without_affine(x: &Tensor, eps: f64) -> Result<Tensor> {
    if x.device().is_cpu() {
        x.apply_op1(LayerNorm { eps: eps as f32 })
    } else {
        composed_layer_norm(x, eps)
    }
}

pub(crate) fn composed_rms_norm(
    x: &Tensor,
    weight: &Tensor,
    eps: f64,
    offset: f32,
) -> Result<Tensor> {
    let mean_square = x.sqr()?.mean_keepdim(D::Minus1)?;
    x.broadcast_div(&(mean_square + eps)?.sqrt()?)?
        .broadcast_mul(&(weight + f64::from(offset))?)
}

pub(crate) fn composed_layer_norm(x: &Tensor, eps: f64) -> Result<Tensor> {
    let centred = x.broadcast_sub(&x.mean_keepdim(D::Minus1)?)?;
    let variance = centred.sqr()?.mean_keepdim(D::Minus1)?;
    centred.broadcast_div(&(variance + eps)?.sqrt()?)
}

fn check_width(what: &str, shape: &Shape, width: usize, operation: &'static str) -> Result<()> {
    if shape.dims() != [width] {
        candle_core::bail!(
            "{operation}: {what} has shape {:?}, expected [{width}]",
            shape.dims()
        );
    }
    Ok(())
}

struct RmsNorm {
    eps: f32,
    offset: f32,
}

impl RmsNorm {
    fn inverse(&self, row: &[f32]) -> f32 {
        1.0 / (reduce::dot(row, row) / row.len() as f32 + self.eps).sqrt()
    }
}

impl CustomOp2 for RmsNorm {
    fn name(&self) -> &'static str {
        "RMSNorm"
    }

    fn cpu_fwd(
        &self,
        s1: &CpuStorage,
        l1: &Layout,
        s2: &CpuStorage,
        l2: &Layout,
    ) -> Result<(CpuStorage, Shape)> {
        let (rows, c) = host::rows_and_width(l1.shape(), self.name())?;
        check_width("weight", l2.shape(), c, self.name())?;
        let (x, weight) = (
            host::values(s1, l1, self.name())?,
            host::values(s2, l2, self.name())?,
        );
        let out = host::output(rows * c, |out| {
            elementwise::rms_norm(rows, c, &x, &weight, self.eps, self.offset, out)
        });
        Ok((out, l1.shape().clone()))
    }

    fn bwd(
        &self,
        x: &Tensor,
        weight: &Tensor,
        _: &Tensor,
        grad: &Tensor,
    ) -> Result<(Option<Tensor>, Option<Tensor>)> {
        let (rows, c) = host::rows_and_width(x.shape(), self.name())?;
        let (x_host, weight_host, grad_host) = (Host::new(x), Host::new(weight), Host::new(grad));
        let (x_values, weight_values) = (
            x_host.values(self.name())?,
            weight_host.values(self.name())?,
        );
        let grad = grad_host.values(self.name())?;
        let dx = if x.track_op() {
            let mut dx = vec![0.0; rows * c];
            let row_gradient = |x: &[f32], grad: &[f32], dx: &mut [f32]| {
                let inverse = self.inverse(x);
                for ((dx, &grad), &weight) in dx.iter_mut().zip(grad).zip(weight_values.iter()) {
                    *dx = grad * (weight + self.offset);
                }
                let mean = reduce::dot(dx, x) * inverse * inverse / c as f32;
                for (dx, &x) in dx.iter_mut().zip(x) {
                    *dx = inverse * (*dx - x * mean);
                }
            };
            for_rows(c, &x_values, &grad, &mut dx, row_gradient);
            Some(host::tensor(dx, x.shape())?)
        } else {
            None
        };
        let dw = if weight.track_op() {
            let dw = reduce::sum_rows(rows, c, |row, total| {
                let x = &x_values[row * c..][..c];
                let inverse = self.inverse(x);
                for ((total, &x), &grad) in total.iter_mut().zip(x).zip(&grad[row * c..][..c]) {
                    *total += grad * x * inverse;
                }
            });
            Some(host::tensor(dw, c)?)
        } else {
            None
        };
        Ok((dx, dw))
    }
}

fn for_rows(
    c: usize,
    x: &[f32],
    grad: &[f32],
    dx: &mut [f32],
    f: impl Fn(&[f32], &[f32], &mut [f32]) + Sync,
) {
    if c > 0 {
        let min_rows = (1_usize << 14).div_ceil(c);
        dx.par_chunks_exact_mut(c)
            .zip(x.par_chunks_exact(c).zip(grad.par_chunks_exact(c)))
            .with_min_len(min_rows)
            .for_each(|(dx, (x, grad))| f(x, grad, dx));
    }
}

struct LayerNorm {
    eps: f32,
}

impl LayerNorm {
    const NAME: &'static str = "LayerNorm";

    /// Mean and 1/standard deviation of a row.
    fn statistics(&self, row: &[f32]) -> (f32, f32) {
        let mean = reduce::sum(row) / row.len() as f32;
        let mut total = 0.0;
        for chunk in row.chunks(256) {
            let mut centred = [0.0; 256];
            centred
                .iter_mut()
                .zip(chunk)
                .for_each(|(centred, &x)| *centred = x - mean);
            total += reduce::dot(&centred[..chunk.len()], &centred[..chunk.len()]);
        }
        (mean, 1.0 / (total / row.len() as f32 + self.eps).sqrt())
    }

    fn forward(
        &self,
        x: &[f32],
        shape: &Shape,
        affine: Option<(&[f32], &[f32])>,
    ) -> Result<(CpuStorage, Shape)> {
        let (rows, c) = host::rows_and_width(shape, Self::NAME)?;
        let (weight, bias) = affine.unzip();
        let out = host::output(rows * c, |out| {
            elementwise::layer_norm(rows, c, x, weight, bias, self.eps, out)
        });
        Ok((out, shape.clone()))
    }

    fn input_gradient(&self, x: &Tensor, weight: Option<&[f32]>, grad: &Tensor) -> Result<Tensor> {
        let (rows, c) = host::rows_and_width(x.shape(), Self::NAME)?;
        let (x_host, grad_host) = (Host::new(x), Host::new(grad));
        let (x_values, grad) = (x_host.values(Self::NAME)?, grad_host.values(Self::NAME)?);
        let mut dx = vec![0.0; rows * c];
        for_rows(c, &x_values, &grad, &mut dx, |x, grad, dx| {
            let (mean, inverse) = self.statistics(x);
            match weight {
                Some(weight) => dx
                    .iter_mut()
                    .zip(grad.iter().zip(weight))
                    .for_each(|(dx, (&g, &w))| *dx = g * w),
                None => dx.copy_from_slice(grad),
            }
            let gradient_mean = reduce::sum(dx) / c as f32;
            // Σ g·x̂ = (Σ g·x − mean·Σ g)/σ, without writing x̂ down.
            let projection = (reduce::dot(dx, x) / c as f32 - mean * gradient_mean) * inverse;
            for (dx, &x) in dx.iter_mut().zip(x) {
                *dx = inverse * (*dx - gradient_mean - (x - mean) * inverse * projection);
            }
        });
        host::tensor(dx, x.shape())
    }

    fn weight_gradient(&self, x: &Tensor, grad: &Tensor) -> Result<Tensor> {
        let (rows, c) = host::rows_and_width(x.shape(), Self::NAME)?;
        let (x_host, grad_host) = (Host::new(x), Host::new(grad));
        let (x_values, grad) = (x_host.values(Self::NAME)?, grad_host.values(Self::NAME)?);
        let dw = reduce::sum_rows(rows, c, |row, total| {
            let x = &x_values[row * c..][..c];
            let (mean, inverse) = self.statistics(x);
            for ((total, &x), &grad) in total.iter_mut().zip(x).zip(&grad[row * c..][..c]) {
                *total += grad * (x - mean) * inverse;
            }
        });
        host::tensor(dw, c)
    }
}

impl CustomOp1 for LayerNorm {
    fn name(&self) -> &'static str {
        Self::NAME
    }

    fn cpu_fwd(&self, storage: &CpuStorage, layout: &Layout) -> Result<(CpuStorage, Shape)> {
        self.forward(
            &host::values(storage, layout, Self::NAME)?,
            layout.shape(),
            None,
        )
    }

    fn bwd(&self, x: &Tensor, _: &Tensor, grad: &Tensor) -> Result<Option<Tensor>> {
        self.input_gradient(x, None, grad).map(Some)
    }
}

impl CustomOp3 for LayerNorm {
    fn name(&self) -> &'static str {
        Self::NAME
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
        let (_, c) = host::rows_and_width(l1.shape(), Self::NAME)?;
        check_width("weight", l2.shape(), c, Self::NAME)?;
        check_width("bias", l3.shape(), c, Self::NAME)?;
        let (weight, bias) = (
            host::values(s2, l2, Self::NAME)?,
            host::values(s3, l3, Self::NAME)?,
        );
        self.forward(
            &host::values(s1, l1, Self::NAME)?,
            l1.shape(),
            Some((&weight, &bias)),
        )
    }

    fn bwd(
        &self,
        x: &Tensor,
        weight: &Tensor,
        bias: &Tensor,
        _: &Tensor,
        grad: &Tensor,
    ) -> Result<(Option<Tensor>, Option<Tensor>, Option<Tensor>)> {
        let dx = if x.track_op() {
            let weight = Host::new(weight);
            Some(self.input_gradient(x, Some(&weight.values(Self::NAME)?), grad)?)
        } else {
            None
        };
        let dw = if weight.track_op() {
            Some(self.weight_gradient(x, grad)?)
        } else {
            None
        };
        let db = if bias.track_op() {
            Some(super::linear::column_sums(grad)?)
        } else {
            None
        };
        Ok((dx, dw, db))
    }
}
