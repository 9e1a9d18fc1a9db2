//! Finding text: a network that gives every pixel a probability, and regions made of the likely ones ("Differentiable Binarization",
//! Liao et al. 2020), with the settings of PP-OCR.

use std::sync::atomic::{AtomicBool, Ordering};

use mgm_image::RgbImage;

use crate::error::{OcrError, Result};
use crate::geometry::{
    Point, Quad, borders, grow, in_reading_order, mean_inside, smallest_rectangle,
};
use crate::network::{Batch, Network};
use crate::resize::resize;

/// Pixels above this probability make regions.
const PIXEL_THRESHOLD: f32 = 0.3;
/// Regions with a mean probability below this are dropped.
const REGION_THRESHOLD: f64 = 0.5;
/// The network marks the core of a line; its rectangle grows by this share of its area over its circumference.
const GROWTH: f64 = 1.6;
/// Cores with a shorter side than this, in pixels of the map, are dropped; grown ones need two more.
const SHORTEST_SIDE: f64 = 3.0;
/// Regions with a side of at most this many pixels of the picture are dropped.
const SMALLEST_REGION: f64 = 3.0;
/// At most this many regions are kept, the likeliest.
const MOST_REGIONS: usize = 1000;
/// The network halves its input five times.
pub(crate) const STRIDE: u32 = 32;
/// Pictures of more pixels are looked at in tiles.
const TILE_PIXELS: u64 = 5_000_000;
/// Side of a tile.
const TILE: u32 = 1536;
/// What a tile sees beyond its own part on each side.
const TILE_MARGIN: u32 = 128;

/// How likely each pixel belongs to text.
#[derive(Debug)]
pub(crate) struct ProbabilityMap {
    /// Columns.
    pub(crate) width: usize,
    /// Rows.
    pub(crate) height: usize,
    /// `[height, width]`, 0 to 1.
    pub(crate) values: Vec<f32>,
}

/// A place that holds text.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(crate) struct Region {
    /// In pixels of the picture: upper left, upper right, lower right, lower left.
    pub(crate) corners: Quad,
    /// Mean probability of its core.
    pub(crate) score: f64,
    /// Its shorter side in pixels of the map: how large the network saw the text.
    pub(crate) seen_height: f64,
}

/// The detection network.
pub(crate) struct Detector {
    network: Network,
}

impl Detector {
    pub(crate) fn new(network: Network) -> Self {
        Self { network }
    }

    /// Looks at `image` resized to `width`×`height`, which must be multiples of [`STRIDE`].
    pub(crate) fn look(
        &self,
        image: &RgbImage,
        width: u32,
        height: u32,
        stop: &AtomicBool,
    ) -> Result<ProbabilityMap> {
        let image = resize(image, width, height);
        if u64::from(width) * u64::from(height) <= TILE_PIXELS {
            return self.look_once(image, stop);
        }
        // Every tile's margin is thrown away, so that what is kept was seen with its surroundings.
        let mut map = ProbabilityMap {
            width: width as usize,
            height: height as usize,
            values: vec![0.0; width as usize * height as usize],
        };
        for (top, own_top, own_bottom, tile_height) in tiles(height) {
            for (left, own_left, own_right, tile_width) in tiles(width) {
                let tile = part(&image, left, top, tile_width, tile_height);
                let seen = self.look_once(tile, stop)?;
                let columns = (own_right - own_left) as usize;
                for y in own_top..own_bottom {
                    let from = (y - top) as usize * seen.width + (own_left - left) as usize;
                    let to = y as usize * map.width + own_left as usize;
                    map.values[to..to + columns]
                        .copy_from_slice(&seen.values[from..from + columns]);
                }
            }
        }
        Ok(map)
    }

    fn look_once(&self, image: RgbImage, stop: &AtomicBool) -> Result<ProbabilityMap> {
        if stop.load(Ordering::Relaxed) {
            return Err(OcrError::Interrupted);
        }
        let (width, height) = (image.width as usize, image.height as usize);
        let output = self.network.run(Batch::of(&[image], width))?;
        if output.shape != [1, 1, height, width] {
            return Err(self
                .network
                .wrong_shape(&format!("[1, 1, {height}, {width}]"), &output));
        }
        Ok(ProbabilityMap {
            width,
            height,
            values: output.values,
        })
    }
}

/// Tiles along one axis: where each begins, the part it answers for, and its length.
fn tiles(length: u32) -> Vec<(u32, u32, u32, u32)> {
    if length <= TILE {
        return vec![(0, 0, length, length)];
    }
    let step = TILE - 2 * TILE_MARGIN;
    let count = (length - 2 * TILE_MARGIN).div_ceil(step);
    (0..count)
        .map(|index| {
            let own = |index: u32| match index {
                0 => 0,
                index if index == count => length,
                index => TILE_MARGIN + index * step,
            };
            // The last one is moved back to end with the picture.
            let start = (index * step).min(length - TILE);
            (start, own(index), own(index + 1), TILE)
        })
        .collect()
}

fn part(image: &RgbImage, left: u32, top: u32, width: u32, height: u32) -> RgbImage {
    let mut part = RgbImage::filled(width, height, [0; 3]);
    let row_bytes = 3 * width as usize;
    for (y, line) in part.data.chunks_exact_mut(row_bytes).enumerate() {
        line.copy_from_slice(&image.row(top + y as u32)[3 * left as usize..][..row_bytes]);
    }
    part
}

/// The regions of text that `map` shows, in pixels of the `width`×`height` picture that it was made from.
pub(crate) fn regions(map: &ProbabilityMap, width: u32, height: u32) -> Vec<Region> {
    let mask = thick_mask(map);
    let mut regions: Vec<Region> = borders(&mask, map.width, map.height)
        .iter()
        .filter_map(|border| region(map, border, width, height))
        .collect();
    if regions.len() > MOST_REGIONS {
        regions.sort_by(|a, b| b.score.total_cmp(&a.score));
        regions.truncate(MOST_REGIONS);
    }
    regions
}

/// The likely pixels, each with its right, lower and lower right neighbour.
pub(crate) fn thick_mask(map: &ProbabilityMap) -> Vec<u8> {
    let likely = |x: usize, y: usize| map.values[y * map.width + x] > PIXEL_THRESHOLD;
    let mut mask = vec![0u8; map.values.len()];
    for y in 0..map.height {
        for x in 0..map.width {
            let up = y.saturating_sub(1);
            let left = x.saturating_sub(1);
            let any = likely(x, y) || likely(left, y) || likely(x, up) || likely(left, up);
            mask[y * map.width + x] = u8::from(any);
        }
    }
    mask
}

fn region(map: &ProbabilityMap, border: &[(i32, i32)], width: u32, height: u32) -> Option<Region> {
    let core = smallest_rectangle(border);
    if core.short_side < SHORTEST_SIDE {
        return None;
    }
    let core_corners = in_reading_order(core.corners);
    let score = mean_inside(&map.values, map.width, map.height, &core_corners);
    if score < REGION_THRESHOLD {
        return None;
    }
    let grown = smallest_rectangle(&grow(&core_corners, growth(&core_corners)));
    if grown.short_side < SHORTEST_SIDE + 2.0 {
        return None;
    }
    let onto_picture = |value: f64, seen: usize, length: u32| {
        let position = (value / seen as f64 * f64::from(length)).round_ties_even();
        position.clamp(0.0, f64::from(length) - 1.0)
    };
    let corners = in_reading_order(in_reading_order(grown.corners).map(|corner| {
        Point::new(
            onto_picture(corner.x, map.width, width),
            onto_picture(corner.y, map.height, height),
        )
    }));
    let [upper_left, upper_right, _, lower_left] = corners;
    let side = |other: Point| upper_left.distance(other).trunc();
    (side(upper_right) > SMALLEST_REGION && side(lower_left) > SMALLEST_REGION).then_some(Region {
        corners,
        score,
        seen_height: grown.short_side,
    })
}

/// How far the core of a line lies within the line.
fn growth(core: &Quad) -> f64 {
    let edges = (0..4).map(|index| (core[index], core[(index + 1) % 4]));
    let twice_area: f64 = edges.clone().map(|(a, b)| a.x * b.y - b.x * a.y).sum();
    let circumference: f64 = edges.map(|(a, b)| a.distance(b)).sum();
    0.5 * twice_area.abs() * GROWTH / circumference
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(200))]

        /// Whatever a network says, also that it has no idea (NaN): regions lie in the picture and are not tiny.
        #[test]
        fn regions_lie_in_the_picture(
            (width, height) in (1usize..40, 1usize..40),
            seeds in prop::collection::vec(any::<u32>(), 1..64),
            (picture_width, picture_height) in (1u32..3000, 1u32..3000),
        ) {
            let value = |index: usize| {
                let mixed = seeds[(index / 7) % seeds.len()].rotate_left(index as u32 % 5);
                match mixed % 9 {
                    0 => f32::NAN,
                    rest => rest as f32 / 8.0,
                }
            };
            let map = ProbabilityMap {
                width,
                height,
                values: (0..width * height).map(value).collect(),
            };
            for region in regions(&map, picture_width, picture_height) {
                for corner in region.corners {
                    prop_assert!((0.0..f64::from(picture_width)).contains(&corner.x));
                    prop_assert!((0.0..f64::from(picture_height)).contains(&corner.y));
                }
                prop_assert!(region.seen_height >= SHORTEST_SIDE);
            }
        }
    }

    #[test]
    fn tiles_cover_every_pixel_once_with_their_margins() {
        for length in [32, TILE, TILE + 32, 2048, 3000, 2 * TILE, 8000, 36_000] {
            let tiles = tiles(length);
            let mut covered = 0;
            for (start, own_start, own_end, size) in tiles {
                assert_eq!(own_start, covered);
                assert!(start + size <= length && own_end <= start + size);
                assert!(start == 0 || own_start >= start + TILE_MARGIN);
                assert!(start + size == length || own_end + TILE_MARGIN <= start + size);
                covered = own_end;
            }
            assert_eq!(covered, length);
        }
    }
}
