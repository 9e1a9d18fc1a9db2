//! Packed int8 weights: panels of 32 output columns, in chunks of up to 256 input features.
//!
//! A chunk is 32 scales (`f32`) and then, for every four features, four codes of each column: `[features / 4][32][4]`, the bytes that
//! one step of `vpdpbusd` takes. A code is `round(value / scale) + 128`, so that 128 stands for 0, with which columns and features are
//! padded. Chunks of a panel, and panels, follow one another without gaps: a product of few rows reads them from first to last.

use rayon::prelude::*;

use crate::buffer::{Aligned, with_scratch};
use crate::level::level;
use crate::quant::{Bytes, QuantError};

use super::rows::quantize_chunk_at;

/// Output columns of a panel.
pub(crate) const COLUMNS: usize = 32;
/// Input features that share a scale.
pub(crate) const CHUNK: usize = 256;
/// Bytes of four features of all columns.
pub(crate) const STEP_BYTES: usize = 4 * COLUMNS;
/// Bytes of the scales in front of a chunk.
pub(super) const SCALE_BYTES: usize = 4 * COLUMNS;
/// The code that stands for 0.
pub(crate) const ZERO: u8 = 128;

/// Bytes of a chunk of `features` features.
pub(crate) const fn chunk_bytes(features: usize) -> usize {
    SCALE_BYTES + features.div_ceil(4) * STEP_BYTES
}

/// Chunks of `k` features.
pub(super) const fn chunks(k: usize) -> usize {
    k.div_ceil(CHUNK)
}

/// Features of chunk `index`.
pub(super) fn chunk_len(k: usize, index: usize) -> usize {
    CHUNK.min(k - index * CHUNK)
}

/// A weight matrix `W [n, k]` (n output features, k input features) in 8 bits, stored in the order that the kernels read.
#[derive(Clone)]
pub struct Int8Weight {
    n: usize,
    k: usize,
    data: Bytes,
}

impl Int8Weight {
    /// Rounds row-major `w [n, k]`.
    ///
    /// # Panics
    /// When `w` has another length.
    pub fn pack(n: usize, k: usize, w: &[f32]) -> Self {
        assert_eq!(
            w.len(),
            n * k,
            "Int8Weight::pack: expected {n}×{k} elements"
        );
        Self::pack_rows(n, k, |j, row| row.copy_from_slice(&w[j * k..][..k]))
    }

    /// Builds a weight row by row, without a row-major copy of it; `row(j, out)` writes the `k` values of output feature `j`. Runs in
    /// parallel, in any order.
    pub fn pack_rows(n: usize, k: usize, row: impl Fn(usize, &mut [f32]) + Sync) -> Self {
        let bytes = Self::stored_bytes(n, k);
        let mut data = Aligned::lasting(bytes);
        data.cast_mut::<u8>()[..bytes]
            .par_chunks_exact_mut(panel_bytes(k).max(1))
            .enumerate()
            .for_each(|(panel, bytes)| {
                let first = panel * COLUMNS;
                let columns = COLUMNS.min(n - first);
                fill_panel(k, columns, bytes, |column, out| row(first + column, out));
            });
        Self {
            n,
            k,
            data: Bytes::from_aligned(data, bytes),
        }
    }

    /// A weight whose [stored bytes](Self::stored) were kept, in a mapped file for instance.
    ///
    /// # Errors
    /// When they are not as many as the matrix needs, or do not begin at a multiple of 64.
    pub fn from_stored(n: usize, k: usize, data: Bytes) -> Result<Self, QuantError> {
        data.check_panels(n, k, Self::stored_bytes(n, k))?;
        Ok(Self { n, k, data })
    }

    /// The panels, for [`Self::from_stored`]. Their order is this crate's own: see [`crate::STORED_LAYOUT`].
    pub fn stored(&self) -> &[u8] {
        self.data.as_slice()
    }

    fn stored_bytes(n: usize, k: usize) -> usize {
        n.div_ceil(COLUMNS) * panel_bytes(k)
    }

    /// Output features.
    pub fn n(&self) -> usize {
        self.n
    }

    /// Input features.
    pub fn k(&self) -> usize {
        self.k
    }

    /// Bytes of storage.
    pub fn bytes(&self) -> usize {
        self.stored().len()
    }

    /// Panel `panel`.
    pub(super) fn panel(&self, panel: usize) -> &[u8] {
        let bytes = panel_bytes(self.k);
        &self.stored()[panel * bytes..][..bytes]
    }

    /// The values of output feature `j`, as they are stored.
    ///
    /// # Panics
    /// When there is no such feature or `out` has another length than `k`.
    pub fn row(&self, j: usize, out: &mut [f32]) {
        assert!(
            j < self.n && out.len() == self.k,
            "Int8Weight::row: row {j} of {}, {} values for {}",
            self.n,
            out.len(),
            self.k
        );
        let (panel, column) = (j / COLUMNS, j % COLUMNS);
        for (index, out) in out.chunks_mut(CHUNK).enumerate() {
            let (scales, codes) = chunk(self.panel(panel), self.k, index).split_at(SCALE_BYTES);
            let scale: f32 = bytemuck::pod_read_unaligned(&scales[4 * column..][..4]);
            let steps = codes.as_chunks::<STEP_BYTES>().0;
            for (out, step) in out.chunks_mut(4).zip(steps) {
                for (value, &code) in out.iter_mut().zip(&step[4 * column..]) {
                    *value = scale * (i32::from(code) - i32::from(ZERO)) as f32;
                }
            }
        }
    }

    /// The matrix as row-major `f32` `[n, k]`.
    pub fn unpack(&self) -> Vec<f32> {
        let mut out = vec![0.0; self.n * self.k];
        if !out.is_empty() {
            out.par_chunks_exact_mut(self.k)
                .enumerate()
                .for_each(|(j, row)| self.row(j, row));
        }
        out
    }
}

/// Chunk `index` of a panel of `k` features.
pub(super) fn chunk(panel: &[u8], k: usize, index: usize) -> &[u8] {
    &panel[index * chunk_bytes(CHUNK)..][..chunk_bytes(chunk_len(k, index))]
}

/// Bytes of a panel.
fn panel_bytes(k: usize) -> usize {
    chunks(k) * SCALE_BYTES + k.div_ceil(4) * STEP_BYTES
}

/// Fills a panel whose first `columns` columns `column(c, out)` writes the `k` values of.
fn fill_panel(k: usize, columns: usize, panel: &mut [u8], column: impl Fn(usize, &mut [f32])) {
    let padded = k.next_multiple_of(4);
    with_scratch(4 * k + padded, |scratch| {
        let (values, codes) = scratch.cast_mut::<u8>().split_at_mut(4 * k);
        let values: &mut [f32] = bytemuck::cast_slice_mut(values);
        let codes: &mut [i8] = bytemuck::cast_slice_mut(&mut codes[..padded]);
        for c in 0..COLUMNS {
            if c < columns {
                column(c, values);
            } else {
                values.fill(0.0);
            }
            codes[k..].fill(0);
            let mut rest = &mut *panel;
            let parts = values.chunks(CHUNK).zip(codes.chunks_mut(CHUNK));
            for (values, codes) in parts {
                let (chunk, after) = rest.split_at_mut(chunk_bytes(values.len()));
                rest = after;
                let (scales, steps) = chunk.split_at_mut(SCALE_BYTES);
                let (scale, _) = quantize_chunk_at(level(), values, codes);
                scales[4 * c..][..4].copy_from_slice(&scale.to_le_bytes());
                let words = codes.as_chunks::<4>().0;
                for (step, word) in steps.as_chunks_mut::<STEP_BYTES>().0.iter_mut().zip(words) {
                    let place = &mut step[4 * c..][..4];
                    for (out, &code) in place.iter_mut().zip(word) {
                        *out = code as u8 ^ ZERO;
                    }
                }
            }
        }
    });
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn values_come_back_within_half_a_step() {
        for (n, k) in [(1, 1), (33, 6), (32, 256), (40, 588), (7, 1024)] {
            let values: Vec<f32> = (0..n * k)
                .map(|i| ((i * 7919 % 2003) as f32 / 1001.0 - 1.0) * (1.0 + (i % 11) as f32))
                .collect();
            let found = Int8Weight::pack(n, k, &values).unpack();
            for (row, (values, found)) in values.chunks(k).zip(found.chunks(k)).enumerate() {
                for (values, found) in values.chunks(CHUNK).zip(found.chunks(CHUNK)) {
                    let largest = values.iter().fold(0.0f32, |most, v| most.max(v.abs()));
                    for (value, found) in values.iter().zip(found) {
                        let error = (value - found).abs();
                        assert!(error <= largest / 253.0, "row {row}: {value} and {found}");
                    }
                }
            }
        }
    }
}
