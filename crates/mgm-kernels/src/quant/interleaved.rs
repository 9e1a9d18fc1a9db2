//! Sixteen rows of blocks side by side: what the columns of a product read with whole vectors.
//!
//! The 32-bit words of a block are those of one vector: word `w` of all sixteen rows, one after another, is 64 bytes. What does not fit
//! into words, the half float of a block of 18, 22, 34 or 210 bytes, stands before the words of every pair of blocks, sixteen of a block at a
//! time (behind those of a last block that has no other), so that a product reads from the first byte to the last. The bytes are those of
//! the rows in another order: a group is as large as its rows.

use std::ops::Range;

use super::QuantType;
#[cfg(target_arch = "x86_64")]
use super::interleave_avx512;
#[cfg(target_arch = "x86_64")]
use crate::level::{Level, level};

/// Rows of a group.
pub(crate) const GROUP: usize = 16;
/// Bytes of one word of all rows.
pub(super) const VECTOR: usize = 4 * GROUP;
/// Bytes of one half float of all rows.
const HALVES: usize = 2 * GROUP;

/// Where the parts of a block are.
#[derive(Clone, Copy)]
pub(crate) struct Places {
    /// Whole words.
    pub(crate) words: usize,
    /// Bytes of a block of one row.
    pub(crate) bytes: usize,
    /// First byte of the first word.
    first: usize,
    /// First byte of the half float that is in no word.
    half: Option<usize>,
}

/// Where a block of a group begins.
#[derive(Clone, Copy)]
pub(crate) struct BlockPlace {
    /// Its first word.
    pub(crate) words: usize,
    /// Its half floats, where there are any.
    pub(crate) halves: usize,
}

impl Places {
    pub(crate) const fn of(t: QuantType) -> Self {
        let (first, half) = match t {
            QuantType::Q4_0 | QuantType::Q5_0 | QuantType::Q8_0 => (2, Some(0)),
            QuantType::Q6K => (0, Some(208)),
            QuantType::Q4_1 | QuantType::Q5_1 | QuantType::Q4K | QuantType::Q5K => (0, None),
        };
        Self {
            words: t.block_bytes() / 4,
            bytes: t.block_bytes(),
            first,
            half,
        }
    }

    /// Bytes from the group's beginning to block `index` of `blocks`.
    #[inline(always)]
    pub(crate) const fn block(self, index: usize, blocks: usize) -> BlockPlace {
        let words = self.words * VECTOR;
        if self.half.is_none() {
            return BlockPlace {
                words: index * words,
                halves: 0,
            };
        }
        let (pair, second) = (index / 2 * 2, index % 2);
        let base = pair * (words + HALVES);
        if pair + 2 > blocks {
            return BlockPlace {
                words: base,
                halves: base + words,
            };
        }
        BlockPlace {
            words: base + VECTOR + second * words,
            halves: base + second * HALVES,
        }
    }
}

/// Puts up to sixteen rows of `row_bytes` bytes (`rows`, one after another) side by side; missing rows are zeros.
///
/// # Panics
/// When `out` is not sixteen rows.
pub(crate) fn interleave(t: QuantType, rows: &[u8], row_bytes: usize, out: &mut [u8]) {
    assert_eq!(out.len(), GROUP * row_bytes, "interleave: output length");
    let (places, block_bytes) = (Places::of(t), t.block_bytes());
    let blocks = row_bytes / block_bytes;
    if rows.len() < out.len() {
        out.fill(0);
    }
    let fast = words_at_once(rows.len() == out.len(), places);
    for index in 0..blocks {
        let place = places.block(index, blocks);
        let words = &mut out[place.words..][..places.words * VECTOR];
        let first = index * block_bytes + places.first;
        let (together, alone) = words.split_at_mut(fast * VECTOR);
        #[cfg(target_arch = "x86_64")]
        if fast > 0 {
            // SAFETY: the machine has this level.
            unsafe { interleave_avx512::words(rows, row_bytes, first, together) };
        }
        #[cfg(not(target_arch = "x86_64"))]
        let _ = together;
        if !alone.is_empty() {
            for (row, bytes) in rows.chunks_exact(row_bytes.max(1)).enumerate() {
                let stored = bytes[first + 4 * fast..].as_chunks::<4>().0;
                for (word, vector) in stored.iter().zip(alone.as_chunks_mut::<VECTOR>().0) {
                    vector.as_chunks_mut::<4>().0[row] = *word;
                }
            }
        }
        if let Some(at) = places.half {
            for (row, bytes) in rows.chunks_exact(row_bytes.max(1)).enumerate() {
                let half = &bytes[index * block_bytes + at..][..2];
                out[place.halves + 2 * row..][..2].copy_from_slice(half);
            }
        }
    }
}

/// How many words of a block are brought side by side with vectors, of all sixteen rows.
fn words_at_once(whole: bool, places: Places) -> usize {
    #[cfg(target_arch = "x86_64")]
    if whole && level() >= Level::Avx512 {
        return places.words / interleave_avx512::WORDS * interleave_avx512::WORDS;
    }
    let _ = (whole, places);
    0
}

/// Bytes of the blocks `range` of row `row` of a group.
///
/// # Panics
/// When `out` is not that long or `group` shorter than its rows.
pub(crate) fn blocks_of_row(
    t: QuantType,
    group: &[u8],
    row_bytes: usize,
    row: usize,
    range: Range<usize>,
    out: &mut [u8],
) {
    let (places, block_bytes) = (Places::of(t), t.block_bytes());
    assert_eq!(
        out.len(),
        range.len() * block_bytes,
        "interleaved row: output length"
    );
    let blocks = row_bytes / block_bytes;
    for (index, block) in range.zip(out.chunks_exact_mut(block_bytes)) {
        let place = places.block(index, blocks);
        let words = &group[place.words..][..places.words * VECTOR];
        let stored = block[places.first..].as_chunks_mut::<4>().0;
        for (word, vector) in stored.iter_mut().zip(words.as_chunks::<VECTOR>().0) {
            *word = vector.as_chunks::<4>().0[row];
        }
        if let Some(at) = places.half {
            block[at..at + 2].copy_from_slice(&group[place.halves + 2 * row..][..2]);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn rows_come_back() {
        // A whole group goes another way than one with missing rows.
        for (t, count) in QuantType::ALL
            .into_iter()
            .flat_map(|t| [(t, 11), (t, GROUP)])
        {
            let row_bytes = 5 * t.block_bytes();
            let rows: Vec<u8> = (0..count * row_bytes)
                .map(|i| (i * 31 % 251) as u8)
                .collect();
            let mut group = vec![1; GROUP * row_bytes];
            interleave(t, &rows, row_bytes, &mut group);
            let mut found = vec![0; 3 * t.block_bytes()];
            for row in 0..GROUP {
                blocks_of_row(t, &group, row_bytes, row, 1..4, &mut found);
                let expected = rows.get(row * row_bytes..(row + 1) * row_bytes);
                match expected {
                    Some(bytes) => {
                        let expected = &bytes[t.block_bytes()..4 * t.block_bytes()];
                        assert_eq!(found, expected, "{t:?} {count}");
                    }
                    None => assert!(found.iter().all(|&byte| byte == 0), "{t:?}"),
                }
            }
        }
    }
}
