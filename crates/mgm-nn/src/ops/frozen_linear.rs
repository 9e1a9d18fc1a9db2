//! `y = x·Wᵀ + b` with everything but `x` frozen: the gradient goes to the input only.

use std::sync::Arc;

use candle_core::{CpuStorage, CustomOp1, DType, Layout, Result, Shape, Tensor};
use mgm_kernels::gemm::{Activation, Epilogue};

use super::attach::attach_backward;
use super::linear::{product_shape, with_last};
use crate::FrozenWeight;
use crate::host::{self, Host};
use crate::low_rank::LowRank;

/// `x [.., k]·Wᵀ → [.., n]` with a frozen W: packed, quantised or dense on the device of `x`.
pub fn frozen_linear(x: &Tensor, weight: &Arc<FrozenWeight>) -> Result<Tensor> {
    FrozenLinear {
        weight: weight.clone(),
        bias: None,
        adapter: None,
        activation: Activation::None,
    }
    .apply(x)
}

/// A frozen low-rank adapter `(A [rank, k], scale·B [n, rank])`.
#[derive(Clone)]
pub(crate) enum Adapter {
    /// On the CPU.
    LowRank(Arc<LowRank>),
    /// On a device.
    Dense {
        down: Arc<FrozenWeight>,
        up: Arc<FrozenWeight>,
    },
}

impl Adapter {
    /// `scale·B·A` as a matrix on the CPU.
    pub(crate) fn to_tensor(&self) -> Result<Tensor> {
        match self {
            Self::LowRank(low_rank) => low_rank.to_tensor(),
            Self::Dense { down, up } => up.to_tensor()?.matmul(&down.to_tensor()?),
        }
    }

    /// `x [.., n]·scale·B·A → [.., k]`; gradients for `x`.
    pub(crate) fn transposed(&self, x: &Tensor) -> Result<Tensor> {
        match self {
            Self::LowRank(low_rank) => x.apply_op1(LowRankTransposed(low_rank.clone())),
            Self::Dense { down, up } => {
                frozen_linear_transposed(&frozen_linear_transposed(x, up)?, down)
            }
        }
    }

    /// `x·(scale·B·A)ᵀ`, or `x·scale·B·A` when `transposed`, without a gradient, on the device of `x`.
    fn on_device(&self, x: &Tensor, transposed: bool) -> Result<Tensor> {
        match self {
            Self::LowRank(_) => candle_core::bail!(
                "frozen linear: the adapter is on the CPU, the weight on a device"
            ),
            Self::Dense { down, up } if transposed => {
                dense_product(&dense_product(x, up, true)?, down, true)
            }
            Self::Dense { down, up } => dense_product(&dense_product(x, down, false)?, up, false),
        }
    }

    fn low_rank(&self) -> Result<&LowRank> {
        match self {
            Self::LowRank(low_rank) => Ok(low_rank),
            Self::Dense { .. } => candle_core::bail!(
                "frozen linear: the adapter is on a device, the weight on the CPU"
            ),
        }
    }
}

#[derive(Clone)]
pub(crate) struct FrozenLinear {
    pub(crate) weight: Arc<FrozenWeight>,
    pub(crate) bias: Option<Arc<[f32]>>,
    pub(crate) adapter: Option<Adapter>,
    /// Only where no gradient is asked for: its backward would need the value before it.
    pub(crate) activation: Activation,
}

impl FrozenLinear {
    pub(crate) fn apply(self, x: &Tensor) -> Result<Tensor> {
        match self.weight.as_dense() {
            Some(_) => self.on_device(x),
            None => x.apply_op1(self),
        }
    }

    fn on_device(&self, x: &Tensor) -> Result<Tensor> {
        let y = dense_product(&x.detach(), &self.weight, false)?;
        let y = match &self.adapter {
            Some(adapter) => (y + adapter.on_device(&x.detach(), false)?)?,
            None => y,
        };
        let y = match &self.bias {
            Some(bias) => y.broadcast_add(&Tensor::from_slice(bias, bias.len(), x.device())?)?,
            None => y,
        };
        let this = self.clone();
        attach_backward("frozen linear", x, y, move |grad| {
            let dx = dense_product(grad, &this.weight, true)?;
            match &this.adapter {
                Some(adapter) => dx + adapter.on_device(grad, true)?,
                None => Ok(dx),
            }
        })
    }
}

/// `x·Wᵀ`, or `x·W` when `transposed`, in the weight's own type, returned as `f32`.
fn dense_product(x: &Tensor, weight: &FrozenWeight, transposed: bool) -> Result<Tensor> {
    let Some(dense) = weight.as_dense() else {
        candle_core::bail!(
            "frozen linear: one part of the weight is on the CPU, another on a device"
        );
    };
    let (rows, width) = host::rows_and_width(x.shape(), "frozen linear")?;
    let right = if transposed {
        dense.clone()
    } else {
        dense.t()?
    };
    let last = right.dims()[1];
    let flat = x.reshape((rows, width))?.to_dtype(dense.dtype())?;
    flat.matmul(&right)?
        .to_dtype(DType::F32)?
        .reshape(with_last(x.shape(), last))
}

impl CustomOp1 for FrozenLinear {
    fn name(&self) -> &'static str {
        "frozen linear"
    }

    fn cpu_fwd(&self, storage: &CpuStorage, layout: &Layout) -> Result<(CpuStorage, Shape)> {
        let dims = [self.weight.out_features(), self.weight.in_features()];
        let (m, _, n) = product_shape(layout.shape(), &dims, self.name())?;
        let x = host::values(storage, layout, self.name())?;
        let mut out = vec![0.0; m * n];
        let bias = self.bias.as_deref();
        match &self.adapter {
            None => {
                let epilogue = Epilogue {
                    bias,
                    activation: self.activation,
                    accumulate: false,
                };
                self.weight.multiply(m, &x, &mut out, &epilogue)?;
            }
            Some(adapter) => {
                self.weight.multiply(
                    m,
                    &x,
                    &mut out,
                    &Epilogue {
                        bias,
                        ..Epilogue::default()
                    },
                )?;
                adapter.low_rank()?.add(m, &x, &mut out);
                super::activation::apply_in_place(self.activation, &mut out);
            }
        }
        Ok((CpuStorage::F32(out), with_last(layout.shape(), n)))
    }

    fn bwd(&self, x: &Tensor, _: &Tensor, grad: &Tensor) -> Result<Option<Tensor>> {
        let (m, k) = host::rows_and_width(x.shape(), self.name())?;
        let grad = Host::new(grad);
        let grad = grad.values(self.name())?;
        let mut dx = vec![0.0; m * k];
        self.weight.multiply_transposed(m, &grad, &mut dx, false)?;
        if let Some(adapter) = &self.adapter {
            adapter.low_rank()?.add_transposed(m, &grad, &mut dx);
        }
        Ok(Some(host::tensor(dx, x.shape())?))
    }
}

/// `x [.., n]·W → [.., k]` with a frozen W `[n, k]`: the product with the transposed weight.
pub fn frozen_linear_transposed(x: &Tensor, weight: &Arc<FrozenWeight>) -> Result<Tensor> {
    if weight.as_dense().is_none() {
        return x.apply_op1(FrozenLinearTransposed(weight.clone()));
    }
    let y = dense_product(&x.detach(), weight, true)?;
    let weight = weight.clone();
    attach_backward("transposed frozen linear", x, y, move |grad| {
        dense_product(grad, &weight, false)
    })
}

struct FrozenLinearTransposed(Arc<FrozenWeight>);

impl CustomOp1 for FrozenLinearTransposed {
    fn name(&self) -> &'static str {
        "transposed frozen linear"
    }

    fn cpu_fwd(&self, storage: &CpuStorage, layout: &Layout) -> Result<(CpuStorage, Shape)> {
        let dims = [self.0.in_features(), self.0.out_features()];
        let (m, _, k) = product_shape(layout.shape(), &dims, self.name())?;
        let x = host::values(storage, layout, self.name())?;
        let mut out = vec![0.0; m * k];
        self.0.multiply_transposed(m, &x, &mut out, false)?;
        Ok((CpuStorage::F32(out), with_last(layout.shape(), k)))
    }

    fn bwd(&self, x: &Tensor, _: &Tensor, grad: &Tensor) -> Result<Option<Tensor>> {
        let (m, n) = host::rows_and_width(x.shape(), self.name())?;
        let grad = Host::new(grad);
        let mut dx = vec![0.0; m * n];
        self.0
            .multiply(m, &grad.values(self.name())?, &mut dx, &Epilogue::default())?;
        Ok(Some(host::tensor(dx, x.shape())?))
    }
}

struct LowRankTransposed(Arc<LowRank>);

impl CustomOp1 for LowRankTransposed {
    fn name(&self) -> &'static str {
        "transposed low-rank adapter"
    }

    fn cpu_fwd(&self, storage: &CpuStorage, layout: &Layout) -> Result<(CpuStorage, Shape)> {
        let (m, n) = host::rows_and_width(layout.shape(), self.name())?;
        let (out_features, k) = self.0.features();
        if n != out_features {
            candle_core::bail!("{}: expected {out_features} values, found {n}", self.name());
        }
        let x = host::values(storage, layout, self.name())?;
        let mut out = vec![0.0; m * k];
        self.0.add_transposed(m, &x, &mut out);
        Ok((CpuStorage::F32(out), with_last(layout.shape(), k)))
    }

    fn bwd(&self, x: &Tensor, _: &Tensor, grad: &Tensor) -> Result<Option<Tensor>> {
        let (m, n) = host::rows_and_width(x.shape(), self.name())?;
        let grad = Host::new(grad);
        let mut dx = vec![0.0; m * n];
        self.0.add(m, &grad.values(self.name())?, &mut dx);
        Ok(Some(host::tensor(dx, x.shape())?))
    }
}
