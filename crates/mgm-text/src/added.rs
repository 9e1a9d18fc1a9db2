//! Added (mostly special) tokens and the splitting of text at them.

use std::collections::HashMap;

/// A token that is cut out of the text before the vocabulary's own algorithm sees the rest.
#[derive(Clone, Debug)]
pub(crate) struct AddedToken {
    pub(crate) content: String,
    pub(crate) id: u32,
    /// Skipped when decoding for the user; kept as text when special strings are not to be parsed.
    pub(crate) special: bool,
    /// Eats white space on its left.
    pub(crate) lstrip: bool,
    /// Eats white space on its right.
    pub(crate) rstrip: bool,
}

/// A stretch of the input.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Stretch<'a> {
    /// Ordinary text, never empty.
    Text(&'a str),
    /// Index into [`AddedTokens::tokens`].
    Added(usize),
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

    /// Cuts `text` at the added tokens, leftmost first and longest at each place. With `parse_special` false the
    /// special ones are not looked for.
    pub(crate) fn split<'a>(&self, text: &'a str, parse_special: bool) -> Vec<Stretch<'a>> {
        let bytes = text.as_bytes();
        let mut found: Vec<(usize, usize, usize)> = Vec::new();
        let mut at = 0;
        while at < bytes.len() {
            let hit = self.by_first_byte.get(&bytes[at]).and_then(|indices| {
                indices.iter().copied().find(|&index| {
                    let token = &self.tokens[index];
                    (parse_special || !token.special)
                        && bytes[at..].starts_with(token.content.as_bytes())
                })
            });
            match hit {
                Some(index) => {
                    let end = at + self.tokens[index].content.len();
                    found.push((at, end, index));
                    at = end;
                }
                None => at += 1,
            }
        }

        let mut stretches = Vec::with_capacity(found.len() * 2 + 1);
        let mut start = 0;
        for (number, &(hit_start, hit_end, index)) in found.iter().enumerate() {
            let strip_left = number > 0 && self.tokens[found[number - 1].2].rstrip;
            push_text(
                &mut stretches,
                &text[start..hit_start],
                strip_left,
                self.tokens[index].lstrip,
            );
            stretches.push(Stretch::Added(index));
            start = hit_end;
        }
        let strip_left = found
            .last()
            .is_some_and(|&(_, _, index)| self.tokens[index].rstrip);
        push_text(&mut stretches, &text[start..], strip_left, false);
        stretches
    }
}

fn push_text<'a>(
    stretches: &mut Vec<Stretch<'a>>,
    text: &'a str,
    strip_left: bool,
    strip_right: bool,
) {
    let mut text = text;
    if strip_left {
        text = text.trim_start_matches(is_python_space);
    }
    if strip_right {
        text = text.trim_end_matches(is_python_space);
    }
    if !text.is_empty() {
        stretches.push(Stretch::Text(text));
    }
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
            content: content.to_string(),
            id,
            special: true,
            lstrip,
            rstrip,
        }
    }

    #[test]
    fn longest_match_wins_and_text_between_is_kept() {
        let added = AddedTokens::new([
            token("<s>", 1, false, false),
            token("<s><s>", 9, false, false),
        ]);
        assert_eq!(
            added.split("a<s><s>b<s>", true),
            [
                Stretch::Text("a"),
                Stretch::Added(1),
                Stretch::Text("b"),
                Stretch::Added(0)
            ]
        );
        assert_eq!(added.split("a<s>", false), [Stretch::Text("a<s>")]);
        assert_eq!(added.split("", true), []);
    }

    #[test]
    fn strip_attributes_eat_white_space() {
        let added = AddedTokens::new([token("<m>", 1, true, true)]);
        assert_eq!(
            added.split("a \n<m>\u{3000} b", true),
            [Stretch::Text("a"), Stretch::Added(0), Stretch::Text("b")]
        );
        assert_eq!(added.split("  <m>  ", true), [Stretch::Added(0)]);
    }

    #[test]
    fn the_later_of_two_equal_contents_wins() {
        let added =
            AddedTokens::new([token("<s>", 1, false, false), token("<s>", 5, false, false)]);
        assert_eq!(added.iter().map(|token| token.id).collect::<Vec<_>>(), [5]);
    }
}
