//! Damaged and hostile tokeniser files give one clear error and cost little memory; they never panic.

#![allow(clippy::unwrap_used)]

mod support;

use std::path::PathBuf;

use mgm_text::{GgufVocab, Tokenizer};
use support::fixture;

/// A file with the given bytes that goes away with the value.
struct Scratch(PathBuf);

impl Scratch {
    fn new(name: &str, bytes: &[u8]) -> Self {
        let path = std::env::temp_dir().join(format!("mgm-text-{}-{name}", std::process::id()));
        std::fs::write(&path, bytes).unwrap();
        Self(path)
    }

    fn error(&self) -> String {
        Tokenizer::from_file(&self.0).unwrap_err().to_string()
    }
}

impl Drop for Scratch {
    fn drop(&mut self) {
        let _ = std::fs::remove_file(&self.0);
    }
}

/// A GGUF header of the given metadata entries: key, value type, value bytes.
fn gguf(entries: &[(&str, u32, Vec<u8>)]) -> Vec<u8> {
    let mut bytes = b"GGUF".to_vec();
    bytes.extend(3u32.to_le_bytes());
    bytes.extend(0u64.to_le_bytes());
    bytes.extend((entries.len() as u64).to_le_bytes());
    for (key, value_type, value) in entries {
        bytes.extend(string(key));
        bytes.extend(value_type.to_le_bytes());
        bytes.extend(value);
    }
    bytes
}

fn string(text: &str) -> Vec<u8> {
    let mut bytes = (text.len() as u64).to_le_bytes().to_vec();
    bytes.extend(text.as_bytes());
    bytes
}

fn array(element: u32, count: u64, body: &[u8]) -> Vec<u8> {
    let mut bytes = element.to_le_bytes().to_vec();
    bytes.extend(count.to_le_bytes());
    bytes.extend(body);
    bytes
}

const STRING: u32 = 8;
const ARRAY: u32 = 9;

#[test]
fn lengths_beyond_the_file_are_refused_before_anything_is_allocated() {
    let model = ("tokenizer.ggml.model", STRING, string("gpt2"));
    for (name, entries, expected) in [
        (
            "tokens.gguf",
            vec![("tokenizer.ggml.tokens", ARRAY, array(STRING, u64::MAX, &[]))],
            "tokenizer.ggml.tokens: an array of 18446744073709551615 entries cannot fit",
        ),
        (
            "string.gguf",
            vec![(
                "tokenizer.ggml.pre",
                STRING,
                (1u64 << 60).to_le_bytes().to_vec(),
            )],
            "tokenizer.ggml.pre: a string needs 1152921504606846976 bytes",
        ),
        (
            "skipped.gguf",
            vec![("general.name", ARRAY, array(12, u64::MAX / 8, &[]))],
            "general.name: an array of 2305843009213693951 entries cannot fit",
        ),
        (
            "type.gguf",
            vec![("general.name", 77, vec![])],
            "general.name: unknown value type 77",
        ),
        (
            "wrong.gguf",
            vec![("tokenizer.ggml.tokens", STRING, string("x"))],
            "tokenizer.ggml.tokens: expected an array, found value type 8",
        ),
        (
            "none.gguf",
            vec![],
            "tokenizer.ggml.model: the key is missing",
        ),
        (
            "empty.gguf",
            vec![model.clone()],
            "tokenizer.ggml.tokens: expected at least one token",
        ),
        (
            "pre.gguf",
            vec![
                model.clone(),
                ("tokenizer.ggml.pre", STRING, string("other")),
                (
                    "tokenizer.ggml.tokens",
                    ARRAY,
                    array(STRING, 1, &string("a")),
                ),
            ],
            "tokenizer.ggml.pre: expected one of smollm, ",
        ),
        (
            "merge.gguf",
            vec![
                model.clone(),
                (
                    "tokenizer.ggml.tokens",
                    ARRAY,
                    array(STRING, 1, &string("a")),
                ),
                (
                    "tokenizer.ggml.merges",
                    ARRAY,
                    array(STRING, 1, &string("ab")),
                ),
            ],
            "tokenizer.ggml.merges[0]: expected two tokens, found \"ab\"",
        ),
        (
            "eos.gguf",
            vec![
                model.clone(),
                (
                    "tokenizer.ggml.tokens",
                    ARRAY,
                    array(STRING, 1, &string("a")),
                ),
                (
                    "tokenizer.ggml.eos_token_id",
                    4,
                    7u32.to_le_bytes().to_vec(),
                ),
            ],
            "tokenizer.ggml.eos_token_id: expected an id below 1, found 7",
        ),
        (
            "scores.gguf",
            vec![
                ("tokenizer.ggml.model", STRING, string("llama")),
                (
                    "tokenizer.ggml.tokens",
                    ARRAY,
                    array(STRING, 1, &string("a")),
                ),
            ],
            "tokenizer.ggml.scores: expected one score a token, found none",
        ),
    ] {
        let error = Scratch::new(name, &gguf(&entries)).error();
        assert!(error.contains(expected) && error.contains(name), "{error}");
        assert!(!error.contains('\n'), "{error}");
    }
    let deep = (0..6).fold(array(0, 0, &[]), |inner, _| array(ARRAY, 1, &inner));
    let error = Scratch::new("deep.gguf", &gguf(&[("x", ARRAY, deep)])).error();
    assert!(error.contains("nested"), "{error}");
    let error = Scratch::new(
        "keys.gguf",
        &[b"GGUF\x03\0\0\0".as_slice(), &[0; 8], &[0xff; 8]].concat(),
    )
    .error();
    assert!(error.contains("metadata keys cannot fit"), "{error}");
}

#[test]
fn other_formats_are_named() {
    assert!(
        Scratch::new("zip.gguf", b"PK\x03\x04aaaaaaaa")
            .error()
            .contains("not a GGUF file")
    );
    assert!(
        Scratch::new("old.gguf", b"GGUF\x01\0\0\0")
            .error()
            .contains("version 2 or 3")
    );
    assert!(
        Scratch::new("bad.json", b"{}")
            .error()
            .contains("not a usable tokenizer.json")
    );
    assert!(
        Scratch::new("tokenizer.model", b"")
            .error()
            .contains("no pieces")
    );
    let missing = Tokenizer::from_file("/nonexistent/tokenizer.json")
        .unwrap_err()
        .to_string();
    assert!(
        missing.starts_with("cannot read /nonexistent/tokenizer.json"),
        "{missing}"
    );
    let nothing = Tokenizer::from_directory(std::env::temp_dir().join("mgm-text-not-there"))
        .unwrap_err()
        .to_string();
    assert!(nothing.contains("mgm-text-not-there"), "{nothing}");
}

#[test]
fn damaged_real_files_never_panic() {
    let mut state = 0x1234_5678_9abc_def1u64;
    let mut next = move |bound: usize| {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        (state % bound as u64) as usize
    };
    for (name, file) in [
        ("damaged.gguf", "ggml-vocab-llama-spm.gguf"),
        ("damaged.model", "mistral-v1.tokenizer.model"),
    ] {
        let original = std::fs::read(fixture(file)).unwrap();
        let mut refused = 0;
        for round in 0..60 {
            let mut bytes = original.clone();
            if round % 2 == 0 {
                bytes.truncate(next(original.len()));
            } else {
                for _ in 0..8 {
                    // Most damage goes to the front, where the lengths and types are dense.
                    let at = next(if round % 4 == 1 { 400 } else { bytes.len() });
                    bytes[at] = next(256) as u8;
                }
            }
            let scratch = Scratch::new(name, &bytes);
            match Tokenizer::from_file(&scratch.0) {
                Ok(tokenizer) => {
                    let ids = tokenizer.encode("Hello <s> 漢字 😀", true).unwrap();
                    let _ = tokenizer.decode(&ids, false);
                }
                Err(error) => {
                    refused += 1;
                    assert!(error.to_string().contains(name), "{error}");
                }
            }
        }
        assert!(
            refused >= 10,
            "{name}: only {refused} of 60 damaged files were refused"
        );
    }
}

#[test]
fn the_header_of_a_real_file_is_read() {
    let vocab = GgufVocab::read(fixture("ggml-vocab-llama-spm.gguf")).unwrap();
    assert_eq!(
        (vocab.architecture.as_str(), vocab.model.as_str()),
        ("llama", "llama")
    );
    assert_eq!(vocab.tokens.len(), 32_000);
    assert_eq!(vocab.scores.len(), 32_000);
    assert_eq!(vocab.tokens[319], "▁A");
    assert_eq!(
        (vocab.bos, vocab.eos, vocab.unk),
        (Some(1), Some(2), Some(0))
    );
}
