//! Flags, exit codes, and what is made from the flags' definition.
#![allow(clippy::unwrap_used)]

mod support;

use support::{mgm, mgm_piped};

#[test]
fn help_and_version_are_results() {
    let help = mgm(&["--help"]).ok();
    for command in [
        "chat",
        "imagine",
        "serve",
        "train",
        "eval",
        "embed",
        "models",
        "completions",
        "man",
    ] {
        assert!(help.contains(command), "{command} is not in the help");
        let own = mgm(&[command, "--help"]).ok();
        assert!(own.contains("Usage: mgm"), "{own}");
    }
    assert!(help.contains("130 interrupted"), "{help}");
    assert_eq!(
        mgm(&["--version"]).ok(),
        format!("mgm {}\n", env!("CARGO_PKG_VERSION"))
    );
}

#[test]
fn every_documented_flag_of_chat_is_there_and_none_that_does_nothing() {
    let help = mgm(&["chat", "--help"]).ok();
    for flag in [
        "--model",
        "--image",
        "--temperature",
        "--top-p",
        "--top-k",
        "--max-new-tokens",
        "--seed",
        "--device",
        "--dtype",
        "--threads",
        "--template",
        "--gen",
        "--output",
        "--painter",
        "--json",
        "--timings",
    ] {
        assert!(help.contains(flag), "{flag} is not in the help");
    }
    mgm(&["chat", "--ocr", "x"]).fails(2, &["--ocr"]);
}

#[test]
fn wrong_usage_exits_with_two() {
    for (arguments, needle) in [
        (&["chat", "--no-such-flag"][..], "--no-such-flag"),
        (&["no-such-command"], "no-such-command"),
        (&["chat", "--temperature", "hot", "hi"], "--temperature"),
        (&["chat", "--temperature", "-1", "hi"], "-1"),
        (&["chat", "--temperature=-1", "hi"], "--temperature"),
        (&["chat", "--temperature", "nan", "hi"], "--temperature"),
        (&["chat", "--top-p", "0", "hi"], "--top-p"),
        (&["chat", "--top-p", "1.5", "hi"], "--top-p"),
        (&["chat", "--top-k", "0", "hi"], "--top-k"),
        (&["chat", "--max-new-tokens", "0", "hi"], "--max-new-tokens"),
        (
            &["chat", "--max-new-tokens", "many", "hi"],
            "--max-new-tokens",
        ),
        (&["chat", "--threads", "0", "hi"], "--threads"),
        (&["chat", "--seed", "x", "hi"], "--seed"),
        (&["chat", "--device", "tpu", "hi"], "--device"),
        (&["chat", "--dtype", "f8", "hi"], "--dtype"),
        (
            &["chat", "--template", "no-such-template", "hi"],
            "--template",
        ),
        (&["chat", "--image", "", "hi"], "--image"),
        (&["chat", "one", "two"], "two"),
        (&["chat", "  "], "PROMPT"),
        (&["eval", "--resume", "x.json"], "--answers"),
        (&["eval", "--fail-under", "101", "x.json"], "--fail-under"),
        (&["train", "x.toml", "--steps", "0"], "--steps"),
        (&["completions", "tcsh"], "tcsh"),
        (&["man", "no-such-command"], "no-such-command"),
    ] {
        let run = mgm(arguments);
        assert_eq!(run.code, Some(2), "{arguments:?}: {run:?}");
        assert_eq!(run.stdout, "", "{arguments:?}");
        assert!(run.stderr.starts_with("error: "), "{arguments:?}: {run:?}");
        assert!(run.stderr.contains(needle), "{arguments:?}: {run:?}");
    }
    for arguments in [&[][..], &["embed"], &["eval"], &["models"]] {
        let run = mgm(arguments);
        assert_eq!(
            (run.code, run.stdout.as_str()),
            (Some(2), ""),
            "{arguments:?}: {run:?}"
        );
    }
}

#[test]
fn unusable_standard_input_is_told() {
    mgm(&["chat"]).fails(2, &["standard input is empty"]);
    mgm_piped(&["chat"], b" \n\n").fails(2, &["standard input is empty"]);
    mgm_piped(&["chat"], b"caf\xe9 au lait").fails(1, &["not UTF-8", "byte 3"]);
    mgm_piped(&["chat", "Summarise."], &[b'a'; (16 << 20) + 1]).fails(1, &["longer than 16 MiB"]);
}

#[test]
fn devices_this_build_lacks_are_told() {
    mgm(&["chat", "--device", "cuda", "hi"]).fails_clearly(&["CUDA"]);
    mgm(&["chat", "--device", "metal", "hi"]).fails_clearly(&["Metal"]);
}

#[test]
fn completions_and_manual_pages_know_the_flags() {
    for shell in ["bash", "zsh", "fish", "powershell", "elvish"] {
        let script = mgm(&["completions", shell]).ok();
        assert!(script.contains("max-new-tokens"), "{shell}");
    }
    let page = mgm(&["man"]).ok();
    assert!(
        page.contains(".TH mgm 1") && page.contains("chat"),
        "{page}"
    );
    let page = mgm(&["man", "chat"]).ok();
    assert!(
        page.contains("mgm\\-chat") && page.contains("max\\-new\\-tokens"),
        "{page}"
    );
}
