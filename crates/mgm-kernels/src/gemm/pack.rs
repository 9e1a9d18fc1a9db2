//! Packed weights: panels of 32 output columns, input features in pairs.
//!
//! Panel `j` holds the output columns `32j..32j + 32` contiguously. An `f32` or `f16` panel is `[k][32]`; a `bf16` panel is
//! `[k/2][32][2]`: one step of `vdpbf16ps` takes 128 consecutive bytes, and 16 steps are two AMX tiles side by side
//! (row stride 128 bytes). All are zero padded to a multiple of 32 in `n` and `k`.

use half::{bf16, f16};
use rayon::prelude::*;

use crate::buffer::{Aligned, with_scratch};
use crate::elementwise::bf16_bits;
#[cfg(target_arch = "x86_64")]
use crate::level::has_avx512_bf16;
use crate::level::{Level, level};
use crate::math::{narrow_half, widen_half};
use crate::quant::{Bytes, QuantError};

/// Output columns of one panel.
pub(crate) const PANEL: usize = 32;
/// Input features are padded to a multiple of this.
pub(crate) const K_ALIGN: usize = 32;

/// Element type in which a [`PackedWeight`] stores its values.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum WeightType {
    /// 32-bit floats.
    F32,
    /// 16-bit IEEE floats; products are those of the widened values, in 32 bits.
    F16,
    /// bfloat16; products accumulate in 32 bits.
    Bf16,
}

impl WeightType {
    pub(crate) fn bytes(self) -> usize {
        match self {
            Self::F32 => 4,
            Self::F16 | Self::Bf16 => 2,
        }
    }

    /// 4-byte units from one step of a panel to the next.
    pub(crate) fn panel_step(self) -> usize {
        match self {
            Self::F32 | Self::Bf16 => PANEL,
            Self::F16 => PANEL / 2,
        }
    }
}

/// A weight matrix `W [n, k]` (n output features, k input features), stored in the order that the kernels read.
#[derive(Clone)]
pub struct PackedWeight {
    n: usize,
    k: usize,
    weight_type: WeightType,
    data: Bytes,
}

impl PackedWeight {
    /// Packs row-major `w [n, k]`.
    pub fn pack(n: usize, k: usize, w: &[f32], t: WeightType) -> Self {
        assert_eq!(
            w.len(),
            n * k,
            "PackedWeight::pack: expected {n}×{k} elements"
        );
        Self::pack_rows(n, k, t, |j, row| row.copy_from_slice(&w[j * k..][..k]))
    }

    /// Packs row-major `bf16` `w [n, k]`; exact in either type.
    pub fn pack_bf16(n: usize, k: usize, w: &[bf16], t: WeightType) -> Self {
        assert_eq!(
            w.len(),
            n * k,
            "PackedWeight::pack_bf16: expected {n}×{k} elements"
        );
        Self::pack_rows(n, k, t, |j, row| {
            crate::elementwise::bf16_to_f32(&w[j * k..][..k], row)
        })
    }

    /// Packs row-major `f16` `w [n, k]`; exact in `F16` and `F32`.
    pub fn pack_f16(n: usize, k: usize, w: &[f16], t: WeightType) -> Self {
        assert_eq!(
            w.len(),
            n * k,
            "PackedWeight::pack_f16: expected {n}×{k} elements"
        );
        Self::pack_rows(n, k, t, |j, row| {
            crate::elementwise::f16_to_f32(&w[j * k..][..k], row)
        })
    }

    /// Packs the matrix whose transpose `w_kn` is given row-major as `[k, n]`.
    pub fn pack_transposed(n: usize, k: usize, w_kn: &[f32], t: WeightType) -> Self {
        assert_eq!(
            w_kn.len(),
            n * k,
            "PackedWeight::pack_transposed: expected {k}×{n} elements"
        );
        Self::fill(n, k, t, |panel, bytes| {
            let columns = PANEL.min(n - panel * PANEL);
            for p in 0..k {
                let row = &w_kn[p * n + panel * PANEL..][..columns];
                match t {
                    WeightType::F32 => {
                        let out = bytemuck::cast_slice_mut::<u8, f32>(
                            &mut bytes[p * PANEL * 4..][..PANEL * 4],
                        );
                        out[..columns].copy_from_slice(row);
                    }
                    WeightType::F16 => {
                        let out = bytemuck::cast_slice_mut::<u8, u16>(
                            &mut bytes[p * PANEL * 2..][..PANEL * 2],
                        );
                        for (o, &value) in out.iter_mut().zip(row) {
                            *o = narrow_half(value);
                        }
                    }
                    WeightType::Bf16 => {
                        let out = bytemuck::cast_slice_mut::<u8, u16>(
                            &mut bytes[p / 2 * PANEL * 4..][..PANEL * 4],
                        );
                        for (c, &value) in row.iter().enumerate() {
                            out[2 * c + p % 2] = bf16_bits(value);
                        }
                    }
                }
            }
        })
    }

    /// Builds a weight row by row, without a row-major copy of it; `row(j, out)` writes the `k` values of output feature `j`. Runs in
    /// parallel, in any order.
    pub fn pack_rows(
        n: usize,
        k: usize,
        t: WeightType,
        row: impl Fn(usize, &mut [f32]) + Sync,
    ) -> Self {
        Self::fill(n, k, t, |panel, bytes| {
            fill_panel(
                level(),
                t,
                k,
                PANEL.min(n - panel * PANEL),
                bytes,
                |column, out| {
                    row(panel * PANEL + column, out);
                },
            );
        })
    }

    /// Builds a weight panel by panel, in parallel; `panel(index, bytes)` gets zeros.
    fn fill(
        n: usize,
        k: usize,
        weight_type: WeightType,
        panel: impl Fn(usize, &mut [u8]) + Sync,
    ) -> Self {
        let bytes = panel_bytes(k, weight_type);
        let all = Self::stored_bytes(n, k, weight_type);
        let mut data = Aligned::lasting(all);
        data.cast_mut::<u8>()[..all]
            .par_chunks_exact_mut(bytes.max(1))
            .enumerate()
            .for_each(|(index, bytes)| panel(index, bytes));
        Self {
            n,
            k,
            weight_type,
            data: Bytes::from_aligned(data, all),
        }
    }

    /// A weight whose [stored bytes](Self::stored) were kept, in a mapped file for instance.
    ///
    /// # Errors
    /// When they are not as many as the matrix needs, or do not begin at a multiple of 64.
    pub fn from_stored(
        n: usize,
        k: usize,
        weight_type: WeightType,
        data: Bytes,
    ) -> Result<Self, QuantError> {
        data.check_panels(n, k, Self::stored_bytes(n, k, weight_type))?;
        Ok(Self {
            n,
            k,
            weight_type,
            data,
        })
    }

    /// The panels, for [`Self::from_stored`]. Their order is this crate's own: see [`crate::STORED_LAYOUT`].
    pub fn stored(&self) -> &[u8] {
        self.data()
    }

    fn stored_bytes(n: usize, k: usize, weight_type: WeightType) -> usize {
        n.div_ceil(PANEL) * panel_bytes(k, weight_type)
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
        self.data().len()
    }

    /// Element type of the storage.
    pub fn weight_type(&self) -> WeightType {
        self.weight_type
    }

    /// 4-byte units from one step of a panel to the next.
    pub(crate) fn panel_step(&self) -> usize {
        self.weight_type.panel_step()
    }

    /// Bytes of one panel.
    pub(crate) fn panel_bytes(&self) -> usize {
        panel_bytes(self.k, self.weight_type)
    }

    /// All panels.
    pub(crate) fn data(&self) -> &[u8] {
        self.data.as_slice()
    }

    /// `Wᵀ`: output features become input features. For gradients with respect to the input.
    pub fn transposed(&self) -> Self {
        // Storage is a grid of 32×32 blocks, each contiguous: swap the grid indices and transpose inside the blocks.
        let block = PANEL * PANEL * self.weight_type.bytes();
        let source = self.data();
        let source_panel = self.panel_bytes();
        let t = self.weight_type;
        Self::fill(self.k, self.n, t, |panel, bytes| {
            for (tile, to) in bytes.chunks_exact_mut(block).enumerate() {
                let from = &source[tile * source_panel + panel * block..][..block];
                match t {
                    WeightType::F32 => transpose_block::<u32>(
                        bytemuck::cast_slice(from),
                        bytemuck::cast_slice_mut(to),
                    ),
                    WeightType::F16 => transpose_block::<u16>(
                        bytemuck::cast_slice(from),
                        bytemuck::cast_slice_mut(to),
                    ),
                    WeightType::Bf16 => {
                        transpose_pairs(bytemuck::cast_slice(from), bytemuck::cast_slice_mut(to))
                    }
                }
            }
        })
    }

    /// The matrix as row-major `f32` `[n, k]`.
    pub fn unpack(&self) -> Vec<f32> {
        let mut out = vec![0.0f32; self.n * self.k];
        if out.is_empty() {
            return out;
        }
        let k = self.k;
        let panel_bytes = self.panel_bytes();
        out.par_chunks_mut(PANEL * k)
            .zip(self.data().par_chunks_exact(panel_bytes))
            .for_each(|(rows, panel)| {
                for (c, row) in rows.chunks_exact_mut(k).enumerate() {
                    match self.weight_type {
                        WeightType::F32 => {
                            let panel: &[f32] = bytemuck::cast_slice(panel);
                            for (p, value) in row.iter_mut().enumerate() {
                                *value = panel[p * PANEL + c];
                            }
                        }
                        WeightType::F16 => {
                            let panel: &[u16] = bytemuck::cast_slice(panel);
                            for (p, value) in row.iter_mut().enumerate() {
                                *value = widen_half(panel[p * PANEL + c]);
                            }
                        }
                        WeightType::Bf16 => {
                            let panel: &[u16] = bytemuck::cast_slice(panel);
                            for (p, value) in row.iter_mut().enumerate() {
                                let bits = panel[(p / 2 * PANEL + c) * 2 + p % 2];
                                *value = f32::from_bits(u32::from(bits) << 16);
                            }
                        }
                    }
                }
            });
        out
    }
}

/// Columns that are transposed into a panel together.
const COLUMNS: usize = 16;

/// Bytes of a panel of `k` features.
fn panel_bytes(k: usize, t: WeightType) -> usize {
    PANEL * k.next_multiple_of(K_ALIGN) * t.bytes()
}

/// Fills the first `columns` columns of a panel; `column(c, out)` writes the `k` values of column `c`.
pub(crate) fn fill_panel(
    level: Level,
    t: WeightType,
    k: usize,
    columns: usize,
    panel: &mut [u8],
    column: impl Fn(usize, &mut [f32]),
) {
    if k == 0 {
        return;
    }
    with_scratch(COLUMNS * k * 4, |scratch| {
        let values = &mut scratch.cast_mut::<f32>()[..COLUMNS * k];
        for first in (0..columns).step_by(COLUMNS) {
            let count = COLUMNS.min(columns - first);
            for (c, values) in values.chunks_exact_mut(k).take(count).enumerate() {
                column(first + c, values);
            }
            if !pack_columns_fast(level, t, panel, first, count, k, values) {
                for (c, values) in values.chunks_exact(k).take(count).enumerate() {
                    pack_column(t, panel, first + c, values);
                }
            }
        }
    });
}

/// Packs columns with vector transposes where the machine has them; returns whether it did.
fn pack_columns_fast(
    level: Level,
    t: WeightType,
    panel: &mut [u8],
    first: usize,
    count: usize,
    k: usize,
    values: &[f32],
) -> bool {
    #[cfg(target_arch = "x86_64")]
    if level >= Level::Avx512 {
        match t {
            WeightType::F32 => {
                let panel = &mut bytemuck::cast_slice_mut::<u8, f32>(panel)[first..];
                // SAFETY: the machine has this level.
                unsafe { super::avx512::pack_f32(count, k, values, k, panel, PANEL) };
                return true;
            }
            WeightType::F16 => {
                let panel = &mut bytemuck::cast_slice_mut::<u8, u16>(panel)[first..];
                // SAFETY: the machine has this level.
                unsafe { super::avx512::pack_f16(count, k, values, k, panel, PANEL) };
                return true;
            }
            WeightType::Bf16 if has_avx512_bf16() => {
                let panel = &mut bytemuck::cast_slice_mut::<u8, u32>(panel)[first..];
                // SAFETY: the machine has this level and BF16.
                unsafe { super::avx512::pack_bf16(count, k, values, k, panel, PANEL) };
                return true;
            }
            WeightType::Bf16 => {}
        }
    }
    let _ = (level, t, panel, first, count, k, values);
    false
}

/// Writes column `c` of a panel.
fn pack_column(t: WeightType, panel: &mut [u8], c: usize, values: &[f32]) {
    match t {
        WeightType::F32 => {
            let panel: &mut [f32] = bytemuck::cast_slice_mut(panel);
            for (row, &value) in panel.chunks_exact_mut(PANEL).zip(values) {
                row[c] = value;
            }
        }
        WeightType::F16 => {
            let panel: &mut [u16] = bytemuck::cast_slice_mut(panel);
            for (row, &value) in panel.chunks_exact_mut(PANEL).zip(values) {
                row[c] = narrow_half(value);
            }
        }
        WeightType::Bf16 => {
            let panel: &mut [u32] = bytemuck::cast_slice_mut(panel);
            let (pairs, last) = values.as_chunks::<2>();
            let (rows, _) = panel.as_chunks_mut::<PANEL>();
            for (row, pair) in rows.iter_mut().zip(pairs) {
                row[c] = u32::from(bf16_bits(pair[0])) | u32::from(bf16_bits(pair[1])) << 16;
            }
            if let Some(&value) = last.first() {
                rows[pairs.len()][c] = u32::from(bf16_bits(value));
            }
        }
    }
}

/// Transposes one 32×32 block.
fn transpose_block<T: Copy>(from: &[T], to: &mut [T]) {
    for (c, row) in to.chunks_exact_mut(PANEL).enumerate() {
        for (p, value) in row.iter_mut().enumerate() {
            *value = from[p * PANEL + c];
        }
    }
}

/// Transposes one 32×32 block of bf16 pairs: `from[p][c]` holds (k = 2p, 2p+1; n = c).
fn transpose_pairs(from: &[u32], to: &mut [u32]) {
    for (q, row) in to.chunks_exact_mut(PANEL).enumerate() {
        for (p, out) in row.as_chunks_mut::<2>().0.iter_mut().enumerate() {
            let even = from[p * PANEL + 2 * q];
            let odd = from[p * PANEL + 2 * q + 1];
            out[0] = (even & 0xffff) | (odd << 16);
            out[1] = (even >> 16) | (odd & 0xffff_0000);
        }
    }
}
