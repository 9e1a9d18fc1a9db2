//! The training schedule, and the times and noise levels of a painting.

use super::{SchedulerConfig, SchedulerKind};
use crate::error::{Error, Result};

/// `∏ (1 − β)` for every time of training.
pub(super) fn cumulative_alphas(config: &SchedulerConfig, kind: SchedulerKind) -> Result<Vec<f64>> {
    let steps = config.train_steps()?;
    let consistency = kind == SchedulerKind::Lcm;
    let (start, end, schedule) = match consistency {
        true => (0.00085, 0.012, "scaled_linear"),
        false => (0.0001, 0.02, "linear"),
    };
    let (start, end) = (
        config.beta_start.unwrap_or(start),
        config.beta_end.unwrap_or(end),
    );
    let schedule = config.beta_schedule.as_deref().unwrap_or(schedule);
    let line = |from: f64, to: f64| {
        (0..steps).map(move |i| from + (to - from) * i as f64 / (steps - 1) as f64)
    };
    let betas: Vec<f64> = match (&config.trained_betas, schedule) {
        (Some(betas), _) => betas.clone(),
        (None, "linear") => line(start, end).collect(),
        (None, "scaled_linear") => line(start.sqrt(), end.sqrt())
            .map(|root| root * root)
            .collect(),
        (None, "squaredcos_cap_v2") => cosine(steps),
        (None, other) => {
            return Err(Error::config(
                "scheduler",
                format!(
                    "beta_schedule {other:?} is not supported, expected \"linear\", \"scaled_linear\" or \"squaredcos_cap_v2\""
                ),
            ));
        }
    };
    if betas.len() < 2 || betas.iter().any(|b| !(0.0..1.0).contains(b)) {
        return Err(Error::config(
            "scheduler",
            "variances must lie between 0 and 1",
        ));
    }
    // The reference keeps variances in f32.
    let single = |v: f64| f64::from(v as f32);
    let mut product = 1.0;
    let mut alphas: Vec<f64> = betas
        .iter()
        .map(|&beta| {
            product *= single(1.0 - single(beta));
            product
        })
        .collect();
    if config.rescale_betas_zero_snr == Some(true) {
        let (first, last) = (alphas[0].sqrt(), alphas[alphas.len() - 1].sqrt());
        for alpha in &mut alphas {
            *alpha = ((alpha.sqrt() - last) * first / (first - last)).powi(2);
        }
        if matches!(
            kind,
            SchedulerKind::Euler | SchedulerKind::EulerAncestral | SchedulerKind::DpmPlusPlus2M
        ) {
            // Nearly zero, so that the first noise level is finite (diffusers' value).
            let count = alphas.len();
            alphas[count - 1] = 2f64.powi(-24);
        }
    }
    Ok(alphas)
}

/// Nichol and Dhariwal's schedule.
fn cosine(steps: usize) -> Vec<f64> {
    let bar = |t: f64| {
        ((t + 0.008) / 1.008 * std::f64::consts::FRAC_PI_2)
            .cos()
            .powi(2)
    };
    (0..steps)
        .map(|i| {
            let (from, to) = (i as f64 / steps as f64, (i + 1) as f64 / steps as f64);
            (1.0 - bar(to) / bar(from)).min(0.999)
        })
        .collect()
}

/// Rounds as numpy does, halves to even.
fn round(value: f64) -> f64 {
    value.round_ties_even()
}

/// Times of a painting, latest first, as the class spaces them.
pub(super) fn timesteps(
    config: &SchedulerConfig,
    kind: SchedulerKind,
    steps: usize,
) -> Result<Vec<f64>> {
    let train = config.train_steps()?;
    if steps == 0 || steps > train {
        return Err(Error::Input(format!(
            "{steps} steps: expected 1 to {train}"
        )));
    }
    if kind == SchedulerKind::Lcm {
        return consistency_timesteps(config, train, steps);
    }
    let default = match kind {
        SchedulerKind::Ddim => "leading",
        _ => "linspace",
    };
    let offset = config.steps_offset.unwrap_or(0) as f64;
    // DPM-Solver counts one more time and leaves the last one out.
    let extra = usize::from(kind == SchedulerKind::DpmPlusPlus2M);
    let whole = !matches!(kind, SchedulerKind::Euler | SchedulerKind::EulerAncestral);
    let times: Vec<f64> = match config.timestep_spacing.as_deref().unwrap_or(default) {
        "linspace" => {
            let intervals = (steps + extra - 1).max(1) as f64;
            (0..steps + extra)
                .rev()
                .take(steps)
                .map(|i| (train - 1) as f64 * i as f64 / intervals)
                .map(|t| if whole { round(t) } else { f64::from(t as f32) })
                .collect()
        }
        "leading" => {
            let ratio = train / (steps + extra);
            (extra..steps + extra)
                .rev()
                .map(|i| (i * ratio) as f64 + offset)
                .collect()
        }
        "trailing" => {
            let ratio = train as f64 / steps as f64;
            (0..steps)
                .map(|i| round(train as f64 - i as f64 * ratio) - 1.0)
                .collect()
        }
        other => {
            return Err(Error::config(
                "scheduler",
                format!(
                    "timestep_spacing {other:?} is not supported, expected \"leading\", \"trailing\" or \"linspace\""
                ),
            ));
        }
    };
    match times.iter().all(|t| (0.0..train as f64).contains(t)) {
        true => Ok(times),
        false => Err(Error::config(
            "scheduler",
            format!("steps_offset {offset} leads out of the training schedule"),
        )),
    }
}

/// Times out of the schedule that a consistency model was distilled with.
fn consistency_timesteps(config: &SchedulerConfig, train: usize, steps: usize) -> Result<Vec<f64>> {
    let original = config.original_inference_steps.unwrap_or(50);
    if original == 0 || original > train {
        return Err(Error::config(
            "scheduler",
            format!("original_inference_steps {original}: expected 1 to {train}"),
        ));
    }
    if steps > original {
        return Err(Error::Input(format!(
            "{steps} steps: a consistency model takes at most {original}"
        )));
    }
    let ratio = train / original;
    let schedule: Vec<f64> = (1..=original)
        .rev()
        .map(|i| (i * ratio - 1) as f64)
        .collect();
    let stride = original as f64 / steps as f64;
    Ok((0..steps)
        .map(|i| schedule[(i as f64 * stride).floor() as usize])
        .collect())
}

/// Noise levels `σ = √((1 − ᾱ) / ᾱ)` of every time of training, rising.
pub(super) fn training_sigmas(alphas: &[f64]) -> Vec<f64> {
    alphas.iter().map(|&a| ((1.0 - a) / a).sqrt()).collect()
}

/// The level at a time between whole ones.
pub(super) fn interpolate(sigmas: &[f64], time: f64) -> f64 {
    let low = (time.floor() as usize).min(sigmas.len() - 1);
    let high = (low + 1).min(sigmas.len() - 1);
    sigmas[low] + (sigmas[high] - sigmas[low]) * (time - low as f64)
}

/// Levels after Karras et al. (arXiv 2206.00364, eq. 5, ρ = 7), falling.
pub(super) fn karras(minimum: f64, maximum: f64, steps: usize) -> Vec<f64> {
    const RHO: f64 = 7.0;
    let (low, high) = (minimum.powf(1.0 / RHO), maximum.powf(1.0 / RHO));
    (0..steps)
        .map(|i| {
            let ramp = i as f64 / (steps - 1).max(1) as f64;
            (high + ramp * (low - high)).powf(RHO)
        })
        .collect()
}

/// The time of a level, interpolated in its logarithm.
pub(super) fn time_of(sigma: f64, sigmas: &[f64]) -> f64 {
    let log = sigma.max(1e-10).ln();
    let count = sigmas.partition_point(|&s| s.ln() <= log);
    let low = count.saturating_sub(1).min(sigmas.len() - 2);
    let (from, to) = (sigmas[low].ln(), sigmas[low + 1].ln());
    let weight = ((from - log) / (from - to)).clamp(0.0, 1.0);
    (1.0 - weight) * low as f64 + weight * (low + 1) as f64
}
