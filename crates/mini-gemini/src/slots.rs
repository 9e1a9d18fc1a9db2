//! What a sequence is made of, and reading it: text tokens and visual tokens by the content of their picture.
//!
//! A [`Slot`] means the same in whatever conversation it stands, so equal beginnings of two sequences have equal keys and values. Sessions
//! and servers compare slots to find what need not be read again.

use candle_core::Tensor;
use mgm_image::PreparedImage;
use mgm_text::Prompt;

use crate::decoder::KvCache;
use crate::error::{Error, Result};
use crate::model::MiniGemini;
use crate::pictures::PictureKey;

/// One position of a sequence.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Slot {
    /// A text token.
    Text(u32),
    /// A visual token of a picture.
    Visual {
        /// Which picture, by content.
        picture: PictureKey,
        /// Which of its tokens.
        token: usize,
    },
}

impl Slot {
    /// The id of a text token.
    pub fn text(&self) -> Option<u32> {
        match self {
            Self::Text(id) => Some(*id),
            Self::Visual { .. } => None,
        }
    }

    /// Whether this slot, `offset` behind `first`, can be embedded in one piece with it.
    fn follows(&self, first: &Self, offset: usize) -> bool {
        match (*self, *first) {
            (Self::Text(_), Self::Text(_)) => true,
            (Self::Visual { .. }, Self::Visual { picture, token }) => {
                let token = token + offset;
                *self == Self::Visual { picture, token }
            }
            _ => false,
        }
    }
}

/// What the model saw in one picture: the visual tokens `[tokens, hidden]` that stand for it in a prompt. Cheap to clone.
#[derive(Clone, Debug)]
pub struct VisualTokens(Tensor);

impl VisualTokens {
    pub(crate) fn new(tokens: Tensor) -> Self {
        Self(tokens)
    }

    /// Bytes held.
    pub fn bytes(&self) -> usize {
        self.0.elem_count() * self.0.dtype().size_in_bytes()
    }

    /// The tokens themselves.
    pub fn tensor(&self) -> &Tensor {
        &self.0
    }
}

/// One sequence's part in a forward pass.
pub struct Read<'a> {
    /// What the sequence holds so far; the new positions are added to it.
    pub cache: &'a mut KvCache,
    /// The positions to read; at least one.
    pub slots: &'a [Slot],
    /// After how many of the last of them logits are wanted; at most all.
    pub logits: usize,
}

impl MiniGemini {
    /// The positions of a rendered prompt: ids as they are, each picture's place as its visual tokens. `pictures` in the order of their
    /// places; control strings in people's text become control tokens with `parse_special`.
    ///
    /// # Errors
    /// When places and pictures differ in number, or the tokeniser refuses the text.
    pub fn slots(
        &self,
        prompt: &Prompt,
        pictures: &[PictureKey],
        parse_special: bool,
    ) -> Result<Vec<Slot>> {
        let placeholders = prompt.image_count();
        if placeholders != pictures.len() {
            return Err(Error::PlaceholderCount {
                placeholders,
                images: pictures.len(),
            });
        }
        let tokens = self.vision().map_or(0, |vision| vision.tokens_per_image());
        let mut pictures = pictures.iter().copied();
        let mut slots = Vec::new();
        for id in prompt.encode(self.tokenizer(), parse_special)? {
            match u32::try_from(id) {
                Ok(id) => slots.push(Slot::Text(id)),
                Err(_) => {
                    let visual =
                        |picture| (0..tokens).map(move |token| Slot::Visual { picture, token });
                    slots.extend(pictures.next().into_iter().flat_map(visual));
                }
            }
        }
        Ok(slots)
    }

    /// Looks at a prepared picture: towers, mining, projector.
    ///
    /// `pause` is called between the layers of the towers, every few milliseconds or so; its error ends the work.
    ///
    /// # Errors
    /// When the model has no vision tower, the picture was prepared for another model, or `pause` says so.
    pub fn look_at(
        &self,
        image: &PreparedImage,
        pause: &mut dyn FnMut() -> Result<()>,
    ) -> Result<VisualTokens> {
        let vision = self.require_vision()?;
        let features = vision.tower_features_with(image, pause)?;
        Ok(VisualTokens::new(vision.visual_tokens(&features)?))
    }

    /// Runs the decoder over further positions of several sequences in one pass. Gives the logits `[vocab]` after the last positions of every
    /// read, as many as it wants, in order. `pictures` finds the visual tokens of the pictures that stand in the slots.
    ///
    /// With f32 weights the results of a sequence do not depend on what else is read with it, nor on how its positions are divided over
    /// passes, to the last bit.
    ///
    /// # Errors
    /// When a picture is not found, an id lies outside the vocabulary, or a tensor operation fails. No cache has changed then.
    pub fn read(
        &self,
        reads: &mut [Read<'_>],
        pictures: &(dyn Fn(PictureKey) -> Option<VisualTokens> + Sync),
    ) -> Result<Vec<Vec<f32>>> {
        // On a thread of the kernels' pool: from outside, each of the hundreds of parallel loops of a pass would begin with waking it.
        rayon::scope(|_| self.read_with(reads, pictures, &mut || Ok(())))
    }

    /// [`Self::read`] that calls `pause` before each layer; its error ends the work.
    ///
    /// # Errors
    /// As [`Self::read`], and when `pause` says so.
    pub fn read_with(
        &self,
        reads: &mut [Read<'_>],
        pictures: &dyn Fn(PictureKey) -> Option<VisualTokens>,
        pause: &mut dyn FnMut() -> Result<()>,
    ) -> Result<Vec<Vec<f32>>> {
        let held: Vec<usize> = reads.iter().map(|read| read.cache.len()).collect();
        let result = self.read_here(reads, pictures, pause);
        if result.is_err() {
            for (read, held) in reads.iter_mut().zip(held) {
                read.cache.truncate(held);
            }
        }
        result
    }

    fn read_here(
        &self,
        reads: &mut [Read<'_>],
        pictures: &dyn Fn(PictureKey) -> Option<VisualTokens>,
        pause: &mut dyn FnMut() -> Result<()>,
    ) -> Result<Vec<Vec<f32>>> {
        let mut parts = Vec::new();
        for read in reads.iter() {
            self.embed_slots(read.slots, pictures, &mut parts)?;
        }
        let embeddings = match parts.len() {
            0 => return Err(nothing_to_read()),
            1 => parts.remove(0),
            _ => Tensor::cat(&parts, 0)?,
        };
        let wanted: Vec<usize> = reads
            .iter()
            .map(|read| read.logits.min(read.slots.len()))
            .collect();
        let mut caches: Vec<(&mut KvCache, usize)> = reads
            .iter_mut()
            .map(|read| (&mut *read.cache, read.slots.len()))
            .collect();
        let decoder = self.decoder();
        let hidden = decoder.hidden_tails(&embeddings, &mut caches, &wanted, pause)?;
        match wanted.iter().sum() {
            0 => Ok(Vec::new()),
            _ => Ok(decoder.logits(&hidden)?.to_vec2()?),
        }
    }

    /// Appends the embeddings of `slots` to `parts`, runs of one kind in one piece.
    fn embed_slots(
        &self,
        slots: &[Slot],
        pictures: &dyn Fn(PictureKey) -> Option<VisualTokens>,
        parts: &mut Vec<Tensor>,
    ) -> Result<()> {
        let mut rest = slots;
        while let Some(first) = rest.first() {
            let follows = |(offset, slot): &(usize, &Slot)| slot.follows(first, *offset);
            let run = rest.iter().enumerate().take_while(follows).count();
            let (run, after) = rest.split_at(run);
            parts.push(match first {
                Slot::Text(_) => self
                    .decoder()
                    .embed(&run.iter().filter_map(Slot::text).collect::<Vec<_>>())?,
                Slot::Visual { picture, token } => pictures(*picture)
                    .ok_or_else(|| Error::Input("a picture of the prompt is not held".into()))?
                    .0
                    .narrow(0, *token, run.len())?,
            });
            rest = after;
        }
        Ok(())
    }
}

fn nothing_to_read() -> Error {
    Error::Input("the prompt is empty".into())
}
