//! Downloads from a local server that serves the hub's routes, breaks connections and corrupts bytes.
#![allow(clippy::unwrap_used)]

mod server;

use std::fs;
use std::path::Path;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use mgm_hub::{
    Environment, Error, Options, Patience, Progress, Pulled, Repository, Result, Selection, Token,
    cache, pull,
};
use server::{COMMIT, Fault, Server, Stored};

const BIG: usize = 1_500_000;

fn files() -> Vec<Stored> {
    vec![
        Stored::small("config.json", b"{\"architectures\": [\"MGM\"]}"),
        Stored::small("empty.txt", b""),
        Stored::small("sub/folder/file.txt", b"deep"),
        Stored::noise("model-00001-of-00002.safetensors", BIG),
        Stored::noise("model-00002-of-00002.safetensors", 1000),
        Stored::small("model.safetensors.index.json", b"{}"),
        Stored::noise("pytorch_model.bin", 2000),
    ]
}

/// A cache that is asked to hold `org/model`.
struct Client {
    folder: tempfile::TempDir,
    environment: Environment,
    options: Options,
    notes: Vec<String>,
    stop: AtomicBool,
    /// Called with each progress.
    watch: fn(&Progress, &AtomicBool),
}

impl Client {
    fn new(server: &Server) -> Self {
        let folder = tempfile::tempdir().unwrap();
        Self {
            environment: Environment {
                cache: folder.path().join("hub"),
                endpoint: server.endpoint.clone(),
                token: None,
                offline: false,
                links: true,
            },
            folder,
            options: Options {
                patience: Patience {
                    attempts: 4,
                    first_pause: Duration::from_millis(2),
                    silence: Duration::from_millis(1500),
                },
                ..Options::default()
            },
            notes: Vec::new(),
            stop: AtomicBool::new(false),
            watch: |_, _| {},
        }
    }

    fn pull(&mut self) -> Result<Pulled> {
        let repository: Repository = "org/model".parse().unwrap();
        let (notes, stop, watch) = (&mut self.notes, &self.stop, self.watch);
        pull(
            &self.environment,
            &repository,
            &self.options,
            stop,
            &mut |progress| {
                watch(&progress, stop);
                if let Progress::Note(text) = progress {
                    notes.push(text);
                }
            },
        )
    }

    fn repository(&self) -> std::path::PathBuf {
        self.environment.cache.join("models--org--model")
    }

    fn blob(&self, file: &Stored) -> std::path::PathBuf {
        self.repository().join("blobs").join(file.digits())
    }

    fn partial(&self, file: &Stored) -> std::path::PathBuf {
        self.repository()
            .join("blobs")
            .join(format!("{}.incomplete", file.digits()))
    }
}

/// Every file, but for the torch duplicate, is in the snapshot and nothing unfinished is left.
#[track_caller]
fn assert_whole(snapshot: &Path, files: &[Stored]) {
    for file in files.iter().filter(|file| file.name != "pytorch_model.bin") {
        assert_eq!(
            fs::read(snapshot.join(&file.name)).unwrap(),
            file.bytes,
            "{}",
            file.name
        );
    }
    assert!(!snapshot.join("pytorch_model.bin").exists());
    for blob in fs::read_dir(snapshot.join("../../blobs")).unwrap() {
        let name = blob.unwrap().file_name().into_string().unwrap();
        assert!(!name.contains('.'), "{name} was left");
    }
}

/// Ranges of the requests for large files that reached the store.
fn ranges(server: &Server) -> Vec<Option<String>> {
    let log = server.log();
    log.iter()
        .filter(|asked| asked.store)
        .map(|asked| asked.headers.get("range").cloned())
        .collect()
}

#[test]
fn a_repository_becomes_a_snapshot() {
    let files = files();
    let server = Server::start(&files);
    let mut client = Client::new(&server);
    let pulled = client.pull().unwrap();
    assert_whole(&pulled.snapshot, &files);
    assert_eq!((pulled.commit.as_str(), pulled.files), (COMMIT, 6));
    assert_eq!(
        pulled.downloaded as usize,
        files[..6]
            .iter()
            .map(|file| file.bytes.len())
            .sum::<usize>()
    );
    assert_eq!(
        pulled.snapshot,
        client.repository().join("snapshots").join(COMMIT)
    );
    assert_eq!(
        fs::read_to_string(client.repository().join("refs/main")).unwrap(),
        COMMIT
    );
    assert_eq!(client.notes, [""; 0]);
    #[cfg(unix)]
    {
        let link = fs::read_link(pulled.snapshot.join("sub/folder/file.txt")).unwrap();
        assert_eq!(link, Path::new("../../../../blobs").join(files[2].digits()));
    }
    let repository: Repository = "org/model".parse().unwrap();
    let found = cache::find_snapshot_in(&client.environment.cache, &repository, None);
    assert_eq!(found.as_ref(), Some(&pulled.snapshot));

    // A second time nothing but the listing is asked for.
    server.forget();
    let again = client.pull().unwrap();
    assert_eq!(
        (again.downloaded, again.snapshot),
        (0, pulled.snapshot.clone())
    );
    assert!(
        server.log().iter().all(|asked| asked.is_listing()),
        "{:?}",
        server.log()
    );

    // A lost link is put back without a download, and so are the files of a cache without links.
    fs::remove_file(pulled.snapshot.join("config.json")).unwrap();
    assert_eq!(client.pull().unwrap().downloaded, 0);
    assert_whole(&pulled.snapshot, &files);
}

#[test]
fn a_cache_without_symbolic_links_holds_the_files_themselves() {
    let files = files();
    let server = Server::start(&files);
    let mut client = Client::new(&server);
    client.environment.links = false;
    let pulled = client.pull().unwrap();
    assert_whole(&pulled.snapshot, &files);
    assert!(!pulled.snapshot.join("config.json").is_symlink());
    // As other tools leave it: no blobs.
    fs::remove_dir_all(client.repository().join("blobs")).unwrap();
    server.forget();
    assert_eq!(client.pull().unwrap().downloaded, 0);
    assert!(server.log().iter().all(|asked| asked.is_listing()));
}

#[test]
fn files_can_be_chosen() {
    let files = files();
    let server = Server::start(&files);
    let mut client = Client::new(&server);
    client.options.selection = Selection::new(&["*.json", "pytorch*"]).unwrap();
    let pulled = client.pull().unwrap();
    assert_eq!(pulled.files, 3);
    assert!(pulled.snapshot.join("pytorch_model.bin").exists());
    assert!(!pulled.snapshot.join("empty.txt").exists());
    client.options.selection = Selection::new(&["*.gguf"]).unwrap();
    let error = client.pull().unwrap_err().to_string();
    assert!(
        error.contains("*.gguf") && error.contains("config.json"),
        "{error}"
    );
}

#[test]
fn a_broken_connection_is_taken_up_where_it_broke() {
    let files = files();
    let server = Server::with_faults(&files, |asked| {
        (asked.store && asked.before < 2 && !asked.path.contains("none"))
            .then_some(Fault::Break(400_000))
    });
    let mut client = Client::new(&server);
    let pulled = client.pull().unwrap();
    assert_whole(&pulled.snapshot, &files);
    let ranges = ranges(&server);
    assert_eq!(ranges[0], None);
    // What arrived before the break may be less than what was sent, never more.
    let second: usize = ranges[1].as_ref().unwrap()[6..]
        .trim_end_matches('-')
        .parse()
        .unwrap();
    assert!(second > 0 && second <= 400_000, "{ranges:?}");
    assert!(
        client
            .notes
            .iter()
            .any(|note| note.contains("trying again")),
        "{:?}",
        client.notes
    );
}

#[test]
fn an_interrupted_download_goes_on_in_the_next_run() {
    let files = files();
    let server = Server::start(&files);
    let mut client = Client::new(&server);
    // Ctrl-C somewhere inside the large file.
    client.watch = |progress, stop| {
        if matches!(progress, Progress::Bytes(bytes) if *bytes > 200_000) {
            stop.store(true, Ordering::SeqCst);
        }
    };
    assert!(matches!(client.pull(), Err(Error::Stopped)));
    let left = fs::metadata(client.partial(&files[3])).unwrap().len();
    assert!(left > 100_000 && left < BIG as u64, "{left}");
    assert!(!client.repository().join("refs/main").exists());
    assert!(!client.blob(&files[3]).exists());

    client.watch = |_, _| {};
    client.stop.store(false, Ordering::SeqCst);
    server.forget();
    let pulled = client.pull().unwrap();
    assert_whole(&pulled.snapshot, &files);
    assert_eq!(ranges(&server)[0], Some(format!("bytes={left}-")));
}

#[test]
fn servers_that_ignore_ranges_start_over() {
    let files = files();
    let server = Server::with_faults(&files, |asked| match (asked.store, asked.before) {
        (true, 0) => Some(Fault::Break(300_000)),
        (true, _) => Some(Fault::IgnoreRange),
        _ => None,
    });
    let mut client = Client::new(&server);
    let pulled = client.pull().unwrap();
    assert_whole(&pulled.snapshot, &files);
}

#[test]
fn a_server_that_never_gets_further_is_given_up() {
    let files = files();
    let server = Server::with_faults(&files, |asked| {
        asked.store.then_some(Fault::IgnoreRangeAndBreak(300_000))
    });
    let mut client = Client::new(&server);
    let error = client.pull().unwrap_err();
    assert!(matches!(error, Error::Network { .. }), "{error}");
    assert!(error.to_string().contains("attempts"), "{error}");
}

#[test]
fn silence_counts_as_a_broken_connection() {
    let files = files();
    let server = Server::with_faults(&files, |asked| {
        (asked.store && asked.before == 0).then_some(Fault::Stall(500))
    });
    let mut client = Client::new(&server);
    client.options.patience.silence = Duration::from_millis(300);
    let pulled = client.pull().unwrap();
    assert_whole(&pulled.snapshot, &files);
    assert!(
        client
            .notes
            .iter()
            .any(|note| note.contains("nothing came")),
        "{:?}",
        client.notes
    );
}

#[test]
fn wrong_bytes_are_removed_and_told() {
    let files = files();
    // Always wrong: refused, nothing left.
    let server = Server::with_faults(&files, |asked| asked.store.then_some(Fault::Corrupt(999)));
    let mut client = Client::new(&server);
    let error = client.pull().unwrap_err();
    let text = error.to_string();
    assert!(matches!(error, Error::WrongBytes { .. }), "{text}");
    assert!(
        text.contains("model-00001-of-00002.safetensors") && text.contains(files[3].digits()),
        "{text}"
    );
    assert!(!client.blob(&files[3]).exists() && !client.partial(&files[3]).exists());
    assert!(
        !client
            .repository()
            .join("snapshots")
            .join(COMMIT)
            .join(&files[3].name)
            .exists()
    );
    assert!(!client.repository().join("refs/main").exists());

    // Wrong once: downloaded again, and said so.
    let server = Server::with_faults(&files, |asked| {
        (asked.store && asked.before == 0).then_some(Fault::Corrupt(999))
    });
    let mut client = Client::new(&server);
    let pulled = client.pull().unwrap();
    assert_whole(&pulled.snapshot, &files);
    assert!(
        client.notes.iter().any(|note| note.contains("removed")),
        "{:?}",
        client.notes
    );

    // Small files are checked too.
    let server = Server::with_faults(&files, |asked| {
        asked
            .path
            .ends_with("config.json")
            .then_some(Fault::Corrupt(3))
    });
    let error = Client::new(&server).pull().unwrap_err().to_string();
    assert!(
        error.contains("config.json") && error.contains("git sha1"),
        "{error}"
    );
}

#[test]
fn what_an_earlier_attempt_left_is_not_trusted() {
    let files = files();
    let server = Server::start(&files);
    let mut client = Client::new(&server);
    fs::create_dir_all(client.repository().join("blobs")).unwrap();
    fs::write(client.partial(&files[3]), vec![1; 5000]).unwrap();
    fs::write(client.partial(&files[4]), vec![1; 5000]).unwrap();
    fs::write(client.partial(&files[1]), b"not empty").unwrap();
    let pulled = client.pull().unwrap();
    assert_whole(&pulled.snapshot, &files);
    assert!(
        client.notes.iter().any(|note| note.contains("removed")),
        "{:?}",
        client.notes
    );
}

#[test]
fn damaged_blobs_are_replaced() {
    let files = files();
    let server = Server::start(&files);
    let mut client = Client::new(&server);
    client.pull().unwrap();
    // Of another length: seen at once.
    fs::write(client.blob(&files[3]), b"cut").unwrap();
    let pulled = client.pull().unwrap();
    assert_eq!(pulled.downloaded as usize, BIG);
    assert_whole(&pulled.snapshot, &files);
    // Of the same length: seen when asked to verify.
    let mut bytes = files[3].bytes.clone();
    bytes[77] ^= 1;
    fs::write(client.blob(&files[3]), bytes).unwrap();
    assert_eq!(client.pull().unwrap().downloaded, 0);
    client.options.verify = true;
    assert_eq!(client.pull().unwrap().downloaded as usize, BIG);
    assert_whole(&pulled.snapshot, &files);
    assert_eq!(client.pull().unwrap().downloaded, 0);
}

#[test]
fn answers_that_do_not_fit_are_not_written() {
    let files = files();
    for fault in [Fault::WrongRange, Fault::TooMuch] {
        let server = Server::with_faults(&files, move |asked| match (asked.store, asked.before) {
            (true, 0) => Some(Fault::Break(300_000)),
            (true, 1) => Some(fault.clone()),
            _ => None,
        });
        let mut client = Client::new(&server);
        let pulled = client.pull().unwrap();
        assert_whole(&pulled.snapshot, &files);
        let notes = client.notes.join("\n");
        assert!(
            notes.contains("Content-Range") || notes.contains("more than"),
            "{notes}"
        );
    }
}

#[test]
fn busy_servers_are_asked_again_and_refusals_are_not() {
    let files = files();
    let status = |status: u16, headers: &[(&str, &str)]| {
        let headers = headers
            .iter()
            .map(|(name, value)| (name.to_string(), value.to_string()));
        Fault::Answer(status, headers.collect(), b"{\"error\": \"no\"}".to_vec())
    };
    // Passing trouble, at the listing and at the files.
    for fault in [
        status(500, &[]),
        status(503, &[]),
        status(429, &[("Retry-After", "0")]),
    ] {
        let server = Server::with_faults(&files, move |asked| {
            (!asked.store && asked.before < 2).then(|| fault.clone())
        });
        let mut client = Client::new(&server);
        let pulled = client.pull().unwrap();
        assert_whole(&pulled.snapshot, &files);
    }
    // An expired signature: the hub is asked for a new address.
    let expired = status(403, &[]);
    let server = Server::with_faults(&files, move |asked| {
        (asked.store && asked.before == 0).then(|| expired.clone())
    });
    assert_whole(&Client::new(&server).pull().unwrap().snapshot, &files);

    let always = |fault: Fault| {
        Server::with_faults(&files, move |asked| (!asked.store).then(|| fault.clone()))
    };
    let error = |fault: Fault, token: bool| {
        let server = always(fault);
        let mut client = Client::new(&server);
        client.environment.token = token.then(|| Token::new("hf_secret", "HF_TOKEN").unwrap());
        let error = client.pull().unwrap_err();
        assert!(!error.to_string().contains("secret"), "{error}");
        (error, server.log().len())
    };
    assert!(matches!(
        error(status(500, &[]), false),
        (Error::Network { attempts: 4, .. }, 4)
    ));
    assert!(matches!(
        error(status(429, &[("Retry-After", "86400")]), false),
        (Error::Status { status: 429, .. }, 1)
    ));
    assert!(matches!(
        error(status(404, &[("X-Error-Code", "RepoNotFound")]), false),
        (Error::NoRepository { .. }, 1)
    ));
    assert!(matches!(
        error(status(401, &[]), false),
        (Error::NoRepository { token: false, .. }, 1)
    ));
    assert!(matches!(
        error(
            status(
                401,
                &[(
                    "X-Error-Message",
                    "Invalid credentials in Authorization header"
                )]
            ),
            true
        ),
        (Error::Token { .. }, 1)
    ));
    assert!(matches!(
        error(status(403, &[("X-Error-Code", "GatedRepo")]), true),
        (Error::Gated { token: true, .. }, 1)
    ));
    assert!(matches!(
        error(status(404, &[("X-Error-Code", "RevisionNotFound")]), false),
        (Error::NoRevision { .. }, 1)
    ));
    assert!(matches!(
        error(status(418, &[]), false),
        (Error::Status { status: 418, .. }, 1)
    ));
}

#[test]
fn the_token_stays_with_the_hub() {
    let files = files();
    let server = Server::start(&files);
    let mut client = Client::new(&server);
    client.environment.token = Some(Token::new("hf_secret", "HF_TOKEN").unwrap());
    client.pull().unwrap();
    let (store, hub): (Vec<_>, Vec<_>) = server.log().into_iter().partition(|asked| asked.store);
    assert!(!store.is_empty() && !hub.is_empty());
    for asked in hub {
        assert_eq!(
            asked.headers.get("authorization").map(String::as_str),
            Some("Bearer hf_secret")
        );
    }
    for asked in store {
        assert!(
            !asked
                .headers
                .values()
                .any(|value| value.contains("hf_secret")),
            "{asked:?}"
        );
    }
}

#[test]
fn renamed_repositories_and_endless_redirections() {
    let files = files();
    // The hub answers for the old name with a relative redirection.
    let server = Server::with_faults(&files, |asked| {
        (asked.is_listing() && !asked.path.contains("moved")).then(|| {
            let location = format!("{}&moved=1", asked.path);
            Fault::Answer(307, vec![("Location".into(), location)], Vec::new())
        })
    });
    let mut client = Client::new(&server);
    let pulled = client.pull().unwrap();
    assert_whole(&pulled.snapshot, &files);
    let server = Server::with_faults(&files, |asked| {
        Some(Fault::Answer(
            302,
            vec![("Location".into(), asked.path.clone())],
            Vec::new(),
        ))
    });
    let error = Client::new(&server).pull().unwrap_err().to_string();
    assert!(error.contains("redirections"), "{error}");
    let server = Server::with_faults(&files, |_| Some(Fault::Answer(302, Vec::new(), Vec::new())));
    let error = Client::new(&server).pull().unwrap_err().to_string();
    assert!(error.contains("Location"), "{error}");
}

#[test]
fn mirrors_that_list_names_only_are_asked_for_the_rest() {
    let files = files();
    let server = Server::with(&files, false, |_| None);
    let mut client = Client::new(&server);
    let pulled = client.pull().unwrap();
    assert_whole(&pulled.snapshot, &files);
    let heads = server
        .log()
        .into_iter()
        .filter(|asked| asked.method == "HEAD")
        .collect::<Vec<_>>();
    assert_eq!(heads.len(), 6);
    assert!(heads.iter().all(|asked| !asked.store));
}

#[test]
fn hostile_listings_write_nothing() {
    let files = files();
    for body in [
        format!(
            r#"{{"sha": "{COMMIT}", "siblings": [{{"rfilename": "../../escape", "size": 1, "blobId": "{COMMIT}"}}]}}"#
        ),
        r#"{"sha": "../../../escape", "siblings": []}"#.to_string(),
        "<html>log in</html>".to_string(),
        "[".repeat(1 << 20),
    ] {
        let server = Server::with_faults(&files, move |asked| {
            asked
                .is_listing()
                .then(|| Fault::Answer(200, Vec::new(), body.clone().into_bytes()))
        });
        let mut client = Client::new(&server);
        let error = client.pull().unwrap_err();
        assert!(matches!(error, Error::Answer { .. }), "{error}");
        assert_eq!(fs::read_dir(client.folder.path()).unwrap().count(), 0);
    }
}

#[test]
fn a_disk_that_is_too_small_is_told_before_the_download() {
    let files = files();
    let huge = format!(
        r#"{{"sha": "{COMMIT}", "siblings": [{{"rfilename": "a", "size": {0}, "blobId": "{COMMIT}"}}, {{"rfilename": "b", "size": {0}, "blobId": "1{1}"}}]}}"#,
        u64::MAX - 1,
        &COMMIT[1..]
    );
    let server = Server::with_faults(&files, move |asked| {
        asked
            .is_listing()
            .then(|| Fault::Answer(200, Vec::new(), huge.clone().into_bytes()))
    });
    let mut client = Client::new(&server);
    let error = client.pull().unwrap_err();
    assert!(
        matches!(
            error,
            Error::DiskFull {
                available: Some(_),
                ..
            }
        ),
        "{error}"
    );
    assert!(server.log().iter().all(|asked| asked.is_listing()));
}

#[test]
fn offline_means_no_request() {
    let files = files();
    let server = Server::start(&files);
    let mut client = Client::new(&server);
    client.environment.offline = true;
    let error = client.pull().unwrap_err();
    assert!(matches!(error, Error::Offline { .. }), "{error}");
    client.environment.offline = false;
    let pulled = client.pull().unwrap();
    server.forget();
    client.environment.offline = true;
    assert_eq!(client.pull().unwrap().snapshot, pulled.snapshot);
    assert!(server.log().is_empty());
}

#[test]
fn an_unreachable_hub_is_told_at_once() {
    let server = Server::start(&[]);
    let mut client = Client::new(&server);
    client.environment.endpoint = "http://127.0.0.1:1".into();
    let error = client.pull().unwrap_err();
    assert!(
        matches!(error, Error::Network { attempts: 1, .. }),
        "{error}"
    );
    assert!(error.to_string().contains("127.0.0.1:1"), "{error}");
}

#[test]
fn two_programs_download_a_file_once() {
    let files = files();
    let server = Server::start(&files);
    let mut client = Client::new(&server);
    let locks = client.environment.cache.join(".locks/models--org--model");
    fs::create_dir_all(&locks).unwrap();
    let lock = fs::File::create(locks.join(format!("{}.lock", files[3].digits()))).unwrap();
    lock.lock().unwrap();
    // The other program finishes while this one waits.
    let (blob, bytes) = (client.blob(&files[3]), files[3].bytes.clone());
    let other = std::thread::spawn(move || {
        std::thread::sleep(Duration::from_millis(400));
        fs::create_dir_all(blob.parent().unwrap()).unwrap();
        fs::write(blob, bytes).unwrap();
        drop(lock);
    });
    let pulled = client.pull().unwrap();
    other.join().unwrap();
    assert_whole(&pulled.snapshot, &files);
    assert!(
        client.notes.iter().any(|note| note.contains("waiting")),
        "{:?}",
        client.notes
    );
    let digits = files[3].digits();
    assert!(!server.log().iter().any(|asked| asked.path.contains(digits)));
}
