//! The tokeniser of a checkpoint directory: which file is used, and how its configuration files change it.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use serde::Deserialize;
use serde::de::DeserializeOwned;

use crate::added::{AddedToken, AddedTokens};
use crate::json::{JsonTokenizer, add_missing};
use crate::pieces::StretchRule;
use crate::sentencepiece::SentencePieceModel;
use crate::tokenizer::{BosRule, SpecialIds};
use crate::{GgufVocab, TextError, Tokenizer};

/// Ids that added tokens may have beyond the vocabulary, so that a hostile file cannot ask for a huge table.
const MAX_ADDED: u32 = 1 << 20;

/// A token written as a plain string or as an object with attributes.
#[derive(Clone, Debug, Deserialize)]
#[serde(untagged)]
enum TokenEntry {
    Text(String),
    Full(TokenAttributes),
}

#[derive(Clone, Debug, Deserialize)]
struct TokenAttributes {
    content: String,
    #[serde(default)]
    lstrip: bool,
    #[serde(default)]
    rstrip: bool,
    #[serde(default)]
    special: bool,
}

impl TokenEntry {
    fn attributes(&self) -> TokenAttributes {
        match self {
            Self::Text(content) => TokenAttributes {
                content: content.clone(),
                lstrip: false,
                rstrip: false,
                special: true,
            },
            Self::Full(attributes) => attributes.clone(),
        }
    }
}

/// The parts of `tokenizer_config.json` that matter for ids.
#[derive(Debug, Default, Deserialize)]
#[serde(default)]
struct TokenizerConfig {
    tokenizer_class: Option<String>,
    legacy: Option<bool>,
    add_bos_token: Option<bool>,
    added_tokens_decoder: BTreeMap<String, TokenAttributes>,
    #[serde(flatten)]
    named: NamedTokens,
}

/// Tokens with a role, in `tokenizer_config.json` and in `special_tokens_map.json`.
#[derive(Debug, Default, Deserialize)]
#[serde(default)]
struct NamedTokens {
    bos_token: Option<TokenEntry>,
    eos_token: Option<TokenEntry>,
    unk_token: Option<TokenEntry>,
    pad_token: Option<TokenEntry>,
    additional_special_tokens: Option<Vec<TokenEntry>>,
}

/// The part of `config.json` that tells the family.
#[derive(Debug, Default, Deserialize)]
#[serde(default)]
struct ModelConfig {
    architectures: Vec<String>,
    /// Absent in several releases, which only the class name tells apart then.
    model_type: Option<String>,
}

/// Reads a JSON file if it is there.
fn read_json<T: DeserializeOwned + Default>(path: &Path) -> Result<T, TextError> {
    match std::fs::read(path) {
        Ok(bytes) => serde_json::from_slice(&bytes)
            .map_err(|error| TextError::invalid(path, error.to_string())),
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => Ok(T::default()),
        Err(error) => Err(TextError::io(path, error)),
    }
}

/// See [`Tokenizer::from_directory`].
pub(crate) fn load(directory: &Path) -> Result<Tokenizer, TextError> {
    let config_path = directory.join("tokenizer_config.json");
    let config: TokenizerConfig = read_json(&config_path)?;
    let model: ModelConfig = read_json(&directory.join("config.json"))?;
    let named: NamedTokens = read_json(&directory.join("special_tokens_map.json"))?;
    let settings = Settings {
        directory,
        config,
        named,
    };

    let json = directory.join("tokenizer.json");
    let pieces = directory.join("tokenizer.model");
    let class = settings
        .config
        .tokenizer_class
        .as_deref()
        .unwrap_or_default();
    let family = format!(
        "{} {}",
        model.architectures.join(" "),
        model.model_type.unwrap_or_default()
    )
    .to_lowercase();
    // The official loader asks for the fast tokeniser for Gemma and Mixtral and for the slow one otherwise; a class
    // that exists only as a fast one stays fast.
    let fast = class.ends_with("Fast")
        || class.starts_with("Gemma")
        || ["gemma", "mixtral"]
            .iter()
            .any(|name| family.contains(name));
    match (json.is_file(), pieces.is_file()) {
        (true, has_pieces) if fast || !has_pieces => settings.load_json(&json),
        (_, true) => settings.load_pieces(&pieces, fast),
        _ => load_gguf(directory),
    }
}

/// The first GGUF file of a directory that is not a vision projector.
fn load_gguf(directory: &Path) -> Result<Tokenizer, TextError> {
    let mut files: Vec<PathBuf> = std::fs::read_dir(directory)
        .map_err(|source| TextError::io(directory, source))?
        .filter_map(|entry| Some(entry.ok()?.path()))
        .filter(|path| {
            let name = path
                .file_name()
                .and_then(|name| name.to_str())
                .unwrap_or_default();
            name.ends_with(".gguf") && !name.starts_with("mmproj")
        })
        .collect();
    files.sort();
    match files.first() {
        Some(path) => Tokenizer::from_gguf_metadata(&GgufVocab::read(path)?),
        None => Err(TextError::invalid(
            directory,
            "no tokeniser here: expected tokenizer.json, tokenizer.model or a .gguf file",
        )),
    }
}

struct Settings<'a> {
    directory: &'a Path,
    config: TokenizerConfig,
    named: NamedTokens,
}

impl Settings<'_> {
    /// A named token: the configuration's, or else that of `special_tokens_map.json`.
    fn role(&self, pick: impl Fn(&NamedTokens) -> &Option<TokenEntry>) -> Option<TokenAttributes> {
        pick(&self.config.named)
            .as_ref()
            .or(pick(&self.named).as_ref())
            .map(TokenEntry::attributes)
    }

    fn additional(&self) -> impl Iterator<Item = TokenAttributes> {
        let entries = self
            .config
            .named
            .additional_special_tokens
            .as_ref()
            .or(self.named.additional_special_tokens.as_ref());
        entries.into_iter().flatten().map(TokenEntry::attributes)
    }

    fn load_json(&self, path: &Path) -> Result<Tokenizer, TextError> {
        let mut tokenizer = JsonTokenizer::read(path)?;
        let mut listed: Vec<(u64, &TokenAttributes)> = Vec::new();
        for (key, token) in &self.config.added_tokens_decoder {
            listed.push((self.added_id(key)?.into(), token));
        }
        listed.sort_by_key(|(id, _)| *id);
        let missing = listed.into_iter().map(|(_, token)| {
            tokenizers::AddedToken::from(token.content.clone(), token.special)
                .lstrip(token.lstrip)
                .rstrip(token.rstrip)
                .normalized(false)
        });
        add_missing(&mut tokenizer, missing, path)?;
        let id = |token: Option<TokenAttributes>| {
            token.and_then(|token| tokenizer.token_to_id(&token.content))
        };
        let special = SpecialIds {
            bos: id(self.role(|named| &named.bos_token)),
            eos: id(self.role(|named| &named.eos_token)),
            pad: id(self.role(|named| &named.pad_token)),
            unk: id(self.role(|named| &named.unk_token)),
        };
        // These classes write their own post-processor from the configuration.
        let class = self.config.tokenizer_class.as_deref().unwrap_or_default();
        let own_rule = class.starts_with("Llama") || class.starts_with("Gemma");
        let bos_rule = (own_rule && special.bos.is_some()).then(|| {
            if self.config.add_bos_token.unwrap_or(true) {
                BosRule::Always
            } else {
                BosRule::Never
            }
        });
        Tokenizer::from_json(tokenizer, path, bos_rule, special)
    }

    fn load_pieces(&self, path: &Path, fast: bool) -> Result<Tokenizer, TextError> {
        let model = SentencePieceModel::read(path)?;
        let mut ids: BTreeMap<&str, u32> = BTreeMap::new();
        for (id, piece) in (0u32..).zip(&model.pieces) {
            ids.entry(piece).or_insert(id);
        }

        let mut added: Vec<AddedToken> = Vec::new();
        let mut push = |token: TokenAttributes, id: u32, special: bool| {
            // A later mention adds the role; the attributes of the first one stay.
            match added
                .iter_mut()
                .find(|known| known.content == token.content)
            {
                Some(known) => {
                    known.special |= special;
                    known.control |= special;
                }
                None => added.push(AddedToken {
                    lstrip: token.lstrip,
                    rstrip: token.rstrip,
                    ..AddedToken::new(token.content, id, special)
                }),
            }
        };
        for (key, token) in &self.config.added_tokens_decoder {
            push(token.clone(), self.added_id(key)?, token.special);
        }
        let extra_path = self.directory.join("added_tokens.json");
        let extra: BTreeMap<String, u32> = read_json(&extra_path)?;
        for (content, id) in extra {
            if id > MAX_ADDED {
                return Err(TextError::invalid(
                    &extra_path,
                    format!("\"{content}\": id {id} is too large"),
                ));
            }
            push(
                TokenAttributes {
                    content,
                    lstrip: false,
                    rstrip: false,
                    special: false,
                },
                id,
                false,
            );
        }

        // The named tokens; where the configuration is silent, what the model file itself names.
        let own = |id: Option<u32>| {
            id.and_then(|id| model.pieces.get(id as usize))
                .map(|piece| TokenAttributes {
                    content: piece.clone(),
                    lstrip: false,
                    rstrip: false,
                    special: true,
                })
        };
        let roles = [
            self.role(|named| &named.unk_token)
                .or_else(|| own(model.unk)),
            self.role(|named| &named.bos_token)
                .or_else(|| own(model.bos)),
            self.role(|named| &named.eos_token)
                .or_else(|| own(model.eos)),
            self.role(|named| &named.pad_token),
        ];
        let mut next_id = self.next_id(model.pieces.len(), &added);
        let mut resolve = |token: TokenAttributes, added: &mut Vec<AddedToken>| -> u32 {
            let known = added
                .iter_mut()
                .find(|known| known.content == token.content);
            if let Some(known) = known {
                known.special = true;
                known.control = true;
                return known.id;
            }
            let id = ids.get(token.content.as_str()).copied().unwrap_or_else(|| {
                let id = next_id;
                next_id += 1;
                id
            });
            added.push(AddedToken {
                lstrip: token.lstrip,
                rstrip: token.rstrip,
                ..AddedToken::new(token.content, id, true)
            });
            id
        };
        let [unk, bos, eos, pad] = roles.map(|role| role.map(|token| resolve(token, &mut added)));
        for token in self.additional() {
            resolve(token, &mut added);
        }

        let special = SpecialIds { bos, eos, pad, unk };
        let bos_rule = match bos {
            Some(_) if self.config.add_bos_token.unwrap_or(true) => BosRule::Always,
            _ => BosRule::Never,
        };
        // A fast tokeniser made from the model file puts a prefix before every stretch, as the legacy one does. A Gemma
        // model has no dummy prefix and no other rule.
        let rule = if fast || self.config.legacy.unwrap_or(true) {
            StretchRule::Legacy {
                dummy_prefix: model.add_dummy_prefix,
            }
        } else {
            StretchRule::Modern
        };
        Ok(Tokenizer::from_sentencepiece(
            model,
            AddedTokens::new(added),
            rule,
            special,
            bos_rule,
        ))
    }

    fn added_id(&self, key: &str) -> Result<u32, TextError> {
        key.parse()
            .ok()
            .filter(|&id| id <= MAX_ADDED)
            .ok_or_else(|| {
                TextError::invalid(
                    &self.directory.join("tokenizer_config.json"),
                    format!(
                        "added_tokens_decoder: expected ids from 0 to {MAX_ADDED}, found \"{key}\""
                    ),
                )
            })
    }

    /// The first id after the vocabulary and everything added so far.
    fn next_id(&self, pieces: usize, added: &[AddedToken]) -> u32 {
        let pieces = u32::try_from(pieces).unwrap_or(u32::MAX / 2);
        added
            .iter()
            .map(|token| token.id + 1)
            .max()
            .unwrap_or(0)
            .max(pieces)
    }
}
