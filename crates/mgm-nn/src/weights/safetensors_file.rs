//! Reading safetensors files.

use std::collections::{BTreeMap, HashMap};
use std::ops::Range;
use std::path::Path;

use mgm_kernels::quant::Bytes;
use safetensors::tensor::{Dtype, Metadata, SafeTensorError, SafeTensors, TensorInfo};

use super::element_type::ElementType;
use super::layer::Entry;
use super::mapped_file::{self, MappedFile};
use super::stored::StoredTensor;
use crate::{Error, Result};

/// An open file. Tensors are decoded when asked for.
pub(crate) struct SafetensorsFile {
    label: String,
    file: MappedFile,
    tensors: HashMap<String, TensorInfo>,
    data_start: usize,
    metadata: BTreeMap<String, String>,
}

impl SafetensorsFile {
    pub(crate) fn open(path: &Path) -> Result<Self> {
        let file = mapped_file::map(path)?;
        let label = path.display().to_string();
        let bytes = (*file).as_ref();
        let (header_len, metadata) = SafeTensors::read_metadata(bytes)
            .map_err(|error| Error::format(&label, explain(bytes, error)))?;
        let data_start = header_len + 8;
        let tensors = metadata
            .tensors()
            .into_iter()
            .map(|(name, info)| (name, info.clone()))
            .collect();
        let metadata = metadata
            .metadata()
            .clone()
            .unwrap_or_default()
            .into_iter()
            .collect();
        Ok(Self {
            label,
            file,
            tensors,
            data_start,
            metadata,
        })
    }

    pub(crate) fn label(&self) -> &str {
        &self.label
    }

    pub(crate) fn metadata(&self) -> &BTreeMap<String, String> {
        &self.metadata
    }

    pub(crate) fn names(&self) -> impl Iterator<Item = &String> {
        self.tensors.keys()
    }

    pub(super) fn entry(&self, name: &str) -> Option<Entry<'_>> {
        self.tensors.get(name).map(|info| Entry {
            shape: &info.shape,
            element_type: element_type(info.dtype),
            bytes: Some((info.data_offsets.1 - info.data_offsets.0) as u64),
        })
    }

    fn place(&self, info: &TensorInfo) -> Range<usize> {
        self.data_start + info.data_offsets.0..self.data_start + info.data_offsets.1
    }

    pub(crate) fn get(&self, name: &str) -> Result<Option<StoredTensor>> {
        let Some(info) = self.tensors.get(name) else {
            return Ok(None);
        };
        let bytes = Bytes::slice(self.file.clone(), self.place(info))
            .map_err(|error| Error::format(&self.label, format!("tensor {name}: {error}")))?;
        Ok(Some(StoredTensor::from_bytes(
            info.shape.clone(),
            element_type(info.dtype),
            bytes,
        )))
    }

    pub(crate) fn release(&self, name: &str) {
        if let Some(info) = self.tensors.get(name) {
            self.file.release(self.place(info));
        }
    }
}

fn element_type(dtype: Dtype) -> ElementType {
    match dtype {
        Dtype::F64 => ElementType::F64,
        Dtype::F32 => ElementType::F32,
        Dtype::F16 => ElementType::F16,
        Dtype::BF16 => ElementType::Bf16,
        Dtype::I64 => ElementType::I64,
        Dtype::I32 => ElementType::I32,
        Dtype::I16 => ElementType::I16,
        Dtype::I8 => ElementType::I8,
        Dtype::U8 => ElementType::U8,
        Dtype::BOOL => ElementType::Bool,
        other => ElementType::Other(format!("{other:?}")),
    }
}

/// One line on what is wrong with the file.
fn explain(bytes: &[u8], error: SafeTensorError) -> String {
    let header = bytes.first_chunk::<8>().map(|len| u64::from_le_bytes(*len));
    match (error, header) {
        (SafeTensorError::HeaderTooSmall, _) | (_, None) => {
            format!(
                "not a safetensors file: expected at least 8 bytes, found {}",
                bytes.len()
            )
        }
        (SafeTensorError::HeaderTooLarge | SafeTensorError::InvalidHeaderLength, Some(len)) => {
            format!(
                "not a safetensors file or truncated: its header claims {len} bytes, the file has {}",
                bytes.len()
            )
        }
        (SafeTensorError::MetadataIncompleteBuffer, Some(len)) => incomplete(bytes, len as usize),
        (SafeTensorError::InvalidOffset(name), _) => {
            format!("tensor {name}: data offsets leave a gap or overlap")
        }
        (SafeTensorError::TensorInvalidInfo, _) => {
            "a tensor's data offsets do not match its shape and type".to_string()
        }
        (error, _) => format!("damaged safetensors header: {error}"),
    }
}

/// The header is sound, but the file's length does not match it: names the first tensor that does not fit.
fn incomplete(bytes: &[u8], header_len: usize) -> String {
    let found = bytes.len().saturating_sub(header_len + 8);
    let metadata = bytes
        .get(8..8 + header_len)
        .and_then(|json| serde_json::from_slice::<Metadata>(json).ok());
    let Some(metadata) = metadata else {
        return format!("the header does not describe the {found} bytes that follow it");
    };
    let first_beyond = metadata
        .tensors()
        .into_iter()
        .filter(|(_, info)| info.data_offsets.1 > found)
        .min_by_key(|(_, info)| info.data_offsets.1);
    match first_beyond {
        Some((name, info)) => format!(
            "truncated: tensor {name} {:?} ends at byte {} of the data, found only {found} bytes",
            info.shape, info.data_offsets.1
        ),
        None => format!(
            "expected {} bytes of data after the header, found {found}",
            metadata.data_len()
        ),
    }
}
