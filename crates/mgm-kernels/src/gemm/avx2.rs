//! AVX2 microkernels: up to 6 rows × 2 vectors of 8, twice for the 32 columns of a panel.

use std::arch::x86_64::*;

use super::kernel::{MicroArguments, MicroKernel};
use super::pack::PANEL;

/// Mask of the first `count` of 8 lanes, for masked loads and stores.
#[inline]
#[target_feature(enable = "avx2,fma")]
fn mask(count: usize) -> __m256i {
    let lanes = _mm256_setr_epi32(0, 1, 2, 3, 4, 5, 6, 7);
    _mm256_cmpgt_epi32(_mm256_set1_epi32(count.min(8) as i32), lanes)
}

/// Stores 16 columns that start at column `first`.
///
/// # Safety
/// See [`MicroArguments`].
#[inline]
#[target_feature(enable = "avx2,fma")]
unsafe fn store<const ROWS: usize>(
    arguments: &MicroArguments,
    first: usize,
    sums: &[[__m256; 2]; ROWS],
) {
    for v in 0..2 {
        let start = first + 8 * v;
        let mask = mask(arguments.columns.saturating_sub(start));
        let bias = if arguments.bias.is_null() {
            _mm256_setzero_ps()
        } else {
            // SAFETY: `bias` has `columns` elements; the mask covers no more.
            unsafe { _mm256_maskload_ps(arguments.bias.wrapping_add(start), mask) }
        };
        for (i, sums) in sums.iter().enumerate() {
            let mut sum = _mm256_add_ps(sums[v], bias);
            let c = arguments.c.wrapping_add(i * arguments.ldc + start);
            // SAFETY: `c` has `columns` writable elements in each of ROWS rows; the mask covers no more.
            unsafe {
                if arguments.add {
                    sum = _mm256_add_ps(sum, _mm256_maskload_ps(c, mask));
                }
                _mm256_maskstore_ps(c, mask, sum);
            }
        }
    }
}

/// # Safety
/// See [`MicroArguments`].
#[inline]
#[target_feature(enable = "avx2,fma")]
unsafe fn f32_half<const ROWS: usize, const MASKED: bool>(
    arguments: &MicroArguments,
    first: usize,
) {
    let masks = [
        mask(arguments.columns.saturating_sub(first)),
        mask(arguments.columns.saturating_sub(first + 8)),
    ];
    let mut sums = [[_mm256_setzero_ps(); 2]; ROWS];
    let mut a = arguments.a.cast::<f32>();
    let mut b = arguments.b.cast::<f32>().wrapping_add(first);
    for _ in 0..arguments.steps {
        // SAFETY: `b` has `columns` values at each step (masked when fewer than 16 are left), `a` has ROWS.
        unsafe {
            let w: [__m256; 2] = std::array::from_fn(|v| {
                if MASKED {
                    _mm256_maskload_ps(b.wrapping_add(8 * v), masks[v])
                } else {
                    _mm256_loadu_ps(b.add(8 * v))
                }
            });
            for i in 0..ROWS {
                let x = _mm256_set1_ps(*a.add(i));
                sums[i][0] = _mm256_fmadd_ps(x, w[0], sums[i][0]);
                sums[i][1] = _mm256_fmadd_ps(x, w[1], sums[i][1]);
            }
        }
        a = a.wrapping_add(ROWS);
        b = b.wrapping_add(arguments.ldb);
    }
    // SAFETY: passed on.
    unsafe { store(arguments, first, &sums) }
}

/// # Safety
/// See [`MicroArguments`]; needs AVX2 and FMA.
#[target_feature(enable = "avx2,fma")]
unsafe fn f32_rows<const ROWS: usize>(arguments: &MicroArguments) {
    let mut first = 0;
    while first < arguments.columns {
        // SAFETY: passed on.
        unsafe {
            if arguments.columns - first >= 16 {
                f32_half::<ROWS, false>(arguments, first);
            } else {
                f32_half::<ROWS, true>(arguments, first);
            }
        }
        first += 16;
    }
}

/// f16 weights widened to `f32`.
///
/// # Safety
/// See [`MicroArguments`]; needs AVX2, FMA and F16C.
#[target_feature(enable = "avx2,fma,f16c")]
unsafe fn f16_rows<const ROWS: usize>(arguments: &MicroArguments) {
    let mut first = 0;
    while first < arguments.columns {
        let mut sums = [[_mm256_setzero_ps(); 2]; ROWS];
        let mut a = arguments.a.cast::<f32>();
        let mut b = arguments.b.wrapping_add(2 * first);
        for _ in 0..arguments.steps {
            // SAFETY: a packed f16 panel has 32 values at each step, `a` has ROWS.
            unsafe {
                let w: [__m256; 2] =
                    std::array::from_fn(|v| _mm256_cvtph_ps(_mm_loadu_si128(b.add(16 * v).cast())));
                for i in 0..ROWS {
                    let x = _mm256_set1_ps(*a.add(i));
                    sums[i][0] = _mm256_fmadd_ps(x, w[0], sums[i][0]);
                    sums[i][1] = _mm256_fmadd_ps(x, w[1], sums[i][1]);
                }
            }
            a = a.wrapping_add(ROWS);
            b = b.wrapping_add(4 * arguments.ldb);
        }
        // SAFETY: passed on.
        unsafe { store(arguments, first, &sums) };
        first += 16;
    }
}

/// bf16 weights widened to `f32`.
///
/// # Safety
/// See [`MicroArguments`]; needs AVX2 and FMA.
#[target_feature(enable = "avx2,fma")]
unsafe fn widen_rows<const ROWS: usize>(arguments: &MicroArguments) {
    let high = _mm256_set1_epi32(0xffff_0000u32 as i32);
    let mut first = 0;
    while first < arguments.columns {
        let mut sums = [[_mm256_setzero_ps(); 2]; ROWS];
        let mut a = arguments.a.cast::<f32>();
        let mut b = arguments.b.wrapping_add(4 * first);
        for _ in 0..arguments.steps {
            // SAFETY: a packed bf16 panel has 32 pairs at each step, `a` has 2·ROWS values.
            unsafe {
                for v in 0..2 {
                    let pairs = _mm256_loadu_si256(b.add(32 * v).cast());
                    let even = _mm256_castsi256_ps(_mm256_slli_epi32::<16>(pairs));
                    for i in 0..ROWS {
                        sums[i][v] = _mm256_fmadd_ps(_mm256_set1_ps(*a.add(i)), even, sums[i][v]);
                    }
                    let odd = _mm256_castsi256_ps(_mm256_and_si256(pairs, high));
                    for i in 0..ROWS {
                        sums[i][v] =
                            _mm256_fmadd_ps(_mm256_set1_ps(*a.add(ROWS + i)), odd, sums[i][v]);
                    }
                }
            }
            a = a.wrapping_add(2 * ROWS);
            b = b.wrapping_add(4 * PANEL);
        }
        // SAFETY: passed on.
        unsafe { store(arguments, first, &sums) };
        first += 16;
    }
}

/// `f32` microkernels for 1..=6 rows.
pub(crate) static F32: [MicroKernel; 6] = [
    f32_rows::<1>,
    f32_rows::<2>,
    f32_rows::<3>,
    f32_rows::<4>,
    f32_rows::<5>,
    f32_rows::<6>,
];

/// f16-weight microkernels for 1..=6 rows.
pub(crate) static F16: [MicroKernel; 6] = [
    f16_rows::<1>,
    f16_rows::<2>,
    f16_rows::<3>,
    f16_rows::<4>,
    f16_rows::<5>,
    f16_rows::<6>,
];

/// bf16-weight microkernels for 1..=6 rows.
pub(crate) static WIDEN: [MicroKernel; 6] = [
    widen_rows::<1>,
    widen_rows::<2>,
    widen_rows::<3>,
    widen_rows::<4>,
    widen_rows::<5>,
    widen_rows::<6>,
];
