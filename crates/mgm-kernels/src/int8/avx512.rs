//! One pass over a chunk of a panel with `vpdpbusd`, and the rounding of a row's chunk.

use std::arch::x86_64::*;

use super::rows::{PASS_ROWS, RowPart, SMALLEST};
use super::weight::{CHUNK, COLUMNS, SCALE_BYTES, STEP_BYTES};

/// `out [rows, 32] (+)=` the products of a block of rows with the 32 columns of a chunk.
///
/// # Panics
/// When there are more than twelve rows, or a slice is too short.
#[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512dq,avx512vnni,avx2,fma")]
pub(super) fn chunk(rows: RowPart, panel: &[u8], out: &mut [[f32; COLUMNS]], add: bool) {
    let count = out.len();
    let steps = (panel.len() - SCALE_BYTES) / STEP_BYTES;
    assert!(
        rows.codes.len() == steps * count * 4 && rows.heads.len() == count,
        "int8 chunk: rows of another length than the panel"
    );
    macro_rules! by_rows {
        ($($m:literal)*) => {
            match count {
                0 => {}
                // SAFETY: the assertion above; the panel has `steps` steps behind its scales.
                $($m if add => unsafe { pass::<$m, true>(steps, rows, panel, out) },)*
                // SAFETY: as above.
                $($m => unsafe { pass::<$m, false>(steps, rows, panel, out) },)*
                _ => panic!("{count} rows in one pass, at most {PASS_ROWS}"),
            }
        };
    }
    by_rows!(1 2 3 4 5 6 7 8 9 10 11 12);
}

/// # Safety
/// The machine has the features; `rows` are `M` rows of `steps` steps, `panel` has as many, and `out` `M` rows.
#[inline]
#[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512dq,avx512vnni,avx2,fma")]
unsafe fn pass<const M: usize, const ADD: bool>(
    steps: usize,
    rows: RowPart,
    panel: &[u8],
    out: &mut [[f32; COLUMNS]],
) {
    // SAFETY: the caller's: every step has 128 bytes of the panel and four of each row.
    unsafe {
        let heads = rows.heads.as_ptr();
        let mut totals: [[__m512i; 2]; M] =
            std::array::from_fn(|i| [_mm512_set1_epi32((*heads.add(i)).start); 2]);
        let mut x = rows.codes.as_ptr().cast::<i32>();
        let mut w = panel.as_ptr().add(SCALE_BYTES).cast::<__m512i>();
        for _ in 0..steps {
            let columns = [_mm512_loadu_si512(w), _mm512_loadu_si512(w.add(1))];
            for (i, totals) in totals.iter_mut().enumerate() {
                let four = _mm512_set1_epi32(x.add(i).read_unaligned());
                for (total, column) in totals.iter_mut().zip(columns) {
                    *total = _mm512_dpbusd_epi32(*total, column, four);
                }
            }
            x = x.add(M);
            w = w.add(2);
        }
        let scales = panel.as_ptr().cast::<f32>();
        let scales = [_mm512_loadu_ps(scales), _mm512_loadu_ps(scales.add(16))];
        let out = out.as_mut_ptr().cast::<f32>();
        // Unrolled, as an array is built: a loop would have the sums go through memory.
        let _: [(); M] = std::array::from_fn(|i| {
            let head = _mm512_set1_ps((*heads.add(i)).scale);
            for half in 0..2 {
                let out = out.add(COLUMNS * i + 16 * half);
                let total = _mm512_cvtepi32_ps(totals[i][half]);
                let scale = _mm512_mul_ps(scales[half], head);
                let sum = if ADD {
                    _mm512_fmadd_ps(total, scale, _mm512_loadu_ps(out))
                } else {
                    _mm512_mul_ps(total, scale)
                };
                _mm512_storeu_ps(out, sum);
            }
        });
    }
}

/// Rounds a whole chunk to codes within ±127, all of it in registers; scale and sum of the codes.
#[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512dq")]
pub(super) fn quantize_chunk(x: &[f32; CHUNK], codes: &mut [i8; CHUNK]) -> (f32, i32) {
    let parts = x.as_chunks::<16>().0;
    // SAFETY: sixteen values each.
    let x: [__m512; CHUNK / 16] =
        std::array::from_fn(|i| unsafe { _mm512_loadu_ps(parts[i].as_ptr()) });
    let mut largest = [_mm512_setzero_ps(); 4];
    for x in x.chunks_exact(4) {
        for (largest, x) in largest.iter_mut().zip(x) {
            // The second operand where the first is not a number.
            *largest = _mm512_max_ps(_mm512_abs_ps(*x), *largest);
        }
    }
    let [a, b, c, d] = largest;
    let largest = _mm512_max_ps(_mm512_max_ps(a, b), _mm512_max_ps(c, d));
    let largest = _mm512_reduce_max_ps(largest);
    let inverse = if largest > SMALLEST {
        127.0 / largest
    } else {
        0.0
    };
    let inverse = _mm512_set1_ps(inverse);
    let mut sums = [_mm512_setzero_si512(); 2];
    for (i, (x, codes)) in x.into_iter().zip(codes.as_chunks_mut::<16>().0).enumerate() {
        let rounded = _mm512_cvtps_epi32(_mm512_mul_ps(x, inverse));
        sums[i % 2] = _mm512_add_epi32(sums[i % 2], rounded);
        // SAFETY: sixteen codes.
        unsafe { _mm_storeu_si128(codes.as_mut_ptr().cast(), _mm512_cvtepi32_epi8(rounded)) };
    }
    let sum = _mm512_reduce_add_epi32(_mm512_add_epi32(sums[0], sums[1]));
    (largest / 127.0, sum)
}
