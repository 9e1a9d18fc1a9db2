//! A tokeniser written as GGUF keys and read back gives the ids of the reference implementation that the original is held to.

#![allow(clippy::unwrap_used)]

mod support;

use std::path::{Path, PathBuf};

use mgm_text::{GgufTokenType, GgufVocab, GgufVocabValue, Tokenizer};
use support::{check, fetched, fixture, repository, vectors};

/// Exports what was read from `source` and checks the tokeniser that the exported keys make.
fn round_trip(name: &str, tokenizer: &Tokenizer, source: &Path, rows: usize) -> GgufVocab {
    let vocab = GgufVocab::from_tokenizer(tokenizer, source, rows).unwrap();
    assert_eq!(vocab.tokens.len(), rows);
    assert_eq!(vocab.token_types.len(), rows);
    let again = Tokenizer::from_gguf_metadata(&vocab).unwrap();
    check(name, &again);
    assert_eq!(
        (again.bos(), again.eos(), again.unk(), again.pad()),
        (
            tokenizer.bos(),
            tokenizer.eos(),
            tokenizer.unk(),
            tokenizer.pad()
        ),
        "{name}"
    );
    assert_eq!(again.adds_bos(), tokenizer.adds_bos(), "{name}");
    vocab
}

/// A checkpoint directory with a SentencePiece model and the configuration that a vector file was made with.
fn checkpoint(name: &str) -> PathBuf {
    let folder = std::env::temp_dir().join(format!("mgm-export-{}-{name}", std::process::id()));
    std::fs::create_dir_all(&folder).unwrap();
    std::fs::copy(
        fixture("mistral-v1.tokenizer.model"),
        folder.join("tokenizer.model"),
    )
    .unwrap();
    let config = vectors(name).config.to_string();
    std::fs::write(folder.join("tokenizer_config.json"), config).unwrap();
    folder
}

#[test]
fn sentencepiece_with_every_setting() {
    for name in [
        "mistral-modern",
        "mistral-legacy",
        "mistral-chatml",
        "mistral-strips",
        "mistral-fast",
    ] {
        let folder = checkpoint(name);
        let tokenizer = Tokenizer::from_directory(&folder).unwrap();
        let rows = tokenizer.vocab_size() + 7;
        let vocab = round_trip(name, &tokenizer, &folder, rows);
        assert_eq!(vocab.model, "llama");
        assert_eq!(vocab.tokens[rows - 1], format!("[PAD{}]", rows - 1));
        assert_eq!(vocab.token_types[rows - 1], GgufTokenType::Unused);
        // Types and scores of the converter: unknown, control, bytes; the first merged piece scores best.
        assert_eq!(vocab.token_types[0], GgufTokenType::Unknown);
        assert_eq!(vocab.token_types[1], GgufTokenType::Control);
        assert_eq!(vocab.token_types[3], GgufTokenType::Byte);
        assert_eq!(vocab.tokens[261], "▁t");
        assert!(vocab.scores[261] > vocab.scores[262]);
        std::fs::remove_dir_all(folder).unwrap();
    }
}

#[test]
fn a_gguf_source_is_passed_through() {
    let path = repository("models/smol/smollm2-135m-instruct.q4_1.gguf");
    let original = GgufVocab::read(&path).unwrap();
    let tokenizer = Tokenizer::from_file(&path).unwrap();
    let vocab = round_trip("smollm2", &tokenizer, &path, 49_152);
    assert_eq!(vocab.tokens, original.tokens);
    assert_eq!(vocab.merges, original.merges);
    assert_eq!(vocab.chat_template, original.chat_template);
    assert!(original.chat_template.is_some());

    let path = fixture("ggml-vocab-llama-spm.gguf");
    let tokenizer = Tokenizer::from_file(&path).unwrap();
    round_trip("llama-legacy", &tokenizer, &path, 32_000);
}

/// The same vocabularies taken from the running tokeniser, as from a `tokenizer.json`.
#[test]
fn byte_level_vocabularies() {
    let path = repository("models/smol/smollm2-135m-instruct.q4_1.gguf");
    let original = GgufVocab::read(&path).unwrap();
    let tokenizer = Tokenizer::from_file(&path).unwrap();
    let vocab = round_trip("smollm2", &tokenizer, Path::new("tokenizer.json"), 49_152);
    assert_eq!(vocab.tokens, original.tokens);
    assert_eq!(vocab.token_types, original.token_types);
    assert_eq!(vocab.merges, original.merges);
    assert_eq!(vocab.pre.as_deref(), Some("smollm"));
    for (name, file, pre) in [
        ("llama-3", "ggml-vocab-llama-bpe.gguf", "llama-bpe"),
        ("qwen2", "ggml-vocab-qwen2.gguf", "qwen2"),
        ("gpt-2", "ggml-vocab-gpt-2.gguf", "gpt-2"),
    ] {
        let Some(path) = fetched(file) else { continue };
        let tokenizer = Tokenizer::from_file(path).unwrap();
        let rows = tokenizer.vocab_size();
        let vocab = round_trip(name, &tokenizer, Path::new("tokenizer.json"), rows);
        assert_eq!(vocab.pre.as_deref(), Some(pre));
    }
}

#[test]
fn fast_sentencepiece_vocabularies() {
    for (name, file, rows) in [
        ("gemma", "gemma.tokenizer.json", 256_000),
        ("mistral-json", "mistral.tokenizer.json", 32_000),
    ] {
        let Some(path) = fetched(file) else { continue };
        let tokenizer = Tokenizer::from_file(&path).unwrap();
        let vocab = round_trip(name, &tokenizer, &path, rows);
        assert_eq!(vocab.model, "llama");
        assert_eq!(
            vocab
                .token_types
                .iter()
                .filter(|kind| **kind == GgufTokenType::Byte)
                .count(),
            256
        );
    }
}

#[test]
fn entries_have_the_types_that_readers_expect() {
    let folder = checkpoint("mistral-strips");
    let template = r#"{"chat_template": [{"name": "tool", "template": "no"}, {"name": "default", "template": "yes"}]}"#;
    let tokenizer = Tokenizer::from_directory(&folder).unwrap();
    std::fs::write(folder.join("tokenizer_config.json"), template).unwrap();
    let vocab = GgufVocab::from_tokenizer(&tokenizer, &folder, 32_100).unwrap();
    std::fs::remove_dir_all(folder).unwrap();
    let entries = vocab.entries();
    let get = |key: &str| {
        entries
            .iter()
            .find(|(name, _)| name == key)
            .map(|(_, value)| value)
    };
    assert!(matches!(
        get("tokenizer.ggml.tokens"),
        Some(GgufVocabValue::Strings(tokens)) if tokens.len() == 32_100
    ));
    assert!(matches!(
        get("tokenizer.ggml.scores"),
        Some(GgufVocabValue::F32s(scores)) if scores.len() == 32_100
    ));
    assert!(matches!(
        get("tokenizer.ggml.token_type"),
        Some(GgufVocabValue::I32s(kinds)) if kinds[..4] == [2, 3, 3, 6]
    ));
    assert_eq!(
        get("tokenizer.ggml.bos_token_id"),
        Some(&GgufVocabValue::U32(1))
    );
    assert_eq!(
        get("tokenizer.chat_template"),
        Some(&GgufVocabValue::String("yes".into()))
    );
    assert!(matches!(
        get("mini_gemini.tokenizer.rstrip"),
        Some(GgufVocabValue::U32s(_))
    ));
    assert_eq!(get("tokenizer.ggml.merges"), None);
}
