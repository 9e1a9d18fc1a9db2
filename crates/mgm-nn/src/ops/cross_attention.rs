//! Attention of one set of rows over another: a picture's positions over the words of its prompt.

use candle_core::{CpuStorage, CustomOp3, Layout, Result, Shape, Tensor};
use mgm_kernels::attention::{self as kernel, AttentionShape, HeadsLayout};

use super::attention::composed_heads;
use crate::host::{self, Host};

/// In what type attention multiplies.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Default)]
pub enum AttentionPrecision {
    /// `f32`.
    #[default]
    Full,
    /// bf16 with sums in `f32` where that is faster and no gradient is asked for: what goes with bf16 and quantised weights.
    Bf16,
}

/// Attention of `q [batch · queries, heads, d]` over `k`, `v` `[batch · keys, heads, d]` within each of `batch` pairs; the scores are scaled
/// by `scale`. Gradients for all three; no score matrix is stored.
pub fn cross_attention(
    q: &Tensor,
    k: &Tensor,
    v: &Tensor,
    batch: usize,
    scale: f32,
    precision: AttentionPrecision,
) -> Result<Tensor> {
    let op = CrossAttention {
        batch,
        scale,
        // The backward wants the weights that the forward used.
        precision: match [q, k, v].iter().any(|t| t.track_op()) {
            true => AttentionPrecision::Full,
            false => precision,
        },
    };
    let sizes = op.sizes(q.shape(), k.shape(), v.shape())?;
    if q.device().is_cpu() {
        return q.apply_op3(k, v, op);
    }
    let part =
        |x: &Tensor, rows: usize, index: usize| x.narrow(0, index * rows, rows)?.transpose(0, 1);
    let parts = (0..batch)
        .map(|index| {
            let q = part(q, sizes.queries, index)?;
            let (k, v) = (part(k, sizes.keys, index)?, part(v, sizes.keys, index)?);
            composed_heads(&q, &k, &v, scale, None)?.transpose(0, 1)
        })
        .collect::<Result<Vec<_>>>()?;
    Tensor::cat(&parts, 0)
}

struct CrossAttention {
    batch: usize,
    scale: f32,
    precision: AttentionPrecision,
}

struct Sizes {
    queries: usize,
    keys: usize,
    heads: usize,
    head_dim: usize,
}

impl Sizes {
    fn shape(&self, scale: f32) -> AttentionShape {
        AttentionShape {
            heads: self.heads,
            kv_heads: self.heads,
            head_dim: self.head_dim,
            query_len: self.queries,
            key_len: self.keys,
            scale,
            causal_offset: None,
        }
    }

    fn row(&self) -> usize {
        self.heads * self.head_dim
    }

    fn layout(&self) -> HeadsLayout {
        HeadsLayout {
            head_stride: self.head_dim,
            row_stride: self.row(),
        }
    }
}

impl CrossAttention {
    fn sizes(&self, q: &Shape, k: &Shape, v: &Shape) -> Result<Sizes> {
        let (rows, heads, head_dim) = q.dims3()?;
        let (keys, ..) = k.dims3()?;
        let fits = k.dims() == [keys, heads, head_dim] && v.dims() == k.dims();
        let batched = self.batch > 0
            && rows.is_multiple_of(self.batch)
            && keys.is_multiple_of(self.batch)
            && rows * heads * head_dim > 0
            && keys > 0;
        if !fits || !batched {
            candle_core::bail!(
                "cross attention: queries {:?}, keys {:?} and values {:?} are not {} pairs",
                q.dims(),
                k.dims(),
                v.dims(),
                self.batch
            );
        }
        Ok(Sizes {
            queries: rows / self.batch,
            keys: keys / self.batch,
            heads,
            head_dim,
        })
    }
}

impl CustomOp3 for CrossAttention {
    fn name(&self) -> &'static str {
        "cross attention"
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
        let sizes = self.sizes(l1.shape(), l2.shape(), l3.shape())?;
        let (q, k) = (
            host::values(s1, l1, self.name())?,
            host::values(s2, l2, self.name())?,
        );
        let v = host::values(s3, l3, self.name())?;
        let (query, key) = (sizes.queries * sizes.row(), sizes.keys * sizes.row());
        let layout = || sizes.layout();
        let out = host::output(q.len(), |out| {
            let pairs = q
                .chunks_exact(query)
                .zip(k.chunks_exact(key).zip(v.chunks_exact(key)));
            for (out, (q, (k, v))) in out.chunks_exact_mut(query).zip(pairs) {
                let shape = sizes.shape(self.scale);
                let attend = match self.precision {
                    AttentionPrecision::Full => kernel::attention,
                    AttentionPrecision::Bf16 => kernel::attention_bf16,
                };
                attend(&shape, q, layout(), k, layout(), v, layout(), out, layout());
            }
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
        let sizes = self.sizes(q.shape(), k.shape(), v.shape())?;
        let hosts = [q, k, v, out, grad].map(Host::new);
        let (q_values, k_values) = (hosts[0].values(self.name())?, hosts[1].values(self.name())?);
        let (v_values, out) = (hosts[2].values(self.name())?, hosts[3].values(self.name())?);
        let grad = hosts[4].values(self.name())?;
        let mut dq = vec![0.0; q_values.len()];
        let mut dk = vec![0.0; k_values.len()];
        let mut dv = vec![0.0; v_values.len()];
        let (query, key) = (sizes.queries * sizes.row(), sizes.keys * sizes.row());
        let layout = || sizes.layout();
        for index in 0..self.batch {
            let (queries, keys) = (
                index * query..(index + 1) * query,
                index * key..(index + 1) * key,
            );
            kernel::attention_backward(
                &sizes.shape(self.scale),
                &q_values[queries.clone()],
                layout(),
                &k_values[keys.clone()],
                layout(),
                &v_values[keys.clone()],
                layout(),
                &out[queries.clone()],
                layout(),
                &grad[queries.clone()],
                layout(),
                &mut dq[queries],
                &mut dk[keys.clone()],
                &mut dv[keys],
            );
        }
        let gradient = |values: Vec<f32>, of: &Tensor| host::tensor(values, of.shape()).map(Some);
        Ok((gradient(dq, q)?, gradient(dk, k)?, gradient(dv, v)?))
    }
}
