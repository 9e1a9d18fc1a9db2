//! Sums over slices with sixteen partial sums: they vectorise, and the rounding error of a long row stays small.

const LANES: usize = 16;

fn finish(mut lanes: [f32; LANES]) -> f32 {
    let mut width = LANES / 2;
    while width > 0 {
        for i in 0..width {
            lanes[i] += lanes[i + width];
        }
        width /= 2;
    }
    lanes[0]
}

/// Sum of the elements.
pub(crate) fn sum(a: &[f32]) -> f32 {
    let mut lanes = [0.0; LANES];
    let (chunks, tail) = a.as_chunks::<LANES>();
    for chunk in chunks {
        for i in 0..LANES {
            lanes[i] += chunk[i];
        }
    }
    for (lane, &value) in lanes.iter_mut().zip(tail) {
        *lane += value;
    }
    finish(lanes)
}

/// Scalar product of two slices of one length.
pub(crate) fn dot(a: &[f32], b: &[f32]) -> f32 {
    debug_assert_eq!(a.len(), b.len());
    let mut lanes = [0.0; LANES];
    let (a_chunks, a_tail) = a.as_chunks::<LANES>();
    let (b_chunks, b_tail) = b.as_chunks::<LANES>();
    for (a, b) in a_chunks.iter().zip(b_chunks) {
        for i in 0..LANES {
            lanes[i] += a[i] * b[i];
        }
    }
    for ((lane, &a), &b) in lanes.iter_mut().zip(a_tail).zip(b_tail) {
        *lane += a * b;
    }
    finish(lanes)
}

/// Largest element; negative infinity for an empty slice.
pub(crate) fn maximum(a: &[f32]) -> f32 {
    let mut lanes = [f32::NEG_INFINITY; LANES];
    let (chunks, tail) = a.as_chunks::<LANES>();
    for chunk in chunks {
        for i in 0..LANES {
            lanes[i] = if chunk[i] > lanes[i] {
                chunk[i]
            } else {
                lanes[i]
            };
        }
    }
    let head = lanes.into_iter().fold(f32::NEG_INFINITY, f32::max);
    tail.iter().copied().fold(head, f32::max)
}

/// `out += scale · a`.
pub(crate) fn add_scaled(out: &mut [f32], scale: f32, a: &[f32]) {
    for (out, &a) in out.iter_mut().zip(a) {
        *out += scale * a;
    }
}

/// Sum over `rows` of a function that adds one row's part to a vector of `width` elements; in parallel for many rows.
pub(crate) fn sum_rows(
    rows: usize,
    width: usize,
    add_row: impl Fn(usize, &mut [f32]) + Sync,
) -> Vec<f32> {
    use rayon::prelude::*;
    const ROWS_PER_TASK: usize = 64;
    if rows <= ROWS_PER_TASK {
        let mut total = vec![0.0; width];
        (0..rows).for_each(|row| add_row(row, &mut total));
        return total;
    }
    // Fixed blocks, added in order, make the result independent of the number of threads.
    let partial: Vec<Vec<f32>> = (0..rows.div_ceil(ROWS_PER_TASK))
        .into_par_iter()
        .map(|block| {
            let mut total = vec![0.0; width];
            (block * ROWS_PER_TASK..rows.min((block + 1) * ROWS_PER_TASK))
                .for_each(|row| add_row(row, &mut total));
            total
        })
        .collect();
    let mut partial = partial.into_iter();
    let mut total = partial.next().unwrap_or_else(|| vec![0.0; width]);
    partial.for_each(|part| add_scaled(&mut total, 1.0, &part));
    total
}
