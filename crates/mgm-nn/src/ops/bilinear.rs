//! Bilinear resize with torch's `align_corners=False` convention and no antialiasing.

use candle_core::{CpuStorage, CustomOp1, Layout, Result, Shape, Tensor};
use rayon::prelude::*;

use crate::host::{self, Host};

/// The two source indices of one output index and the weight of the second.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(crate) struct Tap {
    pub(crate) first: usize,
    pub(crate) second: usize,
    pub(crate) weight: f32,
}

/// For each of `output` positions: `source = max(0, (o + 0.5)·input/output − 0.5)`, its floor, the next index (clamped),
/// and the fraction.
pub(crate) fn taps(input: usize, output: usize) -> Vec<Tap> {
    let ratio = input as f32 / output as f32;
    (0..output)
        .map(|o| {
            let source = ((o as f32 + 0.5) * ratio - 0.5).max(0.0);
            let first = (source as usize).min(input - 1);
            Tap {
                first,
                second: (first + 1).min(input - 1),
                weight: source - first as f32,
            }
        })
        .collect()
}

/// Resizes `x [batch, channels, height, width]` to `[batch, channels, out_height, out_width]`, with a gradient.
pub fn bilinear(x: &Tensor, out_height: usize, out_width: usize) -> Result<Tensor> {
    let (_, _, height, width) = x.dims4()?;
    if [height, width, out_height, out_width].contains(&0) {
        candle_core::bail!("bilinear: cannot resize {height}x{width} to {out_height}x{out_width}");
    }
    if (height, width) == (out_height, out_width) {
        return Ok(x.clone());
    }
    if x.device().is_cpu() {
        x.apply_op1(Bilinear {
            out_height,
            out_width,
        })
    } else {
        composed(x, out_height, out_width)
    }
}

pub(crate) fn composed(x: &Tensor, out_height: usize, out_width: usize) -> Result<Tensor> {
    let (batch, channels, height, width) = x.dims4()?;
    let matrix = |input: usize, output: usize| {
        let mut values = vec![0f32; output * input];
        for (o, tap) in taps(input, output).into_iter().enumerate() {
            values[o * input + tap.first] += 1.0 - tap.weight;
            values[o * input + tap.second] += tap.weight;
        }
        Tensor::from_vec(values, (output, input), x.device())
    };
    let wide = x
        .contiguous()?
        .reshape((batch * channels * height, width))?
        .matmul(&matrix(width, out_width)?.t()?)?;
    let columns = wide.reshape((batch * channels, height, out_width))?;
    let rows = matrix(height, out_height)?
        .broadcast_as((batch * channels, out_height, height))?
        .contiguous()?;
    rows.matmul(&columns)?
        .reshape((batch, channels, out_height, out_width))
}

struct Bilinear {
    out_height: usize,
    out_width: usize,
}

impl CustomOp1 for Bilinear {
    fn name(&self) -> &'static str {
        "bilinear"
    }

    fn cpu_fwd(&self, storage: &CpuStorage, layout: &Layout) -> Result<(CpuStorage, Shape)> {
        let (batch, channels, height, width) = layout.shape().dims4()?;
        let x = host::values(storage, layout, self.name())?;
        let (rows, columns) = (taps(height, self.out_height), taps(width, self.out_width));
        let plane = self.out_height * self.out_width;
        let out = host::output(batch * channels * plane, |out| {
            out.par_chunks_exact_mut(plane)
                .zip(x.par_chunks_exact(height * width))
                .for_each(|(out, x)| {
                    let mut blended = vec![0.0; width];
                    for (out, row) in out.chunks_exact_mut(self.out_width).zip(&rows) {
                        let (upper, lower) = (
                            &x[row.first * width..][..width],
                            &x[row.second * width..][..width],
                        );
                        for ((blended, &upper), &lower) in blended.iter_mut().zip(upper).zip(lower)
                        {
                            *blended = (1.0 - row.weight) * upper + row.weight * lower;
                        }
                        for (out, column) in out.iter_mut().zip(&columns) {
                            *out = (1.0 - column.weight) * blended[column.first]
                                + column.weight * blended[column.second];
                        }
                    }
                });
        });
        Ok((
            out,
            Shape::from((batch, channels, self.out_height, self.out_width)),
        ))
    }

    fn bwd(&self, x: &Tensor, _: &Tensor, grad: &Tensor) -> Result<Option<Tensor>> {
        let (_, _, height, width) = x.dims4()?;
        let grad = Host::new(grad);
        let grad = grad.values(self.name())?;
        let (rows, columns) = (taps(height, self.out_height), taps(width, self.out_width));
        let mut dx = vec![0.0; x.elem_count()];
        dx.par_chunks_exact_mut(height * width)
            .zip(grad.par_chunks_exact(self.out_height * self.out_width))
            .for_each(|(dx, grad)| {
                let mut gathered = vec![0.0; width];
                for (grad, row) in grad.chunks_exact(self.out_width).zip(&rows) {
                    gathered.fill(0.0);
                    for (&grad, column) in grad.iter().zip(&columns) {
                        gathered[column.first] += (1.0 - column.weight) * grad;
                        gathered[column.second] += column.weight * grad;
                    }
                    crate::reduce::add_scaled(
                        &mut dx[row.first * width..][..width],
                        1.0 - row.weight,
                        &gathered,
                    );
                    crate::reduce::add_scaled(
                        &mut dx[row.second * width..][..width],
                        row.weight,
                        &gathered,
                    );
                }
            });
        Ok(Some(host::tensor(dx, x.shape())?))
    }
}
