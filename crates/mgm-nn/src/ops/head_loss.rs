//! Output head and cross-entropy in one, without the matrix of logits.

use std::sync::{Arc, Mutex, PoisonError};

use candle_core::{CpuStorage, CustomOp1, Layout, Result, Shape, Tensor};
use mgm_kernels::gemm::Epilogue;
use rayon::prelude::*;

use super::cross_entropy::{Targets, cross_entropy, row_gradient, row_loss};
use crate::host;
use crate::{FrozenWeight, Linear};

/// Rows whose logits exist at the same time.
const ROWS: usize = 64;

/// `cross_entropy(head(hidden), labels)` for `hidden [rows, k]`: only labelled rows are multiplied, and with a frozen
/// head on the CPU the logits are made in blocks that become the gradient at once, so that none of the four matrices
/// `[rows, vocabulary]` of the plain way is ever stored. Same result, same errors.
pub fn linear_cross_entropy(hidden: &Tensor, head: &Linear, labels: &[i64]) -> Result<Tensor> {
    let (rows, _) = hidden.dims2()?;
    let targets = Targets::new(labels, rows, head.out_features())?;
    match head.plain_frozen_matrix() {
        Some(weight) if hidden.device().is_cpu() && weight.as_dense().is_none() => {
            let gradient = hidden.track_op().then(|| Mutex::new(None));
            hidden.apply_op1(HeadLoss {
                weight: weight.clone(),
                targets,
                gradient,
            })
        }
        _ => {
            let (rows, labels): (Vec<u32>, Vec<i64>) = targets
                .labelled()
                .map(|(row, target)| (row as u32, target as i64))
                .unzip();
            let rows = Tensor::from_slice(&rows, rows.len(), hidden.device())?;
            cross_entropy(&head.forward(&hidden.index_select(&rows, 0)?)?, &labels)
        }
    }
}

struct HeadLoss {
    weight: Arc<FrozenWeight>,
    targets: Targets,
    /// The gradient of the hidden states for an incoming gradient of 1, made by the forward; none without a tape.
    gradient: Option<Mutex<Option<Tensor>>>,
}

impl CustomOp1 for HeadLoss {
    fn name(&self) -> &'static str {
        "linear cross-entropy"
    }

    fn cpu_fwd(&self, storage: &CpuStorage, layout: &Layout) -> Result<(CpuStorage, Shape)> {
        let (rows, k) = layout.shape().dims2()?;
        if k != self.weight.in_features() {
            candle_core::bail!(
                "{}: head of {} inputs, hidden states of {k}",
                self.name(),
                self.weight.in_features()
            );
        }
        let hidden = host::values(storage, layout, self.name())?;
        let vocabulary = self.weight.out_features();
        let labelled: Vec<(usize, usize)> = self.targets.labelled().collect();
        let scale = 1.0 / labelled.len() as f32;
        let mut gradient = self.gradient.as_ref().map(|_| vec![0.0; rows * k]);
        let mut inputs = vec![0.0; ROWS.min(labelled.len()) * k];
        let mut logits = vec![0.0; ROWS.min(labelled.len()) * vocabulary];
        let mut total = 0.0;
        for block in labelled.chunks(ROWS) {
            let inputs = &mut inputs[..block.len() * k];
            let logits = &mut logits[..block.len() * vocabulary];
            for (input, (row, _)) in inputs.chunks_exact_mut(k).zip(block) {
                input.copy_from_slice(&hidden[row * k..][..k]);
            }
            self.weight
                .multiply(block.len(), inputs, logits, &Epilogue::default())?;
            let with_gradient = gradient.is_some();
            let losses: Vec<f64> = logits
                .par_chunks_exact_mut(vocabulary)
                .zip(block)
                .map_init(
                    || vec![0.0; vocabulary],
                    |scratch, (row, (_, target))| {
                        let loss = row_loss(row, *target, scratch);
                        if with_gradient {
                            row_gradient(row, *target, scale);
                        }
                        loss
                    },
                )
                .collect();
            total += losses.iter().sum::<f64>();
            if let Some(gradient) = &mut gradient {
                self.weight
                    .multiply_transposed(block.len(), logits, inputs, false)?;
                for (input, (row, _)) in inputs.chunks_exact(k).zip(block) {
                    gradient[row * k..][..k].copy_from_slice(input);
                }
            }
        }
        if let (Some(gradient), Some(slot)) = (gradient, &self.gradient) {
            *slot.lock().unwrap_or_else(PoisonError::into_inner) =
                Some(host::tensor(gradient, (rows, k))?);
        }
        Ok((
            CpuStorage::F32(vec![(total / labelled.len() as f64) as f32]),
            Shape::from(()),
        ))
    }

    fn bwd(&self, _: &Tensor, _: &Tensor, grad: &Tensor) -> Result<Option<Tensor>> {
        let slot = self
            .gradient
            .as_ref()
            .map(|slot| slot.lock().unwrap_or_else(PoisonError::into_inner).clone());
        match slot.flatten() {
            Some(gradient) => {
                let scale = f64::from(grad.to_scalar::<f32>()?);
                if scale == 1.0 {
                    Ok(Some(gradient))
                } else {
                    (gradient * scale).map(Some)
                }
            }
            None => candle_core::bail!("{}: no gradient was asked for in the forward", self.name()),
        }
    }
}
