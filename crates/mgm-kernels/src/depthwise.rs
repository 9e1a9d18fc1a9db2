//! Depthwise 2-D convolution, channels last, forward and backward.

#[cfg(target_arch = "x86_64")]
mod avx512;

use std::ops::Range;

use rayon::prelude::*;

use crate::level::{self, Level, level};
use crate::math::multiversion;

/// Shape of a depthwise convolution: input `[batch, height, width, channels]`, weight `[kernel·kernel, channels]`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct DepthwiseShape {
    /// Number of images.
    pub batch: usize,
    /// Input rows.
    pub height: usize,
    /// Input columns.
    pub width: usize,
    /// Channels of input and output.
    pub channels: usize,
    /// Side of the square kernel.
    pub kernel: usize,
    /// Step in both directions.
    pub stride: usize,
    /// Zero rows above.
    pub pad_top: usize,
    /// Zero columns left.
    pub pad_left: usize,
    /// Zero rows below.
    pub pad_bottom: usize,
    /// Zero columns right.
    pub pad_right: usize,
}

impl DepthwiseShape {
    /// Output rows; 0 when the kernel is larger than the padded input.
    pub fn out_height(&self) -> usize {
        out_size(
            self.height + self.pad_top + self.pad_bottom,
            self.kernel,
            self.stride,
        )
    }

    /// Output columns; 0 when the kernel is larger than the padded input.
    pub fn out_width(&self) -> usize {
        out_size(
            self.width + self.pad_left + self.pad_right,
            self.kernel,
            self.stride,
        )
    }

    fn input_len(&self) -> usize {
        self.batch * self.height * self.width * self.channels
    }

    fn output_len(&self) -> usize {
        self.batch * self.out_height() * self.out_width() * self.channels
    }

    /// The convolution that takes output gradients to input gradients, for stride 1 and padding below the kernel size.
    fn mirrored(&self) -> Option<Self> {
        let reach = self.kernel.checked_sub(1)?;
        let exact = self.stride == 1 && self.out_height() > 0 && self.out_width() > 0;
        let mirrored = Self {
            height: self.out_height(),
            width: self.out_width(),
            pad_top: reach.checked_sub(self.pad_top)?,
            pad_left: reach.checked_sub(self.pad_left)?,
            pad_bottom: reach.checked_sub(self.pad_bottom)?,
            pad_right: reach.checked_sub(self.pad_right)?,
            ..*self
        };
        exact.then_some(mirrored)
    }

    /// Kernel taps `t0..t1` along one axis that fall on the input when the output index is `out`.
    fn taps(&self, out: usize, pad: usize, size: usize) -> (usize, usize) {
        let origin = out * self.stride;
        let first = pad.saturating_sub(origin).min(self.kernel);
        let last = (size + pad).saturating_sub(origin).min(self.kernel);
        (first, last.max(first))
    }
}

fn out_size(padded: usize, kernel: usize, stride: usize) -> usize {
    if kernel == 0 || stride == 0 || padded < kernel {
        0
    } else {
        (padded - kernel) / stride + 1
    }
}

fn check(s: &DepthwiseShape, x: &[f32], weight: &[f32], out: &[f32]) {
    assert_eq!(x.len(), s.input_len(), "depthwise: input length");
    assert_eq!(
        weight.len(),
        s.kernel * s.kernel * s.channels,
        "depthwise: weight length"
    );
    assert_eq!(out.len(), s.output_len(), "depthwise: output length");
}

/// Channels of one register block.
const LANES: usize = 16;
/// Output pixels of one register block.
const PIXELS: usize = 4;

/// Sums of `P` neighbouring output pixels for the channels `first..first + LANES`, over the given taps.
#[inline(always)]
fn block<const FMA: bool, const P: usize>(
    s: &DepthwiseShape,
    image: &[f32],
    weight: &[f32],
    bias: Option<&[f32]>,
    (oy, ky0, ky1): (usize, usize, usize),
    (ox, kx0, kx1): (usize, usize, usize),
    first: usize,
) -> [[f32; LANES]; P] {
    let c = s.channels;
    let mut sums = [[0.0f32; LANES]; P];
    if let Some(bias) = bias {
        for sums in &mut sums {
            sums.copy_from_slice(&bias[first..][..LANES]);
        }
    }
    for ky in ky0..ky1 {
        let row = (oy * s.stride + ky - s.pad_top) * s.width;
        for kx in kx0..kx1 {
            let at = (row + ox * s.stride + kx - s.pad_left) * c + first;
            let w = &weight[(ky * s.kernel + kx) * c + first..][..LANES];
            for (pixel, sums) in sums.iter_mut().enumerate() {
                let x = &image[at + pixel * s.stride * c..][..LANES];
                for lane in 0..LANES {
                    sums[lane] = crate::math::multiply_add::<FMA>(x[lane], w[lane], sums[lane]);
                }
            }
        }
    }
    sums
}

/// Some pixels of one output row of one image.
#[inline(always)]
fn forward_columns<const FMA: bool>(
    s: &DepthwiseShape,
    image: &[f32],
    weight: &[f32],
    bias: Option<&[f32]>,
    oy: usize,
    columns: Range<usize>,
    out: &mut [f32],
) {
    let c = s.channels;
    let (ky0, ky1) = s.taps(oy, s.pad_top, s.height);
    let whole = c / LANES * LANES;
    let inside = |ox: usize| s.taps(ox, s.pad_left, s.width) == (0, s.kernel);
    let mut ox = columns.start;
    while ox < columns.end {
        // Pixels that all see every tap share the loads of the weights.
        if ox + PIXELS <= columns.end && inside(ox) && inside(ox + PIXELS - 1) {
            for first in (0..whole).step_by(LANES) {
                let sums = block::<FMA, PIXELS>(
                    s,
                    image,
                    weight,
                    bias,
                    (oy, ky0, ky1),
                    (ox, 0, s.kernel),
                    first,
                );
                for (pixel, sums) in sums.iter().enumerate() {
                    out[(ox + pixel) * c + first..][..LANES].copy_from_slice(sums);
                }
            }
            for pixel in ox..ox + PIXELS {
                forward_tail(s, image, weight, bias, (oy, ky0, ky1), pixel, whole, out);
            }
            ox += PIXELS;
        } else {
            let (kx0, kx1) = s.taps(ox, s.pad_left, s.width);
            for first in (0..whole).step_by(LANES) {
                let [sums] = block::<FMA, 1>(
                    s,
                    image,
                    weight,
                    bias,
                    (oy, ky0, ky1),
                    (ox, kx0, kx1),
                    first,
                );
                out[ox * c + first..][..LANES].copy_from_slice(&sums);
            }
            forward_tail(s, image, weight, bias, (oy, ky0, ky1), ox, whole, out);
            ox += 1;
        }
    }
}

/// The channels after the last whole block, for one pixel.
#[inline(always)]
fn forward_tail(
    s: &DepthwiseShape,
    image: &[f32],
    weight: &[f32],
    bias: Option<&[f32]>,
    (oy, ky0, ky1): (usize, usize, usize),
    ox: usize,
    whole: usize,
    out: &mut [f32],
) {
    let c = s.channels;
    let (kx0, kx1) = s.taps(ox, s.pad_left, s.width);
    for channel in whole..c {
        let mut sum = bias.map_or(0.0, |bias| bias[channel]);
        for ky in ky0..ky1 {
            let row = (oy * s.stride + ky - s.pad_top) * s.width;
            for kx in kx0..kx1 {
                let at = row + ox * s.stride + kx - s.pad_left;
                sum += image[at * c + channel] * weight[(ky * s.kernel + kx) * c + channel];
            }
        }
        out[ox * c + channel] = sum;
    }
}

/// One output row of one image, with the seven-tap kernel where that applies.
fn forward_row_at(
    level: Level,
    s: &DepthwiseShape,
    image: &[f32],
    weight: &[f32],
    bias: Option<&[f32]>,
    oy: usize,
    out: &mut [f32],
) {
    let columns = 0..s.out_width();
    #[cfg(target_arch = "x86_64")]
    if s.kernel == avx512::KERNEL && s.stride == 1 && level::clamp(level) >= Level::Avx512 {
        let (ky0, ky1) = s.taps(oy, s.pad_top, s.height);
        let whole = s.channels / LANES * LANES;
        // The pixels that see all taps of a row.
        let first = s.pad_left.min(columns.end);
        let end = (s.width + s.pad_left + 1).saturating_sub(s.kernel);
        let groups = end.min(columns.end).saturating_sub(first) / avx512::PIXELS;
        let last = first + groups * avx512::PIXELS;
        for ox in (first..last).step_by(avx512::PIXELS) {
            // SAFETY: the machine has this level.
            unsafe { avx512::pixels(s, image, weight, bias, (oy, ky0, ky1), ox, whole, out) };
            for pixel in ox..ox + avx512::PIXELS {
                forward_tail(s, image, weight, bias, (oy, ky0, ky1), pixel, whole, out);
            }
        }
        if ky0 < ky1 {
            forward_columns_at(level, s, image, weight, bias, oy, 0..first, out);
            forward_columns_at(level, s, image, weight, bias, oy, last..columns.end, out);
            return;
        }
    }
    forward_columns_at(level, s, image, weight, bias, oy, columns, out);
}

multiversion!(fn forward_columns_at(s: &DepthwiseShape, image: &[f32], weight: &[f32], bias: Option<&[f32]>, oy: usize, columns: Range<usize>, out: &mut [f32]) = forward_columns);

/// Depthwise convolution (cross-correlation, as in PyTorch), NHWC, weight `[kernel·kernel, channels]`.
pub fn depthwise(
    s: &DepthwiseShape,
    x: &[f32],
    weight: &[f32],
    bias: Option<&[f32]>,
    out: &mut [f32],
) {
    depthwise_at(level(), s, x, weight, bias, out);
}

/// [`depthwise`] at a forced level.
pub fn depthwise_at(
    level: Level,
    s: &DepthwiseShape,
    x: &[f32],
    weight: &[f32],
    bias: Option<&[f32]>,
    out: &mut [f32],
) {
    check(s, x, weight, out);
    assert!(
        bias.is_none_or(|b| b.len() == s.channels),
        "depthwise: bias length"
    );
    let row_len = s.out_width() * s.channels;
    if row_len == 0 || s.out_height() == 0 {
        return;
    }
    let image_len = s.height * s.width * s.channels;
    out.par_chunks_exact_mut(row_len)
        .enumerate()
        .for_each(|(row, out)| {
            let (image, oy) = (row / s.out_height(), row % s.out_height());
            forward_row_at(
                level,
                s,
                &x[image * image_len..][..image_len],
                weight,
                bias,
                oy,
                out,
            );
        });
}

/// Gradient of one input row: gathers, so that rows are independent.
#[inline(always)]
fn input_gradient_row<const FMA: bool>(
    s: &DepthwiseShape,
    grad_image: &[f32],
    weight: &[f32],
    iy: usize,
    dx: &mut [f32],
) {
    let c = s.channels;
    let (oh, ow) = (s.out_height(), s.out_width());
    for (ix, pixel) in dx.chunks_exact_mut(c).enumerate() {
        pixel.fill(0.0);
        for ky in 0..s.kernel {
            let y = iy + s.pad_top;
            if y < ky || !(y - ky).is_multiple_of(s.stride) || (y - ky) / s.stride >= oh {
                continue;
            }
            let oy = (y - ky) / s.stride;
            for kx in 0..s.kernel {
                let x = ix + s.pad_left;
                if x < kx || !(x - kx).is_multiple_of(s.stride) || (x - kx) / s.stride >= ow {
                    continue;
                }
                let g = &grad_image[(oy * ow + (x - kx) / s.stride) * c..][..c];
                let w = &weight[(ky * s.kernel + kx) * c..][..c];
                for ((d, &g), &w) in pixel.iter_mut().zip(g).zip(w) {
                    *d = crate::math::multiply_add::<FMA>(g, w, *d);
                }
            }
        }
    }
}

multiversion!(fn input_gradient_row_at(s: &DepthwiseShape, grad_image: &[f32], weight: &[f32], iy: usize, dx: &mut [f32]) = input_gradient_row);

/// Adds the weight gradient of kernel row `ky` to `dweight` (`[kernel, channels]`).
#[inline(always)]
fn weight_gradient_row<const FMA: bool>(
    s: &DepthwiseShape,
    x: &[f32],
    grad_out: &[f32],
    ky: usize,
    dweight: &mut [f32],
) {
    let c = s.channels;
    let (oh, ow) = (s.out_height(), s.out_width());
    for image in 0..s.batch {
        for oy in 0..oh {
            let y = oy * s.stride + ky;
            if y < s.pad_top || y - s.pad_top >= s.height {
                continue;
            }
            let iy = y - s.pad_top;
            for ox in 0..ow {
                let (kx0, kx1) = s.taps(ox, s.pad_left, s.width);
                let g = &grad_out[((image * oh + oy) * ow + ox) * c..][..c];
                for kx in kx0..kx1 {
                    let ix = ox * s.stride + kx - s.pad_left;
                    let x = &x[((image * s.height + iy) * s.width + ix) * c..][..c];
                    let d = &mut dweight[kx * c..][..c];
                    for ((d, &g), &x) in d.iter_mut().zip(g).zip(x) {
                        *d = crate::math::multiply_add::<FMA>(g, x, *d);
                    }
                }
            }
        }
    }
}

multiversion!(fn weight_gradient_row_at(s: &DepthwiseShape, x: &[f32], grad_out: &[f32], ky: usize, dweight: &mut [f32]) = weight_gradient_row);

/// Gradients of [`depthwise`]. `dx` has the input's length, `dweight` the weight's, `dbias` has `channels` elements; all
/// three are overwritten.
pub fn depthwise_backward(
    s: &DepthwiseShape,
    x: &[f32],
    weight: &[f32],
    grad_out: &[f32],
    dx: &mut [f32],
    dweight: &mut [f32],
    dbias: &mut [f32],
) {
    depthwise_backward_at(level(), s, x, weight, grad_out, dx, dweight, dbias);
}

/// [`depthwise_backward`] at a forced level.
pub fn depthwise_backward_at(
    level: Level,
    s: &DepthwiseShape,
    x: &[f32],
    weight: &[f32],
    grad_out: &[f32],
    dx: &mut [f32],
    dweight: &mut [f32],
    dbias: &mut [f32],
) {
    check(s, x, weight, grad_out);
    assert_eq!(dx.len(), x.len(), "depthwise_backward: dx length");
    assert_eq!(
        dweight.len(),
        weight.len(),
        "depthwise_backward: dweight length"
    );
    assert_eq!(dbias.len(), s.channels, "depthwise_backward: dbias length");
    let c = s.channels;
    dbias.fill(0.0);
    dweight.fill(0.0);
    if c == 0 {
        return;
    }
    for pixel in grad_out.chunks_exact(c) {
        for (d, &g) in dbias.iter_mut().zip(pixel) {
            *d += g;
        }
    }
    let grad_len = s.out_height() * s.out_width() * c;
    if let Some(mirrored) = s.mirrored() {
        // With stride 1 the input gradient is the convolution of `grad_out` with the kernel turned by 180 degrees.
        let turned: Vec<f32> = weight.chunks_exact(c).rev().flatten().copied().collect();
        depthwise_at(level, &mirrored, grad_out, &turned, None, dx);
    } else if s.width > 0 && s.height > 0 {
        dx.par_chunks_exact_mut(s.width * c)
            .enumerate()
            .for_each(|(row, dx)| {
                let (image, iy) = (row / s.height, row % s.height);
                input_gradient_row_at(
                    level,
                    s,
                    &grad_out[image * grad_len..][..grad_len],
                    weight,
                    iy,
                    dx,
                );
            });
    }
    if s.kernel > 0 {
        dweight
            .par_chunks_exact_mut(s.kernel * c)
            .enumerate()
            .for_each(|(ky, dweight)| weight_gradient_row_at(level, s, x, grad_out, ky, dweight));
    }
}
