//! A look inside: which cells of the large picture each patch mined.

use candle_core::Tensor;
use mgm_image::{Aspect, RgbImage};

use crate::error::{Error, Result};
use crate::model::MiniGemini;
use crate::towers::Pause;

/// What every patch of a picture mined: the attention of the low-resolution queries over the high-resolution cells of their own regions.
#[derive(Clone, Debug, PartialEq)]
pub struct MiningAttention {
    /// Columns of the picture.
    pub width: u32,
    /// Rows of the picture.
    pub height: u32,
    /// One, or for high-definition models the four crops (top left, top right, bottom left, bottom right) and, where the model has it,
    /// the overview.
    pub views: Vec<MinedView>,
}

/// A view of the picture. It is a square of `patches × patches` patches, and each of these a square of `cells × cells` cells: the region
/// that this patch mined.
#[derive(Clone, Debug, PartialEq)]
pub struct MinedView {
    /// Left edge in pixels of the picture; below 0 where the model pads the picture to a square.
    pub left: f32,
    /// Top edge in pixels of the picture.
    pub top: f32,
    /// Side in pixels of the picture.
    pub side: f32,
    /// Patches a side.
    pub patches: usize,
    /// Cells a side of one patch.
    pub cells: usize,
    /// `[patches · patches, cells · cells]`, row by row on both levels; those of one patch sum to 1.
    pub weights: Vec<f32>,
}

impl MiniGemini {
    /// What every patch of `image` mined. `pause` as in [`Self::look_at`].
    ///
    /// # Errors
    /// When the model has no vision tower or no high-resolution one, the picture is empty, or `pause` says so.
    pub fn mining_attention(
        &self,
        image: &RgbImage,
        pause: &mut Pause<'_>,
    ) -> Result<MiningAttention> {
        let vision = self.require_vision()?;
        let features = vision.tower_features_with(&self.prepare(image)?, pause)?;
        let preprocess = vision.preprocess();
        let square = Square::of(image, preprocess.aspect);
        let (grid, count) = (preprocess.grid as usize, features.low_res.dim(0)?);
        let views = (0..count)
            .map(|view| {
                let weights = vision.mining_attention(&features, view)?;
                square.view(view, grid, &weights)
            })
            .collect::<Result<_>>()?;
        Ok(MiningAttention {
            width: image.width,
            height: image.height,
            views,
        })
    }
}

/// The square that the model makes of a picture, in the picture's pixels.
struct Square {
    left: f32,
    top: f32,
    side: f32,
}

impl Square {
    fn of(image: &RgbImage, aspect: Aspect) -> Self {
        let (width, height) = (image.width, image.height);
        let side = match aspect {
            Aspect::Pad => width.max(height),
            Aspect::Square => width.min(height),
        };
        // Padded to the left and top by half of what is missing, rounded down; cropped from the middle.
        let start = |length: u32| match aspect {
            Aspect::Pad => -(((side - length) / 2) as f32),
            Aspect::Square => (length - side) as f32 / 2.0,
        };
        Self {
            left: start(width),
            top: start(height),
            side: side as f32,
        }
    }

    /// View number `view` of `grid × grid` crops and an overview, with its weights `[patches, cells]`.
    fn view(&self, view: usize, grid: usize, weights: &Tensor) -> Result<MinedView> {
        let (patches, cells) = weights.dims2()?;
        let is_crop = grid > 1 && view < grid * grid;
        let side = if is_crop {
            self.side / grid as f32
        } else {
            self.side
        };
        let (row, column) = if is_crop {
            (view / grid, view % grid)
        } else {
            (0, 0)
        };
        let root = |count: usize| match count.isqrt() {
            root if root * root == count => Ok(root),
            _ => Err(Error::Input(format!(
                "mining attention of {patches} patches over {cells} cells: expected squares"
            ))),
        };
        Ok(MinedView {
            left: self.left + column as f32 * side,
            top: self.top + row as f32 * side,
            side,
            patches: root(patches)?,
            cells: root(cells)?,
            weights: weights.flatten_all()?.to_vec1()?,
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn squares_lie_around_or_inside_the_picture() {
        let image = RgbImage::filled(11, 6, [0; 3]);
        let padded = Square::of(&image, Aspect::Pad);
        assert_eq!((padded.left, padded.top, padded.side), (0.0, -2.0, 11.0));
        let cropped = Square::of(&image, Aspect::Square);
        assert_eq!((cropped.left, cropped.top, cropped.side), (2.5, 0.0, 6.0));
        let weights = Tensor::zeros((4, 9), candle_core::DType::F32, &candle_core::Device::Cpu)
            .expect("a small tensor");
        let crop = padded.view(2, 2, &weights).expect("a crop");
        assert_eq!((crop.left, crop.top, crop.side), (0.0, 3.5, 5.5));
        assert_eq!((crop.patches, crop.cells), (2, 3));
        let overview = padded.view(4, 2, &weights).expect("the overview");
        assert_eq!(
            (overview.left, overview.top, overview.side),
            (0.0, -2.0, 11.0)
        );
    }
}
