//! Tokenising with a piece vocabulary: where special tokens are cut out and where a space is put in front.

use crate::added::{AddedTokens, Stretch};
use crate::detokenize::{Detokenizer, Spelling};
use crate::merge::{PieceKind, PieceMerger};
use crate::passage::Passage;

/// The marker SentencePiece writes for a space.
pub(crate) const SPACE_MARKER: char = '▁';

/// How the stretches between special tokens are treated.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum StretchRule {
    /// Every stretch is a text of its own and gets the model's dummy prefix: slow legacy tokenisers, the fast
    /// tokenisers made from them, and llama.cpp.
    Legacy {
        /// A space marker in front of every stretch.
        dummy_prefix: bool,
    },
    /// Slow tokenisers with `legacy: false`: one space marker at the very start, none after special tokens.
    Modern,
}

/// A tokeniser over scored pieces.
#[derive(Debug)]
pub(crate) struct PieceTokenizer {
    merger: PieceMerger,
    added: AddedTokens,
    rule: StretchRule,
    remove_extra_whitespaces: bool,
    unk_token: String,
    /// Number of pieces that spell [`Self::unk_token`] as ordinary text.
    unk_token_length: usize,
}

impl PieceTokenizer {
    pub(crate) fn new(
        merger: PieceMerger,
        added: AddedTokens,
        rule: StretchRule,
        remove_extra_whitespaces: bool,
        unk_token: String,
    ) -> Self {
        let mut tokenizer = Self {
            merger,
            added,
            rule,
            remove_extra_whitespaces,
            unk_token,
            unk_token_length: 0,
        };
        let mut ids = Vec::new();
        tokenizer.encode_stretch(&tokenizer.unk_token, false, &mut ids);
        tokenizer.unk_token_length = ids.len();
        tokenizer
    }

    /// Score and kind of every piece.
    pub(crate) fn scores_and_kinds(&self) -> (&[f32], &[PieceKind]) {
        self.merger.scores_and_kinds()
    }

    pub(crate) fn added(&self) -> &AddedTokens {
        &self.added
    }

    pub(crate) fn removes_extra_whitespaces(&self) -> bool {
        self.remove_extra_whitespaces
    }

    pub(crate) fn rule(&self) -> StretchRule {
        self.rule
    }

    /// Encodes without BOS.
    pub(crate) fn encode(&self, passage: &Passage<'_>) -> Vec<u32> {
        let mut ids = Vec::with_capacity(passage.text().len() / 3 + 4);
        match self.rule {
            StretchRule::Legacy { dummy_prefix } => {
                for stretch in self.added.split(passage) {
                    match stretch {
                        Stretch::Text(text) => self.encode_stretch(text, dummy_prefix, &mut ids),
                        Stretch::Added(index) => ids.push(self.added.get(index).id),
                    }
                }
            }
            StretchRule::Modern => self.encode_modern(passage, &mut ids),
        }
        ids
    }

    fn encode_modern(&self, passage: &Passage<'_>, ids: &mut Vec<u32>) {
        if passage.text().is_empty() {
            return;
        }
        let marked = passage.rewritten(SPACE_MARKER, |character| match character {
            SPACE_MARKER => ' ',
            other => other,
        });
        let stretches = self.added.split(&marked);
        for stretch in &stretches {
            match *stretch {
                Stretch::Added(index) => ids.push(self.added.get(index).id),
                Stretch::Text(text) if text.starts_with([SPACE_MARKER, ' ']) => {
                    // The official code hides the leading space behind the text of the unknown token, lest
                    // SentencePiece strips it, and then drops the pieces of that text.
                    let mut hidden = Vec::new();
                    self.encode_stretch(&format!("{}{text}", self.unk_token), false, &mut hidden);
                    let from = if hidden.len() >= self.unk_token_length {
                        self.unk_token_length
                    } else {
                        0
                    };
                    ids.extend_from_slice(&hidden[from..]);
                }
                Stretch::Text(text) => self.encode_stretch(text, false, ids),
            }
        }
        // A text that begins with a special token gets no space marker in front of it. The marker is then the whole
        // first stretch.
        if let [Stretch::Text(first), Stretch::Added(index), ..] = stretches[..]
            && self.added.get(index).special
            && first.chars().eq([SPACE_MARKER])
            && self
                .merger
                .id(first)
                .is_some_and(|id| ids.first() == Some(&id))
        {
            ids.remove(0);
        }
    }

    /// Normalises as SentencePiece's identity rule does and merges.
    fn encode_stretch(&self, text: &str, dummy_prefix: bool, ids: &mut Vec<u32>) {
        let mut normalized = String::with_capacity(text.len() + text.len() / 4 + 3);
        if self.remove_extra_whitespaces {
            for word in text.split(' ').filter(|word| !word.is_empty()) {
                if dummy_prefix || !normalized.is_empty() {
                    normalized.push(SPACE_MARKER);
                }
                normalized.push_str(word);
            }
        } else if !text.is_empty() {
            if dummy_prefix {
                normalized.push(SPACE_MARKER);
            }
            normalized.extend(text.chars().map(|character| {
                if character == ' ' {
                    SPACE_MARKER
                } else {
                    character
                }
            }));
        }
        self.merger.encode(&normalized, ids);
    }
}

/// Fills the table of texts for a piece vocabulary with `added` tokens over or after it.
pub(crate) fn piece_detokenizer(
    pieces: &[String],
    kinds: &[PieceKind],
    added: &AddedTokens,
    size: usize,
    strip_first_space: bool,
) -> Detokenizer {
    let mut detokenizer = Detokenizer::new(strip_first_space);
    let mut by_id = vec![None; size];
    for token in added.iter() {
        if let Some(slot) = by_id.get_mut(token.id as usize) {
            *slot = Some(token);
        }
    }
    for (id, added) in by_id.into_iter().enumerate() {
        match (added, pieces.get(id).zip(kinds.get(id))) {
            (Some(token), _) => detokenizer.push(&token.content, Spelling::Literal, token.special),
            (None, Some((piece, kind))) => {
                let special = matches!(kind, PieceKind::Control | PieceKind::Unknown);
                let spelling = if special {
                    Spelling::Literal
                } else {
                    Spelling::Pieces
                };
                detokenizer.push(piece, spelling, special);
            }
            (None, None) => detokenizer.push("", Spelling::Literal, false),
        }
    }
    detokenizer
}
