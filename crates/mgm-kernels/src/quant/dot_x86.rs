//! Integer dot products of the 32-value formats on x86-64, straight from the blocks.

use std::arch::x86_64::*;

use super::QuantType;
use super::activations::QuantRows;
use super::dot::MAX_ROWS;

/// Codes of one block (unsigned, value order), and `[scale, offset]` in the two low lanes, where
/// `value = scale · code + offset`.
type Block = (__m256i, __m128);

/// Nibbles of 16 bytes: the low ones first.
///
/// # Safety
/// 16 readable bytes at `data`.
#[inline]
#[target_feature(enable = "avx2,fma,f16c")]
unsafe fn nibbles(data: *const u8) -> __m256i {
    // SAFETY: the caller's.
    let both = unsafe { _mm256_broadcastsi128_si256(_mm_loadu_si128(data.cast())) };
    let shifted = _mm256_srlv_epi32(both, _mm256_setr_epi32(0, 0, 0, 0, 4, 4, 4, 4));
    _mm256_and_si256(shifted, _mm256_set1_epi8(15))
}

/// 16 in each byte whose bit of the 32-bit word is set.
///
/// # Safety
/// 4 readable bytes at `data`.
#[inline]
#[target_feature(enable = "avx2,fma,f16c")]
unsafe fn fifth_bits(data: *const u8) -> __m256i {
    // SAFETY: the caller's.
    let word = unsafe { _mm256_set1_epi32(data.cast::<i32>().read_unaligned()) };
    let byte_of = _mm256_setr_epi64x(
        0,
        0x0101_0101_0101_0101,
        0x0202_0202_0202_0202,
        0x0303_0303_0303_0303,
    );
    let bit_of = _mm256_set1_epi64x(0x8040_2010_0804_0201u64 as i64);
    let bits = _mm256_and_si256(_mm256_shuffle_epi8(word, byte_of), bit_of);
    _mm256_and_si256(_mm256_cmpeq_epi8(bits, bit_of), _mm256_set1_epi8(16))
}

/// `[scale, ratio · scale]` from one half float.
///
/// # Safety
/// 2 readable bytes at `data`.
#[inline]
#[target_feature(enable = "avx2,fma,f16c")]
unsafe fn scale_only(data: *const u8, ratio: f32) -> __m128 {
    // SAFETY: the caller's.
    let scale = unsafe { _mm_set1_epi16(data.cast::<i16>().read_unaligned()) };
    _mm_mul_ps(_mm_cvtph_ps(scale), _mm_setr_ps(1.0, ratio, 0.0, 0.0))
}

/// `[scale, minimum]` from two half floats.
///
/// # Safety
/// 4 readable bytes at `data`.
#[inline]
#[target_feature(enable = "avx2,fma,f16c")]
unsafe fn scale_minimum(data: *const u8) -> __m128 {
    // SAFETY: the caller's.
    unsafe { _mm_cvtph_ps(_mm_cvtsi32_si128(data.cast::<i32>().read_unaligned())) }
}

/// Reads one block; `TYPE` is the ggml number of a 32-value format.
///
/// # Safety
/// A whole block of the format is readable at `block`.
#[inline]
#[target_feature(enable = "avx2,fma,f16c")]
unsafe fn read<const TYPE: u32>(block: *const u8) -> Block {
    // SAFETY: offsets inside a block of the format.
    unsafe {
        match TYPE {
            2 => (nibbles(block.add(2)), scale_only(block, -8.0)),
            3 => (nibbles(block.add(4)), scale_minimum(block)),
            6 => (
                _mm256_or_si256(nibbles(block.add(6)), fifth_bits(block.add(2))),
                scale_only(block, -16.0),
            ),
            7 => (
                _mm256_or_si256(nibbles(block.add(8)), fifth_bits(block.add(4))),
                scale_minimum(block),
            ),
            _ => {
                let codes = _mm256_loadu_si256(block.add(2).cast());
                (
                    _mm256_xor_si256(codes, _mm256_set1_epi8(-128)),
                    scale_only(block, -128.0),
                )
            }
        }
    }
}

/// Eight sums that make up the sum of all products.
#[inline]
#[target_feature(enable = "avx2,fma,f16c")]
fn products_avx2<const TYPE: u32>(codes: __m256i, x: __m256i) -> __m256i {
    if TYPE == 8 {
        // Q8_0 has codes above 127: the byte multiply-add would saturate.
        let half = |codes: __m128i, x: __m128i| {
            _mm256_madd_epi16(_mm256_cvtepu8_epi16(codes), _mm256_cvtepi8_epi16(x))
        };
        let low = half(_mm256_castsi256_si128(codes), _mm256_castsi256_si128(x));
        let high = half(
            _mm256_extracti128_si256::<1>(codes),
            _mm256_extracti128_si256::<1>(x),
        );
        _mm256_add_epi32(low, high)
    } else {
        _mm256_madd_epi16(_mm256_maddubs_epi16(codes, x), _mm256_set1_epi16(1))
    }
}

#[inline]
#[target_feature(enable = "avx2,fma,f16c")]
fn horizontal_sum(v: __m256) -> f32 {
    let four = _mm_add_ps(_mm256_castps256_ps128(v), _mm256_extractf128_ps::<1>(v));
    let two = _mm_add_ps(four, _mm_movehl_ps(four, four));
    _mm_cvtss_f32(_mm_add_ss(two, _mm_movehdup_ps(two)))
}

#[inline]
#[target_feature(enable = "avx2,fma,f16c")]
fn row<const TYPE: u32, const BYTES: usize, const M: usize>(
    data: &[u8],
    k: usize,
    x: &QuantRows,
) -> [f32; MAX_ROWS] {
    let blocks = k / 32;
    assert!(data.len() >= blocks * BYTES && x.codes.len() >= M * k && x.pairs.len() >= M * blocks);
    // Two sets of sums: one chain of additions would be slower than the loads.
    let mut sums = [[_mm256_setzero_ps(); M]; 2];
    let mut offsets = [_mm_setzero_ps(); M];
    let mut step = |block: usize, sums: &mut [__m256; M]| {
        // SAFETY: `block < blocks`, within the lengths asserted above.
        unsafe {
            let (codes, weight) = read::<TYPE>(data.as_ptr().add(block * BYTES));
            for i in 0..M {
                let values = _mm256_loadu_si256(x.codes.as_ptr().add(i * k + 32 * block).cast());
                let pair =
                    _mm_castpd_ps(_mm_load_sd(x.pairs.as_ptr().add(i * blocks + block).cast()));
                let scaled = _mm_mul_ps(weight, pair);
                let products = _mm256_cvtepi32_ps(products_avx2::<TYPE>(codes, values));
                sums[i] = _mm256_fmadd_ps(products, _mm256_broadcastss_ps(scaled), sums[i]);
                offsets[i] = _mm_add_ps(offsets[i], scaled);
            }
        }
    };
    for block in 0..blocks / 2 {
        step(2 * block, &mut sums[0]);
        step(2 * block + 1, &mut sums[1]);
    }
    if blocks % 2 == 1 {
        step(blocks - 1, &mut sums[0]);
    }
    let mut out = [0.0; MAX_ROWS];
    for i in 0..M {
        let offset = _mm_cvtss_f32(_mm_movehdup_ps(offsets[i]));
        out[i] = horizontal_sum(_mm256_add_ps(sums[0][i], sums[1][i])) + offset;
    }
    out
}

/// Dot products of one weight row with `m` (1..=8) rows; `None` for the formats of 256 values.
#[target_feature(enable = "avx2,fma,f16c")]
pub(crate) fn dot_avx2(
    t: QuantType,
    m: usize,
    data: &[u8],
    k: usize,
    x: &QuantRows,
) -> Option<[f32; MAX_ROWS]> {
    macro_rules! by_rows {
        ($type:literal, $bytes:literal) => {
            match m {
                1 => row::<$type, $bytes, 1>(data, k, x),
                2 => row::<$type, $bytes, 2>(data, k, x),
                3 | 4 => row::<$type, $bytes, 4>(data, k, x),
                _ => row::<$type, $bytes, 8>(data, k, x),
            }
        };
    }
    match t {
        QuantType::Q4_0 => Some(by_rows!(2, 18)),
        QuantType::Q4_1 => Some(by_rows!(3, 20)),
        QuantType::Q5_0 => Some(by_rows!(6, 22)),
        QuantType::Q5_1 => Some(by_rows!(7, 24)),
        QuantType::Q8_0 => Some(by_rows!(8, 34)),
        QuantType::Q4K | QuantType::Q5K | QuantType::Q6K => None,
    }
}
