//! A SentencePiece `tokenizer.model`: read, built, used.
#![no_main]

use std::sync::LazyLock;

use libfuzzer_sys::fuzz_target;
use mgm_fuzz::{Scratch, bounded, touch_tokenizer};
use mgm_text::Tokenizer;

static SCRATCH: LazyLock<Scratch> = LazyLock::new(|| Scratch::new("sentencepiece"));

fuzz_target!(|data: &[u8]| {
    let path = SCRATCH.put("tokenizer.model", data);
    bounded(data.len(), 0, || {
        touch_tokenizer(Tokenizer::from_file(path))
    });
});
