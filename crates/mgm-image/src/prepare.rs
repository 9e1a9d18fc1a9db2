//! From a picture to the inputs of the two vision towers (official code: `process_images` of `mgm/mm_utils.py` and the
//! steps after it in `mgm/serve/cli.py`).

use rayon::prelude::*;

use crate::resize::{Axis, Filter, resample};
use crate::rgb::resize_shortest_edge;
use crate::{ImageError, RgbImage, bilinear_planar};

/// Colour that pads a picture to a square: CLIP's mean, truncated to 8 bits.
pub const PAD_COLOUR: [u8; 3] = [122, 116, 104];
/// Mean of CLIP's training pixels, RGB in 0..1.
pub const CLIP_MEAN: [f32; 3] = [0.481_454_66, 0.457_827_5, 0.408_210_73];
/// Standard deviation of CLIP's training pixels, RGB in 0..1.
#[allow(clippy::excessive_precision)] // the digits of the official configuration
pub const CLIP_STD: [f32; 3] = [0.268_629_54, 0.261_302_58, 0.275_777_11];
/// The rescale factor of the official processor.
const RESCALE: f64 = 0.003_921_568_627_450_98;

/// How a picture becomes a square.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Aspect {
    /// Padded with [`PAD_COLOUR`] (stage 2 of the official training, and inference).
    Pad,
    /// Shortest edge resized, middle cut out (stage 1 of the official training).
    Square,
}

/// Sizes and cuts of the preprocessing.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PreprocessConfig {
    /// Side of one low-resolution view in pixels: `image_size_raw`, 336 in the released models.
    pub low_res_size: u32,
    /// Side of the high-resolution picture in pixels: `image_size_aux`, 768, in the HD models 1536.
    pub high_res_size: u32,
    /// Views per side: `image_grid`, 1, in the HD models 2.
    pub grid: u32,
    /// Whether the cut views are followed by one of the whole picture (`image_global`). Only with `grid` 2.
    pub global: bool,
    /// How the picture becomes a square.
    pub aspect: Aspect,
}

impl PreprocessConfig {
    /// The released base models: 336 and 768, padded.
    pub fn base() -> Self {
        Self {
            low_res_size: 336,
            high_res_size: 768,
            grid: 1,
            global: false,
            aspect: Aspect::Pad,
        }
    }

    /// The released HD models: 2×2 views of 336 and a global one, 1536, padded.
    pub fn hd() -> Self {
        Self {
            low_res_size: 336,
            high_res_size: 1536,
            grid: 2,
            global: true,
            aspect: Aspect::Pad,
        }
    }

    /// Number of low-resolution views of one picture.
    pub fn views(&self) -> usize {
        match self.grid {
            2 => 4 + usize::from(self.global),
            _ => 1,
        }
    }

    /// Checks the sizes.
    ///
    /// # Errors
    /// [`ImageError::Config`] for a size of zero or above 16384, or a grid other than 1 or 2.
    pub fn validate(&self) -> Result<(), ImageError> {
        const LARGEST: u32 = 16_384;
        for (name, size) in [
            ("low_res_size", self.low_res_size),
            ("high_res_size", self.high_res_size),
        ] {
            if size == 0 || size > LARGEST {
                return Err(ImageError::Config(format!(
                    "{name} must be 1 to {LARGEST} pixels, found {size}"
                )));
            }
        }
        if !(1..=2).contains(&self.grid) {
            return Err(ImageError::Config(format!(
                "grid must be 1 or 2, found {}",
                self.grid
            )));
        }
        Ok(())
    }
}

/// The inputs of the two towers, CLIP-normalised.
#[derive(Clone, Debug, PartialEq)]
pub struct PreparedImage {
    /// `[3, high_res_size, high_res_size]`, planar.
    pub high_res: Vec<f32>,
    /// Side in pixels.
    pub high_res_size: u32,
    /// `[views, 3, low_res_size, low_res_size]`, planar; with grid 2: top left, top right, bottom left, bottom right,
    /// and the whole picture last if asked for.
    pub low_res: Vec<f32>,
    /// Number of views.
    pub views: usize,
    /// Side of one view in pixels.
    pub low_res_size: u32,
}

/// Makes both inputs. The low-resolution one is interpolated from the normalised high-resolution one, not from the
/// picture: without antialiasing, as the official recipe has it.
///
/// # Errors
/// [`ImageError::Config`] for bad sizes, [`ImageError::NoPixels`] or [`ImageError::PixelCount`] for a bad picture.
pub fn prepare(image: &RgbImage, config: &PreprocessConfig) -> Result<PreparedImage, ImageError> {
    config.validate()?;
    image.validate()?;
    let square = match config.aspect {
        Aspect::Pad => resize_padded(image, config.high_res_size),
        Aspect::Square => resize_shortest_edge(image, config.high_res_size, Filter::Bicubic),
    };
    let high_res = normalise(&square);
    let (size, view) = (config.high_res_size as usize, config.low_res_size as usize);
    let low_res = match config.grid {
        2 => {
            let whole = bilinear_planar(&high_res, 3, size, size, view * 2, view * 2);
            let mut low_res = cut_quarters(&whole, view);
            if config.global {
                low_res.extend(bilinear_planar(&whole, 3, view * 2, view * 2, view, view));
            }
            low_res
        }
        _ => bilinear_planar(&high_res, 3, size, size, view, view),
    };
    Ok(PreparedImage {
        high_res,
        high_res_size: config.high_res_size,
        low_res,
        views: config.views(),
        low_res_size: config.low_res_size,
    })
}

/// [`crate::pad_to_square`] and [`crate::resize`] to `size` in one, without the padded picture, which for a very long
/// picture would not fit into memory.
fn resize_padded(image: &RgbImage, size: u32) -> RgbImage {
    let side = image.width.max(image.height) as usize;
    let size = size as usize;
    let axis = |length: u32| {
        let length = length as usize;
        Axis::new(
            Filter::Bicubic,
            length,
            (side - length) / 2,
            side,
            size,
            0..size,
        )
    };
    resample(image, &axis(image.width), &axis(image.height), PAD_COLOUR)
}

/// `[h, w, 3]` bytes to `[3, h, w]`: rescaled in f64, stored as f32, normalised in f32, as transformers does. 256
/// values per channel, so a table does it.
fn normalise(image: &RgbImage) -> Vec<f32> {
    let pixels = image.width as usize * image.height as usize;
    let mut output = vec![0f32; pixels * 3];
    output
        .par_chunks_exact_mut(pixels)
        .enumerate()
        .for_each(|(channel, plane)| {
            let table: [f32; 256] = std::array::from_fn(|sample| {
                let scaled = (sample as f64 * RESCALE) as f32;
                (scaled - CLIP_MEAN[channel]) / CLIP_STD[channel]
            });
            for (value, pixel) in plane.iter_mut().zip(image.data.as_chunks::<3>().0) {
                *value = table[usize::from(pixel[channel])];
            }
        });
    output
}

/// `[3, 2v, 2v]` to `[4, 3, v, v]`, row by row of the grid.
fn cut_quarters(whole: &[f32], view: usize) -> Vec<f32> {
    let mut output = Vec::with_capacity(whole.len() / 4 * 5);
    for (top, left) in [(0, 0), (0, view), (view, 0), (view, view)] {
        for plane in whole.chunks_exact(4 * view * view) {
            for y in top..top + view {
                output.extend_from_slice(&plane[y * 2 * view + left..][..view]);
            }
        }
    }
    output
}
