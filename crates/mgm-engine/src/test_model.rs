//! The tiny model that unit tests share.

use std::path::Path;
use std::sync::{Arc, OnceLock};

use mgm_image::RgbImage;
use mini_gemini::decoder::KvBlock;
use mini_gemini::{LoadOptions, MiniGemini, ModelSource, PictureKey, Precision, Read, Slot};

use crate::picture::{Content, Picture, PictureInner};

/// A random model of a few thousand weights, with f32 arithmetic.
pub(crate) fn tiny() -> &'static Arc<MiniGemini> {
    static MODEL: OnceLock<Arc<MiniGemini>> = OnceLock::new();
    MODEL.get_or_init(|| {
        let path =
            Path::new(env!("CARGO_MANIFEST_DIR")).join("../mini-gemini/tests/fixtures/llama");
        let options = LoadOptions {
            precision: Precision::F32,
            ..LoadOptions::default()
        };
        let model = MiniGemini::load(&ModelSource::Path(path), &options);
        Arc::new(model.expect("the tiny model"))
    })
}

/// A made picture.
pub(crate) fn picture(width: u32, height: u32, seed: u32) -> RgbImage {
    let mut image = RgbImage::filled(width, height, [0, 0, 0]);
    for (index, value) in image.data.iter_mut().enumerate() {
        let mixed = (index as u32 / 7 + seed).wrapping_mul(2_654_435_761);
        *value = (mixed >> 24) as u8;
    }
    image
}

/// A made picture as the engine takes it.
pub(crate) fn ready_picture(seed: u32) -> Picture {
    let prepared = tiny().prepare(&picture(40, 30, seed)).expect("prepared");
    Picture(Arc::new(PictureInner {
        key: PictureKey::of(&prepared),
        width: 40,
        height: 30,
        content: Content::Prepared(prepared),
    }))
}

/// Blocks that hold so many positions.
pub(crate) fn decoder_blocks(positions: usize) -> Vec<KvBlock> {
    let mut cache = tiny().decoder().new_cache();
    let slots: Vec<Slot> = (0..positions).map(|_| Slot::Text(5)).collect();
    let read = Read {
        cache: &mut cache,
        slots: &slots,
        logits: 0,
    };
    tiny().read(&mut [read], &|_| None).expect("read");
    cache.blocks().to_vec()
}
