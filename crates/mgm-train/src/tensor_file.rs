//! Reading and writing small safetensors files, atomically.

use std::collections::{BTreeMap, HashMap};
use std::fs::File;
use std::io::Write;
use std::path::Path;

use candle_core::{Device, Tensor};
use half::{bf16, f16};
use serde_json::Value;

use crate::error::TrainError;
use crate::recipe::SaveType;

/// A tensor to write: name, shape, f32 values.
pub(crate) type NamedValues = (String, Vec<usize>, Vec<f32>);

/// Writes tensors in the given format, with string metadata; the file appears complete or not at all. Equal content gives equal bytes
/// (names and metadata in order), so that runs can be compared by their files.
pub(crate) fn write(
    path: &Path,
    tensors: &[NamedValues],
    save_type: SaveType,
    metadata: BTreeMap<String, String>,
) -> Result<(), TrainError> {
    let (dtype, size) = match save_type {
        SaveType::F16 => ("F16", 2),
        SaveType::Bf16 => ("BF16", 2),
        SaveType::F32 => ("F32", 4),
    };
    let mut ordered: Vec<&NamedValues> = tensors.iter().collect();
    ordered.sort_by(|left, right| left.0.cmp(&right.0));
    let mut header = serde_json::Map::new();
    if !metadata.is_empty() {
        header.insert("__metadata__".to_owned(), serde_json::json!(metadata));
    }
    let mut offset = 0;
    for (name, shape, values) in &ordered {
        let end = offset + size * values.len();
        let entry =
            serde_json::json!({ "dtype": dtype, "shape": shape, "data_offsets": [offset, end] });
        header.insert(name.clone(), entry);
        offset = end;
    }
    let mut text = Value::Object(header).to_string();
    // The format wants the data aligned to 8 bytes.
    text.push_str(&" ".repeat(text.len().next_multiple_of(8) - text.len()));
    let mut bytes = Vec::with_capacity(8 + text.len() + offset);
    bytes.extend((text.len() as u64).to_le_bytes());
    bytes.extend(text.as_bytes());
    for (_, _, values) in ordered {
        match save_type {
            SaveType::F16 => bytes.extend(
                values
                    .iter()
                    .flat_map(|&value| f16::from_f32(value).to_le_bytes()),
            ),
            SaveType::Bf16 => bytes.extend(
                values
                    .iter()
                    .flat_map(|&value| bf16::from_f32(value).to_le_bytes()),
            ),
            SaveType::F32 => bytes.extend(values.iter().flat_map(|value| value.to_le_bytes())),
        }
    }
    write_atomically(path, &bytes)
}

/// Writes a file beside its place, flushes it to disk, and renames it.
pub(crate) fn write_atomically(path: &Path, bytes: &[u8]) -> Result<(), TrainError> {
    let mut name = path.file_name().unwrap_or_default().to_owned();
    name.push(format!(".{}.partial", std::process::id()));
    let partial = path.with_file_name(name);
    let written = File::create(&partial)
        .and_then(|mut file| file.write_all(bytes).and_then(|()| file.sync_all()));
    written
        .and_then(|()| std::fs::rename(&partial, path))
        .map_err(|source| {
            let _ = std::fs::remove_file(&partial);
            TrainError::Io {
                action: "write",
                path: path.to_owned(),
                source,
            }
        })
}

/// Reads all tensors of a file.
pub(crate) fn read(path: &Path) -> Result<HashMap<String, Tensor>, TrainError> {
    let bytes = std::fs::read(path).map_err(TrainError::io("read", path))?;
    candle_core::safetensors::load_buffer(&bytes, &Device::Cpu).map_err(|error| {
        TrainError::Checkpoint {
            path: path.to_owned(),
            message: first_line(&error.to_string()),
        }
    })
}

/// The first line of a message (candle appends backtraces).
pub(crate) fn first_line(text: &str) -> String {
    text.lines().next().unwrap_or_default().to_owned()
}
