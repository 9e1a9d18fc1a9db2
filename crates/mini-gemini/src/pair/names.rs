//! Tensor names: the official checkpoint's, and those in the two files.

/// Official prefixes of everything visual and what stands for them in a vision file; the rest of a name is the official one. ggml allows 63
/// bytes a name, which the official ones exceed. The first prefix that fits counts, in both directions.
const VISION: [(&str, &str); 8] = [
    (
        "model.vision_tower.vision_tower.vision_model.",
        "low_res.clip.",
    ),
    ("model.vision_tower.vision_tower.", "low_res.vit."),
    ("model.vision_tower.", "low_res."),
    ("model.vision_tower_aux.", "high_res."),
    ("model.vlm_uni_query_projector.", "mining.query."),
    ("model.vlm_uni_aux_projector.", "mining.key."),
    ("model.vlm_uni_val_projector.", "mining.value."),
    ("model.mm_projector.", "projector."),
];

/// Name in a vision file of a tensor with this official name; `None` if it is none of the visual ones.
pub(super) fn vision_name(official: &str) -> Option<String> {
    VISION
        .iter()
        .find_map(|(long, short)| Some(format!("{short}{}", official.strip_prefix(long)?)))
}

/// The inverse of [`vision_name`].
pub(super) fn official_vision_name(name: &str) -> Option<String> {
    VISION
        .iter()
        .find_map(|(long, short)| Some(format!("{long}{}", name.strip_prefix(short)?)))
}

/// The parts of one decoder layer: official name, and name in a language file without `blk.N.`.
pub(super) const ATTENTION: [(&str, &str); 4] = [
    ("self_attn.q_proj", "attn_q"),
    ("self_attn.k_proj", "attn_k"),
    ("self_attn.v_proj", "attn_v"),
    ("self_attn.o_proj", "attn_output"),
];
/// The gated MLP.
pub(super) const MLP: [(&str, &str); 3] = [
    ("mlp.gate_proj", "ffn_gate"),
    ("mlp.up_proj", "ffn_up"),
    ("mlp.down_proj", "ffn_down"),
];
/// The matrices of Mixtral's experts, and the stack they become.
pub(super) const EXPERTS: [(&str, &str); 3] = [
    ("w1", "ffn_gate_exps"),
    ("w3", "ffn_up_exps"),
    ("w2", "ffn_down_exps"),
];

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn vision_names_are_short_and_come_back() {
        for name in [
            "model.vision_tower.vision_tower.vision_model.encoder.layers.23.self_attn.out_proj.weight",
            "model.vision_tower.vision_tower.vision_model.pre_layrnorm.bias",
            "model.vision_tower.vision_tower.encoder.layer.11.attention.attention.query.weight",
            "model.vision_tower.feature_norm.mean",
            "model.vision_tower_aux.vision_stages.2.blocks.26.mlp.fc1.weight",
            "model.vision_tower_aux.feature_norm.3.std",
            "model.vlm_uni_query_projector.1.weight",
            "model.vlm_uni_aux_projector.0.bias",
            "model.vlm_uni_val_projector.1.weight",
            "model.mm_projector.2.weight",
            "model.mm_projector.weight",
        ] {
            let short = vision_name(name).unwrap_or_default();
            assert!(!short.is_empty() && short.len() <= 63, "{name}: {short}");
            assert_eq!(official_vision_name(&short).as_deref(), Some(name));
        }
        assert_eq!(vision_name("model.layers.0.mlp.gate_proj.weight"), None);
        assert_eq!(vision_name("lm_head.weight"), None);
        assert_eq!(official_vision_name("blk.0.attn_q.weight"), None);
    }
}
