//! Quantisation to the K formats: scales of the sub-blocks, their own quantisation, then codes against the scales as they
//! will be read back.

use super::blocks::{half_at, half_bits, scale_min};
use super::search::{self, Codes, Grid, Lanes, SMALLEST, code, lanes, nearest};

/// Writes header and 6-bit scales of a Q4_K or Q5_K block and returns the 256 codes.
#[inline(always)]
fn scale_min_block(
    values: &[f32; 256],
    importance: Option<&[f32; 256]>,
    largest: i32,
    grid: Grid,
    out: &mut [u8],
) -> [u8; 256] {
    let x: Lanes<32, 8> = lanes(values);
    let found = match importance {
        None => Some(plain(&x, largest, grid)),
        Some(importance) => weighted(&x, values, importance, largest),
    };
    // Where only values without importance differ from zero, the weighted search ends in 0/0.
    let found = found.unwrap_or_else(|| plain(&x, largest, grid));

    let packed = &mut out[4..16];
    packed.fill(0);
    for j in 0..8 {
        let (s, m) = (found.scales[j], found.minima[j]);
        if j < 4 {
            packed[j] = s;
            packed[j + 4] = m;
        } else {
            packed[j + 4] = (s & 15) | (m & 15) << 4;
            packed[j - 4] |= (s >> 4) << 6;
            packed[j] |= (m >> 4) << 6;
        }
    }
    out[..2].copy_from_slice(&half_bits(found.scale));
    out[2..4].copy_from_slice(&half_bits(found.minimum));

    let (d, min) = (half_at(out, 0), half_at(out, 2));
    let mut codes = [0u8; 256];
    for (j, (part, codes)) in values
        .as_chunks::<32>()
        .0
        .iter()
        .zip(codes.as_chunks_mut::<32>().0)
        .enumerate()
    {
        let (s, m) = scale_min(j, &out[4..16]);
        let (scale, minimum) = (d * f32::from(s), min * f32::from(m));
        for l in 0..32 {
            codes[l] = if scale == 0.0 {
                found.codes[l][j]
            } else {
                code((part[l] + minimum) / scale, 0, largest) as u8
            };
        }
    }
    codes
}

/// What a search for a block of eight sub-blocks found.
struct Found {
    /// Of the scales.
    scale: f32,
    scales: [u8; 8],
    /// Of the minima.
    minimum: f32,
    minima: [u8; 8],
    codes: Codes<32, 8>,
}

#[inline(always)]
fn plain(x: &Lanes<32, 8>, largest: i32, grid: Grid) -> Found {
    let mut squares = [0.0f32; 8];
    for x in x {
        for l in 0..8 {
            squares[l] += x[l] * x[l];
        }
    }
    let mut weights = [[0.0; 8]; 32];
    for i in 0..32 {
        for l in 0..8 {
            weights[i][l] = (squares[l] / 32.0).sqrt() + x[i][l].abs();
        }
    }
    let parts = search::scale_and_minimum(x, &weights, largest, grid);
    let six_bits = |values: &[f32; 8]| {
        let high = values
            .iter()
            .fold(0.0f32, |m, &v| if v > m { v } else { m });
        let inverse = if high > 0.0 { 63.0 / high } else { 0.0 };
        (
            high / 63.0,
            values.map(|value| (nearest(inverse * value) as u8).min(63)),
        )
    };
    let (scale, scales) = six_bits(&parts.scale);
    let (minimum, minima) = six_bits(&parts.minimum);
    Found {
        scale,
        scales,
        minimum,
        minima,
        codes: parts.codes,
    }
}

#[inline(always)]
fn weighted(
    x: &Lanes<32, 8>,
    values: &[f32; 256],
    importance: &[f32; 256],
    largest: i32,
) -> Option<Found> {
    let mut squares = 0.0f32;
    for value in values {
        squares += value * value;
    }
    let variance = 2.0 * squares / 256.0;
    let importance: Lanes<32, 8> = lanes(importance);
    let mut weights = [[0.0; 8]; 32];
    let mut sums = [0.0f32; 8];
    for i in 0..32 {
        for l in 0..8 {
            weights[i][l] = importance[i][l] * (variance + x[i][l] * x[i][l]).sqrt();
            sums[l] += weights[i][l];
        }
    }
    let parts = search::scale_and_minimum(x, &weights, largest, Grid::WEIGHTED);
    let (scale, scales) = search::unsigned_scale(&parts.scale, &sums, 63)?;
    let (minimum, minima) = search::unsigned_scale(&parts.minimum, &sums, 63)?;
    Some(Found {
        scale,
        scales: scales.map(|s| s.min(63)),
        minimum,
        minima: minima.map(|m| m.min(63)),
        codes: parts.codes,
    })
}

#[inline(always)]
pub(super) fn q4_k(values: &[f32; 256], importance: Option<&[f32; 256]>, out: &mut [u8]) {
    let grid = Grid {
        first: -1.0,
        step: 0.1,
        count: 20,
    };
    let codes = scale_min_block(values, importance, 15, grid, out);
    for (pair, codes) in codes.as_chunks::<64>().0.iter().enumerate() {
        for l in 0..32 {
            out[16 + 32 * pair + l] = codes[l] | codes[l + 32] << 4;
        }
    }
}

#[inline(always)]
pub(super) fn q5_k(values: &[f32; 256], importance: Option<&[f32; 256]>, out: &mut [u8]) {
    let grid = Grid {
        first: -0.5,
        step: 0.1,
        count: 15,
    };
    let codes = scale_min_block(values, importance, 31, grid, out);
    out[16..48].fill(0);
    for (pair, codes) in codes.as_chunks::<64>().0.iter().enumerate() {
        for l in 0..32 {
            out[48 + 32 * pair + l] = (codes[l] & 15) | (codes[l + 32] & 15) << 4;
            out[16 + l] |= (codes[l] >> 4) << (2 * pair) | (codes[l + 32] >> 4) << (2 * pair + 1);
        }
    }
}

#[inline(always)]
pub(super) fn q6_k(values: &[f32; 256], importance: Option<&[f32; 256]>, out: &mut [u8]) {
    let x: Lanes<16, 16> = lanes(values);
    let weights = match importance {
        Some(importance) => lanes(importance),
        None => x.map(|x| x.map(|x| x * x)),
    };
    let (scales, found) = search::signed_scale(&x, &weights, 32);
    out.fill(0);
    let (mut largest, mut extreme) = (0.0f32, 0.0f32);
    for scale in scales {
        if scale.abs() > largest {
            largest = scale.abs();
            extreme = scale;
        }
    }
    if largest < SMALLEST {
        return;
    }
    // The extreme scale gets the code -128, so that eight bits are used in full.
    let inverse = -128.0 / extreme;
    out[208..210].copy_from_slice(&half_bits(1.0 / inverse));
    let d = half_at(out, 208);
    let mut codes = [0u8; 256];
    for (j, (part, codes)) in values
        .as_chunks::<16>()
        .0
        .iter()
        .zip(codes.as_chunks_mut::<16>().0)
        .enumerate()
    {
        let scale_code = nearest(inverse * scales[j]).min(127) as i8;
        out[192 + j] = scale_code as u8;
        let scale = d * f32::from(scale_code);
        for l in 0..16 {
            codes[l] = if scale == 0.0 {
                found[l][j]
            } else {
                (code(part[l] / scale, -32, 31) + 32) as u8
            };
        }
    }
    for half in 0..2 {
        let codes = &codes[128 * half..][..128];
        for l in 0..32 {
            let (a, b, c, d) = (codes[l], codes[l + 32], codes[l + 64], codes[l + 96]);
            out[64 * half + l] = (a & 15) | (c & 15) << 4;
            out[64 * half + l + 32] = (b & 15) | (d & 15) << 4;
            out[128 + 32 * half + l] = (a >> 4) | (b >> 4) << 2 | (c >> 4) << 4 | (d >> 4) << 6;
        }
    }
}
