use std::fmt;
use std::path::PathBuf;
use std::time::Duration;

/// Where a run stands after a step.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Progress {
    /// Finished steps.
    pub step: u64,
    /// All steps.
    pub total: u64,
    /// Passes over the data so far.
    pub epoch: f64,
    /// Mean loss of the step's micro batches.
    pub loss: f32,
    /// Running mean of the loss over about the last 50 steps.
    pub smoothed_loss: f32,
    /// Global gradient norm before clipping.
    pub gradient_norm: f32,
    /// What is learnt from per second, running mean, in `unit`s.
    pub per_second: f64,
    /// `tokens` (positions of text and pictures) or `pictures`.
    pub unit: &'static str,
    /// Learning rate of the step, without multipliers.
    pub learning_rate: f64,
    /// Estimated time to the end.
    pub time_left: Duration,
}

/// Hears how training goes. Called from the training thread; return quickly.
pub trait ProgressSink {
    /// After every step.
    fn step(&self, progress: &Progress);
    /// Once in a while: one line worth showing (a checkpoint was written, the data was indexed, …).
    fn note(&self, message: &str) {
        let _ = message;
    }
}

/// Shows nothing.
pub struct SilentProgress;

impl ProgressSink for SilentProgress {
    fn step(&self, _progress: &Progress) {}
}

/// How a run ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Status {
    /// All steps are done.
    Finished,
    /// Stopped on request; a checkpoint holds everything.
    Interrupted,
}

impl fmt::Display for Status {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.write_str(match self {
            Self::Finished => "finished",
            Self::Interrupted => "interrupted",
        })
    }
}

/// What a run leaves behind.
#[derive(Debug, Clone, PartialEq)]
pub struct Outcome {
    /// How it ended.
    pub status: Status,
    /// Finished steps.
    pub step: u64,
    /// All steps of the recipe.
    pub total: u64,
    /// Running mean of the loss at the end.
    pub smoothed_loss: f32,
    /// Loss of every step since the start of training, resumed parts included.
    pub losses: Vec<f32>,
    /// What was trained: a file of tensors or a model's folder (of an interrupted run: as far as it came).
    pub result: PathBuf,
    /// The newest checkpoint.
    pub checkpoint: PathBuf,
}
