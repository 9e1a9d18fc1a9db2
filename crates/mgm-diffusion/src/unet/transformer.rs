//! The spatial transformer: positions attend to each other and to the words of the prompt.

use candle_core::Tensor;
use mgm_nn::ops::{self, AttentionPrecision};
use mgm_nn::{Activation, Bias, GroupNorm, Linear, WeightSource};

use crate::error::Result;
use crate::norm::{LayerNorm, attention_precision};

/// Epsilon of the group normalisation before a transformer (diffusers fixes it).
const GROUP_EPS: f64 = 1e-6;
/// Epsilon of the layer normalisations (PyTorch's default).
const LAYER_EPS: f64 = 1e-5;
/// Rows of the gated MLP that are computed together: its inner width is eight times the channels.
const MLP_ROWS: usize = 2048;

/// Transformer layers over the positions of a map.
pub(super) struct SpatialTransformer {
    norm: GroupNorm,
    proj_in: Linear,
    layers: Vec<TransformerLayer>,
    proj_out: Linear,
}

/// The prompt: `[batch · words, width]`.
#[derive(Clone, Copy)]
pub(super) struct Words<'a> {
    pub(super) states: &'a Tensor,
}

struct TransformerLayer {
    norm1: LayerNorm,
    self_attention: Attention,
    norm2: LayerNorm,
    cross_attention: Attention,
    norm3: LayerNorm,
    mlp_in: Linear,
    mlp_out: Linear,
}

struct Attention {
    query: Linear,
    key: Linear,
    value: Linear,
    output: Linear,
    heads: usize,
    precision: AttentionPrecision,
}

impl SpatialTransformer {
    pub(super) fn load(
        weights: &WeightSource,
        channels: usize,
        heads: usize,
        layers: usize,
        words: usize,
        groups: usize,
    ) -> Result<Self> {
        let projection = |name: &str| weights.linear(name, channels, channels, Bias::Yes);
        Ok(Self {
            norm: weights.group_norm("norm", groups, channels, GROUP_EPS)?,
            // Old checkpoints store the projections as 1×1 convolutions, which are the same matrices.
            proj_in: projection("proj_in")?,
            layers: (0..layers)
                .map(|index| {
                    let weights = weights.pp("transformer_blocks").pp(index);
                    TransformerLayer::load(&weights, channels, heads, words)
                })
                .collect::<Result<_>>()?,
            proj_out: projection("proj_out")?,
        })
    }

    /// `x [batch, height, width, channels]` to the same shape.
    pub(super) fn forward(&self, x: &Tensor, words: Words) -> Result<Tensor> {
        let (batch, height, width, channels) = x.dims4()?;
        let normed = self.norm.forward(x, Activation::None)?;
        let rows = normed.reshape((batch * height * width, channels))?;
        let mut hidden = self.proj_in.forward(&rows)?;
        drop((normed, rows));
        for layer in &self.layers {
            hidden = layer.forward(&hidden, batch, words)?;
        }
        let out = self.proj_out.forward(&hidden)?;
        Ok((x + out.reshape(x.dims())?)?)
    }
}

impl TransformerLayer {
    fn load(weights: &WeightSource, channels: usize, heads: usize, words: usize) -> Result<Self> {
        let norm = |name: &str| LayerNorm::load(weights, name, channels, LAYER_EPS);
        let inner = 4 * channels;
        Ok(Self {
            norm1: norm("norm1")?,
            self_attention: Attention::load(&weights.pp("attn1"), channels, channels, heads)?,
            norm2: norm("norm2")?,
            cross_attention: Attention::load(&weights.pp("attn2"), channels, words, heads)?,
            norm3: norm("norm3")?,
            mlp_in: weights.linear("ff.net.0.proj", channels, 2 * inner, Bias::Yes)?,
            mlp_out: weights.linear("ff.net.2", inner, channels, Bias::Yes)?,
        })
    }

    fn forward(&self, input: &Tensor, batch: usize, words: Words) -> Result<Tensor> {
        let attended = self
            .self_attention
            .to_itself(&self.norm1.forward(input)?, batch)?;
        let hidden = (input + attended)?;
        let attended =
            self.cross_attention
                .to_words(&self.norm2.forward(&hidden)?, batch, words)?;
        let hidden = (&hidden + attended)?;
        let fed = self.mlp(&self.norm3.forward(&hidden)?)?;
        Ok((&hidden + fed)?)
    }

    fn mlp(&self, x: &Tensor) -> Result<Tensor> {
        let (rows, _) = x.dims2()?;
        let part = |x: &Tensor| -> Result<Tensor> {
            Ok(self
                .mlp_out
                .forward(&ops::geglu(&self.mlp_in.forward(x)?)?)?)
        };
        if rows <= MLP_ROWS {
            return part(x);
        }
        let parts = (0..rows)
            .step_by(MLP_ROWS)
            .map(|first| part(&x.narrow(0, first, MLP_ROWS.min(rows - first))?))
            .collect::<Result<Vec<_>>>()?;
        Ok(Tensor::cat(&parts, 0)?)
    }
}

impl Attention {
    fn load(weights: &WeightSource, channels: usize, keys: usize, heads: usize) -> Result<Self> {
        Ok(Self {
            query: weights.linear("to_q", channels, channels, Bias::No)?,
            key: weights.linear("to_k", keys, channels, Bias::No)?,
            value: weights.linear("to_v", keys, channels, Bias::No)?,
            output: weights.linear("to_out.0", channels, channels, Bias::Yes)?,
            heads,
            precision: attention_precision(weights),
        })
    }

    fn heads_of(&self, x: Tensor) -> Result<Tensor> {
        let (rows, width) = x.dims2()?;
        Ok(x.reshape((rows, self.heads, width / self.heads))?)
    }

    fn scale(&self) -> f32 {
        1.0 / ((self.query.out_features() / self.heads) as f32).sqrt()
    }

    fn to_itself(&self, x: &Tensor, batch: usize) -> Result<Tensor> {
        self.attend(x, x, batch)
    }

    fn to_words(&self, x: &Tensor, batch: usize, words: Words) -> Result<Tensor> {
        self.attend(x, words.states, batch)
    }

    fn attend(&self, x: &Tensor, seen: &Tensor, batch: usize) -> Result<Tensor> {
        let attended = ops::cross_attention(
            &self.heads_of(self.query.forward(x)?)?,
            &self.heads_of(self.key.forward(seen)?)?,
            &self.heads_of(self.value.forward(seen)?)?,
            batch,
            self.scale(),
            self.precision,
        )?;
        Ok(self.output.forward(&attended.flatten_from(1)?)?)
    }
}
