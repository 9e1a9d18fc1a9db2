//! Packing of the rows of `x`: blocks of up to a kernel's row count, values of a block's rows interleaved.

use half::bf16;

use super::kernel::RowFormat;
use super::pack::K_ALIGN;
use crate::elementwise::bf16_bits;
use crate::level::Level;

/// Splits `rows` rows into blocks of nearly equal size of at most `max_rows`: block `i` of the result is `start(i)..start(i+1)`.
#[derive(Clone, Copy)]
pub(crate) struct RowBlocks {
    rows: usize,
    count: usize,
}

impl RowBlocks {
    pub(crate) fn new(rows: usize, max_rows: usize) -> Self {
        Self {
            rows,
            count: rows.div_ceil(max_rows),
        }
    }

    pub(crate) fn count(&self) -> usize {
        self.count
    }

    /// First row of block `index`; `start(count)` is the number of rows.
    pub(crate) fn start(&self, index: usize) -> usize {
        // Equal shares: no short last block, which would run at a fraction of the speed.
        index * self.rows / self.count.max(1)
    }
}

/// Bytes that one row takes in a row format.
pub(crate) fn row_bytes(format: RowFormat, k: usize) -> usize {
    match format {
        RowFormat::F32 => k * 4,
        RowFormat::F32Pairs => k.div_ceil(2) * 8,
        RowFormat::Bf16Pairs => k.div_ceil(2) * 4,
        RowFormat::Bf16Rows => {
            let bytes = k.next_multiple_of(K_ALIGN) * 2;
            // Rows a multiple of 1 KiB apart would compete for the same few cache sets.
            if bytes.is_multiple_of(1024) {
                bytes + 64
            } else {
                bytes
            }
        }
    }
}

/// Rows that a format needs readable after the last one: a tile always reads all its rows.
pub(crate) fn spare_rows(format: RowFormat) -> usize {
    if format == RowFormat::Bf16Rows { 32 } else { 0 }
}

/// Packs `rows` rows whose element (i, p) is `source[i · row_stride + p · column_stride]` into `out`
/// (`rows · row_bytes`). One of the strides is 1.
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
            RowFormat::Bf16Pairs | RowFormat::Bf16Rows => {}
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
        RowFormat::Bf16Rows => {
            let bytes = row_bytes(format, k);
            for (i, row) in out.chunks_exact_mut(bytes).enumerate() {
                let row: &mut [bf16] = bytemuck::cast_slice_mut(row);
                let (values, padding) = row.split_at_mut(k);
                if column_stride == 1 {
                    crate::elementwise::to_bf16_at(level, &source[i * row_stride..][..k], values);
                } else {
                    for (p, value) in values.iter_mut().enumerate() {
                        *value =
                            bf16::from_bits(bf16_bits(source[i * row_stride + p * column_stride]));
                    }
                }
                padding.fill(bf16::ZERO);
            }
        }
    }
}
