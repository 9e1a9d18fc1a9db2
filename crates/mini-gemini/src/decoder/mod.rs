//! One decoder for every language-model family: Gemma, Llama/Vicuna/Yi, Mistral, Mixtral, Qwen2, SmolLM2.
//!
//! The families differ in a configuration value each (spec: model §9.3), not in a copy of the code. Rows are ragged: the tokens of
//! several sequences lie one after another in `[rows, hidden]`, and only attention looks at where a sequence begins.

mod attention;
mod cache;
mod mlp;

use std::ops::Range;

use candle_core::{Device, Tensor};
use mgm_nn::kv::{KvPool, KvShape};
use mgm_nn::ops::{self, RopeTable};
use mgm_nn::{Bias, Embedding, Linear, WeightPolicy, WeightSource, WeightStorage};

use crate::error::{Error, Result};
use crate::towers::Pause;
use attention::Attention;
pub use cache::{CachePool, KvCache};
use cache::{Store, TensorCache};
pub use mgm_nn::kv::{BLOCK_POSITIONS, KvBlock};
use mlp::FeedForward;

/// Positions the rotary table starts with; it grows on demand.
const FIRST_POSITIONS: usize = 2048;

/// Activation of the gated MLP.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Activation {
    /// `x · sigmoid(x)`: all families but Gemma.
    Silu,
    /// GELU by its tanh form: Gemma from transformers 4.39 on.
    GeluTanh,
    /// GELU by the error function: Gemma in transformers 4.38.
    GeluErf,
}

/// Mixture-of-experts sizes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ExpertConfig {
    /// Experts per layer.
    pub count: usize,
    /// Experts that see a token.
    pub per_token: usize,
}

/// Hyper-parameters of a decoder.
#[derive(Clone, Debug)]
pub struct DecoderConfig {
    /// Width of the residual stream.
    pub hidden_size: usize,
    /// Width inside the gated MLP (of one expert).
    pub intermediate_size: usize,
    /// Number of layers.
    pub layers: usize,
    /// Query heads.
    pub heads: usize,
    /// Key and value heads; divides `heads`.
    pub kv_heads: usize,
    /// Size of one head.
    pub head_dim: usize,
    /// Rows of the embedding.
    pub vocab_size: usize,
    /// RMSNorm epsilon.
    pub norm_eps: f64,
    /// Added to every norm weight: 1 in Gemma, else 0.
    pub norm_offset: f32,
    /// Activation of the gated MLP.
    pub activation: Activation,
    /// Rotary base.
    pub rope_theta: f64,
    /// Factor on all input embeddings, visual ones included (√hidden in Gemma).
    pub embedding_scale: Option<f64>,
    /// Mixture of experts in place of the MLP.
    pub experts: Option<ExpertConfig>,
    /// Whether the output head is the embedding.
    pub tied_head: bool,
}

struct Layer {
    input_norm: Tensor,
    attention: Attention,
    post_attention_norm: Tensor,
    feed_forward: FeedForward,
}

/// The language model.
pub struct Decoder {
    config: DecoderConfig,
    embedding: Embedding,
    layers: Vec<Layer>,
    norm: Tensor,
    /// None where it is the embedding.
    head: Option<Linear>,
    rope: RopeTable,
    kv: KvPool,
    device: Device,
}

/// Where the rows of one forward pass come from and what they may attend to.
pub enum Context<'a> {
    /// Whole sequences of the given lengths, each starting at position 0; differentiable.
    Sequences(&'a [usize]),
    /// Continuations: each cache receives as many new rows as stand beside it; not differentiable.
    Cached(&'a mut [(&'a mut KvCache, usize)]),
}

/// Which rows a layer reads, and for which of them it gives results.
#[derive(Clone, Copy)]
struct Rows<'a> {
    /// Rows of each sequence.
    lengths: &'a [usize],
    /// Position of each row in its sequence.
    positions: &'a [usize],
    /// Last rows of each sequence that results are asked for.
    tails: &'a [usize],
}

impl Rows<'_> {
    /// Where the tails lie among the rows.
    fn tail_ranges(&self) -> impl Iterator<Item = Range<usize>> {
        let mut end = 0;
        self.lengths
            .iter()
            .zip(self.tails)
            .map(move |(length, tail)| {
                end += length;
                end - tail..end
            })
    }

    /// The tails of `tensor [rows, …]`, `[Σ tails, …]`.
    fn tails_of(&self, tensor: &Tensor) -> Result<Tensor> {
        if self.tails == self.lengths {
            return Ok(tensor.clone());
        }
        let parts = self
            .tail_ranges()
            .filter(|range| !range.is_empty())
            .map(|range| tensor.narrow(0, range.start, range.len()))
            .collect::<Result<Vec<_>, _>>()?;
        Ok(match parts.as_slice() {
            [] => tensor.narrow(0, 0, 0)?,
            _ => Tensor::cat(&parts, 0)?,
        })
    }

    /// Positions of the tails.
    fn tail_positions(&self) -> Vec<usize> {
        let mut positions = Vec::new();
        for range in self.tail_ranges() {
            positions.extend_from_slice(&self.positions[range]);
        }
        positions
    }
}

impl Decoder {
    /// Loads the decoder. `weights` stands at the root of the checkpoint (tensors `model.layers.…`, `lm_head.weight`).
    ///
    /// # Errors
    /// When a tensor is missing or has another shape than `config` says.
    pub fn load(config: DecoderConfig, weights: &WeightSource) -> Result<Self> {
        Self::load_with_progress(config, weights, usize::MAX, &mut |_| ())
    }

    /// [`Self::load`], telling `on_layer` after each layer how many are loaded. Only the first `packed_layers` layers are packed into
    /// memory; the others leave their matrices in their files ([`WeightStorage::Mapped`]) and are frozen.
    ///
    /// # Errors
    /// As [`Self::load`].
    pub fn load_with_progress(
        config: DecoderConfig,
        weights: &WeightSource,
        packed_layers: usize,
        on_layer: &mut dyn FnMut(usize),
    ) -> Result<Self> {
        let in_files = weights.clone().with_policy(WeightPolicy {
            storage: WeightStorage::Mapped,
            trainable: Vec::new(),
            ..weights.policy().clone()
        });
        let model = weights.pp("model");
        let embedding = model.embedding("embed_tokens", config.vocab_size, config.hidden_size)?;
        let mut layers = Vec::new();
        for index in 0..config.layers {
            let holder = if index < packed_layers {
                weights
            } else {
                &in_files
            };
            let source = holder.pp("model.layers").pp(index);
            layers.push(Layer {
                input_norm: source.tensor("input_layernorm.weight", [config.hidden_size])?,
                attention: Attention::load(&config, &source.pp("self_attn"))?,
                post_attention_norm: source
                    .tensor("post_attention_layernorm.weight", [config.hidden_size])?,
                feed_forward: FeedForward::load(&config, &source)?,
            });
            on_layer(index + 1);
        }
        let norm = model.tensor("norm.weight", [config.hidden_size])?;
        // A tied head is the embedding, also when a copy of it was stored (spec: pitfalls A14). It is made when it is first asked for: a
        // fifth of a small model's memory, which the towers can have until then.
        let head = match config.tied_head {
            true => None,
            false => {
                Some(weights.linear("lm_head", config.hidden_size, config.vocab_size, Bias::No)?)
            }
        };
        let rope = RopeTable::new(config.head_dim, config.rope_theta, FIRST_POSITIONS);
        Ok(Self {
            embedding,
            layers,
            norm,
            head,
            rope,
            kv: KvPool::new(KvShape {
                layers: config.layers,
                kv_heads: config.kv_heads,
                head_dim: config.head_dim,
            }),
            device: weights.device().clone(),
            config,
        })
    }

    /// Hyper-parameters.
    pub fn config(&self) -> &DecoderConfig {
        &self.config
    }

    /// Experts of all layers that are loaded, and how many there are: each is loaded when a token first needs it.
    pub fn experts_loaded(&self) -> (usize, usize) {
        self.layers.iter().fold((0, 0), |(loaded, all), layer| {
            let (more, total) = layer.feed_forward.experts_loaded();
            (loaded + more, all + total)
        })
    }

    /// Device of the weights.
    pub fn device(&self) -> &Device {
        &self.device
    }

    /// An empty cache for one sequence.
    pub fn new_cache(&self) -> KvCache {
        KvCache(if self.device.is_cpu() {
            Store::Blocks(self.kv.cache())
        } else {
            Store::Tensors(TensorCache::new(&self.config, self.device.clone()))
        })
    }

    /// Caches whose blocks are counted together; CPU only.
    pub fn cache_pool(&self) -> CachePool {
        CachePool(KvPool::new(self.kv.shape()))
    }

    /// Bytes of the keys and values of one position.
    pub fn position_bytes(&self) -> usize {
        self.kv.shape().position_bytes()
    }

    /// Embedding rows `[ids, hidden]` of text tokens, unscaled.
    ///
    /// # Errors
    /// When an id lies outside the vocabulary.
    pub fn embed(&self, ids: &[u32]) -> Result<Tensor> {
        if let Some(id) = ids
            .iter()
            .find(|id| **id as usize >= self.config.vocab_size)
        {
            return Err(Error::Input(format!(
                "token id {id} lies outside the vocabulary of {}",
                self.config.vocab_size
            )));
        }
        Ok(self.embedding.forward(ids)?)
    }

    /// Hidden states `[rows, hidden]` after the last norm, from input embeddings `[rows, hidden]` (text and visual, unscaled).
    ///
    /// # Errors
    /// When the lengths in `context` do not add up to the rows, or a tensor operation fails.
    pub fn hidden(&self, embeddings: &Tensor, context: &mut Context) -> Result<Tensor> {
        self.run(embeddings, context, None, &mut || Ok(()))
    }

    /// [`Self::hidden`] of no more than the last rows of each sequence, `tails` of them, one sequence after another: what the next token needs.
    /// The last layer makes keys and values of all rows, and everything else of those alone: for a prompt of one row that is asked for it is
    /// nearly a whole layer less.
    ///
    /// `pause` is called before each layer; its error ends the work, and then no cache has more positions.
    ///
    /// # Errors
    /// As [`Self::hidden`], when `tails` does not have one number for each cache, or one above its rows, or when `pause` says so.
    pub fn hidden_tails(
        &self,
        embeddings: &Tensor,
        caches: &mut [(&mut KvCache, usize)],
        tails: &[usize],
        pause: &mut Pause<'_>,
    ) -> Result<Tensor> {
        let too_many = |((_, length), tail): (&(_, usize), &usize)| tail > length;
        if tails.len() != caches.len() || caches.iter().zip(tails).any(too_many) {
            return Err(Error::Input(format!(
                "the last {tails:?} rows cannot be those of sequences of {:?} rows",
                caches.iter().map(|(_, length)| length).collect::<Vec<_>>()
            )));
        }
        let mut caches: Vec<_> = caches
            .iter_mut()
            .map(|(cache, length)| (&mut **cache, *length))
            .collect();
        let mut context = Context::Cached(&mut caches);
        self.run(embeddings, &mut context, Some(tails), pause)
    }

    fn run(
        &self,
        embeddings: &Tensor,
        context: &mut Context,
        tails: Option<&[usize]>,
        pause: &mut Pause<'_>,
    ) -> Result<Tensor> {
        let (rows, _) = embeddings.dims2()?;
        let (lengths, positions) = match context {
            Context::Sequences(lengths) => {
                let positions = lengths
                    .iter()
                    .flat_map(|length| 0..*length)
                    .collect::<Vec<_>>();
                (lengths.to_vec(), positions)
            }
            Context::Cached(caches) => {
                let positions = caches
                    .iter()
                    .flat_map(|(cache, length)| cache.len()..cache.len() + length)
                    .collect::<Vec<_>>();
                (
                    caches.iter().map(|(_, length)| *length).collect(),
                    positions,
                )
            }
        };
        if positions.len() != rows {
            return Err(Error::Input(format!(
                "sequence lengths add up to {} rows, the embeddings have {rows}",
                positions.len()
            )));
        }
        let whole = Rows {
            lengths: &lengths,
            positions: &positions,
            tails: &lengths,
        };
        let ended = Rows {
            tails: tails.unwrap_or(&lengths),
            ..whole
        };
        let mut hidden = match self.config.embedding_scale {
            Some(scale) => (embeddings * scale)?,
            None => embeddings.clone(),
        };
        let (eps, offset) = (self.config.norm_eps, self.config.norm_offset);
        for (index, layer) in self.layers.iter().enumerate() {
            pause()?;
            let rows = match index + 1 == self.layers.len() {
                true => ended,
                false => whole,
            };
            // On a thread of the kernels' pool: from outside, each parallel loop of a layer would begin with waking it.
            hidden = rayon::scope(|_| -> Result<Tensor> {
                let normed = ops::rms_norm(&hidden, &layer.input_norm, eps, offset)?;
                let attended = layer
                    .attention
                    .forward(&normed, index, rows, &self.rope, context)?;
                let hidden = (rows.tails_of(&hidden)? + attended)?;
                if hidden.dim(0)? == 0 {
                    return Ok(hidden);
                }
                let normed = ops::rms_norm(&hidden, &layer.post_attention_norm, eps, offset)?;
                Ok((hidden + layer.feed_forward.forward(&normed)?)?)
            })?;
        }
        if let Context::Cached(caches) = context {
            for (cache, length) in caches.iter_mut() {
                cache.advance(*length);
            }
        }
        Ok(ops::rms_norm(&hidden, &self.norm, eps, offset)?)
    }

    pub(crate) fn head(&self) -> Result<Linear> {
        match &self.head {
            Some(head) => Ok(head.clone()),
            None => Ok(self.embedding.as_linear()?),
        }
    }

    /// Next-token logits `[rows, vocab]` (f32) of hidden states `[rows, hidden]`.
    ///
    /// # Errors
    /// When a tensor operation fails.
    pub fn logits(&self, hidden: &Tensor) -> Result<Tensor> {
        Ok(self.head()?.forward(hidden)?)
    }

    /// Mean cross entropy (scalar, differentiable) of the next-token logits of hidden states `[rows, hidden]` against one label a row; the
    /// logits are never stored as a whole.
    ///
    /// # Errors
    /// When rows and labels differ in number or a label lies outside the vocabulary.
    pub fn loss(&self, hidden: &Tensor, labels: &[i64]) -> Result<Tensor> {
        Ok(ops::linear_cross_entropy(hidden, &self.head()?, labels)?)
    }
}
