//! `--ocr`: the text in the pictures of a conversation, for the model to refer to.

use std::io::IsTerminal;

use mgm_image::RgbImage;
use mgm_ocr::{Page, Reader};
use mgm_text::protocol;

use crate::cli::ChatArgs;
use crate::failure::Failure;
use crate::interrupt::Watch;
use crate::ocr;

/// Longest line that tells what was read, in characters.
const LONGEST_NOTE: usize = 160;

/// What has been read. Every picture is read once.
#[derive(Debug)]
pub(super) struct Reading {
    reader: Reader,
    /// Of the pictures that the model has seen.
    earlier: Vec<Page>,
    /// Of those that wait for the next question, as far as they are read.
    waiting: Vec<Page>,
}

impl Reading {
    /// What `--ocr` asks for, or `None` without it.
    pub(super) fn open(args: &ChatArgs) -> Result<Option<Self>, Failure> {
        if !args.ocr {
            return Ok(None);
        }
        Ok(Some(Self {
            reader: ocr::open(args.reading.ocr_models.as_deref())?,
            earlier: Vec::new(),
            waiting: Vec::new(),
        }))
    }

    /// Reads those of the waiting pictures that are not read yet.
    pub(super) fn read(&mut self, pictures: &[RgbImage], watch: &Watch) -> Result<(), Failure> {
        let count = pictures.len();
        for (index, picture) in pictures.iter().enumerate().skip(self.waiting.len()) {
            let title = match count {
                1 => "reading the text".into(),
                _ => format!("reading the text of picture {} of {count}", index + 1),
            };
            self.waiting
                .push(ocr::read(&self.reader, picture, title, watch)?);
        }
        Ok(())
    }

    /// What goes after the question: the lines of all pictures so far. The official command line repeats it at every question.
    pub(super) fn hint(&self) -> Option<String> {
        protocol::ocr_suffix(confidences(self.earlier.iter().chain(&self.waiting)))
    }

    /// The waiting pictures have been seen.
    pub(super) fn seen(&mut self) {
        self.earlier.append(&mut self.waiting);
    }

    /// The conversation starts anew, without pictures.
    pub(super) fn forget(&mut self) {
        self.earlier.clear();
        self.waiting.clear();
    }

    /// What the waiting pictures say.
    pub(super) fn into_pages(self) -> Vec<Page> {
        self.waiting
    }

    /// Tells on stderr what was read in the waiting pictures, if there are any.
    pub(super) fn note(&self) {
        if self.waiting.is_empty() {
            return;
        }
        let lines: Vec<&str> = confidences(&self.waiting)
            .filter(|(_, confidence)| *confidence > protocol::OCR_MIN_CONFIDENCE)
            .map(|(text, _)| text)
            .collect();
        let told = match lines.is_empty() {
            true => "no text found".to_string(),
            false => shortened(&format!("read: {}", lines.join(", "))),
        };
        match std::io::stderr().is_terminal() {
            true => note!("\x1b[2m{told}\x1b[0m"),
            false => note!("{told}"),
        }
    }
}

fn confidences<'a>(
    pages: impl IntoIterator<Item = &'a Page>,
) -> impl Iterator<Item = (&'a str, f32)> {
    pages
        .into_iter()
        .flat_map(|page| &page.lines)
        .map(|line| (line.text.as_str(), line.confidence))
}

/// At most [`LONGEST_NOTE`] characters.
fn shortened(text: &str) -> String {
    match text.char_indices().nth(LONGEST_NOTE - 1) {
        Some((end, _)) if end + 1 < text.len() => format!("{}…", &text[..end]),
        _ => text.to_string(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn long_notes_end_in_dots() {
        assert_eq!(shortened("read: STOP"), "read: STOP");
        let exact = "ä".repeat(LONGEST_NOTE);
        let cut = shortened(&format!("{exact}ä"));
        assert_eq!(cut.chars().count(), LONGEST_NOTE);
        assert!(cut.ends_with('…'));
    }
}
