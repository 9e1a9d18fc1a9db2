//! One file, or one set of tensors, of a source.

use std::collections::{BTreeMap, HashMap};
use std::ops::Range;
use std::sync::Arc;

use candle_core::Tensor;

use super::derived::DerivedTensors;
use super::element_type::ElementType;
use super::gguf::{GgufFile, GgufMetadata};
use super::random::{self, RandomTensors};
use super::safetensors_file::SafetensorsFile;
use super::stored::{StoredTensor, element_type};
use super::torch::TorchFile;
use crate::Result;

pub(super) enum Layer {
    Safetensors(SafetensorsFile),
    Gguf(GgufFile),
    Torch(TorchFile),
    Tensors {
        label: String,
        tensors: HashMap<String, Tensor>,
    },
    /// Another layer's tensors under other names.
    Renamed {
        inner: Arc<Layer>,
        /// New name to the inner one.
        names: HashMap<String, String>,
    },
    /// Tensors made from a seed when they are asked for.
    Random(RandomTensors),
    /// Tensors made from those of another source.
    Derived(DerivedTensors),
}

/// What a layer knows of a tensor without reading it.
pub(super) struct Entry<'a> {
    pub(super) shape: &'a [usize],
    pub(super) element_type: ElementType,
    /// `None` where the type is foreign and its size unknown.
    pub(super) bytes: Option<u64>,
}

impl Layer {
    /// The layer under other names: `map` gives a tensor's new name, or `None` to hide it. Of two tensors that get the same name, the one
    /// whose old name comes first stays.
    pub(super) fn renamed(self: &Arc<Self>, map: &dyn Fn(&str) -> Option<String>) -> Self {
        let mut old: Vec<&String> = self.names().collect();
        old.sort();
        let mut names = HashMap::with_capacity(old.len());
        for old in old {
            if let Some(new) = map(old) {
                names.entry(new).or_insert_with(|| old.clone());
            }
        }
        Self::Renamed {
            inner: self.clone(),
            names,
        }
    }

    pub(super) fn label(&self) -> &str {
        match self {
            Self::Safetensors(file) => file.label(),
            Self::Gguf(file) => file.label(),
            Self::Torch(file) => file.label(),
            Self::Tensors { label, .. } => label,
            Self::Renamed { inner, .. } => inner.label(),
            Self::Random(_) => random::LABEL,
            Self::Derived(_) => "derived tensors",
        }
    }

    pub(super) fn names(&self) -> Box<dyn Iterator<Item = &String> + '_> {
        match self {
            Self::Safetensors(file) => Box::new(file.names()),
            Self::Gguf(file) => Box::new(file.names()),
            Self::Torch(file) => Box::new(file.names()),
            Self::Tensors { tensors, .. } => Box::new(tensors.keys()),
            Self::Renamed { names, .. } => Box::new(names.keys()),
            Self::Random(tensors) => Box::new(tensors.names()),
            Self::Derived(derived) => Box::new(derived.names()),
        }
    }

    pub(super) fn entry(&self, name: &str) -> Option<Entry<'_>> {
        match self {
            Self::Safetensors(file) => file.entry(name),
            Self::Gguf(file) => file.entry(name),
            Self::Torch(file) => file.entry(name),
            Self::Tensors { tensors, .. } => tensors.get(name).map(|tensor| {
                let element_type = element_type(tensor.dtype());
                Entry {
                    shape: tensor.dims(),
                    bytes: element_type.bytes_of(tensor.elem_count() as u64),
                    element_type,
                }
            }),
            Self::Renamed { inner, names } => inner.entry(names.get(name)?),
            Self::Random(tensors) => tensors.entry(name).map(|(shape, element_type)| Entry {
                shape,
                bytes: element_type.bytes_of(shape.iter().product::<usize>() as u64),
                element_type: element_type.clone(),
            }),
            Self::Derived(derived) => derived.entry(name).map(|(shape, element_type)| Entry {
                bytes: element_type.bytes_of(shape.iter().product::<usize>() as u64),
                shape,
                element_type,
            }),
        }
    }

    pub(super) fn get(&self, name: &str) -> Result<Option<StoredTensor>> {
        match self {
            Self::Safetensors(file) => file.get(name),
            Self::Gguf(file) => file.get(name),
            Self::Torch(file) => file.get(name),
            Self::Tensors { tensors, .. } => Ok(tensors.get(name).map(StoredTensor::from_tensor)),
            Self::Renamed { inner, names } => match names.get(name) {
                Some(old) => inner.get(old),
                None => Ok(None),
            },
            Self::Random(tensors) => Ok(tensors.get(name)),
            Self::Derived(derived) => derived.get(name),
        }
    }

    /// Rows of the first axis, which must be there, without work for the others.
    pub(super) fn rows(&self, name: &str, rows: Range<usize>) -> Result<Option<StoredTensor>> {
        match self {
            Self::Gguf(file) => file.rows(name, rows),
            Self::Torch(file) => file.rows(name, rows),
            Self::Renamed { inner, names } => match names.get(name) {
                Some(old) => inner.rows(old, rows),
                None => Ok(None),
            },
            Self::Safetensors(_) | Self::Tensors { .. } | Self::Random(_) | Self::Derived(_) => {
                match self.get(name)? {
                    Some(tensor) => Ok(Some(tensor.rows(rows)?)),
                    None => Ok(None),
                }
            }
        }
    }

    /// Gives the tensor's mapped pages back to the system.
    pub(super) fn release(&self, name: &str) {
        match self {
            Self::Safetensors(file) => file.release(name),
            Self::Gguf(file) => file.release(name),
            Self::Torch(file) => file.release(name),
            Self::Tensors { .. } | Self::Random(_) => {}
            Self::Derived(derived) => derived.release(name),
            Self::Renamed { inner, names } => {
                if let Some(old) = names.get(name) {
                    inner.release(old);
                }
            }
        }
    }

    pub(super) fn gguf_metadata(&self) -> Option<&GgufMetadata> {
        match self {
            Self::Gguf(file) => Some(file.metadata()),
            Self::Renamed { inner, .. } => inner.gguf_metadata(),
            _ => None,
        }
    }

    pub(super) fn safetensors_metadata(&self) -> Option<&BTreeMap<String, String>> {
        match self {
            Self::Safetensors(file) => Some(file.metadata()),
            Self::Renamed { inner, .. } => inner.safetensors_metadata(),
            _ => None,
        }
    }
}
