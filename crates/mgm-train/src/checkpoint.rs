use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use candle_core::{Tensor, Var};
use serde::{Deserialize, Serialize};

use crate::error::TrainError;
use crate::gradients::with_values;
use crate::optimiser::{AdamW, Moments};
use crate::recipe::{Recipe, SaveType};
use crate::tensor_file::{self, NamedValues};

const PARAMETERS: &str = "parameters.safetensors";
const OPTIMISER: &str = "optimizer.safetensors";
const STATE: &str = "trainer_state.json";
const FIRST: &str = "exp_avg.";
const SECOND: &str = "exp_avg_sq.";

/// Where a run continues from.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum ResumeFrom {
    /// The newest checkpoint in the recipe's output folder; from the start when there is none.
    Latest,
    /// This checkpoint folder.
    Path(PathBuf),
}

/// What a checkpoint knows besides tensors (`trainer_state.json`).
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct TrainerState {
    /// Version of this file's layout.
    pub version: u32,
    /// Finished optimiser steps.
    pub step: u64,
    /// All steps of the run.
    pub total: u64,
    /// The next micro batch: with the seed, this is the whole state of the sampler and of all randomness.
    pub micro_batch: u64,
    /// Seed of the run.
    pub seed: u64,
    /// Number of records.
    pub records: usize,
    /// Hash of the training data, hexadecimal.
    pub data: String,
    /// Number of data-parallel processes.
    pub world: usize,
    /// Loss of every step.
    pub losses: Vec<f32>,
    /// The recipe of the run.
    pub recipe: Recipe,
}

/// A checkpoint read back.
pub struct Checkpoint {
    /// Its folder.
    pub path: PathBuf,
    /// Position and history.
    pub state: TrainerState,
    parameters: BTreeMap<String, Tensor>,
    moments: BTreeMap<String, Moments>,
}

/// The checkpoint with the highest step in a run's folder.
pub fn latest_checkpoint(output: &Path) -> Option<PathBuf> {
    list(output).pop().map(|(_, path)| path)
}

/// Complete checkpoints in step order.
fn list(output: &Path) -> Vec<(u64, PathBuf)> {
    let Ok(entries) = std::fs::read_dir(output) else {
        return Vec::new();
    };
    let mut found: Vec<(u64, PathBuf)> = entries
        .filter_map(Result::ok)
        .filter_map(|entry| {
            let step = entry
                .file_name()
                .to_str()?
                .strip_prefix("checkpoint-")?
                .parse()
                .ok()?;
            entry
                .path()
                .join(STATE)
                .is_file()
                .then(|| (step, entry.path()))
        })
        .collect();
    found.sort_unstable();
    found
}

/// Current values of all parameters, in name order.
pub(crate) fn values(parameters: &BTreeMap<String, Var>) -> Result<Vec<NamedValues>, TrainError> {
    parameters
        .iter()
        .map(|(name, variable)| {
            Ok((
                name.clone(),
                variable.dims().to_vec(),
                with_values(variable.as_tensor(), <[f32]>::to_vec)?,
            ))
        })
        .collect()
}

/// Writes a checkpoint to a temporary folder, renames it into place, and removes the oldest beyond `keep`.
pub(crate) fn save(
    output: &Path,
    state: &TrainerState,
    parameters: &BTreeMap<String, Var>,
    optimiser: &AdamW,
    keep: usize,
) -> Result<PathBuf, TrainError> {
    let place = output.join(format!("checkpoint-{}", state.step));
    let partial = output.join(format!(".checkpoint-{}.partial", state.step));
    if partial.exists() {
        std::fs::remove_dir_all(&partial).map_err(TrainError::io("remove", &partial))?;
    }
    std::fs::create_dir_all(&partial).map_err(TrainError::io("create", &partial))?;
    tensor_file::write(
        &partial.join(PARAMETERS),
        &values(parameters)?,
        SaveType::F32,
        BTreeMap::new(),
    )?;
    let mut moments: Vec<NamedValues> = Vec::new();
    for (name, both) in optimiser.moments() {
        moments.push((
            format!("{FIRST}{name}"),
            vec![both.first.len()],
            both.first.clone(),
        ));
        moments.push((
            format!("{SECOND}{name}"),
            vec![both.second.len()],
            both.second.clone(),
        ));
    }
    tensor_file::write(
        &partial.join(OPTIMISER),
        &moments,
        SaveType::F32,
        BTreeMap::new(),
    )?;
    write_state(&partial.join(STATE), state)?;
    if place.exists() {
        // The same step saved twice (periodic and on interruption) holds the same bits.
        std::fs::remove_dir_all(&place).map_err(TrainError::io("replace", &place))?;
    }
    std::fs::rename(&partial, &place).map_err(TrainError::io("write", &place))?;
    let all = list(output);
    for (_, old) in all.iter().take(all.len().saturating_sub(keep.max(1))) {
        if *old != place {
            std::fs::remove_dir_all(old).map_err(TrainError::io("remove", old))?;
        }
    }
    Ok(place)
}

/// Writes a state file.
pub(crate) fn write_state(path: &Path, state: &TrainerState) -> Result<(), TrainError> {
    let json = serde_json::to_string_pretty(state).map_err(|error| TrainError::Checkpoint {
        path: path.to_owned(),
        message: error.to_string(),
    })?;
    tensor_file::write_atomically(path, json.as_bytes())
}

impl Checkpoint {
    /// Reads a checkpoint folder.
    ///
    /// # Errors
    /// [`TrainError::Checkpoint`] naming the damaged file.
    pub fn read(path: &Path) -> Result<Self, TrainError> {
        let state_path = path.join(STATE);
        let text = std::fs::read(&state_path).map_err(TrainError::io("read", &state_path))?;
        let state: TrainerState =
            serde_json::from_slice(&text).map_err(|error| TrainError::Checkpoint {
                path: state_path.clone(),
                message: format!("not a trainer state: {error}"),
            })?;
        if state.version != TrainerState::VERSION {
            return Err(TrainError::Checkpoint {
                path: state_path,
                message: format!(
                    "expected version {}, found {}",
                    TrainerState::VERSION,
                    state.version
                ),
            });
        }
        let parameters: BTreeMap<String, Tensor> = tensor_file::read(&path.join(PARAMETERS))?
            .into_iter()
            .collect();
        let optimiser_path = path.join(OPTIMISER);
        let mut stored = tensor_file::read(&optimiser_path)?;
        let mut moments = BTreeMap::new();
        for name in parameters.keys() {
            let mut take = |prefix: &str| -> Result<Vec<f32>, TrainError> {
                let key = format!("{prefix}{name}");
                let tensor = stored.remove(&key).ok_or_else(|| TrainError::Checkpoint {
                    path: optimiser_path.clone(),
                    message: format!("expected a tensor `{key}`, found none"),
                })?;
                Ok(tensor.to_vec1::<f32>()?)
            };
            moments.insert(
                name.clone(),
                Moments {
                    first: take(FIRST)?,
                    second: take(SECOND)?,
                },
            );
        }
        Ok(Self {
            path: path.to_owned(),
            state,
            parameters,
            moments,
        })
    }

    /// Checks that the checkpoint belongs to this run, naming the first thing that differs.
    pub(crate) fn check(&self, current: &TrainerState) -> Result<(), TrainError> {
        let then = &self.state;
        let (old, new) = (&then.recipe, &current.recipe);
        let text = |value: &dyn std::fmt::Debug| format!("{value:?}");
        let pairs: [(&str, String, String); 18] = [
            (
                "the training data",
                format!("{} ({} records)", then.data, then.records),
                format!("{} ({} records)", current.data, current.records),
            ),
            (
                "the number of steps",
                text(&then.total),
                text(&current.total),
            ),
            (
                "the number of processes",
                text(&then.world),
                text(&current.world),
            ),
            ("model", text(&old.model), text(&new.model)),
            ("start_from", text(&old.start_from), text(&new.start_from)),
            ("lora", text(&old.lora), text(&new.lora)),
            ("template", text(&old.template), text(&new.template)),
            ("batch", text(&old.batch), text(&new.batch)),
            (
                "accumulation",
                text(&old.accumulation),
                text(&new.accumulation),
            ),
            (
                "learning_rate",
                text(&old.peak_learning_rate()),
                text(&new.peak_learning_rate()),
            ),
            (
                "warmup_ratio",
                text(&old.warmup_ratio),
                text(&new.warmup_ratio),
            ),
            (
                "lr_multipliers",
                text(&old.lr_multipliers),
                text(&new.lr_multipliers),
            ),
            (
                "weight_decay",
                text(&old.weight_decay),
                text(&new.weight_decay),
            ),
            (
                "max_grad_norm",
                text(&old.max_grad_norm),
                text(&new.max_grad_norm),
            ),
            ("max_length", text(&old.max_length), text(&new.max_length)),
            ("sampler", text(&old.sampler()), text(&new.sampler())),
            ("data.aspect", text(&old.aspect()), text(&new.aspect())),
            ("seed", text(&old.seed), text(&new.seed)),
        ];
        for (name, before, now) in pairs {
            if before != now {
                return Err(TrainError::Checkpoint {
                    path: self.path.clone(),
                    message: format!(
                        "belongs to another run: {name} was {before}, is now {now}; choose another `output` to start afresh"
                    ),
                });
            }
        }
        Ok(())
    }

    /// Puts parameters and moments back.
    pub(crate) fn restore(
        self,
        parameters: &BTreeMap<String, Var>,
        optimiser: &mut AdamW,
    ) -> Result<TrainerState, TrainError> {
        let wrong = |message: String| TrainError::Checkpoint {
            path: self.path.join(PARAMETERS),
            message,
        };
        if let Some(name) = self
            .parameters
            .keys()
            .find(|name| !parameters.contains_key(*name))
        {
            return Err(wrong(format!(
                "holds `{name}`, which this recipe does not train"
            )));
        }
        for (name, variable) in parameters {
            let Some(tensor) = self.parameters.get(name) else {
                return Err(wrong(format!("expected a tensor `{name}`, found none")));
            };
            if tensor.shape() != variable.shape() {
                return Err(wrong(format!(
                    "`{name}`: expected shape {:?}, found {:?}",
                    variable.dims(),
                    tensor.dims()
                )));
            }
            if self.moments.get(name).is_none_or(|both| {
                both.first.len() != variable.elem_count()
                    || both.second.len() != variable.elem_count()
            }) {
                return Err(wrong(format!(
                    "the moments of `{name}` do not have {} values",
                    variable.elem_count()
                )));
            }
        }
        for (name, variable) in parameters {
            if let Some(tensor) = self.parameters.get(name) {
                variable.set(&tensor.to_device(variable.device())?)?;
            }
        }
        optimiser.restore(self.state.step, self.moments);
        Ok(self.state)
    }
}

impl TrainerState {
    /// Version of the layout that this build writes.
    pub const VERSION: u32 = 1;
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::gradients::Gradients;
    use crate::optimiser::AdamWSettings;
    use candle_core::Device;

    fn recipe() -> Recipe {
        Recipe::parse(
            "stage = \"align\"\noutput = \"x\"\nsteps = 9\n[data]\njson = [\"a\"]\n",
            "r",
        )
        .unwrap()
    }

    fn state(step: u64) -> TrainerState {
        TrainerState {
            version: TrainerState::VERSION,
            step,
            total: 9,
            micro_batch: step,
            seed: 42,
            records: 3,
            data: "ab".into(),
            world: 1,
            losses: vec![0.1, 1.0 / 3.0],
            recipe: recipe(),
        }
    }

    #[test]
    fn everything_comes_back_bit_by_bit() {
        let folder = tempfile::tempdir().unwrap();
        let variable =
            |values: &[f32]| Var::from_slice(values, (values.len() / 2, 2), &Device::Cpu).unwrap();
        let parameters = BTreeMap::from([
            ("a.weight".to_owned(), variable(&[0.1, -0.2, 0.3, 1e-7])),
            ("b".to_owned(), variable(&[1.0, 2.0])),
        ]);
        let mut optimiser =
            AdamW::new(AdamWSettings::default(), &parameters, &BTreeMap::new()).unwrap();
        let mut gradients = Gradients::new(&parameters);
        for (_, buffer) in gradients.iter_mut() {
            buffer.fill(0.37);
        }
        optimiser.step(&parameters, &gradients, 1e-3).unwrap();
        for step in [1, 2, 3] {
            save(folder.path(), &state(step), &parameters, &optimiser, 2).unwrap();
        }
        assert_eq!(
            list(folder.path())
                .iter()
                .map(|(step, _)| *step)
                .collect::<Vec<_>>(),
            [2, 3]
        );
        let path = latest_checkpoint(folder.path()).unwrap();

        let others = BTreeMap::from([
            ("a.weight".to_owned(), variable(&[0.0; 4])),
            ("b".to_owned(), variable(&[0.0; 2])),
        ]);
        let mut other = AdamW::new(AdamWSettings::default(), &others, &BTreeMap::new()).unwrap();
        let read = Checkpoint::read(&path).unwrap();
        read.check(&state(0)).unwrap();
        let restored = read.restore(&others, &mut other).unwrap();
        assert_eq!(restored, state(3));
        assert_eq!(values(&others).unwrap(), values(&parameters).unwrap());
        assert_eq!(other.moments(), optimiser.moments());
        assert_eq!(other.steps_done(), 3);
    }

    #[test]
    fn foreign_and_damaged_checkpoints_are_named() {
        let folder = tempfile::tempdir().unwrap();
        let parameters = BTreeMap::from([(
            "a".to_owned(),
            Var::from_slice(&[1.0_f32, 2.0], 2, &Device::Cpu).unwrap(),
        )]);
        let mut optimiser =
            AdamW::new(AdamWSettings::default(), &parameters, &BTreeMap::new()).unwrap();
        let path = save(folder.path(), &state(1), &parameters, &optimiser, 2).unwrap();
        let mut changed = state(1);
        changed.recipe.batch = 8;
        let message = Checkpoint::read(&path)
            .unwrap()
            .check(&changed)
            .unwrap_err()
            .to_string();
        assert!(message.contains("batch was 4, is now 8"), "{message}");
        let wider = BTreeMap::from([(
            "a".to_owned(),
            Var::from_slice(&[1.0_f32; 3], 3, &Device::Cpu).unwrap(),
        )]);
        let message = Checkpoint::read(&path)
            .unwrap()
            .restore(&wider, &mut optimiser)
            .unwrap_err()
            .to_string();
        assert!(
            message.contains("`a`: expected shape [3], found [2]"),
            "{message}"
        );
        let bytes = std::fs::read(path.join(PARAMETERS)).unwrap();
        std::fs::write(path.join(PARAMETERS), &bytes[..bytes.len() - 3]).unwrap();
        let message = Checkpoint::read(&path).err().unwrap().to_string();
        assert!(
            message.contains("parameters.safetensors") && !message.contains('\n'),
            "{message}"
        );
        std::fs::write(path.join(STATE), "{}").unwrap();
        assert!(
            Checkpoint::read(&path)
                .err()
                .unwrap()
                .to_string()
                .contains("not a trainer state")
        );
    }
}
