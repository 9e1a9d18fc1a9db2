//! DINOv2-layout ViT (Hugging Face `Dinov2Model` names): the residual stream after the stored blocks, standardised per channel.

use candle_core::{Device, Tensor};
use mgm_nn::{Activation, WeightSource, ops};

use super::vit::{Block, BlockNames, patch_rows};
use super::{LowResTower, Pause, Standardisation, renormalise};
use crate::check::stored_depth;
use crate::error::{Error, Result};

const EPS: f64 = 1e-6;
/// All DINOv2 ViTs have heads of 64.
const HEAD_DIM: usize = 64;
/// The pixel statistics that DINOv2 was trained with.
const IMAGENET_MEAN: [f64; 3] = [0.485, 0.456, 0.406];
const IMAGENET_STD: [f64; 3] = [0.229, 0.224, 0.225];

/// The tower; sizes are read from the tensors' shapes.
pub struct Dinov2Tower {
    patch_weight: Tensor,
    patch_bias: Tensor,
    class_token: Tensor,
    position_embedding: Tensor,
    blocks: Vec<Block>,
    standardisation: Standardisation,
    width: usize,
    patch: usize,
    grid: usize,
    device: Device,
}

impl Dinov2Tower {
    /// Loads every stored block. `weights` stands at `model.vision_tower`.
    ///
    /// # Errors
    /// When tensors are missing or contradict each other.
    pub fn load(tower: &WeightSource) -> Result<Self> {
        let weights = tower.pp("vision_tower");
        let embeddings = weights.pp("embeddings");
        let patch_weight = embeddings.tensor_any("patch_embeddings.projection.weight")?;
        let (width, _, patch, _) = patch_weight.dims4()?;
        let position_embedding = embeddings.tensor_any("position_embeddings")?;
        let positions = position_embedding.dim(1)?;
        let grid = positions.saturating_sub(1).isqrt();
        if grid * grid + 1 != positions || !width.is_multiple_of(HEAD_DIM) {
            return Err(Error::Input(format!(
                "{}: {positions} positions of width {width}: expected a square plus one and a multiple of {HEAD_DIM}",
                embeddings.prefix()
            )));
        }
        let names = BlockNames {
            norm1: "norm1",
            norm2: "norm2",
            query: "attention.attention.query",
            key: "attention.attention.key",
            value: "attention.attention.value",
            output: "attention.output.dense",
            scales: Some(["layer_scale1.lambda1", "layer_scale2.lambda1"]),
        };
        let source = weights.pp("encoder.layer");
        let mut blocks = Vec::new();
        for index in 0..stored_depth(&source) {
            let block = source.pp(index);
            let heads = width / HEAD_DIM;
            blocks.push(Block::load(
                &block,
                &names,
                width,
                heads,
                EPS,
                Activation::GeluErf,
            )?);
        }
        Ok(Self {
            patch_weight: patch_weight.flatten_from(1)?,
            patch_bias: embeddings.tensor("patch_embeddings.projection.bias", [width])?,
            class_token: embeddings.tensor("cls_token", [1, 1, width])?,
            position_embedding,
            blocks,
            standardisation: Standardisation::load(tower, "feature_norm", width)?,
            width,
            patch,
            grid,
            device: weights.device().clone(),
        })
    }

    /// The residual stream `[views, patches, width]` after the stored blocks, class token dropped, before standardisation.
    ///
    /// # Errors
    /// When the pictures have another size, or `pause` says so.
    pub fn residual_stream(&self, pictures: &Tensor, pause: &mut Pause<'_>) -> Result<Tensor> {
        let (views, _, height, width) = pictures.dims4()?;
        let size = self.picture_size();
        if (height, width) != (size, size) {
            return Err(Error::Input(format!(
                "DINOv2 tower: picture of {width}×{height}, expected {size}×{size}"
            )));
        }
        let (patches, tokens) = (self.patches(), self.patches() + 1);
        let pictures = renormalise(pictures, IMAGENET_MEAN, IMAGENET_STD, &self.device)?;
        let embedded = ops::linear_bias(
            &patch_rows(&pictures, self.patch)?,
            &self.patch_weight,
            &self.patch_bias,
        )?
        .reshape((views, patches, self.width))?;
        let class = self
            .class_token
            .broadcast_as((views, 1, self.width))?
            .contiguous()?;
        let mut hidden = Tensor::cat(&[class, embedded], 1)?
            .broadcast_add(&self.position_embedding)?
            .reshape((views * tokens, self.width))?;
        for block in &self.blocks {
            pause()?;
            hidden = block.forward(&hidden, views)?;
        }
        Ok(hidden
            .reshape((views, tokens, self.width))?
            .narrow(1, 1, patches)?
            .contiguous()?)
    }
}

impl LowResTower for Dinov2Tower {
    fn encode(&self, pictures: &Tensor, pause: &mut Pause<'_>) -> Result<Tensor> {
        self.standardisation
            .forward(&self.residual_stream(pictures, pause)?)
    }

    fn picture_size(&self) -> usize {
        self.grid * self.patch
    }

    fn patches(&self) -> usize {
        self.grid * self.grid
    }

    fn width(&self) -> usize {
        self.width
    }
}
