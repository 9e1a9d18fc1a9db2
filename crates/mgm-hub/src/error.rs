//! What can go wrong between a name and a folder of verified files.

use std::path::PathBuf;

/// Any failure of this crate; one clear line each. No message holds a token or the query of a signed address.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// A name that cannot be a repository's.
    #[error("`{name}` is no repository name: expected ORGANISATION/NAME or one of {known}")]
    RepositoryName {
        /// What was given.
        name: String,
        /// The names of [`crate::releases`].
        known: String,
    },
    /// A name that cannot be a revision's.
    #[error("`{name}` is no revision: expected a branch, a tag or a commit")]
    RevisionName {
        /// What was given.
        name: String,
    },
    /// A pattern that is no glob.
    #[error("`{pattern}` is no pattern: {reason}")]
    Pattern {
        /// What was given.
        pattern: String,
        /// Where it stops making sense.
        reason: String,
    },
    /// An environment variable or the token's file holds something unusable.
    #[error("{name}: expected {expected}")]
    Setting {
        /// The variable or file.
        name: String,
        /// What it should hold. What it does hold is not shown: it may be a secret.
        expected: &'static str,
    },
    /// Offline mode, and the cache has no such snapshot.
    #[error(
        "{repository} at {revision} is not in {cache}, and HF_HUB_OFFLINE forbids downloading it"
    )]
    Offline {
        /// Which repository.
        repository: String,
        /// Which revision.
        revision: String,
        /// The cache.
        cache: PathBuf,
    },
    /// The hub knows no such repository, or hides it from who asks.
    #[error("{endpoint} has no repository {repository}, or only for those who may see it")]
    NoRepository {
        /// The hub.
        endpoint: String,
        /// Which repository.
        repository: String,
        /// Whether a token was sent.
        token: bool,
    },
    /// The repository has no such branch, tag or commit.
    #[error("{repository} has no revision {revision}")]
    NoRevision {
        /// Which repository.
        repository: String,
        /// Which revision.
        revision: String,
    },
    /// The repository's files are given only to those who accepted its terms.
    #[error("{repository} is gated: its terms have to be accepted at {endpoint}/{repository}")]
    Gated {
        /// The hub.
        endpoint: String,
        /// Which repository.
        repository: String,
        /// Whether a token was sent.
        token: bool,
    },
    /// The hub does not accept the token.
    #[error("{endpoint} does not accept the token of {origin}")]
    Token {
        /// The hub.
        endpoint: String,
        /// Where the token came from.
        origin: String,
    },
    /// Any other answer than the one that was asked for.
    #[error("{url} answered {status}{}", detail(.message))]
    Status {
        /// What was asked, without its query.
        url: String,
        /// HTTP status.
        status: u16,
        /// What the server says about it, or nothing.
        message: String,
    },
    /// No answer, or one that broke off, as often as it was tried.
    #[error("{url}: {reason}{}", tries(.attempts))]
    Network {
        /// What was asked, without its query.
        url: String,
        /// The last reason.
        reason: String,
        /// How often it was tried since the last byte came.
        attempts: u32,
    },
    /// The hub's answer is not of the documented form.
    #[error("{url}: {message}")]
    Answer {
        /// What was asked.
        url: String,
        /// What was expected and found.
        message: String,
    },
    /// Files that are not what the hub says they are. They were removed.
    #[error("{file}: {what} is {found}, the hub says {expected}; what was downloaded was removed")]
    WrongBytes {
        /// The file, by its name in the repository.
        file: String,
        /// `sha256`, `git sha1` or `size`.
        what: &'static str,
        /// As told by the hub.
        expected: String,
        /// As downloaded.
        found: String,
    },
    /// Nothing to download.
    #[error("no file of {repository} matches {patterns}; it has {files}")]
    NothingSelected {
        /// Which repository.
        repository: String,
        /// The patterns.
        patterns: String,
        /// Some of its files.
        files: String,
    },
    /// The disk has no room, or ran out of it. What was downloaded stays and is used by the next attempt.
    #[error("no room in {directory}: {needed} bytes are needed{}", free(.available))]
    DiskFull {
        /// Where.
        directory: PathBuf,
        /// Bytes still to be written.
        needed: u64,
        /// Bytes free, where known.
        available: Option<u64>,
    },
    /// File access failed.
    #[error("{path}: {source}")]
    Io {
        /// The file or folder.
        path: PathBuf,
        /// The system's reason.
        source: std::io::Error,
    },
    /// The stop flag was raised. What was downloaded stays and is used by the next attempt.
    #[error("stopped")]
    Stopped,
}

fn detail(message: &str) -> String {
    match message {
        "" => String::new(),
        message => format!(": {message}"),
    }
}

fn tries(attempts: &u32) -> String {
    match attempts {
        0 | 1 => String::new(),
        attempts => format!(" ({attempts} attempts)"),
    }
}

fn free(available: &Option<u64>) -> String {
    match available {
        Some(available) => format!(", {available} are free"),
        None => String::new(),
    }
}

/// Result of this crate.
pub type Result<T, E = Error> = std::result::Result<T, E>;
