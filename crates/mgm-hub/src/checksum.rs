//! The names of blobs: what the hub says a file's bytes hash to.

use sha1::Sha1;
use sha2::{Digest, Sha256};

/// The hash that names a blob.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub(crate) enum Checksum {
    /// Of large files: SHA-256 of the contents.
    Sha256(String),
    /// Of small files: git's object name, SHA-1 over `blob SIZE\0` and the contents.
    GitSha1(String),
}

impl Checksum {
    /// From the hexadecimal digits in an entity tag, which may be quoted or marked weak.
    pub(crate) fn from_tag(tag: &str) -> Option<Self> {
        let digits = tag.strip_prefix("W/").unwrap_or(tag).trim_matches('"');
        if !digits
            .bytes()
            .all(|b| matches!(b, b'0'..=b'9' | b'a'..=b'f'))
        {
            return None;
        }
        match digits.len() {
            64 => Some(Self::Sha256(digits.into())),
            40 => Some(Self::GitSha1(digits.into())),
            _ => None,
        }
    }

    /// The digits: the blob's file name.
    pub(crate) fn digits(&self) -> &str {
        match self {
            Self::Sha256(digits) | Self::GitSha1(digits) => digits,
        }
    }

    /// For messages.
    pub(crate) fn kind(&self) -> &'static str {
        match self {
            Self::Sha256(_) => "sha256",
            Self::GitSha1(_) => "git sha1",
        }
    }

    /// A hash of this kind over `size` bytes to come.
    pub(crate) fn hasher(&self, size: u64) -> Hasher {
        match self {
            Self::Sha256(_) => Hasher::Sha256(Box::default()),
            Self::GitSha1(_) => {
                let mut hash = Sha1::new();
                hash.update(format!("blob {size}\0"));
                Hasher::GitSha1(Box::new(hash))
            }
        }
    }
}

/// A hash under way.
pub(crate) enum Hasher {
    Sha256(Box<Sha256>),
    GitSha1(Box<Sha1>),
}

impl Hasher {
    pub(crate) fn update(&mut self, bytes: &[u8]) {
        match self {
            Self::Sha256(hash) => hash.update(bytes),
            Self::GitSha1(hash) => hash.update(bytes),
        }
    }

    /// The digits.
    pub(crate) fn finish(self) -> String {
        let hexadecimal = |bytes: &[u8]| bytes.iter().map(|byte| format!("{byte:02x}")).collect();
        match self {
            Self::Sha256(hash) => hexadecimal(&hash.finalize()),
            Self::GitSha1(hash) => hexadecimal(&hash.finalize()),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn known_values() {
        // `printf 'hello\n' | git hash-object --stdin` and `| sha256sum`.
        for digits in [
            "ce013625030ba8dba906f756967f9e9ca394464a",
            "5891b5b522d5df086d0ff0b110fbd9d21bb4fc7163af34d08286a2e846f6be03",
        ] {
            let checksum = Checksum::from_tag(&format!("W/\"{digits}\"")).unwrap();
            let mut hasher = checksum.hasher(6);
            hasher.update(b"hel");
            hasher.update(b"lo\n");
            assert_eq!(hasher.finish(), digits);
            assert_eq!(checksum.digits(), digits);
        }
        for bad in [
            "",
            "\"\"",
            "../../../../../../../../../../../etc/passwd",
            "CE013625030BA8DBA906F756967F9E9CA394464A",
            "abc",
        ] {
            assert_eq!(Checksum::from_tag(bad), None, "{bad}");
        }
    }
}
