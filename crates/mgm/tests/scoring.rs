//! `mgm eval`.
#![allow(clippy::unwrap_used)]

mod support;

use support::{mgm, root};

fn data(folder: &std::path::Path) -> String {
    let path = folder.join("animals.json");
    let question = "What is in the picture?";
    let records = serde_json::json!([
        {"id": "cat", "image": "cat.jpg", "question": question, "answers": ["cat"], "match": "contains"},
        {"id": "zebra", "image": "cat.jpg", "question": question, "answers": ["zebra"], "match": "contains"},
    ]);
    std::fs::write(&path, records.to_string()).unwrap();
    path.display().to_string()
}

#[test]
fn scores_are_counted_kept_and_resumed() {
    let folder = tempfile::tempdir().unwrap();
    let data = data(folder.path());
    let examples = root().join("examples").display().to_string();
    let answers = folder.path().join("answers.jsonl").display().to_string();
    let report = folder.path().join("report.json").display().to_string();

    let table = mgm(&[
        "eval",
        &data,
        "--image-folder",
        &examples,
        "--limit",
        "1",
        "--answers",
        &answers,
    ])
    .ok();
    assert!(table.contains("100.00 %  1 of 1 right"), "{table}");

    let arguments = [
        "eval",
        &data,
        "--image-folder",
        &examples,
        "--answers",
        &answers,
        "--resume",
        "--json",
        &report,
    ];
    let table = mgm(&arguments).ok();
    assert!(table.contains("50.00 %  1 of 2 right"), "{table}");
    let value: serde_json::Value =
        serde_json::from_slice(&std::fs::read(&report).unwrap()).unwrap();
    assert_eq!(
        (&value["total"]["accuracy"], &value["answered_now"]),
        (&0.5.into(), &1.into())
    );
    assert_eq!(
        std::fs::read_to_string(&answers).unwrap().lines().count(),
        2
    );

    let run = mgm(&[&arguments[..], &["--fail-under", "80"]].concat());
    assert_eq!(run.code, Some(1), "{run:?}");
    assert!(run.stderr.contains("50.00 % is below 80 %"), "{run:?}");

    // Another subject must not take over these answers.
    mgm(&[&arguments[..], &["--without-high-res"]].concat())
        .fails_clearly(&["answers.jsonl", "smol"]);
}

#[test]
fn without_the_high_resolution_tower_there_is_another_subject() {
    let folder = tempfile::tempdir().unwrap();
    let data = data(folder.path());
    let examples = root().join("examples").display().to_string();
    let json = mgm(&[
        "eval",
        &data,
        "--image-folder",
        &examples,
        "--json",
        "-",
        "--without-high-res",
    ])
    .ok();
    let value: serde_json::Value = serde_json::from_str(&json).unwrap();
    assert_eq!(value["subject"], "smol without the high-resolution tower");
    assert_eq!(value["total"]["answered"], 2);
}

#[test]
fn a_missing_picture_is_found_before_the_run() {
    let folder = tempfile::tempdir().unwrap();
    let data = data(folder.path());
    mgm(&["eval", &data]).fails_clearly(&["record cat", "cat.jpg"]);
}
