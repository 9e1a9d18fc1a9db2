//! Opening a pair, or a language file alone.

use std::path::{Path, PathBuf};

use mgm_nn::WeightSource;

use super::{VISION_ARCHITECTURE, language, names, vision};
use crate::config::ModelConfig;
use crate::error::{Error, Result};

/// A GGUF pair, opened (mapped, not read).
pub struct PairParts {
    /// `general.name` of the language file, or its file name without ending.
    pub name: String,
    /// The configuration that both files' keys stand for.
    pub config: ModelConfig,
    /// All weights under their official names.
    pub weights: WeightSource,
    /// The file whose vocabulary is the tokeniser: the language file.
    pub tokenizer_file: PathBuf,
    /// The vision file; `None` for a model that answers about text only.
    pub vision_file: Option<PathBuf>,
    /// What the user should know about how the files were found, one line each.
    pub notes: Vec<String>,
}

/// Opens a language file with its vision file: `mmproj` if given, else the one found by [`mmproj_beside`]. A llama.cpp file without our keys
/// opens as a text model.
///
/// # Errors
/// When a file cannot be read, is damaged, or says what this program does not support, and when several vision files could be meant; the
/// message names file and key.
pub fn open(language: &Path, mmproj: Option<&Path>) -> Result<PairParts> {
    let weights = WeightSource::from_gguf(language)?;
    let no_metadata = |file: &Path| Error::Config {
        file: file.into(),
        message: "expected a GGUF file".into(),
    };
    let metadata = weights
        .gguf_metadata()
        .ok_or_else(|| no_metadata(language))?;
    if metadata.architecture() == Some(VISION_ARCHITECTURE) {
        return Err(Error::Config {
            file: language.into(),
            message: "this is the vision file of a pair: name the language file".into(),
        });
    }
    let mut keys = language::config_keys(language, metadata, &weights)?;
    let stem = stem(language);
    let name = metadata
        .string("general.name")
        .filter(|name| !name.is_empty())
        .map_or_else(|| stem.to_string(), str::to_string);
    let has_vision = metadata.bool("mini_gemini.vision");

    let mut notes = Vec::new();
    let vision_file = match (mmproj, has_vision) {
        (Some(file), _) => Some(file.to_path_buf()),
        // Written from a text model: nothing beside it is meant.
        (None, Some(false)) => None,
        (None, _) => mmproj_beside(language)?,
    };
    let weights = match &vision_file {
        Some(file) => {
            let pictures = WeightSource::from_gguf(file)?;
            let metadata = pictures.gguf_metadata().ok_or_else(|| no_metadata(file))?;
            vision::add_config_keys(file, metadata, &mut keys)?;
            if mmproj.is_none() {
                notes.push(format!("vision file: {}", file.display()));
            }
            // The language file stays on top: its metadata is the pair's.
            pictures
                .renamed(names::official_vision_name)
                .overlay(weights)
        }
        None => {
            if has_vision == Some(true) {
                notes.push(format!(
                    "no vision file (mmproj-{stem}.gguf) beside {}: it answers about text only",
                    language.display()
                ));
            }
            weights
        }
    };
    let config: ModelConfig =
        serde_json::from_value(keys.into()).map_err(|error| Error::Config {
            file: language.into(),
            message: error.to_string(),
        })?;
    // Sizes that contradict each other are found here, where the file is known.
    config.decoder(language)?;
    Ok(PairParts {
        name,
        config,
        weights,
        tokenizer_file: language.to_path_buf(),
        vision_file,
        notes,
    })
}

/// The vision file that belongs to `language/STEM.gguf`: `mmproj-STEM.gguf` beside it, else the only other `mmproj*.gguf` there that is one of
/// ours.
///
/// # Errors
/// When there are several, naming them, or the directory cannot be read.
pub fn mmproj_beside(language: &Path) -> Result<Option<PathBuf>> {
    let directory = match language.parent() {
        Some(parent) if !parent.as_os_str().is_empty() => parent,
        _ => Path::new("."),
    };
    let exact = directory.join(format!("mmproj-{}.gguf", stem(language)));
    if exact.is_file() {
        return Ok(Some(exact));
    }
    let entries = std::fs::read_dir(directory).map_err(|source| Error::Io {
        path: directory.into(),
        source,
    })?;
    let mut candidates: Vec<PathBuf> = entries
        .filter_map(|entry| Some(entry.ok()?.path()))
        .filter(|path| {
            let name = path
                .file_name()
                .map(|name| name.to_string_lossy())
                .unwrap_or_default();
            name.starts_with("mmproj") && name.ends_with(".gguf") && is_ours(path)
        })
        .collect();
    candidates.sort();
    match candidates.as_slice() {
        [] => Ok(None),
        [_] => Ok(candidates.pop()),
        several => Err(Error::Config {
            file: language.into(),
            message: format!(
                "several vision files could belong to it: {}; name one with --mmproj",
                several
                    .iter()
                    .filter_map(|path| path.file_name())
                    .map(|name| name.to_string_lossy())
                    .collect::<Vec<_>>()
                    .join(", ")
            ),
        }),
    }
}

/// Whether a file is a vision file of ours; another program's, or a damaged one, is not meant.
fn is_ours(path: &Path) -> bool {
    WeightSource::from_gguf(path).is_ok_and(|source| {
        source
            .gguf_metadata()
            .and_then(|metadata| metadata.architecture())
            == Some(VISION_ARCHITECTURE)
    })
}

fn stem(path: &Path) -> std::borrow::Cow<'_, str> {
    path.file_stem()
        .unwrap_or(path.as_os_str())
        .to_string_lossy()
}
