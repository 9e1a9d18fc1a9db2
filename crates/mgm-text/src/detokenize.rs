//! From ids back to text, at once or as they arrive.

use std::sync::Arc;

/// The bytes every id stands for. Both directions of decoding, whole and incremental, read this one table, so they
/// cannot disagree.
#[derive(Debug)]
pub(crate) struct Detokenizer {
    bytes: Vec<u8>,
    /// `bytes[ends[id - 1]..ends[id]]` belongs to `id`.
    ends: Vec<usize>,
    special: Vec<bool>,
    /// SentencePiece models with a dummy prefix put a space in front of every text; it is not part of the answer.
    strip_first_space: bool,
}

/// How a vocabulary's strings spell bytes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Spelling {
    /// GPT-2's printable stand-ins for bytes.
    ByteLevel,
    /// SentencePiece: `▁` is a space, `<0xNN>` is a byte.
    Pieces,
    /// As is.
    Literal,
}

impl Detokenizer {
    pub(crate) fn new(strip_first_space: bool) -> Self {
        Self {
            bytes: Vec::new(),
            ends: Vec::new(),
            special: Vec::new(),
            strip_first_space,
        }
    }

    /// Adds the next id.
    pub(crate) fn push(&mut self, token: &str, spelling: Spelling, special: bool) {
        match spelling {
            Spelling::ByteLevel => push_byte_level(&mut self.bytes, token),
            Spelling::Pieces => match parse_byte_piece(token) {
                Some(byte) => self.bytes.push(byte),
                None => self
                    .bytes
                    .extend_from_slice(token.replace('▁', " ").as_bytes()),
            },
            Spelling::Literal => self.bytes.extend_from_slice(token.as_bytes()),
        }
        self.ends.push(self.bytes.len());
        self.special.push(special);
    }

    /// Number of ids.
    pub(crate) fn len(&self) -> usize {
        self.ends.len()
    }

    fn token(&self, id: u32) -> Option<(&[u8], bool)> {
        let index = id as usize;
        let end = *self.ends.get(index)?;
        let start = if index == 0 { 0 } else { self.ends[index - 1] };
        Some((&self.bytes[start..end], self.special[index]))
    }

    pub(crate) fn bytes_of(&self, id: u32) -> Option<&[u8]> {
        self.token(id).map(|(bytes, _)| bytes)
    }

    pub(crate) fn is_special(&self, id: u32) -> bool {
        self.special.get(id as usize).copied().unwrap_or(false)
    }

    pub(crate) fn decode(&self, ids: &[u32], skip_special: bool) -> String {
        let mut bytes = Vec::with_capacity(ids.len() * 4);
        for (token, special) in ids.iter().filter_map(|&id| self.token(id)) {
            if !(special && skip_special) {
                bytes.extend_from_slice(token);
            }
        }
        let text = match bytes.first() {
            Some(b' ') if self.strip_first_space => &bytes[1..],
            _ => &bytes[..],
        };
        String::from_utf8_lossy(text).into_owned()
    }
}

/// The byte that a piece such as `<0x0A>` stands for.
pub(crate) fn parse_byte_piece(piece: &str) -> Option<u8> {
    let digits = piece.strip_prefix("<0x")?.strip_suffix('>')?;
    if digits.len() != 2 || !digits.bytes().all(|digit| digit.is_ascii_hexdigit()) {
        return None;
    }
    u8::from_str_radix(digits, 16).ok()
}

/// GPT-2 writes printable Latin-1 bytes as themselves and the other 68 as U+0100 and up, in byte order.
fn push_byte_level(bytes: &mut Vec<u8>, token: &str) {
    let start = bytes.len();
    for character in token.chars() {
        match byte_of_character(character) {
            Some(byte) => bytes.push(byte),
            None => {
                // Not spelt in stand-ins at all (an added token): the token is its own text.
                bytes.truncate(start);
                bytes.extend_from_slice(token.as_bytes());
                return;
            }
        }
    }
}

fn byte_of_character(character: char) -> Option<u8> {
    let printable = |byte: u8| matches!(byte, b'!'..=b'~' | 0xa1..=0xac | 0xae..=0xff);
    let code = u32::from(character);
    if let Ok(byte) = u8::try_from(code) {
        return printable(byte).then_some(byte);
    }
    let number = usize::try_from(code.checked_sub(0x100)?).ok()?;
    (0..=255u8).filter(|&byte| !printable(byte)).nth(number)
}

/// Turns ids into text as they arrive.
///
/// The pieces it gives, put together, equal [`Tokenizer::decode`](crate::Tokenizer::decode) of the same ids with
/// special tokens skipped; no piece ever ends inside a UTF-8 character.
#[derive(Clone, Debug)]
pub struct DetokenizeStream {
    detokenizer: Arc<Detokenizer>,
    /// Bytes of a character that is not complete yet, at most three between calls.
    pending: Vec<u8>,
    started: bool,
}

impl DetokenizeStream {
    pub(crate) fn new(detokenizer: Arc<Detokenizer>) -> Self {
        Self {
            detokenizer,
            pending: Vec::new(),
            started: false,
        }
    }

    /// Takes the next id and gives the text that is now certain, if any. Special tokens and ids outside the
    /// vocabulary give nothing.
    pub fn push(&mut self, id: u32) -> Option<String> {
        let (bytes, special) = self.detokenizer.token(id)?;
        if special || bytes.is_empty() {
            return None;
        }
        let strip = !self.started && self.detokenizer.strip_first_space && bytes[0] == b' ';
        self.started = true;
        self.pending
            .extend_from_slice(if strip { &bytes[1..] } else { bytes });
        let text = take_complete(&mut self.pending);
        (!text.is_empty()).then_some(text)
    }

    /// Ends the stream: what is left of an incomplete character becomes U+FFFD.
    pub fn finish(self) -> Option<String> {
        (!self.pending.is_empty()).then(|| String::from_utf8_lossy(&self.pending).into_owned())
    }
}

/// Removes all complete characters from the front of `pending`; invalid bytes become U+FFFD just as in
/// `String::from_utf8_lossy`.
fn take_complete(pending: &mut Vec<u8>) -> String {
    let mut text = String::new();
    let mut consumed = 0;
    for chunk in pending.utf8_chunks() {
        text.push_str(chunk.valid());
        consumed += chunk.valid().len();
        let invalid = chunk.invalid();
        if invalid.is_empty() {
            continue;
        }
        let at_end = consumed + invalid.len() == pending.len();
        let incomplete =
            at_end && std::str::from_utf8(invalid).is_err_and(|error| error.error_len().is_none());
        if incomplete {
            break;
        }
        text.push('\u{fffd}');
        consumed += invalid.len();
    }
    pending.drain(..consumed);
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn byte_pieces_are_recognised_strictly() {
        assert_eq!(parse_byte_piece("<0x0A>"), Some(10));
        assert_eq!(parse_byte_piece("<0xfF>"), Some(255));
        for piece in ["<0x0>", "<0x+1>", "0x0A", "<0x0A", "<0x00A>", "<0xGG>"] {
            assert_eq!(parse_byte_piece(piece), None, "{piece}");
        }
    }

    #[test]
    fn every_byte_has_one_stand_in() {
        let mut seen = [0; 256];
        for code in 0..0x200u32 {
            if let Some(byte) = char::from_u32(code).and_then(byte_of_character) {
                seen[byte as usize] += 1;
            }
        }
        assert_eq!(seen, [1; 256]);
        let mut bytes = Vec::new();
        push_byte_level(&mut bytes, "ĠtheĊ");
        assert_eq!(bytes, b" the\n");
    }

    /// Ids 0..=255 are bytes, 256 is " Hi", 257 is special.
    fn byte_table(strip_first_space: bool) -> Arc<Detokenizer> {
        let mut table = Detokenizer::new(strip_first_space);
        for byte in 0..=255 {
            table.push(&format!("<0x{byte:02X}>"), Spelling::Pieces, false);
        }
        table.push("▁Hi", Spelling::Pieces, false);
        table.push("</s>", Spelling::Literal, true);
        Arc::new(table)
    }

    fn stream(table: &Arc<Detokenizer>, ids: &[u32]) -> String {
        let mut stream = DetokenizeStream::new(Arc::clone(table));
        let mut text = String::new();
        for &id in ids {
            if let Some(piece) = stream.push(id) {
                assert!(!piece.is_empty());
                text.push_str(&piece);
            }
            assert!(stream.pending.len() <= 3);
        }
        text.extend(stream.finish());
        text
    }

    #[test]
    fn a_character_in_four_bytes_comes_out_once_complete() {
        let table = byte_table(false);
        let mut stream = DetokenizeStream::new(Arc::clone(&table));
        assert_eq!(stream.push(0xf0), None);
        assert_eq!(stream.push(0x9f), None);
        assert_eq!(stream.push(0x98), None);
        assert_eq!(stream.push(0x80).as_deref(), Some("😀"));
        assert_eq!(stream.push(257), None);
        assert_eq!(stream.push(99_999), None);
        assert_eq!(stream.finish(), None);
    }

    #[test]
    fn only_the_first_space_is_stripped() {
        let table = byte_table(true);
        assert_eq!(table.decode(&[257, 256, 256], true), "Hi Hi");
        assert_eq!(table.decode(&[257, 256], false), "</s> Hi");
        assert_eq!(stream(&table, &[257, 256, 256]), "Hi Hi");
    }

    #[test]
    fn streamed_text_equals_decoded_text_for_random_ids() {
        let mut state = 0x9e37_79b9_7f4a_7c15u64;
        let mut next = move |bound: u64| {
            state ^= state << 13;
            state ^= state >> 7;
            state ^= state << 17;
            state % bound
        };
        let text: Vec<u8> = "aé漢😀\u{301}ﷺ".bytes().collect();
        let tables = [byte_table(false), byte_table(true)];
        for round in 0..20_000 {
            let table = &tables[round % 2];
            let ids: Vec<u32> = (0..next(24))
                .map(|_| match next(4) {
                    0 => next(258) as u32,
                    // Bytes that belong to real characters make whole ones likely.
                    _ => u32::from(text[next(text.len() as u64) as usize]),
                })
                .collect();
            assert_eq!(stream(table, &ids), table.decode(&ids, true), "{ids:?}");
        }
    }
}
