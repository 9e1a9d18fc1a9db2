//! Reading data files.
//!
//! A data file is a JSON array, or one JSON object a line, of records:
//!
//! ```json
//! {"id": "chelsea", "image": "chelsea.jpg", "question": "What animal is this?", "answers": ["cat"], "match": "contains"}
//! ```
//!
//! `image` is relative to the image folder and may be left out (a question without a picture); `match` defaults to `exact`. Further keys
//! with `true` or `false` divide the records into parts that are also scored by themselves; other keys are ignored.

use std::collections::{BTreeMap, HashSet};
use std::path::{Path, PathBuf};

use serde::Deserialize;

use crate::error::EvalError;

/// How an answer is compared with the accepted ones.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Match {
    /// Equal after normalisation.
    #[default]
    Exact,
    /// The accepted answer stands in the given one, as whole words.
    Contains,
}

/// One question.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize)]
pub struct Record {
    /// Unique within its file.
    #[serde(deserialize_with = "text_or_number")]
    pub id: String,
    /// The picture, relative to the image folder.
    #[serde(default)]
    pub image: Option<PathBuf>,
    /// The question as asked.
    pub question: String,
    /// Every accepted answer; at least one.
    pub answers: Vec<String>,
    /// How to compare.
    #[serde(default, rename = "match")]
    pub comparison: Match,
    /// Every further key.
    #[serde(flatten)]
    pub more: BTreeMap<String, serde_json::Value>,
}

impl Record {
    /// The further keys that are true or false.
    pub fn flags(&self) -> impl Iterator<Item = (&str, bool)> {
        self.more
            .iter()
            .filter_map(|(key, value)| Some((key.as_str(), value.as_bool()?)))
    }
}

fn text_or_number<'de, D: serde::Deserializer<'de>>(deserializer: D) -> Result<String, D::Error> {
    #[derive(Deserialize)]
    #[serde(untagged)]
    enum Id {
        Text(String),
        Number(u64),
    }
    Ok(match Id::deserialize(deserializer)? {
        Id::Text(text) => text,
        Id::Number(number) => number.to_string(),
    })
}

/// The records of one file.
#[derive(Clone, Debug)]
pub struct DataFile {
    /// The file's own name, without folders: answers and scores are kept under it.
    pub name: String,
    /// Where its pictures are.
    pub image_folder: PathBuf,
    /// In file order.
    pub records: Vec<Record>,
}

impl DataFile {
    /// Reads and checks a data file. Pictures are looked for in `image_folder`, or beside the file when that is `None`.
    ///
    /// # Errors
    /// When the file cannot be read, is not JSON of the expected shape, has no record, repeats an id, or a record accepts no answer.
    pub fn read(path: &Path, image_folder: Option<&Path>) -> Result<Self, EvalError> {
        let bad = |message: String| EvalError::Data {
            path: path.into(),
            message,
        };
        let text = std::fs::read_to_string(path).map_err(|source| EvalError::Io {
            path: path.into(),
            source,
        })?;
        let records = parse(&text).map_err(bad)?;
        if records.is_empty() {
            return Err(bad("expected at least one record, found none".into()));
        }
        let mut seen = HashSet::new();
        for record in &records {
            if !seen.insert(record.id.as_str()) {
                return Err(bad(format!("the id {:?} stands twice", record.id)));
            }
            if record
                .answers
                .iter()
                .all(|answer| crate::scoring::normalise(answer).is_empty())
            {
                return Err(bad(format!("record {:?} accepts no answer", record.id)));
            }
        }
        let image_folder = match image_folder {
            Some(folder) => folder.to_path_buf(),
            None => path.parent().unwrap_or(Path::new("")).to_path_buf(),
        };
        let name = path
            .file_name()
            .unwrap_or(path.as_os_str())
            .to_string_lossy()
            .into_owned();
        Ok(Self {
            name,
            image_folder,
            records,
        })
    }

    /// Where the picture of a record is.
    pub fn picture(&self, record: &Record) -> Option<PathBuf> {
        record
            .image
            .as_ref()
            .map(|image| self.image_folder.join(image))
    }
}

fn parse(text: &str) -> Result<Vec<Record>, String> {
    if text.trim_start().starts_with('[') {
        return serde_json::from_str(text).map_err(|error| error.to_string());
    }
    text.lines()
        .enumerate()
        .filter(|(_, line)| !line.trim().is_empty())
        .map(|(index, line)| {
            serde_json::from_str(line).map_err(|error| format!("line {}: {error}", index + 1))
        })
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn arrays_and_lines_are_read_alike() {
        let lines = "{\"id\":1,\"question\":\"q\",\"answers\":[\"a\"]}\n\n{\"id\":\"b\",\"image\":\"x.png\",\"question\":\"q\",\"answers\":[\"a\"],\"match\":\"contains\"}\n";
        let array = format!(
            "[{}]",
            lines
                .lines()
                .filter(|line| !line.is_empty())
                .collect::<Vec<_>>()
                .join(",")
        );
        let records = parse(lines).unwrap();
        assert_eq!(records, parse(&array).unwrap());
        assert_eq!(records[0].id, "1");
        assert_eq!(records[0].comparison, Match::Exact);
        assert_eq!(records[1].comparison, Match::Contains);
        assert_eq!(records[1].image.as_deref(), Some(Path::new("x.png")));
    }

    #[test]
    fn a_bad_line_is_named() {
        let error =
            parse("{\"id\":1,\"question\":\"q\",\"answers\":[\"a\"]}\n{\"id\":2}").unwrap_err();
        assert!(
            error.contains("line 2") && error.contains("question"),
            "{error}"
        );
        let error =
            parse("[{\"id\":1,\"question\":\"q\",\"answers\":[\"a\"],\"match\":\"loose\"}]")
                .unwrap_err();
        assert!(error.contains("loose"), "{error}");
    }
}
