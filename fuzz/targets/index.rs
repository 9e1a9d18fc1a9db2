//! An index file beside the shards that it may name.
#![no_main]

use std::sync::LazyLock;

use libfuzzer_sys::fuzz_target;
use mgm_fuzz::{Scratch, bounded, touch_weights};
use mgm_nn::WeightSource;

static SCRATCH: LazyLock<Scratch> = LazyLock::new(|| Scratch::new("index"));

fuzz_target!(|data: &[u8]| {
    // What a good index of this folder names; the fuzzer makes the bad ones.
    static SHARDS: std::sync::Once = std::sync::Once::new();
    SHARDS.call_once(|| {
        SCRATCH.put(
            "model-00001-of-00002.safetensors",
            &mgm_fuzz_samples::shard("a"),
        );
        SCRATCH.put(
            "model-00002-of-00002.safetensors",
            &mgm_fuzz_samples::shard("b"),
        );
    });
    let path = SCRATCH.put("model.safetensors.index.json", data);
    bounded(data.len(), 0, || {
        touch_weights(WeightSource::from_safetensors(&[path]))
    });
});
