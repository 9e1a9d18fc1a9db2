//! One tensor as it lies in its file, and its decoding.

use candle_core::{DType, Device, Tensor};
use half::{bf16, f16};
use mgm_kernels::quant::{self, Bytes, QuantType};

/// Element type of a stored tensor.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum StoredType {
    F32,
    F16,
    Bf16,
    F64,
    Quantised(QuantType),
    /// One that cannot become `f32`; its name.
    Other(String),
}

impl StoredType {
    pub(crate) fn name(&self) -> String {
        match self {
            Self::F32 => "F32".into(),
            Self::F16 => "F16".into(),
            Self::Bf16 => "BF16".into(),
            Self::F64 => "F64".into(),
            Self::Quantised(quant_type) => quant_type.name().into(),
            Self::Other(name) => name.clone(),
        }
    }

    /// Bytes of `count` elements in whole rows; `None` when unknown or too many.
    pub(crate) fn bytes(&self, count: usize) -> Option<usize> {
        match self {
            Self::F32 => count.checked_mul(4),
            Self::F16 | Self::Bf16 => count.checked_mul(2),
            Self::F64 => count.checked_mul(8),
            Self::Quantised(quant_type) => {
                (count / quant_type.block_len()).checked_mul(quant_type.block_bytes())
            }
            Self::Other(_) => None,
        }
    }
}

/// A tensor in its stored form.
#[derive(Clone, Debug)]
pub(crate) struct StoredTensor {
    pub(crate) shape: Vec<usize>,
    pub(crate) kind: StoredType,
    data: Data,
}

#[derive(Clone, Debug)]
enum Data {
    Bytes(Bytes),
    Tensor(Tensor),
}

impl StoredTensor {
    /// `bytes` must be what `kind` needs for `shape`; the file readers check that.
    pub(crate) fn from_bytes(shape: Vec<usize>, kind: StoredType, bytes: Bytes) -> Self {
        Self {
            shape,
            kind,
            data: Data::Bytes(bytes),
        }
    }

    pub(crate) fn from_tensor(tensor: &Tensor) -> Self {
        let kind = match tensor.dtype() {
            DType::F32 => StoredType::F32,
            DType::F16 => StoredType::F16,
            DType::BF16 => StoredType::Bf16,
            DType::F64 => StoredType::F64,
            other => StoredType::Other(other.as_str().to_uppercase()),
        };
        Self {
            shape: tensor.dims().to_vec(),
            kind,
            data: Data::Tensor(tensor.clone()),
        }
    }

    pub(crate) fn elements(&self) -> usize {
        self.shape.iter().product()
    }

    /// The GGML blocks, to be used in place.
    pub(crate) fn blocks(&self) -> Option<(QuantType, Bytes)> {
        match (&self.kind, &self.data) {
            (StoredType::Quantised(quant_type), Data::Bytes(bytes)) => {
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
                if matches!(self.kind, StoredType::Other(_)) {
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
            StoredType::F32 => part(4)?
                .as_chunks::<4>()
                .0
                .iter()
                .map(|&value| f32::from_le_bytes(value))
                .collect(),
            StoredType::F16 => part(2)?
                .as_chunks::<2>()
                .0
                .iter()
                .map(|&value| f16::from_le_bytes(value).to_f32())
                .collect(),
            StoredType::Bf16 => part(2)?
                .as_chunks::<2>()
                .0
                .iter()
                .map(|&value| bf16::from_le_bytes(value).to_f32())
                .collect(),
            StoredType::F64 => part(8)?
                .as_chunks::<8>()
                .0
                .iter()
                .map(|&value| f64::from_le_bytes(value) as f32)
                .collect(),
            StoredType::Quantised(quant_type) => {
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
            StoredType::Other(_) => return Ok(None),
        };
        Ok(Some(values))
    }

    /// The values of a bf16 tensor without a detour over `f32`.
    pub(crate) fn bf16_values(&self) -> Option<Vec<bf16>> {
        match (&self.kind, &self.data) {
            (StoredType::Bf16, Data::Bytes(bytes)) => Some(
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

    /// The same tensor with the rows (of its first axis) in another order: new row `i` is old row `source(i)`. Rows move as
    /// whole runs of bytes, so that quantised blocks stay as they are.
    pub(crate) fn with_rows(&self, source: impl Fn(usize) -> usize) -> Self {
        let (Data::Bytes(bytes), Some(&rows)) = (&self.data, self.shape.first()) else {
            return self.clone();
        };
        let bytes = bytes.as_slice();
        // Without bytes there is nothing to move, however many rows a hostile file claims.
        if bytes.is_empty() || rows == 0 || bytes.len() % rows != 0 {
            return self.clone();
        }
        let row_bytes = bytes.len() / rows;
        let mut moved = Vec::with_capacity(bytes.len());
        for row in 0..rows {
            moved.extend_from_slice(&bytes[source(row) * row_bytes..][..row_bytes]);
        }
        Self::from_bytes(
            self.shape.clone(),
            self.kind.clone(),
            Bytes::from_vec(moved),
        )
    }

    /// An `f32` tensor of these values.
    pub(crate) fn from_values(shape: Vec<usize>, values: &[f32]) -> Self {
        Self::from_bytes(
            shape,
            StoredType::F32,
            Bytes::from_vec(bytemuck::cast_slice(values).to_vec()),
        )
    }
}
