//! What the integration tests share: finding files and comparing against vectors.

// Each test program uses a part of this module.
#![allow(dead_code, unreachable_pub)]

use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicUsize, Ordering};

use mgm_text::{GgufVocab, Tokenizer};
use serde::Deserialize;

/// Expected ids made by a reference implementation.
#[derive(Deserialize)]
pub struct Vectors {
    /// The library and version that made them.
    pub reference: String,
    /// Contents of the `tokenizer_config.json` they were made with.
    #[serde(default)]
    pub config: serde_json::Value,
    /// Whether `decoded` has no white space at its ends.
    #[serde(default)]
    pub stripped: bool,
    pub cases: Vec<Case>,
}

#[derive(Deserialize)]
pub struct Case {
    pub text: String,
    /// With the tokeniser's BOS.
    pub ids: Vec<u32>,
    /// Without BOS and with special strings left as text, where that differs.
    pub literal_ids: Option<Vec<u32>>,
    /// Text of `ids` without special tokens. From the slow tokenisers, whose decoding loses one or two leading spaces
    /// depending on their settings, as the official code shows it: without white space at both ends.
    pub decoded: Option<String>,
}

pub fn fixture(name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR"))
        .join("tests/fixtures")
        .join(name)
}

pub fn repository(path: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR"))
        .join("../..")
        .join(path)
}

/// A file that tools/fetch_tokenizers.sh brings; `None`, loudly, if it is not there.
pub fn fetched(name: &str) -> Option<PathBuf> {
    let folder = std::env::var_os("MGM_ASSETS_DIR")
        .map_or_else(|| repository("target/assets"), PathBuf::from);
    let path = folder.join(name);
    if path.is_file() {
        return Some(path);
    }
    // Written past the test harness's capture, so that a skipped check is never silent.
    use std::io::Write;
    let message = format!(
        "\nSKIPPED: {name} is not in {} (tools/fetch_tokenizers.sh brings it)\n",
        folder.display()
    );
    std::io::stderr().write_all(message.as_bytes()).unwrap();
    None
}

pub fn vectors(name: &str) -> Vectors {
    let bytes = std::fs::read(fixture(&format!("{name}.vectors.json"))).unwrap();
    serde_json::from_slice(&bytes).unwrap()
}

/// The tokeniser that a vector file of a SentencePiece vocabulary was made with.
pub fn sentencepiece(name: &str) -> Tokenizer {
    if name == "vicuna" {
        let mut vocab = GgufVocab::read(fixture("ggml-vocab-llama-spm.gguf")).unwrap();
        vocab.legacy = Some(false);
        return Tokenizer::from_gguf_metadata(&vocab).unwrap();
    }
    // Tests of one program run at the same time.
    static NUMBER: AtomicUsize = AtomicUsize::new(0);
    let number = NUMBER.fetch_add(1, Ordering::Relaxed);
    let folder =
        std::env::temp_dir().join(format!("mgm-text-{}-{number}-{name}", std::process::id()));
    std::fs::create_dir_all(&folder).unwrap();
    std::fs::copy(
        fixture("mistral-v1.tokenizer.model"),
        folder.join("tokenizer.model"),
    )
    .unwrap();
    let config = vectors(name).config.to_string();
    std::fs::write(folder.join("tokenizer_config.json"), config).unwrap();
    let tokenizer = Tokenizer::from_directory(&folder).unwrap();
    std::fs::remove_dir_all(&folder).unwrap();
    tokenizer
}

/// Compares encoding, literal encoding, decoding and streaming over all cases; fails with every difference.
pub fn check(name: &str, tokenizer: &Tokenizer) {
    let vectors = vectors(name);
    assert!(
        vectors.cases.len() >= 60,
        "{name}: only {} cases",
        vectors.cases.len()
    );
    let mut failures = Vec::new();
    for case in &vectors.cases {
        let found = tokenizer.encode(&case.text, true).unwrap();
        if found != case.ids {
            failures.push(format!(
                "encode {:?}\n  expected {:?}\n  found    {found:?}",
                case.text, case.ids
            ));
        }
        if let Some(expected) = &case.literal_ids {
            let found = tokenizer.encode_parse(&case.text, false, false).unwrap();
            if found != *expected {
                failures.push(format!(
                    "literal {:?}\n  expected {expected:?}\n  found    {found:?}",
                    case.text
                ));
            }
        }
        let decoded = tokenizer.decode(&case.ids, true);
        let comparable = if vectors.stripped {
            decoded.trim()
        } else {
            &decoded
        };
        if let Some(expected) = &case.decoded
            && comparable != expected
        {
            failures.push(format!(
                "decode {:?} {:?}\n  expected {:?}\n  found    {decoded:?}",
                case.text, case.ids, expected
            ));
        }
        let streamed = stream(tokenizer, &case.ids);
        if streamed != decoded {
            failures.push(format!(
                "stream {:?}\n  decoded  {decoded:?}\n  streamed {streamed:?}",
                case.text
            ));
        }
    }
    assert!(
        failures.is_empty(),
        "{name} ({}): {} differences\n{}",
        vectors.reference,
        failures.len(),
        failures.join("\n")
    );
}

/// Text of ids that come one by one.
pub fn stream(tokenizer: &Tokenizer, ids: &[u32]) -> String {
    let mut stream = tokenizer.stream();
    let mut text: String = ids.iter().filter_map(|&id| stream.push(id)).collect();
    text.extend(stream.finish());
    text
}
