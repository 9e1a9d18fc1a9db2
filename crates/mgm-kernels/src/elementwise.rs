//! Normalisation, softmax, activations and dtype conversion over rows and slices.

use half::{bf16, f16};

use crate::level::{Level, level};
use crate::math::{self, multiversion, narrow_half, widen_half};

/// Sum with 16 partial sums, which vectorises and keeps the rounding error of a long row small.
#[inline(always)]
fn lane_sum(row: &[f32], f: impl Fn(f32) -> f32) -> f32 {
    let mut lanes = [0.0f32; 16];
    let (chunks, tail) = row.as_chunks::<16>();
    for chunk in chunks {
        for (lane, &value) in lanes.iter_mut().zip(chunk) {
            *lane += f(value);
        }
    }
    for (lane, &value) in lanes.iter_mut().zip(tail) {
        *lane += f(value);
    }
    let mut width = 8;
    while width > 0 {
        for i in 0..width {
            lanes[i] += lanes[i + width];
        }
        width /= 2;
    }
    lanes[0]
}

#[inline(always)]
fn layer_norm_row<const FMA: bool>(
    x: &[f32],
    gamma: Option<&[f32]>,
    beta: Option<&[f32]>,
    eps: f32,
    out: &mut [f32],
) {
    let c = x.len() as f32;
    let mean = lane_sum(x, |v| v) / c;
    let variance = lane_sum(x, |v| (v - mean) * (v - mean)) / c;
    let inverse = 1.0 / (variance + eps).sqrt();
    match (gamma, beta) {
        (None, None) => {
            for (o, &v) in out.iter_mut().zip(x) {
                *o = (v - mean) * inverse;
            }
        }
        (Some(g), None) => {
            for ((o, &v), &g) in out.iter_mut().zip(x).zip(g) {
                *o = (v - mean) * inverse * g;
            }
        }
        (None, Some(b)) => {
            for ((o, &v), &b) in out.iter_mut().zip(x).zip(b) {
                *o = (v - mean) * inverse + b;
            }
        }
        (Some(g), Some(b)) => {
            for (((o, &v), &g), &b) in out.iter_mut().zip(x).zip(g).zip(b) {
                *o = (v - mean) * inverse * g + b;
            }
        }
    }
}

multiversion!(pub(crate) fn layer_norm_at(x: &[f32], gamma: Option<&[f32]>, beta: Option<&[f32]>, eps: f32, out: &mut [f32]) = layer_norm_row);

/// LayerNorm of `rows` rows of `c` channels: `(x - mean) / sqrt(var + eps) · gamma + beta`, population variance.
pub fn layer_norm(
    rows: usize,
    c: usize,
    x: &[f32],
    gamma: Option<&[f32]>,
    beta: Option<&[f32]>,
    eps: f32,
    out: &mut [f32],
) {
    check_rows("layer_norm", rows, c, x, out);
    assert!(
        gamma.is_none_or(|g| g.len() == c),
        "layer_norm: gamma must have {c} elements"
    );
    assert!(
        beta.is_none_or(|b| b.len() == c),
        "layer_norm: beta must have {c} elements"
    );
    for_rows(rows, c, x, out, |x, out| {
        layer_norm_at(level(), x, gamma, beta, eps, out)
    });
}

#[inline(always)]
fn rms_norm_row<const FMA: bool>(
    x: &[f32],
    w: &[f32],
    eps: f32,
    weight_offset: f32,
    out: &mut [f32],
) {
    let inverse = 1.0 / (lane_sum(x, |v| v * v) / x.len() as f32 + eps).sqrt();
    for ((o, &v), &w) in out.iter_mut().zip(x).zip(w) {
        *o = v * inverse * (w + weight_offset);
    }
}

multiversion!(fn rms_norm_at(x: &[f32], w: &[f32], eps: f32, weight_offset: f32, out: &mut [f32]) = rms_norm_row);

/// RMSNorm of `rows` rows of `c` channels: `x / sqrt(mean(x²) + eps) · (w + weight_offset)` (Gemma's offset is 1).
pub fn rms_norm(
    rows: usize,
    c: usize,
    x: &[f32],
    w: &[f32],
    eps: f32,
    weight_offset: f32,
    out: &mut [f32],
) {
    check_rows("rms_norm", rows, c, x, out);
    assert_eq!(w.len(), c, "rms_norm: weight length");
    for_rows(rows, c, x, out, |x, out| {
        rms_norm_at(level(), x, w, eps, weight_offset, out)
    });
}

#[inline(always)]
fn softmax_row<const FMA: bool>(row: &mut [f32]) {
    let mut lanes = [f32::NEG_INFINITY; 16];
    let (chunks, tail) = row.as_chunks::<16>();
    for chunk in chunks {
        for (lane, &v) in lanes.iter_mut().zip(chunk) {
            *lane = if v > *lane { v } else { *lane };
        }
    }
    for (lane, &v) in lanes.iter_mut().zip(tail) {
        *lane = if v > *lane { v } else { *lane };
    }
    let maximum = lanes.iter().copied().fold(f32::NEG_INFINITY, f32::max);
    // A row without a finite score has no distribution; zeros keep it out of a later sum.
    if maximum == f32::NEG_INFINITY {
        row.fill(0.0);
        return;
    }
    for v in row.iter_mut() {
        *v = math::exp::<FMA>(*v - maximum);
    }
    let scale = 1.0 / lane_sum(row, |v| v);
    for v in row.iter_mut() {
        *v *= scale;
    }
}

multiversion!(pub(crate) fn softmax_row_at(row: &mut [f32]) = softmax_row);

/// Softmax over each of `rows` rows of `c` elements, in place. A row of only negative infinities becomes zeros.
pub fn softmax_rows(rows: usize, c: usize, x: &mut [f32]) {
    use rayon::prelude::*;
    assert_eq!(x.len(), rows * c, "softmax_rows: slice length");
    if c == 0 {
        return;
    }
    if x.len() < PARALLEL_ELEMENTS {
        x.chunks_exact_mut(c)
            .for_each(|row| softmax_row_at(level(), row));
    } else {
        x.par_chunks_exact_mut(c)
            .for_each(|row| softmax_row_at(level(), row));
    }
}

/// Below this many elements a parallel loop costs more than it saves.
const PARALLEL_ELEMENTS: usize = 1 << 15;

fn check_rows(name: &str, rows: usize, c: usize, x: &[f32], out: &[f32]) {
    assert_eq!(x.len(), rows * c, "{name}: input length");
    assert_eq!(out.len(), rows * c, "{name}: output length");
}

fn for_rows(
    rows: usize,
    c: usize,
    x: &[f32],
    out: &mut [f32],
    f: impl Fn(&[f32], &mut [f32]) + Sync,
) {
    use rayon::prelude::*;
    if rows == 0 || c == 0 {
        return;
    }
    if x.len() < PARALLEL_ELEMENTS {
        x.chunks_exact(c)
            .zip(out.chunks_exact_mut(c))
            .for_each(|(x, out)| f(x, out));
    } else {
        x.par_chunks_exact(c)
            .zip(out.par_chunks_exact_mut(c))
            .for_each(|(x, out)| f(x, out));
    }
}

#[inline(always)]
pub(crate) fn gelu_erf_value<const FMA: bool>(x: f32) -> f32 {
    let value = x * math::normal_cdf::<FMA>(x);
    // -inf · 0 would be NaN; the limit is 0.
    if x < -14.0 { 0.0 } else { value }
}

#[inline(always)]
pub(crate) fn gelu_tanh_value<const FMA: bool>(x: f32) -> f32 {
    // 0.5·(1 + tanh u) = sigmoid(2u), which has no cancellation on the left. 2u in two roundings: the exponential
    // multiplies its relative error by |2u|.
    let twice_u = x * math::multiply_add::<FMA>(0.071_354_814, x * x, 1.595_769);
    let value = x * math::sigmoid::<FMA>(twice_u);
    if x < -12.0 { 0.0 } else { value }
}

#[inline(always)]
pub(crate) fn quick_gelu_value<const FMA: bool>(x: f32) -> f32 {
    let value = x * math::sigmoid::<FMA>(1.702 * x);
    if x < -60.0 { 0.0 } else { value }
}

#[inline(always)]
pub(crate) fn silu_value<const FMA: bool>(x: f32) -> f32 {
    let value = x * math::sigmoid::<FMA>(x);
    if x < -100.0 { 0.0 } else { value }
}

macro_rules! activation {
    ($(#[$doc:meta])* $name:ident, $at:ident, $slice:ident, $value:path) => {
        #[inline(always)]
        fn $slice<const FMA: bool>(x: &mut [f32]) {
            for v in x {
                *v = $value(*v);
            }
        }
        multiversion!(pub(crate) fn $at(x: &mut [f32]) = $slice);
        $(#[$doc])*
        pub fn $name(x: &mut [f32]) {
            in_parallel(x, $at);
        }
    };
}

fn in_parallel(x: &mut [f32], f: fn(Level, &mut [f32])) {
    use rayon::prelude::*;
    if x.len() < PARALLEL_ELEMENTS {
        f(level(), x);
    } else {
        x.par_chunks_mut(PARALLEL_ELEMENTS / 4)
            .for_each(|chunk| f(level(), chunk));
    }
}

activation!(
    /// GELU with the error function, `x·Φ(x)`, in place.
    gelu_erf, gelu_erf_at, gelu_erf_slice, gelu_erf_value::<FMA>
);
activation!(
    /// GELU's tanh approximation, `0.5·x·(1 + tanh(√(2/π)·(x + 0.044715·x³)))`, in place.
    gelu_tanh, gelu_tanh_at, gelu_tanh_slice, gelu_tanh_value::<FMA>
);
activation!(
    /// OpenAI CLIP's quick GELU, `x·sigmoid(1.702·x)`, in place.
    quick_gelu, quick_gelu_at, quick_gelu_slice, quick_gelu_value::<FMA>
);
activation!(
    /// SiLU, `x·sigmoid(x)`, in place.
    silu, silu_at, silu_slice, silu_value::<FMA>
);
activation!(
    /// `eˣ` in place; 0 on underflow, infinity on overflow.
    exp, exp_at, exp_slice, math::exp::<FMA>
);
activation!(
    /// `tanh x` in place.
    tanh, tanh_at, tanh_slice, math::tanh::<FMA>
);
activation!(
    /// Error function in place.
    erf, erf_at, erf_slice, math::erf::<FMA>
);
activation!(
    /// `min(max(x, 0), 6)` in place.
    relu6, relu6_at, relu6_slice, relu6_value
);

#[inline(always)]
fn relu6_value(x: f32) -> f32 {
    x.clamp(0.0, 6.0)
}

/// `bf16` bits of `value`, rounded to nearest even; a NaN stays a NaN.
#[inline(always)]
pub(crate) fn bf16_bits(value: f32) -> u16 {
    let bits = value.to_bits();
    let rounded = (bits.wrapping_add(0x7fff + ((bits >> 16) & 1)) >> 16) as u16;
    if value.is_nan() {
        (bits >> 16) as u16 | 0x40
    } else {
        rounded
    }
}

#[inline(always)]
fn to_bf16_slice<const FMA: bool>(x: &[f32], out: &mut [bf16]) {
    for (o, &v) in out.iter_mut().zip(x) {
        *o = bf16::from_bits(bf16_bits(v));
    }
}

multiversion!(pub(crate) fn to_bf16_at(x: &[f32], out: &mut [bf16]) = to_bf16_slice);

#[inline(always)]
fn from_bf16_slice<const FMA: bool>(x: &[bf16], out: &mut [f32]) {
    for (o, &v) in out.iter_mut().zip(x) {
        *o = f32::from_bits(u32::from(v.to_bits()) << 16);
    }
}

multiversion!(fn from_bf16_at(x: &[bf16], out: &mut [f32]) = from_bf16_slice);

/// Rounds `f32` to `bf16`, to nearest even.
pub fn f32_to_bf16(x: &[f32], out: &mut [bf16]) {
    assert_eq!(x.len(), out.len(), "f32_to_bf16: lengths");
    to_bf16_at(level(), x, out);
}

/// Widens `bf16` to `f32`, exactly.
pub fn bf16_to_f32(x: &[bf16], out: &mut [f32]) {
    assert_eq!(x.len(), out.len(), "bf16_to_f32: lengths");
    from_bf16_at(level(), x, out);
}

#[inline(always)]
fn to_f16_slice<const FMA: bool>(x: &[f32], out: &mut [f16]) {
    for (o, &v) in out.iter_mut().zip(x) {
        *o = f16::from_bits(narrow_half(v));
    }
}

multiversion!(fn to_f16_at(x: &[f32], out: &mut [f16]) = to_f16_slice);

#[inline(always)]
fn from_f16_slice<const FMA: bool>(x: &[f16], out: &mut [f32]) {
    for (o, v) in out.iter_mut().zip(x) {
        *o = widen_half(v.to_bits());
    }
}

multiversion!(fn from_f16_at(x: &[f16], out: &mut [f32]) = from_f16_slice);

/// Rounds `f32` to `f16`, to nearest even; what is too large becomes infinite.
pub fn f32_to_f16(x: &[f32], out: &mut [f16]) {
    assert_eq!(x.len(), out.len(), "f32_to_f16: lengths");
    to_f16_at(level(), x, out);
}

/// Widens `f16` to `f32`, exactly.
pub fn f16_to_f32(x: &[f16], out: &mut [f32]) {
    assert_eq!(x.len(), out.len(), "f16_to_f32: lengths");
    from_f16_at(level(), x, out);
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::level::available;

    #[test]
    fn every_level_gives_nearly_the_same() {
        let x: Vec<f32> = (-3000..3001).map(|i| i as f32 * 0.004).collect();
        type AtLevel = fn(Level, &mut [f32]);
        let functions: [(&str, AtLevel); 8] = [
            ("gelu_erf", gelu_erf_at),
            ("gelu_tanh", gelu_tanh_at),
            ("quick_gelu", quick_gelu_at),
            ("silu", silu_at),
            ("exp", exp_at),
            ("tanh", tanh_at),
            ("erf", erf_at),
            ("relu6", relu6_at),
        ];
        for (name, f) in functions {
            let mut want = x.clone();
            f(Level::Portable, &mut want);
            for level in available() {
                let mut got = x.clone();
                f(level, &mut got);
                for ((x, got), want) in x.iter().zip(&got).zip(&want) {
                    let tolerance = 2e-6 * want.abs() + 1e-9;
                    assert!(
                        (got - want).abs() <= tolerance,
                        "{level:?} {name}({x}): {got} {want}"
                    );
                }
            }
        }
    }

    #[test]
    fn rows_are_the_same_on_every_level() {
        for c in [1, 15, 16, 100, 577] {
            let x: Vec<f32> = (0..c)
                .map(|i| ((i * 29 % 83) as f32 - 40.0) * 0.05)
                .collect();
            let w: Vec<f32> = (0..c).map(|i| 1.0 + (i % 7) as f32 * 0.1).collect();
            let (mut norm, mut rms, mut soft) = (x.clone(), x.clone(), x.clone());
            layer_norm_at(Level::Portable, &x, Some(&w), Some(&x), 1e-5, &mut norm);
            rms_norm_at(Level::Portable, &x, &w, 1e-5, 1.0, &mut rms);
            softmax_row_at(Level::Portable, &mut soft);
            for level in available() {
                let (mut a, mut b, mut s) = (x.clone(), x.clone(), x.clone());
                layer_norm_at(level, &x, Some(&w), Some(&x), 1e-5, &mut a);
                rms_norm_at(level, &x, &w, 1e-5, 1.0, &mut b);
                softmax_row_at(level, &mut s);
                for (got, want) in a
                    .iter()
                    .chain(&b)
                    .chain(&s)
                    .zip(norm.iter().chain(&rms).chain(&soft))
                {
                    assert!(
                        (got - want).abs() <= 4e-6 * want.abs().max(0.1),
                        "{level:?} {c}: {got} {want}"
                    );
                }
            }
        }
    }
}
