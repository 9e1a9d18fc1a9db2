//! `config.json` of a checkpoint: read, and everything derived from it.
#![no_main]

use std::sync::LazyLock;

use libfuzzer_sys::fuzz_target;
use mgm_fuzz::{Scratch, bounded, one_line};
use mini_gemini::ModelConfig;

static SCRATCH: LazyLock<Scratch> = LazyLock::new(|| Scratch::new("config"));

fuzz_target!(|data: &[u8]| {
    let path = SCRATCH.put("config.json", data);
    bounded(data.len(), 0, || match ModelConfig::read(&path) {
        Ok(config) => {
            let _ = (config.family(), config.context_limit(), config.grid());
            if let Err(error) = config.decoder(&path) {
                one_line(&error);
            }
        }
        Err(error) => one_line(&error),
    });
});
