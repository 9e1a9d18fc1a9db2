//! Matrix products: packed weights times rows, and general `f32` products.

#[cfg(target_arch = "x86_64")]
mod amx;
#[cfg(target_arch = "x86_64")]
mod avx2;
#[cfg(target_arch = "x86_64")]
mod avx512;
mod driver;
mod gathered;
mod kernel;
mod pack;
mod portable;
mod rows;
pub(crate) mod serial;
mod skinny;
pub(crate) mod tile;

pub(crate) use driver::{Tiles, quantized as quantized_product};
pub(crate) use gathered::{Gathered, product as gathered_product};
pub(crate) use pack::PANEL;
pub use pack::{PackedWeight, WeightType};

use crate::elementwise;
use crate::level::{self, Level};

/// Function applied to a product before it is stored.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub enum Activation {
    /// Identity.
    #[default]
    None,
    /// `x·Φ(x)`.
    GeluErf,
    /// Tanh approximation of GELU.
    GeluTanh,
    /// `x·sigmoid(1.702·x)`.
    QuickGelu,
    /// `x·sigmoid(x)`.
    Silu,
    /// `min(max(x, 0), 6)`.
    Relu6,
}

impl Activation {
    /// Applies the function in place, serially.
    pub(crate) fn apply(self, level: Level, values: &mut [f32]) {
        match self {
            Self::None => {}
            Self::GeluErf => elementwise::gelu_erf_at(level, values),
            Self::GeluTanh => elementwise::gelu_tanh_at(level, values),
            Self::QuickGelu => elementwise::quick_gelu_at(level, values),
            Self::Silu => elementwise::silu_at(level, values),
            Self::Relu6 => elementwise::relu6_at(level, values),
        }
    }
}

/// What happens to a product before it is stored: `out = activation(x·Wᵀ + bias)`, or `out += …` with `accumulate`.
#[derive(Clone, Copy, Debug, Default)]
pub struct Epilogue<'a> {
    /// One value for each output feature.
    pub bias: Option<&'a [f32]>,
    /// Function of product and bias.
    pub activation: Activation,
    /// Add to `out` instead of overwriting it.
    pub accumulate: bool,
}

/// `out [m, n] = activation(x [m, k]·Wᵀ + bias)`, in parallel. With bf16 weights the rows may be rounded to bf16 as well
/// (where the machine has bf16 products); sums are `f32`.
///
/// # Panics
/// When `x`, `out` or the bias has the wrong length.
pub fn gemm(m: usize, x: &[f32], w: &PackedWeight, out: &mut [f32], epilogue: &Epilogue) {
    gemm_at(level::level(), m, x, w, out, epilogue);
}

/// [`gemm`] at a forced level (lowered to one the machine has), for tests and benchmarks.
pub fn gemm_at(
    level: Level,
    m: usize,
    x: &[f32],
    w: &PackedWeight,
    out: &mut [f32],
    epilogue: &Epilogue,
) {
    let (n, k) = (w.n(), w.k());
    assert_eq!(x.len(), m * k, "gemm: x must be [{m}, {k}]");
    assert_eq!(out.len(), m * n, "gemm: out must be [{m}, {n}]");
    assert!(
        epilogue.bias.is_none_or(|b| b.len() == n),
        "gemm: bias must have {n} elements"
    );
    driver::product(level::clamp(level), m, x, w, out, epilogue);
}

/// [`gemm`] with a weight `W [n, k]` that is not packed in memory: `row(j, out)` writes the `k` values of output feature `j`, from wherever
/// they are (a mapped file, say). They are packed panel by panel as `t` while multiplying, and so read once for every 768 rows
/// of `x`. Slower than a packed weight; for weights that do not fit in memory.
///
/// # Panics
/// When `x`, `out` or the bias has the wrong length.
pub fn gemm_streamed(
    m: usize,
    n: usize,
    k: usize,
    t: WeightType,
    x: &[f32],
    row: &(dyn Fn(usize, &mut [f32]) + Sync),
    out: &mut [f32],
    epilogue: &Epilogue,
) {
    assert_eq!(x.len(), m * k, "gemm_streamed: x must be [{m}, {k}]");
    assert_eq!(out.len(), m * n, "gemm_streamed: out must be [{m}, {n}]");
    assert!(
        epilogue.bias.is_none_or(|b| b.len() == n),
        "gemm_streamed: bias must have {n} elements"
    );
    driver::streamed(level::level(), m, n, k, t, x, row, out, epilogue);
}

/// `c [m, n] (+)= op(a)·op(b)` in `f32`. `a` is row-major `[m, k]`, or `[k, m]` with `trans_a`; `b` is `[k, n]`, or `[n, k]`
/// with `trans_b`.
///
/// # Panics
/// When a slice has the wrong length.
pub fn matmul(
    trans_a: bool,
    trans_b: bool,
    m: usize,
    n: usize,
    k: usize,
    a: &[f32],
    b: &[f32],
    c: &mut [f32],
    accumulate: bool,
) {
    matmul_at(
        level::level(),
        trans_a,
        trans_b,
        m,
        n,
        k,
        a,
        b,
        c,
        accumulate,
    );
}

/// [`matmul`] at a forced level.
pub fn matmul_at(
    level: Level,
    trans_a: bool,
    trans_b: bool,
    m: usize,
    n: usize,
    k: usize,
    a: &[f32],
    b: &[f32],
    c: &mut [f32],
    accumulate: bool,
) {
    assert_eq!(a.len(), m * k, "matmul: a must have {m}×{k} elements");
    assert_eq!(b.len(), k * n, "matmul: b must have {k}×{n} elements");
    assert_eq!(c.len(), m * n, "matmul: c must have {m}×{n} elements");
    driver::general(
        level::clamp(level),
        trans_a,
        trans_b,
        m,
        n,
        k,
        a,
        b,
        c,
        accumulate,
    );
}

#[cfg(target_arch = "x86_64")]
pub(crate) use amx::self_test as amx_self_test;
