//! Reading SentencePiece `tokenizer.model` files (a protocol-buffer message `ModelProto`).
//!
//! Only the fields that decide the encoding are read. Lengths are checked against the bytes in hand.

use std::path::Path;

use crate::TextError;
use crate::merge::PieceKind;

/// What a SentencePiece model says about its pieces and about text normalisation.
#[derive(Debug)]
pub(crate) struct SentencePieceModel {
    pub(crate) pieces: Vec<String>,
    pub(crate) scores: Vec<f32>,
    pub(crate) kinds: Vec<PieceKind>,
    pub(crate) unk: Option<u32>,
    pub(crate) bos: Option<u32>,
    pub(crate) eos: Option<u32>,
    pub(crate) pad: Option<u32>,
    pub(crate) add_dummy_prefix: bool,
    pub(crate) remove_extra_whitespaces: bool,
}

impl SentencePieceModel {
    pub(crate) fn read(path: &Path) -> Result<Self, TextError> {
        let bytes = std::fs::read(path).map_err(|source| TextError::io(path, source))?;
        Self::parse(&bytes).map_err(|message| TextError::invalid(path, message))
    }

    fn parse(bytes: &[u8]) -> Result<Self, String> {
        let mut model = Self {
            pieces: Vec::new(),
            scores: Vec::new(),
            kinds: Vec::new(),
            unk: Some(0),
            bos: Some(1),
            eos: Some(2),
            pad: None,
            add_dummy_prefix: true,
            remove_extra_whitespaces: true,
        };
        // The message's default, should the file not say.
        let mut model_type = 1;
        for field in Fields(bytes) {
            match field? {
                (1, Value::Bytes(piece)) => model.parse_piece(piece)?,
                (2, Value::Bytes(trainer)) => {
                    for field in Fields(trainer) {
                        match field? {
                            (3, Value::Varint(value)) => model_type = value,
                            (40, Value::Varint(value)) => model.unk = optional_id(value),
                            (41, Value::Varint(value)) => model.bos = optional_id(value),
                            (42, Value::Varint(value)) => model.eos = optional_id(value),
                            (43, Value::Varint(value)) => model.pad = optional_id(value),
                            (24, Value::Varint(1)) => {
                                return Err(
                                    "trainer_spec.treat_whitespace_as_suffix is not supported"
                                        .to_string(),
                                );
                            }
                            _ => {}
                        }
                    }
                }
                (3, Value::Bytes(normalizer)) => model.parse_normalizer(normalizer)?,
                _ => {}
            }
        }
        if model.pieces.is_empty() {
            return Err("not a SentencePiece model: it has no pieces".to_string());
        }
        if model_type != 2 {
            return Err(format!(
                "trainer_spec.model_type: only BPE models (2) are supported, found {model_type}; \
                 use the tokenizer.json of this model instead"
            ));
        }
        let count = model.pieces.len();
        for id in [
            &mut model.unk,
            &mut model.bos,
            &mut model.eos,
            &mut model.pad,
        ] {
            *id = id.filter(|&id| (id as usize) < count);
        }
        Ok(model)
    }

    fn parse_piece(&mut self, message: &[u8]) -> Result<(), String> {
        let index = self.pieces.len();
        let (mut piece, mut score, mut kind) = (String::new(), 0.0, PieceKind::Normal);
        for field in Fields(message) {
            match field? {
                (1, Value::Bytes(text)) => {
                    piece = String::from_utf8(text.to_vec())
                        .map_err(|_| format!("pieces[{index}] is not valid UTF-8"))?;
                }
                (2, Value::Fixed32(bits)) => score = f32::from_bits(bits),
                (3, Value::Varint(value)) => {
                    kind = match value {
                        1 => PieceKind::Normal,
                        2 => PieceKind::Unknown,
                        3 => PieceKind::Control,
                        4 => PieceKind::UserDefined,
                        5 => PieceKind::Unused,
                        6 => PieceKind::Byte,
                        other => {
                            return Err(format!(
                                "pieces[{index}].type: expected 1 to 6, found {other}"
                            ));
                        }
                    }
                }
                _ => {}
            }
        }
        if score.is_nan() {
            return Err(format!("pieces[{index}].score is not a number"));
        }
        self.pieces.push(piece);
        self.scores.push(score);
        self.kinds.push(kind);
        Ok(())
    }

    fn parse_normalizer(&mut self, message: &[u8]) -> Result<(), String> {
        for field in Fields(message) {
            match field? {
                (2, Value::Bytes(map)) if !map.is_empty() => {
                    return Err("normalizer_spec.precompiled_charsmap: only the identity normaliser is supported, \
                         found a character map; use the tokenizer.json of this model instead"
                        .to_string());
                }
                (3, Value::Varint(value)) => self.add_dummy_prefix = value != 0,
                (4, Value::Varint(value)) => self.remove_extra_whitespaces = value != 0,
                (5, Value::Varint(0)) => {
                    return Err(
                        "normalizer_spec.escape_whitespaces = false is not supported".to_string(),
                    );
                }
                _ => {}
            }
        }
        Ok(())
    }
}

/// Negative numbers mean "none".
fn optional_id(value: u64) -> Option<u32> {
    u32::try_from(value).ok()
}

enum Value<'a> {
    Varint(u64),
    Fixed32(u32),
    Bytes(&'a [u8]),
    /// A 64-bit field; none is of use here.
    Fixed64,
}

/// The fields of one protocol-buffer message, in order.
struct Fields<'a>(&'a [u8]);

impl<'a> Fields<'a> {
    fn varint(&mut self) -> Result<u64, String> {
        let mut value = 0u64;
        for shift in (0..70).step_by(7) {
            let (&byte, rest) = self
                .0
                .split_first()
                .ok_or("truncated: a number ends early")?;
            self.0 = rest;
            if shift < 64 {
                value |= u64::from(byte & 0x7f) << shift;
            }
            if byte & 0x80 == 0 {
                return Ok(value);
            }
        }
        Err("damaged: a number is longer than ten bytes".to_string())
    }

    fn take(&mut self, length: u64) -> Result<&'a [u8], String> {
        let left = self.0.len();
        let length = usize::try_from(length)
            .ok()
            .filter(|&length| length <= left)
            .ok_or_else(|| {
                format!("truncated or damaged: a field needs {length} bytes, {left} are left")
            })?;
        let (head, rest) = self.0.split_at(length);
        self.0 = rest;
        Ok(head)
    }

    fn field(&mut self) -> Result<(u64, Value<'a>), String> {
        let tag = self.varint()?;
        let value = match tag & 7 {
            0 => Value::Varint(self.varint()?),
            1 => {
                self.take(8)?;
                Value::Fixed64
            }
            2 => {
                let length = self.varint()?;
                Value::Bytes(self.take(length)?)
            }
            5 => {
                let bytes = self.take(4)?;
                Value::Fixed32(
                    bytes
                        .iter()
                        .rev()
                        .fold(0, |bits, &byte| bits << 8 | u32::from(byte)),
                )
            }
            other => {
                return Err(format!(
                    "not a SentencePiece model: unknown wire type {other}"
                ));
            }
        };
        Ok((tag >> 3, value))
    }
}

impl<'a> Iterator for Fields<'a> {
    type Item = Result<(u64, Value<'a>), String>;

    fn next(&mut self) -> Option<Self::Item> {
        if self.0.is_empty() {
            return None;
        }
        let field = self.field();
        if field.is_err() {
            // Nothing after a damaged field can be trusted.
            self.0 = &[];
        }
        Some(field)
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    /// A field of wire type 2.
    fn message(number: u8, body: &[u8]) -> Vec<u8> {
        let mut bytes = vec![number << 3 | 2, body.len() as u8];
        bytes.extend_from_slice(body);
        bytes
    }

    fn tiny_model() -> Vec<u8> {
        let mut piece = message(1, "▁a".as_bytes());
        piece.push(2 << 3 | 5);
        piece.extend_from_slice(&(-1.5f32).to_le_bytes());
        let mut bytes = message(1, &piece);
        bytes.extend(message(2, &[3 << 3, 2]));
        bytes.extend(message(3, &[3 << 3, 0, 4 << 3, 0]));
        bytes
    }

    #[test]
    fn fields_are_read() {
        let model = SentencePieceModel::parse(&tiny_model()).unwrap();
        assert_eq!(model.pieces, ["▁a"]);
        assert_eq!(model.scores, [-1.5]);
        assert!(!model.add_dummy_prefix && !model.remove_extra_whitespaces);
        assert_eq!((model.unk, model.bos), (Some(0), None));
    }

    #[test]
    fn every_truncation_is_an_error_or_a_smaller_model() {
        let bytes = tiny_model();
        for length in 0..bytes.len() {
            if let Ok(model) = SentencePieceModel::parse(&bytes[..length]) {
                assert!(model.pieces.len() <= 1);
            }
        }
        assert!(
            SentencePieceModel::parse(&[])
                .unwrap_err()
                .contains("no pieces")
        );
        assert!(
            SentencePieceModel::parse(&[0x0a, 0xff, 0xff, 0xff, 0x7f])
                .unwrap_err()
                .contains("are left")
        );
        assert!(SentencePieceModel::parse(b"GGUF....").is_err());
    }
}
