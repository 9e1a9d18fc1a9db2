//! CLIP ViT (Hugging Face `CLIPVisionModel`), up to the hidden state the model uses (spec: model §3.1).

use candle_core::Tensor;
use mgm_nn::{Activation, WeightSource, ops};

use super::vit::{Block, BlockNames, patch_rows};
use super::{LowResTower, Pause};
use crate::check::stored_depth;
use crate::error::{Error, Result};

const EPS: f64 = 1e-5;
/// All CLIP ViTs in use have heads of 64.
const HEAD_DIM: usize = 64;

/// The tower; sizes are read from the tensors' shapes.
pub struct ClipTower {
    patch_weight: Tensor,
    class_embedding: Tensor,
    position_embedding: Tensor,
    pre_norm: (Tensor, Tensor),
    blocks: Vec<Block>,
    width: usize,
    patch: usize,
    grid: usize,
}

impl ClipTower {
    /// Loads the blocks that hidden state `select_layer` needs (-2: all but the last). `weights` stands at `…vision_model`.
    ///
    /// # Errors
    /// When tensors are missing or contradict each other.
    pub fn load(select_layer: i64, weights: &WeightSource) -> Result<Self> {
        let embeddings = weights.pp("embeddings");
        let patch_weight = embeddings.tensor_any("patch_embedding.weight")?;
        let (width, _, patch, _) = patch_weight.dims4()?;
        let position_embedding = embeddings.tensor_any("position_embedding.weight")?;
        let positions = position_embedding.dim(0)?;
        let grid = positions.saturating_sub(1).isqrt();
        if grid * grid + 1 != positions || !width.is_multiple_of(HEAD_DIM) {
            return Err(Error::Input(format!(
                "{}: {positions} positions of width {width}: expected a square plus one and a multiple of {HEAD_DIM}",
                embeddings.prefix()
            )));
        }
        let source = weights.pp("encoder.layers");
        let stored = stored_depth(&source) as i64;
        // hidden_states[0] is the embedding, [i] the output of block i - 1; negative indices count from the end.
        let used = if select_layer < 0 {
            stored + 1 + select_layer
        } else {
            select_layer
        };
        if used < 0 || used > stored {
            return Err(Error::Input(format!(
                "mm_vision_select_layer is {select_layer}, the tower has {stored} layers"
            )));
        }
        let names = BlockNames {
            norm1: "layer_norm1",
            norm2: "layer_norm2",
            query: "self_attn.q_proj",
            key: "self_attn.k_proj",
            value: "self_attn.v_proj",
            output: "self_attn.out_proj",
            scales: None,
        };
        let blocks = (0..used as usize)
            .map(|index| {
                let heads = width / HEAD_DIM;
                Block::load(
                    &source.pp(index),
                    &names,
                    width,
                    heads,
                    EPS,
                    Activation::QuickGelu,
                )
            })
            .collect::<Result<Vec<_>>>()?;
        Ok(Self {
            patch_weight: patch_weight.flatten_from(1)?,
            class_embedding: embeddings.tensor("class_embedding", [width])?,
            position_embedding,
            // The misspelling is the checkpoint's.
            pre_norm: (
                weights.tensor("pre_layrnorm.weight", [width])?,
                weights.tensor("pre_layrnorm.bias", [width])?,
            ),
            blocks,
            width,
            patch,
            grid,
        })
    }
}

impl LowResTower for ClipTower {
    fn encode(&self, pictures: &Tensor, pause: &mut Pause<'_>) -> Result<Tensor> {
        let (views, _, height, width) = pictures.dims4()?;
        let size = self.picture_size();
        if (height, width) != (size, size) {
            return Err(Error::Input(format!(
                "CLIP tower: picture of {width}×{height}, expected {size}×{size}"
            )));
        }
        let (patches, tokens) = (self.patches(), self.patches() + 1);
        let embedded = ops::linear(&patch_rows(pictures, self.patch)?, &self.patch_weight)?
            .reshape((views, patches, self.width))?;
        let class = self
            .class_embedding
            .broadcast_as((views, 1, self.width))?
            .contiguous()?;
        let hidden = Tensor::cat(&[class, embedded], 1)?
            .broadcast_add(&self.position_embedding)?
            .reshape((views * tokens, self.width))?;
        let mut hidden = ops::layer_norm(&hidden, &self.pre_norm.0, &self.pre_norm.1, EPS)?;
        for block in &self.blocks {
            pause()?;
            hidden = block.forward(&hidden, views)?;
        }
        Ok(hidden
            .reshape((views, tokens, self.width))?
            .narrow(1, 1, patches)?
            .contiguous()?)
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
