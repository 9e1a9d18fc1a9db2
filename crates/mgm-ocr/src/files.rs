//! Where the networks are.

use std::path::{Path, PathBuf};

use crate::error::{OcrError, Result};

/// Environment variable that names the folder of the networks. The command line reads it.
pub const MODELS_VARIABLE: &str = "MGM_OCR_MODELS";

/// The three networks of PP-OCR, as ONNX files.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ModelFiles {
    /// Finds text.
    pub detection: PathBuf,
    /// Tells upright lines from those upside down.
    pub orientation: PathBuf,
    /// Reads lines; its metadata holds the characters.
    pub recognition: PathBuf,
}

impl ModelFiles {
    /// The networks in `directory`, told apart by `det`, `cls` and `rec` as a word of their names, as in `PP-OCRv6_det_small.onnx`.
    ///
    /// # Errors
    /// When the folder cannot be read, or one of the networks is missing or there twice.
    pub fn in_directory(directory: &Path) -> Result<Self> {
        let failure = |error| OcrError::Directory {
            directory: directory.into(),
            error,
        };
        let mut files = Vec::new();
        for entry in std::fs::read_dir(directory).map_err(failure)? {
            let path = entry.map_err(failure)?.path();
            if path
                .extension()
                .is_some_and(|extension| extension == "onnx")
            {
                files.push(path);
            }
        }
        files.sort();
        let find = |part: &'static str, word: &str| {
            let named: Vec<&PathBuf> = files.iter().filter(|path| has_word(path, word)).collect();
            match named[..] {
                [one] => Ok(one.clone()),
                _ => Err(OcrError::Ambiguous {
                    directory: directory.into(),
                    part,
                    pattern: format!("*_{word}_*.onnx"),
                    found: match named.len() {
                        0 => "none".into(),
                        count => count.to_string(),
                    },
                }),
            }
        };
        Ok(Self {
            detection: find("text detection", "det")?,
            orientation: find("line orientation", "cls")?,
            recognition: find("text recognition", "rec")?,
        })
    }

    /// The networks in `named`, or without that in `mgm/ocr` in the user's data folder.
    ///
    /// # Errors
    /// When the folder is not there or lacks a network.
    pub fn find(named: Option<&Path>) -> Result<Self> {
        if let Some(directory) = named {
            return Self::in_directory(directory);
        }
        match data_folder().map(|folder| folder.join("mgm/ocr")) {
            Some(directory) if directory.is_dir() => Self::in_directory(&directory),
            directory => Err(OcrError::NotFound {
                usual: directory.unwrap_or_else(|| "mgm/ocr".into()),
            }),
        }
    }
}

fn has_word(path: &Path, word: &str) -> bool {
    path.file_stem().is_some_and(|stem| {
        stem.to_string_lossy()
            .split(|c: char| !c.is_ascii_alphanumeric())
            .any(|part| part.eq_ignore_ascii_case(word))
    })
}

/// The user's folder for data of programs.
fn data_folder() -> Option<PathBuf> {
    let folder = |variable: &str| {
        std::env::var_os(variable)
            .map(PathBuf::from)
            .filter(|path| path.is_absolute())
    };
    if cfg!(windows) {
        folder("LOCALAPPDATA")
    } else {
        folder("XDG_DATA_HOME").or_else(|| Some(folder("HOME")?.join(".local/share")))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn networks_are_told_apart_by_name() {
        let folder = std::env::temp_dir().join(format!("mgm-ocr-files-{}", std::process::id()));
        std::fs::create_dir_all(&folder).unwrap();
        let put = |name: &str| std::fs::write(folder.join(name), b"").unwrap();
        put("PP-OCRv6_det_small.onnx");
        put("recipes-detail.onnx");
        put("PP-OCRv6_rec_small.onnx");
        let missing = ModelFiles::in_directory(&folder).unwrap_err().to_string();
        assert!(
            missing.contains("line orientation") && missing.contains("found none"),
            "{missing}"
        );
        put("ch_ppocr_mobile_v2.0_cls_mobile.onnx");
        let files = ModelFiles::find(Some(&folder)).unwrap();
        assert!(files.detection.ends_with("PP-OCRv6_det_small.onnx"));
        assert!(files.recognition.ends_with("PP-OCRv6_rec_small.onnx"));
        put("other_DET.onnx");
        let twice = ModelFiles::in_directory(&folder).unwrap_err().to_string();
        assert!(twice.contains("found 2"), "{twice}");
        std::fs::remove_dir_all(&folder).unwrap();
        let gone = ModelFiles::in_directory(&folder).unwrap_err();
        assert!(matches!(gone, OcrError::Directory { .. }), "{gone}");
    }
}
