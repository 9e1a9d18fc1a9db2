//! What can go wrong while reading text, each as one line for the user.

use std::path::PathBuf;

/// Why text could not be read.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum OcrError {
    /// The usual folder with the networks is not there.
    #[error("the text recognition networks were not found: there is no folder {}", usual.display())]
    NotFound {
        /// The usual folder.
        usual: PathBuf,
    },
    /// A folder that should hold the networks cannot be read.
    #[error("text recognition networks: cannot read the folder {}: {error}", directory.display())]
    Directory {
        /// The folder.
        directory: PathBuf,
        /// What the operating system said.
        error: std::io::Error,
    },
    /// A folder holds none or several files that could be the network for one step.
    #[error(
        "{}: expected one {part} network (a file named like {pattern}), found {found}",
        directory.display()
    )]
    Ambiguous {
        /// The folder.
        directory: PathBuf,
        /// What the network does.
        part: &'static str,
        /// How such a file is named.
        pattern: String,
        /// What is there instead.
        found: String,
    },
    /// A network file cannot be used.
    #[error("{}: {message}", file.display())]
    Network {
        /// The file.
        file: PathBuf,
        /// What was found and what was expected.
        message: String,
    },
    /// The picture's size and buffer disagree.
    #[error(transparent)]
    Image(#[from] mgm_image::ImageError),
    /// The caller asked to stop.
    #[error("interrupted")]
    Interrupted,
}

/// Results of this crate.
pub type Result<T, E = OcrError> = std::result::Result<T, E>;
