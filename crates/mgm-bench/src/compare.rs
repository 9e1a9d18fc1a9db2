//! Two reports side by side.

use std::fmt;

use crate::report::Report;
use crate::table::{Table, milliseconds};

/// A stage that both reports have.
#[derive(Clone, Debug, PartialEq)]
pub struct Change {
    /// Its name.
    pub name: String,
    /// Median before, in seconds.
    pub before: f64,
    /// Median now, in seconds.
    pub now: f64,
    /// Whether the two differ by more than their spreads.
    pub beyond_spread: bool,
}

impl Change {
    /// How many times faster it is now.
    pub fn speedup(&self) -> f64 {
        self.before / self.now
    }
}

/// What has changed from one report to another.
#[derive(Clone, Debug, PartialEq)]
pub struct Comparison {
    /// Stages of both, in the order of the later report.
    pub changes: Vec<Change>,
    /// What makes the two reports hard to compare, one line each.
    pub caveats: Vec<String>,
}

impl Comparison {
    /// Compares.
    pub fn new(before: &Report, now: &Report) -> Self {
        let changes = now.cells.iter().filter_map(|cell| {
            let earlier = before.cells.iter().find(|other| other.name == cell.name)?;
            Some(Change {
                name: cell.name.clone(),
                before: earlier.time.median,
                now: cell.time.median,
                beyond_spread: cell.time.differs(&earlier.time),
            })
        });
        let (old, new) = (&before.machine, &now.machine);
        let pairs = [
            ("processor", old.processor.clone(), new.processor.clone()),
            ("threads", old.threads.to_string(), new.threads.to_string()),
            ("level", old.level.clone(), new.level.clone()),
            ("model", before.model.name.clone(), now.model.name.clone()),
            (
                "weights",
                before.model.weights.clone(),
                now.model.weights.clone(),
            ),
        ];
        let differing = pairs.into_iter().filter(|(_, old, new)| old != new);
        Self {
            changes: changes.collect(),
            caveats: differing
                .map(|(what, old, new)| format!("{what}: {old} before, {new} now"))
                .collect(),
        }
    }
}

impl fmt::Display for Comparison {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for caveat in &self.caveats {
            writeln!(f, "{caveat}")?;
        }
        let mut table = Table::new(&["stage", "before", "now", "speedup", ""]);
        for change in &self.changes {
            table.row([
                change.name.clone(),
                milliseconds(change.before),
                milliseconds(change.now),
                format!("{:.2}", change.speedup()),
                match (change.beyond_spread, change.speedup() >= 1.0) {
                    (false, _) => "within the spread",
                    (true, true) => "faster",
                    (true, false) => "slower",
                }
                .to_string(),
            ]);
        }
        table.fmt(f)
    }
}
