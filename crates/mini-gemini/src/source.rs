//! Finding a model by name or path: the built-in model, a folder or GGUF file, a folder of the model zoo, a snapshot in Hugging Face's cache.

use std::path::{Path, PathBuf};

use crate::error::{Error, Result};
use crate::hub_cache;
use crate::locate;

/// Name of the built-in model, and of its folder.
pub const BUILT_IN_NAME: &str = "smol";
/// Environment variable that names the folder holding the built-in model's folder.
pub const MODELS_DIR_VARIABLE: &str = "MGM_MODELS_DIR";
/// Environment variable that names the model zoo ([`crate::LoadOptions::model_zoo`]). The command line and training read it.
pub const MODEL_ZOO_VARIABLE: &str = "MGM_MODEL_ZOO";

/// Which model to load.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum ModelSource {
    /// The small model that ships with the program.
    BuiltIn,
    /// A folder, a GGUF file, a folder's name in the model zoo, or a hub name (`YanweiLi/MGM-2B`) that was downloaded.
    Path(PathBuf),
}

impl ModelSource {
    /// `smol` is the built-in model, anything else a path.
    pub fn parse(name_or_path: &str) -> Self {
        match name_or_path {
            BUILT_IN_NAME => Self::BuiltIn,
            path => Self::Path(path.into()),
        }
    }

    /// The model's folder or GGUF file: the path itself, else that path in the model zoo, else the snapshot of that name in Hugging
    /// Face's cache.
    ///
    /// # Errors
    /// When it is nowhere; the message lists where was looked.
    pub fn resolve(&self, model_zoo: Option<&Path>) -> Result<PathBuf> {
        let path = match self {
            Self::BuiltIn => return bundled(BUILT_IN_NAME, "config.json"),
            Self::Path(path) => path,
        };
        if path.exists() {
            return Ok(path.clone());
        }
        let mut searched = vec![path.display().to_string()];
        if let Some(zoo) = model_zoo
            && path.is_relative()
        {
            let in_zoo = zoo.join(path);
            if in_zoo.exists() {
                return Ok(in_zoo);
            }
            searched.push(in_zoo.display().to_string());
        }
        let repository = path
            .to_str()
            .filter(|name| hub_cache::is_repository(name) || !name.contains('/'))
            .and_then(locate::repository);
        if let Some(repository) = &repository {
            if let Some(snapshot) = hub_cache::find_snapshot(repository, None) {
                return Ok(snapshot);
            }
            if let Some(cache) = hub_cache::directory() {
                searched.push(format!("{repository} in {}", cache.display()));
            }
        }
        Err(Error::ModelNotFound {
            path: path.clone(),
            searched: searched.join(", "),
            repository,
        })
    }

    /// The directory that holds `config.json`.
    ///
    /// # Errors
    /// When it does not exist or holds no `config.json`.
    pub fn directory(&self) -> Result<PathBuf> {
        let directory = self.resolve(None)?;
        if !directory.is_dir() {
            return Err(Error::NotAModel { path: directory });
        }
        if !directory.join("config.json").is_file() {
            return Err(Error::MissingFile {
                directory,
                file: "config.json".into(),
            });
        }
        Ok(directory)
    }
}

/// The folder of something that ships with the program: `name` in the folder that [`MODELS_DIR_VARIABLE`] names, or, without that variable,
/// beside the installed program, or in the source tree the program was built from. It counts if it holds `marker`.
///
/// # Errors
/// [`Error::BuiltInNotFound`] with where was looked.
pub fn bundled(name: &str, marker: &str) -> Result<PathBuf> {
    let mut candidates = Vec::new();
    if let Some(folder) = std::env::var_os(MODELS_DIR_VARIABLE) {
        candidates.push(PathBuf::from(folder).join(name));
    } else {
        if let Some(folder) = std::env::current_exe()
            .ok()
            .and_then(|program| program.canonicalize().ok())
            .and_then(|program| Some(program.parent()?.parent()?.to_path_buf()))
        {
            candidates.push(folder.join("share/mini-gemini/models").join(name));
        }
        let source_tree = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../models");
        candidates.push(source_tree.join(name));
    }
    match candidates
        .iter()
        .find(|candidate| candidate.join(marker).is_file())
    {
        Some(found) => Ok(found.clone()),
        None => Err(Error::BuiltInNotFound {
            searched: candidates
                .iter()
                .map(|candidate| candidate.display().to_string())
                .collect::<Vec<_>>()
                .join(", "),
        }),
    }
}
