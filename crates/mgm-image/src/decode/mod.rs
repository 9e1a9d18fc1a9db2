//! Decoding to 8-bit RGB with Pillow's `convert("RGB")` rules: alpha is dropped without compositing, grey and palettes
//! are expanded, no colour profile is applied.

mod bmp;
mod gif;
mod jpeg;
mod png;
mod webp;

use std::path::Path;

use crate::{ImageError, RgbImage, orientation};

/// How much an image may take. Both are checked before any pixel is allocated.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Limits {
    /// Bytes of the encoded file; 64 MiB by default.
    pub max_bytes: u64,
    /// Width times height; 100 million by default.
    pub max_pixels: u64,
}

impl Default for Limits {
    fn default() -> Self {
        Self {
            max_bytes: 64 << 20,
            max_pixels: 100_000_000,
        }
    }
}

impl Limits {
    /// Checks the size that a header promises.
    fn check_pixels(&self, width: u32, height: u32) -> Result<(), ImageError> {
        if width == 0 || height == 0 {
            return Err(ImageError::NoPixels { width, height });
        }
        if u64::from(width) * u64::from(height) > self.max_pixels {
            return Err(ImageError::TooManyPixels {
                width,
                height,
                allowed: self.max_pixels,
            });
        }
        Ok(())
    }

    fn check_bytes(&self, found: u64) -> Result<(), ImageError> {
        if found > self.max_bytes {
            return Err(ImageError::TooManyBytes {
                found,
                allowed: self.max_bytes,
            });
        }
        Ok(())
    }
}

/// What to do with the EXIF orientation tag.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Orientation {
    /// Turn the picture upright.
    #[default]
    Apply,
    /// Leave it as stored, as the official code does.
    Ignore,
}

/// Limits and orientation.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct DecodeOptions {
    /// How much an image may take.
    pub limits: Limits,
    /// What to do with the EXIF orientation tag.
    pub orientation: Orientation,
}

/// Decodes an image of any supported format, turned upright; the format is found from the content.
///
/// # Errors
/// See [`decode_with`].
pub fn decode(bytes: &[u8], limits: &Limits) -> Result<RgbImage, ImageError> {
    decode_with(
        bytes,
        &DecodeOptions {
            limits: *limits,
            orientation: Orientation::Apply,
        },
    )
}

/// Decodes an image of any supported format; the format is found from the content.
///
/// # Errors
/// An [`ImageError`] for data that are empty, not an image, of an unsupported format or feature, truncated, corrupt, or
/// beyond the limits. Truncated data never give a partly grey picture.
pub fn decode_with(bytes: &[u8], options: &DecodeOptions) -> Result<RgbImage, ImageError> {
    let limits = &options.limits;
    limits.check_bytes(bytes.len() as u64)?;
    let (image, orientation) = match sniff(bytes)? {
        Format::Jpeg => jpeg::decode(bytes, limits)?,
        Format::Png => png::decode(bytes, limits)?,
        Format::WebP => webp::decode(bytes, limits)?,
        Format::Gif => (gif::decode(bytes, limits)?, 1),
        Format::Bmp => (bmp::decode(bytes, limits)?, 1),
    };
    Ok(match options.orientation {
        Orientation::Apply => orientation::apply(image, orientation),
        Orientation::Ignore => image,
    })
}

/// [`decode`] of a file.
///
/// # Errors
/// See [`open_with`].
pub fn open(path: impl AsRef<Path>, limits: &Limits) -> Result<RgbImage, ImageError> {
    open_with(
        path,
        &DecodeOptions {
            limits: *limits,
            orientation: Orientation::Apply,
        },
    )
}

/// [`decode_with`] of a file, whose size is checked before it is read.
///
/// # Errors
/// [`ImageError::Read`] if it cannot be read, else [`ImageError::InFile`] with the errors of [`decode_with`].
pub fn open_with(path: impl AsRef<Path>, options: &DecodeOptions) -> Result<RgbImage, ImageError> {
    use std::io::Read;
    let path = path.as_ref();
    let read_error = |error| ImageError::Read {
        path: path.to_owned(),
        error,
    };
    let in_file = |error| ImageError::InFile {
        path: path.to_owned(),
        error: Box::new(error),
    };
    let file = std::fs::File::open(path).map_err(read_error)?;
    let length = file.metadata().map_err(read_error)?.len();
    options.limits.check_bytes(length).map_err(in_file)?;
    let mut bytes = Vec::new();
    // A pipe or device has no length: one byte beyond the limit is enough to notice.
    file.take(options.limits.max_bytes.saturating_add(1))
        .read_to_end(&mut bytes)
        .map_err(read_error)?;
    decode_with(&bytes, options).map_err(in_file)
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Format {
    Jpeg,
    Png,
    WebP,
    Gif,
    Bmp,
}

const PNG_SIGNATURE: &[u8] = b"\x89PNG\r\n\x1a\n";

/// The format by its first bytes.
fn sniff(bytes: &[u8]) -> Result<Format, ImageError> {
    if bytes.is_empty() {
        return Err(ImageError::Empty);
    }
    let riff = |kind: &[u8]| bytes.starts_with(b"RIFF") && bytes.get(8..12) == Some(kind);
    if bytes.starts_with(b"\xff\xd8\xff") {
        return Ok(Format::Jpeg);
    } else if bytes.starts_with(PNG_SIGNATURE) {
        return Ok(Format::Png);
    } else if riff(b"WEBP") {
        return Ok(Format::WebP);
    } else if bytes.starts_with(b"GIF87a") || bytes.starts_with(b"GIF89a") {
        return Ok(Format::Gif);
    } else if bytes.starts_with(b"BM") {
        return Ok(Format::Bmp);
    }
    for (format, signature) in [
        ("JPEG", &b"\xff\xd8\xff"[..]),
        ("PNG", PNG_SIGNATURE),
        ("GIF", b"GIF87a"),
        ("GIF", b"GIF89a"),
        ("WebP", b"RIFF"),
    ] {
        if bytes.len() >= 2
            && bytes.len() <= 11
            && (signature.starts_with(bytes) || bytes.starts_with(signature))
        {
            let detail = format!("only {} bytes of its header are there", bytes.len());
            return Err(ImageError::Truncated { format, detail });
        }
    }
    if let Some(format) = unsupported_format(bytes) {
        return Err(ImageError::UnsupportedFormat { format });
    }
    Err(ImageError::NotAnImage {
        first_bytes: printable_start(bytes),
    })
}

/// Names formats that users plausibly try.
fn unsupported_format(bytes: &[u8]) -> Option<&'static str> {
    if bytes.get(4..8) == Some(b"ftyp") {
        return Some(match bytes.get(8..12) {
            Some(b"avif" | b"avis") => "AVIF",
            Some(b"heic" | b"heix" | b"hevc" | b"heim" | b"heis" | b"mif1" | b"msf1") => "HEIC",
            _ => "MP4 (video)",
        });
    }
    let known: [(&[u8], &str); 14] = [
        (b"II\x2a\0", "TIFF"),
        (b"MM\0\x2a", "TIFF"),
        (b"II\x2b\0", "BigTIFF"),
        (b"\0\0\x01\0", "ICO"),
        (b"%PDF", "PDF"),
        (b"8BPS", "Photoshop"),
        (b"\xff\x0a", "JPEG XL"),
        (b"\0\0\0\x0cJXL ", "JPEG XL"),
        (b"\0\0\0\x0cjP  ", "JPEG 2000"),
        (b"\xff\x4f\xff\x51", "JPEG 2000"),
        (b"qoif", "QOI"),
        (b"<svg", "SVG"),
        (b"v/1\x01", "OpenEXR"),
        (b"\x1aE\xdf\xa3", "WebM (video)"),
    ];
    known
        .iter()
        .find(|(start, _)| bytes.starts_with(start))
        .map(|&(_, format)| format)
}

/// The first 16 bytes, as text where they are text.
fn printable_start(bytes: &[u8]) -> String {
    let start = &bytes[..bytes.len().min(16)];
    let readable =
        |byte: &u8| byte.is_ascii_graphic() || matches!(byte, b' ' | b'\n' | b'\r' | b'\t');
    if start.iter().all(readable) {
        format!("the text {:?}", String::from_utf8_lossy(start))
    } else {
        let hex: Vec<String> = start.iter().map(|byte| format!("{byte:02x}")).collect();
        format!("the bytes {}", hex.join(" "))
    }
}

/// One byte per pixel to three.
fn expand_grey(grey: &[u8]) -> Vec<u8> {
    grey.iter().flat_map(|&value| [value; 3]).collect()
}

/// Four bytes per pixel to the first three.
fn drop_fourth(samples: &[u8]) -> Vec<u8> {
    samples
        .as_chunks::<4>()
        .0
        .iter()
        .flat_map(|&[red, green, blue, _]| [red, green, blue])
        .collect()
}
