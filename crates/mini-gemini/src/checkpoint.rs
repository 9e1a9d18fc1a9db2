//! Everything that is known about a model before its weights are read: where they are, under which names, and what the configuration says.

use std::path::{Path, PathBuf};

use mgm_nn::{LoraConfig, WeightSource};
use mgm_text::{Template, Tokenizer};

use crate::adapter::{self, AdapterConfig};
use crate::check::{self, TensorProblem};
use crate::config::ModelConfig;
use crate::error::{Error, Result};
use crate::layout::{self, Layout, STAGE_ONE_WEIGHTS};
use crate::locate::Places;
use crate::memory::MemoryEstimate;
use crate::model::{LoadOptions, Precision, choose_template, lora_config};
use crate::pair;
use crate::source::{BUILT_IN_NAME, ModelSource};
use crate::tower_files;

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
    /// The low-rank adapters among the weights (`….lora_A.weight`, `….lora_B.weight`) and their scale.
    pub lora: Option<LoraConfig>,
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
    /// Finds and opens the files of a model: a whole checkpoint, a stage-1 or adapter folder with its base, or a GGUF file or pair.
    ///
    /// # Errors
    /// When the directory or a file is missing or wrong; the message names it.
    pub fn open(source: &ModelSource, options: &LoadOptions) -> Result<Self> {
        let path = source.resolve(options.model_zoo.as_deref())?;
        let mut checkpoint = Self::open_path(&path, options)?;
        if *source == ModelSource::BuiltIn {
            checkpoint.name = BUILT_IN_NAME.into();
        }
        if let Some(folder) = &options.adapter {
            checkpoint = adapter::apply(checkpoint, folder)?;
        }
        if let Some(numerics) = options.gemma_numerics {
            checkpoint.config.gemma_numerics = numerics;
        }
        checkpoint.config.settle_family(&checkpoint.name);
        checkpoint.config.check(&checkpoint.config_file)?;
        tower_files::add(checkpoint, options.model_zoo.as_deref())
    }

    /// The tensors that the configuration needs and the files do not have, or not in that shape; empty for a complete model.
    ///
    /// # Errors
    /// When the configuration's sizes contradict each other.
    pub fn problems(&self) -> Result<Vec<TensorProblem>> {
        let decoder = self.config.decoder(&self.config_file)?;
        Ok(check::problems(&self.config, &decoder, &self.weights))
    }

    /// All problems in one error.
    pub(crate) fn require_tensors(&self) -> Result<()> {
        let problems = self.problems()?;
        if problems.is_empty() {
            return Ok(());
        }
        Err(Error::Tensors {
            model: self.directory.clone(),
            problems: check::summary(&problems, &self.weights.files()),
        })
    }

    /// The conversation template it is run with unless another is asked for.
    ///
    /// # Errors
    /// When the configuration names one that does not exist.
    pub fn template(&self) -> Result<&'static Template> {
        choose_template(
            &LoadOptions::default(),
            &self.config,
            &self.name,
            &self.config_file,
        )
    }

    /// The memory the model will take when loaded in this precision.
    ///
    /// # Errors
    /// When the configuration's sizes contradict each other.
    pub fn memory(&self, precision: Precision) -> Result<MemoryEstimate> {
        let decoder = self.config.decoder(&self.config_file)?;
        Ok(MemoryEstimate::new(&self.weights, &decoder, precision))
    }

    fn open_path(path: &Path, options: &LoadOptions) -> Result<Self> {
        if path.is_file() && path.extension().is_some_and(|kind| kind == "gguf") {
            return Self::pair(path, options);
        }
        if !path.is_dir() {
            return Err(Error::NotAModel { path: path.into() });
        }
        let layout = Layout::of(path)?;
        if options.mmproj.is_some() && layout != Layout::Gguf {
            return Err(Error::Conflict(format!(
                "{} is no GGUF model: a vision file (mmproj) belongs to a GGUF language file",
                path.display()
            )));
        }
        match layout {
            Layout::Whole => {
                if options.base.is_some() {
                    return Err(Error::Conflict(format!(
                        "{} holds a whole model: a base belongs to a stage-1 or adapter folder",
                        path.display()
                    )));
                }
                Self::whole(path)
            }
            Layout::StageOne => Self::stage_one(path, options),
            Layout::Adapter => Self::adapter(path, options),
            Layout::Gguf => Self::pair(&language_file(path)?, options),
        }
    }

    /// A GGUF language file and the vision file beside it.
    fn pair(file: &Path, options: &LoadOptions) -> Result<Self> {
        if options.base.is_some() {
            return Err(Error::Conflict(format!(
                "{} is a whole model: a base belongs to a stage-1 or adapter folder",
                file.display()
            )));
        }
        let parts = pair::open(file, options.mmproj.as_deref())?;
        let directory = match file.parent() {
            Some(parent) if !parent.as_os_str().is_empty() => parent.to_path_buf(),
            _ => PathBuf::from("."),
        };
        Ok(Self {
            name: parts.name,
            directory,
            lora: lora_config(&parts.config),
            config: parts.config,
            config_file: file.into(),
            weights: parts.weights,
            tokenizer: TokenizerFiles::File(parts.tokenizer_file),
            notes: parts.notes,
        })
    }

    /// `config.json` with all weights beside it.
    fn whole(directory: &Path) -> Result<Self> {
        let config_file = directory.join("config.json");
        if !config_file.is_file() {
            return Err(Error::MissingFile {
                directory: directory.into(),
                file: "config.json".into(),
            });
        }
        let config = ModelConfig::read(&config_file)?;
        let tokenizer = match &config.tokenizer_file {
            Some(file) => TokenizerFiles::File(existing(directory, file)?),
            None => TokenizerFiles::Directory(directory.into()),
        };
        Ok(Self {
            name: layout::model_name(directory),
            directory: directory.into(),
            weights: weight_source(directory, &config)?,
            lora: lora_config(&config),
            config,
            config_file,
            tokenizer,
            notes: Vec::new(),
        })
    }

    /// `config.json` and `mm_projector.bin` over a base language model.
    fn stage_one(directory: &Path, options: &LoadOptions) -> Result<Self> {
        let config_file = directory.join("config.json");
        let config = ModelConfig::read(&config_file)?;
        let trained = layout::open_first_of(directory, &STAGE_ONE_WEIGHTS)?;
        let base = Self::base(directory, config.name_or_path.as_deref(), options)?;
        let mut checkpoint = base;
        checkpoint.weights = checkpoint.weights.overlay(trained);
        checkpoint.take_over(directory);
        checkpoint.config = config;
        checkpoint.config_file = config_file;
        Ok(checkpoint)
    }

    /// A PEFT adapter over its base model.
    fn adapter(directory: &Path, options: &LoadOptions) -> Result<Self> {
        let named = AdapterConfig::read(directory)?.base_model_name_or_path;
        let base = Self::base(directory, named.as_deref(), options)?;
        let mut checkpoint = adapter::apply(base, directory)?;
        checkpoint.take_over(directory);
        // Adapters of multimodal training bring the multimodal configuration; the base is then a language model alone.
        let config_file = directory.join("config.json");
        if config_file.is_file() {
            checkpoint.config = ModelConfig::read(&config_file)?;
            checkpoint.config_file = config_file;
        }
        Ok(checkpoint)
    }

    /// Opens the model that a stage-1 or adapter folder belongs to.
    fn base(directory: &Path, named: Option<&str>, options: &LoadOptions) -> Result<Self> {
        let path = match (&options.base, named) {
            (Some(base), _) => {
                ModelSource::Path(base.clone()).resolve(options.model_zoo.as_deref())?
            }
            (None, Some(named)) if !named.is_empty() => {
                let places = Places {
                    checkpoint: directory,
                    model_zoo: options.model_zoo.as_deref(),
                };
                let itself = directory.canonicalize().ok();
                places.find("base model", named, &|path: &Path| {
                    path.is_dir() && path.canonicalize().ok() != itself && Layout::of(path).is_ok()
                })?
            }
            (None, _) => {
                return Err(Error::Conflict(format!(
                    "{} belongs to a base model that its configuration does not name: say which with --model-base",
                    directory.display()
                )));
            }
        };
        match Layout::of(&path)? {
            Layout::Whole => {
                let mut base = Self::whole(&path)?;
                base.notes
                    .push(format!("base model read from {}", path.display()));
                Ok(base)
            }
            // One level: an adapter on a stage-1 folder whose base is found by its own configuration.
            Layout::StageOne if directory.join(layout::ADAPTER_CONFIG).is_file() => {
                let options = LoadOptions {
                    base: None,
                    ..options.clone()
                };
                Self::stage_one(&path, &options)
            }
            _ => Err(Error::Conflict(format!(
                "base model {} of {} is no whole model: expected config.json with the language model's weights",
                path.display(),
                directory.display()
            ))),
        }
    }

    /// Makes `directory` the checkpoint's own, with its tokeniser if it has one.
    fn take_over(&mut self, directory: &Path) {
        self.name = layout::model_name(directory);
        self.directory = directory.into();
        if layout::has_tokenizer(directory) {
            self.tokenizer = TokenizerFiles::Directory(directory.into());
        }
    }
}

/// The one language file among the GGUF files of a folder.
fn language_file(directory: &Path) -> Result<PathBuf> {
    let mut files = layout::gguf_files(directory)?;
    // Vision files are told by their names; a file of another name is opened, and says itself what it is.
    files.retain(|file| {
        file.file_name()
            .is_some_and(|name| !name.to_string_lossy().starts_with("mmproj"))
    });
    match files.as_slice() {
        [file] => Ok(file.clone()),
        [] => Err(Error::MissingFile {
            directory: directory.into(),
            file: "a language file: its GGUF files are vision files (mmproj…)".into(),
        }),
        several => Err(Error::Conflict(format!(
            "{} holds several language files: name one of {}",
            directory.display(),
            several
                .iter()
                .filter_map(|path| path.file_name())
                .map(|name| name.to_string_lossy())
                .collect::<Vec<_>>()
                .join(", ")
        ))),
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
