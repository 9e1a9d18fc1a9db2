//! Tokenisers in the `tokenizer.json` format, run by the `tokenizers` crate.

use std::path::Path;

use serde_json::Value;
use tokenizers::normalizer::Range;
use tokenizers::{
    Model, NormalizedString, Normalizer, OffsetType, PreTokenizedString, PreTokenizer, Token,
};

use crate::TextError;
use crate::added::{AddedToken, AddedTokens};
use crate::detokenize::{Detokenizer, Spelling};
use crate::passage::Passage;

/// Largest id accepted; ids are used as table indices, so a hostile file must not choose them freely.
const MAX_ID: u32 = 1 << 24;

/// A tokeniser run by the `tokenizers` crate. Added tokens are cut out here and not by the crate, which can leave control
/// strings as text only everywhere or nowhere.
#[derive(Debug)]
pub(crate) struct JsonTokenizer {
    inner: tokenizers::Tokenizer,
    /// Added tokens that are looked for in the text as it is.
    raw: AddedTokens,
    /// Those looked for after normalisation, spelt as it leaves them.
    normalized: AddedTokens,
}

/// The parts of a file that the `tokenizers` crate does not read carefully.
#[derive(serde::Deserialize)]
struct Steps {
    #[serde(default)]
    normalizer: Value,
    /// The crate panics where the JSON of a decoder is malformed; reading it as a value finds that first.
    #[serde(default, rename = "decoder")]
    _decoder: Value,
}

/// Refuses what the crate would panic at.
fn check_steps(bytes: &[u8]) -> Result<(), String> {
    let steps: Steps = serde_json::from_slice(bytes)
        .map_err(|error| format!("not a usable tokenizer.json: {error}"))?;
    if holds_charsmap(&steps.normalizer) {
        // Its table of characters is trusted blindly. No family of Mini-Gemini has one.
        return Err("the normalizer Precompiled is not supported".to_string());
    }
    Ok(())
}

/// Whether a normalizer is, or holds, a SentencePiece table of characters.
fn holds_charsmap(normalizer: &Value) -> bool {
    match normalizer {
        Value::Array(steps) => steps.iter().any(holds_charsmap),
        Value::Object(fields) => {
            fields.get("type").and_then(Value::as_str) == Some("Precompiled")
                || fields.contains_key("precompiled_charsmap")
                || fields.values().any(holds_charsmap)
        }
        _ => false,
    }
}

impl JsonTokenizer {
    /// `path` is for error messages.
    pub(crate) fn new(mut inner: tokenizers::Tokenizer, path: &Path) -> Result<Self, TextError> {
        // Truncation and padding belong to a data loader; a prompt must never be cut in silence.
        inner.with_padding(None);
        // Only a maximum that is too small is ever refused, and there is none here.
        let _ = inner.with_truncation(None);
        let (mut raw, mut normalized) = (Vec::new(), Vec::new());
        let tokens = inner.get_added_vocabulary().get_added_tokens_decoder();
        for (&id, token) in tokens {
            let mut added = AddedToken {
                lstrip: token.lstrip,
                rstrip: token.rstrip,
                single_word: token.single_word,
                ..AddedToken::new(token.content.clone(), id, token.special)
            };
            if !token.normalized {
                raw.push(added);
                continue;
            }
            if let Some(normalizer) = inner.get_normalizer() {
                let mut content = NormalizedString::from(token.content.as_str());
                normalizer.normalize(&mut content).map_err(|error| {
                    TextError::invalid(path, format!("added_tokens: {:?}: {error}", token.content))
                })?;
                added.content = content.get().to_string();
            }
            normalized.push(added);
        }
        for tokens in [&mut raw, &mut normalized] {
            tokens.sort_by_key(|token| token.id);
        }
        Ok(Self {
            raw: AddedTokens::new(raw),
            normalized: AddedTokens::new(normalized),
            inner,
        })
    }

    /// The tokeniser itself.
    pub(crate) fn inner(&self) -> &tokenizers::Tokenizer {
        &self.inner
    }

    pub(crate) fn read(path: &Path) -> Result<tokenizers::Tokenizer, TextError> {
        let bytes = std::fs::read(path).map_err(|source| TextError::io(path, source))?;
        check_steps(&bytes).map_err(|message| TextError::invalid(path, message))?;
        tokenizers::Tokenizer::from_bytes(bytes).map_err(|error| {
            TextError::invalid(path, format!("not a usable tokenizer.json: {error}"))
        })
    }

    /// Encodes; `post_process` adds what the file's own post-processor adds (BOS).
    pub(crate) fn encode(
        &self,
        passage: &Passage<'_>,
        post_process: bool,
    ) -> Result<Vec<u32>, TextError> {
        self.run(passage, post_process)
            .map_err(|error| TextError::Encode(error.to_string()))
    }

    /// The crate's own steps, with the cutting in its place.
    fn run(&self, passage: &Passage<'_>, post_process: bool) -> tokenizers::Result<Vec<u32>> {
        let mut text = PreTokenizedString::from(passage.text());
        text.split(|_, part| cut(&self.raw, part, passage))?;
        text.split(|_, mut part| {
            if let Some(normalizer) = self.inner.get_normalizer() {
                normalizer.normalize(&mut part)?;
            }
            cut(&self.normalized, part, passage)
        })?;
        if let Some(pre_tokenizer) = self.inner.get_pre_tokenizer() {
            pre_tokenizer.pre_tokenize(&mut text)?;
        }
        self.inner
            .get_model()
            .tokenize_in_pretokenized(&mut text, None)?;
        let encoding = text.into_encoding(None, 0, OffsetType::None)?;
        let encoding = self.inner.post_process(encoding, None, post_process)?;
        Ok(encoding.get_ids().to_vec())
    }

    pub(crate) fn token_to_id(&self, token: &str) -> Option<u32> {
        self.inner.token_to_id(token)
    }

    pub(crate) fn id_to_token(&self, id: u32) -> Option<String> {
        self.inner.id_to_token(id)
    }

    /// Builds the table of texts; `path` is for error messages.
    pub(crate) fn detokenizer(&self, path: &Path) -> Result<Detokenizer, TextError> {
        let fail = |message: String| TextError::invalid(path, message);
        let decoder = match self.inner.get_decoder() {
            Some(decoder) => {
                serde_json::to_value(decoder).map_err(|error| fail(format!("decoder: {error}")))?
            }
            None => Value::Null,
        };
        let (spelling, strip_first_space) = classify(&decoder).map_err(fail)?;

        let added = self.inner.get_added_vocabulary().get_added_tokens_decoder();
        let vocab = self.inner.get_vocab(true);
        let largest = vocab
            .values()
            .copied()
            .max()
            .ok_or_else(|| fail("model.vocab is empty".to_string()))?;
        if largest > MAX_ID {
            return Err(fail(format!(
                "model.vocab: ids up to {MAX_ID} are supported, found {largest}"
            )));
        }
        let mut tokens: Vec<&str> = vec![""; largest as usize + 1];
        for (token, &id) in &vocab {
            tokens[id as usize] = token;
        }
        let mut detokenizer = Detokenizer::new(strip_first_space);
        // The SentencePiece steps act on added tokens too (Gemma's runs of spaces are such); GPT-2's bytes do not.
        let added_spelling = if spelling == Spelling::Pieces {
            Spelling::Pieces
        } else {
            Spelling::Literal
        };
        for (id, token) in (0u32..).zip(tokens) {
            match added.get(&id) {
                Some(token) => detokenizer.push(&token.content, added_spelling, token.special),
                None => detokenizer.push(token, spelling, false),
            }
        }
        Ok(detokenizer)
    }
}

/// Cuts one part of the text at `tokens`.
fn cut(
    tokens: &AddedTokens,
    part: NormalizedString,
    passage: &Passage<'_>,
) -> tokenizers::Result<Vec<(NormalizedString, Option<Vec<Token>>)>> {
    let (shift, _) = part.offsets_original();
    let found = tokens.find(part.get(), |token, range| {
        !token.control
            || part
                .convert_offsets(Range::Normalized(range))
                .is_some_and(|range| passage.permits(shift + range.start..shift + range.end))
    });
    if found.is_empty() {
        return Ok(vec![(part, None)]);
    }
    let slice = |range: std::ops::Range<usize>| {
        part.slice(Range::Normalized(range))
            .ok_or("an added token ends inside a character")
    };
    let mut parts = Vec::with_capacity(found.len() * 2 + 1);
    let mut start = 0;
    for hit in found {
        if start < hit.start {
            parts.push((slice(start..hit.start)?, None));
        }
        let token = Token::new(tokens.get(hit.index).id, String::new(), (0, 0));
        parts.push((slice(hit.start..hit.end)?, Some(vec![token])));
        start = hit.end;
    }
    if start < part.get().len() {
        parts.push((slice(start..part.get().len())?, None));
    }
    Ok(parts)
}

/// Recognises the two ways in which all supported vocabularies spell text.
fn classify(decoder: &Value) -> Result<(Spelling, bool), String> {
    let kind = |step: &Value| step["type"].as_str().unwrap_or("none").to_string();
    let steps = match decoder["decoders"].as_array() {
        Some(steps) if kind(decoder) == "Sequence" => steps.clone(),
        _ => vec![decoder.clone()],
    };
    let mut spelling = None;
    let mut strip_first_space = false;
    for step in &steps {
        match kind(step).as_str() {
            "ByteLevel" => spelling = Some(Spelling::ByteLevel),
            "Replace" if step["pattern"]["String"] == "▁" && step["content"] == " " => {
                spelling = Some(Spelling::Pieces);
            }
            "Metaspace" if step["replacement"] == "▁" => {
                spelling = Some(Spelling::Pieces);
                strip_first_space = step["prepend_scheme"] != "never";
            }
            "ByteFallback" | "Fuse" => {}
            "Strip" if step["content"] == " " && step["start"] == 1 && step["stop"] == 0 => {
                strip_first_space = true
            }
            other => {
                return Err(format!(
                    "decoder: expected ByteLevel, Metaspace or the SentencePiece sequence, found \"{other}\" ({step})"
                ));
            }
        }
    }
    spelling
        .map(|spelling| (spelling, strip_first_space))
        .ok_or_else(|| {
            "decoder: expected ByteLevel, Metaspace or the SentencePiece sequence, found none"
                .to_string()
        })
}

/// Adds tokens that a `tokenizer_config.json` names and the `tokenizer.json` lacks.
pub(crate) fn add_missing(
    tokenizer: &mut tokenizers::Tokenizer,
    tokens: impl IntoIterator<Item = tokenizers::AddedToken>,
    path: &Path,
) -> Result<(), TextError> {
    let missing: Vec<tokenizers::AddedToken> = tokens
        .into_iter()
        .filter(|token| tokenizer.token_to_id(&token.content).is_none())
        .collect();
    tokenizer
        .add_tokens(missing)
        .map(|_| ())
        .map_err(|error| TextError::invalid(path, format!("added_tokens_decoder: {error}")))
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn decoders_are_told_apart() {
        let llama = json!({"type": "Sequence", "decoders": [
            {"type": "Replace", "pattern": {"String": "▁"}, "content": " "},
            {"type": "ByteFallback"}, {"type": "Fuse"},
            {"type": "Strip", "content": " ", "start": 1, "stop": 0}]});
        assert_eq!(classify(&llama), Ok((Spelling::Pieces, true)));
        let gemma = json!({"type": "Sequence", "decoders": [
            {"type": "Replace", "pattern": {"String": "▁"}, "content": " "},
            {"type": "ByteFallback"}, {"type": "Fuse"}]});
        assert_eq!(classify(&gemma), Ok((Spelling::Pieces, false)));
        assert_eq!(
            classify(&json!({"type": "ByteLevel"})),
            Ok((Spelling::ByteLevel, false))
        );
        assert!(
            classify(&json!({"type": "WordPiece"}))
                .unwrap_err()
                .contains("WordPiece")
        );
        assert!(classify(&Value::Null).is_err());
    }
}
