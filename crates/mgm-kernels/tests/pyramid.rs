//! Questions about cells against the cells themselves.

use mgm_kernels::level::available;
use mgm_kernels::pyramid::{Axis, Pyramid, Region, Stage};

fn values(count: usize, seed: u64) -> Vec<f32> {
    let mut state = seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1;
    (0..count)
        .map(|_| {
            state = state
                .wrapping_mul(6_364_136_223_846_793_005)
                .wrapping_add(1_442_695_040_888_963_407);
            // Off zero, so that mean and mean square differ.
            (state >> 40) as f32 / (1u64 << 23) as f32 - 0.7
        })
        .collect()
}

/// For each position, the positions and weights that it is a sum of.
type Sources = Vec<Vec<(usize, f32)>>;

/// Bilinear taps from `source` to `target` positions, averaged over `pool` of them.
fn sources(source: usize, target: usize, pool: usize) -> Sources {
    let share = 1.0 / pool as f32;
    let tap = |position: usize| {
        let at = ((position as f32 + 0.5) * source as f32 / target as f32 - 0.5).max(0.0);
        let first = at as usize;
        let second = (first + 1).min(source - 1);
        let weight = at - first as f32;
        [(first, share * (1.0 - weight)), (second, share * weight)]
    };
    let pooled = |position: usize| {
        (position * pool..(position + 1) * pool)
            .flat_map(tap)
            .collect()
    };
    (0..target / pool).map(pooled).collect()
}

struct Case {
    maps: Vec<(usize, usize, Vec<f32>)>,
    sources: Vec<(Sources, Sources)>,
    axes: Vec<(Axis, Axis)>,
}

const HEIGHT: usize = 24;
const WIDTH: usize = 16;

/// Stages at full, half, a quarter and an eighth of the resolution.
fn case(pool: usize) -> Case {
    let mut case = Case {
        maps: Vec::new(),
        sources: Vec::new(),
        axes: Vec::new(),
    };
    for (stage, channels) in [5usize, 17, 33, 70].into_iter().enumerate() {
        let (height, width) = (HEIGHT >> stage, WIDTH >> stage);
        case.maps.push((
            height,
            channels,
            values(height * width * channels, stage as u64),
        ));
        let rows = sources(height, HEIGHT, pool);
        let columns = sources(width, WIDTH, pool);
        case.axes.push((Axis::new(&rows), Axis::new(&columns)));
        case.sources.push((rows, columns));
    }
    case
}

impl Case {
    fn stages(&self) -> Vec<Stage<'_>> {
        let stages = self.maps.iter().zip(&self.axes);
        stages
            .map(|((height, channels, map), (rows, columns))| Stage {
                map,
                height: *height,
                width: map.len() / height / channels,
                channels: *channels,
                rows,
                columns,
            })
            .collect()
    }

    /// The cell as it is written down: all stages resized, one after another.
    fn cell(&self, y: usize, x: usize) -> Vec<f64> {
        let mut cell = Vec::new();
        for ((height, channels, map), (rows, columns)) in self.maps.iter().zip(&self.sources) {
            let width = map.len() / height / channels;
            let mut part = vec![0.0; *channels];
            for (row, wy) in &rows[y] {
                for (column, wx) in &columns[x] {
                    let source = &map[(row * width + column) * channels..][..*channels];
                    for (value, source) in part.iter_mut().zip(source) {
                        *value += f64::from(wy * wx) * f64::from(*source);
                    }
                }
            }
            cell.extend(part);
        }
        cell
    }
}

fn close(what: &str, found: f32, expected: f64, size: f64) {
    let error = (f64::from(found) - expected).abs();
    assert!(error <= 2e-6 * size, "{what}: {found}, expected {expected}");
}

#[test]
fn cells_need_not_be_made() {
    for pool in [1, 2, 3] {
        let case = case(pool);
        let (rows, columns) = (HEIGHT / pool, WIDTH / pool);
        // The whole, and a part that begins and ends inside.
        let windows = [(0..rows, 0..columns), (2..rows - 1, 1..columns - 2)];
        for (window_rows, window_columns) in windows {
            let window = Region {
                rows: window_rows.clone(),
                columns: window_columns.clone(),
            };
            let region = Region {
                rows: window_rows.start + 1..window_rows.end - 1,
                columns: window_columns.start..window_columns.end - 1,
            };
            let positions: Vec<(usize, usize)> = region
                .rows
                .clone()
                .flat_map(|y| region.columns.clone().map(move |x| (y, x)))
                .collect();
            let cells: Vec<Vec<f64>> = positions.iter().map(|(y, x)| case.cell(*y, *x)).collect();
            let count = cells.len();
            for level in available() {
                let pyramid = Pyramid::new_at(level, &case.stages(), window.clone());
                let c = pyramid.channels();
                assert_eq!(c, 125);

                let (mut means, mut variances) = (vec![f32::NAN; count], vec![f32::NAN; count]);
                pyramid.moments(&region, &mut means, &mut variances);
                let vector = values(c, 77);
                let mut products = vec![f32::NAN; count];
                pyramid.products(&region, &vector, &mut products);
                for (index, cell) in cells.iter().enumerate() {
                    let mean = cell.iter().sum::<f64>() / c as f64;
                    let square = cell.iter().map(|v| v * v).sum::<f64>() / c as f64;
                    close("mean", means[index], mean, 1.0);
                    close("variance", variances[index], square - mean * mean, square);
                    let product = cell.iter().zip(&vector).map(|(a, b)| a * f64::from(*b));
                    close("product", products[index], product.sum(), c as f64);
                }

                let weights = values(count, 78);
                let mut sum = vec![f32::NAN; c];
                pyramid.weighted_sum(&region, &weights, &mut sum);
                for (channel, found) in sum.iter().enumerate() {
                    let parts = cells.iter().zip(&weights);
                    let expected: f64 = parts.map(|(cell, w)| f64::from(*w) * cell[channel]).sum();
                    close("weighted sum", *found, expected, count as f64);
                }
            }
        }
    }
}

#[test]
#[should_panic(expected = "is not within")]
fn regions_outside_are_refused() {
    let case = case(1);
    let window = Region {
        rows: 0..4,
        columns: 0..4,
    };
    let pyramid = Pyramid::new(&case.stages(), window);
    let outside = Region {
        rows: 3..5,
        columns: 0..1,
    };
    pyramid.products(&outside, &values(125, 1), &mut [0.0; 2]);
}

#[test]
#[should_panic(expected = "reach outside a map")]
fn axes_of_another_map_are_refused() {
    let axis = Axis::new(&sources(8, 8, 1));
    let map = values(7 * 8 * 3, 1);
    let stage = Stage {
        map: &map,
        height: 7,
        width: 8,
        channels: 3,
        rows: &axis,
        columns: &axis,
    };
    let cells = Region {
        rows: 0..8,
        columns: 0..8,
    };
    Pyramid::new(&[stage], cells);
}
