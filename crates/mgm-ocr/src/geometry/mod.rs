//! The plane geometry of text regions: borders of a mask, the smallest rectangle around points, growing a rectangle, averaging
//! over one.
//!
//! OpenCV and Clipper are what PP-OCR's own pipeline calls for these; the functions here compute the same things and are tested against
//! those two libraries.

mod borders;
mod offset;
mod polygon;
mod rectangle;

pub(crate) use borders::borders;
pub(crate) use offset::grow;
#[cfg(test)]
pub(crate) use polygon::fill;
pub(crate) use polygon::mean_inside;
pub(crate) use rectangle::smallest_rectangle;

/// A point or a vector; `x` to the right, `y` downwards, in pixels.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub(crate) struct Point {
    pub(crate) x: f64,
    pub(crate) y: f64,
}

impl Point {
    pub(crate) fn new(x: f64, y: f64) -> Self {
        Self { x, y }
    }

    pub(crate) fn distance(self, other: Self) -> f64 {
        (self.x - other.x).hypot(self.y - other.y)
    }
}

/// Four corners, clockwise.
pub(crate) type Quad = [Point; 4];

/// The corners as upper left, upper right, lower right, lower left: the two leftmost and the two rightmost points, each pair from
/// top to bottom. Equal coordinates keep their order.
pub(crate) fn in_reading_order(mut corners: Quad) -> Quad {
    corners.sort_by(|a, b| a.x.total_cmp(&b.x));
    let [a, b, c, d] = corners;
    let (upper_left, lower_left) = if b.y < a.y { (b, a) } else { (a, b) };
    let (upper_right, lower_right) = if d.y < c.y { (d, c) } else { (c, d) };
    [upper_left, upper_right, lower_right, lower_left]
}
