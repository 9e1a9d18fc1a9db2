//! Dequantisation of every block format (layouts of ggml's `block_q*` structures).

use half::f16;

use super::QuantType;
use crate::level::level;
use crate::math::{multiversion, widen_half};

/// The half float at byte `at`.
#[inline(always)]
pub(crate) fn half_at(block: &[u8], at: usize) -> f32 {
    // Not `half`'s conversion: that one tests for a CPU feature at run time on every call.
    widen_half(u16::from_le_bytes([block[at], block[at + 1]]))
}

/// `f16` bits of `value`, rounded to nearest even.
pub(crate) fn half_bits(value: f32) -> [u8; 2] {
    f16::from_f32(value).to_le_bytes()
}

/// Scale and minimum of sub-block `j` of the packed 6-bit pairs of Q4_K and Q5_K.
#[inline(always)]
pub(crate) fn scale_min(j: usize, packed: &[u8]) -> (u8, u8) {
    if j < 4 {
        (packed[j] & 63, packed[j + 4] & 63)
    } else {
        (
            (packed[j + 4] & 15) | (packed[j - 4] >> 6) << 4,
            (packed[j + 4] >> 4) | (packed[j] >> 6) << 4,
        )
    }
}

#[inline(always)]
fn q8_0(block: &[u8; 34], out: &mut [f32; 32]) {
    let d = half_at(block, 0);
    for (o, &q) in out.iter_mut().zip(&block[2..]) {
        *o = d * f32::from(q as i8);
    }
}

#[inline(always)]
fn q4_0(block: &[u8; 18], out: &mut [f32; 32]) {
    let d = half_at(block, 0);
    for j in 0..16 {
        let q = block[2 + j];
        out[j] = d * (i32::from(q & 15) - 8) as f32;
        out[j + 16] = d * (i32::from(q >> 4) - 8) as f32;
    }
}

#[inline(always)]
fn q4_1(block: &[u8; 20], out: &mut [f32; 32]) {
    let (d, m) = (half_at(block, 0), half_at(block, 2));
    for j in 0..16 {
        let q = block[4 + j];
        out[j] = f32::from(q & 15) * d + m;
        out[j + 16] = f32::from(q >> 4) * d + m;
    }
}

/// The two 5-bit values of position `j`, from nibbles at `nibbles` and high bits `high`.
#[inline(always)]
fn five_bits(block: &[u8], nibbles: usize, high: u32, j: usize) -> (i32, i32) {
    let q = block[nibbles + j];
    let low_half = u32::from(q & 15) | ((high >> j) & 1) << 4;
    let high_half = u32::from(q >> 4) | ((high >> (j + 16)) & 1) << 4;
    (low_half as i32, high_half as i32)
}

#[inline(always)]
fn q5_0(block: &[u8; 22], out: &mut [f32; 32]) {
    let d = half_at(block, 0);
    let high = u32::from_le_bytes([block[2], block[3], block[4], block[5]]);
    for j in 0..16 {
        let (a, b) = five_bits(block, 6, high, j);
        out[j] = d * (a - 16) as f32;
        out[j + 16] = d * (b - 16) as f32;
    }
}

#[inline(always)]
fn q5_1(block: &[u8; 24], out: &mut [f32; 32]) {
    let (d, m) = (half_at(block, 0), half_at(block, 2));
    let high = u32::from_le_bytes([block[4], block[5], block[6], block[7]]);
    for j in 0..16 {
        let (a, b) = five_bits(block, 8, high, j);
        out[j] = a as f32 * d + m;
        out[j + 16] = b as f32 * d + m;
    }
}

#[inline(always)]
fn q4_k(block: &[u8; 144], out: &mut [f32; 256]) {
    let (d, min) = (half_at(block, 0), half_at(block, 2));
    let scales = &block[4..16];
    for (pair, out) in out.as_chunks_mut::<64>().0.iter_mut().enumerate() {
        let (s0, m0) = scale_min(2 * pair, scales);
        let (s1, m1) = scale_min(2 * pair + 1, scales);
        let (d0, d1) = (d * f32::from(s0), d * f32::from(s1));
        let (m0, m1) = (min * f32::from(m0), min * f32::from(m1));
        for l in 0..32 {
            let q = block[16 + 32 * pair + l];
            out[l] = d0 * f32::from(q & 15) - m0;
            out[l + 32] = d1 * f32::from(q >> 4) - m1;
        }
    }
}

#[inline(always)]
fn q5_k(block: &[u8; 176], out: &mut [f32; 256]) {
    let (d, min) = (half_at(block, 0), half_at(block, 2));
    let scales = &block[4..16];
    for (pair, out) in out.as_chunks_mut::<64>().0.iter_mut().enumerate() {
        let (s0, m0) = scale_min(2 * pair, scales);
        let (s1, m1) = scale_min(2 * pair + 1, scales);
        let (d0, d1) = (d * f32::from(s0), d * f32::from(s1));
        let (m0, m1) = (min * f32::from(m0), min * f32::from(m1));
        for l in 0..32 {
            let high = block[16 + l] >> (2 * pair);
            let q = block[48 + 32 * pair + l];
            out[l] = d0 * f32::from((q & 15) | (high & 1) << 4) - m0;
            out[l + 32] = d1 * f32::from((q >> 4) | (high & 2) << 3) - m1;
        }
    }
}

#[inline(always)]
fn q6_k(block: &[u8; 210], out: &mut [f32; 256]) {
    let d = half_at(block, 208);
    for (half, out) in out.as_chunks_mut::<128>().0.iter_mut().enumerate() {
        let low = &block[64 * half..][..64];
        let high = &block[128 + 32 * half..][..32];
        let scales: [f32; 8] =
            std::array::from_fn(|i| d * f32::from(block[192 + 8 * half + i] as i8));
        for l in 0..32 {
            let (a, b, h) = (low[l], low[l + 32], high[l]);
            let part = l / 16;
            out[l] = scales[part] * (i32::from((a & 15) | (h & 3) << 4) - 32) as f32;
            out[l + 32] = scales[part + 2] * (i32::from((b & 15) | (h >> 2 & 3) << 4) - 32) as f32;
            out[l + 64] = scales[part + 4] * (i32::from((a >> 4) | (h >> 4 & 3) << 4) - 32) as f32;
            out[l + 96] = scales[part + 6] * (i32::from((b >> 4) | (h >> 6) << 4) - 32) as f32;
        }
    }
}

#[inline(always)]
fn blocks<const BYTES: usize, const LEN: usize>(
    data: &[u8],
    out: &mut [f32],
    f: impl Fn(&[u8; BYTES], &mut [f32; LEN]),
) {
    for (block, out) in data
        .as_chunks::<BYTES>()
        .0
        .iter()
        .zip(out.as_chunks_mut::<LEN>().0)
    {
        f(block, out);
    }
}

#[inline(always)]
fn dequantize_blocks<const FMA: bool>(t: QuantType, data: &[u8], out: &mut [f32]) {
    match t {
        QuantType::Q8_0 => blocks(data, out, q8_0),
        QuantType::Q4_0 => blocks(data, out, q4_0),
        QuantType::Q4_1 => blocks(data, out, q4_1),
        QuantType::Q5_0 => blocks(data, out, q5_0),
        QuantType::Q5_1 => blocks(data, out, q5_1),
        QuantType::Q4K => blocks(data, out, q4_k),
        QuantType::Q5K => blocks(data, out, q5_k),
        QuantType::Q6K => blocks(data, out, q6_k),
    }
}

multiversion!(fn dequantize_at(t: QuantType, data: &[u8], out: &mut [f32]) = dequantize_blocks);

/// Dequantises whole blocks. The arithmetic has no fused operations, so every level gives the same bits.
pub(crate) fn dequantize(t: QuantType, data: &[u8], out: &mut [f32]) {
    dequantize_at(level(), t, data, out);
}
