//! Tables of vectors looked up by number.

use std::sync::{Arc, OnceLock};

use candle_core::{Device, Result, Tensor};

use crate::weights::stored::StoredTensor;
use crate::{FrozenWeight, Linear};

type MakeHead = Box<dyn Fn() -> crate::Result<Arc<FrozenWeight>> + Send + Sync>;

/// A table of token vectors, dense, mapped from a file (dequantised row by row), or trainable. It can serve as the tied
/// output head as well.
pub struct Embedding {
    rows: Rows,
    count: usize,
    width: usize,
    make_head: Option<MakeHead>,
    head: OnceLock<Arc<FrozenWeight>>,
}

pub(crate) enum Rows {
    Trainable(Tensor),
    /// On a device.
    Dense(Tensor),
    /// In its file.
    Stored(StoredTensor),
}

impl Embedding {
    pub(crate) fn new(rows: Rows, count: usize, width: usize, make_head: Option<MakeHead>) -> Self {
        Self {
            rows,
            count,
            width,
            make_head,
            head: OnceLock::new(),
        }
    }

    /// Number of vectors.
    pub fn count(&self) -> usize {
        self.count
    }

    /// Length of a vector.
    pub fn width(&self) -> usize {
        self.width
    }

    /// The vectors of `ids`, `[ids.len(), width]`, `f32`. An id out of range is an error.
    pub fn forward(&self, ids: &[u32]) -> Result<Tensor> {
        if let Some(id) = ids.iter().find(|id| **id as usize >= self.count) {
            candle_core::bail!(
                "embedding: id {id} is not below the {} rows of the table",
                self.count
            );
        }
        match &self.rows {
            Rows::Trainable(table) | Rows::Dense(table) => {
                table.index_select(&Tensor::from_slice(ids, ids.len(), table.device())?, 0)
            }
            Rows::Stored(table) => {
                let mut values = Vec::with_capacity(ids.len() * self.width);
                for &id in ids {
                    match table.row(id as usize, self.width)? {
                        Some(row) => values.extend_from_slice(&row),
                        None => candle_core::bail!(
                            "embedding: cannot decode rows of type {}",
                            table.kind.name()
                        ),
                    }
                }
                Tensor::from_vec(values, (ids.len(), self.width), &Device::Cpu)
            }
        }
    }

    /// The table as the output head `hidden [.., width] → logits [.., count]`; a trainable table stays one variable.
    pub fn as_linear(&self) -> crate::Result<Linear> {
        match &self.rows {
            Rows::Trainable(table) => Ok(Linear::from_tensors(table.clone(), None)?),
            Rows::Dense(table) => Ok(Linear::frozen(FrozenWeight::dense(table.clone())?, None)?),
            Rows::Stored(_) => {
                let head = match (self.head.get(), &self.make_head) {
                    (Some(head), _) => head.clone(),
                    (None, Some(make_head)) => {
                        let made = make_head()?;
                        self.head.get_or_init(|| made).clone()
                    }
                    (None, None) => {
                        return Err(crate::Error::format(
                            "embedding",
                            "no matrix to serve as output head",
                        ));
                    }
                };
                Ok(Linear::frozen(head, None)?)
            }
        }
    }
}

impl std::fmt::Debug for Embedding {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let kind = match &self.rows {
            Rows::Trainable(_) => "trainable".to_string(),
            Rows::Dense(_) => "dense".to_string(),
            Rows::Stored(table) => table.kind.name().to_string(),
        };
        write!(f, "Embedding({kind} [{}, {}])", self.count, self.width)
    }
}
