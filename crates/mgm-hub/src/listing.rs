//! What files a revision of a repository holds.

use percent_encoding::{AsciiSet, NON_ALPHANUMERIC, utf8_percent_encode};
use serde::Deserialize;

use crate::checksum::Checksum;
use crate::client::{Attempts, Client, Trouble};
use crate::error::{Error, Result};
use crate::repository::is_commit;

/// Largest listing that is read: some hundred thousand files.
const LARGEST: usize = 64 << 20;
/// What a part of an address may hold as it is.
const PART: &AsciiSet = &NON_ALPHANUMERIC
    .remove(b'-')
    .remove(b'_')
    .remove(b'.')
    .remove(b'~');

/// A revision's files.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Listing {
    pub(crate) commit: String,
    pub(crate) files: Vec<File>,
}

/// A file as it is listed. Mirrors may leave out size and checksum.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct File {
    /// Path in the repository: relative, `/` between parts, none of them `.` or `..`.
    pub(crate) name: String,
    pub(crate) size: Option<u64>,
    pub(crate) checksum: Option<Checksum>,
}

#[derive(Deserialize)]
struct Info {
    sha: String,
    siblings: Vec<Sibling>,
}

#[derive(Deserialize)]
struct Sibling {
    rfilename: String,
    size: Option<u64>,
    #[serde(rename = "blobId")]
    blob_id: Option<String>,
    lfs: Option<Pointer>,
}

#[derive(Deserialize)]
struct Pointer {
    sha256: Option<String>,
    size: Option<u64>,
}

/// Asks for the files of the client's revision.
pub(crate) fn list(client: &Client<'_>, note: &mut dyn FnMut(String)) -> Result<Listing> {
    let url = format!(
        "{}/api/models/{}/revision/{}?blobs=true",
        client.environment.endpoint,
        client.repository,
        utf8_percent_encode(client.revision.as_str(), PART)
    );
    let mut attempts = Attempts::new(client, false);
    loop {
        match body(client, &url) {
            Ok(bytes) => return parse(&bytes, &crate::client::shown(&url)),
            Err(trouble) => attempts.failed(trouble, &url, note)?,
        }
    }
}

/// The address of a file's contents.
pub(crate) fn file_url(client: &Client<'_>, commit: &str, name: &str) -> String {
    let path: Vec<String> = name
        .split('/')
        .map(|part| utf8_percent_encode(part, PART).to_string())
        .collect();
    format!(
        "{}/{}/resolve/{commit}/{}",
        client.environment.endpoint,
        client.repository,
        path.join("/")
    )
}

fn body(client: &Client<'_>, url: &str) -> Result<Vec<u8>, Trouble> {
    let answer = client.get(url, 0)?;
    let mut bytes = Vec::new();
    loop {
        let chunk = answer
            .body
            .next(client.stop, client.patience.silence)
            .map_err(|waiting| Trouble::waiting(waiting, client.patience))?
            .map_err(|error| Trouble::broken(&error))?;
        if chunk.is_empty() {
            return Ok(bytes);
        }
        if bytes.len() + chunk.len() > LARGEST {
            return Err(Error::Answer {
                url: crate::client::shown(url),
                message: format!("the list of files is longer than {LARGEST} bytes"),
            }
            .into());
        }
        bytes.extend_from_slice(&chunk);
    }
}

fn parse(bytes: &[u8], url: &str) -> Result<Listing> {
    let wrong = |message: String| Error::Answer {
        url: url.into(),
        message,
    };
    let info: Info = serde_json::from_slice(bytes)
        .map_err(|error| wrong(format!("expected the hub's list of files: {error}")))?;
    if !is_commit(&info.sha) {
        return Err(wrong(format!(
            "expected a commit, found {:?}",
            short(&info.sha)
        )));
    }
    let mut files = Vec::with_capacity(info.siblings.len());
    for sibling in info.siblings {
        let name = sibling.rfilename;
        if !is_inside(&name) {
            return Err(wrong(format!(
                "{:?} is no path inside a repository",
                short(&name)
            )));
        }
        let (size, tag) = match sibling.lfs {
            Some(Pointer { sha256, size }) => (size.or(sibling.size), sha256),
            None => (sibling.size, sibling.blob_id),
        };
        files.push(File {
            name,
            size,
            checksum: tag.as_deref().and_then(Checksum::from_tag),
        });
    }
    files.sort_by(|a, b| a.name.cmp(&b.name));
    if let Some(pair) = files.windows(2).find(|pair| pair[0].name == pair[1].name) {
        return Err(wrong(format!("{:?} is listed twice", pair[0].name)));
    }
    Ok(Listing {
        commit: info.sha,
        files,
    })
}

/// Whether a path stays inside the folder it is joined to, on every system.
fn is_inside(name: &str) -> bool {
    let plain = |part: &str| {
        !matches!(part, "" | "." | "..")
            && !part
                .chars()
                .any(|c| c.is_control() || matches!(c, '\\' | ':'))
    };
    name.len() <= 1024 && name.split('/').all(plain)
}

/// The beginning of a text of unknown length.
fn short(text: &str) -> String {
    text.chars().take(80).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    const COMMIT: &str = "0123456789012345678901234567890123456789";

    fn parsed(siblings: &str) -> Result<Vec<File>> {
        let text = format!("{{\"sha\": \"{COMMIT}\", \"siblings\": {siblings}, \"more\": [1]}}");
        parse(text.as_bytes(), "http://hub.test/api").map(|listing| listing.files)
    }

    #[test]
    fn large_and_small_files_are_listed_with_their_checksums() {
        let sha256 = "5891b5b522d5df086d0ff0b110fbd9d21bb4fc7163af34d08286a2e846f6be03";
        let files = parsed(&format!(
            "[{{\"rfilename\": \"b\", \"size\": 6, \"blobId\": \"{COMMIT}\", \"lfs\": {{\"sha256\": \"{sha256}\", \"size\": 7, \"pointerSize\": 1}}}},
              {{\"rfilename\": \"a/c\", \"size\": 6, \"blobId\": \"{COMMIT}\"}}, {{\"rfilename\": \"d\"}}]"
        ))
        .unwrap();
        assert_eq!(files.len(), 3);
        assert_eq!(files[0].name, "a/c");
        assert_eq!(files[0].checksum, Some(Checksum::GitSha1(COMMIT.into())));
        assert_eq!(files[1].checksum, Some(Checksum::Sha256(sha256.into())));
        assert_eq!(files[1].size, Some(7));
        assert_eq!((files[2].size, &files[2].checksum), (None, &None));
    }

    #[test]
    fn bad_listings_are_refused() {
        for name in [
            "../x", "/x", "a/../b", "a//b", "", ".", "a\\b", "C:x", "a\0b",
        ] {
            let text = serde_json::to_string(name).unwrap();
            let error = parsed(&format!("[{{\"rfilename\": {text}}}]")).unwrap_err();
            assert!(error.to_string().contains("inside"), "{error}");
        }
        assert!(parsed("[{\"rfilename\": \"a\"}, {\"rfilename\": \"a\"}]").is_err());
        assert!(parsed("3").is_err());
        assert!(parse(b"<html>", "u").is_err());
        assert!(parse(b"{\"sha\": \"../..\", \"siblings\": []}", "u").is_err());
        assert!(parse("[".repeat(100_000).as_bytes(), "u").is_err());
    }
}
