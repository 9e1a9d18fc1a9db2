//! Rows of activations in 8 bits, one scale for each 256 values.

use bytemuck::{Pod, Zeroable};
use rayon::prelude::*;

use super::weight::{CHUNK, ZERO, chunks};
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

/// Rounded rows, in blocks of up to [`PASS_ROWS`] whose values are interleaved four by four.
pub(super) struct Rows<'a> {
    m: usize,
    k: usize,
    /// Of each block `[⌈k / 4⌉][rows][4]`.
    codes: &'a [i8],
    /// Of each block `[chunks][rows]`.
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
            let mut parts = Vec::with_capacity(blocks(m));
            let (mut rest_heads, mut rest_codes) = (&mut *heads, &mut *codes);
            for block in 0..blocks(m) {
                let (first, rows) = (start(m, block), start(m, block + 1) - start(m, block));
                let (heads, after) = rest_heads.split_at_mut(rows * chunks);
                rest_heads = after;
                let (codes, after) = rest_codes.split_at_mut(rows * padded);
                rest_codes = after;
                parts.push((&x[first * k..(first + rows) * k], codes, heads));
            }
            let quantize = |(x, codes, heads): (&[f32], &mut [i8], &mut [Head])| {
                quantize_block(level, k, x, codes, heads);
            };
            if parallel && m * k >= SERIAL_VALUES {
                parts.into_par_iter().for_each(quantize);
            } else {
                parts.into_iter().for_each(quantize);
            }
            f(&Rows { m, k, codes, heads })
        })
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
        let codes = first * self.k.next_multiple_of(4) + chunk * CHUNK * rows;
        let heads = first * chunks(self.k) + chunk * rows;
        RowPart {
            codes: &self.codes[codes..][..features.next_multiple_of(4) * rows],
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

/// Rounds the rows `x` of one block.
fn quantize_block(level: Level, k: usize, x: &[f32], codes: &mut [i8], heads: &mut [Head]) {
    let rows = x.len() / k.max(1);
    with_scratch(k.next_multiple_of(4), |scratch| {
        let row = &mut scratch.cast_mut::<i8>()[..k.next_multiple_of(4)];
        for (i, x) in x.chunks_exact(k.max(1)).enumerate() {
            for (chunk, (x, row)) in x.chunks(CHUNK).zip(row.chunks_mut(CHUNK)).enumerate() {
                let (scale, sum) = quantize_chunk_at(level, x, row);
                heads[chunk * rows + i] = Head {
                    scale,
                    start: -i32::from(ZERO) * sum,
                };
            }
            row[k..].fill(0);
            let words: &[[i8; 4]] = row.as_chunks().0;
            let steps = codes.as_chunks_mut::<4>().0.chunks_exact_mut(rows);
            for (step, word) in steps.zip(words) {
                step[i] = *word;
            }
        }
    });
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
    let inverse = if largest > 0.0 { 127.0 / largest } else { 0.0 };
    let mut sums = [0i32; LANES];
    let (code_chunks, code_rest) = codes.as_chunks_mut::<LANES>();
    for (x, codes) in whole.iter().zip(code_chunks.iter_mut()) {
        for ((x, code), sum) in x.iter().zip(codes).zip(&mut sums) {
            let rounded = (x * inverse + ROUND).to_bits() as i32 - ROUND.to_bits() as i32;
            *code = rounded as i8;
            *sum += i32::from(rounded as i8);
        }
    }
    let mut total: i32 = sums.iter().sum();
    let tail = match code_chunks.get_mut(whole.len()) {
        Some(tail) => &mut tail[..],
        None => code_rest,
    };
    for (x, code) in rest.iter().zip(tail) {
        let rounded = (x * inverse + ROUND).to_bits() as i32 - ROUND.to_bits() as i32;
        *code = rounded as i8;
        total += i32::from(rounded as i8);
    }
    (largest / 127.0, total)
}

multiversion!(pub(super) fn quantize_chunk_at(x: &[f32], codes: &mut [i8]) -> (f32, i32) = quantize_chunk);
