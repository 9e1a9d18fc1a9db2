//! How much memory a model will take, and how much there is.

use std::path::Path;

use mgm_nn::{ElementType, WeightSource};

use crate::decoder::DecoderConfig;
use crate::model::Precision;

/// Environment variable that states how many bytes the model may use, in place of what the system reports (`8G`, `500M`, a plain number).
pub const MEMORY_VARIABLE: &str = "MGM_AVAILABLE_MEMORY";

/// Memory that a loaded model takes, in bytes.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct MemoryEstimate {
    /// Weights copied into a form that multiplies fast. They have to stay in memory.
    pub packed: u64,
    /// Weights used in place in their mapped files (quantised blocks, embedding rows). The system may drop and read them again.
    pub mapped: u64,
    /// Keys and values of one position.
    pub per_position: u64,
}

impl MemoryEstimate {
    /// Estimates from names, shapes and types alone.
    pub(crate) fn new(
        weights: &WeightSource,
        decoder: &DecoderConfig,
        precision: Precision,
    ) -> Self {
        let mut estimate = Self {
            // Keys and values are f32.
            per_position: 2 * 4 * (decoder.layers * decoder.kv_heads * decoder.head_dim) as u64,
            ..Self::default()
        };
        for name in weights.names() {
            let Some(info) = weights.info(&name) else {
                continue;
            };
            let is_embedding = name == "model.embed_tokens.weight";
            let unused = name.ends_with("rotary_emb.inv_freq")
                || name.contains(".post_layernorm.")
                || (decoder.tied_head && name == "lm_head.weight");
            if unused {
                continue;
            }
            let elements = info.shape.iter().product::<usize>() as u64;
            let quantised = matches!(info.element_type, ElementType::Quantised(_));
            if is_embedding {
                estimate.mapped += info.bytes;
                // A tied head multiplies with the table: quantised blocks in place, anything else packed.
                if !decoder.tied_head || (quantised && precision == Precision::Auto) {
                    continue;
                }
            }
            if quantised && precision == Precision::Auto && info.shape.len() == 2 {
                estimate.mapped += info.bytes;
                continue;
            }
            let bytes = match (precision, &info.element_type, info.shape.len()) {
                // Vectors are small and kept as f32.
                (_, _, 0 | 1) | (Precision::F32, ..) => 4,
                (Precision::Bf16, ..) | (Precision::Auto, ElementType::Bf16, _) => 2,
                (Precision::Auto, ..) => 4,
            };
            estimate.packed += bytes * elements;
        }
        estimate
    }

    /// Bytes that have to stay in memory while `positions` are held.
    pub fn resident(&self, positions: usize) -> u64 {
        self.packed + self.per_position * positions as u64
    }

    /// All weights and the keys and values of `positions`, in bytes.
    pub fn total(&self, positions: usize) -> u64 {
        self.resident(positions) + self.mapped
    }
}

/// Bytes this process may still use: what the environment variable [`MEMORY_VARIABLE`] says, else the lesser of the system's free memory and
/// what its control group allows. `None` where the system does not tell.
pub fn available_memory() -> Option<u64> {
    if let Some(stated) = std::env::var(MEMORY_VARIABLE)
        .ok()
        .and_then(|text| parse_bytes(&text))
    {
        return Some(stated);
    }
    let system = std::fs::read_to_string("/proc/meminfo")
        .ok()
        .and_then(|text| field(&text, "MemAvailable:"))
        .map(|kibibytes| kibibytes * 1024);
    match (system, control_group()) {
        (Some(system), Some(group)) => Some(system.min(group)),
        (system, group) => system.or(group),
    }
}

/// What the control group (version 2) leaves: its limit less what it holds besides the page cache, which gives way.
fn control_group() -> Option<u64> {
    let own = std::fs::read_to_string("/proc/self/cgroup").ok()?;
    let path = own.lines().find_map(|line| line.strip_prefix("0::"))?;
    let mut group = Path::new("/sys/fs/cgroup").join(path.trim_start_matches('/'));
    let mut least: Option<u64> = None;
    // A limit may stand at any level above.
    while group.starts_with("/sys/fs/cgroup") {
        let read = |name: &str| std::fs::read_to_string(group.join(name)).ok();
        let limit = read("memory.max").and_then(|text| text.trim().parse::<u64>().ok());
        let held = read("memory.current").and_then(|text| text.trim().parse::<u64>().ok());
        if let (Some(limit), Some(held)) = (limit, held) {
            let cache = read("memory.stat")
                .and_then(|text| field(&text, "file"))
                .unwrap_or(0);
            let left = limit.saturating_sub(held.saturating_sub(cache));
            least = Some(least.map_or(left, |least| least.min(left)));
        }
        if !group.pop() {
            break;
        }
    }
    least
}

/// The number after `name` at the start of a line.
fn field(text: &str, name: &str) -> Option<u64> {
    text.lines().find_map(|line| {
        let mut words = line.split_whitespace();
        (words.next()? == name).then(|| words.next()?.parse().ok())?
    })
}

/// `8G`, `1.5G`, `500M`, `4096K` or a number of bytes; units are powers of 1024.
fn parse_bytes(text: &str) -> Option<u64> {
    let text = text.trim();
    let (number, unit) = match text.char_indices().last()? {
        (at, 'K' | 'k') => (&text[..at], 1u64 << 10),
        (at, 'M' | 'm') => (&text[..at], 1 << 20),
        (at, 'G' | 'g') => (&text[..at], 1 << 30),
        _ => (text, 1),
    };
    let value: f64 = number.parse().ok()?;
    (value.is_finite() && value >= 0.0).then_some((value * unit as f64) as u64)
}

/// Bytes as a person reads them.
pub(crate) fn readable(bytes: u64) -> String {
    if bytes >= 1 << 30 {
        format!("{:.1} GB", bytes as f64 / 1e9)
    } else {
        format!("{:.0} MB", bytes as f64 / 1e6)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sizes_are_read() {
        assert_eq!(parse_bytes("8G"), Some(8 << 30));
        assert_eq!(parse_bytes("1.5m"), Some(3 << 19));
        assert_eq!(parse_bytes(" 123 "), Some(123));
        for bad in ["", "G", "-1", "many", "1T"] {
            assert_eq!(parse_bytes(bad), None, "{bad}");
        }
        let text = "MemTotal: 10 kB\nMemAvailable:    7 kB\n";
        assert_eq!(field(text, "MemAvailable:"), Some(7));
        assert_eq!(field("file_mapped 3\nfile 5\n", "file"), Some(5));
    }

    #[cfg(target_os = "linux")]
    #[test]
    fn this_machine_has_memory() {
        assert!(control_group().is_none_or(|left| left > 0));
        assert!(available_memory().is_some_and(|left| left > 1 << 20));
    }
}
