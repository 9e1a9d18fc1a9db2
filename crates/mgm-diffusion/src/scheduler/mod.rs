//! Schedulers: at which times the UNet is asked, and what is made of its answers.
//!
//! Spacing, defaults and arithmetic are those of the diffusers classes. A scheduler works on plain slices and knows no tensors.

mod config;
mod noise_levels;

pub use config::SchedulerConfig;

use self::noise_levels::{
    cumulative_alphas, interpolate, karras, time_of, timesteps, training_sigmas,
};
use crate::error::{Error, Result};

/// The schedulers that are known.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum SchedulerKind {
    /// Euler's method (arXiv 2206.00364), what SDXL brings.
    Euler,
    /// Euler's method with fresh noise in every step; what SDXL Turbo brings.
    EulerAncestral,
    /// DDIM (arXiv 2010.02502) without noise.
    Ddim,
    /// DPM-Solver++ (arXiv 2211.01095), multistep, second order.
    DpmPlusPlus2M,
    /// Latent consistency models (arXiv 2310.04378).
    Lcm,
}

impl SchedulerKind {
    /// All of them.
    pub const ALL: [Self; 5] = [
        Self::Euler,
        Self::EulerAncestral,
        Self::Ddim,
        Self::DpmPlusPlus2M,
        Self::Lcm,
    ];

    /// Name on the command line.
    pub fn name(self) -> &'static str {
        match self {
            Self::Euler => "euler",
            Self::EulerAncestral => "euler-ancestral",
            Self::Ddim => "ddim",
            Self::DpmPlusPlus2M => "dpm++2m-karras",
            Self::Lcm => "lcm",
        }
    }

    /// The scheduler of a command-line name.
    pub fn from_name(name: &str) -> Option<Self> {
        Self::ALL.into_iter().find(|kind| kind.name() == name)
    }

    /// The scheduler of a diffusers class.
    pub fn from_class(name: &str) -> Option<Self> {
        Some(match name {
            "EulerDiscreteScheduler" => Self::Euler,
            "EulerAncestralDiscreteScheduler" => Self::EulerAncestral,
            "DDIMScheduler" => Self::Ddim,
            "DPMSolverMultistepScheduler" => Self::DpmPlusPlus2M,
            "LCMScheduler" => Self::Lcm,
            _ => return None,
        })
    }
}

/// What the UNet's output stands for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Prediction {
    Noise,
    Velocity,
    Sample,
}

/// One painting's schedule and its state.
#[derive(Clone, Debug)]
pub struct Scheduler {
    kind: SchedulerKind,
    prediction: Prediction,
    times: Vec<f64>,
    /// Falling, one more than times (Euler and DPM).
    sigmas: Vec<f64>,
    alphas: Vec<f64>,
    final_alpha: f64,
    initial_noise: f64,
    clip: Option<f32>,
    time_scaling: f64,
    solver_order: usize,
    heun: bool,
    first_order_end: bool,
    train_steps: usize,
    step: usize,
    /// The picture predicted in the step before (DPM).
    previous: Option<Vec<f32>>,
}

impl Scheduler {
    /// The schedule of `kind` for a painting in `steps` steps; `config` may be that of another class, whose settings are taken over.
    ///
    /// # Errors
    /// When the configuration is not supported or there are no such steps.
    pub fn new(kind: SchedulerKind, config: &SchedulerConfig, steps: usize) -> Result<Self> {
        config.check(kind)?;
        let prediction = match config.prediction_type.as_deref().unwrap_or("epsilon") {
            "epsilon" => Prediction::Noise,
            "v_prediction" => Prediction::Velocity,
            "sample" if kind != SchedulerKind::EulerAncestral => Prediction::Sample,
            other => {
                return Err(Error::config(
                    "scheduler",
                    format!(
                        "prediction_type {other:?} is not supported by {}",
                        kind.name()
                    ),
                ));
            }
        };
        let alphas = cumulative_alphas(config, kind)?;
        let mut times = timesteps(config, kind, steps)?;
        if times.iter().any(|&t| t >= alphas.len() as f64) {
            return Err(Error::config(
                "scheduler",
                format!("{} variances for more training steps", alphas.len()),
            ));
        }
        let mut sigmas = Vec::new();
        let dpm = kind == SchedulerKind::DpmPlusPlus2M;
        if dpm || matches!(kind, SchedulerKind::Euler | SchedulerKind::EulerAncestral) {
            let training = training_sigmas(&alphas);
            sigmas = times.iter().map(|&t| interpolate(&training, t)).collect();
            if config.use_karras_sigmas == Some(true) && kind != SchedulerKind::EulerAncestral {
                // DPM-Solver spans all levels of training, Euler those of its own times.
                let (last, first) = match dpm {
                    true => (training[0], training[training.len() - 1]),
                    false => (sigmas[sigmas.len() - 1], sigmas[0]),
                };
                let (minimum, maximum) = match dpm {
                    true => (None, None),
                    false => config.sigma_bounds(),
                };
                sigmas = karras(minimum.unwrap_or(last), maximum.unwrap_or(first), steps);
                times = sigmas
                    .iter()
                    .map(|&sigma| time_of(sigma, &training))
                    .collect();
                if dpm {
                    let cosine = config.beta_schedule.as_deref() == Some("squaredcos_cap_v2");
                    let whole = |t: &f64| {
                        if cosine {
                            t.trunc()
                        } else {
                            t.round_ties_even()
                        }
                    };
                    times = times.iter().map(whole).collect();
                }
            }
            sigmas.push(match config.final_sigmas_type.as_deref() {
                Some("sigma_min") if kind != SchedulerKind::EulerAncestral => training[0],
                _ => 0.0,
            });
            sigmas
                .iter_mut()
                .for_each(|sigma| *sigma = f64::from(*sigma as f32));
        }
        let leading = config.timestep_spacing.as_deref() == Some("leading");
        let largest = sigmas.first().copied().unwrap_or(0.0);
        let initial_noise = match kind {
            SchedulerKind::Euler | SchedulerKind::EulerAncestral if leading => {
                (largest * largest + 1.0).sqrt()
            }
            SchedulerKind::Euler | SchedulerKind::EulerAncestral => largest,
            _ => 1.0,
        };
        let clips = match kind {
            SchedulerKind::Ddim => config.clip_sample.unwrap_or(true),
            SchedulerKind::Lcm => config.clip_sample.unwrap_or(false),
            _ => false,
        };
        Ok(Self {
            kind,
            prediction,
            sigmas,
            final_alpha: match config.set_alpha_to_one.unwrap_or(true) {
                true => 1.0,
                false => alphas[0],
            },
            train_steps: config.train_steps()?,
            alphas,
            initial_noise,
            clip: clips.then(|| config.clip_sample_range.unwrap_or(1.0) as f32),
            time_scaling: config.timestep_scaling.unwrap_or(10.0),
            solver_order: config.solver_order.unwrap_or(2),
            heun: config.solver_type.as_deref() == Some("heun"),
            first_order_end: config.euler_at_final.unwrap_or(false)
                || (config.lower_order_final.unwrap_or(true) && times.len() < 15)
                || config.final_sigmas_type.as_deref().unwrap_or("zero") == "zero",
            times,
            step: 0,
            previous: None,
        })
    }

    /// `∏ (1 − β)` for every time of training: the share of the picture in the variance of a noisy latent.
    pub fn cumulative_alphas(&self) -> &[f64] {
        &self.alphas
    }

    /// Times at which the UNet is asked, latest first.
    pub fn timesteps(&self) -> &[f64] {
        &self.times
    }

    /// Standard deviation of the noise a painting starts from.
    pub fn initial_noise(&self) -> f64 {
        self.initial_noise
    }

    /// Index of the next step.
    pub fn position(&self) -> usize {
        self.step
    }

    /// Factor on the latents before the UNet sees them in the next step.
    pub fn input_scale(&self) -> f64 {
        match self.kind {
            SchedulerKind::Euler | SchedulerKind::EulerAncestral => {
                match self.sigmas.get(self.step) {
                    Some(sigma) => 1.0 / (sigma * sigma + 1.0).sqrt(),
                    None => 1.0,
                }
            }
            _ => 1.0,
        }
    }

    /// Whether the next step takes fresh noise.
    pub fn needs_noise(&self) -> bool {
        match self.kind {
            SchedulerKind::EulerAncestral => true,
            SchedulerKind::Lcm => self.step + 1 < self.times.len(),
            _ => false,
        }
    }

    /// Takes the UNet's output and brings `sample` to the next time. Returns the picture that the output predicts, for previews.
    ///
    /// # Errors
    /// When all steps are done, lengths differ, or noise is missing.
    pub fn step(
        &mut self,
        output: &[f32],
        sample: &mut [f32],
        noise: Option<&[f32]>,
    ) -> Result<Vec<f32>> {
        if self.step >= self.times.len() {
            return Err(Error::Input("scheduler: all steps are done".into()));
        }
        if output.len() != sample.len() || noise.is_some_and(|noise| noise.len() != sample.len()) {
            return Err(Error::Input(
                "scheduler: output, sample and noise differ in length".into(),
            ));
        }
        let noise = match (self.needs_noise(), noise) {
            (true, None) => return Err(Error::Input("scheduler: this step needs noise".into())),
            (true, noise) => noise,
            (false, _) => None,
        };
        let predicted = match self.kind {
            SchedulerKind::Euler => self.euler(output, sample, None),
            SchedulerKind::EulerAncestral => self.euler(output, sample, noise),
            SchedulerKind::Ddim => self.ddim(output, sample),
            SchedulerKind::DpmPlusPlus2M => self.dpm(output, sample),
            SchedulerKind::Lcm => self.consistency(output, sample, noise),
        };
        self.step += 1;
        Ok(predicted)
    }

    /// `a·sample + b·output` that predicts the picture, for `sample = alpha·picture + sigma·noise`.
    fn picture_factors(&self, alpha: f64, sigma: f64) -> (f64, f64) {
        match self.prediction {
            Prediction::Noise => (1.0 / alpha, -sigma / alpha),
            Prediction::Velocity => (alpha, -sigma),
            Prediction::Sample => (0.0, 1.0),
        }
    }

    fn euler(&self, output: &[f32], sample: &mut [f32], noise: Option<&[f32]>) -> Vec<f32> {
        let (sigma, next) = (self.sigmas[self.step], self.sigmas[self.step + 1]);
        // Latents are picture + sigma·noise; the network's own scaling has sample / √(σ² + 1).
        let square = sigma * sigma + 1.0;
        let (of_sample, of_output) = match self.prediction {
            Prediction::Noise => (1.0, -sigma),
            Prediction::Velocity => (1.0 / square, -sigma / square.sqrt()),
            Prediction::Sample => (0.0, 1.0),
        };
        let predicted = combine(of_sample, sample, of_output, output);
        let (target, fresh) = match noise {
            None => (next, 0.0),
            Some(_) => {
                let fresh = (next * next * (sigma * sigma - next * next) / (sigma * sigma)).sqrt();
                ((next * next - fresh * fresh).max(0.0).sqrt(), fresh)
            }
        };
        let step = ((target - sigma) / sigma) as f32;
        for (value, &predicted) in sample.iter_mut().zip(&predicted) {
            *value += (*value - predicted) * step;
        }
        if let Some(noise) = noise {
            add_scaled(sample, fresh as f32, noise);
        }
        predicted
    }

    fn ddim(&self, output: &[f32], sample: &mut [f32]) -> Vec<f32> {
        let time = self.times[self.step] as usize;
        let alpha = self.alphas[time];
        let before = match time.checked_sub(self.train_steps / self.times.len()) {
            Some(before) => self.alphas[before],
            None => self.final_alpha,
        };
        let (root, sigma) = (alpha.sqrt(), (1.0 - alpha).sqrt());
        let (of_sample, of_output) = self.picture_factors(root, sigma);
        let mut predicted = combine(of_sample, sample, of_output, output);
        let noise = match self.prediction {
            Prediction::Noise => output.to_vec(),
            Prediction::Velocity => combine(sigma, sample, root, output),
            Prediction::Sample => combine(1.0 / sigma, sample, -root / sigma, output),
        };
        self.clip(&mut predicted);
        let next = combine(before.sqrt(), &predicted, (1.0 - before).sqrt(), &noise);
        sample.copy_from_slice(&next);
        predicted
    }

    fn dpm(&mut self, output: &[f32], sample: &mut [f32]) -> Vec<f32> {
        // (alpha, sigma, half the logarithm of the signal-to-noise ratio) of a level.
        let point = |sigma: f64| {
            let alpha = 1.0 / (sigma * sigma + 1.0).sqrt();
            let sigma = sigma * alpha;
            (alpha, sigma, alpha.ln() - sigma.ln())
        };
        let (alpha, sigma, lambda) = point(self.sigmas[self.step]);
        let (next_alpha, next_sigma, next_lambda) = point(self.sigmas[self.step + 1]);
        let (of_sample, of_output) = self.picture_factors(alpha, sigma);
        let predicted = combine(of_sample, sample, of_output, output);
        let width = next_lambda - lambda;
        let decay = (-width).exp() - 1.0;
        let last = self.step + 1 == self.times.len();
        let mut next = combine(next_sigma / sigma, sample, -next_alpha * decay, &predicted);
        if let Some(previous) = &self.previous
            && self.solver_order == 2
            && !(last && self.first_order_end)
        {
            let (.., previous_lambda) = point(self.sigmas[self.step - 1]);
            let ratio = (lambda - previous_lambda) / width;
            let factor = match self.heun {
                false => -0.5 * next_alpha * decay,
                true => next_alpha * (decay / width + 1.0),
            } / ratio;
            add_scaled(&mut next, factor as f32, &predicted);
            add_scaled(&mut next, -factor as f32, previous);
        }
        sample.copy_from_slice(&next);
        self.previous = Some(predicted.clone());
        predicted
    }

    fn consistency(&self, output: &[f32], sample: &mut [f32], noise: Option<&[f32]>) -> Vec<f32> {
        /// Standard deviation of the data that consistency distillation assumes.
        const SIGMA_DATA: f64 = 0.5;
        let time = self.times[self.step];
        let alpha = self.alphas[time as usize];
        let (of_sample, of_output) = self.picture_factors(alpha.sqrt(), (1.0 - alpha).sqrt());
        let mut predicted = combine(of_sample, sample, of_output, output);
        self.clip(&mut predicted);
        let scaled = time * self.time_scaling;
        let square = scaled * scaled + SIGMA_DATA * SIGMA_DATA;
        let denoised = combine(
            scaled / square.sqrt(),
            &predicted,
            SIGMA_DATA * SIGMA_DATA / square,
            sample,
        );
        match (self.times.get(self.step + 1), noise) {
            (Some(&next), Some(noise)) => {
                let alpha = self.alphas[next as usize];
                let mixed = combine(alpha.sqrt(), &denoised, (1.0 - alpha).sqrt(), noise);
                sample.copy_from_slice(&mixed);
            }
            _ => sample.copy_from_slice(&denoised),
        }
        denoised
    }

    fn clip(&self, values: &mut [f32]) {
        if let Some(range) = self.clip {
            values.iter_mut().for_each(|v| *v = v.clamp(-range, range));
        }
    }
}

/// `a·x + b·y`.
fn combine(a: f64, x: &[f32], b: f64, y: &[f32]) -> Vec<f32> {
    let (a, b) = (a as f32, b as f32);
    x.iter().zip(y).map(|(&x, &y)| a * x + b * y).collect()
}

fn add_scaled(values: &mut [f32], factor: f32, other: &[f32]) {
    values
        .iter_mut()
        .zip(other)
        .for_each(|(v, &o)| *v += factor * o);
}
