//! The flags of `mgm ocr`, and the one about reading text that other commands have too.

use std::num::NonZeroUsize;
use std::path::PathBuf;

use clap::{Args, ValueHint};

use super::fraction;
use crate::picture::PictureSource;

/// Where the networks that read text are.
#[derive(Debug, Args)]
#[command(next_help_heading = "Reading")]
pub(crate) struct ReadingModels {
    /// Folder of the text recognition networks [default: mgm/ocr in the user's data folder, where tools/fetch_ocr.sh puts them]
    #[arg(long, value_name = "DIR", env = mgm_ocr::MODELS_VARIABLE, value_hint = ValueHint::DirPath)]
    pub(crate) ocr_models: Option<PathBuf>,
}

/// Read the text in pictures.
///
/// Prints one line of text a line, in the order of reading, however the page lies. See docs/ocr.md.
#[derive(Debug, Args)]
#[command(after_help = "Examples:\n  \
    mgm ocr invoice.png\n  \
    mgm ocr --json scan-1.jpg scan-2.jpg\n  \
    mgm ocr --threshold 0.9 photo.jpg")]
pub(crate) struct OcrArgs {
    /// Pictures: files or http(s) addresses
    #[arg(value_name = "FILE-OR-URL", required = true, value_hint = ValueHint::FilePath)]
    pub(crate) images: Vec<PictureSource>,

    /// Leave out lines that are read with less confidence
    #[arg(long, value_name = "0..1", value_parser = fraction, default_value = "0.5")]
    pub(crate) threshold: f32,

    /// Print one JSON object: each picture's lines with confidence, corners and angle
    #[arg(long)]
    pub(crate) json: bool,

    /// CPU threads [default: one per logical core]
    #[arg(long, value_name = "N")]
    pub(crate) threads: Option<NonZeroUsize>,

    #[command(flatten)]
    pub(crate) models: ReadingModels,
}
