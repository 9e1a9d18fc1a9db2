//! Products of rows with quantised weights.

use rayon::prelude::*;

use super::QuantWeight;
use super::activations::QuantRows;
use super::dot::{self, MAX_ROWS};
use crate::gemm::{Activation, Epilogue, quantized_product};
use crate::level::{self, Level};
use crate::shared::SharedSlice;

/// Weight rows of one piece of a parallel loop; as many as a wide pass has columns.
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
    if k > 0 && (level == Level::Avx512 || level == Level::Amx && m <= AMX_INTEGER_ROWS) {
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
    let blocks = k / w.quant_type().block_len();
    let shared = SharedSlice::new(out);
    let task = |index: usize| {
        let first = index * TASK_FEATURES;
        let count = TASK_FEATURES.min(n - first);
        let mut tile = [[0.0f32; TASK_FEATURES]; MAX_ROWS];
        for j in 0..count {
            let products = w.with_blocks(first + j, 0..blocks, |row| {
                dot::dot(level, w.quant_type(), m, row, k, &quantized)
            });
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

/// Rows that are multiplied with sixteen weight rows at a time; more with thirty-two, whose codes are unpacked once for all.
#[cfg(target_arch = "x86_64")]
const FEW_ROWS: usize = 48;

/// Activation rows of one piece of a parallel loop, a multiple of a pass's: with usual widths their codes stay in the second-level cache while
/// the weights go by.
#[cfg(target_arch = "x86_64")]
const TASK_ROWS: usize = 256;

/// Bytes of activations that are rounded at a time: enough for all threads, and little beside a picture's maps.
#[cfg(target_arch = "x86_64")]
const SLAB_BYTES: usize = 8 << 20;

/// Sixteen or thirty-two weight rows at a time with any number of rows.
#[cfg(target_arch = "x86_64")]
fn by_columns(
    level: Level,
    m: usize,
    x: &[f32],
    w: &QuantWeight,
    out: &mut [f32],
    epilogue: &Epilogue,
) {
    let (n, k) = (w.n(), w.k());
    let most = (SLAB_BYTES / k).max(4 * TASK_ROWS);
    let slabs = m.div_ceil(most);
    for slab in 0..slabs {
        let (start, end) = (slab * m / slabs, (slab + 1) * m / slabs);
        let (x, out) = (&x[start * k..end * k], &mut out[start * n..end * n]);
        slab_by_columns(level, end - start, x, w, out, epilogue);
    }
}

#[cfg(target_arch = "x86_64")]
fn slab_by_columns(
    level: Level,
    m: usize,
    x: &[f32],
    w: &QuantWeight,
    out: &mut [f32],
    epilogue: &Epilogue,
) {
    use super::column_rows::ColumnRows;
    use super::columns_avx512::{self, COLUMNS, WIDE_COLUMNS};
    use super::few_rows_avx512;
    use super::interleaved;
    use crate::buffer::with_scratch;

    let (n, k) = (w.n(), w.k());
    let t = w.quant_type();
    let row_bytes = k / t.block_len() * t.block_bytes();
    let data = w.data();
    let shared = SharedSlice::new(out);
    let (chunks, groups) = (m.div_ceil(TASK_ROWS), n.div_ceil(TASK_FEATURES));
    let starts = columns_avx512::starts(t);
    ColumnRows::with(level, m, k, x, starts, |quantized| {
        // Calls `f` with the number of columns from `first`, at most `wanted`, and their groups.
        let with_columns = |first: usize, wanted: usize, f: &mut dyn FnMut(usize, &[u8])| {
            let count = wanted.min(n - first);
            let bytes = count.next_multiple_of(COLUMNS) * row_bytes;
            if w.is_interleaved() {
                f(count, &data[first * row_bytes..][..bytes]);
                return;
            }
            with_scratch(bytes, |scratch| {
                let made = &mut scratch.cast_mut::<u8>()[..bytes];
                let rows = data[first * row_bytes..(first + count) * row_bytes]
                    .chunks(COLUMNS * row_bytes);
                for (rows, group) in rows.zip(made.chunks_exact_mut(COLUMNS * row_bytes)) {
                    interleaved::interleave(t, rows, row_bytes, group);
                }
                f(count, made);
            });
        };
        // Neighbouring tasks share their activation rows.
        let task = |index: usize| {
            let (chunk, group) = (index / groups, index % groups);
            let range = chunk * m / chunks..(chunk + 1) * m / chunks;
            let store = |first: usize, count: usize, row: usize, values: &mut [f32]| {
                // SAFETY: columns `first..first + count` of the range's rows belong to this task alone.
                let out = unsafe { shared.range(row * n + first, count) };
                store(level, epilogue, first, &mut values[..count], out);
            };
            let first = group * TASK_FEATURES;
            if m > FEW_ROWS {
                let bytes = range.len() * size_of::<[f32; WIDE_COLUMNS]>();
                with_columns(first, WIDE_COLUMNS, &mut |count, data| {
                    with_scratch(bytes, |scratch| {
                        let values = &mut scratch.cast_mut::<f32>()[..range.len() * WIDE_COLUMNS];
                        let products = values.as_chunks_mut::<WIDE_COLUMNS>().0;
                        let range = range.clone();
                        // SAFETY: the machine has this level.
                        unsafe {
                            columns_avx512::many_rows(
                                t,
                                data,
                                k,
                                quantized,
                                range.clone(),
                                products,
                            );
                        }
                        for (row, values) in range.zip(products) {
                            store(first, count, row, values);
                        }
                    });
                });
                return;
            }
            let end = (first + TASK_FEATURES).min(n);
            for first in (first..end).step_by(COLUMNS) {
                with_columns(first, COLUMNS, &mut |count, data| {
                    // Equal shares: a pass of few rows takes little less than one of many.
                    let passes = m.div_ceil(few_rows_avx512::MAX_ROWS);
                    for pass in 0..passes {
                        let (start, end) = (pass * m / passes, (pass + 1) * m / passes);
                        let mut products = [[0.0f32; COLUMNS]; few_rows_avx512::MAX_ROWS];
                        let products = &mut products[..end - start];
                        // SAFETY: the machine has this level.
                        unsafe {
                            few_rows_avx512::few_rows(t, data, k, quantized, start, products)
                        };
                        for (row, values) in (start..end).zip(products) {
                            store(first, count, row, values);
                        }
                    }
                });
            }
        };
        let tasks = chunks * groups;
        if m * n * k < SERIAL_WORK {
            (0..tasks).for_each(task);
        } else {
            (0..tasks).into_par_iter().for_each(task);
        }
    });
}
