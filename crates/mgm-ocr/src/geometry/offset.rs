//! Growing a convex polygon by a distance, with rounded corners (Clipper's offset with `jtRound`).

use super::{Point, Quad};

/// Largest distance of a corner's chords from their arc, in pixels: Clipper's default.
const ARC_TOLERANCE: f64 = 0.25;

/// The outline of `quad` moved outwards by `distance` pixels. Corners become arcs of short chords; the outline's points lie on whole
/// pixels, and so do the corners it starts from (Clipper computes with integers and cuts fractions off).
///
/// A convex polygon that grows cannot cross itself, so Clipper's final union has nothing to do and is left out. Empty when the
/// corners enclose nothing.
pub(crate) fn grow(quad: &Quad, distance: f64) -> Vec<(i32, i32)> {
    let mut corners: Vec<Point> = quad
        .iter()
        .map(|corner| Point::new(corner.x.trunc(), corner.y.trunc()))
        .collect();
    corners.dedup();
    while corners.len() > 1 && corners.first() == corners.last() {
        corners.pop();
    }
    let twice_area: f64 = edges(&corners)
        .map(|(from, to)| from.x * to.y - to.x * from.y)
        .sum();
    if corners.len() < 3 || twice_area == 0.0 {
        return Vec::new();
    }
    if twice_area < 0.0 {
        corners.reverse();
    }
    let normals: Vec<Point> = edges(&corners)
        .map(|(from, to)| {
            let length = from.distance(to);
            Point::new((to.y - from.y) / length, (from.x - to.x) / length)
        })
        .collect();

    let tolerance = ARC_TOLERANCE.min(0.25 * distance);
    let turn = std::f64::consts::TAU;
    let steps_per_turn =
        (0.5 * turn / (1.0 - tolerance / distance).acos()).min(0.5 * turn * distance);
    let (sine, cosine) = (turn / steps_per_turn).sin_cos();

    let mut outline = Vec::new();
    let mut push = |corner: Point, normal: Point| {
        let round = |value: f64| (value + 0.5f64.copysign(value)) as i32;
        outline.push((
            round(corner.x + normal.x * distance),
            round(corner.y + normal.y * distance),
        ));
    };
    for (index, corner) in corners.iter().enumerate() {
        let before = normals[(index + normals.len() - 1) % normals.len()];
        let after = normals[index];
        let cross = before.x * after.y - after.x * before.y;
        let dot = before.x * after.x + before.y * after.y;
        if (cross * distance).abs() < 1.0 && dot > 0.0 {
            push(*corner, before);
            continue;
        }
        let angle = cross.clamp(-1.0, 1.0).atan2(dot);
        let steps = ((steps_per_turn / turn * angle.abs()).round() as usize).max(1);
        let mut normal = before;
        for _ in 0..steps {
            push(*corner, normal);
            normal = Point::new(
                normal.x * cosine - sine * normal.y,
                normal.x * sine + normal.y * cosine,
            );
        }
        push(*corner, after);
    }
    outline
}

fn edges(corners: &[Point]) -> impl Iterator<Item = (Point, Point)> + '_ {
    corners
        .iter()
        .zip(corners.iter().cycle().skip(1))
        .map(|(from, to)| (*from, *to))
}
