//! A weight matrix that is never trained: packed, in 8 bits, quantised, in its file, or dense on a device.

use std::sync::{Arc, OnceLock};

use candle_core::{DType, Device, Result, Tensor};
use mgm_kernels::conv::ConvWeight;
use mgm_kernels::gemm::{self, Epilogue, PackedWeight, WeightType};
use mgm_kernels::int8::{self, GatedWeight, Int8Weight};
use mgm_kernels::mlp::MlpWeight;
use mgm_kernels::quant::{self, QuantWeight};

use crate::weights::stored::StoredMatrix;
use crate::weights::{ElementType, Form};

/// A frozen matrix W `[out_features, in_features]` for `y = x·Wᵀ`. Cheap to share in an [`Arc`].
pub struct FrozenWeight {
    storage: FrozenStorage,
    // Only training through the frozen weight needs it, so it is made by the first backward.
    transposed: OnceLock<PackedWeight>,
}

enum FrozenStorage {
    Packed(PackedWeight),
    Int8(Int8Weight),
    Quantised(QuantWeight),
    /// Blocks whose products with many rows go through int8 panels.
    QuantisedInt8(QuantWeight),
    Mapped(StoredMatrix),
    Dense(Tensor),
}

impl FrozenWeight {
    /// Uses a packed matrix (CPU).
    pub fn packed(weight: PackedWeight) -> Arc<Self> {
        Self::from_storage(FrozenStorage::Packed(weight))
    }

    /// Uses GGML blocks as they are (CPU).
    pub fn quantised(weight: QuantWeight) -> Arc<Self> {
        Self::from_storage(FrozenStorage::Quantised(weight))
    }

    /// Uses a matrix in 8 bits, whose products round the rows to as many (CPU).
    pub fn int8(weight: Int8Weight) -> Arc<Self> {
        Self::from_storage(FrozenStorage::Int8(weight))
    }

    /// [`Self::quantised`] whose products with many rows are in 8 bits throughout, see [`int8::quant_gemm_int8`].
    pub fn quantised_int8(weight: QuantWeight) -> Arc<Self> {
        Self::from_storage(FrozenStorage::QuantisedInt8(weight))
    }

    /// Leaves the matrix where it is and packs it panel by panel in every product (CPU).
    pub(crate) fn mapped(weight: StoredMatrix) -> Arc<Self> {
        Self::from_storage(FrozenStorage::Mapped(weight))
    }

    /// Packs `values` (row-major `[out_features, in_features]`) for the CPU.
    pub fn pack(
        out_features: usize,
        in_features: usize,
        values: &[f32],
        weight_type: WeightType,
    ) -> Arc<Self> {
        Self::packed(PackedWeight::pack(
            out_features,
            in_features,
            values,
            weight_type,
        ))
    }

    /// Keeps a dense `[out_features, in_features]` tensor of any float type on its device.
    pub fn dense(weight: Tensor) -> Result<Arc<Self>> {
        weight.dims2()?;
        Ok(Self::from_storage(FrozenStorage::Dense(
            weight.detach().contiguous()?,
        )))
    }

    fn from_storage(storage: FrozenStorage) -> Arc<Self> {
        Arc::new(Self {
            storage,
            transposed: OnceLock::new(),
        })
    }

    /// Rows of W.
    pub fn out_features(&self) -> usize {
        match &self.storage {
            FrozenStorage::Packed(weight) => weight.n(),
            FrozenStorage::Int8(weight) => weight.n(),
            FrozenStorage::Quantised(weight) | FrozenStorage::QuantisedInt8(weight) => weight.n(),
            FrozenStorage::Mapped(weight) => weight.rows(),
            FrozenStorage::Dense(weight) => weight.dims()[0],
        }
    }

    /// Columns of W.
    pub fn in_features(&self) -> usize {
        match &self.storage {
            FrozenStorage::Packed(weight) => weight.k(),
            FrozenStorage::Int8(weight) => weight.k(),
            FrozenStorage::Quantised(weight) | FrozenStorage::QuantisedInt8(weight) => weight.k(),
            FrozenStorage::Mapped(weight) => weight.width(),
            FrozenStorage::Dense(weight) => weight.dims()[1],
        }
    }

    /// Bytes that the forward's copy of the weight takes.
    pub fn bytes(&self) -> usize {
        match &self.storage {
            FrozenStorage::Packed(weight) => weight.bytes(),
            FrozenStorage::Int8(weight) => weight.bytes(),
            FrozenStorage::Quantised(weight) | FrozenStorage::QuantisedInt8(weight) => {
                weight.data().len()
            }
            FrozenStorage::Mapped(weight) => weight.bytes(),
            FrozenStorage::Dense(weight) => weight.elem_count() * weight.dtype().size_in_bytes(),
        }
    }

    /// The bytes of a matrix that was brought into the kernels' order, and which order that is.
    pub(crate) fn stored(&self) -> Option<(Form, &[u8])> {
        match &self.storage {
            FrozenStorage::Packed(weight) => {
                Some((Form::of_floats(weight.weight_type()), weight.stored()))
            }
            FrozenStorage::Int8(weight) => Some((Form::Int8, weight.stored())),
            FrozenStorage::Quantised(weight) if weight.is_interleaved() => {
                Some((Form::Blocks(weight.quant_type().to_ggml()), weight.data()))
            }
            FrozenStorage::QuantisedInt8(weight) if weight.is_interleaved() => Some((
                Form::BlocksInt8(weight.quant_type().to_ggml()),
                weight.data(),
            )),
            _ => None,
        }
    }

    /// The matrix as `f32` `[out_features, in_features]` on the CPU (dequantised, exact for what is stored).
    pub fn to_tensor(&self) -> Result<Tensor> {
        let shape = (self.out_features(), self.in_features());
        match &self.storage {
            FrozenStorage::Packed(weight) => Tensor::from_vec(weight.unpack(), shape, &Device::Cpu),
            FrozenStorage::Int8(weight) => Tensor::from_vec(weight.unpack(), shape, &Device::Cpu),
            FrozenStorage::Quantised(weight) | FrozenStorage::QuantisedInt8(weight) => {
                Tensor::from_vec(weight.dequantize_all(), shape, &Device::Cpu)
            }
            FrozenStorage::Mapped(weight) => Tensor::from_vec(weight.values(), shape, &Device::Cpu),
            FrozenStorage::Dense(weight) => weight.to_dtype(DType::F32)?.to_device(&Device::Cpu),
        }
    }

    /// The weight of a convolution whose patches are the columns; `None` for a weight on a device, in its file or in 8 bits.
    pub(crate) fn as_conv(&self) -> Option<ConvWeight<'_>> {
        match &self.storage {
            FrozenStorage::Packed(weight) => Some(ConvWeight::Packed(weight)),
            FrozenStorage::Quantised(weight) | FrozenStorage::QuantisedInt8(weight) => {
                Some(ConvWeight::Quantised(weight))
            }
            FrozenStorage::Int8(_) | FrozenStorage::Mapped(_) | FrozenStorage::Dense(_) => None,
        }
    }

    /// The matrix as a part of a fused perceptron, if it can be one.
    pub(crate) fn as_mlp_weight(&self) -> Option<MlpWeight<'_>> {
        match &self.storage {
            FrozenStorage::Packed(weight) => Some(MlpWeight::Packed(weight)),
            FrozenStorage::Int8(weight) => Some(MlpWeight::Int8(weight)),
            _ => None,
        }
    }

    /// The matrix as a part of a gated perceptron in 8 bits, if it can be one.
    pub(crate) fn as_gated_weight(&self) -> Option<GatedWeight<'_>> {
        match &self.storage {
            FrozenStorage::Int8(weight) => Some(GatedWeight::Int8(weight)),
            FrozenStorage::QuantisedInt8(weight) => Some(GatedWeight::Blocks(weight)),
            _ => None,
        }
    }

    /// Whether products round the rows to bf16 or 8 bits (where the machine multiplies those faster).
    pub(crate) fn rounds_rows(&self) -> bool {
        match &self.storage {
            FrozenStorage::Packed(weight) => weight.weight_type() == WeightType::Bf16,
            FrozenStorage::Int8(_)
            | FrozenStorage::Quantised(_)
            | FrozenStorage::QuantisedInt8(_) => true,
            FrozenStorage::Mapped(weight) => panel_type(weight) == WeightType::Bf16,
            FrozenStorage::Dense(_) => false,
        }
    }

    /// Whether products are with blocks as they are stored.
    pub(crate) fn is_in_blocks(&self) -> bool {
        matches!(self.storage, FrozenStorage::Quantised(_))
    }

    /// The tensor of a weight that lives on a device; `None` for the CPU's own storages.
    pub(crate) fn as_dense(&self) -> Option<&Tensor> {
        match &self.storage {
            FrozenStorage::Dense(weight) => Some(weight),
            _ => None,
        }
    }

    /// `out [m, n] (+)= x [m, k]·Wᵀ` with the epilogue. CPU storages only.
    pub(crate) fn multiply(
        &self,
        m: usize,
        x: &[f32],
        out: &mut [f32],
        epilogue: &Epilogue,
    ) -> Result<()> {
        match &self.storage {
            FrozenStorage::Packed(weight) => gemm::gemm(m, x, weight, out, epilogue),
            FrozenStorage::Int8(weight) => int8::int8_gemm(m, x, weight, out, epilogue),
            FrozenStorage::Quantised(weight) => quant::quant_gemm(m, x, weight, out, epilogue),
            FrozenStorage::QuantisedInt8(weight) => {
                int8::quant_gemm_int8(m, x, weight, out, epilogue);
            }
            FrozenStorage::Mapped(weight) => gemm::gemm_streamed(
                m,
                weight.rows(),
                weight.width(),
                panel_type(weight),
                x,
                &|row, out| weight.row(row, out),
                out,
                epilogue,
            ),
            FrozenStorage::Dense(_) => {
                candle_core::bail!("frozen linear: the weight is on a device, the input on the CPU")
            }
        }
        Ok(())
    }

    /// `out [m, k] (+)= grad [m, n]·W`, the gradient of the input.
    pub(crate) fn multiply_transposed(
        &self,
        m: usize,
        grad: &[f32],
        out: &mut [f32],
        accumulate: bool,
    ) -> Result<()> {
        let transposed = match self.transposed.get() {
            Some(transposed) => transposed,
            None => {
                let made = self.transpose()?;
                self.transposed.get_or_init(|| made)
            }
        };
        gemm::gemm(
            m,
            grad,
            transposed,
            out,
            &Epilogue {
                accumulate,
                ..Epilogue::default()
            },
        );
        Ok(())
    }

    fn transpose(&self) -> Result<PackedWeight> {
        match &self.storage {
            FrozenStorage::Packed(weight) => Ok(weight.transposed()),
            // Blocks run along rows, so their transpose cannot stay quantised; bf16 is finer than any block type but Q8_0.
            FrozenStorage::Int8(weight) => Ok(PackedWeight::pack_transposed(
                weight.k(),
                weight.n(),
                &weight.unpack(),
                WeightType::Bf16,
            )),
            FrozenStorage::Quantised(weight) | FrozenStorage::QuantisedInt8(weight) => {
                let values = weight.dequantize_all();
                Ok(PackedWeight::pack_transposed(
                    weight.k(),
                    weight.n(),
                    &values,
                    WeightType::Bf16,
                ))
            }
            FrozenStorage::Mapped(weight) => Ok(PackedWeight::pack_transposed(
                weight.width(),
                weight.rows(),
                &weight.values(),
                panel_type(weight),
            )),
            FrozenStorage::Dense(_) => {
                candle_core::bail!("frozen linear: the weight is on a device, the input on the CPU")
            }
        }
    }
}

/// The type in which a matrix that stays in its file is packed: one that holds its values exactly.
fn panel_type(weight: &StoredMatrix) -> WeightType {
    match weight.kind() {
        ElementType::Bf16 => WeightType::Bf16,
        ElementType::F16 => WeightType::F16,
        _ => WeightType::F32,
    }
}

impl std::fmt::Debug for FrozenWeight {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let kind = match &self.storage {
            FrozenStorage::Packed(_) => "packed",
            FrozenStorage::Int8(_) => "int8",
            FrozenStorage::Quantised(_) | FrozenStorage::QuantisedInt8(_) => "quantised",
            FrozenStorage::Mapped(_) => "mapped",
            FrozenStorage::Dense(_) => "dense",
        };
        write!(
            f,
            "FrozenWeight({kind} [{}, {}])",
            self.out_features(),
            self.in_features()
        )
    }
}
