//! Stable Diffusion XL: a prompt becomes a picture.
//!
//! * [`Painter`] opens a model (a folder in the diffusers layout, or one checkpoint file), encodes prompts, paints latents, decodes them.
//! * [`TextEncoder`], [`UNet`], [`Vae`] are its parts, each usable alone; [`Scheduler`] decides on the times and takes the steps.
//! * [`LoraFile`] adds adapters to the weights while they are loaded.
//!
//! Maps are channels-last: `[batch, height, width, channels]`. Activations are `f32`; weights may be `f32`, `bf16`, `f16` or Q8_0. The
//! arithmetic is that of diffusers, which the tests compare with.

mod config;
mod error;
mod files;
mod lora;
mod noise;
mod norm;
mod painter;
mod resnet;
mod scheduler;
mod single_file;
mod text_encoder;
mod unet;
mod vae;

pub use config::{PerBlock, TextEncoderConfig, UNetConfig, VaeConfig};
pub use error::{Error, Result};
pub use files::{FindOptions, ModelFiles, Part};
pub use lora::{LoraFile, LoraReport};
pub use noise::Noise;
pub use painter::{
    Control, Defaults, EncodedPrompt, MAX_PIXELS, MAX_SIDE, NEGATIVE_PROMPT, PaintRequest, Painter,
    PainterStorage, Progress,
};
pub use scheduler::{Scheduler, SchedulerConfig, SchedulerKind};
pub use text_encoder::{EncodedText, TextEncoder};
pub use unet::{Condition, UNet};
pub use vae::{Tiling, Vae, VaeParts};
