//! Writing a model with its low-rank adapters merged into the weights, in the official layout: safetensors shards and their index.

use std::collections::BTreeMap;
use std::fs::File;
use std::io::{BufWriter, Write};
use std::ops::Range;
use std::path::{Path, PathBuf};

use candle_core::{Device, Tensor};
use half::{bf16, f16};
use mgm_nn::ElementType;
use serde_json::{Map, Value, json};

use crate::checkpoint::{Checkpoint, TokenizerFiles};
use crate::error::{Error, Result};
use crate::session::Control;

/// Largest shard in bytes, as Hugging Face's library cuts them.
pub const SHARD_BYTES: u64 = 5_000_000_000;
/// Values merged at once: bounds memory, whatever the size of a tensor.
const CHUNK_VALUES: usize = 1 << 22;

/// Files besides the weights that belong to a checkpoint and its tokeniser.
const COMPANIONS: [&str; 8] = [
    "tokenizer.json",
    "tokenizer.model",
    "tokenizer_config.json",
    "special_tokens_map.json",
    "added_tokens.json",
    "chat_template.jinja",
    "vocab.json",
    "merges.txt",
];

/// How far a merge is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct MergeProgress {
    /// Bytes of weights written.
    pub done: u64,
    /// Bytes of weights there will be.
    pub total: u64,
}

/// What a merge wrote.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Merged {
    /// Tensors written.
    pub tensors: usize,
    /// Those that had an adapter.
    pub adapted: usize,
    /// Weight files.
    pub shards: usize,
    /// Bytes of weights.
    pub bytes: u64,
}

impl Checkpoint {
    /// Names of all tensors of the model, without the adapters', which [`Self::merged_rows`] adds in.
    pub fn merged_names(&self) -> Vec<String> {
        let mut names = self.weights.names();
        if self.lora.is_some() {
            names.retain(|name| adapter_module(name).is_none());
        }
        names
    }

    /// Whether a low-rank adapter belongs to the tensor.
    pub fn is_adapted(&self, name: &str) -> bool {
        self.adapter_of(name).is_some()
    }

    /// The module of an adapted weight, and the scale of its adapter.
    fn adapter_of<'a>(&self, name: &'a str) -> Option<(&'a str, f64)> {
        let lora = self.lora.as_ref()?;
        let module = name.strip_suffix(".weight")?;
        let is_target = lora.targets.iter().any(|target| {
            // Bare layer names mean the decoder's layers, as they do when the model is loaded.
            mgm_nn::weights::matches_name(target, module)
                && (target.starts_with("model.")
                    || target == "lm_head"
                    || module.starts_with("model.layers."))
        });
        let rank = *self
            .weights
            .shape(&format!("{module}.lora_A.weight"))?
            .first()?;
        (is_target && rank > 0).then(|| (module, lora.alpha / rank as f64))
    }

    /// Rows of the first axis of a tensor as `f32`, with its low-rank adapter added in: `W + alpha / rank · B·A`.
    ///
    /// # Errors
    /// When there is no such tensor or row, or its type does not become `f32`.
    pub fn merged_rows(&self, name: &str, rows: Range<usize>) -> Result<Vec<f32>> {
        let mut values = self.weights.rows(name, rows.clone())?;
        let Some((module, scale)) = self.adapter_of(name) else {
            return Ok(values);
        };
        let (down, up) = (
            format!("{module}.lora_A.weight"),
            format!("{module}.lora_B.weight"),
        );
        let a = self.weights.tensor_any(&down)?;
        let (rank, columns) = a.dims2()?;
        let count = rows.len();
        let b = Tensor::from_vec(self.weights.rows(&up, rows)?, (count, rank), &Device::Cpu)?;
        let product: Vec<f32> = b.matmul(&a)?.flatten_all()?.to_vec1()?;
        if product.len() != values.len() {
            return Err(Error::Input(format!(
                "tensor {name}: {count} rows of {} values, its adapter gives {columns}",
                values.len() / count.max(1)
            )));
        }
        for (value, change) in values.iter_mut().zip(product) {
            *value += (scale * f64::from(change)) as f32;
        }
        Ok(values)
    }
}

/// The layer that a tensor is half an adapter of.
fn adapter_module(name: &str) -> Option<&str> {
    name.strip_suffix(".lora_A.weight")
        .or_else(|| name.strip_suffix(".lora_B.weight"))
}

/// Writes the checkpoint to the new directory `output`, adapters merged, towers included, in shards of at most `shard_bytes` (one tensor
/// at least). Every tensor keeps its stored type; an adapted one is summed in f32 and rounded once. The directory appears when it is
/// complete: on an error, or when `on_progress` says stop (`Ok(None)`), nothing stays.
///
/// # Errors
/// When `output` exists and is not empty, a tensor cannot be read, or writing fails.
pub fn merge(
    checkpoint: &Checkpoint,
    output: &Path,
    shard_bytes: u64,
    on_progress: &mut dyn FnMut(MergeProgress) -> Control,
) -> Result<Option<Merged>> {
    let TokenizerFiles::Directory(tokenizer) = &checkpoint.tokenizer else {
        return Err(Error::Conflict(format!(
            "{}: its tokeniser is part of a GGUF file, which the official layout has no place for; `mgm models quantize` merges adapters too",
            checkpoint.name
        )));
    };
    checkpoint.require_tensors()?;
    if std::fs::read_dir(output).is_ok_and(|mut entries| entries.next().is_some()) {
        return Err(Error::Conflict(format!(
            "{} is not empty: merging writes a new folder",
            output.display()
        )));
    }
    let partial = partial_path(output);
    let result = write_all(checkpoint, tokenizer, &partial, shard_bytes, on_progress);
    if !matches!(result, Ok(Some(_))) {
        // The error that matters is the first one.
        let _ = std::fs::remove_dir_all(&partial);
        return result;
    }
    // An empty folder gives way.
    let _ = std::fs::remove_dir(output);
    std::fs::rename(&partial, output).map_err(io_error(output))?;
    result
}

fn partial_path(output: &Path) -> PathBuf {
    let name = output
        .file_name()
        .map(|name| name.to_string_lossy().into_owned())
        .unwrap_or_default();
    output.with_file_name(format!(".{name}.{}.partial", std::process::id()))
}

fn io_error(path: &Path) -> impl Fn(std::io::Error) -> Error + '_ {
    move |source| Error::Io {
        path: path.into(),
        source,
    }
}

/// A tensor to be written.
struct Planned {
    name: String,
    shape: Vec<usize>,
    element_type: ElementType,
    bytes: u64,
}

fn write_all(
    checkpoint: &Checkpoint,
    tokenizer: &Path,
    directory: &Path,
    shard_bytes: u64,
    on_progress: &mut dyn FnMut(MergeProgress) -> Control,
) -> Result<Option<Merged>> {
    std::fs::create_dir_all(directory).map_err(io_error(directory))?;
    let shards = plan(checkpoint, shard_bytes)?;
    let total: u64 = shards.iter().flatten().map(|tensor| tensor.bytes).sum();
    let mut progress = MergeProgress { done: 0, total };
    let mut merged = Merged {
        tensors: 0,
        adapted: 0,
        shards: shards.len(),
        bytes: total,
    };
    let mut map = BTreeMap::new();
    for (index, shard) in shards.iter().enumerate() {
        let file_name = format!("model-{:05}-of-{:05}.safetensors", index + 1, shards.len());
        let path = directory.join(&file_name);
        let file = File::create(&path).map_err(io_error(&path))?;
        let mut file = BufWriter::with_capacity(1 << 20, file);
        file.write_all(&header(shard)).map_err(io_error(&path))?;
        for tensor in shard {
            merged.tensors += 1;
            merged.adapted += usize::from(checkpoint.is_adapted(&tensor.name));
            map.insert(tensor.name.clone(), file_name.clone());
            let mut stopped = false;
            write_tensor(checkpoint, tensor, &mut |bytes| {
                file.write_all(bytes).map_err(io_error(&path))?;
                progress.done += bytes.len() as u64;
                stopped |= on_progress(progress) == Control::Stop;
                Ok(if stopped {
                    Control::Stop
                } else {
                    Control::Continue
                })
            })?;
            if stopped {
                return Ok(None);
            }
            checkpoint.weights.release(&tensor.name);
        }
        let file = file.into_inner().map_err(|error| Error::Io {
            path: path.clone(),
            source: error.into_error(),
        })?;
        file.sync_all().map_err(io_error(&path))?;
    }
    let index = json!({"metadata": {"total_size": total}, "weight_map": map});
    write_json(&directory.join("model.safetensors.index.json"), &index)?;
    write_config(checkpoint, &directory.join("config.json"))?;
    for name in COMPANIONS {
        copy(&tokenizer.join(name), &directory.join(name))?;
    }
    let defaults = "generation_config.json";
    copy(
        &checkpoint.directory.join(defaults),
        &directory.join(defaults),
    )?;
    Ok(Some(merged))
}

/// Which tensors go into which shard, in the order of their names.
fn plan(checkpoint: &Checkpoint, shard_bytes: u64) -> Result<Vec<Vec<Planned>>> {
    let mut shards: Vec<Vec<Planned>> = Vec::new();
    let mut filled = 0;
    for name in checkpoint.merged_names() {
        let Some(info) = checkpoint.weights.info(&name) else {
            continue;
        };
        // The official layout has no blocks; bf16 is what it is released in.
        let element_type = match info.element_type {
            ElementType::Quantised(_) => ElementType::Bf16,
            other => other,
        };
        let elements: usize = info.shape.iter().product();
        let bytes = element_type
            .bytes_of(elements as u64)
            .ok_or_else(|| Error::Config {
                file: info.file.clone().into(),
                message: format!(
                    "tensor {name} has type {}, which cannot be written",
                    element_type.name()
                ),
            })?;
        if shards.is_empty() || filled + bytes > shard_bytes {
            shards.push(Vec::new());
            filled = 0;
        }
        filled += bytes;
        if let Some(shard) = shards.last_mut() {
            shard.push(Planned {
                name,
                shape: info.shape,
                element_type,
                bytes,
            });
        }
    }
    Ok(shards)
}

/// Length and JSON of a safetensors header; the data begins at a multiple of 8.
fn header(tensors: &[Planned]) -> Vec<u8> {
    let mut entries = Map::new();
    entries.insert("__metadata__".into(), json!({"format": "pt"}));
    let mut start = 0;
    for tensor in tensors {
        let end = start + tensor.bytes;
        entries.insert(
            tensor.name.clone(),
            json!({
                "dtype": tensor.element_type.name(),
                "shape": tensor.shape,
                "data_offsets": [start, end],
            }),
        );
        start = end;
    }
    let mut text = Value::Object(entries).to_string().into_bytes();
    text.resize(text.len().next_multiple_of(8), b' ');
    let mut bytes = (text.len() as u64).to_le_bytes().to_vec();
    bytes.extend(text);
    bytes
}

/// Hands a tensor's bytes to `write`, until it says stop: as stored, or row chunk by row chunk with the adapter added in.
fn write_tensor(
    checkpoint: &Checkpoint,
    tensor: &Planned,
    write: &mut dyn FnMut(&[u8]) -> Result<Control>,
) -> Result<()> {
    let stored = checkpoint.weights.info(&tensor.name);
    let as_stored = stored.is_some_and(|info| info.element_type == tensor.element_type);
    if as_stored && !checkpoint.is_adapted(&tensor.name) {
        let bytes = checkpoint.weights.stored_bytes(&tensor.name)?;
        for chunk in bytes.as_slice().chunks(4 * CHUNK_VALUES) {
            if write(chunk)? == Control::Stop {
                break;
            }
        }
        return Ok(());
    }
    let rows = tensor.shape.first().copied().unwrap_or(1);
    let columns: usize = tensor.shape.iter().skip(1).product();
    let step = (CHUNK_VALUES / columns.max(1)).max(1);
    let mut start = 0;
    while start < rows {
        let end = (start + step).min(rows);
        let values = checkpoint.merged_rows(&tensor.name, start..end)?;
        if write(&encode(&values, tensor)?)? == Control::Stop {
            break;
        }
        start = end;
    }
    Ok(())
}

/// Values in the tensor's type, little-endian.
fn encode(values: &[f32], tensor: &Planned) -> Result<Vec<u8>> {
    let bytes = match tensor.element_type {
        ElementType::F64 => values
            .iter()
            .flat_map(|value| f64::from(*value).to_le_bytes())
            .collect(),
        ElementType::F32 => values
            .iter()
            .flat_map(|value| value.to_le_bytes())
            .collect(),
        ElementType::F16 => values
            .iter()
            .flat_map(|value| f16::from_f32(*value).to_le_bytes())
            .collect(),
        ElementType::Bf16 => values
            .iter()
            .flat_map(|value| bf16::from_f32(*value).to_le_bytes())
            .collect(),
        _ => {
            return Err(Error::Input(format!(
                "tensor {} has type {}: expected a floating-point type",
                tensor.name,
                tensor.element_type.name()
            )));
        }
    };
    Ok(bytes)
}

/// `config.json` as it is, but for keys that describe how this program found the weights.
fn write_config(checkpoint: &Checkpoint, path: &Path) -> Result<()> {
    let source = &checkpoint.config_file;
    let bytes = std::fs::read(source).map_err(io_error(source))?;
    let mut config: Map<String, Value> =
        serde_json::from_slice(&bytes).map_err(|error| Error::Config {
            file: source.clone(),
            message: error.to_string(),
        })?;
    for key in ["lora", "weight_files", "tokenizer_file"] {
        config.remove(key);
    }
    write_json(path, &Value::Object(config))
}

fn write_json(path: &Path, value: &Value) -> Result<()> {
    let text = serde_json::to_string_pretty(value).map_err(|error| Error::Config {
        file: path.into(),
        message: error.to_string(),
    })?;
    std::fs::write(path, text + "\n").map_err(io_error(path))
}

fn copy(from: &Path, to: &Path) -> Result<()> {
    if from.is_file() {
        std::fs::copy(from, to).map_err(io_error(from))?;
    }
    Ok(())
}
