//! Byte-level BPE from GGUF metadata (`tokenizer.ggml.model = gpt2`), run by the `tokenizers` crate.

use std::collections::HashMap;

use serde_json::Value;

use tokenizers::models::bpe::BPE;
use tokenizers::normalizers::unicode::NFC;
use tokenizers::pre_tokenizers::PreTokenizerWrapper;
use tokenizers::pre_tokenizers::byte_level::ByteLevel;
use tokenizers::pre_tokenizers::sequence::Sequence;
use tokenizers::pre_tokenizers::split::{Split, SplitPattern};
use tokenizers::{AddedToken, SplitDelimiterBehavior};

use crate::TextError;
use crate::gguf::{GgufTokenType, GgufVocab};

/// A named pre-tokeniser: regular expressions that cut the text, one after the other.
struct PreTokenizer {
    names: &'static [&'static str],
    splits: &'static [&'static str],
    /// A word that is a token as it stands is not merged step by step.
    ignore_merges: bool,
    /// Whether BOS is added if the file does not say.
    add_bos: bool,
    /// Text is brought to Unicode's composed form first.
    compose: bool,
}

const GPT_2: &str = r"'s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+";
const LLAMA_3: &str = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+";
const QWEN_2: &str = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+";

/// The pre-tokenisers as the models' own `tokenizer.json` files state them, under the names GGUF gives them.
const PRE_TOKENIZERS: &[PreTokenizer] = &[
    PreTokenizer {
        names: &[
            "smollm",
            "starcoder",
            "refact",
            "command-r",
            "codeshell",
            "exaone",
            "minerva-7b",
        ],
        splits: &[r"\p{N}", GPT_2],
        ignore_merges: false,
        add_bos: false,
        compose: false,
    },
    PreTokenizer {
        names: &["qwen2"],
        splits: &[QWEN_2],
        ignore_merges: false,
        add_bos: false,
        compose: true,
    },
    PreTokenizer {
        names: &["deepseek-r1-qwen", "stablelm2", "megrez"],
        splits: &[QWEN_2],
        ignore_merges: false,
        add_bos: false,
        compose: false,
    },
    PreTokenizer {
        names: &["llama-bpe", "llama3", "llama-v3", "falcon3", "pixtral"],
        splits: &[LLAMA_3],
        ignore_merges: true,
        add_bos: true,
        compose: false,
    },
    PreTokenizer {
        names: &["dbrx", "smaug-bpe"],
        splits: &[LLAMA_3],
        ignore_merges: false,
        add_bos: false,
        compose: false,
    },
    PreTokenizer {
        names: &[
            "gpt-2", "phi-2", "mpt", "olmo", "jais", "trillion", "gigachat",
        ],
        splits: &[GPT_2],
        ignore_merges: false,
        add_bos: false,
        compose: false,
    },
    PreTokenizer {
        names: &["falcon"],
        splits: &[r"[\p{P}\$\+<=>\^~\|`]+", GPT_2, "[0-9][0-9][0-9]"],
        ignore_merges: false,
        add_bos: false,
        compose: false,
    },
    PreTokenizer {
        names: &["default"],
        splits: &[r"[\p{P}\$\+<=>\^~\|]+", GPT_2, r"\p{N}+", "[0-9][0-9][0-9]"],
        ignore_merges: false,
        add_bos: false,
        compose: false,
    },
];

/// The name GGUF gives to a pre-tokeniser.
pub(crate) fn name_of(
    splits: &[String],
    ignore_merges: bool,
    compose: bool,
) -> Option<&'static str> {
    PRE_TOKENIZERS
        .iter()
        .find(|rule| {
            rule.splits == splits && rule.ignore_merges == ignore_merges && rule.compose == compose
        })
        .and_then(|rule| rule.names.first().copied())
}

/// The regular expressions of a byte-level pre-tokeniser as a `tokenizer.json` states it; `None` for any other.
pub(crate) fn splits_of(steps: &Value) -> Option<Vec<String>> {
    let steps = match steps["pretokenizers"].as_array() {
        Some(steps) => steps.as_slice(),
        None => std::slice::from_ref(steps),
    };
    let (last, first) = steps.split_last()?;
    if last["type"] != "ByteLevel" || last["add_prefix_space"] == true {
        return None;
    }
    let mut splits = Vec::with_capacity(steps.len());
    for step in first {
        splits.push(match step["type"].as_str()? {
            "Split" if step["behavior"] == "Isolated" && step["invert"] != true => {
                step["pattern"]["Regex"].as_str()?.to_string()
            }
            "Digits" if step["individual_digits"] == true => r"\p{N}".to_string(),
            _ => return None,
        });
    }
    if last["use_regex"] != false {
        splits.push(GPT_2.to_string());
    }
    Some(splits)
}

/// Builds the tokeniser; the second value is whether BOS is added if the file does not say.
pub(crate) fn build(vocab: &GgufVocab) -> Result<(tokenizers::Tokenizer, bool), TextError> {
    let fail = |message: String| TextError::invalid(&vocab.path, message);
    let name = vocab.pre.as_deref().unwrap_or("default");
    let rule = PRE_TOKENIZERS
        .iter()
        .find(|rule| rule.names.contains(&name))
        .ok_or_else(|| {
            let known: Vec<&str> = PRE_TOKENIZERS
                .iter()
                .flat_map(|rule| rule.names)
                .copied()
                .collect();
            fail(format!(
                "tokenizer.ggml.pre: expected one of {}, found \"{name}\"",
                known.join(", ")
            ))
        })?;

    let mut ids: HashMap<String, u32> = HashMap::with_capacity(vocab.tokens.len());
    for (id, token) in (0u32..).zip(&vocab.tokens) {
        ids.entry(token.clone()).or_insert(id);
    }
    let merges = vocab
        .merges
        .iter()
        .enumerate()
        .map(|(index, merge)| {
            // The first character may itself be a space in damaged or odd files; the separator comes after it.
            let first = merge.chars().next().map_or(0, char::len_utf8);
            match merge[first..].split_once(' ') {
                Some((_, right)) => Ok((
                    merge[..merge.len() - right.len() - 1].to_string(),
                    right.to_string(),
                )),
                None => Err(fail(format!(
                    "tokenizer.ggml.merges[{index}]: expected two tokens, found \"{merge}\""
                ))),
            }
        })
        .collect::<Result<Vec<_>, _>>()?;

    let ids: tokenizers::models::bpe::Vocab = ids.into_iter().collect();
    let model = BPE::builder()
        .vocab_and_merges(ids, merges)
        .ignore_merges(rule.ignore_merges)
        .build()
        .map_err(|error| fail(format!("tokenizer.ggml.merges: {error}")))?;
    let mut tokenizer = tokenizers::Tokenizer::new(model);

    if rule.compose {
        tokenizer
            .with_normalizer(Some(NFC))
            .map_err(|error| fail(format!("tokenizer.ggml.pre = {name}: {error}")))?;
    }

    let mut steps: Vec<PreTokenizerWrapper> = Vec::with_capacity(rule.splits.len() + 1);
    for pattern in rule.splits {
        let split = Split::new(
            SplitPattern::Regex((*pattern).to_string()),
            SplitDelimiterBehavior::Isolated,
            false,
        )
        .map_err(|error| fail(format!("tokenizer.ggml.pre = {name}: {error}")))?;
        steps.push(split.into());
    }
    steps.push(ByteLevel::new(false, false, false).into());
    tokenizer.with_pre_tokenizer(Some(Sequence::new(steps)));
    tokenizer.with_decoder(Some(ByteLevel::default()));

    let added = (0u32..)
        .zip(vocab.tokens.iter().zip(&vocab.token_types))
        .filter_map(|(id, (token, kind))| {
            let special = match kind {
                GgufTokenType::Control | GgufTokenType::Unknown => true,
                GgufTokenType::UserDefined => false,
                GgufTokenType::Normal | GgufTokenType::Unused | GgufTokenType::Byte => return None,
            };
            Some(
                AddedToken::from(token.clone(), special)
                    .normalized(false)
                    .lstrip(vocab.lstrip.binary_search(&id).is_ok())
                    .rstrip(vocab.rstrip.binary_search(&id).is_ok()),
            )
        });
    tokenizer
        .add_tokens(added)
        .map_err(|error| fail(format!("tokenizer.ggml.token_type: {error}")))?;
    Ok((tokenizer, rule.add_bos))
}
