//! Blocking, parallel tasks and epilogues around the microkernels.

use std::ops::Range;

use rayon::prelude::*;

use super::kernel::{self, Family, MicroArguments, RowFormat};
use super::pack::{K_ALIGN, PANEL, PackedWeight, WeightType, fill_panel};
use super::rows::{RowBlocks, pack_block, row_bytes};
use super::{Activation, Epilogue, skinny};
use crate::buffer::with_scratch;
use crate::level::{Level, has_avx512_bf16};
use crate::quant::QuantWeight;
use crate::shared::SharedSlice;

/// Up to this many rows a general product reads `b` where it lies.
const DIRECT_ROWS: usize = 32;

/// Rows of one task when the panels are made inside it, which many rows must pay for.
const GENERATED_TASK_ROWS: usize = 768;

/// Writes a part of a panel: panel index, features, bytes.
type WritePanel<'a> = dyn Fn(usize, Range<usize>, &mut [u8]) + Sync + 'a;

/// `B` operand.
pub(super) enum Panels<'a> {
    /// Panels in memory, `panel_stride` bytes apart, with rows of `ldb` 4-byte units.
    Memory {
        data: &'a [u8],
        panel_stride: usize,
        ldb: usize,
    },
    /// Panels with rows of `ldb` 4-byte units that a task writes (panel index, features, bytes of that part of the panel) before it uses
    /// them.
    Generated {
        ldb: usize,
        /// Any part along k can be made on its own, not only the whole.
        parts: bool,
        write: &'a WritePanel<'a>,
    },
}

/// Where generated panels get a weight's rows from.
#[derive(Clone, Copy)]
pub(super) enum Rows<'a> {
    /// (row, all its values).
    Whole(&'a (dyn Fn(usize, &mut [f32]) + Sync)),
    /// (row, first feature, values from there on); the first feature is a multiple of a k block.
    Parts(&'a (dyn Fn(usize, usize, &mut [f32]) + Sync)),
}

/// `out = epilogue(x·Wᵀ)`.
pub(crate) fn product(
    level: Level,
    m: usize,
    x: &[f32],
    w: &PackedWeight,
    out: &mut [f32],
    epilogue: &Epilogue,
) {
    product_with(
        level,
        kernel::family(level, w.weight_type(), m),
        m,
        x,
        w,
        out,
        epilogue,
    );
}

/// [`product`] with a given family of microkernels.
pub(crate) fn product_with(
    level: Level,
    family: Family,
    m: usize,
    x: &[f32],
    w: &PackedWeight,
    out: &mut [f32],
    epilogue: &Epilogue,
) {
    let panels = Panels::Memory {
        data: w.data(),
        panel_stride: w.panel_bytes(),
        ldb: w.panel_step(),
    };
    run(
        level,
        family,
        m,
        w.n(),
        w.k(),
        x,
        w.k(),
        1,
        &panels,
        out,
        epilogue,
    );
}

/// `out = epilogue(x·Wᵀ)` with a quantised weight, dequantised panel by panel inside the tasks.
pub(crate) fn quantized(
    level: Level,
    m: usize,
    x: &[f32],
    w: &QuantWeight,
    out: &mut [f32],
    epilogue: &Epilogue,
) {
    let (n, k) = (w.n(), w.k());
    let t = quantized_panel_type(level);
    if t == WeightType::Bf16 && k > 0 {
        let write = |panel: usize, features: Range<usize>, bytes: &mut [u8]| {
            w.bf16_panel(panel, features, bytes);
        };
        let panels = Panels::Generated {
            ldb: t.panel_step(),
            parts: true,
            write: &write,
        };
        let family = kernel::family(level, t, m);
        run(level, family, m, n, k, x, k, 1, &panels, out, epilogue);
        return;
    }
    let row = |j: usize, first: usize, out: &mut [f32]| w.dequantize_part(j, first, out);
    generated(level, m, n, k, t, x, Rows::Parts(&row), out, epilogue);
}

/// The type of panels made from quantised blocks. Widening bf16 panels would only lose precision where there are no bf16 products.
pub(super) fn quantized_panel_type(level: Level) -> WeightType {
    if level >= Level::Avx512 && has_avx512_bf16() {
        WeightType::Bf16
    } else {
        WeightType::F32
    }
}

/// `out = epilogue(x·Wᵀ)` with a weight whose panels are made of its rows inside the tasks.
pub(crate) fn streamed(
    level: Level,
    m: usize,
    n: usize,
    k: usize,
    t: WeightType,
    x: &[f32],
    row: &(dyn Fn(usize, &mut [f32]) + Sync),
    out: &mut [f32],
    epilogue: &Epilogue,
) {
    generated(level, m, n, k, t, x, Rows::Whole(row), out, epilogue);
}

fn generated(
    level: Level,
    m: usize,
    n: usize,
    k: usize,
    t: WeightType,
    x: &[f32],
    rows: Rows,
    out: &mut [f32],
    epilogue: &Epilogue,
) {
    with_generated(level, t, n, k, rows, |panels| {
        let family = kernel::family(level, t, m);
        run(level, family, m, n, k, x, k, 1, panels, out, epilogue);
    });
}

/// Calls `use_panels` with panels that are made of the rows of a weight when they are needed.
pub(super) fn with_generated(
    level: Level,
    t: WeightType,
    n: usize,
    k: usize,
    rows: Rows,
    use_panels: impl FnOnce(&Panels),
) {
    let write = |panel: usize, features: Range<usize>, bytes: &mut [u8]| {
        let columns = PANEL.min(n - panel * PANEL);
        let count = features.len();
        fill_panel(level, t, count, columns, bytes, |column, out| {
            let index = panel * PANEL + column;
            match rows {
                Rows::Whole(row) => {
                    debug_assert_eq!(count, k);
                    row(index, out);
                }
                Rows::Parts(row) => row(index, features.start, out),
            }
        });
        let end = count.div_ceil(2) * 2;
        if end < count.next_multiple_of(K_ALIGN) {
            // Tiles read whole steps.
            bytes[PANEL * end * t.bytes()..].fill(0);
        }
    };
    use_panels(&Panels::Generated {
        ldb: t.panel_step(),
        parts: matches!(rows, Rows::Parts(_)),
        write: &write,
    });
}

/// General `f32` product.
pub(crate) fn general(
    level: Level,
    trans_a: bool,
    trans_b: bool,
    m: usize,
    n: usize,
    k: usize,
    a: &[f32],
    b: &[f32],
    c: &mut [f32],
    accumulate: bool,
) {
    if n > 0 && n <= skinny::MAX_COLUMNS && m >= 2 * n {
        if trans_a {
            // cᵀ = bᵀ·a reads the long operand where it lies, and cᵀ has few rows.
            let transposed = if trans_b {
                Some(skinny::transpose(n, k, b))
            } else {
                None
            };
            let b = transposed.as_deref().unwrap_or(b);
            let mut product = vec![0.0f32; n * m];
            general(level, true, false, n, m, k, b, a, &mut product, false);
            skinny::store_transposed(m, n, &product, c, accumulate);
            return;
        }
        let transposed = if trans_b {
            None
        } else {
            Some(skinny::transpose(k, n, b))
        };
        let rows = transposed.as_deref().unwrap_or(b);
        if skinny::dot_rows(level, m, n, k, a, rows, c, accumulate) {
            return;
        }
    }
    let (row_stride, column_stride) = if trans_a { (1, m) } else { (k, 1) };
    let epilogue = Epilogue {
        accumulate,
        ..Epilogue::default()
    };
    let family = kernel::family(level, WeightType::F32, m);
    // Few rows read each value of `b` few times: packing it would cost more than strided reads.
    if !trans_b && m <= DIRECT_ROWS {
        let panels = Panels::Memory {
            data: bytemuck::cast_slice(b),
            panel_stride: PANEL * 4,
            ldb: n,
        };
        run(
            level,
            family,
            m,
            n,
            k,
            a,
            row_stride,
            column_stride,
            &panels,
            c,
            &epilogue,
        );
        return;
    }
    let packed = if trans_b {
        PackedWeight::pack(n, k, b, WeightType::F32)
    } else {
        PackedWeight::pack_transposed(n, k, b, WeightType::F32)
    };
    let panels = Panels::Memory {
        data: packed.data(),
        panel_stride: packed.panel_bytes(),
        ldb: PANEL,
    };
    run(
        level,
        family,
        m,
        n,
        k,
        a,
        row_stride,
        column_stride,
        &panels,
        c,
        &epilogue,
    );
}

pub(super) fn run(
    level: Level,
    family: Family,
    m: usize,
    n: usize,
    k: usize,
    x: &[f32],
    row_stride: usize,
    column_stride: usize,
    panels: &Panels,
    out: &mut [f32],
    epilogue: &Epilogue,
) {
    if m == 0 || n == 0 {
        return;
    }
    // `out += activation(…)` needs the bare activation first. Rare, so not worth a path of its own.
    if epilogue.accumulate && epilogue.activation != Activation::None {
        let mut product = vec![0.0f32; m * n];
        let bare = Epilogue {
            accumulate: false,
            ..*epilogue
        };
        run(
            level,
            family,
            m,
            n,
            k,
            x,
            row_stride,
            column_stride,
            panels,
            &mut product,
            &bare,
        );
        out.iter_mut().zip(&product).for_each(|(o, &p)| *o += p);
        return;
    }
    let blocks = RowBlocks::new(m, &family);
    let row_bytes = row_bytes(family.format, k);
    let bytes = blocks.packed_start(blocks.count()) * row_bytes;
    with_scratch(bytes, |scratch| {
        let packed = &mut scratch.cast_mut::<u8>()[..bytes];
        pack_rows(
            level,
            family.format,
            blocks,
            m,
            k,
            x,
            row_stride,
            column_stride,
            packed,
        );
        multiply(
            level, family, blocks, m, n, k, packed, panels, out, epilogue,
        );
    });
}

fn pack_rows(
    level: Level,
    format: RowFormat,
    blocks: RowBlocks,
    m: usize,
    k: usize,
    x: &[f32],
    row_stride: usize,
    column_stride: usize,
    packed: &mut [u8],
) {
    let row_bytes = row_bytes(format, k);
    if row_bytes == 0 {
        return;
    }
    let parts = block_parts(blocks, row_bytes, packed);
    let pack = |(index, rows, part): (usize, usize, &mut [u8])| {
        let source = &x[blocks.start(index) * row_stride..];
        pack_block(
            level,
            format,
            rows,
            k,
            source,
            row_stride,
            column_stride,
            part,
        );
    };
    if m * k < 1 << 14 {
        parts.into_iter().for_each(pack);
    } else {
        parts.into_par_iter().for_each(pack);
    }
}

/// The blocks of packed rows: index, number of rows, bytes.
pub(super) fn block_parts(
    blocks: RowBlocks,
    row_bytes: usize,
    packed: &mut [u8],
) -> Vec<(usize, usize, &mut [u8])> {
    let mut rest = packed;
    let mut parts = Vec::with_capacity(blocks.count());
    for index in 0..blocks.count() {
        let rows = blocks.start(index + 1) - blocks.start(index);
        let (part, after) = rest.split_at_mut(blocks.packed_rows(index) * row_bytes);
        parts.push((index, rows, part));
        rest = after;
    }
    parts
}

pub(super) fn multiply(
    level: Level,
    family: Family,
    blocks: RowBlocks,
    m: usize,
    n: usize,
    k: usize,
    packed: &[u8],
    panels: &Panels,
    out: &mut [f32],
    epilogue: &Epilogue,
) {
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

    let panel_count = n.div_ceil(PANEL);
    let task_rows = match panels {
        Panels::Memory { .. } => family.task_rows(),
        Panels::Generated { .. } => GENERATED_TASK_ROWS,
    };
    let row_tasks = m.div_ceil(task_rows);
    let blocks_per_task = blocks.count().div_ceil(row_tasks);
    // Enough tasks to balance the threads, but each with several panels when there are many.
    let wanted = (4 * rayon::current_num_threads()).div_ceil(row_tasks);
    let panels_per_task = panel_count.div_ceil(wanted).max(1);
    let column_tasks = panel_count.div_ceil(panels_per_task);

    let shared = SharedSlice::new(out);
    let task = |index: usize| {
        let _tiles = Tiles::configure(family.tiles);
        let (row_task, column_task) = (index / column_tasks, index % column_tasks);
        let block_range =
            row_task * blocks_per_task..((row_task + 1) * blocks_per_task).min(blocks.count());
        let panel_range =
            column_task * panels_per_task..((column_task + 1) * panels_per_task).min(panel_count);
        // `b` is the panel's data from the k block on.
        let rectangle = |k_block: usize, panel: usize, b: *const u8, ldb: usize| {
            let first = k_block * block_steps;
            let steps = block_steps.min(total_steps - first);
            let last = k_block + 1 == k_blocks;
            let column = panel * PANEL;
            let columns = PANEL.min(n - column);
            let bias = match epilogue.bias {
                Some(bias) if last => bias[column..column + columns].as_ptr(),
                _ => std::ptr::null(),
            };
            for block in block_range.clone() {
                let (start, end) = (blocks.start(block), blocks.start(block + 1));
                let rows = end - start;
                let place = blocks.packed_start(block) * row_bytes;
                let step = blocks.packed_rows(block) * step_bytes;
                let a = packed[place + first * step..].as_ptr();
                let c = shared.pointer_at(start * n + column, (rows - 1) * n + columns);
                let arguments = MicroArguments {
                    steps,
                    rows,
                    a,
                    b,
                    ldb,
                    c,
                    ldc: n,
                    columns,
                    bias,
                    add: k_block > 0 || epilogue.accumulate,
                };
                // SAFETY: the family belongs to a level the machine has; `a`, `b`, `bias` come from slices that hold the
                // block (checked by the slicing and by the packing), and this (block, panel) rectangle of `out` belongs
                // to this task alone.
                unsafe { family.kernels[rows - 1](&arguments) };
                if last && epilogue.activation != Activation::None {
                    for row in start..end {
                        // SAFETY: the same rectangle.
                        let values = unsafe { shared.range(row * n + column, columns) };
                        epilogue.activation.apply(level, values);
                    }
                }
            }
        };
        match *panels {
            Panels::Memory {
                data,
                panel_stride,
                ldb,
            } => {
                for group in groups(panel_range, family.panel_group()) {
                    for k_block in 0..k_blocks {
                        for panel in group.clone() {
                            let b = data[panel * panel_stride + k_block * block_steps * ldb * 4..]
                                .as_ptr();
                            rectangle(k_block, panel, b, ldb);
                        }
                    }
                }
            }
            Panels::Generated { ldb, parts, write } => {
                // The part of a panel that is made and used at a time.
                let features = match parts && family.format == RowFormat::Bf16Tiles {
                    true => family.k_block().min(k),
                    false => k,
                };
                let bytes = (features.next_multiple_of(K_ALIGN) / per_step) * ldb * 4;
                with_scratch(bytes, |scratch| {
                    let buffer = &mut scratch.cast_mut::<u8>()[..bytes];
                    if features == k {
                        for panel in panel_range {
                            write(panel, 0..k, buffer);
                            for k_block in 0..k_blocks {
                                let b = buffer[k_block * block_steps * ldb * 4..].as_ptr();
                                rectangle(k_block, panel, b, ldb);
                            }
                        }
                        return;
                    }
                    for group in groups(panel_range, family.panel_group()) {
                        for k_block in 0..k_blocks {
                            let first = k_block * features;
                            let part = first..(first + features).min(k);
                            let bytes = part.len().next_multiple_of(K_ALIGN) / per_step * ldb * 4;
                            for panel in group.clone() {
                                write(panel, part.clone(), &mut buffer[..bytes]);
                                rectangle(k_block, panel, buffer.as_ptr(), ldb);
                            }
                        }
                    }
                });
            }
        }
    };
    let tasks = row_tasks * column_tasks;
    if tasks == 1 || m * n * k < 1 << 15 {
        (0..tasks).for_each(task);
    } else {
        (0..tasks).into_par_iter().for_each(task);
    }
}

/// A range in pieces of at most `most`.
fn groups(range: Range<usize>, most: usize) -> impl Iterator<Item = Range<usize>> {
    let end = range.end;
    range
        .step_by(most)
        .map(move |start| start..end.min(start.saturating_add(most)))
}

/// Holds the AMX tile configuration of this thread while a task runs.
pub(crate) struct Tiles {
    configured: bool,
}

impl Tiles {
    pub(crate) fn configure(needed: bool) -> Self {
        #[cfg(target_arch = "x86_64")]
        if needed {
            // SAFETY: a family that needs tiles is only chosen at `Level::Amx`, which the machine has.
            unsafe { crate::amx::configure() };
        }
        Self { configured: needed }
    }
}

impl Drop for Tiles {
    fn drop(&mut self) {
        #[cfg(target_arch = "x86_64")]
        if self.configured {
            // SAFETY: configured on this thread: a task neither blocks nor moves.
            unsafe { crate::amx::release() };
        }
        let _ = self.configured;
    }
}
