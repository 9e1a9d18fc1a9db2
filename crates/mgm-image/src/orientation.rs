//! EXIF orientation: reading the tag and turning the picture.

use crate::RgbImage;

/// The orientation tag (1 to 8) of an EXIF block, with or without the leading `Exif\0\0`; 1 when there is none.
pub(crate) fn from_exif(block: &[u8]) -> u8 {
    read_tag(block)
        .filter(|value| (1..=8).contains(value))
        .map_or(1, |value| value as u8)
}

fn read_tag(block: &[u8]) -> Option<u32> {
    const ORIENTATION: u16 = 0x0112;
    let block = block.strip_prefix(b"Exif\0\0").unwrap_or(block);
    let big_endian = match block.get(..4)? {
        b"II\x2a\0" => false,
        b"MM\0\x2a" => true,
        _ => return None,
    };
    let short = |at: usize| -> Option<u16> {
        let bytes: [u8; 2] = block.get(at..at.checked_add(2)?)?.try_into().ok()?;
        Some(if big_endian {
            u16::from_be_bytes(bytes)
        } else {
            u16::from_le_bytes(bytes)
        })
    };
    let long = |at: usize| -> Option<u32> {
        let bytes: [u8; 4] = block.get(at..at.checked_add(4)?)?.try_into().ok()?;
        Some(if big_endian {
            u32::from_be_bytes(bytes)
        } else {
            u32::from_le_bytes(bytes)
        })
    };
    let directory = usize::try_from(long(4)?).ok()?;
    let entries = usize::from(short(directory)?);
    for entry in 0..entries {
        let at = directory.checked_add(2 + entry * 12)?;
        if short(at)? == ORIENTATION {
            return match short(at + 2)? {
                3 => short(at + 8).map(u32::from),
                4 => long(at + 8),
                _ => None,
            };
        }
    }
    None
}

/// Turns and mirrors a picture so that it stands as the tag says (Pillow's `ImageOps.exif_transpose`).
pub(crate) fn apply(image: RgbImage, orientation: u8) -> RgbImage {
    if !(2..=8).contains(&orientation) {
        return image;
    }
    let (width, height) = (image.width as usize, image.height as usize);
    let swapped = orientation >= 5;
    let (out_width, out_height) = if swapped {
        (height, width)
    } else {
        (width, height)
    };
    let source = image.data.as_chunks::<3>().0;
    let mut data = Vec::with_capacity(image.data.len());
    for y in 0..out_height {
        for x in 0..out_width {
            let (from_x, from_y) = match orientation {
                2 => (width - 1 - x, y),
                3 => (width - 1 - x, height - 1 - y),
                4 => (x, height - 1 - y),
                5 => (y, x),
                6 => (y, height - 1 - x),
                7 => (width - 1 - y, height - 1 - x),
                _ => (width - 1 - y, x),
            };
            data.extend_from_slice(&source[from_y * width + from_x]);
        }
    }
    RgbImage {
        width: out_width as u32,
        height: out_height as u32,
        data,
    }
}
