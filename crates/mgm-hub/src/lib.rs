//! Model repositories: what Mini-Gemini releases there are, downloading them from the Hugging Face hub, and the hub's local cache.
//!
//! The cache has the layout of the `huggingface_hub` Python package, and both use each other's files. Without the feature `download`
//! nothing here touches the network.

#![cfg_attr(test, allow(clippy::unwrap_used))]

pub mod cache;
mod environment;
mod error;
pub mod releases;
mod repository;

#[cfg(feature = "download")]
mod blob;
#[cfg(feature = "download")]
mod checksum;
#[cfg(feature = "download")]
mod client;
#[cfg(feature = "download")]
mod listing;
#[cfg(feature = "download")]
mod pull;
#[cfg(feature = "download")]
mod request;
#[cfg(feature = "download")]
mod selection;

pub use environment::{Environment, Token};
pub use error::{Error, Result};
pub use repository::{MAIN, Repository, Revision};

#[cfg(feature = "download")]
pub use client::Patience;
#[cfg(feature = "download")]
pub use pull::{Options, Progress, Pulled, pull};
#[cfg(feature = "download")]
pub use selection::Selection;
