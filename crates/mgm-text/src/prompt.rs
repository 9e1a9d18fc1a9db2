//! A rendered prompt whose parts remember who wrote them.

use std::fmt;

use crate::passage::Passage;
use crate::template::Places;
use crate::{IMAGE_PLACEHOLDER, IMAGE_TOKEN, TextError, Tokenizer};

/// A part of a prompt.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Segment {
    /// Written by the template: control strings in it (`</s>`, `<|im_end|>`) are control tokens.
    Markup(String),
    /// Written by a person or a model: whatever stands in it is ordinary text.
    Content(String),
    /// The place of one picture.
    Image,
}

/// A rendered conversation; [`Template::prompt`](crate::Template::prompt) makes one.
///
/// Encoding sees the text between two pictures as one unbroken string, as the official code does, so the ids are the official
/// ones wherever nobody typed a control string.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Prompt {
    segments: Vec<Segment>,
}

impl Prompt {
    /// A prompt that came as one string, read as the official code reads it: all of it markup, every `<image>` a picture's
    /// place. Not for text that an untrusted person typed.
    pub fn from_official(text: &str) -> Self {
        let mut prompt = Self::default();
        for (index, piece) in text.split(IMAGE_PLACEHOLDER).enumerate() {
            if index > 0 {
                prompt.segments.push(Segment::Image);
            }
            prompt.markup(piece);
        }
        prompt
    }

    /// Appends template text.
    pub(crate) fn markup(&mut self, text: &str) {
        match self.segments.last_mut() {
            _ if text.is_empty() => {}
            Some(Segment::Markup(last)) => last.push_str(text),
            _ => self.segments.push(Segment::Markup(text.to_string())),
        }
    }

    /// Appends what somebody said, with pictures at its places.
    pub(crate) fn content(&mut self, text: &str, places: &Places) {
        for (index, piece) in places.split(text).into_iter().enumerate() {
            if index > 0 {
                self.segments.push(Segment::Image);
            }
            self.push_content(piece);
        }
    }

    fn push_content(&mut self, text: &str) {
        if !text.is_empty() {
            self.segments.push(Segment::Content(text.to_string()));
        }
    }

    /// Strips leading characters of `set` from the markup at the very start.
    pub(crate) fn strip_start(&mut self, set: &str) {
        if let Some(Segment::Markup(first)) = self.segments.first_mut() {
            *first = first
                .trim_start_matches(|character| set.contains(character))
                .to_string();
        }
    }

    /// The parts in order.
    pub fn segments(&self) -> &[Segment] {
        &self.segments
    }

    /// Number of pictures the prompt has a place for.
    pub fn image_count(&self) -> usize {
        self.segments
            .iter()
            .filter(|segment| **segment == Segment::Image)
            .count()
    }

    /// With two or more pictures, writes `Image k:` (from 1) in front of each place, as the official command line does.
    #[must_use]
    pub fn with_numbered_images(self) -> Self {
        if self.image_count() < 2 {
            return self;
        }
        let mut numbered = Self::default();
        let mut number = 0;
        for segment in self.segments {
            match segment {
                Segment::Image => {
                    number += 1;
                    numbered.markup(&format!("Image {number}:"));
                    numbered.segments.push(Segment::Image);
                }
                Segment::Markup(text) => numbered.markup(&text),
                Segment::Content(text) => numbered.push_content(&text),
            }
        }
        numbered
    }

    /// Token ids with [`IMAGE_TOKEN`] at each picture's place (the official `tokenizer_image_token`).
    ///
    /// As in the official code each piece between places is tokenised as a text of its own, *with* the tokeniser's automatic
    /// BOS; if there is one, it is kept at the start of the whole and dropped from the other pieces. With `parse_special`
    /// control strings in [`Segment::Content`] become control tokens too, which is the official behaviour.
    ///
    /// # Errors
    /// If the tokeniser refuses the text.
    pub fn encode(
        &self,
        tokenizer: &Tokenizer,
        parse_special: bool,
    ) -> Result<Vec<i64>, TextError> {
        let mut ids: Vec<i64> = Vec::new();
        // Only whether the tokeniser adds BOS decides; comparing ids would strip a real token from a tokeniser without BOS
        // whose text happens to begin with that id.
        let adds_bos = tokenizer.adds_bos();
        for (index, piece) in self
            .segments
            .split(|segment| *segment == Segment::Image)
            .enumerate()
        {
            let parts = piece.iter().filter_map(|segment| match segment {
                Segment::Markup(text) => Some((text.as_str(), true)),
                Segment::Content(text) => Some((text.as_str(), parse_special)),
                Segment::Image => None,
            });
            let piece_ids = tokenizer.encode_passage(&Passage::from_parts(parts), true)?;
            let mut rest = piece_ids.as_slice();
            if index > 0 {
                ids.push(IMAGE_TOKEN);
                if adds_bos {
                    rest = rest.get(1..).unwrap_or_default();
                }
            }
            ids.extend(rest.iter().map(|&id| i64::from(id)));
        }
        Ok(ids)
    }
}

/// The prompt as the official code would print it.
impl fmt::Display for Prompt {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        for segment in &self.segments {
            formatter.write_str(match segment {
                Segment::Markup(text) | Segment::Content(text) => text,
                Segment::Image => IMAGE_PLACEHOLDER,
            })?;
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn prompt(parts: &[(&str, Option<bool>)]) -> Prompt {
        let mut prompt = Prompt::default();
        for (text, content) in parts {
            match content {
                None => prompt.markup(text),
                Some(true) => prompt.content(text, &Places::Every),
                Some(false) => prompt.content(text, &Places::None),
            }
        }
        prompt
    }

    #[test]
    fn placeholders_are_places_only_where_asked_for() {
        let typed = prompt(&[
            ("USER: ", None),
            ("a <image> b", Some(false)),
            (" ASSISTANT:", None),
        ]);
        assert_eq!(typed.image_count(), 0);
        let placed = prompt(&[
            ("USER: ", None),
            ("a <image> b", Some(true)),
            (" ASSISTANT:", None),
        ]);
        assert_eq!(placed.image_count(), 1);
        assert_eq!(typed.to_string(), placed.to_string());
        assert_eq!(
            Prompt::from_official("<image><image>").segments(),
            [Segment::Image, Segment::Image]
        );
    }

    #[test]
    fn places_are_numbered_from_two_on() {
        let one = prompt(&[("<image>\nQ", Some(true))]);
        assert_eq!(one.clone().with_numbered_images(), one);
        let two =
            prompt(&[("USER: ", None), ("<image>\n<image>\nQ", Some(true))]).with_numbered_images();
        assert_eq!(two.to_string(), "USER: Image 1:<image>\nImage 2:<image>\nQ");
        // A typed mark that is no place is not counted.
        let typed = prompt(&[("<image>\nQ", Some(true)), ("<image>", Some(false))]);
        assert_eq!(
            typed.with_numbered_images().to_string(),
            "<image>\nQ<image>"
        );
    }
}
