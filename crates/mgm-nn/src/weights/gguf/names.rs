//! From GGUF tensor names to Hugging Face names.

/// Hugging Face name of a tensor of a text model (`llama`, `qwen2`, `qwen3`, `gemma` and their like); `None` for a tensor
/// that has no counterpart (rotary frequencies) or is a stack of experts.
pub(crate) fn hugging_face(name: &str) -> Option<String> {
    let (stem, suffix) = name.rsplit_once('.')?;
    let outer = match stem {
        "token_embd" => Some("model.embed_tokens"),
        "output_norm" => Some("model.norm"),
        "output" => Some("lm_head"),
        _ => None,
    };
    if let Some(outer) = outer {
        return Some(format!("{outer}.{suffix}"));
    }
    let (layer, part) = block_part(stem)?;
    let part = match part {
        "attn_norm" => "input_layernorm",
        "ffn_norm" => "post_attention_layernorm",
        "attn_q" => "self_attn.q_proj",
        "attn_k" => "self_attn.k_proj",
        "attn_v" => "self_attn.v_proj",
        "attn_output" => "self_attn.o_proj",
        "attn_q_norm" => "self_attn.q_norm",
        "attn_k_norm" => "self_attn.k_norm",
        "ffn_gate" => "mlp.gate_proj",
        "ffn_up" => "mlp.up_proj",
        "ffn_down" => "mlp.down_proj",
        "ffn_gate_inp" => "block_sparse_moe.gate",
        _ => return None,
    };
    Some(format!("model.layers.{layer}.{part}.{suffix}"))
}

/// For a stack of Mixtral experts `[experts, out, in]`: the names of the single ones are
/// `{prefix}.{expert}.{part}.weight`.
pub(crate) fn expert_stack(name: &str) -> Option<(String, &'static str)> {
    let (layer, part) = block_part(name.strip_suffix(".weight")?)?;
    let part = match part {
        "ffn_gate_exps" => "w1",
        "ffn_down_exps" => "w2",
        "ffn_up_exps" => "w3",
        _ => return None,
    };
    Some((
        format!("model.layers.{layer}.block_sparse_moe.experts"),
        part,
    ))
}

fn block_part(stem: &str) -> Option<(usize, &str)> {
    let (layer, part) = stem.strip_prefix("blk.")?.split_once('.')?;
    Some((layer.parse().ok()?, part))
}
