//! The file of answers: one JSON object a line, appended and flushed as each answer is made, so that an interruption costs nothing.

use std::collections::HashMap;
use std::fs::{File, OpenOptions};
use std::io::{Seek, SeekFrom, Write};
use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};

use crate::error::EvalError;

/// One line of the file.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct AnswerLine {
    /// Name of the data file.
    pub file: String,
    /// The record.
    pub id: String,
    /// The answer as the model gave it.
    pub answer: String,
    /// Whether it was scored right.
    pub right: bool,
    /// What answered (see [`crate::Report::subject`]).
    pub subject: String,
}

/// Answers of earlier runs, by file and record.
pub type Known = HashMap<(String, String), String>;

/// An open file of answers.
#[derive(Debug)]
pub struct AnswerLog {
    path: PathBuf,
    file: File,
}

impl AnswerLog {
    /// Starts a new file, replacing what is there.
    ///
    /// # Errors
    /// When it cannot be written.
    pub fn create(path: &Path) -> Result<Self, EvalError> {
        let file = File::create(path).map_err(|source| EvalError::Io {
            path: path.into(),
            source,
        })?;
        Ok(Self {
            path: path.into(),
            file,
        })
    }

    /// Opens a file of an earlier run (or a new one) and returns its answers. A last line without its line end was cut off by
    /// an interruption: it is dropped, and its record is asked again.
    ///
    /// # Errors
    /// When the file cannot be read or written, a line is not an answer, or an answer was given by something else than `subject`.
    pub fn resume(path: &Path, subject: &str) -> Result<(Self, Known), EvalError> {
        let io = |source| EvalError::Io {
            path: path.into(),
            source,
        };
        let text = match std::fs::read_to_string(path) {
            Ok(text) => text,
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => String::new(),
            Err(error) => return Err(io(error)),
        };
        let complete = text.rfind('\n').map_or(0, |end| end + 1);
        let mut known = Known::new();
        for (index, line) in text[..complete].lines().enumerate() {
            let bad = |message| EvalError::Answers {
                path: path.into(),
                line: index + 1,
                message,
            };
            let line: AnswerLine = serde_json::from_str(line)
                .map_err(|error| bad(format!("not an answer: {error}")))?;
            if line.subject != subject {
                return Err(bad(format!(
                    "answered by {:?}, but this run asks {subject:?}; choose another file of answers",
                    line.subject
                )));
            }
            known.insert((line.file, line.id), line.answer);
        }
        let mut file = OpenOptions::new()
            .create(true)
            .write(true)
            .truncate(false)
            .open(path)
            .map_err(io)?;
        file.set_len(complete as u64).map_err(io)?;
        file.seek(SeekFrom::End(0)).map_err(io)?;
        Ok((
            Self {
                path: path.into(),
                file,
            },
            known,
        ))
    }

    /// Appends one answer.
    ///
    /// # Errors
    /// When it cannot be written (disk full).
    pub fn append(&mut self, line: &AnswerLine) -> Result<(), EvalError> {
        let mut text = serde_json::to_string(line).map_err(|error| EvalError::Data {
            path: self.path.clone(),
            message: error.to_string(),
        })?;
        text.push('\n');
        self.file
            .write_all(text.as_bytes())
            .map_err(|source| EvalError::Io {
                path: self.path.clone(),
                source,
            })
    }
}
