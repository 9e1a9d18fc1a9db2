//! WebP: lossy, lossless, with alpha; of an animated one the first frame.

use std::io::Cursor;

use image_webp::{DecodingError, WebPDecoder};

use super::{Limits, drop_fourth};
use crate::{ImageError, RgbImage, orientation};

const FORMAT: &str = "WebP";

fn decoding_error(error: DecodingError) -> ImageError {
    match error {
        DecodingError::IoError(error) if error.kind() == std::io::ErrorKind::UnexpectedEof => {
            ImageError::Truncated {
                format: FORMAT,
                detail: "its data end too early".into(),
            }
        }
        other => ImageError::Corrupt {
            format: FORMAT,
            detail: other.to_string(),
        },
    }
}

/// Decodes, and returns the orientation tag.
pub(super) fn decode(bytes: &[u8], limits: &Limits) -> Result<(RgbImage, u8), ImageError> {
    // The container states its length; the decoder itself does not mind when the last chunk is cut.
    if let Some(&[a, b, c, d]) = bytes.get(4..8) {
        let stated = u64::from(u32::from_le_bytes([a, b, c, d])) + 8;
        if stated > bytes.len() as u64 {
            let detail = format!("its header states {stated} bytes, found {}", bytes.len());
            return Err(ImageError::Truncated {
                format: FORMAT,
                detail,
            });
        }
    }
    let mut decoder = WebPDecoder::new(Cursor::new(bytes)).map_err(decoding_error)?;
    let (width, height) = decoder.dimensions();
    limits.check_pixels(width, height)?;
    let channels = if decoder.has_alpha() { 4 } else { 3 };
    let mut samples = vec![0u8; width as usize * height as usize * channels];
    decoder.read_image(&mut samples).map_err(decoding_error)?;
    let data = if channels == 4 {
        drop_fourth(&samples)
    } else {
        samples
    };
    let exif = decoder.exif_metadata().unwrap_or_default();
    let orientation = exif.map_or(1, |block| orientation::from_exif(&block));
    Ok((
        RgbImage {
            width,
            height,
            data,
        },
        orientation,
    ))
}
