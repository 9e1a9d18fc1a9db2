//! Attention of new rows over the key-value caches of their sequences.

use candle_core::{Result, Tensor};
use mgm_kernels::attention::{self as kernel, PagedSequence};

use super::AttentionPrecision;
use crate::host::{self, Host};
use crate::kv::KvBlocks;

/// A sequence's rows in a call of [`paged_attention`].
pub struct PagedRows<'a> {
    /// What the sequence holds.
    pub cache: &'a mut KvBlocks,
    /// Its new keys and values.
    pub new: usize,
    /// Its queries: those of its last new rows, at most `new`.
    pub queries: usize,
}

/// Writes the new rows of layer `layer`, keys and values `[rows, kv_heads, d]`, behind what each sequence's cache holds, and attends with
/// `q [queries, heads, d]` over all of it, each query seeing its own row and what is before it. `sequences` says how many of the rows and
/// queries, in order, are each cache's. Gives `[queries, heads, d]`. CPU and inference only. Positions count as held when
/// [`KvBlocks::advance`] says so, after the last layer.
///
/// A sequence's result has the same bits whatever other sequences stand in the call.
pub fn paged_attention(
    q: &Tensor,
    keys: &Tensor,
    values: &Tensor,
    layer: usize,
    scale: f32,
    precision: AttentionPrecision,
    sequences: &mut [PagedRows],
) -> Result<Tensor> {
    const NAME: &str = "paged attention";
    let (queries, heads, head_dim) = q.dims3()?;
    let (rows, kv_heads, _) = keys.dims3()?;
    if keys.dims() != [rows, kv_heads, head_dim] || values.dims() != keys.dims() {
        candle_core::bail!(
            "{NAME}: keys {:?} and values {:?} do not fit queries {:?}",
            keys.dims(),
            values.dims(),
            q.dims()
        );
    }
    if kv_heads == 0 || heads % kv_heads != 0 {
        candle_core::bail!("{NAME}: {heads} heads cannot share {kv_heads} key/value heads");
    }
    if q.track_op() || keys.track_op() || values.track_op() {
        candle_core::bail!("{NAME}: has no gradient");
    }
    let total: usize = sequences.iter().map(|rows| rows.new).sum();
    let total_queries: usize = sequences.iter().map(|rows| rows.queries).sum();
    if (total, total_queries) != (rows, queries) {
        candle_core::bail!(
            "{NAME}: sequences add up to {total} rows and {total_queries} queries, found {rows} and {queries}"
        );
    }
    if let Some(rows) = sequences.iter().find(|rows| rows.queries > rows.new) {
        candle_core::bail!("{NAME}: {} queries of {} rows", rows.queries, rows.new);
    }
    let hosts = [q, keys, values].map(Host::new);
    let (new_keys, new_values) = (hosts[1].values(NAME)?, hosts[2].values(NAME)?);
    let width = kv_heads * head_dim;
    let mut start = 0;
    for PagedRows { cache, new, .. } in sequences.iter_mut() {
        let shape = cache.paged_shape(heads);
        let end = start + *new * width;
        cache.reserve(*new);
        if (shape.kv_heads, shape.head_dim) != (kv_heads, head_dim)
            || !cache.write(layer, &new_keys[start..end], &new_values[start..end])
        {
            candle_core::bail!(
                "{NAME}: layer {layer} with {kv_heads} heads of {head_dim} does not fit the cache"
            );
        }
        start = end;
    }
    let Some(first) = sequences.first().filter(|_| queries > 0) else {
        return q.zeros_like();
    };
    let shape = first.cache.paged_shape(heads);
    let layers: Vec<_> = sequences
        .iter()
        .map(|rows| rows.cache.layer(layer))
        .collect();
    let parts: Vec<PagedSequence> = sequences
        .iter()
        .zip(&layers)
        .map(|(rows, (keys, values))| PagedSequence {
            keys,
            values,
            key_len: rows.cache.len() + rows.new,
            query_len: rows.queries,
        })
        .collect();
    let mut out = vec![0.0; queries * heads * head_dim];
    let queries = hosts[0].values(NAME)?;
    let attend = match precision {
        AttentionPrecision::Full => kernel::paged_attention,
        AttentionPrecision::Bf16 => kernel::paged_attention_bf16,
    };
    attend(&shape, scale, &parts, &queries, &mut out);
    host::tensor(out, q.shape())
}
