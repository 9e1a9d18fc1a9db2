use std::collections::BTreeMap;
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::mpsc::{Receiver, sync_channel};
use std::time::{Duration, Instant};

use candle_core::Var;
use mgm_data::{Dataset, Grouping, InvalidRecords, Sampler, SamplerSettings, TokeniseSettings};
use mini_gemini::MiniGemini;

use crate::checkpoint::{self, Checkpoint, ResumeFrom, TrainerState, latest_checkpoint};
use crate::collective::{Collective, SingleProcess};
use crate::error::TrainError;
use crate::feature_store::FeatureStore;
use crate::gradients::Gradients;
use crate::loader::{Loader, MicroBatch};
use crate::model;
use crate::optimiser::{AdamW, AdamWSettings};
use crate::progress::{Outcome, Progress, ProgressSink, Status};
use crate::recipe::{Recipe, SamplerKind};
use crate::schedule::Schedule;
use crate::step_log::{StepLine, StepLog};
use crate::tensor_file;

/// Weight of the past in running means.
const SMOOTHING: f64 = 0.98;

/// A run of a recipe: model, data, optimiser and position.
pub struct Trainer {
    recipe: Recipe,
    model: MiniGemini,
    dataset: Dataset,
    parameters: BTreeMap<String, Var>,
    optimiser: AdamW,
    schedule: Schedule,
    sampler: Sampler,
    collective: Box<dyn Collective>,
    state: TrainerState,
    resumed: bool,
}

impl Trainer {
    /// Loads model and data for a recipe.
    ///
    /// # Errors
    /// [`TrainError`] when the recipe, the model or the data is wrong; the message names what.
    pub fn new(recipe: Recipe) -> Result<Self, TrainError> {
        Self::with_collective(recipe, Box::new(SingleProcess))
    }

    /// As [`Self::new`], as one of several data-parallel processes.
    ///
    /// # Errors
    /// As [`Self::new`].
    pub fn with_collective(
        recipe: Recipe,
        collective: Box<dyn Collective>,
    ) -> Result<Self, TrainError> {
        // Data first: it is what most often needs mending, and quick to check.
        let invalid = if recipe.data.skip_invalid {
            InvalidRecords::Skip
        } else {
            InvalidRecords::Error
        };
        let dataset = Dataset::open(&recipe.data.json, invalid)?;
        std::fs::create_dir_all(&recipe.output)
            .map_err(TrainError::io("create", &recipe.output))?;
        let model = model::load(&recipe)?;
        let parameters = model::parameters(&model, &recipe)?;
        let settings = AdamWSettings {
            weight_decay: recipe.weight_decay,
            ..AdamWSettings::default()
        };
        let optimiser = AdamW::new(settings, &parameters, &recipe.lr_multipliers)?;
        let sampler = Sampler::new(
            SamplerSettings {
                grouping: match recipe.sampler() {
                    SamplerKind::Random => Grouping::Random,
                    SamplerKind::ModalityLength => Grouping::ModalityLength,
                },
                batch: recipe.batch,
                accumulation: recipe.accumulation,
                seed: recipe.seed,
                rank: collective.rank(),
                world: collective.world(),
            },
            Arc::from(dataset.modality_lengths()),
        )?;
        let total = match (recipe.steps, recipe.epochs) {
            (Some(steps), _) => steps,
            (None, epochs) => {
                (epochs.unwrap_or(1.0) * sampler.steps_per_epoch() as f64).ceil() as u64
            }
        };
        let state = TrainerState {
            version: TrainerState::VERSION,
            step: 0,
            total,
            micro_batch: 0,
            seed: recipe.seed,
            records: dataset.len(),
            data: format!("{:016x}", dataset.fingerprint()),
            world: collective.world(),
            losses: Vec::new(),
            recipe: recipe.clone(),
        };
        let schedule = Schedule::new(total, recipe.warmup_ratio);
        Ok(Self {
            recipe,
            model,
            dataset,
            parameters,
            optimiser,
            schedule,
            sampler,
            collective,
            state,
            resumed: false,
        })
    }

    /// Continues from a checkpoint: the run goes on as if it had never stopped.
    ///
    /// # Errors
    /// [`TrainError::Checkpoint`] when it is damaged or belongs to a run of another recipe.
    pub fn resume(mut self, from: ResumeFrom) -> Result<Self, TrainError> {
        let path = match from {
            ResumeFrom::Path(path) => Some(path),
            ResumeFrom::Latest => latest_checkpoint(&self.recipe.output),
        };
        if let Some(path) = path {
            let checkpoint = Checkpoint::read(&path)?;
            checkpoint.check(&self.state)?;
            let restored = checkpoint.restore(&self.parameters, &mut self.optimiser)?;
            self.state.step = restored.step;
            self.state.micro_batch = restored.micro_batch;
            self.state.losses = restored.losses;
            self.resumed = true;
        }
        Ok(self)
    }

    /// Trained parameters by checkpoint name.
    pub fn parameters(&self) -> &BTreeMap<String, Var> {
        &self.parameters
    }

    /// The model being trained.
    pub fn model(&self) -> &MiniGemini {
        &self.model
    }

    /// Position and history.
    pub fn state(&self) -> &TrainerState {
        &self.state
    }

    /// One line that says what will happen: parameters, records, steps.
    pub fn describe(&self) -> String {
        let values: usize = self
            .parameters
            .values()
            .map(|variable| variable.elem_count())
            .sum();
        let skipped = match self.dataset.skipped() {
            0 => String::new(),
            count => format!(" ({count} invalid left out)"),
        };
        format!(
            "{} trained tensors ({:.2} M values), {} records{skipped}, {} steps of {} records, from step {}",
            self.parameters.len(),
            values as f64 / 1e6,
            self.dataset.len(),
            self.state.total,
            self.recipe.batch * self.recipe.accumulation * self.collective.world(),
            self.state.step
        )
    }

    /// Trains to the end, or until `stop` is set (then the current step is finished and a checkpoint written).
    ///
    /// # Errors
    /// [`TrainError`]; what was learnt before an error in the data is saved in a checkpoint. A folder that already holds checkpoints is
    /// refused unless the run was resumed.
    pub fn run(
        mut self,
        sink: &dyn ProgressSink,
        stop: &AtomicBool,
    ) -> Result<Outcome, TrainError> {
        if !self.resumed
            && let Some(old) = latest_checkpoint(&self.recipe.output)
        {
            return Err(TrainError::Checkpoint {
                path: old,
                message:
                    "an earlier run left this checkpoint; resume it, or choose another `output`"
                        .to_owned(),
            });
        }
        sink.note(&self.describe());
        let mut log = StepLog::open(&self.recipe.output.join("log.jsonl"), self.state.step)?;
        let loader = Loader {
            model: &self.model,
            dataset: &self.dataset,
            features: FeatureStore::new(&self.model, &self.recipe)?,
            sampler: self.sampler.clone(),
            settings: TokeniseSettings {
                template: self
                    .recipe
                    .template
                    .clone()
                    .unwrap_or_else(|| self.model.template().name().to_owned()),
                max_length: self.recipe.max_length,
                visual_tokens: self
                    .model
                    .vision()
                    .map_or(0, mini_gemini::Vision::tokens_per_image),
                mismatch: self.recipe.mask_mismatch,
            },
        };
        let (first, end) = (
            self.state.micro_batch,
            self.state.total * self.recipe.accumulation as u64,
        );
        let batches_per_epoch = loader.sampler.micro_batches_per_epoch();
        let enough = AtomicBool::new(false);
        let (sender, receiver) = sync_channel(self.recipe.prefetch);
        let mut training = Loop {
            recipe: &self.recipe,
            model: &self.model,
            parameters: &self.parameters,
            optimiser: &mut self.optimiser,
            schedule: self.schedule,
            collective: self.collective.as_ref(),
            state: &mut self.state,
            batches_per_epoch,
            saved: self
                .resumed
                .then(|| latest_checkpoint(&self.recipe.output))
                .flatten(),
        };
        let result = std::thread::scope(|scope| {
            let enough = &enough;
            scope.spawn(move || loader.run(first, end, enough, &sender));
            let result = training.run(&receiver, sink, stop, &mut log);
            enough.store(true, Ordering::Relaxed);
            drop(receiver);
            result
        });
        match result {
            Ok(status) => {
                let checkpoint = training.save(sink)?;
                let result = self.export()?;
                Ok(Outcome {
                    status,
                    step: self.state.step,
                    total: self.state.total,
                    smoothed_loss: smoothed(&self.state.losses),
                    losses: self.state.losses,
                    result,
                    checkpoint,
                })
            }
            Err(error) => {
                if !matches!(error, TrainError::Diverged { .. }) && training.state.step > 0 {
                    training.save(sink)?;
                }
                Err(error)
            }
        }
    }

    /// Writes `adapter.safetensors` and `trainer_state.json` into the output folder.
    fn export(&self) -> Result<PathBuf, TrainError> {
        let adapter = self.recipe.output.join("adapter.safetensors");
        let mut metadata = BTreeMap::from([
            ("format".to_owned(), "pt".to_owned()),
            ("step".to_owned(), self.state.step.to_string()),
            ("base_model".to_owned(), self.recipe.model.clone()),
        ]);
        if let Some(lora) = &self.recipe.lora {
            metadata.insert("lora_rank".to_owned(), lora.rank.to_string());
            metadata.insert("lora_alpha".to_owned(), lora.alpha.to_string());
        }
        tensor_file::write(
            &adapter,
            &checkpoint::values(&self.parameters)?,
            self.recipe.save_type,
            metadata,
        )?;
        checkpoint::write_state(&self.recipe.output.join("trainer_state.json"), &self.state)?;
        Ok(adapter)
    }
}

/// Running mean with bias correction over a whole history.
pub(crate) fn smoothed(losses: &[f32]) -> f32 {
    let mut mean = RunningMean::default();
    for &loss in losses {
        mean.add(f64::from(loss));
    }
    mean.value() as f32
}

/// A running mean over about the last fifty values.
#[derive(Default)]
pub(crate) struct RunningMean {
    sum: f64,
    weight: f64,
}

impl RunningMean {
    pub(crate) fn add(&mut self, value: f64) {
        self.sum = SMOOTHING * self.sum + (1.0 - SMOOTHING) * value;
        self.weight = SMOOTHING * self.weight + (1.0 - SMOOTHING);
    }

    pub(crate) fn value(&self) -> f64 {
        if self.weight > 0.0 {
            self.sum / self.weight
        } else {
            0.0
        }
    }
}

/// What one step came to.
struct StepResult {
    loss: f32,
    norm: f32,
    learning_rate: f64,
    tokens: usize,
    supervised: usize,
    waited: Duration,
}

struct Loop<'a> {
    recipe: &'a Recipe,
    model: &'a MiniGemini,
    parameters: &'a BTreeMap<String, Var>,
    optimiser: &'a mut AdamW,
    schedule: Schedule,
    collective: &'a dyn Collective,
    state: &'a mut TrainerState,
    batches_per_epoch: u64,
    saved: Option<PathBuf>,
}

impl Loop<'_> {
    fn run(
        &mut self,
        batches: &Receiver<Result<MicroBatch, TrainError>>,
        sink: &dyn ProgressSink,
        stop: &AtomicBool,
        log: &mut StepLog,
    ) -> Result<Status, TrainError> {
        let mut gradients = Gradients::new(self.parameters);
        let (mut loss, mut rate, mut step_time) = (
            RunningMean::default(),
            RunningMean::default(),
            RunningMean::default(),
        );
        for &earlier in &self.state.losses {
            loss.add(f64::from(earlier));
        }
        while self.state.step < self.state.total {
            if self.collective.any(stop.load(Ordering::SeqCst))? {
                return Ok(Status::Interrupted);
            }
            let started = Instant::now();
            let result = self.step(batches, &mut gradients)?;
            let seconds = started.elapsed().as_secs_f64();
            loss.add(f64::from(result.loss));
            rate.add(result.tokens as f64 * self.collective.world() as f64 / seconds.max(1e-9));
            step_time.add(seconds);
            let epoch = self.state.micro_batch as f64 / self.batches_per_epoch as f64;
            log.write(&StepLine {
                step: self.state.step,
                epoch,
                loss: result.loss,
                gradient_norm: result.norm,
                learning_rate: result.learning_rate,
                tokens: result.tokens,
                supervised: result.supervised,
                seconds,
                waited: result.waited.as_secs_f64(),
            })?;
            sink.step(&Progress {
                step: self.state.step,
                total: self.state.total,
                epoch,
                loss: result.loss,
                smoothed_loss: loss.value() as f32,
                gradient_norm: result.norm,
                per_second: rate.value(),
                unit: "tokens",
                learning_rate: result.learning_rate,
                time_left: Duration::from_secs_f64(
                    step_time.value() * (self.state.total - self.state.step) as f64,
                ),
            });
            if self.state.step.is_multiple_of(self.recipe.save_every)
                && self.state.step < self.state.total
            {
                self.save(sink)?;
            }
        }
        Ok(Status::Finished)
    }

    /// One optimiser step: gradients of all micro batches, their mean over the processes, clipping, update.
    fn step(
        &mut self,
        batches: &Receiver<Result<MicroBatch, TrainError>>,
        gradients: &mut Gradients,
    ) -> Result<StepResult, TrainError> {
        let learning_rate =
            self.recipe.peak_learning_rate() * self.schedule.factor(self.state.step);
        let mut result = StepResult {
            loss: 0.0,
            norm: 0.0,
            learning_rate,
            tokens: 0,
            supervised: 0,
            waited: Duration::ZERO,
        };
        // Hugging Face's accumulation: every micro batch counts alike, however many labels it has.
        let share = 1.0 / self.recipe.accumulation as f32;
        gradients.clear();
        for _ in 0..self.recipe.accumulation {
            let waiting = Instant::now();
            let batch = batches.recv().map_err(|_| TrainError::Loader)??;
            result.waited += waiting.elapsed();
            result.tokens += batch.tokens;
            result.supervised += batch.supervised;
            if batch.samples.is_empty() {
                continue;
            }
            let loss = self.model.loss(&batch.samples, self.recipe.max_length)?;
            let value = loss.to_scalar::<f32>()?;
            if !value.is_finite() {
                return Err(self.diverged("loss", value, learning_rate));
            }
            result.loss += share * value;
            let store = loss.backward()?;
            gradients.add(self.parameters, &store, share)?;
        }
        self.collective.mean(gradients, &mut result.loss)?;
        result.norm = gradients.norm();
        if !result.norm.is_finite() {
            return Err(self.diverged("gradient norm", result.norm, learning_rate));
        }
        if let Some(limit) = self.recipe.max_grad_norm {
            gradients.clip(result.norm, limit);
        }
        self.optimiser
            .step(self.parameters, gradients, learning_rate)?;
        self.state.step += 1;
        self.state.micro_batch += self.recipe.accumulation as u64;
        self.state.losses.push(result.loss);
        Ok(result)
    }

    fn diverged(&self, what: &'static str, value: f32, learning_rate: f64) -> TrainError {
        let kept = match &self.saved {
            Some(path) => format!("the last good state is {}", path.display()),
            None => "no checkpoint was written yet".to_owned(),
        };
        TrainError::Diverged {
            step: self.state.step + 1,
            what,
            value,
            learning_rate,
            kept,
        }
    }

    fn save(&mut self, sink: &dyn ProgressSink) -> Result<PathBuf, TrainError> {
        let output = &self.recipe.output;
        if self.collective.rank() != 0 {
            return Ok(output.join(format!("checkpoint-{}", self.state.step)));
        }
        let path = checkpoint::save(
            output,
            self.state,
            self.parameters,
            self.optimiser,
            self.recipe.keep_checkpoints,
        )?;
        sink.note(&format!("saved {}", path.display()));
        self.saved = Some(path.clone());
        Ok(path)
    }
}
