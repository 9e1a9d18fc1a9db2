//! How a command ends when it does not end well: exit codes, the error line, its causes, a hint.

use std::io::Write;

/// The command did what it was asked to do.
pub(crate) const DONE: u8 = 0;
/// It could not.
pub(crate) const FAILED: u8 = 1;
/// It was not asked properly.
pub(crate) const WRONG_USAGE: u8 = 2;
/// It was stopped by Ctrl-C.
pub(crate) const INTERRUPTED: u8 = 130;

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Kind {
    Failed,
    Usage,
    Interrupted,
    /// Whoever read stdout has had enough (`mgm … | head`): not a failure.
    ReaderGone,
}

/// Why a command ended early.
#[derive(Debug)]
pub(crate) struct Failure {
    kind: Kind,
    message: String,
    causes: Vec<String>,
    hint: Option<String>,
}

impl Failure {
    fn new(kind: Kind, message: impl Into<String>) -> Self {
        Self {
            kind,
            message: message.into(),
            causes: Vec::new(),
            hint: None,
        }
    }

    /// Something went wrong.
    pub(crate) fn failed(message: impl Into<String>) -> Self {
        Self::new(Kind::Failed, message)
    }

    /// The flags make no sense together.
    pub(crate) fn usage(message: impl Into<String>) -> Self {
        Self::new(Kind::Usage, message)
    }

    /// Stopped by Ctrl-C; `message` says what was kept.
    pub(crate) fn interrupted(message: impl Into<String>) -> Self {
        Self::new(Kind::Interrupted, message)
    }

    /// Whether Ctrl-C was the reason.
    pub(crate) fn is_interruption(&self) -> bool {
        self.kind == Kind::Interrupted
    }

    /// Writing a result failed.
    pub(crate) fn stdout(error: &std::io::Error) -> Self {
        match error.kind() {
            std::io::ErrorKind::BrokenPipe => Self::new(Kind::ReaderGone, ""),
            _ => Self::failed(format!("standard output: {error}")),
        }
    }

    /// `error` and the errors behind it. A cause that the line before it already tells is left out.
    pub(crate) fn from_error(error: &dyn std::error::Error) -> Self {
        let mut failure = Self::failed(error.to_string());
        let mut last = failure.message.clone();
        let mut source = error.source();
        while let Some(cause) = source {
            let text = cause.to_string();
            if !last.contains(&text) {
                failure.causes.push(text.clone());
                last = text;
            }
            source = cause.source();
        }
        failure
    }

    /// Puts `prefix: ` before the message, unless the message already tells it.
    pub(crate) fn about(mut self, prefix: &str) -> Self {
        if !self.message.contains(prefix) {
            self.message = format!("{prefix}: {}", self.message);
        }
        self
    }

    /// Says what may help.
    pub(crate) fn hint(mut self, hint: impl Into<String>) -> Self {
        self.hint = Some(hint.into());
        self
    }

    /// What went wrong, without causes and hint.
    pub(crate) fn message(&self) -> &str {
        &self.message
    }

    /// The process's exit code.
    pub(crate) fn exit_code(&self) -> u8 {
        match self.kind {
            Kind::Failed => FAILED,
            Kind::Usage => WRONG_USAGE,
            Kind::Interrupted => INTERRUPTED,
            Kind::ReaderGone => DONE,
        }
    }

    /// The lines for stderr.
    fn lines(&self) -> Vec<String> {
        let mut lines = match self.kind {
            Kind::ReaderGone => return Vec::new(),
            Kind::Interrupted => vec![self.message.clone()],
            Kind::Failed | Kind::Usage => vec![format!("error: {}", self.message)],
        };
        lines.extend(
            self.causes
                .iter()
                .map(|cause| format!("  caused by: {cause}")),
        );
        lines.extend(self.hint.iter().map(|hint| format!("hint: {hint}")));
        lines
    }

    /// Prints to stderr.
    pub(crate) fn print(&self) {
        let mut stderr = std::io::stderr().lock();
        for line in self.lines() {
            // Nobody is left to tell when stderr itself is closed.
            let _ = writeln!(stderr, "{line}");
        }
    }
}

impl From<mini_gemini::Error> for Failure {
    fn from(error: mini_gemini::Error) -> Self {
        use mini_gemini::Error;
        let failure = Self::from_error(&error);
        match &error {
            Error::ModelNotFound {
                repository: Some(repository),
                ..
            } => failure.hint(format!("`mgm models pull {repository}` downloads it")),
            Error::ModelNotFound { .. } => {
                failure.hint("`mgm models list` shows the models that are known by name")
            }
            Error::NotFound { .. } => failure
                .hint("--model-zoo DIR names a folder to look in; `mgm models pull` downloads"),
            Error::ContextOverflow { .. } => {
                failure.hint("shorten the prompt, pass fewer pictures, or let `--overlong truncate` cut it as the official code does")
            }
            Error::NoVision => failure.hint("leave --image out, or choose another --model"),
            Error::PlaceholderCount { .. } => {
                failure.hint("leave `<image>` out of the prompt: pictures are put before it")
            }
            _ => failure,
        }
    }
}

impl From<mgm_bench::Error> for Failure {
    fn from(error: mgm_bench::Error) -> Self {
        match error {
            mgm_bench::Error::Model(error) => error.into(),
            error => Self::from_error(&error),
        }
    }
}

impl From<mgm_eval::EvalError> for Failure {
    fn from(error: mgm_eval::EvalError) -> Self {
        Self::from_error(&error)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[derive(Debug, thiserror::Error)]
    #[error("outer: {0}")]
    struct Outer(#[source] Inner);
    #[derive(Debug, thiserror::Error)]
    #[error("inner")]
    struct Inner(#[source] std::io::Error);

    #[test]
    fn causes_are_told_once() {
        let error = Outer(Inner(std::io::Error::other("disk on fire")));
        let failure = Failure::from_error(&error).hint("water");
        assert_eq!(
            failure.lines(),
            [
                "error: outer: inner",
                "  caused by: disk on fire",
                "hint: water"
            ]
        );
        assert_eq!(failure.exit_code(), FAILED);
    }

    #[test]
    fn a_reader_that_left_is_no_failure() {
        let failure = Failure::stdout(&std::io::ErrorKind::BrokenPipe.into());
        assert_eq!(failure.exit_code(), DONE);
        assert!(failure.lines().is_empty());
        assert_eq!(
            Failure::stdout(&std::io::ErrorKind::StorageFull.into()).exit_code(),
            FAILED
        );
    }
}
