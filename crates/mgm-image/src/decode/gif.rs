//! GIF: the first frame, on the whole canvas.

use gif::{ColorOutput, DecodeOptions, DecodingError, MemoryLimit};

use super::Limits;
use crate::{ImageError, RgbImage};

const FORMAT: &str = "GIF";

fn corrupt(detail: impl Into<String>) -> ImageError {
    ImageError::Corrupt {
        format: FORMAT,
        detail: detail.into(),
    }
}

fn truncated() -> ImageError {
    ImageError::Truncated {
        format: FORMAT,
        detail: "its data end too early".into(),
    }
}

fn decoding_error(error: DecodingError) -> ImageError {
    match error {
        DecodingError::UnexpectedEof => truncated(),
        DecodingError::Io(error) if error.kind() == std::io::ErrorKind::UnexpectedEof => {
            truncated()
        }
        other => corrupt(other.to_string()),
    }
}

pub(super) fn decode(bytes: &[u8], limits: &Limits) -> Result<RgbImage, ImageError> {
    let mut options = DecodeOptions::new();
    options.set_color_output(ColorOutput::Indexed);
    options.set_memory_limit(MemoryLimit::Unlimited);
    options.allow_unknown_blocks(true);
    let mut decoder = options.read_info(bytes).map_err(decoding_error)?;
    let (screen_width, screen_height) = (u32::from(decoder.width()), u32::from(decoder.height()));
    // Our own check below bounds every buffer, so the decoder needs no limit of its own.
    let frame = decoder
        .next_frame_info()
        .map_err(decoding_error)?
        .ok_or_else(|| corrupt("it has no frame"))?;
    let (left, top) = (usize::from(frame.left), usize::from(frame.top));
    let (frame_width, frame_height) = (usize::from(frame.width), usize::from(frame.height));
    let transparent = frame.transparent;
    // Pillow lets a frame that reaches beyond the screen enlarge it.
    let width = screen_width.max((left + frame_width) as u32);
    let height = screen_height.max((top + frame_height) as u32);
    limits.check_pixels(width, height)?;
    let mut indices = vec![0u8; decoder.buffer_size()];
    decoder
        .read_into_buffer(&mut indices)
        .map_err(decoding_error)?;

    // A file without any palette is grey.
    let mut palette: Vec<[u8; 3]> = (0..=255).map(|value| [value; 3]).collect();
    if let Ok(colours) = decoder.palette() {
        let (colours, _) = colours.as_chunks::<3>();
        // Indices beyond the palette are black.
        palette.fill([0; 3]);
        palette
            .iter_mut()
            .zip(colours)
            .for_each(|(entry, &colour)| *entry = colour);
    }
    // What the frame does not cover has the transparent index, or zero (Pillow).
    let mut image = RgbImage::filled(
        width,
        height,
        palette[usize::from(transparent.unwrap_or(0))],
    );
    if frame_width > 0 {
        let rows = image
            .data
            .as_chunks_mut::<3>()
            .0
            .chunks_exact_mut(width as usize);
        for (row, indices) in rows.skip(top).zip(indices.chunks_exact(frame_width)) {
            for (pixel, &index) in row[left..].iter_mut().zip(indices) {
                *pixel = palette[usize::from(index)];
            }
        }
    }
    Ok(image)
}
