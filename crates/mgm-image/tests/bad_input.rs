//! Empty, cut, oversized and random input: one clear error each, never a panic, never a partly grey picture.
#![allow(missing_docs, clippy::unwrap_used)]

mod common;

use common::{cases, fixture, read, text};
use mgm_image::{ImageError, Limits, decode, open};
use proptest::prelude::*;

fn message(bytes: &[u8]) -> String {
    let message = decode(bytes, &Limits::default()).unwrap_err().to_string();
    assert!(!message.contains('\n'), "{message}");
    message
}

#[test]
fn what_is_not_an_image_is_named() {
    assert_eq!(message(b""), "the image is empty (0 bytes)");
    assert_eq!(
        message(b"Dear reader,\nthis is a letter."),
        "not an image: expected JPEG, PNG, WebP, BMP or GIF, found data beginning with the text \"Dear reader,\\nthi\""
    );
    assert_eq!(
        message(&[0, 1, 2, 255]),
        "not an image: expected JPEG, PNG, WebP, BMP or GIF, found data beginning with the bytes 00 01 02 ff"
    );
    assert_eq!(
        message(b"II\x2a\0\x08\0\0\0"),
        "TIFF images are not supported: expected JPEG, PNG, WebP, BMP or GIF"
    );
    assert!(message(b"\0\0\0\x20ftypavif").starts_with("AVIF images"));
    assert!(message(b"\x89PNG\r").starts_with("truncated PNG image"));
    assert!(message(b"\xff\xd8").starts_with("truncated JPEG image"));
}

/// Found by fuzzing: the decoder's own words end with a line break.
#[test]
fn words_of_a_decoder_are_one_line() {
    let found = message(&read("found_marker_of_no_length.jpg"));
    assert_eq!(
        found,
        "corrupt JPEG image: Found a marker with invalid length:0"
    );
}

#[test]
fn files_name_their_path() {
    let error = open("no/such/file.png", &Limits::default()).unwrap_err();
    assert!(matches!(error, ImageError::Read { .. }));
    assert!(
        error
            .to_string()
            .starts_with("cannot read image file no/such/file.png: "),
        "{error}"
    );
    let error = open(fixture("manifest.json"), &Limits::default())
        .unwrap_err()
        .to_string();
    assert!(
        error.starts_with("image file ") && error.contains("manifest.json: not an image"),
        "{error}"
    );
    assert!(open(fixture("formats"), &Limits::default()).is_err());
}

#[test]
fn limits_are_checked_before_decoding() {
    assert_eq!(
        message(&read("bomb.png")),
        "the image is too large: 30000x30000 = 900000000 pixels, at most 100000000 are allowed"
    );
    let small = Limits {
        max_pixels: 100,
        ..Limits::default()
    };
    for case in cases("formats") {
        let bytes = read(&format!("formats/{}", text(&case, "file")));
        let (width, height) = common::size(&case, "size");
        if width * height > 100 {
            let error = decode(&bytes, &small).unwrap_err();
            assert!(
                matches!(error, ImageError::TooManyPixels { allowed: 100, .. }),
                "{case}: {error}"
            );
        }
        let short = Limits {
            max_bytes: 20,
            ..Limits::default()
        };
        let error = decode(&bytes, &short).unwrap_err().to_string();
        assert_eq!(
            error,
            format!(
                "the image file is too large: {} bytes, at most 20 are allowed",
                bytes.len()
            )
        );
    }
    let short = Limits {
        max_bytes: 20,
        ..Limits::default()
    };
    let error = open(fixture("formats/rgb.png"), &short)
        .unwrap_err()
        .to_string();
    assert!(
        error.contains("rgb.png: the image file is too large"),
        "{error}"
    );
}

#[test]
fn headers_that_promise_too_much_are_refused() {
    // JPEG, BMP, GIF and WebP with their sizes raised in the header; every one would need gigabytes.
    let mut jpeg = read("formats/444.jpg");
    let frame = jpeg
        .windows(2)
        .position(|pair| pair == [0xff, 0xc0])
        .unwrap();
    jpeg[frame + 5..frame + 9].fill(0xff);
    let mut bmp = read("formats/rgb.bmp");
    bmp[18..22].copy_from_slice(&30_000u32.to_le_bytes());
    bmp[22..26].copy_from_slice(&30_000u32.to_le_bytes());
    let mut gif = read("formats/plain.gif");
    gif[6..10].fill(0xff);
    let mut webp = read("formats/lossless_alpha.webp");
    let header = webp.windows(4).position(|four| four == b"VP8L").unwrap() + 9;
    // Two 14-bit fields, each one less than the side.
    webp[header..header + 4].copy_from_slice(&(0x3ff0u32 | 0x3ff0 << 14 | 1 << 28).to_le_bytes());
    for bytes in [jpeg, bmp, gif, webp] {
        let text = message(&bytes);
        assert!(text.starts_with("the image is too large: "), "{text}");
    }
}

#[test]
fn cut_files_are_errors() {
    for case in cases("formats") {
        let name = text(&case, "file");
        if name == "trailing_bytes.jpg" {
            continue;
        }
        let bytes = read(&format!("formats/{name}"));
        // Cuts that leave all pixels (a missing end chunk, other frames) are no loss.
        let animated = name.starts_with("animated");
        for share in [1, 5, 10, 20, 30, 40]
            .into_iter()
            .chain((50..95).step_by(5).filter(|_| !animated))
        {
            let length = (bytes.len() * share / 100).max(1);
            // Small files are mostly header and end: keep to cuts that take pixels away.
            if bytes.len() - length < 40 {
                continue;
            }
            let result = decode(&bytes[..length], &Limits::default());
            let error = match result {
                Err(error) => error.to_string(),
                Ok(_) => panic!(
                    "{name} cut to {length} of {} bytes was decoded",
                    bytes.len()
                ),
            };
            assert!(
                error.starts_with("truncated") || length < 14,
                "{name} cut to {length} of {} bytes: {error}",
                bytes.len()
            );
        }
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 2000, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn random_bytes_never_panic(bytes in prop::collection::vec(any::<u8>(), 0..600), start in 0usize..6) {
        let starts: [&[u8]; 6] =
            [b"", b"\xff\xd8\xff", b"\x89PNG\r\n\x1a\n", b"GIF89a", b"BM", b"RIFF\x40\0\0\0WEBP"];
        let limits = Limits { max_pixels: 1_000_000, ..Limits::default() };
        if let Ok(image) = decode(&[starts[start], &bytes].concat(), &limits) {
            prop_assert!(image.validate().is_ok());
        }
    }

    #[test]
    fn damaged_files_never_panic(
        choice in any::<prop::sample::Index>(),
        damage in prop::collection::vec((any::<prop::sample::Index>(), any::<u8>()), 1..6),
        cut in prop::option::of(any::<prop::sample::Index>()),
    ) {
        thread_local! {
            static FILES: Vec<Vec<u8>> = cases("formats")
                .iter()
                .map(|case| read(&format!("formats/{}", text(case, "file"))))
                .collect();
        }
        FILES.with(|files| -> Result<(), TestCaseError> {
            let mut bytes = choice.get(files).clone();
            for (index, value) in &damage {
                let at = index.index(bytes.len());
                bytes[at] = *value;
            }
            if let Some(cut) = cut {
                bytes.truncate(cut.index(bytes.len()) + 1);
            }
            let limits = Limits { max_pixels: 1_000_000, ..Limits::default() };
            if let Ok(image) = decode(&bytes, &limits) {
                prop_assert!(image.validate().is_ok());
            }
            Ok(())
        })?;
    }
}
