//! A conversation on a terminal.

use std::path::PathBuf;

use mgm_image::RgbImage;
use mini_gemini::{MiniGemini, Session, StopReason};
use rustyline::completion::{Completer, FilenameCompleter, Pair};
use rustyline::error::ReadlineError;
use rustyline::highlight::Highlighter;
use rustyline::hint::Hinter;
use rustyline::history::FileHistory;
use rustyline::validate::{ValidationContext, ValidationResult, Validator};
use rustyline::{Config, Context, Editor, Helper};

use crate::cli::ChatArgs;
use crate::failure::Failure;
use crate::picture::PictureSource;
use crate::{interrupt, model};

use super::display::{self, Display};
use super::generation::Generation;
use super::meta::{self, Entry};
use super::reading::Reading;

/// Entries kept in the history file.
const HISTORY_SIZE: usize = 1000;

/// Runs the conversation until Ctrl-D or `/exit`.
pub(super) fn run(args: &ChatArgs) -> Result<(), Failure> {
    let pictures = args
        .images
        .iter()
        .map(|image| image.load())
        .collect::<Result<Vec<_>, _>>()?;
    let generation = Generation::open(args)?;
    let reading = Reading::open(args)?;
    let model = model::load(&args.model, args.template.as_deref())?;
    let mut editor = editor()?;
    let history = history_file();
    if let Some(history) = &history {
        // There is none the first time.
        let _ = editor.load_history(history);
    }
    note!(
        "{} · /help shows what can be typed, Ctrl-D leaves",
        model.name()
    );
    if !pictures.is_empty() {
        note!("{}", shown(pictures.len()));
    }

    let mut conversation = Conversation::new(args, &model, pictures, generation, reading);
    loop {
        match editor.readline("> ") {
            Ok(text) => {
                if !text.trim().is_empty() {
                    // A history that cannot be written is not worth a failure.
                    let _ = editor.add_history_entry(text.as_str());
                    let _ = history
                        .as_ref()
                        .map(|history| editor.append_history(history));
                }
                if conversation.take(&text)? == Next::Leave {
                    return Ok(());
                }
            }
            Err(ReadlineError::Interrupted) => note!("(Ctrl-D or /exit leaves)"),
            Err(ReadlineError::Eof) => return Ok(()),
            Err(error) => {
                return Err(Failure::failed(format!(
                    "the terminal cannot be read: {error}"
                )));
            }
        }
    }
}

#[derive(Debug, PartialEq, Eq)]
enum Next {
    Stay,
    Leave,
}

/// The session and the pictures that wait for the next question.
struct Conversation<'a> {
    args: &'a ChatArgs,
    session: Session<'a>,
    pending: Vec<RgbImage>,
    generation: Option<Generation>,
    reading: Option<Reading>,
}

impl<'a> Conversation<'a> {
    fn new(
        args: &'a ChatArgs,
        model: &'a MiniGemini,
        pending: Vec<RgbImage>,
        generation: Option<Generation>,
        reading: Option<Reading>,
    ) -> Self {
        Self {
            args,
            session: model.session(),
            pending,
            generation,
            reading,
        }
    }

    fn take(&mut self, text: &str) -> Result<Next, Failure> {
        match meta::parse(text) {
            Entry::Nothing => {}
            Entry::Help => note!("{}", meta::HELP),
            Entry::Exit => return Ok(Next::Leave),
            Entry::Reset => {
                self.session.reset();
                self.pending.clear();
                if let Some(reading) = &mut self.reading {
                    reading.forget();
                }
                note!("forgotten: the next question starts a new conversation");
            }
            Entry::Painted => match self.generation.as_ref().and_then(Generation::last) {
                Some(picture) => {
                    self.pending.push(picture.clone());
                    note!("{}", shown(self.pending.len()));
                }
                None => note!("nothing has been painted yet"),
            },
            Entry::Images(files) if files.is_empty() => note!("usage: /image FILE..."),
            Entry::Images(files) => self.show(&files),
            Entry::Unknown(command) => note!("{command} means nothing here; see /help"),
            Entry::Question(question) => self.ask(&question)?,
        }
        Ok(Next::Stay)
    }

    /// All pictures of one command, or none.
    fn show(&mut self, files: &[String]) {
        let load = |file: &String| {
            file.parse::<PictureSource>()
                .map_err(Failure::failed)
                .and_then(|source| source.load())
        };
        match files.iter().map(load).collect::<Result<Vec<_>, _>>() {
            Ok(pictures) => {
                self.pending.extend(pictures);
                note!("{}", shown(self.pending.len()));
            }
            Err(failure) => failure.print(),
        }
    }

    /// Answers; only a stdout that fails ends the conversation.
    fn ask(&mut self, question: &str) -> Result<(), Failure> {
        let asked = std::time::Instant::now();
        let watch = interrupt::watch();
        let mut hint = None;
        if let Some(reading) = &mut self.reading {
            if let Err(failure) = reading.read(&self.pending, &watch) {
                failure.print();
                return Ok(());
            }
            reading.note();
            hint = reading.hint();
        }
        let mut display = Display::new(&watch, true);
        let options = super::generate_options(self.args);
        let outcome = self.session.ask(
            &super::with_additions(self.args, question, hint.as_deref()),
            self.pending.clone(),
            &options,
            &mut |event| display.on_event(event),
        );
        let answer = match outcome {
            Ok(answer) => answer,
            Err(error @ mini_gemini::Error::ContextOverflow { .. }) => {
                drop(display);
                // What was shown for this question is what can be taken back most easily.
                let hint = match (self.session.messages().is_empty(), self.pending.len()) {
                    (true, 0) => "ask something shorter",
                    (true, _) => "ask something shorter, or /reset and show fewer pictures",
                    (false, _) => {
                        "/reset starts a new conversation, in which this question may fit"
                    }
                };
                Failure::from(error).hint(hint).print();
                return Ok(());
            }
            Err(error) => {
                drop(display);
                Failure::from(error).print();
                return Ok(());
            }
        };
        display.finish()?;
        display::note_cut(&answer);
        match answer.stop {
            StopReason::Interrupted => note!("(stopped)"),
            StopReason::Length => {
                note!("(cut off after {} tokens)", answer.new_tokens);
            }
            StopReason::EndOfTurn => {}
        }
        // A turn without any text is taken back by the session: its pictures stay waiting.
        if !answer.text.is_empty() {
            self.pending.clear();
            if let Some(reading) = &mut self.reading {
                reading.seen();
            }
        }
        if self.args.timings {
            let first = display.first_text().map(|first| first - asked);
            note!("{}", display::timing_line(&answer, first, None));
        }
        drop(display);
        if answer.stop != StopReason::Interrupted {
            self.paint(&answer.text, &watch)?;
        }
        Ok(())
    }

    /// With `--gen`, paints what an answer describes. A painting that fails does not end the conversation.
    fn paint(&mut self, answer: &str, watch: &interrupt::Watch) -> Result<(), Failure> {
        let Some(generation) = &mut self.generation else {
            return Ok(());
        };
        let Some(prompt) = Generation::prompt_of(answer) else {
            note!("(no picture prompt between <h> and </h>, so no picture)");
            return Ok(());
        };
        match generation.paint(prompt, false, watch) {
            Ok(picture) => {
                crate::stdout::write(format!("{}\n", picture.file.display()))?;
                note!("(/painted shows it to the model with the next question)");
            }
            Err(failure) => failure.print(),
        }
        Ok(())
    }
}

fn shown(pictures: usize) -> String {
    match pictures {
        1 => "1 picture goes with the next question".into(),
        _ => format!("{pictures} pictures go with the next question"),
    }
}

fn editor() -> Result<Editor<LineHelper, FileHistory>, Failure> {
    let failure =
        |error: ReadlineError| Failure::failed(format!("the terminal cannot be set up: {error}"));
    let config = Config::builder()
        .max_history_size(HISTORY_SIZE)
        .map_err(failure)?
        .history_ignore_space(true)
        .bracketed_paste(true)
        .build();
    let mut editor = Editor::with_config(config).map_err(failure)?;
    editor.set_helper(Some(LineHelper {
        files: FilenameCompleter::new(),
    }));
    Ok(editor)
}

/// `mgm/history` in the user's state folder.
fn history_file() -> Option<PathBuf> {
    let folder = |variable: &str| {
        std::env::var_os(variable)
            .map(PathBuf::from)
            .filter(|path| path.is_absolute())
    };
    let state = if cfg!(windows) {
        folder("LOCALAPPDATA")?
    } else {
        folder("XDG_STATE_HOME").or_else(|| Some(folder("HOME")?.join(".local/state")))?
    };
    let directory = state.join("mgm");
    std::fs::create_dir_all(&directory).ok()?;
    Some(directory.join("history"))
}

/// Continuation lines, and file names after `/image`.
struct LineHelper {
    files: FilenameCompleter,
}

impl Validator for LineHelper {
    fn validate(&self, context: &mut ValidationContext<'_>) -> rustyline::Result<ValidationResult> {
        Ok(if context.input().ends_with('\\') {
            ValidationResult::Incomplete
        } else {
            ValidationResult::Valid(None)
        })
    }
}

impl Completer for LineHelper {
    type Candidate = Pair;

    fn complete(
        &self,
        line: &str,
        position: usize,
        _: &Context<'_>,
    ) -> rustyline::Result<(usize, Vec<Pair>)> {
        if line.starts_with("/image ") {
            self.files.complete_path(line, position)
        } else {
            Ok((position, Vec::new()))
        }
    }
}

impl Hinter for LineHelper {
    type Hint = String;
}
impl Highlighter for LineHelper {}
impl Helper for LineHelper {}
