//! Rows of activations for [`super::columns_avx512`]: int8 blocks of 32, each with what a product needs of it in one place.

use bytemuck::{Pod, Zeroable};
use rayon::prelude::*;

use super::activations::{BLOCK, SERIAL_VALUES, quantize_block};
use crate::buffer::with_scratch;
use crate::level::Level;
use crate::math::multiversion;

/// What a product of columns needs of one block beside its codes.
#[derive(Clone, Copy, Pod, Zeroable)]
#[repr(C)]
pub(crate) struct Head {
    /// `value ≈ scale · code`.
    pub(crate) scale: f32,
    /// `scale · Σ codes`, for weights with offsets.
    pub(crate) sum: f32,
    /// `-zero · Σ codes`, for weights with codes around `zero`: of both halves, or in `starts[0]` of the whole block.
    pub(crate) starts: [i32; 2],
}

/// How the sums of a [`Head`] are made.
#[derive(Clone, Copy)]
pub(crate) struct Starts {
    /// The weight code that stands for 0.
    pub(crate) zero: i32,
    /// Whether each half of a block has its own.
    pub(crate) halves: bool,
}

/// `m` quantised rows for products of columns.
pub(crate) struct ColumnRows<'a> {
    /// `[m][k]`.
    pub(crate) codes: &'a [i8],
    /// `[m][k / 32]`.
    pub(crate) heads: &'a [Head],
}

impl ColumnRows<'_> {
    /// Quantises rows in scratch memory for `f`; `k` is a multiple of 32.
    pub(crate) fn with<R>(
        level: Level,
        m: usize,
        k: usize,
        x: &[f32],
        starts: Starts,
        f: impl FnOnce(&ColumnRows) -> R,
    ) -> R {
        let blocks = m * k / BLOCK;
        let head_bytes = blocks * size_of::<Head>();
        with_scratch(m * k + head_bytes, |scratch| {
            let (heads, codes) = scratch.cast_mut::<u8>().split_at_mut(head_bytes);
            let heads: &mut [Head] = bytemuck::cast_slice_mut(heads);
            let codes: &mut [i8] = bytemuck::cast_slice_mut(&mut codes[..m * k]);
            if m * k < SERIAL_VALUES {
                quantize_columns_at(level, x, codes, heads, starts);
            } else {
                // Small enough to balance, large enough to be worth a task.
                let values = k.max(BLOCK) * m.div_ceil(8 * rayon::current_num_threads()).max(1);
                x.par_chunks(values)
                    .zip(codes.par_chunks_mut(values))
                    .zip(heads.par_chunks_mut(values / BLOCK))
                    .for_each(|((x, codes), heads)| {
                        quantize_columns_at(level, x, codes, heads, starts);
                    });
            }
            f(&ColumnRows { codes, heads })
        })
    }
}

#[inline(always)]
fn quantize_columns<const FMA: bool>(
    x: &[f32],
    codes: &mut [i8],
    heads: &mut [Head],
    starts: Starts,
) {
    let blocks = x
        .as_chunks::<BLOCK>()
        .0
        .iter()
        .zip(codes.as_chunks_mut::<BLOCK>().0);
    for ((x, codes), head) in blocks.zip(heads) {
        let (scale, [first, second]) = quantize_block(x, codes);
        let both = first + second;
        *head = Head {
            scale,
            sum: scale * both as f32,
            starts: if starts.halves {
                [-starts.zero * first, -starts.zero * second]
            } else {
                [-starts.zero * both, 0]
            },
        };
    }
}

multiversion!(fn quantize_columns_at(x: &[f32], codes: &mut [i8], heads: &mut [Head], starts: Starts) = quantize_columns);
