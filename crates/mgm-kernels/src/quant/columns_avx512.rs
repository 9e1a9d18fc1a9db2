//! Integer products for AVX-512: sixteen weight rows at a time against any number of quantised rows.
//!
//! Each lane belongs to one weight row (output column). Four values of the sixteen rows are one vector, which `vpdpbusd` multiplies with four
//! values of an activation row, broadcast from memory; integer sums of 32 values are exact, so a result depends on nothing but its own
//! two rows: a product of many rows has the same bits as the products of each row alone.

use std::arch::x86_64::*;
use std::ops::Range;

use super::QuantType;
use super::column_rows::{ColumnRows, Starts};
use super::interleaved::{GROUP, Places};
use crate::buffer::with_scratch;

/// Weight rows of a group.
pub(crate) const COLUMNS: usize = GROUP;
/// Weight rows of one call of [`many_rows`].
pub(crate) const WIDE_COLUMNS: usize = 2 * COLUMNS;
/// Most activation rows of one of its passes: twelve sums, twelve sums of a block, and what is multiplied, fill the registers.
const WIDE_PASS_ROWS: usize = 6;
/// Blocks of thirty-two weight rows that are unpacked at a time, a multiple of the eight that 256 values are: they stay in the first-level
/// cache for all passes.
const UNPACKED_BLOCKS: usize = 16;

/// 32 values of sixteen weight rows: vector `g` holds the codes of values `4g..4g + 4`. `value = scale · (code - zero)` or, in formats with
/// offsets, `scale · code + offset`; Q6_K has one scale for each half of the 32 values.
#[derive(Clone, Copy)]
pub(super) struct Block {
    pub(super) codes: [__m512i; 8],
    pub(super) scales: [__m512; 2],
    pub(super) offset: __m512,
}

/// How a format's codes become values.
pub(super) trait Form {
    /// Whether the halves of a block have scales of their own.
    const HALVES: bool;

    /// Whether blocks have offsets; where not, the heads of the activation rows take the code that stands for 0 into account.
    const OFFSETS: bool;
}

/// One scale for a block of codes around a zero.
pub(super) struct Centred;

/// One scale and one offset for a block.
pub(super) struct Shifted;

/// A scale for each half of a block of codes around a zero.
pub(super) struct Halved;

impl Form for Centred {
    const HALVES: bool = false;
    const OFFSETS: bool = false;
}

impl Form for Shifted {
    const HALVES: bool = false;
    const OFFSETS: bool = true;
}

impl Form for Halved {
    const HALVES: bool = true;
    const OFFSETS: bool = false;
}

/// What gives the blocks of 32 values of sixteen weight rows, one after another.
pub(super) trait Source {
    type Form: Form;

    /// # Safety
    /// The machine has the features of [`many_rows`].
    unsafe fn new(group: Group) -> Self;

    /// Block number `index`. Called with rising numbers from 0.
    ///
    /// # Safety
    /// The machine has the features of [`many_rows`], and `index` is below the row's number of blocks.
    unsafe fn block(&mut self, index: usize) -> Block;
}

/// Sixteen weight rows side by side, see [`super::interleaved`].
#[derive(Clone, Copy)]
pub(super) struct Group {
    data: *const u8,
    /// Blocks of a row, as the format counts them.
    blocks: usize,
}

impl Group {
    /// Group number `index` of `data`, which has whole groups of rows of `row_bytes` bytes.
    pub(super) fn of(t: QuantType, data: &[u8], row_bytes: usize, index: usize) -> Self {
        let data = &data[index * COLUMNS * row_bytes..][..COLUMNS * row_bytes];
        Self {
            data: data.as_ptr(),
            blocks: row_bytes / t.block_bytes(),
        }
    }

    /// Fetches a `share` (number, of how many) of the bytes that stand `ahead` bytes behind the beginning of block `index`, as many as a block has, into the second-level cache: the first level
    /// can wait for few lines at a time.
    #[inline(always)]
    pub(super) fn prefetch(
        self,
        places: Places,
        index: usize,
        share: (usize, usize),
        ahead: usize,
    ) {
        let bytes = COLUMNS * places.bytes;
        let lines = bytes.div_ceil(64 * share.1);
        let first = self
            .data
            .wrapping_add(index * bytes + 64 * share.0 * lines + ahead);
        for line in 0..lines {
            // SAFETY: a prefetch may go anywhere.
            unsafe { _mm_prefetch::<_MM_HINT_T1>(first.wrapping_add(64 * line).cast()) };
        }
    }

    /// The words of block `index`.
    ///
    /// # Safety
    /// The rows have such a block.
    #[inline(always)]
    pub(super) unsafe fn words(self, places: Places, index: usize) -> Words {
        // SAFETY: inside the group.
        Words(unsafe { self.data.add(places.block(index, self.blocks).words) })
    }

    /// The half floats of block `index`.
    ///
    /// # Safety
    /// The rows have such a block, with half floats.
    #[inline]
    #[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512dq,avx512vnni,avx2,fma,f16c")]
    pub(super) unsafe fn half(self, places: Places, index: usize) -> __m512 {
        let at = places.block(index, self.blocks).halves;
        // SAFETY: the caller's.
        _mm512_cvtph_ps(unsafe { _mm256_loadu_si256(self.data.add(at).cast()) })
    }
}

/// The words of a block of sixteen rows.
#[derive(Clone, Copy)]
pub(super) struct Words(*const u8);

impl Words {
    /// Word `index` of the rows.
    ///
    /// # Safety
    /// The block has so many words.
    #[inline]
    #[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512dq,avx512vnni,avx2,fma,f16c")]
    pub(super) unsafe fn at(self, index: usize) -> __m512i {
        // SAFETY: the caller's.
        unsafe { _mm512_loadu_si512(self.0.add(64 * index).cast()) }
    }
}

/// Half floats in the low 16 bits of each lane.
#[inline]
#[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512dq,avx512vnni,avx2,fma,f16c")]
pub(super) fn halves(words: __m512i) -> __m512 {
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
pub(super) struct Small<const TYPE: u32>(Group);

impl<const TYPE: u32> Small<TYPE> {
    /// Where the format's parts are.
    pub(super) const PLACES: Places = Places::of(match TYPE {
        2 => QuantType::Q4_0,
        3 => QuantType::Q4_1,
        6 => QuantType::Q5_0,
        7 => QuantType::Q5_1,
        _ => QuantType::Q8_0,
    });

    #[inline]
    #[target_feature(enable = "avx512f")]
    fn of(group: Group) -> Self {
        Self(group)
    }

    /// # Safety
    /// The rows have a block number `index`.
    #[inline]
    #[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512dq,avx512vnni,avx2,fma,f16c")]
    unsafe fn unpack(&self, index: usize) -> Block {
        // SAFETY: words and half floats of the block.
        unsafe {
            let words = self.0.words(Self::PLACES, index);
            let (scale, offset) = if TYPE == 3 || TYPE == 7 {
                let both = words.at(0);
                (halves(both), halves(_mm512_srli_epi32::<16>(both)))
            } else {
                (self.0.half(Self::PLACES, index), _mm512_setzero_ps())
            };
            let codes = match TYPE {
                2 => nibbles(words, 0, None),
                3 => nibbles(words, 1, None),
                6 => nibbles(words, 1, Some(0)),
                7 => nibbles(words, 2, Some(1)),
                _ => std::array::from_fn(|g| _mm512_xor_si512(words.at(g), _mm512_set1_epi8(-128))),
            };
            Block {
                codes,
                scales: [scale; 2],
                offset,
            }
        }
    }
}

/// Codes from four words of nibbles, the low ones first, and a word of fifth bits.
///
/// # Safety
/// The block has these words.
#[inline]
#[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512dq,avx512vnni,avx2,fma,f16c")]
unsafe fn nibbles(words: Words, first: usize, fifth: Option<usize>) -> [__m512i; 8] {
    let mask = _mm512_set1_epi8(15);
    let codes = std::array::from_fn(|g| {
        // SAFETY: the caller's.
        let bytes = unsafe { words.at(first + g % 4) };
        let bytes = if g < 4 {
            bytes
        } else {
            _mm512_srli_epi16::<4>(bytes)
        };
        _mm512_and_si512(bytes, mask)
    });
    let Some(fifth) = fifth else {
        return codes;
    };
    // SAFETY: the caller's.
    let word = unsafe { words.at(fifth) };
    std::array::from_fn(|g| add_fifth_bits(codes[g], word, g))
}

/// Adds 16 to the codes of vector `g` whose bit is set in a word of fifth bits.
#[inline]
#[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512dq,avx512vnni,avx2,fma,f16c")]
pub(super) fn add_fifth_bits(codes: __m512i, word: __m512i, g: usize) -> __m512i {
    // Bits `4g..4g + 4` of the word belong to the four bytes of the lane: its byte `g / 2`, one bit in each.
    let byte = (0x0101_0101 * (g / 2)) as i32;
    let place = _mm512_set1_epi32(byte);
    let lanes = _mm512_set4_epi32(0x0c0c_0c0c, 0x0808_0808, 0x0404_0404, 0);
    let spread = _mm512_shuffle_epi8(word, _mm512_add_epi32(place, lanes));
    let bit = _mm512_set1_epi32(0x0804_0201 << (4 * (g % 2)));
    let set = _mm512_test_epi8_mask(spread, bit);
    _mm512_mask_add_epi8(codes, set, codes, _mm512_set1_epi8(16))
}

/// The formats of 256 values; `TYPE` is the ggml number. What all eight blocks of 32 values need is kept between them.
pub(super) struct Super<const TYPE: u32> {
    group: Group,
    scale: __m512,
    minimum: __m512,
}

impl<const TYPE: u32> Super<TYPE> {
    /// Where the format's parts are.
    pub(super) const PLACES: Places = Places::of(match TYPE {
        12 => QuantType::Q4K,
        13 => QuantType::Q5K,
        _ => QuantType::Q6K,
    });

    #[inline]
    #[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512dq,avx512vnni,avx2,fma,f16c")]
    fn of(group: Group) -> Self {
        Self {
            group,
            scale: _mm512_setzero_ps(),
            minimum: _mm512_setzero_ps(),
        }
    }

    /// # Safety
    /// The rows have a block number `index`, and the blocks before it in its 256 values were asked for.
    #[inline]
    #[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512dq,avx512vnni,avx2,fma,f16c")]
    unsafe fn unpack(&mut self, index: usize) -> Block {
        let block = index % 8;
        // SAFETY: the caller's.
        unsafe {
            let words = self.group.words(Self::PLACES, index / 8);
            if TYPE == 14 {
                if block == 0 {
                    self.scale = self.group.half(Self::PLACES, index / 8);
                }
                self.six_bits(words, block)
            } else {
                if block == 0 {
                    let both = words.at(0);
                    self.scale = halves(both);
                    self.minimum = halves(_mm512_srli_epi32::<16>(both));
                }
                self.scaled_minima(words, block)
            }
        }
    }

    /// Q4_K and Q5_K.
    ///
    /// # Safety
    /// `words` are those of 256 values.
    #[inline]
    #[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512dq,avx512vnni,avx2,fma,f16c")]
    unsafe fn scaled_minima(&self, words: Words, block: usize) -> Block {
        let five = TYPE == 13;
        // SAFETY: words of the 256 values.
        let word = |index: usize| unsafe { words.at(index) };
        let first = if five { 12 } else { 4 } + block / 2 * 8;
        let codes = std::array::from_fn(|g| {
            let low = byte_bits(word(first + g), 4 * (block % 2), 15);
            if five {
                let bit = byte_bits(word(4 + g), block, 1);
                _mm512_or_si512(low, _mm512_slli_epi16::<4>(bit))
            } else {
                low
            }
        });
        let shift = 8 * (block % 4);
        let (scale, minimum) = if block < 4 {
            (lane_bits(word(1), shift, 63), lane_bits(word(2), shift, 63))
        } else {
            let join = |low, high| _mm512_or_si512(low, _mm512_slli_epi32::<4>(high));
            let third = word(3);
            (
                join(
                    lane_bits(third, shift, 15),
                    lane_bits(word(1), shift + 6, 3),
                ),
                join(
                    lane_bits(third, shift + 4, 15),
                    lane_bits(word(2), shift + 6, 3),
                ),
            )
        };
        let scale = _mm512_mul_ps(self.scale, _mm512_cvtepi32_ps(scale));
        let negative = _mm512_sub_ps(_mm512_setzero_ps(), self.minimum);
        let offset = _mm512_mul_ps(negative, _mm512_cvtepi32_ps(minimum));
        Block {
            codes,
            scales: [scale; 2],
            offset,
        }
    }

    /// Q6_K.
    ///
    /// # Safety
    /// `words` are those of 256 values.
    #[inline]
    #[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512dq,avx512vnni,avx2,fma,f16c")]
    unsafe fn six_bits(&self, words: Words, block: usize) -> Block {
        let (half, part) = (block / 4, block % 4);
        // SAFETY: words of the 256 values.
        let word = |index: usize| unsafe { words.at(index) };
        let codes = std::array::from_fn(|g| {
            let low = byte_bits(word(16 * half + 8 * (part % 2) + g), part / 2 * 4, 15);
            let high = byte_bits(word(32 + 8 * half + g), 2 * part, 3);
            _mm512_or_si512(low, _mm512_slli_epi16::<4>(high))
        });
        // Two signed bytes of this block.
        let pair = _mm512_srl_epi32(
            word(48 + block / 2),
            _mm_cvtsi32_si128(16 * (block % 2) as i32),
        );
        let first = _mm512_srai_epi32::<24>(_mm512_slli_epi32::<24>(pair));
        let second = _mm512_srai_epi32::<24>(_mm512_slli_epi32::<16>(pair));
        let scales =
            [first, second].map(|code| _mm512_mul_ps(self.scale, _mm512_cvtepi32_ps(code)));
        Block {
            codes,
            scales,
            offset: _mm512_setzero_ps(),
        }
    }
}

macro_rules! source {
    ($($type:ty: $form:ty,)*) => {
        $(impl Source for $type {
            type Form = $form;

            #[inline(always)]
            unsafe fn new(group: Group) -> Self {
                // SAFETY: the caller's.
                unsafe { Self::of(group) }
            }

            #[inline(always)]
            unsafe fn block(&mut self, index: usize) -> Block {
                // SAFETY: the caller's; numbers rise.
                unsafe { self.unpack(index) }
            }
        })*
    };
}

source!(
    Small<2>: Centred,
    Small<3>: Shifted,
    Small<6>: Centred,
    Small<7>: Shifted,
    Small<8>: Centred,
    Super<12>: Shifted,
    Super<13>: Shifted,
    Super<14>: Halved,
);

/// What [`ColumnRows`] need to know of a format.
pub(crate) fn starts(t: QuantType) -> Starts {
    let zero = match t {
        QuantType::Q4_0 => 8,
        QuantType::Q5_0 => 16,
        QuantType::Q6K => 32,
        QuantType::Q8_0 => 128,
        QuantType::Q4_1 | QuantType::Q5_1 | QuantType::Q4K | QuantType::Q5K => 0,
    };
    Starts {
        zero,
        halves: t == QuantType::Q6K,
    }
}

/// Adds to `out` the products of thirty-two weight rows with the `M` activation rows from `first`, over the `count` blocks from `start` that
/// `weights` holds. The sums of a block of `M` rows stay in registers, so that every value that is loaded is used at least twice; the
/// bits are those of [`super::few_rows_avx512`].
///
/// # Safety
/// The machine has the features, `weights` points to `count` pairs of blocks, and `x` has at least `first + M` rows of `blocks` blocks, of
/// which `start + count` is at most the number.
#[inline]
#[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512dq,avx512vnni,avx2,fma,f16c")]
unsafe fn wide_pass<F: Form, const M: usize>(
    weights: *const [Block; 2],
    (start, count): (usize, usize),
    blocks: usize,
    x: &ColumnRows,
    first: usize,
    out: &mut [[f32; WIDE_COLUMNS]],
) {
    let k = 32 * blocks;
    // A number that the compiler does not know: with the loop unrolled it multiplies row by row and runs out of registers.
    let vectors = std::hint::black_box(if F::HALVES { 4 } else { 8 });
    // SAFETY: codes and head of each row's block are inside `x`; each row of `out` has thirty-two values.
    unsafe {
        let mut sums: [[__m512; 2]; M] = std::array::from_fn(|i| {
            let out = out[i].as_ptr();
            [_mm512_loadu_ps(out), _mm512_loadu_ps(out.add(COLUMNS))]
        });
        for block in 0..count {
            let weights = &*weights.add(block);
            let codes = x.codes.as_ptr().add(first * k + 32 * (start + block));
            let heads = x.heads.as_ptr().add(first * blocks + start + block);
            for half in 0..if F::HALVES { 2 } else { 1 } {
                let mut totals = [[_mm512_setzero_si512(); 2]; M];
                if !F::OFFSETS {
                    for (i, totals) in totals.iter_mut().enumerate() {
                        *totals = [_mm512_set1_epi32((*heads.add(i * blocks)).starts[half]); 2];
                    }
                }
                let mut codes = codes.add(16 * half).cast::<i32>();
                let mut columns = weights
                    .each_ref()
                    .map(|block| block.codes.as_ptr().add(4 * half));
                for _ in 0..vectors {
                    let pair = [*columns[0], *columns[1]];
                    columns = columns.map(|column| column.add(1));
                    for (i, totals) in totals.iter_mut().enumerate() {
                        let four = _mm512_set1_epi32(codes.add(i * k / 4).read_unaligned());
                        for (total, column) in totals.iter_mut().zip(pair) {
                            *total = _mm512_dpbusd_epi32(*total, column, four);
                        }
                    }
                    codes = codes.add(1);
                }
                for (i, (sums, totals)) in sums.iter_mut().zip(totals).enumerate() {
                    let head = &*heads.add(i * blocks);
                    for ((sum, total), weights) in sums.iter_mut().zip(totals).zip(weights) {
                        let scale = _mm512_mul_ps(weights.scales[half], _mm512_set1_ps(head.scale));
                        *sum = _mm512_fmadd_ps(_mm512_cvtepi32_ps(total), scale, *sum);
                        if F::OFFSETS {
                            let codes = _mm512_set1_ps(head.sum);
                            *sum = _mm512_fmadd_ps(weights.offset, codes, *sum);
                        }
                    }
                }
            }
        }
        for (out, sums) in out.iter_mut().zip(sums) {
            _mm512_storeu_ps(out.as_mut_ptr(), sums[0]);
            _mm512_storeu_ps(out.as_mut_ptr().add(COLUMNS), sums[1]);
        }
    }
}

/// [`many_rows`] for one format.
///
/// # Safety
/// The machine has the features, `groups` have `blocks` blocks of 32 values, `x` has them too in all rows of `range`, and `unpacked` points to room for
/// [`UNPACKED_BLOCKS`] pairs.
#[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512dq,avx512vnni,avx2,fma,f16c")]
unsafe fn many_rows_of<S: Source>(
    groups: [Group; 2],
    blocks: usize,
    x: &ColumnRows,
    range: Range<usize>,
    unpacked: *mut [Block; 2],
    out: &mut [[f32; WIDE_COLUMNS]],
) {
    let m = range.len();
    let passes = m.div_ceil(WIDE_PASS_ROWS);
    // SAFETY: the caller's; numbers of blocks rise, a block has no destructor.
    unsafe {
        let mut sources = groups.map(|group| S::new(group));
        for start in (0..blocks).step_by(UNPACKED_BLOCKS) {
            let count = UNPACKED_BLOCKS.min(blocks - start);
            for (group, source) in sources.iter_mut().enumerate() {
                for index in 0..count {
                    let block = source.block(start + index);
                    unpacked.add(index).cast::<Block>().add(group).write(block);
                }
            }
            for pass in 0..passes {
                // Equal shares: no short last pass, which would read the weights for little.
                let (begin, end) = (pass * m / passes, (pass + 1) * m / passes);
                let (first, out) = (range.start + begin, &mut out[begin..end]);
                macro_rules! by_rows {
                    ($($m:literal)*) => {
                        match end - begin {
                            $($m => wide_pass::<S::Form, $m>(unpacked.cast_const(), (start, count), blocks, x, first, out),)*
                            _ => unreachable!("a pass has at most {WIDE_PASS_ROWS} rows"),
                        }
                    };
                }
                by_rows!(1 2 3 4 5 6);
            }
        }
    }
}

/// Bytes of a row of `k` values.
pub(super) fn row_bytes(t: QuantType, k: usize) -> usize {
    k / t.block_len() * t.block_bytes()
}

/// `$body` with the alias `$source` for the format's [`Source`].
macro_rules! by_type {
    ($t:expr, $source:ident => $body:expr) => {
        match $t {
            QuantType::Q4_0 => by_type!(@ Small<2>, $source => $body),
            QuantType::Q4_1 => by_type!(@ Small<3>, $source => $body),
            QuantType::Q5_0 => by_type!(@ Small<6>, $source => $body),
            QuantType::Q5_1 => by_type!(@ Small<7>, $source => $body),
            QuantType::Q8_0 => by_type!(@ Small<8>, $source => $body),
            QuantType::Q4K => by_type!(@ Super<12>, $source => $body),
            QuantType::Q5K => by_type!(@ Super<13>, $source => $body),
            QuantType::Q6K => by_type!(@ Super<14>, $source => $body),
        }
    };
    (@ $type:ty, $source:ident => $body:expr) => {{
        type $source = $type;
        $body
    }};
}
pub(super) use by_type;

/// Products of thirty-two weight rows of `k` values (`data`, two groups as [`super::interleaved`] makes them) with the activation rows of
/// `range`, one row of `out` for each. The weights are unpacked once. Of a single group the last sixteen columns are those of the first.
///
/// # Panics
/// When a slice is too short.
#[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512dq,avx512vnni,avx2,fma,f16c")]
pub(crate) fn many_rows(
    t: QuantType,
    data: &[u8],
    k: usize,
    x: &ColumnRows,
    range: Range<usize>,
    out: &mut [[f32; WIDE_COLUMNS]],
) {
    let (blocks, row_bytes) = (k / 32, row_bytes(t, k));
    assert!(
        data.len() >= COLUMNS * row_bytes
            && x.codes.len() >= range.end * k
            && x.heads.len() >= range.end * blocks
            && out.len() == range.len()
    );
    out.fill([0.0; WIDE_COLUMNS]);
    let last = (data.len() / (COLUMNS * row_bytes) - 1).min(1);
    let groups = [0, last].map(|index| Group::of(t, data, row_bytes, index));
    with_scratch(UNPACKED_BLOCKS * size_of::<[Block; 2]>(), |scratch| {
        // Scratch memory begins on a line of 64 bytes.
        let unpacked = scratch.cast_mut::<u8>().as_mut_ptr().cast::<[Block; 2]>();
        // SAFETY: the assertion above, and the scratch memory's length.
        by_type!(t, S => unsafe { many_rows_of::<S>(groups, blocks, x, range, unpacked, out) });
    });
}
