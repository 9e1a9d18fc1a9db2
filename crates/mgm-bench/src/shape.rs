//! The released models' shapes: configuration and tensors, to be filled with random values.

use mgm_kernels::quant::QuantType;
use mgm_nn::{ElementType, RandomTensors, RandomValues};
use mini_gemini::ModelConfig;
use serde_json::json;

use crate::error::Result;

/// A released model (sizes as published; all see through CLIP ViT-L/14-336 and ConvNeXt-L).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Shape {
    /// MGM-2B: Gemma.
    Mgm2b,
    /// MGM-7B: Vicuna.
    Mgm7b,
    /// MGM-8B: Llama 3.
    Mgm8b,
    /// MGM-13B: Vicuna.
    Mgm13b,
    /// MGM-34B: Yi.
    Mgm34b,
    /// MGM-8x7B: Mixtral.
    Mgm8x7b,
}

/// How the language model's matrices are stored. The vision part's are f32 with [`Self::Float`] f32, otherwise bf16.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum WeightFormat {
    /// f32, bf16 or f16.
    Float(ElementType),
    /// Blocks.
    Blocks(QuantType),
}

impl WeightFormat {
    /// The formats' names: those of the element types.
    pub fn names() -> Vec<String> {
        let floats = [ElementType::F32, ElementType::Bf16, ElementType::F16];
        let blocks = QuantType::ALL.map(ElementType::Quantised);
        let all = floats.into_iter().chain(blocks);
        all.map(|element_type| element_type.name().to_string())
            .collect()
    }

    /// The format of this name, whatever its case.
    pub fn parse(name: &str) -> Option<Self> {
        let is = |other: &str| other.eq_ignore_ascii_case(name);
        [ElementType::F32, ElementType::Bf16, ElementType::F16]
            .into_iter()
            .find(|element_type| is(element_type.name()))
            .map(Self::Float)
            .or_else(|| {
                let blocks = QuantType::ALL.into_iter().find(|t| is(t.name()))?;
                Some(Self::Blocks(blocks))
            })
    }

    /// The element type of matrices.
    pub fn element_type(&self) -> ElementType {
        match self {
            Self::Float(element_type) => element_type.clone(),
            Self::Blocks(quant_type) => ElementType::Quantised(*quant_type),
        }
    }

    /// The type of a language matrix with rows of `width` values: another one where they are no whole blocks.
    fn language(&self, width: usize) -> ElementType {
        let fits = |t: QuantType| width.is_multiple_of(t.block_len());
        match self {
            Self::Blocks(t) if fits(*t) => ElementType::Quantised(*t),
            Self::Blocks(_) if fits(QuantType::Q8_0) => ElementType::Quantised(QuantType::Q8_0),
            Self::Blocks(_) => ElementType::Bf16,
            Self::Float(element_type) => element_type.clone(),
        }
    }

    fn vision(&self) -> ElementType {
        match self {
            Self::Float(element_type) => element_type.clone(),
            Self::Blocks(_) => ElementType::Bf16,
        }
    }
}

const CLIP: &str = "model.vision_tower.vision_tower.vision_model";
const CLIP_WIDTH: usize = 1024;
const CLIP_INNER: usize = 4096;
const CLIP_LAYERS: usize = 24;
const CLIP_PATCH: usize = 14;
const CLIP_PATCHES: usize = 24 * 24;
const CONVNEXT: &str = "model.vision_tower_aux";
const CONVNEXT_WIDTHS: [usize; 4] = [192, 384, 768, 1536];
const CONVNEXT_DEPTHS: [usize; 4] = [3, 3, 27, 3];

impl Shape {
    /// All shapes.
    pub const ALL: [Self; 6] = [
        Self::Mgm2b,
        Self::Mgm7b,
        Self::Mgm8b,
        Self::Mgm13b,
        Self::Mgm34b,
        Self::Mgm8x7b,
    ];

    /// The short name on the command line.
    pub fn name(self) -> &'static str {
        match self {
            Self::Mgm2b => "2b",
            Self::Mgm7b => "7b",
            Self::Mgm8b => "8b",
            Self::Mgm13b => "13b",
            Self::Mgm34b => "34b",
            Self::Mgm8x7b => "8x7b",
        }
    }

    /// The shape of this short name.
    pub fn parse(name: &str) -> Option<Self> {
        Self::ALL.into_iter().find(|shape| shape.name() == name)
    }

    /// The release's name.
    pub fn release(self, hd: bool) -> String {
        let size = self.name().replace('b', "B");
        format!("MGM-{size}{}", if hd { "-HD" } else { "" })
    }

    /// `config.json` as far as it decides the work.
    pub(crate) fn config(self, hd: bool) -> serde_json::Result<ModelConfig> {
        // Class, width, inner width, layers, heads, key heads, vocabulary, positions.
        let (class, hidden, inner, layers, heads, kv_heads, vocabulary, positions) = match self {
            Self::Mgm2b => ("Gemma", 2048, 16384, 18, 8, 1, 256_000, 8192),
            Self::Mgm7b => ("Llama", 4096, 11008, 32, 32, 32, 32_000, 4096),
            Self::Mgm8b => ("Llama", 4096, 14336, 32, 32, 8, 128_256, 8192),
            Self::Mgm13b => ("Llama", 5120, 13824, 40, 40, 40, 32_000, 4096),
            Self::Mgm34b => ("Llama", 7168, 20480, 60, 56, 8, 64_000, 4096),
            Self::Mgm8x7b => ("Mixtral", 4096, 14336, 32, 32, 8, 32_000, 32_768),
        };
        serde_json::from_value(json!({
            "architectures": [format!("MiniGemini{class}ForCausalLM")],
            "hidden_size": hidden,
            "intermediate_size": inner,
            "num_hidden_layers": layers,
            "num_attention_heads": heads,
            "num_key_value_heads": kv_heads,
            "head_dim": if self == Self::Mgm2b { 256 } else { 128 },
            "vocab_size": vocabulary,
            "max_position_embeddings": positions,
            "tie_word_embeddings": self == Self::Mgm2b,
            "num_local_experts": (self == Self::Mgm8x7b).then_some(8),
            "num_experts_per_tok": (self == Self::Mgm8x7b).then_some(2),
            "mm_vision_tower": "openai/clip-vit-large-patch14-336",
            "mm_vision_tower_aux": "openclip-convnext-large",
            "mm_projector_type": "mlp2x_gelu",
            "image_size_aux": if hd { 1536 } else { 768 },
            "image_grid": if hd { 2 } else { 1 },
            "image_global": hd,
        }))
    }
}

/// All tensors of a model of this configuration, which must be one that [`Shape::config`] gives.
pub(crate) fn tensors(
    config: &ModelConfig,
    format: &WeightFormat,
    seed: u64,
) -> Result<RandomTensors> {
    let mut made = Tensors {
        random: RandomTensors::new(seed),
        format,
    };
    made.decoder(config)?;
    made.clip()?;
    made.convnext()?;
    let cells: usize = CONVNEXT_WIDTHS.iter().sum();
    for (part, width) in [("query", CLIP_WIDTH), ("aux", cells), ("val", cells)] {
        let miner = format!("model.vlm_uni_{part}_projector");
        made.norm(&format!("{miner}.0"), width)?;
        made.layer(&format!("{miner}.1"), CLIP_WIDTH, width)?;
    }
    made.layer("model.mm_projector.0", config.hidden_size, CLIP_WIDTH)?;
    made.layer(
        "model.mm_projector.2",
        config.hidden_size,
        config.hidden_size,
    )?;
    Ok(made.random)
}

struct Tensors<'a> {
    random: RandomTensors,
    format: &'a WeightFormat,
}

impl Tensors<'_> {
    /// A tensor whose product keeps the size of what it is multiplied with: the mean square of its values is one over the values of a row.
    fn matrix(&mut self, name: &str, shape: &[usize], element_type: ElementType) -> Result<()> {
        let row: usize = shape[1..].iter().product();
        let bound = (3.0 / row as f32).sqrt();
        let values = RandomValues::Uniform(bound);
        Ok(self
            .random
            .add(format!("{name}.weight"), shape, element_type, values)?)
    }

    fn constant(&mut self, name: String, width: usize, value: f32) -> Result<()> {
        let values = RandomValues::Constant(value);
        Ok(self.random.add(name, [width], ElementType::F32, values)?)
    }

    fn language(&mut self, name: &str, output: usize, input: usize) -> Result<()> {
        self.matrix(name, &[output, input], self.format.language(input))
    }

    /// A layer of the vision part, with a bias.
    fn layer(&mut self, name: &str, output: usize, input: usize) -> Result<()> {
        self.matrix(name, &[output, input], self.format.vision())?;
        self.constant(format!("{name}.bias"), output, 0.0)
    }

    fn convolution(&mut self, name: &str, shape: [usize; 4]) -> Result<()> {
        self.matrix(name, &shape, self.format.vision())?;
        self.constant(format!("{name}.bias"), shape[0], 0.0)
    }

    fn norm(&mut self, name: &str, width: usize) -> Result<()> {
        self.constant(format!("{name}.weight"), width, 1.0)?;
        self.constant(format!("{name}.bias"), width, 0.0)
    }

    fn decoder(&mut self, config: &ModelConfig) -> Result<()> {
        let sizes = config.decoder("the shape's configuration".as_ref())?;
        let hidden = sizes.hidden_size;
        let inner = sizes.intermediate_size;
        let (queries, keys) = (
            sizes.heads * sizes.head_dim,
            sizes.kv_heads * sizes.head_dim,
        );
        // Gemma adds one to the weights of its norms.
        let scale = 1.0 - sizes.norm_offset;
        self.language("model.embed_tokens", sizes.vocab_size, hidden)?;
        for layer in 0..sizes.layers {
            let layer = format!("model.layers.{layer}");
            for norm in ["input_layernorm", "post_attention_layernorm"] {
                self.constant(format!("{layer}.{norm}.weight"), hidden, scale)?;
            }
            let attention = format!("{layer}.self_attn");
            self.language(&format!("{attention}.q_proj"), queries, hidden)?;
            self.language(&format!("{attention}.k_proj"), keys, hidden)?;
            self.language(&format!("{attention}.v_proj"), keys, hidden)?;
            self.language(&format!("{attention}.o_proj"), hidden, queries)?;
            match sizes.experts {
                None => {
                    self.language(&format!("{layer}.mlp.gate_proj"), inner, hidden)?;
                    self.language(&format!("{layer}.mlp.up_proj"), inner, hidden)?;
                    self.language(&format!("{layer}.mlp.down_proj"), hidden, inner)?;
                }
                Some(experts) => {
                    let moe = format!("{layer}.block_sparse_moe");
                    self.language(&format!("{moe}.gate"), experts.count, hidden)?;
                    for expert in 0..experts.count {
                        let expert = format!("{moe}.experts.{expert}");
                        self.language(&format!("{expert}.w1"), inner, hidden)?;
                        self.language(&format!("{expert}.w2"), hidden, inner)?;
                        self.language(&format!("{expert}.w3"), inner, hidden)?;
                    }
                }
            }
        }
        self.constant("model.norm.weight".into(), hidden, scale)?;
        if !sizes.tied_head {
            self.language("lm_head", sizes.vocab_size, hidden)?;
        }
        Ok(())
    }

    fn clip(&mut self) -> Result<()> {
        let embeddings = format!("{CLIP}.embeddings");
        let patch = [CLIP_WIDTH, 3, CLIP_PATCH, CLIP_PATCH];
        let vision = self.format.vision();
        self.matrix(
            &format!("{embeddings}.patch_embedding"),
            &patch,
            vision.clone(),
        )?;
        self.matrix(
            &format!("{embeddings}.position_embedding"),
            &[CLIP_PATCHES + 1, CLIP_WIDTH],
            vision,
        )?;
        self.constant(format!("{embeddings}.class_embedding"), CLIP_WIDTH, 0.0)?;
        self.norm(&format!("{CLIP}.pre_layrnorm"), CLIP_WIDTH)?;
        for layer in 0..CLIP_LAYERS {
            let layer = format!("{CLIP}.encoder.layers.{layer}");
            for name in ["q_proj", "k_proj", "v_proj", "out_proj"] {
                self.layer(&format!("{layer}.self_attn.{name}"), CLIP_WIDTH, CLIP_WIDTH)?;
            }
            self.norm(&format!("{layer}.layer_norm1"), CLIP_WIDTH)?;
            self.norm(&format!("{layer}.layer_norm2"), CLIP_WIDTH)?;
            self.layer(&format!("{layer}.mlp.fc1"), CLIP_INNER, CLIP_WIDTH)?;
            self.layer(&format!("{layer}.mlp.fc2"), CLIP_WIDTH, CLIP_INNER)?;
        }
        Ok(())
    }

    fn convnext(&mut self) -> Result<()> {
        let first = CONVNEXT_WIDTHS[0];
        self.convolution(&format!("{CONVNEXT}.vision_stem.0"), [first, 3, 4, 4])?;
        self.norm(&format!("{CONVNEXT}.vision_stem.1"), first)?;
        let mut previous = first;
        for (stage, (width, depth)) in CONVNEXT_WIDTHS.into_iter().zip(CONVNEXT_DEPTHS).enumerate()
        {
            let prefix = format!("{CONVNEXT}.vision_stages.{stage}");
            if stage > 0 {
                self.norm(&format!("{prefix}.downsample.0"), previous)?;
                self.convolution(&format!("{prefix}.downsample.1"), [width, previous, 2, 2])?;
            }
            for block in 0..depth {
                let block = format!("{prefix}.blocks.{block}");
                self.constant(format!("{block}.gamma"), width, 0.3)?;
                self.convolution(&format!("{block}.conv_dw"), [width, 1, 7, 7])?;
                self.norm(&format!("{block}.norm"), width)?;
                self.layer(&format!("{block}.mlp.fc1"), 4 * width, width)?;
                self.layer(&format!("{block}.mlp.fc2"), width, 4 * width)?;
            }
            previous = width;
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use mgm_nn::WeightSource;

    /// Millions of parameters of the published checkpoints, CLIP's and ConvNeXt's included: the language models have 2506, 6738, 8030,
    /// 13016, 34389 and 46703, the towers 304 and 196, miner and projector the rest.
    #[test]
    fn the_parameters_are_as_many_as_published() {
        let language = [2506, 6738, 8030, 13_016, 34_389, 46_703];
        for (shape, published) in Shape::ALL.into_iter().zip(language) {
            let config = shape.config(false).unwrap();
            let format = WeightFormat::parse("q4_k").unwrap();
            let source = WeightSource::from_random(tensors(&config, &format, 0).unwrap());
            let count = |wanted: &dyn Fn(&str) -> bool| {
                let names = source.names().into_iter().filter(|name| wanted(name));
                let elements =
                    names.map(|name| source.shape(&name).unwrap().iter().product::<usize>());
                elements.sum::<usize>() as f64 / 1e6
            };
            let language = count(&|name| {
                name.starts_with("model.layers.")
                    || name.starts_with("model.embed_tokens")
                    || name.starts_with("lm_head")
                    || name.starts_with("model.norm")
            });
            assert!(
                (language - f64::from(published)).abs() < 1.0,
                "{shape:?}: {language} million"
            );
            let clip = count(&|name| name.starts_with("model.vision_tower."));
            assert!((clip - 303.2).abs() < 1.0, "CLIP: {clip} million");
            let convnext = count(&|name| name.starts_with(CONVNEXT));
            assert!(
                (convnext - 196.2).abs() < 1.0,
                "ConvNeXt: {convnext} million"
            );
        }
    }

    #[test]
    fn names_are_read_back() {
        for shape in Shape::ALL {
            assert_eq!(Shape::parse(shape.name()), Some(shape));
        }
        assert_eq!(Shape::parse("3b"), None);
        assert_eq!(Shape::Mgm8x7b.release(true), "MGM-8x7B-HD");
        for name in WeightFormat::names() {
            let format = WeightFormat::parse(&name.to_lowercase()).unwrap();
            assert_eq!(format.element_type().name(), name);
        }
        assert_eq!(WeightFormat::parse("Q4_K_M"), None);
    }

    #[test]
    fn rows_that_are_no_whole_blocks_get_another_type() {
        let q4k = WeightFormat::parse("Q4_K").unwrap();
        assert_eq!(q4k.language(2048).name(), "Q4_K");
        assert_eq!(q4k.language(96).name(), "Q8_0");
        assert_eq!(q4k.language(100).name(), "BF16");
        assert_eq!(q4k.vision().name(), "BF16");
    }
}
