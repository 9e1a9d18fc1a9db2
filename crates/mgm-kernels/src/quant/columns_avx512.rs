//! Integer products for AVX-512: sixteen weight rows at a time against any number of quantised rows.
//!
//! Each lane belongs to one weight row (output column). Four values of the sixteen rows are one vector, which `vpdpbusd` multiplies with four
//! values of an activation row, broadcast from memory; integer sums of 32 values are exact, so a result depends on nothing but its own
//! two rows: a product of many rows has the same bits as the products of each row alone.

use std::arch::x86_64::*;

use super::QuantType;
use super::activations::QuantRows;

/// Weight rows of one call.
pub(crate) const COLUMNS: usize = 16;
/// Bytes of a cache line.
const LINE: usize = 64;
/// Most activation rows that one pass over the weights serves: their sums stay in registers.
pub(crate) const MAX_PASS_ROWS: usize = 16;

/// 32 values of sixteen weight rows: vector `g` holds the codes of values `4g..4g + 4`, `value = scale · code + offset` with one scale for
/// each half of the 32 values.
struct Block {
    codes: [__m512i; 8],
    scales: [__m512; 2],
    offsets: [__m512; 2],
}

/// What gives the blocks of sixteen weight rows, one after another.
trait Source {
    /// Whether the halves of a block have scales of their own.
    const HALVES: bool;

    /// Block number `index`. Called with rising numbers from 0.
    ///
    /// # Safety
    /// The machine has the features of [`rows`], and `index` is below the row's number of blocks.
    unsafe fn block(&mut self, index: usize) -> Block;

    /// Fetches a share of the next sixteen weight rows, as much as block number `index` is of these: sixteen rows side by side are more
    /// streams than the processor follows by itself.
    fn prefetch(&self, index: usize);
}

/// Sixteen weight rows in memory.
#[derive(Clone, Copy)]
struct Rows {
    data: *const u8,
    row_bytes: usize,
}

impl Rows {
    /// The 32-bit word at `offset` in each of the rows.
    ///
    /// # Safety
    /// 4 readable bytes there in every row.
    #[inline]
    #[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512dq,avx512vnni,avx2,fma,f16c")]
    unsafe fn words(self, offset: usize) -> __m512i {
        // SAFETY: the caller's.
        let four = |first: usize| unsafe {
            let base = self.data.add(first * self.row_bytes + offset);
            let word = |row: usize| {
                base.add(row * self.row_bytes)
                    .cast::<i32>()
                    .read_unaligned()
            };
            _mm_setr_epi32(word(0), word(1), word(2), word(3))
        };
        let low = _mm256_set_m128i(four(4), four(0));
        let high = _mm256_set_m128i(four(12), four(8));
        _mm512_inserti64x4::<1>(_mm512_castsi256_si512(low), high)
    }

    /// The 16 bytes at `offset` of the rows: vector `j` holds the bytes `4j..4j + 4` of all of them.
    ///
    /// # Safety
    /// 16 readable bytes there in every row.
    #[inline]
    #[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512dq,avx512vnni,avx2,fma,f16c")]
    unsafe fn quarters(self, offset: usize) -> [__m512i; 4] {
        // Rows `i`, `4 + i`, `8 + i` and `12 + i` side by side.
        let side_by_side = |i: usize| {
            // SAFETY: the caller's.
            let lane = |group: usize| unsafe {
                let row = self.data.add((4 * group + i) * self.row_bytes + offset);
                _mm_loadu_si128(row.cast())
            };
            let low = _mm256_set_m128i(lane(1), lane(0));
            let high = _mm256_set_m128i(lane(3), lane(2));
            _mm512_inserti64x4::<1>(_mm512_castsi256_si512(low), high)
        };
        let (a, b, c, d) = (
            side_by_side(0),
            side_by_side(1),
            side_by_side(2),
            side_by_side(3),
        );
        let (ab_low, ab_high) = (_mm512_unpacklo_epi32(a, b), _mm512_unpackhi_epi32(a, b));
        let (cd_low, cd_high) = (_mm512_unpacklo_epi32(c, d), _mm512_unpackhi_epi32(c, d));
        [
            _mm512_unpacklo_epi64(ab_low, cd_low),
            _mm512_unpackhi_epi64(ab_low, cd_low),
            _mm512_unpacklo_epi64(ab_high, cd_high),
            _mm512_unpackhi_epi64(ab_high, cd_high),
        ]
    }

    /// Fetches the bytes after the rows from `start` to `end`.
    #[inline(always)]
    fn prefetch(self, start: usize, end: usize) {
        let next = self.data.wrapping_add(COLUMNS * self.row_bytes);
        for offset in (start / LINE * LINE..end).step_by(LINE) {
            // SAFETY: a prefetch may go anywhere.
            unsafe { _mm_prefetch::<_MM_HINT_T1>(next.wrapping_add(offset).cast()) };
        }
    }

    /// The 32 bytes at `offset` of the rows, four bytes of all of them in each vector.
    ///
    /// # Safety
    /// 32 readable bytes there in every row.
    #[inline]
    #[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512dq,avx512vnni,avx2,fma,f16c")]
    unsafe fn eighths(self, offset: usize) -> [__m512i; 8] {
        // SAFETY: the caller's.
        let (low, high) = unsafe { (self.quarters(offset), self.quarters(offset + 16)) };
        std::array::from_fn(|g| if g < 4 { low[g] } else { high[g - 4] })
    }
}

/// Half floats in the low 16 bits of each lane.
#[inline]
#[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512dq,avx512vnni,avx2,fma,f16c")]
fn halves(words: __m512i) -> __m512 {
    _mm512_cvtph_ps(_mm512_cvtepi32_epi16(words))
}

/// Bits `shift..shift + width` of every byte, for a mask of `width` ones; the bits must not reach over the byte's end.
#[inline]
#[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512dq,avx512vnni,avx2,fma,f16c")]
fn byte_bits(bytes: __m512i, shift: usize, mask: i8) -> __m512i {
    let shifted = _mm512_srl_epi16(bytes, _mm_cvtsi32_si128(shift as i32));
    _mm512_and_si512(shifted, _mm512_set1_epi8(mask))
}

/// Bits `shift..` of every lane under `mask`.
#[inline]
#[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512dq,avx512vnni,avx2,fma,f16c")]
fn lane_bits(words: __m512i, shift: usize, mask: i32) -> __m512i {
    let shifted = _mm512_srl_epi32(words, _mm_cvtsi32_si128(shift as i32));
    _mm512_and_si512(shifted, _mm512_set1_epi32(mask))
}

/// The formats of 32 values; `TYPE` is the ggml number.
struct Small<const TYPE: u32>(Rows);

impl<const TYPE: u32> Small<TYPE> {
    const BYTES: usize = match TYPE {
        2 => 18,
        3 => 20,
        6 => 22,
        7 => 24,
        _ => 34,
    };

    /// # Safety
    /// Block number `index` of every row is readable.
    #[inline]
    #[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512dq,avx512vnni,avx2,fma,f16c")]
    unsafe fn unpack(&self, index: usize) -> Block {
        let at = index * Self::BYTES;
        // SAFETY: offsets inside the block; the word at its beginning is inside it too.
        unsafe {
            let header = self.0.words(at);
            let scale = halves(header);
            let minimum = || halves(_mm512_srli_epi32::<16>(header));
            let times = |factor: f32| _mm512_mul_ps(scale, _mm512_set1_ps(factor));
            let (codes, offset) = match TYPE {
                2 => (self.nibbles(at + 2, None), times(-8.0)),
                3 => (self.nibbles(at + 4, None), minimum()),
                6 => (self.nibbles(at + 6, Some(at + 2)), times(-16.0)),
                7 => (self.nibbles(at + 8, Some(at + 4)), minimum()),
                _ => {
                    let flip = |codes| _mm512_xor_si512(codes, _mm512_set1_epi8(-128));
                    (self.0.eighths(at + 2).map(flip), times(-128.0))
                }
            };
            Block {
                codes,
                scales: [scale; 2],
                offsets: [offset; 2],
            }
        }
    }

    /// Codes from 16 bytes of nibbles, the low ones first, and a word of fifth bits.
    ///
    /// # Safety
    /// 16 readable bytes at `offset`, 4 at `fifth`, in every row.
    #[inline]
    #[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512dq,avx512vnni,avx2,fma,f16c")]
    unsafe fn nibbles(&self, offset: usize, fifth: Option<usize>) -> [__m512i; 8] {
        // SAFETY: the caller's.
        let bytes = unsafe { self.0.quarters(offset) };
        let mask = _mm512_set1_epi8(15);
        let codes = std::array::from_fn(|g| {
            let bytes = if g < 4 {
                bytes[g]
            } else {
                _mm512_srli_epi16::<4>(bytes[g - 4])
            };
            _mm512_and_si512(bytes, mask)
        });
        let Some(fifth) = fifth else {
            return codes;
        };
        // SAFETY: the caller's.
        let word = unsafe { self.0.words(fifth) };
        std::array::from_fn(|g| {
            // Bits `4g..4g + 4` of the word belong to the four bytes of the lane: its byte `g / 2`, one bit in each.
            let byte = (0x0101_0101 * (g / 2)) as i32;
            let place = _mm512_set1_epi32(byte);
            let lanes = _mm512_set4_epi32(0x0c0c_0c0c, 0x0808_0808, 0x0404_0404, 0);
            let spread = _mm512_shuffle_epi8(word, _mm512_add_epi32(place, lanes));
            let bit = _mm512_set1_epi32(0x0804_0201 << (4 * (g % 2)));
            let set = _mm512_test_epi8_mask(spread, bit);
            _mm512_mask_add_epi8(codes[g], set, codes[g], _mm512_set1_epi8(16))
        })
    }
}

impl<const TYPE: u32> Source for Small<TYPE> {
    const HALVES: bool = false;

    #[inline(always)]
    unsafe fn block(&mut self, index: usize) -> Block {
        // SAFETY: the caller's.
        unsafe { self.unpack(index) }
    }

    #[inline(always)]
    fn prefetch(&self, index: usize) {
        let share = COLUMNS * Self::BYTES;
        self.0.prefetch(index * share, (index + 1) * share);
    }
}

/// The formats of 256 values; `TYPE` is the ggml number. What several of the eight blocks of 32 values need is kept between them.
struct Super<const TYPE: u32> {
    rows: Rows,
    /// The two halves of the nibbles in use.
    nibbles: [[__m512i; 8]; 2],
    /// The upper bits in use.
    upper: [__m512i; 8],
    scale: __m512,
    minimum: __m512,
    /// Four bytes of packed scales in each.
    packed: [__m512i; 4],
}

impl<const TYPE: u32> Super<TYPE> {
    const BYTES: usize = match TYPE {
        12 => 144,
        13 => 176,
        _ => 210,
    };

    #[inline]
    #[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512dq,avx512vnni,avx2,fma,f16c")]
    fn new(rows: Rows) -> Self {
        let zero = _mm512_setzero_si512();
        Self {
            rows,
            nibbles: [[zero; 8]; 2],
            upper: [zero; 8],
            scale: _mm512_setzero_ps(),
            minimum: _mm512_setzero_ps(),
            packed: [zero; 4],
        }
    }

    /// # Safety
    /// Block number `index` of every row is readable, and the blocks before it in its 256 values were asked for.
    #[inline]
    #[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512dq,avx512vnni,avx2,fma,f16c")]
    unsafe fn unpack(&mut self, index: usize) -> Block {
        let (at, block) = (index / 8 * Self::BYTES, index % 8);
        // SAFETY: offsets inside the 256 values' bytes.
        unsafe {
            if TYPE == 14 {
                self.six_bits(at, block)
            } else {
                self.scaled_minima(at, block)
            }
        }
    }

    /// Q4_K and Q5_K.
    ///
    /// # Safety
    /// The 256 values at `at` of every row are readable.
    #[inline]
    #[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512dq,avx512vnni,avx2,fma,f16c")]
    unsafe fn scaled_minima(&mut self, at: usize, block: usize) -> Block {
        let five = TYPE == 13;
        // SAFETY: offsets inside the 256 values' bytes.
        unsafe {
            if block == 0 {
                let header = self.rows.words(at);
                self.scale = halves(header);
                self.minimum = halves(_mm512_srli_epi32::<16>(header));
                for (j, packed) in self.packed.iter_mut().enumerate().take(3) {
                    *packed = self.rows.words(at + 4 + 4 * j);
                }
                if five {
                    self.upper = self.rows.eighths(at + 16);
                }
            }
            if block.is_multiple_of(2) {
                let first = at + if five { 48 } else { 16 };
                self.nibbles[0] = self.rows.eighths(first + 16 * block);
            }
        }
        let codes = std::array::from_fn(|g| {
            let low = byte_bits(self.nibbles[0][g], 4 * (block % 2), 15);
            if five {
                let bit = byte_bits(self.upper[g], block, 1);
                _mm512_or_si512(low, _mm512_slli_epi16::<4>(bit))
            } else {
                low
            }
        });
        let [first, second, third, _] = self.packed;
        let shift = 8 * (block % 4);
        let (scale, minimum) = if block < 4 {
            (lane_bits(first, shift, 63), lane_bits(second, shift, 63))
        } else {
            let join = |low, high| _mm512_or_si512(low, _mm512_slli_epi32::<4>(high));
            (
                join(lane_bits(third, shift, 15), lane_bits(first, shift + 6, 3)),
                join(
                    lane_bits(third, shift + 4, 15),
                    lane_bits(second, shift + 6, 3),
                ),
            )
        };
        let scale = _mm512_mul_ps(self.scale, _mm512_cvtepi32_ps(scale));
        let negative = _mm512_sub_ps(_mm512_setzero_ps(), self.minimum);
        let offset = _mm512_mul_ps(negative, _mm512_cvtepi32_ps(minimum));
        Block {
            codes,
            scales: [scale; 2],
            offsets: [offset; 2],
        }
    }

    /// Q6_K.
    ///
    /// # Safety
    /// The 256 values at `at` of every row are readable.
    #[inline]
    #[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512dq,avx512vnni,avx2,fma,f16c")]
    unsafe fn six_bits(&mut self, at: usize, block: usize) -> Block {
        let (half, part) = (block / 4, block % 4);
        // SAFETY: offsets inside the 256 values' bytes; the word that ends with the scale begins inside them too.
        unsafe {
            if block == 0 {
                self.scale = halves(_mm512_srli_epi32::<16>(self.rows.words(at + 206)));
                for (j, packed) in self.packed.iter_mut().enumerate() {
                    *packed = self.rows.words(at + 192 + 4 * j);
                }
            }
            if part == 0 {
                self.nibbles[0] = self.rows.eighths(at + 64 * half);
                self.nibbles[1] = self.rows.eighths(at + 64 * half + 32);
                self.upper = self.rows.eighths(at + 128 + 32 * half);
            }
        }
        let codes = std::array::from_fn(|g| {
            let low = byte_bits(self.nibbles[part % 2][g], part / 2 * 4, 15);
            let high = byte_bits(self.upper[g], 2 * part, 3);
            _mm512_or_si512(low, _mm512_slli_epi16::<4>(high))
        });
        // Two signed bytes of this block.
        let pair = _mm512_srl_epi32(
            self.packed[block / 2],
            _mm_cvtsi32_si128(16 * (block % 2) as i32),
        );
        let first = _mm512_srai_epi32::<24>(_mm512_slli_epi32::<24>(pair));
        let second = _mm512_srai_epi32::<24>(_mm512_slli_epi32::<16>(pair));
        let scales =
            [first, second].map(|code| _mm512_mul_ps(self.scale, _mm512_cvtepi32_ps(code)));
        Block {
            codes,
            scales,
            offsets: scales.map(|scale| _mm512_mul_ps(scale, _mm512_set1_ps(-32.0))),
        }
    }
}

impl<const TYPE: u32> Source for Super<TYPE> {
    const HALVES: bool = TYPE == 14;

    #[inline(always)]
    unsafe fn block(&mut self, index: usize) -> Block {
        // SAFETY: the caller's; `Source::block` is called with rising numbers.
        unsafe { self.unpack(index) }
    }

    #[inline(always)]
    fn prefetch(&self, index: usize) {
        let share = COLUMNS * Self::BYTES / 8;
        self.rows.prefetch(index * share, (index + 1) * share);
    }
}

/// Products of sixteen weight rows with the `M` activation rows from `first`.
///
/// # Safety
/// The machine has the features, `source` has `blocks` blocks, and `x` at least `first + M` rows of `blocks` blocks.
#[inline]
#[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512dq,avx512vnni,avx2,fma,f16c")]
unsafe fn pass<S: Source, const M: usize>(
    source: &mut S,
    blocks: usize,
    x: &QuantRows,
    first: usize,
    out: &mut [[f32; COLUMNS]],
) {
    let mut sums = [_mm512_setzero_ps(); M];
    for block in 0..blocks {
        source.prefetch(block);
        // SAFETY: `block < blocks`.
        let weights = unsafe { source.block(block) };
        for (i, sum) in sums.iter_mut().enumerate() {
            let place = (first + i) * blocks + block;
            // SAFETY: block `place` of `x`: 32 codes, a scale and sums.
            unsafe {
                let codes = x.codes.as_ptr().add(32 * place).cast::<i32>();
                let four = |g: usize| _mm512_set1_epi32(codes.add(g).read_unaligned());
                let products = |start: usize, end: usize| {
                    let mut total = _mm512_setzero_si512();
                    for g in start..end {
                        total = _mm512_dpbusd_epi32(total, weights.codes[g], four(g));
                    }
                    total
                };
                if S::HALVES {
                    let scale = _mm512_set1_ps(*x.scales.as_ptr().add(place));
                    for half in 0..2 {
                        let total = products(4 * half, 4 * half + 4);
                        let scale = _mm512_mul_ps(weights.scales[half], scale);
                        *sum = _mm512_fmadd_ps(_mm512_cvtepi32_ps(total), scale, *sum);
                        let codes = _mm512_set1_ps(*x.sums.as_ptr().add(2 * place + half));
                        *sum = _mm512_fmadd_ps(weights.offsets[half], codes, *sum);
                    }
                } else {
                    let [scale, codes] = *x.pairs.as_ptr().add(place);
                    // Two chains where there are too few rows to hide the latency of one.
                    let total = if M <= 2 {
                        _mm512_add_epi32(products(0, 4), products(4, 8))
                    } else {
                        products(0, 8)
                    };
                    let scale = _mm512_mul_ps(weights.scales[0], _mm512_set1_ps(scale));
                    *sum = _mm512_fmadd_ps(_mm512_cvtepi32_ps(total), scale, *sum);
                    *sum = _mm512_fmadd_ps(weights.offsets[0], _mm512_set1_ps(codes), *sum);
                }
            }
        }
    }
    for (out, sum) in out.iter_mut().zip(sums) {
        // SAFETY: sixteen values.
        unsafe { _mm512_storeu_ps(out.as_mut_ptr(), sum) };
    }
}

/// Products of sixteen weight rows of `k` values (`data`, `row_bytes` each) with the activation rows `first..first + out.len()`, at most
/// [`MAX_PASS_ROWS`].
///
/// # Panics
/// When `data` or `x` is too short, or there are too many rows.
#[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512dq,avx512vnni,avx2,fma,f16c")]
pub(crate) fn rows(
    t: QuantType,
    data: &[u8],
    k: usize,
    x: &QuantRows,
    first: usize,
    out: &mut [[f32; COLUMNS]],
) {
    let (blocks, m) = (k / 32, out.len());
    let row_bytes = k / t.block_len() * t.block_bytes();
    assert!(
        data.len() >= COLUMNS * row_bytes
            && x.codes.len() >= (first + m) * k
            && x.scales.len() >= (first + m) * blocks
            && x.pairs.len() >= (first + m) * blocks
            && x.sums.len() >= (first + m) * 2 * blocks
    );
    macro_rules! by_rows {
        ($source:expr) => {{
            let mut source = $source;
            // SAFETY: the assertion above.
            unsafe {
                match m {
                    0 => {}
                    1 => pass::<_, 1>(&mut source, blocks, x, first, out),
                    2 => pass::<_, 2>(&mut source, blocks, x, first, out),
                    3 => pass::<_, 3>(&mut source, blocks, x, first, out),
                    4 => pass::<_, 4>(&mut source, blocks, x, first, out),
                    5 => pass::<_, 5>(&mut source, blocks, x, first, out),
                    6 => pass::<_, 6>(&mut source, blocks, x, first, out),
                    7 => pass::<_, 7>(&mut source, blocks, x, first, out),
                    8 => pass::<_, 8>(&mut source, blocks, x, first, out),
                    9 => pass::<_, 9>(&mut source, blocks, x, first, out),
                    10 => pass::<_, 10>(&mut source, blocks, x, first, out),
                    11 => pass::<_, 11>(&mut source, blocks, x, first, out),
                    12 => pass::<_, 12>(&mut source, blocks, x, first, out),
                    13 => pass::<_, 13>(&mut source, blocks, x, first, out),
                    14 => pass::<_, 14>(&mut source, blocks, x, first, out),
                    15 => pass::<_, 15>(&mut source, blocks, x, first, out),
                    16 => pass::<_, 16>(&mut source, blocks, x, first, out),
                    _ => panic!("{m} rows in one pass, at most {MAX_PASS_ROWS}"),
                }
            }
        }};
    }
    let rows = Rows {
        data: data.as_ptr(),
        row_bytes,
    };
    match t {
        QuantType::Q4_0 => by_rows!(Small::<2>(rows)),
        QuantType::Q4_1 => by_rows!(Small::<3>(rows)),
        QuantType::Q5_0 => by_rows!(Small::<6>(rows)),
        QuantType::Q5_1 => by_rows!(Small::<7>(rows)),
        QuantType::Q8_0 => by_rows!(Small::<8>(rows)),
        QuantType::Q4K => by_rows!(Super::<12>::new(rows)),
        QuantType::Q5K => by_rows!(Super::<13>::new(rows)),
        QuantType::Q6K => by_rows!(Super::<14>::new(rows)),
    }
}
