//! One model, many conversations.
//!
//! An [`Engine`] owns one thread that executes a model. Requests come from any thread ([`Engine::submit`]), wait in a bounded queue, and
//! are answered together: every step of the model advances all running answers by one token and reads a chunk of the prompts that are
//! waiting to be read. Answers arrive as [`EngineEvent`]s.
//!
//! ```no_run
//! use std::sync::Arc;
//! use mgm_engine::{ChatMessage, Engine, EngineEvent, EngineOptions, Part, Request, Role};
//! use mini_gemini::{LoadOptions, MiniGemini, ModelSource};
//!
//! let model = MiniGemini::load(&ModelSource::BuiltIn, &LoadOptions::default())?;
//! let engine = Engine::start(Arc::new(model), EngineOptions::default())?;
//! let picture = engine.picture_from_file(&std::fs::read("cat.jpg")?, &Default::default())?;
//! let question = ChatMessage {
//!     role: Role::User,
//!     parts: vec![Part::Image(picture), Part::Text("What is this?".into())],
//! };
//! for event in engine.submit(Request::chat(vec![question]))? {
//!     if let EngineEvent::Token { text, .. } = event {
//!         print!("{text}");
//!     }
//! }
//! # Ok::<(), Box<dyn std::error::Error>>(())
//! ```

#![cfg_attr(test, allow(clippy::unwrap_used))]

mod answer;
mod brain;
mod check;
mod choose;
mod client;
mod engine;
mod error;
mod event;
#[cfg(test)]
mod faults;
mod info;
mod metrics;
mod options;
mod picture;
mod prefix;
mod prompt;
mod queue;
mod request;
mod scheduler;
mod shared;
mod step;
mod stop;
#[cfg(test)]
mod test_model;

pub use engine::{Engine, Submission, Ticket};
pub use error::{StartError, SubmitError};
pub use event::{EngineEvent, FinishReason, PromptAccount, Timings, TokenInfo, Usage};
pub use info::{ModelInfo, Tokenized, VisionInfo};
pub use metrics::{Histogram, KvMetrics, PrefixMetrics, RequestMetrics, Snapshot, VisionMetrics};
pub use mini_gemini::{MinedView, MiningAttention};
pub use options::EngineOptions;
pub use picture::Picture;
pub use request::{ChatMessage, Input, Part, Request, Role, Sampling};
