//! A conversation: history, pictures, and the keys and values of what the model has already read.

use std::time::{Duration, Instant};

use candle_core::Tensor;
use mgm_image::RgbImage;
use mgm_text::{IMAGE_TOKEN, Message, Role, Template, protocol};

use crate::decoder::{Context, KvCache};
use crate::error::{Error, Result};
use crate::model::MiniGemini;
use crate::sampling::{GenerateOptions, Sampler};

/// Rows prefilled at once; bounds activation memory and lets a long prompt be interrupted.
const PREFILL_ROWS: usize = 512;

/// What happens while an answer is made.
#[derive(Debug)]
pub enum Event<'a> {
    /// A picture is being looked at (`index` from 0).
    EncodingImage {
        /// Which of this turn's pictures.
        index: usize,
        /// Pictures in this turn.
        total: usize,
    },
    /// All pictures of this turn are encoded.
    ImageEncoded,
    /// The prompt is being read.
    Prefilling {
        /// Positions not known from earlier turns.
        tokens: usize,
    },
    /// More of the answer.
    Text(&'a str),
}

/// What the listener wants next.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Control {
    /// Go on.
    Continue,
    /// End the answer here and keep what there is.
    Stop,
}

/// Why an answer ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum StopReason {
    /// The model ended its turn.
    EndOfTurn,
    /// The token limit or the end of the context was reached.
    Length,
    /// The listener stopped it.
    Interrupted,
}

/// Wall-clock time of the three parts of an answer.
#[derive(Clone, Copy, Debug, Default)]
pub struct Timings {
    /// Preparing and encoding pictures.
    pub encode: Duration,
    /// Reading the prompt, up to the first token.
    pub prefill: Duration,
    /// All tokens after the first.
    pub decode: Duration,
}

/// A finished answer.
#[derive(Clone, Debug)]
pub struct Answer {
    /// The visible text, stripped.
    pub text: String,
    /// Why it ended.
    pub stop: StopReason,
    /// Text tokens of the whole rendered prompt.
    pub prompt_tokens: usize,
    /// Visual tokens of the whole prompt.
    pub visual_tokens: usize,
    /// Positions that were already known from earlier turns.
    pub cached_tokens: usize,
    /// Tokens generated, the end-of-turn token included.
    pub new_tokens: usize,
    /// Where the time went.
    pub timings: Timings,
}

/// One position of the sequence the cache holds: a text token, or a visual token of one of the session's pictures.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Slot {
    Text(u32),
    Visual { image: usize, token: usize },
}

/// A conversation with a model. Asking again costs only the new tokens.
pub struct Session<'a> {
    model: &'a MiniGemini,
    template: &'static Template,
    messages: Vec<Message>,
    images: Vec<Tensor>,
    cache: KvCache,
    cached: Vec<Slot>,
}

impl<'a> Session<'a> {
    pub(crate) fn new(model: &'a MiniGemini) -> Self {
        Self {
            model,
            template: model.template(),
            messages: Vec::new(),
            images: Vec::new(),
            cache: model.decoder().new_cache(),
            cached: Vec::new(),
        }
    }

    /// Forgets the conversation.
    pub fn reset(&mut self) {
        self.messages.clear();
        self.images.clear();
        self.cached.clear();
        self.cache.truncate(0);
    }

    /// Turns so far, oldest first.
    pub fn messages(&self) -> &[Message] {
        &self.messages
    }

    /// Uses another conversation template from now on; forgets the conversation.
    ///
    /// # Errors
    /// When no template has this name.
    pub fn set_template(&mut self, name: &str) -> Result<()> {
        self.template = Template::by_name(name)?;
        self.reset();
        Ok(())
    }

    /// Sets the system message in place of the template's own; forgets the conversation.
    pub fn set_system(&mut self, text: &str) {
        self.reset();
        self.messages.push(Message {
            role: Role::System,
            text: Some(text.into()),
        });
    }

    /// Asks about the pictures given (shown before the text unless it places `<image>` itself) and all earlier ones.
    /// Events arrive as they happen; the listener may stop the answer. On an error the conversation is as before.
    ///
    /// # Errors
    /// When an option is out of range, the prompt does not fit, or placeholders and pictures differ in number.
    pub fn ask(
        &mut self,
        text: &str,
        images: Vec<RgbImage>,
        options: &GenerateOptions,
        on_event: &mut dyn FnMut(Event) -> Control,
    ) -> Result<Answer> {
        options.check()?;
        let content = place_images(text, images.len())?;
        let (turns, pictures) = (self.messages.len(), self.images.len());
        let outcome = self.answer(content, &images, options, on_event);
        match &outcome {
            Ok(answer) if !answer.text.is_empty() => {
                self.messages.push(Message {
                    role: Role::Assistant,
                    text: Some(answer.text.clone()),
                });
            }
            // A turn without an answer would be rendered as a bare header next time: it is taken back.
            _ => self.forget_turn(turns, pictures),
        }
        outcome
    }

    fn forget_turn(&mut self, turns: usize, pictures: usize) {
        self.messages.truncate(turns);
        self.images.truncate(pictures);
        // Positions of the removed pictures must not be taken for those of later ones.
        let removed =
            |slot: &Slot| matches!(slot, Slot::Visual { image, .. } if *image >= pictures);
        let keep = self
            .cached
            .iter()
            .position(removed)
            .unwrap_or(self.cached.len());
        self.cached.truncate(keep);
        self.cache.truncate(keep);
    }

    fn answer(
        &mut self,
        content: String,
        images: &[RgbImage],
        options: &GenerateOptions,
        on_event: &mut dyn FnMut(Event) -> Control,
    ) -> Result<Answer> {
        let mut timings = Timings::default();
        let start = Instant::now();
        for (index, image) in images.iter().enumerate() {
            on_event(Event::EncodingImage {
                index,
                total: images.len(),
            });
            let features = self.model.tower_features(&self.model.prepare(image)?)?;
            self.images.push(self.model.visual_tokens(&features)?);
        }
        if !images.is_empty() {
            on_event(Event::ImageEncoded);
        }
        timings.encode = start.elapsed();

        self.messages.push(Message {
            role: Role::User,
            text: Some(content),
        });
        let start = Instant::now();
        let mut turns = self.messages.clone();
        turns.push(Message {
            role: Role::Assistant,
            text: None,
        });
        let prompt = protocol::number_images(&self.template.render(&turns));
        let ids = mgm_text::encode_with_images(self.model.tokenizer(), &prompt)?;
        let slots = self.slots(&ids)?;
        let visual = slots
            .iter()
            .filter(|slot| matches!(slot, Slot::Visual { .. }))
            .count();
        let limit = self.model.context_limit();
        if slots.len() >= limit {
            return Err(Error::ContextOverflow {
                text: slots.len() - visual,
                visual,
                limit,
            });
        }

        let known = self.reuse(&slots);
        let logits = self.prefill(&slots[known..], on_event)?;
        let mut answer = Answer {
            text: String::new(),
            stop: StopReason::Interrupted,
            prompt_tokens: slots.len() - visual,
            visual_tokens: visual,
            cached_tokens: known,
            new_tokens: 0,
            timings,
        };
        let Some(logits) = logits else {
            return Ok(answer);
        };
        answer.timings.prefill = start.elapsed();
        let start = Instant::now();
        self.generate(logits, options, limit, &mut answer, on_event)?;
        answer.timings.decode = start.elapsed();
        answer.text = answer.text.trim().to_string();
        Ok(answer)
    }

    /// The positions of a prompt: ids as they are, each placeholder as the visual tokens of the next picture.
    fn slots(&self, ids: &[i64]) -> Result<Vec<Slot>> {
        let placeholders = ids.iter().filter(|id| **id == IMAGE_TOKEN).count();
        if placeholders != self.images.len() {
            return Err(Error::PlaceholderCount {
                placeholders,
                images: self.images.len(),
            });
        }
        let mut slots = Vec::with_capacity(ids.len());
        let mut image = 0;
        for id in ids {
            if *id == IMAGE_TOKEN {
                let tokens = self.images[image].dim(0)?;
                slots.extend((0..tokens).map(|token| Slot::Visual { image, token }));
                image += 1;
            } else {
                let id = u32::try_from(*id)
                    .map_err(|_| Error::Input(format!("token id {id} is negative")))?;
                slots.push(Slot::Text(id));
            }
        }
        Ok(slots)
    }

    /// Cuts the cache to the longest common prefix with `slots` and returns its length; at least one position stays to be read.
    fn reuse(&mut self, slots: &[Slot]) -> usize {
        let common = self
            .cached
            .iter()
            .zip(slots)
            .take_while(|(held, wanted)| held == wanted);
        let known = common.count().min(slots.len().saturating_sub(1));
        self.cached.truncate(known);
        self.cache.truncate(known);
        known
    }

    /// Reads `slots` behind what the cache holds. Returns the logits after the last one, or `None` when the listener stopped it.
    fn prefill(
        &mut self,
        slots: &[Slot],
        on_event: &mut dyn FnMut(Event) -> Control,
    ) -> Result<Option<Vec<f32>>> {
        let mut last = None;
        for (index, block) in slots.chunks(PREFILL_ROWS).enumerate() {
            let remaining = slots.len() - index * PREFILL_ROWS;
            if on_event(Event::Prefilling { tokens: remaining }) == Control::Stop {
                return Ok(None);
            }
            last = Some(self.read(block)?);
        }
        let hidden = last.ok_or_else(|| Error::Input("the prompt is empty".into()))?;
        let rows = hidden.dim(0)?;
        self.logits(&hidden.narrow(0, rows - 1, 1)?).map(Some)
    }

    /// Runs the decoder over further positions and remembers them; gives their hidden states `[slots, hidden]`.
    fn read(&mut self, slots: &[Slot]) -> Result<Tensor> {
        let decoder = self.model.decoder();
        let mut parts = Vec::new();
        let mut rest = slots;
        while let Some(first) = rest.first() {
            let run = rest.iter().take_while(|slot| slot.joins(first)).count();
            let (run, after) = rest.split_at(run);
            parts.push(match first {
                Slot::Text(_) => {
                    decoder.embed(&run.iter().filter_map(Slot::text).collect::<Vec<_>>())?
                }
                Slot::Visual { image, token } => {
                    self.images[*image].narrow(0, *token, run.len())?
                }
            });
            rest = after;
        }
        let embeddings = Tensor::cat(&parts, 0)?;
        let mut caches = [(&mut self.cache, slots.len())];
        let hidden = decoder.hidden(&embeddings, &mut Context::Cached(&mut caches))?;
        self.cached.extend_from_slice(slots);
        Ok(hidden)
    }

    fn logits(&self, hidden: &Tensor) -> Result<Vec<f32>> {
        Ok(self
            .model
            .decoder()
            .logits(hidden)?
            .flatten_all()?
            .to_vec1()?)
    }

    fn generate(
        &mut self,
        mut logits: Vec<f32>,
        options: &GenerateOptions,
        limit: usize,
        answer: &mut Answer,
        on_event: &mut dyn FnMut(Event) -> Control,
    ) -> Result<()> {
        let mut sampler = Sampler::new(options);
        let mut stream = self.model.tokenizer().stream();
        // Decoding may go on past the training limit as far as positions are defined (spec: pitfalls A17).
        let end = self
            .model
            .config()
            .max_position_embeddings
            .unwrap_or(limit)
            .max(limit);
        loop {
            let id = sampler.next(&logits);
            answer.new_tokens += 1;
            if self.model.stop_ids().contains(&id) {
                answer.stop = StopReason::EndOfTurn;
                break;
            }
            if let Some(piece) = stream.push(id) {
                answer.text.push_str(&piece);
                if on_event(Event::Text(&piece)) == Control::Stop {
                    answer.stop = StopReason::Interrupted;
                    break;
                }
            }
            if answer.new_tokens == options.max_new_tokens || self.cached.len() + 1 >= end {
                answer.stop = StopReason::Length;
                break;
            }
            let hidden = self.read(&[Slot::Text(id)])?;
            logits = self.logits(&hidden)?;
        }
        if let Some(piece) = stream.finish() {
            answer.text.push_str(&piece);
            on_event(Event::Text(&piece));
        }
        Ok(())
    }
}

impl Slot {
    /// Whether this slot can be embedded in one piece with a run that begins at `first`.
    fn joins(&self, first: &Slot) -> bool {
        match (self, first) {
            (Slot::Text(_), Slot::Text(_)) => true,
            (Slot::Visual { image, .. }, Slot::Visual { image: first, .. }) => image == first,
            _ => false,
        }
    }

    fn text(&self) -> Option<u32> {
        match self {
            Slot::Text(id) => Some(*id),
            Slot::Visual { .. } => None,
        }
    }
}

/// Puts the placeholders of this turn's pictures in front of the text, unless the text places them itself.
fn place_images(text: &str, images: usize) -> Result<String> {
    match protocol::count_placeholders(text) {
        placed if placed == images => Ok(text.to_string()),
        0 => Ok(protocol::place_images(text, images)),
        placeholders => Err(Error::PlaceholderCount {
            placeholders,
            images,
        }),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pictures_come_first_unless_placed() {
        assert_eq!(place_images("What?", 0).expect("text only"), "What?");
        assert_eq!(
            place_images("What?", 2).expect("two"),
            "<image>\n<image>\nWhat?"
        );
        assert_eq!(
            place_images("a <image> b", 1).expect("placed"),
            "a <image> b"
        );
        assert!(place_images("a <image> b", 2).is_err());
    }
}
