//! What earlier requests have read, by what it was: a tree of blocks of positions.
//!
//! A node is a block of up to 32 slots with its keys and values; its children are the blocks that followed it. The way from a root to a
//! node is a beginning that some sequence had. Two sequences share the blocks of their common beginning up to the last whole block, and of
//! the block in which they part the common positions are copied. When memory is needed, the leaf that was not used for longest goes first.

use mini_gemini::Slot;
use mini_gemini::decoder::{BLOCK_POSITIONS, KvBlock};

#[derive(Debug)]
struct Node {
    slots: Vec<Slot>,
    block: KvBlock,
    parent: Option<usize>,
    children: Vec<usize>,
    used: u64,
}

/// The tree.
#[derive(Debug, Default)]
pub(crate) struct PrefixTree {
    nodes: Vec<Option<Node>>,
    free: Vec<usize>,
    roots: Vec<usize>,
    clock: u64,
    positions: usize,
}

impl PrefixTree {
    /// Positions held.
    pub(crate) fn positions(&self) -> usize {
        self.positions
    }

    /// The blocks of the longest beginning of `slots` that is held, and its length; the last block may hold more than is common.
    pub(crate) fn find(&mut self, slots: &[Slot]) -> (Vec<KvBlock>, usize) {
        self.clock += 1;
        let (mut blocks, mut len) = (Vec::new(), 0);
        let mut parent = None;
        loop {
            let rest = &slots[len..];
            let best = self
                .children(parent)
                .iter()
                .filter_map(|&child| {
                    let node = self.nodes.get(child)?.as_ref()?;
                    Some((child, common(&node.slots, rest)))
                })
                .max_by_key(|(_, common)| *common);
            let Some((child, common)) = best.filter(|(_, common)| *common > 0) else {
                return (blocks, len);
            };
            let clock = self.clock;
            let Some(node) = self.nodes.get_mut(child).and_then(Option::as_mut) else {
                return (blocks, len);
            };
            node.used = clock;
            blocks.push(node.block.clone());
            len += common;
            if common < BLOCK_POSITIONS {
                return (blocks, len);
            }
            parent = Some(child);
        }
    }

    /// Keeps the blocks of `slots`, the last of which may be filled in part.
    pub(crate) fn insert(&mut self, slots: &[Slot], blocks: &[KvBlock]) {
        self.clock += 1;
        let mut parent = None;
        for (slots, block) in slots.chunks(BLOCK_POSITIONS).zip(blocks) {
            let found = self.children(parent).iter().copied().find(|&child| {
                self.nodes
                    .get(child)
                    .and_then(Option::as_ref)
                    .is_some_and(|node| {
                        common(&node.slots, slots) == node.slots.len().min(slots.len())
                    })
            });
            let child = match found {
                Some(child) => {
                    let clock = self.clock;
                    if let Some(node) = self.nodes.get_mut(child).and_then(Option::as_mut) {
                        node.used = clock;
                        // A block that was filled further takes the place of what it was before.
                        if node.slots.len() < slots.len() {
                            self.positions += slots.len() - node.slots.len();
                            node.slots = slots.to_vec();
                            node.block = block.clone();
                        }
                    }
                    child
                }
                None => self.add(parent, slots, block),
            };
            parent = Some(child);
        }
    }

    fn add(&mut self, parent: Option<usize>, slots: &[Slot], block: &KvBlock) -> usize {
        let node = Node {
            slots: slots.to_vec(),
            block: block.clone(),
            parent,
            children: Vec::new(),
            used: self.clock,
        };
        self.positions += slots.len();
        let index = match self.free.pop() {
            Some(index) => {
                self.nodes[index] = Some(node);
                index
            }
            None => {
                self.nodes.push(Some(node));
                self.nodes.len() - 1
            }
        };
        match self.siblings(parent) {
            Some(siblings) => siblings.push(index),
            None => self.roots.push(index),
        }
        index
    }

    fn children(&self, parent: Option<usize>) -> &[usize] {
        match parent {
            None => &self.roots,
            Some(parent) => self
                .nodes
                .get(parent)
                .and_then(Option::as_ref)
                .map_or(&[], |node| &node.children),
        }
    }

    fn siblings(&mut self, parent: Option<usize>) -> Option<&mut Vec<usize>> {
        match parent {
            None => Some(&mut self.roots),
            Some(parent) => {
                let node = self.nodes.get_mut(parent)?.as_mut()?;
                Some(&mut node.children)
            }
        }
    }

    /// Gives up the leaf that was not used for longest and that nobody else holds. Returns its positions, or `None` when there is none.
    pub(crate) fn evict(&mut self) -> Option<usize> {
        let (index, _) = self
            .nodes
            .iter()
            .enumerate()
            .filter_map(|(index, node)| {
                let node = node.as_ref()?;
                let is_free = node.children.is_empty() && !node.block.is_shared();
                is_free.then_some((index, node.used))
            })
            .min_by_key(|(_, used)| *used)?;
        let node = self.nodes.get_mut(index)?.take()?;
        if let Some(siblings) = self.siblings(node.parent) {
            siblings.retain(|sibling| *sibling != index);
        }
        self.free.push(index);
        self.positions -= node.slots.len();
        Some(node.slots.len())
    }

    /// Gives up everything.
    #[cfg(test)]
    fn evict_all(&mut self) -> usize {
        std::iter::from_fn(|| self.evict()).sum()
    }
}

/// Length of the common beginning.
pub(crate) fn common(left: &[Slot], right: &[Slot]) -> usize {
    left.iter()
        .zip(right)
        .take_while(|(left, right)| left == right)
        .count()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::test_model::decoder_blocks;

    fn slots(ids: impl IntoIterator<Item = u32>) -> Vec<Slot> {
        ids.into_iter().map(Slot::Text).collect()
    }

    #[test]
    fn the_longest_beginning_is_found() {
        let mut tree = PrefixTree::default();
        let first = slots(0..100);
        tree.insert(&first, &decoder_blocks(100));
        assert_eq!(tree.positions(), 100);
        let length = |tree: &mut PrefixTree, slots: &[Slot]| {
            let (blocks, len) = tree.find(slots);
            assert_eq!(blocks.len(), len.div_ceil(BLOCK_POSITIONS));
            len
        };
        assert_eq!(length(&mut tree, &first), 100);
        assert_eq!(length(&mut tree, &first[..50]), 50);
        assert_eq!(length(&mut tree, &slots((0..40).chain([7]))), 40);
        assert_eq!(length(&mut tree, &slots(1..5)), 0);
        assert_eq!(length(&mut tree, &[]), 0);

        // A branch inside a block: both are found, the common block is held once for each.
        let second = slots((0..40).chain(500..600));
        tree.insert(&second, &decoder_blocks(140));
        assert_eq!(tree.positions(), 100 + 140 - 32);
        assert_eq!(length(&mut tree, &second), 140);
        assert_eq!(length(&mut tree, &first), 100);
        // The same again changes nothing; a longer one takes the place of its beginning.
        tree.insert(&second, &decoder_blocks(140));
        tree.insert(&slots(0..80), &decoder_blocks(80));
        assert_eq!(tree.positions(), 208);
        let longer = slots(0..120);
        tree.insert(&longer, &decoder_blocks(120));
        assert_eq!(tree.positions(), 228);
        assert_eq!(length(&mut tree, &longer), 120);
    }

    #[test]
    fn the_oldest_leaf_goes_first_and_held_blocks_stay() {
        let mut tree = PrefixTree::default();
        let (first, second) = (slots(0..64), slots((0..32).chain(900..950)));
        tree.insert(&first, &decoder_blocks(64));
        tree.insert(&second, &decoder_blocks(82));
        // Used again: the other's end is the oldest now.
        let (held, _) = tree.find(&first);
        assert_eq!(tree.evict(), Some(18));
        assert_eq!(tree.find(&second).1, 64);
        drop(tree.find(&first));
        assert_eq!(tree.evict(), Some(32));
        assert_eq!(tree.find(&second).1, 32);
        assert_eq!(tree.evict(), None, "blocks of a running answer");
        drop(held);
        assert_eq!(tree.evict_all(), 64);
        assert_eq!((tree.positions(), tree.evict()), (0, None));
        tree.insert(&first, &decoder_blocks(64));
        assert_eq!(tree.find(&first).1, 64);
        assert_eq!(tree.nodes.len(), 4, "places are used again");
    }
}
