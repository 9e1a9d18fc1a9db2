//! What is asked: the PROMPT, piped input, both, or a conversation.

use std::io::{IsTerminal, Read};
use std::time::Duration;

use crate::failure::Failure;

/// Longest piped text in bytes; far beyond any context, near enough to stop an endless pipe.
const MAX_PIPED: u64 = 16 << 20;
/// How long a silent pipe is waited for before saying so.
const PATIENCE: Duration = Duration::from_secs(3);

/// What to answer.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Input {
    /// One question.
    Once(String),
    /// Whatever is typed.
    Conversation,
}

/// Decides from the PROMPT argument and standard input.
pub(super) fn resolve(prompt: Option<&str>) -> Result<Input, Failure> {
    if prompt.is_some_and(|prompt| prompt.trim().is_empty()) {
        return Err(Failure::usage("the PROMPT is empty"));
    }
    let stdin = std::io::stdin();
    if stdin.is_terminal() {
        return Ok(match prompt {
            Some(prompt) => Input::Once(prompt.into()),
            None => Input::Conversation,
        });
    }
    // Beside a PROMPT, only a file or a pipe holds text meant for us; an inherited socket or device may never end.
    let piped = if prompt.is_none() || is_file_or_pipe() {
        read_piped()?
    } else {
        String::new()
    };
    match (prompt, piped.trim()) {
        (Some(prompt), piped) => Ok(Input::Once(join(prompt, piped))),
        (None, "") => Err(Failure::usage("standard input is empty: expected a prompt")
            .hint("give the prompt as an argument: mgm chat \"What is in the picture?\"")),
        (None, piped) => Ok(Input::Once(piped.into())),
    }
}

fn join(prompt: &str, piped: &str) -> String {
    match piped.trim() {
        "" => prompt.into(),
        piped => format!("{}\n\n{piped}", prompt.trim_end()),
    }
}

fn read_piped() -> Result<String, Failure> {
    let (done, waiting) = std::sync::mpsc::channel::<()>();
    std::thread::spawn(move || {
        if waiting.recv_timeout(PATIENCE) == Err(std::sync::mpsc::RecvTimeoutError::Timeout) {
            note!("waiting for standard input to end (`< /dev/null` leaves it out)");
        }
    });
    let mut bytes = Vec::new();
    let outcome = std::io::stdin()
        .lock()
        .take(MAX_PIPED + 1)
        .read_to_end(&mut bytes);
    drop(done);
    outcome.map_err(|error| Failure::failed(format!("standard input: {error}")))?;
    if bytes.len() as u64 > MAX_PIPED {
        return Err(Failure::failed(format!(
            "standard input is longer than {} MiB: expected a prompt",
            MAX_PIPED >> 20
        )));
    }
    String::from_utf8(bytes).map_err(|error| {
        let position = error.utf8_error().valid_up_to();
        Failure::failed(format!(
            "standard input is not UTF-8 text (byte {position})"
        ))
        .hint("pass a picture with --image FILE")
    })
}

#[cfg(unix)]
fn is_file_or_pipe() -> bool {
    use std::os::fd::AsFd;
    use std::os::unix::fs::FileTypeExt;

    let kind = std::io::stdin()
        .as_fd()
        .try_clone_to_owned()
        .map(std::fs::File::from)
        .and_then(|file| file.metadata())
        .map(|metadata| metadata.file_type());
    kind.is_ok_and(|kind| kind.is_file() || kind.is_fifo())
}

#[cfg(not(unix))]
fn is_file_or_pipe() -> bool {
    true
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn piped_text_follows_the_prompt() {
        assert_eq!(
            join("Summarise.\n", "long text\n"),
            "Summarise.\n\nlong text"
        );
        assert_eq!(join("Hello", " \n"), "Hello");
    }
}
