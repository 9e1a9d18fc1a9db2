//! Where the hub and its cache are, from the environment variables that `huggingface_hub` reads too.

use std::env;
use std::fmt;
use std::path::{Path, PathBuf};

use crate::error::{Error, Result};

/// The public hub.
const ENDPOINT: &str = "https://huggingface.co";

/// A secret that opens private and gated repositories. It never shows in debugging output.
#[derive(Clone, PartialEq, Eq)]
pub struct Token {
    pub(crate) secret: String,
    /// The variable or file it came from.
    pub origin: String,
}

impl Token {
    /// Checks that it can stand in a header.
    ///
    /// # Errors
    /// When it holds anything but visible ASCII characters.
    pub fn new(secret: &str, origin: &str) -> Result<Self> {
        if !secret.is_empty() && secret.bytes().all(|b| b.is_ascii_graphic()) {
            Ok(Self {
                secret: secret.into(),
                origin: origin.into(),
            })
        } else {
            Err(Error::Setting {
                name: origin.into(),
                expected: "a token of visible ASCII characters",
            })
        }
    }
}

impl fmt::Debug for Token {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Token(of {})", self.origin)
    }
}

/// The settings of a download.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Environment {
    /// The cache folder, which holds `models--organisation--name` folders.
    pub cache: PathBuf,
    /// The hub's address, without a final slash.
    pub endpoint: String,
    /// Sent to the endpoint, and to nobody else.
    pub token: Option<Token>,
    /// Whether the network must not be used.
    pub offline: bool,
    /// Whether snapshots are made of links to blobs (otherwise of the files themselves).
    pub links: bool,
}

impl Environment {
    /// Reads `HF_ENDPOINT`, `HF_TOKEN`, `HF_TOKEN_PATH`, `HF_HUB_OFFLINE`, `HF_HUB_CACHE`, `HF_HOME`, `XDG_CACHE_HOME`,
    /// `HF_HUB_DISABLE_SYMLINKS`, `HF_HUB_DISABLE_IMPLICIT_TOKEN`, and the older names of some of them.
    ///
    /// # Errors
    /// When the address is none, the token cannot be read or sent, or no home directory is known.
    pub fn read() -> Result<Self> {
        let home = hub_home();
        let endpoint = variable("HF_ENDPOINT").unwrap_or_else(|| ENDPOINT.into());
        let token = match switched_on("HF_HUB_DISABLE_IMPLICIT_TOKEN") {
            true => None,
            false => token(home.as_deref())?,
        };
        Ok(Self {
            cache: cache_directory().ok_or(Error::Setting {
                name: "HF_HOME".into(),
                expected: "the folder for downloaded models, because no home directory is known",
            })?,
            endpoint: checked_endpoint(&endpoint)?,
            token,
            offline: switched_on("HF_HUB_OFFLINE") || switched_on("TRANSFORMERS_OFFLINE"),
            links: !switched_on("HF_HUB_DISABLE_SYMLINKS"),
        })
    }
}

/// `HF_HUB_CACHE`, else `hub` below `HF_HOME`, else `~/.cache/huggingface/hub`.
pub(crate) fn cache_directory() -> Option<PathBuf> {
    ["HF_HUB_CACHE", "HUGGINGFACE_HUB_CACHE"]
        .into_iter()
        .find_map(path_variable)
        .map(|path| expanded(&path))
        .or_else(|| Some(hub_home()?.join("hub")))
}

/// `HF_HOME`, else `huggingface` below the user's cache folder.
fn hub_home() -> Option<PathBuf> {
    if let Some(path) = path_variable("HF_HOME") {
        return Some(expanded(&path));
    }
    let caches = match path_variable("XDG_CACHE_HOME") {
        Some(path) => expanded(&path),
        None => env::home_dir()?.join(".cache"),
    };
    Some(caches.join("huggingface"))
}

fn token(home: Option<&Path>) -> Result<Option<Token>> {
    for name in ["HF_TOKEN", "HUGGING_FACE_HUB_TOKEN"] {
        if let Some(secret) = variable(name) {
            let secret = secret.trim();
            if !secret.is_empty() {
                return Token::new(secret, name).map(Some);
            }
        }
    }
    let path = match path_variable("HF_TOKEN_PATH") {
        Some(path) => expanded(&path),
        None => match home {
            Some(home) => home.join("token"),
            None => return Ok(None),
        },
    };
    match std::fs::read_to_string(&path) {
        Ok(text) if text.trim().is_empty() => Ok(None),
        Ok(text) => Token::new(text.trim(), &path.display().to_string()).map(Some),
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => Ok(None),
        Err(source) => Err(Error::Io { path, source }),
    }
}

fn checked_endpoint(text: &str) -> Result<String> {
    let endpoint = text.trim_end_matches('/');
    let host = endpoint
        .strip_prefix("https://")
        .or_else(|| endpoint.strip_prefix("http://"));
    match host {
        Some(host) if !host.is_empty() && !host.contains(['?', '#', '@', ' ']) => {
            Ok(endpoint.into())
        }
        _ => Err(Error::Setting {
            name: "HF_ENDPOINT".into(),
            expected: "an address such as https://huggingface.co",
        }),
    }
}

/// A variable that is set to something. Bytes that are no text stay visible as such, so that nothing else is taken instead.
fn variable(name: &str) -> Option<String> {
    path_variable(name).map(|value| value.to_string_lossy().into_owned())
}

/// As [`variable`], with the bytes as they are, because a path may be any.
fn path_variable(name: &str) -> Option<PathBuf> {
    let value = env::var_os(name).filter(|value| !value.is_empty())?;
    Some(value.into())
}

fn switched_on(name: &str) -> bool {
    variable(name).is_some_and(|value| is_true(&value))
}

fn is_true(value: &str) -> bool {
    ["1", "ON", "YES", "TRUE"].contains(&value.to_ascii_uppercase().as_str())
}

/// `~/x` below the home directory, anything else as it is.
fn expanded(path: &Path) -> PathBuf {
    match (path.strip_prefix("~"), env::home_dir()) {
        (Ok(rest), Some(home)) => home.join(rest),
        _ => path.into(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn addresses_are_checked() {
        assert_eq!(
            checked_endpoint("http://localhost:80/hub//").unwrap(),
            "http://localhost:80/hub"
        );
        for bad in [
            "",
            "huggingface.co",
            "ftp://a",
            "https://",
            "https://user:password@host",
            "https://a?b",
        ] {
            assert!(checked_endpoint(bad).is_err(), "{bad}");
        }
    }

    #[test]
    fn tokens_are_neither_shown_nor_sent_broken() {
        let token = Token::new("hf_secret", "HF_TOKEN").unwrap();
        assert!(!format!("{token:?}").contains("secret"));
        let error = Token::new("hf_se\ncret", "HF_TOKEN")
            .unwrap_err()
            .to_string();
        assert!(
            error.contains("HF_TOKEN") && !error.contains("cret"),
            "{error}"
        );
    }

    #[test]
    fn switches_are_read_as_the_python_package_reads_them() {
        assert!(["1", "true", "Yes", "ON"].into_iter().all(is_true));
        assert!(!["0", "false", "no", "2"].into_iter().any(is_true));
    }
}
