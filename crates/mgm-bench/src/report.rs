//! The result: a value that is written as JSON, read back for comparison, and shown as a table.

use std::path::Path;

use serde::{Deserialize, Serialize};

use crate::ceilings::Ceilings;
use crate::error::{Error, Result};
use crate::machine::Machine;
use crate::timing::Spread;

/// Raised when the meaning of a field changes.
const VERSION: u32 = 1;

/// What limits a stage.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Bound {
    /// Products.
    Compute,
    /// Reading memory.
    Memory,
}

/// The time that no implementation can beat on this machine.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
pub struct Floor {
    /// The time, in seconds.
    pub seconds: f64,
    /// What sets it.
    pub bound: Bound,
    /// Operations, a product and its addition being two.
    pub operations: f64,
    /// Bytes read at least.
    pub bytes: f64,
}

/// One measured stage at one size.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Cell {
    /// What was measured; equal names are compared with each other.
    pub name: String,
    /// Times in seconds.
    pub time: Spread,
    /// The times themselves, in the order in which they were measured.
    pub seconds: Vec<f64>,
    /// Tokens (of all sequences together) that one run reads or makes, for stages of the language model.
    pub tokens: Option<usize>,
    /// The floor, for stages whose work is counted.
    pub floor: Option<Floor>,
    /// The share of all cores that other programs took meanwhile, where the system tells.
    pub others: Option<f64>,
}

impl Cell {
    /// Time over floor.
    pub fn over_floor(&self) -> Option<f64> {
        let floor = self.floor.filter(|floor| floor.seconds > 0.0)?;
        Some(self.time.median / floor.seconds)
    }

    /// Tokens a second.
    pub fn tokens_per_second(&self) -> Option<f64> {
        Some(self.tokens? as f64 / self.time.median)
    }
}

/// The model that was measured.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct ModelInfo {
    /// Its name.
    pub name: String,
    /// How its weights are stored, and whether they are random.
    pub weights: String,
    /// Visual tokens per picture.
    pub visual_tokens: Option<usize>,
}

/// Everything that was measured.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Report {
    /// Version of this format.
    pub version: u32,
    /// Version of the program.
    pub program: String,
    /// What it ran on.
    pub machine: Machine,
    /// The rates that floors are made of.
    pub ceilings: Ceilings,
    /// The model.
    pub model: ModelInfo,
    /// Results in the order of the data.
    pub cells: Vec<Cell>,
    /// The most memory the process held, in bytes, weights and bench included.
    pub peak_memory: Option<u64>,
    /// Whether it was stopped before the end.
    pub interrupted: bool,
}

impl Report {
    pub(crate) fn new(machine: Machine, ceilings: Ceilings, model: ModelInfo) -> Self {
        Self {
            version: VERSION,
            program: env!("CARGO_PKG_VERSION").to_string(),
            machine,
            ceilings,
            model,
            cells: Vec::new(),
            peak_memory: None,
            interrupted: false,
        }
    }

    /// Reads an earlier report.
    ///
    /// # Errors
    /// When the file cannot be read or is none.
    pub fn read(path: &Path) -> Result<Self> {
        let text = std::fs::read_to_string(path).map_err(|source| Error::Io {
            path: path.into(),
            source,
        })?;
        let bad = |error: serde_json::Error| Error::Report {
            path: path.into(),
            message: error.to_string(),
        };
        // The version first: another one's fields may be others.
        #[derive(Deserialize)]
        struct Versioned {
            version: u32,
        }
        let Versioned { version } = serde_json::from_str(&text).map_err(bad)?;
        if version != VERSION {
            return Err(Error::Version {
                path: path.into(),
                found: version,
                expected: VERSION,
            });
        }
        serde_json::from_str(&text).map_err(bad)
    }
}
