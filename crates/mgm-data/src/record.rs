use serde::Deserialize;
use serde_json::Value;

/// One record of a LLaVA-format file as written. Keys other than these three are ignored.
#[derive(Debug, Clone, PartialEq, Deserialize)]
pub struct Record {
    /// Any JSON value; only used to name the record.
    #[serde(default)]
    pub id: Value,
    /// `image`: a path relative to the image folder, or a list of paths. Empty when the record is text only.
    #[serde(default, deserialize_with = "one_or_many")]
    pub image: Vec<String>,
    /// The sentences in order.
    pub conversations: Vec<Sentence>,
}

/// One sentence of a conversation.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
pub struct Sentence {
    /// `human` or `gpt`.
    pub from: String,
    /// The text.
    pub value: String,
}

fn one_or_many<'de, D: serde::Deserializer<'de>>(deserializer: D) -> Result<Vec<String>, D::Error> {
    #[derive(Deserialize)]
    #[serde(untagged)]
    enum OneOrMany {
        None(()),
        One(String),
        Many(Vec<String>),
    }
    Ok(match OneOrMany::deserialize(deserializer)? {
        OneOrMany::None(()) => Vec::new(),
        OneOrMany::One(path) => vec![path],
        OneOrMany::Many(paths) => paths,
    })
}

/// A broken field: its path and what is wrong with it.
pub(crate) type FieldError = (String, String);

impl Record {
    /// Parses one record; the error names the field.
    pub(crate) fn parse(json: &[u8]) -> Result<Self, FieldError> {
        // The quick road first; only a record that fails it is looked at field by field.
        serde_json::from_slice::<Self>(json).map_err(|error| explain(json, &error))
    }

    /// The `id` for messages: strings in quotes, other values as JSON, `none` when absent.
    pub fn id_text(&self) -> String {
        id_text(&self.id)
    }

    /// Length in whitespace-separated words over all sentences, positive with an image and negative without
    /// (official `modality_lengths`).
    pub fn modality_length(&self) -> i64 {
        let words: usize = self
            .conversations
            .iter()
            .map(|sentence| sentence.value.split_whitespace().count())
            .sum();
        let words = i64::try_from(words).unwrap_or(i64::MAX);
        if self.image.is_empty() { -words } else { words }
    }
}

pub(crate) fn id_text(id: &Value) -> String {
    match id {
        Value::Null => "none".to_owned(),
        other => other.to_string(),
    }
}

fn kind(value: &Value) -> &'static str {
    match value {
        Value::Null => "null",
        Value::Bool(_) => "a boolean",
        Value::Number(_) => "a number",
        Value::String(_) => "a string",
        Value::Array(_) => "a list",
        Value::Object(_) => "an object",
    }
}

fn explain(json: &[u8], error: &serde_json::Error) -> FieldError {
    let value: Value = match serde_json::from_slice(json) {
        Ok(value) => value,
        Err(error) => return ("record".to_owned(), format!("not valid JSON: {error}")),
    };
    let Value::Object(fields) = &value else {
        return (
            "record".to_owned(),
            format!("expected an object, found {}", kind(&value)),
        );
    };
    match fields.get("image") {
        None | Some(Value::Null | Value::String(_)) => {}
        Some(Value::Array(paths)) => {
            if let Some((position, path)) =
                paths.iter().enumerate().find(|(_, path)| !path.is_string())
            {
                return (
                    format!("image[{position}]"),
                    format!("expected a path, found {}", kind(path)),
                );
            }
        }
        Some(other) => {
            return (
                "image".to_owned(),
                format!("expected a path or a list of paths, found {}", kind(other)),
            );
        }
    }
    let sentences = match fields.get("conversations") {
        None => return ("conversations".to_owned(), "missing".to_owned()),
        Some(Value::Array(sentences)) => sentences,
        Some(other) => {
            return (
                "conversations".to_owned(),
                format!("expected a list, found {}", kind(other)),
            );
        }
    };
    for (position, sentence) in sentences.iter().enumerate() {
        let Value::Object(parts) = sentence else {
            return (
                format!("conversations[{position}]"),
                format!("expected an object, found {}", kind(sentence)),
            );
        };
        for key in ["from", "value"] {
            match parts.get(key) {
                Some(Value::String(_)) => {}
                None => {
                    return (
                        format!("conversations[{position}].{key}"),
                        "missing".to_owned(),
                    );
                }
                Some(other) => {
                    return (
                        format!("conversations[{position}].{key}"),
                        format!("expected a string, found {}", kind(other)),
                    );
                }
            }
        }
    }
    ("record".to_owned(), error.to_string())
}

/// The `id` of a record that does not parse, as far as it can be found.
pub(crate) fn id_of_broken(json: &[u8]) -> String {
    serde_json::from_slice::<Value>(json)
        .ok()
        .as_ref()
        .and_then(|value| value.get("id"))
        .map_or_else(|| "none".to_owned(), id_text)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn one_path_many_paths_and_none() {
        let parse = |text: &str| Record::parse(text.as_bytes()).unwrap();
        let base = r#""conversations":[{"from":"human","value":"two words"},{"from":"gpt","value":"one"}]"#;
        assert_eq!(
            parse(&format!(r#"{{"id":7,"image":"a.png",{base}}}"#)).image,
            ["a.png"]
        );
        assert_eq!(
            parse(&format!(r#"{{"image":["a.png","b.png"],{base}}}"#)).image,
            ["a.png", "b.png"]
        );
        let text_only = parse(&format!(r#"{{"id":"x","image":null,"model":"?",{base}}}"#));
        assert!(text_only.image.is_empty());
        assert_eq!(text_only.modality_length(), -3);
        assert_eq!(text_only.id_text(), "\"x\"");
        assert_eq!(
            parse(&format!(r#"{{"image":"a.png",{base}}}"#)).modality_length(),
            3
        );
    }

    #[test]
    fn errors_name_the_field() {
        let field = |text: &str| Record::parse(text.as_bytes()).unwrap_err();
        assert_eq!(field(r#"{"id":1}"#).0, "conversations");
        assert_eq!(
            field(r#"{"conversations":[{"from":"human"}]}"#),
            ("conversations[0].value".into(), "missing".into())
        );
        let (path, message) = field(r#"{"conversations":[{"from":"human","value":3}]}"#);
        assert_eq!(
            (path.as_str(), message.as_str()),
            (
                "conversations[0].value",
                "expected a string, found a number"
            )
        );
        assert_eq!(field(r#"{"image":4,"conversations":[]}"#).0, "image");
        assert_eq!(
            field(r#"{"image":["a",4],"conversations":[]}"#).0,
            "image[1]"
        );
        assert_eq!(field(r#"[1]"#).1, "expected an object, found a list");
    }
}
