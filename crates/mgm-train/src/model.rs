//! Loading a model the way a recipe wants it trained.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use candle_core::{Device, Var};
use mgm_nn::{LoraConfig, WeightPolicy, WeightStorage};
use mini_gemini::{LoadOptions, MODEL_ZOO_VARIABLE, MiniGemini, ModelConfig, ModelSource};
use serde_json::Value;

use crate::error::TrainError;
use crate::initial;
use crate::recipe::{Initialise, Recipe};
use crate::tensor_file;

/// Loads the model with the recipe's parameters trainable.
pub(crate) fn load(recipe: &Recipe) -> Result<MiniGemini, TrainError> {
    let source = ModelSource::parse(&recipe.model);
    let directory = source.directory()?;
    let mut trainable = recipe.trainable_names();
    if recipe.lora.is_some() {
        trainable.push("lora_".to_owned());
    }
    let storage = if mgm_kernels::level::has_fast_bf16() {
        WeightStorage::Bf16
    } else {
        WeightStorage::F32
    };
    let policy = WeightPolicy {
        device: Device::Cpu,
        storage,
        trainable,
        lora: recipe.lora.as_ref().map(|lora| LoraConfig {
            rank: lora.rank,
            alpha: lora.alpha,
            targets: lora.targets.clone(),
            seed: recipe.seed,
        }),
    };
    let mut overlay: Vec<PathBuf> = Vec::new();
    if recipe.initialise() == Initialise::Random {
        let path = recipe.output.join("initial.safetensors");
        initial::write(&directory.join("config.json"), recipe.seed, &path)?;
        overlay.push(path);
    }
    if let Some(path) = &recipe.start_from {
        if !path.is_file() {
            return Err(TrainError::Parameters(format!(
                "start_from: no file at {}",
                path.display()
            )));
        }
        overlay.push(path.clone());
    }
    let source = without_missing_files(source, &directory, &recipe.output, !overlay.is_empty())?;
    // The recipe's template is checked and used by the data side; `plain` is no chat template.
    Ok(MiniGemini::load_with_overlay(
        &source,
        &LoadOptions {
            model_zoo: std::env::var_os(MODEL_ZOO_VARIABLE).map(PathBuf::from),
            ..LoadOptions::default()
        },
        policy,
        &overlay,
    )?)
}

/// Before its first training the built-in model lacks the file that training makes. When the recipe supplies those tensors, the model is read
/// through a copy of its `config.json` that leaves the missing files out.
fn without_missing_files(
    source: ModelSource,
    directory: &Path,
    output: &Path,
    supplied: bool,
) -> Result<ModelSource, TrainError> {
    let config_file = directory.join("config.json");
    let config = ModelConfig::read(&config_file)?;
    let Some(files) = &config.weight_files else {
        return Ok(source);
    };
    let (present, missing): (Vec<&String>, Vec<&String>) = files
        .iter()
        .partition(|file| directory.join(file).is_file());
    if missing.is_empty() || !supplied {
        return Ok(source);
    }
    let text = std::fs::read(&config_file).map_err(TrainError::io("read", &config_file))?;
    let wrong = |error: serde_json::Error| TrainError::Checkpoint {
        path: config_file.clone(),
        message: error.to_string(),
    };
    let mut value: Value = serde_json::from_slice(&text).map_err(wrong)?;
    let root = directory
        .canonicalize()
        .map_err(TrainError::io("read", directory))?;
    let absolute = |file: &str| Value::String(root.join(file).to_string_lossy().into_owned());
    value["weight_files"] = Value::Array(present.iter().map(|file| absolute(file)).collect());
    if let Some(file) = &config.tokenizer_file {
        value["tokenizer_file"] = absolute(file);
    }
    let start = output.join("start");
    std::fs::create_dir_all(&start).map_err(TrainError::io("create", &start))?;
    tensor_file::write_atomically(&start.join("config.json"), value.to_string().as_bytes())?;
    Ok(ModelSource::Path(start))
}

/// The trained parameters by name.
///
/// # Errors
/// When the recipe selects none, or one of its name parts matches nothing.
pub(crate) fn parameters(
    model: &MiniGemini,
    recipe: &Recipe,
) -> Result<BTreeMap<String, Var>, TrainError> {
    let parameters: BTreeMap<String, Var> = model.parameters().all().into_iter().collect();
    if let Some(names) = &recipe.trainable {
        for part in names {
            if !parameters.keys().any(|name| name.contains(part.as_str())) {
                return Err(TrainError::Parameters(format!(
                    "trainable: no parameter's name contains `{part}`"
                )));
            }
        }
    }
    if parameters.is_empty() {
        return Err(TrainError::Parameters(
            "trainable: the recipe selects no parameter of this model".to_owned(),
        ));
    }
    Ok(parameters)
}
