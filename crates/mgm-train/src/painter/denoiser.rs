use candle_core::{Device, Tensor};
use mgm_diffusion::{
    Condition, ModelFiles, NEGATIVE_PROMPT, Noise, Part, Scheduler, TextEncoder, UNet, Vae,
    VaeParts,
};
use mgm_nn::{Parameters, WeightPolicy, WeightStorage};
use mgm_text::ClipTokenizer;

use super::pictures::Pictures;
use super::recipe::PainterRecipe;
use super::trainable;
use crate::error::TrainError;

/// Pictures that are encoded at once when a run begins.
const ENCODED_AT_ONCE: usize = 8;
/// Largest weight of a picture's error in a loss (arXiv 2303.09556).
const LARGEST_WEIGHT: f64 = 5.0;
/// One in so many pictures without a prompt is learnt with states of zero, the others with the official negative prompt.
const ZEROS: usize = 4;

/// What the UNet is to predict.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Target {
    Noise,
    Velocity,
}

/// Learns to predict what noise hides.
pub(super) struct Denoiser {
    unet: UNet,
    encoders: [TextEncoder; 2],
    pub(super) parameters: [(Part, Parameters); 3],
    /// Standardised latents of every picture.
    latents: Vec<Vec<f32>>,
    /// Side and channels of the latents.
    shape: (usize, usize),
    /// Mean and standard deviation of each channel before they were standardised.
    pub(super) statistics: [Vec<f64>; 2],
    /// Tokens of every prompt of every picture, for both encoders.
    tokens: Vec<Vec<[Vec<u32>; 2]>>,
    negative: [Vec<u32>; 2],
    alphas: Vec<f64>,
    target: Target,
    side: usize,
}

impl Denoiser {
    pub(super) fn new(files: &ModelFiles, pictures: &Pictures) -> Result<Self, TrainError> {
        let tokenizers = [&files.tokenizers[0], &files.tokenizers[1]]
            .map(|folder| ClipTokenizer::from_directory(folder));
        let [first, second] = tokenizers;
        let tokenizers = [
            first.map_err(mgm_diffusion::Error::from)?,
            second.map_err(mgm_diffusion::Error::from)?,
        ];
        let parts = [Part::UNet, Part::FirstEncoder, Part::SecondEncoder];
        let mut sources = Vec::with_capacity(parts.len());
        for part in parts {
            sources.push(trainable(files, part)?);
        }
        let encoders = [
            TextEncoder::load(&sources[1], &files.text_encoders[0], false)?,
            TextEncoder::load(&sources[2], &files.text_encoders[1], true)?,
        ];
        let tokenise = |text: &str| -> Result<[Vec<u32>; 2], TrainError> {
            let mut both = [Vec::new(), Vec::new()];
            for ((ids, tokenizer), encoder) in both.iter_mut().zip(&tokenizers).zip(&encoders) {
                let window = tokenizer.window_of(text);
                *ids = window.map_err(mgm_diffusion::Error::from)?.ids;
                let last = ids.last().copied().unwrap_or(0);
                ids.resize(encoder.window(), last);
            }
            Ok(both)
        };
        let of_picture = |texts: &Vec<String>| texts.iter().map(|text| tokenise(text)).collect();
        let tokens = pictures
            .prompts
            .iter()
            .map(of_picture)
            .collect::<Result<Vec<_>, _>>()?;
        let negative = tokenise(NEGATIVE_PROMPT)?;
        let scheduler = Scheduler::new(files.scheduler.kind()?, &files.scheduler, 1)?;
        let target = match files.scheduler.prediction_type.as_deref() {
            None | Some("epsilon") => Target::Noise,
            Some("v_prediction") => Target::Velocity,
            Some(other) => {
                return Err(TrainError::Parameters(format!(
                    "prediction_type {other:?} cannot be trained, expected \"epsilon\" or \"v_prediction\""
                )));
            }
        };
        let (latents, shape, statistics) = encode(files, pictures)?;
        Ok(Self {
            unet: UNet::load(&sources[0], &files.unet)?,
            encoders,
            parameters: [0, 1, 2].map(|index| (parts[index], sources[index].parameters().clone())),
            latents,
            shape,
            statistics,
            tokens,
            negative,
            alphas: scheduler.cumulative_alphas().to_vec(),
            target,
            side: pictures.side,
        })
    }

    /// Mean squared error of the prediction at random times, weighted so that little noise does not drown the rest.
    pub(super) fn loss(
        &self,
        recipe: &PainterRecipe,
        records: &[usize],
        noise: &mut Noise,
    ) -> Result<Tensor, TrainError> {
        const ODDS: usize = 1 << 20;
        let batch = records.len();
        let (side, channels) = self.shape;
        let values = side * side * channels;
        let mut windows = [Vec::with_capacity(batch), Vec::with_capacity(batch)];
        let (mut kept, mut times) = (vec![1f32; batch], Vec::with_capacity(batch));
        let (mut noisy, mut wanted) = (
            Vec::with_capacity(batch * values),
            Vec::with_capacity(batch * values),
        );
        let mut weights = Vec::with_capacity(batch);
        for (&record, kept) in records.iter().zip(&mut kept) {
            let texts = &self.tokens[record];
            let mut ids = &texts[noise.below(texts.len())];
            if (noise.below(ODDS) as f64) < recipe.drop_prompt * ODDS as f64 {
                ids = &self.negative;
                if noise.below(ZEROS) == 0 {
                    *kept = 0.0;
                }
            }
            for (windows, ids) in windows.iter_mut().zip(ids) {
                windows.push(ids.clone());
            }
            let time = noise.below(self.alphas.len());
            times.push(time as f64);
            let alpha = self.alphas[time];
            let (signal, spread) = (alpha.sqrt() as f32, (1.0 - alpha).sqrt() as f32);
            for &latent in &self.latents[record] {
                let fresh = noise.value();
                noisy.push(signal * latent + spread * fresh);
                wanted.push(match self.target {
                    Target::Noise => fresh,
                    Target::Velocity => signal * fresh - spread * latent,
                });
            }
            // An error of the target weighs this much as an error of the picture. For the velocity it never
            // vanishes, so the times of much noise, where a picture's outlines are decided, are learnt too.
            let ratio = alpha / (1.0 - alpha);
            let of_picture = match self.target {
                Target::Noise => ratio,
                Target::Velocity => ratio + 1.0,
            };
            weights.push((of_picture.min(LARGEST_WEIGHT) / of_picture) as f32);
        }
        let first = self.encoders[0].encode(&windows[0])?;
        let second = self.encoders[1].encode(&windows[1])?;
        let pooled = second
            .pooled
            .ok_or_else(|| TrainError::Parameters("text_encoder_2 has no projection".into()))?;
        let mut words = Tensor::cat(&[first.penultimate, second.penultimate], 1)?;
        let mut pooled = pooled;
        if kept.contains(&0.0) {
            let window = words.dim(0)? / batch;
            let rows: Vec<f32> = kept
                .iter()
                .flat_map(|&kept| std::iter::repeat_n(kept, window))
                .collect();
            words =
                words.broadcast_mul(&Tensor::from_vec(rows, (batch * window, 1), &Device::Cpu)?)?;
            pooled = pooled.broadcast_mul(&Tensor::from_vec(kept, (batch, 1), &Device::Cpu)?)?;
        }
        let pixels = self.side as f64;
        let condition = Condition {
            words,
            pooled,
            sizes: vec![[pixels, pixels, 0.0, 0.0, pixels, pixels]; batch],
        };
        let shape = (batch, side, side, channels);
        let noisy = Tensor::from_vec(noisy, shape, &Device::Cpu)?;
        let wanted = Tensor::from_vec(wanted, shape, &Device::Cpu)?;
        let predicted = self.unet.forward(&noisy, &times, &condition, 1.0)?;
        let errors = (predicted - wanted)?.sqr()?.flatten_from(1)?.mean(1)?;
        let weights = Tensor::from_vec(weights, batch, &Device::Cpu)?;
        Ok((errors * weights)?.mean_all()?)
    }
}

type Latents = (Vec<Vec<f32>>, (usize, usize), [Vec<f64>; 2]);

/// The standardised latents of all pictures, their side and channels, and each channel's mean and standard deviation.
fn encode(files: &ModelFiles, pictures: &Pictures) -> Result<Latents, TrainError> {
    let weights = files.open(Part::Vae)?.with_policy(WeightPolicy {
        storage: WeightStorage::F32,
        ..WeightPolicy::default()
    });
    let vae = Vae::load(&weights, &files.vae, VaeParts::Encoder)?;
    let mut latents: Vec<Vec<f32>> = Vec::with_capacity(pictures.len());
    let (mut side, mut channels) = (0, 0);
    let all: Vec<usize> = (0..pictures.len()).collect();
    for part in all.chunks(ENCODED_AT_ONCE) {
        let mut pixels = Vec::new();
        for &picture in part {
            pictures.append(picture, pictures.side, (0, 0), &mut pixels);
        }
        let shape = (part.len(), pictures.side, pictures.side, 3);
        let (mean, _) = vae.encode(&Tensor::from_vec(pixels, shape, &Device::Cpu)?)?;
        (side, channels) = (mean.dim(1)?, mean.dim(3)?);
        latents.extend(mean.flatten_from(1)?.to_vec2::<f32>()?);
    }
    let count = (latents.len() * side * side).max(1) as f64;
    let mut statistics = [vec![0.0; channels], vec![0.0; channels]];
    let each = |latents: &[Vec<f32>], add: &mut dyn FnMut(usize, f64)| {
        for row in latents.iter().flat_map(|l| l.chunks_exact(channels.max(1))) {
            row.iter()
                .enumerate()
                .for_each(|(c, &v)| add(c, f64::from(v)));
        }
    };
    let [mean, deviation] = &mut statistics;
    each(&latents, &mut |c, v| mean[c] += v / count);
    each(&latents, &mut |c, v| {
        deviation[c] += (v - mean[c]).powi(2) / count;
    });
    // Kept as the file will say them.
    mean.iter_mut().for_each(|v| *v = f64::from(*v as f32));
    deviation
        .iter_mut()
        .for_each(|v| *v = f64::from(v.sqrt().max(1e-6) as f32));
    for row in latents
        .iter_mut()
        .flat_map(|l| l.chunks_exact_mut(channels.max(1)))
    {
        for (c, v) in row.iter_mut().enumerate() {
            *v = ((f64::from(*v) - mean[c]) / deviation[c]) as f32;
        }
    }
    Ok((latents, (side, channels), statistics))
}
