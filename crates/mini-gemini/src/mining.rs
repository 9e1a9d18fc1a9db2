//! Patch info mining: every low-resolution query attends over the high-resolution cells of its own region (paper §3.2, spec: model §5).
//!
//! The reference projects every cell to a key and a value. Here both projections are moved to the query's side, which is exactly the same
//! function: with `ĉ` a cell after LayerNorm without its affine part, `k = W_k(γ_k ĉ + β_k) + b_k`, hence
//! `q·k = (γ_k ⊙ W_kᵀ q)·ĉ + q·(W_k β_k + b_k)`; and because attention weights sum to one,
//! `Σ a_j v_j = W_v(γ_v ⊙ Σ a_j ĉ_j + β_v) + b_v`. Nothing of the size of the high-resolution map is projected or stored.

use candle_core::{D, Tensor};
use mgm_nn::ops::{self, RegionCells};
use mgm_nn::{Bias, Linear, WeightSource};

use crate::error::{Error, Result};

/// LayerNorm epsilon of the three projections (PyTorch's default).
pub const NORM_EPS: f64 = 1e-5;

struct NormedProjection {
    gamma: Tensor,
    beta: Tensor,
    linear: Linear,
}

impl NormedProjection {
    fn load(weights: &WeightSource, input: usize, output: usize) -> Result<Self> {
        Ok(Self {
            gamma: weights.tensor("0.weight", [input])?,
            beta: weights.tensor("0.bias", [input])?,
            linear: weights.linear("1", input, output, Bias::Yes)?,
        })
    }
}

/// The three `vlm_uni_*` modules.
pub struct Mining {
    query_gamma: Tensor,
    query_beta: Tensor,
    query: Linear,
    key: NormedProjection,
    value: NormedProjection,
    width: usize,
}

impl Mining {
    /// Loads the miner. `weights` stands at `model`; `width` is the low-resolution feature width, `channels` that of a cell.
    ///
    /// # Errors
    /// When a tensor is missing or has another shape.
    pub fn load(weights: &WeightSource, width: usize, channels: usize) -> Result<Self> {
        let query = weights.pp("vlm_uni_query_projector");
        Ok(Self {
            query_gamma: query.tensor("0.weight", [width])?,
            query_beta: query.tensor("0.bias", [width])?,
            query: query.linear("1", width, width, Bias::Yes)?,
            key: NormedProjection::load(&weights.pp("vlm_uni_aux_projector"), channels, width)?,
            value: NormedProjection::load(&weights.pp("vlm_uni_val_projector"), channels, width)?,
            width,
        })
    }

    fn queries(&self, low_res: &Tensor) -> Result<Tensor> {
        let normed = ops::layer_norm(low_res, &self.query_gamma, &self.query_beta, NORM_EPS)?;
        Ok(self.query.forward(&normed)?)
    }

    /// Queries taken through the key projection, to be multiplied with normalised cells: `[queries, channels]`.
    fn folded(&self, queries: &Tensor) -> Result<Tensor> {
        let scale = 1.0 / (self.width as f64).sqrt();
        let through = self.key.linear.forward_transposed(queries)?;
        Ok(through.broadcast_mul(&(&self.key.gamma * scale)?)?)
    }

    /// Mined features `[queries, width]` for low-resolution features `[queries, width]` of one picture or crop.
    ///
    /// # Errors
    /// When the cells do not match the queries.
    pub fn forward(&self, low_res: &Tensor, cells: &RegionCells) -> Result<Tensor> {
        let queries = self.queries(low_res)?;
        let folded = self.folded(&queries)?;
        // The same for all cells of a region, so softmax does not see it; kept because it is part of the score.
        let key_constant = self.key.linear.forward(&self.key.beta.unsqueeze(0)?)?;
        let scale = 1.0 / (self.width as f64).sqrt();
        let constant = (queries.broadcast_mul(&key_constant)?.sum(D::Minus1)? * scale)?;
        let mined = ops::region_attention(&folded, &constant, cells)?;
        let values = mined
            .broadcast_mul(&self.value.gamma)?
            .broadcast_add(&self.value.beta)?;
        Ok(self.value.linear.forward(&values)?)
    }

    /// The attention weights `[queries, cells]` of [`Self::forward`]: which of its cells each query mined.
    ///
    /// # Errors
    /// When the cells do not match the queries.
    pub fn attention_weights(&self, low_res: &Tensor, cells: &RegionCells) -> Result<Tensor> {
        let queries = self.queries(low_res)?;
        let folded = self.folded(&queries)?;
        let constant = folded.zeros_like()?.sum(D::Minus1)?;
        Ok(ops::region_attention_weights(&folded, &constant, cells)?)
    }

    /// The formula as the reference writes it, over the whole map `[channels, R, R]`: every cell projected to key and value. Gives the mined
    /// features `[queries, width]` and the attention weights `[queries, cells]`. Slow; it is what the folded form is tested against.
    ///
    /// # Errors
    /// When the number of queries is not a square that divides the map.
    pub fn forward_plain(&self, low_res: &Tensor, map: &Tensor) -> Result<(Tensor, Tensor)> {
        let (count, _) = low_res.dims2()?;
        let (channels, side, _) = map.dims3()?;
        let grid = count.isqrt();
        if grid * grid != count || !side.is_multiple_of(grid) {
            return Err(Error::Input(format!(
                "{count} queries do not tile a map of side {side}"
            )));
        }
        let region = side / grid;
        let cells = map
            .permute((1, 2, 0))?
            .reshape(vec![grid, region, grid, region, channels])?
            .permute([0, 2, 1, 3, 4])?
            .contiguous()?
            .reshape((count * region * region, channels))?;
        let project = |projection: &NormedProjection| -> Result<Tensor> {
            let normed = ops::layer_norm(&cells, &projection.gamma, &projection.beta, NORM_EPS)?;
            let projected = projection.linear.forward(&normed)?;
            Ok(projected.reshape((count, region * region, self.width))?)
        };
        let queries = self.queries(low_res)?.unsqueeze(1)?;
        let keys = (project(&self.key)? / (self.width as f64).sqrt())?;
        let scores = queries.matmul(&keys.transpose(1, 2)?.contiguous()?)?;
        let exponentials = scores
            .broadcast_sub(&scores.max_keepdim(D::Minus1)?.detach())?
            .exp()?;
        let weights = exponentials.broadcast_div(&exponentials.sum_keepdim(D::Minus1)?)?;
        let mined = weights.matmul(&project(&self.value)?)?.squeeze(1)?;
        Ok((mined, weights.squeeze(1)?))
    }
}
