//! The seam for a model that paints.

/// A model that makes pictures from texts.
pub trait Painter: Send + Sync + 'static {
    /// Its name.
    fn name(&self) -> &str;

    /// Sizes that it paints, the preferred one first: columns and rows.
    fn sizes(&self) -> &[(u32, u32)];

    /// Paints a picture and gives it as a PNG file. Called on a thread that may block, one call at a time. `cancelled` tells at any moment
    /// whether nobody wants the picture any more; `progress` takes word of every step.
    ///
    /// # Errors
    /// When the order cannot be carried out, or `cancelled` said yes meanwhile.
    fn paint(
        &self,
        order: &PaintOrder,
        cancelled: &(dyn Fn() -> bool + Sync),
        progress: &mut (dyn FnMut(PaintProgress) + Send),
    ) -> Result<Vec<u8>, PaintError>;
}

/// One picture to be painted.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PaintOrder {
    /// What it shows.
    pub prompt: String,
    /// Columns and rows, one of [`Painter::sizes`].
    pub size: (u32, u32),
    /// Makes it repeatable.
    pub seed: u64,
    /// After every so many steps a preview is wanted; never for 0.
    pub preview_every: usize,
}

/// How far a picture has come.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PaintProgress {
    /// Steps done, 0 when painting begins.
    pub step: usize,
    /// Steps in all.
    pub steps: usize,
    /// What the picture looks like, as a small PNG file, where that was asked for.
    pub preview: Option<Vec<u8>>,
}

/// Why a picture was not painted.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum PaintError {
    /// The prompt cannot be painted.
    #[error("{0}")]
    Prompt(String),
    /// Nobody wanted it any more.
    #[error("stopped")]
    Cancelled,
    /// Something went wrong.
    #[error("{0}")]
    Failed(String),
}
