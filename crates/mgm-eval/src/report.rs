//! Scores, per file and together.

use std::fmt;

use serde::Serialize;

/// Right answers out of those given.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Tally {
    /// Records answered.
    pub answered: usize,
    /// Of these, answered right.
    pub right: usize,
}

impl Tally {
    /// Counts one answer.
    pub fn add(&mut self, right: bool) {
        self.answered += 1;
        self.right += usize::from(right);
    }

    /// Share of right answers, 0 to 1; `None` before the first answer.
    pub fn accuracy(&self) -> Option<f64> {
        (self.answered > 0).then(|| self.right as f64 / self.answered as f64)
    }
}

/// The score on one data file.
#[derive(Clone, Debug, Serialize)]
pub struct FileReport {
    /// The file's name.
    pub file: String,
    /// Records asked for (after a limit).
    pub records: usize,
    /// Records answered.
    pub answered: usize,
    /// Records answered right.
    pub right: usize,
    /// Share of right answers, 0 to 1.
    pub accuracy: Option<f64>,
}

impl FileReport {
    /// The score `tally` on `file`, of which `records` were asked for.
    pub fn new(file: String, records: usize, tally: Tally) -> Self {
        Self {
            file,
            records,
            answered: tally.answered,
            right: tally.right,
            accuracy: tally.accuracy(),
        }
    }
}

/// The scores of one run.
#[derive(Clone, Debug, Serialize)]
pub struct Report {
    /// What answered, e.g. `smol` or `smol without the high-resolution tower`.
    pub subject: String,
    /// Whether the run was stopped before the last record.
    pub interrupted: bool,
    /// In the order given.
    pub files: Vec<FileReport>,
    /// All files together, every record counting the same.
    pub total: FileReport,
    /// Wall time of this run in seconds, answers taken over from an earlier run not included.
    pub seconds: f64,
    /// Records answered by this run itself.
    pub answered_now: usize,
}

impl fmt::Display for Report {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let width = self
            .files
            .iter()
            .map(|file| file.file.chars().count())
            .chain([self.total.file.chars().count()])
            .max()
            .unwrap_or(0);
        let mut line = |file: &FileReport| {
            let accuracy = match file.accuracy {
                Some(accuracy) => format!("{:6.2} %", 100.0 * accuracy),
                None => "     - %".into(),
            };
            write!(
                f,
                "{:width$}  {accuracy}  {} of {} right",
                file.file, file.right, file.answered
            )?;
            if file.answered < file.records {
                write!(f, " ({} not answered)", file.records - file.answered)?;
            }
            writeln!(f)
        };
        for file in &self.files {
            line(file)?;
        }
        if self.files.len() > 1 {
            line(&self.total)?;
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_table_shows_what_is_missing() {
        let report = Report {
            subject: "smol".into(),
            interrupted: true,
            files: vec![
                FileReport::new(
                    "a.json".into(),
                    4,
                    Tally {
                        answered: 4,
                        right: 3,
                    },
                ),
                FileReport::new(
                    "longer.json".into(),
                    2,
                    Tally {
                        answered: 0,
                        right: 0,
                    },
                ),
            ],
            total: FileReport::new(
                "total".into(),
                6,
                Tally {
                    answered: 4,
                    right: 3,
                },
            ),
            seconds: 1.0,
            answered_now: 4,
        };
        assert_eq!(
            report.to_string(),
            "a.json        75.00 %  3 of 4 right\n\
             longer.json       - %  0 of 0 right (2 not answered)\n\
             total         75.00 %  3 of 4 right (2 not answered)\n"
        );
    }
}
