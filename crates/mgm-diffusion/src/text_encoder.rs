//! CLIP text encoders, as SDXL uses them: the states before the last layer, and the second one's pooled projection.

use candle_core::Tensor;
use mgm_nn::ops::{self, AttentionSpec};
use mgm_nn::{Activation, Bias, Embedding, Linear, WeightSource};

use crate::config::TextEncoderConfig;
use crate::error::{Error, Result};
use crate::norm::LayerNorm;

/// A CLIP text transformer.
pub struct TextEncoder {
    tokens: Embedding,
    positions: Tensor,
    layers: Vec<Layer>,
    final_norm: LayerNorm,
    projection: Option<Linear>,
    config: TextEncoderConfig,
}

/// What an encoder says about a batch of windows.
pub struct EncodedText {
    /// States after all layers but the last, without the final normalisation: `[windows · window, width]`.
    pub penultimate: Tensor,
    /// The projected state of each window's end token `[windows, projection]`, if the encoder has a projection.
    pub pooled: Option<Tensor>,
}

struct Layer {
    norm1: LayerNorm,
    query: Linear,
    key: Linear,
    value: Linear,
    output: Linear,
    norm2: LayerNorm,
    fc1: Linear,
    fc2: Linear,
}

impl TextEncoder {
    /// Loads the encoder; `weights` stands where `text_model` or its parts are. `with_projection` says whether a pooled projection is
    /// needed.
    ///
    /// # Errors
    /// When a tensor is missing or has another shape.
    pub fn load(
        weights: &WeightSource,
        config: &TextEncoderConfig,
        with_projection: bool,
    ) -> Result<Self> {
        let width = config.hidden_size;
        let model = match weights.contains("embeddings.token_embedding.weight") {
            true => weights.clone(),
            false => weights.pp("text_model"),
        };
        let layers = (0..config.num_hidden_layers)
            .map(|index| Layer::load(&model.pp("encoder.layers").pp(index), config))
            .collect::<Result<_>>()?;
        Ok(Self {
            tokens: model.embedding("embeddings.token_embedding", config.vocab_size, width)?,
            positions: model.tensor(
                "embeddings.position_embedding.weight",
                [config.max_position_embeddings, width],
            )?,
            layers,
            final_norm: LayerNorm::load(&model, "final_layer_norm", width, config.layer_norm_eps)?,
            projection: match with_projection {
                true => Some(weights.linear(
                    "text_projection",
                    width,
                    config.projection_dim,
                    Bias::No,
                )?),
                false => None,
            },
            config: config.clone(),
        })
    }

    /// Tokens of a window.
    pub fn window(&self) -> usize {
        self.config.max_position_embeddings
    }

    /// Encodes windows of [`Self::window`] tokens each.
    ///
    /// # Errors
    /// When a window has another length or holds an unknown token.
    pub fn encode(&self, windows: &[Vec<u32>]) -> Result<EncodedText> {
        let window = self.window();
        if windows.is_empty() || windows.iter().any(|ids| ids.len() != window) {
            return Err(Error::Input(format!(
                "text encoder: expected windows of {window} tokens"
            )));
        }
        let ids = windows.concat();
        let width = self.config.hidden_size;
        let mut hidden = self
            .tokens
            .forward(&ids)?
            .reshape((windows.len(), window, width))?
            .broadcast_add(&self.positions)?
            .reshape((ids.len(), width))?;
        let (last, before) = match self.layers.split_last() {
            Some(split) => split,
            None => return Err(Error::Input("text encoder: no layers".into())),
        };
        for layer in before {
            hidden = layer.forward(&hidden, windows.len(), &self.config)?;
        }
        let penultimate = hidden.clone();
        let pooled = match &self.projection {
            None => None,
            Some(projection) => {
                let states = last.forward(&hidden, windows.len(), &self.config)?;
                let ends: Vec<u32> = windows
                    .iter()
                    .enumerate()
                    .map(|(index, ids)| (index * window + self.end(ids)) as u32)
                    .collect();
                let ends = Tensor::from_vec(ends, windows.len(), states.device())?;
                let states = self.final_norm.forward(&states.index_select(&ends, 0)?)?;
                Some(projection.forward(&states)?)
            }
        };
        Ok(EncodedText {
            penultimate,
            pooled,
        })
    }

    /// Where a window is pooled: at the first end token, or, by the rule of old configurations, at the first of the largest tokens.
    fn end(&self, ids: &[u32]) -> usize {
        const OLD_END: u32 = 2;
        let wanted = match self.config.eos_token_id {
            OLD_END => ids.iter().max().copied().unwrap_or(0),
            end => end,
        };
        ids.iter().position(|&id| id == wanted).unwrap_or(0)
    }
}

impl Layer {
    fn load(weights: &WeightSource, config: &TextEncoderConfig) -> Result<Self> {
        let (width, inner) = (config.hidden_size, config.intermediate_size);
        let norm = |name: &str| LayerNorm::load(weights, name, width, config.layer_norm_eps);
        let linear = |name: &str, from: usize, to: usize| weights.linear(name, from, to, Bias::Yes);
        Ok(Self {
            norm1: norm("layer_norm1")?,
            query: linear("self_attn.q_proj", width, width)?,
            key: linear("self_attn.k_proj", width, width)?,
            value: linear("self_attn.v_proj", width, width)?,
            output: linear("self_attn.out_proj", width, width)?,
            norm2: norm("layer_norm2")?,
            fc1: linear("mlp.fc1", width, inner)?,
            fc2: linear("mlp.fc2", inner, width)?,
        })
    }

    fn forward(
        &self,
        input: &Tensor,
        windows: usize,
        config: &TextEncoderConfig,
    ) -> Result<Tensor> {
        let (rows, width) = input.dims2()?;
        let head_dim = width / config.num_attention_heads;
        let normed = self.norm1.forward(input)?;
        let split = |x: Tensor| x.reshape((rows, config.num_attention_heads, head_dim));
        let spec = AttentionSpec {
            scale: 1.0 / (head_dim as f32).sqrt(),
            causal: true,
            segments: vec![rows / windows; windows],
        };
        let attended = ops::attention(
            &split(self.query.forward(&normed)?)?,
            &split(self.key.forward(&normed)?)?,
            &split(self.value.forward(&normed)?)?,
            &spec,
        )?;
        let hidden = (input + self.output.forward(&attended.reshape((rows, width))?)?)?;
        let activation = match config.hidden_act.as_str() {
            "quick_gelu" => Activation::QuickGelu,
            _ => Activation::GeluErf,
        };
        let inner = self
            .fc1
            .forward_with(&self.norm2.forward(&hidden)?, activation)?;
        Ok((&hidden + self.fc2.forward(&inner)?)?)
    }
}
