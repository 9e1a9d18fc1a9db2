//! Scores, per file and together.

use std::collections::BTreeMap;
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
    /// Scores of the parts that flags of the records make, by `key: value`.
    #[serde(skip_serializing_if = "BTreeMap::is_empty")]
    pub parts: BTreeMap<String, Part>,
}

/// The score on a part of a data file.
#[derive(Clone, Copy, Debug, Serialize)]
pub struct Part {
    /// Records answered.
    pub answered: usize,
    /// Records answered right.
    pub right: usize,
    /// Share of right answers, 0 to 1.
    pub accuracy: Option<f64>,
}

impl FileReport {
    /// The score `tally` on `file`, of which `records` were asked for, and those of its parts.
    pub fn new(
        file: String,
        records: usize,
        tally: Tally,
        parts: &BTreeMap<String, Tally>,
    ) -> Self {
        let part = |tally: &Tally| Part {
            answered: tally.answered,
            right: tally.right,
            accuracy: tally.accuracy(),
        };
        Self {
            file,
            records,
            answered: tally.answered,
            right: tally.right,
            accuracy: tally.accuracy(),
            parts: parts
                .iter()
                .map(|(name, tally)| (name.clone(), part(tally)))
                .collect(),
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
        let mut lines = Vec::new();
        for file in &self.files {
            lines.push((
                file.file.clone(),
                file.accuracy,
                file.right,
                file.answered,
                file.records,
            ));
            for (name, part) in &file.parts {
                let name = format!("  {name}");
                lines.push((
                    name,
                    part.accuracy,
                    part.right,
                    part.answered,
                    part.answered,
                ));
            }
        }
        if self.files.len() > 1 {
            let total = &self.total;
            lines.push((
                total.file.clone(),
                total.accuracy,
                total.right,
                total.answered,
                total.records,
            ));
        }
        let width = lines
            .iter()
            .map(|line| line.0.chars().count())
            .max()
            .unwrap_or(0);
        for (name, accuracy, right, answered, records) in lines {
            let accuracy = match accuracy {
                Some(accuracy) => format!("{:6.2} %", 100.0 * accuracy),
                None => "     - %".into(),
            };
            write!(f, "{name:width$}  {accuracy}  {right} of {answered} right")?;
            if answered < records {
                write!(f, " ({} not answered)", records - answered)?;
            }
            writeln!(f)?;
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_table_shows_what_is_missing() {
        let none = BTreeMap::new();
        let parts = [(
            "cut_out: true".to_string(),
            Tally {
                answered: 2,
                right: 1,
            },
        )]
        .into();
        let three = Tally {
            answered: 4,
            right: 3,
        };
        let report = Report {
            subject: "smol".into(),
            interrupted: true,
            files: vec![
                FileReport::new("a.json".into(), 4, three, &parts),
                FileReport::new("longer.json".into(), 2, Tally::default(), &none),
            ],
            total: FileReport::new("total".into(), 6, three, &none),
            seconds: 1.0,
            answered_now: 4,
        };
        assert_eq!(
            report.to_string(),
            "a.json            75.00 %  3 of 4 right\n  \
               cut_out: true   50.00 %  1 of 2 right\n\
             longer.json           - %  0 of 0 right (2 not answered)\n\
             total             75.00 %  3 of 4 right (2 not answered)\n"
        );
    }
}
