//! Making layers from the weights of a source, as its policy says.

use std::sync::Arc;

use candle_core::{DType, Device, Tensor};
use mgm_kernels::gemm::{PackedWeight, WeightType};
use mgm_kernels::int8::Int8Weight;
use mgm_kernels::quant::{self, Bytes, QuantError, QuantType, QuantWeight};
use rayon::prelude::*;

use super::element_type::ElementType;
use super::policy::{LoraConfig, WeightStorage, matches_name};
use super::source::{Bias, Found, WeightSource};
use super::stored::StoredTensor;
use crate::embedding::{Embedding, Rows};
use crate::linear::{Bias as LinearBias, Linear, Lora, Matrix};
use crate::low_rank::LowRank;
use crate::ops::Adapter;
use crate::{Error, FrozenWeight, Result};

impl WeightSource {
    /// The linear layer `name` with weight `{name}.weight` `[out_features, in_features]` and, as `bias` says,
    /// `{name}.bias`. A weight of more axes (a convolution whose patches are rows) is taken flattened.
    pub fn linear(
        &self,
        name: &str,
        in_features: usize,
        out_features: usize,
        bias: Bias,
    ) -> Result<Linear> {
        let base = self.full_name(name);
        let found = self.require(&format!("{base}.weight"))?;
        let matches = found.tensor.shape.len() >= 2
            && found.tensor.shape[0] == out_features
            && found.tensor.elements() == in_features * out_features;
        if !matches {
            return Err(found.shape_error(&[out_features, in_features]));
        }
        let lora = self.lora(&base, in_features, out_features)?;
        let matrix = if self.policy().is_trainable(&found.name) && lora.is_none() {
            let name = found.name.clone();
            let tensor = self.upload(found.into_values()?, &[out_features, in_features])?;
            Matrix::Trainable(
                self.parameters()
                    .register(&name, &tensor)?
                    .as_tensor()
                    .clone(),
            )
        } else {
            Matrix::Frozen(self.freeze(&found, in_features, out_features)?)
        };
        let bias = self.bias(&base, out_features, bias)?;
        Ok(Linear::from_parts(matrix, bias, lora))
    }

    fn bias(&self, base: &str, out_features: usize, bias: Bias) -> Result<Option<LinearBias>> {
        let name = format!("{base}.bias");
        let found = match bias {
            Bias::No => return Ok(None),
            Bias::Yes => self.require(&name)?,
            Bias::IfPresent => match self.find(&name)? {
                Some(found) => found,
                None => return Ok(None),
            },
        };
        found.check_shape(&[out_features])?;
        let values = found.into_values()?;
        if self.policy().is_trainable(&name) {
            let tensor = self.upload(values, &[out_features])?;
            let variable = self.parameters().register(&name, &tensor)?;
            return Ok(Some(LinearBias::Trainable(variable.as_tensor().clone())));
        }
        Ok(Some(LinearBias::Frozen(values.into())))
    }

    /// Stores a matrix as the policy says, or takes it from where it is kept.
    fn freeze(
        &self,
        found: &Found,
        in_features: usize,
        out_features: usize,
    ) -> Result<Arc<FrozenWeight>> {
        let kept = self.kept().filter(|_| self.device().is_cpu());
        if let Some(kept) = kept
            && let Some(weight) = kept.find(&found.name, out_features, in_features)?
        {
            return Ok(weight);
        }
        let made = self.make(found, in_features, out_features)?;
        if let Some(kept) = kept {
            kept.keep(&found.name, &made);
        }
        Ok(made)
    }

    /// Stores a matrix as the policy says. What was copied out of a mapped file gives its pages back.
    fn make(
        &self,
        found: &Found,
        in_features: usize,
        out_features: usize,
    ) -> Result<Arc<FrozenWeight>> {
        let storage = self.policy().storage;
        let kind = &found.tensor.kind;
        if !self.device().is_cpu() {
            let as_stored = matches!(storage, WeightStorage::AsStored | WeightStorage::Mapped);
            let dtype = match kind {
                _ if storage == WeightStorage::F32 => DType::F32,
                ElementType::F32 | ElementType::F64 if as_stored => DType::F32,
                ElementType::F16 if as_stored => DType::F16,
                _ if storage == WeightStorage::F16 => DType::F16,
                _ => DType::BF16,
            };
            let dense =
                Tensor::from_vec(found.values()?, (out_features, in_features), &Device::Cpu)?
                    .to_dtype(dtype)?;
            found.release();
            return Ok(FrozenWeight::dense(dense.to_device(self.device())?)?);
        }
        let blocks = match (storage, found.tensor.blocks()) {
            (
                WeightStorage::AsStored | WeightStorage::Mapped | WeightStorage::Q8_0,
                Some(blocks),
            ) => Some(blocks),
            (WeightStorage::Int8, Some(blocks)) if blocks.0 != QuantType::Q8_0 => Some(blocks),
            _ => None,
        };
        if let Some((quant_type, blocks)) = blocks {
            let weight = QuantWeight::new(quant_type, out_features, in_features, blocks).map_err(
                |error| Error::format(&found.file, format!("tensor {}: {error}", found.name)),
            )?;
            let weight = match storage != WeightStorage::Mapped && quant::prefers_interleaved() {
                true => weight.interleave_in_parts(|| found.release()),
                false => weight,
            };
            return Ok(match storage {
                WeightStorage::Int8 => FrozenWeight::quantised_int8(weight),
                _ => FrozenWeight::quantised(weight),
            });
        }
        if storage == WeightStorage::Int8 {
            let weight = match found.tensor.matrix(out_features, in_features) {
                Some(matrix) => Int8Weight::pack_rows(out_features, in_features, |row, out| {
                    matrix.row(row, out);
                }),
                None => Int8Weight::pack(out_features, in_features, &found.values()?),
            };
            found.release();
            return Ok(FrozenWeight::int8(weight));
        }
        if wants_blocks(storage, in_features) {
            let weight = match found.tensor.matrix(out_features, in_features) {
                Some(matrix) => {
                    quantise_rows(out_features, in_features, &|row, out| matrix.row(row, out))
                }
                None => {
                    let values = found.values()?;
                    quantise_rows(out_features, in_features, &|row, out| {
                        out.copy_from_slice(&values[row * in_features..][..in_features])
                    })
                }
            }
            .map_err(|error| {
                Error::format(&found.file, format!("tensor {}: {error}", found.name))
            })?;
            found.release();
            let weight = if quant::prefers_interleaved() {
                weight.interleave()
            } else {
                weight
            };
            return Ok(FrozenWeight::quantised(weight));
        }
        let weight_type = float_type(storage, kind);
        let weight = match found.tensor.matrix(out_features, in_features) {
            Some(matrix) if storage == WeightStorage::Mapped => {
                return Ok(FrozenWeight::mapped(matrix));
            }
            Some(matrix) => FrozenWeight::packed(PackedWeight::pack_rows(
                out_features,
                in_features,
                weight_type,
                |row, out| matrix.row(row, out),
            )),
            None => FrozenWeight::pack(out_features, in_features, &found.values()?, weight_type),
        };
        found.release();
        Ok(weight)
    }

    /// The adapter of a linear layer, if it is a target and there is or shall be one.
    fn lora(&self, base: &str, in_features: usize, out_features: usize) -> Result<Option<Lora>> {
        let Some(config) = self.policy().lora.as_ref() else {
            return Ok(None);
        };
        if !config
            .targets
            .iter()
            .any(|target| matches_name(target, base))
        {
            return Ok(None);
        }
        let (a_name, b_name) = (
            format!("{base}.lora_A.weight"),
            format!("{base}.lora_B.weight"),
        );
        let trainable = self.policy().is_trainable(&a_name) && self.policy().is_trainable(&b_name);
        let (a, b) = match (self.find(&a_name)?, self.find(&b_name)?) {
            (Some(a), Some(b)) => {
                let rank = a.tensor.shape.first().copied().unwrap_or(0);
                a.check_shape(&[rank, in_features])?;
                b.check_shape(&[out_features, rank])?;
                (
                    self.upload(a.into_values()?, &[rank, in_features])?,
                    self.upload(b.into_values()?, &[out_features, rank])?,
                )
            }
            (None, None) if !trainable => return Ok(None),
            (None, None) => (
                self.upload(
                    initial_down(config, &a_name, in_features),
                    &[config.rank, in_features],
                )?,
                Tensor::zeros((out_features, config.rank), DType::F32, self.device())?,
            ),
            (a, _) => {
                let missing = if a.is_some() { b_name } else { a_name };
                return Err(self
                    .require(&missing)
                    .err()
                    .unwrap_or_else(|| Error::format(missing, "half an adapter")));
            }
        };
        let rank = a.dims()[0];
        if rank == 0 {
            return Err(Error::format(
                a_name,
                "expected an adapter of rank 1 or more, found 0",
            ));
        }
        let scale = config.alpha / rank as f64;
        if trainable {
            let a = self.parameters().register(&a_name, &a)?.as_tensor().clone();
            let b = self.parameters().register(&b_name, &b)?.as_tensor().clone();
            return Ok(Some(Lora::Trainable {
                a,
                b,
                scale: scale as f32,
            }));
        }
        let b = (b * scale)?;
        if self.device().is_cpu() {
            let low_rank = LowRank::new(&a, &b)?;
            return Ok(Some(Lora::Frozen(Adapter::LowRank(Arc::new(low_rank)))));
        }
        let freeze = |name: &str, tensor: Tensor| {
            let found = Found::made(name, StoredTensor::from_tensor(&tensor));
            self.freeze(&found, tensor.dims()[1], tensor.dims()[0])
        };
        Ok(Some(Lora::Frozen(Adapter::Dense {
            down: freeze(&a_name, a)?,
            up: freeze(&b_name, b)?,
        })))
    }

    /// The table of `count` rows of `width` values in `{name}.weight`.
    pub fn embedding(&self, name: &str, count: usize, width: usize) -> Result<Embedding> {
        let found = self.require(&format!("{}.weight", self.full_name(name)))?;
        found.check_shape(&[count, width])?;
        let trainable = self.policy().is_trainable(&found.name);
        if trainable || !self.device().is_cpu() {
            let name = found.name.clone();
            let tensor = self.upload(found.into_values()?, &[count, width])?;
            let rows = if trainable {
                Rows::Trainable(
                    self.parameters()
                        .register(&name, &tensor)?
                        .as_tensor()
                        .clone(),
                )
            } else {
                Rows::Dense(tensor)
            };
            return Ok(Embedding::new(rows, count, width, None));
        }
        if !found.tensor.kind.is_float() {
            found.values()?;
        }
        // The matrix of a tied output head is made when it is first asked for.
        let source = self.clone();
        let stored = found.tensor.clone();
        let make_head = move || source.freeze(&found, width, count);
        Ok(Embedding::new(
            Rows::Stored(stored),
            count,
            width,
            Some(Box::new(make_head)),
        ))
    }
}

/// The type in which a matrix of this kind is packed.
pub(super) fn float_type(storage: WeightStorage, kind: &ElementType) -> WeightType {
    match storage {
        WeightStorage::Bf16 | WeightStorage::Q8_0 | WeightStorage::Int8 => WeightType::Bf16,
        WeightStorage::F16 => WeightType::F16,
        WeightStorage::F32 => WeightType::F32,
        WeightStorage::AsStored | WeightStorage::Mapped => match kind {
            ElementType::Bf16 => WeightType::Bf16,
            ElementType::F16 => WeightType::F16,
            _ => WeightType::F32,
        },
    }
}

/// Whether rows of this length are to become blocks.
pub(super) fn wants_blocks(storage: WeightStorage, width: usize) -> bool {
    storage == WeightStorage::Q8_0 && width.is_multiple_of(QuantType::Q8_0.block_len())
}

/// Rows of whole blocks as Q8_0, in parallel, without all their floats existing at a time.
pub(super) fn quantise_rows(
    rows: usize,
    width: usize,
    row: &(dyn Fn(usize, &mut [f32]) + Sync),
) -> std::result::Result<QuantWeight, QuantError> {
    let t = QuantType::Q8_0;
    let row_bytes = width / t.block_len() * t.block_bytes();
    let mut blocks = vec![0u8; rows * row_bytes];
    blocks
        .par_chunks_mut(row_bytes.max(1))
        .enumerate()
        .for_each(|(index, blocks)| {
            let mut values = vec![0.0; width];
            row(index, &mut values);
            blocks.copy_from_slice(&quant::quantize(t, &values));
        });
    QuantWeight::new(t, rows, width, Bytes::from_vec(blocks))
}

/// Kaiming-uniform with `a = √5` as PEFT initialises A: uniform in ±1/√in_features.
fn initial_down(config: &LoraConfig, name: &str, in_features: usize) -> Vec<f32> {
    // FNV-1a of the name gives each layer a stream of its own; SplitMix64 draws from it.
    let stream = name.bytes().fold(0xcbf2_9ce4_8422_2325_u64, |hash, byte| {
        (hash ^ u64::from(byte)).wrapping_mul(0x0000_0100_0000_01b3)
    });
    let mut state = stream ^ config.seed.wrapping_mul(0x9e37_79b9_7f4a_7c15);
    let bound = 1.0 / (in_features as f64).sqrt();
    (0..config.rank * in_features)
        .map(|_| {
            state = state.wrapping_add(0x9e37_79b9_7f4a_7c15);
            let mut mixed = state;
            mixed = (mixed ^ (mixed >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
            mixed = (mixed ^ (mixed >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
            mixed ^= mixed >> 31;
            let unit = (mixed >> 11) as f64 / (1u64 << 53) as f64;
            ((2.0 * unit - 1.0) * bound) as f32
        })
        .collect()
}
