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

/// Rows up to which products stay integer where the machine has matrix units for bf16, which need dequantised panels.
#[cfg(target_arch = "x86_64")]
const AMX_INTEGER_ROWS: usize = 32;

/// Fewer products than this are not worth waking other threads for.
const SERIAL_WORK: usize = 1 << 16;

/// `out [m, n] = epilogue(x [m, k]·Wᵀ)` with a quantised `W`.
///
/// Rows are rounded to int8 in blocks of 32 and multiplied with the stored codes. With AVX-512 that is so for any number of rows, and
/// each row's result has the same bits whatever rows stand beside it. Elsewhere it is so up to 8 rows (up to 32 with AMX); for more,
/// panels of the weight are dequantised (to bf16 where the machine multiplies bf16, else to `f32`) and go through the kernels of
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
    if m == 0 || n == 0 {
        return;
    }
    let level = level::clamp(level);
    #[cfg(target_arch = "x86_64")]
    if level == Level::Avx512 || level == Level::Amx && m <= AMX_INTEGER_ROWS {
        by_columns(level, m, x, w, out, epilogue);
        return;
    }
    if m <= MAX_ROWS {
        by_rows(level, m, x, w, out, epilogue);
    } else {
        quantized_product(level, m, x, w, out, epilogue);
    }
}

/// Stores a piece of one row of the output.
fn store(level: Level, epilogue: &Epilogue, first: usize, values: &mut [f32], out: &mut [f32]) {
    if let Some(bias) = epilogue.bias {
        values
            .iter_mut()
            .zip(&bias[first..])
            .for_each(|(value, bias)| *value += bias);
    }
    if epilogue.activation != Activation::None {
        epilogue.activation.apply(level, values);
    }
    if epilogue.accumulate {
        out.iter_mut().zip(values).for_each(|(o, v)| *o += *v);
    } else {
        out.copy_from_slice(values);
    }
}

/// One weight row at a time with up to 8 rows.
fn by_rows(
    level: Level,
    m: usize,
    x: &[f32],
    w: &QuantWeight,
    out: &mut [f32],
    epilogue: &Epilogue,
) {
    let (n, k) = (w.n(), w.k());
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
            for i in 0..m {
                tile[i][j] = products[i];
            }
        }
        for (i, values) in tile.iter_mut().enumerate().take(m) {
            // SAFETY: columns `first..first + count` of each row belong to this task alone.
            let out = unsafe { shared.range(i * n + first, count) };
            store(level, epilogue, first, &mut values[..count], out);
        }
    };
    let tasks = n.div_ceil(TASK_FEATURES);
    if m * n * k < SERIAL_WORK {
        (0..tasks).for_each(task);
    } else {
        (0..tasks).into_par_iter().for_each(task);
    }
}

/// Sixteen weight rows at a time with any number of rows.
#[cfg(target_arch = "x86_64")]
fn by_columns(
    level: Level,
    m: usize,
    x: &[f32],
    w: &QuantWeight,
    out: &mut [f32],
    epilogue: &Epilogue,
) {
    use super::columns_avx512::{self, COLUMNS, MAX_PASS_ROWS};

    let (n, k) = (w.n(), w.k());
    let quantized = QuantRows::new(level, m, k, x);
    let row_bytes = k / w.quant_type().block_len() * w.quant_type().block_bytes();
    let data = w.data();
    let passes = m.div_ceil(MAX_PASS_ROWS);
    let shared = SharedSlice::new(out);
    let task = |index: usize| {
        let end = ((index + 1) * TASK_FEATURES).min(n);
        for first in (index * TASK_FEATURES..end).step_by(COLUMNS) {
            let count = COLUMNS.min(n - first);
            let rows = &data[first * row_bytes..(first + count) * row_bytes];
            // The last rows of a weight whose number is no multiple of sixteen, and zeros.
            let padded = (count < COLUMNS).then(|| {
                let mut padded = rows.to_vec();
                padded.resize(COLUMNS * row_bytes, 0);
                padded
            });
            let rows = padded.as_deref().unwrap_or(rows);
            for pass in 0..passes {
                // Equal shares: no short last pass, which would read the weights for little.
                let (start, end) = (pass * m / passes, (pass + 1) * m / passes);
                let mut products = [[0.0f32; COLUMNS]; MAX_PASS_ROWS];
                let products = &mut products[..end - start];
                // SAFETY: the machine has this level.
                unsafe {
                    columns_avx512::rows(w.quant_type(), rows, k, &quantized, start, products);
                }
                for (i, values) in products.iter_mut().enumerate() {
                    // SAFETY: columns `first..first + count` of each row belong to this task alone.
                    let out = unsafe { shared.range((start + i) * n + first, count) };
                    store(level, epilogue, first, &mut values[..count], out);
                }
            }
        }
    };
    let tasks = n.div_ceil(TASK_FEATURES);
    if m * n * k < SERIAL_WORK {
        (0..tasks).for_each(task);
    } else {
        (0..tasks).into_par_iter().for_each(task);
    }
}
