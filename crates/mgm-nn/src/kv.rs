//! Keys and values of the tokens seen so far, on the CPU: blocks of 32 positions that sequences may share.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use mgm_kernels::attention::PagedShape;

pub use mgm_kernels::attention::BLOCK_POSITIONS;

/// Sizes of a decoder's keys and values.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct KvShape {
    /// Layers.
    pub layers: usize,
    /// Key and value heads.
    pub kv_heads: usize,
    /// Elements of a head.
    pub head_dim: usize,
}

impl KvShape {
    /// Bytes of the keys and values of one position in all layers.
    pub fn position_bytes(&self) -> usize {
        2 * self.layers * self.kv_heads * self.head_dim * size_of::<f32>()
    }

    /// Values of the keys, or of the values, of one layer in a block.
    fn part_len(&self) -> usize {
        self.kv_heads * self.head_dim * BLOCK_POSITIONS
    }
}

/// Keys and values of 32 positions in all layers. Clones share the memory, which nobody changes while it is shared.
#[derive(Clone, Debug)]
pub struct KvBlock(Arc<BlockData>);

impl KvBlock {
    /// Whether somebody else holds this block too.
    pub fn is_shared(&self) -> bool {
        Arc::strong_count(&self.0) > 1
    }
}

#[derive(Debug)]
struct BlockData {
    /// `[layers, 2, part]`: keys, then values.
    values: Vec<f32>,
    live: Arc<AtomicUsize>,
}

impl BlockData {
    fn counted(values: Vec<f32>, live: Arc<AtomicUsize>) -> Self {
        live.fetch_add(1, Ordering::Relaxed);
        Self { values, live }
    }
}

impl Drop for BlockData {
    fn drop(&mut self) {
        self.live.fetch_sub(1, Ordering::Relaxed);
    }
}

/// Makes caches of one decoder and counts the blocks they hold.
#[derive(Clone, Debug)]
pub struct KvPool {
    shape: KvShape,
    live: Arc<AtomicUsize>,
}

impl KvPool {
    /// A pool of caches of this shape.
    pub fn new(shape: KvShape) -> Self {
        Self {
            shape,
            live: Arc::default(),
        }
    }

    /// Sizes.
    pub fn shape(&self) -> KvShape {
        self.shape
    }

    /// Blocks in memory, shared ones once.
    pub fn live_blocks(&self) -> usize {
        self.live.load(Ordering::Relaxed)
    }

    /// An empty cache.
    pub fn cache(&self) -> KvBlocks {
        KvBlocks {
            pool: self.clone(),
            blocks: Vec::new(),
            len: 0,
        }
    }

    /// A cache that begins with the first `len` positions of blocks of this pool; shorter if these hold fewer.
    pub fn cache_of(&self, mut blocks: Vec<KvBlock>, len: usize) -> KvBlocks {
        let len = len.min(blocks.len() * BLOCK_POSITIONS);
        blocks.truncate(len.div_ceil(BLOCK_POSITIONS));
        KvBlocks {
            pool: self.clone(),
            blocks,
            len,
        }
    }
}

/// Key-value cache of one sequence.
#[derive(Debug)]
pub struct KvBlocks {
    pool: KvPool,
    blocks: Vec<KvBlock>,
    len: usize,
}

impl KvBlocks {
    /// Positions held.
    pub fn len(&self) -> usize {
        self.len
    }

    /// Whether no position is held.
    pub fn is_empty(&self) -> bool {
        self.len == 0
    }

    /// Forgets everything after the first `len` positions, and gives the memory back.
    pub fn truncate(&mut self, len: usize) {
        self.len = self.len.min(len);
        self.blocks.truncate(self.len.div_ceil(BLOCK_POSITIONS));
    }

    /// The blocks in order; the last may be filled in part.
    pub fn blocks(&self) -> &[KvBlock] {
        &self.blocks
    }

    /// Another sequence with the same positions so far. Both may go on: whoever writes into a shared block copies it first.
    #[must_use]
    pub fn fork(&self) -> Self {
        self.pool.cache_of(self.blocks.clone(), self.len)
    }

    /// Makes room for `new` positions behind those held, in blocks that nobody else holds.
    pub(crate) fn reserve(&mut self, new: usize) {
        if new == 0 {
            return;
        }
        let shape = self.pool.shape;
        if let Some(last) = self.blocks.get_mut(self.len / BLOCK_POSITIONS)
            && last.is_shared()
        {
            *last = KvBlock(Arc::new(BlockData::counted(
                last.0.values.clone(),
                self.pool.live.clone(),
            )));
        }
        while self.blocks.len() * BLOCK_POSITIONS < self.len + new {
            let values = vec![0.0; 2 * shape.layers * shape.part_len()];
            let live = self.pool.live.clone();
            self.blocks
                .push(KvBlock(Arc::new(BlockData::counted(values, live))));
        }
    }

    /// Writes rows `[new, kv_heads, head_dim]` of one layer behind the positions held. Gives false where [`Self::reserve`] was not called
    /// for them.
    pub(crate) fn write(&mut self, layer: usize, keys: &[f32], values: &[f32]) -> bool {
        let shape = self.pool.shape;
        let (part, width) = (shape.part_len(), shape.kv_heads * shape.head_dim);
        let paged = self.paged_shape(shape.kv_heads);
        let rows = keys.chunks_exact(width).zip(values.chunks_exact(width));
        for (row, (key, value)) in rows.enumerate() {
            let position = self.len + row;
            let block = self.blocks.get_mut(position / BLOCK_POSITIONS);
            let Some(block) = block.and_then(|block| Arc::get_mut(&mut block.0)) else {
                return false;
            };
            let Some(parts) = block
                .values
                .get_mut(2 * layer * part..(2 * layer + 2) * part)
            else {
                return false;
            };
            let (block_keys, block_values) = parts.split_at_mut(part);
            let slot = position % BLOCK_POSITIONS;
            paged.write(block_keys, block_values, slot, key, value);
        }
        true
    }

    pub(crate) fn paged_shape(&self, heads: usize) -> PagedShape {
        PagedShape {
            heads,
            kv_heads: self.pool.shape.kv_heads,
            head_dim: self.pool.shape.head_dim,
        }
    }

    /// Keys and values of one layer, block by block.
    pub(crate) fn layer(&self, layer: usize) -> (Vec<&[f32]>, Vec<&[f32]>) {
        let part = self.pool.shape.part_len();
        let of = |offset: usize| {
            self.blocks
                .iter()
                .filter_map(|block| {
                    block
                        .0
                        .values
                        .get((2 * layer + offset) * part..)?
                        .get(..part)
                })
                .collect()
        };
        (of(0), of(1))
    }

    /// Counts `new` positions, written in all layers, as held.
    pub fn advance(&mut self, new: usize) {
        self.len = (self.len + new).min(self.blocks.len() * BLOCK_POSITIONS);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const SHAPE: KvShape = KvShape {
        layers: 2,
        kv_heads: 2,
        head_dim: 3,
    };

    fn extend(cache: &mut KvBlocks, first: f32, count: usize) {
        cache.reserve(count);
        let rows: Vec<f32> = (0..count * 6).map(|index| first + index as f32).collect();
        for layer in 0..SHAPE.layers {
            assert!(cache.write(layer, &rows, &rows));
        }
        cache.advance(count);
    }

    /// Values of a layer by position.
    fn read(cache: &KvBlocks, layer: usize) -> Vec<Vec<f32>> {
        let (keys, values) = cache.layer(layer);
        (0..cache.len())
            .map(|position| {
                let (block, slot) = (position / BLOCK_POSITIONS, position % BLOCK_POSITIONS);
                let key = (0..6).map(|at| keys[block][at * BLOCK_POSITIONS + slot]);
                let value = (0..6).map(|at| {
                    let (head, d) = (at / 3, at % 3);
                    values[block][(head * BLOCK_POSITIONS + slot) * 3 + d]
                });
                let (key, value): (Vec<f32>, Vec<f32>) = (key.collect(), value.collect());
                assert_eq!(key, value);
                key
            })
            .collect()
    }

    #[test]
    fn forks_share_until_they_differ() {
        let pool = KvPool::new(SHAPE);
        let mut first = pool.cache();
        extend(&mut first, 0.0, 70);
        assert_eq!((first.len(), pool.live_blocks()), (70, 3));
        let before = read(&first, 1);
        let mut second = first.fork();
        assert_eq!(pool.live_blocks(), 3);
        extend(&mut second, 1000.0, 5);
        // Only the block that was written to was copied.
        assert_eq!(pool.live_blocks(), 4);
        extend(&mut first, 2000.0, 5);
        assert_eq!(pool.live_blocks(), 4);
        assert_eq!(read(&first, 1)[..70], before);
        assert_eq!(read(&second, 1)[..70], before);
        assert_eq!(read(&first, 0)[70][0], 2000.0);
        assert_eq!(read(&second, 0)[70][0], 1000.0);

        // A beginning that ends inside a full block is shared as well, and copied when it is written to.
        let mut third = pool.cache_of(first.blocks().to_vec(), 40);
        assert_eq!((third.len(), third.blocks().len()), (40, 2));
        extend(&mut third, 3000.0, 1);
        assert_eq!(read(&first, 1)[40], before[40]);
        assert_eq!(read(&third, 1)[..40], before[..40]);
        drop((second, third));
        assert_eq!(pool.live_blocks(), 3);
        first.truncate(33);
        assert_eq!(pool.live_blocks(), 2);
        first.truncate(0);
        assert!(first.is_empty());
        assert_eq!(pool.live_blocks(), 0);
    }

    #[test]
    fn nothing_is_written_where_nothing_was_reserved() {
        let pool = KvPool::new(SHAPE);
        let mut cache = pool.cache();
        assert!(!cache.write(0, &[0.0; 6], &[0.0; 6]));
        cache.reserve(1);
        assert!(!cache.write(2, &[0.0; 6], &[0.0; 6]), "layer 2 of 2");
        let other = cache.fork();
        cache.advance(1);
        let shared = cache.fork();
        assert!(!cache.write(0, &[0.0; 6], &[0.0; 6]), "a shared block");
        drop((other, shared));
        assert!(cache.write(0, &[0.0; 6], &[0.0; 6]));
    }
}
