//! Running the program the way a user does.
#![allow(dead_code, clippy::unwrap_used)]

use std::io::Write;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};

/// The root of the repository.
pub(crate) fn root() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR"))
        .join("../..")
        .canonicalize()
        .unwrap()
}

/// A photograph of `examples/`.
pub(crate) fn example(name: &str) -> String {
    root().join("examples").join(name).display().to_string()
}

/// What a finished run left.
#[derive(Debug)]
pub(crate) struct Run {
    pub(crate) code: Option<i32>,
    pub(crate) stdout: String,
    pub(crate) stderr: String,
}

impl Run {
    /// Asserts success and returns stdout.
    #[track_caller]
    pub(crate) fn ok(self) -> String {
        assert_eq!(self.code, Some(0), "{self:?}");
        self.stdout
    }

    /// Asserts a failure told as it should be: the exit code, nothing on stdout, one `error:` line holding every needle.
    #[track_caller]
    pub(crate) fn fails(self, code: i32, needles: &[&str]) -> Self {
        assert_eq!(self.code, Some(code), "{self:?}");
        assert_eq!(self.stdout, "", "{self:?}");
        let first = self.stderr.lines().next().unwrap_or_default();
        assert!(first.starts_with("error: "), "{self:?}");
        for needle in needles {
            assert!(
                first.contains(needle),
                "{needle:?} is not in {first:?}\n{self:?}"
            );
        }
        assert_eq!(self.stderr.matches("error:").count(), 1, "{self:?}");
        assert!(!self.stderr.contains("panicked"), "{self:?}");
        self
    }

    /// As [`Self::fails`] with code 1 and nothing but the error line, causes and a hint.
    #[track_caller]
    pub(crate) fn fails_clearly(self, needles: &[&str]) -> Self {
        let run = self.fails(1, needles);
        for line in run.stderr.lines().skip(1) {
            assert!(
                line.starts_with("hint: ") || line.starts_with("  caused by: "),
                "{run:?}"
            );
        }
        run
    }
}

/// The program with these arguments, away from the repository, with nothing on stdin.
pub(crate) fn command(arguments: &[&str]) -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_mgm"));
    command
        .args(arguments)
        .current_dir(std::env::temp_dir())
        .stdin(Stdio::null());
    for variable in [
        "MGM_API_KEY",
        "MGM_MODELS_DIR",
        "MGM_MODEL_ZOO",
        "HF_ENDPOINT",
        "HF_HOME",
        "HF_HUB_CACHE",
        "HF_HUB_OFFLINE",
        "HF_TOKEN",
        "http_proxy",
        "HTTP_PROXY",
        "all_proxy",
        "ALL_PROXY",
    ] {
        command.env_remove(variable);
    }
    command
}

/// Runs to the end.
pub(crate) fn finish(command: &mut Command) -> Run {
    let output = command.output().unwrap();
    Run {
        code: output.status.code(),
        stdout: String::from_utf8(output.stdout).unwrap(),
        stderr: String::from_utf8(output.stderr).unwrap(),
    }
}

/// Runs with these arguments.
pub(crate) fn mgm(arguments: &[&str]) -> Run {
    finish(&mut command(arguments))
}

/// Runs with `input` piped in.
pub(crate) fn mgm_piped(arguments: &[&str], input: &[u8]) -> Run {
    let mut child = command(arguments)
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
    let mut stdin = child.stdin.take().unwrap();
    let input = input.to_vec();
    // The program may end without reading all of it.
    let writer = std::thread::spawn(move || drop(stdin.write_all(&input)));
    let output = child.wait_with_output().unwrap();
    writer.join().unwrap();
    Run {
        code: output.status.code(),
        stdout: String::from_utf8(output.stdout).unwrap(),
        stderr: String::from_utf8(output.stderr).unwrap(),
    }
}

/// A question whose answer goes on for as long as it is let.
pub(crate) const ENDLESS: &[&str] = &[
    "chat",
    "--temperature",
    "3",
    "--top-k",
    "40000",
    "--seed",
    "5",
    "--max-new-tokens",
    "7000",
    "Tell a very long story.",
];

/// Starts with stdout and stderr as pipes.
pub(crate) fn start(arguments: &[&str]) -> Child {
    command(arguments)
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap()
}
