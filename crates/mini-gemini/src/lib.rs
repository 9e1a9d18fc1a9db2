//! Mini-Gemini vision-language models (arXiv 2403.18814): a picture seen by two encoders, patch info mining between them, and a language
//! model that answers.
//!
//! ```no_run
//! use mini_gemini::{Control, Event, GenerateOptions, LoadOptions, MiniGemini, ModelSource};
//!
//! let model = MiniGemini::load(&ModelSource::BuiltIn, &LoadOptions::default())?;
//! let picture = mgm_image::open("cat.jpg", &Default::default())?;
//! let mut session = model.session();
//! let answer = session.ask("What is this?", vec![picture], &GenerateOptions::default(), &mut |event| {
//!     if let Event::Text(piece) = event {
//!         print!("{piece}");
//!     }
//!     Control::Continue
//! })?;
//! println!("\n{} tokens", answer.new_tokens);
//! # Ok::<(), Box<dyn std::error::Error>>(())
//! ```

mod adapter;
mod check;
mod checkpoint;
mod config;
pub mod decoder;
mod error;
pub mod hub_cache;
mod inside;
pub mod inventory;
mod layout;
mod locate;
mod lookup;
mod memory;
mod merge;
pub mod mining;
mod model;
pub mod pair;
mod pictures;
pub mod projector;
mod sampling;
mod session;
mod slots;
mod source;
mod tower_files;
pub mod towers;
mod training;
mod vision;

pub use check::TensorProblem;
pub use checkpoint::{Checkpoint, TokenizerFiles};
pub use config::{Family, GemmaNumerics, LoraKeys, ModelConfig, OneOrMany, RopeParameters};
pub use error::{Error, Result};
pub use inside::{MinedView, MiningAttention};
pub use lookup::Drafts;
pub use memory::{MEMORY_VARIABLE, MemoryEstimate, available_memory};
pub use merge::{MergeProgress, Merged, SHARD_BYTES, merge};
pub use model::{LORA_TARGETS, LoadEvent, LoadOptions, MiniGemini, Precision, lora_config};
pub use pictures::PictureKey;
pub use sampling::{GenerateOptions, Overlong, Sampler, greedy};
pub use session::{Answer, Control, Event, Session, StopReason, Timings};
pub use slots::{Read, Slot, VisualTokens};
pub use source::{BUILT_IN_NAME, MODEL_ZOO_VARIABLE, MODELS_DIR_VARIABLE, ModelSource, bundled};
pub use training::{IGNORE_LABEL, TrainSample};
pub use vision::{TowerFeatures, Vision};
