//! One file's contents: continued where an earlier attempt ended, checked, and only then given its name.

use std::fs::{self, File, OpenOptions};
use std::io::{self, Read, Seek, SeekFrom, Write};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, Ordering};

use ureq::http::header;

use crate::checksum::{Checksum, Hasher};
use crate::client::{Answer, Attempts, Client, Trouble};
use crate::error::{Error, Result};

/// What is to be downloaded, and where to.
pub(crate) struct Blob {
    /// The file's name in the repository.
    pub(crate) name: String,
    pub(crate) url: String,
    pub(crate) size: u64,
    pub(crate) checksum: Checksum,
    /// `blobs/<checksum>`; the unfinished file lies beside it.
    pub(crate) path: PathBuf,
}

/// What happens meanwhile.
pub(crate) enum Event {
    /// So much of the file is there. It may be less than before.
    Have(u64),
    Note(String),
}

impl Blob {
    /// Downloads the file. The caller holds its lock.
    pub(crate) fn fetch(&self, client: &Client<'_>, report: &mut dyn FnMut(Event)) -> Result<()> {
        let partial = partial(&self.path);
        let mut repeated = false;
        loop {
            let mut download = Download::open(self, &partial, client.stop)?;
            download.complete(client, report)?;
            let found = download.finish()?;
            if found == self.checksum.digits() {
                return fs::rename(&partial, &self.path).map_err(io_error(&self.path));
            }
            // Which bytes are wrong cannot be known, so none are kept.
            fs::remove_file(&partial).map_err(io_error(&partial))?;
            let error = Error::WrongBytes {
                file: self.name.clone(),
                what: self.checksum.kind(),
                expected: self.checksum.digits().into(),
                found,
            };
            if repeated {
                return Err(error);
            }
            repeated = true;
            report(Event::Note(format!("{error}; downloading it again")));
            report(Event::Have(0));
        }
    }
}

/// The unfinished file of a blob, named as `huggingface_hub` names it.
pub(crate) fn partial(blob: &Path) -> PathBuf {
    let mut name = blob.as_os_str().to_owned();
    name.push(".incomplete");
    name.into()
}

/// A file as far as it has come, and the hash of that.
struct Download<'a> {
    blob: &'a Blob,
    path: &'a Path,
    file: File,
    hasher: Hasher,
    have: u64,
}

impl<'a> Download<'a> {
    /// Takes up what an earlier attempt left.
    fn open(blob: &'a Blob, path: &'a Path, stop: &AtomicBool) -> Result<Self> {
        let file = OpenOptions::new()
            .read(true)
            .write(true)
            .create(true)
            .truncate(false)
            .open(path)
            .map_err(io_error(path))?;
        let mut download = Self {
            blob,
            path,
            file,
            hasher: blob.checksum.hasher(blob.size),
            have: 0,
        };
        let length = download.file.metadata().map_err(io_error(path))?.len();
        if length > blob.size {
            download.start_over()?;
        }
        let mut buffer = vec![0; 1 << 20];
        loop {
            if stop.load(Ordering::SeqCst) {
                return Err(Error::Stopped);
            }
            let read = download.file.read(&mut buffer).map_err(io_error(path))?;
            if read == 0 {
                return Ok(download);
            }
            download.hasher.update(&buffer[..read]);
            download.have += read as u64;
        }
    }

    fn start_over(&mut self) -> Result<()> {
        self.file
            .set_len(0)
            .and_then(|()| self.file.seek(SeekFrom::Start(0)))
            .map_err(io_error(self.path))?;
        self.hasher = self.blob.checksum.hasher(self.blob.size);
        self.have = 0;
        Ok(())
    }

    /// Downloads until every byte is there.
    fn complete(&mut self, client: &Client<'_>, report: &mut dyn FnMut(Event)) -> Result<()> {
        let mut attempts = Attempts::new(client, true);
        // Servers that ignore ranges start over each time: progress is only what is more than ever before.
        let mut most = self.have;
        report(Event::Have(self.have));
        while self.have < self.blob.size {
            let Err(trouble) = self.attempt(client, report) else {
                continue;
            };
            if self.have > most {
                most = self.have;
                attempts.progressed();
            }
            attempts.failed(trouble, &self.blob.url, &mut |text| {
                report(Event::Note(format!("{}: {text}", self.blob.name)));
            })?;
        }
        Ok(())
    }

    /// One request, and all it brings.
    fn attempt(
        &mut self,
        client: &Client<'_>,
        report: &mut dyn FnMut(Event),
    ) -> Result<(), Trouble> {
        let answer = client.get(&self.blob.url, self.have)?;
        self.check(&answer)?;
        if answer.status != 206 && self.have > 0 {
            self.start_over()?;
        }
        loop {
            let chunk = answer
                .body
                .next(client.stop, client.patience.silence)
                .map_err(|waiting| Trouble::waiting(waiting, client.patience))?
                .map_err(|error| Trouble::broken(&error))?;
            if chunk.is_empty() {
                return match self.have == self.blob.size {
                    true => Ok(()),
                    false => Err(Trouble::passing(format!(
                        "the connection ended after {} of {} bytes",
                        self.have, self.blob.size
                    ))),
                };
            }
            if self.have + chunk.len() as u64 > self.blob.size {
                self.start_over()?;
                return Err(Trouble::passing(format!(
                    "more than the expected {} bytes came",
                    self.blob.size
                )));
            }
            self.file
                .write_all(&chunk)
                .map_err(|error| self.write_error(error))?;
            self.hasher.update(&chunk);
            self.have += chunk.len() as u64;
            report(Event::Have(self.have));
            if self.have == self.blob.size {
                return Ok(());
            }
        }
    }

    /// Whether the answer is about this blob, and begins where it should.
    fn check(&self, answer: &Answer) -> Result<(), Trouble> {
        let wrong = |what: &str, found: &str, expected: &str| {
            Trouble::passing(format!("{what} is {found}, expected {expected}"))
        };
        let tag = answer.facts.tag.as_deref().and_then(Checksum::from_tag);
        // Stores have tags of their own; only one of the same kind can contradict.
        if let Some(tag) = tag
            && tag.kind() == self.blob.checksum.kind()
            && tag != self.blob.checksum
        {
            return Err(wrong(
                "the hub's checksum",
                tag.digits(),
                self.blob.checksum.digits(),
            ));
        }
        if answer.status == 206 {
            let expected = format!(
                "bytes {}-{}/{}",
                self.have,
                self.blob.size - 1,
                self.blob.size
            );
            let range = answer.headers.get(header::CONTENT_RANGE);
            let range = range
                .and_then(|range| range.to_str().ok())
                .unwrap_or("missing");
            if range != expected {
                return Err(wrong("Content-Range", range, &expected));
            }
        }
        Ok(())
    }

    fn write_error(&self, error: io::Error) -> Error {
        match error.kind() {
            io::ErrorKind::StorageFull | io::ErrorKind::QuotaExceeded => Error::DiskFull {
                directory: self.path.parent().unwrap_or(self.path).into(),
                needed: self.blob.size - self.have,
                available: None,
            },
            _ => io_error(self.path)(error),
        }
    }

    /// Everything on the disk; what it hashes to.
    fn finish(self) -> Result<String> {
        self.file
            .sync_all()
            .map_err(|error| self.write_error(error))?;
        Ok(self.hasher.finish())
    }
}

/// What the file at `path` hashes to.
pub(crate) fn hash_file(path: &Path, checksum: &Checksum, stop: &AtomicBool) -> Result<String> {
    let mut file = File::open(path).map_err(io_error(path))?;
    let size = file.metadata().map_err(io_error(path))?.len();
    let mut hasher = checksum.hasher(size);
    let mut buffer = vec![0; 1 << 20];
    loop {
        if stop.load(Ordering::SeqCst) {
            return Err(Error::Stopped);
        }
        match file.read(&mut buffer).map_err(io_error(path))? {
            0 => return Ok(hasher.finish()),
            read => hasher.update(&buffer[..read]),
        }
    }
}

/// Names the file in an error.
pub(crate) fn io_error(path: &Path) -> impl Fn(io::Error) -> Error {
    let path = path.to_path_buf();
    move |source| Error::Io {
        path: path.clone(),
        source,
    }
}
