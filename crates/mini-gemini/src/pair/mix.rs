//! Which element type each tensor gets under each scheme.

use mgm_kernels::quant::QuantType;
use mgm_nn::ElementType;

/// What a model is turned into: the types `llama-quantize` offers under the same names.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[allow(non_camel_case_types)]
pub enum Scheme {
    /// 32-bit floats.
    F32,
    /// 16-bit floats.
    F16,
    /// bfloat16.
    Bf16,
    /// 8.5 bits a weight.
    Q8_0,
    /// 6.6 bits a weight.
    Q6_K,
    /// 5.5 bits a weight, some matrices with 6.6.
    Q5_K_M,
    /// 4.5 bits a weight, some matrices with 6.6.
    Q4_K_M,
    /// 4.5 bits a weight in the simplest form.
    Q4_0,
}

impl Scheme {
    /// All schemes, largest first.
    pub const ALL: [Self; 8] = [
        Self::F32,
        Self::F16,
        Self::Bf16,
        Self::Q8_0,
        Self::Q6_K,
        Self::Q5_K_M,
        Self::Q4_K_M,
        Self::Q4_0,
    ];

    /// The name, as it stands in file names.
    pub fn name(self) -> &'static str {
        match self {
            Self::F32 => "F32",
            Self::F16 => "F16",
            Self::Bf16 => "BF16",
            Self::Q8_0 => "Q8_0",
            Self::Q6_K => "Q6_K",
            Self::Q5_K_M => "Q5_K_M",
            Self::Q4_K_M => "Q4_K_M",
            Self::Q4_0 => "Q4_0",
        }
    }

    /// The scheme of this name, whatever its case.
    pub fn parse(name: &str) -> Option<Self> {
        Self::ALL
            .into_iter()
            .find(|scheme| scheme.name().eq_ignore_ascii_case(name))
    }

    /// `general.file_type`.
    pub(super) fn file_type(self) -> u32 {
        match self {
            Self::F32 => 0,
            Self::F16 => 1,
            Self::Q4_0 => 2,
            Self::Q8_0 => 7,
            Self::Q4_K_M => 15,
            Self::Q5_K_M => 17,
            Self::Q6_K => 18,
            Self::Bf16 => 32,
        }
    }

    /// The type of an ordinary matrix.
    fn base(self) -> ElementType {
        match self {
            Self::F32 => ElementType::F32,
            Self::F16 => ElementType::F16,
            Self::Bf16 => ElementType::Bf16,
            Self::Q8_0 => ElementType::Quantised(QuantType::Q8_0),
            Self::Q6_K => ElementType::Quantised(QuantType::Q6K),
            Self::Q5_K_M => ElementType::Quantised(QuantType::Q5K),
            Self::Q4_K_M => ElementType::Quantised(QuantType::Q4K),
            Self::Q4_0 => ElementType::Quantised(QuantType::Q4_0),
        }
    }
}

/// What the rules for a language model's matrices look at.
#[derive(Clone, Copy, Debug)]
pub(super) struct LanguageMix {
    pub(super) scheme: Scheme,
    pub(super) layers: usize,
    /// Experts a layer; 1 without.
    pub(super) experts: usize,
    /// Query heads that share one key head.
    pub(super) grouping: usize,
    /// Whether the output head is a tensor of its own.
    pub(super) has_output: bool,
    pub(super) has_importance: bool,
}

impl LanguageMix {
    /// Type of the matrix `part` (a name without `blk.N.` and `.weight`), in decoder layer `layer` if it is in one, whose rows have `width`
    /// values: the choices of `llama-quantize`.
    pub(super) fn element_type(&self, part: &str, layer: usize, width: usize) -> ElementType {
        use QuantType::{Q4_1, Q5K, Q6K, Q8_0};
        let ElementType::Quantised(base) = self.scheme.base() else {
            return self.scheme.base();
        };
        let many_experts = self.experts == 8;
        // The first and last eighth of the layers, and every third between, get more bits.
        let eighth = self.layers / 8;
        let sensitive =
            layer < eighth || layer >= 7 * self.layers / 8 || (layer.wrapping_sub(eighth)) % 3 == 2;
        let more_bits = matches!(self.scheme, Scheme::Q4_K_M | Scheme::Q5_K_M) && sensitive;
        let is_head = part == "output" || (part == "token_embd" && !self.has_output);
        let chosen = match part {
            _ if is_head && !width.is_multiple_of(base.block_len()) => Q8_0,
            _ if is_head && base != Q8_0 => Q6K,
            "attn_v" => {
                // Heads that share keys share values too, so the matrix is small and worth more bits.
                let large = self.layers == 80 && self.grouping > 1;
                match if more_bits { Q6K } else { base } {
                    _ if many_experts => Q8_0,
                    QuantType::Q4K if large => Q5K,
                    other => other,
                }
            }
            "attn_k" if many_experts => Q8_0,
            "ffn_down" | "ffn_down_exps" if more_bits => Q6K,
            "ffn_down" | "ffn_down_exps"
                if self.scheme == Scheme::Q4_0 && self.has_importance && layer < eighth =>
            {
                Q4_1
            }
            "attn_output" if many_experts && self.scheme == Scheme::Q4_K_M => Q5K,
            _ => base,
        };
        fit(chosen, width)
    }
}

/// The type itself, or the one `llama-quantize` falls back to when rows of `width` values are no whole blocks of it.
fn fit(chosen: QuantType, width: usize) -> ElementType {
    if width.is_multiple_of(chosen.block_len()) {
        return ElementType::Quantised(chosen);
    }
    let smaller = match chosen {
        QuantType::Q4K => QuantType::Q5_0,
        QuantType::Q5K => QuantType::Q5_1,
        QuantType::Q6K => QuantType::Q8_0,
        other => other,
    };
    if width.is_multiple_of(smaller.block_len()) {
        ElementType::Quantised(smaller)
    } else {
        ElementType::F16
    }
}

/// Type of a tensor of the vision file. Matrices of towers and projector get 8 bits under every quantised scheme; convolutions and the miner,
/// small and sensitive, 16; vectors and position embeddings stay 32-bit floats.
pub(super) fn vision_type(scheme: Scheme, name: &str, shape: &[usize]) -> ElementType {
    let weight = name.ends_with(".weight") && shape.len() >= 2;
    if !weight || name.contains("position_embedding") {
        return ElementType::F32;
    }
    match scheme {
        Scheme::F32 => ElementType::F32,
        Scheme::F16 => ElementType::F16,
        Scheme::Bf16 => ElementType::Bf16,
        _ if shape.len() == 2 && !name.starts_with("mining.") => {
            fit(QuantType::Q8_0, shape[shape.len() - 1])
        }
        _ => ElementType::F16,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn mix(scheme: Scheme, layers: usize) -> LanguageMix {
        LanguageMix {
            scheme,
            layers,
            experts: 1,
            grouping: 1,
            has_output: true,
            has_importance: false,
        }
    }

    fn names(mix: &LanguageMix, part: &str, width: usize) -> Vec<String> {
        (0..mix.layers)
            .map(|layer| mix.element_type(part, layer, width).name().to_string())
            .collect()
    }

    #[test]
    fn medium_mixes_give_some_layers_more_bits() {
        // The layers that llama-quantize names for 16: 0, 1, 4, 7, 10, 13 of the middle rule, and the last two.
        let found = names(&mix(Scheme::Q4_K_M, 16), "ffn_down", 512);
        let more: Vec<usize> = (0..16).filter(|&layer| found[layer] == "Q6_K").collect();
        assert_eq!(more, [0, 1, 4, 7, 10, 13, 14, 15]);
        assert_eq!(found[2], "Q4_K");
        assert_eq!(names(&mix(Scheme::Q5_K_M, 16), "attn_v", 512), {
            let mut expected = vec!["Q5_K"; 16];
            for layer in more {
                expected[layer] = "Q6_K";
            }
            expected
        });
        assert_eq!(names(&mix(Scheme::Q4_K_M, 4), "ffn_gate", 512), ["Q4_K"; 4]);
    }

    #[test]
    fn heads_and_embeddings() {
        let separate = mix(Scheme::Q4_0, 8);
        assert_eq!(separate.element_type("output", 0, 512).name(), "Q6_K");
        assert_eq!(separate.element_type("token_embd", 0, 512).name(), "Q4_0");
        let tied = LanguageMix {
            has_output: false,
            ..separate
        };
        assert_eq!(tied.element_type("token_embd", 0, 512).name(), "Q6_K");
        // 576 = 2.25 × 256: the built-in model's width.
        assert_eq!(tied.element_type("token_embd", 0, 576).name(), "Q8_0");
        assert_eq!(
            mix(Scheme::Q8_0, 8).element_type("output", 0, 512).name(),
            "Q8_0"
        );
        assert_eq!(
            mix(Scheme::Bf16, 8).element_type("output", 0, 512).name(),
            "BF16"
        );
    }

    #[test]
    fn rows_that_are_no_whole_blocks_fall_back() {
        let found = |scheme, width| {
            mix(scheme, 8)
                .element_type("attn_q", 2, width)
                .name()
                .to_string()
        };
        assert_eq!(found(Scheme::Q4_K_M, 576), "Q5_0");
        assert_eq!(found(Scheme::Q5_K_M, 576), "Q5_1");
        assert_eq!(found(Scheme::Q6_K, 576), "Q8_0");
        assert_eq!(found(Scheme::Q4_0, 576), "Q4_0");
        assert_eq!(found(Scheme::Q8_0, 40), "F16");
        assert_eq!(found(Scheme::Q4_K_M, 40), "F16");
    }

    #[test]
    fn eight_experts_spend_more_on_attention() {
        let mixtral = LanguageMix {
            experts: 8,
            grouping: 4,
            ..mix(Scheme::Q4_K_M, 32)
        };
        let name = |part: &str, layer| mixtral.element_type(part, layer, 4096).name().to_string();
        assert_eq!(name("attn_v", 5), "Q8_0");
        assert_eq!(name("attn_k", 5), "Q8_0");
        assert_eq!(name("attn_output", 5), "Q5_K");
        assert_eq!(name("attn_q", 5), "Q4_K");
        assert_eq!(name("ffn_down_exps", 0), "Q6_K");
        assert_eq!(name("ffn_down_exps", 5), "Q4_K");
    }

    #[test]
    fn importance_guards_the_first_layers_of_q4_0() {
        let with = LanguageMix {
            has_importance: true,
            ..mix(Scheme::Q4_0, 16)
        };
        assert_eq!(with.element_type("ffn_down", 1, 512).name(), "Q4_1");
        assert_eq!(with.element_type("ffn_down", 2, 512).name(), "Q4_0");
    }

    #[test]
    fn schemes_have_names() {
        for scheme in Scheme::ALL {
            assert_eq!(Scheme::parse(&scheme.name().to_lowercase()), Some(scheme));
        }
        assert_eq!(Scheme::parse("Q3_K"), None);
    }

    #[test]
    fn vision_mix() {
        let name =
            |name, shape: &[usize]| vision_type(Scheme::Q4_K_M, name, shape).name().to_string();
        assert_eq!(
            name("low_res.clip.encoder.layers.0.mlp.fc1.weight", &[64, 32]),
            "Q8_0"
        );
        assert_eq!(name("projector.0.weight", &[64, 40]), "F16");
        assert_eq!(name("mining.key.1.weight", &[64, 64]), "F16");
        assert_eq!(name("high_res.vision_stem.0.weight", &[8, 3, 4, 4]), "F16");
        assert_eq!(
            name(
                "low_res.clip.embeddings.position_embedding.weight",
                &[577, 1024]
            ),
            "F32"
        );
        assert_eq!(name("low_res.clip.pre_layrnorm.weight", &[64]), "F32");
        assert_eq!(name("projector.0.bias", &[64]), "F32");
    }
}
