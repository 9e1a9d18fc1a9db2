//! Tokenisers in the `tokenizer.json` format, run by the `tokenizers` crate.

use std::path::Path;
use std::sync::OnceLock;

use serde_json::Value;
use tokenizers::AddedToken;

use crate::TextError;
use crate::detokenize::{Detokenizer, Spelling};

/// Largest id accepted; ids are used as table indices, so a hostile file must not choose them freely.
const MAX_ID: u32 = 1 << 24;

/// A tokeniser run by the `tokenizers` crate.
#[derive(Debug)]
pub(crate) struct JsonTokenizer {
    parsing: tokenizers::Tokenizer,
    /// The same tokeniser with special strings left as text, made when first asked for.
    literal: OnceLock<Box<tokenizers::Tokenizer>>,
}

impl JsonTokenizer {
    pub(crate) fn new(mut tokenizer: tokenizers::Tokenizer) -> Self {
        // Truncation and padding belong to a data loader; a prompt must never be cut in silence.
        tokenizer.with_padding(None);
        // Only a maximum that is too small is ever refused, and there is none here.
        let _ = tokenizer.with_truncation(None);
        Self {
            parsing: tokenizer,
            literal: OnceLock::new(),
        }
    }

    /// The tokeniser itself.
    pub(crate) fn inner(&self) -> &tokenizers::Tokenizer {
        &self.parsing
    }

    pub(crate) fn read(path: &Path) -> Result<tokenizers::Tokenizer, TextError> {
        let bytes = std::fs::read(path).map_err(|source| TextError::io(path, source))?;
        tokenizers::Tokenizer::from_bytes(bytes).map_err(|error| {
            TextError::invalid(path, format!("not a usable tokenizer.json: {error}"))
        })
    }

    /// Encodes; `post_process` adds what the file's own post-processor adds (BOS).
    pub(crate) fn encode(
        &self,
        text: &str,
        post_process: bool,
        parse_special: bool,
    ) -> Result<Vec<u32>, TextError> {
        let tokenizer = if parse_special {
            &self.parsing
        } else {
            self.literal.get_or_init(|| {
                let mut tokenizer = self.parsing.clone();
                tokenizer.set_encode_special_tokens(true);
                Box::new(tokenizer)
            })
        };
        let encoding = tokenizer
            .encode_fast(text, post_process)
            .map_err(|error| TextError::Encode(error.to_string()))?;
        Ok(encoding.get_ids().to_vec())
    }

    pub(crate) fn token_to_id(&self, token: &str) -> Option<u32> {
        self.parsing.token_to_id(token)
    }

    pub(crate) fn id_to_token(&self, id: u32) -> Option<String> {
        self.parsing.id_to_token(id)
    }

    /// Builds the table of texts; `path` is for error messages.
    pub(crate) fn detokenizer(&self, path: &Path) -> Result<Detokenizer, TextError> {
        let fail = |message: String| TextError::invalid(path, message);
        let decoder = match self.parsing.get_decoder() {
            Some(decoder) => {
                serde_json::to_value(decoder).map_err(|error| fail(format!("decoder: {error}")))?
            }
            None => Value::Null,
        };
        let (spelling, strip_first_space) = classify(&decoder).map_err(fail)?;

        let added = self
            .parsing
            .get_added_vocabulary()
            .get_added_tokens_decoder();
        let vocab = self.parsing.get_vocab(true);
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
    tokens: impl IntoIterator<Item = AddedToken>,
    path: &Path,
) -> Result<(), TextError> {
    let missing: Vec<AddedToken> = tokens
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
