//! The rectangle of smallest area around points, by rotating calipers (Toussaint 1983), as OpenCV's `minAreaRect` computes it.
//!
//! It is computed in f32, operation by operation as OpenCV does: the corners go through Clipper, which cuts fractions off, so that 65.99998
//! is another pixel than 66.

use super::{Point, Quad};

/// A rectangle in any direction.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Rectangle {
    /// In turn.
    pub(crate) corners: Quad,
    /// Length of the shorter side.
    pub(crate) short_side: f64,
}

type Vector = (f32, f32);

/// The smallest rectangle around the points of a closed line. Points that enclose nothing have a short side of 0.
pub(crate) fn smallest_rectangle(points: &[(i32, i32)]) -> Rectangle {
    let hull = convex_hull(points);
    if hull.len() < 3 {
        let corner = hull.first().map_or(Point::default(), |(x, y)| {
            Point::new(f64::from(*x), f64::from(*y))
        });
        return Rectangle {
            corners: [corner; 4],
            short_side: 0.0,
        };
    }
    let Calipers {
        origin,
        width: (width_x, width_y),
        height: (height_x, height_y),
    } = rotate_calipers(&hull);

    let centre = (
        origin.0 + (width_x + height_x) * 0.5,
        origin.1 + (width_y + height_y) * 0.5,
    );
    let length = |x: f32, y: f32| f64::from(x).hypot(f64::from(y)) as f32;
    let (mut width, mut height) = (length(width_x, width_y), length(height_x, height_y));
    let mut degrees = f64::from(width_y).atan2(f64::from(width_x)).to_degrees();
    while degrees >= 0.0 {
        degrees -= 90.0;
        (width, height) = (height, width);
    }
    let (sine, cosine) = f64::from(degrees as f32).to_radians().sin_cos();
    let (a, b) = (sine as f32 * 0.5, cosine as f32 * 0.5);
    let corner = |x: f32, y: f32| Point::new(f64::from(x), f64::from(y));
    Rectangle {
        corners: [
            corner(
                centre.0 - a * height - b * width,
                centre.1 + b * height - a * width,
            ),
            corner(
                centre.0 + a * height - b * width,
                centre.1 - b * height - a * width,
            ),
            corner(
                centre.0 + a * height + b * width,
                centre.1 - b * height + a * width,
            ),
            corner(
                centre.0 - a * height + b * width,
                centre.1 + b * height + a * width,
            ),
        ],
        short_side: f64::from(width.min(height)),
    }
}

/// A rectangle as a corner and the two sides from there.
struct Calipers {
    origin: Vector,
    width: Vector,
    height: Vector,
}

/// Turns four calipers around a convex polygon of at least three corners, from edge to edge; the last of the smallest rectangles stands.
fn rotate_calipers(hull: &[(i32, i32)]) -> Calipers {
    let count = hull.len();
    let points: Vec<Vector> = hull.iter().map(|(x, y)| (*x as f32, *y as f32)).collect();
    let edges: Vec<(Vector, f32)> = (0..count)
        .map(|index| {
            let ((x, y), (next_x, next_y)) = (points[index], points[(index + 1) % count]);
            let (x, y) = (
                f64::from(next_x) - f64::from(x),
                f64::from(next_y) - f64::from(y),
            );
            ((x as f32, y as f32), (1.0 / (x * x + y * y).sqrt()) as f32)
        })
        .collect();
    let first = |better: &dyn Fn(Vector, Vector) -> bool| {
        (1..count).fold(0, |best, index| {
            if better(points[index], points[best]) {
                index
            } else {
                best
            }
        })
    };
    // The corner that each of the calipers touches: at the top, on the right, at the bottom, on the left.
    let mut touching = [
        first(&|point, best| point.1 < best.1),
        first(&|point, best| point.0 > best.0),
        first(&|point, best| point.1 > best.1),
        first(&|point, best| point.0 < best.0),
    ];
    let (mut a, mut b) = (1f32, 0f32);
    let mut smallest = f32::MAX;
    let mut best = Calipers {
        origin: points[0],
        width: (0.0, 0.0),
        height: (0.0, 0.0),
    };
    for _ in 0..count {
        // The one that has the least to turn lies along its edge next.
        let [top, right, bottom, left] = touching.map(|corner| edges[corner]);
        let cosines = [
            (a * top.0.0 + b * top.0.1) * top.1,
            (-b * right.0.0 + a * right.0.1) * right.1,
            (-a * bottom.0.0 - b * bottom.0.1) * bottom.1,
            (b * left.0.0 - a * left.0.1) * left.1,
        ];
        let turning = (1..4).fold(0, |best, index| {
            if cosines[index] > cosines[best] {
                index
            } else {
                best
            }
        });
        let ((x, y), inverse) = edges[touching[turning]];
        let (x, y) = (x * inverse, y * inverse);
        (a, b) = [(x, y), (y, -x), (-x, -y), (-y, x)][turning];
        touching[turning] = (touching[turning] + 1) % count;

        let [top, right, bottom, left] = touching.map(|corner| points[corner]);
        let width = (right.0 - left.0) * a + (right.1 - left.1) * b;
        let height = -(bottom.0 - top.0) * b + (bottom.1 - top.1) * a;
        let area = width * height;
        if area <= smallest {
            smallest = area;
            // Where the caliper through `left` and the one through `top` cross.
            let (along, across) = (a * left.0 + left.1 * b, -b * top.0 + top.1 * a);
            let scale = 1.0 / (a * a + b * b);
            best = Calipers {
                origin: (
                    (along * a - across * b) * scale,
                    (a * across + b * along) * scale,
                ),
                width: (a * width, b * width),
                height: (-b * height, a * height),
            };
        }
    }
    best
}

/// The corners of the convex hull, clockwise as seen on the screen, without points on its edges (Andrew's monotone chain). They begin as
/// OpenCV lets them: with the first that the closed line passes if it runs clockwise itself, otherwise with the last.
fn convex_hull(points: &[(i32, i32)]) -> Vec<(i32, i32)> {
    let mut sorted: Vec<((i32, i32), usize)> = points.iter().copied().zip(0..).collect();
    sorted.sort_unstable();
    sorted.dedup_by_key(|(point, _)| *point);
    if sorted.len() < 3 {
        return sorted.into_iter().map(|(point, _)| point).collect();
    }
    let turns = |o: (i32, i32), a: (i32, i32), b: (i32, i32)| {
        let difference = |p: (i32, i32)| {
            (
                i64::from(p.0) - i64::from(o.0),
                i64::from(p.1) - i64::from(o.1),
            )
        };
        let ((ax, ay), (bx, by)) = (difference(a), difference(b));
        ax * by - ay * bx > 0
    };
    let chain = |points: &mut dyn Iterator<Item = ((i32, i32), usize)>| {
        let mut chain: Vec<((i32, i32), usize)> = Vec::new();
        for point in points {
            while let [.., before, last] = chain[..]
                && !turns(before.0, last.0, point.0)
            {
                chain.pop();
            }
            chain.push(point);
        }
        chain.pop();
        chain
    };
    let mut hull = chain(&mut sorted.iter().copied());
    hull.extend(chain(&mut sorted.iter().rev().copied()));

    let rising = (0..hull.len())
        .filter(|index| hull[*index].1 < hull[(index + 1) % hull.len()].1)
        .count();
    let runs_clockwise = 2 * rising > hull.len();
    let first = (0..hull.len()).min_by_key(|index| {
        let passed = hull[*index].1;
        if runs_clockwise {
            passed
        } else {
            points.len() - passed
        }
    });
    hull.rotate_left(first.unwrap_or(0));
    hull.into_iter().map(|(point, _)| point).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn points_that_enclose_nothing() {
        assert_eq!(smallest_rectangle(&[]).short_side, 0.0);
        let dot = smallest_rectangle(&[(3, 4), (3, 4)]);
        assert_eq!(dot.corners, [Point::new(3.0, 4.0); 4]);
        let line = smallest_rectangle(&[(0, 0), (3, 4), (6, 8)]);
        assert_eq!(line.short_side, 0.0);
    }
}
