//! Label masks: which ids of a rendered conversation are learnt.
//!
//! The rules of the released models are implemented literally (training §6), because the models were trained with their quirks: each round of
//! the conversation is tokenised on its own and the lengths are added up. The ChatML rule of the small built-in model looks at the ids of the
//! whole conversation instead, which needs no such arithmetic.

use mgm_text::{IGNORE_LABEL, Tokenizer};

use crate::conversation::IMAGE_PLACEHOLDER;
use crate::error::MaskError;

/// What masking needs of a tokeniser; [`Tokenizer`] has it.
pub trait ConversationEncoder {
    /// Ordinary tokenisation with automatic BOS; special strings become their ids.
    ///
    /// # Errors
    /// The tokeniser's message.
    fn encode(&self, text: &str) -> Result<Vec<i64>, MaskError>;
    /// The official image-aware tokenisation: like [`Self::encode`] with -200 for each `<image>`.
    ///
    /// # Errors
    /// The tokeniser's message.
    fn encode_with_images(&self, text: &str) -> Result<Vec<i64>, MaskError>;
    /// The `legacy` attribute of the slow Llama tokeniser.
    fn is_legacy(&self) -> bool;
    /// Whether a beginning-of-sequence id is added in front.
    fn adds_bos(&self) -> bool;
    /// The padding id, which is not counted in the length of a conversation.
    fn pad(&self) -> Option<i64>;
    /// The id of a special token.
    fn special(&self, token: &str) -> Option<i64>;
}

impl ConversationEncoder for Tokenizer {
    fn encode(&self, text: &str) -> Result<Vec<i64>, MaskError> {
        let ids = self
            .encode_parse(text, true, true)
            .map_err(|error| MaskError::Tokenise(error.to_string()))?;
        Ok(ids.into_iter().map(i64::from).collect())
    }

    fn encode_with_images(&self, text: &str) -> Result<Vec<i64>, MaskError> {
        mgm_text::encode_with_images(self, text)
            .map_err(|error| MaskError::Tokenise(error.to_string()))
    }

    fn is_legacy(&self) -> bool {
        Self::is_legacy(self)
    }

    fn adds_bos(&self) -> bool {
        Self::adds_bos(self)
    }

    fn pad(&self) -> Option<i64> {
        Self::pad(self).map(i64::from)
    }

    fn special(&self, token: &str) -> Option<i64> {
        self.token_to_id(token).map(i64::from)
    }
}

/// How the answers of a template are found (the `version` of the official templates).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum MaskRule {
    /// Vicuna.
    V1,
    /// Llama-2 and Mixtral (`mistral_instruct`).
    LlamaV2,
    /// Gemma.
    Gemma,
    /// Llama-3, whose assistant header says `system`.
    Llama3,
    /// ChatML as Yi-34B uses it, without newlines after `<|im_end|>`.
    Mpt,
    /// ChatML with newlines (SmolLM2): answers and their `<|im_end|>` found in the ids of the whole.
    ChatMl,
    /// A picture and its caption.
    Plain,
}

impl MaskRule {
    /// The rule of a template, `None` for templates nobody trains with.
    pub fn for_template(name: &str) -> Option<Self> {
        Some(match name {
            "v1" | "vicuna_v1" | "llava_v1" => Self::V1,
            "mistral_instruct" | "llama_2" | "llava_llama_2" => Self::LlamaV2,
            "gemma" => Self::Gemma,
            "llama_3" => Self::Llama3,
            "chatml_direct" | "mistral_direct" | "mpt" => Self::Mpt,
            "smol" | "smollm2" => Self::ChatMl,
            "plain" => Self::Plain,
            _ => return None,
        })
    }
}

/// What to do when the rounds do not add up.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, serde::Serialize, serde::Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum MaskMismatch {
    /// An error that names the record.
    #[default]
    Error,
    /// The official behaviour: nothing of the record is learnt.
    MaskWhole,
}

/// Ids and labels of one rendered conversation; labels are -100 where nothing is learnt, otherwise equal to the ids.
///
/// `max_length` is the tokeniser's limit: ids of a text-only conversation beyond it are cut before masking, as officially; with pictures the
/// ids are left whole. For [`MaskRule::Plain`], `rendered` is the placeholder directly followed by the caption and a newline.
///
/// # Errors
/// [`MaskError`] under [`MaskMismatch::Error`] when the rounds do not add up, and when a ChatML conversation has another structure than rendered.
pub fn mask_rendered(
    rule: MaskRule,
    rendered: &str,
    answers: usize,
    has_image: bool,
    encoder: &dyn ConversationEncoder,
    max_length: usize,
    mismatch: MaskMismatch,
) -> Result<(Vec<i64>, Vec<i64>), MaskError> {
    let encode = |text: &str| {
        if has_image {
            encoder.encode_with_images(text)
        } else {
            encoder.encode(text)
        }
    };
    let mut ids = encode(rendered)?;
    let mut labels = ids.clone();
    match rule {
        MaskRule::Plain => {
            // BOS (if any) and the placeholder; the caption and its newline are learnt.
            let masked = encoder
                .encode_with_images(IMAGE_PLACEHOLDER)?
                .len()
                .min(labels.len());
            labels[..masked].fill(IGNORE_LABEL);
        }
        MaskRule::ChatMl => match chatml_labels(&ids, answers, encoder) {
            Ok(found) => labels = found,
            Err(error) if mismatch == MaskMismatch::Error => return Err(error),
            Err(_) => labels.fill(IGNORE_LABEL),
        },
        _ => {
            if !has_image {
                ids.truncate(max_length);
                labels.truncate(max_length);
            }
            let total = ids.iter().filter(|&&id| Some(id) != encoder.pad()).count();
            let current = mask_rounds(rule, rendered, &mut labels, &encode, encoder.is_legacy())?;
            if current < max_length && current != total {
                if mismatch == MaskMismatch::Error {
                    return Err(MaskError::Mismatch {
                        rounds: current,
                        whole: total,
                    });
                }
                labels.fill(IGNORE_LABEL);
            }
        }
    }
    Ok((ids, labels))
}

/// Official per-template constants: separator of rounds, separator inside a round.
fn separators(rule: MaskRule) -> (&'static str, &'static str) {
    match rule {
        MaskRule::V1 => ("</s>", " ASSISTANT: "),
        MaskRule::LlamaV2 => ("</s>", "[/INST] "),
        MaskRule::Gemma => ("<eos>", "<start_of_turn>model\n"),
        MaskRule::Llama3 => (
            "<|eot_id|>",
            "<|eot_id|><|start_header_id|>system<|end_header_id|>\n\n",
        ),
        MaskRule::Mpt | MaskRule::ChatMl | MaskRule::Plain => {
            ("<|im_end|>", "<|im_end|><|im_start|>assistant\n")
        }
    }
}

/// The official loop over rounds; returns the position it reached.
fn mask_rounds(
    rule: MaskRule,
    rendered: &str,
    labels: &mut [i64],
    encode: &dyn Fn(&str) -> Result<Vec<i64>, MaskError>,
    legacy: bool,
) -> Result<usize, MaskError> {
    let (end, separator) = separators(rule);
    let pieces: Vec<&str> = rendered.split(end).collect();
    let rounds: Vec<String> = if matches!(rule, MaskRule::Llama3 | MaskRule::Mpt) {
        // System, first question and first answer belong together; then question and answer in pairs.
        let mut rounds = vec![pieces[..pieces.len().min(3)].join(end)];
        rounds.extend(
            pieces
                .get(3..)
                .unwrap_or_default()
                .chunks(2)
                .map(|pair| pair.join(end)),
        );
        rounds
    } else {
        pieces.into_iter().map(str::to_owned).collect()
    };
    let mut current = if rule == MaskRule::Mpt { 0 } else { 1 };
    ignore(labels, 0, current);
    for (number, round) in rounds.iter().enumerate() {
        if round.is_empty() {
            break;
        }
        let parts: Vec<&str> = round.split(separator).collect();
        if parts.len() != 2 {
            break;
        }
        let head = format!("{}{separator}", parts[0]);
        let round_ids = encode(round)?.len();
        let head_ids = encode(&head)?.len();
        let (round_length, instruction_length) = match rule {
            // BOS and the space at the end of the head, which in context joins the answer's first word. After `</s>` a non-legacy
            // tokeniser puts no dummy "▁", a round tokenised alone has one.
            MaskRule::V1 if number > 0 && !legacy => {
                (round_ids.saturating_sub(1), head_ids.saturating_sub(3))
            }
            MaskRule::V1 | MaskRule::LlamaV2 => (round_ids, head_ids.saturating_sub(2)),
            // BOS stands for the end token that the split removed.
            MaskRule::Gemma | MaskRule::Llama3 => (round_ids, head_ids.saturating_sub(1)),
            MaskRule::Mpt if legacy => (round_ids + 1, head_ids),
            MaskRule::Mpt | MaskRule::ChatMl | MaskRule::Plain => {
                (round_ids, head_ids.saturating_sub(1))
            }
        };
        ignore(labels, current, instruction_length);
        current += round_length;
    }
    if current < labels.len() {
        labels[current..].fill(IGNORE_LABEL);
    }
    Ok(current)
}

fn ignore(labels: &mut [i64], start: usize, count: usize) {
    let end = (start + count).min(labels.len());
    if start < end {
        labels[start..end].fill(IGNORE_LABEL);
    }
}

/// ChatML with newlines: between `<|im_start|>` + the ids of `assistant⏎` and `<|im_end|>` inclusive.
fn chatml_labels(
    ids: &[i64],
    answers: usize,
    encoder: &dyn ConversationEncoder,
) -> Result<Vec<i64>, MaskError> {
    let special = |token: &str| {
        encoder.special(token).ok_or_else(|| {
            MaskError::Template(format!(
                "the tokeniser has no {token} token, which the template needs"
            ))
        })
    };
    let start = special("<|im_start|>")?;
    let end = special("<|im_end|>")?;
    let mut header = encoder.encode("assistant\n")?;
    // SmolLM2's BOS is `<|im_start|>` itself, so an added one must not be taken for the start of a turn.
    let skipped = usize::from(encoder.adds_bos());
    header.drain(..skipped.min(header.len()));

    let mut labels = vec![IGNORE_LABEL; ids.len()];
    let mut position = skipped;
    let mut found = 0;
    while position < ids.len() {
        if ids[position] != start {
            position += 1;
            continue;
        }
        let body = position + 1;
        let Some(length) = ids[body..].iter().position(|&id| id == end || id == start) else {
            return Err(MaskError::Structure(format!(
                "the turn that starts at id {position} has no <|im_end|>"
            )));
        };
        if ids[body + length] == start {
            return Err(MaskError::Structure(format!(
                "the turn that starts at id {position} has no <|im_end|> before the next turn"
            )));
        }
        if ids[body..body + length].starts_with(&header) {
            let answer = body + header.len()..=body + length;
            labels[answer.clone()].copy_from_slice(&ids[answer]);
            found += 1;
        } else if header.len() > 1
            && ids[body..body + length].starts_with(&header[..header.len() - 1])
        {
            return Err(MaskError::Structure(format!(
                "the answer at id {body} melts into its header `assistant⏎`; does it begin with white space?"
            )));
        }
        position = body + length + 1;
    }
    if found != answers {
        return Err(MaskError::Structure(format!(
            "expected {answers} answers among the ids, found {found}"
        )));
    }
    Ok(labels)
}
