//! Products with a matrix of low rank, given by its two factors: low-rank adapters beside a large weight.
//!
//! Packed panels would be mostly padding and the products mostly packing; here both factors are read where they lie.

use rayon::prelude::*;

use crate::level::{Level, level};
use crate::math::{self, multiversion};

/// Fewer products than this are not worth waking other threads for.
const SERIAL_WORK: usize = 1 << 17;
/// Rows of the left factor that go through a row of `x` together.
const TOGETHER: usize = 4;
const LANES: usize = 16;

/// `out [m, n] += (x [m, k]·leftᵀ)·right` with `left [rank, k]` and `right [rank, n]`, row-major. A row's result has the same bits whatever
/// rows stand beside it.
///
/// # Panics
/// When a slice has another length than the sizes say.
pub fn add_low_rank(
    m: usize,
    k: usize,
    n: usize,
    x: &[f32],
    left: &[f32],
    right: &[f32],
    out: &mut [f32],
) {
    add_low_rank_at(level(), m, k, n, x, left, right, out);
}

/// [`add_low_rank`] at a forced level.
pub fn add_low_rank_at(
    level: Level,
    m: usize,
    k: usize,
    n: usize,
    x: &[f32],
    left: &[f32],
    right: &[f32],
    out: &mut [f32],
) {
    let level = crate::level::clamp(level);
    if m == 0 || k == 0 || n == 0 {
        return;
    }
    let rank = left.len() / k;
    assert!(
        x.len() == m * k && out.len() == m * n && left.len() == rank * k && right.len() == rank * n,
        "low rank: x [{m}, {k}], factors [rank, {k}] and [rank, {n}], out [{m}, {n}] do not fit {}, {}, {} and {} values",
        x.len(),
        left.len(),
        right.len(),
        out.len()
    );
    let row = |(x, out): (&[f32], &mut [f32])| row_at(level, x, left, right, out);
    if m == 1 || m * rank * (k + n) < SERIAL_WORK {
        x.chunks_exact(k).zip(out.chunks_exact_mut(n)).for_each(row);
    } else {
        x.par_chunks_exact(k)
            .zip(out.par_chunks_exact_mut(n))
            .for_each(row);
    }
}

/// Dot products of `x` with `N` rows.
#[inline(always)]
fn dots<const FMA: bool, const N: usize>(x: &[f32], rows: [&[f32]; N]) -> [f32; N] {
    let mut sums = [[0.0f32; LANES]; N];
    let (chunks, tail) = x.as_chunks::<LANES>();
    for (place, x) in chunks.iter().enumerate() {
        for (sums, row) in sums.iter_mut().zip(rows) {
            let row = &row[place * LANES..][..LANES];
            for lane in 0..LANES {
                sums[lane] = math::multiply_add::<FMA>(x[lane], row[lane], sums[lane]);
            }
        }
    }
    let start = chunks.len() * LANES;
    for (sums, row) in sums.iter_mut().zip(rows) {
        for (lane, (x, w)) in tail.iter().zip(&row[start..]).enumerate() {
            sums[lane] = math::multiply_add::<FMA>(*x, *w, sums[lane]);
        }
    }
    sums.map(|sums| sums.iter().sum())
}

/// `out += Σ low[i] · rows[i]`, one after another.
#[inline(always)]
fn add<const FMA: bool, const N: usize>(low: [f32; N], rows: [&[f32]; N], out: &mut [f32]) {
    let rows = rows.map(|row| &row[..out.len()]);
    for (place, out) in out.iter_mut().enumerate() {
        let mut sum = *out;
        for (low, row) in low.iter().zip(rows) {
            sum = math::multiply_add::<FMA>(*low, row[place], sum);
        }
        *out = sum;
    }
}

#[inline(always)]
fn one_row<const FMA: bool>(x: &[f32], left: &[f32], right: &[f32], out: &mut [f32]) {
    let (k, n) = (x.len(), out.len());
    let mut first = 0;
    let rank = left.len() / k;
    while first < rank {
        let left = |index: usize| &left[(first + index) * k..][..k];
        let right = |index: usize| &right[(first + index) * n..][..n];
        if rank - first >= TOGETHER {
            let low = dots::<FMA, TOGETHER>(x, std::array::from_fn(left));
            add::<FMA, TOGETHER>(low, std::array::from_fn(right), out);
            first += TOGETHER;
        } else {
            add::<FMA, 1>(dots::<FMA, 1>(x, [left(0)]), [right(0)], out);
            first += 1;
        }
    }
}

multiversion!(fn row_at(x: &[f32], left: &[f32], right: &[f32], out: &mut [f32]) = one_row);

#[cfg(test)]
mod tests {
    use super::*;
    use crate::level::available;

    fn values(seed: u64, count: usize) -> Vec<f32> {
        let mut state = seed;
        (0..count)
            .map(|_| {
                state = state
                    .wrapping_mul(6_364_136_223_846_793_005)
                    .wrapping_add(1_442_695_040_888_963_407);
                (state >> 40) as f32 / (1u64 << 23) as f32 - 1.0
            })
            .collect()
    }

    #[test]
    fn products_match_the_reference_and_rows_stand_alone() {
        for level in available() {
            for (m, k, n, rank) in [
                (1, 1, 1, 1),
                (3, 17, 40, 3),
                (5, 576, 192, 8),
                (70, 50, 33, 9),
                (2, 8, 8, 0),
            ] {
                let (x, left) = (values(1, m * k), values(2, rank * k));
                let (right, before) = (values(3, rank * n), values(4, m * n));
                let mut out = before.clone();
                add_low_rank_at(level, m, k, n, &x, &left, &right, &mut out);
                for i in 0..m {
                    for j in 0..n {
                        let product: f64 = (0..rank)
                            .map(|r| {
                                let low: f64 = (0..k)
                                    .map(|p| f64::from(x[i * k + p]) * f64::from(left[r * k + p]))
                                    .sum();
                                low * f64::from(right[r * n + j])
                            })
                            .sum();
                        let want = f64::from(before[i * n + j]) + product;
                        let got = f64::from(out[i * n + j]);
                        assert!((got - want).abs() < 1e-4, "{level:?} {m} {k} {n} {rank}");
                    }
                    let mut alone = before[i * n..][..n].to_vec();
                    add_low_rank_at(level, 1, k, n, &x[i * k..][..k], &left, &right, &mut alone);
                    assert_eq!(alone, out[i * n..][..n]);
                }
            }
        }
    }
}
