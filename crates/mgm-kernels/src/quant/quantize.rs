//! Quantisation to the 32-value formats, in ggml's reference arithmetic.

use super::QuantType;
use super::blocks::half_bits;
use super::k_quants;

/// Quantises one block; `values` and `out` have the lengths of the format.
pub(crate) fn block(t: QuantType, values: &[f32], out: &mut [u8]) {
    match t {
        QuantType::Q8_0 => q8_0(values, out),
        QuantType::Q4_0 => q4_0(values, out),
        QuantType::Q4_1 => q4_1(values, out),
        QuantType::Q5_0 => q5_0(values, out),
        QuantType::Q5_1 => q5_1(values, out),
        QuantType::Q4K => k_quants::q4_k(values, out),
        QuantType::Q5K => k_quants::q5_k(values, out),
        QuantType::Q6K => k_quants::q6_k(values, out),
    }
}

fn inverse(d: f32) -> f32 {
    if d == 0.0 { 0.0 } else { 1.0 / d }
}

fn q8_0(values: &[f32], out: &mut [u8]) {
    let largest = values.iter().fold(0.0f32, |m, v| m.max(v.abs()));
    let d = largest / 127.0;
    let id = inverse(d);
    out[..2].copy_from_slice(&half_bits(d));
    for (o, &v) in out[2..].iter_mut().zip(values) {
        *o = (v * id).round() as i8 as u8;
    }
}

/// The value of largest magnitude, with its sign (the first of equals).
fn signed_extreme(values: &[f32]) -> f32 {
    let (mut largest, mut extreme) = (0.0f32, 0.0f32);
    for &v in values {
        if largest < v.abs() {
            largest = v.abs();
            extreme = v;
        }
    }
    extreme
}

fn range(values: &[f32]) -> (f32, f32) {
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

fn q4_0(values: &[f32], out: &mut [u8]) {
    let d = signed_extreme(values) / -8.0;
    let id = inverse(d);
    out[..2].copy_from_slice(&half_bits(d));
    let code = |v: f32| ((v * id + 8.5) as i8).min(15) as u8;
    for j in 0..16 {
        out[2 + j] = code(values[j]) | code(values[j + 16]) << 4;
    }
}

fn q4_1(values: &[f32], out: &mut [u8]) {
    let (low, high) = range(values);
    let d = (high - low) / 15.0;
    let id = inverse(d);
    out[..2].copy_from_slice(&half_bits(d));
    out[2..4].copy_from_slice(&half_bits(low));
    let code = |v: f32| (((v - low) * id + 0.5) as i8).min(15) as u8;
    for j in 0..16 {
        out[4 + j] = code(values[j]) | code(values[j + 16]) << 4;
    }
}

/// Writes 5-bit codes as four bytes of high bits and 16 bytes of nibbles.
fn store_five_bits(values: &[f32], code: impl Fn(f32) -> u8, out: &mut [u8]) {
    let mut high = 0u32;
    for j in 0..16 {
        let (a, b) = (code(values[j]), code(values[j + 16]));
        out[4 + j] = (a & 15) | (b & 15) << 4;
        high |= u32::from(a >> 4 & 1) << j | u32::from(b >> 4 & 1) << (j + 16);
    }
    out[..4].copy_from_slice(&high.to_le_bytes());
}

fn q5_0(values: &[f32], out: &mut [u8]) {
    let d = signed_extreme(values) / -16.0;
    let id = inverse(d);
    out[..2].copy_from_slice(&half_bits(d));
    store_five_bits(
        values,
        |v| ((v * id + 16.5) as i8).min(31) as u8,
        &mut out[2..],
    );
}

fn q5_1(values: &[f32], out: &mut [u8]) {
    let (low, high) = range(values);
    let d = (high - low) / 31.0;
    let id = inverse(d);
    out[..2].copy_from_slice(&half_bits(d));
    out[2..4].copy_from_slice(&half_bits(low));
    store_five_bits(values, |v| ((v - low) * id + 0.5) as u8, &mut out[4..]);
}
