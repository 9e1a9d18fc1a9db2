//! Products in 8 bits throughout (W8A8): integer weights times rows of activations that are rounded while multiplying.
//!
//! Weights have one scale for each 256 input features of an output feature, activations one for each 256 features of a row, found anew in
//! every product. Sums of 256 products are exact integers, so that there is little else to do than multiply: where the formats of
//! [`crate::quant`] pay two or three operations with scales for every eight integer products, these pay for every sixty-four. The
//! price is accuracy: the largest of 256 values decides how fine all are. Activation blocks of 256 are also what ggml multiplies its
//! K-quants with.

#[cfg(target_arch = "x86_64")]
mod amx;
#[cfg(target_arch = "x86_64")]
mod avx512;
mod portable;
mod product;
mod rows;
mod weight;

#[cfg(target_arch = "x86_64")]
pub(crate) use amx::self_test as amx_self_test;
pub(crate) use product::tile_product;
pub use weight::Int8Weight;
#[cfg(target_arch = "x86_64")]
pub(crate) use weight::{CHUNK, COLUMNS, STEP_BYTES, ZERO, chunk_bytes};

use crate::gemm::{Activation, Epilogue};
use crate::level::{self, Level};
use crate::quant::{QuantWeight, quant_gemm_at};
use product::Source;

/// Rows above which blocks are worth being made panels of: the work of some twenty rows.
const PANEL_ROWS: usize = 64;

/// `out [m, n] = epilogue(x [m, k]·Wᵀ)`, in parallel. A row's result has the same bits whatever rows stand beside it.
///
/// # Panics
/// When `x`, `out` or the bias has the wrong length.
pub fn int8_gemm(m: usize, x: &[f32], w: &Int8Weight, out: &mut [f32], epilogue: &Epilogue) {
    int8_gemm_at(level::level(), m, x, w, out, epilogue);
}

/// [`int8_gemm`] at a forced level (lowered to one the machine has), for tests and benchmarks.
pub fn int8_gemm_at(
    level: Level,
    m: usize,
    x: &[f32],
    w: &Int8Weight,
    out: &mut [f32],
    epilogue: &Epilogue,
) {
    check("int8_gemm", m, w.n(), w.k(), x, out, epilogue);
    let level = level::clamp(level);
    product::product(level, m, x, Source::Panels(w), out, epilogue);
}

/// [`quant_gemm_at`] that makes int8 panels of the blocks for more than 64 rows where the machine multiplies them faster (from AVX-512 on):
/// the blocks' values are rounded to 8 bits with one scale for each 256, as [`Int8Weight`] has them.
///
/// # Panics
/// When `x`, `out` or the bias has the wrong length.
pub fn quant_gemm_int8_at(
    level: Level,
    m: usize,
    x: &[f32],
    w: &QuantWeight,
    out: &mut [f32],
    epilogue: &Epilogue,
) {
    let level = level::clamp(level);
    if m <= PANEL_ROWS || w.k() == 0 || level < Level::Avx512 {
        quant_gemm_at(level, m, x, w, out, epilogue);
        return;
    }
    check("quant_gemm_int8", m, w.n(), w.k(), x, out, epilogue);
    product::product(level, m, x, Source::Blocks(w), out, epilogue);
}

/// [`quant_gemm_int8_at`] at the level in use.
///
/// # Panics
/// When `x`, `out` or the bias has the wrong length.
pub fn quant_gemm_int8(m: usize, x: &[f32], w: &QuantWeight, out: &mut [f32], epilogue: &Epilogue) {
    quant_gemm_int8_at(level::level(), m, x, w, out, epilogue);
}

/// A matrix of [`gated_mlp`].
#[derive(Clone, Copy)]
pub enum GatedWeight<'a> {
    /// 8 bits.
    Int8(&'a Int8Weight),
    /// Blocks, of which panels are made while multiplying.
    Blocks(&'a QuantWeight),
}

impl<'a> GatedWeight<'a> {
    /// Output and input features.
    pub fn features(self) -> (usize, usize) {
        self.source().features()
    }

    fn source(self) -> Source<'a> {
        match self {
            Self::Int8(weight) => Source::Panels(weight),
            Self::Blocks(weight) => Source::Blocks(weight),
        }
    }
}

/// Whether [`gated_mlp`] takes so many rows with these matrices: of blocks it makes panels, which is for many rows and from AVX-512 on.
pub fn takes_gated_mlp(m: usize, weights: &[GatedWeight; 3]) -> bool {
    let blocks = |weight: &GatedWeight| matches!(weight, GatedWeight::Blocks(_));
    !weights.iter().any(blocks) || m > PANEL_ROWS && level::level() >= Level::Avx512
}

/// `out [m, n] = (activation(x·gateᵀ) ⊙ x·upᵀ)·downᵀ` of `[gate [inner, k], up [inner, k], down [n, inner]]`, in parallel: what the three
/// products one after another give, bit for bit, without their inner rows going through memory.
///
/// # Panics
/// When `x` or `out` has the wrong length, the matrices do not fit together, or [`takes_gated_mlp`] says no.
pub fn gated_mlp(
    m: usize,
    x: &[f32],
    weights: [GatedWeight; 3],
    activation: Activation,
    out: &mut [f32],
) {
    assert!(
        takes_gated_mlp(m, &weights),
        "gated_mlp: {m} rows are too few for blocks"
    );
    let [gate, up, down] = weights.map(GatedWeight::features);
    assert!(
        gate == up && down.1 == gate.0,
        "gated_mlp: matrices {gate:?}, {up:?} and {down:?}"
    );
    check("gated_mlp", m, down.0, gate.1, x, out, &Epilogue::default());
    let sources = weights.map(GatedWeight::source);
    product::gated(level::level(), m, x, sources, activation, out);
}

fn check(what: &str, m: usize, n: usize, k: usize, x: &[f32], out: &[f32], epilogue: &Epilogue) {
    assert_eq!(x.len(), m * k, "{what}: x must be [{m}, {k}]");
    assert_eq!(out.len(), m * n, "{what}: out must be [{m}, {n}]");
    assert!(
        epilogue.bias.is_none_or(|b| b.len() == n),
        "{what}: bias must have {n} elements"
    );
}
