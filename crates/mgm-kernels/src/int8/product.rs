//! Tasks of rows and panels, and epilogues, around the passes.

use std::ops::Range;

use rayon::prelude::*;

use super::portable;
use super::rows::{RowPart, Rows};
use super::weight::{CHUNK, COLUMNS, Int8Weight, chunk, chunk_len, chunks};
use crate::buffer::with_scratch;
use crate::gemm::{Activation, Epilogue};
use crate::level::Level;
use crate::math::multiversion;
use crate::quant::QuantWeight;
use crate::shared::SharedSlice;

/// Rows of one task: enough to pay for a panel that comes from memory or is made of blocks, few enough for their codes of a chunk to
/// stay in the second-level cache.
const TASK_ROWS: usize = 768;
/// Bytes of activations that are rounded at a time: enough for all threads, and little beside a picture's maps.
const SLAB_BYTES: usize = 16 << 20;
/// Fewer products than this are not worth waking other threads for.
const SERIAL_WORK: usize = 1 << 16;

/// Where panels come from.
#[derive(Clone, Copy)]
pub(super) enum Source<'a> {
    /// Memory.
    Panels(&'a Int8Weight),
    /// Blocks, of which each task makes the panels it needs; from AVX-512 on.
    Blocks(&'a QuantWeight),
}

impl Source<'_> {
    /// Output and input features.
    pub(super) fn features(&self) -> (usize, usize) {
        match self {
            Self::Panels(weight) => (weight.n(), weight.k()),
            Self::Blocks(weight) => (weight.n(), weight.k()),
        }
    }

    /// Calls `f` with every chunk of a panel, in order: number, features, bytes.
    fn chunks(&self, panel: usize, mut f: impl FnMut(usize, usize, &[u8])) {
        let (_, k) = self.features();
        match *self {
            Self::Panels(weight) => {
                let panel = weight.panel(panel);
                for index in 0..chunks(k) {
                    f(index, chunk_len(k, index), chunk(panel, k, index));
                }
            }
            Self::Blocks(weight) => weight.int8_chunks(panel, |chunk, bytes| {
                f(chunk, chunk_len(k, chunk), bytes);
            }),
        }
    }
}

/// `out = epilogue(x·Wᵀ)`; lengths are checked.
pub(super) fn product(
    level: Level,
    m: usize,
    x: &[f32],
    source: Source,
    out: &mut [f32],
    epilogue: &Epilogue,
) {
    let (n, k) = source.features();
    if m == 0 || n == 0 {
        return;
    }
    let most = (SLAB_BYTES / k.max(1)).max(2 * TASK_ROWS);
    let slabs = m.div_ceil(most);
    for slab in 0..slabs {
        let (start, end) = (slab * m / slabs, (slab + 1) * m / slabs);
        let (x, out) = (&x[start * k..end * k], &mut out[start * n..end * n]);
        Rows::with(level, end - start, k, x, true, |rows| {
            product_of_rows(level, rows, source, out, epilogue);
        });
    }
}

/// `out = epilogue(rows·Wᵀ)`, in parallel.
fn product_of_rows(
    level: Level,
    rows: &Rows,
    source: Source,
    out: &mut [f32],
    epilogue: &Epilogue,
) {
    let (n, k) = source.features();
    let m = rows.count();
    let row_tasks = m.div_ceil(TASK_ROWS);
    let panels = n.div_ceil(COLUMNS);
    let shared = SharedSlice::new(out);
    // Neighbouring tasks share their rows.
    let task = |index: usize| {
        let (part, panel) = (index / panels, index % panels);
        let blocks = rows.blocks();
        let blocks = part * blocks / row_tasks..(part + 1) * blocks / row_tasks;
        panel_product(level, rows, blocks, source, panel, n, epilogue, &shared);
    };
    let tasks = row_tasks * panels;
    if m * n * k < SERIAL_WORK {
        (0..tasks).for_each(task);
    } else {
        (0..tasks).into_par_iter().for_each(task);
    }
}

/// `out [m, n] = (activation(x·gateᵀ) ⊙ x·upᵀ)·downᵀ`, in parallel; lengths are checked. The inner rows, several times as wide as the outer ones, are
/// rounded where they come into being and never stored as floats.
pub(super) fn gated(
    level: Level,
    m: usize,
    x: &[f32],
    [gate, up, down]: [Source; 3],
    activation: Activation,
    out: &mut [f32],
) {
    let (inner, k) = gate.features();
    let (n, _) = down.features();
    if m == 0 || n == 0 {
        return;
    }
    let slabs = m.div_ceil(TASK_ROWS);
    for slab in 0..slabs {
        let (start, end) = (slab * m / slabs, (slab + 1) * m / slabs);
        let (x, out) = (&x[start * k..end * k], &mut out[start * n..end * n]);
        let m = end - start;
        Rows::with(level, m, k, x, true, |rows| {
            let blocks = 0..rows.blocks();
            let values = |chunk: usize, out: &mut [f32]| {
                let width = chunk_len(inner, chunk);
                with_scratch(2 * m * size_of::<[f32; COLUMNS]>(), |scratch| {
                    let tiles = &mut scratch.cast_mut::<f32>()[..2 * m * COLUMNS];
                    let (gates, ups) = tiles.split_at_mut(m * COLUMNS);
                    for (index, first) in (0..width).step_by(COLUMNS).enumerate() {
                        let panel = chunk * (CHUNK / COLUMNS) + index;
                        for (source, tile) in [(gate, &mut *gates), (up, &mut *ups)] {
                            let tile = tile.as_chunks_mut::<COLUMNS>().0;
                            panel_tile(level, rows, blocks.clone(), source, panel, tile);
                        }
                        activation.apply(level, gates);
                        multiply_into_at(level, gates, ups, width, first, out);
                    }
                });
            };
            Rows::of_chunks(level, m, inner, values, |rows| {
                product_of_rows(level, rows, down, out, &Epilogue::default());
            });
        });
    }
}

/// `gates [rows, 32] ⊙ ups [rows, 32]` into the columns of `out [rows, width]` from `first` on.
#[inline(always)]
fn multiply_into<const FMA: bool>(
    gates: &[f32],
    ups: &[f32],
    width: usize,
    first: usize,
    out: &mut [f32],
) {
    let columns = first..(first + COLUMNS).min(width);
    let pairs = (gates.as_chunks::<COLUMNS>().0.iter()).zip(ups.as_chunks::<COLUMNS>().0);
    for (out, (gates, ups)) in out.chunks_exact_mut(width).zip(pairs) {
        let out = &mut out[columns.clone()];
        let products: [f32; COLUMNS] = std::array::from_fn(|i| gates[i] * ups[i]);
        if let Some(whole) = out.as_mut_array() {
            *whole = products;
        } else {
            out.copy_from_slice(&products[..out.len()]);
        }
    }
}

multiversion!(fn multiply_into_at(gates: &[f32], ups: &[f32], width: usize, first: usize, out: &mut [f32]) = multiply_into);

/// `out [rows, n] = x [rows, k]·Wᵀ + bias` on one thread, for work that goes on with the result while it is in the caches.
///
/// # Panics
/// When a slice has the wrong length.
pub(crate) fn tile_product(
    level: Level,
    m: usize,
    x: &[f32],
    w: &Int8Weight,
    bias: Option<&[f32]>,
    out: &mut [f32],
) {
    let (n, k) = (w.n(), w.k());
    let epilogue = Epilogue {
        bias,
        ..Epilogue::default()
    };
    super::check("int8 tile product", m, n, k, x, out, &epilogue);
    let shared = SharedSlice::new(out);
    Rows::with(level, m, k, x, false, |rows| {
        for panel in 0..n.div_ceil(COLUMNS) {
            let (blocks, source) = (0..rows.blocks(), Source::Panels(w));
            panel_product(level, rows, blocks, source, panel, n, &epilogue, &shared);
        }
    });
}

/// The columns of one panel for the rows of some blocks, stored with the epilogue.
fn panel_product(
    level: Level,
    rows: &Rows,
    blocks: Range<usize>,
    source: Source,
    panel: usize,
    n: usize,
    epilogue: &Epilogue,
    out: &SharedSlice,
) {
    let (start, end) = (rows.start(blocks.start), rows.start(blocks.end));
    let (first, m) = (panel * COLUMNS, end - start);
    let columns = COLUMNS.min(n - first);
    with_scratch(m * size_of::<[f32; COLUMNS]>(), |scratch| {
        let values = &mut scratch.cast_mut::<f32>()[..m * COLUMNS];
        let tile = values.as_chunks_mut::<COLUMNS>().0;
        panel_tile(level, rows, blocks, source, panel, tile);
        if let Some(bias) = epilogue.bias {
            let bias = &bias[first..first + columns];
            for row in tile.iter_mut() {
                row.iter_mut()
                    .zip(bias)
                    .for_each(|(value, bias)| *value += bias);
            }
        }
        if epilogue.activation != Activation::None {
            epilogue.activation.apply(level, values);
        }
        for (row, values) in values.as_chunks::<COLUMNS>().0.iter().enumerate() {
            // SAFETY: these columns of these rows belong to this call alone.
            let out = unsafe { out.range((start + row) * n + first, columns) };
            if epilogue.accumulate {
                out.iter_mut().zip(values).for_each(|(o, v)| *o += *v);
            } else if let Some(whole) = out.as_mut_array() {
                // Of known length: without a call for each row.
                *whole = *values;
            } else {
                out.copy_from_slice(&values[..columns]);
            }
        }
    });
}

/// `tile [rows of the blocks, 32]` = the columns of one panel.
fn panel_tile(
    level: Level,
    rows: &Rows,
    blocks: Range<usize>,
    source: Source,
    panel: usize,
    tile: &mut [[f32; COLUMNS]],
) {
    let start = rows.start(blocks.start);
    if source.features().1 == 0 {
        tile.fill([0.0; COLUMNS]);
        return;
    }
    source.chunks(panel, |chunk, features, bytes| {
        #[cfg(target_arch = "x86_64")]
        if rows.are_tiles() {
            let blocks = blocks.clone();
            // SAFETY: rows are tiles only at AMX, a level that the machine has.
            unsafe { super::amx::chunk(rows, blocks, chunk, features, bytes, tile, chunk > 0) };
            return;
        }
        for block in blocks.clone() {
            let places = rows.start(block) - start..rows.start(block + 1) - start;
            let part = rows.part(block, chunk, features);
            chunk_product(level, part, bytes, &mut tile[places], chunk > 0);
        }
    });
}

fn chunk_product(level: Level, rows: RowPart, panel: &[u8], out: &mut [[f32; COLUMNS]], add: bool) {
    #[cfg(target_arch = "x86_64")]
    if level >= Level::Avx512 {
        // SAFETY: the machine has this level.
        unsafe { super::avx512::chunk(rows, panel, out, add) };
        return;
    }
    portable::chunk_at(level, rows, panel, out, add);
}
