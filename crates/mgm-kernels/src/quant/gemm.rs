//! Products of rows with quantised weights.

use rayon::prelude::*;

use super::QuantWeight;
use super::activations::QuantRows;
use super::dot::{self, MAX_ROWS};
use crate::gemm::{Activation, Epilogue, quantized_product};
use crate::level::{self, Level};
use crate::shared::SharedSlice;

/// Weight rows of one piece of a parallel loop.
const TASK_FEATURES: usize = 32;

/// `out [m, n] = epilogue(x [m, k]·Wᵀ)` with a quantised `W`.
///
/// Up to 8 rows are rounded to int8 in blocks of 32 and multiplied with the stored codes; for more rows, panels of the
/// weight are dequantised (to bf16 where the machine multiplies bf16, else to `f32`) and go through the kernels of
/// [`crate::gemm`].
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
    let (n, k) = (w.n(), w.k());
    assert_eq!(x.len(), m * k, "quant_gemm: x must be [{m}, {k}]");
    assert_eq!(out.len(), m * n, "quant_gemm: out must be [{m}, {n}]");
    assert!(
        epilogue.bias.is_none_or(|b| b.len() == n),
        "quant_gemm: bias must have {n} elements"
    );
    let level = level::clamp(level);
    if m > MAX_ROWS {
        quantized_product(level, m, x, w, out, epilogue);
        return;
    }
    if m == 0 || n == 0 {
        return;
    }
    // Kernels exist for 1, 2, 4 and 8 rows; missing rows are zeros.
    let rows = dot::padded_rows(m);
    let quantized = if rows == m {
        QuantRows::new(level, m, k, x)
    } else {
        let mut padded = x.to_vec();
        padded.resize(rows * k, 0.0);
        QuantRows::new(level, rows, k, &padded)
    };
    let row_bytes = k / w.quant_type().block_len() * w.quant_type().block_bytes();
    let data = w.data();
    let shared = SharedSlice::new(out);
    let task = |index: usize| {
        let first = index * TASK_FEATURES;
        let count = TASK_FEATURES.min(n - first);
        let mut tile = [[0.0f32; TASK_FEATURES]; MAX_ROWS];
        for j in 0..count {
            let row = &data[(first + j) * row_bytes..][..row_bytes];
            let products = dot::dot(level, w.quant_type(), m, row, k, &quantized);
            let bias = epilogue.bias.map_or(0.0, |bias| bias[first + j]);
            for i in 0..m {
                tile[i][j] = products[i] + bias;
            }
        }
        for (i, values) in tile.iter_mut().enumerate().take(m) {
            let values = &mut values[..count];
            if epilogue.activation != Activation::None {
                epilogue.activation.apply(level, values);
            }
            // SAFETY: columns `first..first + count` of each row belong to this task alone.
            let out = unsafe { shared.range(i * n + first, count) };
            if epilogue.accumulate {
                out.iter_mut().zip(values).for_each(|(o, v)| *o += *v);
            } else {
                out.copy_from_slice(values);
            }
        }
    };
    let tasks = n.div_ceil(TASK_FEATURES);
    if n * k < 1 << 15 {
        (0..tasks).for_each(task);
    } else {
        (0..tasks).into_par_iter().for_each(task);
    }
}
