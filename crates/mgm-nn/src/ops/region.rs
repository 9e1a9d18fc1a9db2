//! Patch info mining in its folded form: one query per region attends to the LayerNorm-ed cells of its own region.
//!
//! Mini-Gemini (arXiv 2403.18814, section 3.2) projects every high-resolution cell to a key and a value. Since
//! `q·(W_k c + b) = (W_kᵀ q)·c + q·b` and attention weights add up to one, the projections can be applied to the query
//! and to the result instead; what is left here is `out_i = Σ_j softmax_j(query_i·ĉ_j + constant_i)·ĉ_j`.

use candle_core::{CpuStorage, CustomOp2, Layout, Result, Shape, Tensor};
use rayon::prelude::*;

use super::bilinear::{Tap, taps};
use crate::host::{self, Host};
use crate::reduce;

/// PyTorch's default, which the official mining layers use.
const LAYER_NORM_EPS: f32 = 1e-5;

/// The high-resolution cells of one image, as the stage maps they are made from.
///
/// A cell's vector is the concatenation of all stages at its place, later stages resized bilinearly to the size of the
/// first, then LayerNorm without affine over all channels. It is made region by region and never stored as a whole.
#[derive(Clone)]
pub struct RegionCells {
    /// `[height, width, channels]` each, contiguous.
    stages: Vec<Tensor>,
    resize: Vec<Option<Resize>>,
    /// Size of the map that all stages are brought to.
    height: usize,
    width: usize,
    grid: usize,
    cell_rows: usize,
    cell_columns: usize,
    channels: usize,
    window: CellWindow,
}

/// The part of the map that the regions tile. The HD model mines each quarter of one map separately, and the whole of it
/// averaged 2×2 for the overview (official code, `encode_images`).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct CellWindow {
    /// First row, in cells after pooling.
    pub top: usize,
    /// First column, in cells after pooling.
    pub left: usize,
    /// Rows, in cells after pooling.
    pub rows: usize,
    /// Columns, in cells after pooling.
    pub columns: usize,
    /// Cells of the map averaged into one along each axis; 1 for none.
    pub pool: usize,
}

/// Taps of a later stage, for each row and column of the first stage's map.
#[derive(Clone)]
struct Resize {
    rows: Vec<Tap>,
    columns: Vec<Tap>,
}

impl RegionCells {
    /// From stage maps `[channels_i, height_i, width_i]`, for `grid × grid` regions in row-major order. The first
    /// stage's height and width must be multiples of `grid`. The maps are constants: no gradient reaches them.
    pub fn new(stages: &[Tensor], grid: usize) -> Result<Self> {
        let channels_last: Vec<Tensor> = stages
            .iter()
            .map(|stage| stage.permute((1, 2, 0)))
            .collect::<Result<_>>()?;
        Self::new_channels_last(&channels_last, grid)
    }

    /// The same from maps `[height_i, width_i, channels_i]`, which need no copy when they are contiguous.
    pub fn new_channels_last(stages: &[Tensor], grid: usize) -> Result<Self> {
        let Some(first) = stages.first() else {
            candle_core::bail!("region attention: no stage maps");
        };
        let (height, width, _) = first.dims3()?;
        let window = CellWindow {
            top: 0,
            left: 0,
            rows: height,
            columns: width,
            pool: 1,
        };
        if grid == 0 || height == 0 || width == 0 || height % grid != 0 || width % grid != 0 {
            candle_core::bail!(
                "region attention: a map of {height}x{width} cannot be cut into {grid}x{grid} regions"
            );
        }
        let mut resize = Vec::with_capacity(stages.len());
        let mut channels = 0;
        for stage in stages {
            if stage.track_op() {
                candle_core::bail!(
                    "region attention: a stage map is on the gradient tape, but maps get no gradient; detach it"
                );
            }
            let (stage_height, stage_width, stage_channels) = stage.dims3()?;
            if [stage_height, stage_width, stage_channels].contains(&0) {
                candle_core::bail!("region attention: empty stage map {:?}", stage.dims());
            }
            channels += stage_channels;
            resize.push(if (stage_height, stage_width) == (height, width) {
                None
            } else {
                Some(Resize {
                    rows: taps(stage_height, height),
                    columns: taps(stage_width, width),
                })
            });
        }
        Ok(Self {
            stages: stages
                .iter()
                .map(Tensor::contiguous)
                .collect::<Result<_>>()?,
            resize,
            height,
            width,
            grid,
            cell_rows: height / grid,
            cell_columns: width / grid,
            channels,
            window,
        })
    }

    /// The same cells, with the `grid × grid` regions tiling only a part of the map.
    pub fn with_window(mut self, window: CellWindow) -> Result<Self> {
        let CellWindow {
            top,
            left,
            rows,
            columns,
            pool,
        } = window;
        let fits = pool > 0
            && (top + rows)
                .checked_mul(pool)
                .is_some_and(|end| end <= self.height)
            && (left + columns)
                .checked_mul(pool)
                .is_some_and(|end| end <= self.width);
        if !fits || rows == 0 || columns == 0 || rows % self.grid != 0 || columns % self.grid != 0 {
            candle_core::bail!(
                "region attention: {}x{} regions do not tile {window:?} of a {}x{} map",
                self.grid,
                self.grid,
                self.height,
                self.width
            );
        }
        self.cell_rows = rows / self.grid;
        self.cell_columns = columns / self.grid;
        self.window = window;
        Ok(self)
    }

    /// Channels of a cell, all stages together.
    pub fn channels(&self) -> usize {
        self.channels
    }

    /// Number of regions, `grid²`.
    pub fn regions(&self) -> usize {
        self.grid * self.grid
    }

    /// Cells in a region.
    pub fn cells_per_region(&self) -> usize {
        self.cell_rows * self.cell_columns
    }

    fn check(&self, query: &Shape, constant: &Shape) -> Result<()> {
        let (regions, channels) = (self.regions(), self.channels);
        if query.dims() != [regions, channels] || constant.dims() != [regions] {
            candle_core::bail!(
                "region attention: query {:?} and constant {:?}, expected [{regions}, {channels}] and [{regions}]",
                query.dims(),
                constant.dims()
            );
        }
        Ok(())
    }

    /// The un-normalised vector of the cell at row `y`, column `x` of the first stage's map.
    fn cell(&self, maps: &[&[f32]], y: usize, x: usize, out: &mut [f32]) {
        let mut rest = out;
        for ((stage, resize), map) in self.stages.iter().zip(&self.resize).zip(maps) {
            let (width, channels) = (stage.dims()[1], stage.dims()[2]);
            let (out, tail) = rest.split_at_mut(channels);
            rest = tail;
            let at =
                |row: usize, column: usize| &map[(row * width + column) * channels..][..channels];
            let Some(resize) = resize else {
                out.copy_from_slice(at(y, x));
                continue;
            };
            let (row, column) = (resize.rows[y], resize.columns[x]);
            let upper = (at(row.first, column.first), at(row.first, column.second));
            let lower = (at(row.second, column.first), at(row.second, column.second));
            let weights = [
                (1.0 - row.weight) * (1.0 - column.weight),
                (1.0 - row.weight) * column.weight,
                row.weight * (1.0 - column.weight),
                row.weight * column.weight,
            ];
            let sources = upper.0.iter().zip(upper.1).zip(lower.0.iter().zip(lower.1));
            for (out, ((&a, &b), (&c, &d))) in out.iter_mut().zip(sources) {
                *out = weights[0] * a + weights[1] * b + weights[2] * c + weights[3] * d;
            }
        }
    }

    /// The mean of the map's cells that make the window's cell at row `y`, column `x`.
    fn pooled_cell(
        &self,
        maps: &[&[f32]],
        y: usize,
        x: usize,
        out: &mut [f32],
        single: &mut [f32],
    ) {
        let pool = self.window.pool;
        if pool == 1 {
            return self.cell(maps, y, x, out);
        }
        out.fill(0.0);
        let share = 1.0 / (pool * pool) as f32;
        for part in 0..pool * pool {
            self.cell(maps, y * pool + part / pool, x * pool + part % pool, single);
            reduce::add_scaled(out, share, single);
        }
    }

    /// Fills `cells` (`[cells_per_region, channels]`) with the centred cells of a region, `inverse` with their
    /// 1/standard deviations and `scores` with `query·ĉ`.
    fn region(&self, maps: &[&[f32]], region: usize, query: &[f32], work: &mut Workspace) {
        let (top, left) = (
            region / self.grid * self.cell_rows,
            region % self.grid * self.cell_columns,
        );
        let (top, left) = (self.window.top + top, self.window.left + left);
        for (j, cell) in work.cells.chunks_exact_mut(self.channels).enumerate() {
            self.pooled_cell(
                maps,
                top + j / self.cell_columns,
                left + j % self.cell_columns,
                cell,
                &mut work.single,
            );
            let mean = reduce::sum(cell) / self.channels as f32;
            cell.iter_mut().for_each(|value| *value -= mean);
            let variance = reduce::dot(cell, cell) / self.channels as f32;
            let inverse = 1.0 / (variance + LAYER_NORM_EPS).sqrt();
            work.inverse[j] = inverse;
            work.scores[j] = reduce::dot(query, cell) * inverse;
        }
    }

    fn workspace(&self) -> Workspace {
        let cells = self.cells_per_region();
        Workspace {
            cells: vec![0.0; cells * self.channels],
            inverse: vec![0.0; cells],
            scores: vec![0.0; cells],
            single: vec![
                0.0;
                if self.window.pool > 1 {
                    self.channels
                } else {
                    0
                }
            ],
        }
    }

    /// Runs `f(region, its query, workspace with its cells and attention weights, its piece of out)` for all regions.
    fn for_each_region(
        &self,
        query: &[f32],
        constant: &[f32],
        out: &mut [f32],
        f: impl Fn(usize, &mut Workspace, &mut [f32]) + Sync,
    ) -> Result<()> {
        let hosts: Vec<Host> = self.stages.iter().map(Host::new).collect();
        let maps = hosts
            .iter()
            .map(|host| host.values(NAME))
            .collect::<Result<Vec<_>>>()?;
        let maps: Vec<&[f32]> = maps.iter().map(AsRef::as_ref).collect();
        let piece = out.len() / self.regions();
        out.par_chunks_exact_mut(piece).enumerate().for_each_init(
            || self.workspace(),
            |work, (region, out)| {
                self.region(
                    &maps,
                    region,
                    &query[region * self.channels..][..self.channels],
                    work,
                );
                work.scores
                    .iter_mut()
                    .for_each(|score| *score = finite(*score + constant[region]));
                softmax(&mut work.scores);
                f(region, work, out);
            },
        );
        Ok(())
    }
}

/// The official code's `nan_to_num` on the scores.
fn finite(score: f32) -> f32 {
    if score.is_nan() {
        0.0
    } else {
        score.clamp(f32::MIN, f32::MAX)
    }
}

fn softmax(scores: &mut [f32]) {
    let maximum = reduce::maximum(scores);
    let mut total = 0.0;
    for score in scores.iter_mut() {
        *score = (*score - maximum).exp();
        total += *score;
    }
    scores.iter_mut().for_each(|score| *score /= total);
}

struct Workspace {
    cells: Vec<f32>,
    inverse: Vec<f32>,
    scores: Vec<f32>,
    /// One cell before pooling; empty without pooling.
    single: Vec<f32>,
}

const NAME: &str = "region attention";

/// `out_i = Σ_j softmax_j(query_i·ĉ_j + constant_i)·ĉ_j` over the cells j of region i: `query [n, c]`, `constant [n]` →
/// `[n, c]`, with gradients for both (the constant's is zero: it shifts all scores of its softmax alike).
pub fn region_attention(query: &Tensor, constant: &Tensor, cells: &RegionCells) -> Result<Tensor> {
    cells.check(query.shape(), constant.shape())?;
    if query.device().is_cpu() {
        query.apply_op2(constant, RegionAttention(cells.clone()))
    } else {
        composed(query, constant, cells)
    }
}

/// The attention weights `[n, cells_per_region]` of [`region_attention`], cells in row-major order within their region.
/// For pictures of what a query looked at; no gradient.
pub fn region_attention_weights(
    query: &Tensor,
    constant: &Tensor,
    cells: &RegionCells,
) -> Result<Tensor> {
    cells.check(query.shape(), constant.shape())?;
    if !query.device().is_cpu() {
        let normalised = composed_cells(cells)?;
        return composed_weights(&query.detach(), &constant.detach(), &normalised);
    }
    let (query, constant) = (Host::new(query), Host::new(constant));
    let mut out = vec![0.0; cells.regions() * cells.cells_per_region()];
    cells.for_each_region(
        &query.values(NAME)?,
        &constant.values(NAME)?,
        &mut out,
        |_, work, out| {
            out.copy_from_slice(&work.scores);
        },
    )?;
    host::tensor(out, (cells.regions(), cells.cells_per_region()))
}

/// All normalised cells, `[n, cells_per_region, c]`.
pub(crate) fn composed_cells(cells: &RegionCells) -> Result<Tensor> {
    let (height, width) = (cells.height, cells.width);
    let CellWindow {
        top,
        left,
        rows: window_rows,
        columns: window_columns,
        pool,
    } = cells.window;
    let mut maps = Vec::with_capacity(cells.stages.len());
    for stage in &cells.stages {
        let planar = stage.permute((2, 0, 1))?.unsqueeze(0)?;
        maps.push(
            super::bilinear::composed(&planar, height, width)?
                .squeeze(0)?
                .permute((1, 2, 0))?,
        );
    }
    let map = Tensor::cat(&maps, 2)?
        .narrow(0, top * pool, window_rows * pool)?
        .narrow(1, left * pool, window_columns * pool)?
        .contiguous()?
        .reshape(vec![
            window_rows,
            pool,
            window_columns,
            pool,
            cells.channels,
        ])?
        .mean((1, 3))?;
    let (grid, rows, columns) = (cells.grid, cells.cell_rows, cells.cell_columns);
    let regions = map
        .reshape(vec![grid, rows, grid, columns, cells.channels])?
        .permute(vec![0, 2, 1, 3, 4])?
        .contiguous()?
        .reshape((grid * grid, rows * columns, cells.channels))?;
    super::norm::composed_layer_norm(&regions, f64::from(LAYER_NORM_EPS))
}

fn composed_weights(query: &Tensor, constant: &Tensor, cells: &Tensor) -> Result<Tensor> {
    let scores = cells
        .matmul(&query.unsqueeze(2)?)?
        .squeeze(2)?
        .broadcast_add(&constant.unsqueeze(1)?)?;
    super::attention::composed_softmax(&scores)
}

pub(crate) fn composed(query: &Tensor, constant: &Tensor, cells: &RegionCells) -> Result<Tensor> {
    let normalised = composed_cells(cells)?;
    composed_weights(query, constant, &normalised)?
        .unsqueeze(1)?
        .matmul(&normalised)?
        .squeeze(1)
}

struct RegionAttention(RegionCells);

impl CustomOp2 for RegionAttention {
    fn name(&self) -> &'static str {
        NAME
    }

    fn cpu_fwd(
        &self,
        s1: &CpuStorage,
        l1: &Layout,
        s2: &CpuStorage,
        l2: &Layout,
    ) -> Result<(CpuStorage, Shape)> {
        let cells = &self.0;
        let (query, constant) = (host::values(s1, l1, NAME)?, host::values(s2, l2, NAME)?);
        let mut out = vec![0.0; cells.regions() * cells.channels];
        cells.for_each_region(&query, &constant, &mut out, |_, work, out| {
            for ((cell, &weight), &inverse) in work
                .cells
                .chunks_exact(cells.channels)
                .zip(&work.scores)
                .zip(&work.inverse)
            {
                reduce::add_scaled(out, weight * inverse, cell);
            }
        })?;
        Ok((CpuStorage::F32(out), l1.shape().clone()))
    }

    fn bwd(
        &self,
        query: &Tensor,
        constant: &Tensor,
        result: &Tensor,
        grad: &Tensor,
    ) -> Result<(Option<Tensor>, Option<Tensor>)> {
        let cells = &self.0;
        let d_query = if query.track_op() {
            let hosts = [query, constant, result, grad].map(Host::new);
            let (query_values, constant_values) = (hosts[0].values(NAME)?, hosts[1].values(NAME)?);
            let (result, grad) = (hosts[2].values(NAME)?, hosts[3].values(NAME)?);
            let mut d_query = vec![0.0; cells.regions() * cells.channels];
            cells.for_each_region(
                &query_values,
                &constant_values,
                &mut d_query,
                |region, work, d_query| {
                    let range = region * cells.channels..(region + 1) * cells.channels;
                    let (grad, result) = (&grad[range.clone()], &result[range]);
                    // Σ_j a_j (grad·ĉ_j) = grad·out
                    let mean = reduce::dot(grad, result);
                    for ((cell, &weight), &inverse) in work
                        .cells
                        .chunks_exact(cells.channels)
                        .zip(&work.scores)
                        .zip(&work.inverse)
                    {
                        let d_score = weight * (reduce::dot(grad, cell) * inverse - mean);
                        reduce::add_scaled(d_query, d_score * inverse, cell);
                    }
                },
            )?;
            Some(host::tensor(d_query, query.shape())?)
        } else {
            None
        };
        // Exactly zero rather than the rounding noise of Σ_j d_score_j, which Adam would blow up to full steps.
        let d_constant = if constant.track_op() {
            Some(constant.zeros_like()?)
        } else {
            None
        };
        Ok((d_query, d_constant))
    }
}
