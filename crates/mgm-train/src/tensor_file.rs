//! Reading and writing small safetensors files, atomically.

use std::collections::{BTreeMap, HashMap};
use std::fs::File;
use std::io::Write;
use std::path::Path;

use candle_core::{Device, Tensor};
use half::{bf16, f16};
use safetensors::tensor::{Dtype, TensorView};

use crate::error::TrainError;
use crate::recipe::SaveType;

/// A tensor to write: name, shape, f32 values.
pub(crate) type NamedValues = (String, Vec<usize>, Vec<f32>);

/// Writes tensors in the given format, with string metadata; the file appears complete or not at all.
pub(crate) fn write(
    path: &Path,
    tensors: &[NamedValues],
    save_type: SaveType,
    metadata: BTreeMap<String, String>,
) -> Result<(), TrainError> {
    let dtype = match save_type {
        SaveType::F16 => Dtype::F16,
        SaveType::Bf16 => Dtype::BF16,
        SaveType::F32 => Dtype::F32,
    };
    let encoded: Vec<Vec<u8>> = tensors
        .iter()
        .map(|(_, _, values)| match save_type {
            SaveType::F16 => values
                .iter()
                .flat_map(|&value| f16::from_f32(value).to_le_bytes())
                .collect(),
            SaveType::Bf16 => values
                .iter()
                .flat_map(|&value| bf16::from_f32(value).to_le_bytes())
                .collect(),
            SaveType::F32 => values
                .iter()
                .flat_map(|value| value.to_le_bytes())
                .collect(),
        })
        .collect();
    let invalid = |error: safetensors::SafeTensorError| TrainError::Checkpoint {
        path: path.to_owned(),
        message: error.to_string(),
    };
    let mut views = Vec::with_capacity(tensors.len());
    for ((name, shape, _), bytes) in tensors.iter().zip(&encoded) {
        views.push((
            name.as_str(),
            TensorView::new(dtype, shape.clone(), bytes).map_err(invalid)?,
        ));
    }
    let metadata: HashMap<String, String> = metadata.into_iter().collect();
    let metadata = (!metadata.is_empty()).then_some(metadata);
    write_atomically(
        path,
        &safetensors::serialize(views, metadata).map_err(invalid)?,
    )
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
