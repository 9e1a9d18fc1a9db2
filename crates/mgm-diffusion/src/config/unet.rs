//! The UNet's configuration.

use serde::Deserialize;

use super::{MAX_COUNT, PerBlock, four, norm_eps, thirty_two, yes};
use crate::error::{Error, Result};

/// `unet/config.json`.
#[derive(Clone, Debug, Deserialize)]
pub struct UNetConfig {
    /// Side of the latents the model was trained on.
    #[serde(default)]
    pub sample_size: Option<usize>,
    /// Channels of the latents that go in.
    #[serde(default = "four")]
    pub in_channels: usize,
    /// Channels that come out.
    #[serde(default = "four")]
    pub out_channels: usize,
    /// Channels of each level, finest first.
    pub block_out_channels: Vec<usize>,
    /// `DownBlock2D` or `CrossAttnDownBlock2D`, finest first.
    pub down_block_types: Vec<String>,
    /// `UpBlock2D` or `CrossAttnUpBlock2D`, coarsest first.
    pub up_block_types: Vec<String>,
    /// Residual blocks of a down block; up blocks have one more.
    #[serde(default = "two")]
    pub layers_per_block: PerBlock,
    /// Transformer layers in each attention of a level.
    #[serde(default = "one")]
    pub transformer_layers_per_block: PerBlock,
    /// Heads of each level: diffusers' name for it is a historical mistake that all SDXL files repeat.
    #[serde(default = "eight")]
    pub attention_head_dim: PerBlock,
    /// Heads of each level, where a file names them properly.
    #[serde(default)]
    pub num_attention_heads: Option<PerBlock>,
    /// Width of the text encoders' states.
    pub cross_attention_dim: usize,
    /// Groups of all group normalisations.
    #[serde(default = "thirty_two")]
    pub norm_num_groups: usize,
    /// Epsilon of the residual blocks' normalisations.
    #[serde(default = "norm_eps")]
    pub norm_eps: f64,
    /// Whether cosines come before sines in the embedding of the time.
    #[serde(default = "yes")]
    pub flip_sin_to_cos: bool,
    /// Shift in the exponent of that embedding.
    #[serde(default)]
    pub freq_shift: f64,
    /// `text_time` for SDXL.
    #[serde(default)]
    pub addition_embed_type: Option<String>,
    /// Width of the embedding of each of the six sizes.
    #[serde(default)]
    pub addition_time_embed_dim: Option<usize>,
    /// Width of the pooled text and all size embeddings together.
    #[serde(default)]
    pub projection_class_embeddings_input_dim: Option<usize>,
    /// Width of the embedding of the guidance scale, in models distilled to need no second pass.
    #[serde(default)]
    pub time_cond_proj_dim: Option<usize>,
    #[serde(default)]
    act_fn: Option<String>,
    #[serde(default)]
    mid_block_type: Option<String>,
    #[serde(default)]
    resnet_time_scale_shift: Option<String>,
    #[serde(default)]
    time_embedding_type: Option<String>,
    #[serde(default)]
    class_embed_type: Option<String>,
    #[serde(default)]
    encoder_hid_dim_type: Option<String>,
    #[serde(default)]
    attention_type: Option<String>,
    #[serde(default)]
    conv_in_kernel: Option<usize>,
    #[serde(default)]
    conv_out_kernel: Option<usize>,
    #[serde(default)]
    dual_cross_attention: Option<bool>,
    #[serde(default)]
    time_embedding_dim: Option<usize>,
    #[serde(default)]
    reverse_transformer_layers_per_block: Option<serde_json::Value>,
    #[serde(default)]
    cross_attention_norm: Option<String>,
    #[serde(default)]
    center_input_sample: Option<bool>,
}

fn two() -> PerBlock {
    PerBlock::All(2)
}
fn one() -> PerBlock {
    PerBlock::All(1)
}
fn eight() -> PerBlock {
    PerBlock::All(8)
}

impl UNetConfig {
    /// The configuration of Stable Diffusion XL base 1.0, for checkpoints that bring none.
    pub fn sdxl() -> Self {
        let names = |list: [&str; 3]| list.map(str::to_string).to_vec();
        let cross = ["CrossAttnDownBlock2D", "CrossAttnUpBlock2D"];
        Self {
            sample_size: Some(128),
            in_channels: 4,
            out_channels: 4,
            block_out_channels: vec![320, 640, 1280],
            down_block_types: names(["DownBlock2D", cross[0], cross[0]]),
            up_block_types: names([cross[1], cross[1], "UpBlock2D"]),
            layers_per_block: two(),
            transformer_layers_per_block: PerBlock::Each(vec![1, 2, 10]),
            attention_head_dim: PerBlock::Each(vec![5, 10, 20]),
            num_attention_heads: None,
            cross_attention_dim: 2048,
            norm_num_groups: 32,
            norm_eps: norm_eps(),
            flip_sin_to_cos: true,
            freq_shift: 0.0,
            addition_embed_type: Some("text_time".into()),
            addition_time_embed_dim: Some(256),
            projection_class_embeddings_input_dim: Some(2816),
            time_cond_proj_dim: None,
            act_fn: None,
            mid_block_type: None,
            resnet_time_scale_shift: None,
            time_embedding_type: None,
            class_embed_type: None,
            encoder_hid_dim_type: None,
            attention_type: None,
            conv_in_kernel: None,
            conv_out_kernel: None,
            dual_cross_attention: None,
            time_embedding_dim: None,
            reverse_transformer_layers_per_block: None,
            cross_attention_norm: None,
            center_input_sample: None,
        }
    }

    /// Heads of a level.
    pub fn heads(&self, level: usize) -> usize {
        self.num_attention_heads
            .as_ref()
            .unwrap_or(&self.attention_head_dim)
            .of(level)
    }

    /// Whether a down block has attention.
    pub fn down_attends(&self, block: usize) -> bool {
        self.down_block_types[block] == "CrossAttnDownBlock2D"
    }

    /// Whether an up block (coarsest first) has attention.
    pub fn up_attends(&self, block: usize) -> bool {
        self.up_block_types[block] == "CrossAttnUpBlock2D"
    }

    /// Width of the embedding of the time.
    pub fn time_width(&self) -> usize {
        4 * self.block_out_channels[0]
    }

    /// Refuses what this program does not compute.
    ///
    /// # Errors
    /// One line that names the entry.
    pub fn check(&self, file: &str) -> Result<()> {
        let refuse = |message: String| Err(Error::config(file, message));
        let blocks = self.block_out_channels.len();
        if blocks == 0
            || self
                .block_out_channels
                .iter()
                .any(|c| !(1..=MAX_COUNT).contains(c))
        {
            return refuse(
                "block_out_channels: expected one positive number for each block".into(),
            );
        }
        for (what, types, allowed) in [
            (
                "down_block_types",
                &self.down_block_types,
                ["DownBlock2D", "CrossAttnDownBlock2D"],
            ),
            (
                "up_block_types",
                &self.up_block_types,
                ["UpBlock2D", "CrossAttnUpBlock2D"],
            ),
        ] {
            if types.len() != blocks {
                return refuse(format!(
                    "{what}: expected {blocks} entries, found {}",
                    types.len()
                ));
            }
            if let Some(other) = types.iter().find(|t| !allowed.contains(&t.as_str())) {
                return refuse(format!(
                    "{what}: {other} is not supported, expected {} or {}",
                    allowed[0], allowed[1]
                ));
            }
        }
        for (what, counts) in [
            ("layers_per_block", &self.layers_per_block),
            (
                "transformer_layers_per_block",
                &self.transformer_layers_per_block,
            ),
            ("attention_head_dim", &self.attention_head_dim),
        ] {
            if !counts.fits(blocks) {
                return refuse(format!(
                    "{what}: expected a positive number, or {blocks} of them"
                ));
            }
        }
        if self
            .num_attention_heads
            .as_ref()
            .is_some_and(|heads| !heads.fits(blocks))
        {
            return refuse(format!(
                "num_attention_heads: expected a positive number, or {blocks} of them"
            ));
        }
        for level in 0..blocks {
            let (channels, heads) = (self.block_out_channels[level], self.heads(level));
            if !channels.is_multiple_of(self.norm_num_groups.max(1)) || self.norm_num_groups == 0 {
                return refuse(format!(
                    "{channels} channels cannot be split into {} groups",
                    self.norm_num_groups
                ));
            }
            let attends = self.down_attends(level) || self.up_attends(blocks - 1 - level);
            if (attends || level == blocks - 1) && !channels.is_multiple_of(heads) {
                return refuse(format!(
                    "{channels} channels cannot be split into {heads} heads"
                ));
            }
        }
        let unsupported = [
            (
                "act_fn",
                self.act_fn
                    .as_deref()
                    .filter(|v| !["silu", "swish"].contains(v)),
            ),
            (
                "mid_block_type",
                self.mid_block_type
                    .as_deref()
                    .filter(|v| *v != "UNetMidBlock2DCrossAttn"),
            ),
            (
                "resnet_time_scale_shift",
                self.resnet_time_scale_shift
                    .as_deref()
                    .filter(|v| *v != "default"),
            ),
            (
                "time_embedding_type",
                self.time_embedding_type
                    .as_deref()
                    .filter(|v| *v != "positional"),
            ),
            ("class_embed_type", self.class_embed_type.as_deref()),
            ("encoder_hid_dim_type", self.encoder_hid_dim_type.as_deref()),
            (
                "attention_type",
                self.attention_type.as_deref().filter(|v| *v != "default"),
            ),
            ("cross_attention_norm", self.cross_attention_norm.as_deref()),
        ];
        if let Some((entry, Some(value))) = unsupported.iter().find(|(_, value)| value.is_some()) {
            return refuse(format!(
                "{entry} {value:?} is not supported: expected a Stable Diffusion XL model"
            ));
        }
        let kernel = |k: Option<usize>| k.is_some_and(|k| k != 3);
        if kernel(self.conv_in_kernel)
            || kernel(self.conv_out_kernel)
            || self.dual_cross_attention == Some(true)
            || self.center_input_sample == Some(true)
            || self.time_embedding_dim.is_some()
            || self
                .reverse_transformer_layers_per_block
                .as_ref()
                .is_some_and(|v| !v.is_null())
        {
            return refuse(
                "not a plain UNet2DConditionModel: expected a Stable Diffusion XL model".into(),
            );
        }
        if self.addition_embed_type.as_deref() != Some("text_time")
            || self
                .addition_time_embed_dim
                .is_none_or(|n| !(1..=MAX_COUNT).contains(&n))
            || self
                .projection_class_embeddings_input_dim
                .is_none_or(|n| !(1..=MAX_COUNT).contains(&n))
        {
            return refuse(format!(
                "addition_embed_type {:?} with its widths is not what Stable Diffusion XL has, expected \"text_time\"",
                self.addition_embed_type
            ));
        }
        Ok(())
    }
}
