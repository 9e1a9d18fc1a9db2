//! Gradients of group normalisation followed by SiLU or nothing.
//!
//! With x̂ = (x − mean) / sqrt(var + eps), y = x̂ · gamma + beta and g the gradient of y: dbeta = Σ g, dgamma = Σ g · x̂, and, for a group of
//! N values, dx = (g · gamma − Σ(g · gamma) / N − x̂ · Σ(g · gamma · x̂) / N) / sqrt(var + eps). The statistics are computed again, as
//! [`crate::group_norm`] does: that costs less than keeping the normalised map.

use rayon::prelude::*;

use crate::group_norm::group_norm_affine_at;
use crate::level::{self, Level, level};
use crate::math::{self, multiversion};

/// What a layer normalises, and how.
#[derive(Clone, Copy, Debug)]
pub struct GroupNormShape {
    /// Pictures.
    pub batch: usize,
    /// Channels of a position.
    pub channels: usize,
    /// Groups of channels.
    pub groups: usize,
    /// Added to the variance.
    pub eps: f32,
    /// Whether SiLU follows.
    pub silu: bool,
}

/// Gradients of `activation(GroupNorm(x))` for `x [batch, positions, channels]`: `dx` is overwritten, the return value is `(dgamma, dbeta)`.
///
/// # Panics
/// When `groups` does not divide `channels` or a slice has the wrong length.
pub fn group_norm_backward(
    shape: &GroupNormShape,
    x: &[f32],
    gamma: &[f32],
    beta: &[f32],
    grad: &[f32],
    dx: &mut [f32],
) -> (Vec<f32>, Vec<f32>) {
    group_norm_backward_at(level(), shape, x, gamma, beta, grad, dx)
}

/// [`group_norm_backward`] at a forced level.
pub fn group_norm_backward_at(
    level: Level,
    shape: &GroupNormShape,
    x: &[f32],
    gamma: &[f32],
    beta: &[f32],
    grad: &[f32],
    dx: &mut [f32],
) -> (Vec<f32>, Vec<f32>) {
    let level = level::clamp(level);
    let &GroupNormShape {
        batch,
        channels,
        groups,
        eps,
        silu,
    } = shape;
    assert_eq!(x.len(), grad.len(), "group_norm_backward: grad length");
    assert_eq!(x.len(), dx.len(), "group_norm_backward: dx length");
    // With gamma one and beta zero the affine map is x̂ itself.
    let (ones, zeros) = (vec![1.0; channels], vec![0.0; channels]);
    let hat = group_norm_affine_at(level, batch, channels, groups, x, &ones, &zeros, eps);
    assert_eq!(gamma.len(), channels, "group_norm_backward: gamma length");
    assert_eq!(beta.len(), channels, "group_norm_backward: beta length");
    let picture = (x.len() / batch).max(1);
    let parts: Vec<Vec<f32>> = x
        .par_chunks_exact(picture)
        .zip(grad.par_chunks_exact(picture))
        .zip(dx.par_chunks_exact_mut(picture))
        .enumerate()
        .map(|(index, ((x, grad), dx))| {
            let row = index * channels..(index + 1) * channels;
            let hat = [&hat.scale[row.clone()], &hat.shift[row]];
            let mut sums = vec![0.0; 2 * channels];
            sums_at(level, silu, x, grad, hat, [gamma, beta], &mut sums, dx);
            let coefficients = coefficients(groups, picture / channels, &sums, hat, gamma);
            input_at(level, x, &coefficients, dx);
            sums
        })
        .collect();
    let mut total = vec![0.0; 2 * channels];
    for part in parts {
        total.iter_mut().zip(part).for_each(|(t, p)| *t += p);
    }
    let dbeta = total.split_off(channels);
    (total, dbeta)
}

/// `g` into `out`; its sums with x̂ and alone into the halves of `sums`.
#[inline(always)]
fn sums<const FMA: bool>(
    silu: bool,
    x: &[f32],
    grad: &[f32],
    hat: [&[f32]; 2],
    affine: [&[f32]; 2],
    sums: &mut [f32],
    out: &mut [f32],
) {
    let channels = hat[0].len();
    let (with_hat, alone) = sums.split_at_mut(channels);
    let ([scale, shift], [gamma, beta]) = (hat, affine);
    let rows = x.chunks_exact(channels).zip(grad.chunks_exact(channels));
    for ((x, grad), out) in rows.zip(out.chunks_exact_mut(channels)) {
        for c in 0..channels {
            let hat = math::multiply_add::<FMA>(x[c], scale[c], shift[c]);
            let mut g = grad[c];
            if silu {
                let y = math::multiply_add::<FMA>(hat, gamma[c], beta[c]);
                let sigmoid = math::sigmoid::<FMA>(y);
                g *= sigmoid * math::multiply_add::<FMA>(y, 1.0 - sigmoid, 1.0);
            }
            out[c] = g;
            alone[c] += g;
            with_hat[c] = math::multiply_add::<FMA>(g, hat, with_hat[c]);
        }
    }
}

multiversion!(fn sums_at(silu: bool, x: &[f32], grad: &[f32], hat: [&[f32]; 2], affine: [&[f32]; 2], out_sums: &mut [f32], out: &mut [f32]) = sums);

/// Factors of `g`, of `x` and a constant that make `dx` of them, `[3, channels]`.
fn coefficients(
    groups: usize,
    positions: usize,
    sums: &[f32],
    hat: [&[f32]; 2],
    gamma: &[f32],
) -> Vec<f32> {
    let channels = gamma.len();
    let width = channels / groups;
    let count = (positions * width).max(1) as f64;
    let mut out = vec![0.0; 3 * channels];
    for group in 0..groups {
        let part = group * width..(group + 1) * width;
        let mean = |sums: &[f32]| -> f64 {
            let each = sums[part.clone()].iter().zip(&gamma[part.clone()]);
            each.map(|(&s, &g)| f64::from(s) * f64::from(g))
                .sum::<f64>()
                / count
        };
        let (with_hat, alone) = (mean(&sums[..channels]), mean(&sums[channels..]));
        for c in part.clone() {
            // All channels of a group have the same 1 / sqrt(var + eps): it is x̂'s scale.
            let (inverse, shift) = (f64::from(hat[0][c]), f64::from(hat[1][c]));
            out[c] = (inverse * f64::from(gamma[c])) as f32;
            out[channels + c] = (-inverse * inverse * with_hat) as f32;
            out[2 * channels + c] = (-inverse * (alone + shift * with_hat)) as f32;
        }
    }
    out
}

/// `dx` from `g`, in place.
#[inline(always)]
fn input<const FMA: bool>(x: &[f32], coefficients: &[f32], dx: &mut [f32]) {
    let channels = coefficients.len() / 3;
    let (of_g, rest) = coefficients.split_at(channels);
    let (of_x, constant) = rest.split_at(channels);
    for (x, dx) in x.chunks_exact(channels).zip(dx.chunks_exact_mut(channels)) {
        for c in 0..channels {
            let moved = math::multiply_add::<FMA>(x[c], of_x[c], constant[c]);
            dx[c] = math::multiply_add::<FMA>(dx[c], of_g[c], moved);
        }
    }
}

multiversion!(fn input_at(x: &[f32], coefficients: &[f32], dx: &mut [f32]) = input);
