//! The loop over records.

use std::collections::{BTreeMap, HashSet};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Instant;

use crate::answers::{AnswerLine, AnswerLog, Known};
use crate::error::EvalError;
use crate::records::{DataFile, Record};
use crate::report::{FileReport, Report, Tally};
use crate::scoring::is_right;

/// Whatever answers questions.
pub trait Answerer {
    /// What is being scored, for the report and for telling answer files apart.
    fn subject(&self) -> String;

    /// Answers one question; `None` when stopped before the answer was complete.
    ///
    /// # Errors
    /// When the picture cannot be read or the model fails; the run ends, answers made so far are kept.
    fn answer(
        &mut self,
        record: &Record,
        picture: Option<&Path>,
        stop: &AtomicBool,
    ) -> Result<Option<String>, EvalError>;
}

/// How to run.
#[derive(Clone, Debug, Default)]
pub struct RunOptions {
    /// At most this many records of each file.
    pub limit: Option<usize>,
    /// Where answers are appended as they are made.
    pub answers: Option<PathBuf>,
    /// Keep the answers that the file already holds.
    pub resume: bool,
}

/// Where a run stands; passed on after every record.
#[derive(Clone, Copy, Debug)]
pub struct Progress {
    /// Records done, those taken over from an earlier run included.
    pub done: usize,
    /// Records in all.
    pub total: usize,
    /// Records answered by this run itself.
    pub answered_now: usize,
    /// Score so far.
    pub tally: Tally,
}

/// Asks `answerer` every record of `files` and scores the answers. Setting `stop` ends the run after the current record; the
/// report then covers what was done.
///
/// # Errors
/// When two files share a name, the file of answers is unusable, or the answerer fails.
pub fn run(
    files: &[DataFile],
    options: &RunOptions,
    answerer: &mut dyn Answerer,
    on_progress: &mut dyn FnMut(Progress),
    stop: &AtomicBool,
) -> Result<Report, EvalError> {
    let mut names = HashSet::new();
    if let Some(file) = files.iter().find(|file| !names.insert(file.name.as_str())) {
        return Err(EvalError::Data {
            path: file.name.clone().into(),
            message: "two data files have this name; scores are kept by file name".into(),
        });
    }
    let subject = answerer.subject();
    let (mut log, known) = match &options.answers {
        Some(path) if options.resume => {
            let (log, known) = AnswerLog::resume(path, &subject)?;
            (Some(log), known)
        }
        Some(path) => (Some(AnswerLog::create(path)?), Known::new()),
        None => (None, Known::new()),
    };

    let taken = |file: &DataFile| file.records.len().min(options.limit.unwrap_or(usize::MAX));
    let mut progress = Progress {
        done: 0,
        total: files.iter().map(taken).sum(),
        answered_now: 0,
        tally: Tally::default(),
    };
    let started = Instant::now();
    let mut reports = Vec::with_capacity(files.len());
    let mut interrupted = false;
    for file in files {
        let mut tally = Tally::default();
        let mut parts: BTreeMap<String, Tally> = BTreeMap::new();
        for record in &file.records[..taken(file)] {
            let key = (file.name.clone(), record.id.clone());
            let answer = match known.get(&key) {
                Some(answer) => answer.clone(),
                None => {
                    interrupted |= stop.load(Ordering::Relaxed);
                    if interrupted {
                        continue;
                    }
                    let picture = file.picture(record);
                    let Some(answer) = answerer.answer(record, picture.as_deref(), stop)? else {
                        interrupted = true;
                        continue;
                    };
                    progress.answered_now += 1;
                    if let Some(log) = &mut log {
                        log.append(&AnswerLine {
                            file: key.0,
                            id: key.1,
                            right: is_right(record, &answer),
                            answer: answer.clone(),
                            subject: subject.clone(),
                        })?;
                    }
                    answer
                }
            };
            let right = is_right(record, &answer);
            tally.add(right);
            for (key, value) in record.flags() {
                parts
                    .entry(format!("{key}: {value}"))
                    .or_default()
                    .add(right);
            }
            progress.tally.add(right);
            progress.done += 1;
            on_progress(progress);
        }
        reports.push(FileReport::new(
            file.name.clone(),
            taken(file),
            tally,
            &parts,
        ));
    }
    Ok(Report {
        subject,
        interrupted,
        files: reports,
        total: FileReport::new(
            "total".into(),
            progress.total,
            progress.tally,
            &BTreeMap::new(),
        ),
        seconds: started.elapsed().as_secs_f64(),
        answered_now: progress.answered_now,
    })
}
