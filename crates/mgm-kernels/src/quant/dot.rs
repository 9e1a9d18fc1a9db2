//! Integer dot products of one weight row with a few quantised rows.

use super::QuantType;
use super::activations::QuantRows;
use super::codes::{CHUNK, Codes};
#[cfg(target_arch = "x86_64")]
use super::dot_x86;
use crate::level::Level;

/// Largest number of rows that one pass over a weight row serves.
pub(crate) const MAX_ROWS: usize = 8;

/// One instruction set's way to multiply 32 unsigned codes with 32 signed ones.
trait Instructions {
    /// Running sums.
    type Sums: Copy;
    fn zero() -> Self::Sums;
    /// `sums += scales[0] · Σ(first 16 products) + scales[1] · Σ(last 16)`; with `EQUAL` the scales are the same.
    fn add<const EQUAL: bool>(
        sums: Self::Sums,
        codes: &[u8; 32],
        x: &[i8; 32],
        scales: [f32; 2],
    ) -> Self::Sums;
    fn total(sums: Self::Sums) -> f32;
}

struct Portable;

impl Instructions for Portable {
    type Sums = f32;

    #[inline(always)]
    fn zero() -> f32 {
        0.0
    }

    #[inline(always)]
    fn add<const EQUAL: bool>(sums: f32, codes: &[u8; 32], x: &[i8; 32], scales: [f32; 2]) -> f32 {
        let mut halves = [0i32; 2];
        for (half, total) in halves.iter_mut().enumerate() {
            for i in 16 * half..16 * half + 16 {
                *total += i32::from(codes[i]) * i32::from(x[i]);
            }
        }
        sums + scales[0] * halves[0] as f32 + scales[1] * halves[1] as f32
    }

    #[inline(always)]
    fn total(sums: f32) -> f32 {
        sums
    }
}

#[cfg(target_arch = "x86_64")]
mod x86 {
    use std::arch::x86_64::*;

    use super::Instructions;

    /// Both scales as a vector over the eight lanes: lanes 0..4 sum the first 16 products.
    #[inline]
    #[target_feature(enable = "avx2,fma")]
    fn scale_vector<const EQUAL: bool>(scales: [f32; 2]) -> __m256 {
        if EQUAL {
            _mm256_set1_ps(scales[0])
        } else {
            _mm256_set_m128(_mm_set1_ps(scales[1]), _mm_set1_ps(scales[0]))
        }
    }

    #[inline]
    #[target_feature(enable = "avx2,fma")]
    fn horizontal_sum(v: __m256) -> f32 {
        let four = _mm_add_ps(_mm256_castps256_ps128(v), _mm256_extractf128_ps::<1>(v));
        let two = _mm_add_ps(four, _mm_movehl_ps(four, four));
        _mm_cvtss_f32(_mm_add_ss(two, _mm_movehdup_ps(two)))
    }

    pub(super) struct Avx2;

    #[inline]
    #[target_feature(enable = "avx2,fma")]
    fn avx2_add<const EQUAL: bool>(
        sums: __m256,
        codes: &[u8; 32],
        x: &[i8; 32],
        scales: [f32; 2],
    ) -> __m256 {
        // Widened to 16 bits first: the byte multiply-add saturates for codes above 127.
        // SAFETY: both arrays hold 32 bytes.
        let products = unsafe {
            let half = |i: usize| {
                let codes =
                    _mm256_cvtepu8_epi16(_mm_loadu_si128(codes.as_ptr().add(16 * i).cast()));
                let x = _mm256_cvtepi8_epi16(_mm_loadu_si128(x.as_ptr().add(16 * i).cast()));
                _mm256_madd_epi16(codes, x)
            };
            let (first, last) = (half(0), half(1));
            // Lanes 0..4: the first half's sums, lanes 4..8: the last half's.
            let low = _mm256_permute2x128_si256::<0x20>(first, last);
            let high = _mm256_permute2x128_si256::<0x31>(first, last);
            _mm256_add_epi32(low, high)
        };
        _mm256_fmadd_ps(
            _mm256_cvtepi32_ps(products),
            scale_vector::<EQUAL>(scales),
            sums,
        )
    }

    impl Instructions for Avx2 {
        type Sums = __m256;

        #[inline(always)]
        fn zero() -> __m256 {
            // SAFETY: only used where AVX2 was detected.
            unsafe { _mm256_setzero_ps() }
        }

        #[inline(always)]
        fn add<const EQUAL: bool>(
            sums: __m256,
            codes: &[u8; 32],
            x: &[i8; 32],
            scales: [f32; 2],
        ) -> __m256 {
            // SAFETY: only used where AVX2 and FMA were detected.
            unsafe { avx2_add::<EQUAL>(sums, codes, x, scales) }
        }

        #[inline(always)]
        fn total(sums: __m256) -> f32 {
            // SAFETY: only used where AVX2 was detected.
            unsafe { horizontal_sum(sums) }
        }
    }
}

/// Dot products of one weight row (`data`) with `M` quantised rows.
#[inline(always)]
fn row<I: Instructions, const M: usize>(
    t: QuantType,
    data: &[u8],
    k: usize,
    x: &QuantRows,
) -> [f32; MAX_ROWS] {
    let mut sums = [I::zero(); M];
    let mut offsets = [0.0f32; M];
    let mut decoded = Codes::new();
    let block_bytes = t.block_bytes();
    let block_len = t.block_len();
    let mut start = 0;
    while start < k {
        let count = decoded.decode(t, &data[start / block_len * block_bytes..]);
        let blocks = count / 32;
        for (i, (sums, offsets)) in sums.iter_mut().zip(&mut offsets).enumerate() {
            let first = (i * k + start) / 32;
            let codes = x.codes[32 * first..][..32 * blocks].as_chunks::<32>().0;
            let scales = &x.scales[first..][..blocks];
            let half_sums = &x.sums[2 * first..][..2 * blocks];
            let weights = decoded.codes.as_chunks::<32>().0;
            for block in 0..blocks {
                let scale = [
                    decoded.scales[2 * block] * scales[block],
                    decoded.scales[2 * block + 1] * scales[block],
                ];
                // Only Q6_K has scales for every 16 values.
                *sums = if t == QuantType::Q6K {
                    I::add::<false>(*sums, &weights[block], &codes[block], scale)
                } else {
                    I::add::<true>(*sums, &weights[block], &codes[block], scale)
                };
            }
            for (&offset, &sum) in decoded.offsets[..2 * blocks].iter().zip(half_sums) {
                *offsets += offset * sum;
            }
        }
        start += CHUNK;
    }
    let mut out = [0.0; MAX_ROWS];
    for i in 0..M {
        out[i] = I::total(sums[i]) + offsets[i];
    }
    out
}

/// Monomorphic in the number of rows, so that the sums stay in registers.
#[inline(always)]
fn rows<I: Instructions>(
    t: QuantType,
    m: usize,
    data: &[u8],
    k: usize,
    x: &QuantRows,
) -> [f32; MAX_ROWS] {
    macro_rules! by_type {
        ($m:literal) => {
            match t {
                QuantType::Q8_0 => row::<I, $m>(QuantType::Q8_0, data, k, x),
                QuantType::Q4_0 => row::<I, $m>(QuantType::Q4_0, data, k, x),
                QuantType::Q4_1 => row::<I, $m>(QuantType::Q4_1, data, k, x),
                QuantType::Q5_0 => row::<I, $m>(QuantType::Q5_0, data, k, x),
                QuantType::Q5_1 => row::<I, $m>(QuantType::Q5_1, data, k, x),
                QuantType::Q4K => row::<I, $m>(QuantType::Q4K, data, k, x),
                QuantType::Q5K => row::<I, $m>(QuantType::Q5K, data, k, x),
                QuantType::Q6K => row::<I, $m>(QuantType::Q6K, data, k, x),
            }
        };
    }
    match m {
        1 => by_type!(1),
        2 => by_type!(2),
        3 | 4 => by_type!(4),
        _ => by_type!(8),
    }
}

#[cfg(target_arch = "x86_64")]
#[target_feature(enable = "avx2,fma")]
fn rows_avx2(t: QuantType, m: usize, data: &[u8], k: usize, x: &QuantRows) -> [f32; MAX_ROWS] {
    rows::<x86::Avx2>(t, m, data, k, x)
}

/// Rows for which a call of [`dot`] needs activations: kernels exist for 1, 2, 4 and 8 rows.
pub(crate) fn padded_rows(m: usize) -> usize {
    m.next_power_of_two()
}

/// Dot products of one weight row of `k` values with `m` (1..=8) rows. `x` has [`padded_rows`]`(m)` rows. `level` must
/// be one that the machine has.
pub(crate) fn dot(
    level: Level,
    t: QuantType,
    m: usize,
    data: &[u8],
    k: usize,
    x: &QuantRows,
) -> [f32; MAX_ROWS] {
    #[cfg(target_arch = "x86_64")]
    if level >= Level::Avx2 {
        // SAFETY: the machine has this level.
        return unsafe {
            dot_x86::dot_avx2(t, m, data, k, x).unwrap_or_else(|| rows_avx2(t, m, data, k, x))
        };
    }
    let _ = level;
    rows::<Portable>(t, m, data, k, x)
}
