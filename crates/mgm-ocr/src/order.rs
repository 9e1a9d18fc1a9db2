//! The order in which a page's lines are read, and which way up the page is.

use crate::geometry::{Point, Quad, in_reading_order};

/// What the order depends on.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Placed {
    /// Clockwise from the beginning of the line's upper side, as it is read.
    pub(crate) corners: Quad,
    /// How sure its reading is.
    pub(crate) confidence: f32,
}

/// Lines shorter than this many times their height do not tell which way up the page is.
pub(crate) const TELLING_RATIO: f64 = 1.5;
/// A page turned by less is straight: so much comes from rounding.
const STRAIGHT_DEGREES: f64 = 0.5;
/// PP-OCR's tolerance: a line begins in the same row as the one before it when it is less than this many pixels lower.
const ROW_TOLERANCE: f64 = 10.0;

/// The direction of reading of a line in degrees, clockwise from left to right.
pub(crate) fn direction(corners: &Quad) -> f64 {
    let [a, b, c, d] = corners;
    let (x, y) = (b.x - a.x + c.x - d.x, b.y - a.y + c.y - d.y);
    y.atan2(x).to_degrees()
}

/// The direction in which most of the page is read, in degrees clockwise, above -180 and up to 180: the quarter that most of its text
/// lies in, and the middle one of the lines there. 0 when nothing tells.
pub(crate) fn page_direction(lines: &[Placed]) -> f64 {
    let mut quarters: [Vec<(f64, f64)>; 4] = Default::default();
    for line in lines {
        let [a, b, _, d] = line.corners;
        let (width, height) = (a.distance(b), a.distance(d));
        if width < TELLING_RATIO * height {
            continue;
        }
        let degrees = direction(&line.corners);
        let quarter = (degrees / 90.0).round();
        quarters[quarter.rem_euclid(4.0) as usize % 4]
            .push((degrees - 90.0 * quarter, width * f64::from(line.confidence)));
    }
    let weight = |lines: &[(f64, f64)]| lines.iter().map(|(_, weight)| weight).sum::<f64>();
    let mut best = 0;
    for quarter in 1..4 {
        if weight(&quarters[quarter]) > weight(&quarters[best]) {
            best = quarter;
        }
    }
    let chosen = &mut quarters[best];
    chosen.sort_by(|a, b| a.0.total_cmp(&b.0));
    let half = weight(chosen) / 2.0;
    let mut passed = 0.0;
    let skew = chosen
        .iter()
        .find(|(_, weight)| {
            passed += weight;
            passed >= half
        })
        .map_or(0.0, |(degrees, _)| *degrees);
    let skew = if skew.abs() < STRAIGHT_DEGREES {
        0.0
    } else {
        skew
    };
    let degrees = 90.0 * best as f64 + skew;
    if degrees > 180.0 {
        degrees - 360.0
    } else {
        degrees
    }
}

/// Positions of the lines in the order of reading, on a page that is read in direction `degrees`: rows from top to bottom, each from left
/// to right. A row goes on as long as the next line down begins less than the tolerance below.
pub(crate) fn reading_order(lines: &[Placed], degrees: f64) -> Vec<usize> {
    let (sine, cosine) = degrees.to_radians().sin_cos();
    let upright = |corner: Point| {
        Point::new(
            corner.x * cosine + corner.y * sine,
            corner.y * cosine - corner.x * sine,
        )
    };
    let begins: Vec<(Point, f64)> = lines
        .iter()
        .map(|line| {
            let [a, _, _, d] = line.corners;
            // The upper left as the page lies, whichever way the line itself runs.
            let begin = in_reading_order(line.corners.map(upright))[0];
            (begin, a.distance(d))
        })
        .collect();
    let mut order: Vec<usize> = (0..lines.len()).collect();
    order.sort_by(|a, b| begins[*a].0.y.total_cmp(&begins[*b].0.y));
    let mut rows: Vec<Vec<usize>> = Vec::new();
    for index in order {
        let (begin, height) = begins[index];
        let before = rows.last().and_then(|row| row.last());
        let same_row = before.is_some_and(|before| {
            let (above, above_height) = begins[*before];
            begin.y - above.y < tolerance(height.min(above_height))
        });
        match rows.last_mut() {
            Some(row) if same_row => row.push(index),
            _ => rows.push(vec![index]),
        }
    }
    for row in &mut rows {
        row.sort_by(|a, b| begins[*a].0.x.total_cmp(&begins[*b].0.x));
    }
    rows.concat()
}

/// PP-OCR's ten pixels suit lines of 20 to 40 pixels. Smaller lines would share a row with the next one, and larger ones of one row
/// would be torn apart.
fn tolerance(height: f64) -> f64 {
    ROW_TOLERANCE.max(height / 4.0).min(height / 2.0)
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A line of `width`×20 beginning at `(x, y)` of a page that is turned by `degrees` around the origin.
    fn line(x: f64, y: f64, width: f64, degrees: f64) -> Placed {
        let (sine, cosine) = degrees.to_radians().sin_cos();
        let turned = |x: f64, y: f64| Point::new(x * cosine - y * sine, y * cosine + x * sine);
        Placed {
            corners: [
                turned(x, y),
                turned(x + width, y),
                turned(x + width, y + 20.0),
                turned(x, y + 20.0),
            ],
            confidence: 0.9,
        }
    }

    #[test]
    fn rows_are_read_whichever_way_the_page_lies() {
        for degrees in [0.0, 7.0, -30.0, 90.0, 97.0, 180.0, -173.0, -90.0] {
            // Two columns whose rows differ by a few pixels, then one line.
            let page = [
                line(400.0, 103.0, 200.0, degrees),
                line(10.0, 205.0, 300.0, degrees),
                line(10.0, 100.0, 220.0, degrees),
                line(400.0, 198.0, 100.0, degrees),
                line(10.0, 300.0, 500.0, degrees),
            ];
            assert!(
                (page_direction(&page) - degrees).abs() < 1e-6,
                "{degrees}: {}",
                page_direction(&page)
            );
            assert_eq!(reading_order(&page, degrees), [2, 0, 1, 3, 4], "{degrees}");
        }
    }

    #[test]
    fn one_line_upside_down_does_not_turn_the_page() {
        let mut page = vec![line(0.0, 0.0, 100.0, 0.0), line(0.0, 50.0, 120.0, 0.0)];
        page.push(line(-90.0, -100.0, 80.0, 180.0));
        assert_eq!(page_direction(&page), 0.0);
        assert_eq!(page_direction(&[]), 0.0);
        // A single character tells nothing.
        assert_eq!(page_direction(&[line(0.0, 0.0, 12.0, 90.0)]), 0.0);
        assert_eq!(reading_order(&[], 0.0), [0usize; 0]);
    }

    #[test]
    fn close_lines_of_small_print_are_rows_of_their_own() {
        let small = |x: f64, y: f64| Placed {
            corners: [(x, y), (x + 60.0, y), (x + 60.0, y + 8.0), (x, y + 8.0)]
                .map(|(x, y)| Point::new(x, y)),
            confidence: 0.9,
        };
        let page = [small(0.0, 9.0), small(80.0, 1.0), small(0.0, 0.0)];
        assert_eq!(reading_order(&page, 0.0), [2, 1, 0]);
    }
}
