//! Finding a model's files: the built-in model, or a directory in the official layout.

use std::path::{Path, PathBuf};

use crate::error::{Error, Result};

/// Name of the built-in model, and of its folder.
pub const BUILT_IN_NAME: &str = "smol";
/// Environment variable that names the folder holding the built-in model's folder.
pub const MODELS_DIR_VARIABLE: &str = "MGM_MODELS_DIR";

/// Which model to load.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum ModelSource {
    /// The small model that ships with the program.
    BuiltIn,
    /// A checkpoint directory.
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

    /// The directory that holds `config.json`.
    ///
    /// # Errors
    /// When it does not exist or holds no `config.json`.
    pub fn directory(&self) -> Result<PathBuf> {
        let directory = match self {
            Self::BuiltIn => built_in_directory()?,
            Self::Path(path) if path.is_dir() => path.clone(),
            Self::Path(path) => return Err(Error::ModelNotFound { path: path.clone() }),
        };
        if !directory.join("config.json").is_file() {
            return Err(Error::MissingFile {
                directory,
                file: "config.json".into(),
            });
        }
        Ok(directory)
    }
}

/// Searched in order: the environment variable, beside the installed program, the source tree the program was built from.
fn built_in_directory() -> Result<PathBuf> {
    let mut candidates = Vec::new();
    if let Some(folder) = std::env::var_os(MODELS_DIR_VARIABLE) {
        candidates.push(PathBuf::from(folder).join(BUILT_IN_NAME));
    } else {
        if let Some(folder) = std::env::current_exe()
            .ok()
            .and_then(|program| program.canonicalize().ok())
            .and_then(|program| Some(program.parent()?.parent()?.to_path_buf()))
        {
            candidates.push(folder.join("share/mini-gemini/models").join(BUILT_IN_NAME));
        }
        let source_tree = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../models");
        candidates.push(source_tree.join(BUILT_IN_NAME));
    }
    match candidates
        .iter()
        .find(|candidate| candidate.join("config.json").is_file())
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
