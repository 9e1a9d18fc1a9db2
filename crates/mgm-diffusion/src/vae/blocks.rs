//! Encoder and decoder of the VAE.

use candle_core::Tensor;
use mgm_nn::ops::{self, AttentionPrecision, ConvParams};
use mgm_nn::{Activation, Bias, Conv2d, GroupNorm, Linear, WeightSource};

use crate::config::VaeConfig;
use crate::error::Result;
use crate::norm::attention_precision;
use crate::resnet::{ResidualBlock, ResidualSizes};

/// Epsilon of all normalisations (diffusers fixes it).
const EPS: f64 = 1e-6;

fn sizes(config: &VaeConfig, input: usize, output: usize) -> ResidualSizes {
    ResidualSizes {
        input,
        output,
        time: None,
        groups: config.norm_num_groups,
        eps: EPS,
    }
}

/// Residual blocks of one resolution and the change to the next.
struct Level {
    residuals: Vec<ResidualBlock>,
    resample: Option<Conv2d>,
}

impl Level {
    fn load(
        weights: &WeightSource,
        config: &VaeConfig,
        input: usize,
        output: usize,
        layers: usize,
        resample: Option<(&str, ConvParams)>,
    ) -> Result<Self> {
        let residuals = (0..layers)
            .map(|index| {
                let from = if index == 0 { input } else { output };
                ResidualBlock::load(
                    &weights.pp("resnets").pp(index),
                    sizes(config, from, output),
                )
            })
            .collect::<Result<_>>()?;
        let resample = match resample {
            Some((name, params)) => {
                Some(weights.conv2d(name, output, output, params, Bias::Yes)?)
            }
            None => None,
        };
        Ok(Self {
            residuals,
            resample,
        })
    }

    fn forward(&self, mut x: Tensor) -> Result<Tensor> {
        for residual in &self.residuals {
            x = residual.forward(&x, None)?;
        }
        match &self.resample {
            Some(resample) => Ok(resample.forward(&x)?),
            None => Ok(x),
        }
    }
}

/// Attention of all positions to all, with one head.
struct PositionAttention {
    norm: GroupNorm,
    query: Linear,
    key: Linear,
    value: Linear,
    output: Linear,
    precision: AttentionPrecision,
}

impl PositionAttention {
    fn load(weights: &WeightSource, channels: usize, groups: usize) -> Result<Self> {
        // Checkpoints from before diffusers 0.18 use the older names.
        let linear = |name: &str, old: &str| {
            let name = match weights.contains(&format!("{old}.weight")) {
                true => old,
                false => name,
            };
            weights.linear(name, channels, channels, Bias::Yes)
        };
        Ok(Self {
            norm: weights.group_norm("group_norm", groups, channels, EPS)?,
            query: linear("to_q", "query")?,
            key: linear("to_k", "key")?,
            value: linear("to_v", "value")?,
            output: linear("to_out.0", "proj_attn")?,
            precision: attention_precision(weights),
        })
    }

    fn forward(&self, x: &Tensor) -> Result<Tensor> {
        let (batch, height, width, channels) = x.dims4()?;
        let rows = batch * height * width;
        let normed = self
            .norm
            .forward(x, Activation::None)?
            .reshape((rows, channels))?;
        let head = |x: Tensor| x.reshape((rows, 1, channels));
        let attended = ops::cross_attention(
            &head(self.query.forward(&normed)?)?,
            &head(self.key.forward(&normed)?)?,
            &head(self.value.forward(&normed)?)?,
            batch,
            1.0 / (channels as f32).sqrt(),
            self.precision,
        )?;
        let out = self.output.forward(&attended.reshape((rows, channels))?)?;
        Ok((x + out.reshape(x.dims())?)?)
    }
}

struct Middle {
    first: ResidualBlock,
    attention: Option<PositionAttention>,
    second: ResidualBlock,
}

impl Middle {
    fn load(weights: &WeightSource, config: &VaeConfig) -> Result<Self> {
        let channels = coarsest(config);
        let residual = |index: usize| {
            ResidualBlock::load(
                &weights.pp("resnets").pp(index),
                sizes(config, channels, channels),
            )
        };
        Ok(Self {
            first: residual(0)?,
            attention: match config.mid_block_add_attention {
                true => Some(PositionAttention::load(
                    &weights.pp("attentions.0"),
                    channels,
                    config.norm_num_groups,
                )?),
                false => None,
            },
            second: residual(1)?,
        })
    }

    fn forward(&self, x: &Tensor) -> Result<Tensor> {
        let mut x = self.first.forward(x, None)?;
        if let Some(attention) = &self.attention {
            x = attention.forward(&x)?;
        }
        self.second.forward(&x, None)
    }
}

fn coarsest(config: &VaeConfig) -> usize {
    config.block_out_channels.last().copied().unwrap_or(0)
}

pub(super) struct Encoder {
    conv_in: Conv2d,
    levels: Vec<Level>,
    middle: Middle,
    norm_out: GroupNorm,
    conv_out: Conv2d,
}

impl Encoder {
    pub(super) fn load(weights: &WeightSource, config: &VaeConfig) -> Result<Self> {
        let channels = &config.block_out_channels;
        // A row and a column of padding below and to the right, none above and left.
        let halving = ConvParams {
            pad_rows: [0, 1],
            pad_columns: [0, 1],
            ..ConvParams::strided(3, 2, 0)
        };
        let levels = (0..channels.len())
            .map(|level| {
                let resample =
                    (level + 1 < channels.len()).then_some(("downsamplers.0.conv", halving));
                Level::load(
                    &weights.pp("down_blocks").pp(level),
                    config,
                    channels[level.saturating_sub(1)],
                    channels[level],
                    config.layers_per_block,
                    resample,
                )
            })
            .collect::<Result<_>>()?;
        let last = coarsest(config);
        let out = 2 * config.latent_channels;
        let same = ConvParams::same(3);
        Ok(Self {
            conv_in: weights.conv2d("conv_in", config.in_channels, channels[0], same, Bias::Yes)?,
            levels,
            middle: Middle::load(&weights.pp("mid_block"), config)?,
            norm_out: weights.group_norm("conv_norm_out", config.norm_num_groups, last, EPS)?,
            conv_out: weights.conv2d("conv_out", last, out, same, Bias::Yes)?,
        })
    }

    pub(super) fn forward(&self, pictures: &Tensor) -> Result<Tensor> {
        let mut x = self.conv_in.forward(pictures)?;
        for level in &self.levels {
            x = level.forward(x)?;
        }
        let x = self.middle.forward(&x)?;
        Ok(self
            .conv_out
            .forward_normed(&x, &self.norm_out, Activation::Silu, None)?)
    }
}

pub(super) struct Decoder {
    conv_in: Conv2d,
    middle: Middle,
    levels: Vec<Level>,
    norm_out: GroupNorm,
    conv_out: Conv2d,
}

impl Decoder {
    pub(super) fn load(weights: &WeightSource, config: &VaeConfig) -> Result<Self> {
        let channels: Vec<usize> = config.block_out_channels.iter().rev().copied().collect();
        let doubling = ConvParams {
            enlarge: 2,
            ..ConvParams::same(3)
        };
        let levels = (0..channels.len())
            .map(|block| {
                let resample =
                    (block + 1 < channels.len()).then_some(("upsamplers.0.conv", doubling));
                Level::load(
                    &weights.pp("up_blocks").pp(block),
                    config,
                    channels[block.saturating_sub(1)],
                    channels[block],
                    config.layers_per_block + 1,
                    resample,
                )
            })
            .collect::<Result<_>>()?;
        let (coarse, fine) = (channels[0], channels[channels.len() - 1]);
        let same = ConvParams::same(3);
        Ok(Self {
            conv_in: weights.conv2d("conv_in", config.latent_channels, coarse, same, Bias::Yes)?,
            middle: Middle::load(&weights.pp("mid_block"), config)?,
            levels,
            norm_out: weights.group_norm("conv_norm_out", config.norm_num_groups, fine, EPS)?,
            conv_out: weights.conv2d("conv_out", fine, config.out_channels, same, Bias::Yes)?,
        })
    }

    pub(super) fn forward(&self, latents: &Tensor) -> Result<Tensor> {
        let x = self.conv_in.forward(latents)?;
        let mut x = self.middle.forward(&x)?;
        for level in &self.levels {
            x = level.forward(x)?;
        }
        Ok(self
            .conv_out
            .forward_normed(&x, &self.norm_out, Activation::Silu, None)?)
    }
}
