//! Seven by seven taps with AVX-512: a row of input pixels stays in registers while the taps slide over it.

use std::arch::x86_64::*;

use super::{DepthwiseShape, LANES};

/// Side of the kernel.
pub(super) const KERNEL: usize = 7;
/// Output pixels that are made at a time.
pub(super) const PIXELS: usize = 8;
/// Input pixels that they see in a row.
const SEEN: usize = PIXELS + KERNEL - 1;

/// Output pixels `ox..ox + 8` of row `oy` in the channels before `whole`, a multiple of sixteen; stride 1, and all taps of a row fall on the
/// input. Sums in the order of [`super::block`].
///
/// # Panics
/// When a slice is too short.
#[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512dq,avx2,fma")]
pub(super) fn pixels(
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
    if whole == 0 || ky0 >= ky1 {
        return;
    }
    let start = |ky: usize| ((oy + ky - s.pad_top) * s.width + ox - s.pad_left) * c;
    let image = &image[start(ky0)..][..(ky1 - 1 - ky0) * s.width * c + SEEN * c];
    let weight = &weight[ky0 * KERNEL * c..ky1 * KERNEL * c];
    let out = &mut out[ox * c..(ox + PIXELS) * c];
    assert!(whole <= c && bias.is_none_or(|bias| bias.len() >= whole));
    for first in (0..whole).step_by(LANES) {
        // SAFETY: the slices hold all rows that are seen, all their taps, and the output pixels; sixteen channels from `first` on are below
        // `whole <= c`.
        unsafe {
            let start = match bias {
                Some(bias) => _mm512_loadu_ps(bias.as_ptr().add(first)),
                None => _mm512_setzero_ps(),
            };
            let mut sums = [start; PIXELS];
            let mut x = image.as_ptr().add(first);
            let mut w = weight.as_ptr().add(first);
            for _ in ky0..ky1 {
                let seen: [__m512; SEEN] = std::array::from_fn(|i| _mm512_loadu_ps(x.add(i * c)));
                for kx in 0..KERNEL {
                    let tap = _mm512_loadu_ps(w.add(kx * c));
                    for (pixel, sum) in sums.iter_mut().enumerate() {
                        *sum = _mm512_fmadd_ps(seen[pixel + kx], tap, *sum);
                    }
                }
                x = x.wrapping_add(s.width * c);
                w = w.wrapping_add(KERNEL * c);
            }
            for (pixel, sum) in sums.into_iter().enumerate() {
                _mm512_storeu_ps(out.as_mut_ptr().add(pixel * c + first), sum);
            }
        }
    }
}
