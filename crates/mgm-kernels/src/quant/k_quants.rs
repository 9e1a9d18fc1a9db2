//! Quantisation to the K formats: a grid search for each sub-block's scale (and minimum), each candidate refined by
//! weighted least squares, then quantisation of the scales themselves.

use super::blocks::{half_at, half_bits, scale_min};

/// Candidates of a grid search around the range of the values.
struct Grid {
    first: f32,
    step: f32,
    count: usize,
}

/// Weighted error of `q·scale - minimum` against the values.
fn error(values: &[f32], weights: &[f32], codes: &[u8], scale: f32, minimum: f32) -> f32 {
    values
        .iter()
        .zip(weights)
        .zip(codes)
        .map(|((&x, &w), &q)| {
            let difference = scale * f32::from(q) - minimum - x;
            w * difference * difference
        })
        .sum()
}

fn encode(values: &[f32], inverse: f32, minimum: f32, largest: u8, codes: &mut [u8]) {
    for (code, &x) in codes.iter_mut().zip(values) {
        *code = (inverse * (x + minimum))
            .round_ties_even()
            .clamp(0.0, f32::from(largest)) as u8;
    }
}

/// Scale and minimum (both ≥ 0) such that `scale·q - minimum` with `0 <= q <= largest` approximates the values.
fn search_scale_min(values: &[f32], largest: u8, grid: &Grid) -> (f32, f32) {
    let mean_square = values.iter().map(|x| x * x).sum::<f32>() / values.len() as f32;
    let weights: Vec<f32> = values
        .iter()
        .map(|x| mean_square.sqrt() + x.abs())
        .collect();
    let low = values.iter().copied().fold(0.0f32, f32::min);
    let high = values.iter().copied().fold(f32::NEG_INFINITY, f32::max);
    if high <= low {
        return (0.0, -low);
    }
    let mut codes = vec![0u8; values.len()];
    let mut best = ((high - low) / f32::from(largest), -low);
    encode(values, 1.0 / best.0, best.1, largest, &mut codes);
    let mut best_error = error(values, &weights, &codes, best.0, best.1);
    for candidate in 0..=grid.count {
        let inverse =
            (grid.first + grid.step * candidate as f32 + f32::from(largest)) / (high - low);
        encode(values, inverse, -low, largest, &mut codes);
        // Normal equations of the weighted fit x ≈ scale·q + offset.
        let (mut w, mut wq, mut wqq, mut wx, mut wqx) = (0.0f32, 0.0f32, 0.0f32, 0.0f32, 0.0f32);
        for ((&x, &weight), &q) in values.iter().zip(&weights).zip(&codes) {
            let q = f32::from(q);
            w += weight;
            wq += weight * q;
            wqq += weight * q * q;
            wx += weight * x;
            wqx += weight * q * x;
        }
        let determinant = w * wqq - wq * wq;
        if determinant <= 0.0 {
            continue;
        }
        let mut scale = (w * wqx - wx * wq) / determinant;
        let mut offset = (wqq * wx - wq * wqx) / determinant;
        if offset > 0.0 {
            offset = 0.0;
            scale = wqx / wqq;
        }
        let candidate_error = error(values, &weights, &codes, scale, -offset);
        if candidate_error < best_error && scale > 0.0 {
            best_error = candidate_error;
            best = (scale, -offset);
        }
    }
    best
}

/// Writes header and 6-bit scales of a Q4_K or Q5_K block and returns the 256 codes.
fn scale_min_block(values: &[f32], largest: u8, grid: &Grid, out: &mut [u8]) -> [u8; 256] {
    let mut scales = [0.0f32; 8];
    let mut minima = [0.0f32; 8];
    for (j, part) in values.chunks_exact(32).enumerate() {
        (scales[j], minima[j]) = search_scale_min(part, largest, grid);
    }
    let largest_scale = scales.iter().copied().fold(0.0f32, f32::max);
    let largest_minimum = minima.iter().copied().fold(0.0f32, f32::max);
    let six_bits = |value: f32, of: f32| {
        if of > 0.0 {
            (value * (63.0 / of)).round_ties_even().min(63.0) as u8
        } else {
            0
        }
    };
    let packed = &mut out[4..16];
    packed.fill(0);
    for j in 0..8 {
        let (s, m) = (
            six_bits(scales[j], largest_scale),
            six_bits(minima[j], largest_minimum),
        );
        if j < 4 {
            packed[j] |= s;
            packed[j + 4] |= m;
        } else {
            packed[j + 4] = (s & 15) | (m & 15) << 4;
            packed[j - 4] |= (s >> 4) << 6;
            packed[j] |= (m >> 4) << 6;
        }
    }
    out[..2].copy_from_slice(&half_bits(largest_scale / 63.0));
    out[2..4].copy_from_slice(&half_bits(largest_minimum / 63.0));

    // Codes against the scales as they will be read back.
    let (d, min) = (half_at(out, 0), half_at(out, 2));
    let mut codes = [0u8; 256];
    for (j, (part, codes)) in values
        .chunks_exact(32)
        .zip(codes.chunks_exact_mut(32))
        .enumerate()
    {
        let (s, m) = scale_min(j, &out[4..16]);
        let (scale, minimum) = (d * f32::from(s), min * f32::from(m));
        if scale > 0.0 {
            encode(part, 1.0 / scale, minimum, largest, codes);
        }
    }
    codes
}

pub(crate) fn q4_k(values: &[f32], out: &mut [u8]) {
    let codes = scale_min_block(
        values,
        15,
        &Grid {
            first: -1.0,
            step: 0.1,
            count: 20,
        },
        out,
    );
    for (pair, codes) in codes.chunks_exact(64).enumerate() {
        for l in 0..32 {
            out[16 + 32 * pair + l] = codes[l] | codes[l + 32] << 4;
        }
    }
}

pub(crate) fn q5_k(values: &[f32], out: &mut [u8]) {
    let codes = scale_min_block(
        values,
        31,
        &Grid {
            first: -0.5,
            step: 0.1,
            count: 15,
        },
        out,
    );
    out[16..48].fill(0);
    for (pair, codes) in codes.chunks_exact(64).enumerate() {
        for l in 0..32 {
            out[48 + 32 * pair + l] = (codes[l] & 15) | (codes[l + 32] & 15) << 4;
            out[16 + l] |= (codes[l] >> 4) << (2 * pair) | (codes[l + 32] >> 4) << (2 * pair + 1);
        }
    }
}

/// Signed scale such that `scale·q` with `-32 <= q < 32` approximates the values, weights `x²`.
fn search_scale(values: &[f32]) -> f32 {
    let extreme = values
        .iter()
        .copied()
        .fold(0.0f32, |m, x| if x.abs() > m.abs() { x } else { m });
    if extreme.abs() < 1e-15 {
        return 0.0;
    }
    let mut best_scale = 0.0f32;
    let mut best_gain = -1.0f32;
    for candidate in -9i32..=9 {
        let inverse = -(32.0 + 0.1 * candidate as f32) / extreme;
        let (mut numerator, mut denominator) = (0.0f32, 0.0f32);
        for &x in values {
            let q = (inverse * x).round_ties_even().clamp(-32.0, 31.0);
            numerator += x * x * x * q;
            denominator += x * x * q * q;
        }
        // For fixed codes the best scale is n/d, and it lowers the error by n²/d.
        if denominator > 0.0 && numerator * numerator > best_gain * denominator {
            best_scale = numerator / denominator;
            best_gain = numerator * best_scale;
        }
    }
    best_scale
}

pub(crate) fn q6_k(values: &[f32], out: &mut [u8]) {
    let mut scales = [0.0f32; 16];
    for (scale, part) in scales.iter_mut().zip(values.chunks_exact(16)) {
        *scale = search_scale(part);
    }
    let extreme = scales
        .iter()
        .copied()
        .fold(0.0f32, |m, x| if x.abs() > m.abs() { x } else { m });
    out.fill(0);
    if extreme.abs() < 1e-15 {
        return;
    }
    // The extreme scale gets the code -128, so that eight bits are used in full.
    let inverse = -128.0 / extreme;
    out[208..210].copy_from_slice(&half_bits(1.0 / inverse));
    let d = half_at(out, 208);
    let mut codes = [0u8; 256];
    for (j, (part, codes)) in values
        .chunks_exact(16)
        .zip(codes.chunks_exact_mut(16))
        .enumerate()
    {
        let scale_code = (inverse * scales[j]).round_ties_even().clamp(-128.0, 127.0) as i8;
        out[192 + j] = scale_code as u8;
        let scale = d * f32::from(scale_code);
        for (code, &x) in codes.iter_mut().zip(part) {
            let q = if scale == 0.0 {
                0.0
            } else {
                (x / scale).round_ties_even().clamp(-32.0, 31.0)
            };
            *code = (q as i8 + 32) as u8;
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
