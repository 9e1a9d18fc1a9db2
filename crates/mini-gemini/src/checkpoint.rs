//! Everything that is known about a model before its weights are read: where they are, under which names, and what the configuration says.

use std::path::{Path, PathBuf};

use mgm_nn::WeightSource;
use mgm_text::Tokenizer;

use crate::config::ModelConfig;
use crate::error::{Error, Result};
use crate::model::LoadOptions;
use crate::source::{BUILT_IN_NAME, ModelSource};

/// A model's files, found and opened (mapped, not read).
pub struct Checkpoint {
    /// Name: the directory's, the file's without its ending, or `smol`.
    pub name: String,
    /// Directory of the main files.
    pub directory: PathBuf,
    /// The configuration, with the overrides of [`LoadOptions`] applied.
    pub config: ModelConfig,
    /// The file the configuration was read from; errors about it name this.
    pub config_file: PathBuf,
    /// All weights under their official names (`model.layers.…`, `model.vision_tower.…`), whichever files they lie in.
    pub weights: WeightSource,
    /// Where the tokeniser is.
    pub tokenizer: TokenizerFiles,
    /// What the user should know about how the files were found, one line each.
    pub notes: Vec<String>,
}

/// Where a tokeniser is read from.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum TokenizerFiles {
    /// A checkpoint directory with the usual files.
    Directory(PathBuf),
    /// One file (`tokenizer.json`, `tokenizer.model`, or a GGUF file).
    File(PathBuf),
}

impl TokenizerFiles {
    /// Reads it.
    ///
    /// # Errors
    /// When a file is missing or wrong.
    pub fn load(&self) -> Result<Tokenizer> {
        Ok(match self {
            Self::Directory(path) => Tokenizer::from_directory(path)?,
            Self::File(path) => Tokenizer::from_file(path)?,
        })
    }
}

impl Checkpoint {
    /// Finds and opens the files of a model.
    ///
    /// # Errors
    /// When the directory or a file is missing or wrong; the message names it.
    pub fn open(source: &ModelSource, options: &LoadOptions) -> Result<Self> {
        let directory = source.directory()?;
        let config_file = directory.join("config.json");
        let mut config = ModelConfig::read(&config_file)?;
        if let Some(numerics) = options.gemma_numerics {
            config.gemma_numerics = numerics;
        }
        let name = match source {
            ModelSource::BuiltIn => BUILT_IN_NAME.to_string(),
            ModelSource::Path(path) => path
                .canonicalize()
                .ok()
                .and_then(|path| Some(path.file_name()?.to_string_lossy().into_owned()))
                .unwrap_or_else(|| path.display().to_string()),
        };
        let tokenizer = match &config.tokenizer_file {
            Some(file) => TokenizerFiles::File(existing(&directory, file)?),
            None => TokenizerFiles::Directory(directory.clone()),
        };
        let weights = weight_source(&directory, &config)?;
        Ok(Self {
            name,
            directory,
            config,
            config_file,
            weights,
            tokenizer,
            notes: Vec::new(),
        })
    }
}

fn existing(directory: &Path, file: &str) -> Result<PathBuf> {
    let path = directory.join(file);
    if path.is_file() {
        Ok(path)
    } else {
        Err(Error::MissingFile {
            directory: directory.into(),
            file: file.into(),
        })
    }
}

fn weight_source(directory: &Path, config: &ModelConfig) -> Result<WeightSource> {
    let Some(files) = &config.weight_files else {
        return Ok(WeightSource::from_directory(directory)?);
    };
    let mut source: Option<WeightSource> = None;
    for file in files {
        let next = WeightSource::open(&existing(directory, file)?)?;
        source = Some(match source {
            Some(source) => source.overlay(next),
            None => next,
        });
    }
    source.ok_or_else(|| Error::Config {
        file: directory.join("config.json"),
        message: "weight_files is empty: expected at least one file".into(),
    })
}
