//! A torch file: opened, every tensor decoded.
#![no_main]

use std::sync::LazyLock;

use libfuzzer_sys::fuzz_target;
use mgm_fuzz::{Scratch, bounded, touch_weights};
use mgm_nn::WeightSource;

static SCRATCH: LazyLock<Scratch> = LazyLock::new(|| Scratch::new("torch"));

fuzz_target!(|data: &[u8]| {
    let path = SCRATCH.put("model.bin", data);
    bounded(data.len(), 0, || {
        touch_weights(WeightSource::from_torch(&[path]))
    });
});
