//! Files that the fuzz targets found a fault with, by target: each gives one error of one line, or opens.

#![allow(clippy::unwrap_used)]

use std::path::{Path, PathBuf};

use mgm_nn::WeightSource;

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

#[test]
fn gguf() {
    let folder = std::env::temp_dir().join(format!("mgm-found-gguf-{}", std::process::id()));
    std::fs::create_dir_all(&folder).unwrap();
    for file in found("gguf") {
        let path = folder.join("model.gguf");
        std::fs::copy(&file, &path).unwrap();
        let error = WeightSource::open(&path).err().map(|e| e.to_string());
        let error = error.unwrap_or_else(|| panic!("{} opens", file.display()));
        assert!(!error.contains('\n'), "{error:?}");
        assert!(error.contains("model.gguf"), "{error}");
    }
    std::fs::remove_dir_all(&folder).unwrap();
}
