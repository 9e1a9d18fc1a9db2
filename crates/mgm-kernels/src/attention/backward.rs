//! Gradients of attention.

use rayon::prelude::*;

use super::{
    AttentionShape, EMPTY_ROW, HeadsLayout, QUERY_BLOCK, block_row, check, dot, pack_heads,
};
use crate::buffer::with_scratch;
use crate::gemm::serial::{self, Operand};
use crate::gemm::{PANEL, WeightType};
use crate::level::{self, Level, level};
use crate::math::multiversion;
use crate::shared::SharedSlice;

/// One row of scores to probabilities (zeros where hidden).
#[inline(always)]
fn probability_row<const FMA: bool>(scores: &mut [f32], visible: usize, scale: f32) {
    let mut state = EMPTY_ROW;
    block_row::<FMA>(scores, visible, scale, &mut state, &mut []);
    let inverse = if state.total > 0.0 {
        1.0 / state.total
    } else {
        0.0
    };
    for p in &mut scores[..visible] {
        *p *= inverse;
    }
}

multiversion!(fn probability_row_at(scores: &mut [f32], visible: usize, scale: f32) = probability_row);

/// Turns the gradient of the probabilities into that of the products `q·k`, in place:
/// `scale · p · (dp - out·grad_out)`.
#[inline(always)]
fn score_gradient_row<const FMA: bool>(
    probabilities: &[f32],
    gradient: &mut [f32],
    scale: f32,
    out: &[f32],
    grad_out: &[f32],
) {
    let delta = dot::<FMA>(out, grad_out);
    for (g, &p) in gradient.iter_mut().zip(probabilities) {
        *g = scale * p * (*g - delta);
    }
}

multiversion!(fn score_gradient_row_at(probabilities: &[f32], gradient: &mut [f32], scale: f32, out: &[f32], grad_out: &[f32]) = score_gradient_row);

/// Gradients of [`attention`](super::attention) with respect to `q`, `k` and `v`, in the layouts of `q`, `k` and `v`; they are overwritten.
/// `out` is the forward result. Scores are recomputed a block of query rows at a time.
///
/// # Panics
/// When a slice is too short for its layout, or rows of `dq`, `dk` or `dv` overlap.
pub fn attention_backward(
    s: &AttentionShape,
    q: &[f32],
    ql: HeadsLayout,
    k: &[f32],
    kl: HeadsLayout,
    v: &[f32],
    vl: HeadsLayout,
    out: &[f32],
    ol: HeadsLayout,
    grad_out: &[f32],
    gl: HeadsLayout,
    dq: &mut [f32],
    dk: &mut [f32],
    dv: &mut [f32],
) {
    attention_backward_at(
        level(),
        s,
        q,
        ql,
        k,
        kl,
        v,
        vl,
        out,
        ol,
        grad_out,
        gl,
        dq,
        dk,
        dv,
    );
}

/// [`attention_backward`] at a forced level.
pub fn attention_backward_at(
    level: Level,
    s: &AttentionShape,
    q: &[f32],
    ql: HeadsLayout,
    k: &[f32],
    kl: HeadsLayout,
    v: &[f32],
    vl: HeadsLayout,
    out: &[f32],
    ol: HeadsLayout,
    grad_out: &[f32],
    gl: HeadsLayout,
    dq: &mut [f32],
    dk: &mut [f32],
    dv: &mut [f32],
) {
    let level = level::clamp(level);
    check(s, q, ql, k, kl, v, vl, out, ol);
    gl.check("grad_out", s.heads, s.query_len, s.head_dim, grad_out.len());
    ql.check("dq", s.heads, s.query_len, s.head_dim, dq.len());
    kl.check("dk", s.kv_heads, s.key_len, s.head_dim, dk.len());
    vl.check("dv", s.kv_heads, s.key_len, s.head_dim, dv.len());
    if s.heads == 0 || s.head_dim == 0 {
        return;
    }
    ql.check_disjoint("dq", s.heads, s.query_len, s.head_dim);
    kl.check_disjoint("dk", s.kv_heads, s.key_len, s.head_dim);
    vl.check_disjoint("dv", s.kv_heads, s.key_len, s.head_dim);
    let d = s.head_dim;
    let group = s.heads / s.kv_heads;
    let padded = s.key_len.next_multiple_of(PANEL);
    let packed_k = pack_heads(s.kv_heads, s.key_len, d, k, kl, WeightType::F32);
    let packed_v = pack_heads(s.kv_heads, s.key_len, d, v, vl, WeightType::F32);
    let (dq, dk, dv) = (
        SharedSlice::new(dq),
        SharedSlice::new(dk),
        SharedSlice::new(dv),
    );
    // Each query head sums its own key and value gradients; the heads of a group are added at the end.
    let head_len = s.key_len * d;
    let mut sums = vec![0.0f32; s.heads * 2 * head_len];
    let head_task = |head: usize, sums: &mut [f32]| {
        let (dk_sums, dv_sums) = sums.split_at_mut(head_len);
        let kv_head = head / group;
        let rows_max = QUERY_BLOCK.min(s.query_len);
        let ld = s.key_len;
        with_scratch(rows_max * (2 * ld + d) * 4, |scratch| {
            let scratch = &mut scratch.cast_mut::<f32>()[..rows_max * (2 * ld + d)];
            let (probabilities, rest) = scratch.split_at_mut(rows_max * ld);
            let (gradient, dq_block) = rest.split_at_mut(rows_max * ld);
            for first in (0..s.query_len).step_by(QUERY_BLOCK) {
                let rows = QUERY_BLOCK.min(s.query_len - first);
                let seen = s.visible(first + rows - 1);
                let queries = &q[ql.at(head, first)..];
                let grads = &grad_out[gl.at(head, first)..];
                if seen > 0 {
                    let keys = Operand::panels(&packed_k, kv_head * padded);
                    serial::product(
                        level,
                        rows,
                        seen,
                        d,
                        queries,
                        ql.row_stride,
                        1,
                        keys,
                        probabilities,
                        ld,
                        false,
                    );
                    let values = Operand::panels(&packed_v, kv_head * padded);
                    serial::product(
                        level,
                        rows,
                        seen,
                        d,
                        grads,
                        gl.row_stride,
                        1,
                        values,
                        gradient,
                        ld,
                        false,
                    );
                    for row in 0..rows {
                        let probabilities = &mut probabilities[row * ld..][..seen];
                        probability_row_at(
                            level,
                            probabilities,
                            s.visible(first + row).min(seen),
                            s.scale,
                        );
                        score_gradient_row_at(
                            level,
                            probabilities,
                            &mut gradient[row * ld..][..seen],
                            s.scale,
                            &out[ol.at(head, first + row)..][..d],
                            &grad_out[gl.at(head, first + row)..][..d],
                        );
                    }
                    let grads = Operand::rows(grads, gl.row_stride);
                    serial::product(
                        level,
                        seen,
                        d,
                        rows,
                        probabilities,
                        1,
                        ld,
                        grads,
                        dv_sums,
                        d,
                        true,
                    );
                    let queries = Operand::rows(queries, ql.row_stride);
                    serial::product(
                        level, seen, d, rows, gradient, 1, ld, queries, dk_sums, d, true,
                    );
                    let keys = Operand::rows(&k[kl.at(kv_head, 0)..], kl.row_stride);
                    serial::product(
                        level, rows, d, seen, gradient, ld, 1, keys, dq_block, d, false,
                    );
                } else {
                    dq_block.fill(0.0);
                }
                for row in 0..rows {
                    // SAFETY: `check_disjoint`: rows of `dq` do not overlap, and a head belongs to one task.
                    unsafe { dq.range(ql.at(head, first + row), d) }
                        .copy_from_slice(&dq_block[row * d..][..d]);
                }
            }
        });
    };
    if head_len == 0 {
        (0..s.heads)
            .into_par_iter()
            .for_each(|head| head_task(head, &mut []));
        return;
    }
    sums.par_chunks_exact_mut(2 * head_len)
        .enumerate()
        .for_each(|(head, sums)| head_task(head, sums));
    sums.par_chunks_exact_mut(group * 2 * head_len)
        .enumerate()
        .for_each(|(kv_head, group_sums)| {
            let (first, others) = group_sums.split_at_mut(2 * head_len);
            for other in others.chunks_exact(2 * head_len) {
                first
                    .iter_mut()
                    .zip(other)
                    .for_each(|(sum, &value)| *sum += value);
            }
            for row in 0..s.key_len {
                // SAFETY: `check_disjoint`: rows of `dk` do not overlap, and a key head belongs to one task.
                unsafe { dk.range(kl.at(kv_head, row), d) }.copy_from_slice(&first[row * d..][..d]);
                // SAFETY: the same for `dv`.
                unsafe { dv.range(vl.at(kv_head, row), d) }
                    .copy_from_slice(&first[head_len + row * d..][..d]);
            }
        });
}
