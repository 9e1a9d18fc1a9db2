//! One pass over a chunk of a panel with `vpdpbusd`.

use std::arch::x86_64::*;

use super::rows::{PASS_ROWS, RowPart};
use super::weight::{COLUMNS, SCALE_BYTES, STEP_BYTES};

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
                $($m => unsafe { pass::<$m>(steps, rows, panel, out, add) },)*
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
unsafe fn pass<const M: usize>(
    steps: usize,
    rows: RowPart,
    panel: &[u8],
    out: &mut [[f32; COLUMNS]],
    add: bool,
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
        for (i, (out, totals)) in out.iter_mut().zip(totals).enumerate() {
            let head = _mm512_set1_ps((*heads.add(i)).scale);
            for (half, (total, scale)) in totals.into_iter().zip(scales).enumerate() {
                let out = out.as_mut_ptr().add(16 * half);
                let before = if add {
                    _mm512_loadu_ps(out)
                } else {
                    _mm512_setzero_ps()
                };
                let scale = _mm512_mul_ps(scale, head);
                let sum = _mm512_fmadd_ps(_mm512_cvtepi32_ps(total), scale, before);
                _mm512_storeu_ps(out, sum);
            }
        }
    }
}
