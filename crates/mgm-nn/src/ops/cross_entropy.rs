//! Cross-entropy over the labelled rows of a batch of logits.

use candle_core::{CpuStorage, CustomOp1, D, Layout, Result, Shape, Tensor};
use mgm_kernels::elementwise;
use rayon::prelude::*;

use crate::host::{self, Host};
use crate::reduce;

/// The label of a row that does not count.
pub const IGNORE_LABEL: i64 = -100;

/// Mean of `−log softmax(logits)[label]` over the rows whose label is not [`IGNORE_LABEL`], a scalar.
///
/// `logits` is `[rows, vocabulary]`. It is an error if no row is labelled or a label is out of range.
pub fn cross_entropy(logits: &Tensor, labels: &[i64]) -> Result<Tensor> {
    let (rows, vocabulary) = logits.dims2()?;
    let targets = Targets::new(labels, rows, vocabulary)?;
    if logits.device().is_cpu() {
        logits.apply_op1(CrossEntropy { targets })
    } else {
        composed(logits, &targets)
    }
}

/// Checked labels.
pub(crate) struct Targets {
    rows: Vec<Option<usize>>,
    count: usize,
}

impl Targets {
    pub(crate) fn new(labels: &[i64], rows: usize, vocabulary: usize) -> Result<Self> {
        if labels.len() != rows {
            candle_core::bail!("cross-entropy: {} labels for {rows} rows", labels.len());
        }
        let mut targets = Vec::with_capacity(rows);
        for (row, &label) in labels.iter().enumerate() {
            targets.push(match usize::try_from(label) {
                Ok(label) if label < vocabulary => Some(label),
                _ if label == IGNORE_LABEL => None,
                _ => candle_core::bail!(
                    "cross-entropy: label {label} of row {row} is neither {IGNORE_LABEL} nor below the vocabulary of {vocabulary}"
                ),
            });
        }
        let count = targets.iter().flatten().count();
        if count == 0 {
            candle_core::bail!("cross-entropy: none of the {rows} rows is labelled");
        }
        Ok(Self {
            rows: targets,
            count,
        })
    }

    /// Row and target of each labelled row.
    pub(crate) fn labelled(&self) -> impl Iterator<Item = (usize, usize)> + '_ {
        self.rows
            .iter()
            .enumerate()
            .filter_map(|(row, target)| Some((row, (*target)?)))
    }
}

pub(crate) fn composed(logits: &Tensor, targets: &Targets) -> Result<Tensor> {
    let (rows, targets): (Vec<u32>, Vec<u32>) = targets
        .labelled()
        .map(|(row, target)| (row as u32, target as u32))
        .unzip();
    let count = rows.len();
    let logits = logits.index_select(&Tensor::from_vec(rows, count, logits.device())?, 0)?;
    let shifted = logits.broadcast_sub(&logits.max_keepdim(D::Minus1)?.detach())?;
    let log_sum = shifted.exp()?.sum_keepdim(D::Minus1)?.log()?;
    let chosen = shifted.gather(&Tensor::from_vec(targets, (count, 1), logits.device())?, 1)?;
    (log_sum - chosen)?.mean_all()
}

struct CrossEntropy {
    targets: Targets,
}

impl CustomOp1 for CrossEntropy {
    fn name(&self) -> &'static str {
        "cross-entropy"
    }

    fn cpu_fwd(&self, storage: &CpuStorage, layout: &Layout) -> Result<(CpuStorage, Shape)> {
        let (_, vocabulary) = layout.shape().dims2()?;
        let logits = host::values(storage, layout, self.name())?;
        let losses: Vec<f64> = logits
            .par_chunks_exact(vocabulary)
            .zip(&self.targets.rows)
            .map_init(
                || vec![0.0; vocabulary],
                |scratch, (row, target)| match target {
                    Some(target) => row_loss(row, *target, scratch),
                    None => 0.0,
                },
            )
            .collect();
        let mean = losses.iter().sum::<f64>() / self.targets.count as f64;
        Ok((CpuStorage::F32(vec![mean as f32]), Shape::from(())))
    }

    fn bwd(&self, logits: &Tensor, _: &Tensor, grad: &Tensor) -> Result<Option<Tensor>> {
        let (rows, vocabulary) = logits.dims2()?;
        let scale = grad.to_scalar::<f32>()? / self.targets.count as f32;
        let host = Host::new(logits);
        let values = host.values(self.name())?;
        // The only buffer of this size: each row's softmax is made where its gradient will be.
        let mut gradient = vec![0.0; rows * vocabulary];
        gradient
            .par_chunks_exact_mut(vocabulary)
            .zip(values.par_chunks_exact(vocabulary))
            .zip(&self.targets.rows)
            .for_each(|((gradient, row), target)| {
                if let Some(target) = target {
                    gradient.copy_from_slice(row);
                    row_gradient(gradient, *target, scale);
                }
            });
        Ok(Some(host::tensor(gradient, (rows, vocabulary))?))
    }
}

/// `−log softmax(row)[target]`; `scratch` has the row's length.
pub(crate) fn row_loss(row: &[f32], target: usize, scratch: &mut [f32]) -> f64 {
    let maximum = reduce::maximum(row);
    scratch
        .iter_mut()
        .zip(row)
        .for_each(|(scratch, &value)| *scratch = value - maximum);
    elementwise::exp(scratch);
    f64::from(reduce::sum(scratch)).ln() + f64::from(maximum) - f64::from(row[target])
}

/// Turns a row of logits into `scale·(softmax − one-hot(target))`.
pub(crate) fn row_gradient(row: &mut [f32], target: usize, scale: f32) {
    elementwise::softmax_rows(1, row.len(), row);
    row[target] -= 1.0;
    row.iter_mut().for_each(|value| *value *= scale);
}
