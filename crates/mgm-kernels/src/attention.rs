//! Scaled dot-product attention with an online softmax (Dao et al., FlashAttention), forward and backward.

mod backward;
mod paged;
mod reduced;

pub use backward::{attention_backward, attention_backward_at};
pub use paged::{
    BLOCK_POSITIONS, PagedSequence, PagedShape, paged_attention, paged_attention_at,
    paged_attention_bf16, paged_attention_bf16_at,
};
pub use reduced::{attention_bf16, attention_bf16_at};

use rayon::prelude::*;

use crate::buffer::with_scratch;
use crate::gemm::serial::{self, Operand};
use crate::gemm::{PANEL, PackedWeight, WeightType};
use crate::level::{self, Level, level};
use crate::math::{self, multiversion};
use crate::shared::SharedSlice;

/// Shape of one attention call over one sequence.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct AttentionShape {
    /// Query heads.
    pub heads: usize,
    /// Key and value heads; divides `heads`. Query head `h` uses key head `h / (heads / kv_heads)`.
    pub kv_heads: usize,
    /// Elements of a head.
    pub head_dim: usize,
    /// Query rows.
    pub query_len: usize,
    /// Key and value rows.
    pub key_len: usize,
    /// Factor on the scores, usually `1/√head_dim`.
    pub scale: f32,
    /// With `Some(offset)` query `i` sees the keys `0..=offset + i`; with `None` all of them.
    pub causal_offset: Option<usize>,
}

impl AttentionShape {
    /// Number of leading keys that query `row` sees.
    fn visible(&self, row: usize) -> usize {
        match self.causal_offset {
            Some(offset) => (offset + row + 1).min(self.key_len),
            None => self.key_len,
        }
    }
}

/// Place of element (head, row, d): `head · head_stride + row · row_stride + d`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct HeadsLayout {
    /// Elements from one head to the next.
    pub head_stride: usize,
    /// Elements from one row to the next.
    pub row_stride: usize,
}

impl HeadsLayout {
    fn at(&self, head: usize, row: usize) -> usize {
        head * self.head_stride + row * self.row_stride
    }

    fn check(&self, name: &str, heads: usize, rows: usize, head_dim: usize, len: usize) {
        if heads == 0 || rows == 0 {
            return;
        }
        let needed = self.at(heads - 1, rows - 1) + head_dim;
        assert!(
            len >= needed,
            "attention: {name} needs {needed} elements, has {len}"
        );
    }

    /// Output rows are written by parallel tasks, so two (head, row) pairs must not share an element.
    fn check_disjoint(&self, name: &str, heads: usize, rows: usize, head_dim: usize) {
        let by_rows = self.row_stride >= head_dim
            && (heads <= 1
                || self.head_stride >= self.row_stride * rows.saturating_sub(1) + head_dim
                || (self.head_stride >= head_dim
                    && self.row_stride >= self.head_stride * (heads - 1) + head_dim));
        let single_row = rows <= 1 && (heads <= 1 || self.head_stride >= head_dim);
        assert!(by_rows || single_row, "attention: rows of {name} overlap");
    }
}

fn check(
    s: &AttentionShape,
    q: &[f32],
    ql: HeadsLayout,
    k: &[f32],
    kl: HeadsLayout,
    v: &[f32],
    vl: HeadsLayout,
    out: &[f32],
    ol: HeadsLayout,
) {
    assert!(
        s.kv_heads > 0 && s.heads.is_multiple_of(s.kv_heads),
        "attention: kv_heads must divide heads"
    );
    ql.check("q", s.heads, s.query_len, s.head_dim, q.len());
    kl.check("k", s.kv_heads, s.key_len, s.head_dim, k.len());
    vl.check("v", s.kv_heads, s.key_len, s.head_dim, v.len());
    ol.check("out", s.heads, s.query_len, s.head_dim, out.len());
}

#[inline(always)]
fn dot<const FMA: bool>(a: &[f32], b: &[f32]) -> f32 {
    let mut lanes = [0.0f32; 16];
    let (a_chunks, a_tail) = a.as_chunks::<16>();
    let (b_chunks, b_tail) = b.as_chunks::<16>();
    for (a, b) in a_chunks.iter().zip(b_chunks) {
        for i in 0..16 {
            lanes[i] = math::multiply_add::<FMA>(a[i], b[i], lanes[i]);
        }
    }
    for (i, (&a, &b)) in a_tail.iter().zip(b_tail).enumerate() {
        lanes[i] += a * b;
    }
    lanes.iter().sum()
}

#[inline(always)]
fn axpy<const FMA: bool>(scale: f32, x: &[f32], out: &mut [f32]) {
    for (o, &x) in out.iter_mut().zip(x) {
        *o = math::multiply_add::<FMA>(scale, x, *o);
    }
}

/// One query row against its visible keys. `k` and `v` start at this key head.
#[inline(always)]
fn forward_row<const FMA: bool>(
    scale: f32,
    visible: usize,
    q: &[f32],
    k: &[f32],
    k_stride: usize,
    v: &[f32],
    v_stride: usize,
    out: &mut [f32],
) {
    const BLOCK: usize = 64;
    let d = q.len();
    let mut maximum = f32::NEG_INFINITY;
    let mut total = 0.0f32;
    out.fill(0.0);
    let mut start = 0;
    while start < visible {
        let count = BLOCK.min(visible - start);
        let mut scores = [f32::NEG_INFINITY; BLOCK];
        let mut block_maximum = f32::NEG_INFINITY;
        for (i, score) in scores[..count].iter_mut().enumerate() {
            *score = scale * dot::<FMA>(q, &k[(start + i) * k_stride..][..d]);
            block_maximum = block_maximum.max(*score);
        }
        let new_maximum = maximum.max(block_maximum);
        if new_maximum > maximum {
            let correction = math::exp::<FMA>(maximum - new_maximum);
            total *= correction;
            for o in out.iter_mut() {
                *o *= correction;
            }
            maximum = new_maximum;
        }
        for score in scores.iter_mut() {
            *score = math::exp::<FMA>(*score - maximum);
        }
        for (i, &weight) in scores[..count].iter().enumerate() {
            total += weight;
            axpy::<FMA>(weight, &v[(start + i) * v_stride..][..d], out);
        }
        start += count;
    }
    if total > 0.0 {
        let inverse = 1.0 / total;
        for o in out.iter_mut() {
            *o *= inverse;
        }
    }
}

multiversion!(fn forward_row_at(scale: f32, visible: usize, q: &[f32], k: &[f32], k_stride: usize, v: &[f32], v_stride: usize, out: &mut [f32]) = forward_row);

/// Running maximum and sum of one query row.
#[derive(Clone, Copy)]
struct RowState {
    maximum: f32,
    total: f32,
}

const EMPTY_ROW: RowState = RowState {
    maximum: f32::NEG_INFINITY,
    total: 0.0,
};

/// Largest value; negative infinity for no values.
#[inline(always)]
fn largest(values: &[f32]) -> f32 {
    let mut lanes = [f32::NEG_INFINITY; 16];
    let (chunks, tail) = values.as_chunks::<16>();
    for chunk in chunks {
        for (lane, &v) in lanes.iter_mut().zip(chunk) {
            *lane = if v > *lane { v } else { *lane };
        }
    }
    for (lane, &v) in lanes.iter_mut().zip(tail) {
        *lane = if v > *lane { v } else { *lane };
    }
    lanes.iter().copied().fold(f32::NEG_INFINITY, f32::max)
}

/// `eˢ` for each value after `s = value · scale - maximum`, in place; returns the sum. No `s` may be above 0, but not a number.
#[inline(always)]
fn exponentials<const FMA: bool>(values: &mut [f32], scale: f32, maximum: f32) -> f32 {
    let mut lanes = [0.0f32; 16];
    let (chunks, tail) = values.as_chunks_mut::<16>();
    for chunk in chunks {
        for (lane, v) in lanes.iter_mut().zip(chunk) {
            *v = math::exp_below::<FMA>(*v * scale - maximum);
            *lane += *v;
        }
    }
    for (lane, v) in lanes.iter_mut().zip(tail) {
        *v = math::exp_below::<FMA>(*v * scale - maximum);
        *lane += *v;
    }
    lanes.iter().sum()
}

/// One row of a block of scores: replaces the visible scores by exponentials, the others by zeros, and brings the
/// output row to the new maximum.
#[inline(always)]
fn block_row<const FMA: bool>(
    scores: &mut [f32],
    visible: usize,
    scale: f32,
    state: &mut RowState,
    out: &mut [f32],
) {
    let (seen, hidden) = scores.split_at_mut(visible);
    hidden.fill(0.0);
    if seen.is_empty() {
        return;
    }
    let mut extreme = largest(seen);
    if scale < 0.0 {
        // A negative factor turns the smallest product into the largest score.
        extreme = seen.iter().copied().fold(f32::INFINITY, f32::min);
    }
    let maximum = state.maximum.max(extreme * scale);
    if maximum > state.maximum && state.total > 0.0 {
        let correction = math::exp::<FMA>(state.maximum - maximum);
        state.total *= correction;
        for o in out {
            *o *= correction;
        }
    }
    state.maximum = maximum;
    state.total += exponentials::<FMA>(seen, scale, maximum);
}

multiversion!(fn block_row_at(scores: &mut [f32], visible: usize, scale: f32, state: &mut RowState, out: &mut [f32]) = block_row);

/// Query rows of one task, and keys of one block of scores.
const QUERY_BLOCK: usize = 56;
const KEY_BLOCK: usize = 256;
/// Fewer query rows than this for a key head do not repay packing the keys.
const MIN_BLOCK_ROWS: usize = 8;

/// `k` of all heads as packed rows, each head's rows from a multiple of 32.
fn pack_heads(
    heads: usize,
    rows: usize,
    d: usize,
    k: &[f32],
    kl: HeadsLayout,
    t: WeightType,
) -> PackedWeight {
    let padded = rows.next_multiple_of(PANEL);
    PackedWeight::pack_rows(heads * padded, d, t, |index, out| {
        let (head, row) = (index / padded, index % padded);
        if row < rows {
            out.copy_from_slice(&k[kl.at(head, row)..][..d]);
        } else {
            out.fill(0.0);
        }
    })
}

/// `out = softmax(scale · q·kᵀ + mask) · v` per head. A query that sees no key gives zeros.
///
/// # Panics
/// When a slice is too short for its layout, or rows of `out` overlap.
pub fn attention(
    s: &AttentionShape,
    q: &[f32],
    ql: HeadsLayout,
    k: &[f32],
    kl: HeadsLayout,
    v: &[f32],
    vl: HeadsLayout,
    out: &mut [f32],
    ol: HeadsLayout,
) {
    attention_at(level(), s, q, ql, k, kl, v, vl, out, ol);
}

/// [`attention`] at a forced level.
pub fn attention_at(
    level: Level,
    s: &AttentionShape,
    q: &[f32],
    ql: HeadsLayout,
    k: &[f32],
    kl: HeadsLayout,
    v: &[f32],
    vl: HeadsLayout,
    out: &mut [f32],
    ol: HeadsLayout,
) {
    let level = level::clamp(level);
    check(s, q, ql, k, kl, v, vl, out, ol);
    if s.heads == 0 || s.query_len == 0 || s.head_dim == 0 {
        return;
    }
    ol.check_disjoint("out", s.heads, s.query_len, s.head_dim);
    let group = s.heads / s.kv_heads;
    let d = s.head_dim;
    let out = SharedSlice::new(out);
    if s.query_len * group < MIN_BLOCK_ROWS || s.key_len == 0 {
        let row = |index: usize| {
            let (head, row) = (index / s.query_len, index % s.query_len);
            // SAFETY: `check_disjoint`: every (head, row) has its own elements, and each is one task.
            let out = unsafe { out.range(ol.at(head, row), d) };
            let q = &q[ql.at(head, row)..][..d];
            let (k, v) = if s.key_len == 0 {
                (&k[..0], &v[..0])
            } else {
                (&k[kl.at(head / group, 0)..], &v[vl.at(head / group, 0)..])
            };
            forward_row_at(
                level,
                s.scale,
                s.visible(row),
                q,
                k,
                kl.row_stride,
                v,
                vl.row_stride,
                out,
            );
        };
        if s.heads * s.query_len * s.key_len * d < SERIAL_WORK {
            (0..s.heads * s.query_len).for_each(row);
        } else {
            (0..s.heads * s.query_len).into_par_iter().for_each(row);
        }
        return;
    }
    let packed = pack_heads(s.kv_heads, s.key_len, d, k, kl, WeightType::F32);
    let padded = s.key_len.next_multiple_of(PANEL);
    let query_blocks = s.query_len.div_ceil(QUERY_BLOCK);
    let task = |index: usize| {
        // Late query blocks see the most keys: first, so that the threads finish together.
        let (head, block) = (
            index / query_blocks,
            query_blocks - 1 - index % query_blocks,
        );
        let first = block * QUERY_BLOCK;
        let rows = QUERY_BLOCK.min(s.query_len - first);
        let kv_head = head / group;
        let values = &v[vl.at(kv_head, 0)..];
        let visible = s.visible(first + rows - 1);
        with_scratch((rows * (d + KEY_BLOCK)) * 4, |scratch| {
            let (sums, scores) =
                scratch.cast_mut::<f32>()[..rows * (d + KEY_BLOCK)].split_at_mut(rows * d);
            sums.fill(0.0);
            let mut states = [EMPTY_ROW; QUERY_BLOCK];
            for start in (0..visible).step_by(KEY_BLOCK) {
                let count = KEY_BLOCK.min(visible - start);
                let keys = Operand::panels(&packed, kv_head * padded + start);
                let queries = &q[ql.at(head, first)..];
                serial::product(
                    level,
                    rows,
                    count,
                    d,
                    queries,
                    ql.row_stride,
                    1,
                    keys,
                    scores,
                    KEY_BLOCK,
                    false,
                );
                for row in 0..rows {
                    let seen = s.visible(first + row).saturating_sub(start).min(count);
                    let scores = &mut scores[row * KEY_BLOCK..][..count];
                    block_row_at(
                        level,
                        scores,
                        seen,
                        s.scale,
                        &mut states[row],
                        &mut sums[row * d..][..d],
                    );
                }
                let values = Operand::rows(&values[start * vl.row_stride..], vl.row_stride);
                serial::product(
                    level, rows, d, count, scores, KEY_BLOCK, 1, values, sums, d, true,
                );
            }
            for row in 0..rows {
                let inverse = if states[row].total > 0.0 {
                    1.0 / states[row].total
                } else {
                    0.0
                };
                // SAFETY: `check_disjoint`, and this (head, row) belongs to this task.
                let out = unsafe { out.range(ol.at(head, first + row), d) };
                for (o, &sum) in out.iter_mut().zip(&sums[row * d..]) {
                    *o = sum * inverse;
                }
            }
        });
    };
    if s.heads * s.query_len * s.key_len * d < SERIAL_WORK {
        (0..s.heads * query_blocks).for_each(task);
    } else {
        (0..s.heads * query_blocks).into_par_iter().for_each(task);
    }
}

/// Fewer products than this are not worth waking other threads for.
const SERIAL_WORK: usize = 1 << 15;
