//! The error type of this crate.

use std::path::{Path, PathBuf};

/// What can go wrong when reading a tokeniser or a template name.
#[derive(Debug, thiserror::Error)]
pub enum TextError {
    /// A file could not be opened or read.
    #[error("cannot read {}: {source}", path.display())]
    Io {
        /// The file.
        path: PathBuf,
        /// The operating system's reason.
        source: std::io::Error,
    },
    /// A file was read but its contents are not what they should be.
    #[error("{}: {message}", path.display())]
    Invalid {
        /// The file.
        path: PathBuf,
        /// Which key or field, what was expected and what was found.
        message: String,
    },
    /// There is no template of this name.
    #[error("unknown conversation template \"{name}\"; known are: {known}")]
    UnknownTemplate {
        /// The name asked for.
        name: String,
        /// All known names, separated by commas.
        known: String,
    },
    /// The tokeniser refused a text.
    #[error("cannot tokenise the text: {0}")]
    Encode(String),
}

impl TextError {
    pub(crate) fn io(path: &Path, source: std::io::Error) -> Self {
        Self::Io {
            path: path.to_path_buf(),
            source,
        }
    }

    pub(crate) fn invalid(path: &Path, message: impl Into<String>) -> Self {
        Self::Invalid {
            path: path.to_path_buf(),
            message: message.into(),
        }
    }
}
