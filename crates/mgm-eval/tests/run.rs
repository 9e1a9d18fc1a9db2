//! The loop, with an answerer that needs no model.
#![allow(clippy::unwrap_used)]

use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, Ordering};

use mgm_eval::{Answerer, DataFile, EvalError, Record, RunOptions, run};

/// Says the name of the picture, counts its calls, raises `stop` after `stop_after` of them.
struct Parrot {
    asked: Vec<String>,
    stop_after: usize,
}

impl Answerer for Parrot {
    fn subject(&self) -> String {
        "parrot".into()
    }
    fn answer(
        &mut self,
        record: &Record,
        picture: Option<&Path>,
        stop: &AtomicBool,
    ) -> Result<Option<String>, EvalError> {
        if self.asked.len() == self.stop_after {
            stop.store(true, Ordering::Relaxed);
            return Ok(None);
        }
        self.asked.push(record.id.clone());
        Ok(Some(match picture {
            Some(picture) => picture.file_stem().unwrap().to_string_lossy().into_owned(),
            None => "nothing".into(),
        }))
    }
}

fn folder(name: &str) -> PathBuf {
    let folder = std::env::temp_dir().join(format!("mgm-eval-{name}-{}", std::process::id()));
    std::fs::create_dir_all(&folder).unwrap();
    folder
}

fn write(path: &Path, records: serde_json::Value) -> DataFile {
    std::fs::write(path, records.to_string()).unwrap();
    DataFile::read(path, None).unwrap()
}

fn animals(folder: &Path) -> DataFile {
    write(
        &folder.join("animals.json"),
        serde_json::json!([
            {"id": 1, "image": "cat.png", "question": "?", "answers": ["Cat."]},
            {"id": 2, "image": "dog.png", "question": "?", "answers": ["wolf"], "tame": true},
            {"id": 3, "image": "red fox.png", "question": "?", "answers": ["fox"], "match": "contains", "tame": false},
        ]),
    )
}

#[test]
fn scores_per_file_and_together() {
    let folder = folder("scores");
    let words = write(
        &folder.join("words.json"),
        serde_json::json!([{"id": 1, "question": "?", "answers": ["nothing"]}]),
    );
    let mut parrot = Parrot {
        asked: Vec::new(),
        stop_after: usize::MAX,
    };
    let mut steps = Vec::new();
    let report = run(
        &[animals(&folder), words],
        &RunOptions::default(),
        &mut parrot,
        &mut |progress| steps.push((progress.done, progress.total)),
        &AtomicBool::new(false),
    )
    .unwrap();
    assert_eq!(steps, [(1, 4), (2, 4), (3, 4), (4, 4)]);
    assert_eq!((report.files[0].right, report.files[0].answered), (2, 3));
    assert_eq!((report.files[1].right, report.files[1].answered), (1, 1));
    assert_eq!(report.total.accuracy, Some(0.75));
    assert!(!report.interrupted);
    assert_eq!(report.files[0].parts["tame: true"].accuracy, Some(0.0));
    assert_eq!(report.files[0].parts["tame: false"].accuracy, Some(1.0));
    std::fs::remove_dir_all(folder).unwrap();
}

#[test]
fn an_interrupted_run_goes_on_where_it_stopped() {
    let folder = folder("resume");
    let data = [animals(&folder)];
    let answers = folder.join("answers.jsonl");
    let options = RunOptions {
        answers: Some(answers.clone()),
        resume: true,
        ..RunOptions::default()
    };
    let mut first = Parrot {
        asked: Vec::new(),
        stop_after: 1,
    };
    let report = run(
        &data,
        &options,
        &mut first,
        &mut |_| {},
        &AtomicBool::new(false),
    )
    .unwrap();
    assert!(report.interrupted);
    assert_eq!((report.total.answered, report.total.records), (1, 3));

    // A line cut off in the middle, as by a full disk or a kill.
    let mut text = std::fs::read_to_string(&answers).unwrap();
    text.push_str("{\"file\":\"animals.json\",\"id\":\"2\",\"ans");
    std::fs::write(&answers, text).unwrap();

    let mut second = Parrot {
        asked: Vec::new(),
        stop_after: usize::MAX,
    };
    let report = run(
        &data,
        &options,
        &mut second,
        &mut |_| {},
        &AtomicBool::new(false),
    )
    .unwrap();
    assert_eq!(second.asked, ["2", "3"]);
    assert!(!report.interrupted);
    assert_eq!(
        (
            report.total.right,
            report.total.answered,
            report.answered_now
        ),
        (2, 3, 2)
    );
    assert_eq!(
        std::fs::read_to_string(&answers).unwrap().lines().count(),
        3
    );

    let mut third = Parrot {
        asked: Vec::new(),
        stop_after: usize::MAX,
    };
    let report = run(
        &data,
        &options,
        &mut third,
        &mut |_| {},
        &AtomicBool::new(false),
    )
    .unwrap();
    assert!(third.asked.is_empty());
    assert_eq!(report.total.right, 2);
    std::fs::remove_dir_all(folder).unwrap();
}

#[test]
fn answers_of_another_model_are_refused() {
    let folder = folder("subject");
    let answers = folder.join("answers.jsonl");
    std::fs::write(
        &answers,
        "{\"file\":\"animals.json\",\"id\":\"1\",\"answer\":\"cat\",\"right\":true,\"subject\":\"owl\"}\n",
    )
    .unwrap();
    let options = RunOptions {
        answers: Some(answers),
        resume: true,
        ..RunOptions::default()
    };
    let mut parrot = Parrot {
        asked: Vec::new(),
        stop_after: usize::MAX,
    };
    let error = run(
        &[animals(&folder)],
        &options,
        &mut parrot,
        &mut |_| {},
        &AtomicBool::new(false),
    )
    .unwrap_err();
    assert!(
        error.to_string().contains("line 1") && error.to_string().contains("owl"),
        "{error}"
    );
    std::fs::remove_dir_all(folder).unwrap();
}

#[test]
fn bad_data_files_are_named() {
    let folder = folder("bad");
    let path = folder.join("bad.json");
    for (text, expected) in [
        ("", "at least one record"),
        ("[]", "at least one record"),
        (
            "[{\"id\":1,\"question\":\"q\",\"answers\":[]}]",
            "accepts no answer",
        ),
        (
            "[{\"id\":1,\"question\":\"q\",\"answers\":[\"a\"]},{\"id\":\"1\",\"question\":\"q\",\"answers\":[\"a\"]}]",
            "twice",
        ),
        ("[{\"id\":1,\"query\":\"q\"}]", "question"),
        ("[{\"id\":1", "EOF"),
    ] {
        std::fs::write(&path, text).unwrap();
        let error = DataFile::read(&path, None).unwrap_err().to_string();
        assert!(
            error.contains(expected) && error.contains("bad.json"),
            "{text}: {error}"
        );
    }
    assert!(
        DataFile::read(&folder.join("none.json"), None)
            .unwrap_err()
            .to_string()
            .contains("none.json")
    );
    std::fs::remove_dir_all(folder).unwrap();
}
