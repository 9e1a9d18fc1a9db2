//! Portable microkernels, the scalar twins of the vector ones.

use super::kernel::{MicroArguments, MicroKernel};
use super::pack::PANEL;
use crate::math::widen_half;

/// Largest number of rows of a portable microkernel.
pub(crate) const MAX_ROWS: usize = 4;

/// `c[rows][columns] (+)= a·b (+ bias)` with `a [steps][rows]` and `b [steps][ldb]`, both `f32`.
///
/// # Safety
/// See [`MicroArguments`].
unsafe fn f32_rows<const ROWS: usize>(arguments: &MicroArguments) {
    let mut sums = [[0.0f32; PANEL]; ROWS];
    let a = arguments.a.cast::<f32>();
    let b = arguments.b.cast::<f32>();
    for step in 0..arguments.steps {
        let mut column = [0.0f32; PANEL];
        // SAFETY: `b` has `columns` values at each step, `a` has ROWS (MicroArguments).
        unsafe {
            std::ptr::copy_nonoverlapping(
                b.add(step * arguments.ldb),
                column.as_mut_ptr(),
                arguments.columns,
            );
            for (i, sums) in sums.iter_mut().enumerate() {
                let x = *a.add(step * ROWS + i);
                for (sum, w) in sums.iter_mut().zip(column) {
                    *sum += x * w;
                }
            }
        }
    }
    // SAFETY: passed on.
    unsafe { store(arguments, &sums) }
}

/// The same with `b [steps][2·ldb]` in f16.
///
/// # Safety
/// See [`MicroArguments`].
unsafe fn f16_rows<const ROWS: usize>(arguments: &MicroArguments) {
    let mut sums = [[0.0f32; PANEL]; ROWS];
    let a = arguments.a.cast::<f32>();
    for step in 0..arguments.steps {
        let mut halves = [0u16; PANEL];
        // SAFETY: `b` is a packed panel: 32 values at each step; `a` has ROWS values (MicroArguments).
        unsafe {
            let b = arguments.b.add(step * arguments.ldb * 4).cast::<u16>();
            std::ptr::copy_nonoverlapping(b, halves.as_mut_ptr(), PANEL);
            let column = halves.map(widen_half);
            for (i, sums) in sums.iter_mut().enumerate() {
                let x = *a.add(step * ROWS + i);
                for (sum, w) in sums.iter_mut().zip(column) {
                    *sum += x * w;
                }
            }
        }
    }
    // SAFETY: passed on.
    unsafe { store(arguments, &sums) }
}

/// The same with `b [steps][ldb/2][2]` in bf16 and `a [2·steps][rows]` in `f32`.
///
/// # Safety
/// See [`MicroArguments`].
unsafe fn bf16_rows<const ROWS: usize>(arguments: &MicroArguments) {
    let mut sums = [[0.0f32; PANEL]; ROWS];
    let a = arguments.a.cast::<f32>();
    let b = arguments.b.cast::<u32>();
    for step in 0..arguments.steps {
        let mut pairs = [0u32; PANEL];
        // SAFETY: `b` is a packed panel: 32 pairs at each step; `a` has 2·ROWS values (MicroArguments).
        unsafe {
            std::ptr::copy_nonoverlapping(b.add(step * arguments.ldb), pairs.as_mut_ptr(), PANEL);
            for (i, sums) in sums.iter_mut().enumerate() {
                let even = *a.add(2 * step * ROWS + i);
                let odd = *a.add((2 * step + 1) * ROWS + i);
                for (sum, pair) in sums.iter_mut().zip(pairs) {
                    *sum += even * f32::from_bits(pair << 16)
                        + odd * f32::from_bits(pair & 0xffff_0000);
                }
            }
        }
    }
    // SAFETY: passed on.
    unsafe { store(arguments, &sums) }
}

/// # Safety
/// See [`MicroArguments`].
unsafe fn store<const ROWS: usize>(arguments: &MicroArguments, sums: &[[f32; PANEL]; ROWS]) {
    for (i, sums) in sums.iter().enumerate() {
        for (j, &sum) in sums.iter().enumerate().take(arguments.columns) {
            // SAFETY: `c` has `columns` values in each of ROWS rows; `bias` is null or has `columns` (MicroArguments).
            unsafe {
                let c = arguments.c.add(i * arguments.ldc + j);
                let bias = if arguments.bias.is_null() {
                    0.0
                } else {
                    *arguments.bias.add(j)
                };
                *c = if arguments.add { *c } else { 0.0 } + sum + bias;
            }
        }
    }
}

/// `f32` microkernels for 1..=4 rows.
pub(crate) static F32: [MicroKernel; MAX_ROWS] =
    [f32_rows::<1>, f32_rows::<2>, f32_rows::<3>, f32_rows::<4>];
/// f16-weight microkernels for 1..=4 rows.
pub(crate) static F16: [MicroKernel; MAX_ROWS] =
    [f16_rows::<1>, f16_rows::<2>, f16_rows::<3>, f16_rows::<4>];
/// bf16-weight microkernels for 1..=4 rows.
pub(crate) static BF16: [MicroKernel; MAX_ROWS] = [
    bf16_rows::<1>,
    bf16_rows::<2>,
    bf16_rows::<3>,
    bf16_rows::<4>,
];
