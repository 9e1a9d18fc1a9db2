//! Training Mini-Gemini: both stages from a TOML recipe, with low-rank adapters or without, on LLaVA-format data.
//!
//! ```no_run
//! use std::sync::atomic::AtomicBool;
//! use mgm_train::{Recipe, ResumeFrom, SilentProgress, Trainer};
//!
//! let recipe = Recipe::from_file("recipes/smol-stage1.toml".as_ref())?;
//! let outcome = Trainer::new(recipe)?.resume(ResumeFrom::Latest)?.run(&SilentProgress, &AtomicBool::new(false))?;
//! println!("{} after {} steps: {}", outcome.status, outcome.step, outcome.result.display());
//! # Ok::<(), Box<dyn std::error::Error>>(())
//! ```
//!
//! [`PainterTrainer`] does the same for small models that paint.
//!
//! A run is a pure function of recipe, data and model: stopped anywhere (a full disk, Ctrl-C, a power cut) and resumed, it ends with the
//! same bits in the same parameters as an uninterrupted one.

#![cfg_attr(test, allow(clippy::unwrap_used))]

mod checkpoint;
mod collective;
mod error;
mod feature_store;
mod fingerprint;
mod gradients;
mod initial;
mod loader;
mod model;
mod optimiser;
mod painter;
mod progress;
mod recipe;
mod schedule;
mod step_log;
mod tensor_file;
mod trainer;

pub use checkpoint::{Checkpoint, ResumeFrom, TrainerState, latest_checkpoint};
pub use collective::{Collective, SingleProcess};
pub use error::TrainError;
pub use gradients::Gradients;
pub use optimiser::{AdamW, AdamWSettings, Moments, ParameterGroup};
pub use painter::{AnyRecipe, PainterRecipe, PainterStage, PainterTrainer};
pub use progress::{Outcome, Progress, ProgressSink, SilentProgress, Status};
pub use recipe::{
    AspectMode, DataRecipe, Initialise, LoraRecipe, Recipe, SamplerKind, SaveType, Stage,
};
pub use schedule::Schedule;
pub use trainer::Trainer;
