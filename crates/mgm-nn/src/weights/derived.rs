//! Tensors that are made from stored ones when they are asked for: parts, transposes, changed values.

use std::collections::HashMap;
use std::fmt;
use std::ops::Range;
use std::sync::Arc;

use half::{bf16, f16};
use mgm_kernels::quant::Bytes;

use super::element_type::ElementType;
use super::source::WeightSource;
use super::stored::StoredTensor;
use crate::{Error, Result};

/// Changes the `f32` values of a tensor in place.
pub type ValueChange = Arc<dyn Fn(&mut [f32]) -> Result<()> + Send + Sync>;

/// How a derived tensor comes from a stored one.
#[derive(Clone)]
pub enum Derivation {
    /// Some rows of the first axis.
    Rows(Range<usize>),
    /// The transpose of a matrix.
    Transposed,
    /// The tensor with other values, rounded to the stored element type.
    Changed(ValueChange),
}

impl fmt::Debug for Derivation {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Rows(rows) => write!(f, "Rows({rows:?})"),
            Self::Transposed => f.write_str("Transposed"),
            Self::Changed(_) => f.write_str("Changed"),
        }
    }
}

/// The derived tensors of one layer, over the source they come from.
pub(super) struct DerivedTensors {
    below: WeightSource,
    tensors: HashMap<String, Derived>,
}

struct Derived {
    from: String,
    how: Derivation,
    shape: Vec<usize>,
    kind: ElementType,
}

impl DerivedTensors {
    /// Checks that every origin is there and has the axes its derivation needs.
    pub(super) fn new(
        below: WeightSource,
        tensors: impl IntoIterator<Item = (String, String, Derivation)>,
    ) -> Result<Self> {
        let mut derived = HashMap::new();
        for (name, from, how) in tensors {
            let Some(info) = below.info(&from) else {
                return Err(below.missing_tensor(&from));
            };
            let refused = |expected: &str| {
                Error::format(
                    &info.file,
                    format!(
                        "tensor {from} has shape {:?}, expected {expected}",
                        info.shape
                    ),
                )
            };
            let shape = match &how {
                Derivation::Rows(rows) => match info.shape.split_first() {
                    Some((&count, rest)) if rows.start <= rows.end && rows.end <= count => {
                        [&[rows.len()], rest].concat()
                    }
                    _ => return Err(refused(&format!("{} rows or more", rows.end))),
                },
                Derivation::Transposed => match info.shape[..] {
                    [rows, columns] => vec![columns, rows],
                    _ => return Err(refused("a matrix")),
                },
                Derivation::Changed(_) => info.shape.clone(),
            };
            let kind = match (&how, info.element_type) {
                (Derivation::Rows(_), kind) => kind,
                (_, kind @ (ElementType::F16 | ElementType::Bf16)) => kind,
                _ => ElementType::F32,
            };
            derived.insert(
                name,
                Derived {
                    from,
                    how,
                    shape,
                    kind,
                },
            );
        }
        Ok(Self {
            below,
            tensors: derived,
        })
    }

    pub(super) fn names(&self) -> impl Iterator<Item = &String> {
        self.tensors.keys()
    }

    pub(super) fn entry(&self, name: &str) -> Option<(&[usize], ElementType)> {
        let derived = self.tensors.get(name)?;
        Some((&derived.shape, derived.kind.clone()))
    }

    pub(super) fn get(&self, name: &str) -> Result<Option<StoredTensor>> {
        let Some(derived) = self.tensors.get(name) else {
            return Ok(None);
        };
        let found = self.below.require(&derived.from)?;
        let values = match &derived.how {
            Derivation::Rows(rows) => return Ok(Some(found.tensor.rows(rows.clone())?)),
            Derivation::Transposed => {
                let (values, width) = (found.values()?, derived.shape[0]);
                let rows = derived.shape[1];
                let mut transposed = vec![0.0; values.len()];
                for (column, out) in transposed.chunks_exact_mut(rows.max(1)).enumerate() {
                    for (row, out) in out.iter_mut().enumerate() {
                        *out = values[row * width + column];
                    }
                }
                transposed
            }
            Derivation::Changed(change) => {
                let mut values = found.values()?;
                change(&mut values)?;
                values
            }
        };
        let bytes = match derived.kind {
            ElementType::F16 => {
                let halves: Vec<f16> = values.iter().map(|&v| f16::from_f32(v)).collect();
                bytemuck::cast_slice(&halves).to_vec()
            }
            ElementType::Bf16 => {
                let halves: Vec<bf16> = values.iter().map(|&v| bf16::from_f32(v)).collect();
                bytemuck::cast_slice(&halves).to_vec()
            }
            _ => bytemuck::cast_slice(&values).to_vec(),
        };
        Ok(Some(StoredTensor::from_bytes(
            derived.shape.clone(),
            derived.kind.clone(),
            Bytes::from_vec(bytes),
        )))
    }

    pub(super) fn release(&self, name: &str) {
        if let Some(derived) = self.tensors.get(name) {
            self.below.release(&derived.from);
        }
    }
}

impl WeightSource {
    /// Adds tensors that are made from this source's when they are asked for: `(name, origin, how)`, full names. A derived tensor may
    /// have the name of its origin and then stands for it. Policy, parameters and position stay.
    ///
    /// # Errors
    /// When an origin is missing or has not the axes its derivation needs.
    pub fn with_derived(
        self,
        tensors: impl IntoIterator<Item = (String, String, Derivation)>,
    ) -> Result<Self> {
        let below = self.clone().at_root();
        let derived = DerivedTensors::new(below, tensors)?;
        Ok(self.with_layer(super::layer::Layer::Derived(derived)))
    }

    /// The values of a tensor as `f32` and its shape, whatever the policy makes of it; its mapped pages are given back.
    ///
    /// # Errors
    /// When there is no such tensor or it holds no floats.
    pub fn host_values(&self, name: &str) -> Result<(Vec<f32>, Vec<usize>)> {
        let found = self.require(&self.full_name(name))?;
        let shape = found.tensor.shape.clone();
        Ok((found.into_values()?, shape))
    }
}
