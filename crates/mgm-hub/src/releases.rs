//! The released Mini-Gemini models: their repositories, sizes, and the memory they need.

/// Parameters of the low-resolution tower (CLIP ViT-L/14 at 336), the high-resolution tower (ConvNeXt-L) and the mining.
const VISION: u64 = 303_507_456 + 196_227_264 + 6_963_456;
/// Bytes a parameter takes in bf16.
const BF16: f64 = 2.0;
/// Bits a parameter takes in llama.cpp's Q4_K, Q5_K, Q6_K and Q8_0 blocks.
const Q4_K: f64 = 4.5;
const Q5_K: f64 = 5.5;
const Q6_K: f64 = 6.5625;
const Q8_0: f64 = 8.5;

/// A released model.
#[derive(Clone, Copy, Debug)]
pub struct Release {
    /// The name it is pulled by.
    pub name: &'static str,
    /// Its repository on the hub.
    pub repository: &'static str,
    /// Positions of a prompt and its answer.
    pub context: u64,
    llm: &'static LanguageModel,
}

/// Dimensions of a language model.
#[derive(Debug)]
struct LanguageModel {
    layers: u64,
    hidden: u64,
    ffn: u64,
    heads: u64,
    kv_heads: u64,
    head_dim: u64,
    vocabulary: u64,
    experts: u64,
    /// The head is the embedding. The release stores it twice all the same.
    tied: bool,
}

const GEMMA_2B: LanguageModel = LanguageModel {
    layers: 18,
    hidden: 2048,
    ffn: 16384,
    heads: 8,
    kv_heads: 1,
    head_dim: 256,
    vocabulary: 256_000,
    experts: 1,
    tied: true,
};
const VICUNA_7B: LanguageModel = LanguageModel {
    layers: 32,
    hidden: 4096,
    ffn: 11008,
    heads: 32,
    kv_heads: 32,
    head_dim: 128,
    vocabulary: 32_000,
    experts: 1,
    tied: false,
};
const VICUNA_13B: LanguageModel = LanguageModel {
    layers: 40,
    hidden: 5120,
    ffn: 13824,
    heads: 40,
    kv_heads: 40,
    head_dim: 128,
    vocabulary: 32_000,
    experts: 1,
    tied: false,
};
const LLAMA3_8B: LanguageModel = LanguageModel {
    layers: 32,
    hidden: 4096,
    ffn: 14336,
    heads: 32,
    kv_heads: 8,
    head_dim: 128,
    vocabulary: 128_256,
    experts: 1,
    tied: false,
};
const MIXTRAL_8X7B: LanguageModel = LanguageModel {
    layers: 32,
    hidden: 4096,
    ffn: 14336,
    heads: 32,
    kv_heads: 8,
    head_dim: 128,
    vocabulary: 32_000,
    experts: 8,
    tied: false,
};
const YI_34B: LanguageModel = LanguageModel {
    layers: 60,
    hidden: 7168,
    ffn: 20480,
    heads: 56,
    kv_heads: 8,
    head_dim: 128,
    vocabulary: 64_000,
    experts: 1,
    tied: false,
};

const fn release(
    name: &'static str,
    repository: &'static str,
    context: u64,
    llm: &'static LanguageModel,
) -> Release {
    Release {
        name,
        repository,
        context,
        llm,
    }
}

/// Every release, smallest first.
pub const RELEASES: [Release; 11] = [
    release("mgm-2b", "YanweiLi/MGM-2B", 2048, &GEMMA_2B),
    release("mgm-7b", "YanweiLi/MGM-7B", 2048, &VICUNA_7B),
    release("mgm-7b-hd", "YanweiLi/MGM-7B-HD", 4096, &VICUNA_7B),
    release("mgm-8b", "YanweiLi/MGM-8B", 2048, &LLAMA3_8B),
    release("mgm-8b-hd", "YanweiLi/MGM-8B-HD", 4096, &LLAMA3_8B),
    release("mgm-13b", "YanweiLi/MGM-13B", 2048, &VICUNA_13B),
    release("mgm-13b-hd", "YanweiLi/MGM-13B-HD", 4096, &VICUNA_13B),
    release("mgm-34b", "YanweiLi/MGM-34B", 2048, &YI_34B),
    release("mgm-34b-hd", "YanweiLi/MGM-34B-HD", 4096, &YI_34B),
    release("mgm-8x7b", "YanweiLi/MGM-8x7B", 2048, &MIXTRAL_8X7B),
    release("mgm-8x7b-hd", "YanweiLi/MGM-8x7B-HD", 4096, &MIXTRAL_8X7B),
];

/// The release of that name, whatever its case.
pub fn find(name: &str) -> Option<&'static Release> {
    RELEASES
        .iter()
        .find(|release| release.name.eq_ignore_ascii_case(name))
}

impl LanguageModel {
    fn embedding(&self) -> u64 {
        self.vocabulary * self.hidden
    }

    /// Query and output projections each, of one layer.
    fn query(&self) -> u64 {
        self.hidden * self.heads * self.head_dim
    }

    /// Key and value projections each, of one layer.
    fn key(&self) -> u64 {
        self.hidden * self.kv_heads * self.head_dim
    }

    /// Gate, up and down projections each, of one layer with all its experts.
    fn ffn(&self) -> u64 {
        self.experts * self.hidden * self.ffn
    }

    /// Norms and, with several experts, the router.
    fn small(&self) -> u64 {
        let router = if self.experts > 1 {
            self.experts * self.hidden
        } else {
            0
        };
        self.layers * (2 * self.hidden + router) + self.hidden
    }

    fn parameters(&self) -> u64 {
        let head = if self.tied { 0 } else { self.embedding() };
        self.embedding()
            + head
            + self.layers * (2 * self.query() + 2 * self.key() + 3 * self.ffn())
            + self.small()
    }

    /// Bytes under llama.cpp's Q4_K_M mix: Q4_K, with Q6_K for the head and for the value and down projections of half the layers;
    /// with eight experts, Q8_0 for keys and values and Q5_K for the attention's output.
    fn q4_k_m_bytes(&self) -> f64 {
        let layers = self.layers as f64;
        // llama.cpp's `use_more_bits`: the first and last eighth of the layers and every third one between.
        let (eighth, last) = (self.layers / 8, 7 * self.layers / 8);
        let more = (0..self.layers)
            .filter(|&layer| layer < eighth || layer >= last || (layer - eighth) % 3 == 2)
            .count() as f64;
        let half = more * Q6_K + (layers - more) * Q4_K;
        let (key, value, output) = match self.experts {
            8 => (layers * Q8_0, layers * Q8_0, layers * Q5_K),
            _ => (layers * Q4_K, half, layers * Q4_K),
        };
        let embeddings = match self.tied {
            true => Q6_K,
            false => Q6_K + Q4_K,
        };
        let bits = self.embedding() as f64 * embeddings
            + self.query() as f64 * (layers * Q4_K + output)
            + self.key() as f64 * (key + value)
            + self.ffn() as f64 * (2.0 * layers * Q4_K + half)
            + self.small() as f64 * 32.0;
        bits / 8.0
    }
}

impl Release {
    /// Parameters of towers, mining and projector.
    fn vision_parameters(&self) -> u64 {
        let hidden = self.llm.hidden;
        VISION + 1024 * hidden + hidden + hidden * hidden + hidden
    }

    /// All parameters; a tied head counts once.
    pub fn parameters(&self) -> u64 {
        self.llm.parameters() + self.vision_parameters()
    }

    /// Bytes of the released bf16 files, without their headers and the tokeniser.
    pub fn download_bytes(&self) -> u64 {
        let copy = if self.llm.tied {
            self.llm.embedding()
        } else {
            0
        };
        2 * (self.parameters() + copy)
    }

    /// Bytes of the keys and values (f32) of a full context.
    fn context_bytes(&self) -> u64 {
        let llm = self.llm;
        2 * 4 * llm.layers * llm.kv_heads * llm.head_dim * self.context
    }

    /// Bytes of memory for bf16 weights and a full context. Buffers come on top, a few hundred megabytes.
    pub fn bf16_memory(&self) -> u64 {
        (self.parameters() as f64 * BF16) as u64 + self.context_bytes()
    }

    /// Bytes of memory for Q4_K_M weights (towers, mining and projector in Q8_0) and a full context. Buffers come on top, a few
    /// hundred megabytes.
    pub fn q4_k_m_memory(&self) -> u64 {
        let vision = self.vision_parameters() as f64 * Q8_0 / 8.0;
        (self.llm.q4_k_m_bytes() + vision) as u64 + self.context_bytes()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn close(found: u64, expected: f64, tolerance: f64) -> bool {
        (found as f64 / expected - 1.0).abs() <= tolerance
    }

    #[test]
    fn counts_are_those_of_the_releases() {
        for (llm, billions) in [
            (&GEMMA_2B, 2.506),
            (&VICUNA_7B, 6.738),
            (&VICUNA_13B, 13.016),
            (&LLAMA3_8B, 8.030),
            (&MIXTRAL_8X7B, 46.703),
            (&YI_34B, 34.389),
        ] {
            assert!(
                close(llm.parameters(), billions * 1e9, 1e-3),
                "{billions}: {}",
                llm.parameters()
            );
        }
        // File sizes on the hub: MGM-2B 4.95 + 2.14 GB, MGM-13B 27.1 GB.
        assert!(close(
            find("mgm-2b").unwrap().download_bytes(),
            2.0 * 3.545e9,
            1e-3
        ));
        assert!(close(
            find("MGM-13B").unwrap().download_bytes(),
            2.0 * 13.554e9,
            1e-3
        ));
    }

    #[test]
    fn four_bits_take_what_llama_cpp_reports() {
        // Bits per weight that llama.cpp's documentation and published files give for Q4_K_M.
        for (llm, bits) in [
            (&VICUNA_7B, 4.84),
            (&LLAMA3_8B, 4.89),
            (&VICUNA_13B, 4.83),
            (&MIXTRAL_8X7B, 4.87),
        ] {
            let found = llm.q4_k_m_bytes() * 8.0 / llm.parameters() as f64;
            assert!((found - bits).abs() < 0.05, "{bits}: {found}");
        }
    }

    #[test]
    fn names_are_unique_and_lower_case() {
        let mut names = RELEASES.map(|release| release.name).to_vec();
        names.sort_unstable();
        names.dedup();
        assert_eq!(names.len(), RELEASES.len());
        assert!(
            RELEASES
                .iter()
                .all(|release| release.name == release.name.to_lowercase()
                    && release.repository.to_lowercase().ends_with(release.name))
        );
    }
}
