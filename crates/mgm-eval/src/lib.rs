//! Scoring a model on questions with known answers.
//!
//! A data file ([`records`]) holds questions about pictures; the model answers each one greedily ([`model`]), answers are compared
//! after normalisation ([`scoring`]), written down as they are made ([`answers`]) and summed up per file ([`report`]).
//! [`run()`](run::run) ties these together and needs nothing of the model but the [`Answerer`](run::Answerer) trait.

#![cfg_attr(test, allow(clippy::unwrap_used))]

pub mod answers;
mod error;
pub mod model;
pub mod records;
pub mod report;
pub mod run;
pub mod scoring;

pub use error::{EvalError, HintError};
pub use model::{Hints, ModelAnswerer};
pub use records::{DataFile, Match, Record};
pub use report::{FileReport, Part, Report, Tally};
pub use run::{Answerer, Progress, RunOptions, run};
