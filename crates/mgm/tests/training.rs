//! `mgm train`, a few steps of it.
#![allow(clippy::unwrap_used)]

mod support;

use std::path::Path;

use support::{command, finish, root};

/// A stage 1 recipe over two photographs; nothing of it is big.
fn recipe(folder: &Path, steps: usize) {
    let examples = root().join("examples").display().to_string();
    let record = |id: usize, image: &str, answer: &str| {
        serde_json::json!({"id": id.to_string(), "image": image, "conversations": [
            {"from": "human", "value": "<image>\nWhat is in the picture?"},
            {"from": "gpt", "value": answer},
        ]})
    };
    let records = [
        record(1, "cat.jpg", "A cat."),
        record(2, "coffee.jpg", "A cup of coffee."),
    ];
    std::fs::write(
        folder.join("data.json"),
        serde_json::to_string(&records).unwrap(),
    )
    .unwrap();
    let text = format!(
        "stage = \"align\"\ninitialise = \"checkpoint\"\noutput = \"run\"\nsteps = {steps}\nbatch = 2\nlearning_rate = 1e-4\n\
         [data]\njson = [\"data.json\"]\nimage_folder = {examples:?}\naspect = \"pad\"\n"
    );
    std::fs::write(folder.join("recipe.toml"), text).unwrap();
}

fn losses(folder: &Path) -> Vec<f64> {
    let log = std::fs::read_to_string(folder.join("run/log.jsonl")).unwrap();
    log.lines()
        .map(|line| serde_json::from_str::<serde_json::Value>(line).unwrap())
        .filter_map(|line| line["loss"].as_f64())
        .collect()
}

#[test]
fn stops_resumes_and_learns() {
    let folder = tempfile::tempdir().unwrap();
    recipe(folder.path(), 4);
    let train = |more: &[&str]| {
        finish(command(&[&["train", "recipe.toml"], more].concat()).current_dir(folder.path()))
    };
    let first = train(&["--steps", "2"]);
    assert!(first.stderr.contains("step 1/4 loss"), "{first:?}");
    assert!(first.ok().starts_with("step 2 of 4"));
    let second = train(&["--resume"]);
    assert!(!second.stderr.contains("step 1/4"), "{second:?}");
    assert!(second.stderr.contains("step 4/4"), "{second:?}");
    assert!(second.ok().starts_with("step 4 of 4"));
    assert!(folder.path().join("run/adapter.safetensors").is_file());
    let losses = losses(folder.path());
    assert_eq!(losses.len(), 4, "{losses:?}");
    assert!(losses[3] < losses[0], "{losses:?}");
}

#[cfg(unix)]
#[test]
fn ctrl_c_saves_and_ends_with_130() {
    use std::io::{BufRead, BufReader, Read};
    use std::process::Stdio;

    let folder = tempfile::tempdir().unwrap();
    recipe(folder.path(), 100_000);
    let mut child = command(&["train", "recipe.toml"])
        .current_dir(folder.path())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
    let mut stderr = BufReader::new(child.stderr.take().unwrap());
    let mut line = String::new();
    while !line.contains("step 1/") {
        line.clear();
        assert!(
            stderr.read_line(&mut line).unwrap() > 0,
            "it ended by itself"
        );
    }
    let process = rustix::process::Pid::from_child(&child);
    rustix::process::kill_process(process, rustix::process::Signal::INT).unwrap();
    let mut rest = String::new();
    stderr.read_to_string(&mut rest).unwrap();
    assert_eq!(child.wait().unwrap().code(), Some(130), "{rest}");
    assert!(
        rest.contains("interrupted at step") && rest.contains("--resume"),
        "{rest}"
    );
    let resumed = finish(
        command(&["train", "recipe.toml", "--resume", "--steps", "1"]).current_dir(folder.path()),
    );
    assert!(!resumed.stderr.contains("step 1/"), "{resumed:?}");
    resumed.ok();
}

#[test]
fn bad_recipes_are_told() {
    let folder = tempfile::tempdir().unwrap();
    recipe(folder.path(), 4);
    let good = std::fs::read_to_string(folder.path().join("recipe.toml")).unwrap();
    for (text, needle) in [
        (good.replace("batch = 2", "bach = 2"), "bach"),
        (good.replace("steps = 4", ""), "steps"),
        (good.replace("data.json", "none.json"), "none.json"),
        ("= nonsense".to_string(), "recipe.toml"),
    ] {
        std::fs::write(folder.path().join("recipe.toml"), text).unwrap();
        finish(command(&["train", "recipe.toml"]).current_dir(folder.path()))
            .fails_clearly(&[needle]);
    }
}
