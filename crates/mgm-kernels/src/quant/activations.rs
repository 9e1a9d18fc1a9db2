//! Rows of activations as int8 blocks of 32 with one scale, for integer products.

use rayon::prelude::*;

use crate::level::Level;
use crate::math::multiversion;

/// Values of one block.
pub(crate) const BLOCK: usize = 32;

/// Fewer values than this are not worth waking other threads for.
pub(crate) const SERIAL_VALUES: usize = 1 << 16;

/// `m` quantised rows of `k` values: `value ≈ scale · code`.
pub(crate) struct QuantRows {
    /// `[m][k]`.
    pub(crate) codes: Vec<i8>,
    /// `[m][k / 32]`.
    pub(crate) scales: Vec<f32>,
    /// `scale · Σ codes` of each half block, `[m][k / 16]`.
    pub(crate) sums: Vec<f32>,
    /// Scale and `scale · Σ codes` of each block, `[m][k / 32]`.
    pub(crate) pairs: Vec<[f32; 2]>,
}

impl QuantRows {
    /// Quantises rows; `k` is a multiple of 32.
    pub(crate) fn new(level: Level, m: usize, k: usize, x: &[f32]) -> Self {
        let blocks = m * k / BLOCK;
        let mut rows = Self {
            codes: vec![0; m * k],
            scales: vec![0.0; blocks],
            sums: vec![0.0; 2 * blocks],
            pairs: Vec::new(),
        };
        if m * k < SERIAL_VALUES {
            quantize_at(level, x, &mut rows.codes, &mut rows.scales, &mut rows.sums);
        } else {
            let values = k.max(BLOCK) * m.div_ceil(2 * rayon::current_num_threads()).max(1);
            x.par_chunks(values)
                .zip(rows.codes.par_chunks_mut(values))
                .zip(rows.scales.par_chunks_mut(values / BLOCK))
                .zip(rows.sums.par_chunks_mut(values / BLOCK * 2))
                .for_each(|(((x, codes), scales), sums)| {
                    quantize_at(level, x, codes, scales, sums)
                });
        }
        let halves = rows.sums.as_chunks::<2>().0;
        rows.pairs = rows
            .scales
            .iter()
            .zip(halves)
            .map(|(&scale, half)| [scale, half[0] + half[1]])
            .collect();
        rows
    }
}

/// Rounds a block to codes; returns its scale and the sums of both halves' codes.
#[inline(always)]
pub(crate) fn quantize_block(x: &[f32; BLOCK], codes: &mut [i8; BLOCK]) -> (f32, [i32; 2]) {
    // Adding 1.5·2²³ rounds to the nearest integer and leaves it in the low bits.
    const ROUND: f32 = 12_582_912.0;
    let mut lanes = [0.0f32; 16];
    for i in 0..16 {
        let (a, b) = (x[i].abs(), x[i + 16].abs());
        lanes[i] = if a > b { a } else { b };
    }
    let largest = lanes.iter().copied().fold(0.0f32, f32::max);
    let inverse = if largest > 0.0 { 127.0 / largest } else { 0.0 };
    let mut totals = [0i32; 2];
    for half in 0..2 {
        for i in 16 * half..16 * half + 16 {
            let code = (x[i] * inverse + ROUND).to_bits() as i32 - ROUND.to_bits() as i32;
            codes[i] = code as i8;
            totals[half] += i32::from(codes[i]);
        }
    }
    (largest / 127.0, totals)
}

#[inline(always)]
fn quantize<const FMA: bool>(x: &[f32], codes: &mut [i8], scales: &mut [f32], sums: &mut [f32]) {
    let blocks = x
        .as_chunks::<BLOCK>()
        .0
        .iter()
        .zip(codes.as_chunks_mut::<BLOCK>().0);
    for (((x, codes), scale), sums) in blocks.zip(scales).zip(sums.as_chunks_mut::<2>().0) {
        let (found, totals) = quantize_block(x, codes);
        *scale = found;
        *sums = totals.map(|total| found * total as f32);
    }
}

multiversion!(fn quantize_at(x: &[f32], codes: &mut [i8], scales: &mut [f32], sums: &mut [f32]) = quantize);
