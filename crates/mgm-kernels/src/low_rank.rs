//! Products with a matrix of low rank, given by its two factors: low-rank adapters beside a large weight.
//!
//! Packed panels would be mostly padding and the products mostly packing; here both factors are read where they lie.

use rayon::prelude::*;

use crate::level::{Level, level};
use crate::math::{self, multiversion};

/// Fewer products than this are not worth waking other threads for.
const SERIAL_WORK: usize = 1 << 17;
/// Rows of `x` that read the factors together.
const ROWS: usize = 4;
/// Rows of the left factor that go through rows of `x` together.
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
    let rows = |(x, out): (&[f32], &mut [f32])| rows_at(level, k, x, left, right, out);
    if m <= ROWS || m * rank * (k + n) < SERIAL_WORK {
        x.chunks(ROWS * k)
            .zip(out.chunks_mut(ROWS * n))
            .for_each(rows);
    } else {
        x.par_chunks(ROWS * k)
            .zip(out.par_chunks_mut(ROWS * n))
            .for_each(rows);
    }
}

/// Dot products of each row of `x` with `N` rows.
#[inline(always)]
fn dots<const FMA: bool, const M: usize, const N: usize>(
    x: [&[f32]; M],
    rows: [&[f32]; N],
) -> [[f32; N]; M] {
    let mut sums = [[[0.0f32; LANES]; N]; M];
    let step = |sums: &mut [[[f32; LANES]; N]; M], x: [&[f32; LANES]; M], w: [&[f32; LANES]; N]| {
        for i in 0..M {
            for j in 0..N {
                for lane in 0..LANES {
                    sums[i][j][lane] =
                        math::multiply_add::<FMA>(x[i][lane], w[j][lane], sums[i][j][lane]);
                }
            }
        }
    };
    let xs = x.map(|x| x.as_chunks::<LANES>());
    let ws = rows.map(|row| row.as_chunks::<LANES>());
    let count = xs[0].0.len();
    let (x_chunks, w_chunks) = (xs.map(|x| &x.0[..count]), ws.map(|w| &w.0[..count]));
    for place in 0..count {
        step(
            &mut sums,
            x_chunks.map(|x| &x[place]),
            w_chunks.map(|w| &w[place]),
        );
    }
    if !xs[0].1.is_empty() {
        let padded = |tail: &[f32]| {
            let mut lanes = [0.0; LANES];
            lanes[..tail.len()].copy_from_slice(tail);
            lanes
        };
        let (x, w) = (xs.map(|x| padded(x.1)), ws.map(|w| padded(w.1)));
        step(&mut sums, x.each_ref(), w.each_ref());
    }
    sums.map(|sums| sums.map(|sums| sums.iter().sum()))
}

/// `out += Σ low[i] · rows[i]` for each row, one after another.
#[inline(always)]
fn add<const FMA: bool, const M: usize, const N: usize>(
    low: [[f32; N]; M],
    rows: [&[f32]; N],
    out: &mut [f32],
) {
    let n = rows[0].len();
    for (low, out) in low.iter().zip(out.chunks_exact_mut(n)) {
        let rows = rows.map(|row| &row[..out.len()]);
        for (place, out) in out.iter_mut().enumerate() {
            let mut sum = *out;
            for (low, row) in low.iter().zip(rows) {
                sum = math::multiply_add::<FMA>(*low, row[place], sum);
            }
            *out = sum;
        }
    }
}

/// `M` rows.
#[inline(always)]
fn together<const FMA: bool, const M: usize>(
    x: [&[f32]; M],
    left: &[f32],
    right: &[f32],
    out: &mut [f32],
) {
    let (k, n) = (x[0].len(), out.len() / M);
    let mut first = 0;
    let rank = left.len() / k;
    while first < rank {
        let left = |index: usize| &left[(first + index) * k..][..k];
        let right = |index: usize| &right[(first + index) * n..][..n];
        if rank - first >= TOGETHER {
            let low = dots::<FMA, M, TOGETHER>(x, std::array::from_fn(left));
            add::<FMA, M, TOGETHER>(low, std::array::from_fn(right), out);
            first += TOGETHER;
        } else {
            add::<FMA, M, 1>(dots::<FMA, M, 1>(x, [left(0)]), [right(0)], out);
            first += 1;
        }
    }
}

/// Up to [`ROWS`] rows `x [.., k]`.
#[inline(always)]
fn rows<const FMA: bool>(k: usize, x: &[f32], left: &[f32], right: &[f32], out: &mut [f32]) {
    let count = x.len() / k;
    if count == ROWS {
        let x: [&[f32]; ROWS] = std::array::from_fn(|i| &x[i * k..][..k]);
        together::<FMA, ROWS>(x, left, right, out);
        return;
    }
    let n = out.len() / count;
    for (x, out) in x.chunks_exact(k).zip(out.chunks_exact_mut(n)) {
        together::<FMA, 1>([x], left, right, out);
    }
}

multiversion!(fn rows_at(k: usize, x: &[f32], left: &[f32], right: &[f32], out: &mut [f32]) = rows);

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
