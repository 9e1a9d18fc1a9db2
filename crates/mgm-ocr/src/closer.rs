//! Small print: when the first look shows it, the picture is looked at again, larger, in tiles.

use crate::detect::Region;
use crate::geometry::{Point, Quad};
use crate::view::strides;

/// Text that the network sees lower than this many pixels is small: lines run together or are missed.
const SMALL: f64 = 15.0;
/// The height that small text gets in the closer look.
const WANTED: f64 = 26.0;
/// The picture is enlarged by at most this much: more shows nothing more.
const MOST_ENLARGED: f64 = 3.0;
/// A closer look has at most this many pixels.
const MOST_PIXELS: f64 = 24_000_000.0;
/// A closer look that is not closer by this much is not worth its time.
const WORTHWHILE: f64 = 1.25;

/// The size at which a `width`×`height` picture should be looked at again, after it was looked at `scale` times its own size.
pub(crate) fn closer_size(
    found: &[Region],
    width: u32,
    height: u32,
    scale: f64,
) -> Option<(u32, u32)> {
    let mut heights: Vec<f64> = found.iter().map(|region| region.seen_height).collect();
    heights.sort_by(f64::total_cmp);
    // A speck here and there is no small print.
    let small = *heights.get(heights.len() / 4)?;
    if small >= SMALL {
        return None;
    }
    let (columns, rows) = (f64::from(width), f64::from(height));
    let closer = (scale * WANTED / small)
        .min(MOST_ENLARGED)
        .min((MOST_PIXELS / (columns * rows)).sqrt());
    (closer >= WORTHWHILE * scale).then(|| (strides(columns * closer), strides(rows * closer)))
}

/// The regions of both looks: of the first those that were large enough, unless the second tells several lines apart in them; of the second
/// the rest. All in pixels of the same picture.
pub(crate) fn merge(first: &[Region], second: &[Region]) -> Vec<Region> {
    let centres: Vec<Point> = second
        .iter()
        .map(|region| centre(&region.corners))
        .collect();
    let within = |region: &Region| {
        let inside = |point: &&Point| contains(&region.corners, **point);
        centres.iter().filter(inside).count()
    };
    let mut merged: Vec<Region> = first
        .iter()
        .filter(|region| region.seen_height >= SMALL && within(region) <= 1)
        .copied()
        .collect();
    let kept = merged.len();
    for (region, centre) in second.iter().zip(&centres) {
        let known = merged[..kept]
            .iter()
            .any(|known| contains(&known.corners, *centre));
        if !known {
            merged.push(*region);
        }
    }
    merged
}

fn centre(corners: &Quad) -> Point {
    let mean = |axis: fn(&Point) -> f64| corners.iter().map(axis).sum::<f64>() / 4.0;
    Point::new(mean(|corner| corner.x), mean(|corner| corner.y))
}

/// Whether a point lies in a convex quadrilateral.
fn contains(quad: &Quad, point: Point) -> bool {
    let sides = (0..4).map(|index| {
        let (from, to) = (quad[index], quad[(index + 1) % 4]);
        (to.x - from.x) * (point.y - from.y) - (to.y - from.y) * (point.x - from.x)
    });
    let (mut left, mut right) = (false, false);
    for side in sides {
        left |= side < 0.0;
        right |= side > 0.0;
    }
    !(left && right)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn region(left: f64, top: f64, right: f64, bottom: f64, seen_height: f64) -> Region {
        Region {
            corners: [(left, top), (right, top), (right, bottom), (left, bottom)]
                .map(|(x, y)| Point::new(x, y)),
            score: 0.9,
            seen_height,
        }
    }

    #[test]
    fn small_print_asks_for_a_closer_look() {
        let small = [region(0.0, 0.0, 90.0, 10.0, 13.0); 8];
        assert_eq!(closer_size(&small, 1000, 800, 1.0), Some((1984, 1600)));
        assert_eq!(closer_size(&[], 1000, 800, 1.0), None);
        let usual = [region(0.0, 0.0, 90.0, 24.0, 24.0); 8];
        assert_eq!(closer_size(&usual, 1000, 800, 1.0), None);
        // Enlarged as much as is of use already, or too large.
        assert_eq!(closer_size(&small, 200, 160, 3.0), None);
        assert_eq!(closer_size(&small, 12_000, 8000, 0.5), None);
        let mut mixed = usual;
        mixed[0] = small[0];
        assert_eq!(closer_size(&mixed, 1000, 800, 1.0), None);
    }

    #[test]
    fn lines_that_ran_together_are_replaced() {
        let headline = region(0.0, 0.0, 400.0, 60.0, 60.0);
        let blob = region(0.0, 100.0, 200.0, 130.0, 30.0);
        let lines = [
            region(0.0, 100.0, 200.0, 114.0, 26.0),
            region(0.0, 116.0, 200.0, 130.0, 26.0),
        ];
        let again = region(2.0, 3.0, 398.0, 58.0, 130.0);
        let missed = region(0.0, 200.0, 90.0, 212.0, 22.0);
        let merged = merge(&[headline, blob], &[lines[0], lines[1], again, missed]);
        assert_eq!(merged, [headline, lines[0], lines[1], missed]);
    }
}
