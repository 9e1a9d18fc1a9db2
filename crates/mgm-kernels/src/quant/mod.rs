//! GGML quantised weights: block formats, dequantisation, quantisation, and products straight from the blocks.

mod activations;
#[cfg(target_arch = "x86_64")]
mod bf16_panel_avx512;
mod blocks;
mod bytes;
mod codes;
#[cfg(target_arch = "x86_64")]
mod column_rows;
#[cfg(target_arch = "x86_64")]
mod columns_avx512;
mod dot;
#[cfg(target_arch = "x86_64")]
mod dot_x86;
#[cfg(target_arch = "x86_64")]
mod few_rows_avx512;
mod gemm;
#[cfg(target_arch = "x86_64")]
mod interleave_avx512;
mod interleaved;
mod k_quants;
mod quantize;
#[cfg(target_arch = "x86_64")]
mod requantise_avx512;
mod search;

pub use bytes::{Bytes, Owner};
pub use gemm::{quant_gemm, quant_gemm_at};

use std::ops::Range;

use rayon::prelude::*;

use crate::buffer::{Aligned, with_scratch};
use crate::level::{self, Level, level};
use interleaved::GROUP;

/// A GGML block format. Layouts are those of GGUF files.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
#[allow(non_camel_case_types)]
pub enum QuantType {
    /// 32 × int8, f16 scale.
    Q8_0,
    /// 32 × 4 bit, f16 scale, offset -8.
    Q4_0,
    /// 32 × 4 bit, f16 scale and minimum.
    Q4_1,
    /// 32 × 5 bit, f16 scale, offset -16.
    Q5_0,
    /// 32 × 5 bit, f16 scale and minimum.
    Q5_1,
    /// 256 × 4 bit in 8 sub-blocks with 6-bit scales and minima.
    Q4K,
    /// 256 × 5 bit in 8 sub-blocks with 6-bit scales and minima.
    Q5K,
    /// 256 × 6 bit in 16 sub-blocks with 8-bit scales.
    Q6K,
}

impl QuantType {
    /// All formats.
    pub const ALL: [Self; 8] = [
        Self::Q8_0,
        Self::Q4_0,
        Self::Q4_1,
        Self::Q5_0,
        Self::Q5_1,
        Self::Q4K,
        Self::Q5K,
        Self::Q6K,
    ];

    /// Values in one block.
    pub const fn block_len(self) -> usize {
        match self {
            Self::Q8_0 | Self::Q4_0 | Self::Q4_1 | Self::Q5_0 | Self::Q5_1 => 32,
            Self::Q4K | Self::Q5K | Self::Q6K => 256,
        }
    }

    /// Bytes of one block.
    pub const fn block_bytes(self) -> usize {
        match self {
            Self::Q8_0 => 34,
            Self::Q4_0 => 18,
            Self::Q4_1 => 20,
            Self::Q5_0 => 22,
            Self::Q5_1 => 24,
            Self::Q4K => 144,
            Self::Q5K => 176,
            Self::Q6K => 210,
        }
    }

    /// The format with this `ggml_type` number, if it is one of ours.
    pub fn from_ggml(id: u32) -> Option<Self> {
        Self::ALL.into_iter().find(|t| t.to_ggml() == id)
    }

    /// The `ggml_type` number used in GGUF files.
    pub fn to_ggml(self) -> u32 {
        match self {
            Self::Q4_0 => 2,
            Self::Q4_1 => 3,
            Self::Q5_0 => 6,
            Self::Q5_1 => 7,
            Self::Q8_0 => 8,
            Self::Q4K => 12,
            Self::Q5K => 13,
            Self::Q6K => 14,
        }
    }

    /// The name used by ggml tools, such as `Q4_K`.
    pub fn name(self) -> &'static str {
        match self {
            Self::Q8_0 => "Q8_0",
            Self::Q4_0 => "Q4_0",
            Self::Q4_1 => "Q4_1",
            Self::Q5_0 => "Q5_0",
            Self::Q5_1 => "Q5_1",
            Self::Q4K => "Q4_K",
            Self::Q5K => "Q5_K",
            Self::Q6K => "Q6_K",
        }
    }
}

/// Why quantised data were refused.
#[derive(Debug, thiserror::Error, Clone, PartialEq, Eq)]
pub enum QuantError {
    /// A row is not a whole number of blocks.
    #[error("{name}: rows must be a multiple of {block_len} values, found {k}", name = .quant_type.name(), block_len = .quant_type.block_len())]
    RowLength {
        /// The format.
        quant_type: QuantType,
        /// Values in a row.
        k: usize,
    },
    /// The buffer does not hold exactly the blocks of the matrix.
    #[error("{name} [{n}, {k}]: expected {expected} bytes, found {found}", name = .quant_type.name())]
    DataLength {
        /// The format.
        quant_type: QuantType,
        /// Rows.
        n: usize,
        /// Values in a row.
        k: usize,
        /// Bytes that the shape needs.
        expected: u128,
        /// Bytes given.
        found: usize,
    },
    /// Kept panels are not those of the matrix.
    #[error("panels of [{n}, {k}]: expected {expected} bytes at a multiple of 64, found {found}")]
    Panels {
        /// Output features.
        n: usize,
        /// Input features.
        k: usize,
        /// Bytes that the matrix needs.
        expected: usize,
        /// Bytes given.
        found: usize,
    },
    /// A byte range reaches outside its buffer.
    #[error("byte range {start}..{end} reaches outside a buffer of {len} bytes")]
    Range {
        /// First byte.
        start: usize,
        /// Byte after the last.
        end: usize,
        /// Bytes of the buffer.
        len: usize,
    },
}

/// Dequantises whole blocks into `out`.
///
/// # Panics
/// When `data` is not exactly the blocks of `out.len()` values.
pub fn dequantize(t: QuantType, data: &[u8], out: &mut [f32]) {
    let blocks = out.len() / t.block_len();
    assert!(
        out.len().is_multiple_of(t.block_len()) && data.len() == blocks * t.block_bytes(),
        "dequantize {}: {} bytes do not hold {} values",
        t.name(),
        data.len(),
        out.len()
    );
    blocks::dequantize(t, data, out);
}

/// Values that one task quantises.
const TASK_VALUES: usize = 8192;

/// Quantises values of a row, or of several rows of whole blocks. Gives the bytes of ggml's reference quantisers.
///
/// # Panics
/// When the number of values is not a multiple of [`QuantType::block_len`].
pub fn quantize(t: QuantType, values: &[f32]) -> Vec<u8> {
    let blocks = whole_blocks(t, values.len());
    let mut out = vec![0u8; blocks * t.block_bytes()];
    values
        .par_chunks(TASK_VALUES)
        .zip(out.par_chunks_mut(TASK_VALUES / t.block_len() * t.block_bytes()))
        .for_each(|(values, out)| quantize::row(level(), t, values, None, out));
    out
}

/// Quantises rows of `row_len` values such that errors count in proportion to `importance`: the mean square of what each
/// input feature is multiplied with (`row_len` values, none negative). Gives the bytes of ggml's quantisers with an
/// importance matrix, but for blocks in which they divide zero by zero (nothing that differs from zero has any
/// importance); those are quantised without. `Q8_0` takes no notice of importances.
///
/// # Panics
/// When `row_len` is not a multiple of [`QuantType::block_len`], `values` are not whole rows, or `importance` has another
/// length than a row.
pub fn quantize_weighted(
    t: QuantType,
    values: &[f32],
    row_len: usize,
    importance: &[f32],
) -> Vec<u8> {
    let row_blocks = whole_blocks(t, row_len);
    assert!(
        importance.len() == row_len && values.len().is_multiple_of(row_len.max(1)),
        "quantize {}: {} importances and {} values for rows of {row_len}",
        t.name(),
        importance.len(),
        values.len()
    );
    if row_len == 0 {
        return Vec::new();
    }
    let row_bytes = row_blocks * t.block_bytes();
    let mut out = vec![0u8; values.len() / row_len * row_bytes];
    values
        .par_chunks_exact(row_len)
        .zip(out.par_chunks_exact_mut(row_bytes))
        .with_min_len(TASK_VALUES.div_ceil(row_len))
        .for_each(|(values, out)| quantize::row(level(), t, values, Some(importance), out));
    out
}

/// How many blocks `count` values are.
fn whole_blocks(t: QuantType, count: usize) -> usize {
    assert!(
        count.is_multiple_of(t.block_len()),
        "quantize {}: {count} values are not whole blocks of {}",
        t.name(),
        t.block_len()
    );
    count / t.block_len()
}

/// Whether products of this machine's level read [interleaved](QuantWeight::interleave) weights faster.
pub fn prefers_interleaved() -> bool {
    level() >= Level::Avx512
}

/// A quantised weight `W [n, k]`, rows of whole blocks, read in place or from an [interleaved](Self::interleave) copy. Cheap to clone and to share.
#[derive(Clone, Debug)]
pub struct QuantWeight {
    quant_type: QuantType,
    n: usize,
    k: usize,
    data: Bytes,
    /// Groups of sixteen rows, the last one with zeros, in place of rows.
    interleaved: bool,
}

impl QuantWeight {
    /// Checks that `data` holds exactly `n` rows of `k` values.
    pub fn new(quant_type: QuantType, n: usize, k: usize, data: Bytes) -> Result<Self, QuantError> {
        if !k.is_multiple_of(quant_type.block_len()) {
            return Err(QuantError::RowLength { quant_type, k });
        }
        let row_blocks = (k / quant_type.block_len()) as u128;
        let expected = (n as u128).saturating_mul(row_blocks * quant_type.block_bytes() as u128);
        let found = data.as_slice().len();
        if expected != found as u128 {
            return Err(QuantError::DataLength {
                quant_type,
                n,
                k,
                expected,
                found,
            });
        }
        Ok(Self {
            quant_type,
            n,
            k,
            data,
            interleaved: false,
        })
    }

    /// A copy whose rows lie side by side in groups of sixteen, as vectors of columns read them: products of few rows, which have to read
    /// all weights for little work, are up to twice as fast. The values are the same.
    pub fn interleave(&self) -> Self {
        self.interleave_in_parts(|| ())
    }

    /// [`Self::interleave`] that calls `after_part` after every 32 MiB, so that pages of a file that were read can be given back before the
    /// next ones take room.
    pub fn interleave_in_parts(&self, mut after_part: impl FnMut()) -> Self {
        const PART_BYTES: usize = 32 << 20;
        if self.interleaved {
            return self.clone();
        }
        let row_bytes = self.row_bytes();
        let group_bytes = (GROUP * row_bytes).max(1);
        let bytes = self.n.next_multiple_of(GROUP) * row_bytes;
        let mut data = Aligned::lasting(bytes);
        let part = (PART_BYTES / group_bytes).max(1);
        let groups = data.cast_mut::<u8>()[..bytes].chunks_mut(part * group_bytes);
        for (index, groups) in groups.enumerate() {
            groups
                .par_chunks_exact_mut(group_bytes)
                .enumerate()
                .for_each(|(place, out)| {
                    let first = (index * part + place) * GROUP;
                    let rows = first * row_bytes..(first + GROUP).min(self.n) * row_bytes;
                    interleaved::interleave(self.quant_type, &self.data()[rows], row_bytes, out);
                });
            after_part();
        }
        Self {
            data: Bytes::from_aligned(data, bytes),
            interleaved: true,
            ..self.clone()
        }
    }

    /// A weight whose [interleaved](Self::interleave) [data](Self::data) were kept, in a mapped file for instance.
    ///
    /// # Errors
    /// When rows are not whole blocks, or the bytes are not as many as the matrix needs or do not begin at a multiple of 64.
    pub fn from_interleaved(
        quant_type: QuantType,
        n: usize,
        k: usize,
        data: Bytes,
    ) -> Result<Self, QuantError> {
        if !k.is_multiple_of(quant_type.block_len()) {
            return Err(QuantError::RowLength { quant_type, k });
        }
        let weight = Self {
            quant_type,
            n,
            k,
            data,
            interleaved: true,
        };
        let bytes = n.next_multiple_of(GROUP) * weight.row_bytes();
        weight.data.check_panels(n, k, bytes)?;
        Ok(weight)
    }

    /// Whether this is an [interleaved](Self::interleave) copy.
    pub fn is_interleaved(&self) -> bool {
        self.interleaved
    }

    /// Output features.
    pub fn n(&self) -> usize {
        self.n
    }

    /// Input features.
    pub fn k(&self) -> usize {
        self.k
    }

    /// Block format.
    pub fn quant_type(&self) -> QuantType {
        self.quant_type
    }

    /// The blocks: row after row, or in groups of sixteen rows of an [interleaved](Self::interleave) weight.
    pub fn data(&self) -> &[u8] {
        self.data.as_slice()
    }

    fn row_bytes(&self) -> usize {
        self.k / self.quant_type.block_len() * self.quant_type.block_bytes()
    }

    /// Dequantises row `i` into `out` (`k` values).
    ///
    /// # Panics
    /// When `i` is not a row or `out` has the wrong length.
    pub fn dequantize_row(&self, i: usize, out: &mut [f32]) {
        assert_eq!(
            out.len(),
            self.k,
            "QuantWeight::dequantize_row: output length"
        );
        self.dequantize_part(i, 0, out);
    }

    /// Values of row `i` from feature `first` on, as many as `out` has; both ends lie between blocks.
    pub(crate) fn dequantize_part(&self, i: usize, first: usize, out: &mut [f32]) {
        let t = self.quant_type;
        let values = t.block_len();
        assert!(i < self.n, "QuantWeight: row {i} of {}", self.n);
        assert!(
            first.is_multiple_of(values) && out.len().is_multiple_of(values),
            "QuantWeight::dequantize_part: not between blocks"
        );
        let blocks = first / values..(first + out.len()) / values;
        self.with_blocks(i, blocks, |part| blocks::dequantize(t, part, out));
    }

    /// Calls `f` with the bytes of some blocks of row `i`.
    fn with_blocks<R>(&self, i: usize, blocks: Range<usize>, f: impl FnOnce(&[u8]) -> R) -> R {
        let (t, row_bytes) = (self.quant_type, self.row_bytes());
        let bytes = t.block_bytes();
        if !self.interleaved {
            let row = &self.data()[i * row_bytes..][..row_bytes];
            return f(&row[blocks.start * bytes..blocks.end * bytes]);
        }
        let group = &self.data()[i / GROUP * GROUP * row_bytes..][..GROUP * row_bytes];
        with_scratch(blocks.len() * bytes, |scratch| {
            let part = &mut scratch.cast_mut::<u8>()[..blocks.len() * bytes];
            interleaved::blocks_of_row(t, group, row_bytes, i % GROUP, blocks, part);
            f(part)
        })
    }

    /// Calls `f` with the chunks of an int8 panel of the rows `32 · panel..`, in order (see [`crate::int8`]). Only where the machine has
    /// [`Level::Avx512`].
    ///
    /// # Panics
    /// Without AVX-512, or when there is no such panel.
    pub(crate) fn int8_chunks(&self, panel: usize, mut f: impl FnMut(usize, &[u8])) {
        #[cfg(target_arch = "x86_64")]
        {
            use crate::int8::{CHUNK, COLUMNS, chunk_bytes};
            assert!(
                level::clamp(Level::Avx512) == Level::Avx512 && panel * COLUMNS < self.n,
                "int8 panels: no AVX-512, or no panel {panel}"
            );
            let row_bytes = self.row_bytes();
            let first = panel * COLUMNS;
            let rows = COLUMNS.min(self.n - first);
            let group_bytes = GROUP * row_bytes;
            let bytes = rows.next_multiple_of(GROUP) * row_bytes;
            with_scratch(bytes + chunk_bytes(CHUNK), |scratch| {
                let (chunk, groups) = scratch.cast_mut::<u8>().split_at_mut(chunk_bytes(CHUNK));
                let groups = &mut groups[..bytes];
                let groups = if self.interleaved {
                    &self.data()[first * row_bytes..][..bytes]
                } else {
                    let rows = &self.data()[first * row_bytes..][..rows * row_bytes];
                    for (rows, group) in rows
                        .chunks(group_bytes)
                        .zip(groups.chunks_exact_mut(group_bytes))
                    {
                        interleaved::interleave(self.quant_type, rows, row_bytes, group);
                    }
                    groups
                };
                let blocks = self.k / 32;
                for (index, start) in (0..blocks).step_by(CHUNK / 32).enumerate() {
                    let end = (start + CHUNK / 32).min(blocks);
                    let chunk = &mut chunk[..chunk_bytes(32 * (end - start))];
                    // SAFETY: the machine has this level.
                    unsafe {
                        requantise_avx512::chunk(
                            self.quant_type,
                            groups,
                            row_bytes,
                            start..end,
                            chunk,
                        );
                    }
                    // The blocks of the next chunk come from memory while this one is multiplied.
                    for group in groups.chunks_exact(group_bytes) {
                        let of = |block: usize| GROUP * row_bytes / blocks * block;
                        let next = (end + CHUNK / 32).min(blocks);
                        crate::buffer::fetch(&group[of(end)..of(next)]);
                    }
                    f(index, chunk);
                }
            });
        }
        #[cfg(not(target_arch = "x86_64"))]
        {
            let _ = (panel, &mut f);
            unreachable!("blocks become panels with AVX-512 only");
        }
    }

    /// Writes the features `features` (from a multiple of 256 on, whole blocks) of the rows `32 · panel..` as steps of a bf16 panel (see
    /// [`crate::gemm::PackedWeight`]). Only where the machine has [`Level::Avx512`] and bf16 products.
    ///
    /// # Panics
    /// Without these, when there is no such panel, or `out` has another length.
    pub(crate) fn bf16_panel(&self, panel: usize, features: Range<usize>, out: &mut [u8]) {
        #[cfg(target_arch = "x86_64")]
        {
            const COLUMNS: usize = 2 * GROUP;
            assert!(
                level::has_avx512_bf16() && panel * COLUMNS < self.n,
                "bf16 panels: no bf16 products, or no panel {panel}"
            );
            let (t, row_bytes) = (self.quant_type, self.row_bytes());
            let first = panel * COLUMNS;
            let rows = COLUMNS.min(self.n - first);
            let blocks = features.start / 32..features.end / 32;
            if self.interleaved {
                let bytes = rows.next_multiple_of(GROUP) * row_bytes;
                let groups = &self.data()[first * row_bytes..][..bytes];
                // SAFETY: the machine has this level.
                unsafe { bf16_panel_avx512::part(t, groups, row_bytes, blocks, out) };
                return;
            }
            // The same part of all rows, side by side.
            let of = |feature: usize| feature / t.block_len() * t.block_bytes();
            let part = of(features.start)..of(features.end);
            let padded = rows.next_multiple_of(GROUP);
            with_scratch((rows + padded) * part.len(), |scratch| {
                let (gathered, groups) = scratch.cast_mut::<u8>().split_at_mut(rows * part.len());
                let places = gathered.chunks_exact_mut(part.len().max(1));
                for (row, place) in places.enumerate() {
                    let start = (first + row) * row_bytes;
                    let row = &self.data()[start..start + row_bytes];
                    place.copy_from_slice(&row[part.clone()]);
                }
                let groups = &mut groups[..padded * part.len()];
                let group_bytes = (GROUP * part.len()).max(1);
                for (rows, group) in gathered
                    .chunks(group_bytes)
                    .zip(groups.chunks_exact_mut(group_bytes))
                {
                    interleaved::interleave(t, rows, part.len(), group);
                }
                let blocks = 0..blocks.len();
                // SAFETY: the machine has this level.
                unsafe { bf16_panel_avx512::part(t, groups, part.len(), blocks, out) };
            });
        }
        #[cfg(not(target_arch = "x86_64"))]
        {
            let _ = (panel, features, out);
            unreachable!("blocks become bf16 panels with AVX-512 only");
        }
    }

    /// The whole matrix as row-major `f32` `[n, k]`.
    pub fn dequantize_all(&self) -> Vec<f32> {
        let mut out = vec![0.0f32; self.n * self.k];
        if !out.is_empty() {
            out.par_chunks_exact_mut(self.k)
                .enumerate()
                .for_each(|(i, row)| self.dequantize_row(i, row));
        }
        out
    }

    /// Packs the weight for [`crate::gemm::gemm`], for instance to take its transpose for input gradients.
    pub fn to_packed(&self, t: crate::gemm::WeightType) -> crate::gemm::PackedWeight {
        crate::gemm::PackedWeight::pack_rows(self.n, self.k, t, |i, row| {
            self.dequantize_row(i, row)
        })
    }
}
