//! The searches for scales, step for step those of ggml, so that the same values give the same bytes.
//!
//! Every sum runs in the order of the reference. What runs in parallel are `L` groups of `N` values side by side, one a
//! lane: the value `i` of lane `l` is `x[i][l]`. No operation here may be fused, whatever the machine has.

/// Groups with no value larger than this are zeros.
pub(super) const SMALLEST: f32 = 1e-15;

/// `N` values in each of `L` lanes.
pub(super) type Lanes<const N: usize, const L: usize> = [[f32; L]; N];
/// Their codes.
pub(super) type Codes<const N: usize, const L: usize> = [[u8; L]; N];

/// Rounds to the nearest integer, ties to even: adding 1.5·2²³ leaves it in the low mantissa bits. Beyond ±2²² the result
/// is arbitrary, as in the reference.
#[inline(always)]
pub(super) fn nearest(value: f32) -> i32 {
    const ROUND: f32 = 12_582_912.0;
    ((value + ROUND).to_bits() & 0x007f_ffff) as i32 - 0x0040_0000
}

/// [`nearest`], limited to `low..=high`.
#[inline(always)]
pub(super) fn code(value: f32, low: i32, high: i32) -> i32 {
    nearest(value).min(high).max(low)
}

/// `N` values of lane `l` lie `N` apart: value `i` of lane `l` is `values[l·N + i]`. Missing values are zeros.
#[inline(always)]
pub(super) fn lanes<const N: usize, const L: usize>(values: &[f32]) -> Lanes<N, L> {
    let mut out = [[0.0; L]; N];
    for (l, group) in values.as_chunks::<N>().0.iter().enumerate().take(L) {
        for i in 0..N {
            out[i][l] = group[i];
        }
    }
    out
}

/// Candidates for the number of steps between the smallest and the largest value: `largest code + first + i·step` for
/// `i` in `0..=count`.
#[derive(Clone, Copy)]
pub(super) struct Grid {
    pub(super) first: f32,
    pub(super) step: f32,
    pub(super) count: usize,
}

impl Grid {
    /// What ggml uses with importances, whatever the width.
    pub(super) const WEIGHTED: Self = Self {
        first: -0.9,
        step: 0.05,
        count: 36,
    };
}

/// What approximates `x` as `scale · code - minimum`.
pub(super) struct ScaleMinimum<const N: usize, const L: usize> {
    pub(super) scale: [f32; L],
    pub(super) minimum: [f32; L],
    pub(super) codes: Codes<N, L>,
}

/// Scale and minimum (both not negative) for each lane that make the weighted squared error small, codes
/// `0..=largest`: for each candidate of the grid the codes, then the best line through them.
#[inline(always)]
pub(super) fn scale_and_minimum<const N: usize, const L: usize>(
    x: &Lanes<N, L>,
    weights: &Lanes<N, L>,
    largest: i32,
    grid: Grid,
) -> ScaleMinimum<N, L> {
    let (mut low, mut high) = (x[0], x[0]);
    let mut sum_w = weights[0];
    let mut sum_x = [0.0; L];
    for l in 0..L {
        sum_x[l] = sum_w[l] * x[0][l];
    }
    for i in 1..N {
        for l in 0..L {
            let (value, weight) = (x[i][l], weights[i][l]);
            low[l] = if value < low[l] { value } else { low[l] };
            high[l] = if value > high[l] { value } else { high[l] };
            sum_w[l] += weight;
            sum_x[l] += weight * value;
        }
    }
    let mut constant = [false; L];
    for l in 0..L {
        low[l] = if low[l] > 0.0 { 0.0 } else { low[l] };
        constant[l] = high[l] <= low[l];
    }
    // Lanes of constant values compute nonsense from here on and are put right at the end.
    let bottom = low;
    let steps = largest as f32;
    let mut codes = [[0u8; L]; N];
    let mut scale = [0.0; L];
    let mut best_error = [0.0f32; L];
    let mut inverse = [0.0; L];
    for l in 0..L {
        inverse[l] = steps / (high[l] - low[l]);
        scale[l] = 1.0 / inverse[l];
    }
    for i in 0..N {
        for l in 0..L {
            let q = code(inverse[l] * (x[i][l] - low[l]), 0, largest);
            codes[i][l] = q as u8;
            let difference = scale[l] * q as f32 + low[l] - x[i][l];
            best_error[l] += weights[i][l] * (difference * difference);
        }
    }
    for candidate in 0..=grid.count {
        let wanted = grid.first + grid.step * candidate as f32 + steps;
        for l in 0..L {
            inverse[l] = wanted / (high[l] - low[l]);
        }
        let mut tried = [[0i32; L]; N];
        let (mut sum_q, mut sum_qq, mut sum_xq) = ([0.0f32; L], [0.0f32; L], [0.0f32; L]);
        for i in 0..N {
            for l in 0..L {
                let q = code(inverse[l] * (x[i][l] - low[l]), 0, largest);
                tried[i][l] = q;
                let q = q as f32;
                let wq = weights[i][l] * q;
                sum_q[l] += wq;
                sum_qq[l] += wq * q;
                sum_xq[l] += wq * x[i][l];
            }
        }
        // Normal equations of the weighted fit x ≈ scale·q + offset.
        let mut solvable = [false; L];
        let (mut new_scale, mut new_low) = ([0.0; L], [0.0; L]);
        for l in 0..L {
            let determinant = sum_w[l] * sum_qq[l] - sum_q[l] * sum_q[l];
            solvable[l] = determinant > 0.0;
            let fitted = (sum_w[l] * sum_xq[l] - sum_x[l] * sum_q[l]) / determinant;
            let offset = (sum_qq[l] * sum_x[l] - sum_q[l] * sum_xq[l]) / determinant;
            let through_zero = sum_xq[l] / sum_qq[l];
            new_scale[l] = if offset > 0.0 { through_zero } else { fitted };
            new_low[l] = if offset > 0.0 { 0.0 } else { offset };
        }
        let mut error = [0.0f32; L];
        for i in 0..N {
            for l in 0..L {
                let difference = new_scale[l] * tried[i][l] as f32 + new_low[l] - x[i][l];
                error[l] += weights[i][l] * (difference * difference);
            }
        }
        let mut better = [false; L];
        for l in 0..L {
            better[l] = solvable[l] && error[l] < best_error[l];
        }
        if better.contains(&true) {
            for i in 0..N {
                for l in 0..L {
                    codes[i][l] = if better[l] {
                        tried[i][l] as u8
                    } else {
                        codes[i][l]
                    };
                }
            }
            for l in 0..L {
                best_error[l] = if better[l] { error[l] } else { best_error[l] };
                scale[l] = if better[l] { new_scale[l] } else { scale[l] };
                // As in the reference, the candidates that follow start from the new minimum.
                low[l] = if better[l] { new_low[l] } else { low[l] };
            }
        }
    }
    let mut minimum = [0.0; L];
    for l in 0..L {
        if constant[l] {
            scale[l] = 0.0;
            low[l] = bottom[l];
            codes.iter_mut().for_each(|codes| codes[l] = 0);
        }
        minimum[l] = -low[l];
    }
    ScaleMinimum {
        scale,
        minimum,
        codes,
    }
}

/// Signed scale for each lane such that `scale · q` with `-half <= q < half` approximates the values; the codes are
/// `q + half`. Lanes of zeros have scale 0 and codes 0.
#[inline(always)]
pub(super) fn signed_scale<const N: usize, const L: usize>(
    x: &Lanes<N, L>,
    weights: &Lanes<N, L>,
    half: i32,
) -> ([f32; L], Codes<N, L>) {
    let (mut largest, mut extreme) = ([0.0f32; L], [0.0f32; L]);
    for i in 0..N {
        for l in 0..L {
            let size = x[i][l].abs();
            let larger = size > largest[l];
            largest[l] = if larger { size } else { largest[l] };
            extreme[l] = if larger { x[i][l] } else { extreme[l] };
        }
    }
    let mut weighted = [[0.0; L]; N];
    for i in 0..N {
        for l in 0..L {
            weighted[i][l] = weights[i][l] * x[i][l];
        }
    }
    let mut codes = [[0u8; L]; N];
    let (mut scale, mut gain) = ([0.0f32; L], [0.0f32; L]);
    // The first attempt counts whatever it gives, the others when they gain.
    for candidate in [
        0, -9, -8, -7, -6, -5, -4, -3, -2, -1, 1, 2, 3, 4, 5, 6, 7, 8, 9,
    ] {
        let wanted = -(half as f32 + 0.1 * candidate as f32);
        let mut inverse = [0.0; L];
        for l in 0..L {
            inverse[l] = wanted / extreme[l];
        }
        let mut tried = [[0i32; L]; N];
        let (mut sum_xq, mut sum_qq) = ([0.0f32; L], [0.0f32; L]);
        for i in 0..N {
            for l in 0..L {
                let q = code(inverse[l] * x[i][l], -half, half - 1);
                tried[i][l] = q + half;
                let q = q as f32;
                sum_xq[l] += weighted[i][l] * q;
                sum_qq[l] += weights[i][l] * q * q;
            }
        }
        let mut better = [false; L];
        for l in 0..L {
            better[l] = if candidate == 0 {
                true
            } else {
                sum_qq[l] > 0.0 && sum_xq[l] * sum_xq[l] > gain[l] * sum_qq[l]
            };
        }
        if better.contains(&true) {
            for l in 0..L {
                let fitted = if sum_qq[l] == 0.0 {
                    0.0
                } else {
                    sum_xq[l] / sum_qq[l]
                };
                scale[l] = if better[l] { fitted } else { scale[l] };
                // For fixed codes this is by how much the best scale lowers the error.
                gain[l] = if better[l] {
                    fitted * sum_xq[l]
                } else {
                    gain[l]
                };
            }
            for i in 0..N {
                for l in 0..L {
                    codes[i][l] = if better[l] {
                        tried[i][l] as u8
                    } else {
                        codes[i][l]
                    };
                }
            }
        }
    }
    for l in 0..L {
        if largest[l] < SMALLEST {
            scale[l] = 0.0;
            codes.iter_mut().for_each(|codes| codes[l] = 0);
        }
    }
    (scale, codes)
}

/// Scale such that `scale · code` with codes `0..=largest` approximates values that are not negative, then codes improved
/// one at a time. `None` when no value that has a code other than 0 has a weight.
#[inline(always)]
pub(super) fn unsigned_scale<const N: usize>(
    x: &[f32; N],
    weights: &[f32; N],
    largest: i32,
) -> Option<(f32, [u8; N])> {
    let mut codes = [0u8; N];
    let high = x.iter().fold(0.0f32, |m, &v| if m > v { m } else { v });
    if high == 0.0 {
        return Some((0.0, codes));
    }
    let error = |inverse: f32, limit: i32| {
        let scale = 1.0 / inverse;
        let mut error = 0.0f32;
        for i in 0..N {
            let difference = x[i] - scale * nearest(inverse * x[i]).min(limit) as f32;
            error += weights[i] * difference * difference;
        }
        error
    };
    let mut inverse = largest as f32 / high;
    let mut best = error(inverse, i32::MAX);
    for candidate in [-4, -3, -2, -1, 1, 2, 3, 4] {
        let tried = (0.1 * candidate as f32 + largest as f32) / high;
        let error = error(tried, largest);
        if error < best {
            best = error;
            inverse = tried;
        }
    }
    let (mut sum_xq, mut sum_qq) = (0.0f32, 0.0f32);
    for i in 0..N {
        let q = nearest(inverse * x[i]).min(largest);
        codes[i] = q as u8;
        sum_xq += weights[i] * x[i] * q as f32;
        sum_qq += weights[i] * q as f32 * q as f32;
    }
    for _ in 0..5 {
        let mut changed = false;
        for i in 0..N {
            let (weight, q) = (weights[i], f32::from(codes[i]));
            let mut xq = sum_xq - weight * x[i] * q;
            let mut qq = sum_qq - weight * q * q;
            if xq > 0.0 && qq > 0.0 {
                let new = nearest(x[i] * qq / xq).min(largest);
                if new != i32::from(codes[i]) {
                    xq += weight * x[i] * new as f32;
                    qq += weight * new as f32 * new as f32;
                    if xq * xq * sum_qq > sum_xq * sum_xq * qq {
                        codes[i] = new as u8;
                        (sum_xq, sum_qq) = (xq, qq);
                        changed = true;
                    }
                }
            }
        }
        if !changed {
            break;
        }
    }
    (sum_qq > 0.0).then_some((sum_xq / sum_qq, codes))
}
