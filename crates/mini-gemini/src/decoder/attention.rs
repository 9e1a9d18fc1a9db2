//! Causal self-attention with rotary positions and grouped keys.

use candle_core::Tensor;
use mgm_nn::ops::{self, AttentionSpec, PagedRows, RopeStyle, RopeTable};
use mgm_nn::{Bias, Linear, WeightSource};

use super::cache::Store;
use super::{Context, DecoderConfig, Rows};
use crate::error::{Error, Result};

const OTHER_CACHE: &str = "a cache of another device than the rows'";

pub(super) struct Attention {
    query: Linear,
    key: Linear,
    value: Linear,
    output: Linear,
    heads: usize,
    kv_heads: usize,
    head_dim: usize,
}

impl Attention {
    pub(super) fn load(config: &DecoderConfig, weights: &WeightSource) -> Result<Self> {
        let (hidden, head_dim) = (config.hidden_size, config.head_dim);
        let (query_width, kv_width) = (config.heads * head_dim, config.kv_heads * head_dim);
        Ok(Self {
            // Qwen2 has biases on queries, keys and values; the other families have none.
            query: weights.linear("q_proj", hidden, query_width, Bias::IfPresent)?,
            key: weights.linear("k_proj", hidden, kv_width, Bias::IfPresent)?,
            value: weights.linear("v_proj", hidden, kv_width, Bias::IfPresent)?,
            output: weights.linear("o_proj", query_width, hidden, Bias::IfPresent)?,
            heads: config.heads,
            kv_heads: config.kv_heads,
            head_dim,
        })
    }

    /// `[rows, hidden]` to the `[tails, hidden]` that `rows` asks for; with caches, `layer` says which of their layers is ours.
    pub(super) fn forward(
        &self,
        input: &Tensor,
        layer: usize,
        rows: Rows,
        rope: &RopeTable,
        context: &mut Context,
    ) -> Result<Tensor> {
        let (query, key, value) = if rows.tails == rows.lengths {
            let [query, key, value] =
                Linear::forward_each([&self.query, &self.key, &self.value], input)?;
            (query, key, value)
        } else {
            let [key, value] = Linear::forward_each([&self.key, &self.value], input)?;
            (self.query.forward(&rows.tails_of(input)?)?, key, value)
        };
        let split = |tensor: Tensor, heads| tensor.reshape((tensor.dim(0)?, heads, self.head_dim));
        let query = split(query, self.heads)?;
        let key = split(key, self.kv_heads)?;
        let value = split(value, self.kv_heads)?;
        let query = ops::rope(&query, rope, &rows.tail_positions(), RopeStyle::Half)?;
        let key = ops::rope(&key, rope, rows.positions, RopeStyle::Half)?;
        let scale = 1.0 / (self.head_dim as f32).sqrt();
        let attended = match context {
            Context::Sequences(_) => {
                let spec = AttentionSpec {
                    scale,
                    causal: true,
                    segments: rows.lengths.to_vec(),
                };
                ops::attention(&query, &key, &value, &spec)?
            }
            Context::Cached(caches) if input.device().is_cpu() => {
                let mut sequences = Vec::with_capacity(caches.len());
                for ((cache, length), tail) in caches.iter_mut().zip(rows.tails) {
                    let Store::Blocks(cache) = &mut cache.0 else {
                        return Err(Error::Input(OTHER_CACHE.into()));
                    };
                    sequences.push(PagedRows {
                        cache,
                        new: *length,
                        queries: *tail,
                    });
                }
                let precision = self.query.cached_attention_precision();
                ops::paged_attention(
                    &query,
                    &key,
                    &value,
                    layer,
                    scale,
                    precision,
                    &mut sequences,
                )?
            }
            Context::Cached(caches) => {
                let mut parts = Vec::with_capacity(caches.len());
                let (mut start, mut first_query) = (0, 0);
                for ((cache, length), tail) in caches.iter_mut().zip(rows.tails) {
                    let Store::Tensors(cache) = &mut cache.0 else {
                        return Err(Error::Input(OTHER_CACHE.into()));
                    };
                    let new_keys = key.narrow(0, start, *length)?;
                    let new_values = value.narrow(0, start, *length)?;
                    let (keys, values, key_len) = cache.append(layer, &new_keys, &new_values)?;
                    let queries = query.narrow(0, first_query, *tail)?;
                    if *tail > 0 {
                        parts.push(ops::cached_attention(
                            &queries, keys, values, key_len, scale,
                        )?);
                    }
                    start += *length;
                    first_query += *tail;
                }
                match parts.len() {
                    0 => query.clone(),
                    1 => parts.remove(0),
                    _ => Tensor::cat(&parts, 0)?,
                }
            }
        };
        let attended = attended.reshape((query.dim(0)?, self.heads * self.head_dim))?;
        Ok(self.output.forward(&attended)?)
    }
}
