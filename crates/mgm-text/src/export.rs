//! A tokeniser as the metadata of a GGUF file: what llama.cpp's own converter writes, and beside it the few facts that GGUF has no key for.
//!
//! The vocabulary is taken from the loaded tokeniser, so that the file holds what the model ran with, whichever files it came from. Where a
//! SentencePiece model lies beside a `tokenizer.json`, scores and types are taken from it, as the converter does; otherwise the rank of the
//! merge that makes a piece becomes its score, which orders the same joins in the same way.

use std::collections::HashMap;
use std::path::Path;

use serde::Deserialize;
use serde_json::Value;

use crate::gguf::{GgufTokenType, GgufVocab};
use crate::gguf_bpe;
use crate::merge::PieceKind;
use crate::pieces::{PieceTokenizer, StretchRule};
use crate::sentencepiece::SentencePieceModel;
use crate::tokenizer::Engine;
use crate::{TextError, Tokenizer};

/// Score of a token that was added to a vocabulary, as the converter writes it.
const ADDED_SCORE: f32 = -1000.0;
/// Score of a place in the table that no token has.
const UNUSED_SCORE: f32 = -10000.0;

/// A metadata value with its exact type in the file.
#[derive(Clone, Debug, PartialEq)]
pub enum GgufVocabValue {
    /// Text.
    String(String),
    /// Truth value.
    Bool(bool),
    /// 32-bit unsigned integer.
    U32(u32),
    /// Texts.
    Strings(Vec<String>),
    /// 32-bit floats.
    F32s(Vec<f32>),
    /// 32-bit signed integers.
    I32s(Vec<i32>),
    /// 32-bit unsigned integers.
    U32s(Vec<u32>),
}

impl GgufVocab {
    /// The vocabulary of `tokenizer`, which was read from `source` (a checkpoint directory or a tokeniser file), with exactly `rows` tokens:
    /// as many as the embedding has rows. Missing ones become unused `[PAD…]` entries; tokens beyond the embedding are left out.
    ///
    /// # Errors
    /// If the tokeniser works in a way that no GGUF vocabulary can say.
    pub fn from_tokenizer(
        tokenizer: &Tokenizer,
        source: &Path,
        rows: usize,
    ) -> Result<Self, TextError> {
        let mut vocab = match gguf_source(source) {
            Some(file) => Self::read(file)?,
            None => {
                let mut vocab = Self::empty(source);
                match &tokenizer.engine {
                    Engine::Pieces {
                        tokenizer, pieces, ..
                    } => vocab.fill_from_pieces(tokenizer, pieces),
                    Engine::Json(json) => {
                        let model = beside(source, "tokenizer.model")
                            .map(|path| SentencePieceModel::read(&path))
                            .transpose()?;
                        vocab.fill_from_json(json.inner(), model.as_ref())?;
                    }
                }
                vocab.bos = tokenizer.bos();
                vocab.eos = tokenizer.eos();
                vocab.unk = tokenizer.unk();
                vocab.pad = tokenizer.special.pad;
                vocab.add_bos = Some(tokenizer.adds_bos());
                vocab.chat_template = chat_template(source)?;
                vocab
            }
        };
        vocab.resize(rows);
        Ok(vocab)
    }

    fn empty(path: &Path) -> Self {
        Self {
            path: path.to_path_buf(),
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
        }
    }

    fn fill_from_pieces(&mut self, tokenizer: &PieceTokenizer, pieces: &[String]) {
        let (scores, kinds) = tokenizer.scores_and_kinds();
        self.model = "llama".into();
        self.pre = Some("default".into());
        self.tokens = pieces.to_vec();
        self.scores = scores.to_vec();
        self.token_types = kinds.iter().map(|&kind| token_type(kind)).collect();
        self.scores.resize(pieces.len(), UNUSED_SCORE);
        self.token_types.resize(pieces.len(), GgufTokenType::Unused);
        for token in tokenizer.added().iter() {
            self.add(token.id, token.special);
            if token.lstrip {
                self.lstrip.push(token.id);
            }
            if token.rstrip {
                self.rstrip.push(token.id);
            }
        }
        let (prefix, legacy) = match tokenizer.rule() {
            StretchRule::Legacy { dummy_prefix } => (dummy_prefix, true),
            StretchRule::Modern => (true, false),
        };
        self.add_space_prefix = Some(prefix);
        self.legacy = Some(legacy);
        if tokenizer.removes_extra_whitespaces() {
            self.remove_extra_whitespaces = Some(true);
        }
    }

    /// Marks a token as added: cut out of the text before the vocabulary's own algorithm runs.
    fn add(&mut self, id: u32, special: bool) {
        let at = id as usize;
        self.added.get_or_insert_default().push(id);
        let Some(kind) = self.token_types.get_mut(at) else {
            return;
        };
        let wanted = match (special, *kind) {
            (true, GgufTokenType::Unknown) => GgufTokenType::Unknown,
            (true, _) => GgufTokenType::Control,
            (false, _) => GgufTokenType::UserDefined,
        };
        if *kind != wanted {
            *kind = wanted;
            if let Some(score) = self.scores.get_mut(at) {
                *score = ADDED_SCORE;
            }
        }
    }

    fn fill_from_json(
        &mut self,
        tokenizer: &tokenizers::Tokenizer,
        pieces: Option<&SentencePieceModel>,
    ) -> Result<(), TextError> {
        let fail = |message: String| TextError::invalid(&self.path, message);
        let value = |part: &str, value: Result<Value, serde_json::Error>| {
            value.map_err(|error| fail(format!("{part}: {error}")))
        };
        let model = value("model", serde_json::to_value(tokenizer.get_model()))?;
        let model: Bpe = serde_json::from_value(model).map_err(|error| {
            fail(format!(
                "model: only BPE vocabularies can be written to a GGUF file: {error}"
            ))
        })?;
        let steps = value(
            "pre_tokenizer",
            serde_json::to_value(tokenizer.get_pre_tokenizer()),
        )?;
        let normalizer = value(
            "normalizer",
            serde_json::to_value(tokenizer.get_normalizer()),
        )?;

        let size = tokenizer
            .get_vocab(true)
            .values()
            .max()
            .map_or(0, |&largest| largest as usize + 1);
        self.tokens = vec![String::new(); size];
        self.token_types = vec![GgufTokenType::Unused; size];
        for (token, &id) in &model.vocab {
            self.tokens[id as usize].clone_from(token);
            self.token_types[id as usize] = GgufTokenType::Normal;
        }
        let byte_level = gguf_bpe::splits_of(&steps);
        match byte_level {
            Some(splits) => {
                let compose = normalizer["type"] == "NFC";
                if !(compose || normalizer.is_null()) {
                    return Err(fail(format!(
                        "normalizer: GGUF has no name for {normalizer} before byte-level BPE"
                    )));
                }
                let name = gguf_bpe::name_of(&splits, model.ignore_merges, compose);
                let name = name.ok_or_else(|| {
                    fail(format!(
                        "pre_tokenizer: GGUF has no name for the patterns {splits:?}"
                    ))
                })?;
                self.model = "gpt2".into();
                self.pre = Some(name.into());
                self.merges = model
                    .merges
                    .iter()
                    .map(|(left, right)| format!("{left} {right}"))
                    .collect();
            }
            None => {
                let rule = stretch_rule(&normalizer, &steps).ok_or_else(|| {
                    fail(format!(
                        "normalizer and pre_tokenizer: expected byte-level BPE or a SentencePiece rule, found {normalizer} and {steps}"
                    ))
                })?;
                self.score_pieces(&model, pieces);
                self.model = "llama".into();
                self.pre = Some("default".into());
                self.add_space_prefix = Some(
                    rule != StretchRule::Legacy {
                        dummy_prefix: false,
                    },
                );
                self.legacy = Some(rule != StretchRule::Modern);
            }
        }

        let mut added: Vec<(u32, tokenizers::AddedToken)> = tokenizer
            .get_added_vocabulary()
            .get_added_tokens_decoder()
            .iter()
            .map(|(&id, token)| (id, token.clone()))
            .collect();
        added.sort_by_key(|(id, _)| *id);
        for (id, token) in added {
            if let Some(slot) = self.tokens.get_mut(id as usize)
                && self.token_types.get(id as usize) != Some(&GgufTokenType::Byte)
            {
                // As the converter: text is matched before its spaces become markers.
                *slot = match (self.model.as_str(), token.special) {
                    ("llama", false) => token.content.replace('▁', " "),
                    _ => token.content.clone(),
                };
            }
            self.add(id, token.special);
            if token.lstrip {
                self.lstrip.push(id);
            }
            if token.rstrip {
                self.rstrip.push(id);
            }
        }
        Ok(())
    }

    /// Scores and types of a SentencePiece vocabulary.
    fn score_pieces(&mut self, model: &Bpe, pieces: Option<&SentencePieceModel>) {
        let known = pieces.filter(|pieces| {
            pieces.pieces.len() <= self.tokens.len()
                && pieces
                    .pieces
                    .iter()
                    .all(|piece| model.vocab.contains_key(piece))
        });
        if let Some(pieces) = known {
            self.scores = pieces.scores.clone();
            self.scores.resize(self.tokens.len(), UNUSED_SCORE);
            for (kind, &piece_kind) in self.token_types.iter_mut().zip(&pieces.kinds) {
                *kind = token_type(piece_kind);
            }
            return;
        }
        let mut ranks: HashMap<String, usize> = HashMap::with_capacity(model.merges.len());
        for (rank, (left, right)) in model.merges.iter().enumerate() {
            ranks.entry(format!("{left}{right}")).or_insert(rank);
        }
        let last = model.merges.len();
        self.scores = self
            .tokens
            .iter()
            .map(|token| -(ranks.get(token).copied().unwrap_or(last) as f32))
            .collect();
        for (token, kind) in self.tokens.iter().zip(&mut self.token_types) {
            if model.unk_token.as_ref() == Some(token) {
                *kind = GgufTokenType::Unknown;
            }
        }
        if model.byte_fallback {
            self.mark_bytes(&model.vocab);
        }
    }

    /// Types of the 256 byte pieces. Gemma's `tokenizer.json` spells some as the character they are (a tabulator in the place of
    /// `<0x09>`); they get the name that its SentencePiece model has for them.
    fn mark_bytes(&mut self, vocab: &HashMap<String, u32>) {
        let name = |byte: u8| format!("<0x{byte:02X}>");
        let first = vocab.get(&name(0)).copied();
        for byte in 0..=u8::MAX {
            let id = match (vocab.get(&name(byte)), first) {
                (Some(&id), _) => id,
                (None, Some(first)) if byte.is_ascii() => {
                    let id = first + u32::from(byte);
                    let spelled = vocab.get(&char::from(byte).to_string());
                    if spelled != Some(&id) {
                        continue;
                    }
                    self.tokens[id as usize] = name(byte);
                    id
                }
                _ => continue,
            };
            self.token_types[id as usize] = GgufTokenType::Byte;
        }
    }

    fn resize(&mut self, rows: usize) {
        let old = self.tokens.len();
        self.tokens.truncate(rows);
        for id in old..rows {
            self.tokens.push(format!("[PAD{id}]"));
        }
        // Readers look tokens up by name; an empty or repeated one would hide another.
        for (id, token) in self.tokens.iter_mut().enumerate() {
            if token.is_empty() {
                *token = format!("[PAD{id}]");
            }
        }
        if !self.scores.is_empty() {
            self.scores.resize(rows, UNUSED_SCORE);
        }
        self.token_types.truncate(old);
        if self.token_types.is_empty() {
            self.token_types = vec![GgufTokenType::Normal; old.min(rows)];
        }
        self.token_types.resize(rows, GgufTokenType::Unused);
        let within = |id: &u32| (*id as usize) < rows;
        for id in [&mut self.bos, &mut self.eos, &mut self.unk, &mut self.pad] {
            *id = id.filter(within);
        }
        for ids in [&mut self.lstrip, &mut self.rstrip]
            .into_iter()
            .chain(&mut self.added)
        {
            ids.retain(within);
            ids.sort_unstable();
        }
        if self.bos.is_none() {
            self.add_bos = Some(false);
        }
    }

    /// Keys and values for the file, in the order llama.cpp's converter writes them, our own last.
    pub fn entries(&self) -> Vec<(String, GgufVocabValue)> {
        use GgufVocabValue::{Bool, F32s, I32s, String as Text, Strings, U32, U32s};
        let mut entries = Vec::new();
        let mut put = |key: &str, value: Option<GgufVocabValue>| {
            entries.extend(value.map(|value| (key.to_string(), value)));
        };
        put("tokenizer.ggml.model", Some(Text(self.model.clone())));
        put("tokenizer.ggml.pre", self.pre.clone().map(Text));
        put("tokenizer.ggml.tokens", Some(Strings(self.tokens.clone())));
        put(
            "tokenizer.ggml.scores",
            (!self.scores.is_empty()).then(|| F32s(self.scores.clone())),
        );
        put(
            "tokenizer.ggml.token_type",
            Some(I32s(
                self.token_types.iter().map(|&kind| number(kind)).collect(),
            )),
        );
        put(
            "tokenizer.ggml.merges",
            (!self.merges.is_empty()).then(|| Strings(self.merges.clone())),
        );
        put("tokenizer.ggml.bos_token_id", self.bos.map(U32));
        put("tokenizer.ggml.eos_token_id", self.eos.map(U32));
        put("tokenizer.ggml.unknown_token_id", self.unk.map(U32));
        put("tokenizer.ggml.padding_token_id", self.pad.map(U32));
        put("tokenizer.ggml.add_bos_token", self.add_bos.map(Bool));
        put("tokenizer.ggml.add_eos_token", Some(Bool(false)));
        put(
            "tokenizer.ggml.add_space_prefix",
            self.add_space_prefix.map(Bool),
        );
        put(
            "tokenizer.ggml.remove_extra_whitespaces",
            self.remove_extra_whitespaces.map(Bool),
        );
        put(
            "tokenizer.chat_template",
            self.chat_template.clone().map(Text),
        );
        put("mini_gemini.tokenizer.legacy", self.legacy.map(Bool));
        put(
            "mini_gemini.tokenizer.added",
            self.added
                .as_ref()
                .filter(|ids| !ids.is_empty())
                .map(|ids| U32s(ids.clone())),
        );
        let list = |ids: &Vec<u32>| (!ids.is_empty()).then(|| U32s(ids.clone()));
        put("mini_gemini.tokenizer.lstrip", list(&self.lstrip));
        put("mini_gemini.tokenizer.rstrip", list(&self.rstrip));
        entries
    }
}

/// The parts of a BPE model that a GGUF file holds.
#[derive(Deserialize)]
struct Bpe {
    #[serde(rename = "type")]
    _kind: BpeTag,
    vocab: HashMap<String, u32>,
    merges: Vec<(String, String)>,
    unk_token: Option<String>,
    #[serde(default)]
    byte_fallback: bool,
    #[serde(default)]
    ignore_merges: bool,
}

#[derive(Deserialize)]
enum BpeTag {
    #[serde(rename = "BPE")]
    Bpe,
}

/// How the SentencePiece-like tokenisers of `tokenizer.json` files put space markers.
fn stretch_rule(normalizer: &Value, steps: &Value) -> Option<StretchRule> {
    let parts = |value: &Value, list: &str| match value[list].as_array() {
        Some(parts) if value["type"] == "Sequence" => parts.clone(),
        _ if value.is_null() => Vec::new(),
        _ => vec![value.clone()],
    };
    let mut dummy_prefix = false;
    let mut marks_spaces = false;
    for part in parts(normalizer, "normalizers") {
        match part["type"].as_str()? {
            "Prepend" if part["prepend"] == "▁" => dummy_prefix = true,
            "Replace" if part["pattern"]["String"] == " " && part["content"] == "▁" => {
                marks_spaces = true;
            }
            _ => return None,
        }
    }
    let mut rule = StretchRule::Legacy { dummy_prefix };
    for step in parts(steps, "pretokenizers") {
        match step["type"].as_str()? {
            "Metaspace" if step["replacement"] == "▁" && step["split"] != true => {
                marks_spaces = true;
                rule = match step["prepend_scheme"].as_str() {
                    Some("first") => StretchRule::Modern,
                    Some("never") => StretchRule::Legacy {
                        dummy_prefix: false,
                    },
                    _ => StretchRule::Legacy { dummy_prefix: true },
                };
            }
            // Finds nothing once spaces are markers.
            "Split" if step["pattern"]["String"] == " " && marks_spaces => {}
            _ => return None,
        }
    }
    marks_spaces.then_some(rule)
}

/// The GGUF file a tokeniser came from, if it came from one.
fn gguf_source(source: &Path) -> Option<&Path> {
    source
        .extension()
        .is_some_and(|extension| extension == "gguf")
        .then_some(source)
}

/// A file of the directory that `source` is or lies in.
fn beside(source: &Path, name: &str) -> Option<std::path::PathBuf> {
    let directory = if source.is_dir() {
        source
    } else {
        source.parent()?
    };
    Some(directory.join(name)).filter(|path| path.is_file())
}

/// The Jinja template of a checkpoint directory, if it has one.
fn chat_template(source: &Path) -> Result<Option<String>, TextError> {
    let read = |path: &Path| std::fs::read(path).map_err(|error| TextError::io(path, error));
    if let Some(path) = beside(source, "chat_template.jinja") {
        let text = String::from_utf8(read(&path)?)
            .map_err(|error| TextError::invalid(&path, error.to_string()))?;
        return Ok(Some(text));
    }
    let Some(path) = beside(source, "tokenizer_config.json") else {
        return Ok(None);
    };
    let config: Value = serde_json::from_slice(&read(&path)?)
        .map_err(|error| TextError::invalid(&path, error.to_string()))?;
    let template = match &config["chat_template"] {
        Value::Array(named) => named
            .iter()
            .find(|entry| entry["name"] == "default")
            .map(|entry| &entry["template"]),
        other => Some(other),
    };
    Ok(template.and_then(Value::as_str).map(str::to_string))
}

fn token_type(kind: PieceKind) -> GgufTokenType {
    match kind {
        PieceKind::Normal => GgufTokenType::Normal,
        PieceKind::Unknown => GgufTokenType::Unknown,
        PieceKind::Control => GgufTokenType::Control,
        PieceKind::UserDefined => GgufTokenType::UserDefined,
        PieceKind::Unused => GgufTokenType::Unused,
        PieceKind::Byte => GgufTokenType::Byte,
    }
}

/// The number a type has in the file.
fn number(kind: GgufTokenType) -> i32 {
    match kind {
        GgufTokenType::Normal => 1,
        GgufTokenType::Unknown => 2,
        GgufTokenType::Control => 3,
        GgufTokenType::UserDefined => 4,
        GgufTokenType::Unused => 5,
        GgufTokenType::Byte => 6,
    }
}
