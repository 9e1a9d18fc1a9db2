use std::collections::BTreeMap;

use candle_core::backprop::GradStore;
use candle_core::{CpuStorage, Storage, Tensor, Var};
use rayon::prelude::*;

use crate::error::TrainError;

/// Elements per parallel piece; also the fixed order in which norms are summed, so that results do not depend on the number of threads.
const PIECE: usize = 1 << 16;

/// Gradient buffers by parameter name, in name order, f32 on the CPU. The accumulation of micro batches, clipping and the exchange between
/// processes all work on these.
#[derive(Debug, Clone, PartialEq)]
pub struct Gradients {
    buffers: BTreeMap<String, Vec<f32>>,
}

impl Gradients {
    /// Zero buffers for all parameters.
    pub fn new(parameters: &BTreeMap<String, Var>) -> Self {
        let buffers = parameters
            .iter()
            .map(|(name, variable)| (name.clone(), vec![0.0; variable.elem_count()]))
            .collect();
        Self { buffers }
    }

    /// Sets everything to zero.
    pub fn clear(&mut self) {
        for buffer in self.buffers.values_mut() {
            buffer.fill(0.0);
        }
    }

    /// Adds `scale` times the gradients of one micro batch. A parameter that the micro batch did not reach (the projector in a batch of
    /// text) adds nothing: as in the official code its gradient is zero, not absent.
    ///
    /// # Errors
    /// When a gradient cannot be read.
    pub fn add(
        &mut self,
        parameters: &BTreeMap<String, Var>,
        store: &GradStore,
        scale: f32,
    ) -> Result<(), TrainError> {
        for (name, buffer) in &mut self.buffers {
            let Some(gradient) = parameters
                .get(name)
                .and_then(|variable| store.get(variable.as_tensor()))
            else {
                continue;
            };
            with_values(gradient, |values| {
                buffer
                    .par_chunks_mut(PIECE)
                    .zip(values.par_chunks(PIECE))
                    .for_each(|(sum, values)| {
                        for (sum, value) in sum.iter_mut().zip(values) {
                            *sum += scale * value;
                        }
                    });
            })?;
        }
        Ok(())
    }

    /// Names of parameters whose gradient is entirely zero.
    pub fn untouched(&self) -> Vec<&str> {
        self.buffers
            .iter()
            .filter(|(_, buffer)| buffer.iter().all(|&value| value == 0.0))
            .map(|(name, _)| name.as_str())
            .collect()
    }

    /// Euclidean norm over all buffers.
    pub fn norm(&self) -> f32 {
        let mut total = 0.0_f64;
        for buffer in self.buffers.values() {
            let pieces: Vec<f64> = buffer
                .par_chunks(PIECE)
                .map(|piece| {
                    piece
                        .iter()
                        .map(|&value| f64::from(value) * f64::from(value))
                        .sum::<f64>()
                })
                .collect();
            total += pieces.iter().sum::<f64>();
        }
        total.sqrt() as f32
    }

    /// Multiplies everything by `factor`.
    pub fn scale(&mut self, factor: f32) {
        for buffer in self.buffers.values_mut() {
            buffer.par_chunks_mut(PIECE).for_each(|piece| {
                for value in piece {
                    *value *= factor;
                }
            });
        }
    }

    /// PyTorch's `clip_grad_norm_`: scales everything by limit / (norm + 1e-6) when that is below one.
    pub fn clip(&mut self, norm: f32, limit: f64) {
        let factor = limit / (f64::from(norm) + 1e-6);
        if factor < 1.0 {
            self.scale(factor as f32);
        }
    }

    /// One parameter's buffer.
    pub fn get(&self, name: &str) -> Option<&[f32]> {
        self.buffers.get(name).map(Vec::as_slice)
    }

    /// All buffers in name order, for the exchange between processes.
    pub fn iter_mut(&mut self) -> impl Iterator<Item = (&str, &mut [f32])> {
        self.buffers
            .iter_mut()
            .map(|(name, buffer)| (name.as_str(), buffer.as_mut_slice()))
    }
}

/// Hands a tensor's values to `use_values`, without a copy where they lie contiguous in CPU memory.
pub(crate) fn with_values<T>(
    tensor: &Tensor,
    use_values: impl FnOnce(&[f32]) -> T,
) -> Result<T, TrainError> {
    {
        let (storage, layout) = tensor.storage_and_layout();
        if let (Storage::Cpu(CpuStorage::F32(values)), Some((start, end))) =
            (&*storage, layout.contiguous_offsets())
        {
            return Ok(use_values(&values[start..end]));
        }
    }
    let values = tensor
        .to_dtype(candle_core::DType::F32)?
        .flatten_all()?
        .to_vec1::<f32>()?;
    Ok(use_values(&values))
}

#[cfg(test)]
mod tests {
    use super::*;
    use candle_core::Device;

    #[test]
    fn accumulation_norm_and_clipping() {
        let weight = Var::from_vec(vec![1.0_f32, 2.0, 3.0], 3, &Device::Cpu).unwrap();
        let unused = Var::from_vec(vec![1.0_f32], 1, &Device::Cpu).unwrap();
        let parameters =
            BTreeMap::from([("a".to_owned(), weight.clone()), ("b".to_owned(), unused)]);
        let mut gradients = Gradients::new(&parameters);
        // d/dw Σw² = 2w, twice at half weight.
        for _ in 0..2 {
            let loss = weight.as_tensor().sqr().unwrap().sum_all().unwrap();
            gradients
                .add(&parameters, &loss.backward().unwrap(), 0.5)
                .unwrap();
        }
        assert_eq!(gradients.get("a").unwrap(), [2.0, 4.0, 6.0]);
        assert_eq!(gradients.untouched(), ["b"]);
        let norm = gradients.norm();
        assert!((norm - 56.0_f32.sqrt()).abs() < 1e-6);
        gradients.clip(norm, 100.0);
        assert_eq!(gradients.get("a").unwrap(), [2.0, 4.0, 6.0]);
        gradients.clip(norm, 1.0);
        assert!((gradients.norm() - 1.0).abs() < 1e-6);
        gradients.clear();
        assert_eq!(gradients.untouched(), ["a", "b"]);
    }

    #[test]
    fn strided_gradients_are_read_in_order() {
        let tensor = Tensor::from_vec(vec![0.0_f32, 1.0, 2.0, 3.0, 4.0, 5.0], (2, 3), &Device::Cpu)
            .unwrap()
            .t()
            .unwrap();
        assert_eq!(
            with_values(&tensor, <[f32]>::to_vec).unwrap(),
            [0.0, 3.0, 1.0, 4.0, 2.0, 5.0]
        );
    }
}
