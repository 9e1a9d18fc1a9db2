//! Products whose rows are gathered from several places and exist only in packed form: convolutions.

use rayon::prelude::*;

use super::Epilogue;
use super::driver::{Panels, Rows, block_parts, multiply, quantized_panel_type, with_generated};
use super::kernel::{self, Family, RowFormat};
use super::rows::{RowBlocks, pack_block, row_bytes};
use crate::buffer::with_scratch;
use crate::conv::ConvWeight;
use crate::level::Level;

/// Rows of a product that are gathered from several places: each is `segments` runs of `segment_len` values.
pub(crate) struct Gathered<'a> {
    pub(crate) segments: usize,
    pub(crate) segment_len: usize,
    /// Writes the values of (row, segment).
    pub(crate) write: &'a (dyn Fn(usize, usize, &mut [f32]) + Sync),
}

/// `out [m, n] = epilogue(x·Wᵀ)` with gathered rows, which exist only in packed form.
pub(crate) fn product(
    level: Level,
    m: usize,
    x: &Gathered,
    w: ConvWeight,
    out: &mut [f32],
    epilogue: &Epilogue,
) {
    let (n, k) = (w.n(), w.k());
    assert_eq!(k, x.segments * x.segment_len, "gathered: row length");
    match w {
        ConvWeight::Packed(w) => {
            let panels = Panels::Memory {
                data: w.data(),
                panel_stride: w.panel_bytes(),
                ldb: w.panel_step(),
            };
            let family = kernel::family(level, w.weight_type(), m);
            run_gathered(level, family, m, n, k, x, &panels, out, epilogue);
        }
        ConvWeight::Quantised(w) => {
            let t = quantized_panel_type(level);
            let row = |j: usize, first: usize, out: &mut [f32]| w.dequantize_part(j, first, out);
            with_generated(level, t, n, k, Rows::Parts(&row), |panels| {
                let family = kernel::family(level, t, m);
                run_gathered(level, family, m, n, k, x, panels, out, epilogue);
            });
        }
    }
}

fn run_gathered(
    level: Level,
    family: Family,
    m: usize,
    n: usize,
    k: usize,
    x: &Gathered,
    panels: &Panels,
    out: &mut [f32],
    epilogue: &Epilogue,
) {
    if m == 0 || n == 0 || k == 0 {
        return;
    }
    let blocks = RowBlocks::new(m, &family);
    let row_bytes = row_bytes(family.format, k);
    let bytes = blocks.packed_start(blocks.count()) * row_bytes;
    with_scratch(bytes, |scratch| {
        let packed = &mut scratch.cast_mut::<u8>()[..bytes];
        block_parts(blocks, row_bytes, packed)
            .into_par_iter()
            .for_each(|(index, rows, part)| {
                pack_gathered(level, family.format, blocks.start(index), rows, k, x, part);
            });
        multiply(
            level, family, blocks, m, n, k, packed, panels, out, epilogue,
        );
    });
}

/// Packs one block of gathered rows. Where the format lets segments lie one after another they are gathered one at a time, which keeps
/// the values in the first-level cache until they are packed.
fn pack_gathered(
    level: Level,
    format: RowFormat,
    first: usize,
    rows: usize,
    k: usize,
    x: &Gathered,
    part: &mut [u8],
) {
    let value_bytes = match format {
        RowFormat::F32 | RowFormat::F32Pairs => 4,
        RowFormat::Bf16Pairs => 2,
        RowFormat::Bf16Tiles => 0,
    };
    let by_segment = value_bytes > 0 && x.segment_len.is_multiple_of(2);
    let width = if by_segment { x.segment_len } else { k };
    with_scratch(rows * width * 4, |scratch| {
        let values = &mut scratch.cast_mut::<f32>()[..rows * width];
        if by_segment {
            for (segment, part) in part
                .chunks_exact_mut(rows * width * value_bytes)
                .enumerate()
            {
                for (row, values) in values.chunks_exact_mut(width).enumerate() {
                    (x.write)(first + row, segment, values);
                }
                pack_block(level, format, rows, width, values, width, 1, part);
            }
        } else {
            for (row, values) in values.chunks_exact_mut(width).enumerate() {
                for (segment, values) in values.chunks_exact_mut(x.segment_len).enumerate() {
                    (x.write)(first + row, segment, values);
                }
            }
            pack_block(level, format, rows, k, values, k, 1, part);
        }
    });
}
