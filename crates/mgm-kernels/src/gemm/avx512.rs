//! AVX-512 microkernels: up to 14 rows × 2 vectors, 28 accumulators.

use std::arch::x86_64::*;

use super::kernel::{MicroArguments, MicroKernel};
use super::pack::PANEL;

/// Fetches what lies some way behind a panel's step `b`, for weights that come from memory: near and into the first level where little is done
/// with them, else far ahead into the second, as the first level waits for few lines at a time.
#[inline]
#[target_feature(enable = "avx512f")]
fn prefetch<const ROWS: usize>(b: *const u8) {
    if ROWS <= 4 {
        _mm_prefetch::<_MM_HINT_T0>(b.wrapping_add(2048).cast());
    } else {
        _mm_prefetch::<_MM_HINT_T1>(b.wrapping_add(8192).cast());
    }
}

/// Masks of the two column vectors.
#[target_feature(enable = "avx512f")]
fn masks(columns: usize) -> [__mmask16; 2] {
    let mask = |count: usize| ((1u32 << count.min(16)) - 1) as __mmask16;
    [mask(columns), mask(columns.saturating_sub(16))]
}

/// Adds bias and previous values and stores the tile.
///
/// # Safety
/// See [`MicroArguments`].
#[inline]
#[target_feature(enable = "avx512f")]
unsafe fn store<const ROWS: usize, const VECTORS: usize>(
    arguments: &MicroArguments,
    sums: &[[__m512; VECTORS]; ROWS],
) {
    let masks = masks(arguments.columns);
    for v in 0..VECTORS {
        let bias = if arguments.bias.is_null() {
            _mm512_setzero_ps()
        } else {
            // SAFETY: `bias` has `columns` elements; the mask covers no more.
            unsafe { _mm512_maskz_loadu_ps(masks[v], arguments.bias.wrapping_add(16 * v)) }
        };
        for i in 0..ROWS {
            let mut sum = _mm512_add_ps(sums[i][v], bias);
            let c = arguments.c.wrapping_add(i * arguments.ldc + 16 * v);
            // SAFETY: `c` has `columns` writable elements in each of ROWS rows; the mask covers no more.
            unsafe {
                if arguments.add {
                    sum = _mm512_add_ps(sum, _mm512_maskz_loadu_ps(masks[v], c));
                }
                _mm512_mask_storeu_ps(c, masks[v], sum);
            }
        }
    }
}

/// `f32` weights, or f16 ones widened to `f32`.
///
/// # Safety
/// See [`MicroArguments`]; with HALF, `b` is a packed f16 panel.
#[inline]
#[target_feature(enable = "avx512f")]
unsafe fn f32_tile<const ROWS: usize, const VECTORS: usize, const HALF: bool>(
    arguments: &MicroArguments,
) {
    let masks = masks(arguments.columns);
    let mut sums = [[_mm512_setzero_ps(); VECTORS]; ROWS];
    let mut a = arguments.a.cast::<f32>();
    let mut b = arguments.b;
    let mut step = |sums: &mut [[__m512; VECTORS]; ROWS]| {
        // SAFETY: `b` has `columns` `f32` values (masked) or 32 f16 ones, `a` has ROWS values at each step.
        unsafe {
            prefetch::<ROWS>(b);
            if VECTORS == 2 && !HALF {
                prefetch::<ROWS>(b.wrapping_add(64));
            }
            let w: [__m512; VECTORS] = std::array::from_fn(|v| {
                if HALF {
                    _mm512_cvtph_ps(_mm256_loadu_si256(b.add(32 * v).cast()))
                } else {
                    _mm512_maskz_loadu_ps(masks[v], b.wrapping_add(64 * v).cast())
                }
            });
            for i in 0..ROWS {
                let x = _mm512_set1_ps(*a.add(i));
                for v in 0..VECTORS {
                    sums[i][v] = _mm512_fmadd_ps(x, w[v], sums[i][v]);
                }
            }
        }
        a = a.wrapping_add(ROWS);
        b = b.wrapping_add(4 * arguments.ldb);
    };
    for _ in 0..arguments.steps {
        step(&mut sums);
    }
    // SAFETY: passed on.
    unsafe { store::<ROWS, VECTORS>(arguments, &sums) }
}

/// bf16 weights widened to `f32`.
///
/// # Safety
/// See [`MicroArguments`].
#[inline]
#[target_feature(enable = "avx512f")]
unsafe fn widen_tile<const ROWS: usize, const VECTORS: usize>(arguments: &MicroArguments) {
    let mut sums = [[_mm512_setzero_ps(); VECTORS]; ROWS];
    let mut a = arguments.a.cast::<f32>();
    let mut b = arguments.b;
    let high = _mm512_set1_epi32(0xffff_0000u32 as i32);
    for _ in 0..arguments.steps {
        for v in 0..VECTORS {
            // SAFETY: a packed bf16 panel has 32 pairs at each step, `a` has 2·ROWS values.
            unsafe {
                let pairs = _mm512_loadu_si512(b.add(64 * v).cast());
                let even = _mm512_castsi512_ps(_mm512_slli_epi32::<16>(pairs));
                let odd = _mm512_castsi512_ps(_mm512_and_si512(pairs, high));
                for i in 0..ROWS {
                    let sum = _mm512_fmadd_ps(_mm512_set1_ps(*a.add(i)), even, sums[i][v]);
                    sums[i][v] = _mm512_fmadd_ps(_mm512_set1_ps(*a.add(ROWS + i)), odd, sum);
                }
            }
        }
        a = a.wrapping_add(2 * ROWS);
        b = b.wrapping_add(4 * PANEL);
    }
    // SAFETY: passed on.
    unsafe { store::<ROWS, VECTORS>(arguments, &sums) }
}

/// bf16 pairs through `vdpbf16ps`.
///
/// # Safety
/// See [`MicroArguments`].
#[inline]
#[target_feature(enable = "avx512f,avx512bf16")]
unsafe fn bf16_tile<const ROWS: usize, const VECTORS: usize>(arguments: &MicroArguments) {
    let mut sums = [[_mm512_setzero_ps(); VECTORS]; ROWS];
    let mut a = arguments.a.cast::<i32>();
    let mut b = arguments.b;
    let mut step = |sums: &mut [[__m512; VECTORS]; ROWS]| {
        // SAFETY: a packed bf16 panel has 32 pairs (128 bytes) at each step, `a` has ROWS pairs.
        // `__m512bh` and `__m512i` are plain 512-bit vectors.
        unsafe {
            prefetch::<ROWS>(b);
            if VECTORS == 2 {
                prefetch::<ROWS>(b.wrapping_add(64));
            }
            let w: [__m512bh; VECTORS] = std::array::from_fn(|v| {
                std::mem::transmute(_mm512_loadu_si512(b.add(64 * v).cast()))
            });
            for i in 0..ROWS {
                let x: __m512bh = std::mem::transmute(_mm512_set1_epi32(*a.add(i)));
                for v in 0..VECTORS {
                    sums[i][v] = _mm512_dpbf16_ps(sums[i][v], w[v], x);
                }
            }
        }
        a = a.wrapping_add(ROWS);
        b = b.wrapping_add(4 * PANEL);
    };
    for _ in 0..arguments.steps {
        step(&mut sums);
    }
    // SAFETY: passed on.
    unsafe { store::<ROWS, VECTORS>(arguments, &sums) }
}

/// # Safety
/// See [`MicroArguments`]; needs AVX-512. With HALF, `b` is a packed f16 panel.
#[target_feature(enable = "avx512f")]
unsafe fn f32_rows<const ROWS: usize, const HALF: bool>(arguments: &MicroArguments) {
    // SAFETY: passed on.
    unsafe {
        if arguments.columns > 16 {
            f32_tile::<ROWS, 2, HALF>(arguments);
        } else {
            f32_tile::<ROWS, 1, HALF>(arguments);
        }
    }
}

/// # Safety
/// See [`MicroArguments`]; needs AVX-512.
#[target_feature(enable = "avx512f")]
unsafe fn widen_rows<const ROWS: usize>(arguments: &MicroArguments) {
    // SAFETY: passed on.
    unsafe {
        if arguments.columns > 16 {
            widen_tile::<ROWS, 2>(arguments);
        } else {
            widen_tile::<ROWS, 1>(arguments);
        }
    }
}

/// # Safety
/// See [`MicroArguments`]; needs AVX-512 BF16.
#[target_feature(enable = "avx512f,avx512bf16")]
unsafe fn bf16_rows<const ROWS: usize>(arguments: &MicroArguments) {
    // SAFETY: passed on.
    unsafe {
        if arguments.columns > 16 {
            bf16_tile::<ROWS, 2>(arguments);
        } else {
            bf16_tile::<ROWS, 1>(arguments);
        }
    }
}

/// `f32` microkernels for 1..=14 rows. All of them add up along k in the same order, so that a row's result does not depend on the rows
/// beside it; that few rows leave part of the latency of the multiply-adds open costs nothing, weights from memory being slower.
pub(crate) static F32: [MicroKernel; 14] = [
    f32_rows::<1, false>,
    f32_rows::<2, false>,
    f32_rows::<3, false>,
    f32_rows::<4, false>,
    f32_rows::<5, false>,
    f32_rows::<6, false>,
    f32_rows::<7, false>,
    f32_rows::<8, false>,
    f32_rows::<9, false>,
    f32_rows::<10, false>,
    f32_rows::<11, false>,
    f32_rows::<12, false>,
    f32_rows::<13, false>,
    f32_rows::<14, false>,
];

/// f16-weight microkernels for 1..=14 rows.
pub(crate) static F16: [MicroKernel; 14] = [
    f32_rows::<1, true>,
    f32_rows::<2, true>,
    f32_rows::<3, true>,
    f32_rows::<4, true>,
    f32_rows::<5, true>,
    f32_rows::<6, true>,
    f32_rows::<7, true>,
    f32_rows::<8, true>,
    f32_rows::<9, true>,
    f32_rows::<10, true>,
    f32_rows::<11, true>,
    f32_rows::<12, true>,
    f32_rows::<13, true>,
    f32_rows::<14, true>,
];

/// bf16-weight microkernels for 1..=12 rows, for processors without BF16 products.
pub(crate) static WIDEN: [MicroKernel; 12] = [
    widen_rows::<1>,
    widen_rows::<2>,
    widen_rows::<3>,
    widen_rows::<4>,
    widen_rows::<5>,
    widen_rows::<6>,
    widen_rows::<7>,
    widen_rows::<8>,
    widen_rows::<9>,
    widen_rows::<10>,
    widen_rows::<11>,
    widen_rows::<12>,
];

/// bf16 microkernels for 1..=14 rows.
pub(crate) static BF16: [MicroKernel; 14] = [
    bf16_rows::<1>,
    bf16_rows::<2>,
    bf16_rows::<3>,
    bf16_rows::<4>,
    bf16_rows::<5>,
    bf16_rows::<6>,
    bf16_rows::<7>,
    bf16_rows::<8>,
    bf16_rows::<9>,
    bf16_rows::<10>,
    bf16_rows::<11>,
    bf16_rows::<12>,
    bf16_rows::<13>,
    bf16_rows::<14>,
];

/// Transposes a 16×16 block of 32-bit values.
#[inline]
#[target_feature(enable = "avx512f")]
fn transpose(r: [__m512i; 16]) -> [__m512i; 16] {
    let zero = _mm512_setzero_si512();
    let (mut t, mut u, mut out) = ([zero; 16], [zero; 16], [zero; 16]);
    for i in 0..8 {
        t[2 * i] = _mm512_unpacklo_epi32(r[2 * i], r[2 * i + 1]);
        t[2 * i + 1] = _mm512_unpackhi_epi32(r[2 * i], r[2 * i + 1]);
    }
    // Now lane L of u[4g + j] holds column 4L + j of the rows 4g..4g + 4.
    for g in 0..4 {
        u[4 * g] = _mm512_unpacklo_epi64(t[4 * g], t[4 * g + 2]);
        u[4 * g + 1] = _mm512_unpackhi_epi64(t[4 * g], t[4 * g + 2]);
        u[4 * g + 2] = _mm512_unpacklo_epi64(t[4 * g + 1], t[4 * g + 3]);
        u[4 * g + 3] = _mm512_unpackhi_epi64(t[4 * g + 1], t[4 * g + 3]);
    }
    for j in 0..4 {
        let a = _mm512_shuffle_i32x4::<0x88>(u[j], u[4 + j]);
        let b = _mm512_shuffle_i32x4::<0x88>(u[8 + j], u[12 + j]);
        let c = _mm512_shuffle_i32x4::<0xdd>(u[j], u[4 + j]);
        let d = _mm512_shuffle_i32x4::<0xdd>(u[8 + j], u[12 + j]);
        out[j] = _mm512_shuffle_i32x4::<0x88>(a, b);
        out[4 + j] = _mm512_shuffle_i32x4::<0x88>(c, d);
        out[8 + j] = _mm512_shuffle_i32x4::<0xdd>(a, b);
        out[12 + j] = _mm512_shuffle_i32x4::<0xdd>(c, d);
    }
    out
}

/// Stores the first `steps` of 16 transposed groups of `rows` values, `stride` apart.
///
/// # Safety
/// `out` has room for `(steps - 1) · stride + rows` values.
#[inline]
#[target_feature(enable = "avx512f")]
unsafe fn store_groups(
    groups: &[__m512i; 16],
    steps: usize,
    rows: usize,
    out: *mut i32,
    stride: usize,
) {
    let mask = ((1u32 << rows) - 1) as __mmask16;
    for (p, group) in groups.iter().enumerate().take(steps) {
        // SAFETY: masked to `rows` values of group `p`.
        unsafe { _mm512_mask_storeu_epi32(out.add(p * stride), mask, *group) };
    }
}

/// Whether `rows` rows of `k` values and `steps` groups fit their slices.
fn fits(
    rows: usize,
    k: usize,
    row_stride: usize,
    source: usize,
    steps: usize,
    stride: usize,
    out: usize,
) -> bool {
    (1..=16).contains(&rows)
        && stride >= rows
        && source >= (rows - 1) * row_stride + k
        && (steps == 0 || out >= (steps - 1) * stride + rows)
}

/// Interleaves `rows` (1..=16) contiguous rows of `k` values as `f32`: value `p` of row `i` goes to `out[p · stride + i]`.
#[target_feature(enable = "avx512f")]
pub(crate) fn pack_f32(
    rows: usize,
    k: usize,
    source: &[f32],
    row_stride: usize,
    out: &mut [f32],
    stride: usize,
) {
    assert!(fits(
        rows,
        k,
        row_stride,
        source.len(),
        k,
        stride,
        out.len()
    ));
    for p in (0..k).step_by(16) {
        let steps = (k - p).min(16);
        let mask = ((1u32 << steps) - 1) as __mmask16;
        let mut r = [_mm512_setzero_si512(); 16];
        for (i, r) in r.iter_mut().enumerate().take(rows) {
            // SAFETY: in bounds by the assertion, masked to the values left in the row.
            *r = unsafe {
                _mm512_maskz_loadu_epi32(mask, source.as_ptr().add(i * row_stride + p).cast())
            };
        }
        // SAFETY: groups `p..p + steps` are in bounds by the assertion.
        unsafe {
            store_groups(
                &transpose(r),
                steps,
                rows,
                out.as_mut_ptr().add(p * stride).cast(),
                stride,
            )
        };
    }
}

/// Interleaves `rows` (1..=16) contiguous rows of `k` values as f16: value `p` of row `i` goes to `out[p · stride + i]`.
#[target_feature(enable = "avx512f,avx512bw,avx512vl")]
pub(crate) fn pack_f16(
    rows: usize,
    k: usize,
    source: &[f32],
    row_stride: usize,
    out: &mut [u16],
    stride: usize,
) {
    assert!(fits(
        rows,
        k,
        row_stride,
        source.len(),
        k,
        stride,
        out.len()
    ));
    let row_mask = ((1u32 << rows) - 1) as __mmask16;
    for p in (0..k).step_by(16) {
        let steps = (k - p).min(16);
        let mask = ((1u32 << steps) - 1) as __mmask16;
        let mut r = [_mm512_setzero_si512(); 16];
        for (i, r) in r.iter_mut().enumerate().take(rows) {
            // SAFETY: in bounds by the assertion, masked to the values left in the row.
            *r = unsafe {
                _mm512_maskz_loadu_epi32(mask, source.as_ptr().add(i * row_stride + p).cast())
            };
        }
        for (q, group) in transpose(r).into_iter().enumerate().take(steps) {
            const NEAREST: i32 = _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC;
            let halves = _mm512_cvtps_ph::<NEAREST>(_mm512_castsi512_ps(group));
            // SAFETY: group `p + q` is in bounds by the assertion, masked to `rows` values.
            unsafe {
                let to = out.as_mut_ptr().add((p + q) * stride).cast();
                _mm256_mask_storeu_epi16(to, row_mask, halves);
            }
        }
    }
}

/// Interleaves `rows` (1..=16) contiguous rows of `k` values as bf16 pairs: pair `p` of row `i` goes to
/// `out[p · stride + i]`.
#[target_feature(enable = "avx512f,avx512bw,avx512bf16")]
pub(crate) fn pack_bf16(
    rows: usize,
    k: usize,
    source: &[f32],
    row_stride: usize,
    out: &mut [u32],
    stride: usize,
) {
    assert!(fits(
        rows,
        k,
        row_stride,
        source.len(),
        k.div_ceil(2),
        stride,
        out.len()
    ));
    for p in (0..k).step_by(32) {
        let values = (k - p).min(32);
        let steps = values.div_ceil(2);
        let low = ((1u64 << values.min(16)) - 1) as __mmask16;
        let high = ((1u64 << values.saturating_sub(16)) - 1) as __mmask16;
        let mut r = [_mm512_setzero_si512(); 16];
        for (i, r) in r.iter_mut().enumerate().take(rows) {
            let from = source.as_ptr().wrapping_add(i * row_stride + p);
            // SAFETY: in bounds by the assertion, masked to the values left in the row. `__m512bh` is a plain vector.
            *r = unsafe {
                let first = _mm512_maskz_loadu_ps(low, from);
                let second = _mm512_maskz_loadu_ps(high, from.wrapping_add(16));
                std::mem::transmute::<__m512bh, __m512i>(_mm512_cvtne2ps_pbh(second, first))
            };
        }
        // SAFETY: groups `p/2..p/2 + steps` are in bounds by the assertion.
        unsafe {
            store_groups(
                &transpose(r),
                steps,
                rows,
                out.as_mut_ptr().add(p / 2 * stride).cast(),
                stride,
            )
        };
    }
}

/// Rounds `k` rows of `n` values, at distance `row_stride`, to bf16 pairs along k in panels of 32 columns: `[n / 32][⌈k / 2⌉][32][2]`, with 0 beside an odd
/// last row.
///
/// # Panics
/// When `n` is not a multiple of 32 or a slice is too short.
#[target_feature(enable = "avx512f,avx512bw,avx512bf16")]
pub(crate) fn pack_pairs(k: usize, n: usize, rows: &[f32], row_stride: usize, out: &mut [u32]) {
    let pairs = k.div_ceil(2);
    assert!(
        n.is_multiple_of(PANEL)
            && out.len() >= n * pairs
            && (k == 0 || (k - 1) * row_stride + n <= rows.len()),
        "bf16 pairs: a slice is too short"
    );
    // Word `2j` of the result is word `j` of the first row, word `2j + 1` that of the second.
    let mut order = [0u16; 32];
    for (at, from) in order.iter_mut().enumerate() {
        *from = (at / 2 + at % 2 * 16) as u16;
    }
    // SAFETY: 64 bytes.
    let order = unsafe { _mm512_loadu_si512(order.as_ptr().cast()) };
    for (panel, out) in out[..n * pairs]
        .chunks_exact_mut((pairs * PANEL).max(1))
        .enumerate()
    {
        for (pair, out) in out.chunks_exact_mut(PANEL).enumerate() {
            for half in 0..2 {
                let at = 2 * pair * row_stride + panel * PANEL + 16 * half;
                // SAFETY: the assertion above: sixteen values of row `2 · pair`, and of the next where there is one. `__m512bh` is a plain vector.
                unsafe {
                    let from = rows.as_ptr().add(at);
                    let first = _mm512_loadu_ps(from);
                    let second = if 2 * pair + 1 < k {
                        _mm512_loadu_ps(from.add(row_stride))
                    } else {
                        _mm512_setzero_ps()
                    };
                    let both: __m512i = std::mem::transmute(_mm512_cvtne2ps_pbh(second, first));
                    let mixed = _mm512_permutexvar_epi16(order, both);
                    _mm512_storeu_si512(out.as_mut_ptr().add(16 * half).cast(), mixed);
                }
            }
        }
    }
}
