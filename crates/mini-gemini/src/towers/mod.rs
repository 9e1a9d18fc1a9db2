//! The two vision encoders. Towers are frozen: they run without a gradient, on the device of their weights.

mod clip;
mod convnext;
mod dinov2;
mod efficientnet;
mod vit;

use candle_core::{Device, Tensor};
use mgm_nn::WeightSource;

use crate::error::{Error, Result};

pub use clip::ClipTower;
pub use convnext::ConvNextTower;
pub use dinov2::Dinov2Tower;
pub use efficientnet::EfficientNetTower;

/// Called between the layers of a tower, so that other work need not wait for the whole of it; an error ends the tower's work.
pub type Pause<'a> = dyn FnMut() -> Result<()> + 'a;

/// Sees a small picture and yields one query per patch.
pub trait LowResTower: Send + Sync {
    /// Features `[views, patches, width]` of CLIP-normalised pictures `[views, 3, size, size]`.
    ///
    /// # Errors
    /// When the pictures have another size, a tensor operation fails, or `pause` says so.
    fn encode(&self, pictures: &Tensor, pause: &mut Pause<'_>) -> Result<Tensor>;
    /// Side of the picture in pixels.
    fn picture_size(&self) -> usize;
    /// Patches per picture.
    fn patches(&self) -> usize;
    /// Feature width.
    fn width(&self) -> usize;
}

/// Sees a large picture and yields a feature pyramid.
pub trait HighResTower: Send + Sync {
    /// Stage maps `[channels_i, height_i, width_i]`, finest first, of one CLIP-normalised picture `[3, size, size]`.
    ///
    /// # Errors
    /// When the picture's side does not suit the strides, a tensor operation fails, or `pause` says so.
    fn encode(&self, picture: &Tensor, pause: &mut Pause<'_>) -> Result<Vec<Tensor>>;
    /// Channels of all stages together.
    fn channels(&self) -> usize;
    /// Pixels per cell of the finest stage.
    fn stride(&self) -> usize;
}

/// Loads the low-resolution tower that the checkpoint holds. `weights` stands at `model.vision_tower`.
///
/// # Errors
/// When its tensors are those of no known tower.
pub fn load_low_res(
    name: &str,
    select_layer: i64,
    select_feature: &str,
    weights: &WeightSource,
) -> Result<Box<dyn LowResTower>> {
    if select_feature != "patch" {
        return Err(Error::Input(format!(
            "mm_vision_select_feature is `{select_feature}`: only `patch` is supported"
        )));
    }
    if weights.contains("vision_tower.vision_model.pre_layrnorm.weight") {
        let vision_model = weights.pp("vision_tower").pp("vision_model");
        Ok(Box::new(ClipTower::load(select_layer, &vision_model)?))
    } else if weights.contains("vision_tower.embeddings.patch_embeddings.projection.weight") {
        Ok(Box::new(Dinov2Tower::load(weights)?))
    } else {
        Err(Error::Input(format!(
            "low-resolution tower `{name}`: found neither CLIP (vision_model.pre_layrnorm) nor DINOv2 (embeddings.patch_embeddings) tensors under model.vision_tower.vision_tower"
        )))
    }
}

/// Loads the high-resolution tower that the checkpoint holds. `weights` stands at `model.vision_tower_aux`.
///
/// # Errors
/// When its tensors are those of no known tower.
pub fn load_high_res(name: &str, weights: &WeightSource) -> Result<Box<dyn HighResTower>> {
    if weights.contains("vision_stem.0.weight") {
        Ok(Box::new(ConvNextTower::load(weights)?))
    } else if weights.contains("_conv_stem.weight") {
        Ok(Box::new(EfficientNetTower::load(weights)?))
    } else {
        Err(Error::Input(format!(
            "high-resolution tower `{name}`: found neither ConvNeXt (vision_stem.0) nor EfficientNet-Lite (_conv_stem) tensors under model.vision_tower_aux"
        )))
    }
}

/// Takes CLIP-normalised pictures `[…, 3, height, width]` to the statistics of another encoder: both are affine maps of the same pixels.
fn renormalise(
    pictures: &Tensor,
    mean: [f64; 3],
    std: [f64; 3],
    device: &Device,
) -> Result<Tensor> {
    let mut factors = [0f32; 3];
    let mut offsets = [0f32; 3];
    for channel in 0..3 {
        let clip_mean = f64::from(mgm_image::CLIP_MEAN[channel]);
        let clip_std = f64::from(mgm_image::CLIP_STD[channel]);
        factors[channel] = (clip_std / std[channel]) as f32;
        offsets[channel] = ((clip_mean - mean[channel]) / std[channel]) as f32;
    }
    let factors = Tensor::from_slice(&factors, (3, 1, 1), device)?;
    let offsets = Tensor::from_slice(&offsets, (3, 1, 1), device)?;
    Ok(pictures.broadcast_mul(&factors)?.broadcast_add(&offsets)?)
}

/// Per-channel standardisation of a tower's output, stored beside its weights.
struct Standardisation {
    mean: Tensor,
    std: Tensor,
}

impl Standardisation {
    fn load(weights: &WeightSource, name: &str, channels: usize) -> Result<Self> {
        let source = weights.pp(name);
        Ok(Self {
            mean: source.tensor("mean", [channels])?,
            std: source.tensor("std", [channels])?,
        })
    }

    /// `(x − mean) / std` over the last axis.
    fn forward(&self, features: &Tensor) -> Result<Tensor> {
        Ok(features
            .broadcast_sub(&self.mean)?
            .broadcast_div(&self.std)?)
    }
}
