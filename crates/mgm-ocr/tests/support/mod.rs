//! What the integration tests share: the networks, pictures, and what rapidocr reads in them.

// Each test program uses a part of this module.
#![allow(dead_code, unreachable_pub, clippy::unwrap_used)]

use std::io::Write;
use std::path::{Path, PathBuf};
use std::sync::LazyLock;
use std::sync::atomic::AtomicBool;

use mgm_image::{Limits, RgbImage};
use mgm_ocr::{ModelFiles, OcrError, Page, Reader};

static READER: LazyLock<Option<Reader>> = LazyLock::new(|| Some(Reader::load(&files()?).unwrap()));

/// The reader; `None`, loudly, where tools/fetch_ocr.sh has not brought the networks.
pub fn reader() -> Option<&'static Reader> {
    READER.as_ref()
}

/// The networks; `None`, loudly, where they have not been brought.
pub fn files() -> Option<ModelFiles> {
    let named = std::env::var_os(mgm_ocr::MODELS_VARIABLE).map(PathBuf::from);
    match ModelFiles::find(named.as_deref()) {
        Ok(files) => Some(files),
        Err(error @ OcrError::NotFound { .. }) => {
            skipped(&format!("{error} (tools/fetch_ocr.sh brings them)"));
            None
        }
        Err(error) => panic!("{error}"),
    }
}

/// Written past the test harness's capture, so that a skipped check is never silent.
fn skipped(why: &str) {
    let message = format!("\nSKIPPED: {why}\n");
    std::io::stderr().write_all(message.as_bytes()).unwrap();
}

pub fn read(reader: &Reader, image: &RgbImage) -> Page {
    reader.read(image, &AtomicBool::new(false)).unwrap()
}

pub fn picture(path: &Path) -> RgbImage {
    mgm_image::open(path, &Limits::default()).unwrap()
}

pub fn fixture(name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR"))
        .join("tests/fixtures")
        .join(name)
}

/// A picture of the fetched files; `None`, loudly, if it is not there.
pub fn fetched(name: &str) -> Option<PathBuf> {
    let target = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../target/assets");
    let folder = std::env::var_os("MGM_ASSETS_DIR").map_or(target, PathBuf::from);
    let path = folder.join(name);
    if path.is_file() {
        return Some(path);
    }
    skipped(&format!("there is no {name} in {}", folder.display()));
    None
}

/// `image` turned a quarter counter-clockwise.
pub fn quarter_turn(image: &RgbImage) -> RgbImage {
    let mut data = Vec::with_capacity(image.data.len());
    for x in (0..image.width).rev() {
        for y in 0..image.height {
            data.extend_from_slice(&image.row(y)[3 * x as usize..][..3]);
        }
    }
    RgbImage::new(image.height, image.width, data).unwrap()
}
