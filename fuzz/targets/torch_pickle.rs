//! The pickle inside a torch file: the fuzzer writes opcodes, the archive around them is sound.
#![no_main]

use std::sync::LazyLock;

use libfuzzer_sys::fuzz_target;
use mgm_fuzz::{Scratch, bounded, touch_weights};
use mgm_nn::WeightSource;

static SCRATCH: LazyLock<Scratch> = LazyLock::new(|| Scratch::new("torch_pickle"));

fuzz_target!(|data: &[u8]| {
    let archive = mgm_fuzz_samples::torch_archive(data);
    let path = SCRATCH.put("model.bin", &archive);
    bounded(archive.len(), 0, || {
        touch_weights(WeightSource::from_torch(&[path]))
    });
});
