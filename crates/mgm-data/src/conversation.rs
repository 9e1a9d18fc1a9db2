use mgm_text::Role;

use crate::record::{FieldError, Record};

/// The literal that stands for one picture inside a sentence.
pub const IMAGE_PLACEHOLDER: &str = "<image>";

/// A record after the official normalisation: roles known and alternating (user first), at most one group of `<image>` placeholders per
/// sentence, at its front, as many placeholders as pictures.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Conversation {
    /// (role, text) in order; the first is the user's, the last the assistant's.
    pub messages: Vec<(Role, String)>,
    /// Paths as written in the record, in the order of the placeholders.
    pub images: Vec<String>,
}

impl Conversation {
    /// Applies the official rules to a record.
    ///
    /// A leading sentence that is not the human's is dropped, then roles must alternate and the last word must be the assistant's.
    /// In records with a picture, a sentence that contains `<image>` loses all its occurrences, is stripped, and gets `<image>⏎` in front.
    /// Beyond the official code: a record with several pictures keeps as many placeholders per sentence as were written, and the number
    /// of placeholders must equal the number of pictures (the official code would mix up pictures of neighbouring records).
    ///
    /// # Errors
    /// The field and what is wrong with it.
    pub(crate) fn from_record(record: &Record) -> Result<Self, FieldError> {
        let mut messages = Vec::with_capacity(record.conversations.len());
        let mut placeholders = 0;
        for (position, sentence) in record.conversations.iter().enumerate() {
            let role = match sentence.from.as_str() {
                "human" => Role::User,
                "gpt" => Role::Assistant,
                // The official code drops the first sentence unless it is the human's, whoever speaks.
                _ if position == 0 => continue,
                other => {
                    return Err((
                        format!("conversations[{position}].from"),
                        format!("expected \"human\" or \"gpt\", found {other:?}"),
                    ));
                }
            };
            if messages.is_empty() && role == Role::Assistant {
                if position == 0 {
                    continue;
                }
                return Err((
                    format!("conversations[{position}].from"),
                    "expected \"human\" (roles must alternate), found \"gpt\"".to_owned(),
                ));
            }
            if let Some((previous, _)) = messages.last()
                && *previous == role
            {
                let (expected, found) = if role == Role::User {
                    ("gpt", "human")
                } else {
                    ("human", "gpt")
                };
                return Err((
                    format!("conversations[{position}].from"),
                    format!("expected {expected:?} (roles must alternate), found {found:?}"),
                ));
            }
            let text = if record.image.is_empty() {
                sentence.value.clone()
            } else {
                let (text, count) = normalise_sentence(&sentence.value, record.image.len() > 1);
                placeholders += count;
                text
            };
            if text.is_empty() {
                return Err((
                    format!("conversations[{position}].value"),
                    "expected some text, found an empty sentence".to_owned(),
                ));
            }
            messages.push((role, text));
        }
        match messages.last() {
            None => {
                return Err((
                    "conversations".to_owned(),
                    "expected a question and an answer, found none".to_owned(),
                ));
            }
            Some((Role::User, _)) => {
                return Err((
                    "conversations".to_owned(),
                    "expected the last sentence to be from \"gpt\", found \"human\"".to_owned(),
                ));
            }
            Some(_) => {}
        }
        if placeholders != record.image.len() {
            return Err((
                "image".to_owned(),
                format!(
                    "expected as many `<image>` placeholders as pictures ({}), found {placeholders}",
                    record.image.len()
                ),
            ));
        }
        Ok(Self {
            messages,
            images: record.image.clone(),
        })
    }

    /// Whether the record has a picture (decides between the image-aware and the ordinary tokenisation).
    pub fn has_image(&self) -> bool {
        !self.images.is_empty()
    }
}

/// Official `preprocess_multimodal` for one sentence; returns the text and its number of placeholders.
fn normalise_sentence(text: &str, several: bool) -> (String, usize) {
    let found = text.matches(IMAGE_PLACEHOLDER).count();
    if found == 0 {
        return (text.to_owned(), 0);
    }
    let kept = if several { found } else { 1 };
    let rest = text.replace(IMAGE_PLACEHOLDER, "");
    let mut normalised = format!("{IMAGE_PLACEHOLDER}\n").repeat(kept);
    normalised.push_str(rest.trim());
    (normalised.trim().to_owned(), kept)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::record::Sentence;

    fn record(images: &[&str], sentences: &[(&str, &str)]) -> Record {
        Record {
            id: serde_json::Value::Null,
            image: images.iter().map(|path| (*path).to_owned()).collect(),
            conversations: sentences
                .iter()
                .map(|(from, value)| Sentence {
                    from: (*from).into(),
                    value: (*value).into(),
                })
                .collect(),
        }
    }

    #[test]
    fn placeholder_moves_to_the_front_once() {
        let conversation = Conversation::from_record(&record(
            &["a.png"],
            &[
                (
                    "human",
                    "What is the total?\n<image>\n Reference OCR token: Total,12.40 ",
                ),
                ("gpt", " 12.40 "),
            ],
        ))
        .unwrap();
        assert_eq!(
            conversation.messages[0].1,
            "<image>\nWhat is the total?\n\n Reference OCR token: Total,12.40"
        );
        // A sentence without placeholder stays as it is, white space included.
        assert_eq!(conversation.messages[1].1, " 12.40 ");
        let alone = Conversation::from_record(&record(
            &["a.png"],
            &[("human", " <image>\n"), ("gpt", "A cat.")],
        ))
        .unwrap();
        assert_eq!(alone.messages[0].1, "<image>");
        let doubled = Conversation::from_record(&record(
            &["a.png"],
            &[("human", "<image> and <image>"), ("gpt", "x")],
        ))
        .unwrap();
        assert_eq!(doubled.messages[0].1, "<image>\nand");
    }

    #[test]
    fn text_only_is_untouched_and_leading_answer_dropped() {
        let conversation = Conversation::from_record(&record(
            &[],
            &[
                ("gpt", "Hello"),
                ("human", "what does <image> mean?"),
                ("gpt", "a tag"),
            ],
        ))
        .unwrap();
        assert_eq!(conversation.messages.len(), 2);
        assert_eq!(conversation.messages[0].1, "what does <image> mean?");
        let system = Conversation::from_record(&record(
            &[],
            &[("system", "s"), ("human", "q"), ("gpt", "a")],
        ))
        .unwrap();
        assert_eq!(system.messages.len(), 2);
    }

    #[test]
    fn several_pictures_keep_their_placeholders() {
        let conversation = Conversation::from_record(&record(
            &["a", "b"],
            &[("human", "<image><image> differ?"), ("gpt", "yes")],
        ))
        .unwrap();
        assert_eq!(conversation.messages[0].1, "<image>\n<image>\ndiffer?");
    }

    #[test]
    fn broken_conversations() {
        let error = |images: &[&str], sentences: &[(&str, &str)]| {
            Conversation::from_record(&record(images, sentences))
                .unwrap_err()
                .0
        };
        assert_eq!(
            error(&[], &[("human", "a"), ("human", "b")]),
            "conversations[1].from"
        );
        assert_eq!(
            error(&[], &[("human", "a"), ("robot", "b")]),
            "conversations[1].from"
        );
        assert_eq!(
            error(&[], &[("human", "a"), ("gpt", "")]),
            "conversations[1].value"
        );
        assert_eq!(error(&[], &[("human", "a")]), "conversations");
        assert_eq!(error(&[], &[]), "conversations");
        assert_eq!(error(&["a"], &[("human", "no tag"), ("gpt", "b")]), "image");
        assert_eq!(
            error(
                &["a"],
                &[
                    ("human", "<image>"),
                    ("gpt", "b"),
                    ("human", "<image>"),
                    ("gpt", "b")
                ]
            ),
            "image"
        );
        assert_eq!(
            error(&["a", "b"], &[("human", "<image>"), ("gpt", "b")]),
            "image"
        );
        assert_eq!(
            error(&[], &[("gpt", "a"), ("gpt", "b")]),
            "conversations[1].from"
        );
    }
}
