//! Differentiable operations, layers and weight sources.
//!
//! * [`ops`]: the operations a model is written with. On the CPU each is a candle custom operation with a backward, over
//!   the kernels of `mgm-kernels`; on other devices the same functions are compositions of candle's own operations.
//! * [`Linear`] and [`Embedding`]: the two layers whose weights may be trainable, packed, quantised or on a device.
//! * [`kv`]: keys and values of what a decoder has read, in blocks that sequences share.
//! * [`WeightSource`]: where weights come from (safetensors, GGUF, torch files, memory) and, through [`WeightPolicy`],
//!   what becomes of them: a trainable parameter, a packed matrix, or quantised blocks.
//!
//! All activations are `f32`. One module tree serves inference and training: what is trainable is a property of the
//! weight source.

mod conv2d;
mod embedding;
mod error;
mod frozen;
mod host;
mod linear;
mod low_rank;
mod reduce;

pub mod kv;
pub mod ops;
pub mod weights;

pub use conv2d::{Conv2d, GroupNorm};
pub use embedding::Embedding;
pub use error::{Error, Result};
pub use frozen::FrozenWeight;
pub use linear::Linear;
pub use mgm_kernels::gemm::Activation;
pub use weights::{
    Bias, Bytes, Derivation, ElementType, GgufMetadata, GgufTensor, GgufValue, GgufValueOut,
    GgufWriter, ImportanceMatrix, KeptMatrices, LoraConfig, Parameters, RandomTensors,
    RandomValues, TensorInfo, ValueChange, WeightPolicy, WeightSource, WeightStorage,
    save_safetensors, save_safetensors_with_metadata,
};
