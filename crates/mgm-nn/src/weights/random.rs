//! Tensors of given names and shapes whose values come from a seed: a model of true size without its files, for measuring speed.
//!
//! Nothing is held until a tensor is asked for. It is then made in its stored type directly: pieces of a small pool of encoded values,
//! drawn in an order that depends on the seed and the tensor's name alone. That takes no longer than copying the bytes, also for quantised
//! types, whose blocks are true ones (a block of random bits would hold scales that are not numbers).

use std::collections::BTreeMap;

use half::{bf16, f16};
use mgm_kernels::quant::{self, Bytes};
use rayon::prelude::*;

use super::element_type::ElementType;
use super::stored::StoredTensor;
use crate::{Error, Result};

/// What the random source calls itself where a file would be named.
pub(super) const LABEL: &str = "random weights";

/// Values of one piece: whole blocks of every quantised type.
const PIECE: usize = 256;
/// Pieces of the pool.
const POOL_PIECES: u64 = 64;
/// Pieces that one task copies.
const TASK_PIECES: usize = 4096;

/// What a random tensor holds.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum RandomValues {
    /// The same value everywhere: 1 for the scale of a norm, 0 for a bias.
    Constant(f32),
    /// Evenly distributed between the negative and the positive bound.
    Uniform(f32),
}

/// Names, shapes and types of tensors that are made when they are asked for.
#[derive(Clone, Debug)]
pub struct RandomTensors {
    seed: u64,
    tensors: BTreeMap<String, RandomTensor>,
}

#[derive(Clone, Debug)]
struct RandomTensor {
    shape: Vec<usize>,
    element_type: ElementType,
    values: RandomValues,
}

impl RandomTensors {
    /// No tensors yet. Equal seeds give equal tensors.
    pub fn new(seed: u64) -> Self {
        Self {
            seed,
            tensors: BTreeMap::new(),
        }
    }

    /// Adds a tensor, in place of one of the same name.
    ///
    /// # Errors
    /// When the type is no float or quantised type, or a row is not whole blocks of it.
    pub fn add(
        &mut self,
        name: impl Into<String>,
        shape: impl Into<Vec<usize>>,
        element_type: ElementType,
        values: RandomValues,
    ) -> Result<()> {
        let (name, shape) = (name.into(), shape.into());
        let row = shape.last().copied().unwrap_or(1);
        if !element_type.is_float() || !row.is_multiple_of(element_type.block_len()) {
            return Err(Error::format(
                LABEL,
                format!(
                    "tensor {name} {shape:?}: expected a type that holds numbers and rows of whole blocks of it, found {element_type}"
                ),
            ));
        }
        let tensor = RandomTensor {
            shape,
            element_type,
            values,
        };
        self.tensors.insert(name, tensor);
        Ok(())
    }

    pub(super) fn names(&self) -> impl Iterator<Item = &String> {
        self.tensors.keys()
    }

    /// Shape and type of a tensor.
    pub(super) fn entry(&self, name: &str) -> Option<(&[usize], &ElementType)> {
        let tensor = self.tensors.get(name)?;
        Some((&tensor.shape, &tensor.element_type))
    }

    /// Makes a tensor.
    pub(super) fn get(&self, name: &str) -> Option<StoredTensor> {
        let tensor = self.tensors.get(name)?;
        let stream = mix(hash(name) ^ self.seed.rotate_left(32));
        let bytes = Bytes::from_vec(tensor.bytes(self.seed, stream));
        let (shape, kind) = (tensor.shape.clone(), tensor.element_type.clone());
        Some(StoredTensor::from_bytes(shape, kind, bytes))
    }
}

impl RandomTensor {
    /// The elements as stored. `stream` tells tensors apart.
    fn bytes(&self, seed: u64, stream: u64) -> Vec<u8> {
        let elements: usize = self.shape.iter().product();
        let (pieces, values) = match self.values {
            RandomValues::Constant(value) => (1, vec![value; PIECE]),
            RandomValues::Uniform(bound) => {
                let unit = |index| (mix(seed ^ index) >> 40) as f32 / (1u64 << 23) as f32 - 1.0;
                let count = POOL_PIECES * PIECE as u64;
                let values = (0..count).map(|index| bound * unit(index)).collect();
                (POOL_PIECES, values)
            }
        };
        let pool = encode(&self.element_type, &values);
        let piece_bytes = pool.len() / pieces as usize;
        let block = self.element_type.block_len();
        let mut bytes = vec![0; elements / block * (piece_bytes / (PIECE / block))];
        bytes
            .par_chunks_mut(TASK_PIECES * piece_bytes)
            .enumerate()
            .for_each(|(task, out)| {
                let first = (task * TASK_PIECES) as u64;
                for (out, index) in out.chunks_mut(piece_bytes).zip(first..) {
                    let piece = (mix(stream.wrapping_add(index)) % pieces) as usize;
                    out.copy_from_slice(&pool[piece * piece_bytes..][..out.len()]);
                }
            });
        bytes
    }
}

/// Values, a multiple of [`PIECE`] of them, in a stored type.
fn encode(element_type: &ElementType, values: &[f32]) -> Vec<u8> {
    match element_type {
        ElementType::Quantised(quant_type) => quant::quantize(*quant_type, values),
        ElementType::Bf16 => bytemuck::cast_slice(
            &values
                .iter()
                .map(|&value| bf16::from_f32(value))
                .collect::<Vec<_>>(),
        )
        .to_vec(),
        ElementType::F16 => bytemuck::cast_slice(
            &values
                .iter()
                .map(|&value| f16::from_f32(value))
                .collect::<Vec<_>>(),
        )
        .to_vec(),
        ElementType::F64 => values
            .iter()
            .flat_map(|&value| f64::from(value).to_le_bytes())
            .collect(),
        _ => bytemuck::cast_slice(values).to_vec(),
    }
}

/// FNV-1a.
fn hash(name: &str) -> u64 {
    name.bytes().fold(0xcbf2_9ce4_8422_2325, |hash, byte| {
        (hash ^ u64::from(byte)).wrapping_mul(0x0000_0100_0000_01b3)
    })
}

/// The output function of SplitMix64 (Steele, Lea and Flood 2014) at a position of its sequence.
fn mix(position: u64) -> u64 {
    let mut mixed = position.wrapping_mul(0x9e37_79b9_7f4a_7c15);
    mixed = (mixed ^ (mixed >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    mixed = (mixed ^ (mixed >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    mixed ^ (mixed >> 31)
}

#[cfg(test)]
mod tests {
    use mgm_kernels::quant::QuantType;

    use super::*;
    use crate::{Bias, WeightSource};

    fn all_types() -> Vec<ElementType> {
        let floats = [
            ElementType::F32,
            ElementType::F64,
            ElementType::F16,
            ElementType::Bf16,
        ];
        let blocks = QuantType::ALL.map(ElementType::Quantised);
        floats.into_iter().chain(blocks).collect()
    }

    fn source(seed: u64, shape: &[usize], element_type: &ElementType) -> WeightSource {
        let mut tensors = RandomTensors::new(seed);
        for name in ["a.weight", "b.weight"] {
            tensors
                .add(
                    name,
                    shape,
                    element_type.clone(),
                    RandomValues::Uniform(0.5),
                )
                .unwrap();
        }
        WeightSource::from_random(tensors)
    }

    fn values(source: &WeightSource, name: &str) -> Vec<f32> {
        let tensor = source.tensor_any(name).unwrap();
        tensor.flatten_all().unwrap().to_vec1().unwrap()
    }

    #[test]
    fn every_type_gives_its_bytes_and_values_within_the_bound() {
        for element_type in all_types() {
            // Rows of a single largest block, and a number of elements that is no whole number of tasks.
            let source = source(1, &[TASK_PIECES + 3, 256], &element_type);
            let info = source.info("a.weight").unwrap();
            assert_eq!(info.element_type, element_type);
            let stored = source.stored_bytes("a.weight").unwrap();
            assert_eq!(info.bytes, stored.as_slice().len() as u64, "{element_type}");
            let values = values(&source, "a.weight");
            let count = values.len() as f64;
            let mean = values.iter().map(|&v| f64::from(v)).sum::<f64>() / count;
            let square = values.iter().map(|&v| f64::from(v * v)).sum::<f64>() / count;
            // Quantised values may step a little beyond what they round.
            assert!(
                values.iter().all(|value| value.abs() < 0.55),
                "{element_type}"
            );
            assert!(mean.abs() < 0.01, "{element_type}: mean {mean}");
            assert!(
                (square - 1.0 / 12.0).abs() < 0.005,
                "{element_type}: mean square {square}, expected that of ±0.5: 1/12"
            );
        }
    }

    #[test]
    fn seed_and_name_decide() {
        let shape = [40, 512];
        let first = source(1, &shape, &ElementType::Bf16);
        let again = values(&source(1, &shape, &ElementType::Bf16), "a.weight");
        assert_eq!(values(&first, "a.weight"), again);
        assert_ne!(values(&first, "b.weight"), again);
        let other = source(2, &shape, &ElementType::Bf16);
        assert_ne!(values(&other, "a.weight"), again);
        // Other rows, not the same ones over and over.
        assert_ne!(again[..512], again[512..1024]);
    }

    #[test]
    fn layers_load_and_the_tree_is_known() {
        let mut tensors = RandomTensors::new(3);
        let q4 = ElementType::Quantised(QuantType::Q4K);
        tensors
            .add("m.fc.weight", [64, 256], q4, RandomValues::Uniform(0.1))
            .unwrap();
        tensors
            .add(
                "m.fc.bias",
                [64],
                ElementType::F32,
                RandomValues::Constant(2.0),
            )
            .unwrap();
        let source = WeightSource::from_random(tensors).pp("m");
        assert_eq!(source.names(), ["m.fc.bias", "m.fc.weight"]);
        assert_eq!(source.shape("fc.weight").as_deref(), Some(&[64, 256][..]));
        assert!(!source.contains("fc"));
        let layer = source.linear("fc", 256, 64, Bias::Yes).unwrap();
        assert_eq!(layer.bytes(), 64 * 144);
        assert_eq!(values(&source, "fc.bias"), [2.0; 64]);
        assert_eq!(source.rows("fc.weight", 3..5).unwrap().len(), 512);
        let error = source.linear("gone", 1, 1, Bias::No).unwrap_err();
        assert!(error.to_string().contains("random weights"), "{error}");
    }

    #[test]
    fn types_that_do_not_fit_are_refused() {
        let mut tensors = RandomTensors::new(0);
        let mut add = |shape: &[usize], element_type| {
            tensors.add("x", shape, element_type, RandomValues::Constant(0.0))
        };
        assert!(add(&[4, 96], ElementType::Quantised(QuantType::Q4K)).is_err());
        assert!(add(&[4, 96], ElementType::I32).is_err());
        assert!(add(&[4, 96], ElementType::Quantised(QuantType::Q4_0)).is_ok());
        assert!(add(&[0, 96], ElementType::F32).is_ok());
    }
}
