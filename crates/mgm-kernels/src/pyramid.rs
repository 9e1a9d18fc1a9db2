//! The cells of a feature pyramid, without the large map they would make.
//!
//! A cell's vector is the concatenation of all stages at its place, later stages resized bilinearly to the finest. Resizing is a weighted sum
//! of a few source vectors, and so everything that is asked of a cell can be asked of its sources instead, which are far fewer:
//!
//! * a product with a vector is the weighted sum of the sources' products;
//! * a weighted sum of cells is a weighted sum of sources;
//! * the sum of a cell's values is the weighted sum of the sources' sums;
//! * the sum of their squares is a quadratic form of the products of neighbouring sources.
//!
//! Sums and products of sources are made once for a map ([`Pyramid::new`]).

use std::ops::Range;

use rayon::prelude::*;

use crate::level::{Level, level};
use crate::math::{self, multiversion};

/// How the positions along one axis of the cells come from those of a stage: each is a weighted sum of up to `reach` consecutive ones.
#[derive(Clone, Debug, PartialEq)]
pub struct Axis {
    first: Vec<usize>,
    weights: Vec<f32>,
    reach: usize,
}

impl Axis {
    /// From each position's sources and their weights, in any order; a source may come several times.
    ///
    /// # Panics
    /// When a position has no source.
    pub fn new(positions: &[Vec<(usize, f32)>]) -> Self {
        let ends = |sources: &Vec<(usize, f32)>| {
            assert!(!sources.is_empty(), "Axis: a position without a source");
            let indices = || sources.iter().map(|(source, _)| *source);
            (
                indices().fold(usize::MAX, usize::min),
                indices().fold(0, usize::max),
            )
        };
        let spans: Vec<(usize, usize)> = positions.iter().map(ends).collect();
        let reach = spans.iter().map(|(first, last)| last - first + 1).max();
        let reach = reach.unwrap_or(1);
        let mut weights = vec![0.0; positions.len() * reach];
        for ((sources, (first, _)), weights) in positions
            .iter()
            .zip(&spans)
            .zip(weights.chunks_exact_mut(reach))
        {
            for (source, weight) in sources {
                weights[source - first] += weight;
            }
        }
        Self {
            first: spans.into_iter().map(|(first, _)| first).collect(),
            weights,
            reach,
        }
    }

    /// Number of positions.
    pub fn len(&self) -> usize {
        self.first.len()
    }

    /// Whether there are no positions.
    pub fn is_empty(&self) -> bool {
        self.first.is_empty()
    }

    /// First source of a position, and the weights from there on.
    fn at(&self, position: usize) -> (usize, &[f32]) {
        let weights = &self.weights[position * self.reach..][..self.reach];
        (self.first[position], weights)
    }

    /// The sources of positions, none beyond the `size` there are.
    fn sources(&self, positions: Range<usize>, size: usize) -> Range<usize> {
        let firsts = &self.first[positions];
        let start = firsts.iter().copied().min().unwrap_or(0);
        let end = firsts.iter().max().map_or(0, |last| last + self.reach);
        start..end.min(size)
    }
}

/// One stage: a map `[height, width, channels]` and how the cells come from it.
#[derive(Clone, Copy, Debug)]
pub struct Stage<'a> {
    /// `[height, width, channels]`.
    pub map: &'a [f32],
    /// Rows of the map.
    pub height: usize,
    /// Columns of the map.
    pub width: usize,
    /// Values of a source.
    pub channels: usize,
    /// Rows of cells.
    pub rows: &'a Axis,
    /// Columns of cells.
    pub columns: &'a Axis,
}

/// A rectangle of cells.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Region {
    /// Rows of cells.
    pub rows: Range<usize>,
    /// Columns of cells.
    pub columns: Range<usize>,
}

impl Region {
    fn cells(&self) -> usize {
        self.rows.len() * self.columns.len()
    }
}

/// What is known of the sources of one stage.
struct Tables<'a> {
    stage: Stage<'a>,
    /// The sources that the cells asked about are made of.
    rows: Range<usize>,
    columns: Range<usize>,
    /// Sum of each source's values.
    sums: Vec<f32>,
    /// For each source, products with itself and its neighbours, see [`Tables::neighbours`].
    products: Vec<f32>,
}

impl<'a> Tables<'a> {
    fn new(level: Level, stage: Stage<'a>, cells: &Region) -> Self {
        let rows = stage.rows.sources(cells.rows.clone(), stage.height);
        let columns = stage.columns.sources(cells.columns.clone(), stage.width);
        let mut tables = Self {
            stage,
            rows,
            columns,
            sums: Vec::new(),
            products: Vec::new(),
        };
        let (count, offsets) = (tables.columns.len(), tables.neighbours());
        let mut sums = vec![0.0; tables.rows.len() * count];
        let mut products = vec![0.0; tables.rows.len() * count * offsets.len()];
        if count > 0 {
            sums.par_chunks_exact_mut(count)
                .zip(products.par_chunks_exact_mut(count * offsets.len()))
                .zip(tables.rows.clone())
                .for_each(|((sums, products), y)| {
                    tables.fill_row(level, y, &offsets, sums, products)
                });
        }
        tables.sums = sums;
        tables.products = products;
        tables
    }

    /// Rows and columns from a source to those it is multiplied with: itself, those to the right, those below; of two neighbours the first one
    /// has the product.
    fn neighbours(&self) -> Vec<(usize, isize)> {
        let (down, across) = (self.stage.rows.reach, self.stage.columns.reach as isize);
        let row = |dy: usize| {
            let start = if dy == 0 { 0 } else { 1 - across };
            (start..across).map(move |dx| (dy, dx))
        };
        (0..down).flat_map(row).collect()
    }

    /// Number of a neighbour in [`Self::neighbours`].
    fn neighbour(&self, dy: usize, dx: isize) -> usize {
        let across = self.stage.columns.reach;
        match dy {
            0 => dx as usize,
            _ => across + (dy - 1) * (2 * across - 1) + (dx + across as isize - 1) as usize,
        }
    }

    /// The sources of row `y` from column `x` on.
    fn sources(&self, y: usize, x: usize, count: usize) -> &'a [f32] {
        let c = self.stage.channels;
        &self.stage.map[(y * self.stage.width + x) * c..][..count * c]
    }

    fn fill_row(
        &self,
        level: Level,
        y: usize,
        offsets: &[(usize, isize)],
        sums: &mut [f32],
        products: &mut [f32],
    ) {
        let row = self.sources(y, self.columns.start, self.columns.len());
        sums_at(level, self.stage.channels, row, sums);
        for (number, (dy, dx)) in offsets.iter().enumerate() {
            if y + dy >= self.rows.end {
                continue;
            }
            // Columns whose neighbour is in the window too.
            let start = self.columns.start + dx.min(&0).unsigned_abs();
            let end = self.columns.end - (*dx).max(0).unsigned_abs().min(self.columns.len());
            if start >= end {
                continue;
            }
            let a = self.sources(y, start, end - start);
            let b = self.sources(y + dy, start.wrapping_add_signed(*dx), end - start);
            let out = &mut products[(start - self.columns.start) * offsets.len() + number..];
            pair_products_at(level, self.stage.channels, a, b, offsets.len(), out);
        }
    }

    /// Adds the sum of a cell's values and that of their squares.
    fn add_moments(&self, y: usize, x: usize, sum: &mut f64, squares: &mut f64) {
        let (top, row_weights) = self.stage.rows.at(y);
        let (left, column_weights) = self.stage.columns.at(x);
        let offsets = self.products.len() / self.sums.len().max(1);
        for (i, &wy) in row_weights.iter().enumerate() {
            for (j, &wx) in column_weights.iter().enumerate() {
                let weight = f64::from(wy) * f64::from(wx);
                if weight == 0.0 {
                    continue;
                }
                let at = (top + i - self.rows.start) * self.columns.len() + left + j
                    - self.columns.start;
                *sum += weight * f64::from(self.sums[at]);
                let products = &self.products[at * offsets..][..offsets];
                for (other_i, &other_wy) in row_weights.iter().enumerate().skip(i) {
                    for (other_j, &other_wx) in column_weights.iter().enumerate() {
                        let (dy, dx) = (other_i - i, other_j as isize - j as isize);
                        let other = f64::from(other_wy) * f64::from(other_wx);
                        if other == 0.0 || (dy == 0 && dx < 0) {
                            continue;
                        }
                        // Each pair of two stands for both orders.
                        let times = if (dy, dx) == (0, 0) { 1.0 } else { 2.0 };
                        let product = f64::from(products[self.neighbour(dy, dx)]);
                        *squares += times * weight * other * product;
                    }
                }
            }
        }
    }

    /// The sources of a region.
    fn window(&self, region: &Region) -> (Range<usize>, Range<usize>) {
        (
            self.stage
                .rows
                .sources(region.rows.clone(), self.stage.height),
            self.stage
                .columns
                .sources(region.columns.clone(), self.stage.width),
        )
    }

    /// Calls `f(cell, source, weight)` for every cell of a region and every source of it that counts; sources are numbered within the window.
    fn for_each_weight(&self, region: &Region, mut f: impl FnMut(usize, usize, f32)) {
        let (rows, columns) = self.window(region);
        for (cell_row, y) in region.rows.clone().enumerate() {
            let (top, row_weights) = self.stage.rows.at(y);
            for (cell_column, x) in region.columns.clone().enumerate() {
                let (left, column_weights) = self.stage.columns.at(x);
                let cell = cell_row * region.columns.len() + cell_column;
                for (i, wy) in row_weights.iter().enumerate() {
                    for (j, wx) in column_weights.iter().enumerate() {
                        if wy * wx != 0.0 {
                            let row = top + i - rows.start;
                            f(
                                cell,
                                row * columns.len() + left + j - columns.start,
                                wy * wx,
                            );
                        }
                    }
                }
            }
        }
    }
}

/// Several stages that make cells together.
pub struct Pyramid<'a> {
    level: Level,
    stages: Vec<Tables<'a>>,
    channels: usize,
    cells: Region,
}

impl<'a> Pyramid<'a> {
    /// Prepares questions about the cells of a rectangle, in parallel.
    ///
    /// # Panics
    /// When a map has the wrong length, the stages differ in their cells, or a cell reaches outside a map.
    pub fn new(stages: &[Stage<'a>], cells: Region) -> Self {
        Self::new_at(level(), stages, cells)
    }

    /// [`Self::new`] at a forced level.
    ///
    /// # Panics
    /// As [`Self::new`].
    pub fn new_at(level: Level, stages: &[Stage<'a>], cells: Region) -> Self {
        for stage in stages {
            assert_eq!(
                stage.map.len(),
                stage.height * stage.width * stage.channels,
                "pyramid: map length"
            );
            let inside = |axis: &Axis, positions: &Range<usize>, size: usize| {
                let fits = |&position: &usize| {
                    let (first, weights) = axis.at(position);
                    let used = weights.iter().rposition(|&weight| weight != 0.0);
                    first + used.unwrap_or(0) < size
                };
                positions.end <= axis.len() && positions.clone().all(|position| fits(&position))
            };
            assert!(
                inside(stage.rows, &cells.rows, stage.height)
                    && inside(stage.columns, &cells.columns, stage.width),
                "pyramid: cells reach outside a map"
            );
        }
        let level = crate::level::clamp(level);
        Self {
            level,
            channels: stages.iter().map(|stage| stage.channels).sum(),
            stages: stages
                .iter()
                .map(|stage| Tables::new(level, *stage, &cells))
                .collect(),
            cells,
        }
    }

    /// Values of a cell.
    pub fn channels(&self) -> usize {
        self.channels
    }

    fn check(&self, region: &Region) {
        let inside = |part: &Range<usize>, whole: &Range<usize>| {
            whole.start <= part.start && part.end <= whole.end
        };
        assert!(
            inside(&region.rows, &self.cells.rows) && inside(&region.columns, &self.cells.columns),
            "pyramid: {region:?} is not within {:?}",
            self.cells
        );
    }

    /// Mean and variance of each cell's values, cells row by row.
    ///
    /// # Panics
    /// When the region is outside, or a slice has another length than the region has cells.
    pub fn moments(&self, region: &Region, means: &mut [f32], variances: &mut [f32]) {
        self.check(region);
        assert_eq!(means.len(), region.cells(), "pyramid: number of means");
        assert_eq!(
            variances.len(),
            region.cells(),
            "pyramid: number of variances"
        );
        let cells = region.rows.clone().flat_map(|y| {
            let row = region.columns.clone();
            row.map(move |x| (y, x))
        });
        let count = self.channels as f64;
        for ((mean, variance), (y, x)) in means.iter_mut().zip(variances).zip(cells) {
            let (mut sum, mut squares) = (0.0, 0.0);
            for tables in &self.stages {
                tables.add_moments(y, x, &mut sum, &mut squares);
            }
            let average = sum / count;
            *mean = average as f32;
            *variance = (squares / count - average * average).max(0.0) as f32;
        }
    }

    /// The product of `vector [channels]` with each cell of a region, cells row by row.
    ///
    /// # Panics
    /// When the region is outside or a slice has the wrong length.
    pub fn products(&self, region: &Region, vector: &[f32], out: &mut [f32]) {
        self.check(region);
        assert_eq!(vector.len(), self.channels, "pyramid: vector length");
        assert_eq!(out.len(), region.cells(), "pyramid: number of products");
        out.fill(0.0);
        let mut rest = vector;
        let mut sources = Vec::new();
        for tables in &self.stages {
            let (vector, after) = rest.split_at(tables.stage.channels);
            rest = after;
            let (rows, columns) = tables.window(region);
            sources.clear();
            sources.resize(rows.len() * columns.len(), 0.0);
            for (y, out) in rows.zip(sources.chunks_exact_mut(columns.len().max(1))) {
                let row = tables.sources(y, columns.start, columns.len());
                vector_products_at(self.level, vector, row, out);
            }
            tables.for_each_weight(region, |cell, source, weight| {
                out[cell] += weight * sources[source];
            });
        }
    }

    /// `out [channels] = Σ weights[cell] · cell` over the cells of a region.
    ///
    /// # Panics
    /// When the region is outside or a slice has the wrong length.
    pub fn weighted_sum(&self, region: &Region, weights: &[f32], out: &mut [f32]) {
        self.check(region);
        assert_eq!(out.len(), self.channels, "pyramid: output length");
        assert_eq!(weights.len(), region.cells(), "pyramid: number of weights");
        out.fill(0.0);
        let mut rest = out;
        let mut sources = Vec::new();
        for tables in &self.stages {
            let (out, after) = rest.split_at_mut(tables.stage.channels);
            rest = after;
            let (rows, columns) = tables.window(region);
            sources.clear();
            sources.resize(rows.len() * columns.len(), 0.0);
            tables.for_each_weight(region, |cell, source, weight| {
                sources[source] += weight * weights[cell];
            });
            for (y, weights) in rows.zip(sources.chunks_exact(columns.len().max(1))) {
                let row = tables.sources(y, columns.start, columns.len());
                add_weighted_at(self.level, weights, row, out);
            }
        }
    }
}

const LANES: usize = 16;

#[inline(always)]
fn add_lanes(lanes: [f32; LANES]) -> f32 {
    let mut lanes = lanes;
    let mut width = LANES / 2;
    while width > 0 {
        for i in 0..width {
            lanes[i] += lanes[i + width];
        }
        width /= 2;
    }
    lanes[0]
}

#[inline(always)]
fn product<const FMA: bool>(a: &[f32], b: &[f32]) -> f32 {
    // Two sets of sums: one chain of additions would be slower than the loads.
    let mut lanes = [[0.0f32; LANES]; 2];
    let (a_pairs, a_rest) = a.as_chunks::<{ 2 * LANES }>();
    let (b_pairs, b_rest) = b.as_chunks::<{ 2 * LANES }>();
    for (a, b) in a_pairs.iter().zip(b_pairs) {
        for (set, lanes) in lanes.iter_mut().enumerate() {
            for (i, lane) in lanes.iter_mut().enumerate() {
                let at = set * LANES + i;
                *lane = math::multiply_add::<FMA>(a[at], b[at], *lane);
            }
        }
    }
    for (at, (&a, &b)) in a_rest.iter().zip(b_rest).enumerate() {
        let lane = &mut lanes[at / LANES][at % LANES];
        *lane = math::multiply_add::<FMA>(a, b, *lane);
    }
    let [mut first, second] = lanes;
    for (first, second) in first.iter_mut().zip(second) {
        *first += second;
    }
    add_lanes(first)
}

/// Sums of rows of `c` values.
#[inline(always)]
fn sums<const FMA: bool>(c: usize, rows: &[f32], out: &mut [f32]) {
    for (row, out) in rows.chunks_exact(c.max(1)).zip(out) {
        let mut lanes = [0.0f32; LANES];
        let (chunks, tail) = row.as_chunks::<LANES>();
        for chunk in chunks {
            for (lane, value) in lanes.iter_mut().zip(chunk) {
                *lane += value;
            }
        }
        for (lane, value) in lanes.iter_mut().zip(tail) {
            *lane += value;
        }
        *out = add_lanes(lanes);
    }
}

/// Products of the rows of `a` with those of `b`, to every `stride`-th place of `out`.
#[inline(always)]
fn pair_products<const FMA: bool>(c: usize, a: &[f32], b: &[f32], stride: usize, out: &mut [f32]) {
    let rows = a.chunks_exact(c.max(1)).zip(b.chunks_exact(c.max(1)));
    for ((a, b), out) in rows.zip(out.iter_mut().step_by(stride)) {
        *out = product::<FMA>(a, b);
    }
}

/// Products of one vector with rows of the same length.
#[inline(always)]
fn vector_products<const FMA: bool>(vector: &[f32], rows: &[f32], out: &mut [f32]) {
    for (row, out) in rows.chunks_exact(vector.len().max(1)).zip(out) {
        *out = product::<FMA>(vector, row);
    }
}

/// `out += Σ weights[i] · rows[i]`.
#[inline(always)]
fn add_weighted<const FMA: bool>(weights: &[f32], rows: &[f32], out: &mut [f32]) {
    for (row, &weight) in rows.chunks_exact(out.len().max(1)).zip(weights) {
        if weight == 0.0 {
            continue;
        }
        for (out, &value) in out.iter_mut().zip(row) {
            *out = math::multiply_add::<FMA>(weight, value, *out);
        }
    }
}

multiversion!(fn sums_at(c: usize, rows: &[f32], out: &mut [f32]) = sums);
multiversion!(fn pair_products_at(c: usize, a: &[f32], b: &[f32], stride: usize, out: &mut [f32]) = pair_products);
multiversion!(fn vector_products_at(vector: &[f32], rows: &[f32], out: &mut [f32]) = vector_products);
multiversion!(fn add_weighted_at(weights: &[f32], rows: &[f32], out: &mut [f32]) = add_weighted);
