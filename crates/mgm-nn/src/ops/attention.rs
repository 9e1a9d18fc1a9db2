//! Scaled dot-product attention over ragged sequences, with grouped key/value heads.

use candle_core::{CpuStorage, CustomOp3, D, Device, Layout, Result, Shape, Tensor};
use mgm_kernels::attention::{self as kernel, AttentionShape, HeadsLayout};
use rayon::prelude::*;

use crate::host::{self, Host};

/// How the rows of one call attend to each other.
#[derive(Clone, Debug, PartialEq)]
pub struct AttentionSpec {
    /// Factor of the scores, usually `1/sqrt(head_dim)`.
    pub scale: f32,
    /// Whether a row sees only itself and earlier rows of its segment.
    pub causal: bool,
    /// Lengths of the sequences that are concatenated along the rows; rows of different segments do not see each other.
    pub segments: Vec<usize>,
}

/// Attention of `q [rows, heads, d]` over `k`, `v` `[rows, kv_heads, d]` within each segment → `[rows, heads, d]`.
/// Head `h` uses key/value head `h / (heads / kv_heads)`. Gradients for all three; no score matrix is stored.
pub fn attention(q: &Tensor, k: &Tensor, v: &Tensor, spec: &AttentionSpec) -> Result<Tensor> {
    check(q.shape(), k.shape(), v.shape(), spec)?;
    if q.device().is_cpu() {
        q.apply_op3(k, v, Attention { spec: spec.clone() })
    } else {
        composed(q, k, v, spec)
    }
}

fn check(q: &Shape, k: &Shape, v: &Shape, spec: &AttentionSpec) -> Result<Dimensions> {
    let (rows, heads, head_dim) = q.dims3()?;
    let (_, kv_heads, _) = k.dims3()?;
    if k.dims() != [rows, kv_heads, head_dim] || v.dims() != k.dims() {
        candle_core::bail!(
            "attention: keys {:?} and values {:?} do not fit queries {:?}",
            k.dims(),
            v.dims(),
            q.dims()
        );
    }
    if kv_heads == 0 || heads % kv_heads != 0 {
        candle_core::bail!("attention: {heads} heads cannot share {kv_heads} key/value heads");
    }
    let total: usize = spec.segments.iter().sum();
    if total != rows {
        candle_core::bail!("attention: segments add up to {total} rows, found {rows}");
    }
    Ok(Dimensions {
        heads,
        kv_heads,
        head_dim,
    })
}

#[derive(Clone, Copy)]
struct Dimensions {
    heads: usize,
    kv_heads: usize,
    head_dim: usize,
}

impl Dimensions {
    fn shape(self, spec: &AttentionSpec, length: usize) -> AttentionShape {
        AttentionShape {
            heads: self.heads,
            kv_heads: self.kv_heads,
            head_dim: self.head_dim,
            query_len: length,
            key_len: length,
            scale: spec.scale,
            causal_offset: spec.causal.then_some(0),
        }
    }

    fn query_row(self) -> usize {
        self.heads * self.head_dim
    }

    fn key_row(self) -> usize {
        self.kv_heads * self.head_dim
    }

    fn query_layout(self) -> HeadsLayout {
        HeadsLayout {
            head_stride: self.head_dim,
            row_stride: self.query_row(),
        }
    }

    fn key_layout(self) -> HeadsLayout {
        HeadsLayout {
            head_stride: self.head_dim,
            row_stride: self.key_row(),
        }
    }
}

/// Splits a buffer of rows into its segments.
fn split<'a>(segments: &[usize], row_len: usize, mut rest: &'a mut [f32]) -> Vec<&'a mut [f32]> {
    segments
        .iter()
        .map(|length| {
            let (head, tail) = std::mem::take(&mut rest).split_at_mut(length * row_len);
            rest = tail;
            head
        })
        .collect()
}

/// First row of each segment.
fn starts(segments: &[usize]) -> Vec<usize> {
    segments
        .iter()
        .scan(0, |next, length| {
            let start = *next;
            *next += length;
            Some(start)
        })
        .collect()
}

struct Attention {
    spec: AttentionSpec,
}

impl CustomOp3 for Attention {
    fn name(&self) -> &'static str {
        "attention"
    }

    fn cpu_fwd(
        &self,
        s1: &CpuStorage,
        l1: &Layout,
        s2: &CpuStorage,
        l2: &Layout,
        s3: &CpuStorage,
        l3: &Layout,
    ) -> Result<(CpuStorage, Shape)> {
        let dims = check(l1.shape(), l2.shape(), l3.shape(), &self.spec)?;
        let (q, k) = (
            host::values(s1, l1, self.name())?,
            host::values(s2, l2, self.name())?,
        );
        let v = host::values(s3, l3, self.name())?;
        let segments = &self.spec.segments;
        let out = host::output(q.len(), |out| {
            let parts = split(segments, dims.query_row(), out);
            parts
                .into_par_iter()
                .zip(starts(segments))
                .zip(segments)
                .for_each(|((out, start), &length)| {
                    if length > 0 {
                        let (q, k) = (&q[start * dims.query_row()..], &k[start * dims.key_row()..]);
                        kernel::attention(
                            &dims.shape(&self.spec, length),
                            &q[..length * dims.query_row()],
                            dims.query_layout(),
                            &k[..length * dims.key_row()],
                            dims.key_layout(),
                            &v[start * dims.key_row()..][..length * dims.key_row()],
                            dims.key_layout(),
                            out,
                            dims.query_layout(),
                        );
                    }
                });
        });
        Ok((out, l1.shape().clone()))
    }

    fn bwd(
        &self,
        q: &Tensor,
        k: &Tensor,
        v: &Tensor,
        out: &Tensor,
        grad: &Tensor,
    ) -> Result<(Option<Tensor>, Option<Tensor>, Option<Tensor>)> {
        let dims = check(q.shape(), k.shape(), v.shape(), &self.spec)?;
        let hosts = [q, k, v, out, grad].map(Host::new);
        let (q_values, k_values) = (hosts[0].values(self.name())?, hosts[1].values(self.name())?);
        let (v_values, out) = (hosts[2].values(self.name())?, hosts[3].values(self.name())?);
        let grad = hosts[4].values(self.name())?;
        let segments = &self.spec.segments;
        let mut dq = vec![0.0; q_values.len()];
        let mut dk = vec![0.0; k_values.len()];
        let mut dv = vec![0.0; v_values.len()];
        let parts: Vec<_> = split(segments, dims.query_row(), &mut dq)
            .into_iter()
            .zip(split(segments, dims.key_row(), &mut dk))
            .zip(split(segments, dims.key_row(), &mut dv))
            .zip(starts(segments))
            .zip(segments)
            .collect();
        parts
            .into_par_iter()
            .for_each(|((((dq, dk), dv), start), &length)| {
                if length > 0 {
                    let query = start * dims.query_row()..(start + length) * dims.query_row();
                    let key = start * dims.key_row()..(start + length) * dims.key_row();
                    kernel::attention_backward(
                        &dims.shape(&self.spec, length),
                        &q_values[query.clone()],
                        dims.query_layout(),
                        &k_values[key.clone()],
                        dims.key_layout(),
                        &v_values[key],
                        dims.key_layout(),
                        &out[query.clone()],
                        dims.query_layout(),
                        &grad[query],
                        dims.query_layout(),
                        dq,
                        dk,
                        dv,
                    );
                }
            });
        let gradient = |values: Vec<f32>, of: &Tensor| host::tensor(values, of.shape()).map(Some);
        Ok((gradient(dq, q)?, gradient(dk, k)?, gradient(dv, v)?))
    }
}

/// Softmax over the last axis out of operations that have gradients.
pub(crate) fn composed_softmax(scores: &Tensor) -> Result<Tensor> {
    let maximum = scores.max_keepdim(D::Minus1)?.detach();
    let exponentials = scores.broadcast_sub(&maximum)?.exp()?;
    exponentials.broadcast_div(&exponentials.sum_keepdim(D::Minus1)?)
}

/// `[kv_heads, rows, d]` to `[heads, rows, d]`.
fn repeat_heads(x: &Tensor, heads: usize) -> Result<Tensor> {
    let (kv_heads, rows, d) = x.dims3()?;
    x.unsqueeze(1)?
        .broadcast_as((kv_heads, heads / kv_heads, rows, d))?
        .contiguous()?
        .reshape((heads, rows, d))
}

/// 0 where query `i` may see key `j ≤ offset + i`, a very negative number elsewhere; `[queries, keys]`.
fn causal_mask(queries: usize, keys: usize, offset: usize, device: &Device) -> Result<Tensor> {
    let value = |index: usize| {
        if index % keys <= offset + index / keys {
            0f32
        } else {
            -1e30
        }
    };
    Tensor::from_vec(
        (0..queries * keys).map(value).collect(),
        (queries, keys),
        device,
    )
}

/// One segment: `q [heads, rows, d]` over `k`, `v` `[kv_heads, keys, d]`.
pub(crate) fn composed_heads(
    q: &Tensor,
    k: &Tensor,
    v: &Tensor,
    scale: f32,
    mask: Option<&Tensor>,
) -> Result<Tensor> {
    let heads = q.dims()[0];
    let (k, v) = (repeat_heads(k, heads)?, repeat_heads(v, heads)?);
    let scores = (q.contiguous()?.matmul(&k.t()?)? * f64::from(scale))?;
    let scores = match mask {
        Some(mask) => scores.broadcast_add(mask)?,
        None => scores,
    };
    composed_softmax(&scores)?.matmul(&v)
}

pub(crate) fn composed(q: &Tensor, k: &Tensor, v: &Tensor, spec: &AttentionSpec) -> Result<Tensor> {
    let mut parts = Vec::with_capacity(spec.segments.len());
    for (start, &length) in starts(&spec.segments).into_iter().zip(&spec.segments) {
        if length == 0 {
            continue;
        }
        let part = |x: &Tensor| x.narrow(0, start, length)?.transpose(0, 1);
        let mask = if spec.causal {
            Some(causal_mask(length, length, 0, q.device())?)
        } else {
            None
        };
        let out = composed_heads(&part(q)?, &part(k)?, &part(v)?, spec.scale, mask.as_ref())?;
        parts.push(out.transpose(0, 1)?);
    }
    if parts.is_empty() {
        return q.zeros_like();
    }
    Tensor::cat(&parts, 0)
}

/// Attention of `q [rows, heads, d]`, the newest rows of a sequence, over the first `key_len` rows of a cache
/// `keys`, `values` `[kv_heads, capacity, d]`, in which they are already written. Row `i` sees keys
/// `0 ..= key_len − rows + i`. Inference only: asking for a gradient is an error.
pub fn cached_attention(
    q: &Tensor,
    keys: &Tensor,
    values: &Tensor,
    key_len: usize,
    scale: f32,
) -> Result<Tensor> {
    let (rows, heads, head_dim) = q.dims3()?;
    let (kv_heads, capacity, _) = keys.dims3()?;
    if keys.dims() != [kv_heads, capacity, head_dim] || values.dims() != keys.dims() {
        candle_core::bail!(
            "cached attention: keys {:?} and values {:?} do not fit queries {:?}",
            keys.dims(),
            values.dims(),
            q.dims()
        );
    }
    if kv_heads == 0 || heads % kv_heads != 0 {
        candle_core::bail!(
            "cached attention: {heads} heads cannot share {kv_heads} key/value heads"
        );
    }
    if key_len < rows || key_len > capacity {
        candle_core::bail!(
            "cached attention: {key_len} keys for {rows} rows in a cache of {capacity}"
        );
    }
    if q.device().is_cpu() {
        return q.apply_op3(keys, values, CachedAttention { key_len, scale });
    }
    let mask = causal_mask(rows, key_len, key_len - rows, q.device())?;
    let (keys, values) = (keys.narrow(1, 0, key_len)?, values.narrow(1, 0, key_len)?);
    composed_heads(&q.transpose(0, 1)?, &keys, &values, scale, Some(&mask))?
        .transpose(0, 1)?
        .contiguous()
}

struct CachedAttention {
    key_len: usize,
    scale: f32,
}

impl CustomOp3 for CachedAttention {
    fn name(&self) -> &'static str {
        "cached attention"
    }

    fn cpu_fwd(
        &self,
        s1: &CpuStorage,
        l1: &Layout,
        s2: &CpuStorage,
        l2: &Layout,
        s3: &CpuStorage,
        l3: &Layout,
    ) -> Result<(CpuStorage, Shape)> {
        let (rows, heads, head_dim) = l1.shape().dims3()?;
        let (kv_heads, capacity, _) = l2.shape().dims3()?;
        let (q, k) = (
            host::values(s1, l1, self.name())?,
            host::values(s2, l2, self.name())?,
        );
        let v = host::values(s3, l3, self.name())?;
        let shape = AttentionShape {
            heads,
            kv_heads,
            head_dim,
            query_len: rows,
            key_len: self.key_len,
            scale: self.scale,
            causal_offset: Some(self.key_len - rows),
        };
        let query_layout = || HeadsLayout {
            head_stride: head_dim,
            row_stride: heads * head_dim,
        };
        let cache_layout = || HeadsLayout {
            head_stride: capacity * head_dim,
            row_stride: head_dim,
        };
        let out = host::output(q.len(), |out| {
            kernel::attention(
                &shape,
                &q,
                query_layout(),
                &k,
                cache_layout(),
                &v,
                cache_layout(),
                out,
                query_layout(),
            );
        });
        Ok((out, l1.shape().clone()))
    }
}
