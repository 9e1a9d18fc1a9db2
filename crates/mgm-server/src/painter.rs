//! The seam for a model that paints.

use std::sync::atomic::AtomicBool;

/// A model that makes pictures from texts.
pub trait Painter: Send + Sync + 'static {
    /// Its name.
    fn name(&self) -> &str;

    /// Sizes that it paints, the preferred one first: columns and rows.
    fn sizes(&self) -> &[(u32, u32)];

    /// Paints a picture and gives it as a PNG file. Called on a thread that may block, one call at a time.
    ///
    /// # Errors
    /// When the order cannot be carried out, or `cancelled` was raised meanwhile.
    fn paint(&self, order: &PaintOrder, cancelled: &AtomicBool) -> Result<Vec<u8>, PaintError>;
}

/// One picture to be painted.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PaintOrder {
    /// What it shows.
    pub prompt: String,
    /// Columns and rows, one of [`Painter::sizes`].
    pub size: (u32, u32),
    /// Makes it repeatable.
    pub seed: Option<u64>,
}

/// Why a picture was not painted.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum PaintError {
    /// The prompt cannot be painted.
    #[error("{0}")]
    Prompt(String),
    /// `cancelled` was raised.
    #[error("stopped")]
    Cancelled,
    /// Something went wrong.
    #[error("{0}")]
    Failed(String),
}
