//! CLIP's byte-pair tokeniser: lower case, words with an end mark, windows of a fixed length.

use std::path::Path;

use serde::Deserialize;
use serde_json::json;
use tokenizers::Tokenizer as Inner;

use crate::TextError;

/// Most that a vocabulary file may hold; CLIP's are about a megabyte.
const MAX_BYTES: u64 = 64 << 20;

/// Splits prompts into windows of tokens, as the CLIP tokeniser of transformers does.
pub struct ClipTokenizer {
    inner: Inner,
    window: usize,
    start: u32,
    end: u32,
    pad: u32,
}

/// A prompt as one window.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ClipWindow {
    /// Start, the prompt's tokens, end, padding: always the window's length.
    pub ids: Vec<u32>,
    /// The end of the prompt that did not fit, as text; empty if all of it did.
    pub cut: String,
}

#[derive(Deserialize, Default)]
#[serde(default)]
struct Config {
    model_max_length: Option<f64>,
    bos_token: Option<Token>,
    eos_token: Option<Token>,
    unk_token: Option<Token>,
    pad_token: Option<Token>,
}

/// A special token as configuration files write it: its text, or an object around it.
#[derive(Deserialize)]
#[serde(untagged)]
enum Token {
    Text(String),
    Object {
        content: String,
        /// Whether it is looked for in the normalised text.
        #[serde(default)]
        normalized: bool,
    },
}

impl Token {
    fn text(&self) -> &str {
        match self {
            Self::Text(text) | Self::Object { content: text, .. } => text,
        }
    }
}

/// The definition of a special token, which is found in a text before anything else is.
fn special(token: Option<&Token>, content: &str, id: u32) -> serde_json::Value {
    let normalized = matches!(
        token,
        Some(Token::Object {
            normalized: true,
            ..
        })
    );
    json!({"id": id, "content": content, "single_word": false, "lstrip": false, "rstrip": false,
           "normalized": normalized, "special": true})
}

impl ClipTokenizer {
    /// Reads a tokeniser's folder: `vocab.json` and `merges.txt`, with `tokenizer_config.json` and `special_tokens_map.json` where
    /// they are there.
    ///
    /// # Errors
    /// When a file is missing or damaged.
    pub fn from_directory(directory: &Path) -> Result<Self, TextError> {
        let vocabulary_path = directory.join("vocab.json");
        let vocabulary: serde_json::Map<String, serde_json::Value> = json_file(&vocabulary_path)?;
        let merges_path = directory.join("merges.txt");
        let merges: Vec<String> = read(&merges_path)?
            .lines()
            .filter(|line| !line.starts_with("#version") && !line.trim().is_empty())
            .map(str::to_string)
            .collect();
        let mut config = Config::default();
        for name in ["special_tokens_map.json", "tokenizer_config.json"] {
            let path = directory.join(name);
            if path.exists() {
                let found: Config = json_file(&path)?;
                config.model_max_length = found.model_max_length.or(config.model_max_length);
                config.bos_token = found.bos_token.or(config.bos_token);
                config.eos_token = found.eos_token.or(config.eos_token);
                config.unk_token = found.unk_token.or(config.unk_token);
                config.pad_token = found.pad_token.or(config.pad_token);
            }
        }
        let text = |token: &Option<Token>, default: &str| {
            token
                .as_ref()
                .map_or(default.to_string(), |token| token.text().to_string())
        };
        let (start, end) = (
            text(&config.bos_token, "<|startoftext|>"),
            text(&config.eos_token, "<|endoftext|>"),
        );
        let (unknown, pad) = (text(&config.unk_token, &end), text(&config.pad_token, &end));
        let id = |token: &str| {
            vocabulary
                .get(token)
                .and_then(serde_json::Value::as_u64)
                .and_then(|id| u32::try_from(id).ok())
                .ok_or_else(|| {
                    TextError::invalid(&vocabulary_path, format!("has no token {token:?}"))
                })
        };
        let window = match config.model_max_length {
            // Files that leave the length open write a number beyond any other.
            Some(length) if (2.0..65_536.0).contains(&length) => length as usize,
            _ => 77,
        };
        let (start_id, end_id, pad_id) = (id(&start)?, id(&end)?, id(&pad)?);
        // SDXL's second tokeniser pads with "!", which thereby becomes a special token in prompts too.
        let mut added: Vec<serde_json::Value> = Vec::new();
        for (token, content, id) in [
            (&config.bos_token, &start, start_id),
            (&config.eos_token, &end, end_id),
            (&config.pad_token, &pad, pad_id),
        ] {
            if added.iter().all(|token| token["id"] != id) {
                added.push(special(token.as_ref(), content, id));
            }
        }
        // The definition of transformers' converter for this family.
        let definition = json!({
            "version": "1.0",
            "added_tokens": added,
            "normalizer": {"type": "Sequence", "normalizers": [
                {"type": "NFC"},
                {"type": "Replace", "pattern": {"Regex": "\\s+"}, "content": " "},
                {"type": "Lowercase"},
            ]},
            "pre_tokenizer": {"type": "Sequence", "pretokenizers": [
                {"type": "Split", "pattern": {"Regex": "'s|'t|'re|'ve|'m|'ll|'d|[\\p{L}]+|[\\p{N}]|[^\\s\\p{L}\\p{N}]+"},
                 "behavior": "Removed", "invert": true},
                {"type": "ByteLevel", "add_prefix_space": false, "trim_offsets": true, "use_regex": true},
            ]},
            "post_processor": null,
            "decoder": null,
            "model": {"type": "BPE", "dropout": null, "unk_token": unknown, "continuing_subword_prefix": "",
                      "end_of_word_suffix": "</w>", "fuse_unk": false, "byte_fallback": false,
                      "vocab": vocabulary, "merges": merges},
        });
        let inner = Inner::from_bytes(definition.to_string()).map_err(|error| {
            TextError::invalid(&merges_path, format!("does not fit vocab.json: {error}"))
        })?;
        Ok(Self {
            inner,
            window,
            start: start_id,
            end: end_id,
            pad: pad_id,
        })
    }

    /// Tokens of a window.
    pub fn window(&self) -> usize {
        self.window
    }

    /// The prompt as one window; what does not fit is cut off, as diffusers does.
    ///
    /// # Errors
    /// When the tokeniser fails.
    pub fn window_of(&self, prompt: &str) -> Result<ClipWindow, TextError> {
        let encoding = self
            .inner
            .encode(prompt, false)
            .map_err(|error| TextError::Encode(error.to_string()))?;
        let room = self.window - 2;
        let (kept, rest) = encoding.get_ids().split_at(encoding.len().min(room));
        let cut = match encoding.get_offsets().get(kept.len()) {
            // Offsets are of the text as it was given.
            Some(&(first, _)) if !rest.is_empty() => {
                prompt.get(first..).unwrap_or(prompt).to_string()
            }
            _ => String::new(),
        };
        let mut ids = Vec::with_capacity(self.window);
        ids.push(self.start);
        ids.extend_from_slice(kept);
        ids.push(self.end);
        ids.resize(self.window, self.pad);
        Ok(ClipWindow { ids, cut })
    }
}

fn read(path: &Path) -> Result<String, TextError> {
    let size = std::fs::metadata(path)
        .map_err(|error| TextError::io(path, error))?
        .len();
    if size > MAX_BYTES {
        return Err(TextError::invalid(
            path,
            format!("{size} bytes, expected at most {MAX_BYTES}"),
        ));
    }
    std::fs::read_to_string(path).map_err(|error| TextError::io(path, error))
}

fn json_file<T: serde::de::DeserializeOwned>(path: &Path) -> Result<T, TextError> {
    serde_json::from_str(&read(path)?).map_err(|error| TextError::invalid(path, error.to_string()))
}
