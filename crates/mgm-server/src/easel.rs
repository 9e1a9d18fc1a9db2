//! Answers that may hold pictures: the text goes on to the client as it comes, and what an answer wants painted is painted after it.

use std::collections::VecDeque;
use std::sync::Arc;
use std::task::{Context, Poll};

use mgm_text::protocol;

use crate::app::App;
use crate::error::ApiError;
use crate::generation::{Generation, Update};
use crate::painter::{PaintOrder, Painter};
use crate::painting::{PaintEvent, Painting, Place};
use crate::wire::answer::Usage;
use crate::wire::message::{Piece, Turn};

/// Asks for a picture: the request goes behind the text of the last question, as the official command line puts it.
pub(crate) fn ask_for_picture(turns: &mut [Turn]) {
    let questions = turns.iter_mut().rev();
    let mut questions = questions.filter(|turn| turn.role == mgm_engine::Role::User);
    let Some(question) = questions.next() else {
        return;
    };
    let texts = question.pieces.iter_mut().rev();
    let last = texts
        .filter_map(|piece| match piece {
            Piece::Text(text) => Some(text),
            Piece::Picture(_) => None,
        })
        .next();
    match last {
        Some(text) => text.push_str(protocol::GENERATION_REQUEST),
        None => question
            .pieces
            .push(Piece::Text(protocol::GENERATION_REQUEST.into())),
    }
}

/// How the pictures of a request's answers are painted.
pub(crate) struct Easel {
    pub(crate) app: Arc<App>,
    pub(crate) painter: Arc<dyn Painter>,
    pub(crate) place: Place,
    /// The request's id.
    pub(crate) request: Arc<str>,
    pub(crate) size: (u32, u32),
    /// Of the first answer's picture; the second answer's has the next one, and so on.
    pub(crate) seed: u64,
    pub(crate) preview_every: usize,
}

/// What is known of a picture before it is painted.
#[derive(Clone, Debug)]
pub(crate) struct Sketch {
    pub(crate) prompt: Arc<str>,
    pub(crate) seed: u64,
    pub(crate) size: (u32, u32),
}

/// Answers being made, and their pictures. Dropping it ends them.
pub(crate) struct Answers {
    generation: Generation,
    pictures: Option<Pictures>,
}

struct Pictures {
    easel: Easel,
    /// What every answer has said so far.
    texts: Vec<String>,
    /// Answers whose text is complete and whose picture is not.
    waiting: VecDeque<Unfinished>,
    current: Option<(Unfinished, Painting)>,
    /// The end of an answer whose picture was handed out.
    finished: Option<Update>,
}

struct Unfinished {
    choice: usize,
    reason: &'static str,
    sketch: Sketch,
}

impl From<Generation> for Answers {
    fn from(generation: Generation) -> Self {
        Self {
            generation,
            pictures: None,
        }
    }
}

impl Answers {
    /// Answers to a chat, `choices` of them, whose picture prompts are painted.
    pub(crate) fn painted(generation: Generation, choices: usize, easel: Easel) -> Self {
        Self {
            generation,
            pictures: Some(Pictures {
                easel,
                texts: vec![String::new(); choices],
                waiting: VecDeque::new(),
                current: None,
                finished: None,
            }),
        }
    }

    /// The next thing that happens; `None` after the last answer is complete. After an error there is nothing more.
    pub(crate) async fn next(&mut self) -> Option<Result<Update, ApiError>> {
        std::future::poll_fn(|context| self.poll_next(context)).await
    }

    /// As [`Self::next`].
    pub(crate) fn poll_next(
        &mut self,
        context: &mut Context<'_>,
    ) -> Poll<Option<Result<Update, ApiError>>> {
        let Some(pictures) = &mut self.pictures else {
            return self.generation.poll_next(context);
        };
        if let Some(finished) = pictures.finished.take() {
            return Poll::Ready(Some(Ok(finished)));
        }
        // Text comes first: it must not wait for the pictures of other answers.
        let all_said = loop {
            match self.generation.poll_next(context) {
                Poll::Ready(Some(Ok(update))) => {
                    if let Some(update) = pictures.take(update) {
                        return Poll::Ready(Some(Ok(update)));
                    }
                }
                Poll::Ready(Some(Err(error))) => return Poll::Ready(Some(Err(error))),
                Poll::Ready(None) => break true,
                Poll::Pending => break false,
            }
        };
        match pictures.poll_next(context) {
            Poll::Ready(None) if !all_said => Poll::Pending,
            other => other,
        }
    }

    /// What all answers cost so far.
    pub(crate) fn usage(&self) -> Usage {
        self.generation.usage()
    }
}

impl Pictures {
    /// Listens to the text. The end of an answer that wants a picture is kept back until there is one.
    fn take(&mut self, update: Update) -> Option<Update> {
        match update {
            Update::Token {
                choice, ref text, ..
            } => {
                self.texts[choice].push_str(text);
                Some(update)
            }
            Update::Finished { choice, reason } => {
                let prompt = protocol::picture_prompt(&self.texts[choice]);
                let Some(prompt) = prompt.filter(|prompt| !prompt.trim().is_empty()) else {
                    return Some(update);
                };
                self.waiting.push_back(Unfinished {
                    choice,
                    reason,
                    sketch: Sketch {
                        prompt: prompt.into(),
                        seed: self.easel.seed.wrapping_add(choice as u64),
                        size: self.easel.size,
                    },
                });
                None
            }
            update => Some(update),
        }
    }

    /// The next thing that happens to a picture; `None` while there is none to be painted.
    fn poll_next(&mut self, context: &mut Context<'_>) -> Poll<Option<Result<Update, ApiError>>> {
        let Some((unfinished, painting)) = &mut self.current else {
            let Some(next) = self.waiting.pop_front() else {
                return Poll::Ready(None);
            };
            let update = Update::Painting {
                choice: next.choice,
                sketch: next.sketch.clone(),
                progress: None,
            };
            let painting = self.easel.start(&next.sketch);
            self.current = Some((next, painting));
            return Poll::Ready(Some(Ok(update)));
        };
        let (choice, sketch) = (unfinished.choice, unfinished.sketch.clone());
        let update = match std::task::ready!(painting.poll_next(context)) {
            PaintEvent::Progress(progress) => Ok(Update::Painting {
                choice,
                sketch,
                progress: Some(progress),
            }),
            PaintEvent::Done(Ok(png)) => {
                let reason = unfinished.reason;
                self.finished = Some(Update::Finished { choice, reason });
                self.current = None;
                Ok(Update::Painted {
                    choice,
                    sketch,
                    png,
                })
            }
            PaintEvent::Done(Err(error)) => {
                self.current = None;
                Err(error)
            }
        };
        Poll::Ready(Some(update))
    }
}

impl Easel {
    fn start(&self, sketch: &Sketch) -> Painting {
        let order = PaintOrder {
            prompt: sketch.prompt.to_string(),
            size: sketch.size,
            seed: sketch.seed,
            preview_every: self.preview_every,
        };
        Painting::start(&self.app, &self.painter, &self.place, &self.request, order)
    }
}

#[cfg(test)]
mod tests {
    use mgm_engine::Role;

    use super::*;
    use crate::wire::message::PictureAddress;

    #[test]
    fn the_request_for_a_picture_follows_the_last_question() {
        let text = |text: &str| Piece::Text(text.into());
        let picture = || {
            Piece::Picture(PictureAddress {
                url: "data:".into(),
                param: String::new(),
            })
        };
        let turn = |role, pieces| Turn { role, pieces };
        for (pieces, expected) in [
            (vec![text("a cat")], vec![text("a cat <GEN>")]),
            (vec![text("a"), picture()], vec![text("a <GEN>"), picture()]),
            (
                vec![text("a"), picture(), text("b")],
                vec![text("a"), picture(), text("b <GEN>")],
            ),
            (vec![picture()], vec![picture(), text(" <GEN>")]),
        ] {
            let mut turns = vec![
                turn(Role::User, vec![text("earlier")]),
                turn(Role::Assistant, vec![text("yes")]),
                turn(Role::User, pieces),
            ];
            ask_for_picture(&mut turns);
            assert_eq!(turns[0].pieces, [text("earlier")]);
            assert_eq!(turns[2].pieces, expected);
        }
        ask_for_picture(&mut []);
    }
}
