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
fn a_scored_answer_is_the_one_chat_gives() {
    let folder = tempfile::tempdir().unwrap();
    // Questions about one picture share what was read before; the next picture must not.
    let asked = [
        ("cat.jpg", "What is in the picture?"),
        ("cat.jpg", "What is in the image?"),
        ("coffee.jpg", "What is in the picture?"),
        ("cat.jpg", "What is in the picture?"),
    ];
    let records: Vec<_> = asked
        .iter()
        .enumerate()
        .map(|(id, (image, question))| {
            serde_json::json!({"id": id, "image": image, "question": question, "answers": ["x"]})
        })
        .chain([serde_json::json!({"id": 4, "question": "What is a cat?", "answers": ["x"]})])
        .collect();
    let data = folder.path().join("asked.json");
    std::fs::write(&data, serde_json::to_string(&records).unwrap()).unwrap();
    let (data, log) = (
        data.display().to_string(),
        folder.path().join("answers.jsonl"),
    );
    let (examples, path) = (
        root().join("examples").display().to_string(),
        log.display().to_string(),
    );
    let limit = ["--max-new-tokens", "12"];
    mgm(&[
        &[
            "eval",
            &data,
            "--image-folder",
            &examples,
            "--answers",
            &path,
        ],
        &limit[..],
    ]
    .concat())
    .ok();
    let answers: Vec<serde_json::Value> = std::fs::read_to_string(&log)
        .unwrap()
        .lines()
        .map(|line| serde_json::from_str(line).unwrap())
        .collect();
    assert_eq!(answers.len(), 5);
    for ((image, question), answer) in asked.iter().zip(&answers) {
        let image = format!("{examples}/{image}");
        let chat = mgm(&[&["chat", "--image", &image, question], &limit[..]].concat()).ok();
        assert_eq!(
            answer["answer"].as_str().unwrap(),
            chat.trim_end(),
            "{image} {question}"
        );
    }
    let chat = mgm(&[&["chat", "What is a cat?"], &limit[..]].concat()).ok();
    assert_eq!(answers[4]["answer"].as_str().unwrap(), chat.trim_end());
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
