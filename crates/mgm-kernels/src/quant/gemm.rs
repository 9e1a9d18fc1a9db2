//! Products of rows with quantised weights.

use super::QuantWeight;
use crate::gemm::{self, Epilogue, WeightType};
use crate::level::{self, Level};

/// `out [m, n] = epilogue(x [m, k]·Wᵀ)` with a quantised `W`.
///
/// # Panics
/// When `x`, `out` or the bias has the wrong length.
pub fn quant_gemm(m: usize, x: &[f32], w: &QuantWeight, out: &mut [f32], epilogue: &Epilogue) {
    quant_gemm_at(level::level(), m, x, w, out, epilogue);
}

/// [`quant_gemm`] at a forced level (lowered to one the machine has), for tests and benchmarks.
pub fn quant_gemm_at(
    level: Level,
    m: usize,
    x: &[f32],
    w: &QuantWeight,
    out: &mut [f32],
    epilogue: &Epilogue,
) {
    gemm::gemm_at(level, m, x, &w.to_packed(WeightType::F32), out, epilogue);
}
