//! The keys that open the server.

use std::path::{Path, PathBuf};

use sha2::{Digest, Sha256};
use subtle::{Choice, ConstantTimeEq};

/// Why a key or a file of keys cannot be used.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum KeyError {
    /// A key that no client could send.
    #[error("{origin}: an API key must be visible ASCII characters without spaces")]
    Unusable {
        /// Where the key stands.
        origin: String,
    },
    /// The file of keys cannot be read.
    #[error("{path}: {error}")]
    Read {
        /// The file.
        path: PathBuf,
        /// The system's reason.
        error: std::io::Error,
    },
    /// The file of keys holds none.
    #[error("{path} holds no API key: expected one a line")]
    Empty {
        /// The file.
        path: PathBuf,
    },
}

/// API keys, held as SHA-256 digests. Without any, everybody is let in.
#[derive(Clone, Default)]
pub struct ApiKeys {
    digests: Vec<[u8; 32]>,
}

impl std::fmt::Debug for ApiKeys {
    fn fmt(&self, formatter: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(formatter, "ApiKeys({})", self.digests.len())
    }
}

impl ApiKeys {
    /// Adds a key; `origin` names it in the error.
    ///
    /// # Errors
    /// When the key is empty or holds anything but visible ASCII characters.
    pub fn add(&mut self, key: &str, origin: &str) -> Result<(), KeyError> {
        if key.is_empty() || !key.bytes().all(|byte| byte.is_ascii_graphic()) {
            return Err(KeyError::Unusable {
                origin: origin.into(),
            });
        }
        self.digests.push(Sha256::digest(key).into());
        Ok(())
    }

    /// Adds the keys of a file, one a line; empty lines and lines that begin with `#` are skipped.
    ///
    /// # Errors
    /// When the file cannot be read, holds no key, or one that cannot be used.
    pub fn add_file(&mut self, path: &Path) -> Result<(), KeyError> {
        let text = std::fs::read_to_string(path).map_err(|error| KeyError::Read {
            path: path.into(),
            error,
        })?;
        let before = self.digests.len();
        for (index, line) in text.lines().enumerate() {
            let key = line.trim();
            if !key.is_empty() && !key.starts_with('#') {
                self.add(key, &format!("{}, line {}", path.display(), index + 1))?;
            }
        }
        if self.digests.len() == before {
            return Err(KeyError::Empty { path: path.into() });
        }
        Ok(())
    }

    /// Whether a key is asked for.
    pub fn required(&self) -> bool {
        !self.digests.is_empty()
    }

    /// Whether this is one of the keys. Digests are compared, all of them and in constant time: how long it takes tells nothing about
    /// how much of a key was right, nor which it was.
    pub(crate) fn admits(&self, key: &str) -> bool {
        let digest: [u8; 32] = Sha256::digest(key).into();
        let known = self
            .digests
            .iter()
            .fold(Choice::from(0), |known, held| known | held.ct_eq(&digest));
        known.into()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_key_opens_and_nothing_else() {
        let mut keys = ApiKeys::default();
        assert!(!keys.required());
        keys.add("first", "here").unwrap();
        keys.add("second", "here").unwrap();
        assert!(keys.required() && keys.admits("first") && keys.admits("second"));
        for wrong in ["", "firs", "first ", "firstt", "First"] {
            assert!(!keys.admits(wrong), "{wrong}");
        }
        assert_eq!(format!("{keys:?}"), "ApiKeys(2)");
        for bad in ["", "a b", "a\tb", "schlüssel"] {
            assert!(keys.add(bad, "--api-key").is_err(), "{bad}");
        }
    }

    #[test]
    fn files_hold_one_key_a_line() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("keys");
        let read = |text: &str| {
            std::fs::write(&path, text).unwrap();
            let mut keys = ApiKeys::default();
            keys.add_file(&path).map(|()| keys)
        };
        let keys = read("# ours\r\nalpha\r\n\n  beta \n").unwrap();
        assert!(keys.admits("alpha") && keys.admits("beta") && !keys.admits("# ours"));
        assert!(matches!(read("\n# none\n"), Err(KeyError::Empty { .. })));
        let error = read("alpha\nbe ta\n").unwrap_err().to_string();
        assert!(error.contains("line 2"), "{error}");
        let gone = ApiKeys::default().add_file(&folder.path().join("gone"));
        assert!(matches!(gone, Err(KeyError::Read { .. })));
    }
}
