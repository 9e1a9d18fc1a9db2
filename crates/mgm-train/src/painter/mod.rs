//! Training of small models that paint, of Stable Diffusion XL's classes: first the autoencoder, then UNet and text encoders on its latents.

mod autoencoder;
mod denoiser;
mod export;
mod pictures;
mod recipe;
mod state;
mod workers;

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use candle_core::{Tensor, Var};
use mgm_diffusion::{FindOptions, ModelFiles, Noise, Part};
use mgm_nn::{WeightPolicy, WeightSource};
use rayon::prelude::*;

use self::autoencoder::Autoencoder;
use self::denoiser::Denoiser;
use self::pictures::{Order, Pictures};
pub use self::recipe::{AnyRecipe, PainterRecipe, PainterStage};
use self::state::State;
use self::workers::Workers;
use crate::error::TrainError;
use crate::gradients::{Gradients, with_values};
use crate::optimiser::{AdamW, AdamWSettings};
use crate::progress::{Outcome, Progress, ProgressSink, Status};
use crate::schedule::Schedule;
use crate::step_log::{StepLine, StepLog};
use crate::trainer::{RunningMean, smoothed};

/// Elements per parallel piece.
const PIECE: usize = 1 << 15;

/// A run of a painter's recipe: model, pictures, optimiser and position.
pub struct PainterTrainer {
    recipe: PainterRecipe,
    files: ModelFiles,
    pictures: Pictures,
    objective: Objective,
    parameters: BTreeMap<String, Var>,
    optimiser: AdamW,
    schedule: Schedule,
    state: State,
    workers: Workers,
    resumed: bool,
}

enum Objective {
    Autoencoder(Box<Autoencoder>),
    Denoiser(Box<Denoiser>),
}

/// A part's weights, all of which learn.
fn trainable(files: &ModelFiles, part: Part) -> Result<WeightSource, TrainError> {
    Ok(files.open(part)?.with_policy(WeightPolicy {
        // Every name contains the empty one.
        trainable: vec![String::new()],
        ..WeightPolicy::default()
    }))
}

/// The folder of a part in the diffusers layout, which is also what its parameters' names begin with.
fn folder(part: Part) -> &'static str {
    match part {
        Part::UNet => "unet",
        Part::Vae => "vae",
        Part::FirstEncoder => "text_encoder",
        Part::SecondEncoder => "text_encoder_2",
    }
}

impl PainterTrainer {
    /// Loads model and pictures for a recipe.
    ///
    /// # Errors
    /// [`TrainError`] when the recipe, the model or the data is wrong; the message names what.
    pub fn new(recipe: PainterRecipe) -> Result<Self, TrainError> {
        let pictures = Pictures::open(&recipe)?;
        let options = FindOptions {
            vae: recipe.vae.clone(),
            full_precision: true,
            ..FindOptions::default()
        };
        let files = ModelFiles::find(&recipe.model, &options)?;
        std::fs::create_dir_all(&recipe.output)
            .map_err(TrainError::io("create", &recipe.output))?;
        let mut parameters = BTreeMap::new();
        let mut add = |part: Part, found: &mgm_nn::Parameters| {
            for (name, variable) in found.all() {
                parameters.insert(format!("{}.{name}", folder(part)), variable);
            }
        };
        let objective = match recipe.stage {
            PainterStage::Autoencoder => {
                let autoencoder = Autoencoder::new(&recipe, &files, &pictures)?;
                add(Part::Vae, &autoencoder.parameters);
                Objective::Autoencoder(Box::new(autoencoder))
            }
            PainterStage::Denoiser => {
                let denoiser = Denoiser::new(&files, &pictures)?;
                for (part, found) in &denoiser.parameters {
                    add(*part, found);
                }
                Objective::Denoiser(Box::new(denoiser))
            }
        };
        let settings = AdamWSettings {
            weight_decay: recipe.weight_decay,
            ..AdamWSettings::default()
        };
        Ok(Self {
            optimiser: AdamW::new(settings, &parameters, &BTreeMap::new())?,
            schedule: Schedule::new(recipe.steps, recipe.warmup_ratio),
            state: State::new(&parameters)?,
            workers: Workers::new()?,
            recipe,
            files,
            pictures,
            objective,
            parameters,
            resumed: false,
        })
    }

    /// Continues from the checkpoint in the recipe's output folder, from the start if there is none.
    ///
    /// # Errors
    /// [`TrainError::Checkpoint`] when it is damaged or belongs to a run of another recipe.
    pub fn resume(mut self) -> Result<Self, TrainError> {
        let path = self.checkpoint();
        if path.exists() {
            self.state = State::read(&path, &self.recipe, &self.parameters, &mut self.optimiser)?;
            self.resumed = true;
        }
        Ok(self)
    }

    fn checkpoint(&self) -> PathBuf {
        self.recipe.output.join("checkpoint.safetensors")
    }

    /// One line that says what will happen: parameters, pictures, steps.
    pub fn describe(&self) -> String {
        let values: usize = self.parameters.values().map(|v| v.elem_count()).sum();
        format!(
            "{} trained tensors ({:.2} M values), {} pictures of {} pixels, {} steps of {}, from step {}",
            self.parameters.len(),
            values as f64 / 1e6,
            self.pictures.len(),
            self.pictures.side,
            self.recipe.steps,
            self.recipe.batch,
            self.state.step
        )
    }

    /// Trains to the end, or until `stop` is set (then the current step is finished and a checkpoint written). The result is a model's
    /// folder, or an autoencoder's.
    ///
    /// # Errors
    /// [`TrainError`]. A folder that already holds a checkpoint is refused unless the run was resumed.
    pub fn run(
        mut self,
        sink: &dyn ProgressSink,
        stop: &AtomicBool,
    ) -> Result<Outcome, TrainError> {
        let checkpoint = self.checkpoint();
        if !self.resumed && checkpoint.exists() {
            return Err(TrainError::Checkpoint {
                path: checkpoint,
                message:
                    "an earlier run left this checkpoint; resume it, or choose another `output`"
                        .to_owned(),
            });
        }
        let mut log = StepLog::open(&self.recipe.output.join("log.jsonl"), self.state.step)?;
        let mut gradients = Gradients::new(&self.parameters);
        let mut order = Order::new(self.recipe.seed, self.pictures.len());
        let (mut loss, mut rate, mut step_time) = (
            RunningMean::default(),
            RunningMean::default(),
            RunningMean::default(),
        );
        for &earlier in &self.state.losses {
            loss.add(f64::from(earlier));
        }
        let mut status = Status::Finished;
        while self.state.step < self.recipe.steps {
            if stop.load(Ordering::SeqCst) {
                status = Status::Interrupted;
                break;
            }
            let started = Instant::now();
            let (value, norm, learning_rate) = self.step(&mut gradients, &mut order)?;
            let seconds = started.elapsed().as_secs_f64();
            loss.add(f64::from(value));
            rate.add(self.recipe.batch as f64 / seconds.max(1e-9));
            step_time.add(seconds);
            let step = self.state.step;
            let epoch = step as f64 * self.recipe.batch as f64 / self.pictures.len().max(1) as f64;
            log.write(&StepLine {
                step,
                epoch,
                loss: value,
                gradient_norm: norm,
                learning_rate,
                tokens: self.recipe.batch,
                supervised: self.recipe.batch,
                seconds,
                waited: 0.0,
            })?;
            sink.step(&Progress {
                step,
                total: self.recipe.steps,
                epoch,
                loss: value,
                smoothed_loss: loss.value() as f32,
                gradient_norm: norm,
                per_second: rate.value(),
                unit: "pictures",
                learning_rate,
                time_left: Duration::from_secs_f64(
                    step_time.value() * (self.recipe.steps - step) as f64,
                ),
            });
            if step.is_multiple_of(self.recipe.save_every) && step < self.recipe.steps {
                self.save()?;
                sink.note(&format!("saved {}", checkpoint.display()));
            }
        }
        self.save()?;
        let result = self.export()?;
        Ok(Outcome {
            status,
            step: self.state.step,
            total: self.recipe.steps,
            smoothed_loss: smoothed(&self.state.losses),
            losses: self.state.losses,
            result,
            checkpoint,
        })
    }

    /// One optimiser step; its loss, gradient norm and learning rate.
    fn step(
        &mut self,
        gradients: &mut Gradients,
        order: &mut Order,
    ) -> Result<(f32, f32, f64), TrainError> {
        let step = self.state.step;
        let learning_rate = self.recipe.learning_rate * self.schedule.factor(step);
        let (count, side) = match &self.objective {
            Objective::Autoencoder(model) => model.batch(&self.recipe, self.pictures.side, step),
            Objective::Denoiser(_) => (self.recipe.batch, self.pictures.side),
        };
        let first = step * self.recipe.batch as u64;
        let records: Vec<usize> = (0..count as u64).map(|i| order.at(first + i)).collect();
        let parts: Vec<&[usize]> = records.chunks(count.div_ceil(self.recipe.parts)).collect();
        let results = self
            .workers
            .map(parts.len(), |part| -> Result<_, TrainError> {
                let loss = self.loss(parts[part], side, step, part as u64)?;
                Ok((loss.to_scalar::<f32>()?, loss.backward()?))
            });
        gradients.clear();
        let mut value = 0.0;
        for (part, result) in parts.iter().zip(results) {
            let (loss, store) = result?;
            let share = part.len() as f32 / count as f32;
            value += share * loss;
            gradients.add(&self.parameters, &store, share)?;
        }
        self.check("loss", value, learning_rate)?;
        let norm = gradients.norm();
        self.check("gradient norm", norm, learning_rate)?;
        gradients.clip(norm, self.recipe.max_grad_norm);
        self.optimiser
            .step(&self.parameters, gradients, learning_rate)?;
        self.state.step += 1;
        self.state.losses.push(value);
        // The mean of few steps would be little but the initial values.
        let done = self.state.step as f64;
        let share = self.recipe.ema.min((1.0 + done) / (10.0 + done)) as f32;
        for (name, variable) in &self.parameters {
            let Some(mean) = self.state.mean.get_mut(name) else {
                continue;
            };
            with_values(variable.as_tensor(), |values| {
                mean.par_chunks_mut(PIECE)
                    .zip(values.par_chunks(PIECE))
                    .for_each(|(mean, values)| {
                        for (mean, &value) in mean.iter_mut().zip(values) {
                            *mean += (value - *mean) * (1.0 - share);
                        }
                    });
            })?;
        }
        Ok((value, norm, learning_rate))
    }

    /// The loss of a part of a step's pictures.
    fn loss(
        &self,
        records: &[usize],
        side: usize,
        step: u64,
        part: u64,
    ) -> Result<Tensor, TrainError> {
        // Every part of every step has a stream of its own: a resumed run draws what an uninterrupted one does.
        let position = step * self.recipe.parts as u64 + part + 1;
        let seed = self.recipe.seed ^ position.wrapping_mul(0x9fb2_1c65_1e98_df25);
        let mut noise = Noise::new(seed);
        match &self.objective {
            Objective::Autoencoder(model) => {
                model.loss(&self.recipe, &self.pictures, records, side, &mut noise)
            }
            Objective::Denoiser(model) => model.loss(&self.recipe, records, &mut noise),
        }
    }

    fn check(&self, what: &'static str, value: f32, learning_rate: f64) -> Result<(), TrainError> {
        if value.is_finite() {
            return Ok(());
        }
        let path = self.checkpoint();
        Err(TrainError::Diverged {
            step: self.state.step + 1,
            what,
            value,
            learning_rate,
            kept: match path.exists() {
                true => format!("the last good state is {}", path.display()),
                false => "no checkpoint was written yet".to_owned(),
            },
        })
    }

    fn save(&self) -> Result<(), TrainError> {
        self.state.write(
            &self.checkpoint(),
            &self.recipe,
            &self.parameters,
            &self.optimiser,
        )
    }
}
