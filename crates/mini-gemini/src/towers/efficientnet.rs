//! EfficientNet-Lite0: the feature maps at strides 8 and 16, the 1280-channel head map at stride 32 and, where the classifier's weights
//! are stored, the class probabilities of every head cell; standardised per channel.
//!
//! Follows the TensorFlow original: "same" padding that puts the odd pixel below and to the right, batch norm with eps 1e-3 (folded into
//! the convolutions at load), ReLU6, no squeeze-and-excitation.

use candle_core::{Device, Tensor};
use mgm_nn::WeightSource;
use mgm_nn::ops::{self, DepthwiseParams};

use super::{HighResTower, Pause, Standardisation, renormalise};
use crate::check::stored_depth;
use crate::error::{Error, Result};

const BATCH_NORM_EPS: f64 = 1e-3;
/// Blocks whose depthwise convolution has stride 2.
const STRIDE_TWO_BLOCKS: [usize; 4] = [1, 3, 5, 11];
/// Blocks after which a stage ends that the miner sees: strides 8 and 16.
const TAPPED_BLOCKS: [usize; 2] = [4, 10];
/// Lite0 takes `(255 x − 127) / 128`.
const MEAN: [f64; 3] = [127.0 / 255.0; 3];
const STD: [f64; 3] = [128.0 / 255.0; 3];

/// Scale and shift of a folded batch norm.
fn batch_norm(weights: &WeightSource, name: &str, channels: usize) -> Result<(Tensor, Tensor)> {
    let source = weights.pp(name);
    let part = |part: &str| source.tensor(part, [channels]);
    let std = (part("running_var")? + BATCH_NORM_EPS)?.sqrt()?;
    let scale = (part("weight")? / std)?;
    let shift = (part("bias")? - (part("running_mean")? * &scale)?)?;
    Ok((scale, shift))
}

/// 1×1 convolution with folded batch norm: rows `[positions, in]` to `[positions, out]`.
struct Pointwise {
    weight: Tensor,
    bias: Tensor,
}

impl Pointwise {
    fn load(weights: &WeightSource, convolution: &str, norm: &str) -> Result<Self> {
        let weight = weights.tensor_any(&format!("{convolution}.weight"))?;
        let (output, ..) = weight.dims4()?;
        let (scale, bias) = batch_norm(weights, norm, output)?;
        let weight = weight
            .flatten_from(1)?
            .broadcast_mul(&scale.unsqueeze(1)?)?;
        Ok(Self { weight, bias })
    }

    fn forward(&self, map: &Tensor) -> Result<Tensor> {
        Ok(ops::linear_bias(map, &self.weight, &self.bias)?)
    }
}

/// Depthwise convolution with folded batch norm.
struct Depthwise {
    weight: Tensor,
    bias: Tensor,
    kernel: usize,
    stride: usize,
}

impl Depthwise {
    fn load(weights: &WeightSource, stride: usize) -> Result<Self> {
        let weight = weights.tensor_any("_depthwise_conv.weight")?;
        let (channels, _, kernel, _) = weight.dims4()?;
        let (scale, bias) = batch_norm(weights, "_bn1", channels)?;
        let weight = weight
            .reshape((channels, kernel * kernel))?
            .broadcast_mul(&scale.unsqueeze(1)?)?
            .t()?
            .contiguous()?;
        Ok(Self {
            weight,
            bias,
            kernel,
            stride,
        })
    }

    fn forward(&self, map: &Tensor) -> Result<Tensor> {
        let (height, width, _) = map.dims3()?;
        let (top, bottom) = same_padding(height, self.kernel, self.stride);
        let (left, right) = same_padding(width, self.kernel, self.stride);
        let params = DepthwiseParams {
            kernel: self.kernel,
            stride: self.stride,
            pad_top: top,
            pad_left: left,
            pad_bottom: bottom,
            pad_right: right,
        };
        Ok(
            ops::depthwise(&map.unsqueeze(0)?, &self.weight, Some(&self.bias), &params)?
                .squeeze(0)?,
        )
    }
}

/// TensorFlow's "same" padding before and after: the output has ⌈size / stride⌉ positions, the odd one goes after.
fn same_padding(size: usize, kernel: usize, stride: usize) -> (usize, usize) {
    let output = size.div_ceil(stride);
    let total = ((output - 1) * stride + kernel).saturating_sub(size);
    (total / 2, total - total / 2)
}

/// Inverted residual block.
struct Block {
    expand: Option<Pointwise>,
    depthwise: Depthwise,
    project: Pointwise,
}

impl Block {
    fn load(weights: &WeightSource, stride: usize) -> Result<Self> {
        let expand = match weights.contains("_expand_conv.weight") {
            true => Some(Pointwise::load(weights, "_expand_conv", "_bn0")?),
            false => None,
        };
        Ok(Self {
            expand,
            depthwise: Depthwise::load(weights, stride)?,
            project: Pointwise::load(weights, "_project_conv", "_bn2")?,
        })
    }

    fn forward(&self, map: &Tensor) -> Result<Tensor> {
        let expanded = match &self.expand {
            Some(expand) => ops::relu6(&expand.forward(map)?)?,
            None => map.clone(),
        };
        let convolved = ops::relu6(&self.depthwise.forward(&expanded)?)?;
        let projected = self.project.forward(&convolved)?;
        if projected.shape() == map.shape() {
            Ok((projected + map)?)
        } else {
            Ok(projected)
        }
    }
}

/// The tower.
pub struct EfficientNetTower {
    stem_weight: Tensor,
    stem_bias: Tensor,
    blocks: Vec<Block>,
    head: Pointwise,
    classifier: Option<(Tensor, Tensor)>,
    standardisations: Vec<Standardisation>,
    channels: usize,
    device: Device,
}

impl EfficientNetTower {
    /// Loads stem, blocks and head convolution. `weights` stands at `model.vision_tower_aux`.
    ///
    /// # Errors
    /// When tensors are missing or contradict each other.
    pub fn load(weights: &WeightSource) -> Result<Self> {
        let stem = weights.tensor_any("_conv_stem.weight")?;
        let (width, ..) = stem.dims4()?;
        let (scale, stem_bias) = batch_norm(weights, "_bn0", width)?;
        let source = weights.pp("_blocks");
        let mut blocks = Vec::new();
        for index in 0..stored_depth(&source) {
            let stride = if STRIDE_TWO_BLOCKS.contains(&index) {
                2
            } else {
                1
            };
            blocks.push(Block::load(&source.pp(index), stride)?);
        }
        let head = Pointwise::load(weights, "_conv_head", "_bn1")?;
        let mut widths = Vec::new();
        for tap in TAPPED_BLOCKS {
            let block: &Block = blocks.get(tap).ok_or_else(|| {
                Error::Input(format!("{}: block {tap} is missing", source.prefix()))
            })?;
            widths.push(block.project.bias.elem_count());
        }
        widths.push(head.bias.elem_count());
        let classifier = match weights.shape("_fc.weight").as_deref() {
            Some([classes, channels]) => {
                widths.push(*classes);
                let weight = weights.tensor("_fc.weight", [*classes, *channels])?;
                Some((weight, weights.tensor("_fc.bias", [*classes])?))
            }
            _ => None,
        };
        let standardisations = widths
            .iter()
            .enumerate()
            .map(|(index, width)| {
                Standardisation::load(weights, &format!("feature_norm.{index}"), *width)
            })
            .collect::<Result<Vec<_>>>()?;
        Ok(Self {
            stem_weight: stem.flatten_from(1)?.broadcast_mul(&scale.unsqueeze(1)?)?,
            stem_bias,
            blocks,
            head,
            classifier,
            standardisations,
            channels: widths.iter().sum(),
            device: weights.device().clone(),
        })
    }

    /// The maps `[height, width, channels]` at strides 8, 16 and 32, and the class probabilities at stride 32 if there is a classifier;
    /// before standardisation.
    ///
    /// # Errors
    /// When a tensor operation fails, or `pause` says so.
    pub fn taps(&self, picture: &Tensor, pause: &mut Pause<'_>) -> Result<Vec<Tensor>> {
        let picture = renormalise(picture, MEAN, STD, &self.device)?;
        let mut map = ops::relu6(&self.stem(&picture)?)?;
        let mut taps = Vec::with_capacity(TAPPED_BLOCKS.len() + 1);
        for (index, block) in self.blocks.iter().enumerate() {
            pause()?;
            map = block.forward(&map)?;
            if TAPPED_BLOCKS.contains(&index) {
                taps.push(map.clone());
            }
        }
        let head = ops::relu6(&self.head.forward(&map)?)?;
        if let Some((weight, bias)) = &self.classifier {
            taps.push(head.clone());
            taps.push(class_probabilities(&head, weight, bias)?);
        } else {
            taps.push(head);
        }
        Ok(taps)
    }

    /// The 3×3 stride 2 stem over `[3, height, width]`, by gathering its nine shifted views; gives `[height / 2, width / 2, out]`.
    fn stem(&self, picture: &Tensor) -> Result<Tensor> {
        let (channels, height, width) = picture.dims3()?;
        let (top, bottom) = same_padding(height, 3, 2);
        let (left, right) = same_padding(width, 3, 2);
        let (rows, columns) = (height.div_ceil(2), width.div_ceil(2));
        // One extra row and column let every shifted view be cut to even size.
        let padded =
            picture
                .pad_with_zeros(1, top, bottom + 1)?
                .pad_with_zeros(2, left, right + 1)?;
        let mut views = Vec::with_capacity(9);
        for y in 0..3 {
            for x in 0..3 {
                let view = padded
                    .narrow(1, y, 2 * rows)?
                    .narrow(2, x, 2 * columns)?
                    .contiguous()?
                    .reshape(vec![channels, rows, 2, columns, 2])?
                    .narrow(2, 0, 1)?
                    .narrow(4, 0, 1)?
                    .contiguous()?
                    .reshape((channels, rows * columns))?;
                views.push(view);
            }
        }
        // [channels, 9, positions] → [positions, channels · 9], the order of the flattened weight.
        let patches = Tensor::stack(&views, 1)?
            .reshape((channels * 9, rows * columns))?
            .t()?
            .contiguous()?;
        let output = ops::linear_bias(&patches, &self.stem_weight, &self.stem_bias)?;
        Ok(output.reshape((rows, columns, self.stem_bias.elem_count()))?)
    }
}

/// The classifier at every cell of a head map `[height, width, channels]`, half from the cell, half from the whole picture: the softmax of
/// the mean of the cell's logits and the picture's (which are the mean of all cells', the classifier being linear).
fn class_probabilities(head: &Tensor, weight: &Tensor, bias: &Tensor) -> Result<Tensor> {
    let (height, width, _) = head.dims3()?;
    let logits = ops::linear_bias(&head.flatten_to(1)?, weight, bias)?;
    let mixed = (logits.broadcast_add(&logits.mean_keepdim(0)?)? * 0.5)?;
    let exponentials = mixed.broadcast_sub(&mixed.max_keepdim(1)?)?.exp()?;
    let probabilities = exponentials.broadcast_div(&exponentials.sum_keepdim(1)?)?;
    Ok(probabilities.reshape((height, width, weight.dim(0)?))?)
}

impl HighResTower for EfficientNetTower {
    fn encode(&self, picture: &Tensor, pause: &mut Pause<'_>) -> Result<Vec<Tensor>> {
        let (_, height, width) = picture.dims3()?;
        if height == 0 || !height.is_multiple_of(32) || !width.is_multiple_of(32) {
            return Err(Error::Input(format!(
                "EfficientNet tower: picture of {width}×{height}, expected multiples of 32"
            )));
        }
        self.taps(picture, pause)?
            .iter()
            .zip(&self.standardisations)
            .map(|(tap, standardisation)| {
                Ok(standardisation
                    .forward(tap)?
                    .permute((2, 0, 1))?
                    .contiguous()?)
            })
            .collect()
    }

    fn channels(&self) -> usize {
        self.channels
    }

    fn stride(&self) -> usize {
        8
    }
}
