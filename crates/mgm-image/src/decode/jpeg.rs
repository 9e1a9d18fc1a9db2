//! JPEG: sequential and progressive, grey, YCbCr, RGB, CMYK and YCCK.

use std::borrow::Cow;

use zune_core::bytestream::ZCursor;
use zune_core::colorspace::ColorSpace;
use zune_core::options::DecoderOptions;
use zune_jpeg::JpegDecoder;
use zune_jpeg::errors::DecodeErrors;

use super::{Limits, drop_fourth, expand_grey};
use crate::{ImageError, RgbImage, orientation};

const FORMAT: &str = "JPEG";

fn truncated(detail: impl Into<String>) -> ImageError {
    ImageError::Truncated {
        format: FORMAT,
        detail: detail.into(),
    }
}

fn corrupt(detail: impl Into<String>) -> ImageError {
    ImageError::Corrupt {
        format: FORMAT,
        detail: detail.into(),
    }
}

fn unsupported(feature: impl Into<String>) -> ImageError {
    ImageError::Unsupported {
        format: FORMAT,
        feature: feature.into(),
    }
}

/// Decodes, and returns the orientation tag.
pub(super) fn decode(bytes: &[u8], limits: &Limits) -> Result<(RgbImage, u8), ImageError> {
    let outline = Outline::read(bytes, limits)?;
    let (width, height) = (outline.width, outline.height);
    let color = outline.color();
    // Strict, because otherwise the decoder fills what it cannot decode with grey.
    let options = DecoderOptions::default()
        .set_strict_mode(true)
        .set_max_width(usize::from(u16::MAX))
        .set_max_height(usize::from(u16::MAX))
        .jpeg_set_out_colorspace(color.decoded());
    let mut decoder = JpegDecoder::new_with_options(ZCursor::new(&*outline.clean), options);
    let samples = decoder.decode().map_err(decoding_error)?;
    let pixels = width as usize * height as usize;
    let expected = pixels * color.decoded().num_components();
    if samples.len() != expected {
        return Err(corrupt(format!(
            "expected {expected} samples, the decoder gave {}",
            samples.len()
        )));
    }
    let data = match color {
        Color::Grey => expand_grey(&samples),
        Color::Rgb => samples,
        Color::Cmyk => cmyk_to_rgb(samples),
    };
    Ok((
        RgbImage {
            width,
            height,
            data,
        },
        outline.orientation,
    ))
}

/// Pillow takes every CMYK JPEG for Adobe's inverted one and converts by `(255 - c) * (255 - k) / 255`; with the stored,
/// inverted samples that is `k - (255 - c) * k / 255`, the product rounded as its `MULDIV255`.
fn cmyk_to_rgb(mut samples: Vec<u8>) -> Vec<u8> {
    for [cyan, magenta, yellow, black] in samples.as_chunks_mut::<4>().0 {
        let key = i32::from(*black);
        for ink in [cyan, magenta, yellow] {
            let product = (255 - i32::from(*ink)) * key + 128;
            *ink = (key - ((product + (product >> 8)) >> 8)).clamp(0, 255) as u8;
        }
    }
    drop_fourth(&samples)
}

fn decoding_error(error: DecodeErrors) -> ImageError {
    match error {
        DecodeErrors::ExhaustedData | DecodeErrors::IoErrors(_) => {
            truncated("its data end too early")
        }
        DecodeErrors::FormatStatic(text) if text.contains("Premature end") => {
            truncated("its data end too early")
        }
        DecodeErrors::Unsupported(scheme) => unsupported(format!("{scheme:?}")),
        DecodeErrors::FormatStatic(text) => corrupt(text),
        DecodeErrors::Format(text)
        | DecodeErrors::HuffmanDecode(text)
        | DecodeErrors::DqtError(text)
        | DecodeErrors::SosError(text)
        | DecodeErrors::SofError(text)
        | DecodeErrors::MCUError(text) => corrupt(text),
        other => corrupt(format!("{other:?}")),
    }
}

/// How the components are to be read.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Color {
    Grey,
    /// YCbCr, RGB or YCCK: the decoder finds out which, from the Adobe segment or the component names.
    Rgb,
    Cmyk,
}

impl Color {
    /// What the decoder is asked for.
    fn decoded(self) -> ColorSpace {
        match self {
            Color::Grey => ColorSpace::Luma,
            Color::Rgb => ColorSpace::RGB,
            Color::Cmyk => ColorSpace::CMYK,
        }
    }
}

/// What the segments before the first scan say, and proof that the file goes on to its end marker.
struct Outline<'a> {
    width: u32,
    height: u32,
    components: usize,
    adobe_transform: Option<u8>,
    orientation: u8,
    /// The file without stray bytes between segments, at which the strict decoder would stop.
    clean: Cow<'a, [u8]>,
}

impl<'a> Outline<'a> {
    fn read(bytes: &'a [u8], limits: &Limits) -> Result<Self, ImageError> {
        let mut outline = Outline {
            width: 0,
            height: 0,
            components: 0,
            adobe_transform: None,
            orientation: 1,
            clean: Cow::Borrowed(bytes),
        };
        let mut at = 2;
        let mut kept_until = 0;
        let mut kept = Vec::new();
        let mut scans = 0;
        loop {
            let marker_at = find_marker(bytes, at).ok_or_else(|| {
                truncated(format!("its {} bytes have no end marker", bytes.len()))
            })?;
            if marker_at > at && scans == 0 {
                kept.extend_from_slice(&bytes[kept_until..at]);
                kept_until = marker_at;
            }
            let marker = bytes[marker_at + 1];
            at = marker_at + 2;
            match marker {
                0xd9 => break,
                0x01 | 0xd0..=0xd8 => continue,
                _ => {}
            }
            let length = match bytes.get(at..at + 2) {
                Some(&[high, low]) => usize::from(u16::from_be_bytes([high, low])),
                _ => return Err(truncated("it ends inside a segment")),
            };
            if length < 2 {
                return Err(corrupt(format!("segment {marker:02x} has length {length}")));
            }
            let payload = bytes
                .get(at + 2..at + length)
                .ok_or_else(|| truncated("it ends inside a segment"))?;
            at += length;
            match marker {
                0xc4 | 0xc8 | 0xcc => {}
                0xc0..=0xcf => outline.read_frame(marker, payload, limits)?,
                0xda if outline.components == 0 => {
                    return Err(corrupt("a scan comes before the frame header"));
                }
                0xda => scans += 1,
                0xe1 if payload.starts_with(b"Exif\0\0") => {
                    outline.orientation = orientation::from_exif(payload)
                }
                0xee if payload.starts_with(b"Adobe") => {
                    outline.adobe_transform = payload.get(11).copied()
                }
                _ => {}
            }
        }
        if scans == 0 {
            return Err(corrupt("it has no scan"));
        }
        if kept_until > 0 {
            kept.extend_from_slice(&bytes[kept_until..]);
            outline.clean = Cow::Owned(kept);
        }
        Ok(outline)
    }

    fn read_frame(
        &mut self,
        marker: u8,
        payload: &[u8],
        limits: &Limits,
    ) -> Result<(), ImageError> {
        if self.components > 0 {
            return Err(corrupt("it has two frame headers"));
        }
        match marker {
            0xc0..=0xc2 => {}
            0xc3 => return Err(unsupported("lossless coding")),
            0xc9..=0xcb => return Err(unsupported("arithmetic coding")),
            _ => return Err(unsupported("hierarchical coding")),
        }
        let [precision, y1, y0, x1, x0, count, rest @ ..] = payload else {
            return Err(corrupt("its frame header is too short"));
        };
        if *precision != 8 {
            return Err(unsupported(format!(
                "{precision} bits per sample, expected 8"
            )));
        }
        self.height = u32::from(u16::from_be_bytes([*y1, *y0]));
        self.width = u32::from(u16::from_be_bytes([*x1, *x0]));
        if self.height == 0 && self.width > 0 {
            return Err(unsupported("its height is not in the frame header"));
        }
        limits.check_pixels(self.width, self.height)?;
        if !matches!(count, 1 | 3 | 4) {
            return Err(unsupported(format!(
                "{count} components, expected 1, 3 or 4"
            )));
        }
        if rest.len() < usize::from(*count) * 3 {
            return Err(corrupt("its frame header is too short"));
        }
        self.components = usize::from(*count);
        Ok(())
    }

    fn color(&self) -> Color {
        match (self.components, self.adobe_transform) {
            (1, _) => Color::Grey,
            (4, transform) if transform != Some(2) => Color::Cmyk,
            _ => Color::Rgb,
        }
    }
}

/// Position of the next marker's 0xff: not a stuffed zero, not a restart marker, fill bytes skipped.
fn find_marker(bytes: &[u8], from: usize) -> Option<usize> {
    let mut at = from;
    loop {
        at += bytes.get(at..)?.iter().position(|&byte| byte == 0xff)?;
        match bytes.get(at + 1)? {
            0x00 | 0xd0..=0xd7 => at += 2,
            0xff => at += 1,
            _ => return Some(at),
        }
    }
}
