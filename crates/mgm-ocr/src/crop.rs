//! Cutting text lines out of a picture, straightened: a perspective transform with bicubic interpolation, as OpenCV's
//! `warpPerspective` does it with `INTER_CUBIC` and `BORDER_REPLICATE`.

use mgm_image::RgbImage;

use crate::geometry::{Point, Quad};

/// The cubic kernel's free parameter.
const SHARPNESS: f32 = -0.75;
/// From this ratio of height to width on a line is taken to run vertically.
const UPRIGHT_RATIO: f64 = 1.5;
/// Longest side of a straightened line; regions are never larger than their picture, so this bounds degenerate transforms only.
const LONGEST: f64 = 65_535.0;

/// A text line, straightened.
#[derive(Clone, Debug)]
pub(crate) struct LineImage {
    /// The pixels.
    pub(crate) image: RgbImage,
    /// Where their corners lie, clockwise from the upper left of the pixels.
    pub(crate) corners: Quad,
}

impl LineImage {
    /// Width over height.
    pub(crate) fn ratio(&self) -> f64 {
        f64::from(self.image.width) / f64::from(self.image.height)
    }

    /// Whether the text is likely to run along the height.
    pub(crate) fn is_upright(&self) -> bool {
        self.ratio() <= 1.0 / UPRIGHT_RATIO
    }

    /// The same line turned counter-clockwise by this many quarters.
    pub(crate) fn turned(&self, quarters: usize) -> Self {
        let image = match quarters % 4 {
            0 => self.image.clone(),
            1 => quarter_turn(&self.image),
            2 => half_turn(&self.image),
            _ => quarter_turn(&half_turn(&self.image)),
        };
        let mut corners = self.corners;
        corners.rotate_left(quarters % 4);
        Self { image, corners }
    }
}

/// Cuts the region with these corners (upper left first, clockwise) out of `image`. `None` if it is less than a pixel wide or high.
pub(crate) fn cut_line(image: &RgbImage, corners: &Quad) -> Option<LineImage> {
    let [upper_left, upper_right, lower_right, lower_left] = corners;
    let longer = |a: f64, b: f64| a.max(b).min(LONGEST) as u32;
    let width = longer(
        upper_left.distance(*upper_right),
        lower_right.distance(*lower_left),
    );
    let height = longer(
        upper_left.distance(*lower_left),
        upper_right.distance(*lower_right),
    );
    if width == 0 || height == 0 {
        return None;
    }
    let transform = Transform::onto(corners, f64::from(width), f64::from(height))?;
    Some(LineImage {
        image: warp(image, &transform, width, height),
        corners: *corners,
    })
}

/// The projective map from a `width`×`height` picture to a quadrilateral of another one.
#[derive(Debug)]
struct Transform([f64; 9]);

impl Transform {
    /// Maps (0, 0), (`width`, 0), (`width`, `height`), (0, `height`) to `corners`. `None` if three of those lie on a line.
    fn onto(corners: &Quad, width: f64, height: f64) -> Option<Self> {
        // Heckbert, "Fundamentals of texture mapping and image warping" (1989), section 2.2.3: from the unit square.
        let [a, b, c, d] = *corners;
        let (dx1, dy1) = (b.x - c.x, b.y - c.y);
        let (dx2, dy2) = (d.x - c.x, d.y - c.y);
        let (sx, sy) = (a.x - b.x + c.x - d.x, a.y - b.y + c.y - d.y);
        let determinant = dx1 * dy2 - dx2 * dy1;
        if determinant == 0.0 {
            return None;
        }
        let g = (sx * dy2 - dx2 * sy) / determinant;
        let h = (dx1 * sy - sx * dy1) / determinant;
        Some(Self([
            (b.x - a.x + g * b.x) / width,
            (d.x - a.x + h * d.x) / height,
            a.x,
            (b.y - a.y + g * b.y) / width,
            (d.y - a.y + h * d.y) / height,
            a.y,
            g / width,
            h / height,
            1.0,
        ]))
    }

    fn apply(&self, x: f64, y: f64) -> Point {
        let m = &self.0;
        let w = m[6] * x + m[7] * y + m[8];
        let scale = if w == 0.0 { 0.0 } else { 1.0 / w };
        Point::new(
            (m[0] * x + m[1] * y + m[2]) * scale,
            (m[3] * x + m[4] * y + m[5]) * scale,
        )
    }
}

fn warp(image: &RgbImage, transform: &Transform, width: u32, height: u32) -> RgbImage {
    let mut warped = RgbImage::filled(width, height, [0; 3]);
    let line_of =
        |position: f64, length: u32| position.clamp(0.0, f64::from(length) - 1.0) as usize;
    let pixels = warped.data.chunks_exact_mut(3);
    let places = (0..height).flat_map(|y| (0..width).map(move |x| (x, y)));
    for (pixel, (x, y)) in pixels.zip(places) {
        let source = transform.apply(f64::from(x), f64::from(y));
        let (left, top) = (source.x.floor(), source.y.floor());
        let horizontal = cubic((source.x - left) as f32);
        let vertical = cubic((source.y - top) as f32);
        let steps = [-1.0, 0.0, 1.0, 2.0];
        let columns = steps.map(|step| 3 * line_of(left + step, image.width));
        let mut sums = [0f32; 3];
        for (step, down) in steps.iter().zip(vertical) {
            let row = image.row(line_of(top + step, image.height) as u32);
            for (column, across) in columns.iter().zip(horizontal) {
                for (sum, value) in sums.iter_mut().zip(&row[*column..column + 3]) {
                    *sum += f32::from(*value) * across * down;
                }
            }
        }
        for (value, sum) in pixel.iter_mut().zip(sums) {
            *value = sum.round_ties_even().clamp(0.0, 255.0) as u8;
        }
    }
    warped
}

/// Weights of the pixels at -1, 0, 1 and 2 for a position between 0 and 1.
fn cubic(position: f32) -> [f32; 4] {
    let a = SHARPNESS;
    let (x, back) = (position, 1.0 - position);
    let first = ((a * (x + 1.0) - 5.0 * a) * (x + 1.0) + 8.0 * a) * (x + 1.0) - 4.0 * a;
    let near = |x: f32| ((a + 2.0) * x - (a + 3.0)) * x * x + 1.0;
    let (second, third) = (near(x), near(back));
    [first, second, third, 1.0 - first - second - third]
}

/// The picture turned a quarter counter-clockwise.
fn quarter_turn(image: &RgbImage) -> RgbImage {
    let mut turned = RgbImage::filled(image.height, image.width, [0; 3]);
    let places = (0..image.width)
        .rev()
        .flat_map(|x| (0..image.height).map(move |y| (x, y)));
    for (pixel, (x, y)) in turned.data.chunks_exact_mut(3).zip(places) {
        pixel.copy_from_slice(&image.row(y)[3 * x as usize..][..3]);
    }
    turned
}

/// The picture turned upside down.
fn half_turn(image: &RgbImage) -> RgbImage {
    let mut turned = image.clone();
    let pixels = image.data.chunks_exact(3).rev();
    for (pixel, source) in turned.data.chunks_exact_mut(3).zip(pixels) {
        pixel.copy_from_slice(source);
    }
    turned
}
