//! Shows an answer while it is made: a spinner until the first word, then the words.

use std::io::Write;
use std::time::{Duration, Instant};

use indicatif::ProgressBar;
use mini_gemini::{Answer, Control, Event};

use crate::failure::Failure;
use crate::interrupt::Watch;
use crate::meter;

/// Listens to one answer.
pub(super) struct Display<'watch> {
    watch: &'watch Watch,
    streaming: bool,
    spinner: Option<ProgressBar>,
    /// White space not yet printed: it only counts when more text follows.
    held: String,
    anything_printed: bool,
    first_text: Option<Instant>,
    write_error: Option<std::io::Error>,
}

impl<'watch> Display<'watch> {
    /// `streaming`: text goes to stdout as it is made.
    pub(super) fn new(watch: &'watch Watch, streaming: bool) -> Self {
        Self {
            watch,
            streaming,
            spinner: None,
            held: String::new(),
            anything_printed: false,
            first_text: None,
            write_error: None,
        }
    }

    /// Takes one event.
    pub(super) fn on_event(&mut self, event: Event<'_>) -> Control {
        match event {
            Event::EncodingImage { index, total } => self.wait(match total {
                1 => "looking at the picture".into(),
                _ => format!("looking at picture {} of {total}", index + 1),
            }),
            Event::ImageEncoded => self.stop_waiting(),
            Event::Prefilling { tokens } => self.wait(format!("reading {tokens} tokens")),
            Event::Working => {}
            Event::Text(piece) => {
                self.stop_waiting();
                self.first_text.get_or_insert_with(Instant::now);
                if self.streaming
                    && let Err(error) = self.print(piece)
                {
                    self.write_error = Some(error);
                    return Control::Stop;
                }
            }
        }
        if self.watch.stopped() {
            Control::Stop
        } else {
            Control::Continue
        }
    }

    /// Ends the answer's last line. Tells whether stdout took everything.
    pub(super) fn finish(&mut self) -> Result<(), Failure> {
        self.stop_waiting();
        if let Some(error) = self.write_error.take() {
            return Err(Failure::stdout(&error));
        }
        if self.streaming {
            crate::stdout::write("\n")?;
        }
        Ok(())
    }

    /// When the first text came.
    pub(super) fn first_text(&self) -> Option<Instant> {
        self.first_text
    }

    /// Prints what the stripped answer will hold: no white space at either end.
    fn print(&mut self, piece: &str) -> std::io::Result<()> {
        self.held.push_str(piece);
        if !self.anything_printed {
            self.held = self.held.trim_start().to_string();
        }
        let end = self.held.trim_end().len();
        if end == 0 {
            return Ok(());
        }
        self.anything_printed = true;
        let mut stdout = std::io::stdout().lock();
        stdout.write_all(self.held.drain(..end).as_str().as_bytes())?;
        stdout.flush()
    }

    fn wait(&mut self, message: String) {
        match &self.spinner {
            Some(spinner) => spinner.set_message(message),
            None => self.spinner = Some(meter::spinner(message)),
        }
    }

    fn stop_waiting(&mut self) {
        if let Some(spinner) = self.spinner.take() {
            spinner.finish_and_clear();
        }
    }
}

impl Drop for Display<'_> {
    fn drop(&mut self) {
        self.stop_waiting();
    }
}

/// Tells that a prompt was cut ([`mini_gemini::Overlong::Truncate`]).
pub(super) fn note_cut(answer: &Answer) {
    if answer.cut_tokens > 0 {
        note!(
            "warning: the prompt did not fit: its last {} of {} tokens were cut off",
            answer.cut_tokens,
            answer.prompt_tokens + answer.visual_tokens
        );
    }
}

/// Tokens per second after the first token; `None` when there was only one.
pub(super) fn tokens_per_second(answer: &Answer) -> Option<f64> {
    let seconds = answer.timings.decode.as_secs_f64();
    (answer.new_tokens > 1 && seconds > 0.0).then(|| (answer.new_tokens - 1) as f64 / seconds)
}

/// One line on speed. `since_start` is the time to the first text, `loading` how much of it went into loading the model.
pub(super) fn timing_line(
    answer: &Answer,
    since_start: Option<Duration>,
    loading: Option<Duration>,
) -> String {
    let mut parts = Vec::new();
    if let Some(loading) = loading {
        parts.push(format!("load {:.3} s", loading.as_secs_f64()));
    }
    parts.push(format!(
        "pictures {:.3} s",
        answer.timings.encode.as_secs_f64()
    ));
    parts.push(format!(
        "prompt {:.3} s for {} tokens",
        answer.timings.prefill.as_secs_f64(),
        answer.prompt_tokens + answer.visual_tokens - answer.cut_tokens - answer.cached_tokens
    ));
    let mut line = match since_start {
        Some(time) => format!("first token after {:.3} s", time.as_secs_f64()),
        None => "no token".into(),
    };
    line.push_str(&format!(" ({})", parts.join(", ")));
    match tokens_per_second(answer) {
        Some(rate) => line.push_str(&format!(
            "; {} tokens, {rate:.1} tokens/s",
            answer.new_tokens
        )),
        None => line.push_str(&format!("; {} tokens", answer.new_tokens)),
    }
    line
}
