//! Every tokeniser against ids made by the reference implementations: the `tokenizers` library, the slow and fast Llama
//! tokenisers of transformers 4.36.2 and llama.cpp's own test vectors. Differences are not tolerated.
//!
//! Vocabularies that are too large for the repository are brought by tools/fetch_tokenizers.sh; a test whose file is
//! missing says so loudly.

#![allow(clippy::unwrap_used)]

mod support;

use std::path::Path;

use mgm_text::{GgufVocab, Tokenizer};
use support::{check, fetched, fixture, repository, sentencepiece, stream};

#[test]
fn smollm2_from_the_built_in_model() {
    let tokenizer =
        Tokenizer::from_file(repository("models/smol/smollm2-135m-instruct.q4_1.gguf")).unwrap();
    check("smollm2", &tokenizer);
    assert_eq!(tokenizer.vocab_size(), 49_152);
    assert!(!tokenizer.adds_bos());
    assert_eq!(tokenizer.token_to_id("<|im_end|>"), Some(2));
    assert_eq!(tokenizer.eos(), Some(2));
    assert_eq!(tokenizer.id_to_token(1).as_deref(), Some("<|im_start|>"));
    // The directory of the built-in model has no other tokeniser file.
    let from_directory = Tokenizer::from_directory(repository("models/smol")).unwrap();
    assert_eq!(
        from_directory.encode("Hi there", true).unwrap(),
        tokenizer.encode("Hi there", true).unwrap()
    );
}

#[test]
fn qwen2_from_gguf() {
    let Some(path) = fetched("ggml-vocab-qwen2.gguf") else {
        return;
    };
    check("qwen2", &Tokenizer::from_file(path).unwrap());
}

#[test]
fn llama_3_from_gguf() {
    let Some(path) = fetched("ggml-vocab-llama-bpe.gguf") else {
        return;
    };
    let tokenizer = Tokenizer::from_file(path).unwrap();
    check("llama-3", &tokenizer);
    assert!(tokenizer.adds_bos());
    assert_eq!(
        (tokenizer.bos(), tokenizer.eos()),
        (Some(128_000), Some(128_001))
    );
    assert_eq!(tokenizer.vocab_size(), 128_256);
}

#[test]
fn gpt_2_from_gguf() {
    let Some(path) = fetched("ggml-vocab-gpt-2.gguf") else {
        return;
    };
    check("gpt-2", &Tokenizer::from_file(path).unwrap());
}

#[test]
fn gemma_from_tokenizer_json() {
    let Some(path) = fetched("gemma.tokenizer.json") else {
        return;
    };
    let tokenizer = Tokenizer::from_file(path).unwrap();
    check("gemma", &tokenizer);
    assert_eq!(
        (
            tokenizer.bos(),
            tokenizer.eos(),
            tokenizer.pad(),
            tokenizer.unk()
        ),
        (Some(2), Some(1), Some(0), Some(3))
    );
    assert_eq!(tokenizer.token_to_id("<end_of_turn>"), Some(107));
    assert_eq!(tokenizer.encode("\n", false).unwrap(), [108]);
    assert!(tokenizer.adds_bos());
}

#[test]
fn mistral_from_tokenizer_json() {
    let Some(path) = fetched("mistral.tokenizer.json") else {
        return;
    };
    check("mistral-json", &Tokenizer::from_file(path).unwrap());
}

#[test]
fn slow_tokeniser_without_legacy() {
    let tokenizer = sentencepiece("mistral-modern");
    check("mistral-modern", &tokenizer);
    assert!(!tokenizer.is_legacy() && tokenizer.adds_bos());
    assert_eq!(
        (tokenizer.bos(), tokenizer.eos(), tokenizer.pad()),
        (Some(1), Some(2), Some(0))
    );
}

#[test]
fn slow_legacy_tokeniser() {
    let tokenizer = sentencepiece("mistral-legacy");
    check("mistral-legacy", &tokenizer);
    assert!(tokenizer.is_legacy());
    // A bare model file behaves like the slow tokeniser without a configuration.
    check(
        "mistral-legacy",
        &Tokenizer::from_file(fixture("mistral-v1.tokenizer.model")).unwrap(),
    );
}

#[test]
fn slow_legacy_tokeniser_without_bos_and_with_added_tokens() {
    let tokenizer = sentencepiece("mistral-chatml");
    check("mistral-chatml", &tokenizer);
    assert!(!tokenizer.adds_bos());
    assert_eq!((tokenizer.eos(), tokenizer.pad()), (Some(32_001), Some(2)));
    assert_eq!(tokenizer.vocab_size(), 32_002);
}

#[test]
fn slow_tokeniser_whose_added_tokens_eat_white_space() {
    check("mistral-strips", &sentencepiece("mistral-strips"));
}

#[test]
fn fast_tokeniser_from_a_model_file() {
    check("mistral-fast", &sentencepiece("mistral-fast"));
}

#[test]
fn vicuna_from_gguf() {
    let mut vocab = GgufVocab::read(fixture("ggml-vocab-llama-spm.gguf")).unwrap();
    check(
        "llama-legacy",
        &Tokenizer::from_gguf_metadata(&vocab).unwrap(),
    );
    vocab.legacy = Some(false);
    let tokenizer = Tokenizer::from_gguf_metadata(&vocab).unwrap();
    check("vicuna", &tokenizer);
    assert_eq!(
        tokenizer
            .encode(
                "A chat between a curious user and an artificial intelligence assistant.",
                true
            )
            .unwrap(),
        [
            1, 319, 13563, 1546, 263, 12758, 1404, 322, 385, 23116, 21082, 20255, 29889
        ]
    );
}

/// llama.cpp's vectors: texts in one file, lines of ids in another, without BOS and with special strings as text.
fn check_llama_cpp(gguf: &Path) {
    let tokenizer = Tokenizer::from_file(gguf).unwrap();
    let read =
        |suffix: &str| std::fs::read_to_string(format!("{}{suffix}", gguf.display())).unwrap();
    let (inputs, outputs) = (read(".inp"), read(".out"));
    let texts: Vec<&str> = inputs.split("\n__ggml_vocab_test__\n").collect();
    let expected: Vec<Vec<u32>> = outputs
        .lines()
        .map(|line| {
            line.split_whitespace()
                .map(|id| id.parse().unwrap())
                .collect()
        })
        .collect();
    // The last separator may leave an empty text that has no line.
    assert!(
        texts.len() >= 40 && texts.len() - expected.len() <= 1,
        "{} texts, {} lines",
        texts.len(),
        expected.len()
    );
    for (text, expected) in texts.iter().zip(&expected) {
        let found = tokenizer.encode_parse(text, false, false).unwrap();
        assert_eq!(&found, expected, "{}: {text:?}", gguf.display());
        assert_eq!(stream(&tokenizer, &found), *text, "{}", gguf.display());
    }
}

#[test]
fn llama_cpp_vectors_that_are_in_the_repository() {
    check_llama_cpp(&fixture("ggml-vocab-llama-spm.gguf"));
}

#[test]
fn llama_cpp_vectors_that_are_fetched() {
    for name in [
        "llama-bpe",
        "phi-3",
        "qwen2",
        "gpt-2",
        "falcon",
        "command-r",
        "starcoder",
        "refact",
        "mpt",
    ] {
        if let Some(path) = fetched(&format!("ggml-vocab-{name}.gguf")) {
            check_llama_cpp(&path);
        }
    }
}

#[test]
fn random_texts_survive_the_round_trip() {
    let mut state = 0x2545_f491_4f6c_dd1du64;
    let mut next = move |bound: usize| {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        (state % bound as u64) as usize
    };
    let spm = Tokenizer::from_file(fixture("ggml-vocab-llama-spm.gguf")).unwrap();
    let bpe =
        Tokenizer::from_file(repository("models/smol/smollm2-135m-instruct.q4_1.gguf")).unwrap();
    let alphabet: Vec<char> = "  \n\tabcXYZ019<>|/é漢字かな한😀\u{200d}\u{301}'\".,"
        .chars()
        .collect();
    for _ in 0..2_000 {
        let text: String = (0..next(60))
            .map(|_| alphabet[next(alphabet.len())])
            .collect();
        for tokenizer in [&spm, &bpe] {
            let ids = tokenizer.encode_parse(&text, false, false).unwrap();
            assert_eq!(tokenizer.decode(&ids, true), text);
            assert_eq!(stream(tokenizer, &ids), text);
        }
        // Ids that no text gives: the two ways of decoding must still agree.
        let ids: Vec<u32> = (0..next(30))
            .map(|_| next(tokenizer_size(&spm)) as u32)
            .collect();
        for tokenizer in [&spm, &bpe] {
            assert_eq!(
                stream(tokenizer, &ids),
                tokenizer.decode(&ids, true),
                "{ids:?}"
            );
        }
    }
}

fn tokenizer_size(tokenizer: &Tokenizer) -> usize {
    tokenizer.vocab_size()
}
