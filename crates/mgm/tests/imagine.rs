//! `mgm imagine` and `mgm chat --gen` with a tiny random painter, as a user runs them.
#![allow(clippy::unwrap_used)]

mod support;

use std::path::{Path, PathBuf};

use mgm_image::{Limits, RgbImage, decode, png_texts};
use support::{command, finish, mgm, root};

fn painter() -> String {
    root()
        .join("crates/mgm-diffusion/tests/fixtures/tiny-sdxl")
        .display()
        .to_string()
}

fn imagine(arguments: &[&str]) -> support::Run {
    let painter = painter();
    mgm(&[&["imagine", "--model", &painter], arguments].concat())
}

fn read(path: &Path) -> (RgbImage, Vec<(String, String)>) {
    let file = std::fs::read(path).unwrap();
    (
        decode(&file, &Limits::default()).unwrap(),
        png_texts(&file).unwrap(),
    )
}

fn entries(folder: &Path) -> Vec<String> {
    let mut names: Vec<String> = std::fs::read_dir(folder)
        .unwrap()
        .map(|entry| entry.unwrap().file_name().to_string_lossy().into_owned())
        .collect();
    names.sort();
    names
}

#[test]
fn a_prompt_becomes_a_picture_that_knows_how_it_was_made() {
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("apple.png");
    let path = file.display().to_string();
    let out = imagine(&[
        "a red apple",
        "-o",
        &path,
        "--size",
        "48x32",
        "--steps",
        "3",
        "--seed",
        "5",
    ])
    .ok();
    assert_eq!(out, format!("{path}\n"));
    let (image, texts) = read(&file);
    assert_eq!((image.width, image.height), (48, 32));
    let text = |keyword: &str| {
        let found = texts.iter().find(|(key, _)| key == keyword);
        found.map(|(_, text)| text.as_str()).unwrap()
    };
    assert_eq!(text("Prompt"), "a red apple");
    assert_eq!(text("Seed"), "5");
    assert_eq!((text("Steps"), text("Guidance")), ("3", "5"));
    assert_eq!((text("Scheduler"), text("Size")), ("euler", "48x32"));
    assert!(text("Negative prompt").starts_with("out of frame, lowres, text"));
    assert_eq!(
        entries(folder.path()),
        ["apple.png"],
        "nothing half-written is left"
    );
    // Painted again as the metadata says, it is the same picture; otherwise another.
    let again = folder.path().join("again.png");
    let again_path = again.display().to_string();
    let repeat = [
        "a red apple",
        "-o",
        &again_path,
        "--size",
        "48x32",
        "--steps",
        "3",
        "--seed",
        "5",
    ];
    imagine(&repeat).ok();
    assert_eq!(read(&again).0, image);
    for change in [
        &["--scheduler", "dpm++2m-karras"][..],
        &["--guidance", "1"],
        &["--negative", "green"],
    ] {
        imagine(&[&repeat[..], change].concat()).ok();
        assert_ne!(read(&again).0, image, "{change:?}");
    }
}

#[test]
fn several_pictures_have_numbers_and_seeds_of_their_own() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("fox.png").display().to_string();
    let out = imagine(&[
        "a fox", "-o", &path, "--count", "2", "--seed", "9", "--steps", "2", "--json",
    ])
    .ok();
    let pictures: serde_json::Value = serde_json::from_str(&out).unwrap();
    let file = |index: usize| PathBuf::from(pictures[index]["file"].as_str().unwrap());
    assert_eq!(entries(folder.path()), ["fox-1.png", "fox-2.png"]);
    assert_eq!(
        (&pictures[0]["seed"], &pictures[1]["seed"]),
        (&9.into(), &10.into())
    );
    assert_eq!(
        pictures[0]["width"], 32,
        "the size the model was trained on"
    );
    let alone = folder.path().join("alone.png");
    let alone_path = alone.display().to_string();
    imagine(&["a fox", "-o", &alone_path, "--seed", "10", "--steps", "2"]).ok();
    assert_eq!(read(&file(1)).0, read(&alone).0);
    assert_ne!(read(&file(0)).0, read(&alone).0);
}

#[test]
fn long_prompts_adapters_tiles_and_weights() {
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("a.png");
    let path = file.display().to_string();
    let plain = [
        "apples", "-o", &path, "--steps", "2", "--seed", "1", "--size", "64x48",
    ];
    imagine(&plain).ok();
    let image = read(&file).0;
    let lora = root().join("crates/mgm-diffusion/tests/fixtures/lora_kohya.safetensors");
    let lora = format!("{}:0.7", lora.display());
    for change in [&["--lora", &lora][..], &["--tiles"], &["--weights", "q8_0"]] {
        imagine(&[&plain[..], change].concat()).ok();
        assert_ne!(read(&file).0, image, "{change:?}");
    }
    let long = "apples and ".repeat(5000);
    let run = imagine(&[&long, "-o", &path, "--steps", "1"]);
    assert!(
        run.stderr
            .contains("warning: the text encoders see 77 tokens"),
        "{}",
        run.stderr
    );
    assert!(
        run.stderr.len() < 400,
        "the cut is told in one line: {}",
        run.stderr
    );
    run.ok();
}

#[test]
fn what_cannot_be_painted_is_told_before_any_work() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("a.png").display().to_string();
    let nowhere = folder
        .path()
        .join("no/such/folder/a.png")
        .display()
        .to_string();
    let here = folder.path().display().to_string();
    imagine(&["a", "-o", &nowhere]).fails_clearly(&["no/such/folder/a.png", "cannot be written"]);
    imagine(&["a", "-o", &path, "--size", "30x31"]).fails_clearly(&["30x31", "multiples of 2"]);
    imagine(&["a", "-o", &path, "--size", "100000x100000"])
        .fails_clearly(&["100000x100000", "at most 4096"]);
    imagine(&["a", "-o", &path, "--size", "0x0"]).fails_clearly(&["0x0"]);
    imagine(&["a", "-o", &path, "--steps", "2000"]).fails_clearly(&["2000 steps", "1 to 1000"]);
    imagine(&["a", "-o", &path, "--lora", "none.safetensors"])
        .fails_clearly(&["none.safetensors", "no such file"]);
    imagine(&["a", "-o", &here]).fails(2, &["ends in .png"]);
    imagine(&["a", "-o", "a.jpg"]).fails(2, &["a.jpg", "ends in .png"]);
    imagine(&[" ", "-o", &path]).fails(2, &["PROMPT is empty"]);
    imagine(&["a", "-o", &path, "--scheduler", "magic"]).fails(2, &["--scheduler"]);
    imagine(&["a", "-o", &path, "--size", "big"]).fails(2, &["--size"]);
    imagine(&["a", "-o", &path, "--guidance", "nan"]).fails(2, &["--guidance"]);
    mgm(&["imagine", "a", "-o", &path, "--model", "no-such-model"])
        .fails_clearly(&["no-such-model"]);
    mgm(&["imagine", "a", "-o", &path, "--model", &here]).fails_clearly(&["no model_index.json"]);
    assert!(entries(folder.path()).is_empty());
}

#[test]
fn a_missing_weight_file_is_named() {
    let folder = tempfile::tempdir().unwrap();
    let model = folder.path().join("model");
    copy(Path::new(&painter()), &model);
    std::fs::remove_file(model.join("vae/diffusion_pytorch_model.safetensors")).unwrap();
    let out = folder.path().join("a.png").display().to_string();
    mgm(&[
        "imagine",
        "a",
        "-o",
        &out,
        "--model",
        &model.display().to_string(),
    ])
    .fails_clearly(&[
        "vae",
        "no weights: expected diffusion_pytorch_model.safetensors",
    ]);
}

fn copy(from: &Path, to: &Path) {
    std::fs::create_dir_all(to).unwrap();
    for entry in std::fs::read_dir(from).unwrap() {
        let entry = entry.unwrap();
        let target = to.join(entry.file_name());
        match entry.path().is_dir() {
            true => copy(&entry.path(), &target),
            false => {
                std::fs::copy(entry.path(), target).unwrap();
            }
        }
    }
}

/// A full disk: the kernel's own device that is always full stands behind the file that is written beside the picture.
#[cfg(target_os = "linux")]
#[test]
fn a_full_disk_leaves_nothing_behind() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("a.png").display().to_string();
    // At most two blocks of 512 bytes in any file: writing fails as on a full disk.
    let painter = painter();
    let run = finish(
        std::process::Command::new("sh")
            .args([
                "-c",
                "trap '' XFSZ; ulimit -f 2; exec \"$@\"",
                "sh",
                env!("CARGO_BIN_EXE_mgm"),
            ])
            .args([
                "imagine", "--model", &painter, "a", "-o", &path, "--steps", "1", "--size", "64x64",
            ])
            .stdin(std::process::Stdio::null()),
    );
    run.fails_clearly(&["a.png", "cannot be written"]);
    assert!(entries(folder.path()).is_empty());
}

#[cfg(unix)]
#[test]
fn ctrl_c_keeps_what_is_finished() {
    use std::io::{BufRead, BufReader};
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("a.png").display().to_string();
    let painter = painter();
    let mut child = command(&[
        "imagine", "--model", &painter, "a", "-o", &path, "--count", "500", "--steps", "200",
        "--seed", "1",
    ])
    .stdout(std::process::Stdio::piped())
    .stderr(std::process::Stdio::piped())
    .spawn()
    .unwrap();
    let mut first = String::new();
    BufReader::new(child.stdout.take().unwrap())
        .read_line(&mut first)
        .unwrap();
    let pid = rustix::process::Pid::from_child(&child);
    rustix::process::kill_process(pid, rustix::process::Signal::INT).unwrap();
    let output = child.wait_with_output().unwrap();
    assert_eq!(output.status.code(), Some(130));
    let said = String::from_utf8(output.stderr).unwrap();
    assert!(said.contains("of 500 pictures are finished"), "{said}");
    read(Path::new(first.trim_end()));
    assert!(
        entries(folder.path())
            .iter()
            .all(|name| name.ends_with(".png") && !name.starts_with('.'))
    );
}

/// Everything that comes with the program together, as the README shows it: a request, a prompt, a picture.
#[test]
fn the_built_in_model_and_painter_draw() {
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("apple.png");
    let path = file.display().to_string();
    let draw = [
        "chat",
        "--gen",
        "-o",
        &path,
        "--seed",
        "1",
        "draw a red apple",
    ];
    let run = mgm(&draw);
    assert_eq!(run.code, Some(0), "{run:?}");
    assert!(run.stdout.contains("<h>a red apple</h>"), "{run:?}");
    let (image, texts) = read(&file);
    assert_eq!((image.width, image.height), (96, 96));
    let has = |key: &str, value: &str| texts.iter().any(|(k, v)| k == key && v == value);
    assert!(
        has("Prompt", "a red apple") && has("Model", "emoji-painter"),
        "{texts:?}"
    );
    // Red where the apple is, white around it.
    let at = |x: usize, y: usize| &image.data[3 * (96 * y + x)..][..3];
    let (middle, corner) = (at(48, 55), at(3, 3));
    assert!(middle[0] > 120 && middle[1] < 110, "{middle:?}");
    assert!(corner.iter().all(|&v| v > 200), "{corner:?}");

    // Nothing is painted that was not asked for.
    let other = folder.path().join("other.png");
    let asked = [
        "chat",
        "--gen",
        "-o",
        &path,
        "--painter",
        "nowhere",
        "draw a cat",
    ];
    mgm(&asked).fails_clearly(&["nowhere"]);
    assert!(!other.exists());
}

/// The built-in model with the tiny painter. Whether it writes a prompt is up to the model; both ways must end as they should.
#[test]
fn chat_asks_for_a_prompt_and_paints_it() {
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("out.png");
    let path = file.display().to_string();
    let painter = painter();
    let chat = |prompt: &str, more: &[&str]| {
        let fixed = [
            "chat",
            "--gen",
            "--painter",
            &painter,
            "-o",
            &path,
            "--steps",
            "2",
            "--seed",
            "3",
            "--max-new-tokens",
            "40",
            prompt,
        ];
        mgm(&[&fixed[..], more].concat())
    };
    let run = chat("Repeat exactly: <h>a red apple</h>", &[]);
    match run.code {
        Some(0) => {
            let (_, texts) = read(&file);
            assert!(
                texts
                    .iter()
                    .any(|(key, text)| key == "Prompt" && run.stdout.contains(text.as_str())),
                "{run:?}"
            );
            assert!(run.stdout.ends_with(&format!("{path}\n")), "{run:?}");
        }
        _ => {
            assert_eq!(run.code, Some(1), "{run:?}");
            assert!(
                run.stderr
                    .contains("error: the model wrote no picture prompt"),
                "{run:?}"
            );
            assert!(!file.exists());
        }
    }
    mgm(&["chat", "--steps", "3", "hi"]).fails(2, &["--steps", "--gen"]);
    mgm(&["chat", "-o", "a.png", "hi"]).fails(2, &["--output", "--gen"]);
    chat("draw", &["--size", "3x3"]).fails_clearly(&["3x3"]);
}
