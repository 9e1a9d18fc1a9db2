use std::fs::{File, OpenOptions};
use std::io::{BufRead, BufReader, Write};
use std::path::{Path, PathBuf};

use serde::Serialize;
use serde_json::Value;

use crate::error::TrainError;

/// One line of `log.jsonl`.
#[derive(Debug, Clone, Copy, Serialize)]
pub(crate) struct StepLine {
    pub(crate) step: u64,
    pub(crate) epoch: f64,
    pub(crate) loss: f32,
    pub(crate) gradient_norm: f32,
    pub(crate) learning_rate: f64,
    pub(crate) tokens: usize,
    pub(crate) supervised: usize,
    pub(crate) seconds: f64,
    pub(crate) waited: f64,
}

/// `log.jsonl`: a JSON line for every step.
pub(crate) struct StepLog {
    path: PathBuf,
    file: File,
}

impl StepLog {
    /// Opens the log for appending after step `done`; lines of later steps (made after the checkpoint that is resumed from) are dropped.
    pub(crate) fn open(path: &Path, done: u64) -> Result<Self, TrainError> {
        let mut kept = String::new();
        if done > 0
            && let Ok(file) = File::open(path)
        {
            for line in BufReader::new(file).lines() {
                let line = line.map_err(TrainError::io("read", path))?;
                let step = serde_json::from_str::<Value>(&line)
                    .ok()
                    .and_then(|value| value.get("step")?.as_u64());
                if step.is_some_and(|step| step <= done) {
                    kept.push_str(&line);
                    kept.push('\n');
                }
            }
        }
        std::fs::write(path, kept).map_err(TrainError::io("write", path))?;
        let file = OpenOptions::new()
            .append(true)
            .open(path)
            .map_err(TrainError::io("write", path))?;
        Ok(Self {
            path: path.to_owned(),
            file,
        })
    }

    pub(crate) fn write(&mut self, line: &StepLine) -> Result<(), TrainError> {
        let mut text = serde_json::to_string(line).map_err(|error| TrainError::Checkpoint {
            path: self.path.clone(),
            message: error.to_string(),
        })?;
        text.push('\n');
        self.file
            .write_all(text.as_bytes())
            .map_err(TrainError::io("write", &self.path))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_resumed_log_has_every_step_once() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("log.jsonl");
        let line = |step| StepLine {
            step,
            epoch: 0.0,
            loss: 1.0,
            gradient_norm: 1.0,
            learning_rate: 0.1,
            tokens: 1,
            supervised: 1,
            seconds: 0.1,
            waited: 0.0,
        };
        let mut log = StepLog::open(&path, 0).unwrap();
        for step in 1..=7 {
            log.write(&line(step)).unwrap();
        }
        drop(log);
        let mut log = StepLog::open(&path, 5).unwrap();
        log.write(&line(6)).unwrap();
        let steps: Vec<u64> = std::fs::read_to_string(&path)
            .unwrap()
            .lines()
            .map(|line| {
                serde_json::from_str::<Value>(line).unwrap()["step"]
                    .as_u64()
                    .unwrap()
            })
            .collect();
        assert_eq!(steps, [1, 2, 3, 4, 5, 6]);
    }
}
