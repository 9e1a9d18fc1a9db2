//! The whole of it: a prompt in, pictures out.

mod request;
mod tensors;

use std::path::Path;

use candle_core::{Device, Tensor};
use mgm_image::RgbImage;
use mgm_nn::{WeightPolicy, WeightSource, WeightStorage};
use mgm_text::ClipTokenizer;

pub use self::request::{
    Control, Defaults, EncodedPrompt, MAX_PIXELS, MAX_SIDE, NEGATIVE_PROMPT, PaintRequest,
    PainterStorage, Progress,
};
use self::request::{Encoded, MAX_PROMPT};
use self::tensors::{condition, previews, to_image};
use crate::error::{Error, Result};
use crate::files::{FindOptions, ModelFiles, Part};
use crate::lora::{LoraFile, LoraReport};
use crate::noise::Noise;
use crate::scheduler::{Scheduler, SchedulerConfig, SchedulerKind};
use crate::text_encoder::TextEncoder;
use crate::unet::UNet;
use crate::vae::{Tiling, Vae, VaeParts};

/// A model, its parts loaded when they are first needed.
pub struct Painter {
    files: ModelFiles,
    storage: PainterStorage,
    loras: Vec<(LoraFile, f64)>,
    tokenizers: [ClipTokenizer; 2],
    text_encoders: Option<[TextEncoder; 2]>,
    unet: Option<UNet>,
    vae: Option<Vae>,
}

impl Painter {
    /// Opens a model: a folder in the diffusers layout or a single-file checkpoint. Finds all files and reads tokenisers and
    /// configurations, but no weights yet.
    ///
    /// # Errors
    /// When something is missing or not supported.
    pub fn open(path: &Path, options: &FindOptions, storage: PainterStorage) -> Result<Self> {
        let files = ModelFiles::find(path, options)?;
        let [first, second] = &files.tokenizers;
        let tokenizers = [
            ClipTokenizer::from_directory(first)?,
            ClipTokenizer::from_directory(second)?,
        ];
        for (tokenizer, config) in tokenizers.iter().zip(&files.text_encoders) {
            if tokenizer.window() > config.max_position_embeddings {
                return Err(Error::config(
                    "tokenizer_config.json",
                    format!(
                        "windows of {} tokens for a text encoder of {}",
                        tokenizer.window(),
                        config.max_position_embeddings
                    ),
                ));
            }
        }
        if tokenizers[0].window() != tokenizers[1].window() {
            return Err(Error::config(
                "tokenizer_config.json",
                format!(
                    "windows of {} and {} tokens",
                    tokenizers[0].window(),
                    tokenizers[1].window()
                ),
            ));
        }
        Ok(Self {
            files,
            storage,
            loras: Vec::new(),
            tokenizers,
            text_encoders: None,
            unet: None,
            vae: None,
        })
    }

    /// Adds an adapter to parts that are loaded from now on.
    pub fn add_lora(&mut self, lora: LoraFile, scale: f64) {
        self.loras.push((lora, scale));
        self.text_encoders = None;
        self.unet = None;
    }

    /// How many matrices every adapter changes, in order. Reads names and shapes only.
    ///
    /// # Errors
    /// When an adapter does not fit.
    pub fn lora_reports(&self) -> Result<Vec<LoraReport>> {
        let mut reports = vec![LoraReport::default(); self.loras.len()];
        for part in [Part::UNet, Part::FirstEncoder, Part::SecondEncoder] {
            let weights = self.files.open(part)?;
            for (report, (lora, scale)) in reports.iter_mut().zip(&self.loras) {
                let (_, part) = lora.apply(weights.clone(), part, &self.files.unet, *scale)?;
                report.applied += part.applied;
                report.unknown += part.unknown;
            }
        }
        Ok(reports)
    }

    /// Tokens of a prompt that the text encoders see, start and end included.
    pub fn window(&self) -> usize {
        self.tokenizers[0].window()
    }

    /// The model's scheduler configuration.
    pub fn scheduler_config(&self) -> &SchedulerConfig {
        &self.files.scheduler
    }

    /// What the model's files recommend: diffusers' 50 steps and guidance 5, but for distilled models, which tell themselves by their
    /// scheduler: 4 steps without guidance.
    pub fn defaults(&self) -> Defaults {
        let scheduler = &self.files.scheduler;
        let trailing = scheduler.timestep_spacing.as_deref() == Some("trailing");
        let distilled = match scheduler.kind() {
            Ok(SchedulerKind::Lcm) => true,
            Ok(SchedulerKind::EulerAncestral) => trailing,
            _ => self.files.unet.time_cond_proj_dim.is_some(),
        };
        let latent = self.files.unet.sample_size.unwrap_or(128);
        let (steps, guidance) = match (distilled, self.files.unet.time_cond_proj_dim) {
            (false, _) => (50, 5.0),
            (true, None) => (4, 0.0),
            // The guidance scale is an input of these; diffusers' pages use 8.
            (true, Some(_)) => (4, 8.0),
        };
        Defaults {
            steps,
            guidance,
            side: (latent * self.files.vae.scale()).min(MAX_SIDE as usize) as u32,
        }
    }

    fn weights(&self, part: Part, storage: WeightStorage) -> Result<WeightSource> {
        let mut weights = self.files.open(part)?;
        for (lora, scale) in &self.loras {
            (weights, _) = lora.apply(weights, part, &self.files.unet, *scale)?;
        }
        Ok(weights.with_policy(WeightPolicy {
            storage,
            ..WeightPolicy::default()
        }))
    }

    /// Loads both text encoders, if they are not there.
    ///
    /// # Errors
    /// When a tensor is missing or has another shape.
    pub fn load_text_encoders(&mut self) -> Result<()> {
        if self.text_encoders.is_none() {
            let load = |part: Part, index: usize| {
                let weights = self.weights(part, self.storage.text_encoders)?;
                TextEncoder::load(&weights, &self.files.text_encoders[index], index == 1)
            };
            self.text_encoders =
                Some([load(Part::FirstEncoder, 0)?, load(Part::SecondEncoder, 1)?]);
        }
        Ok(())
    }

    /// Loads the UNet, if it is not there.
    ///
    /// # Errors
    /// When a tensor is missing or has another shape.
    pub fn load_unet(&mut self) -> Result<()> {
        if self.unet.is_none() {
            self.unet = Some(UNet::load(
                &self.weights(Part::UNet, self.storage.unet)?,
                &self.files.unet,
            )?);
        }
        Ok(())
    }

    /// Loads the decoder, if it is not there.
    ///
    /// # Errors
    /// When a tensor is missing or has another shape.
    pub fn load_vae(&mut self) -> Result<()> {
        if self.vae.is_none() {
            let weights = self.weights(Part::Vae, self.storage.vae)?;
            self.vae = Some(Vae::load(&weights, &self.files.vae, VaeParts::Decoder)?);
        }
        Ok(())
    }

    /// Gives the text encoders' memory back; they are loaded again when needed.
    pub fn release_text_encoders(&mut self) {
        self.text_encoders = None;
    }

    /// Gives the UNet's memory back; it is loaded again when needed.
    pub fn release_unet(&mut self) {
        self.unet = None;
    }

    /// Encodes a prompt, and a negative one if guidance will need it. Without a negative prompt the model's own rule holds: states of zero
    /// or those of an empty text.
    ///
    /// # Errors
    /// When the prompt is longer than a megabyte, or a part cannot be loaded.
    pub fn encode(&mut self, prompt: &str, negative: Option<&str>) -> Result<EncodedPrompt> {
        for text in [Some(prompt), negative].into_iter().flatten() {
            if text.len() > MAX_PROMPT {
                return Err(Error::Input(format!(
                    "a prompt of {} bytes: expected at most {MAX_PROMPT}",
                    text.len()
                )));
            }
        }
        self.load_text_encoders()?;
        let (prompt, cut) = self.encode_one(prompt)?;
        let (negative, negative_cut) = match negative {
            Some(text) => self.encode_one(text)?,
            None if self.files.zeros_for_empty_prompt => {
                let zeros = Encoded {
                    words: prompt.words.zeros_like()?,
                    pooled: prompt.pooled.zeros_like()?,
                };
                (zeros, None)
            }
            None => self.encode_one("")?,
        };
        Ok(EncodedPrompt {
            prompt,
            negative,
            cut,
            negative_cut,
        })
    }

    /// The states of a text, and the end of it that did not fit.
    fn encode_one(&self, text: &str) -> Result<(Encoded, Option<String>)> {
        let Some(encoders) = &self.text_encoders else {
            return Err(Error::Input("the text encoders are not loaded".into()));
        };
        let mut states = Vec::with_capacity(2);
        let (mut pooled, mut cut) = (None, None);
        for (tokenizer, encoder) in self.tokenizers.iter().zip(encoders) {
            let mut window = tokenizer.window_of(text)?;
            if !window.cut.is_empty() {
                cut = Some(window.cut);
            }
            // Encoders with longer windows than their tokeniser pad on.
            let last = window.ids.last().copied().unwrap_or(0);
            window.ids.resize(encoder.window(), last);
            let encoded = encoder.encode(&[window.ids])?;
            states.push(encoded.penultimate);
            pooled = encoded.pooled.or(pooled);
        }
        let pooled = pooled
            .ok_or_else(|| Error::Input("the second text encoder has no projection".into()))?;
        let encoded = Encoded {
            words: Tensor::cat(&states, 1)?,
            pooled,
        };
        Ok((encoded, cut))
    }

    /// Checks a request against the model, without work.
    ///
    /// # Errors
    /// One line on what cannot be.
    pub fn check(&self, request: &PaintRequest) -> Result<()> {
        let (width, height) = request.size;
        let scale = self.files.vae.scale() as u32;
        if width == 0
            || height == 0
            || !width.is_multiple_of(scale)
            || !height.is_multiple_of(scale)
        {
            return Err(Error::Input(format!(
                "a size of {width}x{height}: expected multiples of {scale}"
            )));
        }
        if width > MAX_SIDE
            || height > MAX_SIDE
            || u64::from(width) * u64::from(height) > MAX_PIXELS
        {
            return Err(Error::Input(format!(
                "a size of {width}x{height}: expected sides of at most {MAX_SIDE} and {} megapixels",
                MAX_PIXELS >> 20
            )));
        }
        let levels = self.files.unet.block_out_channels.len() as u32;
        let least = scale << (levels - 1);
        if width < least || height < least {
            return Err(Error::Input(format!(
                "a size of {width}x{height}: expected sides of at least {least}"
            )));
        }
        if !request.guidance.is_finite() || request.guidance < 0.0 {
            return Err(Error::Input(format!(
                "guidance {}: expected a number from 0",
                request.guidance
            )));
        }
        if request.seeds.is_empty() {
            return Err(Error::Input(
                "no seeds: expected one for each picture".into(),
            ));
        }
        let elements = request.seeds.len() * self.latent_count(request);
        if request
            .noise
            .as_ref()
            .is_some_and(|noise| noise.len() != elements)
        {
            return Err(Error::Input(format!("noise must have {elements} values")));
        }
        self.schedule(request).map(|_| ())
    }

    /// The schedule of a request.
    ///
    /// # Errors
    /// When the scheduler's configuration is not supported or there are no such steps.
    pub fn schedule(&self, request: &PaintRequest) -> Result<Scheduler> {
        let mut config = self.files.scheduler.clone();
        let kind = match request.scheduler {
            Some(kind) => kind,
            None => config.kind()?,
        };
        if request.scheduler == Some(SchedulerKind::DpmPlusPlus2M) {
            config.use_karras_sigmas = Some(true);
        }
        Scheduler::new(kind, &config, request.steps)
    }

    fn latent_count(&self, request: &PaintRequest) -> usize {
        let scale = self.files.vae.scale();
        let (width, height) = (
            request.size.0 as usize / scale,
            request.size.1 as usize / scale,
        );
        width * height * self.files.unet.in_channels
    }

    /// Paints latents `[pictures, height / 8, width / 8, channels]`, calling `progress` after every step.
    ///
    /// # Errors
    /// When the request cannot be, a part cannot be loaded, or `progress` stops it.
    pub fn denoise(
        &mut self,
        prompt: &EncodedPrompt,
        request: &PaintRequest,
        progress: &mut dyn FnMut(Progress) -> Control,
    ) -> Result<Tensor> {
        self.check(request)?;
        self.load_unet()?;
        if request.preview_every > 0 {
            self.load_vae()?;
        }
        let mut scheduler = self.schedule(request)?;
        let Some(unet) = &self.unet else {
            return Err(Error::Input("the UNet is not loaded".into()));
        };
        let pictures = request.seeds.len();
        let scale = self.files.vae.scale();
        let (width, height) = (
            request.size.0 as usize / scale,
            request.size.1 as usize / scale,
        );
        let shape = (pictures, height, width, self.files.unet.in_channels);
        let each = self.latent_count(request);
        let mut streams: Vec<Noise> = request.seeds.iter().map(|&seed| Noise::new(seed)).collect();
        let mut fresh = || -> Vec<f32> {
            streams
                .iter_mut()
                .flat_map(|stream| stream.values(each))
                .collect()
        };
        let mut latents = match &request.noise {
            Some(noise) => noise.clone(),
            None => fresh(),
        };
        let initial = scheduler.initial_noise() as f32;
        latents.iter_mut().for_each(|v| *v *= initial);

        // Models that take the guidance scale as an input need no second pass.
        let embedded = self.files.unet.time_cond_proj_dim.is_some();
        let negative = (request.guidance > 1.0 && !embedded).then_some(&prompt.negative);
        let condition = condition(prompt, negative, request, pictures)?;
        let steps = scheduler.timesteps().len();
        for step in 0..steps {
            let time = scheduler.timesteps()[step];
            let factor = scheduler.input_scale() as f32;
            let scaled: Vec<f32> = latents.iter().map(|v| v * factor).collect();
            let input = Tensor::from_vec(scaled, shape, &Device::Cpu)?;
            let output = match negative {
                None => unet
                    .forward(&input, &[time], &condition, request.guidance)?
                    .flatten_all()?
                    .to_vec1()?,
                Some(_) => {
                    let both = unet.forward(
                        &Tensor::cat(&[&input, &input], 0)?,
                        &[time],
                        &condition,
                        request.guidance,
                    )?;
                    let both: Vec<f32> = both.flatten_all()?.to_vec1()?;
                    let (against, towards) = both.split_at(both.len() / 2);
                    let guidance = request.guidance as f32;
                    against
                        .iter()
                        .zip(towards)
                        .map(|(&a, &t)| a + guidance * (t - a))
                        .collect()
                }
            };
            let noise = scheduler.needs_noise().then(&mut fresh);
            let predicted = scheduler.step(&output, &mut latents, noise.as_deref())?;
            let due = request.preview_every > 0 && (step + 1).is_multiple_of(request.preview_every);
            let previews = match &self.vae {
                Some(vae) if due && step + 1 < steps => {
                    previews(vae, &Tensor::from_vec(predicted, shape, &Device::Cpu)?)?
                }
                _ => Vec::new(),
            };
            let told = Progress {
                step: step + 1,
                steps,
                previews: &previews,
            };
            if progress(told) == Control::Stop {
                return Err(Error::Interrupted);
            }
        }
        Ok(Tensor::from_vec(latents, shape, &Device::Cpu)?)
    }

    /// Latents `[pictures, height, width, channels]` as pictures, one after another so that one picture's memory is enough.
    ///
    /// # Errors
    /// When the VAE cannot be loaded; [`Error::Interrupted`] when `keep_going` says no between pictures or tiles.
    pub fn decode(
        &mut self,
        latents: &Tensor,
        tiling: Option<Tiling>,
        keep_going: &mut dyn FnMut() -> bool,
    ) -> Result<Vec<RgbImage>> {
        self.load_vae()?;
        let Some(vae) = &self.vae else {
            return Err(Error::Input("the VAE is not loaded".into()));
        };
        let (pictures, ..) = latents.dims4()?;
        let mut images = Vec::with_capacity(pictures);
        for index in 0..pictures {
            if !keep_going() {
                return Err(Error::Interrupted);
            }
            let picture = vae.decode_scaled(&latents.narrow(0, index, 1)?, tiling, keep_going)?;
            images.push(to_image(&picture)?);
        }
        Ok(images)
    }

    /// The tiles that diffusers would use for this model.
    pub fn tiling(&self) -> Tiling {
        Tiling::of(&self.files.vae)
    }

    /// Tiles of another side in pixels.
    pub fn tiling_with_side(&self, side: usize) -> Tiling {
        Tiling::with_side(&self.files.vae, side)
    }
}
