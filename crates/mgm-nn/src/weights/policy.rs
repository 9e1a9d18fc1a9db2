//! What becomes of the weights of a source.

use candle_core::Device;

/// How frozen matrices are kept in memory.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[allow(non_camel_case_types)]
pub enum WeightStorage {
    /// `f32`, whatever the file has.
    F32,
    /// `bf16`: half the memory and bandwidth, products of `bf16` values summed in `f32`.
    Bf16,
    /// `f16`: half the memory and bandwidth, products in `f32`. Values beyond ±65504 become infinite.
    F16,
    /// Q8_0 blocks made while loading, a quarter of `f32`; matrices whose rows are not whole blocks become `bf16`. Blocks of a file stay
    /// what they are as with [`Self::AsStored`].
    Q8_0,
    /// Products in 8 bits throughout (W8A8, see [`mgm_kernels::int8`]): matrices of floats and of Q8_0 blocks get one scale for each 256 values of
    /// a row, and so do the rows they are multiplied with. Blocks of fewer bits stay what they are, as with [`Self::AsStored`], and are
    /// widened to 8 bits while many rows are multiplied. Convolutions are `bf16`.
    Int8,
    /// As in the file: quantised blocks stay quantised (in place, or copied side by side where
    /// [that is faster](mgm_kernels::quant::prefers_interleaved)), `bf16` and `f16` stay what they are, the rest becomes `f32`.
    #[default]
    AsStored,
    /// Nothing is copied: matrices stay in their mapped file and are packed panel by panel in every product. For models larger than memory,
    /// which then run as fast as the disk allows. Quantised blocks are used in place; matrices
    /// that are in no file are packed.
    Mapped,
}

/// Low-rank adapters (LoRA, arXiv 2106.09685).
#[derive(Clone, Debug, PartialEq)]
pub struct LoraConfig {
    /// Rank of a new adapter. An adapter that the source holds keeps the rank of its tensors.
    pub rank: usize,
    /// The adapter's product is scaled by `alpha / rank`.
    pub alpha: f64,
    /// Patterns of the linear layers that get one, see [`matches_name`].
    pub targets: Vec<String>,
    /// Seed of new adapters; each layer draws from its own stream, so the order of loading does not matter.
    pub seed: u64,
}

/// Where weights go, what is trainable, and how the rest is stored.
#[derive(Clone, Debug)]
pub struct WeightPolicy {
    /// Device of all tensors.
    pub device: Device,
    /// Storage of frozen matrices.
    pub storage: WeightStorage,
    /// Patterns of full tensor names that become trainable `f32` variables, see [`matches_name`].
    pub trainable: Vec<String>,
    /// Adapters. A target whose `….lora_A.weight` is in the source uses it; it is trainable if its name matches
    /// `trainable` (say `lora_`), and only then is a missing one created. The base of an adapted layer stays frozen.
    pub lora: Option<LoraConfig>,
}

impl Default for WeightPolicy {
    /// Inference on the CPU with weights as stored.
    fn default() -> Self {
        Self {
            device: Device::Cpu,
            storage: WeightStorage::default(),
            trainable: Vec::new(),
            lora: None,
        }
    }
}

impl WeightPolicy {
    /// Whether the tensor with this full name is trained.
    pub fn is_trainable(&self, name: &str) -> bool {
        self.trainable
            .iter()
            .any(|pattern| matches_name(pattern, name))
    }
}

/// Whether `name` contains `pattern`, in which `*` stands for any text: `mm_projector`, `model.layers.*.q_proj`.
pub fn matches_name(pattern: &str, name: &str) -> bool {
    let mut rest = name;
    pattern.split('*').all(|piece| match rest.find(piece) {
        Some(at) => {
            rest = &rest[at + piece.len()..];
            true
        }
        None => false,
    })
}

#[cfg(test)]
mod tests {
    use super::matches_name;

    #[test]
    fn patterns_match_substrings_in_order() {
        let name = "model.layers.3.self_attn.q_proj.weight";
        assert!(matches_name("q_proj", name));
        assert!(matches_name("model.layers.*.q_proj", name));
        assert!(!matches_name("q_proj*model.layers", name));
        assert!(!matches_name("model.layers.*.k_proj", name));
        assert!(!matches_name(
            "model.layers.*.q_proj",
            "model.vision_tower.encoder.layers.3.self_attn.q_proj.weight"
        ));
    }
}
