//! Quantisation of rows, in ggml's reference arithmetic: the same values give the same bytes at every level.

use super::QuantType;
use super::blocks::half_bits;
use super::k_quants;
use super::search::{self, Grid, Lanes, lanes};
use crate::math::multiversion;

/// Quantises whole blocks of a row; `importance`, if given, has the row's length.
#[inline(always)]
fn quantize_row<const FMA: bool>(
    t: QuantType,
    values: &[f32],
    importance: Option<&[f32]>,
    out: &mut [u8],
) {
    match (t, importance) {
        // ggml has no search for eight bits.
        (QuantType::Q8_0, _) => blocks::<32>(t, values, out, q8_0),
        (QuantType::Q4_0, None) => blocks::<32>(t, values, out, q4_0),
        (QuantType::Q4_1, None) => blocks::<32>(t, values, out, q4_1),
        (QuantType::Q5_0, None) => blocks::<32>(t, values, out, q5_0),
        (QuantType::Q5_1, None) => blocks::<32>(t, values, out, q5_1),
        (
            QuantType::Q4_0 | QuantType::Q4_1 | QuantType::Q5_0 | QuantType::Q5_1,
            Some(importance),
        ) => weighted_row(t, values, importance, out),
        (QuantType::Q4K, _) => k_blocks(t, values, importance, out, k_quants::q4_k),
        (QuantType::Q5K, _) => k_blocks(t, values, importance, out, k_quants::q5_k),
        (QuantType::Q6K, _) => k_blocks(t, values, importance, out, k_quants::q6_k),
    }
}

multiversion!(pub(super) fn row(t: QuantType, values: &[f32], importance: Option<&[f32]>, out: &mut [u8]) = quantize_row);

#[inline(always)]
fn blocks<const LEN: usize>(
    t: QuantType,
    values: &[f32],
    out: &mut [u8],
    f: impl Fn(&[f32; LEN], &mut [u8]),
) {
    let blocks = values.as_chunks::<LEN>().0.iter();
    for (values, out) in blocks.zip(out.chunks_exact_mut(t.block_bytes())) {
        f(values, out);
    }
}

#[inline(always)]
fn k_blocks(
    t: QuantType,
    values: &[f32],
    importance: Option<&[f32]>,
    out: &mut [u8],
    f: impl Fn(&[f32; 256], Option<&[f32; 256]>, &mut [u8]),
) {
    let importance = importance.map(|importance| importance.as_chunks::<256>().0);
    let blocks = values.as_chunks::<256>().0.iter();
    for (index, (values, out)) in blocks
        .zip(out.chunks_exact_mut(t.block_bytes()))
        .enumerate()
    {
        f(values, importance.map(|importance| &importance[index]), out);
    }
}

/// A row of one of the plain 4- and 5-bit formats with a search under importances, eight blocks side by side.
#[inline(always)]
fn weighted_row(t: QuantType, values: &[f32], importance: &[f32], out: &mut [u8]) {
    let mut squares = 0.0f32;
    for value in values {
        squares += value * value;
    }
    let variance = squares / values.len() as f32;
    let bytes = t.block_bytes();
    for ((values, importance), out) in values
        .chunks(256)
        .zip(importance.chunks(256))
        .zip(out.chunks_mut(8 * bytes))
    {
        let x: Lanes<32, 8> = lanes(values);
        let mut weights: Lanes<32, 8> = lanes(importance);
        for i in 0..32 {
            for l in 0..8 {
                weights[i][l] *= (variance + x[i][l] * x[i][l]).sqrt();
            }
        }
        let (codes, scale, minimum) = match t {
            QuantType::Q4_0 | QuantType::Q5_0 => {
                let half = if t == QuantType::Q4_0 { 8 } else { 16 };
                let (scale, codes) = search::signed_scale(&x, &weights, half);
                (codes, scale, None)
            }
            _ => {
                let largest = if t == QuantType::Q4_1 { 15 } else { 31 };
                let found = search::scale_and_minimum(&x, &weights, largest, Grid::WEIGHTED);
                (found.codes, found.scale, Some(found.minimum))
            }
        };
        for (l, out) in out.chunks_exact_mut(bytes).enumerate() {
            out[..2].copy_from_slice(&half_bits(scale[l]));
            let mut rest = &mut out[2..];
            if let Some(minimum) = minimum {
                rest[..2].copy_from_slice(&half_bits(-minimum[l]));
                rest = &mut rest[2..];
            }
            if matches!(t, QuantType::Q5_0 | QuantType::Q5_1) {
                store_five_bits(|j| codes[j][l], rest);
            } else {
                store_nibbles(|j| codes[j][l], rest);
            }
        }
    }
}

#[inline(always)]
fn inverse(d: f32) -> f32 {
    if d == 0.0 { 0.0 } else { 1.0 / d }
}

/// C's conversion to `int8_t`. Where that is undefined (a scale so small that its inverse is infinite) this gives what the
/// reference's machine code does; the stored scale is 0 there.
#[inline(always)]
fn truncate(value: f32) -> i8 {
    let whole = if value.abs() < 2_147_483_648.0 {
        value as i32
    } else {
        0
    };
    whole as i8
}

#[inline(always)]
fn q8_0(values: &[f32; 32], out: &mut [u8]) {
    let largest = values.iter().fold(0.0f32, |m, v| m.max(v.abs()));
    let d = largest / 127.0;
    let id = inverse(d);
    out[..2].copy_from_slice(&half_bits(d));
    for (o, &v) in out[2..].iter_mut().zip(values) {
        *o = truncate((v * id).round()) as u8;
    }
}

/// The value of largest magnitude, with its sign (the first of equals).
#[inline(always)]
fn signed_extreme(values: &[f32; 32]) -> f32 {
    let (mut largest, mut extreme) = (0.0f32, 0.0f32);
    for &v in values {
        if largest < v.abs() {
            largest = v.abs();
            extreme = v;
        }
    }
    extreme
}

#[inline(always)]
fn range(values: &[f32; 32]) -> (f32, f32) {
    let (mut low, mut high) = (f32::MAX, -f32::MAX);
    for &v in values {
        if v < low {
            low = v;
        }
        if v > high {
            high = v;
        }
    }
    (low, high)
}

/// Two 4-bit codes a byte, those of the second half above.
#[inline(always)]
fn store_nibbles(code: impl Fn(usize) -> u8, out: &mut [u8]) {
    for j in 0..16 {
        out[j] = code(j) | code(j + 16) << 4;
    }
}

/// Writes 5-bit codes as four bytes of high bits and 16 bytes of nibbles.
#[inline(always)]
fn store_five_bits(code: impl Fn(usize) -> u8, out: &mut [u8]) {
    let mut high = 0u32;
    for j in 0..16 {
        let (a, b) = (code(j), code(j + 16));
        out[4 + j] = (a & 15) | (b & 15) << 4;
        high |= u32::from(a >> 4 & 1) << j | u32::from(b >> 4 & 1) << (j + 16);
    }
    out[..4].copy_from_slice(&high.to_le_bytes());
}

#[inline(always)]
fn q4_0(values: &[f32; 32], out: &mut [u8]) {
    let d = signed_extreme(values) / -8.0;
    let id = inverse(d);
    out[..2].copy_from_slice(&half_bits(d));
    store_nibbles(
        |j| truncate(values[j] * id + 8.5).min(15) as u8,
        &mut out[2..],
    );
}

#[inline(always)]
fn q4_1(values: &[f32; 32], out: &mut [u8]) {
    let (low, high) = range(values);
    let d = (high - low) / 15.0;
    let id = inverse(d);
    out[..2].copy_from_slice(&half_bits(d));
    out[2..4].copy_from_slice(&half_bits(low));
    store_nibbles(
        |j| truncate((values[j] - low) * id + 0.5).min(15) as u8,
        &mut out[4..],
    );
}

#[inline(always)]
fn q5_0(values: &[f32; 32], out: &mut [u8]) {
    let d = signed_extreme(values) / -16.0;
    let id = inverse(d);
    out[..2].copy_from_slice(&half_bits(d));
    store_five_bits(
        |j| truncate(values[j] * id + 16.5).min(31) as u8,
        &mut out[2..],
    );
}

#[inline(always)]
fn q5_1(values: &[f32; 32], out: &mut [u8]) {
    let (low, high) = range(values);
    let d = (high - low) / 31.0;
    let id = inverse(d);
    out[..2].copy_from_slice(&half_bits(d));
    out[2..4].copy_from_slice(&half_bits(low));
    store_five_bits(
        |j| truncate((values[j] - low) * id + 0.5) as u8,
        &mut out[4..],
    );
}
