//! The built-in model, asked the way a user asks.
#![allow(clippy::unwrap_used)]

mod support;

use std::io::Read;

use support::{ENDLESS, command, example, finish, mgm, mgm_piped, start};

#[test]
fn the_examples_are_named_right() {
    for (picture, nouns) in [
        ("cat.jpg", &["cat", "kitten"][..]),
        ("coffee.jpg", &["coffee", "espresso", "cup"]),
    ] {
        let answer = mgm(&[
            "chat",
            "--image",
            &example(picture),
            "What is in the picture?",
        ])
        .ok();
        let words: Vec<String> = answer
            .to_lowercase()
            .split(|c: char| !c.is_alphanumeric())
            .map(str::to_string)
            .collect();
        assert!(
            nouns
                .iter()
                .any(|noun| words.iter().any(|word| word == noun)),
            "{picture}: {answer}"
        );
        assert!(answer.ends_with('\n') && !answer.trim().is_empty());
    }
}

#[test]
fn greedy_answers_repeat_and_json_tells_the_same() {
    let cat = example("cat.jpg");
    let arguments = ["chat", "--image", &cat, "What is in the picture?"];
    let plain = mgm(&arguments).ok();
    let json = mgm(&[&arguments[..], &["--json"]].concat()).ok();
    let value: serde_json::Value = serde_json::from_str(&json).unwrap();
    assert_eq!(value["answer"].as_str().unwrap(), plain.trim_end());
    assert_eq!(value["model"], "smol");
    assert_eq!(value["stop"], "end_of_turn");
    assert!(value["tokens"]["visual"].as_u64().unwrap() >= 64);
    assert!(value["tokens"]["prompt"].as_u64().unwrap() > 5);
    assert!(value["tokens"]["new"].as_u64().unwrap() > 1);
    for part in [
        "load",
        "encode",
        "prefill",
        "decode",
        "start_to_first_token",
        "tokens_per_second",
    ] {
        assert!(
            value["timings"][part].as_f64().unwrap() > 0.0,
            "{part}: {json}"
        );
    }
}

#[test]
fn the_answer_alone_is_on_stdout() {
    let run = mgm(&["chat", "--timings", "--max-new-tokens", "12", "Say hello."]);
    assert_eq!(run.code, Some(0), "{run:?}");
    assert!(
        run.stderr.contains("first token after") && run.stderr.contains("tokens/s"),
        "{run:?}"
    );
    assert_eq!(
        mgm(&["chat", "--max-new-tokens", "12", "Say hello."]).ok(),
        run.stdout
    );
    let quiet = mgm(&["chat", "--image", &example("cat.jpg"), "What is it?"]);
    assert_eq!(
        quiet.stderr, "",
        "nothing but the answer when nothing is a terminal"
    );
}

#[test]
fn the_prompt_may_be_piped() {
    let asked = mgm(&["chat", "--max-new-tokens", "12", "Name a colour."]).ok();
    assert_eq!(
        mgm_piped(&["chat", "--max-new-tokens", "12"], b"Name a colour.\n").ok(),
        asked
    );
    let both = mgm_piped(
        &["chat", "--json", "--max-new-tokens", "12", "Say it again:"],
        b"red\n",
    )
    .ok();
    let joined = mgm(&[
        "chat",
        "--json",
        "--max-new-tokens",
        "12",
        "Say it again:\n\nred",
    ])
    .ok();
    let answer =
        |json: &str| serde_json::from_str::<serde_json::Value>(json).unwrap()["answer"].clone();
    assert_eq!(answer(&both), answer(&joined));
}

#[test]
fn several_pictures_and_placed_pictures() {
    let (cat, coffee) = (example("cat.jpg"), example("coffee.jpg"));
    let visual = |arguments: &[&str]| {
        let json = mgm(&[&["chat", "--json", "--max-new-tokens", "4"], arguments].concat()).ok();
        serde_json::from_str::<serde_json::Value>(&json).unwrap()["tokens"]["visual"]
            .as_u64()
            .unwrap()
    };
    let one = visual(&["--image", &cat, "What is it?"]);
    assert_eq!(
        visual(&["--image", &cat, "--image", &coffee, "What are they?"]),
        2 * one
    );
    assert_eq!(visual(&["What is a cat?"]), 0);
    assert_eq!(visual(&["--image", &cat, "Look: <image> What is it?"]), one);
    mgm(&["chat", "--image", &cat, "<image> and <image>"])
        .fails_clearly(&["2 `<image>`", "1 picture"]);
    // Without pictures the mark is text that somebody typed.
    assert_eq!(visual(&["What is <image>?"]), 0);
}

#[test]
fn limits_and_seeds_hold() {
    let json = mgm(&[
        "chat",
        "--json",
        "--max-new-tokens",
        "3",
        "Tell a long story.",
    ])
    .ok();
    let value: serde_json::Value = serde_json::from_str(&json).unwrap();
    assert_eq!(
        (&value["stop"], &value["tokens"]["new"]),
        (&"length".into(), &3.into())
    );
    let sampled = |seed: &str| {
        let options = [
            "chat",
            "--temperature",
            "1.5",
            "--max-new-tokens",
            "24",
            "--seed",
            seed,
        ];
        mgm(&[&options[..], &["Tell a story."]].concat()).ok()
    };
    assert_eq!(sampled("1"), sampled("1"));
    assert_ne!(sampled("1"), sampled("2"));
}

#[test]
fn threads_and_types_do_not_change_the_answer_much() {
    let cat = example("cat.jpg");
    let ask = |more: &[&str]| {
        mgm(&[
            &[
                "chat",
                "--image",
                &cat,
                "--max-new-tokens",
                "16",
                "What is in the picture?",
            ],
            more,
        ]
        .concat())
        .ok()
    };
    assert_eq!(ask(&["--threads", "1"]), ask(&["--threads", "2"]));
    for dtype in ["bf16", "f16", "int8"] {
        let answer = ask(&["--dtype", dtype, "--device", "cpu"]);
        assert!(!answer.trim().is_empty(), "{dtype}");
    }
}

#[test]
fn a_prompt_longer_than_the_context_is_refused() {
    let long = "one two three four five six seven eight nine ten ".repeat(2000);
    let run = mgm_piped(&["chat"], long.as_bytes()).fails_clearly(&["does not fit", "limit"]);
    assert!(run.stderr.contains("hint: "), "{run:?}");
}

#[test]
fn a_reader_that_leaves_early_is_no_failure() {
    let mut child = start(ENDLESS);
    let mut byte = [0];
    let mut stdout = child.stdout.take().unwrap();
    stdout.read_exact(&mut byte).unwrap();
    drop(stdout);
    let output = child.wait_with_output().unwrap();
    assert_eq!(output.status.code(), Some(0), "{output:?}");
    assert!(output.stderr.is_empty(), "{output:?}");
}

#[cfg(unix)]
#[test]
fn ctrl_c_ends_with_130_and_keeps_the_words() {
    let mut child = start(ENDLESS);
    let mut stdout = child.stdout.take().unwrap();
    let mut byte = [0];
    stdout.read_exact(&mut byte).unwrap();
    let process = rustix::process::Pid::from_child(&child);
    rustix::process::kill_process(process, rustix::process::Signal::INT).unwrap();
    let mut rest = String::new();
    stdout.read_to_string(&mut rest).unwrap();
    assert!(rest.ends_with('\n'));
    let output = child.wait_with_output().unwrap();
    assert_eq!(output.status.code(), Some(130), "{output:?}");
    assert!(
        String::from_utf8_lossy(&output.stderr).contains("interrupted"),
        "{output:?}"
    );
}

#[test]
fn it_runs_from_any_directory() {
    let folder = tempfile::tempdir().unwrap();
    let answer = finish(
        command(&["chat", "--max-new-tokens", "12", "Say hello."]).current_dir(folder.path()),
    )
    .ok();
    assert!(!answer.trim().is_empty());
}
