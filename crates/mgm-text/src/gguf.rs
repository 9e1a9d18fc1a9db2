//! The vocabulary part of a GGUF file's metadata.
//!
//! Only the header is read; tensors are not touched. Every length that the file states is checked against the bytes
//! that are left in the file before anything is allocated or skipped, so a hostile file can cost no more memory than a few
//! times its own size.

use std::fs::File;
use std::io::{BufReader, Read};
use std::path::{Path, PathBuf};

use crate::TextError;

/// What a vocabulary entry is (`tokenizer.ggml.token_type`, the numbers of SentencePiece).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum GgufTokenType {
    /// Ordinary piece.
    Normal,
    /// Stands for anything that is not in the vocabulary.
    Unknown,
    /// Special token such as BOS; never made from user text unless special strings are parsed.
    Control,
    /// Added by the model's authors, always found in text as a whole.
    UserDefined,
    /// Not used.
    Unused,
    /// One raw byte, spelt `<0xNN>`.
    Byte,
}

/// Tokeniser data embedded in a GGUF file.
#[derive(Clone, Debug)]
pub struct GgufVocab {
    /// The file it came from, for error messages.
    pub path: PathBuf,
    /// `general.architecture`, for example `llama`; empty if missing.
    pub architecture: String,
    /// `tokenizer.ggml.model`: `llama` (SentencePiece merging) or `gpt2` (byte-level BPE).
    pub model: String,
    /// `tokenizer.ggml.pre`: name of the pre-tokeniser of a byte-level BPE.
    pub pre: Option<String>,
    /// All tokens, index = id.
    pub tokens: Vec<String>,
    /// One score a token (`llama` only; otherwise may be empty).
    pub scores: Vec<f32>,
    /// One type a token.
    pub token_types: Vec<GgufTokenType>,
    /// Merges in order of rank, two tokens separated by one space (`gpt2` only).
    pub merges: Vec<String>,
    /// Begin-of-text id.
    pub bos: Option<u32>,
    /// End-of-text id.
    pub eos: Option<u32>,
    /// Unknown id.
    pub unk: Option<u32>,
    /// Padding id.
    pub pad: Option<u32>,
    /// Whether BOS is put in front of a text.
    pub add_bos: Option<bool>,
    /// Whether a space is put in front of a text.
    pub add_space_prefix: Option<bool>,
    /// Whether runs of spaces become one.
    pub remove_extra_whitespaces: Option<bool>,
    /// Our own key `mini_gemini.tokenizer.legacy`: the behaviour of a slow SentencePiece tokeniser after special tokens.
    pub legacy: Option<bool>,
    /// Our own key `mini_gemini.tokenizer.added`: exactly the tokens that are cut out of a text before it is taken apart. Without it
    /// the token types decide, as in llama.cpp.
    pub added: Option<Vec<u32>>,
    /// Our own key `mini_gemini.tokenizer.lstrip`: added tokens that eat white space on their left.
    pub lstrip: Vec<u32>,
    /// Our own key `mini_gemini.tokenizer.rstrip`: added tokens that eat white space on their right.
    pub rstrip: Vec<u32>,
    /// The Jinja chat template, not interpreted here.
    pub chat_template: Option<String>,
}

impl GgufVocab {
    /// Reads the vocabulary of a GGUF file (versions 2 and 3, little endian).
    ///
    /// # Errors
    /// [`TextError::Io`] if the file cannot be read, [`TextError::Invalid`] naming the key otherwise.
    pub fn read(path: impl AsRef<Path>) -> Result<Self, TextError> {
        let path = path.as_ref();
        let file = File::open(path).map_err(|source| TextError::io(path, source))?;
        let size = file
            .metadata()
            .map_err(|source| TextError::io(path, source))?
            .len();
        let mut reader = Reader {
            input: BufReader::new(file),
            remaining: size,
            path,
            key: "header".to_string(),
        };
        let mut vocab = reader.read_vocab()?;
        vocab.check()?;
        for ids in [&mut vocab.lstrip, &mut vocab.rstrip]
            .into_iter()
            .chain(&mut vocab.added)
        {
            ids.sort_unstable();
        }
        Ok(vocab)
    }

    fn check(&self) -> Result<(), TextError> {
        let count = self.tokens.len();
        let fail = |key: &str, message: String| {
            Err(TextError::invalid(&self.path, format!("{key}: {message}")))
        };
        if self.model.is_empty() {
            return fail(
                "tokenizer.ggml.model",
                "the key is missing; this GGUF file has no tokeniser".to_string(),
            );
        }
        if count == 0 {
            return fail(
                "tokenizer.ggml.tokens",
                "expected at least one token, found none".to_string(),
            );
        }
        for (key, found) in [
            ("tokenizer.ggml.scores", self.scores.len()),
            ("tokenizer.ggml.token_type", self.token_types.len()),
        ] {
            if found != 0 && found != count {
                return fail(
                    key,
                    format!("expected {count} entries, one a token, found {found}"),
                );
            }
        }
        for (key, id) in [
            ("bos", self.bos),
            ("eos", self.eos),
            ("unknown", self.unk),
            ("padding", self.pad),
        ] {
            if let Some(id) = id.filter(|&id| id as usize >= count) {
                return fail(
                    &format!("tokenizer.ggml.{key}_token_id"),
                    format!("expected an id below {count}, found {id}"),
                );
            }
        }
        Ok(())
    }
}

struct Reader<'a> {
    input: BufReader<File>,
    /// Bytes of the file not read yet.
    remaining: u64,
    path: &'a Path,
    /// The metadata key being read, for error messages.
    key: String,
}

// GGUF metadata value types.
const UINT32: u32 = 4;
const INT32: u32 = 5;
const FLOAT32: u32 = 6;
const BOOL: u32 = 7;
const STRING: u32 = 8;
const ARRAY: u32 = 9;

/// Bytes of a value of a scalar type.
fn scalar_size(value_type: u32) -> Option<u64> {
    match value_type {
        0 | 1 | BOOL => Some(1),
        2 | 3 => Some(2),
        UINT32 | INT32 | FLOAT32 => Some(4),
        10..=12 => Some(8),
        _ => None,
    }
}

impl Reader<'_> {
    fn fail<T>(&self, message: impl std::fmt::Display) -> Result<T, TextError> {
        Err(TextError::invalid(
            self.path,
            format!("{}: {message}", self.key),
        ))
    }

    fn take(&mut self, length: u64, what: &str) -> Result<(), TextError> {
        match self.remaining.checked_sub(length) {
            Some(rest) => {
                self.remaining = rest;
                Ok(())
            }
            None => self.fail(format!(
                "{what} needs {length} bytes but only {} are left in the file (truncated or damaged?)",
                self.remaining
            )),
        }
    }

    fn bytes<const N: usize>(&mut self, what: &str) -> Result<[u8; N], TextError> {
        self.take(N as u64, what)?;
        let mut buffer = [0; N];
        self.input
            .read_exact(&mut buffer)
            .map_err(|source| TextError::io(self.path, source))?;
        Ok(buffer)
    }

    fn u32(&mut self, what: &str) -> Result<u32, TextError> {
        self.bytes(what).map(u32::from_le_bytes)
    }

    fn u64(&mut self, what: &str) -> Result<u64, TextError> {
        self.bytes(what).map(u64::from_le_bytes)
    }

    fn skip(&mut self, length: u64, what: &str) -> Result<(), TextError> {
        self.take(length, what)?;
        let length = i64::try_from(length).or_else(|_| self.fail(format!("{what} is too long")))?;
        self.input
            .seek_relative(length)
            .map_err(|source| TextError::io(self.path, source))
    }

    fn string(&mut self) -> Result<String, TextError> {
        let length = self.u64("a string length")?;
        self.take(length, "a string")?;
        // `length` is at most the file's size here.
        let mut buffer = vec![0; length as usize];
        self.input
            .read_exact(&mut buffer)
            .map_err(|source| TextError::io(self.path, source))?;
        match String::from_utf8(buffer) {
            Ok(text) => Ok(text),
            // Some converters wrote byte tokens raw; such a token can never match text.
            Err(error) => Ok(String::from_utf8_lossy(error.as_bytes()).into_owned()),
        }
    }

    fn read_vocab(&mut self) -> Result<GgufVocab, TextError> {
        let magic: [u8; 4] = self.bytes("the magic number")?;
        if &magic != b"GGUF" {
            return self.fail(format!(
                "not a GGUF file: expected the magic \"GGUF\", found bytes {magic:02x?}"
            ));
        }
        let version = self.u32("the version")?;
        if !(2..=3).contains(&version) {
            return self.fail(format!("GGUF version 2 or 3 expected, found {version}"));
        }
        let _tensors = self.u64("the tensor count")?;
        let keys = self.u64("the metadata count")?;
        // A key needs at least its length, its type and one byte of value.
        if keys > self.remaining / 13 {
            return self.fail(format!(
                "{keys} metadata keys cannot fit in the {} bytes left",
                self.remaining
            ));
        }
        let mut vocab = GgufVocab {
            path: self.path.to_path_buf(),
            architecture: String::new(),
            model: String::new(),
            pre: None,
            tokens: Vec::new(),
            scores: Vec::new(),
            token_types: Vec::new(),
            merges: Vec::new(),
            bos: None,
            eos: None,
            unk: None,
            pad: None,
            add_bos: None,
            add_space_prefix: None,
            remove_extra_whitespaces: None,
            legacy: None,
            added: None,
            lstrip: Vec::new(),
            rstrip: Vec::new(),
            chat_template: None,
        };
        for number in 0..keys {
            self.key = format!("metadata key {number}");
            let key = self.string()?;
            if key.contains(char::is_control) {
                return self.fail(format!("key {key:?}: expected no control characters"));
            }
            self.key = key;
            let value_type = self.u32("a value type")?;
            self.read_value(&mut vocab, value_type)?;
        }
        Ok(vocab)
    }

    fn read_value(&mut self, vocab: &mut GgufVocab, value_type: u32) -> Result<(), TextError> {
        match self.key.as_str() {
            "general.architecture" => vocab.architecture = self.expect_string(value_type)?,
            "tokenizer.ggml.model" => vocab.model = self.expect_string(value_type)?,
            "tokenizer.ggml.pre" => vocab.pre = Some(self.expect_string(value_type)?),
            "tokenizer.chat_template" => {
                vocab.chat_template = Some(self.expect_string(value_type)?)
            }
            "tokenizer.ggml.tokens" => vocab.tokens = self.string_array(value_type)?,
            "tokenizer.ggml.merges" => vocab.merges = self.string_array(value_type)?,
            "tokenizer.ggml.scores" => {
                let words = self.word_array(value_type, FLOAT32)?;
                vocab.scores = words.into_iter().map(f32::from_bits).collect();
                if let Some(index) = vocab.scores.iter().position(|score| score.is_nan()) {
                    return self.fail(format!("entry {index} is not a number"));
                }
            }
            "tokenizer.ggml.token_type" => {
                let words = self.word_array(value_type, INT32)?;
                vocab.token_types = words
                    .into_iter()
                    .map(|word| match word {
                        0 | 1 => Ok(GgufTokenType::Normal),
                        2 => Ok(GgufTokenType::Unknown),
                        3 => Ok(GgufTokenType::Control),
                        4 => Ok(GgufTokenType::UserDefined),
                        5 => Ok(GgufTokenType::Unused),
                        6 => Ok(GgufTokenType::Byte),
                        other => self.fail(format!("token types are 1 to 6, found {other}")),
                    })
                    .collect::<Result<_, _>>()?;
            }
            "tokenizer.ggml.bos_token_id" => vocab.bos = Some(self.expect_id(value_type)?),
            "tokenizer.ggml.eos_token_id" => vocab.eos = Some(self.expect_id(value_type)?),
            "tokenizer.ggml.unknown_token_id" => vocab.unk = Some(self.expect_id(value_type)?),
            "tokenizer.ggml.padding_token_id" => vocab.pad = Some(self.expect_id(value_type)?),
            "tokenizer.ggml.add_bos_token" => vocab.add_bos = Some(self.expect_bool(value_type)?),
            "tokenizer.ggml.add_space_prefix" => {
                vocab.add_space_prefix = Some(self.expect_bool(value_type)?)
            }
            "tokenizer.ggml.remove_extra_whitespaces" => {
                vocab.remove_extra_whitespaces = Some(self.expect_bool(value_type)?)
            }
            "mini_gemini.tokenizer.added" => {
                vocab.added = Some(self.word_array(value_type, UINT32)?)
            }
            "mini_gemini.tokenizer.lstrip" => vocab.lstrip = self.word_array(value_type, UINT32)?,
            "mini_gemini.tokenizer.rstrip" => vocab.rstrip = self.word_array(value_type, UINT32)?,
            "mini_gemini.tokenizer.legacy" => vocab.legacy = Some(self.expect_bool(value_type)?),
            _ => self.skip_value(value_type, 0)?,
        }
        Ok(())
    }

    fn expect_type(&self, found: u32, expected: u32, name: &str) -> Result<(), TextError> {
        if found == expected {
            Ok(())
        } else {
            self.fail(format!("expected {name}, found value type {found}"))
        }
    }

    fn expect_string(&mut self, value_type: u32) -> Result<String, TextError> {
        self.expect_type(value_type, STRING, "a string")?;
        self.string()
    }

    fn expect_id(&mut self, value_type: u32) -> Result<u32, TextError> {
        if value_type != UINT32 && value_type != INT32 {
            return self.fail(format!(
                "expected a 32-bit token id, found value type {value_type}"
            ));
        }
        self.u32("a token id")
    }

    fn expect_bool(&mut self, value_type: u32) -> Result<bool, TextError> {
        self.expect_type(value_type, BOOL, "a boolean")?;
        let [byte] = self.bytes("a boolean")?;
        Ok(byte != 0)
    }

    /// Reads an array's element type and length; the length is checked against the bytes left.
    fn array_header(&mut self, value_type: u32) -> Result<(u32, u64), TextError> {
        self.expect_type(value_type, ARRAY, "an array")?;
        let element = self.u32("an array element type")?;
        let count = self.u64("an array length")?;
        let smallest = match element {
            STRING => 8,
            ARRAY => 12,
            other => match scalar_size(other) {
                Some(size) => size,
                None => return self.fail(format!("unknown array element type {other}")),
            },
        };
        if count > self.remaining / smallest {
            return self.fail(format!(
                "an array of {count} entries cannot fit in the {} bytes left",
                self.remaining
            ));
        }
        Ok((element, count))
    }

    fn string_array(&mut self, value_type: u32) -> Result<Vec<String>, TextError> {
        let (element, count) = self.array_header(value_type)?;
        self.expect_type(element, STRING, "an array of strings")?;
        // Grown as read: the count alone would allow three times the file's size at once.
        let mut strings = Vec::with_capacity(count.min(1 << 16) as usize);
        for _ in 0..count {
            strings.push(self.string()?);
        }
        Ok(strings)
    }

    fn word_array(&mut self, value_type: u32, expected: u32) -> Result<Vec<u32>, TextError> {
        let (element, count) = self.array_header(value_type)?;
        self.expect_type(
            element,
            expected,
            match expected {
                FLOAT32 => "an array of f32",
                UINT32 => "an array of u32",
                _ => "an array of i32",
            },
        )?;
        (0..count).map(|_| self.u32("an array entry")).collect()
    }

    fn skip_value(&mut self, value_type: u32, depth: u32) -> Result<(), TextError> {
        match value_type {
            STRING => {
                let length = self.u64("a string length")?;
                self.skip(length, "a string")
            }
            ARRAY if depth >= 4 => self.fail("arrays nested more than four deep"),
            ARRAY => {
                let (element, count) = self.array_header(ARRAY)?;
                match scalar_size(element) {
                    // Cannot overflow: the count was checked against the bytes left.
                    Some(size) => self.skip(count * size, "an array"),
                    None => (0..count).try_for_each(|_| self.skip_value(element, depth + 1)),
                }
            }
            other => match scalar_size(other) {
                Some(size) => self.skip(size, "a value"),
                None => self.fail(format!("unknown value type {other}")),
            },
        }
    }
}
