//! A loaded model as an [`Answerer`].
//!
//! Questions come in runs about the same picture, so this keeps what a conversation would throw away between questions: the picture's
//! visual tokens, and the keys and values of the beginning that two prompts share.

use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, Ordering};

use mgm_image::{Limits, RgbImage};
use mgm_text::{IMAGE_TOKEN, Message};
use mini_gemini::decoder::KvCache;
use mini_gemini::{Error, MiniGemini, TowerFeatures, greedy};

use crate::error::{EvalError, HintError};
use crate::records::Record;
use crate::run::Answerer;

/// Makes what follows every question about a picture.
pub type Hints<'a> = Box<dyn FnMut(&RgbImage) -> Result<Option<String>, HintError> + 'a>;

/// What is kept of the picture asked about last.
struct Seen {
    path: PathBuf,
    features: TowerFeatures,
    hint: String,
}

/// Answers greedily, each question in a conversation of its own.
pub struct ModelAnswerer<'model> {
    model: &'model MiniGemini,
    without_high_res: bool,
    max_new_tokens: usize,
    hints: Option<Hints<'model>>,
    picture: Option<Seen>,
    cache: KvCache,
    /// What `cache` holds: the prompt's ids, [`IMAGE_TOKEN`] for all tokens of the picture.
    cached: Vec<i64>,
}

impl<'model> ModelAnswerer<'model> {
    /// Asks `model` for at most `max_new_tokens` tokens an answer. `without_high_res`: the high-resolution tower is left out, so that
    /// patches have nothing to mine and the projector sees the low-resolution features alone.
    pub fn new(model: &'model MiniGemini, without_high_res: bool, max_new_tokens: usize) -> Self {
        Self {
            model,
            without_high_res,
            max_new_tokens,
            hints: None,
            picture: None,
            cache: model.decoder().new_cache(),
            cached: Vec::new(),
        }
    }

    /// Puts what `hints` makes of a picture after every question about it. It is asked once for a run of questions about the same one.
    pub fn with_hints(mut self, hints: Hints<'model>) -> Self {
        self.hints = Some(hints);
        self
    }

    /// Makes sure the features at hand are those of `path`.
    fn look_at(&mut self, id: &str, path: &Path) -> Result<(), EvalError> {
        if self
            .picture
            .as_ref()
            .is_some_and(|known| known.path == path)
        {
            return Ok(());
        }
        let picture =
            mgm_image::open(path, &Limits::default()).map_err(|source| EvalError::Picture {
                id: id.into(),
                source,
            })?;
        let mut features = self
            .model
            .prepare(&picture)
            .and_then(|prepared| self.model.tower_features(&prepared))
            .map_err(|source| EvalError::Model {
                id: id.into(),
                source: Box::new(source),
            })?;
        if self.without_high_res {
            features.high_res.clear();
        }
        let hint = match &mut self.hints {
            Some(hints) => hints(&picture).map_err(|source| EvalError::Hint {
                id: id.into(),
                source,
            })?,
            None => None,
        };
        self.picture = Some(Seen {
            path: path.into(),
            features,
            hint: hint.unwrap_or_default(),
        });
        // Every picture is the same id to the cache.
        self.forget_from(self.cached.iter().position(|id| *id == IMAGE_TOKEN));
        Ok(())
    }

    fn forget_from(&mut self, position: Option<usize>) {
        if let Some(position) = position {
            self.cached.truncate(position);
            self.cache.truncate(position);
        }
    }

    /// The rendered question as ids, each placeholder once.
    fn prompt(&self, question: &str, pictures: usize) -> Result<Vec<i64>, Error> {
        let marks = if question.contains("<image>") {
            0
        } else {
            pictures
        };
        let hint = match &self.picture {
            Some(seen) if pictures > 0 => seen.hint.as_str(),
            _ => "",
        };
        let content = format!("{}{question}{hint}", "<image>\n".repeat(marks));
        let turns = [Message::user(content), Message::open_answer()];
        let rendered = self.model.template().render(&turns);
        let ids = mgm_text::encode_with_images(self.model.tokenizer(), &rendered)?;
        let placeholders = ids.iter().filter(|id| **id == IMAGE_TOKEN).count();
        if placeholders != pictures {
            return Err(Error::PlaceholderCount {
                placeholders,
                images: pictures,
            });
        }
        Ok(ids)
    }

    fn generate(
        &mut self,
        question: &str,
        with_picture: bool,
        stop: &AtomicBool,
    ) -> Result<Option<String>, Error> {
        let model = self.model;
        let ids = self.prompt(question, usize::from(with_picture))?;
        let visual = match &self.picture {
            Some(seen) if with_picture => Some(model.visual_tokens(&seen.features)?),
            _ => None,
        };
        let visual_count = visual.as_ref().map_or(Ok(0), |tokens| tokens.dim(0))?;
        let positions: Vec<i64> = ids
            .iter()
            .flat_map(|id| {
                std::iter::repeat_n(*id, if *id == IMAGE_TOKEN { visual_count } else { 1 })
            })
            .collect();
        let limit = model.context_limit();
        if positions.len() >= limit {
            let text = positions.len() - visual_count;
            return Err(Error::ContextOverflow {
                text,
                visual: visual_count,
                limit,
            });
        }

        let embeddings = model.splice(&ids, visual.as_slice())?;
        let common = self
            .cached
            .iter()
            .zip(&positions)
            .take_while(|(held, wanted)| held == wanted)
            .count();
        let known = common.min(positions.len() - 1);
        self.forget_from(Some(known));

        let mut rows = embeddings.narrow(0, known, positions.len() - known)?;
        let mut unread = positions[known..].to_vec();
        let mut stream = model.tokenizer().stream();
        let mut text = String::new();
        for _ in 0..self.max_new_tokens {
            if stop.load(Ordering::Relaxed) {
                return Ok(None);
            }
            let mut caches = [(&mut self.cache, unread.len())];
            let last = model
                .decoder()
                .hidden_tails(&rows, &mut caches, &[1], &mut || Ok(()))?;
            self.cached.append(&mut unread);
            let id = greedy(&model.decoder().logits(&last)?.flatten_all()?.to_vec1()?);
            if model.stop_ids().contains(&id) || self.cached.len() + 1 >= limit {
                break;
            }
            text.extend(stream.push(id));
            rows = model.decoder().embed(&[id])?;
            unread.push(i64::from(id));
        }
        text.extend(stream.finish());
        Ok(Some(text.trim().to_string()))
    }
}

impl Answerer for ModelAnswerer<'_> {
    fn subject(&self) -> String {
        let mut subject = self.model.name().to_string();
        if self.without_high_res {
            subject.push_str(" without the high-resolution tower");
        }
        if self.hints.is_some() {
            subject.push_str(" with hints");
        }
        subject
    }

    fn answer(
        &mut self,
        record: &Record,
        picture: Option<&Path>,
        stop: &AtomicBool,
    ) -> Result<Option<String>, EvalError> {
        if let Some(path) = picture {
            match self.look_at(&record.id, path) {
                // Reading was stopped, not impossible.
                Err(EvalError::Hint { .. }) if stop.load(Ordering::Relaxed) => return Ok(None),
                looked => looked?,
            }
        }
        self.generate(&record.question, picture.is_some(), stop)
            .map_err(|source| EvalError::Model {
                id: record.id.clone(),
                source: Box::new(source),
            })
    }
}
