//! How much memory a model will take, and how much there is.

use std::path::Path;

use mgm_kernels::quant::{QuantType, prefers_interleaved};
use mgm_nn::{ElementType, WeightSource};

use crate::decoder::DecoderConfig;
use crate::model::Precision;

/// Environment variable that states how many bytes the model may use, in place of what the system reports (`8G`, `500M`, a plain number).
pub const MEMORY_VARIABLE: &str = "MGM_AVAILABLE_MEMORY";

/// Memory that a loaded model takes, in bytes.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct MemoryEstimate {
    /// Weights copied into a form that multiplies fast: packed floats, blocks side by side. They have to stay in memory.
    pub packed: u64,
    /// Weights used in place in their mapped files (embedding rows, and quantised blocks where nothing is gained by a copy). The system may drop and read them again.
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
            let need = Need::of(&name, weights, decoder, precision);
            estimate.packed += need.packed;
            estimate.mapped += need.mapped;
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

/// What one tensor takes, in bytes.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
struct Need {
    packed: u64,
    mapped: u64,
}

impl Need {
    fn of(
        name: &str,
        weights: &WeightSource,
        decoder: &DecoderConfig,
        precision: Precision,
    ) -> Self {
        let unused = name.ends_with("rotary_emb.inv_freq")
            || name.contains(".post_layernorm.")
            || (decoder.tied_head && name == "lm_head.weight");
        let Some(info) = weights.info(name).filter(|_| !unused) else {
            return Self::default();
        };
        let quantised = matches!(info.element_type, ElementType::Quantised(_));
        let as_blocks = match (precision, &info.element_type) {
            (Precision::Auto, _) => quantised,
            (Precision::Int8, kind) => {
                quantised && *kind != ElementType::Quantised(QuantType::Q8_0)
            }
            _ => false,
        };
        let in_place = as_blocks && info.shape.len() == 2;
        let is_embedding = name == "model.embed_tokens.weight";
        // A tied head multiplies with the table, of which only rows are read otherwise: blocks in place or side by side, anything else packed.
        if is_embedding && !decoder.tied_head {
            return Self {
                packed: 0,
                mapped: info.bytes,
            };
        }
        if in_place {
            return match prefers_interleaved() {
                true => Self {
                    packed: info.bytes,
                    mapped: if is_embedding { info.bytes } else { 0 },
                },
                false => Self {
                    packed: 0,
                    mapped: info.bytes,
                },
            };
        }
        let bytes = match (precision, &info.element_type, info.shape.len()) {
            // Vectors are small and kept as f32.
            (_, _, 0 | 1) | (Precision::F32, ..) => 4,
            (Precision::Int8, _, 2) => 1,
            (Precision::Bf16 | Precision::F16 | Precision::Int8, ..) => 2,
            (Precision::Auto, ElementType::Bf16 | ElementType::F16, _) => 2,
            (Precision::Auto, ..) => 4,
        };
        Self {
            packed: bytes * info.shape.iter().map(|&axis| axis as u64).product::<u64>(),
            mapped: if is_embedding { info.bytes } else { 0 },
        }
    }
}

/// Memory kept free for what a forward pass needs for a moment: activations, maps of a picture, packed panels.
pub(crate) const WORKING_BYTES: u64 = 1 << 29;

/// Which matrices are packed into memory. The others stay in their files, are packed panel by panel in every product, and cost no memory
/// that the system cannot take back.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Placement {
    /// Decoder layers that are packed, from the first on.
    pub(crate) packed_layers: usize,
    /// Whether everything besides the decoder's layers is: head, towers, miner, projector.
    pub(crate) rest_packed: bool,
}

impl Placement {
    /// Everything is packed.
    pub(crate) const ALL: Self = Self {
        packed_layers: usize::MAX,
        rest_packed: true,
    };

    /// As much as `bytes` allow beside the keys and values of `positions`, in stored types: first what every token passes besides the
    /// layers, then layer after layer.
    pub(crate) fn within(
        bytes: u64,
        weights: &WeightSource,
        decoder: &DecoderConfig,
        positions: usize,
    ) -> Self {
        let precision = Precision::Auto;
        let estimate = MemoryEstimate::new(weights, decoder, precision);
        let layers: Vec<u64> = (0..decoder.layers)
            .map(|layer| {
                let names = weights.pp("model.layers").pp(layer).names();
                let needs = names
                    .iter()
                    .map(|name| Need::of(name, weights, decoder, precision).packed);
                needs.sum()
            })
            .collect();
        let rest = estimate.packed.saturating_sub(layers.iter().sum());
        let keys_and_values = estimate.per_position * positions as u64;
        let Some(mut left) = bytes.checked_sub(keys_and_values + rest) else {
            return Self {
                packed_layers: 0,
                rest_packed: false,
            };
        };
        let packed_layers = layers
            .iter()
            .take_while(|&&layer| match left.checked_sub(layer) {
                Some(less) => {
                    left = less;
                    true
                }
                None => false,
            })
            .count();
        if packed_layers == layers.len() {
            return Self::ALL;
        }
        Self {
            packed_layers,
            rest_packed: true,
        }
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
    use std::collections::HashMap;

    use candle_core::{DType, Device, Tensor};

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

    /// Two layers of one 2 × 4 matrix and one norm each beside a head of 8 × 4, in bf16.
    #[test]
    fn layers_are_packed_while_there_is_room() {
        let zeros = |shape: &[usize]| Tensor::zeros(shape, DType::BF16, &Device::Cpu).unwrap();
        let mut tensors = HashMap::from([
            ("model.embed_tokens.weight".to_string(), zeros(&[8, 4])),
            ("lm_head.weight".to_string(), zeros(&[8, 4])),
        ]);
        for layer in 0..2 {
            let name = |part: &str| format!("model.layers.{layer}.{part}.weight");
            tensors.insert(name("mlp.up_proj"), zeros(&[2, 4]));
            tensors.insert(name("input_layernorm"), zeros(&[4]));
        }
        let weights = WeightSource::from_tensors(tensors);
        let decoder = DecoderConfig {
            hidden_size: 4,
            intermediate_size: 2,
            layers: 2,
            heads: 1,
            kv_heads: 1,
            head_dim: 4,
            vocab_size: 8,
            norm_eps: 1e-5,
            norm_offset: 0.0,
            activation: crate::decoder::Activation::Silu,
            rope_theta: 1e4,
            embedding_scale: None,
            experts: None,
            tied_head: false,
        };
        let estimate = MemoryEstimate::new(&weights, &decoder, Precision::Auto);
        let (head, layer, position) = (64, 2 * 8 + 4 * 4, 2 * 4 * 2 * 4);
        assert_eq!(
            (estimate.packed, estimate.mapped, estimate.per_position),
            (head + 2 * layer, 64, position)
        );
        let f32 = MemoryEstimate::new(&weights, &decoder, Precision::F32);
        assert_eq!(f32.packed, 2 * head + 2 * (2 * layer - 16));
        for (bytes, packed_layers, rest_packed) in [
            (0, 0, false),
            (3 * position + head - 1, 0, false),
            (3 * position + head, 0, true),
            (3 * position + head + layer, 1, true),
            (3 * position + head + 2 * layer - 1, 1, true),
        ] {
            let expected = Placement {
                packed_layers,
                rest_packed,
            };
            let found = Placement::within(bytes, &weights, &decoder, 3);
            assert_eq!(found, expected, "{bytes}");
        }
        let all = 3 * position + head + 2 * layer;
        assert_eq!(estimate.resident(3), all);
        assert_eq!(
            Placement::within(all, &weights, &decoder, 3),
            Placement::ALL
        );
    }

    #[cfg(target_os = "linux")]
    #[test]
    fn this_machine_has_memory() {
        assert!(control_group().is_none_or(|left| left > 0));
        assert!(available_memory().is_some_and(|left| left > 1 << 20));
    }
}
