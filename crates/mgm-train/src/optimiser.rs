use std::collections::BTreeMap;
use std::sync::Mutex;

use candle_core::{CpuStorage, InplaceOp1, Layout, Tensor, Var};
use rayon::prelude::*;

use crate::error::TrainError;
use crate::gradients::Gradients;

/// Elements per parallel piece.
const PIECE: usize = 1 << 15;

/// Hyper-parameters of AdamW; the defaults are those of PyTorch and of the official runs.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct AdamWSettings {
    /// Decay of the first moment.
    pub beta1: f64,
    /// Decay of the second moment.
    pub beta2: f64,
    /// Added to the root of the second moment.
    pub eps: f64,
    /// Decoupled weight decay of the parameters that decay at all.
    pub weight_decay: f64,
}

impl Default for AdamWSettings {
    fn default() -> Self {
        Self {
            beta1: 0.9,
            beta2: 0.999,
            eps: 1e-8,
            weight_decay: 0.0,
        }
    }
}

/// How one parameter is treated.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct ParameterGroup {
    /// Factor on the learning rate.
    pub multiplier: f64,
    /// Whether weight decay applies: not to biases and norms (anything with one axis).
    pub decays: bool,
}

/// Running moments of one parameter, f32.
#[derive(Debug, Clone, PartialEq)]
pub struct Moments {
    /// First moment (PyTorch's `exp_avg`).
    pub first: Vec<f32>,
    /// Second moment (PyTorch's `exp_avg_sq`).
    pub second: Vec<f32>,
}

/// AdamW after PyTorch's `torch.optim.AdamW`: f32 moments, bias correction, decoupled weight decay.
pub struct AdamW {
    settings: AdamWSettings,
    groups: BTreeMap<String, ParameterGroup>,
    moments: BTreeMap<String, Moments>,
    step: u64,
}

impl AdamW {
    /// An optimiser for `parameters`; `multipliers` maps name parts to factors on the learning rate (official `lr_multi`).
    ///
    /// # Errors
    /// When a name part matches no parameter, or two of them match the same one.
    pub fn new(
        settings: AdamWSettings,
        parameters: &BTreeMap<String, Var>,
        multipliers: &BTreeMap<String, f64>,
    ) -> Result<Self, TrainError> {
        for part in multipliers.keys() {
            if !parameters.keys().any(|name| name.contains(part.as_str())) {
                return Err(TrainError::Parameters(format!(
                    "lr_multipliers: no trained parameter's name contains `{part}`"
                )));
            }
        }
        let mut groups = BTreeMap::new();
        for (name, variable) in parameters {
            let mut matching = multipliers
                .iter()
                .filter(|(part, _)| name.contains(part.as_str()));
            let multiplier = matching.next().map_or(1.0, |(_, &factor)| factor);
            if matching.next().is_some() {
                return Err(TrainError::Parameters(format!(
                    "lr_multipliers: more than one entry matches `{name}`"
                )));
            }
            groups.insert(
                name.clone(),
                ParameterGroup {
                    multiplier,
                    decays: variable.rank() > 1 && !name.ends_with(".bias"),
                },
            );
        }
        let moments = parameters
            .iter()
            .map(|(name, variable)| {
                let zeros = vec![0.0; variable.elem_count()];
                (
                    name.clone(),
                    Moments {
                        first: zeros.clone(),
                        second: zeros,
                    },
                )
            })
            .collect();
        Ok(Self {
            settings,
            groups,
            moments,
            step: 0,
        })
    }

    /// One update of all parameters, in place, at the given base learning rate.
    ///
    /// # Errors
    /// When a parameter is not a contiguous f32 tensor.
    pub fn step(
        &mut self,
        parameters: &BTreeMap<String, Var>,
        gradients: &Gradients,
        learning_rate: f64,
    ) -> Result<(), TrainError> {
        self.step += 1;
        // Scalars in f64, element-wise work in f32, as PyTorch does.
        let exponent = i32::try_from(self.step).unwrap_or(i32::MAX);
        let correction1 = 1.0 - self.settings.beta1.powi(exponent);
        let correction2_root = (1.0 - self.settings.beta2.powi(exponent)).sqrt();
        for (name, variable) in parameters {
            let (Some(group), Some(moments), Some(gradient)) = (
                self.groups.get(name),
                self.moments.get_mut(name),
                gradients.get(name),
            ) else {
                return Err(TrainError::Parameters(format!(
                    "parameter `{name}` is unknown to the optimiser"
                )));
            };
            let rate = learning_rate * group.multiplier;
            let decay = if group.decays {
                1.0 - rate * self.settings.weight_decay
            } else {
                1.0
            };
            let update = Update {
                decay: decay as f32,
                weight1: (1.0 - self.settings.beta1) as f32,
                beta2: self.settings.beta2 as f32,
                weight2: (1.0 - self.settings.beta2) as f32,
                step_size: (rate / correction1) as f32,
                correction2_root: correction2_root as f32,
                eps: self.settings.eps as f32,
            };
            apply(variable, update, gradient, moments)?;
        }
        Ok(())
    }

    /// Number of updates made.
    pub fn steps_done(&self) -> u64 {
        self.step
    }

    /// Moments by parameter name, for a checkpoint.
    pub fn moments(&self) -> &BTreeMap<String, Moments> {
        &self.moments
    }

    /// Group of each parameter.
    pub fn groups(&self) -> &BTreeMap<String, ParameterGroup> {
        &self.groups
    }

    /// Takes back what a checkpoint kept.
    pub(crate) fn restore(&mut self, step: u64, moments: BTreeMap<String, Moments>) {
        self.step = step;
        self.moments = moments;
    }
}

/// Coefficients of one element-wise update.
#[derive(Clone, Copy)]
struct Update {
    decay: f32,
    weight1: f32,
    beta2: f32,
    weight2: f32,
    step_size: f32,
    correction2_root: f32,
    eps: f32,
}

impl Update {
    fn run(self, values: &mut [f32], gradient: &[f32], moments: &mut Moments) {
        values
            .par_chunks_mut(PIECE)
            .zip(gradient.par_chunks(PIECE))
            .zip(moments.first.par_chunks_mut(PIECE))
            .zip(moments.second.par_chunks_mut(PIECE))
            .for_each(|(((values, gradient), first), second)| {
                for (((value, &gradient), first), second) in
                    values.iter_mut().zip(gradient).zip(first).zip(second)
                {
                    *first += (gradient - *first) * self.weight1;
                    *second = *second * self.beta2 + gradient * gradient * self.weight2;
                    let denominator = second.sqrt() / self.correction2_root + self.eps;
                    *value = *value * self.decay - self.step_size * (*first / denominator);
                }
            });
    }
}

struct InPlace<'a> {
    update: Update,
    gradient: &'a [f32],
    moments: Mutex<&'a mut Moments>,
}

impl InplaceOp1 for InPlace<'_> {
    fn name(&self) -> &'static str {
        "adamw"
    }

    fn cpu_fwd(&self, storage: &mut CpuStorage, layout: &Layout) -> candle_core::Result<()> {
        let CpuStorage::F32(values) = storage else {
            candle_core::bail!("adamw: expected f32 parameters, found {:?}", storage)
        };
        let Some((start, end)) = layout.contiguous_offsets() else {
            candle_core::bail!("adamw: a parameter is not contiguous")
        };
        let mut moments = self
            .moments
            .lock()
            .unwrap_or_else(std::sync::PoisonError::into_inner);
        self.update
            .run(&mut values[start..end], self.gradient, &mut moments);
        Ok(())
    }
}

fn apply(
    variable: &Var,
    update: Update,
    gradient: &[f32],
    moments: &mut Moments,
) -> Result<(), TrainError> {
    if variable.device().is_cpu() {
        variable.as_tensor().inplace_op1(&InPlace {
            update,
            gradient,
            moments: Mutex::new(moments),
        })?;
        return Ok(());
    }
    // Other devices: through the host until an update kernel there can be measured.
    let mut values = variable.flatten_all()?.to_vec1::<f32>()?;
    update.run(&mut values, gradient, moments);
    variable.set(&Tensor::from_vec(
        values,
        variable.shape(),
        variable.device(),
    )?)?;
    Ok(())
}
