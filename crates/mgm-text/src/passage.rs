//! A text to encode, with the stretches in which control strings are control tokens.

use std::borrow::Cow;
use std::ops::Range;

/// A text and its *open* ranges. A control string (`</s>`, `<|im_end|>`) becomes a control token only where it lies wholly
/// inside an open range; elsewhere it is ordinary text. Everything else about the encoding sees one unbroken text.
#[derive(Clone, Debug)]
pub(crate) struct Passage<'a> {
    text: Cow<'a, str>,
    /// Byte ranges of `text`: ascending, apart from each other, never empty.
    open: Vec<Range<usize>>,
}

impl<'a> Passage<'a> {
    /// A text that is open from end to end, or nowhere.
    pub(crate) fn whole(text: &'a str, open: bool) -> Self {
        let everything = 0..text.len();
        Self {
            text: Cow::Borrowed(text),
            open: (open && !text.is_empty())
                .then_some(everything)
                .into_iter()
                .collect(),
        }
    }

    /// Parts put together; the flag tells whether a part is open. Neighbouring open parts are one range.
    pub(crate) fn from_parts<'p>(parts: impl IntoIterator<Item = (&'p str, bool)>) -> Self {
        let mut text = String::new();
        let mut open: Vec<Range<usize>> = Vec::new();
        for (part, is_open) in parts {
            let start = text.len();
            text.push_str(part);
            if !is_open || part.is_empty() {
                continue;
            }
            match open.last_mut() {
                Some(last) if last.end == start => last.end = text.len(),
                _ => open.push(start..text.len()),
            }
        }
        Self {
            text: Cow::Owned(text),
            open,
        }
    }

    pub(crate) fn text(&self) -> &str {
        &self.text
    }

    /// Whether a control string that lies at `range` is a control token.
    pub(crate) fn permits(&self, range: Range<usize>) -> bool {
        let after = self.open.partition_point(|open| open.start <= range.start);
        after > 0 && range.end <= self.open[after - 1].end
    }

    /// The passage with `prefix` in front, open if the first character is, and every character replaced by `replace`.
    pub(crate) fn rewritten(
        &self,
        prefix: char,
        replace: impl Fn(char) -> char,
    ) -> Passage<'static> {
        let mut text = String::with_capacity(self.text.len() + prefix.len_utf8());
        text.push(prefix);
        let mut open: Vec<Range<usize>> = Vec::with_capacity(self.open.len());
        let mut ranges = self.open.iter().peekable();
        for (at, character) in self.text.char_indices() {
            while ranges.next_if(|range| range.end <= at).is_some() {
                if let Some(last) = open.last_mut() {
                    last.end = text.len();
                }
            }
            if ranges.peek().is_some_and(|range| range.start == at) {
                let start = if at == 0 { 0 } else { text.len() };
                open.push(start..start);
            }
            text.push(replace(character));
        }
        if let (Some(_), Some(last)) = (ranges.peek(), open.last_mut()) {
            last.end = text.len();
        }
        Passage {
            text: Cow::Owned(text),
            open,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn control_strings_count_only_inside_open_ranges() {
        let passage = Passage::from_parts([("ab", true), ("cd", true), ("ef", false), ("g", true)]);
        assert_eq!(
            (passage.text(), &passage.open[..]),
            ("abcdefg", &[0..4, 6..7][..])
        );
        for (range, permitted) in [
            (0..4, true),
            (1..3, true),
            (3..5, false),
            (4..6, false),
            (6..7, true),
            (2..7, false),
        ] {
            assert_eq!(passage.permits(range.clone()), permitted, "{range:?}");
        }
        assert!(Passage::whole("abc", true).permits(0..3));
        assert!(!Passage::whole("abc", false).permits(0..3));
        assert!(!Passage::whole("", true).permits(0..1));
    }

    #[test]
    fn ranges_follow_their_text_when_it_is_rewritten() {
        let passage = Passage::from_parts([
            ("a▁", true),
            ("b▁", false),
            ("▁c", true),
            ("", true),
            ("d", false),
        ]);
        let rewritten = passage.rewritten(
            '▁',
            |character| if character == '▁' { ' ' } else { character },
        );
        assert_eq!(rewritten.text(), "▁a b  cd");
        let open: Vec<&str> = rewritten
            .open
            .iter()
            .map(|range| &rewritten.text()[range.clone()])
            .collect();
        assert_eq!(open, ["▁a ", " c"]);
        let closed_first = Passage::from_parts([("x", false), ("y", true)])
            .rewritten('▁', |character| character);
        assert_eq!(&closed_first.text()[closed_first.open[0].clone()], "y");
    }
}
