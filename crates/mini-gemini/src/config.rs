//! `config.json` of a Mini-Gemini checkpoint: language model, towers, picture sizes (spec: model §9.5).

use std::path::Path;

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

    /// The language-model family.
    pub fn family(&self) -> Family {
        let mut names = self.architectures.join(" ").to_lowercase();
        if let Some(model_type) = &self.model_type {
            names.push(' ');
            names.push_str(&model_type.to_lowercase());
        }
        if names.contains("gemma") {
            Family::Gemma
        } else if names.contains("mixtral") || self.num_local_experts.is_some() {
            Family::Mixtral
        } else if names.contains("mistral") {
            Family::Mistral
        } else if names.contains("qwen2") {
            Family::Qwen2
        } else if self.architectures.is_empty() && self.head_dim == Some(256) {
            Family::Gemma
        } else {
            Family::Llama
        }
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
