//! GGUF files, versions 2 and 3, read in place through a memory map.
//!
//! Tensors of text models appear under their Hugging Face names and in the Hugging Face layout, so that nothing downstream
//! needs to know which format a checkpoint came in:
//! * `llama` files store the rows of the query and key projections interleaved for GGML's rotary embedding; here they come
//!   back in half-split order (whole rows move, quantised blocks stay as they are);
//! * `gemma` files store norm weights with 1 added; here it is taken off again.

mod header;
mod names;
mod value;
mod writer;

use std::collections::HashMap;
use std::ops::Range;
use std::path::Path;

use mgm_kernels::quant::Bytes;

use super::element_type::ElementType;
use super::layer::Entry as LayerEntry;
use super::mapped_file::{self, MappedFile};
use super::stored::StoredTensor;
use crate::{Error, Result};
use header::TensorEntry;
pub use value::{GgufMetadata, GgufValue};
pub use writer::{GgufTensor, GgufValueOut, GgufWriter};

/// An open file.
pub(crate) struct GgufFile {
    label: String,
    file: MappedFile,
    metadata: GgufMetadata,
    tensors: HashMap<String, Entry>,
}

struct Entry {
    tensor: TensorEntry,
    fix: Fix,
}

/// What it takes to get from the file's layout to Hugging Face's.
#[derive(Clone, Copy)]
enum Fix {
    None,
    /// Rows of each of these heads are interleaved.
    Deinterleave {
        heads: usize,
    },
    /// 1 was added.
    SubtractOne,
}

impl GgufFile {
    pub(crate) fn open(path: &Path) -> Result<Self> {
        let label = path.display().to_string();
        Self::from_mapped(label, mapped_file::map(path)?)
    }

    pub(crate) fn from_mapped(label: String, file: MappedFile) -> Result<Self> {
        let header =
            header::parse((*file).as_ref()).map_err(|message| Error::format(&label, message))?;
        let architecture = header
            .metadata
            .architecture()
            .unwrap_or_default()
            .to_string();
        let is_text_model = header
            .tensors
            .iter()
            .any(|tensor| tensor.name == "token_embd.weight");
        let heads = |key: &str| {
            header
                .metadata
                .unsigned(&format!("{architecture}.attention.{key}"))
                .and_then(|n| usize::try_from(n).ok())
        };
        let query_heads = heads("head_count");
        let key_heads = heads("head_count_kv").or(query_heads);

        let mut tensors = HashMap::with_capacity(header.tensors.len());
        for tensor in header.tensors {
            if !is_text_model {
                tensors.insert(
                    tensor.name.clone(),
                    Entry {
                        tensor,
                        fix: Fix::None,
                    },
                );
                continue;
            }
            if let Some((prefix, part)) = names::expert_stack(&tensor.name) {
                for (expert, single) in split_experts(&tensor).into_iter().enumerate() {
                    tensors.insert(
                        format!("{prefix}.{expert}.{part}.weight"),
                        Entry {
                            tensor: single,
                            fix: Fix::None,
                        },
                    );
                }
                continue;
            }
            let name = names::hugging_face(&tensor.name).unwrap_or_else(|| tensor.name.clone());
            let fix = match architecture.as_str() {
                "llama"
                    if name.contains("self_attn.q_proj.") || name.contains("self_attn.k_proj.") =>
                {
                    let heads = if name.contains("q_proj") {
                        query_heads
                    } else {
                        key_heads
                    };
                    deinterleave(&label, &architecture, &tensor, heads)?
                }
                "gemma" if name.ends_with("norm.weight") => Fix::SubtractOne,
                _ => Fix::None,
            };
            tensors.insert(name, Entry { tensor, fix });
        }
        Ok(Self {
            label,
            file,
            metadata: header.metadata,
            tensors,
        })
    }

    pub(crate) fn label(&self) -> &str {
        &self.label
    }

    pub(crate) fn metadata(&self) -> &GgufMetadata {
        &self.metadata
    }

    pub(crate) fn names(&self) -> impl Iterator<Item = &String> {
        self.tensors.keys()
    }

    pub(super) fn entry(&self, name: &str) -> Option<LayerEntry<'_>> {
        let Entry { tensor, fix } = self.tensors.get(name)?;
        // Values that change on the way in come out as `f32`.
        let element_type = match fix {
            Fix::SubtractOne if tensor.kind.is_float() => ElementType::F32,
            _ => tensor.kind.clone(),
        };
        let bytes = match tensor.kind {
            ElementType::Other(_) => None,
            _ => element_type.bytes_of(tensor.shape.iter().product::<usize>() as u64),
        };
        Some(LayerEntry {
            shape: &tensor.shape,
            element_type,
            bytes,
        })
    }

    pub(crate) fn get(&self, name: &str) -> Result<Option<StoredTensor>> {
        match self.tensors.get(name) {
            Some(Entry { tensor, .. }) => {
                self.rows(name, 0..tensor.shape.first().copied().unwrap_or(1))
            }
            None => Ok(None),
        }
    }

    /// Rows of the first axis (a scalar has one), which must be there.
    pub(crate) fn rows(&self, name: &str, rows: Range<usize>) -> Result<Option<StoredTensor>> {
        let Some(Entry { tensor, fix }) = self.tensors.get(name) else {
            return Ok(None);
        };
        let bytes = Bytes::slice(self.file.clone(), tensor.start..tensor.end).map_err(|error| {
            Error::format(&self.label, format!("tensor {}: {error}", tensor.name))
        })?;
        let stored = StoredTensor::from_bytes(tensor.shape.clone(), tensor.kind.clone(), bytes);
        match *fix {
            Fix::None => Ok(Some(stored.rows(rows)?)),
            Fix::Deinterleave { heads } => {
                let head_dim = tensor.shape[0] / heads;
                let half = head_dim / 2;
                let is_all = rows == (0..tensor.shape[0]);
                let gathered = stored.gather_rows(rows, |row| {
                    let (head, within) = (row / head_dim, row % head_dim);
                    head * head_dim + 2 * (within % half) + within / half
                });
                if is_all {
                    // The copy stands for it from now on.
                    self.file.release(tensor.start..tensor.end);
                }
                Ok(Some(gathered))
            }
            Fix::SubtractOne => {
                let stored = stored.rows(rows)?;
                match stored.values()? {
                    Some(mut values) => {
                        values.iter_mut().for_each(|value| *value -= 1.0);
                        Ok(Some(StoredTensor::from_values(stored.shape, &values)))
                    }
                    None => Ok(Some(stored)),
                }
            }
        }
    }

    pub(crate) fn release(&self, name: &str) {
        if let Some(Entry { tensor, .. }) = self.tensors.get(name) {
            self.file.release(tensor.start..tensor.end);
        }
    }
}

fn deinterleave(
    label: &str,
    architecture: &str,
    tensor: &TensorEntry,
    heads: Option<usize>,
) -> Result<Fix> {
    let rows = tensor.shape.first().copied().unwrap_or(0);
    match heads {
        Some(heads) if heads > 0 && rows > 0 && rows % (2 * heads) == 0 => {
            Ok(Fix::Deinterleave { heads })
        }
        _ => Err(Error::format(
            label,
            format!(
                "tensor {} has {rows} rows, expected an even number for each of {} heads ({architecture}.attention.head_count)",
                tensor.name,
                heads.map_or("unknown".to_string(), |heads| heads.to_string()),
            ),
        )),
    }
}

/// The single matrices of a stack `[experts, out, in]`.
fn split_experts(stack: &TensorEntry) -> Vec<TensorEntry> {
    let &[experts, out, inner] = stack.shape.as_slice() else {
        return Vec::new();
    };
    if matches!(stack.kind, ElementType::Other(_)) {
        return Vec::new();
    }
    let size = (stack.end - stack.start) / experts.max(1);
    (0..experts)
        .map(|expert| TensorEntry {
            name: stack.name.clone(),
            shape: vec![out, inner],
            kind: stack.kind.clone(),
            start: stack.start + expert * size,
            end: stack.start + (expert + 1) * size,
        })
        .collect()
}

#[cfg(test)]
mod tests;
