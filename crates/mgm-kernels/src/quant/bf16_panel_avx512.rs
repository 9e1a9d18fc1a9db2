//! Blocks of thirty-two weight rows made into part of a bf16 panel (see [`crate::gemm::PackedWeight`]), without their values going through rows.

use std::arch::x86_64::*;
use std::ops::Range;

use super::QuantType;
use super::columns_avx512::{Block, Form, Group, Small, Source, Super, by_type, starts};
use super::interleaved::GROUP;

/// Bytes of a step: a pair of values of thirty-two columns.
const STEP_BYTES: usize = 4 * 2 * GROUP;

/// Writes the steps of the blocks `blocks` (numbers of 32 values, from a multiple of eight on) of two groups, which have `row_bytes` bytes a row and
/// follow each other in `data`; without a second group its columns are zeros.
///
/// # Panics
/// When a slice has another length.
#[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512dq,avx512vnni,avx512bf16,avx2,fma,f16c")]
pub(super) fn part(
    t: QuantType,
    data: &[u8],
    row_bytes: usize,
    blocks: Range<usize>,
    out: &mut [u8],
) {
    assert!(
        blocks.start.is_multiple_of(8)
            && out.len() == 16 * blocks.len() * STEP_BYTES
            && blocks.end <= row_bytes / t.block_bytes() * (t.block_len() / 32),
        "bf16 panel: blocks outside their rows"
    );
    let groups = data.len() / (row_bytes * GROUP).max(1);
    for half in 0..2 {
        let out = out.as_mut_ptr();
        if half < groups {
            let group = Group::of(t, data, row_bytes, half);
            let zero = starts(t).zero;
            // SAFETY: the assertion above.
            by_type!(t, S => unsafe { half_part::<S>(group, zero, blocks.clone(), half, out) });
        } else {
            for step in 0..16 * blocks.len() {
                // SAFETY: half a step, by the assertion above.
                unsafe {
                    let at = out.add(step * STEP_BYTES + half * STEP_BYTES / 2);
                    _mm512_storeu_si512(at.cast(), _mm512_setzero_si512());
                }
            }
        }
    }
}

/// Sixteen columns.
///
/// # Safety
/// The machine has the features, `group` has the blocks, `out` room for their steps.
#[inline]
#[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512dq,avx512vnni,avx512bf16,avx2,fma,f16c")]
unsafe fn half_part<S: Source>(
    group: Group,
    zero: i32,
    blocks: Range<usize>,
    half: usize,
    out: *mut u8,
) {
    let byte = _mm512_set1_epi32(255);
    let zero = _mm512_set1_ps(-zero as f32);
    // Value `i` of the first sixteen beside that of the other sixteen.
    let pairs: [i16; 32] = std::array::from_fn(|i| (i / 2 + i % 2 * 16) as i16);
    // SAFETY: the caller's; numbers rise.
    unsafe {
        let pairs = _mm512_loadu_si512(pairs.as_ptr().cast());
        let mut source = S::new(group);
        let mut to = out.add(half * STEP_BYTES / 2);
        for index in blocks {
            let block: Block = source.block(index);
            // What is added to `scale · code`, for each half of the block.
            let offsets = if S::Form::OFFSETS {
                [block.offset; 2]
            } else {
                block.scales.map(|scale| _mm512_mul_ps(scale, zero))
            };
            for (g, &codes) in block.codes.iter().enumerate() {
                let part = if S::Form::HALVES { g / 4 } else { 0 };
                let (scale, offset) = (block.scales[part], offsets[part]);
                let value = |code: __m512i| {
                    let code = _mm512_cvtepi32_ps(_mm512_and_si512(code, byte));
                    _mm512_fmadd_ps(code, scale, offset)
                };
                let values = [
                    value(codes),
                    value(_mm512_srli_epi32::<8>(codes)),
                    value(_mm512_srli_epi32::<16>(codes)),
                    value(_mm512_srli_epi32::<24>(codes)),
                ];
                for pair in values.chunks_exact(2) {
                    let rounded = _mm512_cvtne2ps_pbh(pair[1], pair[0]);
                    // SAFETY: both are 64 bytes of any value.
                    let rounded = std::mem::transmute::<__m512bh, __m512i>(rounded);
                    let step = _mm512_permutexvar_epi16(pairs, rounded);
                    _mm512_storeu_si512(to.cast(), step);
                    to = to.add(STEP_BYTES);
                }
            }
        }
    }
}
