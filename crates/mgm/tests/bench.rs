//! `mgm bench` as a user runs it. What it measures is not looked at: only that it measures, and says so.
#![allow(clippy::unwrap_used)]

mod support;

use serde_json::Value;
use support::mgm;

/// The quickest run there is.
const QUICK: [&str; 9] = [
    "bench",
    "--no-gate",
    "--runs",
    "1",
    "--prefill",
    "8",
    "--context",
    "4",
    "--batch",
];

fn quick<'a>(more: &[&'a str]) -> Vec<&'a str> {
    QUICK
        .iter()
        .copied()
        .chain(["1,2"])
        .chain(more.iter().copied())
        .collect()
}

#[test]
fn a_table_json_and_a_comparison() {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("report.json");
    let file = path.to_str().unwrap();
    let table = mgm(&quick(&["--json", file])).ok();
    for line in [
        "this machine at most",
        "low-res tower 112",
        "decode 2 after 4",
        "first token",
    ] {
        assert!(table.contains(line), "{line}: {table}");
    }
    let report: Value = serde_json::from_str(&std::fs::read_to_string(&path).unwrap()).unwrap();
    assert_eq!(report["model"]["name"], "smol");
    let cells = report["cells"].as_array().unwrap();
    assert_eq!(cells.len(), 9);
    for cell in cells {
        let times = cell["seconds"].as_array().unwrap();
        assert!(!times.is_empty() && times.iter().all(|time| time.as_f64().unwrap() > 0.0));
    }
    assert!(report["ceilings"]["read"]["all_threads"].as_f64().unwrap() > 0.0);

    let run = mgm(&quick(&[
        "--stage",
        "prefill",
        "--stage",
        "decode",
        "--compare",
        file,
    ]))
    .ok();
    let comparison = run.split("\n\n").last().unwrap();
    assert!(comparison.starts_with("stage"), "{run}");
    // The header, one prefill, two decodes.
    assert_eq!(comparison.trim_end().lines().count(), 4, "{comparison}");
    // Nothing else is left beside the report.
    assert_eq!(std::fs::read_dir(directory.path()).unwrap().count(), 1);
}

#[test]
fn json_alone_goes_to_stdout() {
    let json = mgm(&quick(&[
        "--stage", "prefill", "--level", "portable", "--json", "-",
    ]))
    .ok();
    let report: Value = serde_json::from_str(&json).unwrap();
    assert_eq!(report["machine"]["level"], "portable");
    assert_eq!(report["cells"].as_array().unwrap().len(), 1);
}

#[test]
fn what_does_not_fit_is_told_in_one_line() {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("no-report.json");
    std::fs::write(&path, "{\"version\": 77}").unwrap();
    let file = path.to_str().unwrap();
    mgm(&quick(&["--compare", file])).fails_clearly(&["report of version 77, expected 1"]);
    mgm(&quick(&["--compare", "nowhere.json"])).fails_clearly(&["nowhere.json"]);
    mgm(&quick(&["--image", "nowhere.png"])).fails_clearly(&["nowhere.png"]);
    mgm(&[
        "bench",
        "--context",
        "9000",
        "--stage",
        "decode",
        "--no-gate",
    ])
    .fails_clearly(&["a context of 9000 tokens: the model has 8192 positions"]);
    mgm(&quick(&[
        "--stage",
        "prefill",
        "--json",
        "no/such/folder/x.json",
    ]))
    .fails_clearly(&["no/such/folder"]);
    for (arguments, needle) in [
        (
            &["--stage", "thinking"][..],
            "expected one of picture, preprocess",
        ),
        (
            &["--shape", "2b", "--weights", "Q9"],
            "expected one of F32, BF16",
        ),
        (&["--hd"], "--shape"),
        (&["--shape", "2b", "--model", "smol"], "cannot be used with"),
    ] {
        let run = mgm(&quick(arguments)).fails(2, &[]);
        assert!(run.stderr.contains(needle), "{run:?}");
    }
}
