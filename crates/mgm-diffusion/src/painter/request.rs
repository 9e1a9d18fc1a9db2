//! What a painter is asked for, and what it tells.

use candle_core::Tensor;
use mgm_image::RgbImage;
use mgm_nn::WeightStorage;

use crate::scheduler::SchedulerKind;

/// The official command line's negative prompt.
pub const NEGATIVE_PROMPT: &str = "out of frame, lowres, text, error, cropped, worst quality, low quality, jpeg artifacts, ugly, duplicate, morbid, mutilated, out of frame, extra fingers, mutated hands, poorly drawn hands, poorly drawn face, mutation, deformed, blurry, dehydrated, bad anatomy, bad proportions, extra limbs, cloned face, disfigured, gross proportions, malformed limbs, missing arms, missing legs, extra arms, extra legs, fused fingers, too many fingers, long neck, username, watermark, signature";

/// Longest side that is painted: four times what SDXL was trained on.
pub const MAX_SIDE: u32 = 4096;
/// Most pixels that are painted.
pub const MAX_PIXELS: u64 = 16 << 20;
/// Longest prompt, in bytes: far beyond the 77 tokens that are used.
pub(super) const MAX_PROMPT: usize = 1 << 20;

/// How the weights of each part are kept in memory.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct PainterStorage {
    /// The UNet.
    pub unet: WeightStorage,
    /// Both text encoders.
    pub text_encoders: WeightStorage,
    /// The autoencoder.
    pub vae: WeightStorage,
}

impl PainterStorage {
    /// Everything in one form.
    pub fn all(storage: WeightStorage) -> Self {
        Self {
            unet: storage,
            text_encoders: storage,
            vae: storage,
        }
    }
}

/// What is painted.
#[derive(Clone, Debug)]
pub struct PaintRequest {
    /// Width and height in pixels, multiples of 8.
    pub size: (u32, u32),
    /// Steps.
    pub steps: usize,
    /// Strength of the prompt against the negative prompt; up to 1 no second pass is made.
    pub guidance: f64,
    /// The scheduler, instead of the model's own.
    pub scheduler: Option<SchedulerKind>,
    /// One picture for each seed, painted together.
    pub seeds: Vec<u64>,
    /// Noise to start from instead of the seeds': `[pictures, height / 8, width / 8, channels]`, standard normal.
    pub noise: Option<Vec<f32>>,
    /// Original size the model is told, height and width; the picture's own if not given.
    pub original_size: Option<(u32, u32)>,
    /// Crop the model is told, top and left.
    pub crop: (u32, u32),
    /// Target size the model is told, height and width; the picture's own if not given.
    pub target_size: Option<(u32, u32)>,
    /// Small pictures of what is being painted after every so many steps; 0 for none.
    pub preview_every: usize,
}

/// A prompt and its opposite, encoded. Cheap to clone, usable for any number of pictures.
#[derive(Clone, Debug)]
pub struct EncodedPrompt {
    pub(super) prompt: Encoded,
    pub(super) negative: Encoded,
    /// End of the prompt that did not fit the encoders' windows, to be told to the user.
    pub cut: Option<String>,
    /// End of the negative prompt that did not fit.
    pub negative_cut: Option<String>,
}

#[derive(Clone, Debug)]
pub(super) struct Encoded {
    /// `[words, width]`: both encoders' states side by side.
    pub(super) words: Tensor,
    pub(super) pooled: Tensor,
}

/// What a painting in progress tells.
pub struct Progress<'a> {
    /// Steps done.
    pub step: usize,
    /// Steps in all.
    pub steps: usize,
    /// The pictures that the last output predicts, half as large, if this is a step for a preview.
    pub previews: &'a [RgbImage],
}

/// Whether to go on.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Control {
    /// Go on.
    Continue,
    /// Stop; the call returns [`Error::Interrupted`].
    Stop,
}

/// Recommended settings, read from the model's files.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Defaults {
    /// Steps.
    pub steps: usize,
    /// Guidance.
    pub guidance: f64,
    /// Side of a square picture.
    pub side: u32,
}
