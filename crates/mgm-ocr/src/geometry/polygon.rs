//! Averages over the inside of a polygon (OpenCV's `fillPoly` as a mask for `mean`).

use super::Quad;

/// Fractional bits of the scan conversion.
const SHIFT: u32 = 16;

/// Mean of `map` (`[height, width]`) over the pixels of a quadrilateral, its outline included. Corners lose their fraction, relative to
/// the upper left of the pixels they span, as PP-OCR's fast score does it. Zero where no pixel of the map is covered.
///
/// # Panics
/// If `map` does not hold `width * height` values, or there are none.
pub(crate) fn mean_inside(map: &[f32], width: usize, height: usize, quad: &Quad) -> f64 {
    assert_eq!(map.len(), width * height, "a map of {width}x{height}");
    let span = |values: [f64; 4], length: usize| {
        let low = values.iter().copied().fold(f64::INFINITY, f64::min);
        let high = values.iter().copied().fold(f64::NEG_INFINITY, f64::max);
        let clip = |value: f64| value.clamp(0.0, (length - 1) as f64) as i64;
        (clip(low.floor()), clip(high.ceil()))
    };
    let (left, right) = span(quad.map(|corner| corner.x), width);
    let (top, bottom) = span(quad.map(|corner| corner.y), height);
    let corners = quad.map(|corner| {
        (
            (corner.x - left as f64) as i64,
            (corner.y - top as f64) as i64,
        )
    });
    let (columns, rows) = ((right - left + 1) as usize, (bottom - top + 1) as usize);
    let mask = fill(&corners, columns, rows);
    let (mut sum, mut count) = (0f64, 0u64);
    for (y, line) in mask.chunks_exact(columns).enumerate() {
        let values = &map[(top as usize + y) * width + left as usize..][..columns];
        for (value, inside) in values.iter().zip(line) {
            if *inside {
                sum += f64::from(*value);
                count += 1;
            }
        }
    }
    if count == 0 { 0.0 } else { sum / count as f64 }
}

/// The pixels of a convex polygon with whole corners: what lies between its edges in each row, and its outline.
pub(crate) fn fill(corners: &[(i64, i64)], columns: usize, rows: usize) -> Vec<bool> {
    let mut mask = vec![false; columns * rows];
    let mut spans: Vec<Option<(i64, i64)>> = vec![None; rows];
    for (index, from) in corners.iter().enumerate() {
        let to = corners[(index + 1) % corners.len()];
        outline(&mut mask, columns, rows, *from, to);
        let (upper, lower) = if from.1 <= to.1 {
            (*from, to)
        } else {
            (to, *from)
        };
        if upper.1 == lower.1 {
            continue;
        }
        let slope = ((lower.0 - upper.0) << SHIFT) / (lower.1 - upper.1);
        for y in upper.1.max(0)..lower.1.min(rows as i64) {
            let x = (upper.0 << SHIFT) + slope * (y - upper.1);
            let span = spans[y as usize].get_or_insert((x, x));
            *span = (span.0.min(x), span.1.max(x));
        }
    }
    for (line, span) in mask.chunks_exact_mut(columns).zip(&spans) {
        if let Some((low, high)) = span {
            let low = ((low + (1 << SHIFT) - 1) >> SHIFT).clamp(0, columns as i64);
            let high = (high >> SHIFT).clamp(-1, columns as i64 - 1);
            if low <= high {
                line[low as usize..=high as usize].fill(true);
            }
        }
    }
    mask
}

/// A line of pixels, each connected to the next by a side or a corner (Bresenham), from left to right as OpenCV draws it.
fn outline(mask: &mut [bool], columns: usize, rows: usize, from: (i64, i64), to: (i64, i64)) {
    let (from, to) = if from.0 <= to.0 {
        (from, to)
    } else {
        (to, from)
    };
    let (dx, dy) = (to.0 - from.0, (to.1 - from.1).abs());
    let down = if to.1 >= from.1 { 1 } else { -1 };
    let steep = dy > dx;
    let (long, short) = if steep { (dy, dx) } else { (dx, dy) };
    let mut error = long - 2 * short;
    let (mut x, mut y) = from;
    for _ in 0..=long {
        if (0..columns as i64).contains(&x) && (0..rows as i64).contains(&y) {
            mask[y as usize * columns + x as usize] = true;
        }
        let aside = error < 0;
        error += if aside {
            2 * long - 2 * short
        } else {
            -2 * short
        };
        if steep {
            y += down;
            x += i64::from(aside);
        } else {
            x += 1;
            y += if aside { down } else { 0 };
        }
    }
}

#[cfg(test)]
mod tests {
    use super::super::Point;
    use super::*;

    #[test]
    fn the_outline_counts_and_the_outside_does_not() {
        let mut map = vec![0f32; 8 * 6];
        for y in 1..=4 {
            map[y * 8 + 2..=y * 8 + 5].fill(1.0);
        }
        let quad = |l, t, r, b| [(l, t), (r, t), (r, b), (l, b)].map(|(x, y)| Point::new(x, y));
        assert_eq!(mean_inside(&map, 8, 6, &quad(2.0, 1.0, 5.0, 4.0)), 1.0);
        assert!((mean_inside(&map, 8, 6, &quad(1.0, 1.0, 5.0, 4.0)) - 0.8).abs() < 1e-9);
        // Beyond the map: nothing to average but what is on it.
        assert!(mean_inside(&map, 8, 6, &quad(-9.0, -9.0, 30.0, 30.0)) < 0.5);
        assert_eq!(mean_inside(&map, 8, 6, &quad(40.0, 40.0, 50.0, 50.0)), 0.0);
    }
}
