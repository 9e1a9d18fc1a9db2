//! Packing of the rows of `x`: blocks of up to a kernel's row count, values of a block's rows interleaved or in tiles.

use half::bf16;

use super::kernel::{Family, RowFormat};
use super::pack::K_ALIGN;
use crate::elementwise::bf16_bits;
use crate::level::Level;

/// Rows of a block of two tiles, one above the other.
pub(crate) const TILE_BLOCK_ROWS: usize = 32;
/// Values of a row in one tile.
const TILE_VALUES: usize = 32;
/// Bytes of one tile.
const TILE_BYTES: usize = 1024;

/// Splits `rows` rows into blocks of at most a kernel's row count: block `i` of the result is `start(i)..start(i+1)`.
#[derive(Clone, Copy)]
pub(crate) struct RowBlocks {
    rows: usize,
    count: usize,
    /// Blocks are whole but for the last, and all take the room of a whole one.
    tiles: bool,
}

impl RowBlocks {
    pub(crate) fn new(rows: usize, family: &Family) -> Self {
        Self {
            rows,
            count: rows.div_ceil(family.kernels.len()),
            tiles: family.format == RowFormat::Bf16Tiles,
        }
    }

    pub(crate) fn count(&self) -> usize {
        self.count
    }

    /// First row of block `index`; `start(count)` is the number of rows.
    pub(crate) fn start(&self, index: usize) -> usize {
        if self.tiles {
            // Only whole blocks are stored as they come out of the tile unit.
            return (index * TILE_BLOCK_ROWS).min(self.rows);
        }
        // Equal shares: no short last block, which would run at a fraction of the speed.
        index * self.rows / self.count.max(1)
    }

    /// Rows that block `index` has room for in packed form.
    pub(crate) fn packed_rows(&self, index: usize) -> usize {
        if self.tiles {
            TILE_BLOCK_ROWS
        } else {
            self.start(index + 1) - self.start(index)
        }
    }

    /// Rows that all blocks before `index` have room for; for the number of blocks, what all have room for.
    pub(crate) fn packed_start(&self, index: usize) -> usize {
        if self.tiles {
            index * TILE_BLOCK_ROWS
        } else {
            self.start(index)
        }
    }
}

/// Bytes that one row takes in a row format.
pub(crate) fn row_bytes(format: RowFormat, k: usize) -> usize {
    match format {
        RowFormat::F32 => k * 4,
        RowFormat::F32Pairs => k.div_ceil(2) * 8,
        RowFormat::Bf16Pairs => k.div_ceil(2) * 4,
        RowFormat::Bf16Tiles => k.next_multiple_of(K_ALIGN.max(TILE_VALUES)) * 2,
    }
}

/// Packs `rows` rows whose element (i, p) is `source[i · row_stride + p · column_stride]` into `out`
/// (`rows · row_bytes`, for tiles always a whole block, whose rows beyond `rows` are left as they are). One of the strides is 1.
pub(crate) fn pack_block(
    level: Level,
    format: RowFormat,
    rows: usize,
    k: usize,
    source: &[f32],
    row_stride: usize,
    column_stride: usize,
    out: &mut [u8],
) {
    #[cfg(target_arch = "x86_64")]
    if level >= Level::Avx512 && column_stride == 1 && rows <= 16 {
        match format {
            RowFormat::F32 | RowFormat::F32Pairs => {
                let out: &mut [f32] = bytemuck::cast_slice_mut(out);
                // SAFETY: the machine has this level.
                unsafe { super::avx512::pack_f32(rows, k, source, row_stride, out, rows) };
                out[rows * k..].fill(0.0);
                return;
            }
            RowFormat::Bf16Pairs if crate::level::has_avx512_bf16() => {
                // SAFETY: the machine has this level and BF16.
                unsafe {
                    super::avx512::pack_bf16(
                        rows,
                        k,
                        source,
                        row_stride,
                        bytemuck::cast_slice_mut(out),
                        rows,
                    )
                };
                return;
            }
            RowFormat::Bf16Pairs | RowFormat::Bf16Tiles => {}
        }
    }
    let _ = level;
    match format {
        RowFormat::F32 | RowFormat::F32Pairs => {
            let out: &mut [f32] = bytemuck::cast_slice_mut(out);
            for (p, group) in out.chunks_exact_mut(rows).enumerate() {
                if p >= k {
                    group.fill(0.0);
                } else if row_stride == 1 {
                    group.copy_from_slice(&source[p * column_stride..][..rows]);
                } else {
                    for (i, o) in group.iter_mut().enumerate() {
                        *o = source[i * row_stride + p * column_stride];
                    }
                }
            }
        }
        RowFormat::Bf16Pairs => {
            let value = |i: usize, p: usize| {
                if p < k {
                    source[i * row_stride + p * column_stride]
                } else {
                    0.0
                }
            };
            let out: &mut [u32] = bytemuck::cast_slice_mut(out);
            for (p, group) in out.chunks_exact_mut(rows).enumerate() {
                for (i, o) in group.iter_mut().enumerate() {
                    *o = u32::from(bf16_bits(value(i, 2 * p)))
                        | u32::from(bf16_bits(value(i, 2 * p + 1))) << 16;
                }
            }
        }
        RowFormat::Bf16Tiles => {
            for i in 0..rows {
                pack_tile_row(level, i, k, &source[i * row_stride..], column_stride, out);
            }
        }
    }
}

/// Row `i` of a block of tiles: pairs of tiles along k, rows 0 to 15 in the first of a pair.
fn pack_tile_row(
    level: Level,
    i: usize,
    k: usize,
    source: &[f32],
    column_stride: usize,
    out: &mut [u8],
) {
    const PIECE: usize = 16 * TILE_VALUES;
    let mut piece = [bf16::ZERO; PIECE];
    let place = i / 16 * TILE_BYTES + i % 16 * (2 * TILE_VALUES);
    let pairs = out.chunks_exact_mut(2 * TILE_BYTES);
    let mut rows = pairs.map(|pair| &mut pair[place..place + 2 * TILE_VALUES]);
    for first in (0..k).step_by(PIECE) {
        let count = PIECE.min(k - first);
        if column_stride == 1 {
            crate::elementwise::to_bf16_at(level, &source[first..][..count], &mut piece[..count]);
        } else {
            for (p, value) in piece[..count].iter_mut().enumerate() {
                *value = bf16::from_bits(bf16_bits(source[(first + p) * column_stride]));
            }
        }
        let padded = count.next_multiple_of(TILE_VALUES);
        piece[count..padded].fill(bf16::ZERO);
        for (values, row) in piece[..padded].chunks_exact(TILE_VALUES).zip(&mut rows) {
            row.copy_from_slice(bytemuck::cast_slice(values));
        }
    }
}
