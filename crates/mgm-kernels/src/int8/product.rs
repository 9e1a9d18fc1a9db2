//! Tasks of rows and panels, and epilogues, around the passes.

use std::ops::Range;

use rayon::prelude::*;

use super::portable;
use super::rows::{RowPart, Rows};
use super::weight::{COLUMNS, Int8Weight, chunk_len, chunks};
use crate::buffer::with_scratch;
use crate::gemm::{Activation, Epilogue};
use crate::level::Level;
use crate::quant::QuantWeight;
use crate::shared::SharedSlice;

/// Rows of one task: a chunk of their codes stays in the second-level cache while the panels go by.
const TASK_ROWS: usize = 256;
/// Rows of one task when the panels are made inside it, which many rows must pay for.
const MADE_TASK_ROWS: usize = 768;
/// Bytes of activations that are rounded at a time: enough for all threads, and little beside a picture's maps.
const SLAB_BYTES: usize = 16 << 20;
/// Fewer products than this are not worth waking other threads for.
const SERIAL_WORK: usize = 1 << 16;

/// Where panels come from.
#[derive(Clone, Copy)]
pub(super) enum Source<'a> {
    /// Memory.
    Panels(&'a Int8Weight),
    /// Blocks, of which each task makes the panels it needs; at AVX-512 only.
    Blocks(&'a QuantWeight),
}

impl Source<'_> {
    fn features(&self) -> (usize, usize) {
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
                for chunk in 0..chunks(k) {
                    f(chunk, chunk_len(k, chunk), weight.chunk(panel, chunk));
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
    let task_rows = match source {
        Source::Panels(_) => TASK_ROWS,
        Source::Blocks(_) => MADE_TASK_ROWS,
    };
    let most = (SLAB_BYTES / k.max(1)).max(4 * TASK_ROWS);
    let slabs = m.div_ceil(most);
    for slab in 0..slabs {
        let (start, end) = (slab * m / slabs, (slab + 1) * m / slabs);
        let (x, out) = (&x[start * k..end * k], &mut out[start * n..end * n]);
        let m = end - start;
        let shared = SharedSlice::new(out);
        Rows::with(level, m, k, x, true, |rows| {
            let row_tasks = m.div_ceil(task_rows);
            let panels = n.div_ceil(COLUMNS);
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
        });
    }
}

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

/// The columns of one panel for the rows of some blocks.
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
        if source.features().1 == 0 {
            tile.fill([0.0; COLUMNS]);
        }
        source.chunks(panel, |chunk, features, bytes| {
            for block in blocks.clone() {
                let places = rows.start(block) - start..rows.start(block + 1) - start;
                let part = rows.part(block, chunk, features);
                chunk_product(level, part, bytes, &mut tile[places], chunk > 0);
            }
        });
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
            } else {
                out.copy_from_slice(&values[..columns]);
            }
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
