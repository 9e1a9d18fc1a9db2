//! Reports as text.

use std::fmt;

use crate::gate::IDLE_SHARE;
use crate::report::{Bound, Report};

/// Columns as wide as they need to be, the first to the left and the others to the right.
pub(crate) struct Table {
    rows: Vec<Vec<String>>,
}

impl Table {
    pub(crate) fn new(header: &[&str]) -> Self {
        Self {
            rows: vec![header.iter().map(ToString::to_string).collect()],
        }
    }

    pub(crate) fn row(&mut self, cells: impl IntoIterator<Item = String>) {
        self.rows.push(cells.into_iter().collect());
    }
}

impl fmt::Display for Table {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let columns = self.rows.iter().map(Vec::len).max().unwrap_or(0);
        let width = |column: usize| {
            let cells = self.rows.iter().filter_map(|row| row.get(column));
            cells.map(|cell| cell.chars().count()).max().unwrap_or(0)
        };
        let widths: Vec<usize> = (0..columns).map(width).collect();
        for row in &self.rows {
            let mut line = String::new();
            for (column, (cell, &width)) in row.iter().zip(&widths).enumerate() {
                if column == 0 {
                    line.push_str(&format!("{cell:width$}"));
                } else {
                    line.push_str(&format!("  {cell:>width$}"));
                }
            }
            writeln!(f, "{}", line.trim_end())?;
        }
        Ok(())
    }
}

/// A time with three significant digits.
pub(crate) fn milliseconds(seconds: f64) -> String {
    let value = seconds * 1e3;
    let decimals = match value {
        value if value >= 99.95 => 0,
        value if value >= 9.995 => 1,
        value if value >= 0.9995 => 2,
        _ => 3,
    };
    format!("{value:.decimals$} ms")
}

fn giga(rate: f64) -> String {
    let value = rate / 1e9;
    let decimals = if value < 99.95 { 1 } else { 0 };
    format!("{value:.decimals$}")
}

impl fmt::Display for Report {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let machine = &self.machine;
        let bf16 = if machine.bf16_products {
            " with bf16 products"
        } else {
            ""
        };
        writeln!(
            f,
            "{}, {} of {} cores, level {}{bf16}",
            machine.processor, machine.threads, machine.cores, machine.level
        )?;
        let mut rates = Table::new(&[
            "this machine at most",
            "1 thread",
            &format!("{} threads", machine.threads),
            "large product",
        ]);
        for rate in &self.ceilings.products {
            rates.row([
                format!("  {} products, Gop/s", rate.operands),
                giga(rate.one_thread),
                giga(rate.all_threads),
                giga(rate.large_product),
            ]);
        }
        let read = &self.ceilings.read;
        rates.row([
            "  reading memory, GB/s".to_string(),
            giga(read.one_thread),
            giga(read.all_threads),
        ]);
        writeln!(f, "{rates}")?;
        writeln!(f, "{}, weights {}", self.model.name, self.model.weights)?;
        let mut table = Table::new(&[
            "stage", "median", "shortest", "longest", "runs", "floor", "× floor", "bound by",
            "tokens/s", "others",
        ]);
        for cell in &self.cells {
            let floor = cell.floor.as_ref();
            table.row([
                format!("  {}", cell.name),
                milliseconds(cell.time.median),
                milliseconds(cell.time.min),
                milliseconds(cell.time.max),
                cell.time.runs.to_string(),
                floor.map_or("–".into(), |floor| milliseconds(floor.seconds)),
                cell.over_floor()
                    .map_or("–".into(), |ratio| format!("{ratio:.2}")),
                floor.map_or("–".into(), |floor| {
                    match floor.bound {
                        Bound::Compute => "products",
                        Bound::Memory => "memory",
                    }
                    .into()
                }),
                cell.tokens_per_second()
                    .map_or("–".into(), |rate| format!("{rate:.1}")),
                match cell.others {
                    Some(share) if share >= IDLE_SHARE => format!("{:.0} % !", 100.0 * share),
                    Some(share) => format!("{:.0} %", 100.0 * share),
                    None => "–".into(),
                },
            ]);
        }
        write!(f, "{table}")?;
        if let Some(peak) = self.peak_memory {
            writeln!(f, "most memory held: {:.2} GB", peak as f64 / 1e9)?;
        }
        if self
            .cells
            .iter()
            .any(|cell| cell.others.is_some_and(|share| share >= IDLE_SHARE))
        {
            writeln!(
                f,
                "! other programs were computing meanwhile: do not trust these lines"
            )?;
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::ceilings::{Ceilings, ProductRate, ReadRate};
    use crate::compare::Comparison;
    use crate::machine::Machine;
    use crate::report::{Cell, Floor, ModelInfo};
    use crate::timing::Spread;

    fn report(medians: &[(&str, f64)]) -> Report {
        let machine = Machine {
            processor: "Example 9000".into(),
            cores: 4,
            threads: 2,
            level: "avx2".into(),
            bf16_products: false,
            memory: None,
        };
        let rate = ProductRate {
            operands: "f32".into(),
            one_thread: 1e11,
            all_threads: 2e11,
            large_product: 1.5e11,
        };
        let ceilings = Ceilings {
            products: vec![rate],
            read: ReadRate {
                one_thread: 1e10,
                all_threads: 1.25e10,
            },
        };
        let model = ModelInfo {
            name: "MGM-2B".into(),
            weights: "random BF16".into(),
            visual_tokens: Some(576),
        };
        let mut report = Report::new(machine, ceilings, model);
        for (name, median) in medians {
            report.cells.push(Cell {
                name: name.to_string(),
                time: Spread {
                    median: *median,
                    min: 0.9 * median,
                    max: 1.1 * median,
                    runs: 5,
                },
                seconds: vec![*median; 5],
                tokens: (*name == "decode").then_some(8),
                floor: (*name == "decode").then_some(Floor {
                    seconds: median / 1.5,
                    bound: Bound::Memory,
                    operations: 1e9,
                    bytes: 1e9,
                }),
                others: Some(0.05),
            });
        }
        report
    }

    #[test]
    fn the_table_tells_times_floors_and_noise() {
        let text = report(&[("low-res tower", 0.25), ("decode", 0.04)]).to_string();
        assert!(
            text.contains("Example 9000, 2 of 4 cores, level avx2\n"),
            "{text}"
        );
        let line = |name: &str| {
            let found = text.lines().find(|line| line.contains(name)).unwrap();
            found.split_whitespace().collect::<Vec<_>>().join(" ")
        };
        assert_eq!(
            line("low-res"),
            "low-res tower 250 ms 225 ms 275 ms 5 – – – – 5 % !"
        );
        assert_eq!(
            line("decode"),
            "decode 40.0 ms 36.0 ms 44.0 ms 5 26.7 ms 1.50 memory 200.0 5 % !"
        );
        assert!(line("f32 products").ends_with("100 200 150"), "{text}");
        assert!(line("reading memory").ends_with("10.0 12.5"), "{text}");
        assert!(text.contains("do not trust these lines"));
    }

    #[test]
    fn comparisons_mark_what_is_beyond_the_spread() {
        let before = report(&[("a", 1.0), ("b", 1.0), ("gone", 1.0)]);
        let mut now = report(&[("b", 1.05), ("a", 0.5), ("new", 1.0)]);
        now.machine.level = "avx512".into();
        let comparison = Comparison::new(&before, &now);
        let names: Vec<_> = comparison
            .changes
            .iter()
            .map(|change| (change.name.as_str(), change.beyond_spread, change.speedup()))
            .collect();
        assert_eq!(names, [("b", false, 1.0 / 1.05), ("a", true, 2.0)]);
        let text = comparison.to_string();
        assert!(
            text.starts_with("level: avx2 before, avx512 now\n"),
            "{text}"
        );
        assert!(
            text.contains("within the spread") && text.contains("faster"),
            "{text}"
        );
    }

    #[test]
    fn reports_are_read_back_and_others_refused() {
        let directory = std::env::temp_dir().join(format!("mgm-bench-{}", std::process::id()));
        std::fs::create_dir_all(&directory).unwrap();
        let path = directory.join("report.json");
        let written = report(&[("a", 0.125)]);
        std::fs::write(&path, serde_json::to_string(&written).unwrap()).unwrap();
        assert_eq!(Report::read(&path).unwrap(), written);
        for (text, expected) in [
            ("{\"version\": 9}", "report of version 9, expected 1"),
            (
                "{}",
                "expected a report of `mgm bench --json`: missing field",
            ),
            ("{\"version\": 1}", "missing field"),
        ] {
            std::fs::write(&path, text).unwrap();
            let error = Report::read(&path).unwrap_err().to_string();
            assert!(error.contains(expected), "{error}");
        }
        std::fs::remove_dir_all(&directory).unwrap();
    }

    #[test]
    fn times_have_three_digits() {
        for (seconds, text) in [
            (0.000_012_34, "0.012 ms"),
            (0.001_234, "1.23 ms"),
            (0.012_34, "12.3 ms"),
            (0.123_4, "123 ms"),
            (1.234, "1234 ms"),
        ] {
            assert_eq!(milliseconds(seconds), text);
        }
    }
}
