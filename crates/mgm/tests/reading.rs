//! `mgm ocr` and `mgm chat --ocr`.
#![allow(clippy::unwrap_used)]

mod support;

use std::io::Write;
use std::path::Path;
use std::process::Command;

use support::{Run, command, example, finish, mgm, root};

/// A picture of text.
fn page(name: &str) -> String {
    let path = root().join("crates/mgm-ocr/tests/fixtures").join(name);
    path.display().to_string()
}

/// Runs with the networks; `None`, loudly, where tools/fetch_ocr.sh has not brought them.
fn reading(arguments: &[&str]) -> Option<Run> {
    let run = mgm(arguments);
    if !run.stderr.contains("networks were not found") {
        return Some(run);
    }
    // Written past the test harness's capture, so that a skipped check is never silent.
    let message = format!("\nSKIPPED: {}", run.stderr);
    std::io::stderr().write_all(message.as_bytes()).unwrap();
    None
}

/// Without networks anywhere.
fn without_networks(arguments: &[&str], home: &Path) -> Command {
    let mut command = command(arguments);
    command
        .env_remove("MGM_OCR_MODELS")
        .env("XDG_DATA_HOME", home);
    command
}

#[test]
fn missing_networks_are_told_with_a_way_to_get_them() {
    let home = tempfile::tempdir().unwrap();
    let picture = page("strip.png");
    for arguments in [
        &["ocr", &picture][..],
        &["chat", "--ocr", "--image", &picture, "What does it say?"],
        &["eval", "--ocr", "questions.json"],
    ] {
        let mut command = without_networks(arguments, home.path());
        if arguments[0] == "eval" {
            command.current_dir(root().join("crates/mgm/tests/fixtures/easy-vqa"));
        }
        let run = finish(&mut command).fails_clearly(&["networks were not found", "mgm/ocr"]);
        assert!(run.stderr.contains("hint: tools/fetch_ocr.sh"), "{run:?}");
    }
    let empty = home.path().display().to_string();
    mgm(&["ocr", "--ocr-models", &empty, &picture]).fails_clearly(&[&empty, "text detection"]);
    mgm(&["ocr", "--ocr-models", "/nowhere", &picture]).fails_clearly(&["/nowhere"]);
}

#[test]
fn wrong_usage() {
    for arguments in [
        &["ocr"][..],
        &["ocr", "--threshold", "2", "x.png"],
        &["chat", "--ocr", "What does it say?"],
    ] {
        assert_eq!(mgm(arguments).code, Some(2), "{arguments:?}");
    }
}

#[test]
fn lines_of_text() {
    let Some(run) = reading(&["ocr", &page("lines.png")]) else {
        return;
    };
    let text = run.ok();
    let lines: Vec<&str> = text.lines().collect();
    assert_eq!(lines[0], "Mini-Gemini: invoice total $1,284.50");
    assert_eq!(lines.len(), 6);
}

#[test]
fn lines_as_json() {
    let Some(run) = reading(&["ocr", "--json", "--threshold", "0.98", &page("lines.png")]) else {
        return;
    };
    let json: serde_json::Value = serde_json::from_str(&run.ok()).unwrap();
    let picture = &json["pictures"][0];
    assert_eq!(
        (&picture["width"], &picture["angle"]),
        (&760.into(), &0.0.into())
    );
    let lines = picture["lines"].as_array().unwrap();
    // One of the six is read with less confidence.
    assert_eq!(lines.len(), 5);
    let first = &lines[0];
    assert_eq!(first["text"], "Mini-Gemini: invoice total $1,284.50");
    assert!(first["confidence"].as_f64().unwrap() > 0.99);
    let corner = |index: usize| first["corners"][index][0].as_f64().unwrap();
    assert!(corner(0) < 40.0 && corner(1) > 600.0);
}

#[test]
fn a_bad_picture_does_not_spoil_the_others() {
    let (good, bad) = (page("strip.png"), "no-such-picture.png".to_string());
    let Some(run) = reading(&["ocr", &bad, &good]) else {
        return;
    };
    assert_eq!(run.code, Some(1));
    assert!(
        run.stdout
            .contains(&format!("==> {good} <==\nOne long line")),
        "{run:?}"
    );
    assert!(
        run.stderr.contains(&bad) && run.stderr.contains("1 of 2 pictures"),
        "{run:?}"
    );
    let json = mgm(&["ocr", "--json", &bad, &good]);
    assert_eq!(json.code, Some(1));
    let json: serde_json::Value = serde_json::from_str(&json.stdout).unwrap();
    assert!(
        json["pictures"][0]["error"]
            .as_str()
            .unwrap()
            .contains(&bad)
    );
    assert!(json["pictures"][1]["lines"][0]["text"].is_string());
    mgm(&["ocr", &bad]).fails_clearly(&[&bad]);
}

#[test]
fn no_text_is_no_failure() {
    let folder = tempfile::tempdir().unwrap();
    let blank = folder.path().join("blank.png");
    image::GrayImage::from_pixel(80, 60, image::Luma([255]))
        .save(&blank)
        .unwrap();
    let Some(run) = reading(&["ocr", blank.to_str().unwrap()]) else {
        return;
    };
    assert!(run.stderr.contains("no text found"), "{run:?}");
    assert_eq!(run.ok(), "");
}

#[test]
fn the_model_is_told_what_was_read() {
    let question = "What does the text say?";
    let mut arguments = vec!["chat", "--json", "--max-new-tokens", "4", "--image"];
    let (strip, rocket) = (page("strip.png"), example("rocket.jpg"));
    arguments.extend([&strip, "--image", &rocket, question]);
    let tokens = |json: &serde_json::Value| json["tokens"]["prompt"].as_u64().unwrap();
    let plain: serde_json::Value = serde_json::from_str(&mgm(&arguments).ok()).unwrap();
    assert!(plain.get("ocr").is_none());

    arguments.push("--ocr");
    let Some(run) = reading(&arguments) else {
        return;
    };
    let json: serde_json::Value = serde_json::from_str(&run.ok()).unwrap();
    let text = "One long line of a ticker: 4.25 +0.10 | 118.40 -2.05 | closed at 17:30";
    assert_eq!(
        json["ocr"]["hint"],
        format!("\nReference OCR Token: {text}\n")
    );
    let pictures = json["ocr"]["pictures"].as_array().unwrap();
    assert_eq!(pictures.len(), 2);
    assert_eq!(pictures[0]["lines"][0]["text"], text);
    assert!(tokens(&json) > tokens(&plain) + 20);
    // The same prompt without the flag: the hint is nothing but text after the question.
    let asked = format!("{question}\nReference OCR Token: {text}\n");
    let by_hand = mgm(&[
        "chat",
        "--json",
        "--max-new-tokens",
        "4",
        "--image",
        &strip,
        "--image",
        &rocket,
        &asked,
    ]);
    let by_hand: serde_json::Value = serde_json::from_str(&by_hand.ok()).unwrap();
    assert_eq!(tokens(&json), tokens(&by_hand));
    assert_eq!(json["answer"], by_hand["answer"]);
}
