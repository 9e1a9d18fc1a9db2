//! AMX bf16 microkernel: 2×2 tiles of 16×16 (see [`crate::amx`]).
//!
//! `A` tiles are packed one after the other, 16 rows of 32 bf16 values; a `B` tile is 16 pair rows of 16 columns, the left or right half of
//! a panel (row stride 128 bytes).
//!
//! A product of tiles takes 16 cycles, four of them read four tiles. From the second-level cache these come more slowly than that, so the
//! driver walks along k in blocks of which a panel's part stays in the first-level cache, and the rows, which pass by only once,
//! are fetched ahead.

use super::kernel::{MicroArguments, MicroKernel};
use super::pack::PANEL;
use super::portable;
use crate::amx::{configure, product_bf16, release};

/// Rows of one microkernel.
pub(crate) const MAX_ROWS: usize = 32;
/// bf16 pairs along k in one tile.
const TILE_PAIRS: usize = 16;

/// Result of one 2×2 tile product, `[32][32]`.
#[repr(C, align(64))]
struct Scratch([f32; MAX_ROWS * PANEL]);

/// One block of up to 32 rows × 32 columns.
///
/// # Safety
/// See [`MicroArguments`]; AMX is configured on this thread.
#[target_feature(enable = "avx512f")]
unsafe fn block(arguments: &MicroArguments) {
    let MicroArguments { rows, columns, .. } = *arguments;
    let tiles = arguments.steps.div_ceil(TILE_PAIRS);
    let whole = rows == MAX_ROWS && columns == PANEL && tiles > 0;
    let mut scratch = Scratch([0.0; MAX_ROWS * PANEL]);
    if whole {
        let (c, ldc) = (arguments.c, arguments.ldc);
        // SAFETY: passed on; `c` has all rows and columns.
        unsafe { product_bf16(arguments.a, arguments.b, tiles, c, ldc, arguments.add) };
    } else if tiles > 0 {
        let c = scratch.0.as_mut_ptr();
        // SAFETY: passed on; the scratch has all rows and columns.
        unsafe { product_bf16(arguments.a, arguments.b, tiles, c, PANEL, false) };
    }
    if whole && arguments.bias.is_null() {
        return;
    }
    for (i, sums) in scratch.0.chunks_exact(PANEL).take(rows).enumerate() {
        let sums = &sums[..columns];
        // SAFETY: `c` has `columns` writable elements in each of `rows` rows, exclusive to this call; `bias` is null or
        // has `columns` elements.
        unsafe {
            let c = std::slice::from_raw_parts_mut(arguments.c.add(i * arguments.ldc), columns);
            if whole {
                // The product is there already.
            } else if arguments.add {
                c.iter_mut().zip(sums).for_each(|(c, &sum)| *c += sum);
            } else {
                c.copy_from_slice(sums);
            }
            if !arguments.bias.is_null() {
                let bias = std::slice::from_raw_parts(arguments.bias, columns);
                c.iter_mut().zip(bias).for_each(|(c, &bias)| *c += bias);
            }
        }
    }
}

/// The microkernel, for every number of rows up to 32.
pub(crate) static BF16: [MicroKernel; MAX_ROWS] = [block; MAX_ROWS];

/// Compares one product of small whole numbers, exact in any order of summation, with the portable microkernel. Calls no
/// function that asks for the level: it runs while that is being found out.
pub(crate) fn self_test() -> bool {
    const PAIRS: usize = 2 * TILE_PAIRS;
    let whole = |i: usize| ((i * 7 + i / 5) % 13) as f32 - 6.0;
    let bits = |value: f32| value.to_bits() >> 16;
    let mut rows = vec![0u32; MAX_ROWS * PAIRS];
    let mut panel = vec![0u32; PAIRS * PANEL];
    for i in 0..MAX_ROWS {
        for p in 0..PAIRS {
            let at = i * PAIRS + p;
            let tile = p / TILE_PAIRS * 2 + i / 16;
            rows[(tile * 16 + i % 16) * TILE_PAIRS + p % TILE_PAIRS] =
                bits(whole(2 * at)) | bits(whole(2 * at + 1)) << 16;
        }
    }
    for (i, pair) in panel.iter_mut().enumerate() {
        *pair = bits(whole(3 * i + 1)) | bits(whole(3 * i + 2)) << 16;
    }
    let mut got = vec![0.0f32; MAX_ROWS * PANEL];
    let mut arguments = MicroArguments {
        steps: PAIRS,
        rows: MAX_ROWS,
        a: rows.as_ptr().cast(),
        b: panel.as_ptr().cast(),
        ldb: PANEL,
        c: got.as_mut_ptr(),
        ldc: PANEL,
        columns: PANEL,
        bias: std::ptr::null(),
        add: false,
    };
    // SAFETY: the caller found the unit; the buffers have the sizes that the arguments state. AVX-512 is there
    // because the level below was found first.
    unsafe {
        configure();
        block(&arguments);
        release();
    }
    for i in 0..MAX_ROWS {
        let row: Vec<f32> = (0..2 * PAIRS).map(|p| whole(2 * PAIRS * i + p)).collect();
        let mut want = [0.0f32; PANEL];
        arguments.rows = 1;
        arguments.a = row.as_ptr().cast();
        arguments.c = want.as_mut_ptr();
        // SAFETY: one row of 2·PAIRS values, the panel, and one row of output.
        unsafe { portable::BF16[0](&arguments) };
        if got[i * PANEL..][..PANEL] != want {
            return false;
        }
    }
    true
}
