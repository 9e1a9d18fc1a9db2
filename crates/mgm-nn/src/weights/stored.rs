//! One tensor as it lies in its file, and its decoding.

use std::ops::Range;

use candle_core::{DType, Device, Tensor};
use half::slice::HalfFloatSliceExt;
use half::{bf16, f16};
use mgm_kernels::quant::{self, Bytes, QuantType};

use super::element_type::ElementType;

/// A tensor in its stored form.
#[derive(Clone, Debug)]
pub(crate) struct StoredTensor {
    pub(crate) shape: Vec<usize>,
    pub(crate) kind: ElementType,
    data: Data,
}

#[derive(Clone, Debug)]
enum Data {
    Bytes(Bytes),
    Tensor(Tensor),
}

impl StoredTensor {
    /// `bytes` must be what `kind` needs for `shape`; the file readers check that.
    pub(crate) fn from_bytes(shape: Vec<usize>, kind: ElementType, bytes: Bytes) -> Self {
        Self {
            shape,
            kind,
            data: Data::Bytes(bytes),
        }
    }

    pub(crate) fn from_tensor(tensor: &Tensor) -> Self {
        Self {
            shape: tensor.dims().to_vec(),
            kind: element_type(tensor.dtype()),
            data: Data::Tensor(tensor.clone()),
        }
    }

    pub(crate) fn elements(&self) -> usize {
        self.shape.iter().product()
    }

    /// The elements as a matrix of `rows` rows whose bytes are at hand; `None` for a tensor in memory, a type that does not become
    /// `f32`, or one of which rows are not whole blocks.
    pub(crate) fn matrix(&self, rows: usize, width: usize) -> Option<StoredMatrix> {
        let Data::Bytes(bytes) = &self.data else {
            return None;
        };
        let row_bytes = usize::try_from(self.kind.bytes_of(width as u64)?).ok()?;
        let fits = self.kind.is_float() && row_bytes.checked_mul(rows)? == bytes.as_slice().len();
        fits.then(|| StoredMatrix {
            kind: self.kind.clone(),
            bytes: bytes.clone(),
            rows,
            width,
            row_bytes,
        })
    }

    /// The GGML blocks, to be used in place.
    pub(crate) fn blocks(&self) -> Option<(QuantType, Bytes)> {
        match (&self.kind, &self.data) {
            (ElementType::Quantised(quant_type), Data::Bytes(bytes)) => {
                Some((*quant_type, bytes.clone()))
            }
            _ => None,
        }
    }

    /// All values as `f32`; `None` for a type that has none.
    pub(crate) fn values(&self) -> candle_core::Result<Option<Vec<f32>>> {
        self.range(0, self.elements())
    }

    /// Row `index` of a matrix with rows of `width` elements.
    pub(crate) fn row(&self, index: usize, width: usize) -> candle_core::Result<Option<Vec<f32>>> {
        self.range(index * width, width)
    }

    fn range(&self, start: usize, count: usize) -> candle_core::Result<Option<Vec<f32>>> {
        if !self.kind.is_float() {
            return Ok(None);
        }
        let bytes = match &self.data {
            Data::Bytes(bytes) => bytes.as_slice(),
            Data::Tensor(tensor) => {
                let part = tensor.flatten_all()?.narrow(0, start, count)?;
                return part
                    .to_device(&Device::Cpu)?
                    .to_dtype(DType::F32)?
                    .to_vec1()
                    .map(Some);
            }
        };
        let offset = |elements: usize| {
            let offset = self.kind.bytes_of(elements as u64)?;
            usize::try_from(offset).ok()
        };
        let part = offset(start)
            .zip(start.checked_add(count).and_then(offset))
            .and_then(|(start, end)| bytes.get(start..end));
        let Some(part) = part else {
            candle_core::bail!(
                "weights: elements {start} to {} are not in the {} bytes of a {} tensor {:?}",
                start.saturating_add(count),
                bytes.len(),
                self.kind,
                self.shape
            );
        };
        let mut values = vec![0.0; count];
        decode(&self.kind, part, &mut values);
        Ok(Some(values))
    }

    /// The elements, little-endian; `None` for a tensor in memory whose type no file has.
    pub(crate) fn bytes(&self) -> candle_core::Result<Option<Bytes>> {
        match &self.data {
            Data::Bytes(bytes) => Ok(Some(bytes.clone())),
            Data::Tensor(tensor) => Ok(tensor_bytes(tensor)?.map(Bytes::from_vec)),
        }
    }

    /// Rows of the first axis, in place. A scalar has one row.
    pub(crate) fn rows(&self, rows: Range<usize>) -> candle_core::Result<Self> {
        let count = self.shape.first().copied().unwrap_or(1);
        if rows == (0..count) {
            return Ok(self.clone());
        }
        let mut shape = self.shape.clone();
        if let Some(first) = shape.first_mut() {
            *first = rows.len();
        }
        let data = match &self.data {
            Data::Tensor(tensor) => Data::Tensor(tensor.narrow(0, rows.start, rows.len())?),
            Data::Bytes(bytes) => {
                let len = bytes.as_slice().len();
                if count == 0 || !len.is_multiple_of(count) {
                    candle_core::bail!("weights: {len} bytes are not {count} rows of whole blocks");
                }
                let row_bytes = len / count;
                Data::Bytes(
                    bytes
                        .part(rows.start * row_bytes..rows.end * row_bytes)
                        .map_err(candle_core::Error::wrap)?,
                )
            }
        };
        Ok(Self {
            shape,
            kind: self.kind.clone(),
            data,
        })
    }

    /// The rows `rows` of the tensor in another order: its row `i` is the stored row `source(i)`. Rows move as whole runs of bytes, so that
    /// quantised blocks stay as they are.
    pub(crate) fn gather_rows(&self, rows: Range<usize>, source: impl Fn(usize) -> usize) -> Self {
        let (Data::Bytes(bytes), Some(&count)) = (&self.data, self.shape.first()) else {
            return self.clone();
        };
        let bytes = bytes.as_slice();
        // Without bytes there is nothing to move, however many rows a hostile file claims.
        if bytes.is_empty() || count == 0 || bytes.len() % count != 0 {
            return self.clone();
        }
        let row_bytes = bytes.len() / count;
        let mut shape = self.shape.clone();
        shape[0] = rows.len();
        let mut moved = Vec::with_capacity(rows.len() * row_bytes);
        for row in rows {
            moved.extend_from_slice(&bytes[source(row) * row_bytes..][..row_bytes]);
        }
        Self::from_bytes(shape, self.kind.clone(), Bytes::from_vec(moved))
    }

    /// An `f32` tensor of these values.
    pub(crate) fn from_values(shape: Vec<usize>, values: &[f32]) -> Self {
        Self::from_bytes(
            shape,
            ElementType::F32,
            Bytes::from_vec(bytemuck::cast_slice(values).to_vec()),
        )
    }
}

/// A matrix in its stored form, decoded row by row.
pub(crate) struct StoredMatrix {
    kind: ElementType,
    bytes: Bytes,
    rows: usize,
    width: usize,
    row_bytes: usize,
}

impl StoredMatrix {
    pub(crate) fn kind(&self) -> &ElementType {
        &self.kind
    }

    pub(crate) fn rows(&self) -> usize {
        self.rows
    }

    pub(crate) fn width(&self) -> usize {
        self.width
    }

    pub(crate) fn bytes(&self) -> usize {
        self.rows * self.row_bytes
    }

    /// Writes the `width` values of row `index`, which must be there.
    pub(crate) fn row(&self, index: usize, out: &mut [f32]) {
        let row = &self.bytes.as_slice()[index * self.row_bytes..][..self.row_bytes];
        decode(&self.kind, row, out);
    }

    /// All values, row-major.
    pub(crate) fn values(&self) -> Vec<f32> {
        let mut values = vec![0.0; self.rows * self.width];
        decode(&self.kind, self.bytes.as_slice(), &mut values);
        values
    }
}

/// Writes the `f32` values of the elements in `bytes`, which must be as many as `out` has room for; nothing for types that have none.
fn decode(kind: &ElementType, bytes: &[u8], out: &mut [f32]) {
    /// Halves that are converted together: conversion has instructions, but the file does not align them.
    const CHUNK: usize = 256;
    match kind {
        ElementType::F32 => {
            for (out, value) in out.iter_mut().zip(bytes.as_chunks::<4>().0) {
                *out = f32::from_le_bytes(*value);
            }
        }
        ElementType::Bf16 => {
            for (out, value) in out.iter_mut().zip(bytes.as_chunks::<2>().0) {
                *out = bf16::from_le_bytes(*value).to_f32();
            }
        }
        ElementType::F16 => {
            let mut halves = [f16::ZERO; CHUNK];
            for (out, bytes) in out.chunks_mut(CHUNK).zip(bytes.chunks(2 * CHUNK)) {
                for (half, value) in halves.iter_mut().zip(bytes.as_chunks::<2>().0) {
                    *half = f16::from_le_bytes(*value);
                }
                halves[..out.len()].convert_to_f32_slice(out);
            }
        }
        ElementType::F64 => {
            for (out, value) in out.iter_mut().zip(bytes.as_chunks::<8>().0) {
                *out = f64::from_le_bytes(*value) as f32;
            }
        }
        ElementType::Quantised(quant_type) => quant::dequantize(*quant_type, bytes, out),
        _ => {}
    }
}

/// The element type of a candle tensor.
pub(crate) fn element_type(dtype: DType) -> ElementType {
    match dtype {
        DType::F64 => ElementType::F64,
        DType::F32 => ElementType::F32,
        DType::F16 => ElementType::F16,
        DType::BF16 => ElementType::Bf16,
        DType::I64 => ElementType::I64,
        DType::I32 => ElementType::I32,
        DType::I16 => ElementType::I16,
        DType::U8 => ElementType::U8,
        other => ElementType::Other(other.as_str().to_uppercase()),
    }
}

/// The elements of a tensor in memory, little-endian; `None` for a type that no file here holds.
fn tensor_bytes(tensor: &Tensor) -> candle_core::Result<Option<Vec<u8>>> {
    let flat = tensor.to_device(&Device::Cpu)?.flatten_all()?;
    Ok(Some(match flat.dtype() {
        DType::F64 => bytemuck::cast_slice(&flat.to_vec1::<f64>()?).to_vec(),
        DType::F32 => bytemuck::cast_slice(&flat.to_vec1::<f32>()?).to_vec(),
        DType::F16 => bytemuck::cast_slice(&flat.to_vec1::<f16>()?).to_vec(),
        DType::BF16 => bytemuck::cast_slice(&flat.to_vec1::<bf16>()?).to_vec(),
        DType::I64 => bytemuck::cast_slice(&flat.to_vec1::<i64>()?).to_vec(),
        DType::I32 => bytemuck::cast_slice(&flat.to_vec1::<i32>()?).to_vec(),
        DType::I16 => bytemuck::cast_slice(&flat.to_vec1::<i16>()?).to_vec(),
        DType::U8 => flat.to_vec1::<u8>()?,
        _ => return Ok(None),
    }))
}
