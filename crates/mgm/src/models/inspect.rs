//! `mgm models inspect`: what a model is, what its files hold, what it needs, what it lacks.

use std::fmt::{self, Write as _};
use std::path::Path;

use mgm_nn::WeightSource;
use mini_gemini::inventory::{Towers, part_sizes};
use mini_gemini::{Checkpoint, ModelConfig, ModelSource, Precision};
use serde::Serialize;

use super::megabytes;
use crate::cli::InspectArgs;
use crate::failure::Failure;
use crate::stdout;

/// Describes a model, or a weight file alone.
pub(super) fn run(args: &InspectArgs) -> Result<(), Failure> {
    let report = match weights_alone(&args.path)? {
        Some(weights) => Report {
            model: None,
            weights: WeightReport::new(&weights, args.tensors),
        },
        None => {
            let source = ModelSource::parse(&args.path.to_string_lossy());
            let checkpoint = Checkpoint::open(&source, &args.files.load_options())?;
            Report {
                model: Some(ModelReport::new(&checkpoint)?),
                weights: WeightReport::new(&checkpoint.weights, args.tensors),
            }
        }
    };
    if args.json {
        return stdout::write_json(&report);
    }
    stdout::write(report.to_string())
}

/// A file that is not a model by itself: a shard, a tower, an adapter, the vision half of a pair.
fn weights_alone(path: &Path) -> Result<Option<WeightSource>, Failure> {
    if !path.is_file() {
        return Ok(None);
    }
    let source = WeightSource::open(path).map_err(|error| Failure::from_error(&error))?;
    let is_language_file = source
        .gguf_metadata()
        .is_some_and(|_| source.contains("model.embed_tokens.weight"));
    Ok((!is_language_file).then_some(source))
}

#[derive(Serialize)]
struct Report {
    #[serde(skip_serializing_if = "Option::is_none")]
    model: Option<ModelReport>,
    weights: WeightReport,
}

#[derive(Serialize)]
struct ModelReport {
    name: String,
    directory: String,
    family: String,
    template: String,
    language_model: LanguageReport,
    /// Positions a prompt may fill.
    context: usize,
    /// Positions the language model was made for.
    max_position_embeddings: Option<usize>,
    #[serde(skip_serializing_if = "Option::is_none")]
    vision: Option<VisionReport>,
    memory: MemoryReport,
    /// Tensors that are missing or have a wrong shape, one line each.
    problems: Vec<String>,
    notes: Vec<String>,
}

#[derive(Serialize)]
struct LanguageReport {
    layers: usize,
    hidden_size: usize,
    intermediate_size: usize,
    heads: usize,
    kv_heads: usize,
    head_dim: usize,
    vocabulary: usize,
    tied_head: bool,
    #[serde(skip_serializing_if = "Option::is_none")]
    experts: Option<(usize, usize)>,
}

#[derive(Serialize)]
struct VisionReport {
    low_res: String,
    high_res: Option<String>,
    low_res_pixels: Option<usize>,
    high_res_pixels: Option<usize>,
    visual_tokens: Option<usize>,
    projector: String,
}

#[derive(Serialize)]
struct MemoryReport {
    /// Bytes of weights that are packed and stay in memory.
    packed: u64,
    /// Bytes of weights used in place in their mapped files.
    mapped: u64,
    contexts: Vec<ContextMemory>,
}

#[derive(Serialize)]
struct ContextMemory {
    positions: usize,
    keys_and_values: u64,
    total: u64,
}

#[derive(Serialize)]
struct WeightReport {
    files: Vec<FileReport>,
    #[serde(skip_serializing_if = "Option::is_none")]
    gguf_architecture: Option<String>,
    parts: Vec<PartReport>,
    #[serde(skip_serializing_if = "Option::is_none")]
    tensors: Option<Vec<TensorReport>>,
}

#[derive(Serialize)]
struct FileReport {
    path: String,
    bytes: u64,
}

#[derive(Serialize)]
struct PartReport {
    part: &'static str,
    dtype: String,
    tensors: usize,
    parameters: u64,
    bytes: u64,
}

#[derive(Serialize)]
struct TensorReport {
    name: String,
    shape: Vec<usize>,
    dtype: String,
    file: String,
}

impl ModelReport {
    fn new(checkpoint: &Checkpoint) -> Result<Self, Failure> {
        let config = &checkpoint.config;
        let decoder = config.decoder(&checkpoint.config_file)?;
        let memory = checkpoint.memory(Precision::Auto)?;
        let context = config.context_limit();
        let mut lengths = vec![context];
        let limit = config.max_position_embeddings.unwrap_or(context);
        lengths.extend([1024, 2048, 4096, 8192, 16_384, 32_768]);
        lengths.retain(|length| *length <= limit.max(context));
        lengths.sort_unstable();
        lengths.dedup();
        Ok(Self {
            name: checkpoint.name.clone(),
            directory: checkpoint.directory.display().to_string(),
            family: format!("{:?}", config.family()),
            template: checkpoint.template()?.name().to_string(),
            language_model: LanguageReport {
                layers: decoder.layers,
                hidden_size: decoder.hidden_size,
                intermediate_size: decoder.intermediate_size,
                heads: decoder.heads,
                kv_heads: decoder.kv_heads,
                head_dim: decoder.head_dim,
                vocabulary: decoder.vocab_size,
                tied_head: decoder.tied_head,
                experts: decoder
                    .experts
                    .as_ref()
                    .map(|experts| (experts.count, experts.per_token)),
            },
            context,
            max_position_embeddings: config.max_position_embeddings,
            vision: VisionReport::new(config, &checkpoint.weights),
            memory: MemoryReport {
                packed: memory.packed,
                mapped: memory.mapped,
                contexts: lengths
                    .into_iter()
                    .map(|positions| ContextMemory {
                        positions,
                        keys_and_values: memory.per_position * positions as u64,
                        total: memory.total(positions),
                    })
                    .collect(),
            },
            problems: checkpoint
                .problems()?
                .iter()
                .map(ToString::to_string)
                .collect(),
            notes: checkpoint.notes.clone(),
        })
    }
}

impl VisionReport {
    fn new(config: &ModelConfig, weights: &WeightSource) -> Option<Self> {
        let low_res_name = config.mm_vision_tower.as_ref()?;
        let towers = Towers::of(weights);
        let grid = config.grid();
        let views = grid * grid + usize::from(config.image_global.unwrap_or(false));
        let low_res = towers.low_res.as_ref();
        let described = |name: &str, tower: Option<String>| match tower {
            Some(tower) => format!("{tower} ({name})"),
            None => format!("{name}: no known tensors"),
        };
        Some(Self {
            low_res: described(low_res_name, low_res.map(ToString::to_string)),
            high_res: config
                .mm_vision_tower_aux
                .as_ref()
                .map(|name| described(name, towers.high_res.as_ref().map(ToString::to_string))),
            low_res_pixels: low_res.map(|tower| tower.pixels() * grid),
            high_res_pixels: config
                .mm_vision_tower_aux
                .as_ref()
                .and(config.image_size_aux),
            visual_tokens: low_res.map(|tower| tower.patches() * if grid == 1 { 1 } else { views }),
            projector: config.mm_projector_type.clone(),
        })
    }
}

impl WeightReport {
    fn new(weights: &WeightSource, list: bool) -> Self {
        let files = weights
            .files()
            .into_iter()
            .map(|path| FileReport {
                bytes: std::fs::metadata(&path).map_or(0, |metadata| metadata.len()),
                path,
            })
            .collect();
        let tensors = list.then(|| {
            weights
                .names()
                .into_iter()
                .filter_map(|name| {
                    let info = weights.info(&name)?;
                    Some(TensorReport {
                        name,
                        shape: info.shape,
                        dtype: info.element_type.name().to_string(),
                        file: info.file,
                    })
                })
                .collect()
        });
        Self {
            files,
            gguf_architecture: weights
                .gguf_metadata()
                .and_then(|metadata| metadata.architecture().map(str::to_string)),
            parts: part_sizes(weights)
                .into_iter()
                .map(|size| PartReport {
                    part: size.part.label(),
                    dtype: size.element_type,
                    tensors: size.tensors,
                    parameters: size.parameters,
                    bytes: size.bytes,
                })
                .collect(),
            tensors,
        }
    }
}

impl fmt::Display for Report {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if let Some(model) = &self.model {
            writeln!(f, "{model}")?;
        }
        write!(f, "{}", self.weights)?;
        if let Some(model) = &self.model {
            writeln!(f)?;
            write!(f, "{}", model.memory)?;
            writeln!(f)?;
            match model.problems.as_slice() {
                [] => writeln!(f, "complete: every tensor the configuration needs is there")?,
                problems => {
                    writeln!(f, "incomplete: {} problems", problems.len())?;
                    for problem in problems {
                        writeln!(f, "  {problem}")?;
                    }
                }
            }
        }
        Ok(())
    }
}

impl fmt::Display for ModelReport {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mut line = |name: &str, value: String| writeln!(f, "{name:22} {value}");
        line("model", self.name.clone())?;
        line("directory", self.directory.clone())?;
        line("family", self.family.clone())?;
        line("template", self.template.clone())?;
        let language = &self.language_model;
        let mut described = format!(
            "{} layers, width {}, MLP {}, {} heads of {} ({} for keys and values), vocabulary {}",
            language.layers,
            language.hidden_size,
            language.intermediate_size,
            language.heads,
            language.head_dim,
            language.kv_heads,
            language.vocabulary
        );
        if let Some((count, per_token)) = language.experts {
            write!(described, ", {count} experts, {per_token} a token")?;
        }
        if language.tied_head {
            described.push_str(", head tied to the embedding");
        }
        line("language model", described)?;
        line(
            "context",
            match self.max_position_embeddings {
                Some(made_for) if made_for != self.context => {
                    format!("{} positions (language model: {made_for})", self.context)
                }
                _ => format!("{} positions", self.context),
            },
        )?;
        if let Some(vision) = &self.vision {
            line("low-resolution tower", vision.low_res.clone())?;
            line(
                "high-resolution tower",
                vision.high_res.clone().unwrap_or_else(|| "none".into()),
            )?;
            if let (Some(low), Some(tokens)) = (vision.low_res_pixels, vision.visual_tokens) {
                let high = vision.high_res_pixels.map_or(String::new(), |high| {
                    format!(", {high}×{high} pixels in detail")
                });
                line(
                    "pictures",
                    format!("{low}×{low} pixels{high}, {tokens} visual tokens each"),
                )?;
            }
            line("projector", vision.projector.clone())?;
        } else {
            line("vision", "none: a text model".into())?;
        }
        for note in &self.notes {
            line("note", note.clone())?;
        }
        Ok(())
    }
}

impl fmt::Display for WeightReport {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for file in &self.files {
            writeln!(f, "{:>12}  {}", megabytes(file.bytes), file.path)?;
        }
        if let Some(architecture) = &self.gguf_architecture {
            writeln!(f, "GGUF architecture: {architecture}")?;
        }
        writeln!(f)?;
        writeln!(
            f,
            "{:22} {:>6} {:>8} {:>14} {:>12}",
            "part", "dtype", "tensors", "parameters", "size"
        )?;
        let mut row = |part: &str, dtype: &str, tensors: usize, parameters: u64, bytes: u64| {
            writeln!(
                f,
                "{part:22} {dtype:>6} {tensors:>8} {:>14} {:>12}",
                grouped(parameters),
                megabytes(bytes)
            )
        };
        for part in &self.parts {
            row(
                part.part,
                &part.dtype,
                part.tensors,
                part.parameters,
                part.bytes,
            )?;
        }
        row(
            "total",
            "",
            self.parts.iter().map(|part| part.tensors).sum(),
            self.parts.iter().map(|part| part.parameters).sum(),
            self.parts.iter().map(|part| part.bytes).sum(),
        )?;
        if let Some(tensors) = &self.tensors {
            writeln!(f)?;
            for tensor in tensors {
                writeln!(f, "{} {:?} {}", tensor.name, tensor.shape, tensor.dtype)?;
            }
        }
        Ok(())
    }
}

impl fmt::Display for MemoryReport {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        writeln!(
            f,
            "memory with --dtype auto: {} of weights in memory, {} used in place in their files",
            megabytes(self.packed),
            megabytes(self.mapped)
        )?;
        writeln!(
            f,
            "{:>10} {:>16} {:>12}",
            "positions", "keys and values", "together"
        )?;
        for context in &self.contexts {
            writeln!(
                f,
                "{:>10} {:>16} {:>12}",
                context.positions,
                megabytes(context.keys_and_values),
                megabytes(context.total)
            )?;
        }
        writeln!(f, "what reading a picture needs for a moment comes on top")
    }
}

/// Thousands set apart: `303,507,456`.
fn grouped(number: u64) -> String {
    let digits = number.to_string();
    let mut out = String::with_capacity(digits.len() + digits.len() / 3);
    for (index, digit) in digits.chars().enumerate() {
        if index > 0 && (digits.len() - index).is_multiple_of(3) {
            out.push(',');
        }
        out.push(digit);
    }
    out
}

#[cfg(test)]
mod tests {
    use super::grouped;

    #[test]
    fn thousands_are_set_apart() {
        for (number, text) in [
            (0, "0"),
            (999, "999"),
            (1000, "1,000"),
            (303_507_456, "303,507,456"),
        ] {
            assert_eq!(grouped(number), text);
        }
    }
}
