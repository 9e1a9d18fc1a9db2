//! Whether a checkpoint holds the tensors its configuration needs, told all at once and before anything is loaded (spec: model §9.1, §9.2).

use std::collections::BTreeSet;
use std::fmt;

use mgm_nn::WeightSource;

use crate::config::ModelConfig;
use crate::decoder::DecoderConfig;

/// A tensor the model needs that is missing, has another shape, or holds no numbers.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum TensorProblem {
    /// There is no tensor of this name.
    Missing {
        /// Full name.
        name: String,
    },
    /// Its shape does not fit the configuration.
    Shape {
        /// The file it lies in.
        file: String,
        /// Full name.
        name: String,
        /// The shape needed.
        expected: Vec<usize>,
        /// The shape found.
        found: Vec<usize>,
    },
    /// Its elements are of a type that does not become floating-point numbers.
    Type {
        /// The file it lies in.
        file: String,
        /// Full name.
        name: String,
        /// The type found.
        found: String,
    },
}

impl fmt::Display for TensorProblem {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Missing { name } => write!(f, "tensor {name} is missing"),
            Self::Shape {
                file,
                name,
                expected,
                found,
            } => write!(
                f,
                "{file}: tensor {name} has shape {found:?}, expected {expected:?}"
            ),
            Self::Type { file, name, found } => write!(
                f,
                "{file}: tensor {name} has type {found}, expected F32, F16, BF16, F64 or a GGML block type this program reads"
            ),
        }
    }
}

/// The problems in one line: the first few of each kind and how many there are.
pub(crate) fn summary(problems: &[TensorProblem], files: &[String]) -> String {
    const SHOWN: usize = 3;
    let missing: Vec<&str> = problems
        .iter()
        .filter_map(|problem| match problem {
            TensorProblem::Missing { name } => Some(name.as_str()),
            TensorProblem::Shape { .. } | TensorProblem::Type { .. } => None,
        })
        .collect();
    let wrong: Vec<String> = problems
        .iter()
        .filter(|problem| !matches!(problem, TensorProblem::Missing { .. }))
        .map(ToString::to_string)
        .collect();
    let rest = |count: usize| match count.saturating_sub(SHOWN) {
        0 => String::new(),
        more => format!(" and {more} more"),
    };
    let mut parts = Vec::new();
    if !missing.is_empty() {
        let first = &missing[..missing.len().min(SHOWN)];
        let noun = if missing.len() == 1 {
            "tensor"
        } else {
            "tensors"
        };
        let searched = match files {
            [] => "no files".to_string(),
            [first, .., last] if files.len() > 3 => {
                format!("{} files from {first} to {last}", files.len())
            }
            few => few.join(", "),
        };
        parts.push(format!(
            "{} {noun} missing: {}{}; searched {searched}",
            missing.len(),
            first.join(", "),
            rest(missing.len()),
        ));
    }
    if !wrong.is_empty() {
        let first = &wrong[..wrong.len().min(SHOWN)];
        parts.push(format!("{}{}", first.join("; "), rest(wrong.len())));
    }
    parts.join("; ")
}

/// All problems of the tensors that `config` needs; empty when the checkpoint is complete.
pub(crate) fn problems(
    config: &ModelConfig,
    decoder: &DecoderConfig,
    weights: &WeightSource,
) -> Vec<TensorProblem> {
    let mut check = Check {
        weights,
        problems: Vec::new(),
    };
    check.decoder(decoder);
    if config.mm_vision_tower.is_some() {
        check.vision(config);
    }
    check.problems
}

struct Check<'a> {
    weights: &'a WeightSource,
    problems: Vec<TensorProblem>,
}

impl Check<'_> {
    fn need(&mut self, name: String, expected: &[usize]) {
        let Some(info) = self.weights.info(&name) else {
            self.problems.push(TensorProblem::Missing { name });
            return;
        };
        if info.shape != expected {
            self.problems.push(TensorProblem::Shape {
                file: info.file,
                name,
                expected: expected.to_vec(),
                found: info.shape,
            });
        } else if !info.element_type.is_float() {
            self.problems.push(TensorProblem::Type {
                file: info.file,
                name,
                found: info.element_type.name().to_string(),
            });
        }
    }

    /// A tensor whose shape is read from the file rather than known.
    fn present(&mut self, name: String) -> Option<Vec<usize>> {
        let shape = self.weights.shape(&name);
        if shape.is_none() {
            self.problems.push(TensorProblem::Missing { name });
        }
        shape
    }

    fn pair(&mut self, prefix: &str, expected: &[usize]) {
        self.need(format!("{prefix}.weight"), expected);
        self.need(format!("{prefix}.bias"), &expected[..1]);
    }

    fn norm(&mut self, prefix: &str, width: usize) {
        self.pair(prefix, &[width]);
    }

    fn decoder(&mut self, config: &DecoderConfig) {
        let (hidden, inner) = (config.hidden_size, config.intermediate_size);
        let queries = config.heads * config.head_dim;
        let keys = config.kv_heads * config.head_dim;
        self.need(
            "model.embed_tokens.weight".into(),
            &[config.vocab_size, hidden],
        );
        // A count far beyond what is stored is told once, not layer by layer.
        let stored = stored_depth(&self.weights.pp("model.layers"));
        for layer in 0..config.layers.min(stored + 1) {
            let layer = format!("model.layers.{layer}");
            self.need(format!("{layer}.input_layernorm.weight"), &[hidden]);
            self.need(
                format!("{layer}.post_attention_layernorm.weight"),
                &[hidden],
            );
            for (name, output, input) in [
                ("q_proj", queries, hidden),
                ("k_proj", keys, hidden),
                ("v_proj", keys, hidden),
                ("o_proj", hidden, queries),
            ] {
                self.need(format!("{layer}.self_attn.{name}.weight"), &[output, input]);
            }
            match config.experts {
                None => {
                    let mlp = format!("{layer}.mlp");
                    self.need(format!("{mlp}.gate_proj.weight"), &[inner, hidden]);
                    self.need(format!("{mlp}.up_proj.weight"), &[inner, hidden]);
                    self.need(format!("{mlp}.down_proj.weight"), &[hidden, inner]);
                }
                Some(experts) => {
                    let moe = format!("{layer}.block_sparse_moe");
                    self.need(format!("{moe}.gate.weight"), &[experts.count, hidden]);
                    let stored = stored_depth(&self.weights.pp(format!("{moe}.experts")));
                    for expert in 0..experts.count.min(stored + 1) {
                        let expert = format!("{moe}.experts.{expert}");
                        self.need(format!("{expert}.w1.weight"), &[inner, hidden]);
                        self.need(format!("{expert}.w2.weight"), &[hidden, inner]);
                        self.need(format!("{expert}.w3.weight"), &[inner, hidden]);
                    }
                }
            }
        }
        self.need("model.norm.weight".into(), &[hidden]);
        if !config.tied_head {
            self.need("lm_head.weight".into(), &[config.vocab_size, hidden]);
        }
    }

    fn vision(&mut self, config: &ModelConfig) {
        let low_res_width = self.low_res();
        let high_res_channels = match config.mm_vision_tower_aux {
            Some(_) => self.high_res(),
            None => None,
        };
        let Some(width) = low_res_width else { return };
        if let Some(channels) = high_res_channels {
            let miner = |part: &str| format!("model.vlm_uni_{part}_projector");
            for (part, input) in [("query", width), ("aux", channels), ("val", channels)] {
                self.norm(&format!("{}.0", miner(part)), input);
                self.pair(&format!("{}.1", miner(part)), &[width, input]);
            }
        }
        let hidden = config.hidden_size;
        let kind = config.mm_projector_type.as_str();
        let depth = kind
            .strip_prefix("mlp")
            .and_then(|rest| rest.strip_suffix("x_gelu"))
            .and_then(|depth| depth.parse::<usize>().ok());
        match (kind, depth) {
            ("linear", _) => self.pair("model.mm_projector", &[hidden, width]),
            // An unknown type is told by the projector itself.
            (_, None) => {}
            (_, Some(depth)) => {
                let stored = stored_depth(&self.weights.pp("model.mm_projector"));
                for index in 0..depth.min(stored + 1) {
                    let input = if index == 0 { width } else { hidden };
                    self.pair(
                        &format!("model.mm_projector.{}", 2 * index),
                        &[hidden, input],
                    );
                }
            }
        }
    }

    /// The low-resolution tower; its width, if that is known. A tower of another layout checks its own tensors.
    fn low_res(&mut self) -> Option<usize> {
        let tower = "model.vision_tower.vision_tower";
        if self.weights.contains(&format!(
            "{tower}.embeddings.patch_embeddings.projection.weight"
        )) {
            return None;
        }
        let tower = format!("{tower}.vision_model");
        let embeddings = format!("{tower}.embeddings");
        let patches = self.present(format!("{embeddings}.patch_embedding.weight"))?;
        let width = *patches.first()?;
        self.need(format!("{embeddings}.class_embedding"), &[width]);
        self.present(format!("{embeddings}.position_embedding.weight"));
        self.norm(&format!("{tower}.pre_layrnorm"), width);
        for layer in 0..stored_depth(&self.weights.pp(format!("{tower}.encoder.layers"))) {
            let layer = format!("{tower}.encoder.layers.{layer}");
            self.norm(&format!("{layer}.layer_norm1"), width);
            self.norm(&format!("{layer}.layer_norm2"), width);
            for name in ["q_proj", "k_proj", "v_proj", "out_proj"] {
                self.pair(&format!("{layer}.self_attn.{name}"), &[width, width]);
            }
            let inner = self.present(format!("{layer}.mlp.fc1.weight"));
            if let Some([inner, _]) = inner.as_deref() {
                self.pair(&format!("{layer}.mlp.fc1"), &[*inner, width]);
                self.pair(&format!("{layer}.mlp.fc2"), &[width, *inner]);
            }
        }
        Some(width)
    }

    /// The high-resolution tower; the channels of all its maps, if known.
    fn high_res(&mut self) -> Option<usize> {
        let tower = "model.vision_tower_aux";
        if self.weights.contains(&format!("{tower}._conv_stem.weight")) {
            return None;
        }
        let stem = self.present(format!("{tower}.vision_stem.0.weight"))?;
        let (mut previous, colours, kernel) = match stem.as_slice() {
            [width, colours, kernel, _] => (*width, *colours, *kernel),
            // Told when the stem is loaded.
            _ => return None,
        };
        self.pair(
            &format!("{tower}.vision_stem.0"),
            &[previous, colours, kernel, kernel],
        );
        self.norm(&format!("{tower}.vision_stem.1"), previous);
        let mut channels = 0;
        for stage in 0..stored_depth(&self.weights.pp(format!("{tower}.vision_stages"))) {
            let prefix = format!("{tower}.vision_stages.{stage}");
            let width = match self.present(format!("{prefix}.blocks.0.gamma"))?.as_slice() {
                [width] => *width,
                _ => return None,
            };
            if stage > 0 {
                self.norm(&format!("{prefix}.downsample.0"), previous);
                self.pair(&format!("{prefix}.downsample.1"), &[width, previous, 2, 2]);
            }
            for block in 0..stored_depth(&self.weights.pp(format!("{prefix}.blocks"))) {
                let block = format!("{prefix}.blocks.{block}");
                self.need(format!("{block}.gamma"), &[width]);
                self.pair(&format!("{block}.conv_dw"), &[width, 1, 7, 7]);
                self.norm(&format!("{block}.norm"), width);
                self.pair(&format!("{block}.mlp.fc1"), &[4 * width, width]);
                self.pair(&format!("{block}.mlp.fc2"), &[width, 4 * width]);
            }
            channels += width;
            previous = width;
        }
        Some(channels)
    }
}

/// One more than the largest number that names below this position begin with: how many layers are stored, gaps included. Never more
/// than a few beyond the number of names, so that an absurd index is found to be a gap.
pub(crate) fn stored_depth(source: &WeightSource) -> usize {
    let start = source.prefix().len() + 1;
    let indexes: BTreeSet<usize> = source
        .names()
        .iter()
        .filter_map(|name| name.get(start..)?.split('.').next()?.parse().ok())
        .collect();
    indexes
        .last()
        .map_or(0, |last| last.saturating_add(1).min(indexes.len() + 8))
}
