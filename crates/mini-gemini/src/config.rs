//! `config.json` of a Mini-Gemini checkpoint: language model, towers, picture sizes (spec: model §9.5).

use std::path::Path;

use mgm_text::Template;
use serde::Deserialize;

use crate::decoder::{Activation, DecoderConfig, ExpertConfig};
use crate::error::{Error, Result};

/// Language-model family, found from `architectures`, then numeric keys, then the directory name.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Family {
    /// Gemma (MGM-2B).
    Gemma,
    /// Llama, Vicuna, Yi, Llama-3, SmolLM2.
    Llama,
    /// Mistral.
    Mistral,
    /// Mixtral (MGM-8x7B).
    Mixtral,
    /// Qwen2.
    Qwen2,
}

/// The keys of `config.json` that decide how a checkpoint is run. Unknown keys are ignored, as the releases hold many leftovers.
#[derive(Clone, Debug, Deserialize)]
pub struct ModelConfig {
    /// Class names, e.g. `MiniGeminiGemmaForCausalLM`.
    #[serde(default)]
    pub architectures: Vec<String>,
    /// Hugging Face model type; absent in several releases.
    pub model_type: Option<String>,
    /// The model that training started from: the base of a stage-1 folder.
    #[serde(rename = "_name_or_path")]
    pub name_or_path: Option<String>,
    /// Activation of the gated MLP as the base model's configuration names it.
    pub hidden_act: Option<String>,
    /// Stretched rotary positions; no supported model has them.
    pub rope_scaling: Option<serde_json::Value>,
    /// Weights stored in another program's quantised form; none is supported.
    pub quantization_config: Option<serde_json::Value>,
    /// Width of the language model.
    pub hidden_size: usize,
    /// Width of its gated MLP.
    pub intermediate_size: usize,
    /// Number of decoder layers.
    pub num_hidden_layers: usize,
    /// Query heads.
    pub num_attention_heads: usize,
    /// Key and value heads; equals the query heads when absent.
    pub num_key_value_heads: Option<usize>,
    /// Size of one head; `hidden_size / heads` when absent (256 for Gemma).
    pub head_dim: Option<usize>,
    /// Rows of the embedding.
    pub vocab_size: usize,
    /// RMSNorm epsilon.
    pub rms_norm_eps: Option<f64>,
    /// Rotary base.
    pub rope_theta: Option<f64>,
    /// `rope_parameters.rope_theta` of newer configuration files.
    pub rope_parameters: Option<RopeParameters>,
    /// Longest position the language model was made for.
    pub max_position_embeddings: Option<usize>,
    /// Whether the output head is the embedding.
    pub tie_word_embeddings: Option<bool>,
    /// Experts per layer (Mixtral).
    pub num_local_experts: Option<usize>,
    /// Experts used per token (Mixtral).
    pub num_experts_per_tok: Option<usize>,
    /// `gelu` numerics of Gemma: see [`GemmaNumerics`].
    #[serde(default)]
    pub gemma_numerics: GemmaNumerics,
    /// End-of-sequence id or ids.
    pub eos_token_id: Option<OneOrMany>,
    /// Beginning-of-sequence id.
    pub bos_token_id: Option<OneOrMany>,

    /// Name or path of the low-resolution tower; absent in a text-only model.
    pub mm_vision_tower: Option<String>,
    /// Name or path of the high-resolution tower.
    pub mm_vision_tower_aux: Option<String>,
    /// `linear`, `identity` or `mlp{N}x_gelu`.
    #[serde(default = "default_projector")]
    pub mm_projector_type: String,
    /// Width of the low-resolution features.
    pub mm_hidden_size: Option<usize>,
    /// Channels of the high-resolution map.
    pub mm_hidden_size_aux: Option<usize>,
    /// Hidden state taken from the low-resolution tower (-2 in all releases).
    #[serde(default = "default_select_layer")]
    pub mm_vision_select_layer: i64,
    /// `patch` (class token dropped) or `cls_patch`.
    #[serde(default = "default_select_feature")]
    pub mm_vision_select_feature: String,
    /// Side of the high-resolution picture in pixels.
    pub image_size_aux: Option<usize>,
    /// Crops per side (1, or 2 in HD models).
    pub image_grid: Option<usize>,
    /// Whether an overview is added to the crops.
    pub image_global: Option<bool>,
    /// `pad` or `square`.
    pub image_aspect_ratio: Option<String>,
    /// Positions after splicing that the model was trained with (2048, HD 4096).
    pub tokenizer_model_max_length: Option<usize>,

    /// Weight files relative to the directory, later ones override; found by the usual names when absent.
    pub weight_files: Option<Vec<String>>,
    /// Tokeniser file relative to the directory; found by the usual names when absent.
    pub tokenizer_file: Option<String>,
    /// Conversation template key; chosen from the family and name when absent.
    pub conversation_template: Option<String>,
    /// Rank and scale of the low-rank adapters stored in the weight files.
    pub lora: Option<LoraKeys>,
}

/// Low-rank adapter keys of a model directory.
#[derive(Clone, Debug, Deserialize)]
pub struct LoraKeys {
    /// Rank of A and B.
    pub rank: usize,
    /// Numerator of the scale `alpha / rank`.
    pub alpha: f64,
}

/// Rotary parameters in the layout of newer transformers releases.
#[derive(Clone, Debug, Deserialize)]
pub struct RopeParameters {
    /// Rotary base.
    pub rope_theta: Option<f64>,
}

/// One id or several.
#[derive(Clone, Debug, Deserialize)]
#[serde(untagged)]
pub enum OneOrMany {
    /// A single id.
    One(u32),
    /// Several ids.
    Many(Vec<u32>),
}

impl OneOrMany {
    /// All ids.
    pub fn ids(&self) -> Vec<u32> {
        match self {
            Self::One(id) => vec![*id],
            Self::Many(ids) => ids.clone(),
        }
    }
}

/// Which transformers release's Gemma the numbers follow (spec: model §9.3, pitfalls A13).
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum GemmaNumerics {
    /// 4.39 and later: tanh GELU. What the authors ran.
    #[default]
    Tanh,
    /// 4.38: erf GELU.
    Erf,
}

fn default_projector() -> String {
    "linear".into()
}
fn default_select_layer() -> i64 {
    -2
}
fn default_select_feature() -> String {
    "patch".into()
}

impl ModelConfig {
    /// Reads `config.json`.
    ///
    /// # Errors
    /// When the file cannot be read or a key has the wrong type; the message names file and key.
    pub fn read(path: &Path) -> Result<Self> {
        let bytes = std::fs::read(path).map_err(|source| Error::Io {
            path: path.into(),
            source,
        })?;
        serde_json::from_slice(&bytes).map_err(|error| Error::Config {
            file: path.into(),
            message: error.to_string(),
        })
    }

    /// The language-model family: from `architectures` and `model_type`, else from numeric keys.
    pub fn family(&self) -> Family {
        self.named_family()
            .unwrap_or_else(|| self.numeric_family().unwrap_or(Family::Llama))
    }

    /// The family that `architectures` or `model_type` names.
    fn named_family(&self) -> Option<Family> {
        let mut names = self.architectures.join(" ").to_lowercase();
        if let Some(model_type) = &self.model_type {
            names.push(' ');
            names.push_str(&model_type.to_lowercase());
        }
        let families = [
            ("gemma", Family::Gemma),
            ("mixtral", Family::Mixtral),
            ("mistral", Family::Mistral),
            ("qwen2", Family::Qwen2),
            ("llama", Family::Llama),
        ];
        let family = families
            .iter()
            .find(|(name, _)| names.contains(name))
            .map(|(_, family)| *family)?;
        // Experts are never left out, whatever the class is called.
        Some(match self.num_local_experts {
            Some(_) => Family::Mixtral,
            None => family,
        })
    }

    /// The family that only one set of sizes can belong to.
    fn numeric_family(&self) -> Option<Family> {
        if self.num_local_experts.is_some() {
            Some(Family::Mixtral)
        } else if self.head_dim == Some(256) || self.vocab_size == 256_000 {
            Some(Family::Gemma)
        } else {
            None
        }
    }

    /// Settles the family of a configuration that names none, by its numeric keys or else by the model's name (spec: model §9.5).
    pub fn settle_family(&mut self, model_name: &str) {
        // A class of an unknown name is refused by `check`, not guessed at.
        if self.named_family().is_some() || !self.architectures.is_empty() {
            return;
        }
        let template = Template::for_model_name(model_name).name();
        let family = self.numeric_family().unwrap_or(match template {
            "gemma" => Family::Gemma,
            "mistral_instruct" => Family::Mixtral,
            _ => Family::Llama,
        });
        let model_type = match family {
            Family::Gemma => "gemma",
            Family::Mixtral => "mixtral",
            Family::Mistral => "mistral",
            Family::Qwen2 => "qwen2",
            Family::Llama => "llama",
        };
        self.model_type = Some(model_type.into());
    }

    /// Whether this program computes what the configuration asks for: unknown classes and variants are refused rather than run wrongly.
    ///
    /// # Errors
    /// Naming the key, what was expected and what was found.
    pub fn check(&self, file: &Path) -> Result<()> {
        let bad = |message: String| Error::Config {
            file: file.into(),
            message,
        };
        let names = self.architectures.join(" ").to_lowercase();
        let model_type = self
            .model_type
            .as_deref()
            .unwrap_or_default()
            .to_lowercase();
        let others = [
            "gemma2",
            "gemma3",
            "gemma4",
            "llama4",
            "qwen2moe",
            "qwen2_moe",
            "qwen2vl",
            "qwen2_vl",
            "qwen2_5",
        ];
        let other = others
            .iter()
            .find(|other| names.contains(**other) || model_type.contains(**other));
        if other.is_some() || (!names.is_empty() && self.named_family().is_none()) {
            return Err(bad(format!(
                "architectures {:?}, model_type `{model_type}`: expected a model of the Gemma, Llama, Mistral, Mixtral or Qwen2 class",
                self.architectures
            )));
        }
        if let Some(quantised) = self
            .quantization_config
            .as_ref()
            .filter(|value| !value.is_null())
        {
            let method = quantised
                .get("quant_method")
                .and_then(|method| method.as_str())
                .unwrap_or("unknown");
            return Err(bad(format!(
                "quantization_config: weights quantised by `{method}` cannot be read; use the unquantised release"
            )));
        }
        if let Some(scaling) = self.rope_scaling.as_ref().filter(|value| !value.is_null()) {
            let kind = ["rope_type", "type"]
                .iter()
                .find_map(|key| scaling.get(key)?.as_str())
                .unwrap_or("unknown");
            if kind != "default" {
                return Err(bad(format!("rope_scaling of type `{kind}`: expected none")));
            }
        }
        let activation = self.hidden_act.as_deref();
        let fits = match self.family() {
            // Gemma's key says `gelu`, which the releases' library reads as the tanh form (spec: model §9.3).
            Family::Gemma => activation.is_none_or(|name| name.starts_with("gelu")),
            _ => activation.is_none_or(|name| ["silu", "swish"].contains(&name)),
        };
        if !fits {
            return Err(bad(format!(
                "hidden_act is `{}`: expected {}",
                activation.unwrap_or_default(),
                if self.family() == Family::Gemma {
                    "gelu"
                } else {
                    "silu"
                }
            )));
        }
        Ok(())
    }

    /// The decoder's hyper-parameters.
    ///
    /// # Errors
    /// When sizes contradict each other.
    pub fn decoder(&self, file: &Path) -> Result<DecoderConfig> {
        let family = self.family();
        let bad = |message: String| Error::Config {
            file: file.into(),
            message,
        };
        let heads = self.num_attention_heads;
        let kv_heads = self.num_key_value_heads.unwrap_or(heads);
        if heads == 0 || kv_heads == 0 || !heads.is_multiple_of(kv_heads) {
            return Err(bad(format!(
                "num_attention_heads {heads} is not a positive multiple of num_key_value_heads {kv_heads}"
            )));
        }
        let head_dim = match self.head_dim {
            Some(head_dim) => head_dim,
            None if family == Family::Gemma => 256,
            None if self.hidden_size.is_multiple_of(heads) => self.hidden_size / heads,
            None => {
                return Err(bad(format!(
                    "hidden_size {} is not a multiple of num_attention_heads {heads}",
                    self.hidden_size
                )));
            }
        };
        let sizes = [
            ("num_hidden_layers", self.num_hidden_layers),
            ("hidden_size", self.hidden_size),
            ("intermediate_size", self.intermediate_size),
            ("vocab_size", self.vocab_size),
            ("head_dim", head_dim),
            ("num_attention_heads", heads),
            ("num_local_experts", self.num_local_experts.unwrap_or(1)),
        ];
        // Far above any model; products of two such numbers stay within 64 bits.
        const LARGEST: usize = 1 << 24;
        if let Some((key, value)) = sizes.iter().find(|(_, size)| !(1..=LARGEST).contains(size)) {
            return Err(bad(format!("{key} is {value}: expected 1 to {LARGEST}")));
        }
        if head_dim == 0 || !head_dim.is_multiple_of(2) {
            return Err(bad(format!(
                "head size {head_dim}: expected an even number"
            )));
        }
        let rope_theta = self
            .rope_theta
            .or_else(|| {
                self.rope_parameters
                    .as_ref()
                    .and_then(|parameters| parameters.rope_theta)
            })
            .unwrap_or(1e4);
        Ok(DecoderConfig {
            hidden_size: self.hidden_size,
            intermediate_size: self.intermediate_size,
            layers: self.num_hidden_layers,
            heads,
            kv_heads,
            head_dim,
            vocab_size: self.vocab_size,
            norm_eps: self.rms_norm_eps.unwrap_or(1e-6),
            norm_offset: if family == Family::Gemma { 1.0 } else { 0.0 },
            activation: match (family, self.gemma_numerics) {
                (Family::Gemma, GemmaNumerics::Tanh) => Activation::GeluTanh,
                (Family::Gemma, GemmaNumerics::Erf) => Activation::GeluErf,
                _ => Activation::Silu,
            },
            rope_theta,
            embedding_scale: (family == Family::Gemma).then(|| (self.hidden_size as f64).sqrt()),
            experts: match (family, self.num_local_experts) {
                (Family::Mixtral, count) => Some(ExpertConfig {
                    count: count.unwrap_or(8),
                    per_token: self.num_experts_per_tok.unwrap_or(2),
                }),
                _ => None,
            },
            tied_head: self.tie_word_embeddings.unwrap_or(family == Family::Gemma),
        })
    }

    /// Positions a prompt may fill: the training limit when known, else the language model's.
    pub fn context_limit(&self) -> usize {
        self.tokenizer_model_max_length
            .or(self.max_position_embeddings)
            .unwrap_or(2048)
    }

    /// Crops per side of the low-resolution picture.
    pub fn grid(&self) -> usize {
        self.image_grid.unwrap_or(1)
    }
}
