//! Forward attention with products of bf16 values; scores, softmax and sums stay `f32`.

use rayon::prelude::*;

use super::{
    AttentionShape, EMPTY_ROW, HeadsLayout, KEY_BLOCK, MIN_BLOCK_ROWS, QUERY_BLOCK, SERIAL_WORK,
    attention_at, block_row_at, check, pack_heads,
};
use crate::buffer::with_scratch;
use crate::gemm::serial;
use crate::gemm::{PANEL, PackedWeight, WeightType};
use crate::level::{self, Level, has_avx512_bf16, level};
use crate::shared::SharedSlice;

/// [`super::attention`] whose products round queries, keys, attention weights and values to bf16, where the machine multiplies bf16 faster
/// than `f32` and the shape allows: rows of whole heads one after another, heads of whole panels of 32. Elsewhere it is
/// [`super::attention`] itself.
///
/// # Panics
/// When a slice is too short for its layout, or rows of `out` overlap.
pub fn attention_bf16(
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
    attention_bf16_at(level(), s, q, ql, k, kl, v, vl, out, ol);
}

/// [`attention_bf16`] at a forced level.
pub fn attention_bf16_at(
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
    let d = s.head_dim;
    let row = s.kv_heads * d;
    let packs = vl.head_stride == d && vl.row_stride == row && d.is_multiple_of(PANEL) && d > 0;
    let fast = level >= Level::Avx512 && has_avx512_bf16();
    let group = s.heads / s.kv_heads.max(1);
    if !fast || !packs || s.key_len == 0 || s.query_len * group < MIN_BLOCK_ROWS {
        attention_at(level, s, q, ql, k, kl, v, vl, out, ol);
        return;
    }
    // The tile unit would have to be set up for every small product.
    let level = Level::Avx512;
    check(s, q, ql, k, kl, v, vl, out, ol);
    ol.check_disjoint("out", s.heads, s.query_len, d);
    let keys = pack_heads(s.kv_heads, s.key_len, d, k, kl, WeightType::Bf16);
    let padded = s.key_len.next_multiple_of(PANEL);
    // Columns of all heads side by side: head `h` begins at panel `h · d / 32`.
    let values =
        PackedWeight::pack_transposed(row, s.key_len, &v[..s.key_len * row], WeightType::Bf16);
    let out = SharedSlice::new(out);
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
        let visible = s.visible(first + rows - 1);
        let length = rows * (d + KEY_BLOCK);
        with_scratch(length * 4, |scratch| {
            let (sums, scores) = scratch.cast_mut::<f32>()[..length].split_at_mut(rows * d);
            sums.fill(0.0);
            let mut states = [EMPTY_ROW; QUERY_BLOCK];
            for start in (0..visible).step_by(KEY_BLOCK) {
                let count = KEY_BLOCK.min(visible - start);
                let queries = &q[ql.at(head, first)..];
                let part = serial::PackedPart {
                    first_column: kv_head * padded + start,
                    columns: count,
                    first_step: 0,
                    steps: d,
                };
                serial::packed_product(
                    level,
                    rows,
                    queries,
                    ql.row_stride,
                    &keys,
                    part,
                    scores,
                    KEY_BLOCK,
                    false,
                );
                for (row, state) in states[..rows].iter_mut().enumerate() {
                    let seen = s.visible(first + row).saturating_sub(start).min(count);
                    let scores = &mut scores[row * KEY_BLOCK..][..count];
                    block_row_at(
                        level,
                        scores,
                        seen,
                        s.scale,
                        state,
                        &mut sums[row * d..][..d],
                    );
                }
                let part = serial::PackedPart {
                    first_column: kv_head * d,
                    columns: d,
                    first_step: start,
                    steps: count,
                };
                serial::packed_product(
                    level, rows, scores, KEY_BLOCK, &values, part, sums, d, true,
                );
            }
            for (row, state) in states[..rows].iter().enumerate() {
                let inverse = if state.total > 0.0 {
                    1.0 / state.total
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
