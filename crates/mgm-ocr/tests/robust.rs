//! Pictures that hold no text, or hardly any pixels, or damage.

#![allow(clippy::unwrap_used)]

mod support;

use mgm_image::RgbImage;
use mgm_ocr::{ModelFiles, OcrError, Page, Reader};
use std::sync::atomic::AtomicBool;
use support::{fixture, picture, read, reader};

/// A repeatable stream of numbers (xorshift).
struct Numbers(u64);

impl Numbers {
    fn below(&mut self, limit: usize) -> usize {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        (self.0 % limit as u64) as usize
    }
}

/// What must hold whatever the picture.
fn sane(page: &Page, image: &RgbImage) {
    let (width, height) = (image.width as f32, image.height as f32);
    for line in &page.lines {
        assert!(!line.text.trim().is_empty());
        assert!((0.0..=1.0).contains(&line.confidence), "{line:?}");
        assert!(line.angle > -180.0 && line.angle <= 180.0, "{line:?}");
        for [x, y] in line.corners {
            assert!(
                (0.0..=width).contains(&x) && (0.0..=height).contains(&y),
                "{line:?}"
            );
        }
    }
}

#[test]
fn pictures_without_text_hold_none() {
    let Some(reader) = reader() else { return };
    for (width, height, colour) in [
        (1, 1, [255; 3]),
        (20_000, 1, [255; 3]),
        (1, 20_000, [0; 3]),
        (5, 7, [200, 10, 10]),
        (300, 200, [255; 3]),
        (400, 31, [0; 3]),
    ] {
        let image = RgbImage::filled(width, height, colour);
        assert_eq!(read(reader, &image), Page::default(), "{width}x{height}");
    }
}

#[test]
fn damage_does_no_harm() {
    let Some(reader) = reader() else { return };
    let mut numbers = Numbers(42);
    let noise: Vec<u8> = (0..3 * 61 * 47).map(|_| numbers.below(256) as u8).collect();
    let noise = RgbImage::new(61, 47, noise).unwrap();
    sane(&read(reader, &noise), &noise);

    for _ in 0..2 {
        let mut image = picture(&fixture("lines.png"));
        let stride = 3 * image.width as usize;
        for _ in 0..60 {
            let (x, y) = (
                numbers.below(stride - 90),
                numbers.below(image.height as usize - 12),
            );
            for row in 0..numbers.below(12) {
                let start = (y + row) * stride + x;
                let value = numbers.below(256) as u8;
                image.data[start..start + numbers.below(90)].fill(value);
            }
        }
        sane(&read(reader, &image), &image);
    }
}

#[test]
fn a_buffer_of_the_wrong_size_is_refused() {
    let Some(reader) = reader() else { return };
    let image = RgbImage {
        width: 10,
        height: 10,
        data: vec![0; 7],
    };
    let error = reader.read(&image, &AtomicBool::new(false)).unwrap_err();
    assert!(error.to_string().contains("300 bytes"), "{error}");
}

#[test]
fn reading_can_be_stopped() {
    let Some(reader) = reader() else { return };
    let image = picture(&fixture("lines.png"));
    let error = reader.read(&image, &AtomicBool::new(true)).unwrap_err();
    assert!(matches!(error, OcrError::Interrupted));
}

#[test]
fn files_that_are_no_networks_are_refused() {
    let folder = std::env::temp_dir().join(format!("mgm-ocr-bad-{}", std::process::id()));
    std::fs::create_dir_all(&folder).unwrap();
    for name in ["a_det.onnx", "a_cls.onnx", "a_rec.onnx"] {
        std::fs::write(folder.join(name), b"\x08\x0aneither here nor there").unwrap();
    }
    let files = ModelFiles::in_directory(&folder).unwrap();
    let error = Reader::load(&files).unwrap_err().to_string();
    std::fs::remove_dir_all(&folder).unwrap();
    assert!(
        error.contains("a_det.onnx") && error.contains("not a network"),
        "{error}"
    );
}

#[test]
fn networks_in_each_others_place_are_refused() {
    let Some(files) = support::files() else {
        return;
    };
    let swapped = ModelFiles {
        recognition: files.orientation.clone(),
        ..files.clone()
    };
    let error = Reader::load(&swapped).unwrap_err().to_string();
    assert!(error.contains("character"), "{error}");
    let swapped = ModelFiles {
        detection: files.orientation.clone(),
        ..files
    };
    let reader = Reader::load(&swapped).unwrap();
    let image = picture(&fixture("lines.png"));
    let error = reader.read(&image, &AtomicBool::new(false)).unwrap_err();
    assert!(
        error.to_string().contains("expected an output of shape"),
        "{error}"
    );
}
