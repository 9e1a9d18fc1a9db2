//! Windows and OS/2 bitmaps: 1, 2, 4, 8, 16, 24 and 32 bits, bit fields, RLE4 and RLE8. Written out here because Pillow
//! widens 5- and 6-bit samples by truncation, which general decoders round.

use super::Limits;
use crate::{ImageError, RgbImage};

const FORMAT: &str = "BMP";
/// Compression numbers of the header.
const RAW: u32 = 0;
const RLE8: u32 = 1;
const RLE4: u32 = 2;
const BIT_FIELDS: u32 = 3;
const ALPHA_BIT_FIELDS: u32 = 6;

fn truncated(detail: impl Into<String>) -> ImageError {
    ImageError::Truncated {
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

fn short(bytes: &[u8], at: usize) -> Result<u32, ImageError> {
    match bytes.get(at..at + 2) {
        Some(&[a, b]) => Ok(u32::from(u16::from_le_bytes([a, b]))),
        _ => Err(truncated("it ends inside its header")),
    }
}

fn long(bytes: &[u8], at: usize) -> Result<u32, ImageError> {
    match bytes.get(at..at + 4) {
        Some(&[a, b, c, d]) => Ok(u32::from_le_bytes([a, b, c, d])),
        _ => Err(truncated("it ends inside its header")),
    }
}

struct Header {
    width: u32,
    height: u32,
    /// First row at the top; else at the bottom.
    top_down: bool,
    bits: u32,
    compression: u32,
    masks: [u32; 3],
    palette: Vec<[u8; 3]>,
    pixels_at: usize,
}

pub(super) fn decode(bytes: &[u8], limits: &Limits) -> Result<RgbImage, ImageError> {
    let header = Header::read(bytes, limits)?;
    let stored = bytes
        .get(header.pixels_at..)
        .ok_or_else(|| truncated("it ends before its pixels"))?;
    let mut rows = match header.compression {
        RLE4 | RLE8 => header.run_length_rows(stored)?,
        _ => header.plain_rows(stored)?,
    };
    if !header.top_down {
        let stride = header.width as usize * 3;
        let (mut low, mut high) = (0, header.height as usize - 1);
        while low < high {
            let (upper, lower) = rows.split_at_mut(high * stride);
            upper[low * stride..][..stride].swap_with_slice(&mut lower[..stride]);
            low += 1;
            high -= 1;
        }
    }
    Ok(RgbImage {
        width: header.width,
        height: header.height,
        data: rows,
    })
}

impl Header {
    fn read(bytes: &[u8], limits: &Limits) -> Result<Self, ImageError> {
        let pixels_at = long(bytes, 10)? as usize;
        let header_size = long(bytes, 14)? as usize;
        let os2 = header_size == 12;
        if !os2 && !matches!(header_size, 16 | 40 | 52 | 56 | 64 | 108 | 124) {
            return Err(unsupported(format!("a header of {header_size} bytes")));
        }
        let (width, height, bits) = if os2 {
            (
                short(bytes, 18)? as i32,
                short(bytes, 20)? as i32,
                short(bytes, 24)?,
            )
        } else {
            (
                long(bytes, 18)? as i32,
                long(bytes, 22)? as i32,
                short(bytes, 28)?,
            )
        };
        if width < 0 {
            return Err(ImageError::Corrupt {
                format: FORMAT,
                detail: format!("its width is {width}"),
            });
        }
        let top_down = height < 0;
        let (width, height) = (width.unsigned_abs(), height.unsigned_abs());
        limits.check_pixels(width, height)?;
        let (compression, colours) = match header_size {
            12 | 16 => (RAW, 0),
            _ => (long(bytes, 30)?, long(bytes, 46)?),
        };
        let fits = match compression {
            RAW => matches!(bits, 1 | 2 | 4 | 8 | 16 | 24 | 32),
            RLE8 => bits == 8,
            RLE4 => bits == 4,
            BIT_FIELDS | ALPHA_BIT_FIELDS => matches!(bits, 16 | 32),
            _ => false,
        };
        if !fits {
            return Err(unsupported(format!(
                "{bits} bits per pixel with compression {compression}"
            )));
        }
        let mut palette_at = 14 + header_size;
        let masks = if compression == BIT_FIELDS || compression == ALPHA_BIT_FIELDS {
            // In the two oldest headers the masks follow, in later ones they are part of the header.
            if header_size == 40 {
                palette_at += if compression == BIT_FIELDS { 12 } else { 16 };
            }
            [long(bytes, 54)?, long(bytes, 58)?, long(bytes, 62)?]
        } else if bits == 16 {
            [0x7c00, 0x03e0, 0x001f]
        } else {
            [0x00ff_0000, 0x0000_ff00, 0x0000_00ff]
        };
        let palette = if bits <= 8 {
            let largest = 1usize << bits;
            let entry = if os2 { 3 } else { 4 };
            let count = if colours == 0 {
                largest
            } else {
                (colours as usize).min(largest)
            };
            let end = palette_at + count * entry;
            let table = bytes
                .get(palette_at..end)
                .ok_or_else(|| truncated("it ends inside its palette"))?;
            let mut palette: Vec<[u8; 3]> = table
                .chunks_exact(entry)
                .map(|e| [e[2], e[1], e[0]])
                .collect();
            palette.resize(largest, [0; 3]);
            palette
        } else {
            Vec::new()
        };
        Ok(Self {
            width,
            height,
            top_down,
            bits,
            compression,
            masks,
            palette,
            pixels_at,
        })
    }

    /// Rows of fixed length, in the order of the file.
    fn plain_rows(&self, stored: &[u8]) -> Result<Vec<u8>, ImageError> {
        let (width, height) = (self.width as usize, self.height as usize);
        let row_bytes = (width * self.bits as usize).div_ceil(8);
        let stride = row_bytes.next_multiple_of(4);
        // The padding of the last row may be missing.
        let expected = stride * (height - 1) + row_bytes;
        if stored.len() < expected {
            let detail = format!(
                "expected {expected} bytes of pixels, found {}",
                stored.len()
            );
            return Err(truncated(detail));
        }
        let fields = self.masks.map(Field::new);
        let mut rows = Vec::with_capacity(width * height * 3);
        for row in stored.chunks(stride).take(height) {
            let row = &row[..row_bytes];
            match self.bits {
                24 => rows.extend(
                    row.as_chunks::<3>()
                        .0
                        .iter()
                        .flat_map(|&[b, g, r]| [r, g, b]),
                ),
                32 => rows.extend(row.as_chunks::<4>().0.iter().flat_map(|&pixel| {
                    let pixel = u32::from_le_bytes(pixel);
                    fields.map(|field| field.value(pixel))
                })),
                16 => rows.extend(row.as_chunks::<2>().0.iter().flat_map(|&pixel| {
                    let pixel = u32::from(u16::from_le_bytes(pixel));
                    fields.map(|field| field.value(pixel))
                })),
                bits => {
                    let per_byte = 8 / bits as usize;
                    let mask = (1usize << bits) - 1;
                    for x in 0..width {
                        let shift = 8 - bits as usize * (x % per_byte + 1);
                        rows.extend(self.palette[usize::from(row[x / per_byte]) >> shift & mask]);
                    }
                }
            }
        }
        Ok(rows)
    }

    /// Run-length coded rows, in the order of the file; what the code skips has index 0.
    fn run_length_rows(&self, stored: &[u8]) -> Result<Vec<u8>, ImageError> {
        let (width, height) = (self.width as usize, self.height as usize);
        let mut indices = vec![0u8; width * height];
        let (mut x, mut y) = (0usize, 0usize);
        let mut input = stored.iter().copied();
        let mut next = || {
            input
                .next()
                .ok_or_else(|| truncated("its run-length code has no end"))
        };
        let mut put = |x: usize, y: usize, index: u8| {
            if x < width && y < height {
                indices[y * width + x] = index;
            }
        };
        let nibbles = self.compression == RLE4;
        while y < height {
            let (count, value) = (next()?, next()?);
            match (count, value) {
                (0, 0) => (x, y) = (0, y + 1),
                (0, 1) => break,
                (0, 2) => {
                    x += usize::from(next()?);
                    y += usize::from(next()?);
                }
                (0, literal) => {
                    let literal = usize::from(literal);
                    let length = if nibbles {
                        literal.div_ceil(2)
                    } else {
                        literal
                    };
                    for position in 0..length {
                        let byte = next()?;
                        if nibbles {
                            put(x + position * 2, y, byte >> 4);
                            if position * 2 + 1 < literal {
                                put(x + position * 2 + 1, y, byte & 15);
                            }
                        } else {
                            put(x + position, y, byte);
                        }
                    }
                    x += literal;
                    if length % 2 == 1 {
                        next()?;
                    }
                }
                (count, value) => {
                    for position in 0..usize::from(count) {
                        let index = match (nibbles, position % 2) {
                            (false, _) => value,
                            (true, 0) => value >> 4,
                            (true, _) => value & 15,
                        };
                        put(x + position, y, index);
                    }
                    x += usize::from(count);
                }
            }
        }
        Ok(indices
            .iter()
            .flat_map(|&index| self.palette[usize::from(index)])
            .collect())
    }
}

/// One colour of a bit-field pixel.
#[derive(Clone, Copy)]
struct Field {
    mask: u32,
    shift: u32,
    largest: u64,
}

impl Field {
    fn new(mask: u32) -> Self {
        let shift = if mask == 0 { 0 } else { mask.trailing_zeros() };
        Self {
            mask,
            shift,
            largest: u64::from(mask >> shift).max(1),
        }
    }

    fn value(self, pixel: u32) -> u8 {
        // Truncated as in Pillow.
        (u64::from((pixel & self.mask) >> self.shift) * 255 / self.largest) as u8
    }
}
