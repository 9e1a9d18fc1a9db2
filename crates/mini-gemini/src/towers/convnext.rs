//! OpenCLIP ConvNeXt trunk: the outputs of its four stages (spec: model §4), channels last throughout.

use candle_core::Tensor;
use mgm_nn::ops::{self, ConvParams, DepthwiseParams, NormSpec};
use mgm_nn::{Activation, Bias, Conv2d, Linear, WeightSource};

use super::{HighResTower, Pause};
use crate::check::stored_depth;
use crate::error::{Error, Result};

const STEM_STRIDE: usize = 4;
const KERNEL: usize = 7;

struct Norm {
    gamma: Tensor,
    beta: Tensor,
}

impl Norm {
    fn load(weights: &WeightSource, width: usize) -> Result<Self> {
        Ok(Self {
            gamma: weights.tensor("weight", [width])?,
            beta: weights.tensor("bias", [width])?,
        })
    }

    fn forward(&self, rows: &Tensor, eps: f64) -> Result<Tensor> {
        Ok(ops::layer_norm(rows, &self.gamma, &self.beta, eps)?)
    }
}

/// A convolution whose stride equals its kernel: a linear map of non-overlapping patches.
struct PatchConvolution {
    convolution: Conv2d,
    kernel: usize,
    width: usize,
}

impl PatchConvolution {
    /// `name.weight` is `[out, in, k, k]`.
    fn load(weights: &WeightSource, name: &str) -> Result<Self> {
        let weight = format!("{name}.weight");
        let [width, input, kernel, _] = weights.shape(&weight).as_deref().map_or_else(
            || {
                Err(Error::Input(format!(
                    "{}{weight}: not found",
                    weights.prefix()
                )))
            },
            |shape| {
                <[usize; 4]>::try_from(shape).map_err(|_| {
                    Error::Input(format!(
                        "{}{weight}: shape {shape:?}, expected [out, in, k, k]",
                        weights.prefix()
                    ))
                })
            },
        )?;
        let params = ConvParams::strided(kernel, kernel, 0);
        Ok(Self {
            convolution: weights.conv2d(name, input, width, params, Bias::Yes)?,
            kernel,
            width,
        })
    }

    /// `[height, width, in]` to `[height / k, width / k, out]`.
    fn forward(&self, map: &Tensor) -> Result<Tensor> {
        Ok(self.convolution.forward(&map.unsqueeze(0)?)?.squeeze(0)?)
    }
}

struct Block {
    depthwise_weight: Tensor,
    depthwise_bias: Tensor,
    norm: Norm,
    fc1: Linear,
    fc2: Linear,
    gamma: Tensor,
}

impl Block {
    fn load(weights: &WeightSource, width: usize) -> Result<Self> {
        let depthwise = weights.tensor("conv_dw.weight", [width, 1, KERNEL, KERNEL])?;
        Ok(Self {
            depthwise_weight: depthwise
                .reshape((width, KERNEL * KERNEL))?
                .t()?
                .contiguous()?,
            depthwise_bias: weights.tensor("conv_dw.bias", [width])?,
            norm: Norm::load(&weights.pp("norm"), width)?,
            fc1: weights.linear("mlp.fc1", width, 4 * width, Bias::Yes)?,
            fc2: weights.linear("mlp.fc2", 4 * width, width, Bias::Yes)?,
            gamma: weights.tensor("gamma", [width])?,
        })
    }

    /// `[height, width, channels]` to the same. Drop path is off: inference only (spec: pitfalls A1).
    fn forward(&self, map: &Tensor, eps: f64) -> Result<Tensor> {
        let (height, width, channels) = map.dims3()?;
        let params = DepthwiseParams::symmetric(KERNEL, 1, KERNEL / 2);
        let convolved = ops::depthwise(
            &map.unsqueeze(0)?,
            &self.depthwise_weight,
            Some(&self.depthwise_bias),
            &params,
        )?;
        let rows = (height * width, channels);
        let norm = NormSpec {
            gamma: &self.norm.gamma,
            beta: &self.norm.beta,
            eps,
        };
        let sum = ops::residual_mlp(
            &convolved.reshape(rows)?,
            &norm,
            &self.fc1,
            Activation::GeluErf,
            &self.fc2,
            Some(&self.gamma),
            &map.reshape(rows)?,
        )?;
        Ok(sum.reshape((height, width, channels))?)
    }
}

struct Stage {
    downsample: Option<(Norm, PatchConvolution)>,
    blocks: Vec<Block>,
    width: usize,
}

/// The tower; widths and depths are read from the tensors' names and shapes.
pub struct ConvNextTower {
    stem: PatchConvolution,
    stem_norm: Norm,
    stages: Vec<Stage>,
    eps: f64,
}

impl ConvNextTower {
    /// Loads stem and stages. `weights` stands at `model.vision_tower_aux`.
    ///
    /// # Errors
    /// When tensors are missing or contradict each other.
    pub fn load(weights: &WeightSource) -> Result<Self> {
        let stem = PatchConvolution::load(&weights.pp("vision_stem"), "0")?;
        if stem.kernel != STEM_STRIDE {
            return Err(Error::Input(format!(
                "vision_stem.0: kernel {}, expected {STEM_STRIDE}",
                stem.kernel
            )));
        }
        let stem_width = stem.width;
        let stem_norm = Norm::load(&weights.pp("vision_stem").pp("1"), stem_width)?;
        let source = weights.pp("vision_stages");
        let mut stages = Vec::new();
        let mut previous = stem_width;
        for index in 0..stored_depth(&source) {
            let stage = source.pp(index);
            let width = stage.tensor_any("blocks.0.gamma")?.elem_count();
            let downsample = if stages.is_empty() {
                None
            } else {
                let downsample = stage.pp("downsample");
                Some((
                    Norm::load(&downsample.pp("0"), previous)?,
                    PatchConvolution::load(&downsample, "1")?,
                ))
            };
            let blocks = stage.pp("blocks");
            let blocks = (0..stored_depth(&blocks))
                .map(|index| Block::load(&blocks.pp(index), width))
                .collect::<Result<Vec<_>>>()?;
            stages.push(Stage {
                downsample,
                blocks,
                width,
            });
            previous = width;
        }
        if stages.is_empty() {
            return Err(Error::Input(format!(
                "{}: no stages, expected one or more",
                source.prefix()
            )));
        }
        // convnext_xxlarge is the one variant with another epsilon (spec: model §2).
        let eps = if stem_width == 384 { 1e-5 } else { 1e-6 };
        Ok(Self {
            stem,
            stem_norm,
            stages,
            eps,
        })
    }
}

impl HighResTower for ConvNextTower {
    fn encode(&self, picture: &Tensor, pause: &mut Pause<'_>) -> Result<Vec<Tensor>> {
        let (_, height, width) = picture.dims3()?;
        let coarsest = STEM_STRIDE << (self.stages.len() - 1);
        if !height.is_multiple_of(coarsest) || !width.is_multiple_of(coarsest) {
            return Err(Error::Input(format!(
                "ConvNeXt tower: picture of {width}×{height}, expected multiples of {coarsest}"
            )));
        }
        let stem = self
            .stem
            .forward(&picture.permute((1, 2, 0))?.contiguous()?)?;
        let mut map = self
            .stem_norm
            .forward(&stem.flatten_to(1)?, self.eps)?
            .reshape(stem.shape())?;
        let mut outputs = Vec::with_capacity(self.stages.len());
        for stage in &self.stages {
            if let Some((norm, convolution)) = &stage.downsample {
                let normed = norm
                    .forward(&map.flatten_to(1)?, self.eps)?
                    .reshape(map.shape())?;
                map = convolution.forward(&normed)?;
            }
            for block in &stage.blocks {
                pause()?;
                map = block.forward(&map, self.eps)?;
            }
            // A view: who reads the cells wants their channels side by side, as they are.
            outputs.push(map.permute((2, 0, 1))?);
        }
        Ok(outputs)
    }

    fn channels(&self) -> usize {
        self.stages.iter().map(|stage| stage.width).sum()
    }

    fn stride(&self) -> usize {
        STEM_STRIDE
    }
}
