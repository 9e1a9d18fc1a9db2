//! One pass over a chunk of a panel in plain Rust.

use super::rows::RowPart;
use super::weight::{COLUMNS, SCALE_BYTES, STEP_BYTES};
use crate::math::{multiply_add, multiversion};

#[inline(always)]
fn chunk<const FMA: bool>(rows: RowPart, chunk: &[u8], out: &mut [[f32; COLUMNS]], add: bool) {
    let count = out.len();
    let (scales, panel) = chunk.split_at(SCALE_BYTES);
    let scales: &[f32] = bytemuck::cast_slice(scales);
    let steps = panel.as_chunks::<STEP_BYTES>().0;
    let words = rows.codes.as_chunks::<4>().0;
    for (i, (out, head)) in out.iter_mut().zip(rows.heads).enumerate() {
        let mut totals = [head.start; COLUMNS];
        for (step, words) in steps.iter().zip(words.chunks_exact(count)) {
            let x = words[i].map(i32::from);
            for (total, codes) in totals.iter_mut().zip(step.as_chunks::<4>().0) {
                let codes = codes.map(i32::from);
                *total += x[0] * codes[0] + x[1] * codes[1] + x[2] * codes[2] + x[3] * codes[3];
            }
        }
        for ((out, total), scale) in out.iter_mut().zip(totals).zip(scales) {
            let before = if add { *out } else { 0.0 };
            *out = multiply_add::<FMA>(total as f32, scale * head.scale, before);
        }
    }
}

multiversion!(pub(super) fn chunk_at(rows: RowPart, panel: &[u8], out: &mut [[f32; COLUMNS]], add: bool) = chunk);
