//! Four words of sixteen rows at a time for [`super::interleaved`].

use std::arch::x86_64::*;

use super::interleaved::{GROUP, VECTOR};

/// Words that are brought side by side at a time.
pub(super) const WORDS: usize = 4;
/// Bytes of them in a row.
const BYTES: usize = 4 * WORDS;

/// Brings `out.len() / 64` words (a multiple of four) of sixteen rows of `row_bytes` bytes side by side, from byte `first` of each row on.
///
/// # Panics
/// When a slice is too short.
#[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512dq")]
pub(super) fn words(rows: &[u8], row_bytes: usize, first: usize, out: &mut [u8]) {
    let count = out.len() / (WORDS * VECTOR);
    assert!(
        rows.len() >= GROUP * row_bytes && first + count * BYTES <= row_bytes,
        "interleave: words outside their rows"
    );
    for (index, out) in out
        .as_chunks_mut::<{ WORDS * VECTOR }>()
        .0
        .iter_mut()
        .enumerate()
    {
        // SAFETY: sixteen bytes of each row, by the assertion; four vectors of output.
        unsafe {
            let base = rows.as_ptr().add(first + index * BYTES);
            let row = |index: usize| _mm_loadu_si128(base.add(index * row_bytes).cast());
            // Lane `l` holds row `4l + i`.
            let spread = |i: usize| {
                let low = _mm256_inserti128_si256::<1>(_mm256_castsi128_si256(row(i)), row(4 + i));
                let high =
                    _mm256_inserti128_si256::<1>(_mm256_castsi128_si256(row(8 + i)), row(12 + i));
                _mm512_inserti64x4::<1>(_mm512_castsi256_si512(low), high)
            };
            let [a, b, c, d] = [spread(0), spread(1), spread(2), spread(3)];
            let (ab, cd) = (_mm512_unpacklo_epi32(a, b), _mm512_unpacklo_epi32(c, d));
            let (ef, gh) = (_mm512_unpackhi_epi32(a, b), _mm512_unpackhi_epi32(c, d));
            let vectors = [
                _mm512_unpacklo_epi64(ab, cd),
                _mm512_unpackhi_epi64(ab, cd),
                _mm512_unpacklo_epi64(ef, gh),
                _mm512_unpackhi_epi64(ef, gh),
            ];
            for (word, vector) in vectors.into_iter().enumerate() {
                _mm512_storeu_si512(out.as_mut_ptr().add(word * VECTOR).cast(), vector);
            }
        }
    }
}
