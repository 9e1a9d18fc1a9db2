//! Good and bad pictures.
#![allow(clippy::unwrap_used)]

mod support;

use std::io::{Cursor, Read, Write};
use std::path::{Path, PathBuf};

use image::{DynamicImage, GrayImage, ImageFormat, Luma, Rgb, RgbImage, Rgba, RgbaImage};
use support::{example, mgm, root};

/// A red disc on a blue ground, with enough asymmetry that turning it shows.
fn scene() -> RgbImage {
    RgbImage::from_fn(160, 120, |x, y| {
        let (dx, dy) = (x as f32 - 50.0, y as f32 - 40.0);
        if dx * dx + dy * dy < 900.0 {
            Rgb([220, 30, 30])
        } else {
            Rgb([20, 40 + (y / 2) as u8, 160])
        }
    })
}

fn encoded(image: impl Into<DynamicImage>, format: ImageFormat) -> Vec<u8> {
    let mut bytes = Cursor::new(Vec::new());
    image.into().write_to(&mut bytes, format).unwrap();
    bytes.into_inner()
}

fn put(folder: &Path, name: &str, bytes: &[u8]) -> String {
    let path = folder.join(name);
    std::fs::write(&path, bytes).unwrap();
    path.display().to_string()
}

fn crc32(bytes: &[u8]) -> u32 {
    !bytes.iter().fold(!0u32, |crc, byte| {
        (0..8).fold(crc ^ u32::from(*byte), |crc, _| {
            if crc & 1 == 1 {
                (crc >> 1) ^ 0xedb8_8320
            } else {
                crc >> 1
            }
        })
    })
}

/// A well-formed PNG that claims to be 30,000 pixels wide and high.
fn huge_png() -> Vec<u8> {
    let chunk = |name: &[u8; 4], data: &[u8]| {
        let body = [&name[..], data].concat();
        [
            &(data.len() as u32).to_be_bytes()[..],
            &body,
            &crc32(&body).to_be_bytes(),
        ]
        .concat()
    };
    let header = [
        &30_000u32.to_be_bytes()[..],
        &30_000u32.to_be_bytes(),
        &[8, 2, 0, 0, 0],
    ]
    .concat();
    [
        b"\x89PNG\r\n\x1a\n".to_vec(),
        chunk(b"IHDR", &header),
        chunk(b"IDAT", &[0x78, 0x9c]),
        chunk(b"IEND", &[]),
    ]
    .concat()
}

/// `jpeg` with an EXIF orientation.
fn with_orientation(jpeg: &[u8], orientation: u8) -> Vec<u8> {
    let mut exif = b"Exif\0\0MM\0\x2a\0\0\0\x08\0\x01\x01\x12\0\x03\0\0\0\x01\0".to_vec();
    exif.extend([orientation, 0, 0, 0, 0, 0, 0]);
    let length = (exif.len() as u16 + 2).to_be_bytes();
    [&jpeg[..2], &[0xff, 0xe1], &length, &exif, &jpeg[2..]].concat()
}

#[test]
fn bad_pictures_get_one_clear_line() {
    let folder = tempfile::tempdir().unwrap();
    let good = encoded(scene(), ImageFormat::Png);
    let jpeg = std::fs::read(example("cat.jpg")).unwrap();
    let mut corrupt = good.clone();
    let middle = corrupt.len() / 2;
    corrupt[middle..middle + 8].copy_from_slice(&[0xff; 8]);
    let missing = folder.path().join("missing.png").display().to_string();
    let bad = [
        missing,
        folder.path().display().to_string(),
        put(folder.path(), "empty.jpg", b""),
        put(folder.path(), "truncated.png", &good[..good.len() / 2]),
        put(folder.path(), "header-only.jpg", &jpeg[..20]),
        put(folder.path(), "truncated.jpg", &jpeg[..jpeg.len() / 2]),
        put(folder.path(), "corrupt.png", &corrupt),
        put(
            folder.path(),
            "text.png",
            b"This is no picture at all, only its name says so.",
        ),
        put(
            folder.path(),
            "program.png",
            b"\x7fELF\x02\x01\x01\0\0\0\0\0\0\0\0\0",
        ),
        put(folder.path(), "huge.png", &huge_png()),
    ];
    for path in &bad {
        let name = Path::new(path).file_name().unwrap().to_str().unwrap();
        let started = std::time::Instant::now();
        let run = mgm(&["chat", "--image", path, "What is in the picture?"]);
        let run = run.fails_clearly(&[name]);
        assert!(started.elapsed().as_secs() < 20, "{run:?}");
    }
    let huge = mgm(&[
        "embed",
        "--image",
        bad.last().unwrap(),
        "-o",
        "never.safetensors",
    ]);
    huge.fails_clearly(&["huge.png", "30000"]);
}

#[test]
fn one_bad_picture_among_good_ones_is_named() {
    let cat = example("cat.jpg");
    mgm(&[
        "chat",
        "--image",
        &cat,
        "--image",
        "no-such.png",
        "Which is which?",
    ])
    .fails_clearly(&["no-such.png"]);
}

fn tokens(folder: &Path, picture: &str) -> Vec<f32> {
    let output = folder.join("tokens.safetensors");
    let path = output.display().to_string();
    assert_eq!(mgm(&["embed", "--image", picture, "-o", &path]).ok(), "");
    let bytes = std::fs::read(&output).unwrap();
    let file = safetensors::SafeTensors::deserialize(&bytes).unwrap();
    let tensor = file.tensor("visual_tokens").unwrap();
    assert_eq!(tensor.dtype(), safetensors::Dtype::F32);
    assert_eq!(tensor.shape().len(), 2);
    let values: Vec<f32> = tensor
        .data()
        .chunks(4)
        .map(|value| f32::from_le_bytes(value.try_into().unwrap()))
        .collect();
    assert_eq!(values.len(), tensor.shape().iter().product::<usize>());
    assert!(values.iter().all(|value| value.is_finite()));
    values
}

fn cosine(a: &[f32], b: &[f32]) -> f64 {
    let dot = |a: &[f32], b: &[f32]| -> f64 {
        a.iter()
            .zip(b)
            .map(|(x, y)| f64::from(*x) * f64::from(*y))
            .sum()
    };
    dot(a, b) / (dot(a, a) * dot(b, b)).sqrt()
}

#[test]
fn every_kind_of_picture_is_seen_as_what_it_is() {
    let folder = tempfile::tempdir().unwrap();
    let at = folder.path();
    let scene = scene();
    let png = put(at, "scene.png", &encoded(scene.clone(), ImageFormat::Png));
    let reference = tokens(at, &png);

    let rgba = RgbaImage::from_fn(160, 120, |x, y| {
        let Rgb([r, g, b]) = *scene.get_pixel(x, y);
        Rgba([r, g, b, 255])
    });
    let sixteen: image::ImageBuffer<Rgb<u16>, Vec<u16>> =
        image::ImageBuffer::from_fn(160, 120, |x, y| {
            Rgb(scene.get_pixel(x, y).0.map(|v| u16::from(v) * 257))
        });
    let mut animation = Vec::new();
    {
        let mut encoder = image::codecs::gif::GifEncoder::new(&mut animation);
        let second = RgbaImage::from_pixel(160, 120, Rgba([0, 255, 0, 255]));
        encoder
            .encode_frames([image::Frame::new(rgba.clone()), image::Frame::new(second)])
            .unwrap();
    }
    let turned = image::imageops::rotate270(&scene);
    let turned_jpeg = encoded(turned.clone(), ImageFormat::Jpeg);
    // How alike the tokens must be: what is lossless in colour and size must be (nearly) the same picture.
    for (name, bytes, at_least) in [
        ("alpha.png", encoded(rgba, ImageFormat::Png), 0.9999),
        ("sixteen.png", encoded(sixteen, ImageFormat::Png), 0.9999),
        (
            "scene.webp",
            encoded(scene.clone(), ImageFormat::WebP),
            0.9999,
        ),
        (
            "scene.bmp",
            encoded(scene.clone(), ImageFormat::Bmp),
            0.9999,
        ),
        ("animated.gif", animation, 0.9),
        ("scene.jpg", encoded(scene.clone(), ImageFormat::Jpeg), 0.9),
        ("turned-back.jpg", with_orientation(&turned_jpeg, 6), 0.9),
    ] {
        let path = put(at, name, &bytes);
        let found = cosine(&reference, &tokens(at, &path));
        assert!(found >= at_least, "{name}: {found}");
    }
    // Without the orientation the turned picture is another one: the limit above means something.
    let turned = put(at, "turned.jpg", &turned_jpeg);
    let found = cosine(&reference, &tokens(at, &turned));
    assert!(found < 0.9, "{found}");

    let grey = GrayImage::from_fn(160, 120, |x, y| Luma([(x + y) as u8 / 2]));
    let grey_rgb = RgbImage::from_fn(160, 120, |x, y| Rgb([(x + y) as u8 / 2; 3]));
    let grey = put(at, "grey.png", &encoded(grey, ImageFormat::Png));
    let grey_rgb = put(at, "grey-rgb.png", &encoded(grey_rgb, ImageFormat::Png));
    assert_eq!(tokens(at, &grey), tokens(at, &grey_rgb));
}

#[test]
fn unusual_pictures_are_answered() {
    let folder = tempfile::tempdir().unwrap();
    let at = folder.path();
    let mut pictures: Vec<PathBuf> = [
        put(
            at,
            "one-pixel.png",
            &encoded(
                RgbImage::from_pixel(1, 1, Rgb([255, 0, 0])),
                ImageFormat::Png,
            ),
        ),
        put(
            at,
            "thin.png",
            &encoded(
                RgbImage::from_pixel(2000, 1, Rgb([0, 0, 255])),
                ImageFormat::Png,
            ),
        ),
    ]
    .into_iter()
    .map(PathBuf::from)
    .collect();
    let fixtures = root().join("crates/mgm-image/tests/fixtures/formats");
    for name in [
        "cmyk_adobe.jpg",
        "ycck.jpg",
        "rgb_16.png",
        "rgba_16.png",
        "grey.jpg",
        "grey_1bit.png",
        "palette_transparent.png",
        "animated.gif",
        "animated.webp",
        "animated.png",
        "exif_6.jpg",
    ] {
        pictures.push(fixtures.join(name));
    }
    for picture in &pictures {
        let path = picture.display().to_string();
        let answer = mgm(&[
            "chat",
            "--max-new-tokens",
            "12",
            "--image",
            &path,
            "What is in the picture?",
        ])
        .ok();
        assert!(!answer.trim().is_empty(), "{path}");
    }
}

#[cfg(feature = "http")]
#[test]
fn pictures_come_from_addresses_too() {
    let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let address = listener.local_addr().unwrap();
    let png = encoded(scene(), ImageFormat::Png);
    std::thread::spawn(move || {
        for stream in listener.incoming() {
            let mut stream = stream.unwrap();
            let mut request = Vec::new();
            let mut byte = [0];
            while !request.ends_with(b"\r\n\r\n") && stream.read(&mut byte).unwrap_or(0) == 1 {
                request.push(byte[0]);
            }
            let request = String::from_utf8_lossy(&request).into_owned();
            let (status, body): (&str, &[u8]) = if request.starts_with("GET /scene.png ") {
                ("200 OK", &png)
            } else if request.starts_with("GET /page ") {
                ("200 OK", b"<html>no picture</html>")
            } else {
                ("404 Not Found", b"")
            };
            let header = format!(
                "HTTP/1.1 {status}\r\nContent-Length: {}\r\nConnection: close\r\n\r\n",
                body.len()
            );
            let _ = stream
                .write_all(header.as_bytes())
                .and_then(|()| stream.write_all(body));
        }
    });
    let folder = tempfile::tempdir().unwrap();
    let file = put(
        folder.path(),
        "scene.png",
        &encoded(scene(), ImageFormat::Png),
    );
    let url = format!("http://{address}/scene.png");
    assert_eq!(tokens(folder.path(), &url), tokens(folder.path(), &file));
    let url = format!("http://{address}/missing.png");
    mgm(&["chat", "--image", &url, "hi"]).fails_clearly(&["missing.png", "404"]);
    let url = format!("http://{address}/page");
    mgm(&["chat", "--image", &url, "hi"]).fails_clearly(&["/page", "not an image"]);
    mgm(&["chat", "--image", "http://127.0.0.1:1/x.png", "hi"]).fails_clearly(&["127.0.0.1:1"]);
}
