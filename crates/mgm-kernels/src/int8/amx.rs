//! Passes over a chunk of a panel with the tile unit: `tdpbsud` takes the rows' signed and the panel's unsigned bytes where they lie.

use std::arch::x86_64::*;
use std::ops::Range;

use super::rows::{Head, RowPart, Rows, TILE_ROWS};
use super::weight::{COLUMNS, SCALE_BYTES, STEP_BYTES};
use crate::amx::{self, configure, product_int8, release};
use crate::gemm::Tiles;

/// Steps of four features in one step of a product of tiles.
const TILE_STEPS: usize = amx::STEP_BYTES / STEP_BYTES;

/// Sums of the products of one block of rows.
#[repr(C, align(64))]
struct Sums([[i32; COLUMNS]; TILE_ROWS]);

/// `out` (the rows of the blocks one after another) `(+)=` the products of some blocks of rows with the 32 columns of a chunk.
///
/// # Safety
/// The machine has [`crate::level::Level::Amx`].
///
/// # Panics
/// When the rows are not those of tiles, or a slice is too short.
#[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512dq,avx512vnni,avx2,fma")]
pub(super) unsafe fn chunk(
    rows: &Rows,
    blocks: Range<usize>,
    chunk: usize,
    features: usize,
    panel: &[u8],
    out: &mut [[f32; COLUMNS]],
    add: bool,
) {
    let _tiles = Tiles::configure(true);
    // While the tile unit makes the sums of one block, those of the block before are scaled.
    let mut sums = [const { Sums([[0; COLUMNS]; TILE_ROWS]) }; 2];
    let first = rows.start(blocks.start);
    let place = |block: usize| rows.start(block) - first..rows.start(block + 1) - first;
    for block in blocks.clone() {
        let part = rows.part(block, chunk, features);
        // SAFETY: configured above, on a machine that has tiles by the caller's promise.
        unsafe { products(part.codes, panel, &mut sums[block % 2]) };
        if block > blocks.start {
            let before = rows.part(block - 1, chunk, features);
            let out = &mut out[place(block - 1)];
            scale(&sums[(block - 1) % 2], before, panel, out, add);
        }
    }
    if let Some(last) = blocks.last() {
        let part = rows.part(last, chunk, features);
        scale(&sums[last % 2], part, panel, &mut out[place(last)], add);
    }
}

/// The sums of a block.
///
/// # Safety
/// AMX is configured on this thread.
unsafe fn products(codes: &[i8], panel: &[u8], sums: &mut Sums) {
    let columns = &panel[SCALE_BYTES..];
    let steps = columns.len() / STEP_BYTES;
    let (whole, rest) = (steps / TILE_STEPS, steps % TILE_STEPS);
    assert!(
        codes.len() == steps.div_ceil(TILE_STEPS) * amx::STEP_BYTES,
        "int8 tiles: rows of another length than the panel"
    );
    let out = sums.0.as_mut_ptr().cast::<i32>();
    if whole > 0 {
        let (a, b) = (codes.as_ptr().cast(), columns.as_ptr());
        // SAFETY: the caller configured tiles; rows and panel have `whole` steps by the assertion above.
        unsafe { product_int8(a, b, whole, out, COLUMNS, false) };
    }
    if rest > 0 {
        // The rows are zero there; the panel ends, or another chunk's scales follow.
        let mut tail = [0u8; amx::STEP_BYTES];
        let from = &columns[whole * amx::STEP_BYTES..];
        tail[..from.len()].copy_from_slice(from);
        let a = codes[whole * amx::STEP_BYTES..].as_ptr().cast();
        // SAFETY: as above, with one step of both.
        unsafe { product_int8(a, tail.as_ptr(), 1, out, COLUMNS, whole > 0) };
    }
}

/// `out (+)= scales ⊙ (sums + starts)`, the operations of a pass without tiles.
#[inline]
#[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512dq,avx512vnni,avx2,fma")]
fn scale(sums: &Sums, rows: RowPart, panel: &[u8], out: &mut [[f32; COLUMNS]], add: bool) {
    assert!(panel.len() >= SCALE_BYTES, "int8 tiles: no scales");
    // SAFETY: the assertion above; sums and rows of `out` have 32 values.
    unsafe {
        let scales = panel.as_ptr().cast::<f32>();
        let scales = [_mm512_loadu_ps(scales), _mm512_loadu_ps(scales.add(16))];
        for ((sums, head), out) in sums.0.iter().zip(rows.heads).zip(out) {
            let Head { scale, start } = *head;
            let (head, start) = (_mm512_set1_ps(scale), _mm512_set1_epi32(start));
            for (half, scale) in scales.into_iter().enumerate() {
                let out = out.as_mut_ptr().add(16 * half);
                let total = _mm512_loadu_si512(sums.as_ptr().add(16 * half).cast());
                let total = _mm512_cvtepi32_ps(_mm512_add_epi32(total, start));
                let before = if add {
                    _mm512_loadu_ps(out)
                } else {
                    _mm512_setzero_ps()
                };
                let sum = _mm512_fmadd_ps(total, _mm512_mul_ps(scale, head), before);
                _mm512_storeu_ps(out, sum);
            }
        }
    }
}

/// Compares a product with one made here. Calls no function that asks for the level: it runs while that is being found out.
pub(crate) fn self_test() -> bool {
    const STEPS: usize = TILE_STEPS + 3;
    let codes: Vec<i8> = (0..2 * amx::STEP_BYTES)
        .map(|i| match i / amx::STEP_BYTES * TILE_STEPS + i % 64 / 4 {
            step if step < STEPS => (i * 37 % 255) as u8 as i8,
            _ => 0,
        })
        .collect();
    let panel: Vec<u8> = (0..SCALE_BYTES + STEPS * STEP_BYTES)
        .map(|i| (i * 91 % 256) as u8)
        .collect();
    let mut sums = Sums([[-1; COLUMNS]; TILE_ROWS]);
    // SAFETY: the caller found the unit.
    unsafe {
        configure();
        products(&codes, &panel, &mut sums);
        release();
    }
    sums.0.iter().enumerate().all(|(row, sums)| {
        sums.iter().enumerate().all(|(column, &sum)| {
            let products = (0..STEPS * 4).map(|feature| {
                let tile = feature / 64 * amx::STEP_BYTES;
                let x = codes[tile + row * 64 + feature % 64];
                let at = SCALE_BYTES + feature / 4 * STEP_BYTES + 4 * column + feature % 4;
                i32::from(x) * i32::from(panel[at])
            });
            sum == products.sum::<i32>()
        })
    })
}
