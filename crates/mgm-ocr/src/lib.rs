//! Reading text in pictures with PP-OCR: a network finds the text, another one turns lines that stand upside down, a third one reads
//! them. Everything runs in Rust; the networks' ONNX files come by path ([`ModelFiles`]).
//!
//! The settings and steps are those of PP-OCR's pipeline as the `rapidocr` package runs it, so that the same lines come out.
//!
//! ```no_run
//! # fn main() -> Result<(), Box<dyn std::error::Error>> {
//! use std::path::Path;
//! use std::sync::atomic::AtomicBool;
//!
//! let files = mgm_ocr::ModelFiles::in_directory(Path::new("models/ocr"))?;
//! let reader = mgm_ocr::Reader::load(&files)?;
//! let picture = mgm_image::open(Path::new("invoice.png"), &mgm_image::Limits::default())?;
//! for line in reader.read(&picture, &AtomicBool::new(false))?.lines {
//!     println!("{:.2} {}", line.confidence, line.text);
//! }
//! # Ok(())
//! # }
//! ```

mod closer;
mod crop;
mod detect;
mod error;
mod files;
mod geometry;
mod network;
mod order;
mod orient;
mod reader;
mod recognise;
#[cfg(test)]
mod reference;
mod resize;
mod view;

pub use error::{OcrError, Result};
pub use files::{MODELS_VARIABLE, ModelFiles};
pub use reader::{Line, Page, Reader};
