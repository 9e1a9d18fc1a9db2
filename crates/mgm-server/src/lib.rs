//! An OpenAI-compatible HTTP server, and a web page, for one Mini-Gemini model.
//!
//! A [`Server`] listens as soon as it is started and takes requests once it has a model. Everything a client sends is bounded ([`Limits`]);
//! what reaches the model goes through [`mgm_engine::Engine`].
//!
//! ```no_run
//! use std::sync::Arc;
//! use std::sync::atomic::AtomicBool;
//! use mgm_engine::{Engine, EngineOptions};
//! use mgm_server::{Server, ServerOptions};
//! use mini_gemini::{LoadOptions, MiniGemini, ModelSource};
//!
//! let server = Server::start(ServerOptions::default())?;
//! println!("http://{}", server.address());
//! let model = MiniGemini::load(&ModelSource::BuiltIn, &LoadOptions::default())?;
//! server.set_model(Engine::start(Arc::new(model), EngineOptions::default())?, None);
//! static STOP: AtomicBool = AtomicBool::new(false);
//! server.run(&STOP);
//! # Ok::<(), Box<dyn std::error::Error>>(())
//! ```

#![cfg_attr(test, allow(clippy::unwrap_used))]

#[cfg(feature = "remote-images")]
mod address;
mod app;
mod around;
mod body;
mod budget;
mod cors;
mod easel;
mod error;
mod generation;
mod ids;
mod keys;
mod metrics;
mod options;
mod page;
mod painter;
mod painting;
mod pictures;
#[cfg(feature = "remote-images")]
mod remote;
mod routes;
mod server;
mod sse;
mod stream;
mod wire;

pub use keys::{ApiKeys, KeyError};
pub use options::{Limits, SamplingDefaults, ServerOptions};
pub use painter::{PaintError, PaintOrder, PaintProgress, Painter};
pub use server::{Server, ServerError};
