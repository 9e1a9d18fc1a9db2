//! One tensor as it lies in its file, and its decoding.

use std::ops::Range;

use candle_core::{DType, Device, Tensor};
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
        let bytes = match &self.data {
            Data::Bytes(bytes) => bytes.as_slice(),
            Data::Tensor(tensor) => {
                if !self.kind.is_float() {
                    return Ok(None);
                }
                let part = tensor.flatten_all()?.narrow(0, start, count)?;
                return part
                    .to_device(&Device::Cpu)?
                    .to_dtype(DType::F32)?
                    .to_vec1()
                    .map(Some);
            }
        };
        let part = |size: usize| {
            bytes
                .get(start * size..(start + count) * size)
                .ok_or_else(|| {
                    candle_core::Error::Msg(format!(
                        "weights: {} bytes are too few for {:?}",
                        bytes.len(),
                        self.shape
                    ))
                })
        };
        let values = match &self.kind {
            ElementType::F32 => part(4)?
                .as_chunks::<4>()
                .0
                .iter()
                .map(|&value| f32::from_le_bytes(value))
                .collect(),
            ElementType::F16 => part(2)?
                .as_chunks::<2>()
                .0
                .iter()
                .map(|&value| f16::from_le_bytes(value).to_f32())
                .collect(),
            ElementType::Bf16 => part(2)?
                .as_chunks::<2>()
                .0
                .iter()
                .map(|&value| bf16::from_le_bytes(value).to_f32())
                .collect(),
            ElementType::F64 => part(8)?
                .as_chunks::<8>()
                .0
                .iter()
                .map(|&value| f64::from_le_bytes(value) as f32)
                .collect(),
            ElementType::Quantised(quant_type) => {
                let (len, size) = (quant_type.block_len(), quant_type.block_bytes());
                if !start.is_multiple_of(len) || !count.is_multiple_of(len) {
                    candle_core::bail!(
                        "weights: {} blocks hold {len} values, asked for {count}",
                        quant_type.name()
                    );
                }
                let blocks = bytes
                    .get(start / len * size..(start + count) / len * size)
                    .ok_or_else(|| {
                        candle_core::Error::Msg(format!(
                            "weights: {} bytes are too few for {:?}",
                            bytes.len(),
                            self.shape
                        ))
                    })?;
                let mut values = vec![0.0; count];
                quant::dequantize(*quant_type, blocks, &mut values);
                values
            }
            _ => return Ok(None),
        };
        Ok(Some(values))
    }

    /// The values of a bf16 tensor without a detour over `f32`.
    pub(crate) fn bf16_values(&self) -> Option<Vec<bf16>> {
        match (&self.kind, &self.data) {
            (ElementType::Bf16, Data::Bytes(bytes)) => Some(
                bytes
                    .as_slice()
                    .as_chunks::<2>()
                    .0
                    .iter()
                    .map(|&value| bf16::from_le_bytes(value))
                    .collect(),
            ),
            _ => None,
        }
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
