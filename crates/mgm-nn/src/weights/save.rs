//! Writing safetensors files.

use std::collections::BTreeMap;
use std::fs::{self, File};
use std::io::{BufWriter, Write};
use std::path::{Path, PathBuf};

use candle_core::{DType, Device, Tensor};
use half::{bf16, f16};
use serde_json::json;

use crate::{Error, Result};

/// Writes `tensors` as a safetensors file, converted to `dtype` when one is given. The file is written beside `path`,
/// flushed to the disk, and renamed, so that a crash leaves the old file or the new one.
pub fn save_safetensors(
    path: &Path,
    tensors: &BTreeMap<String, Tensor>,
    dtype: Option<DType>,
) -> Result<()> {
    save_safetensors_with_metadata(path, tensors, dtype, &BTreeMap::new())
}

/// [`save_safetensors`] with entries of one's own in the file's `__metadata__`.
pub fn save_safetensors_with_metadata(
    path: &Path,
    tensors: &BTreeMap<String, Tensor>,
    dtype: Option<DType>,
    metadata: &BTreeMap<String, String>,
) -> Result<()> {
    let partial = partial_path(path);
    let written = write(&partial, tensors, dtype, metadata).and_then(|()| {
        fs::rename(&partial, path).map_err(|source| Error::Io {
            path: path.to_path_buf(),
            action: "renaming",
            source,
        })
    });
    if written.is_err() {
        // The error that matters is the first one.
        let _ = fs::remove_file(&partial);
    }
    written
}

/// Where a file is written before it takes its name.
pub(crate) fn partial_path(path: &Path) -> PathBuf {
    let name = path
        .file_name()
        .map(|name| name.to_string_lossy().into_owned())
        .unwrap_or_default();
    path.with_file_name(format!(".{name}.{}.partial", std::process::id()))
}

fn type_name(dtype: DType) -> Option<&'static str> {
    match dtype {
        DType::F64 => Some("F64"),
        DType::I64 => Some("I64"),
        DType::F32 => Some("F32"),
        DType::U32 => Some("U32"),
        DType::F16 => Some("F16"),
        DType::BF16 => Some("BF16"),
        DType::U8 => Some("U8"),
        _ => None,
    }
}

fn write(
    path: &Path,
    tensors: &BTreeMap<String, Tensor>,
    dtype: Option<DType>,
    metadata: &BTreeMap<String, String>,
) -> Result<()> {
    let failed = |source| Error::Io {
        path: path.to_path_buf(),
        action: "writing",
        source,
    };
    let mut entries: Vec<(&String, &Tensor, DType)> = Vec::with_capacity(tensors.len());
    for (name, tensor) in tensors {
        let target = match dtype {
            Some(dtype) if tensor.dtype().is_float() => dtype,
            _ => tensor.dtype(),
        };
        if type_name(target).is_none() {
            return Err(Error::Type {
                file: path.display().to_string(),
                name: name.clone(),
                expected: "F64, F32, F16, BF16, I64, U32 or U8",
                found: target.as_str().to_uppercase(),
            });
        }
        entries.push((name, tensor, target));
    }
    // Wide types first keep every tensor aligned to its element, which the format requires.
    entries.sort_by_key(|(name, _, dtype)| {
        (std::cmp::Reverse(dtype.size_in_bytes()), (*name).clone())
    });

    let mut header = serde_json::Map::new();
    let mut all_metadata = BTreeMap::from([("format".to_string(), "pt".to_string())]);
    all_metadata.extend(metadata.clone());
    header.insert("__metadata__".into(), json!(all_metadata));
    let mut end = 0;
    for (name, tensor, dtype) in &entries {
        let start = end;
        end += tensor.elem_count() * dtype.size_in_bytes();
        let entry = json!({"dtype": type_name(*dtype), "shape": tensor.dims(), "data_offsets": [start, end]});
        header.insert((*name).clone(), entry);
    }
    let mut header = serde_json::Value::Object(header).to_string().into_bytes();
    header.resize(header.len().next_multiple_of(8), b' ');

    let mut out = BufWriter::with_capacity(1 << 20, File::create(path).map_err(failed)?);
    out.write_all(&(header.len() as u64).to_le_bytes())
        .map_err(failed)?;
    out.write_all(&header).map_err(failed)?;
    for (_, tensor, dtype) in entries {
        let flat = tensor
            .to_device(&Device::Cpu)?
            .to_dtype(dtype)?
            .flatten_all()?;
        let bytes: Vec<u8> = match dtype {
            DType::F64 => bytemuck::cast_slice(&flat.to_vec1::<f64>()?).to_vec(),
            DType::I64 => bytemuck::cast_slice(&flat.to_vec1::<i64>()?).to_vec(),
            DType::F32 => bytemuck::cast_slice(&flat.to_vec1::<f32>()?).to_vec(),
            DType::U32 => bytemuck::cast_slice(&flat.to_vec1::<u32>()?).to_vec(),
            DType::F16 => bytemuck::cast_slice(&flat.to_vec1::<f16>()?).to_vec(),
            DType::BF16 => bytemuck::cast_slice(&flat.to_vec1::<bf16>()?).to_vec(),
            _ => flat.to_vec1::<u8>()?,
        };
        out.write_all(&bytes).map_err(failed)?;
    }
    let file = out
        .into_inner()
        .map_err(|error| failed(error.into_error()))?;
    file.sync_all().map_err(failed)
}
