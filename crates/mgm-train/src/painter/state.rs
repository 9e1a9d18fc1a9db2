use std::collections::BTreeMap;
use std::path::Path;

use candle_core::{Tensor, Var};
use serde::{Deserialize, Serialize};

use super::recipe::PainterRecipe;
use crate::checkpoint::values;
use crate::error::TrainError;
use crate::gradients::with_values;
use crate::optimiser::{AdamW, Moments};
use crate::recipe::SaveType;
use crate::tensor_file::{self, NamedValues};

const PARAMETER: &str = "parameter.";
const MEAN: &str = "mean.";
const FIRST: &str = "exp_avg.";
const SECOND: &str = "exp_avg_sq.";
const ENTRY: &str = "run";

/// Where a run stands, besides its parameters and the optimiser's moments.
pub(super) struct State {
    pub(super) step: u64,
    pub(super) losses: Vec<f32>,
    /// Running means of the parameters.
    pub(super) mean: BTreeMap<String, Vec<f32>>,
}

#[derive(Serialize, Deserialize)]
struct Run {
    step: u64,
    losses: Vec<f32>,
    recipe: PainterRecipe,
}

impl State {
    pub(super) fn new(parameters: &BTreeMap<String, Var>) -> Result<Self, TrainError> {
        let copy = |(name, variable): (&String, &Var)| {
            let values = with_values(variable.as_tensor(), <[f32]>::to_vec)?;
            Ok((name.clone(), values))
        };
        Ok(Self {
            step: 0,
            losses: Vec::new(),
            mean: parameters
                .iter()
                .map(copy)
                .collect::<Result<_, TrainError>>()?,
        })
    }

    /// Writes everything that a run needs to go on, as one file.
    pub(super) fn write(
        &self,
        path: &Path,
        recipe: &PainterRecipe,
        parameters: &BTreeMap<String, Var>,
        optimiser: &AdamW,
    ) -> Result<(), TrainError> {
        let run = Run {
            step: self.step,
            losses: self.losses.clone(),
            recipe: recipe.clone(),
        };
        let run = serde_json::to_string(&run).map_err(|error| TrainError::Checkpoint {
            path: path.to_owned(),
            message: error.to_string(),
        })?;
        let mut tensors: Vec<NamedValues> = Vec::with_capacity(4 * parameters.len());
        for (name, shape, values) in values(parameters)? {
            for (prefix, other) in [
                (MEAN, self.mean.get(&name)),
                (FIRST, optimiser.moments().get(&name).map(|m| &m.first)),
                (SECOND, optimiser.moments().get(&name).map(|m| &m.second)),
            ] {
                let other = other.cloned().unwrap_or_default();
                tensors.push((format!("{prefix}{name}"), vec![other.len()], other));
            }
            tensors.push((format!("{PARAMETER}{name}"), shape, values));
        }
        let metadata = BTreeMap::from([(ENTRY.to_owned(), run)]);
        tensor_file::write(path, &tensors, SaveType::F32, metadata)
    }

    /// Reads a checkpoint back into parameters and optimiser.
    pub(super) fn read(
        path: &Path,
        recipe: &PainterRecipe,
        parameters: &BTreeMap<String, Var>,
        optimiser: &mut AdamW,
    ) -> Result<Self, TrainError> {
        let wrong = |message: String| TrainError::Checkpoint {
            path: path.to_owned(),
            message,
        };
        let source = mgm_nn::WeightSource::from_safetensors(&[path.to_owned()])
            .map_err(mgm_diffusion::Error::from)?;
        let metadata = source.safetensors_metadata();
        let run = metadata
            .get(ENTRY)
            .ok_or_else(|| wrong("not a painter's checkpoint".to_owned()))?;
        let run: Run = serde_json::from_str(run)
            .map_err(|error| wrong(format!("not a painter's checkpoint: {error}")))?;
        let same = PainterRecipe {
            save_every: recipe.save_every,
            save_type: recipe.save_type,
            ..run.recipe
        };
        if same != *recipe {
            return Err(wrong(
                "belongs to a run of another recipe; choose another `output` to start afresh"
                    .to_owned(),
            ));
        }
        let mut tensors = tensor_file::read(path)?;
        let mut take = |prefix: &str, name: &str, count: usize| -> Result<Tensor, TrainError> {
            let key = format!("{prefix}{name}");
            tensors
                .remove(&key)
                .filter(|tensor| tensor.elem_count() == count)
                .ok_or_else(|| wrong(format!("expected a tensor `{key}` of {count} values")))
        };
        let (mut mean, mut moments, mut restored) = (BTreeMap::new(), BTreeMap::new(), Vec::new());
        for (name, variable) in parameters {
            let count = variable.elem_count();
            restored.push((variable, take(PARAMETER, name, count)?));
            mean.insert(name.clone(), take(MEAN, name, count)?.to_vec1::<f32>()?);
            let both = Moments {
                first: take(FIRST, name, count)?.to_vec1::<f32>()?,
                second: take(SECOND, name, count)?.to_vec1::<f32>()?,
            };
            moments.insert(name.clone(), both);
        }
        for (variable, tensor) in restored {
            variable.set(&tensor.reshape(variable.shape())?)?;
        }
        optimiser.restore(run.step, moments);
        Ok(Self {
            step: run.step,
            losses: run.losses,
            mean,
        })
    }
}
