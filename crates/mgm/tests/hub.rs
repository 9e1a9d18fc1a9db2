//! `mgm models pull` against a hub on this machine, and what `mgm models list` says about the result.
#![cfg(feature = "hub")]
#![allow(clippy::unwrap_used)]

#[path = "../../mgm-hub/tests/server/mod.rs"]
mod server;
mod support;

use std::path::Path;
use std::process::Command;

use server::{COMMIT, Fault, Server, Stored};
use support::{command, finish, mgm, root};

fn files() -> Vec<Stored> {
    vec![
        Stored::small("config.json", b"{\"architectures\": [\"MGM\"]}"),
        Stored::noise("model.safetensors", 2_000_000),
    ]
}

/// The program, with its cache below `home` and the server as its hub.
fn at(server: &Server, home: &Path, arguments: &[&str]) -> Command {
    let mut command = command(arguments);
    command
        .env("HF_ENDPOINT", &server.endpoint)
        .env("HF_HOME", home);
    command
}

#[test]
fn a_pulled_model_is_listed_and_not_pulled_again() {
    let server = Server::start(&files());
    let home = tempfile::tempdir().unwrap();
    let pull = &["models", "pull", "org/model"];
    let run = finish(&mut at(&server, home.path(), pull));
    assert!(run.stderr.contains("2.0 MB downloaded"), "{run:?}");
    let snapshot = home
        .path()
        .join("hub/models--org--model/snapshots")
        .join(COMMIT);
    assert_eq!(run.ok(), format!("{}\n", snapshot.display()));

    let again = finish(&mut at(&server, home.path(), pull));
    assert!(again.stderr.contains("all 2 files were there"), "{again:?}");
    again.ok();
    let offline = finish(at(&server, home.path(), pull).env("HF_HUB_OFFLINE", "1"));
    assert!(offline.stderr.contains("offline"), "{offline:?}");
    assert_eq!(offline.ok(), format!("{}\n", snapshot.display()));

    let list = finish(&mut at(&server, home.path(), &["models", "list"])).ok();
    assert!(list.contains("\n  org/model "), "{list}");
    assert!(list.contains("\n  mgm-34b-hd "), "{list}");
    let list = finish(&mut at(&server, home.path(), &["models", "list", "--json"])).ok();
    let list: serde_json::Value = serde_json::from_str(&list).unwrap();
    let model = &list["local"][1];
    assert_eq!(model["name"], "org/model");
    assert_eq!(model["bytes"], 2_000_026);
    assert_eq!(model["formats"], serde_json::json!(["safetensors"]));
    assert_eq!(model["architecture"], "MGM");
    assert_eq!(list["releases"].as_array().unwrap().len(), 11);
}

#[test]
fn a_model_zoo_is_listed_by_folder() {
    let zoo = tempfile::tempdir().unwrap();
    let folder = zoo.path().join("LLM/gemma/2b-it");
    std::fs::create_dir_all(&folder).unwrap();
    std::fs::write(folder.join("model.safetensors"), b"12345").unwrap();
    let path = zoo.path().display().to_string();
    let list = mgm(&["models", "list", "--model-zoo", &path]).ok();
    assert!(list.contains("\n  LLM/gemma/2b-it "), "{list}");
    mgm(&["models", "list", "--model-zoo", "/no/such/zoo"]).fails_clearly(&["/no/such/zoo"]);
}

#[test]
fn failures_are_told_in_one_line_with_what_helps() {
    let home = tempfile::tempdir().unwrap();
    mgm(&["models", "pull", "mgm-3b"]).fails(2, &["mgm-3b"]);
    mgm(&["models", "pull", "../../etc/passwd"]).fails(2, &["etc/passwd"]);
    mgm(&["models", "pull", "org/model", "--revision", "../x"]).fails(2, &["../x"]);
    mgm(&["models", "pull", "org/model", "--include", "a["]).fails(2, &["a["]);
    finish(
        command(&["models", "pull", "mgm-2b"])
            .env("HF_ENDPOINT", "http://127.0.0.1:1")
            .env("HF_HOME", home.path()),
    )
    .fails_clearly(&["127.0.0.1:1", "YanweiLi/MGM-2B"]);
    finish(command(&["models", "pull", "mgm-2b"]).env("HF_ENDPOINT", "huggingface"))
        .fails_clearly(&["HF_ENDPOINT"]);

    let server = Server::with_faults(&files(), |asked| {
        asked.is_listing().then(|| {
            Fault::Answer(
                403,
                vec![("X-Error-Code".into(), "GatedRepo".into())],
                Vec::new(),
            )
        })
    });
    let pull = &["models", "pull", "org/model"];
    let gated = finish(&mut at(&server, home.path(), pull)).fails_clearly(&["org/model", "gated"]);
    assert!(
        gated
            .stderr
            .contains("hint: accept them, then set HF_TOKEN"),
        "{gated:?}"
    );
    let token = "hf_very_secret";
    let gated =
        finish(at(&server, home.path(), pull).env("HF_TOKEN", token)).fails_clearly(&["gated"]);
    assert!(!gated.stderr.contains(token), "{gated:?}");

    let server = Server::with_faults(&files(), |asked| asked.store.then_some(Fault::Corrupt(5)));
    let run = finish(&mut at(&server, home.path(), pull));
    assert_eq!((run.code, run.stdout.as_str()), (Some(1), ""), "{run:?}");
    assert!(
        run.stderr.contains("error: model.safetensors: sha256 is"),
        "{run:?}"
    );
}

/// Ctrl-C while nothing comes: the program ends at once, with what came before, and the next run goes on from there.
#[cfg(unix)]
#[test]
fn ctrl_c_keeps_what_was_downloaded() {
    let server = Server::with_faults(&files(), |asked| {
        (asked.store && asked.before == 0).then_some(Fault::Stall(500_000))
    });
    let home = tempfile::tempdir().unwrap();
    let pull = &["models", "pull", "org/model"];
    let child = at(&server, home.path(), pull)
        .stdout(std::process::Stdio::piped())
        .stderr(std::process::Stdio::piped())
        .spawn()
        .unwrap();
    let blob = home
        .path()
        .join("hub/models--org--model/blobs")
        .join(files()[1].digits());
    let partial = blob.with_extension("incomplete");
    let started = std::time::Instant::now();
    while partial.metadata().map_or(0, |metadata| metadata.len()) < 500_000 {
        assert!(started.elapsed().as_secs() < 60, "nothing came");
        std::thread::sleep(std::time::Duration::from_millis(20));
    }
    rustix::process::kill_process(
        rustix::process::Pid::from_child(&child),
        rustix::process::Signal::INT,
    )
    .unwrap();
    let output = child.wait_with_output().unwrap();
    assert_eq!(output.status.code(), Some(130), "{output:?}");
    assert!(!blob.exists());
    assert_eq!(partial.metadata().unwrap().len(), 500_000);

    finish(&mut at(&server, home.path(), pull)).ok();
    assert_eq!(std::fs::read(&blob).unwrap(), files()[1].bytes);
    let log = server.log();
    let last = log.iter().rfind(|asked| asked.store).unwrap();
    assert_eq!(last.headers["range"], "bytes=500000-");
}

/// The built-in model as a repository: pulled, it answers.
#[cfg(unix)]
#[test]
fn a_pulled_model_answers() {
    let folder = root().join("models/smol");
    let mut files = Vec::new();
    for entry in std::fs::read_dir(folder).unwrap() {
        let path = entry.unwrap().path();
        let name = path.file_name().unwrap().to_str().unwrap().to_string();
        let bytes = std::fs::read(&path).unwrap();
        files.push(match bytes.len() {
            0..1_000_000 => Stored::small(&name, &bytes),
            _ => Stored::large(&name, bytes),
        });
    }
    let server = Server::start(&files);
    let home = tempfile::tempdir().unwrap();
    let snapshot = finish(&mut at(
        &server,
        home.path(),
        &["models", "pull", "org/model"],
    ))
    .ok();
    let question = ["--temperature", "0", "--max-new-tokens", "12", "Say hello."];
    let ask = |model: &str| {
        let arguments = [&["chat", "--model", model][..], &question].concat();
        finish(&mut at(&server, home.path(), &arguments)).ok()
    };
    let expected = ask("smol");
    assert!(!expected.trim().is_empty());
    assert_eq!(ask(snapshot.trim()), expected);
}
