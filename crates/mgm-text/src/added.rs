//! Added (mostly special) tokens and the splitting of text at them.

use std::collections::HashMap;
use std::ops::Range;

use crate::passage::Passage;

/// Turn markup that some published files forget to mark as special. Names that are HTML elsewhere (`<s>` in Gemma's
/// vocabulary) are not here.
const TURN_MARKUP: [&str; 4] = ["<start_of_turn>", "<end_of_turn>", "<bos>", "<eos>"];

/// A token that is cut out of the text before the vocabulary's own algorithm sees the rest.
#[derive(Clone, Debug)]
pub(crate) struct AddedToken {
    pub(crate) content: String,
    pub(crate) id: u32,
    /// Skipped when decoding for the user.
    pub(crate) special: bool,
    /// Eats white space on its left.
    pub(crate) lstrip: bool,
    /// Eats white space on its right.
    pub(crate) rstrip: bool,
    /// Only found where no letter or digit touches it.
    pub(crate) single_word: bool,
    /// Steers the model (ends a turn, opens one), so that it must not come from typed text.
    pub(crate) control: bool,
}

impl AddedToken {
    /// A token without any attribute.
    pub(crate) fn new(content: impl Into<String>, id: u32, special: bool) -> Self {
        let content = content.into();
        let control = special
            || (content.starts_with("<|") && content.ends_with("|>"))
            || TURN_MARKUP.contains(&content.as_str());
        Self {
            content,
            id,
            special,
            lstrip: false,
            rstrip: false,
            single_word: false,
            control,
        }
    }
}

/// A stretch of the input.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Stretch<'a> {
    /// Ordinary text, never empty.
    Text(&'a str),
    /// Index into [`AddedTokens::tokens`].
    Added(usize),
}

/// An added token found in a text.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Found {
    pub(crate) start: usize,
    pub(crate) end: usize,
    /// Index into [`AddedTokens`].
    pub(crate) index: usize,
}

/// All added tokens of a tokeniser, indexed for leftmost-longest matching.
#[derive(Debug, Default)]
pub(crate) struct AddedTokens {
    tokens: Vec<AddedToken>,
    /// Indices of the tokens that begin with a byte, longest first.
    by_first_byte: HashMap<u8, Vec<usize>>,
}

impl AddedTokens {
    /// Empty contents are dropped; of two tokens with one content the later wins.
    pub(crate) fn new(tokens: impl IntoIterator<Item = AddedToken>) -> Self {
        let mut kept: Vec<AddedToken> = Vec::new();
        let mut position: HashMap<String, usize> = HashMap::new();
        for token in tokens.into_iter().filter(|token| !token.content.is_empty()) {
            if let Some(&at) = position.get(&token.content) {
                kept[at] = token;
            } else {
                position.insert(token.content.clone(), kept.len());
                kept.push(token);
            }
        }
        let mut by_first_byte: HashMap<u8, Vec<usize>> = HashMap::new();
        for (index, token) in kept.iter().enumerate() {
            by_first_byte
                .entry(token.content.as_bytes()[0])
                .or_default()
                .push(index);
        }
        for indices in by_first_byte.values_mut() {
            indices.sort_by_key(|&index| std::cmp::Reverse(kept[index].content.len()));
        }
        Self {
            tokens: kept,
            by_first_byte,
        }
    }

    pub(crate) fn get(&self, index: usize) -> &AddedToken {
        &self.tokens[index]
    }

    pub(crate) fn iter(&self) -> impl Iterator<Item = &AddedToken> {
        self.tokens.iter()
    }

    /// Cuts a passage at the added tokens, leftmost first and longest at each place. A control token is found only where
    /// the passage permits it.
    pub(crate) fn split<'a>(&self, passage: &'a Passage<'_>) -> Vec<Stretch<'a>> {
        let text = passage.text();
        let found = self.find(text, |token, range| {
            !token.control || passage.permits(range)
        });
        let mut stretches = Vec::with_capacity(found.len() * 2 + 1);
        let mut start = 0;
        for hit in found {
            if start < hit.start {
                stretches.push(Stretch::Text(&text[start..hit.start]));
            }
            stretches.push(Stretch::Added(hit.index));
            start = hit.end;
        }
        if start < text.len() {
            stretches.push(Stretch::Text(&text[start..]));
        }
        stretches
    }

    /// Every added token in `text` with the white space it eats: leftmost first, longest at each place, none of the other
    /// side's bytes twice. `permit` is asked with the token's own range.
    pub(crate) fn find(
        &self,
        text: &str,
        permit: impl Fn(&AddedToken, Range<usize>) -> bool,
    ) -> Vec<Found> {
        let bytes = text.as_bytes();
        let mut found = Vec::new();
        let mut taken = 0;
        let mut at = 0;
        while at < bytes.len() {
            let hit = self.by_first_byte.get(&bytes[at]).and_then(|indices| {
                indices.iter().copied().find(|&index| {
                    let token = &self.tokens[index];
                    let range = at..at + token.content.len();
                    bytes[at..].starts_with(token.content.as_bytes())
                        && (!token.single_word || stands_alone(text, &range))
                        && permit(token, range)
                })
            });
            let Some(index) = hit else {
                at += 1;
                continue;
            };
            let token = &self.tokens[index];
            let (mut start, mut end) = (at, at + token.content.len());
            at = end;
            if token.lstrip {
                let free = &text[taken.min(start)..start];
                start -= free.len() - free.trim_end_matches(is_python_space).len();
            }
            if token.rstrip {
                let rest = &text[end..];
                end += rest.len() - rest.trim_start_matches(is_python_space).len();
            }
            // White space that the token before has eaten may itself be a token.
            let start = start.max(taken);
            found.push(Found {
                start,
                end: end.max(start),
                index,
            });
            taken = end.max(start);
        }
        found
    }
}

/// Whether no letter, digit or underscore touches `range`.
fn stands_alone(text: &str, range: &Range<usize>) -> bool {
    let is_word = |character: char| character.is_alphanumeric() || character == '_';
    !text[..range.start].ends_with(is_word) && !text[range.end..].starts_with(is_word)
}

/// White space as Python's `str.strip` sees it: Unicode's, and the four ASCII separators.
fn is_python_space(character: char) -> bool {
    character.is_whitespace() || ('\u{1c}'..='\u{1f}').contains(&character)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn token(content: &str, id: u32, lstrip: bool, rstrip: bool) -> AddedToken {
        AddedToken {
            lstrip,
            rstrip,
            ..AddedToken::new(content, id, true)
        }
    }

    #[test]
    fn longest_match_wins_and_text_between_is_kept() {
        let added = AddedTokens::new([
            token("<s>", 1, false, false),
            token("<s><s>", 9, false, false),
        ]);
        assert_eq!(
            added.split(&Passage::whole("a<s><s>b<s>", true)),
            [
                Stretch::Text("a"),
                Stretch::Added(1),
                Stretch::Text("b"),
                Stretch::Added(0)
            ]
        );
        assert_eq!(
            added.split(&Passage::whole("a<s>", false)),
            [Stretch::Text("a<s>")]
        );
        assert_eq!(added.split(&Passage::whole("", true)), []);
    }

    #[test]
    fn strip_attributes_eat_white_space() {
        let added = AddedTokens::new([token("<m>", 1, true, true)]);
        assert_eq!(
            added.split(&Passage::whole("a \n<m>\u{3000} b", true)),
            [Stretch::Text("a"), Stretch::Added(0), Stretch::Text("b")]
        );
        assert_eq!(
            added.split(&Passage::whole("  <m>  ", true)),
            [Stretch::Added(0)]
        );
    }

    #[test]
    fn control_tokens_come_from_open_text_only() {
        let mut plain = AddedToken::new("--", 3, false);
        plain.single_word = true;
        let added = AddedTokens::new([
            token("</s>", 1, false, false),
            AddedToken::new("<|im_end|>", 2, false),
            plain,
        ]);
        let passage = Passage::from_parts([
            ("</s>", true),
            ("a</s><|im_end|> -- <", false),
            ("|im_end|><|im_end|>", true),
        ]);
        assert_eq!(
            added.split(&passage),
            [
                Stretch::Added(0),
                Stretch::Text("a</s><|im_end|> "),
                Stretch::Added(2),
                // A control string that begins in closed text is text too.
                Stretch::Text(" <|im_end|>"),
                Stretch::Added(1),
            ]
        );
        assert_eq!(
            added.split(&Passage::whole("a--", true)),
            [Stretch::Text("a--")]
        );
    }

    #[test]
    fn the_later_of_two_equal_contents_wins() {
        let added =
            AddedTokens::new([token("<s>", 1, false, false), token("<s>", 5, false, false)]);
        assert_eq!(added.iter().map(|token| token.id).collect::<Vec<_>>(), [5]);
    }
}
