//! Group normalisation over channels-last maps: statistics in one pass, and the affine map they amount to.
//!
//! `GroupNorm(x) = (x - mean) / sqrt(var + eps) · gamma + beta` with mean and variance over all positions and the channels of a group. Given
//! the statistics it is `x · scale + shift` with one scale and shift for each channel, which a convolution can apply while it reads its
//! input ([`crate::conv`]), so that the normalised map need not exist.

use rayon::prelude::*;

use crate::gemm::Activation;
use crate::level::{self, Level, level};
use crate::math::{self, multiversion};

/// `x · scale + shift` for each channel of each picture of a batch.
#[derive(Clone, Debug)]
pub struct ChannelAffine {
    /// `[batch, channels]`.
    pub scale: Vec<f32>,
    /// `[batch, channels]`.
    pub shift: Vec<f32>,
}

/// Values of one piece of the statistics; it stays in the second-level cache between its two passes.
const CHUNK_VALUES: usize = 1 << 15;

/// Sums of each channel over the rows of a chunk.
#[inline(always)]
fn channel_sums<const FMA: bool>(x: &[f32], sums: &mut [f32]) {
    sums.fill(0.0);
    for row in x.chunks_exact(sums.len()) {
        for (sum, &v) in sums.iter_mut().zip(row) {
            *sum += v;
        }
    }
}

multiversion!(fn channel_sums_at(x: &[f32], sums: &mut [f32]) = channel_sums);

/// Sums of squared differences from `means` of each channel over the rows of a chunk.
#[inline(always)]
fn channel_squares<const FMA: bool>(x: &[f32], means: &[f32], sums: &mut [f32]) {
    sums.fill(0.0);
    for row in x.chunks_exact(sums.len()) {
        for ((sum, &v), &mean) in sums.iter_mut().zip(row).zip(means) {
            let difference = v - mean;
            *sum = math::multiply_add::<FMA>(difference, difference, *sum);
        }
    }
}

multiversion!(fn channel_squares_at(x: &[f32], means: &[f32], sums: &mut [f32]) = channel_squares);

/// Count, mean and sum of squared differences of a group.
#[derive(Clone, Copy, Default)]
struct Moments {
    count: f64,
    mean: f64,
    squares: f64,
}

impl Moments {
    /// The moments of both together (Chan, Golub and LeVeque).
    fn merged(self, other: Self) -> Self {
        let count = self.count + other.count;
        if count == 0.0 {
            return self;
        }
        let difference = other.mean - self.mean;
        Self {
            count,
            mean: self.mean + difference * other.count / count,
            squares: self.squares
                + other.squares
                + difference * difference * self.count * other.count / count,
        }
    }
}

/// The moments of every group of some positions.
fn chunk_moments(level: Level, channels: usize, groups: usize, x: &[f32]) -> Vec<Moments> {
    let (rows, width) = (x.len() / channels, channels / groups);
    let mut sums = vec![0.0f32; channels];
    channel_sums_at(level, x, &mut sums);
    let count = (rows * width) as f64;
    let mut means = vec![0.0f32; channels];
    for (sums, means) in sums.chunks_exact(width).zip(means.chunks_exact_mut(width)) {
        let sum: f64 = sums.iter().map(|&v| f64::from(v)).sum();
        means.fill((sum / count) as f32);
    }
    let mut squares = vec![0.0f32; channels];
    channel_squares_at(level, x, &means, &mut squares);
    (0..groups)
        .map(|group| {
            let part = group * width..(group + 1) * width;
            let sum: f64 = sums[part.clone()].iter().map(|&v| f64::from(v)).sum();
            // The sums are about the rounded mean; the exact one differs from it by `offset`.
            let offset = sum / count - f64::from(means[group * width]);
            let around: f64 = squares[part].iter().map(|&v| f64::from(v)).sum();
            Moments {
                count,
                mean: sum / count,
                squares: (around - count * offset * offset).max(0.0),
            }
        })
        .collect()
}

/// Scale and shift that group normalisation of `x [batch, positions, channels]` amounts to.
///
/// # Panics
/// When `groups` does not divide `channels` or a slice has the wrong length.
pub fn group_norm_affine(
    batch: usize,
    channels: usize,
    groups: usize,
    x: &[f32],
    gamma: &[f32],
    beta: &[f32],
    eps: f32,
) -> ChannelAffine {
    group_norm_affine_at(level(), batch, channels, groups, x, gamma, beta, eps)
}

/// [`group_norm_affine`] at a forced level.
pub fn group_norm_affine_at(
    level: Level,
    batch: usize,
    channels: usize,
    groups: usize,
    x: &[f32],
    gamma: &[f32],
    beta: &[f32],
    eps: f32,
) -> ChannelAffine {
    let level = level::clamp(level);
    assert!(
        groups > 0 && channels > 0 && channels.is_multiple_of(groups),
        "group_norm: {groups} groups do not divide {channels} channels"
    );
    assert!(
        batch > 0 && x.len().is_multiple_of(batch * channels),
        "group_norm: x must be [{batch}, .., {channels}]"
    );
    assert_eq!(gamma.len(), channels, "group_norm: gamma length");
    assert_eq!(beta.len(), channels, "group_norm: beta length");
    let chunk = (CHUNK_VALUES / channels).max(1) * channels;
    let width = channels / groups;
    let mut affine = ChannelAffine {
        scale: Vec::with_capacity(batch * channels),
        shift: Vec::with_capacity(batch * channels),
    };
    let picture = x.len() / batch;
    for x in x.chunks_exact(picture.max(1)).take(batch) {
        // Collected in order and merged serially: the result does not depend on the number of threads.
        let parts: Vec<Vec<Moments>> = x
            .par_chunks(chunk)
            .map(|x| chunk_moments(level, channels, groups, x))
            .collect();
        for group in 0..groups {
            let moments = parts
                .iter()
                .fold(Moments::default(), |total, part| total.merged(part[group]));
            let variance = moments.squares / moments.count.max(1.0);
            let inverse = 1.0 / (variance + f64::from(eps)).sqrt();
            for channel in group * width..(group + 1) * width {
                let scale = inverse * f64::from(gamma[channel]);
                affine.scale.push(scale as f32);
                affine
                    .shift
                    .push((f64::from(beta[channel]) - moments.mean * scale) as f32);
            }
        }
    }
    affine
}

#[inline(always)]
fn affine_row<const FMA: bool>(
    x: &[f32],
    scale: &[f32],
    shift: &[f32],
    silu: bool,
    out: &mut [f32],
) {
    let each = out.iter_mut().zip(x).zip(scale.iter().zip(shift));
    if silu {
        for ((o, &x), (&scale, &shift)) in each {
            let value = math::multiply_add::<FMA>(x, scale, shift);
            *o = crate::elementwise::silu_value::<FMA>(value);
        }
    } else {
        for ((o, &x), (&scale, &shift)) in each {
            *o = math::multiply_add::<FMA>(x, scale, shift);
        }
    }
}

multiversion!(fn affine_row_at(x: &[f32], scale: &[f32], shift: &[f32], silu: bool, out: &mut [f32]) = affine_row);

/// `out = activation(x · scale + shift)` over rows of `scale.len()` channels, serially.
pub(crate) fn affine_rows(
    level: Level,
    x: &[f32],
    scale: &[f32],
    shift: &[f32],
    activation: Activation,
    out: &mut [f32],
) {
    let channels = scale.len();
    let silu = activation == Activation::Silu;
    for (x, out) in x.chunks_exact(channels).zip(out.chunks_exact_mut(channels)) {
        affine_row_at(level, x, scale, shift, silu, out);
    }
    if !silu && activation != Activation::None {
        activation.apply(level, out);
    }
}

/// `out = activation(x · scale + shift)` for `x [batch, positions, channels]`, in parallel.
///
/// # Panics
/// When a slice has the wrong length.
pub fn channel_affine(
    batch: usize,
    channels: usize,
    x: &[f32],
    affine: &ChannelAffine,
    activation: Activation,
    out: &mut [f32],
) {
    channel_affine_at(level(), batch, channels, x, affine, activation, out);
}

/// [`channel_affine`] at a forced level.
pub fn channel_affine_at(
    level: Level,
    batch: usize,
    channels: usize,
    x: &[f32],
    affine: &ChannelAffine,
    activation: Activation,
    out: &mut [f32],
) {
    let level = level::clamp(level);
    assert!(
        batch > 0 && channels > 0 && x.len().is_multiple_of(batch * channels),
        "channel_affine: x must be [{batch}, .., {channels}]"
    );
    assert_eq!(x.len(), out.len(), "channel_affine: output length");
    assert_eq!(
        affine.scale.len(),
        batch * channels,
        "channel_affine: scale"
    );
    assert_eq!(
        affine.shift.len(),
        batch * channels,
        "channel_affine: shift"
    );
    let picture = (x.len() / batch).max(1);
    let chunk = (CHUNK_VALUES / channels).max(1) * channels;
    for (index, (x, out)) in x
        .chunks_exact(picture)
        .zip(out.chunks_exact_mut(picture))
        .enumerate()
    {
        let scale = &affine.scale[index * channels..][..channels];
        let shift = &affine.shift[index * channels..][..channels];
        x.par_chunks(chunk)
            .zip(out.par_chunks_mut(chunk))
            .for_each(|(x, out)| affine_rows(level, x, scale, shift, activation, out));
    }
}
