//! Keys and values of the tokens seen so far.

use candle_core::{DType, Device, Tensor};
use mgm_nn::kv::{KvBlock, KvBlocks, KvPool};

use super::DecoderConfig;
use crate::error::Result;

/// Key-value cache of one sequence: on the CPU blocks of positions that sequences may share, on a device one growing buffer a layer.
pub struct KvCache(pub(super) Store);

/// Makes caches of one decoder that share their blocks, and counts these.
#[derive(Clone, Debug)]
pub struct CachePool(pub(super) KvPool);

impl CachePool {
    /// A cache that begins with the first `len` positions of blocks ([`KvCache::blocks`]) of this pool's caches; an empty one of none.
    pub fn cache_of(&self, blocks: Vec<KvBlock>, len: usize) -> KvCache {
        KvCache(Store::Blocks(self.0.cache_of(blocks, len)))
    }

    /// Blocks of [`BLOCK_POSITIONS`](super::BLOCK_POSITIONS) positions in memory, shared ones once.
    pub fn live_blocks(&self) -> usize {
        self.0.live_blocks()
    }
}

pub(super) enum Store {
    Blocks(KvBlocks),
    Tensors(TensorCache),
}

impl KvCache {
    /// Positions held.
    pub fn len(&self) -> usize {
        match &self.0 {
            Store::Blocks(blocks) => blocks.len(),
            Store::Tensors(tensors) => tensors.len,
        }
    }

    /// Whether no position is held.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// Forgets everything after the first `len` positions.
    pub fn truncate(&mut self, len: usize) {
        match &mut self.0 {
            Store::Blocks(blocks) => blocks.truncate(len),
            Store::Tensors(tensors) => tensors.len = tensors.len.min(len),
        }
    }

    /// The blocks in order, the last filled in part; none on a device.
    pub fn blocks(&self) -> &[KvBlock] {
        match &self.0 {
            Store::Blocks(blocks) => blocks.blocks(),
            Store::Tensors(_) => &[],
        }
    }

    pub(super) fn advance(&mut self, new: usize) {
        match &mut self.0 {
            Store::Blocks(blocks) => blocks.advance(new),
            Store::Tensors(tensors) => tensors.len += new,
        }
    }
}

/// Positions added at least when a buffer grows.
const MIN_GROWTH: usize = 256;

struct LayerCache {
    keys: Tensor,
    values: Tensor,
}

/// Per layer `[kv_heads, capacity, head_dim]` keys and values, f32.
pub(super) struct TensorCache {
    layers: Vec<Option<LayerCache>>,
    len: usize,
    capacity: usize,
    kv_heads: usize,
    head_dim: usize,
    device: Device,
}

impl TensorCache {
    pub(super) fn new(config: &DecoderConfig, device: Device) -> Self {
        Self {
            layers: (0..config.layers).map(|_| None).collect(),
            len: 0,
            capacity: 0,
            kv_heads: config.kv_heads,
            head_dim: config.head_dim,
            device,
        }
    }

    /// Writes the rows `[new, kv_heads, head_dim]` of one layer behind the tokens held. Returns the layer's key and value buffers and
    /// how many of their positions are valid. All layers are written before the end moves.
    pub(super) fn append(
        &mut self,
        layer: usize,
        keys: &Tensor,
        values: &Tensor,
    ) -> Result<(&Tensor, &Tensor, usize)> {
        let new = keys.dim(0)?;
        let needed = self.len + new;
        if needed > self.capacity {
            self.capacity = (self.capacity * 2).max(needed + MIN_GROWTH);
        }
        let shape = (self.kv_heads, self.capacity, self.head_dim);
        let stale = match &self.layers[layer] {
            Some(held) => held.keys.dim(1)? < needed,
            None => true,
        };
        if stale {
            let grown = LayerCache {
                keys: Tensor::zeros(shape, DType::F32, &self.device)?,
                values: Tensor::zeros(shape, DType::F32, &self.device)?,
            };
            if let Some(held) = &self.layers[layer]
                && self.len > 0
            {
                grown
                    .keys
                    .slice_set(&held.keys.narrow(1, 0, self.len)?.contiguous()?, 1, 0)?;
                grown
                    .values
                    .slice_set(&held.values.narrow(1, 0, self.len)?.contiguous()?, 1, 0)?;
            }
            self.layers[layer] = Some(grown);
        }
        let held = self.layers[layer].as_ref().ok_or_else(|| {
            crate::error::Error::Input(format!("cache layer {layer} was not allocated"))
        })?;
        held.keys
            .slice_set(&keys.transpose(0, 1)?.contiguous()?, 1, self.len)?;
        held.values
            .slice_set(&values.transpose(0, 1)?.contiguous()?, 1, self.len)?;
        Ok((&held.keys, &held.values, needed))
    }
}
