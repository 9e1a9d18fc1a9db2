//! Model directories, whole and broken.
#![allow(clippy::unwrap_used)]

mod support;

use std::path::Path;

use support::{command, finish, mgm, root};

/// A directory that looks like the built-in model's, less the file `without`.
fn copy(at: &Path, without: &str) -> String {
    for entry in std::fs::read_dir(root().join("models/smol")).unwrap() {
        let path = entry.unwrap().path();
        let name = path.file_name().unwrap();
        if name != without {
            #[cfg(unix)]
            std::os::unix::fs::symlink(&path, at.join(name)).unwrap();
            #[cfg(not(unix))]
            std::fs::hard_link(&path, at.join(name)).unwrap();
        }
    }
    at.display().to_string()
}

#[test]
fn a_wrong_path_is_told() {
    mgm(&["chat", "--model", "/no/such/model", "hi"]).fails_clearly(&["/no/such/model"]);
    let file = tempfile::NamedTempFile::new().unwrap();
    let path = file.path().display().to_string();
    mgm(&["chat", "--model", &path, "hi"]).fails_clearly(&[&path]);
    mgm(&["models", "inspect", "/no/such/model"]).fails_clearly(&["/no/such/model"]);
    mgm(&["train", "/no/such/recipe.toml"]).fails_clearly(&["/no/such/recipe.toml"]);
    mgm(&["eval", "/no/such/data.json"]).fails_clearly(&["/no/such/data.json"]);
}

#[test]
fn every_file_of_a_model_is_needed_and_named() {
    let config: serde_json::Value =
        serde_json::from_slice(&std::fs::read(root().join("models/smol/config.json")).unwrap())
            .unwrap();
    let files = config["weight_files"]
        .as_array()
        .unwrap()
        .iter()
        .map(|file| file.as_str().unwrap());
    for file in files.chain(["config.json"]) {
        let folder = tempfile::tempdir().unwrap();
        let model = copy(folder.path(), file);
        mgm(&["chat", "--model", &model, "hi"]).fails_clearly(&[&model, file]);
    }
    let folder = tempfile::tempdir().unwrap();
    let model = copy(folder.path(), "README.md");
    assert!(
        !mgm(&[
            "chat",
            "--model",
            &model,
            "--temperature",
            "0",
            "--max-new-tokens",
            "12",
            "Say hello."
        ])
        .ok()
        .trim()
        .is_empty()
    );
}

#[test]
fn damaged_files_are_named() {
    let config = std::fs::read_to_string(root().join("models/smol/config.json")).unwrap();
    let towers = std::fs::read(root().join("models/smol/towers.safetensors")).unwrap();
    for (file, bytes, needle) in [
        ("config.json", b"{ not json".to_vec(), "config.json"),
        ("config.json", b"{}".to_vec(), "hidden_size"),
        (
            "config.json",
            config
                .replace("\"num_hidden_layers\": 30", "\"num_hidden_layers\": 31")
                .into_bytes(),
            "30",
        ),
        (
            "config.json",
            config
                .replace("\"hidden_size\": 576", "\"hidden_size\": 575")
                .into_bytes(),
            "575",
        ),
        (
            "config.json",
            config
                .replace("\"smol\"", "\"no-such-template\"")
                .into_bytes(),
            "no-such-template",
        ),
        (
            "towers.safetensors",
            towers[..towers.len() / 2].to_vec(),
            "towers.safetensors",
        ),
        ("towers.safetensors", Vec::new(), "towers.safetensors"),
        (
            "smollm2-135m-instruct.q4_1.gguf",
            b"GGUF\x03\0\0\0".to_vec(),
            "smollm2-135m-instruct.q4_1.gguf",
        ),
    ] {
        let folder = tempfile::tempdir().unwrap();
        let model = copy(folder.path(), file);
        std::fs::write(folder.path().join(file), bytes).unwrap();
        let run = mgm(&["chat", "--model", &model, "hi"]);
        assert!(run.stderr.contains(needle), "{file}: {run:?}");
        run.fails_clearly(&[]);
    }
}

#[test]
fn the_built_in_model_is_listed_and_inspected() {
    let list = mgm(&["models", "list"]).ok();
    assert!(list.contains("\n  smol "), "{list}");
    let inspected = mgm(&["models", "inspect", "smol"]).ok();
    for needle in [
        "dinov2-small",
        "efficientnet-lite0",
        "adapter.safetensors",
        "2048",
    ] {
        assert!(inspected.contains(needle), "{needle} is not in {inspected}");
    }
    let towers = root()
        .join("models/smol/towers.safetensors")
        .display()
        .to_string();
    let tensors = mgm(&["models", "inspect", "--tensors", &towers]).ok();
    assert!(tensors.contains("model.vision_tower_aux."), "{tensors}");
}

#[test]
fn the_models_folder_can_be_moved() {
    let folder = tempfile::tempdir().unwrap();
    finish(command(&["chat", "hi"]).env("MGM_MODELS_DIR", folder.path()))
        .fails_clearly(&["MGM_MODELS_DIR", folder.path().to_str().unwrap()]);
    let answer = finish(
        command(&["chat", "--max-new-tokens", "12", "Say hello."])
            .env("MGM_MODELS_DIR", root().join("models")),
    )
    .ok();
    assert!(!answer.trim().is_empty());
}
