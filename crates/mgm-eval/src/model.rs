//! A loaded model as an [`Answerer`].

use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, Ordering};

use mgm_image::{Limits, RgbImage};
use mini_gemini::{Control, GenerateOptions, MiniGemini, Session, StopReason};

use crate::error::EvalError;
use crate::records::Record;
use crate::run::Answerer;

/// Answers greedily, each question in a conversation of its own.
pub struct ModelAnswerer<'model> {
    session: Session<'model>,
    subject: String,
    options: GenerateOptions,
    last_picture: Option<(PathBuf, RgbImage)>,
}

impl<'model> ModelAnswerer<'model> {
    /// Asks `model`, which the report calls `subject`, for at most `max_new_tokens` tokens an answer.
    pub fn new(model: &'model MiniGemini, subject: String, max_new_tokens: usize) -> Self {
        let options = GenerateOptions {
            temperature: 0.0,
            max_new_tokens,
            ..GenerateOptions::default()
        };
        Self {
            session: model.session(),
            subject,
            options,
            last_picture: None,
        }
    }

    fn picture(&mut self, id: &str, path: &Path) -> Result<RgbImage, EvalError> {
        match &self.last_picture {
            Some((known, picture)) if known == path => Ok(picture.clone()),
            _ => {
                let picture = mgm_image::open(path, &Limits::default()).map_err(|source| {
                    EvalError::Picture {
                        id: id.into(),
                        path: path.into(),
                        source,
                    }
                })?;
                self.last_picture = Some((path.into(), picture.clone()));
                Ok(picture)
            }
        }
    }
}

impl Answerer for ModelAnswerer<'_> {
    fn subject(&self) -> String {
        self.subject.clone()
    }

    fn answer(
        &mut self,
        record: &Record,
        picture: Option<&Path>,
        stop: &AtomicBool,
    ) -> Result<Option<String>, EvalError> {
        let pictures = match picture {
            Some(path) => vec![self.picture(&record.id, path)?],
            None => Vec::new(),
        };
        self.session.reset();
        let mut on_event = |_: mini_gemini::Event<'_>| {
            if stop.load(Ordering::Relaxed) {
                Control::Stop
            } else {
                Control::Continue
            }
        };
        let answer = self
            .session
            .ask(&record.question, pictures, &self.options, &mut on_event)
            .map_err(|source| EvalError::Model {
                id: record.id.clone(),
                source,
            })?;
        Ok((answer.stop != StopReason::Interrupted).then_some(answer.text))
    }
}
