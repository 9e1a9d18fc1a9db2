//! A hub on this machine: the routes that a download uses, with faults to order. Small files come from the hub itself; large ones from a
//! store on another port, which is another origin, behind a redirection.
#![allow(dead_code, clippy::unwrap_used)]

use std::collections::HashMap;
use std::io::{BufRead, BufReader, Write};
use std::net::{TcpListener, TcpStream};
use std::sync::{Arc, Mutex};
use std::thread;
use std::time::Duration;

use sha1::Sha1;
use sha2::{Digest, Sha256};

pub(crate) const COMMIT: &str = "0123456789abcdef0123456789abcdef01234567";

/// A file of the repository.
#[derive(Clone)]
pub(crate) struct Stored {
    pub(crate) name: String,
    pub(crate) bytes: Vec<u8>,
    /// Whether it lies in the store, named by its SHA-256.
    pub(crate) large: bool,
    digits: String,
}

impl Stored {
    /// A file that the hub itself serves, named by git's SHA-1.
    pub(crate) fn small(name: &str, bytes: &[u8]) -> Self {
        let mut hash = Sha1::new();
        hash.update(format!("blob {}\0", bytes.len()));
        hash.update(bytes);
        Self {
            name: name.into(),
            digits: hexadecimal(&hash.finalize()),
            bytes: bytes.into(),
            large: false,
        }
    }

    /// A file of the store.
    pub(crate) fn large(name: &str, bytes: Vec<u8>) -> Self {
        Self {
            name: name.into(),
            digits: hexadecimal(&Sha256::digest(&bytes)),
            bytes,
            large: true,
        }
    }

    /// A file of the store, of `length` bytes that look random.
    pub(crate) fn noise(name: &str, length: usize) -> Self {
        let mut state = length as u32 | 1;
        let bytes = (0..length).map(|_| {
            state ^= state << 13;
            state ^= state >> 17;
            state ^= state << 5;
            state as u8
        });
        Self::large(name, bytes.collect())
    }

    /// The blob's name.
    pub(crate) fn digits(&self) -> &str {
        &self.digits
    }
}

fn hexadecimal(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}

/// What was asked.
#[derive(Clone, Debug)]
pub(crate) struct Asked {
    pub(crate) method: String,
    /// With the query.
    pub(crate) path: String,
    /// Names in lower case.
    pub(crate) headers: HashMap<String, String>,
    /// Whether the store was asked, not the hub.
    pub(crate) store: bool,
    /// How often this path was asked for before.
    pub(crate) before: usize,
}

impl Asked {
    pub(crate) fn is_listing(&self) -> bool {
        self.path.starts_with("/api/models/")
    }
}

/// How an answer goes wrong.
#[derive(Clone, Debug)]
pub(crate) enum Fault {
    /// Another answer: status, headers, body.
    Answer(u16, Vec<(String, String)>, Vec<u8>),
    /// The connection ends after so many bytes of the body.
    Break(usize),
    /// Nothing more comes after so many bytes of the body, and the connection stays.
    Stall(usize),
    /// The whole file comes, whatever range was asked for.
    IgnoreRange,
    /// As `IgnoreRange`, and the connection ends after so many bytes.
    IgnoreRangeAndBreak(usize),
    /// A byte is another one.
    Corrupt(usize),
    /// A range that was not asked for.
    WrongRange,
    /// Bytes that do not belong to the file follow it.
    TooMuch,
}

type Faults = dyn Fn(&Asked) -> Option<Fault> + Send + Sync;

struct Shared {
    files: Vec<Stored>,
    /// Whether the listing tells sizes and checksums.
    blobs: bool,
    faults: Box<Faults>,
    log: Mutex<Vec<Asked>>,
    store: String,
}

/// The running server. It serves the repository `org/model` until the process ends.
pub(crate) struct Server {
    pub(crate) endpoint: String,
    shared: Arc<Shared>,
}

impl Server {
    pub(crate) fn start(files: &[Stored]) -> Self {
        Self::with(files, true, |_| None)
    }

    pub(crate) fn with_faults(
        files: &[Stored],
        faults: impl Fn(&Asked) -> Option<Fault> + Send + Sync + 'static,
    ) -> Self {
        Self::with(files, true, faults)
    }

    pub(crate) fn with(
        files: &[Stored],
        blobs: bool,
        faults: impl Fn(&Asked) -> Option<Fault> + Send + Sync + 'static,
    ) -> Self {
        let hub = TcpListener::bind("127.0.0.1:0").unwrap();
        let store = TcpListener::bind("127.0.0.1:0").unwrap();
        let endpoint = format!("http://{}", hub.local_addr().unwrap());
        let shared = Arc::new(Shared {
            files: files.to_vec(),
            blobs,
            faults: Box::new(faults),
            log: Mutex::new(Vec::new()),
            store: format!("http://{}", store.local_addr().unwrap()),
        });
        for (listener, is_store) in [(hub, false), (store, true)] {
            let shared = shared.clone();
            thread::spawn(move || {
                for stream in listener.incoming().flatten() {
                    let shared = shared.clone();
                    // A client that leaves early is part of the tests.
                    thread::spawn(move || drop(shared.serve(stream, is_store)));
                }
            });
        }
        Self { endpoint, shared }
    }

    /// Everything that was asked so far.
    pub(crate) fn log(&self) -> Vec<Asked> {
        self.shared.log.lock().unwrap().clone()
    }

    /// Forgets what was asked.
    pub(crate) fn forget(&self) {
        self.shared.log.lock().unwrap().clear();
    }
}

impl Shared {
    fn serve(&self, stream: TcpStream, store: bool) -> std::io::Result<()> {
        let mut reader = BufReader::new(stream.try_clone()?);
        let mut stream = stream;
        while let Some(mut asked) = read_head(&mut reader)? {
            asked.store = store;
            {
                let mut log = self.log.lock().unwrap();
                asked.before = log
                    .iter()
                    .filter(|other| other.path == asked.path && other.store == store)
                    .count();
                log.push(asked.clone());
            }
            let fault = (self.faults)(&asked);
            if !self.answer(&mut stream, &asked, fault)? {
                return Ok(());
            }
        }
        Ok(())
    }

    /// Whether the connection stays.
    fn answer(
        &self,
        stream: &mut TcpStream,
        asked: &Asked,
        fault: Option<Fault>,
    ) -> std::io::Result<bool> {
        if let Some(Fault::Answer(status, headers, body)) = fault {
            return write_answer(stream, asked, status, &headers, &body, body.len());
        }
        let path = asked.path.split('?').next().unwrap();
        if !asked.store && path.starts_with("/api/models/org/model/revision/") {
            return write_answer(
                stream,
                asked,
                200,
                &[],
                self.listing().as_bytes(),
                usize::MAX,
            );
        }
        let resolve = format!("/org/model/resolve/{COMMIT}/");
        let file = match asked.store {
            true => self
                .files
                .iter()
                .find(|file| file.large && path == format!("/{}", file.digits())),
            false => path
                .strip_prefix(&resolve)
                .and_then(|name| self.files.iter().find(|file| file.name == name)),
        };
        let Some(file) = file else {
            let headers = [
                ("X-Error-Code".into(), "EntryNotFound".into()),
                ("X-Error-Message".into(), "Entry not found".into()),
            ];
            return write_answer(stream, asked, 404, &headers, b"", 0);
        };
        let facts = [
            ("X-Repo-Commit".to_string(), COMMIT.to_string()),
            ("Accept-Ranges".into(), "bytes".into()),
        ];
        if file.large && !asked.store {
            let mut headers = facts.to_vec();
            headers.push(("X-Linked-Etag".into(), format!("\"{}\"", file.digits())));
            headers.push(("X-Linked-Size".into(), file.bytes.len().to_string()));
            headers.push((
                "Location".into(),
                format!("{}/{}?Signature=secret", self.store, file.digits()),
            ));
            return write_answer(stream, asked, 302, &headers, b"", 0);
        }
        self.file(stream, asked, file, &facts, fault)
    }

    fn file(
        &self,
        stream: &mut TcpStream,
        asked: &Asked,
        file: &Stored,
        facts: &[(String, String)],
        fault: Option<Fault>,
    ) -> std::io::Result<bool> {
        let mut bytes = file.bytes.clone();
        let mut headers = match asked.store {
            true => vec![("ETag".to_string(), "\"the-stores-own-tag\"".to_string())],
            false => [facts, &[("ETag".into(), format!("\"{}\"", file.digits()))]].concat(),
        };
        let range = asked.headers.get("range").map(|range| {
            let start = range
                .strip_prefix("bytes=")
                .unwrap()
                .strip_suffix('-')
                .unwrap();
            start.parse::<usize>().unwrap()
        });
        let (mut status, mut limit, mut stays) = (200, usize::MAX, true);
        let mut start = range;
        match fault {
            Some(Fault::Break(at)) => limit = at,
            Some(Fault::Stall(at)) => {
                limit = at;
                stays = false;
            }
            Some(Fault::IgnoreRange) => start = None,
            Some(Fault::IgnoreRangeAndBreak(at)) => {
                start = None;
                limit = at;
            }
            Some(Fault::Corrupt(at)) => bytes[at] ^= 1,
            Some(Fault::TooMuch) => bytes.extend([7; 1000]),
            _ => {}
        }
        let shift = usize::from(matches!(fault, Some(Fault::WrongRange)));
        if let Some(start) = start {
            status = 206;
            headers.push((
                "Content-Range".into(),
                format!(
                    "bytes {}-{}/{}",
                    start + shift,
                    file.bytes.len() - 1,
                    file.bytes.len()
                ),
            ));
            bytes.drain(..start);
        }
        let whole = write_answer(stream, asked, status, &headers, &bytes, limit)?;
        if !stays {
            thread::sleep(Duration::from_secs(30));
        }
        Ok(whole)
    }

    fn listing(&self) -> String {
        let siblings: Vec<String> = self
            .files
            .iter()
            .map(|file| {
                let (name, size, digits) = (&file.name, file.bytes.len(), file.digits());
                match (self.blobs, file.large) {
                    (false, _) => format!(r#"{{"rfilename": "{name}"}}"#),
                    (true, false) => format!(r#"{{"rfilename": "{name}", "size": {size}, "blobId": "{digits}"}}"#),
                    // The pointer's own name is never the file's.
                    (true, true) => format!(
                        r#"{{"rfilename": "{name}", "size": {size}, "blobId": "{COMMIT}", "lfs": {{"sha256": "{digits}", "size": {size}, "pointerSize": 135}}}}"#
                    ),
                }
            })
            .collect();
        format!(
            r#"{{"id": "org/model", "sha": "{COMMIT}", "siblings": [{}]}}"#,
            siblings.join(", ")
        )
    }
}

fn read_head(reader: &mut BufReader<TcpStream>) -> std::io::Result<Option<Asked>> {
    let mut line = String::new();
    if reader.read_line(&mut line)? == 0 {
        return Ok(None);
    }
    let mut words = line.split_whitespace().map(str::to_string);
    let (Some(method), Some(path)) = (words.next(), words.next()) else {
        return Ok(None);
    };
    let mut headers = HashMap::new();
    loop {
        line.clear();
        reader.read_line(&mut line)?;
        match line.trim_end().split_once(':') {
            Some((name, value)) => {
                headers.insert(name.to_ascii_lowercase(), value.trim().to_string())
            }
            None => break,
        };
    }
    Ok(Some(Asked {
        method,
        path,
        headers,
        store: false,
        before: 0,
    }))
}

/// Writes at most `limit` bytes of the body, though all are announced; whether it was all.
fn write_answer(
    stream: &mut TcpStream,
    asked: &Asked,
    status: u16,
    headers: &[(String, String)],
    body: &[u8],
    limit: usize,
) -> std::io::Result<bool> {
    let mut head = format!("HTTP/1.1 {status} Status\r\n");
    if !headers.iter().any(|(name, _)| name == "Content-Length") {
        head += &format!("Content-Length: {}\r\n", body.len());
    }
    for (name, value) in headers {
        head += &format!("{name}: {value}\r\n");
    }
    head += "\r\n";
    stream.write_all(head.as_bytes())?;
    if asked.method != "HEAD" {
        stream.write_all(&body[..limit.min(body.len())])?;
    }
    stream.flush()?;
    Ok(asked.method == "HEAD" || limit >= body.len())
}
