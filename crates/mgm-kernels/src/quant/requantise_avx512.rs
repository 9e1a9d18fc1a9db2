//! Blocks of thirty-two weight rows made into a chunk of an int8 panel (see [`crate::int8`]).

use std::arch::x86_64::*;
use std::ops::Range;

use super::QuantType;
use super::columns_avx512::{Block, Form, Group, Source, by_type, starts};
use super::columns_avx512::{Small, Super};
use crate::int8::{COLUMNS, STEP_BYTES, ZERO, chunk_bytes};

/// Blocks of 32 values in a chunk.
const CHUNK_BLOCKS: usize = 8;

/// Writes the panel's chunk with the blocks `blocks` (numbers of 32 values, from a multiple of eight on, at most eight) of two groups, which
/// have `row_bytes` bytes a row and follow each other in `data`; without a second group its columns are zeros.
///
/// # Panics
/// When a slice has another length.
#[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512dq,avx512vnni,avx2,fma,f16c")]
pub(super) fn chunk(
    t: QuantType,
    data: &[u8],
    row_bytes: usize,
    blocks: Range<usize>,
    out: &mut [u8],
) {
    assert!(
        blocks.len() <= CHUNK_BLOCKS
            && blocks.start.is_multiple_of(CHUNK_BLOCKS)
            && out.len() == chunk_bytes(32 * blocks.len())
            && blocks.end <= row_bytes / t.block_bytes() * (t.block_len() / 32),
        "requantise: blocks outside their rows"
    );
    let groups = data.len() / (row_bytes * COLUMNS / 2).max(1);
    for half in 0..2 {
        let out = out.as_mut_ptr();
        if half < groups {
            let group = Group::of(t, data, row_bytes, half);
            let form = (starts(t).zero, code_bits(t));
            // SAFETY: the assertion above.
            by_type!(t, S => unsafe { half_chunk::<S>(group, form, blocks.clone(), half, out) });
        } else {
            // SAFETY: scales and steps of the chunk's second half, by the assertion above.
            unsafe {
                _mm512_storeu_ps(out.add(64 * half).cast(), _mm512_setzero_ps());
                for step in 0..8 * blocks.len() {
                    let at = out.add(4 * COLUMNS + STEP_BYTES * step + 64 * half);
                    _mm512_storeu_si512(at.cast(), _mm512_set1_epi8(-128));
                }
            }
        }
    }
}

/// Bits of a format's codes.
fn code_bits(t: QuantType) -> u32 {
    match t {
        QuantType::Q4_0 | QuantType::Q4_1 | QuantType::Q4K => 4,
        QuantType::Q5_0 | QuantType::Q5_1 | QuantType::Q5K => 5,
        QuantType::Q6K => 6,
        QuantType::Q8_0 => 8,
    }
}

/// Sixteen columns of a chunk.
///
/// # Safety
/// The machine has the features, `group` has the blocks, `out` room for a chunk of so many.
#[inline]
#[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512dq,avx512vnni,avx2,fma,f16c")]
unsafe fn half_chunk<S: Source>(
    group: Group,
    (zero, bits): (i32, u32),
    blocks: Range<usize>,
    half: usize,
    out: *mut u8,
) {
    let nothing = Block {
        codes: [_mm512_setzero_si512(); 8],
        scales: [_mm512_setzero_ps(); 2],
        offset: _mm512_setzero_ps(),
    };
    let mut unpacked = [nothing; CHUNK_BLOCKS];
    let zero = _mm512_set1_ps(-zero as f32);
    // What is added to `scale · code`, for each half of a block.
    let offsets = |block: &Block| {
        if S::Form::OFFSETS {
            [block.offset; 2]
        } else {
            block.scales.map(|scale| _mm512_mul_ps(scale, zero))
        }
    };
    let mut largest = _mm512_setzero_ps();
    // SAFETY: the caller's; numbers rise.
    unsafe {
        let mut source = S::new(group);
        for (index, block) in blocks.clone().zip(&mut unpacked) {
            *block = source.block(index);
            let offsets = offsets(block);
            let vectors = if S::Form::HALVES { 4 } else { 8 };
            for (part, codes) in block.codes.chunks(vectors).enumerate() {
                // The values rise or fall with the codes, so that the largest is at one of their ends.
                let (mut most, mut least) = (codes[0], codes[0]);
                for &code in &codes[1..] {
                    most = _mm512_max_epu8(most, code);
                    least = _mm512_min_epu8(least, code);
                }
                most = _mm512_max_epu8(most, _mm512_srli_epi32::<16>(most));
                most = _mm512_max_epu8(most, _mm512_srli_epi32::<8>(most));
                least = _mm512_min_epu8(least, _mm512_rol_epi32::<16>(least));
                least = _mm512_min_epu8(least, _mm512_rol_epi32::<8>(least));
                for end in [most, least] {
                    let code = _mm512_and_si512(end, _mm512_set1_epi32(255));
                    let (scale, offset) = (block.scales[part], offsets[part]);
                    let value = _mm512_fmadd_ps(_mm512_cvtepi32_ps(code), scale, offset);
                    largest = _mm512_max_ps(largest, _mm512_abs_ps(value));
                }
            }
        }
        let scale = _mm512_mul_ps(largest, _mm512_set1_ps(1.0 / 127.0));
        let some = _mm512_cmp_ps_mask::<_CMP_GT_OQ>(scale, _mm512_setzero_ps());
        let inverse = _mm512_maskz_div_ps(some, _mm512_set1_ps(127.0), largest);
        _mm512_storeu_ps(out.add(64 * half).cast(), scale);
        let mut to = out.add(4 * COLUMNS + 64 * half);
        for block in &unpacked[..blocks.len()] {
            let offsets = offsets(block);
            let linear: [_; 2] = std::array::from_fn(|part| {
                let factor = _mm512_mul_ps(block.scales[part], inverse);
                let around = _mm512_set1_ps(ZERO as f32);
                (factor, _mm512_fmadd_ps(offsets[part], inverse, around))
            });
            let fixed = linear.map(|(factor, offset)| Fixed::of(bits, factor, offset));
            let words: [__m512i; 8] = match fixed {
                [Some(first), Some(second)] => std::array::from_fn(|g| {
                    let fixed = if S::Form::HALVES && g >= 4 {
                        second
                    } else {
                        first
                    };
                    fixed.rounded(bits, block.codes[g])
                }),
                // Few of the codes are used, so that steps between them are too large for it, or there are too many.
                _ => std::array::from_fn(|g| {
                    let part = if S::Form::HALVES { g / 4 } else { 0 };
                    rounded(linear[part], block.codes[g])
                }),
            };
            for word in words {
                _mm512_storeu_si512(to.cast(), word);
                to = to.add(STEP_BYTES);
            }
        }
    }
}

/// Codes of `factor · code + offset` for the four codes of each lane.
#[inline]
#[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512dq,avx512vnni,avx2,fma,f16c")]
fn rounded((factor, offset): (__m512, __m512), codes: __m512i) -> __m512i {
    let byte = _mm512_set1_epi32(255);
    let rounded = |code: __m512i| {
        let value = _mm512_cvtepi32_ps(_mm512_and_si512(code, byte));
        _mm512_cvtps_epi32(_mm512_fmadd_ps(value, factor, offset))
    };
    let a = rounded(codes);
    let b = rounded(_mm512_srli_epi32::<8>(codes));
    let c = rounded(_mm512_srli_epi32::<16>(codes));
    let d = rounded(_mm512_srli_epi32::<24>(codes));
    let low = _mm512_or_si512(a, _mm512_slli_epi32::<8>(b));
    let high = _mm512_or_si512(c, _mm512_slli_epi32::<8>(d));
    _mm512_or_si512(low, _mm512_slli_epi32::<16>(high))
}

/// [`rounded`] with 16-bit integers, in half as many operations: what is rounded is at most a fiftieth of a code beside the value.
#[derive(Clone, Copy)]
struct Fixed {
    /// `factor · 64 · 2^bits`, twice in each lane.
    factor: __m512i,
    /// `offset · 64` and a half to round by, twice in each lane.
    offset: __m512i,
}

impl Fixed {
    /// Binary places behind the point.
    const PLACES: i32 = 6;
    /// Codes of more bits would reach into each other.
    const MOST_BITS: u32 = 6;

    /// Nothing where codes have too many bits or the numbers are too large.
    #[inline]
    #[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512dq,avx512vnni,avx2,fma,f16c")]
    fn of(bits: u32, factor: __m512, offset: __m512) -> Option<Self> {
        let one = (1 << Self::PLACES) as f32;
        let factor = _mm512_mul_ps(factor, _mm512_set1_ps(one * (1 << bits) as f32));
        let half = _mm512_set1_ps(one / 2.0);
        let offset = _mm512_fmadd_ps(offset, _mm512_set1_ps(one), half);
        let largest = _mm512_max_ps(_mm512_abs_ps(factor), _mm512_abs_ps(offset));
        // Not a number is not smaller.
        let fits = _mm512_cmp_ps_mask::<_CMP_LT_OQ>(largest, _mm512_set1_ps(32767.0));
        if fits != u16::MAX || bits > Self::MOST_BITS {
            return None;
        }
        let twice = |value: __m512| {
            let value = _mm512_and_si512(_mm512_cvtps_epi32(value), _mm512_set1_epi32(0xffff));
            _mm512_or_si512(value, _mm512_slli_epi32::<16>(value))
        };
        Some(Self {
            factor: twice(factor),
            offset: twice(offset),
        })
    }

    #[inline]
    #[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512dq,avx512vnni,avx2,fma,f16c")]
    fn rounded(self, bits: u32, codes: __m512i) -> __m512i {
        let high_bytes = _mm512_set1_epi16(-256);
        let shift = |bits: u32| _mm_cvtsi32_si128(bits as i32);
        // Both bytes of 16 bits at the upper end below the sign; the product's upper half is `code · factor · 64`.
        let even = _mm512_sll_epi16(codes, shift(15 - bits));
        let odd = _mm512_and_si512(codes, high_bytes);
        let odd = _mm512_sll_epi16(odd, shift(7 - bits));
        let value = |code| _mm512_add_epi16(_mm512_mulhrs_epi16(code, self.factor), self.offset);
        let even = _mm512_srli_epi16::<6>(value(even));
        let odd = _mm512_slli_epi16::<2>(value(odd));
        // The upper byte of the one, the lower of the other.
        _mm512_ternarylogic_epi32::<0xca>(high_bytes, odd, even)
    }
}
