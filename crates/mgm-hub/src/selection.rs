//! Which of a repository's files are wanted.

use glob::{MatchOptions, Pattern};

use crate::error::{Error, Result};
use crate::listing::File;

/// Weights and programs of other frameworks, and duplicates of what safetensors hold. The projector and adapter files of
/// training (`mm_projector.bin`, `adapter_model.bin`, `non_lora_trainables.bin`) are not among them.
const OTHER_FRAMEWORKS: [&str; 8] = [
    "*.h5",
    "*.msgpack",
    "*.ot",
    "*.onnx",
    "*.mlmodel",
    "*.tflite",
    "onnx/*",
    "original/*",
];
const TORCH_DUPLICATES: [&str; 3] = [
    "pytorch_model*.bin",
    "pytorch_model.bin.index.json",
    "consolidated*.pth",
];

/// The files of a repository to download.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Selection(Vec<Pattern>);

impl Selection {
    /// Files that match any of the patterns; `*` matches `/` too, as in the `hf` tool. Without a pattern everything but other
    /// frameworks' weights, and torch files only where there are no safetensors.
    ///
    /// # Errors
    /// When a pattern is malformed.
    pub fn new<S: AsRef<str>>(patterns: &[S]) -> Result<Self> {
        patterns
            .iter()
            .map(|text| {
                Pattern::new(text.as_ref()).map_err(|error| Error::Pattern {
                    pattern: text.as_ref().into(),
                    reason: error.msg.into(),
                })
            })
            .collect::<Result<_>>()
            .map(Self)
    }

    /// The patterns, for messages.
    pub(crate) fn patterns(&self) -> String {
        let patterns: Vec<&str> = self.0.iter().map(Pattern::as_str).collect();
        patterns.join(", ")
    }

    /// Those of `files` that are wanted.
    pub(crate) fn of(&self, files: Vec<File>) -> Vec<File> {
        if !self.0.is_empty() {
            let wanted = |file: &File| self.0.iter().any(|pattern| pattern.matches(&file.name));
            return files.into_iter().filter(wanted).collect();
        }
        let whole = files.iter().any(|file| {
            matches!(
                file.name.as_str(),
                "model.safetensors" | "model.safetensors.index.json"
            )
        });
        let unwanted = |name: &str| {
            matches(&OTHER_FRAMEWORKS, name) || (whole && matches(&TORCH_DUPLICATES, name))
        };
        files
            .into_iter()
            .filter(|file| !unwanted(&file.name))
            .collect()
    }
}

fn matches(patterns: &[&str], name: &str) -> bool {
    patterns.iter().any(|text| {
        Pattern::new(text).is_ok_and(|pattern| pattern.matches_with(name, MatchOptions::default()))
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn select(patterns: &[&str], names: &[&str]) -> Vec<String> {
        let files = names.iter().map(|name| File {
            name: (*name).into(),
            size: None,
            checksum: None,
        });
        let selection = Selection::new(patterns).unwrap();
        selection
            .of(files.collect())
            .into_iter()
            .map(|file| file.name)
            .collect()
    }

    #[test]
    fn duplicates_are_left_out_unless_asked_for() {
        let names = [
            "config.json",
            "model-00001-of-00002.safetensors",
            "model.safetensors.index.json",
            "mm_projector.bin",
            "onnx/model.onnx",
            "original/consolidated.00.pth",
            "pytorch_model-00001-of-00002.bin",
            "pytorch_model.bin.index.json",
            "tf_model.h5",
        ];
        assert_eq!(select(&[], &names), names[..4]);
        assert_eq!(select(&["*"], &names), names);
        assert_eq!(
            select(&["*.json", "onnx/*"], &names),
            [names[0], names[2], names[4], names[7]]
        );
        let torch = ["config.json", "pytorch_model.bin"];
        assert_eq!(select(&[], &torch), torch);
        assert!(Selection::new(&["a[b"]).is_err());
    }
}
