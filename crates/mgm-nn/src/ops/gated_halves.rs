//! The gated activation of diffusion transformers, whose two inputs are the halves of one product.

use candle_core::{CpuStorage, CustomOp1, D, Layout, Result, Shape, Tensor};
use mgm_kernels::gemm::Activation;
use rayon::prelude::*;

use super::activation::{activation, apply_in_place};
use crate::host;

/// `x[..n] · gelu_erf(x[n..])` over the last axis of `x [.., 2n]` → `[.., n]` (GEGLU, arXiv 2002.05202).
pub fn geglu(x: &Tensor) -> Result<Tensor> {
    let width = x.dims().last().copied().unwrap_or(0);
    if width == 0 || !width.is_multiple_of(2) {
        candle_core::bail!("GEGLU: the last axis of {:?} has no two halves", x.dims());
    }
    if x.device().is_cpu() && !x.track_op() {
        return x.apply_op1(Geglu);
    }
    let half = |index| x.narrow(D::Minus1, index * width / 2, width / 2);
    half(0)? * activation(&half(1)?.contiguous()?, Activation::GeluErf)?
}

struct Geglu;

impl CustomOp1 for Geglu {
    fn name(&self) -> &'static str {
        "GEGLU"
    }

    fn cpu_fwd(&self, storage: &CpuStorage, layout: &Layout) -> Result<(CpuStorage, Shape)> {
        let (rows, width) = host::rows_and_width(layout.shape(), self.name())?;
        let x = host::values(storage, layout, self.name())?;
        let half = width / 2;
        let out = host::output(rows * half, |out| {
            out.par_chunks_mut(half.max(1))
                .zip(x.par_chunks(width.max(1)))
                .for_each(|(out, x)| {
                    let (value, gate) = x.split_at(half);
                    out.copy_from_slice(gate);
                    apply_in_place(Activation::GeluErf, out);
                    out.iter_mut().zip(value).for_each(|(o, &v)| *o *= v);
                });
        });
        let mut dims = layout.dims().to_vec();
        if let Some(last) = dims.last_mut() {
            *last = half;
        }
        Ok((out, Shape::from_dims(&dims)))
    }
}
