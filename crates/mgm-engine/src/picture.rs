//! Pictures as the engine takes them.

use std::fmt;
use std::sync::Arc;

/// A picture made ready for the engine's model and known by its content. Cheap to clone.
///
/// [`Engine::picture`](crate::Engine::picture) and [`Engine::picture_from_file`](crate::Engine::picture_from_file) make one, on the
/// calling thread. A picture that was seen before is not prepared again, and from a file not even decoded.
#[derive(Clone)]
pub struct Picture(pub(crate) Arc<PictureInner>);

pub(crate) struct PictureInner {
    pub(crate) width: u32,
    pub(crate) height: u32,
}

impl Picture {
    /// Columns and rows of the picture as it was given.
    pub fn size(&self) -> (u32, u32) {
        (self.0.width, self.0.height)
    }
}

impl fmt::Debug for Picture {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(formatter, "Picture({}×{})", self.0.width, self.0.height)
    }
}

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
    /// Columns in pixels of the picture.
    pub width: f32,
    /// Rows in pixels of the picture.
    pub height: f32,
    /// Patches a side.
    pub patches: usize,
    /// Cells a side of one patch.
    pub cells: usize,
    /// `[patches · patches, cells · cells]`, row by row on both levels; those of one patch sum to 1.
    pub weights: Vec<f32>,
}
