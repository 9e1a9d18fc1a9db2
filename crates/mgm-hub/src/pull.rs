//! Downloading a repository's files into the cache.

use std::collections::HashSet;
use std::fs::{self, File, OpenOptions, TryLockError};
use std::io;
use std::path::{Path, PathBuf};
use std::sync::atomic::AtomicBool;
use std::time::Duration;

use crate::blob::{Blob, Event, hash_file, io_error, partial};
use crate::cache;
use crate::checksum::Checksum;
use crate::client::{Attempts, Client, Patience};
use crate::environment::Environment;
use crate::error::{Error, Result};
use crate::listing::{self, Listing};
use crate::repository::{Repository, Revision};
use crate::request;
use crate::selection::Selection;

/// How often a lock that somebody else holds is tried.
const LOCK_PAUSE: Duration = Duration::from_millis(200);

/// What to download, and how.
#[derive(Clone, Debug, Default)]
pub struct Options {
    /// Branch, tag or commit.
    pub revision: Revision,
    /// Which files.
    pub selection: Selection,
    /// Check the files that are already there against their checksums, and replace those that differ.
    pub verify: bool,
    /// When to try again.
    pub patience: Patience,
}

/// What is going on.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum Progress {
    /// The files are known.
    Found {
        /// How many there are.
        files: usize,
        /// Their size in bytes.
        bytes: u64,
        /// Bytes of those that are not in the cache yet.
        missing: u64,
    },
    /// A file's turn has come.
    File {
        /// Its name in the repository.
        name: String,
    },
    /// So many of the missing bytes are there. It may be less than before, where a server started over.
    Bytes(u64),
    /// Something the user should know.
    Note(String),
}

/// A finished download.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Pulled {
    /// The folder that holds the files.
    pub snapshot: PathBuf,
    /// The commit it is.
    pub commit: String,
    /// Files of it that were asked for; none in offline mode, where they are not known.
    pub files: usize,
    /// Bytes that were not in the cache before.
    pub downloaded: u64,
}

/// A wanted file.
struct Wanted {
    name: String,
    size: u64,
    checksum: Checksum,
}

/// Downloads what is missing of a repository, file by file. Files appear in the snapshot folder when their bytes have been checked;
/// the branch or tag points to the snapshot when all of them have.
///
/// # Errors
/// See [`Error`]. Whatever was downloaded until then stays, and the next call goes on from it, unless it was wrong.
pub fn pull(
    environment: &Environment,
    repository: &Repository,
    options: &Options,
    stop: &AtomicBool,
    report: &mut dyn FnMut(Progress),
) -> Result<Pulled> {
    if environment.offline {
        return offline(environment, repository, &options.revision);
    }
    let client = Client::new(
        environment,
        repository,
        &options.revision,
        options.patience,
        stop,
    );
    let Listing { commit, files } =
        listing::list(&client, &mut |text| report(Progress::Note(text)))?;
    let names: Vec<String> = files.iter().map(|file| file.name.clone()).take(8).collect();
    let files = options.selection.of(files);
    if files.is_empty() {
        return Err(Error::NothingSelected {
            repository: repository.to_string(),
            patterns: options.selection.patterns(),
            files: names.join(", "),
        });
    }
    let wanted = facts(&client, &commit, files, report)?;

    let cache = Cache {
        environment,
        folder: environment.cache.join(repository.folder()),
        locks: environment.cache.join(".locks").join(repository.folder()),
    };
    let snapshot = cache.folder.join("snapshots").join(&commit);
    create_folder(&cache.folder.join("blobs"))?;
    create_folder(&cache.locks)?;
    create_folder(&snapshot)?;

    let mut missing = Vec::new();
    for file in &wanted {
        if !cache.has(file, &snapshot, options.verify.then_some(stop), report)? {
            missing.push(file);
        }
    }
    // Two names may stand for the same bytes.
    let mut counted = HashSet::new();
    missing.retain(|file| counted.insert(&file.checksum));
    let missing_bytes = sum(missing.iter().map(|file| file.size));
    report(Progress::Found {
        files: wanted.len(),
        bytes: sum(wanted.iter().map(|file| file.size)),
        missing: missing_bytes,
    });
    cache.check_room(&missing)?;

    let mut done = 0;
    for file in missing {
        report(Progress::File {
            name: file.name.clone(),
        });
        cache.fetch(&client, &commit, file, &mut |event| {
            report(match event {
                Event::Have(bytes) => Progress::Bytes(done + bytes),
                Event::Note(text) => Progress::Note(text),
            });
        })?;
        done += file.size;
        report(Progress::Bytes(done));
    }
    for file in &wanted {
        cache.link(file, &snapshot)?;
    }
    if !options.revision.is_commit() {
        cache.write_reference(options.revision.as_str(), &commit)?;
    }
    Ok(Pulled {
        snapshot,
        commit,
        files: wanted.len(),
        downloaded: missing_bytes,
    })
}

fn offline(
    environment: &Environment,
    repository: &Repository,
    revision: &Revision,
) -> Result<Pulled> {
    let found = cache::find_snapshot_in(&environment.cache, repository, Some(revision.as_str()));
    let commit = found
        .as_deref()
        .and_then(|snapshot| Some(snapshot.file_name()?.to_str()?.to_string()));
    match (found, commit) {
        (Some(snapshot), Some(commit)) => Ok(Pulled {
            snapshot,
            commit,
            files: 0,
            downloaded: 0,
        }),
        _ => Err(Error::Offline {
            repository: repository.to_string(),
            revision: revision.to_string(),
            cache: environment.cache.clone(),
        }),
    }
}

/// Asks for sizes and checksums that the listing lacks.
fn facts(
    client: &Client<'_>,
    commit: &str,
    files: Vec<listing::File>,
    report: &mut dyn FnMut(Progress),
) -> Result<Vec<Wanted>> {
    let mut wanted = Vec::with_capacity(files.len());
    for listing::File {
        name,
        size,
        checksum,
    } in files
    {
        if let (Some(size), Some(checksum)) = (size, &checksum) {
            wanted.push(Wanted {
                name,
                size,
                checksum: checksum.clone(),
            });
            continue;
        }
        let url = listing::file_url(client, commit, &name);
        let mut attempts = Attempts::new(client, true);
        let facts = loop {
            match client.file_facts(&url) {
                Ok(facts) => break facts,
                Err(trouble) => {
                    attempts.failed(trouble, &url, &mut |text| report(Progress::Note(text)))?
                }
            }
        };
        let wrong = |message: String| Error::Answer {
            url: url.clone(),
            message,
        };
        if let Some(other) = facts.commit.filter(|other| other != commit) {
            return Err(wrong(format!("expected commit {commit}, found {other:?}")));
        }
        let checksum = facts
            .tag
            .as_deref()
            .and_then(Checksum::from_tag)
            .ok_or_else(|| {
                wrong(format!(
                    "expected a sha256 or git sha1 as its tag, found {:?}",
                    facts.tag
                ))
            })?;
        let size = facts
            .size
            .ok_or_else(|| wrong("the answer lacks the file's size".into()))?;
        wanted.push(Wanted {
            name,
            size,
            checksum,
        });
    }
    Ok(wanted)
}

/// A repository's part of the cache.
struct Cache<'a> {
    environment: &'a Environment,
    folder: PathBuf,
    locks: PathBuf,
}

impl Cache<'_> {
    fn blob(&self, file: &Wanted) -> PathBuf {
        self.folder.join("blobs").join(file.checksum.digits())
    }

    /// Whether a file is there, as a blob or (without links) in the snapshot. One of the wrong size is removed; with `verify`, also one
    /// of the wrong contents.
    fn has(
        &self,
        file: &Wanted,
        snapshot: &Path,
        verify: Option<&AtomicBool>,
        report: &mut dyn FnMut(Progress),
    ) -> Result<bool> {
        for path in [self.blob(file), snapshot.join(&file.name)] {
            let Ok(metadata) = path.metadata() else {
                continue;
            };
            if !metadata.is_file() {
                continue;
            }
            let found = match verify {
                _ if metadata.len() != file.size => format!("{} bytes", metadata.len()),
                Some(stop) => hash_file(&path, &file.checksum, stop)?,
                None => return Ok(true),
            };
            if found == file.checksum.digits() {
                return Ok(true);
            }
            report(Progress::Note(format!(
                "{}: {} is not what the hub has ({found}); downloading it again",
                file.name,
                path.display()
            )));
            fs::remove_file(&path).map_err(io_error(&path))?;
        }
        Ok(false)
    }

    /// Fails now rather than after hours when the disk cannot hold what is missing.
    fn check_room(&self, missing: &[&Wanted]) -> Result<()> {
        let there = |file: &Wanted| {
            fs::metadata(partial(&self.blob(file))).map_or(0, |metadata| metadata.len())
        };
        let needed = sum(missing
            .iter()
            .map(|file| file.size.saturating_sub(there(file))));
        // Where the system does not say, writing will.
        match fs4::available_space(&self.folder) {
            Ok(available) if available < needed => Err(Error::DiskFull {
                directory: self.folder.clone(),
                needed,
                available: Some(available),
            }),
            _ => Ok(()),
        }
    }

    /// Downloads a file's blob, alone.
    fn fetch(
        &self,
        client: &Client<'_>,
        commit: &str,
        file: &Wanted,
        report: &mut dyn FnMut(Event),
    ) -> Result<()> {
        let path = self.blob(file);
        let _lock = self.lock(file, client.stop, report)?;
        // Whoever held the lock may have done the work.
        if path
            .metadata()
            .is_ok_and(|metadata| metadata.len() == file.size)
        {
            return Ok(());
        }
        Blob {
            name: file.name.clone(),
            url: listing::file_url(client, commit, &file.name),
            size: file.size,
            checksum: file.checksum.clone(),
            path,
        }
        .fetch(client, report)
    }

    /// The lock that `huggingface_hub` takes too. The system frees it when the process ends, however it ends.
    fn lock(
        &self,
        file: &Wanted,
        stop: &AtomicBool,
        report: &mut dyn FnMut(Event),
    ) -> Result<File> {
        let path = self.locks.join(format!("{}.lock", file.checksum.digits()));
        let lock = OpenOptions::new()
            .write(true)
            .create(true)
            .truncate(false)
            .open(&path)
            .map_err(io_error(&path))?;
        let mut told = false;
        loop {
            match lock.try_lock() {
                Ok(()) => return Ok(lock),
                // File systems without locks: renaming keeps the cache whole, only work may be done twice.
                Err(TryLockError::Error(error)) if error.kind() == io::ErrorKind::Unsupported => {
                    return Ok(lock);
                }
                Err(TryLockError::Error(error)) => return Err(io_error(&path)(error)),
                Err(TryLockError::WouldBlock) => {}
            }
            if !told {
                told = true;
                report(Event::Note(format!(
                    "{}: another program is downloading it; waiting",
                    file.name
                )));
            }
            if !request::pause(LOCK_PAUSE, stop) {
                return Err(Error::Stopped);
            }
        }
    }

    /// Makes the file appear in the snapshot.
    fn link(&self, file: &Wanted, snapshot: &Path) -> Result<()> {
        let blob = self.blob(file);
        let pointer = snapshot.join(&file.name);
        let right = pointer
            .metadata()
            .is_ok_and(|metadata| metadata.len() == file.size);
        let same =
            || matches!((pointer.canonicalize(), blob.canonicalize()), (Ok(a), Ok(b)) if a == b);
        if right && (!blob.exists() || same()) {
            return Ok(());
        }
        if let Some(parent) = pointer.parent() {
            create_folder(parent)?;
        }
        match fs::remove_file(&pointer) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => {
                return Err(io_error(&pointer)(error));
            }
            _ => {}
        }
        if self.environment.links {
            // Relative, so that the cache can be moved. From `snapshots/<commit>/` two steps up, and one for each folder below.
            let mut target = PathBuf::from("../..");
            target.extend(file.name.split('/').skip(1).map(|_| ".."));
            target.extend(["blobs", file.checksum.digits()]);
            if symlink(&target, &pointer).is_ok() {
                return Ok(());
            }
        }
        // Without symbolic links, a second name of the file; without those, a copy.
        if fs::hard_link(&blob, &pointer).is_ok() {
            return Ok(());
        }
        let beside = self
            .folder
            .join("blobs")
            .join(format!("{}.copy", file.checksum.digits()));
        fs::copy(&blob, &beside).map_err(io_error(&beside))?;
        fs::rename(&beside, &pointer).map_err(io_error(&pointer))
    }

    /// Lets a branch or tag stand for a commit.
    fn write_reference(&self, revision: &str, commit: &str) -> Result<()> {
        if cache::read_reference(&self.folder, revision).as_deref() == Some(commit) {
            return Ok(());
        }
        let path = self.folder.join("refs").join(revision);
        if let Some(parent) = path.parent() {
            create_folder(parent)?;
        }
        let beside = path.with_file_name(format!(".{}.{}", commit, std::process::id()));
        fs::write(&beside, commit).map_err(io_error(&beside))?;
        fs::rename(&beside, &path).map_err(io_error(&path))
    }
}

/// Sizes are what a server says: adding them may not overflow.
fn sum(sizes: impl Iterator<Item = u64>) -> u64 {
    sizes.fold(0, u64::saturating_add)
}

fn create_folder(path: &Path) -> Result<()> {
    fs::create_dir_all(path).map_err(io_error(path))
}

#[cfg(unix)]
fn symlink(target: &Path, link: &Path) -> io::Result<()> {
    std::os::unix::fs::symlink(target, link)
}

#[cfg(windows)]
fn symlink(target: &Path, link: &Path) -> io::Result<()> {
    std::os::windows::fs::symlink_file(target, link)
}
