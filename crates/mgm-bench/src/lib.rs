//! How fast a model runs on this machine, stage by stage, and how fast it could run.
//!
//! A stage's *floor* is the time that no implementation can beat here: its operations over the rate of products between registers, or its
//! bytes over the rate at which memory is read, whichever is longer. Both rates are measured in the same run ([`Ceilings`]). What a stage
//! takes over its floor is what is left to gain.
//!
//! The model is a real one or one of a released shape with random weights ([`Subject`]), which are made in memory: speed does not depend on
//! their values. Timings wait for a quiet machine ([`gate`]) and say how much of it others took meanwhile.

mod ceilings;
mod compare;
mod error;
pub mod gate;
mod machine;
mod options;
mod report;
mod shape;
mod stages;
mod subject;
mod table;
mod timing;
mod work;

pub use ceilings::{Ceilings, ProductRate, ReadRate};
pub use compare::{Change, Comparison};
pub use error::{Error, Result};
pub use machine::Machine;
pub use options::{Options, Progress, Stage};
pub use report::{Cell, Floor, ModelInfo, Report};
pub use shape::{Shape, WeightFormat};
pub use stages::run;
pub use subject::Subject;
pub use timing::Spread;
