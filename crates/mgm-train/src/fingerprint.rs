//! Hashes that name cached features: of a model's tower weights, and of pictures.

use mini_gemini::MiniGemini;
use sha2::{Digest, Sha256};

use crate::error::TrainError;

/// Where the tensors of both towers stand.
const TOWERS: [&str; 2] = ["model.vision_tower", "model.vision_tower_aux"];

/// A hash of everything that decides what a model's towers see: their weights, whichever files they lie in, and the keys of `config.json` they
/// read. A model that shares the towers of another (whatever its language model) shares its fingerprint.
pub(crate) fn towers(model: &MiniGemini) -> Result<[u8; 32], TrainError> {
    let mut hash = Sha256::new();
    let config = model.config();
    hash.update(format!(
        "{:?} {:?} {:?} {:?}",
        config.mm_vision_tower,
        config.mm_vision_tower_aux,
        config.mm_vision_select_layer,
        config.mm_vision_select_feature
    ));
    let weights = model.weights();
    let model_error = |error: mgm_nn::Error| TrainError::Model(error.into());
    for tower in TOWERS {
        for name in weights.pp(tower).names() {
            let Some(info) = weights.info(&name) else {
                continue;
            };
            hash.update(format!(
                "{name} {} {:?}\n",
                info.element_type.name(),
                info.shape
            ));
            hash.update(weights.stored_bytes(&name).map_err(model_error)?.as_slice());
            weights.release(&name);
        }
    }
    Ok(hash.finalize().into())
}

/// The name of a cached picture: towers, preprocessing and the picture's bytes.
pub(crate) fn picture(towers: &[u8; 32], preprocessing: &str, bytes: &[u8]) -> String {
    let mut hash = Sha256::new();
    hash.update(towers);
    hash.update(preprocessing);
    hash.update(bytes);
    hash.finalize()
        .iter()
        .take(16)
        .map(|byte| format!("{byte:02x}"))
        .collect()
}
