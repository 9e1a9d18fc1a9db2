//! Names of repositories and revisions, checked before they become part of a path or an address.

use std::fmt;
use std::str::FromStr;

use crate::error::Error;
use crate::releases;

/// The default branch.
pub const MAIN: &str = "main";

/// A model repository, `organisation/name`.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Repository(String);

impl Repository {
    /// `organisation/name`.
    pub fn as_str(&self) -> &str {
        &self.0
    }

    /// Its folder in the cache: `models--organisation--name`.
    pub fn folder(&self) -> String {
        format!("models--{}", self.0.replace('/', "--"))
    }

    /// The repository that a cache folder's name stands for.
    pub fn from_folder(folder: &str) -> Option<Self> {
        let name = folder.strip_prefix("models--")?;
        // `--` never occurs in a name, so the first one is the separator.
        Self::parse_pair(&name.replacen("--", "/", 1))
    }

    fn parse_pair(text: &str) -> Option<Self> {
        let (organisation, name) = text.split_once('/')?;
        (is_part(organisation) && is_part(name)).then(|| Self(text.into()))
    }
}

/// The hub's rule for a part of a name: up to 96 letters, digits and `-_.`, no `--`, no `..`, neither at an end.
fn is_part(part: &str) -> bool {
    let plain = |c: char| c.is_ascii_alphanumeric() || "-_.".contains(c);
    (1..=96).contains(&part.len())
        && part.chars().all(plain)
        && !part.contains("--")
        && !part.contains("..")
        && !part.starts_with(['-', '.'])
        && !part.ends_with(['-', '.'])
}

impl FromStr for Repository {
    type Err = Error;

    /// The name of a known release (`mgm-2b`), or `organisation/name`.
    fn from_str(text: &str) -> Result<Self, Error> {
        let name = match releases::find(text) {
            Some(release) => release.repository,
            None => text,
        };
        Self::parse_pair(name).ok_or_else(|| Error::RepositoryName {
            name: text.into(),
            known: releases::RELEASES.map(|release| release.name).join(", "),
        })
    }
}

impl fmt::Display for Repository {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

/// A branch, a tag or a commit.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Revision(String);

impl Revision {
    /// As written.
    pub fn as_str(&self) -> &str {
        &self.0
    }

    /// Whether it is a whole commit hash, which never changes its meaning.
    pub fn is_commit(&self) -> bool {
        is_commit(&self.0)
    }
}

/// Whether `text` is a git commit hash: 40 lower-case hexadecimal digits.
pub(crate) fn is_commit(text: &str) -> bool {
    text.len() == 40 && text.bytes().all(|b| matches!(b, b'0'..=b'9' | b'a'..=b'f'))
}

impl Default for Revision {
    fn default() -> Self {
        Self(MAIN.into())
    }
}

impl FromStr for Revision {
    type Err = Error;

    fn from_str(text: &str) -> Result<Self, Error> {
        // A revision becomes a path below `refs/`; git forbids most of what would be dangerous there anyway.
        let plain = |c: char| c.is_ascii_alphanumeric() || "-_./+@#".contains(c);
        let safe =
            |part: &str| !part.is_empty() && !part.starts_with('.') && part.chars().all(plain);
        if text.len() <= 200 && text.split('/').all(safe) && !text.contains("..") {
            Ok(Self(text.into()))
        } else {
            Err(Error::RevisionName { name: text.into() })
        }
    }
}

impl fmt::Display for Revision {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_are_checked() {
        let repository: Repository = "YanweiLi/MGM-2B".parse().unwrap();
        assert_eq!(repository.folder(), "models--YanweiLi--MGM-2B");
        assert_eq!(
            Repository::from_folder("models--YanweiLi--MGM-2B"),
            Some(repository.clone())
        );
        assert_eq!("mgm-2b".parse::<Repository>().unwrap(), repository);
        assert_eq!("MGM-2B".parse::<Repository>().unwrap(), repository);
        for bad in [
            "", "a", "a/", "/a", "a/b/c", "../b", "a/..", "a/b--c", "a/b c", "a\\b/c", "a/.b",
            "a/b.", "a/%2e",
        ] {
            assert!(bad.parse::<Repository>().is_err(), "{bad}");
        }
        assert!(
            format!("a/{}", "b".repeat(97))
                .parse::<Repository>()
                .is_err()
        );
        assert_eq!(Repository::from_folder("datasets--a--b"), None);
        assert_eq!(Repository::from_folder("models--gpt2"), None);
    }

    #[test]
    fn revisions_are_checked() {
        for good in [
            "main",
            "v1.0",
            "refs/pr/3",
            "0123456789012345678901234567890123456789",
        ] {
            assert_eq!(good.parse::<Revision>().unwrap().as_str(), good);
        }
        for bad in [
            "", "..", "a/../b", "/a", "a//b", ".git", "a\\b", "a b", "a?b", "a%2f",
        ] {
            assert!(bad.parse::<Revision>().is_err(), "{bad}");
        }
        assert!(
            "0123456789012345678901234567890123456789"
                .parse::<Revision>()
                .unwrap()
                .is_commit()
        );
        assert!(!Revision::default().is_commit());
    }
}
