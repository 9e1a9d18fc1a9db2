//! LoRA adapters for SDXL, added to the weights while they are loaded.
//!
//! Names are those of the two tools people use: kohya's scripts (`lora_unet_input_blocks_4_1_transformer_blocks_0_attn1_to_q.lora_down.weight`
//! with an `alpha` beside it, blocks numbered as in the original code or as in diffusers) and diffusers/PEFT
//! (`unet.down_blocks.1.attentions.0.….lora_A.weight`, older files `.lora.down.weight`).

use std::collections::{BTreeMap, HashMap};
use std::path::Path;
use std::sync::Arc;

use mgm_nn::{Derivation, ValueChange, WeightSource};

use crate::config::UNetConfig;
use crate::error::{Error, Result};
use crate::files::Part;

/// An adapter file, understood.
pub struct LoraFile {
    label: String,
    source: WeightSource,
    /// By the name it has in the file: the names of its two matrices.
    adapters: BTreeMap<String, Adapter>,
}

#[derive(Clone)]
struct Adapter {
    down: String,
    up: String,
    alpha: Option<f64>,
}

/// What became of an adapter file's matrices in one part of the model.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct LoraReport {
    /// Matrices that were added to.
    pub applied: usize,
    /// Adapters meant for this part that name no matrix of it.
    pub unknown: usize,
}

impl LoraFile {
    /// Reads a `.safetensors` (or torch) file's names.
    ///
    /// # Errors
    /// When it holds no LoRA adapters, or half of one.
    pub fn open(path: &Path) -> Result<Self> {
        if !path.exists() {
            return Err(Error::Missing {
                path: path.to_path_buf(),
                what: "no such file: expected a LoRA adapter".into(),
            });
        }
        let label = path.display().to_string();
        let source = WeightSource::open(path)?;
        let mut halves: BTreeMap<String, [Option<String>; 2]> = BTreeMap::new();
        let mut alphas = HashMap::new();
        for name in source.names() {
            let endings = [
                (".lora_down.weight", 0),
                (".lora_up.weight", 1),
                (".lora_A.weight", 0),
                (".lora_B.weight", 1),
                (".lora_A.default.weight", 0),
                (".lora_B.default.weight", 1),
                (".lora.down.weight", 0),
                (".lora.up.weight", 1),
            ];
            if let Some((base, index)) = endings
                .iter()
                .find_map(|(end, index)| Some((name.strip_suffix(end)?, *index)))
            {
                halves.entry(base.to_string()).or_default()[index] = Some(name.clone());
            } else if let Some(base) = name.strip_suffix(".alpha") {
                let (values, _) = source.host_values(&name)?;
                alphas.insert(base.to_string(), values.first().copied().map(f64::from));
            } else if name.ends_with(".dora_scale")
                || name.contains(".hada_")
                || name.contains(".lokr_")
            {
                return Err(Error::config(
                    &label,
                    format!("tensor {name}: only plain LoRA adapters are supported"),
                ));
            }
        }
        if halves.is_empty() {
            return Err(Error::config(
                &label,
                "no LoRA adapters (no tensor ends in .lora_down.weight or .lora_A.weight)",
            ));
        }
        let adapters = halves
            .into_iter()
            .map(|(base, halves)| match halves {
                [Some(down), Some(up)] => {
                    let alpha = alphas.get(&base).copied().flatten();
                    Ok((base, Adapter { down, up, alpha }))
                }
                _ => Err(Error::config(
                    &label,
                    format!("{base}: half an adapter, expected both of its matrices"),
                )),
            })
            .collect::<Result<_>>()?;
        Ok(Self {
            label,
            source,
            adapters,
        })
    }

    /// Number of adapted matrices.
    pub fn len(&self) -> usize {
        self.adapters.len()
    }

    /// Whether there are none.
    pub fn is_empty(&self) -> bool {
        self.adapters.is_empty()
    }

    /// Adds the adapters of one part, times `scale`, to the weights that `weights` will hand out.
    ///
    /// # Errors
    /// When an adapter's matrices do not fit the weight they are for.
    pub fn apply(
        &self,
        weights: WeightSource,
        part: Part,
        unet: &UNetConfig,
        scale: f64,
    ) -> Result<(WeightSource, LoraReport)> {
        let mut report = LoraReport::default();
        let targets = Targets::new(&weights, part, unet);
        let mut changes: BTreeMap<String, Vec<Delta>> = BTreeMap::new();
        for (base, adapter) in &self.adapters {
            let Some(rest) = prefixes(part)
                .iter()
                .find_map(|prefix| base.strip_prefix(prefix))
            else {
                continue;
            };
            match targets.find(rest) {
                None => report.unknown += 1,
                Some(target) => {
                    let delta = self.delta(&weights, &target, adapter, scale)?;
                    changes.entry(target).or_default().push(delta);
                    report.applied += 1;
                }
            }
        }
        let derived = changes.into_iter().map(|(target, deltas)| {
            let source = self.source.clone();
            let change: ValueChange = Arc::new(move |values| {
                deltas
                    .iter()
                    .try_for_each(|delta| delta.add_to(&source, values))
            });
            (target.clone(), target, Derivation::Changed(change))
        });
        Ok((weights.with_derived(derived)?, report))
    }

    fn delta(
        &self,
        weights: &WeightSource,
        target: &str,
        adapter: &Adapter,
        scale: f64,
    ) -> Result<Delta> {
        let shape = weights.shape(target).unwrap_or_default();
        let (down, up) = (
            self.source.shape(&adapter.down).unwrap_or_default(),
            self.source.shape(&adapter.up).unwrap_or_default(),
        );
        let rank = down.first().copied().unwrap_or(0);
        let rows = shape.first().copied().unwrap_or(0);
        let columns: usize = shape.iter().skip(1).product();
        let fits = rank > 0
            && down.iter().skip(1).product::<usize>() == columns
            && up.first() == Some(&rows)
            && up.iter().skip(1).product::<usize>() == rank;
        if !fits {
            return Err(Error::config(
                &self.label,
                format!(
                    "{}: matrices {down:?} and {up:?} do not fit {target} {shape:?}",
                    adapter.down
                ),
            ));
        }
        let scale = scale * adapter.alpha.map_or(1.0, |alpha| alpha / rank as f64);
        if !scale.is_finite() {
            return Err(Error::config(
                &self.label,
                format!("{}: its alpha is not a number", adapter.down),
            ));
        }
        Ok(Delta {
            down: adapter.down.clone(),
            up: adapter.up.clone(),
            rank,
            columns,
            scale: scale as f32,
        })
    }
}

/// `scale · up·down`, to be added to a weight.
struct Delta {
    down: String,
    up: String,
    rank: usize,
    columns: usize,
    scale: f32,
}

impl Delta {
    fn add_to(&self, source: &WeightSource, values: &mut [f32]) -> mgm_nn::Result<()> {
        let (down, _) = source.host_values(&self.down)?;
        let (up, _) = source.host_values(&self.up)?;
        for (row, up) in values
            .chunks_exact_mut(self.columns.max(1))
            .zip(up.chunks_exact(self.rank))
        {
            for (&factor, down) in up.iter().zip(down.chunks_exact(self.columns.max(1))) {
                let factor = factor * self.scale;
                row.iter_mut()
                    .zip(down)
                    .for_each(|(v, &d)| *v += factor * d);
            }
        }
        Ok(())
    }
}

/// How the names of a part's adapters begin.
fn prefixes(part: Part) -> &'static [&'static str] {
    match part {
        Part::UNet => &["lora_unet_", "unet."],
        Part::FirstEncoder => &["lora_te1_", "lora_te_", "text_encoder."],
        Part::SecondEncoder => &["lora_te2_", "text_encoder_2."],
        Part::Vae => &[],
    }
}

/// Weights of a part by every name an adapter may call them.
struct Targets(HashMap<String, String>);

impl Targets {
    fn new(weights: &WeightSource, part: Part, unet: &UNetConfig) -> Self {
        let mut names = HashMap::new();
        for weight in weights.names() {
            let Some(base) = weight.strip_suffix(".weight") else {
                continue;
            };
            // diffusers: the path itself; older files leave out the list around the output projection and name its processor.
            names.insert(base.to_string(), weight.clone());
            names.insert(base.replace(".to_out.0", ".to_out"), weight.clone());
            if let Some((attention, projection)) = base.rsplit_once(".to_") {
                let projection = projection.trim_end_matches(".0");
                names.insert(
                    format!("{attention}.processor.to_{projection}"),
                    weight.clone(),
                );
            }
            // kohya: dots as underscores.
            names.insert(base.replace('.', "_"), weight.clone());
            if part == Part::UNet
                && let Some(original) = original_name(base, unet)
            {
                names.insert(original.replace('.', "_"), weight.clone());
                names.insert(original, weight.clone());
            }
        }
        Self(names)
    }

    fn find(&self, name: &str) -> Option<String> {
        self.0.get(name).cloned()
    }
}

/// A UNet weight's name in the original code, where blocks are numbered through.
fn original_name(name: &str, config: &UNetConfig) -> Option<String> {
    let levels = config.block_out_channels.len();
    let layers = |level: usize| config.layers_per_block.of(level);
    if let Some(rest) = name.strip_prefix("mid_block.") {
        let (kind, rest) = rest.split_once('.')?;
        let (index, rest) = rest.split_once('.')?;
        return Some(match (kind, index) {
            ("resnets", "0") => format!("middle_block.0.{}", original_residual(rest)),
            ("resnets", _) => format!("middle_block.2.{}", original_residual(rest)),
            _ => format!("middle_block.1.{rest}"),
        });
    }
    let fixed = [
        ("time_embedding.linear_1", "time_embed.0"),
        ("time_embedding.linear_2", "time_embed.2"),
        ("add_embedding.linear_1", "label_emb.0.0"),
        ("add_embedding.linear_2", "label_emb.0.2"),
        ("conv_in", "input_blocks.0.0"),
        ("conv_out", "out.2"),
    ];
    if let Some((_, original)) = fixed.iter().find(|(own, _)| *own == name) {
        return Some(original.to_string());
    }
    let (side, rest) = name.split_once('.')?;
    let (block, rest) = rest.split_once('.')?;
    let (kind, rest) = rest.split_once('.')?;
    let (index, rest) = rest.split_once('.')?;
    let (block, index): (usize, usize) = (block.parse().ok()?, index.parse().ok()?);
    if block >= levels {
        return None;
    }
    match side {
        "down_blocks" => {
            let before: usize = 1 + (0..block).map(|level| layers(level) + 1).sum::<usize>();
            match kind {
                "resnets" => Some(format!(
                    "input_blocks.{}.0.{}",
                    before + index,
                    original_residual(rest)
                )),
                "attentions" => Some(format!("input_blocks.{}.1.{rest}", before + index)),
                "downsamplers" => Some(format!("input_blocks.{}.0.op", before + layers(block))),
                _ => None,
            }
        }
        "up_blocks" => {
            let level = |block: usize| levels - 1 - block;
            let before: usize = (0..block).map(|up| layers(level(up)) + 1).sum();
            match kind {
                "resnets" => Some(format!(
                    "output_blocks.{}.0.{}",
                    before + index,
                    original_residual(rest)
                )),
                "attentions" => Some(format!("output_blocks.{}.1.{rest}", before + index)),
                "upsamplers" => {
                    let inner = if config.up_attends(block) { 2 } else { 1 };
                    Some(format!(
                        "output_blocks.{}.{inner}.conv",
                        before + layers(level(block))
                    ))
                }
                _ => None,
            }
        }
        _ => None,
    }
}

fn original_residual(name: &str) -> String {
    let pairs = [
        ("norm1", "in_layers.0"),
        ("conv1", "in_layers.2"),
        ("time_emb_proj", "emb_layers.1"),
        ("norm2", "out_layers.0"),
        ("conv2", "out_layers.3"),
        ("conv_shortcut", "skip_connection"),
    ];
    pairs
        .iter()
        .find(|(own, _)| *own == name)
        .map_or_else(|| name.to_string(), |(_, original)| original.to_string())
}
