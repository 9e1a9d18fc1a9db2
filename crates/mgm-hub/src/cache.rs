//! The hub's local cache, in the layout of `huggingface_hub`:
//!
//! ```text
//! models--organisation--name/
//!   blobs/<sha256 or git sha1>          the files' contents
//!   refs/<branch or tag>                the commit it last stood for
//!   snapshots/<commit>/<path>           links to blobs
//! .locks/models--organisation--name/    who is downloading what
//! ```

use std::path::{Path, PathBuf};

use crate::environment;
use crate::repository::{Repository, is_commit};

/// The cache folder that the environment names.
pub fn directory() -> Option<PathBuf> {
    environment::cache_directory()
}

/// The snapshot of a repository, where it was downloaded. It may lack files that nobody asked for.
pub fn find_snapshot(repository: &Repository, revision: Option<&str>) -> Option<PathBuf> {
    find_snapshot_in(&directory()?, repository, revision)
}

/// As [`find_snapshot`], in another cache.
pub fn find_snapshot_in(
    cache: &Path,
    repository: &Repository,
    revision: Option<&str>,
) -> Option<PathBuf> {
    let folder = cache.join(repository.folder());
    let revision = revision.unwrap_or(crate::MAIN);
    let commit = match is_commit(revision) {
        true => revision.to_string(),
        false => read_reference(&folder, revision)?,
    };
    Some(folder.join("snapshots").join(commit)).filter(|snapshot| snapshot.is_dir())
}

/// The commit that a branch or tag stood for when it was last asked for.
pub(crate) fn read_reference(folder: &Path, revision: &str) -> Option<String> {
    let commit = std::fs::read_to_string(folder.join("refs").join(revision)).ok()?;
    Some(commit.trim().to_string()).filter(|commit| is_commit(commit))
}

/// A snapshot in the cache.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Snapshot {
    /// Whose it is.
    pub repository: Repository,
    /// Its commit.
    pub commit: String,
    /// Its folder.
    pub path: PathBuf,
}

/// Every model snapshot in a cache, by repository and commit. What cannot be read is left out.
pub fn snapshots(cache: &Path) -> Vec<Snapshot> {
    let mut found = Vec::new();
    for (name, folder) in folders(cache) {
        let Some(repository) = Repository::from_folder(&name) else {
            continue;
        };
        for (commit, path) in folders(&folder.join("snapshots")) {
            if is_commit(&commit) {
                found.push(Snapshot {
                    repository: repository.clone(),
                    commit,
                    path,
                });
            }
        }
    }
    found.sort_by(|a, b| (&a.repository, &a.commit).cmp(&(&b.repository, &b.commit)));
    found
}

fn folders(directory: &Path) -> Vec<(String, PathBuf)> {
    let Ok(entries) = std::fs::read_dir(directory) else {
        return Vec::new();
    };
    entries
        .flatten()
        .filter(|entry| entry.path().is_dir())
        .filter_map(|entry| Some((entry.file_name().into_string().ok()?, entry.path())))
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn snapshots_are_found_by_reference_and_by_commit() {
        let cache = tempfile::tempdir().unwrap();
        let repository: Repository = "a/b".parse().unwrap();
        let commit = "0123456789012345678901234567890123456789";
        let folder = cache.path().join("models--a--b");
        assert_eq!(find_snapshot_in(cache.path(), &repository, None), None);
        std::fs::create_dir_all(folder.join("refs")).unwrap();
        std::fs::write(folder.join("refs/main"), commit).unwrap();
        assert_eq!(find_snapshot_in(cache.path(), &repository, None), None);
        let snapshot = folder.join("snapshots").join(commit);
        std::fs::create_dir_all(&snapshot).unwrap();
        for revision in [None, Some("main"), Some(commit)] {
            assert_eq!(
                find_snapshot_in(cache.path(), &repository, revision),
                Some(snapshot.clone())
            );
        }
        assert_eq!(
            find_snapshot_in(cache.path(), &repository, Some("v2")),
            None
        );
        // A reference is data from outside: it may not lead anywhere else.
        std::fs::write(folder.join("refs/main"), "../../..").unwrap();
        assert_eq!(find_snapshot_in(cache.path(), &repository, None), None);
        let all = snapshots(cache.path());
        assert_eq!(
            all,
            [Snapshot {
                repository,
                commit: commit.into(),
                path: snapshot
            }]
        );
    }
}
