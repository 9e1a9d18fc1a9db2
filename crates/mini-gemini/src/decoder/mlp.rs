//! The gated MLP and its mixture-of-experts form.

use std::sync::OnceLock;

use candle_core::{D, DType, Tensor};
use mgm_nn::{Bias, Linear, WeightSource, ops};

use super::{Activation, DecoderConfig, ExpertConfig};
use crate::error::{Error, Result};

/// What follows attention in a layer.
pub(super) enum FeedForward {
    Gated(Box<GatedMlp>),
    Experts(Experts),
}

impl FeedForward {
    pub(super) fn load(config: &DecoderConfig, layer: &WeightSource) -> Result<Self> {
        match config.experts {
            None => Ok(Self::Gated(Box::new(GatedMlp::load(
                config,
                &layer.pp("mlp"),
                ["gate_proj", "up_proj", "down_proj"],
            )?))),
            Some(experts) => Ok(Self::Experts(Experts::load(
                config,
                experts,
                &layer.pp("block_sparse_moe"),
            )?)),
        }
    }

    pub(super) fn forward(&self, input: &Tensor) -> Result<Tensor> {
        match self {
            Self::Gated(mlp) => mlp.forward(input),
            Self::Experts(experts) => experts.forward(input),
        }
    }
}

impl FeedForward {
    /// Experts that are loaded, and all of them.
    pub(super) fn experts_loaded(&self) -> (usize, usize) {
        match self {
            Self::Gated(_) => (0, 0),
            Self::Experts(experts) => {
                let loaded = experts
                    .experts
                    .iter()
                    .filter(|expert| expert.loaded.get().is_some());
                (loaded.count(), experts.experts.len())
            }
        }
    }
}

/// `down(activation(gate(x)) · up(x))`.
pub(super) struct GatedMlp {
    gate: Linear,
    up: Linear,
    down: Linear,
    activation: Activation,
}

impl GatedMlp {
    fn load(config: &DecoderConfig, weights: &WeightSource, names: [&str; 3]) -> Result<Self> {
        let (hidden, inner) = (config.hidden_size, config.intermediate_size);
        Ok(Self {
            gate: weights.linear(names[0], hidden, inner, Bias::No)?,
            up: weights.linear(names[1], hidden, inner, Bias::No)?,
            down: weights.linear(names[2], inner, hidden, Bias::No)?,
            activation: config.activation,
        })
    }

    fn forward(&self, input: &Tensor) -> Result<Tensor> {
        let activation = match self.activation {
            Activation::Silu => mgm_nn::Activation::Silu,
            Activation::GeluTanh => mgm_nn::Activation::GeluTanh,
            Activation::GeluErf => mgm_nn::Activation::GeluErf,
        };
        Ok(ops::gated_mlp(
            input, &self.gate, &self.up, &self.down, activation,
        )?)
    }
}

/// Mixtral's sparse MLP: softmax over all experts in f32, the best `per_token` renormalised to sum 1.
pub(super) struct Experts {
    router: Linear,
    experts: Vec<LazyExpert>,
    per_token: usize,
}

/// An expert that is loaded when a token first needs it: most prompts use a part of them, and together they are most of the model.
struct LazyExpert {
    config: DecoderConfig,
    weights: WeightSource,
    loaded: OnceLock<GatedMlp>,
}

impl LazyExpert {
    fn get(&self) -> Result<&GatedMlp> {
        if let Some(expert) = self.loaded.get() {
            return Ok(expert);
        }
        let expert = GatedMlp::load(&self.config, &self.weights, ["w1", "w3", "w2"])?;
        Ok(self.loaded.get_or_init(|| expert))
    }
}

impl Experts {
    fn load(config: &DecoderConfig, sizes: ExpertConfig, weights: &WeightSource) -> Result<Self> {
        if sizes.per_token == 0 || sizes.per_token > sizes.count {
            return Err(Error::Input(format!(
                "num_experts_per_tok {} is not between 1 and num_local_experts {}",
                sizes.per_token, sizes.count
            )));
        }
        let source = weights.pp("experts");
        let experts: Vec<LazyExpert> = (0..sizes.count)
            .map(|expert| LazyExpert {
                config: config.clone(),
                weights: source.pp(expert),
                loaded: OnceLock::new(),
            })
            .collect();
        // Trainable parameters are registered as they are loaded, and an optimiser must know all of them.
        if !weights.policy().trainable.is_empty() {
            for expert in &experts {
                expert.get()?;
            }
        }
        let router = weights.linear("gate", config.hidden_size, sizes.count, Bias::No)?;
        Ok(Self {
            router,
            experts,
            per_token: sizes.per_token,
        })
    }

    fn forward(&self, input: &Tensor) -> Result<Tensor> {
        let rows = input.dim(0)?;
        let logits = self.router.forward(input)?.to_dtype(DType::F32)?;
        let probabilities = softmax(&logits)?;
        let (chosen, owners) = self.choose(&probabilities.to_vec2::<f32>()?);
        let chosen = Tensor::from_vec(chosen, (rows, self.per_token), input.device())?;
        let weights = probabilities.gather(&chosen, 1)?;
        let weights = weights
            .broadcast_div(&weights.sum_keepdim(D::Minus1)?)?
            .flatten_all()?;
        let mut output = input.zeros_like()?;
        for (expert, owner) in self.experts.iter().zip(owners) {
            if owner.rows.is_empty() {
                continue;
            }
            let picked = owner.rows.len();
            let row_index = Tensor::from_vec(owner.rows, picked, input.device())?;
            let slot_index = Tensor::from_vec(owner.slots, picked, input.device())?;
            let expert_output = expert.get()?.forward(&input.index_select(&row_index, 0)?)?;
            let share = weights.index_select(&slot_index, 0)?.reshape((picked, 1))?;
            output = output.index_add(&row_index, &expert_output.broadcast_mul(&share)?, 0)?;
        }
        Ok(output)
    }

    /// Per token the ids of its experts, best first; per expert its tokens and their places in the flattened choice.
    fn choose(&self, probabilities: &[Vec<f32>]) -> (Vec<u32>, Vec<Owner>) {
        let mut owners: Vec<Owner> = (0..self.experts.len()).map(|_| Owner::default()).collect();
        let mut chosen = Vec::with_capacity(probabilities.len() * self.per_token);
        for (row, probability) in probabilities.iter().enumerate() {
            let mut order: Vec<usize> = (0..probability.len()).collect();
            order.sort_by(|a, b| probability[*b].total_cmp(&probability[*a]));
            for expert in order.into_iter().take(self.per_token) {
                owners[expert].rows.push(row as u32);
                owners[expert].slots.push(chosen.len() as u32);
                chosen.push(expert as u32);
            }
        }
        (chosen, owners)
    }
}

#[derive(Default)]
struct Owner {
    rows: Vec<u32>,
    slots: Vec<u32>,
}

/// Softmax over the last axis from plain operations, so that the router keeps its gradient.
fn softmax(logits: &Tensor) -> Result<Tensor> {
    let shifted = logits.broadcast_sub(&logits.max_keepdim(D::Minus1)?.detach())?;
    let exponentials = shifted.exp()?;
    Ok(exponentials.broadcast_div(&exponentials.sum_keepdim(D::Minus1)?)?)
}
