//! What a stage has to do: operations by what is multiplied, and bytes that must be read at least once. Counted from shapes, not from what
//! the program does, so that work done twice or in vain shows as distance from the floor.
//!
//! Counted are products with weights, attention, convolutions and the mining of cells; norms, activations and additions, a few operations
//! for thousands of products, are not. Mining is counted in its folded form, the cheapest known.

use mgm_kernels::ceiling::Operands;
use mgm_kernels::level;
use mgm_kernels::quant::QuantType;
use mgm_nn::{ElementType, WeightSource};
use mini_gemini::inventory::{HighResShape, Towers};
use mini_gemini::{ModelConfig, Precision};

use crate::ceilings::Ceilings;
use crate::report::{Bound, Floor};
use crate::subject::Loaded;

/// Bytes of an activation, key or value.
const F32: f64 = 4.0;

/// Operations and bytes.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub(crate) struct Work {
    f32: f64,
    bf16: f64,
    int8: f64,
    bytes: f64,
}

impl Work {
    /// Both pieces of work.
    pub(crate) fn and(self, other: Self) -> Self {
        Self {
            f32: self.f32 + other.f32,
            bf16: self.bf16 + other.bf16,
            int8: self.int8 + other.int8,
            bytes: self.bytes + other.bytes,
        }
    }

    fn multiply(&mut self, operands: Operands, operations: f64) {
        match operands {
            Operands::F32 => self.f32 += operations,
            Operands::Bf16 => self.bf16 += operations,
            Operands::Int8 => self.int8 += operations,
        }
    }

    /// The time that it takes at the machine's rates.
    pub(crate) fn floor(&self, ceilings: &Ceilings) -> Floor {
        let compute = self.f32 / ceilings.rate(Operands::F32)
            + self.bf16 / ceilings.rate(Operands::Bf16)
            + self.int8 / ceilings.rate(Operands::Int8);
        let memory = self.bytes / ceilings.read.all_threads;
        let (seconds, bound) = if compute >= memory {
            (compute, Bound::Compute)
        } else {
            (memory, Bound::Memory)
        };
        Floor {
            seconds,
            bound,
            operations: self.f32 + self.bf16 + self.int8,
            bytes: self.bytes,
        }
    }
}

/// Counts for one model.
pub(crate) struct Counter<'a> {
    weights: &'a WeightSource,
    config: &'a ModelConfig,
    precision: Precision,
    model: &'a Loaded,
    towers: Towers,
    views: usize,
}

impl<'a> Counter<'a> {
    pub(crate) fn new(model: &'a Loaded) -> Self {
        let config = model.config();
        let views = match config.grid() {
            1 => 1,
            grid => grid * grid + usize::from(config.image_global.unwrap_or(false)),
        };
        Self {
            weights: model.weights(),
            config,
            precision: model.precision,
            towers: Towers::of(model.weights()),
            model,
            views,
        }
    }

    /// The matrix `name` (without `.weight`) multiplied with `rows` rows and read once; nothing if there is none.
    fn matrix(&self, name: &str, rows: f64) -> Work {
        let mut work = Work::default();
        let Some(info) = self.weights.info(&format!("{name}.weight")) else {
            return work;
        };
        let elements = info.shape.iter().product::<usize>() as f64;
        let (operands, bytes) = match (self.precision, &info.element_type) {
            (Precision::F32, _) => (Operands::F32, 4.0 * elements),
            (Precision::Auto, ElementType::Quantised(_)) => (Operands::Int8, info.bytes as f64),
            (Precision::Int8, ElementType::Quantised(kind)) if *kind != QuantType::Q8_0 => {
                (Operands::Int8, info.bytes as f64)
            }
            (Precision::Int8, _) => (Operands::Int8, elements),
            (Precision::Bf16, _) | (Precision::Auto, ElementType::Bf16) => {
                let operands = if level::has_fast_bf16() {
                    Operands::Bf16
                } else {
                    Operands::F32
                };
                (operands, 2.0 * elements)
            }
            (Precision::F16, _) | (Precision::Auto, ElementType::F16) => {
                (Operands::F32, 2.0 * elements)
            }
            (Precision::Auto, _) => (Operands::F32, 4.0 * elements),
        };
        work.multiply(operands, 2.0 * elements * rows);
        work.bytes = bytes;
        work
    }

    /// What a product with `weight` and everything around it that rounds as it does is computed in: bf16 where there are bf16 products.
    fn beside(&self, weight: &Work) -> Operands {
        match weight.f32 == 0.0 && level::has_fast_bf16() {
            true => Operands::Bf16,
            false => Operands::F32,
        }
    }

    /// A convolution by patches, used at `positions` places: in bf16 beside matrices of 8 bits.
    fn patch_convolution(&self, name: &str, positions: f64) -> Work {
        let mut work = self.matrix(name, positions);
        if self.precision == Precision::Int8 {
            let operations = work.int8;
            let elements = operations / (2.0 * positions).max(1.0);
            work = Work {
                bytes: 2.0 * elements,
                ..Work::default()
            };
            work.multiply(self.beside(&work), operations);
        }
        work
    }

    /// A tensor that is kept as f32 whatever its type, used at `positions` places.
    fn convolution(&self, name: &str, positions: f64) -> Work {
        let elements = self
            .weights
            .shape(&format!("{name}.weight"))
            .map_or(0, |shape| shape.iter().product::<usize>()) as f64;
        Work {
            f32: 2.0 * elements * positions,
            bytes: F32 * elements,
            ..Work::default()
        }
    }

    /// The low-resolution tower on all views of a picture.
    pub(crate) fn low_res(&self) -> Work {
        let Some(tower) = &self.towers.low_res else {
            return Work::default();
        };
        let views = self.views as f64;
        let patches = tower.patches() as f64;
        let tokens = patches + 1.0;
        let root = "model.vision_tower.vision_tower";
        let clip = format!("{root}.vision_model");
        let (patch_layer, blocks, names) = if self
            .weights
            .contains(&format!("{clip}.pre_layrnorm.weight"))
        {
            let names = [
                "self_attn.q_proj",
                "self_attn.k_proj",
                "self_attn.v_proj",
                "self_attn.out_proj",
            ];
            let patches = format!("{clip}.embeddings.patch_embedding");
            (patches, format!("{clip}.encoder.layers"), names)
        } else {
            let names = [
                "attention.attention.query",
                "attention.attention.key",
                "attention.attention.value",
                "attention.output.dense",
            ];
            let patches = format!("{root}.embeddings.patch_embeddings.projection");
            (patches, format!("{root}.encoder.layer"), names)
        };
        let mut work = self.convolution(&patch_layer, patches * views);
        // CLIP's last blocks are not needed for the hidden state that is taken; DINOv2 is stored as far as it is used.
        let used = match self.config.mm_vision_select_layer {
            negative if negative < 0 && tower.kind.starts_with("CLIP") => {
                tower.layers.saturating_sub((-1 - negative) as usize)
            }
            _ => tower.layers,
        };
        for layer in 0..used {
            for name in names.into_iter().chain(["mlp.fc1", "mlp.fc2"]) {
                work = work.and(self.matrix(&format!("{blocks}.{layer}.{name}"), tokens * views));
            }
            let matrix = self.matrix(&format!("{blocks}.{layer}.{}", names[0]), 1.0);
            let attention = views * 4.0 * tokens * tokens * tower.width as f64;
            work.multiply(self.beside(&matrix), attention);
        }
        work
    }

    /// The high-resolution tower on one picture.
    pub(crate) fn high_res(&self) -> Work {
        match &self.towers.high_res {
            Some(tower) if tower.kind == "ConvNeXt" => self.convnext(tower),
            Some(_) => self.efficientnet(),
            None => Work::default(),
        }
    }

    fn picture_side(&self) -> f64 {
        self.config.image_size_aux.unwrap_or(320) as f64
    }

    fn convnext(&self, tower: &HighResShape) -> Work {
        let root = "model.vision_tower_aux";
        let mut side = self.picture_side() / 4.0;
        let mut work = self.patch_convolution(&format!("{root}.vision_stem.0"), side * side);
        for (stage, depth) in tower.blocks.iter().enumerate() {
            let stage_name = format!("{root}.vision_stages.{stage}");
            if stage > 0 {
                side /= 2.0;
                let downsample = format!("{stage_name}.downsample.1");
                work = work.and(self.patch_convolution(&downsample, side * side));
            }
            for block in 0..*depth {
                let block = format!("{stage_name}.blocks.{block}");
                work = work
                    .and(self.convolution(&format!("{block}.conv_dw"), side * side))
                    .and(self.matrix(&format!("{block}.mlp.fc1"), side * side))
                    .and(self.matrix(&format!("{block}.mlp.fc2"), side * side));
            }
        }
        work
    }

    fn efficientnet(&self) -> Work {
        /// Blocks of Lite0 whose depthwise convolution has stride 2.
        const STRIDE_TWO: [usize; 4] = [1, 3, 5, 11];
        let root = "model.vision_tower_aux";
        let mut side = (self.picture_side() / 2.0).ceil();
        let mut work = self.convolution(&format!("{root}._conv_stem"), side * side);
        let mut block = 0;
        loop {
            let name = format!("{root}._blocks.{block}");
            if !self
                .weights
                .contains(&format!("{name}._depthwise_conv.weight"))
            {
                break;
            }
            work = work.and(self.convolution(&format!("{name}._expand_conv"), side * side));
            if STRIDE_TWO.contains(&block) {
                side = (side / 2.0).ceil();
            }
            work = work
                .and(self.convolution(&format!("{name}._depthwise_conv"), side * side))
                .and(self.convolution(&format!("{name}._project_conv"), side * side));
            block += 1;
        }
        work.and(self.convolution(&format!("{root}._conv_head"), side * side))
            .and(self.convolution(&format!("{root}._fc"), side * side))
    }

    /// Mining of all views, and the projector.
    pub(crate) fn mining(&self) -> Work {
        let Some(low_res) = &self.towers.low_res else {
            return Work::default();
        };
        let queries = (low_res.patches() * self.views) as f64;
        let miner = |part: &str| format!("model.vlm_uni_{part}_projector.1");
        let mut work = self
            .matrix(&miner("query"), queries)
            // Folded: the key matrix is applied to the queries, the value matrix to what they mined.
            .and(self.matrix(&miner("aux"), queries))
            .and(self.matrix(&miner("val"), queries));
        // Each value of a map is multiplied with a query and with an attention weight.
        work.f32 += 4.0 * self.map_values();
        work.bytes += F32 * self.map_values();
        for layer in ["", ".0", ".2", ".4", ".6"] {
            work = work.and(self.matrix(&format!("model.mm_projector{layer}"), queries));
        }
        work
    }

    /// Values of all stage maps.
    fn map_values(&self) -> f64 {
        match &self.towers.high_res {
            Some(tower) if tower.kind == "ConvNeXt" => {
                let first = self.picture_side() / 4.0;
                let maps = tower.channels.iter().enumerate();
                maps.map(|(stage, channels)| {
                    let side = first / f64::from(1u32 << stage.min(31));
                    side * side * *channels as f64
                })
                .sum()
            }
            // Lite0's are small beside everything else.
            _ => 0.0,
        }
    }

    /// The language model on `tokens` tokens of `sequences` sequences each, behind `context` tokens that their caches hold, and the output
    /// head on the last of every sequence. The last layer needs keys and values of all tokens, everything else of the last tokens only.
    pub(crate) fn language(&self, context: usize, tokens: usize, sequences: usize) -> Work {
        let sizes = self.model.sizes();
        let rows = (tokens * sequences) as f64;
        let mut work = Work::default();
        let all_rows = rows;
        for layer in 0..sizes.layers {
            let rows = match layer + 1 == sizes.layers {
                true => sequences as f64,
                false => all_rows,
            };
            let name = format!("model.layers.{layer}");
            for (part, rows) in [
                ("q_proj", rows),
                ("k_proj", all_rows),
                ("v_proj", all_rows),
                ("o_proj", rows),
            ] {
                work = work.and(self.matrix(&format!("{name}.self_attn.{part}"), rows));
            }
            match sizes.experts {
                None => {
                    for part in ["gate_proj", "up_proj", "down_proj"] {
                        work = work.and(self.matrix(&format!("{name}.mlp.{part}"), rows));
                    }
                }
                Some(experts) => {
                    let moe = format!("{name}.block_sparse_moe");
                    let share = experts.per_token as f64 / experts.count as f64;
                    let touched = (rows * experts.per_token as f64).min(experts.count as f64)
                        / experts.count as f64;
                    for expert in 0..experts.count {
                        for part in ["w1", "w2", "w3"] {
                            let name = format!("{moe}.experts.{expert}.{part}");
                            let mut matrix = self.matrix(&name, rows * share);
                            matrix.bytes *= touched;
                            work = work.and(matrix);
                        }
                    }
                    work = work.and(self.matrix(&format!("{moe}.gate"), rows));
                }
            }
        }
        let head = if sizes.tied_head {
            "model.embed_tokens"
        } else {
            "lm_head"
        };
        work = work.and(self.matrix(head, sequences as f64));
        // Position `p` of a sequence attends to `context + p + 1` positions.
        let (context, tokens) = (context as f64, tokens as f64);
        let of_all = tokens * context + tokens * (tokens + 1.0) / 2.0;
        let of_last = context + tokens;
        let layers = sizes.layers as f64;
        let attended = (layers - 1.0) * of_all + of_last;
        let query_width = (sizes.heads * sizes.head_dim) as f64;
        let name = "model.layers.0.self_attn.q_proj";
        let attention = 4.0 * query_width * attended * sequences as f64;
        let operands = match self.weights.info(&format!("{name}.weight")) {
            // Beside blocks that are multiplied as they are, attention over caches stays in f32.
            Some(info)
                if self.precision == Precision::Auto
                    && matches!(info.element_type, ElementType::Quantised(_)) =>
            {
                Operands::F32
            }
            _ => self.beside(&self.matrix(name, 1.0)),
        };
        work.multiply(operands, attention);
        let key_width = (sizes.kv_heads * sizes.head_dim) as f64;
        work.bytes += 2.0 * F32 * key_width * layers * context * sequences as f64;
        work
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::shape::{Shape, WeightFormat, tensors};
    use crate::subject::Subject;

    /// A counter needs a loaded model; the smallest there is.
    fn built_in() -> Loaded {
        Subject::Model {
            source: mini_gemini::ModelSource::BuiltIn,
            options: mini_gemini::LoadOptions::default(),
        }
        .load(true, &mut |_| {})
        .unwrap()
    }

    /// What the layers of a release's shape cost, without loading it.
    fn counted(shape: Shape, format: &str, hd: bool, count: impl Fn(&Counter) -> Work) -> Work {
        let model = built_in();
        let config = shape.config(hd).unwrap();
        let format = WeightFormat::parse(format).unwrap();
        let weights = WeightSource::from_random(tensors(&config, &format, 0).unwrap());
        let mut counter = Counter::new(&model);
        counter.weights = &weights;
        counter.config = &config;
        counter.towers = Towers::of(&weights);
        counter.views = if hd { 5 } else { 1 };
        count(&counter)
    }

    fn giga(operations: f64) -> f64 {
        operations / 1e9
    }

    #[test]
    fn towers_cost_what_is_known() {
        // CLIP ViT-L/14-336 up to the last but one layer: 366 GFLOP; ConvNeXt-L at 768: 808.
        let clip = counted(Shape::Mgm2b, "F32", false, |c| c.low_res());
        assert!((giga(clip.f32) - 366.0).abs() < 2.0, "{clip:?}");
        let convnext = counted(Shape::Mgm2b, "F32", false, |c| c.high_res());
        assert!((giga(convnext.f32) - 808.0).abs() < 4.0, "{convnext:?}");
        // HD: five views of the small picture, four times the large one.
        let views = counted(Shape::Mgm2b, "F32", true, |c| c.low_res());
        assert!((views.f32 / clip.f32 - 5.0).abs() < 1e-9);
        let large = counted(Shape::Mgm2b, "F32", true, |c| c.high_res());
        assert!((large.f32 / convnext.f32 - 4.0).abs() < 1e-9);
        assert_eq!(large.bytes, convnext.bytes);
        // Mining: a twentieth of what the official form costs (436 GFLOP and the projector's 7).
        let mining = counted(Shape::Mgm2b, "F32", false, |c| c.mining());
        assert!((14.0..17.0).contains(&giga(mining.f32)), "{mining:?}");
    }

    #[test]
    fn quantised_matrices_are_multiplied_as_bytes_and_read_once() {
        let model = built_in();
        let counter = Counter::new(&model);
        let one = counter.language(0, 1, 1);
        let eight = counter.language(0, 1, 8);
        assert!(one.int8 > 0.0);
        assert!((eight.int8 / one.int8 - 8.0).abs() < 1e-9);
        assert_eq!(one.bytes, eight.bytes);
        // 134.5 million parameters, the tied head among them, twice.
        assert!((one.int8 / 2e6 - 134.5).abs() < 1.0, "{one:?}");
        // Keys and values: 30 layers, 3 heads of 64, f32.
        let later = counter.language(100, 1, 1);
        assert_eq!(later.bytes - one.bytes, 100.0 * 30.0 * 2.0 * 192.0 * 4.0);
    }

    #[test]
    fn attention_is_a_triangle() {
        let model = built_in();
        let counter = Counter::new(&model);
        let at_once = counter.language(0, 10, 1);
        let one_by_one = (0..10).fold(Work::default(), |work, context| {
            work.and(counter.language(context, 1, 1))
        });
        // But for the last layer, one of 30, where only the last token attends.
        let last = counter.language(9, 1, 1);
        // What is not a product with blocks.
        let attention = |work: Work| work.f32 + work.bf16;
        let expected = (29.0 * attention(one_by_one) + attention(last)) / 30.0;
        let difference = (attention(at_once) - expected).abs();
        assert!(difference < 1e-6 * expected, "{at_once:?} {one_by_one:?}");
    }
}
