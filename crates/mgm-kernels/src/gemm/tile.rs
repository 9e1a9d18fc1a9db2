//! Products of a tile of rows with a packed weight on one thread, for work that goes on with the result while it is in the caches.

use super::driver::Tiles;
use super::kernel::{self, MicroArguments, RowFormat};
use super::pack::{PANEL, PackedWeight};
use super::rows::{RowBlocks, pack_block, row_bytes};
use crate::buffer::with_scratch;
use crate::level::Level;

/// `out [rows, n] = x [rows, k]·Wᵀ + bias`.
///
/// # Panics
/// When a slice has the wrong length.
pub(crate) fn product(
    level: Level,
    rows: usize,
    x: &[f32],
    w: &PackedWeight,
    bias: Option<&[f32]>,
    out: &mut [f32],
) {
    let (n, k) = (w.n(), w.k());
    assert_eq!(x.len(), rows * k, "tile product: x must be [{rows}, {k}]");
    assert_eq!(
        out.len(),
        rows * n,
        "tile product: out must be [{rows}, {n}]"
    );
    assert!(
        bias.is_none_or(|bias| bias.len() == n),
        "tile product: bias must have {n} elements"
    );
    if rows == 0 || n == 0 {
        return;
    }
    let family = kernel::family(level, w.weight_type(), rows);
    let _tiles = Tiles::configure(family.tiles);
    let blocks = RowBlocks::new(rows, &family);
    let row_bytes = row_bytes(family.format, k);
    // Features per step, and bytes per row and step of the packed rows.
    let (per_step, step_bytes) = match family.format {
        RowFormat::F32 => (1, 4),
        RowFormat::F32Pairs => (2, 8),
        RowFormat::Bf16Pairs | RowFormat::Bf16Tiles => (2, 4),
    };
    let total_steps = k.div_ceil(per_step);
    let block_steps = family.k_block() / per_step;
    let k_blocks = total_steps.div_ceil(block_steps).max(1);
    let bytes = blocks.packed_start(blocks.count()) * row_bytes;
    with_scratch(bytes, |scratch| {
        let packed = &mut scratch.cast_mut::<u8>()[..bytes];
        for block in 0..blocks.count() {
            let (start, end) = (blocks.start(block), blocks.start(block + 1));
            let place = blocks.packed_start(block)..blocks.packed_start(block + 1);
            let part = &mut packed[place.start * row_bytes..place.end * row_bytes];
            let source = &x[start * k..];
            pack_block(level, family.format, end - start, k, source, k, 1, part);
        }
        for k_block in 0..k_blocks {
            let first = k_block * block_steps;
            let steps = block_steps.min(total_steps - first);
            for panel in 0..n.div_ceil(PANEL) {
                let column = panel * PANEL;
                let columns = PANEL.min(n - column);
                let ldb = w.panel_step();
                let b = w.data()[panel * w.panel_bytes() + first * ldb * 4..].as_ptr();
                let bias = match bias {
                    Some(bias) if k_block + 1 == k_blocks => bias[column..].as_ptr(),
                    _ => std::ptr::null(),
                };
                for block in 0..blocks.count() {
                    let (start, end) = (blocks.start(block), blocks.start(block + 1));
                    let place = blocks.packed_start(block) * row_bytes;
                    let step = blocks.packed_rows(block) * step_bytes;
                    let a = packed[place + first * step..].as_ptr();
                    let arguments = MicroArguments {
                        steps,
                        rows: end - start,
                        a,
                        b,
                        ldb,
                        c: out[start * n + column..].as_mut_ptr(),
                        ldc: n,
                        columns,
                        bias,
                        add: k_block > 0,
                    };
                    // SAFETY: the machine has the family's level; rows, panel and bias hold what the arguments say (checked by the
                    // slicing, the packing and the assertions), and `out` is this call's alone.
                    unsafe { family.kernels[end - start - 1](&arguments) };
                }
            }
        }
    });
}
