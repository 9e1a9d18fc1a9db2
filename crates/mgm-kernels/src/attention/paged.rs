//! Attention of the newest rows of several sequences over keys and values that lie in blocks of 32 positions.
//!
//! A block's keys are stored the way the matrix kernels read a right operand, so that nothing is packed when a sequence is attended to
//! again and again. A row's result depends only on its own query and the positions it sees: not on the rows beside it, on how a sequence
//! was divided over calls, or on the other sequences of a call.

use rayon::prelude::*;

use super::{EMPTY_ROW, block_row_at};
use crate::buffer::{fetch, with_scratch};
use crate::gemm::PANEL;
use crate::gemm::serial::{Left, Operand, pack_pairs, takes_pairs};
use crate::level::{self, Level, level};
use crate::shared::SharedSlice;

/// Positions of one block.
pub const BLOCK_POSITIONS: usize = PANEL;

/// Query rows of one task (a query head each), and blocks whose scores are held at once.
const TASK_ROWS: usize = 56;
const SCORE_BLOCKS: usize = 8;
const SCORES: usize = SCORE_BLOCKS * BLOCK_POSITIONS;

/// Rows up to which keys and values are waited for rather than worked on, so that they are fetched ahead.
const FETCHED_ROWS: usize = 16;

/// Fewer products than this are not worth waking other threads for.
const SERIAL_WORK: usize = 1 << 17;

/// Sizes of the keys and of the values of one layer.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct PagedShape {
    /// Query heads.
    pub heads: usize,
    /// Key and value heads; divides `heads`. Query head `h` uses key head `h / (heads / kv_heads)`.
    pub kv_heads: usize,
    /// Elements of a head.
    pub head_dim: usize,
}

impl PagedShape {
    /// Elements of the keys of one block, and of its values.
    ///
    /// Keys are `[kv_heads, head_dim, 32]` with the position last, values `[kv_heads, 32, head_dim]`.
    pub fn block_len(&self) -> usize {
        self.kv_heads * self.head_dim * BLOCK_POSITIONS
    }

    /// Writes key and value (`[kv_heads, head_dim]` each) of one position into a block.
    ///
    /// # Panics
    /// When a slice has the wrong length or `position` is not below 32.
    pub fn write(
        &self,
        keys: &mut [f32],
        values: &mut [f32],
        position: usize,
        key: &[f32],
        value: &[f32],
    ) {
        let width = self.kv_heads * self.head_dim;
        assert!(
            position < BLOCK_POSITIONS
                && keys.len() == self.block_len()
                && values.len() == self.block_len()
                && key.len() == width
                && value.len() == width,
            "paged attention: a block or position of the wrong size"
        );
        for (slots, &key) in keys.chunks_exact_mut(BLOCK_POSITIONS).zip(key) {
            slots[position] = key;
        }
        let head = self.head_dim * BLOCK_POSITIONS;
        for (values, value) in values
            .chunks_exact_mut(head.max(1))
            .zip(value.chunks_exact(self.head_dim.max(1)))
        {
            values[position * self.head_dim..][..self.head_dim].copy_from_slice(value);
        }
    }
}

/// One sequence of a call.
#[derive(Clone, Copy, Debug)]
pub struct PagedSequence<'a> {
    /// Keys of its blocks, in order.
    pub keys: &'a [&'a [f32]],
    /// Values of its blocks.
    pub values: &'a [&'a [f32]],
    /// Positions that are written, the new ones included.
    pub key_len: usize,
    /// Its new rows: the last positions of the sequence.
    pub query_len: usize,
}

/// `out = softmax(scale · q·kᵀ) · v` for the new rows `q [rows, heads, head_dim]` of all sequences, one sequence after another. Row `i` of a
/// sequence sees its positions `0..=key_len − query_len + i`.
///
/// # Panics
/// When rows and sequences differ, or a sequence has too few blocks.
pub fn paged_attention(
    shape: &PagedShape,
    scale: f32,
    sequences: &[PagedSequence],
    q: &[f32],
    out: &mut [f32],
) {
    paged_attention_at(level(), shape, scale, sequences, q, out);
}

/// [`paged_attention`] at a forced level.
pub fn paged_attention_at(
    level: Level,
    shape: &PagedShape,
    scale: f32,
    sequences: &[PagedSequence],
    q: &[f32],
    out: &mut [f32],
) {
    attend(level, false, shape, scale, sequences, q, out);
}

/// [`paged_attention`] whose products round queries, keys, attention weights and values to bf16, whatever the number of rows, where the machine
/// multiplies bf16 faster and a head is whole panels of 32; elsewhere it is [`paged_attention`] itself.
///
/// # Panics
/// As [`paged_attention`].
pub fn paged_attention_bf16(
    shape: &PagedShape,
    scale: f32,
    sequences: &[PagedSequence],
    q: &[f32],
    out: &mut [f32],
) {
    paged_attention_bf16_at(level(), shape, scale, sequences, q, out);
}

/// [`paged_attention_bf16`] at a forced level.
pub fn paged_attention_bf16_at(
    level: Level,
    shape: &PagedShape,
    scale: f32,
    sequences: &[PagedSequence],
    q: &[f32],
    out: &mut [f32],
) {
    let pairs = takes_pairs(level::clamp(level)) && shape.head_dim.is_multiple_of(PANEL);
    attend(level, pairs, shape, scale, sequences, q, out);
}

fn attend(
    level: Level,
    pairs: bool,
    shape: &PagedShape,
    scale: f32,
    sequences: &[PagedSequence],
    q: &[f32],
    out: &mut [f32],
) {
    let level = level::clamp(level);
    let d = shape.head_dim;
    assert!(
        shape.kv_heads > 0 && shape.heads.is_multiple_of(shape.kv_heads),
        "paged attention: kv_heads must divide heads"
    );
    let rows: usize = sequences.iter().map(|sequence| sequence.query_len).sum();
    let width = shape.heads * d;
    assert!(
        q.len() == rows * width && out.len() == rows * width,
        "paged attention: q and out must be [{rows}, {}, {d}]",
        shape.heads
    );
    if width == 0 {
        return;
    }
    let group = shape.heads / shape.kv_heads;
    let mut tasks = Vec::new();
    let (mut start, mut work) = (0, 0);
    // Where there are fewer key heads than threads the query heads of one are shared out too.
    let heads = sequences.len() * shape.kv_heads;
    let shares = rayon::current_num_threads().div_ceil(heads.max(1));
    for sequence in sequences {
        check(shape, sequence);
        work += sequence.query_len * sequence.key_len * width;
        let virtual_rows = sequence.query_len * group;
        for kv_head in 0..shape.kv_heads {
            let most = virtual_rows.div_ceil(shares).clamp(1, TASK_ROWS);
            for first in (0..virtual_rows).step_by(most) {
                tasks.push(Task {
                    sequence,
                    start,
                    pairs,
                    kv_head,
                    first,
                    count: most.min(virtual_rows - first),
                });
            }
        }
        start += sequence.query_len;
    }
    let out = SharedSlice::new(out);
    let run = |task: Task| task.run(level, shape, scale, q, &out);
    if work < SERIAL_WORK || tasks.len() == 1 {
        tasks.into_iter().for_each(run);
    } else {
        tasks.into_par_iter().for_each(run);
    }
}

fn check(shape: &PagedShape, sequence: &PagedSequence) {
    let blocks = sequence.key_len.div_ceil(BLOCK_POSITIONS);
    let whole = |parts: &[&[f32]]| {
        parts.len() >= blocks && parts.iter().all(|part| part.len() == shape.block_len())
    };
    assert!(
        sequence.query_len <= sequence.key_len && whole(sequence.keys) && whole(sequence.values),
        "paged attention: {} positions need {blocks} blocks of {} values, there are {} and {}",
        sequence.key_len,
        shape.block_len(),
        sequence.keys.len(),
        sequence.values.len()
    );
}

/// Rows of one sequence and key head. A row is a query head of a new position: all query heads of a key head stand side by side, so that
/// they read the keys together.
#[derive(Clone, Copy)]
struct Task<'a> {
    sequence: &'a PagedSequence<'a>,
    /// The sequence's first row in `q`.
    start: usize,
    /// Whether products are of bf16 pairs.
    pairs: bool,
    kv_head: usize,
    first: usize,
    count: usize,
}

impl Task<'_> {
    fn run(self, level: Level, shape: &PagedShape, scale: f32, q: &[f32], out: &SharedSlice) {
        let (d, rows) = (shape.head_dim, self.count);
        let group = shape.heads / shape.kv_heads;
        let offset = |row: usize| {
            let row = self.first + row;
            ((self.start + row / group) * shape.heads + self.kv_head * group + row % group) * d
        };
        let before = self.sequence.key_len - self.sequence.query_len;
        let visible = |row: usize| before + (self.first + row) / group + 1;
        let last = visible(rows - 1);
        // Keys or values of one block as pairs.
        let pair_words = if self.pairs {
            d * BLOCK_POSITIONS / 2
        } else {
            0
        };
        let sizes = [rows * d, rows * d, rows * SCORES, pair_words];
        let (left_bytes, score_bytes) = (
            Left::bytes(level, rows, d),
            Left::bytes(level, rows, SCORES),
        );
        let floats = sizes.iter().sum::<usize>();
        with_scratch(left_bytes, |left| {
            with_scratch(score_bytes, |weights| {
                with_scratch(floats * 4, |scratch| {
                    let scratch = &mut scratch.cast_mut::<f32>()[..floats];
                    let (queries, rest) = scratch.split_at_mut(sizes[0]);
                    let (sums, rest) = rest.split_at_mut(sizes[1]);
                    let (scores, pairs) = rest.split_at_mut(sizes[2]);
                    let pairs: &mut [u32] = bytemuck::cast_slice_mut(pairs);
                    for (row, query) in queries.chunks_exact_mut(d).enumerate() {
                        query.copy_from_slice(&q[offset(row)..][..d]);
                    }
                    sums.fill(0.0);
                    let left = match self.pairs {
                        true => Left::pack_pairs(rows, d, queries, d, left.cast_mut()),
                        false => Left::pack(level, rows, d, queries, d, left.cast_mut()),
                    };
                    let mut states = [EMPTY_ROW; TASK_ROWS];
                    for start in (0..last).step_by(SCORES) {
                        let seen = SCORES.min(last - start);
                        let blocks = start / BLOCK_POSITIONS..;
                        let count = seen.div_ceil(BLOCK_POSITIONS);
                        for (index, block) in blocks.clone().take(count).enumerate() {
                            if rows <= FETCHED_ROWS {
                                let fetch_block = |parts: &[&[f32]], block: usize| {
                                    let head = self.kv_head * d * PANEL;
                                    if let Some(part) = parts.get(block) {
                                        fetch(&part[head..][..d * PANEL]);
                                    }
                                };
                                fetch_block(self.sequence.values, block);
                                fetch_block(self.sequence.keys, block + 1);
                            }
                            let keys = &self.sequence.keys[block][self.kv_head * d * PANEL..];
                            let keys = if self.pairs {
                                pack_pairs(d, PANEL, keys, PANEL, pairs);
                                Operand::pairs(pairs, d)
                            } else {
                                Operand::rows(keys, PANEL)
                            };
                            left.product(
                                PANEL,
                                0..d,
                                keys,
                                &mut scores[index * PANEL..],
                                SCORES,
                                false,
                            );
                        }
                        for row in 0..rows {
                            let visible = visible(row).saturating_sub(start).min(seen);
                            block_row_at(
                                level,
                                &mut scores[row * SCORES..][..seen],
                                visible,
                                scale,
                                &mut states[row],
                                &mut sums[row * d..][..d],
                            );
                        }
                        let packed = weights.cast_mut();
                        let weights = match self.pairs {
                            true => Left::pack_pairs(rows, seen, scores, SCORES, packed),
                            false => Left::pack(level, rows, seen, scores, SCORES, packed),
                        };
                        for (index, block) in blocks.take(count).enumerate() {
                            let first = index * BLOCK_POSITIONS;
                            let steps = first..seen.min(first + BLOCK_POSITIONS);
                            let values = &self.sequence.values[block][self.kv_head * d * PANEL..];
                            let values = if self.pairs {
                                pack_pairs(steps.len(), d, values, d, pairs);
                                Operand::pairs(pairs, steps.len())
                            } else {
                                Operand::rows(values, d)
                            };
                            weights.product(d, steps, values, sums, d, true);
                        }
                    }
                    for (row, sums) in sums.chunks_exact(d).enumerate() {
                        let inverse = 1.0 / states[row].total;
                        // SAFETY: every (row, head) belongs to one task.
                        let out = unsafe { out.range(offset(row), d) };
                        for (out, sum) in out.iter_mut().zip(sums) {
                            *out = sum * inverse;
                        }
                    }
                });
            });
        });
    }
}
