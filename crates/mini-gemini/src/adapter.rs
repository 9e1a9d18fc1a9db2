//! PEFT adapter folders: `adapter_config.json`, `adapter_model.safetensors` (or `.bin`), and what was trained besides.

use std::collections::{BTreeSet, HashMap};
use std::path::Path;

use indexmap::IndexMap;
use mgm_nn::{LoraConfig, WeightSource};
use serde::Deserialize;

use crate::checkpoint::Checkpoint;
use crate::error::{Error, Result};
use crate::layout::{ADAPTER_CONFIG, ADAPTER_WEIGHTS, NON_LORA_WEIGHTS, first_of, open_first_of};

/// The keys of `adapter_config.json` that decide what the adapter computes.
#[derive(Debug, Deserialize)]
pub(crate) struct AdapterConfig {
    peft_type: Option<String>,
    r: usize,
    lora_alpha: f64,
    #[serde(default)]
    use_rslora: bool,
    #[serde(default)]
    use_dora: bool,
    #[serde(default)]
    lora_bias: bool,
    #[serde(default)]
    fan_in_fan_out: bool,
    layer_replication: Option<serde_json::Value>,
    #[serde(default)]
    rank_pattern: IndexMap<String, usize>,
    #[serde(default)]
    alpha_pattern: IndexMap<String, f64>,
    /// The model the adapter was trained on.
    pub(crate) base_model_name_or_path: Option<String>,
}

impl AdapterConfig {
    /// Reads and checks `adapter_config.json` of a folder.
    ///
    /// # Errors
    /// When it is missing, malformed, or asks for something other than plain LoRA.
    pub(crate) fn read(folder: &Path) -> Result<Self> {
        let file = folder.join(ADAPTER_CONFIG);
        let bytes = std::fs::read(&file).map_err(|source| Error::Io {
            path: file.clone(),
            source,
        })?;
        let bad = |message: String| Error::Config {
            file: file.clone(),
            message,
        };
        let config: Self =
            serde_json::from_slice(&bytes).map_err(|error| bad(error.to_string()))?;
        if let Some(kind) = &config.peft_type
            && kind != "LORA"
        {
            return Err(bad(format!("peft_type is {kind}: expected LORA")));
        }
        let unsupported = [
            ("use_dora", config.use_dora),
            ("lora_bias", config.lora_bias),
            ("fan_in_fan_out", config.fan_in_fan_out),
            (
                "layer_replication",
                config
                    .layer_replication
                    .as_ref()
                    .is_some_and(|value| !value.is_null()),
            ),
        ];
        if let Some((key, _)) = unsupported.iter().find(|(_, set)| *set) {
            return Err(bad(format!(
                "{key} is set: such adapters cannot be loaded; merge it with the PEFT library"
            )));
        }
        if config.r == 0 || !config.lora_alpha.is_finite() {
            return Err(bad(format!(
                "r is {} and lora_alpha {}: expected a rank of 1 or more and a finite number",
                config.r, config.lora_alpha
            )));
        }
        let patterns = config
            .rank_pattern
            .keys()
            .chain(config.alpha_pattern.keys());
        for pattern in patterns {
            if pattern.contains(['*', '^', '$', '|', '(', '[', '\\', '+', '?']) {
                return Err(bad(format!(
                    "rank_pattern or alpha_pattern `{pattern}`: expected module names, found a regular expression"
                )));
            }
        }
        Ok(config)
    }

    /// Rank and scale of the adapter of `module` (`model.layers.0.self_attn.q_proj`).
    fn rank_and_scale(&self, module: &str) -> (usize, f64) {
        let rank = matching(&self.rank_pattern, module).unwrap_or(self.r);
        let alpha = matching(&self.alpha_pattern, module).unwrap_or(self.lora_alpha);
        let divisor = if self.use_rslora {
            (rank as f64).sqrt()
        } else {
            rank as f64
        };
        (rank, alpha / divisor)
    }
}

/// The value of the first pattern, in the file's order, that is the module's name or the end of it (PEFT's rule).
fn matching<T: Copy>(patterns: &IndexMap<String, T>, module: &str) -> Option<T> {
    patterns
        .iter()
        .find(|(pattern, _)| {
            module
                .strip_suffix(pattern.as_str())
                .is_some_and(|before| before.is_empty() || before.ends_with('.'))
        })
        .map(|(_, value)| *value)
}

/// The checkpoint with the adapter of `folder` applied.
///
/// # Errors
/// When the folder's files are missing or wrong, or the adapter does not fit the model.
pub(crate) fn apply(mut checkpoint: Checkpoint, folder: &Path) -> Result<Checkpoint> {
    let config = AdapterConfig::read(folder)?;
    let weights_file = first_of(folder, &ADAPTER_WEIGHTS).ok_or_else(|| Error::MissingFile {
        directory: folder.into(),
        file: ADAPTER_WEIGHTS.join(" or "),
    })?;
    if checkpoint.lora.is_some() {
        return Err(Error::Adapter {
            file: weights_file,
            message: "the model has low-rank adapters already: merge them first (mgm models merge)"
                .into(),
        });
    }
    let adapter = WeightSource::open(&weights_file)?.renamed(adapter_name);
    let modules = Modules::of(&adapter, &checkpoint.weights, &weights_file)?;
    let alpha = config.lora_alpha;
    let mut rescaled = HashMap::new();
    for module in &modules.names {
        let (rank, scale) = config.rank_and_scale(module);
        let down = format!("{module}.lora_A.weight");
        let stored = adapter.shape(&down).unwrap_or_default();
        if stored.first() != Some(&rank) {
            return Err(Error::Adapter {
                file: weights_file,
                message: format!(
                    "tensor {down} has shape {stored:?}, expected {rank} rows, the rank in {ADAPTER_CONFIG}"
                ),
            });
        }
        // The layers scale by alpha / rank with one alpha; what differs from that goes into B.
        let factor = scale / (alpha / rank as f64);
        if factor != 1.0 {
            let up = format!("{module}.lora_B.weight");
            let tensor = (adapter.tensor_any(&up)? * factor)?;
            rescaled.insert(up, tensor);
        }
    }
    checkpoint.lora = Some(LoraConfig {
        rank: config.r,
        alpha,
        targets: modules.names.into_iter().collect(),
        seed: 0,
    });
    let mut weights = checkpoint.weights;
    if first_of(folder, &NON_LORA_WEIGHTS).is_some() {
        let trained = open_first_of(folder, &NON_LORA_WEIGHTS)?;
        weights = weights.overlay(trained.renamed(non_lora_name));
    }
    weights = weights.overlay(adapter);
    if !rescaled.is_empty() {
        weights = weights.overlay(WeightSource::from_tensors(rescaled));
    }
    checkpoint.weights = weights;
    checkpoint
        .notes
        .push(format!("adapter read from {}", folder.display()));
    Ok(checkpoint)
}

/// The linear layers that an adapter file adapts.
struct Modules {
    names: BTreeSet<String>,
}

impl Modules {
    /// Takes the names apart and checks that every one is an adapter half of a layer that `base` has, or replaces a whole tensor of it.
    fn of(adapter: &WeightSource, base: &WeightSource, file: &Path) -> Result<Self> {
        let wrong = |message: String| Error::Adapter {
            file: file.to_path_buf(),
            message,
        };
        let mut names = BTreeSet::new();
        for name in adapter.names() {
            let module = [".lora_A.weight", ".lora_B.weight"]
                .iter()
                .find_map(|half| name.strip_suffix(half));
            let Some(module) = module else {
                if base.contains(&name) {
                    continue;
                }
                return Err(wrong(format!(
                    "tensor {name}: neither an adapter of a linear layer (…lora_A.weight, …lora_B.weight) nor a tensor of the model"
                )));
            };
            if !takes_adapter(module) {
                return Err(wrong(format!(
                    "tensor {name}: adapters of this layer cannot be applied"
                )));
            }
            let weight = base.shape(&format!("{module}.weight"));
            let Some([out_features, in_features]) = weight.as_deref() else {
                return Err(wrong(format!(
                    "tensor {name} adapts {module}, which the model does not have"
                )));
            };
            let shape = adapter.shape(&name).unwrap_or_default();
            let fits = match shape.as_slice() {
                [_, columns] if name.ends_with("lora_A.weight") => columns == in_features,
                [rows, _] => rows == out_features,
                _ => false,
            };
            if !fits {
                return Err(wrong(format!(
                    "tensor {name} has shape {shape:?}, which does not fit {module}.weight [{out_features}, {in_features}]"
                )));
            }
            names.insert(module.to_string());
        }
        for module in &names {
            let half = |half: &str| adapter.shape(&format!("{module}.{half}.weight"));
            match (half("lora_A"), half("lora_B")) {
                (Some(a), Some(b)) if a[0] == b[1] => {}
                (Some(a), Some(b)) => {
                    return Err(wrong(format!(
                        "{module}: lora_A {a:?} and lora_B {b:?} differ in rank"
                    )));
                }
                (a, _) => {
                    let missing = if a.is_some() { "lora_B" } else { "lora_A" };
                    return Err(wrong(format!(
                        "tensor {module}.{missing}.weight is missing"
                    )));
                }
            }
        }
        if names.is_empty() {
            return Err(wrong("it holds no …lora_A.weight tensors".into()));
        }
        Ok(Self { names })
    }
}

/// Layers that the model loads as linear layers with room for an adapter.
fn takes_adapter(module: &str) -> bool {
    module == "lm_head"
        || [
            "model.layers.",
            "model.mm_projector",
            "model.vlm_uni_query_projector",
            "model.vision_tower.",
        ]
        .iter()
        .any(|prefix| module.starts_with(prefix))
}

/// `base_model.model.model.layers.0.self_attn.q_proj.lora_A.default.weight` to `model.layers.0.self_attn.q_proj.lora_A.weight`.
fn adapter_name(name: &str) -> Option<String> {
    let name = name.strip_prefix("base_model.model.").unwrap_or(name);
    let name = name.replace(".base_layer.", ".");
    for half in [".lora_A.", ".lora_B."] {
        if let Some((module, rest)) = name.split_once(half)
            && rest.ends_with("weight")
        {
            return Some(format!("{module}{half}weight"));
        }
    }
    if let Some((module, rest)) = name.split_once(".modules_to_save.") {
        let part = rest.rsplit('.').next()?;
        return Some(format!("{module}.{part}"));
    }
    Some(name)
}

/// Names in `non_lora_trainables`, which carry the wrapper's prefix (once or twice).
fn non_lora_name(name: &str) -> Option<String> {
    let name = name.strip_prefix("base_model.").unwrap_or(name);
    Some(match name.strip_prefix("model.model.") {
        Some(inner) => format!("model.{inner}"),
        None if name.starts_with("model.lm_head.") => name.trim_start_matches("model.").into(),
        None => name.into(),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_lose_their_wrappers() {
        let module = "model.layers.0.self_attn.q_proj";
        for name in [
            format!("base_model.model.{module}.lora_A.weight"),
            format!("base_model.model.{module}.lora_A.default.weight"),
        ] {
            assert_eq!(adapter_name(&name), Some(format!("{module}.lora_A.weight")));
        }
        assert_eq!(
            adapter_name("base_model.model.lm_head.modules_to_save.default.weight").as_deref(),
            Some("lm_head.weight")
        );
        for (stored, expected) in [
            (
                "base_model.model.model.mm_projector.0.weight",
                "model.mm_projector.0.weight",
            ),
            ("base_model.model.lm_head.weight", "lm_head.weight"),
            ("model.mm_projector.0.weight", "model.mm_projector.0.weight"),
            ("lm_head.weight", "lm_head.weight"),
        ] {
            assert_eq!(non_lora_name(stored).as_deref(), Some(expected));
        }
    }

    #[test]
    fn ranks_and_scales_follow_the_patterns() {
        let text = r#"{"peft_type": "LORA", "r": 8, "lora_alpha": 16, "rank_pattern": {"layers.1.self_attn.q_proj": 2, "q_proj": 4},
            "alpha_pattern": {"model.layers.0.mlp.up_proj": 4}}"#;
        let mut config: AdapterConfig = serde_json::from_str(text).unwrap();
        let cases = [
            ("model.layers.0.self_attn.v_proj", (8, 2.0)),
            ("model.layers.0.self_attn.q_proj", (4, 4.0)),
            ("model.layers.1.self_attn.q_proj", (2, 8.0)),
            ("model.layers.11.self_attn.q_proj", (4, 4.0)),
            ("model.layers.0.mlp.up_proj", (8, 0.5)),
        ];
        for (module, expected) in cases {
            assert_eq!(config.rank_and_scale(module), expected, "{module}");
        }
        config.use_rslora = true;
        assert_eq!(
            config.rank_and_scale("model.layers.0.self_attn.q_proj"),
            (4, 8.0)
        );
    }
}
