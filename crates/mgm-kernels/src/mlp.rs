//! A two-layer perceptron with everything around it: `out = residual + scale ⊙ (W₂·f(W₁·norm(x) + b₁) + b₂)`.
//!
//! The inner activations, four times as wide as the rows, are most of what a layer-by-layer evaluation moves through memory. Where both
//! weights fit into a core's caches, rows go through the whole in tiles whose inner activations never leave them.

use rayon::prelude::*;

use crate::buffer::with_scratch;
use crate::elementwise;
use crate::gemm::{self, Activation, Epilogue, PackedWeight, tile};
use crate::int8::{self, Int8Weight};
use crate::level::{self, Level, level};
use crate::math::multiversion;

/// Weights up to this size stay in a core's caches while rows pass by.
const SMALL_WEIGHTS: usize = 5 << 20;
/// Inner activations of one tile, in bytes.
const TILE_BYTES: usize = 768 << 10;
/// Rows of a tile: a multiple of what the microkernels take at once, 14 or 32 rows.
const TILE_ROWS: usize = 14 * 16;
/// Rows below which tiles would leave threads without work.
const LEAST_ROWS: usize = 512;

/// LayerNorm in front.
#[derive(Clone, Copy, Debug)]
pub struct LayerNorm<'a> {
    /// Scale of each channel.
    pub gamma: &'a [f32],
    /// Shift of each channel.
    pub beta: &'a [f32],
    /// Added to the variance.
    pub eps: f32,
}

/// A matrix of a perceptron.
#[derive(Clone, Copy)]
pub enum MlpWeight<'a> {
    /// Floats.
    Packed(&'a PackedWeight),
    /// 8 bits; rows are rounded to as many.
    Int8(&'a Int8Weight),
}

impl MlpWeight<'_> {
    /// Output features.
    pub fn n(&self) -> usize {
        match self {
            Self::Packed(weight) => weight.n(),
            Self::Int8(weight) => weight.n(),
        }
    }

    /// Input features.
    pub fn k(&self) -> usize {
        match self {
            Self::Packed(weight) => weight.k(),
            Self::Int8(weight) => weight.k(),
        }
    }

    fn bytes(&self) -> usize {
        match self {
            Self::Packed(weight) => weight.bytes(),
            Self::Int8(weight) => weight.bytes(),
        }
    }

    /// `out = epilogue(x·Wᵀ)`, in parallel.
    fn multiply(self, level: Level, m: usize, x: &[f32], out: &mut [f32], epilogue: &Epilogue) {
        match self {
            Self::Packed(weight) => gemm::gemm_at(level, m, x, weight, out, epilogue),
            Self::Int8(weight) => int8::int8_gemm_at(level, m, x, weight, out, epilogue),
        }
    }

    /// `out = x·Wᵀ + bias` on one thread.
    fn multiply_tile(
        self,
        level: Level,
        rows: usize,
        x: &[f32],
        bias: Option<&[f32]>,
        out: &mut [f32],
    ) {
        match self {
            Self::Packed(weight) => tile::product(level, rows, x, weight, bias, out),
            Self::Int8(weight) => int8::tile_product(level, rows, x, weight, bias, out),
        }
    }
}

/// The weights of a perceptron over rows of `c` channels.
#[derive(Clone, Copy)]
pub struct Mlp<'a> {
    /// Normalisation of the rows.
    pub norm: Option<LayerNorm<'a>>,
    /// `[inner, c]`.
    pub first: MlpWeight<'a>,
    /// `[inner]`.
    pub first_bias: Option<&'a [f32]>,
    /// Between the layers.
    pub activation: Activation,
    /// `[c, inner]`.
    pub second: MlpWeight<'a>,
    /// `[c]`.
    pub second_bias: Option<&'a [f32]>,
    /// Factor of each channel of the result.
    pub scale: Option<&'a [f32]>,
}

/// `out [m, c] = residual [m, c] + scale ⊙ mlp(x [m, c])`, in parallel. With bf16 weights rows may be rounded to bf16, as in
/// [`gemm::gemm`], with 8-bit ones to 8 bits, as in [`int8::int8_gemm`].
///
/// # Panics
/// When a slice or a weight has the wrong size.
pub fn mlp(m: usize, x: &[f32], weights: &Mlp, residual: &[f32], out: &mut [f32]) {
    mlp_at(level(), m, x, weights, residual, out);
}

/// [`mlp`] at a forced level.
pub fn mlp_at(level: Level, m: usize, x: &[f32], weights: &Mlp, residual: &[f32], out: &mut [f32]) {
    let (inner, c) = (weights.first.n(), weights.first.k());
    assert!(
        weights.second.n() == c && weights.second.k() == inner,
        "mlp: second weight [{}, {}], expected [{c}, {inner}]",
        weights.second.n(),
        weights.second.k()
    );
    for (name, len) in [
        ("x", x.len()),
        ("residual", residual.len()),
        ("out", out.len()),
    ] {
        assert_eq!(len, m * c, "mlp: {name} must be [{m}, {c}]");
    }
    let has = |values: Option<&[f32]>, count: usize| values.is_none_or(|v| v.len() == count);
    assert!(has(weights.first_bias, inner), "mlp: first bias length");
    assert!(has(weights.second_bias, c), "mlp: second bias length");
    assert!(has(weights.scale, c), "mlp: scale length");
    assert!(
        weights
            .norm
            .is_none_or(|norm| norm.gamma.len() == c && norm.beta.len() == c),
        "mlp: norm length"
    );
    if m == 0 || c == 0 || inner == 0 {
        out.copy_from_slice(residual);
        return;
    }
    let level = level::clamp(level);
    let small = weights.first.bytes() + weights.second.bytes() <= SMALL_WEIGHTS;
    if small && m >= LEAST_ROWS {
        by_tiles(level, c, inner, x, weights, residual, out);
    } else {
        by_layers(level, m, c, inner, x, weights, residual, out);
    }
}

/// Every tile of rows through all of it, on one thread.
fn by_tiles(
    level: Level,
    c: usize,
    inner: usize,
    x: &[f32],
    weights: &Mlp,
    residual: &[f32],
    out: &mut [f32],
) {
    let rows = (TILE_BYTES / 4 / inner).clamp(1, TILE_ROWS);
    // Whole microkernels, where there is room for one.
    let rows = if rows > 14 { rows / 14 * 14 } else { rows };
    out.par_chunks_mut(rows * c)
        .zip(x.par_chunks(rows * c))
        .zip(residual.par_chunks(rows * c))
        .for_each(|((out, x), residual)| {
            let rows = x.len() / c;
            with_scratch(4 * rows * inner, |scratch| {
                let hidden = &mut scratch.cast_mut::<f32>()[..rows * inner];
                let x = match weights.norm {
                    Some(norm) => {
                        // The output serves as room for the normalised rows.
                        normalise(level, c, x, norm, out);
                        &*out
                    }
                    None => x,
                };
                let (first, second) = (weights.first, weights.second);
                first.multiply_tile(level, rows, x, weights.first_bias, hidden);
                weights.activation.apply(level, hidden);
                second.multiply_tile(level, rows, hidden, weights.second_bias, out);
            });
            finish_at(level, out, residual, weights.scale);
        });
}

/// One layer after the other, each in parallel.
fn by_layers(
    level: Level,
    m: usize,
    c: usize,
    inner: usize,
    x: &[f32],
    weights: &Mlp,
    residual: &[f32],
    out: &mut [f32],
) {
    /// Rows that one task normalises or adds.
    const ROWS: usize = 16;
    with_scratch(4 * m * inner, |scratch| {
        let hidden = &mut scratch.cast_mut::<f32>()[..m * inner];
        let x = match weights.norm {
            Some(norm) => {
                out.par_chunks_mut(ROWS * c)
                    .zip(x.par_chunks(ROWS * c))
                    .for_each(|(out, x)| normalise(level, c, x, norm, out));
                &*out
            }
            None => x,
        };
        let first = Epilogue {
            bias: weights.first_bias,
            activation: weights.activation,
            accumulate: false,
        };
        weights.first.multiply(level, m, x, hidden, &first);
        let second = Epilogue {
            bias: weights.second_bias,
            ..Epilogue::default()
        };
        weights.second.multiply(level, m, hidden, out, &second);
    });
    out.par_chunks_mut(ROWS * c)
        .zip(residual.par_chunks(ROWS * c))
        .for_each(|(out, residual)| finish_at(level, out, residual, weights.scale));
}

fn normalise(level: Level, c: usize, x: &[f32], norm: LayerNorm, out: &mut [f32]) {
    for (x, out) in x.chunks_exact(c).zip(out.chunks_exact_mut(c)) {
        elementwise::layer_norm_at(level, x, Some(norm.gamma), Some(norm.beta), norm.eps, out);
    }
}

/// `out = residual + scale ⊙ out`.
#[inline(always)]
fn finish<const FMA: bool>(out: &mut [f32], residual: &[f32], scale: Option<&[f32]>) {
    match scale {
        Some(scale) => {
            let rows = out.chunks_exact_mut(scale.len());
            for (out, residual) in rows.zip(residual.chunks_exact(scale.len())) {
                for ((out, residual), scale) in out.iter_mut().zip(residual).zip(scale) {
                    *out = *residual + *scale * *out;
                }
            }
        }
        None => {
            for (out, residual) in out.iter_mut().zip(residual) {
                *out += *residual;
            }
        }
    }
}

multiversion!(fn finish_at(out: &mut [f32], residual: &[f32], scale: Option<&[f32]>) = finish);
