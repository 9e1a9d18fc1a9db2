use std::path::PathBuf;

use thiserror::Error;

/// Anything wrong with training data, as one clear line.
#[derive(Debug, Error)]
pub enum DataError {
    /// A file could not be read.
    #[error("cannot read {path}: {source}")]
    Read {
        /// The file.
        path: PathBuf,
        /// What the operating system said.
        source: std::io::Error,
    },
    /// A file is not a JSON array of objects (or a sequence of JSON objects).
    #[error("{path}: {message}")]
    Format {
        /// The file.
        path: PathBuf,
        /// What was expected and what was found.
        message: String,
    },
    /// One record breaks the LLaVA format.
    #[error("{path}: record {index} (id {id}): {field}: {message}")]
    Record {
        /// The file.
        path: PathBuf,
        /// Position of the record in its file, from 0.
        index: usize,
        /// The record's own `id`, or `none`.
        id: String,
        /// The field, for example `conversations[1].value`.
        field: String,
        /// What was expected and what was found.
        message: String,
    },
    /// The answers of a record could not be located among its token ids.
    #[error("{path}: record {index} (id {id}): {source}")]
    Mask {
        /// The file.
        path: PathBuf,
        /// Position of the record in its file, from 0.
        index: usize,
        /// The record's own `id`, or `none`.
        id: String,
        /// Why.
        source: MaskError,
    },
    /// No usable record at all.
    #[error("no records in {0}")]
    Empty(String),
    /// A record without a single word cannot be grouped by length.
    #[error("record {index} has no words; `group_by_modality_length` needs at least one")]
    NoWords {
        /// Position of the record in the data set.
        index: usize,
    },
}

/// Why a conversation has no valid label mask.
#[derive(Debug, Error, Clone, PartialEq, Eq)]
pub enum MaskError {
    /// The tokeniser refused the text.
    #[error("cannot tokenise: {0}")]
    Tokenise(String),
    /// The separately tokenised rounds do not add up to the whole (official warning "tokenization mismatch").
    #[error(
        "tokenisation mismatch: the rounds add up to {rounds} ids, the whole conversation has {whole}"
    )]
    Mismatch {
        /// Ids of all rounds together.
        rounds: usize,
        /// Ids of the whole conversation.
        whole: usize,
    },
    /// The ids do not show the structure the template promises.
    #[error("tokenisation mismatch: {0}")]
    Structure(String),
    /// The template has no masking rule or cannot render this conversation.
    #[error("{0}")]
    Template(String),
    /// Nothing is left to learn.
    #[error("no answer token within max_length {max_length} ({length} positions, images included)")]
    NothingToLearn {
        /// The limit.
        max_length: usize,
        /// Positions of the untruncated sequence.
        length: usize,
    },
}
