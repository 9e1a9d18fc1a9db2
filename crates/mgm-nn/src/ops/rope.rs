//! Rotary position embedding (arXiv 2104.09864).

use std::sync::{Arc, PoisonError, RwLock};

use candle_core::{CpuStorage, CustomOp1, Layout, Result, Shape, Tensor};
use rayon::prelude::*;

use crate::host::{self, Host};

/// Which elements of a head are rotated together.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum RopeStyle {
    /// Element `i` with `i + dimensions/2` (Hugging Face layout).
    Half,
    /// Element `2i` with `2i + 1` (original paper, GGML "normal").
    Interleaved,
}

/// Cosines and sines for every position seen so far. It grows by itself and may be shared between threads.
pub struct RopeTable {
    inverse_frequencies: Vec<f32>,
    angles: RwLock<Arc<Angles>>,
}

/// `[positions, dimensions/2]` each.
struct Angles {
    positions: usize,
    cos: Vec<f32>,
    sin: Vec<f32>,
}

impl RopeTable {
    /// Frequencies `theta^(−2i/head_dim)`, computed in `f32` steps as the Hugging Face models do. `max_positions` is
    /// only the first size of the table.
    pub fn new(head_dim: usize, theta: f64, max_positions: usize) -> Self {
        let inverse_frequency = |i: usize| {
            let exponent = (2 * i) as f32 / head_dim as f32;
            1.0 / (theta.powf(f64::from(exponent)) as f32)
        };
        Self::from_inverse_frequencies(
            (0..head_dim / 2).map(inverse_frequency).collect(),
            max_positions,
        )
    }

    /// A table with frequencies of one's own (scaled variants).
    pub fn from_inverse_frequencies(inverse_frequencies: Vec<f32>, max_positions: usize) -> Self {
        let angles = RwLock::new(Arc::new(Angles::new(&inverse_frequencies, max_positions)));
        Self {
            inverse_frequencies,
            angles,
        }
    }

    /// Elements of a head that are rotated; further ones pass through.
    pub fn dimensions(&self) -> usize {
        2 * self.inverse_frequencies.len()
    }

    fn covering(&self, positions: &[usize]) -> Arc<Angles> {
        let needed = positions.iter().max().map_or(0, |&last| last + 1);
        let current = self
            .angles
            .read()
            .unwrap_or_else(PoisonError::into_inner)
            .clone();
        if needed <= current.positions {
            return current;
        }
        let mut slot = self.angles.write().unwrap_or_else(PoisonError::into_inner);
        if needed > slot.positions {
            *slot = Arc::new(Angles::new(
                &self.inverse_frequencies,
                needed.next_power_of_two(),
            ));
        }
        slot.clone()
    }
}

impl Angles {
    fn new(inverse_frequencies: &[f32], positions: usize) -> Self {
        let angle = |index: usize| {
            let (position, i) = (
                index / inverse_frequencies.len(),
                index % inverse_frequencies.len(),
            );
            f64::from(position as f32 * inverse_frequencies[i])
        };
        let count = positions * inverse_frequencies.len();
        let cos = (0..count).map(|index| angle(index).cos() as f32).collect();
        let sin = (0..count).map(|index| angle(index).sin() as f32).collect();
        Self {
            positions,
            cos,
            sin,
        }
    }
}

/// Rotates `x [rows, heads, head_dim]` row by row to `positions` (one a row). Backward rotates the gradient back.
pub fn rope(
    x: &Tensor,
    table: &RopeTable,
    positions: &[usize],
    style: RopeStyle,
) -> Result<Tensor> {
    let (rows, _, head_dim) = x.dims3()?;
    if positions.len() != rows {
        candle_core::bail!("rope: {} positions for {rows} rows", positions.len());
    }
    if table.dimensions() > head_dim {
        candle_core::bail!(
            "rope: heads of {head_dim} elements, the table rotates {}",
            table.dimensions()
        );
    }
    let angles = table.covering(positions);
    let half = table.dimensions() / 2;
    if x.device().is_cpu() {
        return x.apply_op1(Rope {
            angles,
            positions: positions.to_vec(),
            half,
            style,
        });
    }
    composed(x, &angles, positions, half, style)
}

fn composed(
    x: &Tensor,
    angles: &Angles,
    positions: &[usize],
    half: usize,
    style: RopeStyle,
) -> Result<Tensor> {
    let (rows, heads, head_dim) = x.dims3()?;
    let select = |table: &[f32]| {
        let values: Vec<f32> = positions
            .iter()
            .flat_map(|&p| table[p * half..][..half].iter().copied())
            .collect();
        Tensor::from_vec(values, (rows, 1, half), x.device())
    };
    let (cos, sin) = (select(&angles.cos)?, select(&angles.sin)?);
    let rotated = x.narrow(2, 0, 2 * half)?;
    let (first, second) = match style {
        RopeStyle::Half => (rotated.narrow(2, 0, half)?, rotated.narrow(2, half, half)?),
        RopeStyle::Interleaved => {
            let pairs = rotated.contiguous()?.reshape((rows, heads, half, 2))?;
            (
                pairs.narrow(3, 0, 1)?.squeeze(3)?,
                pairs.narrow(3, 1, 1)?.squeeze(3)?,
            )
        }
    };
    let turned_first = (first.broadcast_mul(&cos)? - second.broadcast_mul(&sin)?)?;
    let turned_second = (first.broadcast_mul(&sin)? + second.broadcast_mul(&cos)?)?;
    let turned = match style {
        RopeStyle::Half => Tensor::cat(&[turned_first, turned_second], 2)?,
        RopeStyle::Interleaved => {
            Tensor::stack(&[turned_first, turned_second], 3)?.reshape((rows, heads, 2 * half))?
        }
    };
    if 2 * half == head_dim {
        Ok(turned)
    } else {
        Tensor::cat(&[turned, x.narrow(2, 2 * half, head_dim - 2 * half)?], 2)
    }
}

struct Rope {
    angles: Arc<Angles>,
    positions: Vec<usize>,
    half: usize,
    style: RopeStyle,
}

impl Rope {
    /// `direction` 1 rotates forward, −1 back.
    fn rotate(&self, direction: f32, row_len: usize, head_dim: usize, x: &[f32], out: &mut [f32]) {
        let half = self.half;
        if row_len == 0 {
            return;
        }
        let rows = out
            .par_chunks_exact_mut(row_len)
            .zip(x.par_chunks_exact(row_len))
            .zip(&self.positions);
        rows.with_min_len((1_usize << 13).div_ceil(row_len))
            .for_each(|((out, x), &position)| {
                let cos = &self.angles.cos[position * half..][..half];
                let sin = &self.angles.sin[position * half..][..half];
                for (out, x) in out.chunks_exact_mut(head_dim).zip(x.chunks_exact(head_dim)) {
                    let (out, out_rest) = out.split_at_mut(2 * half);
                    let (x, x_rest) = x.split_at(2 * half);
                    out_rest.copy_from_slice(x_rest);
                    match self.style {
                        RopeStyle::Half => {
                            let (out_first, out_second) = out.split_at_mut(half);
                            let (first, second) = x.split_at(half);
                            for i in 0..half {
                                let sin = direction * sin[i];
                                out_first[i] = first[i] * cos[i] - second[i] * sin;
                                out_second[i] = first[i] * sin + second[i] * cos[i];
                            }
                        }
                        RopeStyle::Interleaved => {
                            for (i, (out, x)) in
                                out.chunks_exact_mut(2).zip(x.chunks_exact(2)).enumerate()
                            {
                                let sin = direction * sin[i];
                                out[0] = x[0] * cos[i] - x[1] * sin;
                                out[1] = x[0] * sin + x[1] * cos[i];
                            }
                        }
                    }
                }
            });
    }
}

impl CustomOp1 for Rope {
    fn name(&self) -> &'static str {
        "rope"
    }

    fn cpu_fwd(&self, storage: &CpuStorage, layout: &Layout) -> Result<(CpuStorage, Shape)> {
        let (rows, heads, head_dim) = layout.shape().dims3()?;
        let x = host::values(storage, layout, self.name())?;
        let out = host::output(rows * heads * head_dim, |out| {
            self.rotate(1.0, heads * head_dim, head_dim, &x, out);
        });
        Ok((out, layout.shape().clone()))
    }

    fn bwd(&self, x: &Tensor, _: &Tensor, grad: &Tensor) -> Result<Option<Tensor>> {
        let (_, heads, head_dim) = x.dims3()?;
        let grad = Host::new(grad);
        let grad = grad.values(self.name())?;
        let mut dx = vec![0.0; grad.len()];
        self.rotate(-1.0, heads * head_dim, head_dim, &grad, &mut dx);
        Ok(Some(host::tensor(dx, x.shape())?))
    }
}

#[cfg(test)]
pub(crate) fn composed_for_tests(
    x: &Tensor,
    table: &RopeTable,
    positions: &[usize],
    style: RopeStyle,
) -> Result<Tensor> {
    composed(
        x,
        &table.covering(positions),
        positions,
        table.dimensions() / 2,
        style,
    )
}
