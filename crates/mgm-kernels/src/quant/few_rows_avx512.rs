//! Sixteen weight rows at a time against a few quantised rows, as decoding, drafts and answers given together have them.
//!
//! See [`super::columns_avx512`] for the products of lanes. Here a word of codes is read once and both its nibbles serve the block or blocks that have
//! a part in it, the upper ones where they are: their sums are sixteen times as large. The small scales of 256 values are taken apart
//! together. The bits are those of many rows.

use std::arch::x86_64::*;

use super::QuantType;
use super::activations::BLOCK;
use super::column_rows::{ColumnRows, Head};
use super::columns_avx512::{
    COLUMNS, Group, Small, Super, Words, add_fifth_bits, halves, row_bytes,
};

/// Most activation rows of one call: two sums of a block and one of all for each, and what is multiplied, fill the registers.
pub(super) const MAX_ROWS: usize = 8;

/// Bytes ahead of a block at which weights are fetched. One row's products wait for nothing but memory, where the processor fetches better alone; with more the
/// arithmetic takes so long that it loses the thread.
const AHEAD: usize = 20480;

/// Products of sixteen weight rows of `k` values (`data`, a group as [`super::interleaved`] makes it) with the activation rows
/// `first..first + out.len()`, one to [`MAX_ROWS`] of them.
///
/// # Panics
/// When `data` or `x` is too short, or the number of rows another.
#[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512dq,avx512vnni,avx2,fma,f16c")]
pub(super) fn few_rows(
    t: QuantType,
    data: &[u8],
    k: usize,
    x: &ColumnRows,
    first: usize,
    out: &mut [[f32; COLUMNS]],
) {
    let (blocks, m, row_bytes) = (k / BLOCK, out.len(), row_bytes(t, k));
    assert!(
        data.len() == COLUMNS * row_bytes
            && k.is_multiple_of(t.block_len())
            && (1..=MAX_ROWS).contains(&m)
            && x.codes.len() >= (first + m) * k
            && x.heads.len() >= (first + m) * blocks
    );
    let group = Group::of(t, data, row_bytes, 0);
    let rows = Rows::of(x, first, blocks);
    macro_rules! by_rows {
        ($pass:expr) => {
            by_rows!($pass; 1 2 3 4 5 6 7 8)
        };
        ($pass:expr; $($m:literal)*) => {
            match m {
                $($m => {
                    const M: usize = $m;
                    // SAFETY: the assertion above.
                    unsafe { $pass(group, blocks, rows, out) }
                })*
                _ => unreachable!("asserted"),
            }
        };
    }
    match t {
        QuantType::Q4_0 => by_rows!(small::<2, M>),
        QuantType::Q4_1 => by_rows!(small::<3, M>),
        QuantType::Q5_0 => by_rows!(small::<6, M>),
        QuantType::Q5_1 => by_rows!(small::<7, M>),
        QuantType::Q8_0 => by_rows!(small::<8, M>),
        QuantType::Q4K => by_rows!(shifted::<12, M>),
        QuantType::Q5K => by_rows!(shifted::<13, M>),
        QuantType::Q6K => by_rows!(six_bits::<M>),
    }
}

/// Activation rows, at one of their blocks.
#[derive(Clone, Copy)]
struct Rows {
    codes: *const i32,
    heads: *const Head,
    /// Blocks of a row.
    blocks: usize,
}

impl Rows {
    /// The rows from `first` on.
    fn of(x: &ColumnRows, first: usize, blocks: usize) -> Self {
        Self {
            codes: x.codes[BLOCK * blocks * first..].as_ptr().cast(),
            heads: x.heads[blocks * first..].as_ptr(),
            blocks,
        }
    }

    /// Goes on by `count` blocks.
    ///
    /// # Safety
    /// There are so many.
    #[inline]
    unsafe fn skip(&mut self, count: usize) {
        // SAFETY: the caller's.
        unsafe {
            self.codes = self.codes.add(BLOCK / 4 * count);
            self.heads = self.heads.add(count);
        }
    }

    /// Values `4g..4g + 4` of block `block` of row `row`, in every lane.
    ///
    /// # Safety
    /// There is such a block.
    #[inline]
    #[target_feature(enable = "avx512f")]
    unsafe fn four(self, row: usize, block: usize, g: usize) -> __m512i {
        let place = BLOCK / 4 * (row * self.blocks + block) + g;
        // SAFETY: the caller's.
        _mm512_set1_epi32(unsafe { self.codes.add(place).read_unaligned() })
    }

    /// # Safety
    /// There is such a block.
    #[inline]
    unsafe fn head<'a>(self, row: usize, block: usize) -> &'a Head {
        // SAFETY: the caller's.
        unsafe { &*self.heads.add(row * self.blocks + block) }
    }
}

/// Adds a block's scaled sums.
#[inline]
#[target_feature(enable = "avx512f")]
fn add_scaled(sum: &mut __m512, total: __m512i, scale: __m512, head: &Head) {
    let scale = _mm512_mul_ps(scale, _mm512_set1_ps(head.scale));
    *sum = _mm512_fmadd_ps(_mm512_cvtepi32_ps(total), scale, *sum);
}

/// Writes the sums of all rows.
#[inline]
#[target_feature(enable = "avx512f")]
fn store<const M: usize>(sums: [__m512; M], out: &mut [[f32; COLUMNS]]) {
    for (out, sum) in out.iter_mut().zip(sums) {
        // SAFETY: sixteen values.
        unsafe { _mm512_storeu_ps(out.as_mut_ptr(), sum) };
    }
}

/// The formats of 32 values; `TYPE` is the ggml number.
///
/// # Safety
/// The machine has the features of [`few_rows`], `group` has `blocks` blocks of 32 values, and there are `M` such rows.
#[inline]
#[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512dq,avx512vnni,avx2,fma,f16c")]
unsafe fn small<const TYPE: u32, const M: usize>(
    group: Group,
    blocks: usize,
    mut rows: Rows,
    out: &mut [[f32; COLUMNS]],
) {
    let places = const { Small::<TYPE>::PLACES };
    let (offsets, five) = const { (TYPE == 3 || TYPE == 7, TYPE == 6 || TYPE == 7) };
    let nibbles = const { TYPE != 8 };
    let first = const { (TYPE == 3 || TYPE == 7) as usize + (TYPE == 6 || TYPE == 7) as usize };
    let bytes = |value: i8| _mm512_set1_epi8(value);
    let mut sums = [_mm512_setzero_ps(); M];
    // SAFETY: words of the blocks, and rows that there are.
    unsafe {
        for index in 0..blocks {
            if M > 1 {
                group.prefetch(places, index, (0, 1), AHEAD);
            }
            let words = group.words(places, index);
            let (scale, offset) = if offsets {
                let both = words.at(0);
                (halves(both), halves(_mm512_srli_epi32::<16>(both)))
            } else {
                (group.half(places, index), _mm512_setzero_ps())
            };
            let mut totals: [[__m512i; 2]; M] = std::array::from_fn(|i| {
                let start = if offsets {
                    0
                } else {
                    rows.head(i, 0).starts[0]
                };
                [_mm512_set1_epi32(start), _mm512_setzero_si512()]
            });
            for g in 0..4 {
                // Vectors `g` and `g + 4`.
                let codes = if nibbles {
                    let word = words.at(first + g);
                    let low = _mm512_and_si512(word, bytes(15));
                    if five {
                        let high = _mm512_and_si512(_mm512_srli_epi16::<4>(word), bytes(15));
                        let bits = words.at(first - 1);
                        [
                            add_fifth_bits(low, bits, g),
                            add_fifth_bits(high, bits, g + 4),
                        ]
                    } else {
                        [low, _mm512_and_si512(word, bytes(-16))]
                    }
                } else {
                    [g, g + 4].map(|g| _mm512_xor_si512(words.at(g), bytes(-128)))
                };
                for (i, totals) in totals.iter_mut().enumerate() {
                    for (half, total) in totals.iter_mut().enumerate() {
                        let four = rows.four(i, 0, g + 4 * half);
                        *total = _mm512_dpbusd_epi32(*total, codes[half], four);
                    }
                }
            }
            for (i, (sum, [first, mut second])) in sums.iter_mut().zip(totals).enumerate() {
                if nibbles && !five {
                    second = _mm512_srai_epi32::<4>(second);
                }
                let head = rows.head(i, 0);
                add_scaled(sum, _mm512_add_epi32(first, second), scale, head);
                if offsets {
                    *sum = _mm512_fmadd_ps(offset, _mm512_set1_ps(head.sum), *sum);
                }
            }
            rows.skip(1);
        }
    }
    store(sums, out);
}

/// Q4_K and Q5_K; `TYPE` is the ggml number.
///
/// # Safety
/// That of [`small`], with whole blocks of 256 values.
#[inline]
#[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512dq,avx512vnni,avx2,fma,f16c")]
unsafe fn shifted<const TYPE: u32, const M: usize>(
    group: Group,
    blocks: usize,
    mut rows: Rows,
    out: &mut [[f32; COLUMNS]],
) {
    let places = const { Super::<TYPE>::PLACES };
    let five = const { TYPE == 13 };
    let bytes = |value: i8| _mm512_set1_epi8(value);
    let mut sums = [_mm512_setzero_ps(); M];
    // SAFETY: words of the blocks, and rows that there are.
    unsafe {
        for index in 0..blocks / 8 {
            let words = group.words(places, index);
            let (scales, offsets) = scales_and_offsets(words);
            for pair in 0..4 {
                if M > 1 {
                    group.prefetch(places, index, (pair, 4), AHEAD);
                }
                let mut totals = [[_mm512_setzero_si512(); 2]; M];
                for g in 0..8 {
                    let word = words.at(if five { 12 } else { 4 } + 8 * pair + g);
                    let low = _mm512_and_si512(word, bytes(15));
                    let codes = if five {
                        let high = _mm512_and_si512(_mm512_srli_epi16::<4>(word), bytes(15));
                        let bits = words.at(4 + g);
                        let add = |code, block: usize| {
                            let set = _mm512_test_epi8_mask(bits, bytes((1u8 << block) as i8));
                            _mm512_mask_add_epi8(code, set, code, bytes(16))
                        };
                        [add(low, 2 * pair), add(high, 2 * pair + 1)]
                    } else {
                        [low, _mm512_and_si512(word, bytes(-16))]
                    };
                    for (i, totals) in totals.iter_mut().enumerate() {
                        for (half, total) in totals.iter_mut().enumerate() {
                            let four = rows.four(i, half, g);
                            *total = _mm512_dpbusd_epi32(*total, codes[half], four);
                        }
                    }
                }
                for (i, (sum, mut totals)) in sums.iter_mut().zip(totals).enumerate() {
                    if !five {
                        totals[1] = _mm512_srai_epi32::<4>(totals[1]);
                    }
                    for (half, total) in totals.into_iter().enumerate() {
                        let (block, head) = (2 * pair + half, rows.head(i, half));
                        add_scaled(sum, total, scales[block], head);
                        *sum = _mm512_fmadd_ps(offsets[block], _mm512_set1_ps(head.sum), *sum);
                    }
                }
                rows.skip(2);
            }
        }
    }
    store(sums, out);
}

/// Scales and offsets of the eight blocks of a Q4_K or Q5_K block of 256 values.
///
/// # Safety
/// The words are those of such a block.
#[inline]
#[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512dq,avx512vnni,avx2,fma,f16c")]
unsafe fn scales_and_offsets(words: Words) -> ([__m512; 8], [__m512; 8]) {
    let bytes = |value: i8| _mm512_set1_epi8(value);
    // SAFETY: the caller's.
    let [both, first, second, third] = std::array::from_fn(|index| unsafe { words.at(index) });
    let scale = halves(both);
    let minimum = halves(_mm512_srli_epi32::<16>(both));
    let negative = _mm512_sub_ps(_mm512_setzero_ps(), minimum);
    // The upper two bits of the last four are beside the first four.
    let join = |low: __m512i, high: __m512i| {
        let low = _mm512_and_si512(low, bytes(15));
        let high = _mm512_and_si512(_mm512_srli_epi16::<2>(high), bytes(48));
        _mm512_or_si512(low, high)
    };
    let scales = [_mm512_and_si512(first, bytes(63)), join(third, first)];
    let minima = [
        _mm512_and_si512(second, bytes(63)),
        join(_mm512_srli_epi16::<4>(third), second),
    ];
    let times = |factor: __m512, codes: [__m512i; 2]| {
        std::array::from_fn(|block| {
            let lanes = _mm512_set4_epi32(12, 8, 4, 0);
            // A place with its upper bit set gives 0.
            let place = i32::from_le_bytes([(block % 4) as u8, 128, 128, 128]);
            let place = _mm512_add_epi32(lanes, _mm512_set1_epi32(place));
            let code = _mm512_shuffle_epi8(codes[block / 4], place);
            _mm512_mul_ps(factor, _mm512_cvtepi32_ps(code))
        })
    };
    (times(scale, scales), times(negative, minima))
}

/// Q6_K.
///
/// # Safety
/// That of [`small`], with whole blocks of 256 values.
#[inline]
#[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512dq,avx512vnni,avx2,fma,f16c")]
unsafe fn six_bits<const M: usize>(
    group: Group,
    blocks: usize,
    mut rows: Rows,
    out: &mut [[f32; COLUMNS]],
) {
    let places = const { Super::<14>::PLACES };
    let bytes = |value: i8| _mm512_set1_epi8(value);
    // A number that the compiler does not know: it would make one piece of all parts of a block and run out of registers.
    let sixteens = std::hint::black_box(2);
    let mut sums = [_mm512_setzero_ps(); M];
    // SAFETY: words of the blocks, and rows that there are.
    unsafe {
        for index in 0..blocks / 8 {
            let words = group.words(places, index);
            // Small scales are taken as the upper bytes of lanes, 2²⁴ times as large.
            let unit = _mm512_set1_ps(1.0 / (1 << 24) as f32);
            let scale = _mm512_mul_ps(group.half(places, index), unit);
            for half in 0..2 {
                macro_rules! part {
                    ($part:literal, $low:expr, $high:expr) => {
                        let block = 4 * half + $part;
                        // What is read is in two places.
                        group.prefetch(places, index, (block, 8), AHEAD);
                        for sixteen in 0..sixteens {
                            let mut totals: [__m512i; M] = std::array::from_fn(|i| {
                                _mm512_set1_epi32(rows.head(i, $part).starts[sixteen])
                            });
                            for g in 4 * sixteen..4 * sixteen + 4 {
                                let low = $low(words.at(16 * half + 8 * ($part % 2) + g));
                                let high = $high(words.at(32 + 8 * half + g));
                                let low = _mm512_and_si512(low, bytes(15));
                                let high = _mm512_and_si512(high, bytes(48));
                                let codes = _mm512_or_si512(low, high);
                                for (i, total) in totals.iter_mut().enumerate() {
                                    let four = rows.four(i, $part, g);
                                    *total = _mm512_dpbusd_epi32(*total, codes, four);
                                }
                            }
                            let place = ($part % 2 * 2 + sixteen) as u8;
                            let place = i32::from_le_bytes([128, 128, 128, place]);
                            let lanes = _mm512_set4_epi32(12 << 24, 8 << 24, 4 << 24, 0);
                            let place = _mm512_add_epi32(lanes, _mm512_set1_epi32(place));
                            let code = _mm512_shuffle_epi8(words.at(48 + block / 2), place);
                            let scale = _mm512_mul_ps(scale, _mm512_cvtepi32_ps(code));
                            for (i, (sum, total)) in sums.iter_mut().zip(totals).enumerate() {
                                add_scaled(sum, total, scale, rows.head(i, $part));
                            }
                        }
                    };
                }
                let same = |words: __m512i| words;
                part!(0, same, |high| _mm512_slli_epi16::<4>(high));
                part!(1, same, |high| _mm512_slli_epi16::<2>(high));
                part!(2, |low| _mm512_srli_epi16::<4>(low), same);
                part!(3, |low| _mm512_srli_epi16::<4>(low), |high| {
                    _mm512_srli_epi16::<2>(high)
                });
                rows.skip(4);
            }
        }
    }
    store(sums, out);
}
