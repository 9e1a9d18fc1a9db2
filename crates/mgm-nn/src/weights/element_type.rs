//! Element types of stored tensors.

use mgm_kernels::quant::QuantType;

/// Type of a tensor's elements as they lie in a file.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum ElementType {
    /// 64-bit float.
    F64,
    /// 32-bit float.
    F32,
    /// 16-bit IEEE float.
    F16,
    /// bfloat16.
    Bf16,
    /// 64-bit signed integer.
    I64,
    /// 32-bit signed integer.
    I32,
    /// 16-bit signed integer.
    I16,
    /// 8-bit signed integer.
    I8,
    /// 8-bit unsigned integer.
    U8,
    /// One byte, 0 or 1.
    Bool,
    /// GGML blocks.
    Quantised(QuantType),
    /// One that this program has no use for; its name.
    Other(String),
}

impl ElementType {
    /// The name used in messages and tables, such as `BF16` or `Q4_K`.
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

    /// Bytes of `elements` elements. `None` when they are not whole blocks, when there are too many to count, and for
    /// [`ElementType::Other`].
    pub fn bytes_of(&self, elements: u64) -> Option<u64> {
        let size = match self {
            Self::F64 | Self::I64 => 8,
            Self::F32 | Self::I32 => 4,
            Self::F16 | Self::Bf16 | Self::I16 => 2,
            Self::I8 | Self::U8 | Self::Bool => 1,
            Self::Quantised(quant_type) => {
                let block = quant_type.block_len() as u64;
                if !elements.is_multiple_of(block) {
                    return None;
                }
                return (elements / block).checked_mul(quant_type.block_bytes() as u64);
            }
            Self::Other(_) => return None,
        };
        elements.checked_mul(size)
    }
}
