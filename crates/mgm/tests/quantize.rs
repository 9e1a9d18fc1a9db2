//! `mgm models quantize` as a user runs it: the pair answers, and nothing is left of work that fails.
#![allow(clippy::unwrap_used)]

mod support;

use std::path::Path;

use support::{command, example, finish, mgm, root};

/// Names in a folder, sorted; none when it is not there.
fn names(folder: &Path) -> Vec<String> {
    let mut names: Vec<String> = std::fs::read_dir(folder)
        .into_iter()
        .flatten()
        .map(|entry| entry.unwrap().file_name().into_string().unwrap())
        .collect();
    names.sort();
    names
}

#[test]
fn a_quantised_model_answers() {
    let folder = tempfile::tempdir().unwrap();
    let out = folder.path().to_str().unwrap();
    let quantize = ["models", "quantize", "smol", "--type", "Q4_0", "-o", out];
    let (language, vision) = (
        folder.path().join("smol-Q4_0.gguf"),
        folder.path().join("mmproj-smol-Q4_0.gguf"),
    );
    let report = mgm(&quantize).ok();
    for (line, file) in report.lines().zip([&language, &vision]) {
        assert!(line.starts_with(file.to_str().unwrap()), "{report}");
        assert!(line.contains(" MB  "), "{report}");
    }
    assert_eq!(names(folder.path()).len(), 2);

    let model = language.to_str().unwrap();
    let cat = example("cat.jpg");
    let answer = mgm(&[
        "chat",
        "--model",
        model,
        "--image",
        &cat,
        "What is in the picture?",
    ])
    .ok();
    assert!(answer.to_lowercase().contains("cat"), "{answer}");
    let inspected = mgm(&["models", "inspect", model]).ok();
    assert!(inspected.contains("Q4_0"), "{inspected}");

    // What is there is not replaced unless asked for, and stays as it was.
    let before = std::fs::read(&language).unwrap();
    mgm(&quantize).fails_clearly(&["smol-Q4_0.gguf", "is there already"]);
    assert_eq!(std::fs::read(&language).unwrap(), before);
    mgm(&[&quantize[..], &["--force"]].concat()).ok();
    assert_eq!(std::fs::read(&language).unwrap(), before);
    assert_eq!(names(folder.path()).len(), 2);
}

#[test]
fn bad_input_leaves_nothing() {
    let folder = tempfile::tempdir().unwrap();
    let out = folder.path().join("pair");
    let out = out.to_str().unwrap();
    let readme = root().join("README.md");
    let readme = readme.to_str().unwrap();
    let quantize = |more: &[&str]| mgm(&[&["models", "quantize", "smol"], more].concat());
    quantize(&["--type", "Q3_K_XXL", "-o", out]).fails(2, &["Q3_K_XXL"]);
    quantize(&["--type", "Q8_0", "-o", out, "--imatrix", readme])
        .fails_clearly(&["README.md", "importance matrix"]);
    quantize(&["--type", "Q8_0", "-o", readme]).fails_clearly(&["README.md"]);
    quantize(&["--type", "Q8_0", "-o", out, "--adapter", out]).fails_clearly(&["pair"]);
    mgm(&["models", "quantize", readme, "--type", "Q8_0", "-o", out]).fails_clearly(&["README.md"]);
    assert!(names(Path::new(out)).is_empty());
}

/// A limit on the size of files stands for a full disk.
#[cfg(unix)]
#[test]
fn a_full_disk_is_told_and_leaves_nothing() {
    let folder = tempfile::tempdir().unwrap();
    let script = format!(
        "trap '' XFSZ; ulimit -f 40000; exec {} models quantize smol --type F16 -o pair",
        env!("CARGO_BIN_EXE_mgm")
    );
    let run = finish(
        std::process::Command::new("sh")
            .args(["-c", &script])
            .current_dir(folder.path()),
    );
    run.fails_clearly(&["smol-F16.gguf", "writing failed"]);
    assert!(names(&folder.path().join("pair")).is_empty());
}

/// Ctrl-C at the first sign of a file.
#[cfg(unix)]
#[test]
fn ctrl_c_leaves_nothing() {
    let folder = tempfile::tempdir().unwrap();
    let out = folder.path().to_str().unwrap();
    let child = command(&["models", "quantize", "smol", "--type", "Q4_K_M", "-o", out])
        .stdout(std::process::Stdio::piped())
        .stderr(std::process::Stdio::piped())
        .spawn()
        .unwrap();
    let started = std::time::Instant::now();
    while names(folder.path()).is_empty() {
        assert!(started.elapsed().as_secs() < 60, "no file was begun");
        std::thread::sleep(std::time::Duration::from_millis(1));
    }
    rustix::process::kill_process(
        rustix::process::Pid::from_child(&child),
        rustix::process::Signal::INT,
    )
    .unwrap();
    let output = child.wait_with_output().unwrap();
    assert_eq!(output.status.code(), Some(130), "{output:?}");
    assert!(
        names(folder.path()).is_empty(),
        "{:?}",
        names(folder.path())
    );
}
