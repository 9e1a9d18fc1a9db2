//! Where weights come from, and what becomes of them.

mod conv;
mod derived;
mod element_type;
mod gguf;
mod imatrix;
mod index;
mod kept;
mod layer;
mod layers;
mod mapped_file;
mod parameters;
mod policy;
mod random;
mod safetensors_file;
mod save;
mod source;
pub(crate) mod stored;
mod torch;

pub use derived::{Derivation, ValueChange};
pub use element_type::{ElementType, TensorInfo};
pub use gguf::{GgufMetadata, GgufTensor, GgufValue, GgufValueOut, GgufWriter};
pub use imatrix::ImportanceMatrix;
pub(crate) use kept::Form;
pub use kept::KeptMatrices;
pub use mgm_kernels::quant::Bytes;
pub use parameters::Parameters;
pub use policy::{LoraConfig, WeightPolicy, WeightStorage, matches_name};
pub use random::{RandomTensors, RandomValues};
pub use save::{save_safetensors, save_safetensors_with_metadata};
pub use source::{Bias, WeightSource};

#[cfg(test)]
mod tests;
