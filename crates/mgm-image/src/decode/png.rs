//! PNG: every colour type and depth, interlaced or not; of an animated one the default image.

use std::io::Cursor;

use png::{BitDepth, ColorType, DecodingError, Transformations};

use super::{Limits, drop_fourth, expand_grey};
use crate::{ImageError, RgbImage, orientation};

const FORMAT: &str = "PNG";

fn corrupt(detail: impl Into<String>) -> ImageError {
    ImageError::Corrupt {
        format: FORMAT,
        detail: detail.into(),
    }
}

fn decoding_error(error: DecodingError) -> ImageError {
    match error {
        DecodingError::IoError(error) if error.kind() == std::io::ErrorKind::UnexpectedEof => {
            ImageError::Truncated {
                format: FORMAT,
                detail: "its data end too early".into(),
            }
        }
        DecodingError::LimitsExceeded => corrupt("a chunk takes more memory than allowed"),
        other => corrupt(other.to_string()),
    }
}

/// Decodes, and returns the orientation tag.
pub(super) fn decode(bytes: &[u8], limits: &Limits) -> Result<(RgbImage, u8), ImageError> {
    /// Memory for chunks other than pixels.
    const CHUNK_BYTES: usize = 64 << 20;
    let mut decoder =
        png::Decoder::new_with_limits(Cursor::new(bytes), png::Limits { bytes: CHUNK_BYTES });
    decoder.set_ignore_text_chunk(true);
    decoder.set_ignore_iccp_chunk(true);
    let info = decoder.read_header_info().map_err(decoding_error)?;
    let (width, height) = (info.width, info.height);
    limits.check_pixels(width, height)?;
    let deep_grey = (info.color_type, info.bit_depth) == (ColorType::Grayscale, BitDepth::Sixteen);
    // Pillow keeps the high byte of 16-bit samples, except of pure grey ones.
    decoder.set_transformations(match deep_grey {
        true => Transformations::IDENTITY,
        false => Transformations::EXPAND | Transformations::STRIP_16,
    });
    // A row buffer is counted against the limit too.
    let row_bytes = width as usize * 8;
    decoder.set_limits(png::Limits {
        bytes: CHUNK_BYTES.saturating_add(row_bytes),
    });
    let mut reader = decoder.read_info().map_err(decoding_error)?;
    let layout = match (deep_grey, reader.output_color_type()) {
        (true, _) => Layout::DeepGrey,
        (_, (ColorType::Grayscale, BitDepth::Eight)) => Layout::Grey,
        (_, (ColorType::GrayscaleAlpha, BitDepth::Eight)) => Layout::GreyAlpha,
        (_, (ColorType::Rgb, BitDepth::Eight)) => Layout::Rgb,
        (_, (ColorType::Rgba, BitDepth::Eight)) => Layout::Rgba,
        (_, other) => return Err(corrupt(format!("pixels of type {other:?}"))),
    };
    let pixels = width as usize * height as usize;
    let data = if reader.info().interlaced {
        let size = reader
            .output_buffer_size()
            .ok_or_else(|| corrupt("its size overflows"))?;
        let mut samples = vec![0u8; size];
        reader.next_frame(&mut samples).map_err(decoding_error)?;
        layout.to_rgb(samples)
    } else {
        let mut data = Vec::with_capacity(pixels * 3);
        while let Some(row) = reader.next_row().map_err(decoding_error)? {
            layout.append_row(row.data(), &mut data);
        }
        data
    };
    if data.len() != pixels * 3 {
        return Err(corrupt(format!(
            "expected {pixels} pixels, found {}",
            data.len() / 3
        )));
    }
    let mut exif = reader.info().exif_metadata.clone();
    // The tag may come after the pixels. All pixels are there, so a bad rest is none of our business (nor of Pillow's).
    if exif.is_none() && reader.finish().is_ok() {
        exif = reader.info().exif_metadata.clone();
    }
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

/// Samples of a pixel as the decoder hands them out.
#[derive(Clone, Copy)]
enum Layout {
    Grey,
    GreyAlpha,
    Rgb,
    Rgba,
    /// 16-bit grey, big endian.
    DeepGrey,
}

impl Layout {
    fn to_rgb(self, samples: Vec<u8>) -> Vec<u8> {
        match self {
            Layout::Rgb => samples,
            Layout::Rgba => drop_fourth(&samples),
            Layout::Grey => expand_grey(&samples),
            Layout::GreyAlpha => samples
                .as_chunks::<2>()
                .0
                .iter()
                .flat_map(|&[grey, _]| [grey; 3])
                .collect(),
            // Pillow's mode I;16 becomes RGB by clipping at 255, not by scaling.
            Layout::DeepGrey => {
                let clip = |&pair: &[u8; 2]| [u16::from_be_bytes(pair).min(255) as u8; 3];
                samples.as_chunks::<2>().0.iter().flat_map(clip).collect()
            }
        }
    }

    fn append_row(self, row: &[u8], data: &mut Vec<u8>) {
        match self {
            Layout::Rgb => data.extend_from_slice(row),
            _ => data.extend(self.to_rgb(row.to_vec())),
        }
    }
}
