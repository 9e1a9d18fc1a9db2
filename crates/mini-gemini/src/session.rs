//! A conversation: history, pictures, and the keys and values of what the model has already read.

use std::time::{Duration, Instant};

use mgm_image::{PreparedImage, RgbImage};
use mgm_text::{Message, Template, protocol};

use crate::decoder::KvCache;
use crate::error::{Error, Result};
use crate::lookup::{Drafts, Lookup};
use crate::model::MiniGemini;
use crate::pictures::{Picture, PictureKey, SeenPictures};
use crate::sampling::{GenerateOptions, Overlong, Sampler};
use crate::slots::{Read, Slot};

/// Rows prefilled at once; bounds activation memory.
const PREFILL_ROWS: usize = 768;

/// What happens while an answer is made.
#[derive(Debug)]
pub enum Event<'a> {
    /// A picture is being looked at (`index` from 0). Pictures that the session has seen before are not.
    EncodingImage {
        /// Which of this turn's pictures.
        index: usize,
        /// Pictures in this turn.
        total: usize,
    },
    /// All pictures of this turn are known.
    ImageEncoded,
    /// The prompt is being read.
    Prefilling {
        /// Positions not known from earlier turns.
        tokens: usize,
    },
    /// Between two layers of a tower, or of the decoder while the prompt is read: nothing to show, but the answer may be stopped.
    Working,
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
    /// Positions cut off the prompt's end because it did not fit ([`Overlong::Truncate`]).
    pub cut_tokens: usize,
    /// Tokens generated, the end-of-turn token included.
    pub new_tokens: usize,
    /// Tokens that were read ahead of their choice.
    pub drafts: Drafts,
    /// Where the time went.
    pub timings: Timings,
}

/// A conversation with a model. Asking again costs only the new tokens, and a picture shown again is not looked at again.
pub struct Session<'a> {
    model: &'a MiniGemini,
    template: &'static Template,
    messages: Vec<Message>,
    pictures: Vec<Picture>,
    seen: SeenPictures,
    cache: KvCache,
    cached: Vec<Slot>,
}

impl<'a> Session<'a> {
    pub(crate) fn new(model: &'a MiniGemini) -> Self {
        Self {
            model,
            template: model.template(),
            messages: Vec::new(),
            pictures: Vec::new(),
            seen: SeenPictures::default(),
            cache: model.decoder().new_cache(),
            cached: Vec::new(),
        }
    }

    /// Forgets the conversation. What was read stays known: a new conversation that begins in the same way, or shows the
    /// same pictures, does not pay for them again.
    pub fn reset(&mut self) {
        self.messages.clear();
        self.seen.keep(self.pictures.drain(..));
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
        self.messages.push(Message::system(text).without_images());
    }

    /// Asks about the pictures given and all earlier ones. Pictures stand before the text unless it places them itself with
    /// `<image>` marks; without pictures such a mark is ordinary text. Control strings in the text (`</s>`) are ordinary text
    /// unless [`GenerateOptions::parse_special`] says otherwise. Events arrive as they happen; the listener may stop the answer.
    /// On an error the conversation is as before.
    ///
    /// # Errors
    /// When an option is out of range, the prompt does not fit, or marks and pictures differ in number.
    pub fn ask(
        &mut self,
        text: &str,
        images: Vec<RgbImage>,
        options: &GenerateOptions,
        on_event: &mut dyn FnMut(Event) -> Control,
    ) -> Result<Answer> {
        options.check()?;
        let question = question(text, images.len())?;
        let (turns, pictures) = (self.messages.len(), self.pictures.len());
        let outcome = self.answer(question, images, options, on_event);
        match &outcome {
            Ok(answer) if !answer.text.is_empty() => {
                let answer = Message::assistant(answer.text.as_str());
                self.messages.push(answer.without_images());
            }
            // A turn without an answer would be rendered as a bare header next time: it is taken back.
            _ => self.forget_turn(turns, pictures),
        }
        outcome
    }

    fn forget_turn(&mut self, turns: usize, pictures: usize) {
        self.messages.truncate(turns);
        let pictures = pictures.min(self.pictures.len());
        self.seen.keep(self.pictures.drain(pictures..));
    }

    fn answer(
        &mut self,
        question: Message,
        images: Vec<RgbImage>,
        options: &GenerateOptions,
        on_event: &mut dyn FnMut(Event) -> Control,
    ) -> Result<Answer> {
        let start = Instant::now();
        let prepared = images
            .iter()
            .map(|image| {
                let prepared = self.model.prepare(image)?;
                Ok((PictureKey::of(&prepared), prepared))
            })
            .collect::<Result<Vec<_>>>()?;
        drop(images);

        // Whether the prompt fits is known before any tower runs.
        self.messages.push(question);
        let keys = prepared.iter().map(|(key, _)| *key);
        let mut slots = self.slots(keys, options.parse_special)?;
        let visual = slots.iter().filter(|slot| slot.text().is_none()).count();
        let mut answer = Answer {
            text: String::new(),
            stop: StopReason::Interrupted,
            prompt_tokens: slots.len() - visual,
            visual_tokens: visual,
            cached_tokens: 0,
            cut_tokens: 0,
            new_tokens: 0,
            drafts: Drafts::default(),
            timings: Timings::default(),
        };
        let limit = self.model.context_limit();
        if slots.len() > limit {
            if options.overlong == Overlong::Refuse {
                return Err(Error::ContextOverflow {
                    text: answer.prompt_tokens,
                    visual,
                    limit,
                });
            }
            answer.cut_tokens = slots.len() - limit;
            slots.truncate(limit);
        }
        let looked = self.look_at(&prepared, on_event)?;
        drop(prepared);
        answer.timings.encode = start.elapsed();
        if looked == Control::Stop {
            return Ok(answer);
        }

        let start = Instant::now();
        answer.cached_tokens = self.reuse(&slots);
        let Some(logits) = self.prefill(&slots[answer.cached_tokens..], on_event)? else {
            return Ok(answer);
        };
        answer.timings.prefill = start.elapsed();
        let start = Instant::now();
        self.generate(logits, options, &mut answer, on_event)?;
        answer.timings.decode = start.elapsed();
        answer.text = answer.text.trim().to_string();
        Ok(answer)
    }

    /// Adds this turn's pictures to the conversation; the towers run only for those never seen.
    fn look_at(
        &mut self,
        prepared: &[(PictureKey, PreparedImage)],
        on_event: &mut dyn FnMut(Event) -> Control,
    ) -> Result<Control> {
        let total = prepared.len();
        for (index, (key, prepared)) in prepared.iter().enumerate() {
            let known = self.pictures.iter().find(|picture| picture.key == *key);
            if let Some(picture) = known.or_else(|| self.seen.find(*key)).cloned() {
                self.pictures.push(picture);
                continue;
            }
            if on_event(Event::EncodingImage { index, total }) == Control::Stop {
                return Ok(Control::Stop);
            }
            let mut pause = || go_on(on_event(Event::Working));
            let visual_tokens = match self.model.look_at(prepared, &mut pause) {
                Err(Error::Stopped) => return Ok(Control::Stop),
                looked => looked?,
            };
            self.pictures.push(Picture {
                key: *key,
                visual_tokens,
            });
        }
        if !prepared.is_empty() {
            on_event(Event::ImageEncoded);
        }
        Ok(Control::Continue)
    }

    /// The positions of the conversation so far with `new` pictures in its last turn and an answer asked for: ids as they are,
    /// each picture's place as its visual tokens.
    fn slots(
        &self,
        new: impl Iterator<Item = PictureKey>,
        parse_special: bool,
    ) -> Result<Vec<Slot>> {
        let pictures: Vec<PictureKey> = self
            .pictures
            .iter()
            .map(|picture| picture.key)
            .chain(new)
            .collect();
        let mut turns = self.messages.clone();
        turns.push(Message::open_answer());
        let prompt = self.template.prompt(&turns).with_numbered_images();
        self.model.slots(&prompt, &pictures, parse_special)
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
            let logits = usize::from(remaining == block.len());
            let mut pause = || go_on(on_event(Event::Working));
            last = match self.read(block, logits, &mut pause) {
                Err(Error::Stopped) => return Ok(None),
                read => read?.pop(),
            };
        }
        last.ok_or_else(|| Error::Input("the prompt is empty".into()))
            .map(Some)
    }

    /// Runs the decoder over further positions and remembers them; gives the logits after the last ones, as many as asked for.
    /// `pause` is called before each layer.
    fn read(
        &mut self,
        slots: &[Slot],
        logits: usize,
        pause: &mut dyn FnMut() -> Result<()>,
    ) -> Result<Vec<Vec<f32>>> {
        let pictures = &self.pictures;
        let find = |key| {
            let held = pictures.iter().find(|held| held.key == key)?;
            Some(held.visual_tokens.clone())
        };
        let read = Read {
            cache: &mut self.cache,
            slots,
            logits,
        };
        let logits = self.model.read_with(&mut [read], &find, pause)?;
        self.cached.extend_from_slice(slots);
        Ok(logits)
    }

    /// Forgets the last positions read, reads text tokens in their place, and gives the logits behind each of them.
    fn read_again(&mut self, forgotten: usize, ids: &[u32]) -> Result<Vec<Vec<f32>>> {
        self.forget(forgotten);
        let slots: Vec<Slot> = ids.iter().copied().map(Slot::Text).collect();
        rayon::scope(|_| self.read(&slots, slots.len(), &mut || Ok(())))
    }

    /// Forgets the last positions read.
    fn forget(&mut self, count: usize) {
        let kept = self.cached.len().saturating_sub(count);
        self.cached.truncate(kept);
        self.cache.truncate(kept);
    }

    fn generate(
        &mut self,
        mut logits: Vec<f32>,
        options: &GenerateOptions,
        answer: &mut Answer,
        on_event: &mut dyn FnMut(Event) -> Control,
    ) -> Result<()> {
        let mut sampler = Sampler::new(options);
        let mut stream = self.model.tokenizer().stream();
        // Decoding may go on past the training limit as far as positions are defined (spec: pitfalls A17).
        let limit = self.model.context_limit();
        let end = match options.overlong {
            Overlong::Refuse => self
                .model
                .config()
                .max_position_embeddings
                .unwrap_or(limit)
                .max(limit),
            Overlong::Truncate => usize::MAX,
        };
        let mut lookup = Lookup::new(self.cached.iter().map(Slot::text), options.lookup);
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
            let held = self.cached.len() - lookup.unchosen();
            if answer.new_tokens == options.max_new_tokens || held + 1 >= end {
                answer.stop = StopReason::Length;
                break;
            }
            // The last token of an answer is not read, nor is one at the end of the context.
            let most = (options.max_new_tokens - answer.new_tokens - 1).min(end - held - 2);
            logits = lookup.advance(id, most, &mut |forgotten, ids| {
                self.read_again(forgotten, ids)
            })?;
        }
        self.forget(lookup.unchosen());
        answer.drafts = lookup.drafts();
        if let Some(piece) = stream.finish() {
            answer.text.push_str(&piece);
            on_event(Event::Text(&piece));
        }
        Ok(())
    }
}

fn go_on(control: Control) -> Result<()> {
    match control {
        Control::Continue => Ok(()),
        Control::Stop => Err(Error::Stopped),
    }
}

/// The user's message: this turn's pictures stand in front of the text unless it places them itself. Without pictures an `<image>`
/// in it is text.
fn question(text: &str, images: usize) -> Result<Message> {
    if images == 0 {
        return Ok(Message::user(text).without_images());
    }
    match protocol::count_placeholders(text) {
        placed if placed == images => Ok(Message::user(text)),
        0 => Ok(Message::user(protocol::place_images(text, images))),
        placeholders => Err(Error::PlaceholderCount {
            placeholders,
            images,
        }),
    }
}

#[cfg(test)]
mod tests {
    use mgm_text::Places;

    use super::*;

    #[test]
    fn pictures_come_first_unless_placed() {
        let text = |typed, images| {
            question(typed, images)
                .map(|message| (message.text.unwrap_or_default(), message.places))
        };
        assert_eq!(
            text("What?", 0).expect("text"),
            ("What?".into(), Places::None)
        );
        assert_eq!(
            text("an <image> tag", 0).expect("text"),
            ("an <image> tag".into(), Places::None)
        );
        assert_eq!(
            text("What?", 2).expect("two"),
            ("<image>\n<image>\nWhat?".into(), Places::Every)
        );
        assert_eq!(
            text("a <image> b", 1).expect("placed"),
            ("a <image> b".into(), Places::Every)
        );
        assert!(question("a <image> b", 2).is_err());
    }
}
