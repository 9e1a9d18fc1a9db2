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

/// Rounded rows, chunk after chunk, in blocks of up to [`PASS_ROWS`] rows whose values are interleaved four by four: passes over a chunk
/// read them from first to last.
pub(super) struct Rows<'a> {
    m: usize,
    /// Of each chunk and block `[⌈features / 4⌉][rows][4]`.
    codes: &'a [i8],
    /// `[chunks][m]`.
    heads: &'a [Head],
}

/// One block's part of a chunk.
#[derive(Clone, Copy)]
pub(super) struct RowPart<'a> {
    /// `[⌈features / 4⌉][rows][4]`.
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
        let (padded, chunks) = (k.next_multiple_of(4), chunks(k));
        let head_bytes = m * chunks * size_of::<Head>();
        with_scratch(head_bytes + m * padded, |scratch| {
            let (heads, codes) = scratch.cast_mut::<u8>().split_at_mut(head_bytes);
            let heads: &mut [Head] = bytemuck::cast_slice_mut(heads);
            let codes: &mut [i8] = bytemuck::cast_slice_mut(&mut codes[..m * padded]);
            let mut parts = Vec::with_capacity(blocks(m) * chunks);
            let (mut rest_heads, mut rest_codes) = (&mut *heads, &mut *codes);
            for chunk in 0..chunks {
                let features = chunk * CHUNK..(chunk * CHUNK + CHUNK).min(k);
                for block in 0..blocks(m) {
                    let rows = start(m, block)..start(m, block + 1);
                    let (heads, after) = rest_heads.split_at_mut(rows.len());
                    rest_heads = after;
                    let bytes = rows.len() * features.len().next_multiple_of(4);
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
                quantize_part(level, k, x, features, codes, heads);
            };
            if parallel && m * k >= SERIAL_VALUES {
                parts.into_par_iter().for_each(quantize);
            } else {
                parts.into_iter().for_each(quantize);
            }
            f(&Rows { m, codes, heads })
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
        let head_bytes = m * chunks(k) * size_of::<Head>();
        let code_bytes = m * k.next_multiple_of(4);
        with_scratch(head_bytes + code_bytes, |scratch| {
            let (heads, codes) = scratch.cast_mut::<u8>().split_at_mut(head_bytes);
            let heads: &mut [Head] = bytemuck::cast_slice_mut(heads);
            let codes: &mut [i8] = bytemuck::cast_slice_mut(&mut codes[..code_bytes]);
            codes
                .par_chunks_mut((CHUNK * m).max(1))
                .zip(heads.par_chunks_mut(m.max(1)))
                .enumerate()
                .for_each(|(chunk, (mut codes, mut heads))| {
                    let features = chunk_len(k, chunk);
                    with_scratch(4 * m * features, |scratch| {
                        let x = &mut scratch.cast_mut::<f32>()[..m * features];
                        values(chunk, x);
                        for block in 0..blocks(m) {
                            let rows = start(m, block)..start(m, block + 1);
                            let bytes = rows.len() * features.next_multiple_of(4);
                            let x = &x[rows.start * features..rows.end * features];
                            let part = codes.split_off_mut(..bytes);
                            let head = heads.split_off_mut(..rows.len());
                            if let (Some(codes), Some(heads)) = (part, head) {
                                quantize_part(level, features, x, 0..features, codes, heads);
                            }
                        }
                    });
                });
            f(&Rows { m, codes, heads })
        })
    }

    /// Rows that there are.
    pub(super) fn count(&self) -> usize {
        self.m
    }

    /// Blocks of rows.
    pub(super) fn blocks(&self) -> usize {
        blocks(self.m)
    }

    /// First row of block `index`; for the number of blocks, the number of rows.
    pub(super) fn start(&self, index: usize) -> usize {
        start(self.m, index)
    }

    /// Chunk `chunk`, of `features` features, of the rows of block `index`.
    pub(super) fn part(&self, index: usize, chunk: usize, features: usize) -> RowPart<'_> {
        let first = self.start(index);
        let rows = self.start(index + 1) - first;
        let padded = features.next_multiple_of(4);
        let codes = chunk * CHUNK * self.m + first * padded;
        let heads = chunk * self.m + first;
        RowPart {
            codes: &self.codes[codes..][..padded * rows],
            heads: &self.heads[heads..][..rows],
        }
    }
}

fn blocks(m: usize) -> usize {
    m.div_ceil(PASS_ROWS)
}

/// First row of a block. Equal shares: no short last block, which would read a panel for little.
fn start(m: usize, block: usize) -> usize {
    block * m / blocks(m).max(1)
}

/// Rows of a block, the features of a chunk, and where its codes and heads go.
type Part<'a> = (&'a [f32], Range<usize>, &'a mut [i8], &'a mut [Head]);

/// Rounds one chunk of the rows `x` of a block.
fn quantize_part(
    level: Level,
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
        let steps = codes.as_chunks_mut::<4>().0.chunks_exact_mut(rows);
        for (step, word) in steps.zip(row.as_chunks::<4>().0) {
            step[i] = *word;
        }
    }
}

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
    // Of smaller values the inverse would be infinite.
    let inverse = if largest > 1e-36 {
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

multiversion!(pub(super) fn quantize_chunk_at(x: &[f32], codes: &mut [i8]) -> (f32, i32) = quantize_chunk);
