//! Which tensors go into the two files, where their values come from, and in which type they are written.

use std::path::Path;

use mgm_nn::{ElementType, GgufTensor, WeightSource};

use super::mix::{LanguageMix, Scheme, vision_type};
use super::names::{self, ATTENTION, EXPERTS, MLP};
use crate::config::{Family, ModelConfig};
use crate::decoder::DecoderConfig;
use crate::error::{Error, Result};

/// One tensor of a file.
#[derive(Debug)]
pub(super) struct Planned {
    pub(super) target: GgufTensor,
    /// Official names of the tensors it is made of: one, or all experts of a layer, which are stacked.
    pub(super) sources: Vec<String>,
    /// Rows of each head (this many) go from half-split into interleaved order, which ggml's rotary embedding of `llama` wants.
    pub(super) interleaved: Option<usize>,
    /// Added to every value: 1 for Gemma's norms.
    pub(super) offset: f32,
}

impl Planned {
    fn new(name: String, shape: Vec<usize>, element_type: ElementType, source: String) -> Self {
        Self {
            target: GgufTensor {
                name,
                shape,
                element_type,
            },
            sources: vec![source],
            interleaved: None,
            offset: 0.0,
        }
    }

    /// Values in all.
    pub(super) fn elements(&self) -> u64 {
        self.target.shape.iter().map(|&axis| axis as u64).product()
    }
}

/// The tensors of a language file, in the order of llama.cpp's converter.
pub(super) fn language(
    config: &ModelConfig,
    decoder: &DecoderConfig,
    weights: &WeightSource,
    scheme: Scheme,
    has_importance: bool,
) -> Result<Vec<Planned>> {
    let family = config.family();
    let has_output = !decoder.tied_head && weights.contains("lm_head.weight");
    let mut planner = Planner {
        weights,
        mix: LanguageMix {
            scheme,
            layers: decoder.layers,
            experts: decoder.experts.map_or(1, |experts| experts.count),
            grouping: decoder.heads / decoder.kv_heads,
            has_output,
            has_importance,
        },
        norm_offset: decoder.norm_offset,
        interleaved: (super::language::architecture(family) == "llama").then_some(decoder.head_dim),
        planned: Vec::new(),
        problems: Vec::new(),
    };
    let hidden = decoder.hidden_size;
    planner.matrix(
        "token_embd",
        None,
        "model.embed_tokens",
        &[decoder.vocab_size, hidden],
    );
    for layer in 0..decoder.layers {
        let official = |part: &str| format!("model.layers.{layer}.{part}");
        planner.norm(
            &format!("blk.{layer}.attn_norm"),
            &official("input_layernorm"),
            hidden,
        );
        for (part, name) in ATTENTION {
            let (queries, keys) = (
                decoder.heads * decoder.head_dim,
                decoder.kv_heads * decoder.head_dim,
            );
            let shape = match name {
                "attn_q" => [queries, hidden],
                "attn_output" => [hidden, queries],
                _ => [keys, hidden],
            };
            planner.matrix(name, Some(layer), &official(part), &shape);
            planner.bias(name, layer, &official(part), shape[0], family);
        }
        planner.norm(
            &format!("blk.{layer}.ffn_norm"),
            &official("post_attention_layernorm"),
            hidden,
        );
        let inner = decoder.intermediate_size;
        match decoder.experts {
            None => {
                for (part, name) in MLP {
                    let shape = if name == "ffn_down" {
                        [hidden, inner]
                    } else {
                        [inner, hidden]
                    };
                    planner.matrix(name, Some(layer), &official(part), &shape);
                }
            }
            Some(experts) => {
                planner.router(layer, experts.count, hidden);
                for (part, name) in EXPERTS {
                    let (rows, width) = if name == "ffn_down_exps" {
                        (hidden, inner)
                    } else {
                        (inner, hidden)
                    };
                    let sources = (0..experts.count)
                        .map(|expert| {
                            official(&format!("block_sparse_moe.experts.{expert}.{part}.weight"))
                        })
                        .collect();
                    planner.stack(name, layer, sources, rows, width);
                }
            }
        }
    }
    planner.norm("output_norm", "model.norm", hidden);
    if has_output {
        planner.matrix("output", None, "lm_head", &[decoder.vocab_size, hidden]);
    }
    planner.finish()
}

/// The tensors of a vision file: everything visual that the checkpoint holds.
pub(super) fn vision(weights: &WeightSource, scheme: Scheme) -> Vec<Planned> {
    weights
        .names()
        .into_iter()
        .filter_map(|official| {
            let name = names::vision_name(&official)?;
            let info = weights.info(&official)?;
            // Counters and position ids, which nothing reads.
            if info.shape.is_empty() || !is_float(&info.element_type) {
                return None;
            }
            let element_type = vision_type(scheme, &name, &info.shape);
            Some(Planned::new(name, info.shape, element_type, official))
        })
        .collect()
}

fn is_float(element_type: &ElementType) -> bool {
    matches!(
        element_type,
        ElementType::F64
            | ElementType::F32
            | ElementType::F16
            | ElementType::Bf16
            | ElementType::Quantised(_)
    )
}

struct Planner<'a> {
    weights: &'a WeightSource,
    mix: LanguageMix,
    norm_offset: f32,
    interleaved: Option<usize>,
    planned: Vec<Planned>,
    problems: Vec<String>,
}

impl Planner<'_> {
    /// Notes a tensor that is missing or has another shape.
    fn check(&mut self, name: &str, expected: &[usize]) {
        match self.weights.info(name) {
            Some(info) if info.shape == expected => {}
            Some(info) => self.problems.push(format!(
                "{name} in {}: expected shape {expected:?}, found {:?}",
                info.file, info.shape
            )),
            None => self
                .problems
                .push(format!("{name} {expected:?} is missing")),
        }
    }

    fn matrix(&mut self, part: &str, layer: Option<usize>, official: &str, shape: &[usize]) {
        let source = format!("{official}.weight");
        self.check(&source, shape);
        let element_type = self
            .mix
            .element_type(part, layer.unwrap_or(0), shape[shape.len() - 1]);
        let name = match layer {
            Some(layer) => format!("blk.{layer}.{part}.weight"),
            None => format!("{part}.weight"),
        };
        let mut planned = Planned::new(name, shape.to_vec(), element_type, source);
        if ["attn_q", "attn_k"].contains(&part) {
            planned.interleaved = self.interleaved;
        }
        self.planned.push(planned);
    }

    /// Qwen2 has these for queries, keys and values; other families may.
    fn bias(&mut self, part: &str, layer: usize, official: &str, rows: usize, family: Family) {
        let source = format!("{official}.bias");
        let required = family == Family::Qwen2 && part != "attn_output";
        if !required && !self.weights.contains(&source) {
            return;
        }
        self.check(&source, &[rows]);
        let mut planned = Planned::new(
            format!("blk.{layer}.{part}.bias"),
            vec![rows],
            ElementType::F32,
            source,
        );
        if ["attn_q", "attn_k"].contains(&part) {
            planned.interleaved = self.interleaved;
        }
        self.planned.push(planned);
    }

    fn norm(&mut self, name: &str, official: &str, width: usize) {
        let source = format!("{official}.weight");
        self.check(&source, &[width]);
        let mut planned = Planned::new(
            format!("{name}.weight"),
            vec![width],
            ElementType::F32,
            source,
        );
        planned.offset = self.norm_offset;
        self.planned.push(planned);
    }

    /// The gate that chooses experts is never quantised.
    fn router(&mut self, layer: usize, experts: usize, hidden: usize) {
        let source = format!("model.layers.{layer}.block_sparse_moe.gate.weight");
        self.check(&source, &[experts, hidden]);
        self.planned.push(Planned::new(
            format!("blk.{layer}.ffn_gate_inp.weight"),
            vec![experts, hidden],
            ElementType::F32,
            source,
        ));
    }

    fn stack(&mut self, part: &str, layer: usize, sources: Vec<String>, rows: usize, width: usize) {
        for source in &sources {
            self.check(source, &[rows, width]);
        }
        self.planned.push(Planned {
            target: GgufTensor {
                name: format!("blk.{layer}.{part}.weight"),
                shape: vec![sources.len(), rows, width],
                element_type: self.mix.element_type(part, layer, width),
            },
            sources,
            interleaved: None,
            offset: 0.0,
        });
    }

    fn finish(self) -> Result<Vec<Planned>> {
        let Some(first) = self.problems.first() else {
            return Ok(self.planned);
        };
        let more = match self.problems.len() {
            1 => String::new(),
            count => format!(" (and {} more tensors missing or misshapen)", count - 1),
        };
        Err(Error::Input(format!("tensor {first}{more}")))
    }
}

/// Problems name the file; this one names the checkpoint for a plan without vision tensors.
pub(super) fn require_vision(planned: &[Planned], checkpoint: &Path) -> Result<()> {
    if planned.is_empty() {
        return Err(Error::Input(format!(
            "{}: the configuration names a vision tower, but the checkpoint holds no visual tensors",
            checkpoint.display()
        )));
    }
    Ok(())
}
