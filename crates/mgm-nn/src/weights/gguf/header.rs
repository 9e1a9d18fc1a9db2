//! Parsing of a GGUF header. Every count and length is checked against the bytes that are there before anything is
//! allocated from it.

use std::collections::BTreeMap;

use super::value::{GgufMetadata, GgufValue};
use crate::weights::element_type::ElementType;
use mgm_kernels::quant::QuantType;

/// What a header says.
#[derive(Debug)]
pub(crate) struct Header {
    pub(crate) metadata: GgufMetadata,
    pub(crate) tensors: Vec<TensorEntry>,
}

/// A tensor of the file; `start..end` is its place in the file.
#[derive(Debug, Clone)]
pub(crate) struct TensorEntry {
    pub(crate) name: String,
    /// Outermost axis first.
    pub(crate) shape: Vec<usize>,
    pub(crate) kind: ElementType,
    pub(crate) start: usize,
    pub(crate) end: usize,
}

const MAX_AXES: u32 = 4;
const MAX_ARRAY_DEPTH: usize = 4;
const MAX_NAME: usize = 64 * 1024;

/// Parses the header of a whole file; the error is one line without the file's name.
pub(crate) fn parse(bytes: &[u8]) -> Result<Header, String> {
    let mut reader = Reader { bytes, position: 0 };
    let magic = reader.take(4, "magic")?;
    if magic != b"GGUF" {
        return Err(format!(
            "not a GGUF file: expected it to begin with \"GGUF\", found {magic:02x?}"
        ));
    }
    let version = reader.u32("version")?;
    if !(2..=3).contains(&version) {
        return Err(format!("expected GGUF version 2 or 3, found {version}"));
    }
    let tensor_count = reader.u64("tensor count")?;
    let key_count = reader.u64("metadata count")?;
    // The smallest tensor entry has 8 + 4 + 4 + 8 bytes, the smallest metadata entry 8 + 4 + 1.
    let tensor_count = reader.bounded(tensor_count, 24, "tensors")?;
    let key_count = reader.bounded(key_count, 13, "metadata entries")?;

    let mut metadata = BTreeMap::new();
    for _ in 0..key_count {
        let key = reader.name("metadata key")?;
        let kind = reader.u32("metadata type")?;
        let value = reader.value(kind, 0, &key)?;
        metadata.insert(key, value);
    }
    let metadata = GgufMetadata(metadata);
    let alignment = match metadata.get("general.alignment") {
        None => 32,
        Some(value) => match value.as_u64() {
            Some(alignment) if alignment.is_power_of_two() && alignment <= 1 << 20 => {
                alignment as usize
            }
            _ => {
                return Err(format!(
                    "general.alignment: expected a power of two, found {value:?}"
                ));
            }
        },
    };

    let mut entries = Vec::with_capacity(tensor_count);
    for _ in 0..tensor_count {
        entries.push(reader.tensor_entry()?);
    }
    let data_start = reader.position.next_multiple_of(alignment);
    let mut tensors = Vec::with_capacity(entries.len());
    let mut seen = std::collections::HashSet::with_capacity(entries.len());
    for (name, shape, type_id, offset) in entries {
        if !seen.insert(name.clone()) {
            return Err(format!("tensor {name} is described twice"));
        }
        tensors.push(place(
            name,
            shape,
            type_id,
            offset,
            data_start,
            alignment,
            bytes.len(),
        )?);
    }
    Ok(Header { metadata, tensors })
}

fn place(
    name: String,
    shape: Vec<usize>,
    type_id: u32,
    offset: u64,
    data_start: usize,
    alignment: usize,
    file_len: usize,
) -> Result<TensorEntry, String> {
    let kind = element_type(type_id);
    let elements = shape
        .iter()
        .try_fold(1usize, |product, &axis| product.checked_mul(axis));
    let Some(elements) = elements else {
        return Err(format!(
            "tensor {name}: shape {shape:?} has too many elements"
        ));
    };
    if let ElementType::Quantised(quant_type) = &kind {
        let row = shape.last().copied().unwrap_or(0);
        if row % quant_type.block_len() != 0 {
            let (format, block) = (quant_type.name(), quant_type.block_len());
            return Err(format!(
                "tensor {name}: {format} rows must be multiples of {block} values, found {row}"
            ));
        }
    }
    let start = usize::try_from(offset)
        .ok()
        .and_then(|offset| data_start.checked_add(offset));
    let Some(start) = start.filter(|start| *start <= file_len) else {
        return Err(format!(
            "tensor {name} {shape:?} begins at byte {offset} of the data, past the end of the file ({file_len} bytes)"
        ));
    };
    if !offset.is_multiple_of(alignment as u64) {
        return Err(format!(
            "tensor {name} begins at byte {offset} of the data, expected a multiple of {alignment}"
        ));
    }
    let end = match &kind {
        // The size of a type we do not know is unknown too; using such a tensor is an error later.
        ElementType::Other(_) => start,
        kind => match kind
            .bytes_of(elements as u64)
            .and_then(|size| usize::try_from(size).ok())
            .and_then(|size| start.checked_add(size))
        {
            Some(end) if end <= file_len => end,
            end => {
                let expected = end.map_or("too many".to_string(), |end| end.to_string());
                let kind = kind.name();
                return Err(format!(
                    "truncated: tensor {name} {shape:?} {kind} ends at byte {expected}, the file has {file_len}"
                ));
            }
        },
    };
    Ok(TensorEntry {
        name,
        shape,
        kind,
        start,
        end,
    })
}

fn element_type(type_id: u32) -> ElementType {
    match type_id {
        0 => ElementType::F32,
        1 => ElementType::F16,
        24 => ElementType::I8,
        25 => ElementType::I16,
        26 => ElementType::I32,
        27 => ElementType::I64,
        28 => ElementType::F64,
        30 => ElementType::Bf16,
        _ => match QuantType::from_ggml(type_id) {
            Some(quant_type) => ElementType::Quantised(quant_type),
            None => ElementType::Other(foreign_type(type_id)),
        },
    }
}

fn foreign_type(type_id: u32) -> String {
    let name = match type_id {
        9 => "Q8_1",
        10 => "Q2_K",
        11 => "Q3_K",
        15 => "Q8_K",
        16 => "IQ2_XXS",
        17 => "IQ2_XS",
        18 => "IQ3_XXS",
        19 => "IQ1_S",
        20 => "IQ4_NL",
        21 => "IQ3_S",
        22 => "IQ2_S",
        23 => "IQ4_XS",
        29 => "IQ1_M",
        34 => "TQ1_0",
        35 => "TQ2_0",
        39 => "MXFP4",
        _ => return format!("ggml type {type_id}"),
    };
    name.to_string()
}

struct Reader<'a> {
    bytes: &'a [u8],
    position: usize,
}

impl<'a> Reader<'a> {
    fn remaining(&self) -> usize {
        self.bytes.len() - self.position
    }

    fn take(&mut self, len: usize, what: &str) -> Result<&'a [u8], String> {
        if len > self.remaining() {
            let (at, left) = (self.position, self.remaining());
            return Err(format!(
                "truncated header: {what} at byte {at} needs {len} bytes, found {left}"
            ));
        }
        let taken = &self.bytes[self.position..self.position + len];
        self.position += len;
        Ok(taken)
    }

    fn array<const N: usize>(&mut self, what: &str) -> Result<[u8; N], String> {
        let taken = self.take(N, what)?;
        let mut out = [0; N];
        out.copy_from_slice(taken);
        Ok(out)
    }

    fn u32(&mut self, what: &str) -> Result<u32, String> {
        self.array(what).map(u32::from_le_bytes)
    }

    fn u64(&mut self, what: &str) -> Result<u64, String> {
        self.array(what).map(u64::from_le_bytes)
    }

    /// A count of things of at least `size` bytes each, which the rest of the file must be able to hold.
    fn bounded(&self, count: u64, size: usize, what: &str) -> Result<usize, String> {
        let most = self.remaining() / size;
        match usize::try_from(count) {
            Ok(count) if count <= most => Ok(count),
            _ => Err(format!(
                "header claims {count} {what}, the file can hold at most {most}"
            )),
        }
    }

    fn string(&mut self, what: &str) -> Result<String, String> {
        let len = self.u64(what)?;
        let len = self.bounded(len, 1, "characters")?;
        let bytes = self.take(len, what)?;
        // Some published vocabularies hold bytes that are not UTF-8; they are text all the same.
        Ok(String::from_utf8_lossy(bytes).into_owned())
    }

    /// A string that later messages will hold: no line ends or other control characters.
    fn name(&mut self, what: &str) -> Result<String, String> {
        let name = self.string(what)?;
        if name.contains(char::is_control) {
            return Err(format!("{what} {name:?}: expected no control characters"));
        }
        Ok(name)
    }

    fn value(&mut self, kind: u32, depth: usize, key: &str) -> Result<GgufValue, String> {
        Ok(match kind {
            0 => GgufValue::Unsigned(u64::from(self.array::<1>(key)?[0])),
            1 => GgufValue::Signed(i64::from(i8::from_le_bytes(self.array(key)?))),
            2 => GgufValue::Unsigned(u64::from(u16::from_le_bytes(self.array(key)?))),
            3 => GgufValue::Signed(i64::from(i16::from_le_bytes(self.array(key)?))),
            4 => GgufValue::Unsigned(u64::from(self.u32(key)?)),
            5 => GgufValue::Signed(i64::from(i32::from_le_bytes(self.array(key)?))),
            6 => GgufValue::Float(f64::from(f32::from_le_bytes(self.array(key)?))),
            7 => GgufValue::Bool(self.array::<1>(key)?[0] != 0),
            8 => GgufValue::String(self.string(key)?),
            9 => {
                if depth == MAX_ARRAY_DEPTH {
                    return Err(format!(
                        "{key}: arrays nested deeper than {MAX_ARRAY_DEPTH}"
                    ));
                }
                let element = self.u32(key)?;
                let count = self.u64(key)?;
                let size = match element {
                    0 | 1 | 7 => 1,
                    2 | 3 => 2,
                    4..=6 => 4,
                    8 | 10..=12 => 8,
                    9 => 12,
                    other => return Err(format!("{key}: unknown metadata type {other}")),
                };
                let count = self.bounded(count, size, "array elements")?;
                let mut values = Vec::with_capacity(count);
                for _ in 0..count {
                    values.push(self.value(element, depth + 1, key)?);
                }
                GgufValue::Array(values)
            }
            10 => GgufValue::Unsigned(self.u64(key)?),
            11 => GgufValue::Signed(i64::from_le_bytes(self.array(key)?)),
            12 => GgufValue::Float(f64::from_le_bytes(self.array(key)?)),
            other => return Err(format!("{key}: unknown metadata type {other}")),
        })
    }

    /// Name, shape (outermost first), type number, offset in the data.
    fn tensor_entry(&mut self) -> Result<(String, Vec<usize>, u32, u64), String> {
        let name = self.name("tensor name")?;
        if name.len() > MAX_NAME {
            return Err(format!(
                "tensor name of {} bytes, expected at most {MAX_NAME}",
                name.len()
            ));
        }
        let axes = self.u32(&name)?;
        if axes > MAX_AXES {
            return Err(format!(
                "tensor {name}: expected at most {MAX_AXES} axes, found {axes}"
            ));
        }
        let mut shape = Vec::with_capacity(axes as usize);
        for _ in 0..axes {
            let axis = self.u64(&name)?;
            // No writer makes empty tensors, and an empty one could claim any number of rows.
            if axis == 0 {
                return Err(format!(
                    "tensor {name}: expected axes of at least 1 element, found 0"
                ));
            }
            shape.push(
                usize::try_from(axis)
                    .map_err(|_| format!("tensor {name}: axis of {axis} elements"))?,
            );
        }
        shape.reverse();
        Ok((name.clone(), shape, self.u32(&name)?, self.u64(&name)?))
    }
}
