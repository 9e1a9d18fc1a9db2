//! General products with few output columns, as the gradients of low-rank adapters have them: packing the long operand
//! would cost more than the product.

use rayon::prelude::*;

use crate::level::Level;

/// Largest number of columns for these paths.
pub(crate) const MAX_COLUMNS: usize = 16;
/// Rows of one piece of a parallel loop.
const TASK_ROWS: usize = 64;

/// Row-major transpose of `source [rows, columns]`.
pub(crate) fn transpose(rows: usize, columns: usize, source: &[f32]) -> Vec<f32> {
    let mut out = vec![0.0f32; rows * columns];
    for (i, row) in source.chunks_exact(columns.max(1)).enumerate() {
        for (j, &value) in row.iter().enumerate() {
            out[j * rows + i] = value;
        }
    }
    out
}

/// `c [m, n] (+)= tᵀ` with `t [n, m]`, few columns `n`.
pub(crate) fn store_transposed(m: usize, n: usize, t: &[f32], c: &mut [f32], accumulate: bool) {
    for (i, row) in c.chunks_exact_mut(n).enumerate() {
        for (j, value) in row.iter_mut().enumerate() {
            let sum = t[j * m + i];
            *value = if accumulate { *value + sum } else { sum };
        }
    }
}

/// `c [m, n] (+)= a·bᵀ` with rows of `a [m, k]` and `b [n, k]` read where they lie. Returns false, having done nothing,
/// where the level has no kernel for it.
pub(crate) fn dot_rows(
    level: Level,
    m: usize,
    n: usize,
    k: usize,
    a: &[f32],
    b: &[f32],
    c: &mut [f32],
    accumulate: bool,
) -> bool {
    #[cfg(target_arch = "x86_64")]
    if level >= Level::Avx512 && n > 0 && k > 0 {
        c.par_chunks_mut(TASK_ROWS * n)
            .zip(a.par_chunks(TASK_ROWS * k))
            .for_each(|(c, a)| {
                // SAFETY: the machine has this level.
                unsafe { x86::rows(n, k, a, b, c, accumulate) };
            });
        return true;
    }
    let _ = (level, m, n, k, a, b, c, accumulate);
    false
}

#[cfg(target_arch = "x86_64")]
mod x86 {
    use std::arch::x86_64::*;

    /// Products of `R` rows of `a` with `C` rows of `b`.
    #[inline]
    #[target_feature(enable = "avx512f")]
    fn tile<const R: usize, const C: usize>(k: usize, a: &[f32], b: &[f32]) -> [[f32; C]; R] {
        assert!(a.len() >= R * k && b.len() >= C * k);
        let mut sums = [[_mm512_setzero_ps(); C]; R];
        for p in (0..k).step_by(16) {
            let mask = ((1u32 << (k - p).min(16)) - 1) as __mmask16;
            // SAFETY: masked to the values left in each row; the rows are in bounds by the assertion.
            unsafe {
                let x: [__m512; R] =
                    std::array::from_fn(|i| _mm512_maskz_loadu_ps(mask, a.as_ptr().add(i * k + p)));
                for j in 0..C {
                    let w = _mm512_maskz_loadu_ps(mask, b.as_ptr().add(j * k + p));
                    for i in 0..R {
                        sums[i][j] = _mm512_fmadd_ps(x[i], w, sums[i][j]);
                    }
                }
            }
        }
        let mut out = [[0.0; C]; R];
        for i in 0..R {
            for j in 0..C {
                out[i][j] = _mm512_reduce_add_ps(sums[i][j]);
            }
        }
        out
    }

    #[inline]
    #[target_feature(enable = "avx512f")]
    fn row_block<const R: usize>(
        n: usize,
        k: usize,
        a: &[f32],
        b: &[f32],
        c: &mut [f32],
        accumulate: bool,
    ) {
        let mut store = |first: usize, i: usize, values: &[f32]| {
            for (c, &v) in c[i * n + first..].iter_mut().zip(values) {
                *c = if accumulate { *c + v } else { v };
            }
        };
        let mut first = 0;
        while first < n {
            if n - first >= 4 {
                let sums = tile::<R, 4>(k, a, &b[first * k..]);
                for (i, values) in sums.iter().enumerate() {
                    store(first, i, values);
                }
                first += 4;
            } else {
                let sums = tile::<R, 1>(k, a, &b[first * k..]);
                for (i, values) in sums.iter().enumerate() {
                    store(first, i, values);
                }
                first += 1;
            }
        }
    }

    /// All rows of `a` (`[rows, k]`) with all rows of `b` (`[n, k]`).
    #[target_feature(enable = "avx512f")]
    pub(super) fn rows(n: usize, k: usize, a: &[f32], b: &[f32], c: &mut [f32], accumulate: bool) {
        let mut start = 0;
        let rows = a.len() / k;
        while start < rows {
            let (a, c) = (&a[start * k..], &mut c[start * n..]);
            if rows - start >= 4 {
                row_block::<4>(n, k, a, b, c, accumulate);
                start += 4;
            } else {
                row_block::<1>(n, k, a, b, c, accumulate);
                start += 1;
            }
        }
    }
}
