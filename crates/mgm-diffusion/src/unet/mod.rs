//! The UNet of Stable Diffusion XL: predicts the noise in latents, given the time, the prompt and the picture's sizes.

mod blocks;
mod embedding;
mod transformer;

use candle_core::Tensor;
use mgm_nn::ops::{self, ConvParams};
use mgm_nn::{Activation, Bias, Conv2d, GroupNorm, WeightPolicy, WeightSource, WeightStorage};

use self::blocks::{Middle, Stage};
use self::embedding::{TimeEmbedding, guidance_embedding, sinusoids};
use self::transformer::Words;
use crate::config::UNetConfig;
use crate::error::{Error, Result};

/// What steers the UNet, for a batch.
#[derive(Clone, Debug)]
pub struct Condition {
    /// Both text encoders' penultimate states side by side: `[batch · words, cross_attention_dim]`.
    pub words: Tensor,
    /// The second encoder's pooled projection, `[batch, width]`.
    pub pooled: Tensor,
    /// For each picture: original height and width, top and left of the crop, target height and width.
    pub sizes: Vec<[f64; 6]>,
}

/// UNet2DConditionModel with `text_time` conditioning.
pub struct UNet {
    conv_in: Conv2d,
    time_embedding: TimeEmbedding,
    add_embedding: TimeEmbedding,
    down: Vec<Stage>,
    middle: Middle,
    up: Vec<Stage>,
    norm_out: GroupNorm,
    conv_out: Conv2d,
    config: UNetConfig,
}

impl UNet {
    /// Loads the model; `weights` stands where `conv_in` is.
    ///
    /// Under [`WeightStorage::Q8_0`] the first and last convolution and the embeddings of time and sizes stay `bf16`: they are small, and
    /// everything depends on them.
    ///
    /// # Errors
    /// When a tensor is missing or has another shape.
    pub fn load(weights: &WeightSource, config: &UNetConfig) -> Result<Self> {
        config.check("the UNet's configuration")?;
        let edges = match weights.policy().storage {
            WeightStorage::Q8_0 => weights.clone().with_policy(WeightPolicy {
                storage: WeightStorage::Bf16,
                ..weights.policy().clone()
            }),
            _ => weights.clone(),
        };
        let (levels, finest) = (
            config.block_out_channels.len(),
            config.block_out_channels[0],
        );
        let (time, sizes) = (
            config.time_width(),
            config.projection_class_embeddings_input_dim.unwrap_or(0),
        );
        let mut skips = vec![finest];
        let down = (0..levels)
            .map(|level| {
                Stage::down(
                    &weights.pp("down_blocks").pp(level),
                    config,
                    level,
                    &mut skips,
                )
            })
            .collect::<Result<_>>()?;
        let up = (0..levels)
            .map(|block| {
                Stage::up(
                    &weights.pp("up_blocks").pp(block),
                    config,
                    block,
                    &mut skips,
                )
            })
            .collect::<Result<_>>()?;
        Ok(Self {
            conv_in: edges.conv2d(
                "conv_in",
                config.in_channels,
                finest,
                ConvParams::same(3),
                Bias::Yes,
            )?,
            time_embedding: TimeEmbedding::load(
                &edges.pp("time_embedding"),
                finest,
                time,
                config.time_cond_proj_dim,
            )?,
            add_embedding: TimeEmbedding::load(&edges.pp("add_embedding"), sizes, time, None)?,
            down,
            middle: Middle::load(&weights.pp("mid_block"), config)?,
            up,
            norm_out: weights.group_norm(
                "conv_norm_out",
                config.norm_num_groups,
                finest,
                config.norm_eps,
            )?,
            conv_out: edges.conv2d(
                "conv_out",
                finest,
                config.out_channels,
                ConvParams::same(3),
                Bias::Yes,
            )?,
            config: config.clone(),
        })
    }

    /// The configuration it was loaded with.
    pub fn config(&self) -> &UNetConfig {
        &self.config
    }

    /// The prediction for `latents [batch, height, width, channels]` at `times` of the training schedule, one for each picture or one for all.
    /// `guidance` is for models that take the guidance scale as an input, others ignore it.
    ///
    /// # Errors
    /// When the condition does not fit the latents or the model.
    pub fn forward(
        &self,
        latents: &Tensor,
        times: &[f64],
        condition: &Condition,
        guidance: f64,
    ) -> Result<Tensor> {
        let (batch, ..) = latents.dims4()?;
        let times = match times {
            &[time] => vec![time; batch],
            times if times.len() == batch => times.to_vec(),
            times => {
                return Err(Error::Input(format!(
                    "UNet: {} times for {batch} pictures",
                    times.len()
                )));
            }
        };
        let time = self.embed(&times, condition, guidance)?;
        let rows = condition.words.dim(0)?;
        if condition.words.dim(1)? != self.config.cross_attention_dim || !rows.is_multiple_of(batch)
        {
            return Err(Error::Input(format!(
                "UNet: the words' states are {:?}, expected rows of {} for each of {batch} pictures",
                condition.words.dims(),
                self.config.cross_attention_dim
            )));
        }
        let words = Words {
            states: &condition.words,
        };
        let mut x = self.conv_in.forward(latents)?;
        let mut skips = vec![x.clone()];
        for stage in &self.down {
            x = stage.forward_down(x, &time, words, &mut skips)?;
        }
        x = self.middle.forward(&x, &time, words)?;
        for stage in &self.up {
            x = stage.forward_up(x, &time, words, &mut skips)?;
        }
        Ok(self
            .conv_out
            .forward_normed(&x, &self.norm_out, Activation::Silu, None)?)
    }

    /// SiLU of the embedding of time, prompt and sizes, `[batch, width]`.
    fn embed(&self, times: &[f64], condition: &Condition, guidance: f64) -> Result<Tensor> {
        let batch = times.len();
        let config = &self.config;
        let device = condition.pooled.device();
        let cosine_first = config.flip_sin_to_cos;
        let time = sinusoids(
            times,
            config.block_out_channels[0],
            cosine_first,
            config.freq_shift,
            device,
        )?;
        let guided = match config.time_cond_proj_dim {
            Some(width) => Some(guidance_embedding(guidance, batch, width, device)?),
            None => None,
        };
        let time = self.time_embedding.forward(&time, guided.as_ref())?;
        let width = config.addition_time_embed_dim.unwrap_or(0);
        let pooled = condition.pooled.dim(1)?;
        if condition.sizes.len() != batch || condition.pooled.dim(0)? != batch {
            return Err(Error::Input(format!(
                "UNet: sizes of {} pictures and pooled texts of {}, expected {batch}",
                condition.sizes.len(),
                condition.pooled.dim(0)?
            )));
        }
        if Some(pooled + 6 * width) != config.projection_class_embeddings_input_dim {
            return Err(Error::Input(format!(
                "UNet: a pooled text of {pooled} values and six sizes of {width} do not make {:?}",
                config.projection_class_embeddings_input_dim
            )));
        }
        let sizes = sinusoids(
            &condition.sizes.concat(),
            width,
            cosine_first,
            config.freq_shift,
            device,
        )?
        .reshape((batch, 6 * width))?;
        let added = Tensor::cat(&[&condition.pooled, &sizes], 1)?;
        let embedding = (time + self.add_embedding.forward(&added, None)?)?;
        Ok(ops::silu(&embedding)?)
    }
}
