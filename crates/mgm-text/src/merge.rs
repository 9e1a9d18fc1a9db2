//! SentencePiece's BPE: repeatedly join the neighbouring symbols whose joined piece has the best score.

use std::cmp::{Ordering, Reverse};
use std::collections::{BinaryHeap, HashMap};

use crate::detokenize::parse_byte_piece;

/// What a piece is (SentencePiece's `Type`).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum PieceKind {
    Normal,
    Unknown,
    Control,
    UserDefined,
    Unused,
    Byte,
}

/// The merging algorithm over one vocabulary. Text handed to it is normalised already: spaces are `▁`.
#[derive(Debug)]
pub(crate) struct PieceMerger {
    /// Pieces that text can become: normal, user-defined and unused ones.
    ids: HashMap<Box<str>, u32>,
    scores: Vec<f32>,
    kinds: Vec<PieceKind>,
    /// Pieces for the 256 bytes, if the vocabulary has all of them (byte fallback).
    bytes: Option<Box<[u32; 256]>>,
    unk: u32,
    /// User-defined pieces by their first character, longest first; they are never split or joined.
    user_defined: HashMap<char, Vec<Box<str>>>,
}

const NONE: usize = usize::MAX;

struct Symbol {
    start: usize,
    /// Zero once it was joined to its left neighbour.
    length: usize,
    previous: usize,
    next: usize,
    frozen: bool,
}

/// A possible join of two neighbours.
struct Join {
    score: f32,
    left: usize,
    right: usize,
    /// Bytes of the joined piece; if the symbols have changed since, this no longer fits and the join is stale.
    length: usize,
}

impl Ord for Join {
    fn cmp(&self, other: &Self) -> Ordering {
        self.score
            .total_cmp(&other.score)
            .then_with(|| Reverse(self.left).cmp(&Reverse(other.left)))
    }
}

impl PartialOrd for Join {
    fn partial_cmp(&self, other: &Self) -> Option<Ordering> {
        Some(self.cmp(other))
    }
}

impl PartialEq for Join {
    fn eq(&self, other: &Self) -> bool {
        self.cmp(other) == Ordering::Equal
    }
}

impl Eq for Join {}

impl PieceMerger {
    /// `pieces`, `scores` and `kinds` have one entry an id. `unk` is what unknown characters become when there are no
    /// byte pieces.
    pub(crate) fn new(pieces: &[String], scores: &[f32], kinds: &[PieceKind], unk: u32) -> Self {
        let mut ids = HashMap::with_capacity(pieces.len());
        let mut user_defined: HashMap<char, Vec<Box<str>>> = HashMap::new();
        let mut byte_ids = [None; 256];
        for (id, (piece, kind)) in (0u32..).zip(pieces.iter().zip(kinds)) {
            match kind {
                PieceKind::Normal | PieceKind::UserDefined | PieceKind::Unused => {
                    // Of two equal pieces the first id counts.
                    ids.entry(piece.as_str().into()).or_insert(id);
                }
                PieceKind::Byte => {
                    if let Some(byte) = parse_byte_piece(piece) {
                        byte_ids[usize::from(byte)].get_or_insert(id);
                    }
                }
                PieceKind::Unknown | PieceKind::Control => {}
            }
            if let (PieceKind::UserDefined, Some(first)) = (kind, piece.chars().next()) {
                user_defined
                    .entry(first)
                    .or_default()
                    .push(piece.as_str().into());
            }
        }
        for pieces in user_defined.values_mut() {
            pieces.sort_by_key(|piece| Reverse(piece.len()));
        }
        let mut bytes = Box::new([0; 256]);
        let mut complete = true;
        for (slot, id) in bytes.iter_mut().zip(byte_ids) {
            match id {
                Some(id) => *slot = id,
                None => complete = false,
            }
        }
        Self {
            ids,
            scores: scores.to_vec(),
            kinds: kinds.to_vec(),
            bytes: complete.then_some(bytes),
            unk,
            user_defined,
        }
    }

    /// Score and kind of every piece.
    pub(crate) fn scores_and_kinds(&self) -> (&[f32], &[PieceKind]) {
        (&self.scores, &self.kinds)
    }

    /// Id of a piece that text can become.
    pub(crate) fn id(&self, piece: &str) -> Option<u32> {
        self.ids.get(piece).copied()
    }

    /// Appends the ids of `text` to `output`.
    pub(crate) fn encode(&self, text: &str, output: &mut Vec<u32>) {
        let mut symbols = self.symbols(text);
        let mut joins = BinaryHeap::with_capacity(symbols.len());
        // How unused pieces came about, so that they can be taken apart again.
        let mut parts: HashMap<&str, (&str, &str)> = HashMap::new();
        for right in 1..symbols.len() {
            self.propose(text, &symbols, right - 1, right, &mut joins, &mut parts);
        }
        while let Some(join) = joins.pop() {
            let (left, right) = (&symbols[join.left], &symbols[join.right]);
            if left.length == 0 || right.length == 0 || left.length + right.length != join.length {
                continue;
            }
            let next = right.next;
            symbols[join.left].length = join.length;
            symbols[join.left].next = next;
            symbols[join.right].length = 0;
            if next != NONE {
                symbols[next].previous = join.left;
                self.propose(text, &symbols, join.left, next, &mut joins, &mut parts);
            }
            let previous = symbols[join.left].previous;
            if previous != NONE {
                self.propose(text, &symbols, previous, join.left, &mut joins, &mut parts);
            }
        }
        let mut after_unknown = false;
        for symbol in symbols.iter().filter(|symbol| symbol.length > 0) {
            self.emit(
                &text[symbol.start..symbol.start + symbol.length],
                &parts,
                output,
                &mut after_unknown,
            );
        }
    }

    /// The starting symbols: user-defined pieces whole, everything else one character each.
    fn symbols(&self, text: &str) -> Vec<Symbol> {
        let mut symbols: Vec<Symbol> = Vec::with_capacity(text.len());
        let mut start = 0;
        while let Some(first) = text[start..].chars().next() {
            let user_defined = self.user_defined.get(&first).and_then(|pieces| {
                pieces
                    .iter()
                    .find(|piece| text[start..].starts_with(&***piece))
            });
            let length = user_defined.map_or(first.len_utf8(), |piece| piece.len());
            let index = symbols.len();
            symbols.push(Symbol {
                start,
                length,
                previous: index.checked_sub(1).unwrap_or(NONE),
                next: index + 1,
                frozen: user_defined.is_some(),
            });
            start += length;
        }
        if let Some(last) = symbols.last_mut() {
            last.next = NONE;
        }
        symbols
    }

    fn propose<'a>(
        &self,
        text: &'a str,
        symbols: &[Symbol],
        left: usize,
        right: usize,
        joins: &mut BinaryHeap<Join>,
        parts: &mut HashMap<&'a str, (&'a str, &'a str)>,
    ) {
        let (left_symbol, right_symbol) = (&symbols[left], &symbols[right]);
        if left_symbol.frozen || right_symbol.frozen {
            return;
        }
        let length = left_symbol.length + right_symbol.length;
        let joined = &text[left_symbol.start..left_symbol.start + length];
        let Some(&id) = self.ids.get(joined) else {
            return;
        };
        joins.push(Join {
            score: self.scores[id as usize],
            left,
            right,
            length,
        });
        if self.kinds[id as usize] == PieceKind::Unused {
            parts.insert(joined, joined.split_at(left_symbol.length));
        }
    }

    fn emit(
        &self,
        piece: &str,
        parts: &HashMap<&str, (&str, &str)>,
        output: &mut Vec<u32>,
        after_unknown: &mut bool,
    ) {
        match self.ids.get(piece) {
            Some(&id) => {
                if self.kinds[id as usize] == PieceKind::Unused
                    && let Some((left, right)) = parts.get(piece)
                {
                    self.emit(left, parts, output, after_unknown);
                    self.emit(right, parts, output, after_unknown);
                    return;
                }
                output.push(id);
                *after_unknown = false;
            }
            None => match &self.bytes {
                Some(bytes) => output.extend(piece.bytes().map(|byte| bytes[usize::from(byte)])),
                // A run of unknown characters is one unknown piece.
                None if *after_unknown => {}
                None => {
                    output.push(self.unk);
                    *after_unknown = true;
                }
            },
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn merger(pieces: &[(&str, f32, PieceKind)]) -> PieceMerger {
        let names: Vec<String> = pieces
            .iter()
            .map(|(piece, _, _)| piece.to_string())
            .collect();
        let scores: Vec<f32> = pieces.iter().map(|(_, score, _)| *score).collect();
        let kinds: Vec<PieceKind> = pieces.iter().map(|(_, _, kind)| *kind).collect();
        PieceMerger::new(&names, &scores, &kinds, 0)
    }

    fn encode(merger: &PieceMerger, text: &str) -> Vec<u32> {
        let mut ids = Vec::new();
        merger.encode(text, &mut ids);
        ids
    }

    #[test]
    fn best_score_joins_first_and_ties_go_left() {
        use PieceKind::{Normal, Unknown};
        let merger = merger(&[
            ("<unk>", 0.0, Unknown),
            ("a", -9.0, Normal),
            ("b", -9.0, Normal),
            ("c", -9.0, Normal),
            ("ab", -2.0, Normal),
            ("bc", -1.0, Normal),
            ("aa", -3.0, Normal),
        ]);
        assert_eq!(encode(&merger, "abc"), [1, 5]);
        assert_eq!(encode(&merger, "aaa"), [6, 1]);
        assert_eq!(encode(&merger, ""), [] as [u32; 0]);
        // Unknown characters in a row are one unknown piece.
        assert_eq!(encode(&merger, "axyzb"), [1, 0, 2]);
    }

    #[test]
    fn user_defined_pieces_stay_whole_and_unused_ones_fall_apart() {
        use PieceKind::{Normal, Unknown, Unused, UserDefined};
        let merger = merger(&[
            ("<unk>", 0.0, Unknown),
            ("a", -9.0, Normal),
            ("b", -9.0, Normal),
            ("ab", -1.0, Unused),
            ("aab", 0.0, UserDefined),
            ("ba", -2.0, Normal),
        ]);
        assert_eq!(encode(&merger, "ab"), [1, 2]);
        assert_eq!(encode(&merger, "baaba"), [2, 4, 1]);
    }

    #[test]
    fn missing_characters_become_bytes() {
        let mut pieces = vec![("<unk>".to_string(), 0.0, PieceKind::Unknown)];
        pieces.extend((0..256).map(|byte| (format!("<0x{byte:02X}>"), 0.0, PieceKind::Byte)));
        let pieces: Vec<(&str, f32, PieceKind)> = pieces
            .iter()
            .map(|(piece, score, kind)| (piece.as_str(), *score, *kind))
            .collect();
        assert_eq!(encode(&merger(&pieces), "é"), [0xc3 + 1, 0xa9 + 1]);
    }
}
