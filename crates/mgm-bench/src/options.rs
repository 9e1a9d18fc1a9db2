//! What is to be measured, and what is told meanwhile.

use std::path::PathBuf;
use std::time::Duration;

use crate::report::Cell;

/// A part of the way from a picture to an answer.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Stage {
    /// A file's bytes to pixels.
    DecodePicture,
    /// Pixels to the inputs of the towers.
    Preprocess,
    /// The low-resolution tower.
    LowRes,
    /// The high-resolution tower.
    HighRes,
    /// Mining and projector.
    Mining,
    /// Reading a prompt.
    Prefill,
    /// One more token of an answer, or one of several answers together.
    Decode,
    /// A picture's bytes and a question to the first token.
    FirstToken,
}

impl Stage {
    /// All stages, in the order of the data.
    pub const ALL: [Self; 8] = [
        Self::DecodePicture,
        Self::Preprocess,
        Self::LowRes,
        Self::HighRes,
        Self::Mining,
        Self::Prefill,
        Self::Decode,
        Self::FirstToken,
    ];

    /// Its name on the command line and in reports.
    pub fn name(self) -> &'static str {
        match self {
            Self::DecodePicture => "picture",
            Self::Preprocess => "preprocess",
            Self::LowRes => "low-res",
            Self::HighRes => "high-res",
            Self::Mining => "mining",
            Self::Prefill => "prefill",
            Self::Decode => "decode",
            Self::FirstToken => "first-token",
        }
    }

    /// The stage of this name.
    pub fn parse(name: &str) -> Option<Self> {
        Self::ALL.into_iter().find(|stage| stage.name() == name)
    }

    /// Whether it needs a model that sees.
    pub fn is_visual(self) -> bool {
        !matches!(self, Self::Prefill | Self::Decode)
    }
}

/// What to measure and how.
#[derive(Clone, Debug)]
pub struct Options {
    /// The stages; those that the model lacks are left out.
    pub stages: Vec<Stage>,
    /// Prompt lengths, in tokens.
    pub prefill: Vec<usize>,
    /// Tokens that the cache holds before a decoded one.
    pub context: Vec<usize>,
    /// How many answers are decoded together; those above one at the first context only.
    pub batch: Vec<usize>,
    /// Text tokens of the question about the picture.
    pub question: usize,
    /// Timed runs of each stage, at least.
    pub runs: usize,
    /// How long each stage may wait for an idle machine; `None` does not wait.
    pub gate: Option<Duration>,
    /// The picture; a photograph of a coffee cup that the program carries when absent.
    pub picture: Option<PathBuf>,
}

impl Default for Options {
    fn default() -> Self {
        Self {
            stages: Stage::ALL.to_vec(),
            prefill: vec![64, 640],
            context: vec![64, 640],
            batch: vec![1, 2, 4, 8],
            question: 64,
            runs: 5,
            gate: Some(Duration::from_secs(120)),
            picture: None,
        }
    }
}

/// What is being done.
#[derive(Debug)]
pub enum Progress<'a> {
    /// Weights are being made or read.
    Loading(&'a str),
    /// The machine's rates are being measured.
    Ceilings,
    /// The machine is not idle.
    Waiting(&'a str),
    /// A cell is being measured.
    Measuring(&'a str),
    /// A cell is done.
    Done(&'a Cell),
    /// Something the user should know, one line.
    Note(&'a str),
}
