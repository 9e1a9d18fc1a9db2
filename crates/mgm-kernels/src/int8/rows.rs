//! Rows of activations in 8 bits, one scale for each 256 values.

use std::ops::Range;

use bytemuck::{Pod, Zeroable};
use rayon::prelude::*;

use super::weight::{CHUNK, ZERO, chunk_len, chunks};
use crate::buffer::with_scratch;
use crate::level::Level;
use crate::math::multiversion;

/// Most rows of one pass over a panel: their sums stay in registers.
pub(super) const PASS_ROWS: usize = 12;

/// Rows of one pass with the tile unit, two tiles of sixteen.
pub(super) const TILE_ROWS: usize = 32;
/// Features that a tile holds of a row.
pub(super) const TILE_FEATURES: usize = 64;

/// Fewer values than this are not worth waking other threads for.
const SERIAL_VALUES: usize = 1 << 16;

/// What a product needs of a row's chunk beside its codes.
#[derive(Clone, Copy, Pod, Zeroable)]
#[repr(C)]
pub(super) struct Head {
    /// `value ≈ scale · code`.
    pub(super) scale: f32,
    /// What sums over weight codes around 128 begin with: `-128 · Σ codes`.
    pub(super) start: i32,
}

/// How rows stand in memory, so that passes over a chunk read them from first to last.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Layout {
    /// Blocks of up to [`PASS_ROWS`] rows, four values of each in turn: `[⌈features / 4⌉][rows][4]`.
    Words,
    /// Blocks of [`TILE_ROWS`] rows, a tile's features of each in turn: `[⌈features / 64⌉][32][64]`, with zeros behind the last feature and
    /// anything in rows that are not there.
    Tiles,
}

impl Layout {
    fn of(level: Level, m: usize) -> Self {
        // Fewer rows are bound by the weights.
        if level == Level::Amx && m > PASS_ROWS {
            Self::Tiles
        } else {
            Self::Words
        }
    }

    /// Features that are stored of so many.
    fn features(self, features: usize) -> usize {
        match self {
            Self::Words => features.next_multiple_of(4),
            Self::Tiles => features.next_multiple_of(TILE_FEATURES),
        }
    }

    /// Rows that are stored of so many.
    fn rows(self, m: usize) -> usize {
        match self {
            Self::Words => m,
            Self::Tiles => m.next_multiple_of(TILE_ROWS),
        }
    }

    /// Blocks of `m` rows.
    fn blocks(self, m: usize) -> usize {
        match self {
            Self::Words => m.div_ceil(PASS_ROWS),
            Self::Tiles => m.div_ceil(TILE_ROWS),
        }
    }

    /// First row of each block, and the number of rows.
    fn starts(self, m: usize) -> Vec<usize> {
        (0..=self.blocks(m))
            .map(|block| self.start(m, block))
            .collect()
    }

    /// First row of a block.
    fn start(self, m: usize, block: usize) -> usize {
        match self {
            // Equal shares: no short last block, which would read a panel for little.
            Self::Words => block * m / self.blocks(m).max(1),
            Self::Tiles => (block * TILE_ROWS).min(m),
        }
    }
}

/// Rounded rows, chunk after chunk, block after block.
pub(super) struct Rows<'a> {
    m: usize,
    layout: Layout,
    /// First row of each block, and behind the last one the number of rows.
    starts: Vec<usize>,
    /// Of each chunk and block what [`Layout`] says.
    codes: &'a [i8],
    /// `[chunks][m]`.
    heads: &'a [Head],
}

/// One block's part of a chunk.
#[derive(Clone, Copy)]
pub(super) struct RowPart<'a> {
    /// See [`Layout`].
    pub(super) codes: &'a [i8],
    /// One of each row.
    pub(super) heads: &'a [Head],
}

impl Rows<'_> {
    /// Rounds rows in scratch memory for `f`, on one thread or on all.
    pub(super) fn with<R>(
        level: Level,
        m: usize,
        k: usize,
        x: &[f32],
        parallel: bool,
        f: impl FnOnce(&Rows) -> R,
    ) -> R {
        let (layout, chunks) = (Layout::of(level, m), chunks(k));
        let head_bytes = m * chunks * size_of::<Head>();
        let code_bytes = layout.rows(m) * layout.features(k);
        with_scratch(head_bytes + code_bytes, |scratch| {
            let (codes, heads) = scratch.cast_mut::<u8>().split_at_mut(code_bytes);
            let heads: &mut [Head] = bytemuck::cast_slice_mut(&mut heads[..head_bytes]);
            let codes: &mut [i8] = bytemuck::cast_slice_mut(codes);
            let mut parts = Vec::with_capacity(layout.blocks(m) * chunks);
            let (mut rest_heads, mut rest_codes) = (&mut *heads, &mut *codes);
            for chunk in 0..chunks {
                let features = chunk * CHUNK..(chunk * CHUNK + CHUNK).min(k);
                for block in 0..layout.blocks(m) {
                    let rows = layout.start(m, block)..layout.start(m, block + 1);
                    let (heads, after) = rest_heads.split_at_mut(rows.len());
                    rest_heads = after;
                    let bytes = layout.rows(rows.len()) * layout.features(features.len());
                    let (codes, after) = rest_codes.split_at_mut(bytes);
                    rest_codes = after;
                    parts.push((
                        &x[rows.start * k..rows.end * k],
                        features.clone(),
                        codes,
                        heads,
                    ));
                }
            }
            let quantize = |(x, features, codes, heads): Part| {
                quantize_part(level, layout, k, x, features, codes, heads);
            };
            if parallel && m * k >= SERIAL_VALUES {
                parts.into_par_iter().for_each(quantize);
            } else {
                parts.into_iter().for_each(quantize);
            }
            f(&Rows {
                m,
                layout,
                starts: layout.starts(m),
                codes,
                heads,
            })
        })
    }

    /// `m` rows of `k` values in scratch memory for `f`. `values(chunk, out)` writes the values of a chunk, `[m, features]`; it runs once for each
    /// chunk, in parallel.
    pub(super) fn of_chunks<R>(
        level: Level,
        m: usize,
        k: usize,
        values: impl Fn(usize, &mut [f32]) + Sync,
        f: impl FnOnce(&Rows) -> R,
    ) -> R {
        let layout = Layout::of(level, m);
        let head_bytes = m * chunks(k) * size_of::<Head>();
        let code_bytes = layout.rows(m) * layout.features(k);
        with_scratch(head_bytes + code_bytes, |scratch| {
            let (codes, heads) = scratch.cast_mut::<u8>().split_at_mut(code_bytes);
            let heads: &mut [Head] = bytemuck::cast_slice_mut(&mut heads[..head_bytes]);
            let codes: &mut [i8] = bytemuck::cast_slice_mut(codes);
            codes
                .par_chunks_mut((CHUNK * layout.rows(m)).max(1))
                .zip(heads.par_chunks_mut(m.max(1)))
                .enumerate()
                .for_each(|(chunk, (mut codes, mut heads))| {
                    let features = chunk_len(k, chunk);
                    with_scratch(4 * m * features, |scratch| {
                        let x = &mut scratch.cast_mut::<f32>()[..m * features];
                        values(chunk, x);
                        for block in 0..layout.blocks(m) {
                            let rows = layout.start(m, block)..layout.start(m, block + 1);
                            let bytes = layout.rows(rows.len()) * layout.features(features);
                            let x = &x[rows.start * features..rows.end * features];
                            let part = codes.split_off_mut(..bytes);
                            let head = heads.split_off_mut(..rows.len());
                            if let (Some(codes), Some(heads)) = (part, head) {
                                let all = 0..features;
                                quantize_part(level, layout, features, x, all, codes, heads);
                            }
                        }
                    });
                });
            f(&Rows {
                m,
                layout,
                starts: layout.starts(m),
                codes,
                heads,
            })
        })
    }

    /// Rows that there are.
    pub(super) fn count(&self) -> usize {
        self.m
    }

    /// Blocks of rows.
    pub(super) fn blocks(&self) -> usize {
        self.starts.len() - 1
    }

    /// Whether the tile unit multiplies these rows.
    pub(super) fn are_tiles(&self) -> bool {
        self.layout == Layout::Tiles
    }

    /// First row of block `index`; for the number of blocks, the number of rows.
    pub(super) fn start(&self, index: usize) -> usize {
        self.starts[index]
    }

    /// Chunk `chunk`, of `features` features, of the rows of block `index`.
    pub(super) fn part(&self, index: usize, chunk: usize, features: usize) -> RowPart<'_> {
        let first = self.start(index);
        let rows = self.start(index + 1) - first;
        let padded = self.layout.features(features);
        let codes = chunk * CHUNK * self.layout.rows(self.m) + first * padded;
        let heads = chunk * self.m + first;
        RowPart {
            codes: &self.codes[codes..][..padded * self.layout.rows(rows)],
            heads: &self.heads[heads..][..rows],
        }
    }
}

/// Rows of a block, the features of a chunk, and where its codes and heads go.
type Part<'a> = (&'a [f32], Range<usize>, &'a mut [i8], &'a mut [Head]);

/// Rounds one chunk of the rows `x` of a block.
fn quantize_part(
    level: Level,
    layout: Layout,
    k: usize,
    x: &[f32],
    features: Range<usize>,
    codes: &mut [i8],
    heads: &mut [Head],
) {
    let rows = heads.len();
    let mut row = [0i8; CHUNK];
    for (i, (x, head)) in x.chunks_exact(k).zip(heads).enumerate() {
        let (scale, sum) = quantize_chunk_at(level, &x[features.clone()], &mut row);
        *head = Head {
            scale,
            start: (-i32::from(ZERO)).wrapping_mul(sum),
        };
        match layout {
            Layout::Words => {
                let steps = codes.as_chunks_mut::<4>().0.chunks_exact_mut(rows);
                for (step, word) in steps.zip(row.as_chunks::<4>().0) {
                    step[i] = *word;
                }
            }
            Layout::Tiles => {
                let tiles = codes.as_chunks_mut::<TILE_FEATURES>().0;
                let steps = tiles.chunks_exact_mut(TILE_ROWS);
                for (step, part) in steps.zip(row.as_chunks::<TILE_FEATURES>().0) {
                    step[i] = *part;
                }
            }
        }
    }
}

/// Rounds up to a chunk of values to codes within ±127; returns scale and sum of the codes. `codes` may be longer. The same bits at every level, but for
/// what is not a number.
pub(super) fn quantize_chunk_at(level: Level, x: &[f32], codes: &mut [i8]) -> (f32, i32) {
    #[cfg(target_arch = "x86_64")]
    if level >= Level::Avx512
        && let (Some(x), Some(codes)) = (x.as_array(), codes.first_chunk_mut())
    {
        // SAFETY: the machine has this level.
        return unsafe { super::avx512::quantize_chunk(x, codes) };
    }
    quantize_part_of_chunk_at(level, x, codes)
}

/// Whether a chunk's largest value can be divided by: of smaller values the inverse would be infinite.
pub(super) const SMALLEST: f32 = 1e-36;

/// Rounds up to a chunk of values to codes within ±127; returns scale and sum of the codes. `codes` may be longer.
#[inline(always)]
fn quantize_chunk<const FMA: bool>(x: &[f32], codes: &mut [i8]) -> (f32, i32) {
    // Adding 1.5·2²³ rounds to the nearest integer and leaves it in the low bits.
    const ROUND: f32 = 12_582_912.0;
    const LANES: usize = 32;
    let mut lanes = [0.0f32; LANES];
    let (whole, rest) = x.as_chunks::<LANES>();
    for x in whole {
        for (lane, x) in lanes.iter_mut().zip(x) {
            *lane = if x.abs() > *lane { x.abs() } else { *lane };
        }
    }
    let largest = lanes.iter().copied().fold(0.0f32, f32::max);
    let largest = rest.iter().fold(largest, |most, x| most.max(x.abs()));
    let inverse = if largest > SMALLEST {
        127.0 / largest
    } else {
        0.0
    };
    let mut sums = [0i32; LANES];
    let (code_chunks, code_rest) = codes.as_chunks_mut::<LANES>();
    for (x, codes) in whole.iter().zip(code_chunks.iter_mut()) {
        for ((x, code), sum) in x.iter().zip(codes).zip(&mut sums) {
            let rounded = (x * inverse + ROUND).to_bits() as i32 - ROUND.to_bits() as i32;
            *code = rounded as i8;
            // What is not a number may have any code, but must not overflow.
            *sum = sum.wrapping_add(rounded);
        }
    }
    let mut total = sums
        .iter()
        .fold(0i32, |total, &sum| total.wrapping_add(sum));
    let tail = match code_chunks.get_mut(whole.len()) {
        Some(tail) => &mut tail[..],
        None => code_rest,
    };
    for (x, code) in rest.iter().zip(tail) {
        let rounded = (x * inverse + ROUND).to_bits() as i32 - ROUND.to_bits() as i32;
        *code = rounded as i8;
        total = total.wrapping_add(rounded);
    }
    (largest / 127.0, total)
}

multiversion!(fn quantize_part_of_chunk_at(x: &[f32], codes: &mut [i8]) -> (f32, i32) = quantize_chunk);

#[cfg(test)]
mod tests {
    use super::*;
    use crate::level::available;

    #[test]
    fn a_chunk_is_rounded_alike_at_every_level() {
        for (length, scale) in [
            (CHUNK, 1.0),
            (CHUNK, 3e-30),
            (CHUNK, 1e-40),
            (CHUNK, 0.0),
            (77, 5.0),
        ] {
            let x: Vec<f32> = (0..length)
                .map(|i| scale * ((i * 7919 % 2003) as f32 / 1001.0 - 1.0))
                .collect();
            let rounded = |level: Level| {
                let mut codes = [0i8; CHUNK];
                let (scale, sum) = quantize_chunk_at(level, &x, &mut codes);
                (scale.to_bits(), sum, codes)
            };
            let expected = rounded(Level::Portable);
            let sum: i32 = expected.2.iter().map(|&code| i32::from(code)).sum();
            assert_eq!(sum, expected.1);
            for level in available() {
                assert!(rounded(level) == expected, "{level:?} {length} {scale:e}");
            }
        }
    }
}
