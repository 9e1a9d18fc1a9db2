//! The 8-bit RGB picture and its geometric operations.

use crate::ImageError;
use crate::resize::{Axis, Filter, resample};

/// An 8-bit RGB picture.
#[derive(Clone, PartialEq, Eq)]
pub struct RgbImage {
    /// Columns.
    pub width: u32,
    /// Rows.
    pub height: u32,
    /// `[height, width, 3]`, row-major: `3 * width * height` bytes.
    pub data: Vec<u8>,
}

impl std::fmt::Debug for RgbImage {
    fn fmt(&self, formatter: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(formatter, "RgbImage({}x{})", self.width, self.height)
    }
}

impl RgbImage {
    /// A picture from its pixels, `[height, width, 3]`.
    ///
    /// # Errors
    /// [`ImageError::NoPixels`] or [`ImageError::PixelCount`] when size and buffer disagree.
    pub fn new(width: u32, height: u32, data: Vec<u8>) -> Result<Self, ImageError> {
        let image = Self {
            width,
            height,
            data,
        };
        image.validate()?;
        Ok(image)
    }

    /// A picture of one colour.
    pub fn filled(width: u32, height: u32, colour: [u8; 3]) -> Self {
        let pixels = width as usize * height as usize;
        Self {
            width,
            height,
            data: colour.repeat(pixels),
        }
    }

    /// Checks that there are pixels and that the buffer has `3 * width * height` bytes.
    ///
    /// # Errors
    /// [`ImageError::NoPixels`] or [`ImageError::PixelCount`].
    pub fn validate(&self) -> Result<(), ImageError> {
        let (width, height) = (self.width, self.height);
        if width == 0 || height == 0 {
            return Err(ImageError::NoPixels { width, height });
        }
        let expected = u64::from(width) * u64::from(height) * 3;
        let found = self.data.len() as u64;
        if expected != found {
            return Err(ImageError::PixelCount {
                width,
                height,
                expected,
                found,
            });
        }
        Ok(())
    }

    /// Row `y` as `[width, 3]`.
    ///
    /// # Panics
    /// If `y` is not below `height`.
    pub fn row(&self, y: u32) -> &[u8] {
        let stride = self.width as usize * 3;
        &self.data[y as usize * stride..][..stride]
    }
}

/// Pads to a square with `colour`, the picture in the middle; an odd rest goes to the bottom or right (official code,
/// `expand2square`). The result has `max(width, height)²` pixels; [`crate::prepare`] gets by without it.
pub fn pad_to_square(image: &RgbImage, colour: [u8; 3]) -> RgbImage {
    if image.width == image.height {
        return image.clone();
    }
    let side = image.width.max(image.height);
    let left = ((side - image.width) / 2) as usize;
    let top = (side - image.height) / 2;
    let mut padded = RgbImage::filled(side, side, colour);
    let stride = side as usize * 3;
    for y in 0..image.height {
        let start = (top + y) as usize * stride + left * 3;
        padded.data[start..start + image.width as usize * 3].copy_from_slice(image.row(y));
    }
    padded
}

/// The middle `size`×`size` of a picture as `CLIPImageProcessor.center_crop` cuts it: top and left are rounded down, and
/// what lies outside a smaller picture is black.
pub fn center_crop(image: &RgbImage, size: u32) -> RgbImage {
    let mut cropped = RgbImage::filled(size, size, [0; 3]);
    let (source_x, target_x, columns) = crop_span(image.width, size);
    let (source_y, target_y, rows) = crop_span(image.height, size);
    let stride = size as usize * 3;
    for y in 0..rows {
        let row = image.row(source_y + y);
        let start = (target_y + y) as usize * stride + target_x as usize * 3;
        cropped.data[start..start + columns as usize * 3]
            .copy_from_slice(&row[source_x as usize * 3..][..columns as usize * 3]);
    }
    cropped
}

/// Start in the source, start in the crop, and length of the part that both have. A smaller picture sits at
/// `ceil((crop - length) / 2)`, as in transformers.
fn crop_span(length: u32, crop: u32) -> (u32, u32, u32) {
    if length >= crop {
        ((length - crop) / 2, 0, crop)
    } else {
        (0, (crop - length).div_ceil(2), length)
    }
}

/// Size after a shortest-edge resize: the short edge becomes `size`, the long one `int(size * long / short)`
/// (truncation, as in transformers).
pub(crate) fn shortest_edge_size(width: u32, height: u32, size: u32) -> (usize, usize) {
    let (short, long) = (width.min(height), width.max(height));
    let long = (f64::from(size) * f64::from(long) / f64::from(short)) as usize;
    if width <= height {
        (size as usize, long)
    } else {
        (long, size as usize)
    }
}

/// Bicubic resize of the shortest edge to `size` followed by [`center_crop`], without making the part that the crop
/// throws away; equal to doing both.
pub fn resize_shortest_edge(image: &RgbImage, size: u32, filter: Filter) -> RgbImage {
    let (width, height) = shortest_edge_size(image.width, image.height, size);
    let axis = |length: u32, output: usize| {
        let start = (output - size as usize) / 2;
        Axis::new(
            filter,
            length as usize,
            0,
            length as usize,
            output,
            start..start + size as usize,
        )
    };
    resample(
        image,
        &axis(image.width, width),
        &axis(image.height, height),
        [0; 3],
    )
}
