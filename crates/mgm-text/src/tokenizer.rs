//! One tokeniser type over every supported file format.

use std::path::Path;
use std::sync::Arc;

use crate::added::{AddedToken, AddedTokens};
use crate::detokenize::Detokenizer;
use crate::directory;
use crate::gguf::{GgufTokenType, GgufVocab};
use crate::json::JsonTokenizer;
use crate::merge::{PieceKind, PieceMerger};
use crate::passage::Passage;
use crate::pieces::{PieceTokenizer, StretchRule, piece_detokenizer};
use crate::sentencepiece::SentencePieceModel;
use crate::{DetokenizeStream, TextError, gguf_bpe};

/// Turns text into token ids and back.
#[derive(Debug)]
pub struct Tokenizer {
    pub(crate) engine: Engine,
    pub(crate) detokenizer: Arc<Detokenizer>,
    pub(crate) special: SpecialIds,
    pub(crate) bos_rule: BosRule,
    /// One more than the largest id.
    pub(crate) vocab_size: usize,
}

#[derive(Debug)]
pub(crate) enum Engine {
    Json(Box<JsonTokenizer>),
    /// A vocabulary of scored pieces; `pieces` has the spelling of every id.
    Pieces {
        tokenizer: Box<PieceTokenizer>,
        pieces: Vec<String>,
        ids: std::collections::HashMap<String, u32>,
    },
}

/// Ids with a role.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct SpecialIds {
    pub(crate) bos: Option<u32>,
    pub(crate) eos: Option<u32>,
    pub(crate) pad: Option<u32>,
    pub(crate) unk: Option<u32>,
}

/// Who puts BOS in front of a text.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum BosRule {
    Never,
    /// The id [`SpecialIds::bos`].
    Always,
    /// The file's own post-processor; `true` if it begins a text with BOS.
    PostProcessor(bool),
}

impl Tokenizer {
    /// Reads one file, told apart by its name: `*.gguf`, `*.json` (`tokenizer.json`), anything else is a SentencePiece
    /// model. A bare SentencePiece model has no configuration, so it behaves as the slow tokeniser does by default
    /// (`legacy`, with BOS); prefer [`Tokenizer::from_directory`].
    ///
    /// # Errors
    /// If the file cannot be read or is not what its name says.
    pub fn from_file(path: impl AsRef<Path>) -> Result<Self, TextError> {
        let path = path.as_ref();
        match path.extension().and_then(|extension| extension.to_str()) {
            Some("gguf") => Self::from_gguf_metadata(&GgufVocab::read(path)?),
            Some("json") => Self::from_json(
                JsonTokenizer::read(path)?,
                path,
                None,
                SpecialIds::default(),
            ),
            _ => {
                let model = SentencePieceModel::read(path)?;
                let rule = StretchRule::Legacy {
                    dummy_prefix: model.add_dummy_prefix,
                };
                let special = SpecialIds {
                    bos: model.bos,
                    eos: model.eos,
                    pad: model.pad,
                    unk: model.unk,
                };
                let added = named_pieces(&model, special);
                let bos_rule = if model.bos.is_some() {
                    BosRule::Always
                } else {
                    BosRule::Never
                };
                Ok(Self::from_sentencepiece(
                    model, added, rule, special, bos_rule,
                ))
            }
        }
    }

    /// Reads the tokeniser of a checkpoint directory the way the official loader does: Gemma and Mixtral through
    /// `tokenizer.json` (fast), Llama-3 too, the other SentencePiece families through `tokenizer.model` (slow) with the
    /// `legacy` and `add_bos_token` settings of `tokenizer_config.json`. A directory with neither file but a GGUF file
    /// uses that.
    ///
    /// # Errors
    /// If no tokeniser file is there or one cannot be used.
    pub fn from_directory(path: impl AsRef<Path>) -> Result<Self, TextError> {
        directory::load(path.as_ref())
    }

    /// Builds the tokeniser embedded in a GGUF file.
    ///
    /// # Errors
    /// If the vocabulary's model or pre-tokeniser is not known, or parts of it are missing.
    pub fn from_gguf_metadata(vocab: &GgufVocab) -> Result<Self, TextError> {
        let special = SpecialIds {
            bos: vocab.bos,
            eos: vocab.eos,
            pad: vocab.pad,
            unk: vocab.unk,
        };
        let needs_bos = |add: bool| match (add, special.bos) {
            (false, _) => Ok(BosRule::Never),
            (true, Some(_)) => Ok(BosRule::Always),
            (true, None) => Err(TextError::invalid(
                &vocab.path,
                "tokenizer.ggml.bos_token_id: expected an id because BOS is to be added, found none",
            )),
        };
        match vocab.model.as_str() {
            "gpt2" => {
                let (tokenizer, add_bos) = gguf_bpe::build(vocab)?;
                let bos_rule = needs_bos(vocab.add_bos.unwrap_or(add_bos))?;
                Self::from_json(tokenizer, &vocab.path, Some(bos_rule), special)
            }
            "llama" => {
                if vocab.scores.is_empty() {
                    return Err(TextError::invalid(
                        &vocab.path,
                        "tokenizer.ggml.scores: expected one score a token, found none",
                    ));
                }
                let bos_rule = needs_bos(vocab.add_bos.unwrap_or(special.bos.is_some()))?;
                Ok(Self::from_gguf_pieces(vocab, special, bos_rule))
            }
            other => Err(TextError::invalid(
                &vocab.path,
                format!("tokenizer.ggml.model: expected \"llama\" or \"gpt2\", found \"{other}\""),
            )),
        }
    }

    fn from_gguf_pieces(vocab: &GgufVocab, special: SpecialIds, bos_rule: BosRule) -> Self {
        let dummy_prefix = vocab.add_space_prefix.unwrap_or(true);
        let mut kinds: Vec<PieceKind> = vocab
            .token_types
            .iter()
            .map(|&kind| piece_kind(kind))
            .collect();
        kinds.resize(vocab.tokens.len(), PieceKind::Normal);
        // Where a prefix space is put after special tokens, tokens added to the vocabulary are such; where there is no
        // prefix (Gemma) they are pieces of the model that are never taken apart, and may contain spaces.
        let cut_out = |kind: PieceKind| match kind {
            PieceKind::Control | PieceKind::Unknown => Some(true),
            PieceKind::UserDefined if dummy_prefix => Some(false),
            _ => None,
        };
        let added = AddedTokens::new((0u32..).zip(vocab.tokens.iter().zip(&kinds)).filter_map(
            |(id, (token, &kind))| {
                let special = match &vocab.added {
                    // Sorted when read and when made.
                    Some(added) => added
                        .binary_search(&id)
                        .is_ok()
                        .then_some(matches!(kind, PieceKind::Control | PieceKind::Unknown))?,
                    None => cut_out(kind)?,
                };
                Some(AddedToken {
                    lstrip: vocab.lstrip.binary_search(&id).is_ok(),
                    rstrip: vocab.rstrip.binary_search(&id).is_ok(),
                    ..AddedToken::new(token.clone(), id, special)
                })
            },
        ));
        // Some converters write the spaces of user-defined pieces as such; the text that reaches the merger has markers.
        let pieces: Vec<String> = vocab
            .tokens
            .iter()
            .zip(&kinds)
            .map(|(token, &kind)| match kind {
                PieceKind::UserDefined => token.replace(' ', "▁"),
                _ => token.clone(),
            })
            .collect();
        let unk = special.unk.unwrap_or(0);
        let merger = text_merger(&pieces, &vocab.scores, &kinds, &added, unk);
        let rule = if vocab.legacy == Some(false) {
            StretchRule::Modern
        } else {
            StretchRule::Legacy { dummy_prefix }
        };
        Self::from_pieces(PieceParts {
            pieces: vocab.tokens.clone(),
            kinds,
            merger,
            added,
            rule,
            remove_extra_whitespaces: vocab.remove_extra_whitespaces.unwrap_or(false),
            strip_first_space: dummy_prefix,
            special,
            bos_rule,
        })
    }

    pub(crate) fn from_sentencepiece(
        model: SentencePieceModel,
        added: AddedTokens,
        rule: StretchRule,
        special: SpecialIds,
        bos_rule: BosRule,
    ) -> Self {
        let merger = text_merger(
            &model.pieces,
            &model.scores,
            &model.kinds,
            &added,
            model.unk.unwrap_or(0),
        );
        Self::from_pieces(PieceParts {
            strip_first_space: model.add_dummy_prefix,
            remove_extra_whitespaces: model.remove_extra_whitespaces,
            pieces: model.pieces,
            kinds: model.kinds,
            merger,
            added,
            rule,
            special,
            bos_rule,
        })
    }

    fn from_pieces(parts: PieceParts) -> Self {
        let mut pieces = parts.pieces;
        let added_size = parts
            .added
            .iter()
            .map(|token| token.id as usize + 1)
            .max()
            .unwrap_or(0);
        let vocab_size = pieces.len().max(added_size);
        let detokenizer = piece_detokenizer(
            &pieces,
            &parts.kinds,
            &parts.added,
            vocab_size,
            parts.strip_first_space,
        );
        pieces.resize(vocab_size, String::new());
        for token in parts.added.iter() {
            pieces[token.id as usize].clone_from(&token.content);
        }
        let mut ids = std::collections::HashMap::with_capacity(vocab_size);
        for (id, piece) in (0u32..).zip(&pieces) {
            ids.entry(piece.clone()).or_insert(id);
        }
        let unk_token = parts
            .special
            .unk
            .and_then(|id| pieces.get(id as usize))
            .cloned();
        let tokenizer = PieceTokenizer::new(
            parts.merger,
            parts.added,
            parts.rule,
            parts.remove_extra_whitespaces,
            unk_token.unwrap_or_else(|| "<unk>".to_string()),
        );
        Self {
            engine: Engine::Pieces {
                tokenizer: Box::new(tokenizer),
                pieces,
                ids,
            },
            detokenizer: Arc::new(detokenizer),
            special: parts.special,
            bos_rule: parts.bos_rule,
            vocab_size,
        }
    }

    /// `bos_rule` None: what the file's post-processor does. Roles missing in `special` are guessed from the usual
    /// names.
    pub(crate) fn from_json(
        tokenizer: tokenizers::Tokenizer,
        path: &Path,
        bos_rule: Option<BosRule>,
        special: SpecialIds,
    ) -> Result<Self, TextError> {
        let json = JsonTokenizer::new(tokenizer, path)?;
        let detokenizer = json.detokenizer(path)?;
        let vocab_size = detokenizer.len();
        let first_of = |names: &[&str]| names.iter().find_map(|name| json.token_to_id(name));
        let own_prefix = json
            .encode(&Passage::whole("", true), true)?
            .first()
            .copied();
        let special = if bos_rule.is_some() {
            special
        } else {
            SpecialIds {
                bos: special.bos.or(own_prefix).or_else(|| {
                    first_of(&["<s>", "<bos>", "<|begin_of_text|>", "<|startoftext|>"])
                }),
                // Gemma's vocabulary has "</s>" as a piece of HTML, so the other names are asked for first.
                eos: special.eos.or_else(|| {
                    first_of(&[
                        "<eos>",
                        "<|end_of_text|>",
                        "<|im_end|>",
                        "<|endoftext|>",
                        "</s>",
                    ])
                }),
                pad: special
                    .pad
                    .or_else(|| first_of(&["<pad>", "<|reserved_special_token_0|>"])),
                unk: special.unk.or_else(|| first_of(&["<unk>"])),
            }
        };
        let bos_rule = bos_rule.unwrap_or(BosRule::PostProcessor(
            own_prefix.is_some() && own_prefix == special.bos,
        ));
        Ok(Self {
            engine: Engine::Json(Box::new(json)),
            detokenizer: Arc::new(detokenizer),
            special,
            bos_rule,
            vocab_size,
        })
    }

    /// Encodes a text. With `add_special` the tokeniser's BOS comes first, if it adds one. Special strings in the text
    /// become their special ids, as in the official code; see [`Tokenizer::encode_parse`].
    ///
    /// # Errors
    /// If the underlying engine refuses the text.
    pub fn encode(&self, text: &str, add_special: bool) -> Result<Vec<u32>, TextError> {
        self.encode_parse(text, add_special, true)
    }

    /// Encodes a text; with `parse_special` false, special strings such as `</s>` are ordinary text. Text that an untrusted
    /// person typed into a conversation goes through [`Prompt`](crate::Prompt).
    ///
    /// # Errors
    /// If the underlying engine refuses the text.
    pub fn encode_parse(
        &self,
        text: &str,
        add_special: bool,
        parse_special: bool,
    ) -> Result<Vec<u32>, TextError> {
        self.encode_passage(&Passage::whole(text, parse_special), add_special)
    }

    pub(crate) fn encode_passage(
        &self,
        passage: &Passage<'_>,
        add_special: bool,
    ) -> Result<Vec<u32>, TextError> {
        let own_bos = add_special && matches!(self.bos_rule, BosRule::PostProcessor(_));
        let mut ids = match &self.engine {
            Engine::Json(json) => json.encode(passage, own_bos)?,
            Engine::Pieces { tokenizer, .. } => tokenizer.encode(passage),
        };
        if add_special && self.bos_rule == BosRule::Always {
            ids.splice(0..0, self.special.bos);
        }
        Ok(ids)
    }

    /// Text of the ids; ids outside the vocabulary are left out, invalid UTF-8 becomes U+FFFD. A SentencePiece model's
    /// dummy space at the very start is not part of the text. The official code also strips white space at both ends of an
    /// answer; that is left to the caller.
    pub fn decode(&self, ids: &[u32], skip_special: bool) -> String {
        self.detokenizer.decode(ids, skip_special)
    }

    /// The bytes that one id stands for, control tokens by their spelling; `None` outside the vocabulary. They need not be whole characters.
    pub fn token_bytes(&self, id: u32) -> Option<&[u8]> {
        self.detokenizer.bytes_of(id)
    }

    /// Starts decoding ids as they arrive.
    pub fn stream(&self) -> DetokenizeStream {
        DetokenizeStream::new(Arc::clone(&self.detokenizer))
    }

    /// Id of a token by its exact spelling in the vocabulary (special tokens: their text).
    pub fn token_to_id(&self, token: &str) -> Option<u32> {
        match &self.engine {
            Engine::Json(json) => json.token_to_id(token),
            Engine::Pieces { ids, .. } => ids.get(token).copied(),
        }
    }

    /// Spelling of a token in the vocabulary.
    pub fn id_to_token(&self, id: u32) -> Option<String> {
        match &self.engine {
            Engine::Json(json) => json.id_to_token(id),
            Engine::Pieces { pieces, .. } => pieces.get(id as usize).cloned(),
        }
    }

    /// Whether decoding for the user leaves this id out.
    pub fn is_special(&self, id: u32) -> bool {
        self.detokenizer.is_special(id)
    }

    /// Begin-of-text id.
    pub fn bos(&self) -> Option<u32> {
        self.special.bos
    }

    /// End-of-text id.
    pub fn eos(&self) -> Option<u32> {
        self.special.eos
    }

    /// Padding id; as in the official code the unknown id where the tokeniser has none.
    pub fn pad(&self) -> Option<u32> {
        self.special.pad.or(self.special.unk)
    }

    /// Unknown id.
    pub fn unk(&self) -> Option<u32> {
        self.special.unk
    }

    /// One more than the largest id.
    pub fn vocab_size(&self) -> usize {
        self.vocab_size
    }

    /// True for a SentencePiece vocabulary that treats every stretch after a special token as a new text (slow tokenisers
    /// with `legacy: true`, GGUF).
    pub fn is_legacy(&self) -> bool {
        match &self.engine {
            Engine::Json(_) => false,
            Engine::Pieces { tokenizer, .. } => tokenizer.rule() != StretchRule::Modern,
        }
    }

    /// Whether [`Tokenizer::encode`] with `add_special` begins with BOS.
    pub fn adds_bos(&self) -> bool {
        matches!(
            self.bos_rule,
            BosRule::Always | BosRule::PostProcessor(true)
        )
    }
}

/// Everything that makes a tokeniser over pieces.
struct PieceParts {
    pieces: Vec<String>,
    kinds: Vec<PieceKind>,
    merger: PieceMerger,
    added: AddedTokens,
    rule: StretchRule,
    remove_extra_whitespaces: bool,
    strip_first_space: bool,
    special: SpecialIds,
    bos_rule: BosRule,
}

/// The merger for ordinary text. What steers the model must not come out of that, also where the vocabulary lists it as a piece
/// like any other.
fn text_merger(
    pieces: &[String],
    scores: &[f32],
    kinds: &[PieceKind],
    added: &AddedTokens,
    unk: u32,
) -> PieceMerger {
    let mut kinds = kinds.to_vec();
    for token in added.iter().filter(|token| token.control) {
        let id = token.id as usize;
        if pieces.get(id) == Some(&token.content) && kinds[id] != PieceKind::Unknown {
            kinds[id] = PieceKind::Control;
        }
    }
    PieceMerger::new(pieces, scores, &kinds, unk)
}

fn piece_kind(kind: GgufTokenType) -> PieceKind {
    match kind {
        GgufTokenType::Normal => PieceKind::Normal,
        GgufTokenType::Unknown => PieceKind::Unknown,
        GgufTokenType::Control => PieceKind::Control,
        GgufTokenType::UserDefined => PieceKind::UserDefined,
        GgufTokenType::Unused => PieceKind::Unused,
        GgufTokenType::Byte => PieceKind::Byte,
    }
}

/// The special tokens that a SentencePiece model itself names.
fn named_pieces(model: &SentencePieceModel, special: SpecialIds) -> AddedTokens {
    let ids = [special.unk, special.bos, special.eos, special.pad];
    AddedTokens::new(
        ids.into_iter()
            .flatten()
            .map(|id| AddedToken::new(model.pieces[id as usize].clone(), id, true)),
    )
}
