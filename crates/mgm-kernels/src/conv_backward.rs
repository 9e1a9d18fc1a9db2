//! Gradients of a convolution, band by band of gathered patches like the forward.

use rayon::prelude::*;

use crate::buffer::with_scratch;
use crate::conv::{BAND_BYTES, Band, ConvShape, input_rows};
use crate::gemm::matmul_at;
use crate::level::{self, Level, level};

/// Gradients of `conv2d(x, W)` with `W [n, kernel · kernel · channels]`, given `grad` of the output: `dx` is overwritten, `dw` added to.
///
/// # Panics
/// When a slice has the wrong length or the kernel does not fit the padded input.
pub fn conv2d_backward(
    s: &ConvShape,
    x: &[f32],
    w: &[f32],
    grad: &[f32],
    dx: Option<&mut [f32]>,
    dw: Option<&mut [f32]>,
) {
    conv2d_backward_at(level(), s, x, w, grad, dx, dw);
}

/// [`conv2d_backward`] at a forced level.
pub fn conv2d_backward_at(
    level: Level,
    s: &ConvShape,
    x: &[f32],
    w: &[f32],
    grad: &[f32],
    mut dx: Option<&mut [f32]>,
    mut dw: Option<&mut [f32]>,
) {
    let level = level::clamp(level);
    let k = s.patch_len();
    let (out_height, out_width) = (s.out_height(), s.out_width());
    assert!(
        k > 0 && out_height > 0 && out_width > 0,
        "conv2d_backward: the kernel does not fit the padded input"
    );
    assert!(w.len().is_multiple_of(k), "conv2d_backward: weight length");
    let n = w.len() / k;
    let (picture, out_picture) = (s.height * s.width * s.channels, out_height * out_width * n);
    assert_eq!(x.len(), s.batch * picture, "conv2d_backward: x length");
    assert_eq!(
        grad.len(),
        s.batch * out_picture,
        "conv2d_backward: grad length"
    );
    if let Some(dx) = &mut dx {
        assert_eq!(dx.len(), x.len(), "conv2d_backward: dx length");
        dx.fill(0.0);
    }
    if let Some(dw) = &dw {
        assert_eq!(dw.len(), w.len(), "conv2d_backward: dw length");
    }
    if n == 0 {
        return;
    }
    let band_rows = (BAND_BYTES / (4 * k * out_width)).clamp(1, out_height);
    for index in 0..s.batch {
        let values = &x[index * picture..][..picture];
        for first in (0..out_height).step_by(band_rows) {
            let rows = band_rows.min(out_height - first);
            let positions = rows * out_width;
            let grad = &grad[index * out_picture + first * out_width * n..][..positions * n];
            let inputs = input_rows(s, first, rows);
            let row = s.width * s.channels;
            with_scratch(positions * k * 4, |scratch| {
                let patches = &mut scratch.cast_mut::<f32>()[..positions * k];
                if let Some(dw) = &mut dw {
                    let band = Band {
                        shape: s,
                        values: &values[inputs.start * row..inputs.end * row],
                        first_input: inputs.start,
                        first_output: first,
                        out_width,
                    };
                    patches
                        .par_chunks_exact_mut(k)
                        .enumerate()
                        .for_each(|(position, patch)| {
                            let segment = s.kernel * s.channels;
                            for (kernel_row, out) in patch.chunks_exact_mut(segment).enumerate() {
                                band.patch_row(position, kernel_row, out);
                            }
                        });
                    matmul_at(level, true, false, n, k, positions, grad, patches, dw, true);
                }
                if let Some(dx) = &mut dx {
                    matmul_at(
                        level, false, false, positions, k, n, grad, w, patches, false,
                    );
                    let dx = &mut dx[index * picture..][..picture];
                    let dx = &mut dx[inputs.start * row..inputs.end * row];
                    dx.par_chunks_exact_mut(row.max(1))
                        .enumerate()
                        .for_each(|(input, dx)| {
                            scatter_row(
                                s,
                                patches,
                                first,
                                rows,
                                out_width,
                                inputs.start + input,
                                dx,
                            );
                        });
                }
            });
        }
    }
}

/// Adds to one input row what the patches of the output rows `first..first + rows` took from it.
fn scatter_row(
    s: &ConvShape,
    patches: &[f32],
    first: usize,
    rows: usize,
    out_width: usize,
    input: usize,
    dx: &mut [f32],
) {
    let (c, k) = (s.channels, s.patch_len());
    let [grid_height, grid_width] = s.grid();
    for row in 0..rows {
        for kernel_row in 0..s.kernel {
            let y = ((first + row) * s.stride + kernel_row).checked_sub(s.pad_rows[0]);
            if y.filter(|&y| y < grid_height).map(|y| y / s.enlarge) != Some(input) {
                continue;
            }
            for column in 0..out_width {
                let patch = &patches[(row * out_width + column) * k + kernel_row * s.kernel * c..];
                for (kernel_column, patch) in patch.chunks_exact(c).take(s.kernel).enumerate() {
                    let x = (column * s.stride + kernel_column).checked_sub(s.pad_columns[0]);
                    if let Some(x) = x.filter(|&x| x < grid_width) {
                        let dx = &mut dx[x / s.enlarge * c..][..c];
                        dx.iter_mut().zip(patch).for_each(|(d, p)| *d += p);
                    }
                }
            }
        }
    }
}
