//! A frozen matrix of low rank on the CPU.

use candle_core::{DType, Device, Result, Tensor};
use mgm_kernels::low_rank::add_low_rank;

/// `up·down` with `down [rank, in_features]` and `up [out_features, rank]`, f32: what a low-rank adapter adds to a weight.
pub(crate) struct LowRank {
    in_features: usize,
    out_features: usize,
    /// `[rank, in_features]`.
    down: Vec<f32>,
    /// Transposed: `[rank, out_features]`.
    up: Vec<f32>,
}

impl LowRank {
    /// Copies the two factors.
    pub(crate) fn new(down: &Tensor, up: &Tensor) -> Result<Self> {
        let (rank, in_features) = down.dims2()?;
        let (out_features, up_rank) = up.dims2()?;
        if rank != up_rank {
            candle_core::bail!("low rank: factors of rank {rank} and {up_rank}");
        }
        let values = |tensor: &Tensor| tensor.to_dtype(DType::F32)?.flatten_all()?.to_vec1();
        Ok(Self {
            in_features,
            out_features,
            down: values(down)?,
            up: values(&up.t()?.contiguous()?)?,
        })
    }

    /// Output and input features.
    pub(crate) fn features(&self) -> (usize, usize) {
        (self.out_features, self.in_features)
    }

    /// `out [m, out_features] += x [m, in_features]·(up·down)ᵀ`.
    pub(crate) fn add(&self, m: usize, x: &[f32], out: &mut [f32]) {
        let (k, n) = (self.in_features, self.out_features);
        add_low_rank(m, k, n, x, &self.down, &self.up, out);
    }

    /// `out [m, in_features] += x [m, out_features]·(up·down)`: the gradient of the input.
    pub(crate) fn add_transposed(&self, m: usize, x: &[f32], out: &mut [f32]) {
        let (k, n) = (self.in_features, self.out_features);
        add_low_rank(m, n, k, x, &self.up, &self.down, out);
    }

    /// The product as a matrix `[out_features, in_features]`.
    pub(crate) fn to_tensor(&self) -> Result<Tensor> {
        let rank = self.down.len() / self.in_features.max(1);
        let down = Tensor::from_slice(&self.down, (rank, self.in_features), &Device::Cpu)?;
        let up = Tensor::from_slice(&self.up, (rank, self.out_features), &Device::Cpu)?;
        up.t()?.matmul(&down)
    }
}
