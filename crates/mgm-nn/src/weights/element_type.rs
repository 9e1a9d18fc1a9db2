//! Element types of stored tensors.

use std::fmt;

use mgm_kernels::quant::QuantType;

/// Element type of a stored tensor.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub enum ElementType {
    /// 64-bit floats.
    F64,
    /// 32-bit floats.
    F32,
    /// 16-bit floats, IEEE 754.
    F16,
    /// bfloat16.
    Bf16,
    /// 64-bit signed integers.
    I64,
    /// 32-bit signed integers.
    I32,
    /// 16-bit signed integers.
    I16,
    /// 8-bit signed integers.
    I8,
    /// Bytes.
    U8,
    /// Truth values, one byte each.
    Bool,
    /// GGML blocks.
    Quantised(QuantType),
    /// One that this program does not read; its name.
    Other(String),
}

impl ElementType {
    /// The name as safetensors and GGML write it: `F32`, `BF16`, `I64`, `Q8_0`.
    pub fn name(&self) -> &str {
        match self {
            Self::F64 => "F64",
            Self::F32 => "F32",
            Self::F16 => "F16",
            Self::Bf16 => "BF16",
            Self::I64 => "I64",
            Self::I32 => "I32",
            Self::I16 => "I16",
            Self::I8 => "I8",
            Self::U8 => "U8",
            Self::Bool => "BOOL",
            Self::Quantised(quant_type) => quant_type.name(),
            Self::Other(name) => name,
        }
    }

    /// Elements that are stored together: 1, or the length of a block.
    pub fn block_len(&self) -> usize {
        match self {
            Self::Quantised(quant_type) => quant_type.block_len(),
            _ => 1,
        }
    }

    /// Bytes of `elements` elements. `None` when they are not whole blocks, when there are too many to count, and for
    /// [`ElementType::Other`].
    pub fn bytes_of(&self, elements: u64) -> Option<u64> {
        let size = match self {
            Self::F64 | Self::I64 => 8,
            Self::F32 | Self::I32 => 4,
            Self::F16 | Self::Bf16 | Self::I16 => 2,
            Self::I8 | Self::U8 | Self::Bool => 1,
            Self::Quantised(quant_type) => quant_type.block_bytes() as u64,
            Self::Other(_) => return None,
        };
        let block = self.block_len() as u64;
        if !elements.is_multiple_of(block) {
            return None;
        }
        (elements / block).checked_mul(size)
    }

    /// Whether the elements are numbers that become `f32`: floats and blocks of them.
    pub fn is_float(&self) -> bool {
        matches!(
            self,
            Self::F64 | Self::F32 | Self::F16 | Self::Bf16 | Self::Quantised(_)
        )
    }
}

impl fmt::Display for ElementType {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

/// What is known of a stored tensor without reading it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct TensorInfo {
    /// Lengths of the axes, outermost first.
    pub shape: Vec<usize>,
    /// Type of the elements.
    pub element_type: ElementType,
    /// Bytes of the elements as stored; 0 where the type is foreign and its size unknown.
    pub bytes: u64,
    /// The file, or `memory`.
    pub file: String,
}
