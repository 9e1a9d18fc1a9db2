//! Patch info mining in its folded form: one query per region attends to the LayerNorm-ed cells of its own region.
//!
//! Mini-Gemini (arXiv 2403.18814, section 3.2) projects every high-resolution cell to a key and a value. Since
//! `q·(W_k c + b) = (W_kᵀ q)·c + q·b` and attention weights add up to one, the projections can be applied to the query
//! and to the result instead; what is left here is `out_i = Σ_j softmax_j(query_i·ĉ_j + constant_i)·ĉ_j`.

use candle_core::{CpuStorage, CustomOp2, Layout, Result, Shape, Tensor};
use mgm_kernels::pyramid::{Axis, Pyramid, Region, Stage};
use rayon::prelude::*;

use super::bilinear::taps;
use crate::host::{self, Host};
use crate::reduce;

/// PyTorch's default, which the official mining layers use.
const LAYER_NORM_EPS: f32 = 1e-5;

/// The high-resolution cells of one image, as the stage maps they are made from.
///
/// A cell's vector is the concatenation of all stages at its place, later stages resized bilinearly to the size of the
/// first, then LayerNorm without affine over all channels. It is never made: what is asked of it is asked of the vectors that it is a weighted
/// sum of ([`mgm_kernels::pyramid`]).
#[derive(Clone)]
pub struct RegionCells {
    /// `[height, width, channels]` each, contiguous.
    stages: Vec<Tensor>,
    /// How rows and columns of cells come from each stage's.
    axes: Vec<(Axis, Axis)>,
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

/// Positions `count` along an axis of the finest map, averaged `pool` at a time, as weighted sums of a stage's `size` positions.
fn axis(size: usize, count: usize, pool: usize) -> Axis {
    let taps = taps(size, count);
    let share = 1.0 / pool as f32;
    let pooled = taps.chunks_exact(pool).map(|taps| {
        let both = taps.iter().flat_map(|tap| {
            [
                (tap.first, share * (1.0 - tap.weight)),
                (tap.second, share * tap.weight),
            ]
        });
        // The finest stage's positions are their own only source.
        both.filter(|(_, weight)| *weight != 0.0).collect()
    });
    Axis::new(&pooled.collect::<Vec<_>>())
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
        let mut axes = Vec::with_capacity(stages.len());
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
            axes.push((axis(stage_height, height, 1), axis(stage_width, width, 1)));
        }
        Ok(Self {
            stages: stages
                .iter()
                .map(Tensor::contiguous)
                .collect::<Result<_>>()?,
            axes,
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
        for (stage, axes) in self.stages.iter().zip(&mut self.axes) {
            let (height, width, _) = stage.dims3()?;
            *axes = (
                axis(height, self.height, pool),
                axis(width, self.width, pool),
            );
        }
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

    /// The cells of one region.
    fn region(&self, region: usize) -> Region {
        let top = self.window.top + region / self.grid * self.cell_rows;
        let left = self.window.left + region % self.grid * self.cell_columns;
        Region {
            rows: top..top + self.cell_rows,
            columns: left..left + self.cell_columns,
        }
    }

    /// Runs `f(region, its cells and attention weights, its piece of out)` for all regions.
    fn for_each_region(
        &self,
        query: &[f32],
        constant: &[f32],
        out: &mut [f32],
        f: impl Fn(usize, &mut Attended, &mut [f32]) + Sync,
    ) -> Result<()> {
        let hosts: Vec<Host> = self.stages.iter().map(Host::new).collect();
        let maps = hosts
            .iter()
            .map(|host| host.values(NAME))
            .collect::<Result<Vec<_>>>()?;
        let mut stages = Vec::with_capacity(maps.len());
        for ((map, tensor), (rows, columns)) in maps.iter().zip(&self.stages).zip(&self.axes) {
            let (height, width, channels) = tensor.dims3()?;
            stages.push(Stage {
                map,
                height,
                width,
                channels,
                rows,
                columns,
            });
        }
        let window = Region {
            rows: self.window.top..self.window.top + self.window.rows,
            columns: self.window.left..self.window.left + self.window.columns,
        };
        let pyramid = Pyramid::new(&stages, window);
        let cells = self.cells_per_region();
        let piece = out.len() / self.regions();
        out.par_chunks_exact_mut(piece).enumerate().for_each_init(
            || Attended::new(&pyramid, cells),
            |attended, (region, out)| {
                attended.look_at(self.region(region));
                let query = &query[region * self.channels..][..self.channels];
                attended.attend(query, constant[region]);
                f(region, attended, out);
            },
        );
        Ok(())
    }
}

/// The normalised cells `ĉ = (c − mean)·inverse` of a region, and how much attention each gets.
struct Attended<'a> {
    pyramid: &'a Pyramid<'a>,
    region: Region,
    means: Vec<f32>,
    inverses: Vec<f32>,
    weights: Vec<f32>,
    /// Products with a vector, and factors of a weighted sum.
    room: Vec<f32>,
}

impl<'a> Attended<'a> {
    fn new(pyramid: &'a Pyramid<'a>, cells: usize) -> Self {
        Self {
            pyramid,
            region: Region {
                rows: 0..0,
                columns: 0..0,
            },
            means: vec![0.0; cells],
            inverses: vec![0.0; cells],
            weights: vec![0.0; cells],
            room: vec![0.0; cells],
        }
    }

    fn look_at(&mut self, region: Region) {
        self.pyramid
            .moments(&region, &mut self.means, &mut self.inverses);
        for value in &mut self.inverses {
            *value = 1.0 / (*value + LAYER_NORM_EPS).sqrt();
        }
        self.region = region;
    }

    /// Products of `vector` with each normalised cell.
    fn products(&mut self, vector: &[f32]) -> &[f32] {
        self.pyramid.products(&self.region, vector, &mut self.room);
        let sum = reduce::sum(vector);
        let moments = self.means.iter().zip(&self.inverses);
        for (product, (mean, inverse)) in self.room.iter_mut().zip(moments) {
            *product = (*product - mean * sum) * inverse;
        }
        &self.room
    }

    fn attend(&mut self, query: &[f32], constant: f32) {
        self.products(query);
        for (weight, score) in self.weights.iter_mut().zip(&self.room) {
            *weight = finite(score + constant);
        }
        softmax(&mut self.weights);
    }

    /// `out = Σ factor(cell, its attention)·ĉ`.
    fn sum(&mut self, factor: impl Fn(usize, f32) -> f32, out: &mut [f32]) {
        let mut shift = 0.0;
        for (cell, &weight) in self.weights.iter().enumerate() {
            let factor = factor(cell, weight) * self.inverses[cell];
            shift += factor * self.means[cell];
            self.room[cell] = factor;
        }
        self.pyramid.weighted_sum(&self.region, &self.room, out);
        out.iter_mut().for_each(|value| *value -= shift);
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
        |_, attended, out| {
            out.copy_from_slice(&attended.weights);
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
        cells.for_each_region(&query, &constant, &mut out, |_, attended, out| {
            attended.sum(|_, weight| weight, out);
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
                |region, attended, d_query| {
                    let range = region * cells.channels..(region + 1) * cells.channels;
                    let (grad, result) = (&grad[range.clone()], &result[range]);
                    // Σ_j a_j (grad·ĉ_j) = grad·out
                    let mean = reduce::dot(grad, result);
                    let products = attended.products(grad).to_vec();
                    attended.sum(|cell, weight| weight * (products[cell] - mean), d_query);
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
