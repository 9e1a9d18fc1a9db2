//! What a model folder is, told by the files in it.

use std::path::{Path, PathBuf};

use mgm_nn::WeightSource;

use crate::config::ModelConfig;
use crate::error::{Error, Result};

/// File of a PEFT adapter folder that makes it one.
pub(crate) const ADAPTER_CONFIG: &str = "adapter_config.json";
/// The weights of a PEFT adapter, in the order in which they are looked for.
pub(crate) const ADAPTER_WEIGHTS: [&str; 2] = ["adapter_model.safetensors", "adapter_model.bin"];
/// What LoRA training trained besides adapters.
pub(crate) const NON_LORA_WEIGHTS: [&str; 2] =
    ["non_lora_trainables.safetensors", "non_lora_trainables.bin"];
/// What stage-1 training writes: projector and miner, often the towers.
pub(crate) const STAGE_ONE_WEIGHTS: [&str; 2] = ["mm_projector.safetensors", "mm_projector.bin"];

/// The kinds of folders that can be loaded.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Layout {
    /// `config.json` and the language model's weights.
    Whole,
    /// A PEFT adapter on a base model.
    Adapter,
    /// `config.json` and `mm_projector.bin` on a base language model.
    StageOne,
    /// GGUF files.
    Gguf,
}

impl Layout {
    /// The kind of a folder.
    ///
    /// # Errors
    /// When it is none of them; the message says what was expected.
    pub(crate) fn of(directory: &Path) -> Result<Self> {
        if has_language_weights(directory) {
            // A folder of weights without `config.json` is told so by the reader of the configuration.
            return Ok(Self::Whole);
        }
        if directory.join(ADAPTER_CONFIG).is_file() {
            return Ok(Self::Adapter);
        }
        if first_of(directory, &STAGE_ONE_WEIGHTS).is_some() {
            return Ok(Self::StageOne);
        }
        let config = directory.join("config.json");
        let has_config = config.is_file();
        // A configuration that names its weight files is complete, whatever else lies there.
        if has_config && ModelConfig::read(&config)?.weight_files.is_some() {
            return Ok(Self::Whole);
        }
        if !gguf_files(directory)?.is_empty() {
            return Ok(Self::Gguf);
        }
        if has_config {
            return Ok(Self::Whole);
        }
        Err(Error::NoModelHere {
            directory: directory.into(),
        })
    }
}

/// Whether a folder holds the weights of a whole model in safetensors or torch files.
fn has_language_weights(directory: &Path) -> bool {
    let indexed = [
        "model.safetensors.index.json",
        "pytorch_model.bin.index.json",
    ];
    if first_of(directory, &indexed).is_some() {
        return true;
    }
    file_names(directory).is_ok_and(|names| {
        names.iter().any(|name| {
            let others = [&ADAPTER_WEIGHTS, &NON_LORA_WEIGHTS, &STAGE_ONE_WEIGHTS];
            let is_part = others.iter().any(|files| files.contains(&name.as_str()));
            (name.ends_with(".safetensors") && !name.starts_with('.') && !is_part)
                || (name.starts_with("pytorch_model") && name.ends_with(".bin"))
        })
    })
}

/// Names of the files in a folder, sorted.
fn file_names(directory: &Path) -> Result<Vec<String>> {
    let failed = |source| Error::Io {
        path: directory.into(),
        source,
    };
    let mut names = Vec::new();
    for entry in std::fs::read_dir(directory).map_err(failed)? {
        if let Ok(name) = entry.map_err(failed)?.file_name().into_string() {
            names.push(name);
        }
    }
    names.sort();
    Ok(names)
}

/// GGUF files of a folder, by name.
pub(crate) fn gguf_files(directory: &Path) -> Result<Vec<PathBuf>> {
    Ok(file_names(directory)?
        .iter()
        .filter(|name| name.ends_with(".gguf") && !name.starts_with('.'))
        .map(|name| directory.join(name))
        .collect())
}

/// The first of `names` that is a file of the folder.
pub(crate) fn first_of(directory: &Path, names: &[&str]) -> Option<PathBuf> {
    names
        .iter()
        .map(|name| directory.join(name))
        .find(|path| path.is_file())
}

/// Whether a folder holds a tokeniser.
pub(crate) fn has_tokenizer(directory: &Path) -> bool {
    first_of(directory, &["tokenizer.json", "tokenizer.model"]).is_some()
}

/// Opens the first of `names` that the folder holds.
///
/// # Errors
/// When it holds none of them, or the file is damaged.
pub(crate) fn open_first_of(directory: &Path, names: &[&str]) -> Result<WeightSource> {
    let path = first_of(directory, names).ok_or_else(|| Error::MissingFile {
        directory: directory.into(),
        file: names.join(" or "),
    })?;
    Ok(WeightSource::open(&path)?)
}

/// A model's name from where it lies: the folder's name; the repository's for a snapshot in Hugging Face's cache; with the
/// parent's for a `checkpoint-N`, as the official loader has it.
pub(crate) fn model_name(path: &Path) -> String {
    let path = match path.canonicalize() {
        Ok(path) => path,
        Err(_) => path.to_path_buf(),
    };
    let part = |path: Option<&Path>| -> Option<String> {
        Some(path?.file_name()?.to_string_lossy().into_owned())
    };
    let own = part(Some(&path)).unwrap_or_else(|| path.display().to_string());
    let parent = part(path.parent());
    if parent.as_deref() == Some("snapshots")
        && let Some(folder) = part(path.parent().and_then(Path::parent))
        && let Some(name) = folder.strip_prefix("models--")
    {
        return name.rsplit("--").next().unwrap_or(name).to_string();
    }
    match parent {
        Some(parent) if own.starts_with("checkpoint-") => format!("{parent}_{own}"),
        _ => own,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_of_models() {
        assert_eq!(model_name(Path::new("/none/MGM-2B")), "MGM-2B");
        assert_eq!(
            model_name(Path::new("/none/MGM-2B/checkpoint-40")),
            "MGM-2B_checkpoint-40"
        );
        assert_eq!(
            model_name(Path::new(
                "/none/models--YanweiLi--MGM-7B-HD/snapshots/0123abcd"
            )),
            "MGM-7B-HD"
        );
    }
}
