//! `scheduler/scheduler_config.json`. What a file leaves out has the default of the scheduler's own class, as in diffusers.

use serde::Deserialize;

use super::SchedulerKind;
use crate::error::{Error, Result};

/// Settings of a scheduler; `None` is the class's default.
#[derive(Clone, Debug, Default, Deserialize)]
#[serde(default)]
pub struct SchedulerConfig {
    /// Class in diffusers.
    #[serde(rename = "_class_name")]
    pub class_name: Option<String>,
    /// Steps of the training schedule.
    pub num_train_timesteps: Option<usize>,
    /// First variance.
    pub beta_start: Option<f64>,
    /// Last variance.
    pub beta_end: Option<f64>,
    /// `linear`, `scaled_linear` or `squaredcos_cap_v2`.
    pub beta_schedule: Option<String>,
    /// The variances themselves.
    pub trained_betas: Option<Vec<f64>>,
    /// `epsilon`, `v_prediction` or `sample`.
    pub prediction_type: Option<String>,
    /// `leading`, `trailing` or `linspace`.
    pub timestep_spacing: Option<String>,
    /// Added to leading times.
    pub steps_offset: Option<i64>,
    /// Whether the last variance is brought to a signal of zero.
    pub rescale_betas_zero_snr: Option<bool>,
    /// Noise levels after Karras et al.
    pub use_karras_sigmas: Option<bool>,
    /// `zero` or `sigma_min`.
    pub final_sigmas_type: Option<String>,
    /// Whether the state before the first step counts as free of noise.
    pub set_alpha_to_one: Option<bool>,
    /// Whether predicted pictures are clipped.
    pub clip_sample: Option<bool>,
    /// To what.
    pub clip_sample_range: Option<f64>,
    /// Order of DPM-Solver++.
    pub solver_order: Option<usize>,
    /// `midpoint` or `heun`.
    pub solver_type: Option<String>,
    /// Whether few steps end with one of first order.
    pub lower_order_final: Option<bool>,
    /// Whether the last step is always of first order.
    pub euler_at_final: Option<bool>,
    /// Steps of the schedule that a consistency model was distilled with.
    pub original_inference_steps: Option<usize>,
    /// Scale of the time in a consistency model's boundary condition.
    pub timestep_scaling: Option<f64>,
    algorithm_type: Option<String>,
    interpolation_type: Option<String>,
    timestep_type: Option<String>,
    sigma_min: Option<f64>,
    sigma_max: Option<f64>,
    thresholding: Option<bool>,
    use_exponential_sigmas: Option<bool>,
    use_beta_sigmas: Option<bool>,
    use_lu_lambdas: Option<bool>,
    use_flow_sigmas: Option<bool>,
}

impl SchedulerConfig {
    /// What Stable Diffusion XL base 1.0 brings, for checkpoints without a configuration.
    pub fn sdxl() -> Self {
        Self {
            class_name: Some("EulerDiscreteScheduler".into()),
            beta_start: Some(0.00085),
            beta_end: Some(0.012),
            beta_schedule: Some("scaled_linear".into()),
            timestep_spacing: Some("leading".into()),
            steps_offset: Some(1),
            ..Self::default()
        }
    }

    /// The scheduler that the file names.
    ///
    /// # Errors
    /// When it names one that is not known.
    pub fn kind(&self) -> Result<SchedulerKind> {
        let name = self
            .class_name
            .as_deref()
            .unwrap_or("EulerDiscreteScheduler");
        SchedulerKind::from_class(name).ok_or_else(|| {
            Error::config(
                "scheduler_config.json",
                format!(
                    "{name} is not supported; name another one (--scheduler): {}",
                    SchedulerKind::ALL.map(SchedulerKind::name).join(", ")
                ),
            )
        })
    }

    /// Steps of the training schedule.
    pub(super) fn train_steps(&self) -> Result<usize> {
        match self.num_train_timesteps.unwrap_or(1000) {
            steps @ 2..=1_000_000 => Ok(steps),
            other => Err(Error::config(
                "scheduler",
                format!("num_train_timesteps {other}: expected 2 to 1000000"),
            )),
        }
    }

    /// Refuses settings of `kind` that are not supported.
    pub(super) fn check(&self, kind: SchedulerKind) -> Result<()> {
        let refuse = |message: String| Err(Error::config("scheduler", message));
        let other = |value: &Option<String>, expected: &str| {
            value
                .as_deref()
                .filter(|v| *v != expected)
                .map(str::to_string)
        };
        let dpm = kind == SchedulerKind::DpmPlusPlus2M;
        if let Some(found) = other(&self.algorithm_type, "dpmsolver++").filter(|_| dpm) {
            return refuse(format!(
                "algorithm_type {found:?} is not supported, expected \"dpmsolver++\""
            ));
        }
        if dpm && !(1..=2).contains(&self.solver_order.unwrap_or(2)) {
            return refuse(format!(
                "solver_order {:?} is not supported, expected 1 or 2",
                self.solver_order
            ));
        }
        if kind == SchedulerKind::Euler {
            if let Some(found) = other(&self.interpolation_type, "linear") {
                return refuse(format!(
                    "interpolation_type {found:?} is not supported, expected \"linear\""
                ));
            }
            if let Some(found) = other(&self.timestep_type, "discrete") {
                return refuse(format!(
                    "timestep_type {found:?} is not supported, expected \"discrete\""
                ));
            }
        }
        let flags = [
            ("thresholding", self.thresholding),
            ("use_exponential_sigmas", self.use_exponential_sigmas),
            ("use_beta_sigmas", self.use_beta_sigmas),
            ("use_lu_lambdas", self.use_lu_lambdas),
            ("use_flow_sigmas", self.use_flow_sigmas),
        ];
        if let Some((name, _)) = flags.iter().find(|(_, flag)| *flag == Some(true)) {
            return refuse(format!("{name} is not supported"));
        }
        Ok(())
    }

    /// Bounds of Karras's noise levels, where a file gives them.
    pub(super) fn sigma_bounds(&self) -> (Option<f64>, Option<f64>) {
        (self.sigma_min, self.sigma_max)
    }
}
