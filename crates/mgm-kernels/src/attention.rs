//! Scaled dot-product attention with an online softmax (Dao et al., FlashAttention), forward and backward.

use rayon::prelude::*;

use crate::level::level;
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
        s.kv_heads > 0 && s.heads % s.kv_heads == 0,
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

/// `out = softmax(scale · q·kᵀ + mask) · v` per head. A query that sees no key gives zeros.
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
    check(s, q, ql, k, kl, v, vl, out, ol);
    if s.heads == 0 || s.query_len == 0 || s.head_dim == 0 {
        return;
    }
    ol.check_disjoint("out", s.heads, s.query_len, s.head_dim);
    let group = s.heads / s.kv_heads;
    let level = level();
    let out = SharedSlice::new(out);
    (0..s.heads * s.query_len)
        .into_par_iter()
        .for_each(|index| {
            let (head, row) = (index / s.query_len, index % s.query_len);
            // SAFETY: `check_disjoint`: every (head, row) has its own elements, and each is one task.
            let out = unsafe { out.range(ol.at(head, row), s.head_dim) };
            let q = &q[ql.at(head, row)..][..s.head_dim];
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
        });
}

/// Gradients of one query row; adds to `dk` and `dv` (`[key_len, head_dim]` of this key head).
#[inline(always)]
fn backward_row<const FMA: bool>(
    scale: f32,
    visible: usize,
    q: &[f32],
    k: &[f32],
    k_stride: usize,
    v: &[f32],
    v_stride: usize,
    out: &[f32],
    grad_out: &[f32],
    dq: &mut [f32],
    dk: &mut [f32],
    dv: &mut [f32],
    probabilities: &mut [f32],
) {
    let d = q.len();
    let probabilities = &mut probabilities[..visible];
    let mut maximum = f32::NEG_INFINITY;
    for (j, p) in probabilities.iter_mut().enumerate() {
        *p = scale * dot::<FMA>(q, &k[j * k_stride..][..d]);
        maximum = maximum.max(*p);
    }
    let mut total = 0.0;
    for p in probabilities.iter_mut() {
        *p = math::exp::<FMA>(*p - maximum);
        total += *p;
    }
    let inverse = 1.0 / total;
    let delta = dot::<FMA>(out, grad_out);
    dq.fill(0.0);
    for (j, &p) in probabilities.iter().enumerate() {
        let p = p * inverse;
        let k = &k[j * k_stride..][..d];
        let grad_score = scale * p * (dot::<FMA>(grad_out, &v[j * v_stride..][..d]) - delta);
        axpy::<FMA>(p, grad_out, &mut dv[j * d..][..d]);
        axpy::<FMA>(grad_score, k, dq);
        axpy::<FMA>(grad_score, q, &mut dk[j * d..][..d]);
    }
}

multiversion!(fn backward_row_at(scale: f32, visible: usize, q: &[f32], k: &[f32], k_stride: usize, v: &[f32], v_stride: usize, out: &[f32], grad_out: &[f32], dq: &mut [f32], dk: &mut [f32], dv: &mut [f32], probabilities: &mut [f32]) = backward_row);

/// Gradients of [`attention`] with respect to `q`, `k` and `v`, in the layouts of `q`, `k` and `v`; they are overwritten.
/// `out` is the forward result.
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
    let level = level();
    let (dq, dk, dv) = (
        SharedSlice::new(dq),
        SharedSlice::new(dk),
        SharedSlice::new(dv),
    );
    (0..s.kv_heads).into_par_iter().for_each(|kv_head| {
        let mut dk_head = vec![0.0f32; s.key_len * d];
        let mut dv_head = vec![0.0f32; s.key_len * d];
        let mut probabilities = vec![0.0f32; s.key_len];
        let (k, v) = if s.key_len == 0 {
            (&k[..0], &v[..0])
        } else {
            (&k[kl.at(kv_head, 0)..], &v[vl.at(kv_head, 0)..])
        };
        for head in kv_head * group..(kv_head + 1) * group {
            for row in 0..s.query_len {
                // SAFETY: `check_disjoint`: rows of `dq` do not overlap, and a head belongs to one task.
                let dq = unsafe { dq.range(ql.at(head, row), d) };
                backward_row_at(
                    level,
                    s.scale,
                    s.visible(row),
                    &q[ql.at(head, row)..][..d],
                    k,
                    kl.row_stride,
                    v,
                    vl.row_stride,
                    &out[ol.at(head, row)..][..d],
                    &grad_out[gl.at(head, row)..][..d],
                    dq,
                    &mut dk_head,
                    &mut dv_head,
                    &mut probabilities,
                );
            }
        }
        for row in 0..s.key_len {
            // SAFETY: `check_disjoint`: rows of `dk` do not overlap, and a key head belongs to one task.
            unsafe { dk.range(kl.at(kv_head, row), d) }.copy_from_slice(&dk_head[row * d..][..d]);
            // SAFETY: the same for `dv`.
            unsafe { dv.range(vl.at(kv_head, row), d) }.copy_from_slice(&dv_head[row * d..][..d]);
        }
    });
}
