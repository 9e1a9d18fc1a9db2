//! Every odd format against Pillow's `convert("RGB")`.
#![allow(missing_docs, clippy::unwrap_used)]

mod common;

use common::{cases, largest_difference, number, read, sha256, size, text};
use mgm_image::{DecodeOptions, Orientation, RgbImage, decode, decode_with};

fn check(
    case: &serde_json::Value,
    image: &RgbImage,
    size: (u32, u32),
    pixels: Option<&str>,
    hash: &str,
) -> Option<String> {
    let name = text(case, "file");
    if (image.width, image.height) != size {
        return Some(format!("{name}: {image:?}, expected {size:?}"));
    }
    let tolerance = number(case, "tolerance");
    if let Some(pixels) = pixels {
        let difference = largest_difference(&image.data, &read(pixels));
        println!("{name}: largest difference {difference} of {tolerance} allowed");
        (u32::from(difference) > tolerance)
            .then(|| format!("{name}: differs by {difference}, {tolerance} allowed"))
    } else {
        (sha256(&image.data) != hash).then(|| format!("{name}: pixels differ from Pillow's"))
    }
}

#[test]
fn all_formats_decode_as_pillow_does() {
    let mut failures = Vec::new();
    let cases = cases("formats");
    assert!(cases.len() > 80);
    for case in &cases {
        let name = text(case, "file");
        let bytes = read(&format!("formats/{name}"));
        let stored = DecodeOptions {
            orientation: Orientation::Ignore,
            ..DecodeOptions::default()
        };
        let pixels = format!("formats/{name}.rgb");
        let lossy = number(case, "tolerance") > 0;
        match decode_with(&bytes, &stored) {
            Ok(image) => failures.extend(check(
                case,
                &image,
                size(case, "size"),
                lossy.then_some(pixels.as_str()),
                case["sha256"].as_str().unwrap_or(""),
            )),
            Err(error) => failures.push(format!("{name}: {error}")),
        }
        if lossy && case["upright_file"].is_null() {
            continue;
        }
        let upright = case["upright_file"]
            .as_str()
            .map(|file| format!("formats/{file}"));
        match decode(&bytes, &Default::default()) {
            Ok(image) => failures.extend(check(
                case,
                &image,
                size(case, "upright_size"),
                upright.as_deref(),
                case["upright_sha256"].as_str().unwrap_or(""),
            )),
            Err(error) => failures.push(format!("{name} upright: {error}")),
        }
    }
    assert!(failures.is_empty(), "{}", failures.join("\n"));
}
