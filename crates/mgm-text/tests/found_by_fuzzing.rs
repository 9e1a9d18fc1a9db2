//! Files that the fuzz targets found a fault with, by target: each gives one error of one line.

#![allow(clippy::unwrap_used)]

use std::path::{Path, PathBuf};

use mgm_text::Tokenizer;

/// The files of a target.
fn found(target: &str) -> Vec<PathBuf> {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR"))
        .join("tests/fixtures/found")
        .join(target);
    let files: Vec<PathBuf> = std::fs::read_dir(folder)
        .unwrap()
        .map(|entry| entry.unwrap().path())
        .collect();
    assert!(!files.is_empty());
    files
}

/// Opens every file of a target under a name the reader knows.
fn each_gives_one_line(target: &str, name: &str) {
    let folder = std::env::temp_dir().join(format!("mgm-found-{target}-{}", std::process::id()));
    std::fs::create_dir_all(&folder).unwrap();
    for file in found(target) {
        let path = folder.join(name);
        std::fs::copy(&file, &path).unwrap();
        let error = Tokenizer::from_file(&path).unwrap_err().to_string();
        assert!(!error.contains('\n'), "{}: {error:?}", file.display());
        assert!(error.contains(name), "{}: {error}", file.display());
    }
    std::fs::remove_dir_all(&folder).unwrap();
}

#[test]
fn gguf_vocabulary() {
    each_gives_one_line("gguf_vocabulary", "model.gguf");
}

#[test]
fn tokenizer_json() {
    each_gives_one_line("tokenizer_json", "tokenizer.json");
}

/// The `tokenizers` crate trusts these tables blindly.
#[test]
fn tables_of_characters_are_refused() {
    let folder = std::env::temp_dir().join(format!("mgm-charsmap-{}", std::process::id()));
    std::fs::create_dir_all(&folder).unwrap();
    let path = folder.join("tokenizer.json");
    let file = r#"{"version":"1.0","truncation":null,"padding":null,"added_tokens":[],"pre_tokenizer":null,"post_processor":null,"decoder":null,
        "normalizer":{"type":"Sequence","normalizers":[{"type":"NFC"},{"type":"Precompiled","precompiled_charsmap":"AAAA"}]},
        "model":{"type":"BPE","vocab":{"a":0},"merges":[]}}"#;
    std::fs::write(&path, file).unwrap();
    let error = Tokenizer::from_file(&path).unwrap_err().to_string();
    assert!(error.contains("Precompiled"), "{error}");
    std::fs::remove_dir_all(&folder).unwrap();
}
