//! The JSON files beside a tokeniser: one byte says which, the rest is its content.
#![no_main]

use std::sync::LazyLock;

use libfuzzer_sys::fuzz_target;
use mgm_fuzz::{Scratch, bounded, touch_tokenizer};
use mgm_text::Tokenizer;

static SCRATCH: LazyLock<Scratch> = LazyLock::new(|| Scratch::new("tokenizer_config"));

fuzz_target!(|data: &[u8]| {
    const FILES: [&str; 4] = [
        "tokenizer_config.json",
        "special_tokens_map.json",
        "added_tokens.json",
        "config.json",
    ];
    let Some((&which, content)) = data.split_first() else {
        return;
    };
    static MODEL: std::sync::Once = std::sync::Once::new();
    MODEL.call_once(|| drop(SCRATCH.put("tokenizer.model", &mgm_fuzz_samples::sentencepiece())));
    for file in FILES {
        let _ = std::fs::remove_file(SCRATCH.path().join(file));
    }
    SCRATCH.put(FILES[usize::from(which) % FILES.len()], content);
    bounded(data.len(), 0, || {
        touch_tokenizer(Tokenizer::from_directory(SCRATCH.path()))
    });
});
