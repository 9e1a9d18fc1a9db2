//! Writing GGUF files (version 3), tensor by tensor, so that a file may be larger than memory.

use std::collections::HashSet;
use std::fs::{self, File};
use std::io::{BufWriter, Write};
use std::path::{Path, PathBuf};

use crate::weights::ElementType;
use crate::weights::save::partial_path;
use crate::{Error, Result};

/// Tensor data start at multiples of this, unless `general.alignment` says otherwise.
const DEFAULT_ALIGNMENT: u64 = 32;
/// ggml keeps names in 64 bytes, the last of which is a zero.
const MAX_TENSOR_NAME: usize = 63;
const MAX_AXES: usize = 4;

/// A metadata value with the exact type that goes into the file; readers are strict about types.
#[derive(Clone, Debug, PartialEq)]
#[allow(missing_docs)] // The variants are named after GGUF's value types.
pub enum GgufValueOut {
    U8(u8),
    I8(i8),
    U16(u16),
    I16(i16),
    U32(u32),
    I32(i32),
    U64(u64),
    I64(i64),
    F32(f32),
    F64(f64),
    Bool(bool),
    String(String),
    U8s(Vec<u8>),
    U32s(Vec<u32>),
    I32s(Vec<i32>),
    F32s(Vec<f32>),
    Bools(Vec<bool>),
    Strings(Vec<String>),
}

macro_rules! value_from {
    ($($variant:ident: $type:ty),* $(,)?) => {
        $(impl From<$type> for GgufValueOut {
            fn from(value: $type) -> Self {
                Self::$variant(value)
            }
        })*
    };
}
value_from!(
    U32: u32, I32: i32, U64: u64, F32: f32, Bool: bool, String: String,
    U32s: Vec<u32>, I32s: Vec<i32>, F32s: Vec<f32>, Bools: Vec<bool>, Strings: Vec<String>,
);

impl From<&str> for GgufValueOut {
    fn from(value: &str) -> Self {
        Self::String(value.to_string())
    }
}

/// A tensor announced to [`GgufWriter::create`].
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct GgufTensor {
    /// Name, at most 63 bytes.
    pub name: String,
    /// Axes, outermost first; 1 to 4 of them.
    pub shape: Vec<usize>,
    /// Type of the bytes that will be written.
    pub element_type: ElementType,
}

impl GgufTensor {
    /// Bytes of the tensor's data; `None` when its rows are not whole blocks or its type has no place in GGUF.
    pub fn bytes(&self) -> Option<u64> {
        let row = *self.shape.last()? as u64;
        let rows = self.shape[..self.shape.len() - 1]
            .iter()
            .try_fold(1u64, |product, &axis| product.checked_mul(axis as u64))?;
        self.element_type.bytes_of(row)?.checked_mul(rows)
    }
}

/// Writes one file: everything but the tensors' data at once, then the data in the announced order.
///
/// The bytes go to a file beside the target, which takes the target's name in [`GgufWriter::finish`]. A writer that is
/// dropped before removes what it wrote.
pub struct GgufWriter {
    path: PathBuf,
    partial: PathBuf,
    /// `None` once the file is finished.
    out: Option<BufWriter<File>>,
    tensors: Vec<(String, u64)>,
    /// Index of the tensor whose data come next.
    current: usize,
    /// Bytes of that tensor already there.
    written: u64,
    alignment: u64,
    total: u64,
}

impl GgufWriter {
    /// Starts a file with this metadata, in this order, and these tensors. Refuses duplicate names, names, shapes and types
    /// that GGUF readers do not take, and rows that are not whole blocks.
    pub fn create(
        path: &Path,
        metadata: &[(String, GgufValueOut)],
        tensors: &[GgufTensor],
    ) -> Result<Self> {
        let label = path.display().to_string();
        let (header, sizes, alignment) =
            header(metadata, tensors).map_err(|message| Error::format(&label, message))?;
        let data: Option<u64> = sizes.iter().try_fold(0u64, |sum, (_, size)| {
            sum.checked_add(size.checked_next_multiple_of(alignment)?)
        });
        let total = data
            .and_then(|data| data.checked_add(header.len() as u64))
            .ok_or_else(|| Error::format(&label, "the tensors are too large for one file"))?;

        let partial = partial_path(path);
        let file = File::create(&partial).map_err(|source| Error::Io {
            path: partial.clone(),
            action: "creating",
            source,
        })?;
        let mut writer = Self {
            path: path.to_path_buf(),
            partial,
            out: Some(BufWriter::with_capacity(1 << 20, file)),
            tensors: sizes,
            current: 0,
            written: 0,
            alignment,
            total,
        };
        writer.put(&header)?;
        Ok(writer)
    }

    /// Bytes that the finished file will have.
    pub fn total_bytes(&self) -> u64 {
        self.total
    }

    /// Name of the tensor whose data come next; `None` when all are there.
    pub fn current(&self) -> Option<&str> {
        self.tensors
            .get(self.current)
            .map(|(name, _)| name.as_str())
    }

    /// Appends data to the current tensor. The call that completes it moves on to the next.
    pub fn write(&mut self, bytes: &[u8]) -> Result<()> {
        let Some((name, size)) = self.tensors.get(self.current) else {
            return Err(self.refused(format!(
                "{} bytes follow the last of {} tensors",
                bytes.len(),
                self.tensors.len()
            )));
        };
        let size = *size;
        if bytes.len() as u64 > size - self.written {
            let found = self.written + bytes.len() as u64;
            return Err(self.refused(format!(
                "tensor {name}: expected {size} bytes, given {found} or more"
            )));
        }
        self.put(bytes)?;
        self.written += bytes.len() as u64;
        if self.written == size {
            let padding = size.next_multiple_of(self.alignment) - size;
            self.put(&vec![0; padding as usize])?;
            self.current += 1;
            self.written = 0;
        }
        Ok(())
    }

    /// Writes the whole data of the current tensor.
    pub fn next_tensor(&mut self, bytes: &[u8]) -> Result<()> {
        if let Some((name, size)) = self.tensors.get(self.current)
            && (self.written != 0 || *size != bytes.len() as u64)
        {
            return Err(self.refused(format!(
                "tensor {name}: expected {size} bytes, given {} after {}",
                bytes.len(),
                self.written
            )));
        }
        self.write(bytes)
    }

    /// Checks that every tensor is complete, flushes to the disk and gives the file its name.
    pub fn finish(mut self) -> Result<()> {
        if let Some((name, size)) = self.tensors.get(self.current) {
            return Err(self.refused(format!(
                "tensor {name}: expected {size} bytes, given {}",
                self.written
            )));
        }
        if let Some(out) = self.out.take() {
            let synced = out
                .into_inner()
                .map_err(std::io::IntoInnerError::into_error)
                .and_then(|file| file.sync_all())
                .map_err(|source| self.io("writing", source));
            let renamed = synced.and_then(|()| {
                fs::rename(&self.partial, &self.path).map_err(|source| self.io("renaming", source))
            });
            if renamed.is_err() {
                // The error that matters is the first one.
                let _ = fs::remove_file(&self.partial);
            }
            return renamed;
        }
        Ok(())
    }

    fn put(&mut self, bytes: &[u8]) -> Result<()> {
        match &mut self.out {
            Some(out) => out
                .write_all(bytes)
                .map_err(|source| self.io("writing", source)),
            None => Ok(()),
        }
    }

    fn io(&self, action: &'static str, source: std::io::Error) -> Error {
        Error::Io {
            path: self.path.clone(),
            action,
            source,
        }
    }

    fn refused(&self, message: String) -> Error {
        Error::format(self.path.display().to_string(), message)
    }
}

impl Drop for GgufWriter {
    fn drop(&mut self) {
        if let Some(out) = self.out.take() {
            // Not flushed: what is removed need not be complete.
            drop(out.into_parts());
            let _ = fs::remove_file(&self.partial);
        }
    }
}

/// All bytes before the data, names and sizes of the tensors, and the alignment.
type Prepared = (Vec<u8>, Vec<(String, u64)>, u64);

fn header(
    metadata: &[(String, GgufValueOut)],
    tensors: &[GgufTensor],
) -> std::result::Result<Prepared, String> {
    let mut out = b"GGUF".to_vec();
    out.extend(3u32.to_le_bytes());
    out.extend((tensors.len() as u64).to_le_bytes());
    out.extend((metadata.len() as u64).to_le_bytes());

    let mut alignment = DEFAULT_ALIGNMENT;
    let mut keys = HashSet::new();
    for (key, value) in metadata {
        if key.is_empty() || key.len() > usize::from(u16::MAX) {
            return Err(format!(
                "metadata key of {} bytes, expected 1 to 65535",
                key.len()
            ));
        }
        if !keys.insert(key.as_str()) {
            return Err(format!("metadata key {key} is given twice"));
        }
        if key == "general.alignment" {
            alignment = match value {
                // ggml takes multiples of 8; a page is the most that makes sense.
                GgufValueOut::U32(value)
                    if value.is_power_of_two() && (8..=4096).contains(value) =>
                {
                    u64::from(*value)
                }
                other => {
                    return Err(format!(
                        "general.alignment: expected a power of two from 8 to 4096 (U32), given {other:?}"
                    ));
                }
            };
        }
        put_text(&mut out, key);
        put_value(&mut out, value);
    }

    let mut names = HashSet::new();
    let mut sizes = Vec::with_capacity(tensors.len());
    let mut offset = 0u64;
    for tensor in tensors {
        let (type_id, bytes) = check(tensor)?;
        let GgufTensor { name, shape, .. } = tensor;
        if !names.insert(name.as_str()) {
            return Err(format!("tensor {name} is given twice"));
        }
        put_text(&mut out, name);
        out.extend((shape.len() as u32).to_le_bytes());
        for &axis in shape.iter().rev() {
            out.extend((axis as u64).to_le_bytes());
        }
        out.extend(type_id.to_le_bytes());
        out.extend(offset.to_le_bytes());
        offset = bytes
            .checked_next_multiple_of(alignment)
            .and_then(|size| offset.checked_add(size))
            .ok_or_else(|| format!("tensor {name}: the file would be too large"))?;
        sizes.push((name.clone(), bytes));
    }
    out.resize(out.len().next_multiple_of(alignment as usize), 0);
    Ok((out, sizes, alignment))
}

/// `ggml_type` number and size of a tensor that GGUF readers take.
fn check(tensor: &GgufTensor) -> std::result::Result<(u32, u64), String> {
    let GgufTensor {
        name,
        shape,
        element_type,
    } = tensor;
    if name.is_empty() || name.len() > MAX_TENSOR_NAME {
        return Err(format!(
            "tensor name {name:?} has {} bytes, expected 1 to {MAX_TENSOR_NAME}",
            name.len()
        ));
    }
    if shape.is_empty() || shape.len() > MAX_AXES || shape.contains(&0) {
        return Err(format!(
            "tensor {name}: shape {shape:?}, expected 1 to {MAX_AXES} axes of at least 1 element"
        ));
    }
    let type_id = match element_type {
        ElementType::F32 => 0,
        ElementType::F16 => 1,
        ElementType::I8 => 24,
        ElementType::I16 => 25,
        ElementType::I32 => 26,
        ElementType::I64 => 27,
        ElementType::F64 => 28,
        ElementType::Bf16 => 30,
        ElementType::Quantised(quant_type) => quant_type.to_ggml(),
        ElementType::U8 | ElementType::Bool | ElementType::Other(_) => {
            return Err(format!(
                "tensor {name}: type {} has no place in a GGUF file",
                element_type.name()
            ));
        }
    };
    let bytes = tensor.bytes().ok_or_else(|| {
        format!(
            "tensor {name}: shape {shape:?} is not whole rows of {}",
            element_type.name()
        )
    })?;
    Ok((type_id, bytes))
}

fn put_text(out: &mut Vec<u8>, text: &str) {
    out.extend((text.len() as u64).to_le_bytes());
    out.extend(text.as_bytes());
}

fn put_value(out: &mut Vec<u8>, value: &GgufValueOut) {
    use GgufValueOut as V;
    let type_id: u32 = match value {
        V::U8(_) => 0,
        V::I8(_) => 1,
        V::U16(_) => 2,
        V::I16(_) => 3,
        V::U32(_) => 4,
        V::I32(_) => 5,
        V::F32(_) => 6,
        V::Bool(_) => 7,
        V::String(_) => 8,
        V::U64(_) => 10,
        V::I64(_) => 11,
        V::F64(_) => 12,
        V::U8s(_) | V::U32s(_) | V::I32s(_) | V::F32s(_) | V::Bools(_) | V::Strings(_) => 9,
    };
    out.extend(type_id.to_le_bytes());
    match value {
        V::U8(value) => out.push(*value),
        V::I8(value) => out.extend(value.to_le_bytes()),
        V::U16(value) => out.extend(value.to_le_bytes()),
        V::I16(value) => out.extend(value.to_le_bytes()),
        V::U32(value) => out.extend(value.to_le_bytes()),
        V::I32(value) => out.extend(value.to_le_bytes()),
        V::U64(value) => out.extend(value.to_le_bytes()),
        V::I64(value) => out.extend(value.to_le_bytes()),
        V::F32(value) => out.extend(value.to_le_bytes()),
        V::F64(value) => out.extend(value.to_le_bytes()),
        V::Bool(value) => out.push(u8::from(*value)),
        V::String(value) => put_text(out, value),
        V::U8s(values) => put_array(out, 0, values, |out, value| out.push(*value)),
        V::U32s(values) => put_array(out, 4, values, |out, value| {
            out.extend(value.to_le_bytes());
        }),
        V::I32s(values) => put_array(out, 5, values, |out, value| {
            out.extend(value.to_le_bytes());
        }),
        V::F32s(values) => put_array(out, 6, values, |out, value| {
            out.extend(value.to_le_bytes());
        }),
        V::Bools(values) => put_array(out, 7, values, |out, value| out.push(u8::from(*value))),
        V::Strings(values) => put_array(out, 8, values, |out, value| put_text(out, value)),
    }
}

fn put_array<T>(out: &mut Vec<u8>, type_id: u32, values: &[T], put: impl Fn(&mut Vec<u8>, &T)) {
    out.extend(type_id.to_le_bytes());
    out.extend((values.len() as u64).to_le_bytes());
    values.iter().for_each(|value| put(out, value));
}

#[cfg(test)]
#[path = "writer_tests.rs"]
mod tests;
