//! Hugging Face's cache on this machine, read only: `models--{organisation}--{name}/{refs,snapshots}`. Nothing here uses the network.

use std::path::{Path, PathBuf};

/// Folder of the cache: `HF_HUB_CACHE`, else `HF_HOME/hub`, else `huggingface/hub` in `XDG_CACHE_HOME` or `~/.cache`.
/// `None` when none of these variables, nor `HOME`, is set.
pub fn directory() -> Option<PathBuf> {
    let variable = |name: &str| {
        std::env::var_os(name)
            .filter(|value| !value.is_empty())
            .map(PathBuf::from)
    };
    variable("HF_HUB_CACHE")
        .or_else(|| variable("HUGGINGFACE_HUB_CACHE"))
        .or_else(|| Some(variable("HF_HOME")?.join("hub")))
        .or_else(|| Some(variable("XDG_CACHE_HOME")?.join("huggingface/hub")))
        .or_else(|| Some(variable("HOME")?.join(".cache/huggingface/hub")))
}

/// Whether `name` can be a hub name: `organisation/name` of letters, digits, `.`, `_` and `-`.
pub fn is_repository(name: &str) -> bool {
    let mut parts = name.split('/');
    let fits = |part: Option<&str>| {
        part.is_some_and(|part| {
            !part.is_empty()
                && !part.starts_with(['.', '-'])
                && !part.contains("..")
                && part
                    .chars()
                    .all(|letter| letter.is_ascii_alphanumeric() || "._-".contains(letter))
        })
    };
    fits(parts.next()) && fits(parts.next()) && parts.next().is_none()
}

/// The folder of a downloaded repository at `revision` (a branch, tag or commit; `main` when absent). Upper and lower case do not matter in
/// the name.
pub fn find_snapshot(repository: &str, revision: Option<&str>) -> Option<PathBuf> {
    find_snapshot_in(&directory()?, repository, revision)
}

/// [`find_snapshot`] in a cache folder of one's own.
pub fn find_snapshot_in(cache: &Path, repository: &str, revision: Option<&str>) -> Option<PathBuf> {
    if !is_repository(repository) {
        return None;
    }
    let folder = format!("models--{}", repository.replace('/', "--"));
    let root = match cache.join(&folder) {
        exact if exact.is_dir() => exact,
        _ => std::fs::read_dir(cache).ok()?.find_map(|entry| {
            let entry = entry.ok()?;
            let name = entry.file_name();
            name.to_str()?
                .eq_ignore_ascii_case(&folder)
                .then(|| entry.path())
        })?,
    };
    let snapshots = root.join("snapshots");
    let wanted = revision.unwrap_or("main");
    // A revision is a path only inside `refs`; `..` in it would leave the cache.
    if wanted.split('/').any(|part| part == "..") {
        return None;
    }
    let commit = std::fs::read_to_string(root.join("refs").join(wanted)).ok();
    let named = snapshots.join(commit.as_deref().map_or(wanted, str::trim));
    if named.is_dir() {
        return Some(named);
    }
    if revision.is_some() {
        return None;
    }
    // Without a branch file the newest snapshot is what was downloaded last.
    std::fs::read_dir(snapshots)
        .ok()?
        .filter_map(|entry| {
            let entry = entry.ok()?;
            let metadata = entry.metadata().ok()?;
            metadata
                .is_dir()
                .then(|| (metadata.modified().ok(), entry.path()))
        })
        .max()
        .map(|(_, path)| path)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_of_repositories() {
        for good in [
            "YanweiLi/MGM-2B",
            "a/b",
            "laion/CLIP-convnext_large_d_320.x",
        ] {
            assert!(is_repository(good), "{good}");
        }
        for bad in [
            "MGM-2B", "a/b/c", "../b", "a/..", "a/", "/b", "a b/c", "-a/b",
        ] {
            assert!(!is_repository(bad), "{bad}");
        }
    }

    #[test]
    fn a_branch_names_its_snapshot() {
        let cache = std::env::temp_dir().join(format!("mgm-hub-cache-{}", std::process::id()));
        let root = cache.join("models--YanweiLi--MGM-2B");
        std::fs::create_dir_all(root.join("snapshots/aaa")).unwrap();
        std::fs::create_dir_all(root.join("snapshots/bbb")).unwrap();
        std::fs::create_dir_all(root.join("refs")).unwrap();
        std::fs::write(root.join("refs/main"), "aaa\n").unwrap();
        let find = |name: &str, revision| find_snapshot_in(&cache, name, revision);
        assert_eq!(
            find("YanweiLi/MGM-2B", None),
            Some(root.join("snapshots/aaa"))
        );
        assert_eq!(
            find("yanweili/mgm-2b", Some("bbb")),
            Some(root.join("snapshots/bbb"))
        );
        assert_eq!(find("YanweiLi/MGM-2B", Some("ccc")), None);
        assert_eq!(find("YanweiLi/MGM-2B", Some("../refs")), None);
        assert_eq!(find("YanweiLi/MGM-7B", None), None);
        std::fs::remove_file(root.join("refs/main")).unwrap();
        assert!(find("YanweiLi/MGM-2B", None).is_some());
        std::fs::remove_dir_all(cache).unwrap();
    }
}
