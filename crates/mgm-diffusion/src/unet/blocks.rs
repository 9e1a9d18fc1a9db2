//! Down, middle and up blocks.

use candle_core::{D, Tensor};
use mgm_nn::ops::ConvParams;
use mgm_nn::{Bias, Conv2d, WeightSource};

use super::transformer::{SpatialTransformer, Words};
use crate::config::UNetConfig;
use crate::error::{Error, Result};
use crate::resnet::{ResidualBlock, ResidualSizes};

/// Residual blocks, each with a transformer after it where the block attends, and a change of resolution at the end.
pub(super) struct Stage {
    residuals: Vec<ResidualBlock>,
    transformers: Vec<SpatialTransformer>,
    resample: Option<Conv2d>,
}

/// The coarsest level: residual, transformer, residual.
pub(super) struct Middle {
    first: ResidualBlock,
    transformer: SpatialTransformer,
    second: ResidualBlock,
}

fn residual(config: &UNetConfig, input: usize, output: usize) -> ResidualSizes {
    ResidualSizes {
        input,
        output,
        time: Some(config.time_width()),
        groups: config.norm_num_groups,
        eps: config.norm_eps,
    }
}

fn transformer(
    weights: &WeightSource,
    config: &UNetConfig,
    level: usize,
) -> Result<SpatialTransformer> {
    SpatialTransformer::load(
        weights,
        config.block_out_channels[level],
        config.heads(level),
        config.transformer_layers_per_block.of(level),
        config.cross_attention_dim,
        config.norm_num_groups,
    )
}

impl Stage {
    /// The down block of a level. Its outputs' channels are appended to `skips`.
    pub(super) fn down(
        weights: &WeightSource,
        config: &UNetConfig,
        level: usize,
        skips: &mut Vec<usize>,
    ) -> Result<Self> {
        let channels = config.block_out_channels[level];
        let input = config.block_out_channels[level.saturating_sub(1)];
        let layers = config.layers_per_block.of(level);
        let last = level + 1 == config.block_out_channels.len();
        let residuals = (0..layers)
            .map(|index| {
                let from = if index == 0 { input } else { channels };
                skips.push(channels);
                ResidualBlock::load(
                    &weights.pp("resnets").pp(index),
                    residual(config, from, channels),
                )
            })
            .collect::<Result<_>>()?;
        let transformers = match config.down_attends(level) {
            true => (0..layers)
                .map(|index| transformer(&weights.pp("attentions").pp(index), config, level))
                .collect::<Result<_>>()?,
            false => Vec::new(),
        };
        let resample = match last {
            true => None,
            false => {
                skips.push(channels);
                let params = ConvParams::strided(3, 2, 1);
                Some(weights.conv2d(
                    "downsamplers.0.conv",
                    channels,
                    channels,
                    params,
                    Bias::Yes,
                )?)
            }
        };
        Ok(Self {
            residuals,
            transformers,
            resample,
        })
    }

    /// Up block `block`, coarsest first; takes the channels of the maps it joins from the end of `skips`.
    pub(super) fn up(
        weights: &WeightSource,
        config: &UNetConfig,
        block: usize,
        skips: &mut Vec<usize>,
    ) -> Result<Self> {
        let levels = config.block_out_channels.len();
        let level = levels - 1 - block;
        let channels = config.block_out_channels[level];
        let mut from = config.block_out_channels[(level + 1).min(levels - 1)];
        let layers = config.layers_per_block.of(level) + 1;
        let mut residuals = Vec::with_capacity(layers);
        for index in 0..layers {
            let skip = skips.pop().ok_or_else(|| {
                Error::config(
                    weights.prefix(),
                    "up blocks have more layers than down blocks gave maps",
                )
            })?;
            residuals.push(ResidualBlock::load(
                &weights.pp("resnets").pp(index),
                residual(config, from + skip, channels),
            )?);
            from = channels;
        }
        let transformers = match config.up_attends(block) {
            true => (0..layers)
                .map(|index| transformer(&weights.pp("attentions").pp(index), config, level))
                .collect::<Result<_>>()?,
            false => Vec::new(),
        };
        let resample = match level {
            0 => None,
            _ => {
                let params = ConvParams {
                    enlarge: 2,
                    ..ConvParams::same(3)
                };
                Some(weights.conv2d("upsamplers.0.conv", channels, channels, params, Bias::Yes)?)
            }
        };
        Ok(Self {
            residuals,
            transformers,
            resample,
        })
    }

    /// Goes down; every map is kept in `skips`.
    pub(super) fn forward_down(
        &self,
        mut x: Tensor,
        time: &Tensor,
        words: Words,
        skips: &mut Vec<Tensor>,
    ) -> Result<Tensor> {
        for (index, residual) in self.residuals.iter().enumerate() {
            x = residual.forward(&x, Some(time))?;
            if let Some(transformer) = self.transformers.get(index) {
                x = transformer.forward(&x, words)?;
            }
            skips.push(x.clone());
        }
        if let Some(resample) = &self.resample {
            x = resample.forward(&x)?;
            skips.push(x.clone());
        }
        Ok(x)
    }

    /// Goes up, joining the maps at the end of `skips`.
    pub(super) fn forward_up(
        &self,
        mut x: Tensor,
        time: &Tensor,
        words: Words,
        skips: &mut Vec<Tensor>,
    ) -> Result<Tensor> {
        for (index, residual) in self.residuals.iter().enumerate() {
            let skip = skips
                .pop()
                .ok_or_else(|| Error::Input("UNet: a down block's map is missing".into()))?;
            let joined = Tensor::cat(&[&x, &skip], D::Minus1)?;
            drop((x, skip));
            x = residual.forward(&joined, Some(time))?;
            drop(joined);
            if let Some(transformer) = self.transformers.get(index) {
                x = transformer.forward(&x, words)?;
            }
        }
        if let Some(resample) = &self.resample {
            // A finer map with an odd side: the last row or column of the doubled map is one too many.
            let trim = match skips.last() {
                Some(finer) => {
                    let (height, width) = (2 * x.dim(1)?, 2 * x.dim(2)?);
                    [
                        height.saturating_sub(finer.dim(1)?),
                        width.saturating_sub(finer.dim(2)?),
                    ]
                }
                None => [0; 2],
            };
            x = resample.forward_trimmed(&x, trim)?;
        }
        Ok(x)
    }
}

impl Middle {
    pub(super) fn load(weights: &WeightSource, config: &UNetConfig) -> Result<Self> {
        let level = config.block_out_channels.len() - 1;
        let channels = config.block_out_channels[level];
        let load = |index: usize| {
            ResidualBlock::load(
                &weights.pp("resnets").pp(index),
                residual(config, channels, channels),
            )
        };
        Ok(Self {
            first: load(0)?,
            transformer: transformer(&weights.pp("attentions.0"), config, level)?,
            second: load(1)?,
        })
    }

    pub(super) fn forward(&self, x: &Tensor, time: &Tensor, words: Words) -> Result<Tensor> {
        let x = self.first.forward(x, Some(time))?;
        let x = self.transformer.forward(&x, words)?;
        self.second.forward(&x, Some(time))
    }
}
