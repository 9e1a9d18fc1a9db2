//! The keys of a language file: writing them from a configuration, and reading a configuration from them.

use std::path::Path;

use mgm_nn::{GgufMetadata, GgufValueOut, WeightSource};
use serde_json::{Map, Value, json};

use super::{VERSION, VERSION_KEY};
use crate::config::{Family, GemmaNumerics, ModelConfig};
use crate::decoder::DecoderConfig;
use crate::error::{Error, Result};

/// llama.cpp's architecture for a family.
pub(super) fn architecture(family: Family) -> &'static str {
    match family {
        Family::Gemma => "gemma",
        Family::Qwen2 => "qwen2",
        Family::Llama | Family::Mistral | Family::Mixtral => "llama",
    }
}

fn family_name(family: Family) -> &'static str {
    match family {
        Family::Gemma => "gemma",
        Family::Llama => "llama",
        Family::Mistral => "mistral",
        Family::Mixtral => "mixtral",
        Family::Qwen2 => "qwen2",
    }
}

/// What goes into the keys besides the configuration.
pub(super) struct LanguageFacts<'a> {
    pub(super) name: &'a str,
    pub(super) template: &'a str,
    pub(super) file_type: u32,
    pub(super) with_vision: bool,
}

/// All keys but the tokeniser's, in the order llama.cpp's converter writes them, our own last.
pub(super) fn metadata(
    config: &ModelConfig,
    decoder: &DecoderConfig,
    facts: &LanguageFacts,
) -> Result<Vec<(String, GgufValueOut)>> {
    let family = config.family();
    let arch = architecture(family);
    let mut keys: Vec<(String, GgufValueOut)> = Vec::new();
    let general = |name: &str| format!("general.{name}");
    let of_arch = |name: &str| format!("{arch}.{name}");
    let number = |name: &str, value: usize| -> Result<GgufValueOut> {
        let value = u32::try_from(value)
            .map_err(|_| Error::Input(format!("{name} {value} is more than a file can say")))?;
        Ok(GgufValueOut::U32(value))
    };
    keys.push((general("architecture"), arch.into()));
    keys.push((general("type"), "model".into()));
    keys.push((general("name"), facts.name.into()));
    keys.push((general("file_type"), facts.file_type.into()));
    keys.push((general("quantization_version"), 2u32.into()));
    let positions = config
        .max_position_embeddings
        .unwrap_or_else(|| config.context_limit());
    for (name, value) in [
        ("block_count", decoder.layers),
        ("context_length", positions),
        ("embedding_length", decoder.hidden_size),
        ("feed_forward_length", decoder.intermediate_size),
        ("attention.head_count", decoder.heads),
        ("attention.head_count_kv", decoder.kv_heads),
        ("attention.key_length", decoder.head_dim),
        ("attention.value_length", decoder.head_dim),
        ("rope.dimension_count", decoder.head_dim),
        ("vocab_size", decoder.vocab_size),
    ] {
        keys.push((of_arch(name), number(name, value)?));
    }
    keys.push((
        of_arch("attention.layer_norm_rms_epsilon"),
        (decoder.norm_eps as f32).into(),
    ));
    keys.push((
        of_arch("rope.freq_base"),
        (decoder.rope_theta as f32).into(),
    ));
    if let Some(experts) = decoder.experts {
        keys.push((of_arch("expert_count"), number("experts", experts.count)?));
        keys.push((
            of_arch("expert_used_count"),
            number("experts per token", experts.per_token)?,
        ));
    }
    keys.push((VERSION_KEY.into(), VERSION.into()));
    keys.push(("mini_gemini.family".into(), family_name(family).into()));
    keys.push(("mini_gemini.template".into(), facts.template.into()));
    keys.push(("mini_gemini.vision".into(), facts.with_vision.into()));
    if let Some(limit) = config.tokenizer_model_max_length {
        keys.push((
            "mini_gemini.sequence_limit".into(),
            number("tokenizer_model_max_length", limit)?,
        ));
    }
    if family == Family::Gemma {
        let numerics = match config.gemma_numerics {
            GemmaNumerics::Tanh => "tanh",
            GemmaNumerics::Erf => "erf",
        };
        keys.push(("mini_gemini.gemma_numerics".into(), numerics.into()));
    }
    if let Some(ids) = &config.eos_token_id {
        keys.push(("mini_gemini.eos_token_ids".into(), ids.ids().into()));
    }
    Ok(keys)
}

/// The configuration a language file stands for, as the keys of a `config.json`. Works for any llama.cpp file of a supported architecture;
/// our own keys are used where they are there.
pub(super) fn config_keys(
    file: &Path,
    metadata: &GgufMetadata,
    weights: &WeightSource,
) -> Result<Map<String, Value>> {
    let bad = |message: String| Error::Config {
        file: file.into(),
        message,
    };
    check_version(file, metadata.get(VERSION_KEY).is_some(), || {
        metadata.unsigned(VERSION_KEY)
    })?;
    let arch = metadata
        .architecture()
        .ok_or_else(|| bad("general.architecture: the key is missing".into()))?;
    if !["gemma", "llama", "qwen2"].contains(&arch) {
        return Err(bad(format!(
            "general.architecture: expected gemma, llama or qwen2, found {arch}"
        )));
    }
    let number = |name: &str| metadata.unsigned(&format!("{arch}.{name}"));
    let required = |name: &str| {
        number(name).ok_or_else(|| bad(format!("{arch}.{name}: expected an integer, found none")))
    };
    let experts = number("expert_count").filter(|&count| count > 0);
    let family = match metadata.string("mini_gemini.family") {
        Some(name) if ["gemma", "llama", "mistral", "mixtral", "qwen2"].contains(&name) => name,
        Some(other) => {
            return Err(bad(format!(
                "mini_gemini.family: expected gemma, llama, mistral, mixtral or qwen2, found {other}"
            )));
        }
        None if arch == "llama" && experts.is_some() => "mixtral",
        None => arch,
    };
    let scaling = metadata.string(&format!("{arch}.rope.scaling.type"));
    if let Some(kind) = scaling.filter(|kind| *kind != "none") {
        return Err(bad(format!(
            "{arch}.rope.scaling.type: expected none, found {kind}: scaled rotary positions are not supported"
        )));
    }
    if weights.contains("rope_freqs.weight") {
        return Err(bad(
            "tensor rope_freqs.weight: scaled rotary frequencies (Llama 3.1 and later) are not supported"
                .into(),
        ));
    }
    let rows = weights
        .shape("model.embed_tokens.weight")
        .and_then(|shape| shape.first().copied())
        .ok_or_else(|| {
            bad("tensor token_embd.weight is missing: not a language model's file".into())
        })?;
    let theta = metadata
        .float(&format!("{arch}.rope.freq_base"))
        .unwrap_or(1e4);
    let eps = metadata
        .float(&format!("{arch}.attention.layer_norm_rms_epsilon"))
        .ok_or_else(|| {
            bad(format!(
                "{arch}.attention.layer_norm_rms_epsilon: expected a number, found none"
            ))
        })?;

    let mut keys = Map::new();
    let mut put = |key: &str, value: Value| {
        if !value.is_null() {
            keys.insert(key.into(), value);
        }
    };
    let class = match family {
        "gemma" => "MiniGeminiGemmaForCausalLM",
        "mistral" => "MiniGeminiMistralForCausalLM",
        "mixtral" => "MiniGeminiMixtralForCausalLM",
        "qwen2" => "MiniGeminiQwen2ForCausalLM",
        _ => "MiniGeminiLlamaForCausalLM",
    };
    put("architectures", json!([class]));
    put("hidden_size", required("embedding_length")?.into());
    put("intermediate_size", required("feed_forward_length")?.into());
    put("num_hidden_layers", required("block_count")?.into());
    put(
        "num_attention_heads",
        required("attention.head_count")?.into(),
    );
    put(
        "num_key_value_heads",
        number("attention.head_count_kv").into(),
    );
    put(
        "head_dim",
        number("attention.key_length")
            .or_else(|| number("rope.dimension_count"))
            .into(),
    );
    put("vocab_size", rows.into());
    put("rms_norm_eps", json!(shortest(eps)));
    put("rope_theta", json!(shortest(theta)));
    put("max_position_embeddings", number("context_length").into());
    put(
        "tie_word_embeddings",
        (!weights.contains("lm_head.weight")).into(),
    );
    put("num_local_experts", experts.into());
    put("num_experts_per_tok", number("expert_used_count").into());
    put("gemma_numerics", {
        metadata.string("mini_gemini.gemma_numerics").into()
    });
    let own_ids = metadata.integers("mini_gemini.eos_token_ids");
    put(
        "eos_token_id",
        match own_ids {
            Some(ids) => json!(ids),
            None => metadata.unsigned("tokenizer.ggml.eos_token_id").into(),
        },
    );
    put(
        "bos_token_id",
        metadata.unsigned("tokenizer.ggml.bos_token_id").into(),
    );
    put(
        "tokenizer_model_max_length",
        metadata.unsigned("mini_gemini.sequence_limit").into(),
    );
    put(
        "conversation_template",
        metadata
            .string("mini_gemini.template")
            .or_else(|| template_of(metadata.string("tokenizer.chat_template")?))
            .into(),
    );
    Ok(keys)
}

/// The conversation template that the Jinja template of a foreign file amounts to, told by its markers.
fn template_of(jinja: &str) -> Option<&'static str> {
    let markers = [
        ("<start_of_turn>", "gemma"),
        ("<|start_header_id|>", "llama_3"),
        ("<|im_start|>", "smollm2"),
        ("[INST]", "mistral_instruct"),
        ("USER:", "vicuna_v1"),
    ];
    markers
        .iter()
        .find(|(marker, _)| jinja.contains(marker))
        .map(|(_, template)| *template)
}

/// The number whose `f32` form this is: 1e-5 rather than 0.000009999999747….
fn shortest(value: f64) -> f64 {
    (value as f32).to_string().parse().unwrap_or(value)
}

/// Refuses files of a later version of our keys.
pub(super) fn check_version(
    file: &Path,
    present: bool,
    version: impl Fn() -> Option<u64>,
) -> Result<()> {
    match version() {
        Some(version) if version <= u64::from(VERSION) => Ok(()),
        None if !present => Ok(()),
        found => Err(Error::Config {
            file: file.into(),
            message: format!(
                "version of the Mini-Gemini keys: expected at most {VERSION}, found {}",
                found.map_or("no integer".into(), |found| found.to_string())
            ),
        }),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn floats_come_back_as_they_were_written() {
        assert_eq!(shortest(f64::from(1e-5f32)), 1e-5);
        assert_eq!(shortest(f64::from(1e-6f32)), 1e-6);
        assert_eq!(shortest(f64::from(5e5f32)), 5e5);
        assert_eq!(shortest(10_000.0), 1e4);
    }

    #[test]
    fn foreign_chat_templates_are_recognised() {
        assert_eq!(
            template_of("{{ '<|im_start|>' + message.role }}"),
            Some("smollm2")
        );
        assert_eq!(
            template_of("[INST] {{ x }} [/INST]"),
            Some("mistral_instruct")
        );
        assert_eq!(template_of("plain"), None);
    }
}
