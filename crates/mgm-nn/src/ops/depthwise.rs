//! Depthwise convolution, channels last.

use candle_core::{CpuStorage, CustomOp2, CustomOp3, Layout, Result, Shape, Tensor};
use mgm_kernels::depthwise::{self as kernel, DepthwiseShape};

use crate::host::{self, Host};

/// Kernel size, stride and zero padding of a depthwise convolution.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct DepthwiseParams {
    /// Side of the square kernel.
    pub kernel: usize,
    /// Step in both directions.
    pub stride: usize,
    /// Zero rows above.
    pub pad_top: usize,
    /// Zero columns left.
    pub pad_left: usize,
    /// Zero rows below.
    pub pad_bottom: usize,
    /// Zero columns right.
    pub pad_right: usize,
}

impl DepthwiseParams {
    /// The same padding on all four sides.
    pub fn symmetric(kernel: usize, stride: usize, padding: usize) -> Self {
        let (pad_top, pad_left, pad_bottom, pad_right) = (padding, padding, padding, padding);
        Self {
            kernel,
            stride,
            pad_top,
            pad_left,
            pad_bottom,
            pad_right,
        }
    }

    fn shape(&self, x: &Shape, weight: &Shape) -> Result<DepthwiseShape> {
        let (batch, height, width, channels) = x.dims4()?;
        if weight.dims() != [self.kernel * self.kernel, channels] {
            let expected = [self.kernel * self.kernel, channels];
            candle_core::bail!(
                "depthwise: weight has shape {:?}, expected {expected:?}",
                weight.dims()
            );
        }
        let shape = DepthwiseShape {
            batch,
            height,
            width,
            channels,
            kernel: self.kernel,
            stride: self.stride,
            pad_top: self.pad_top,
            pad_left: self.pad_left,
            pad_bottom: self.pad_bottom,
            pad_right: self.pad_right,
        };
        let fits = height + self.pad_top + self.pad_bottom >= self.kernel
            && width + self.pad_left + self.pad_right >= self.kernel;
        if self.stride == 0 || self.kernel == 0 || !fits {
            candle_core::bail!(
                "depthwise: {self:?} does not fit an input of {:?}",
                x.dims()
            );
        }
        Ok(shape)
    }
}

/// Depthwise convolution of `x [batch, height, width, channels]` with `weight [kernel·kernel, channels]` and an optional
/// `bias [channels]`; gradients for all.
pub fn depthwise(
    x: &Tensor,
    weight: &Tensor,
    bias: Option<&Tensor>,
    params: &DepthwiseParams,
) -> Result<Tensor> {
    params.shape(x.shape(), weight.shape())?;
    if !x.device().is_cpu() {
        return composed(x, weight, bias, params);
    }
    match bias {
        Some(bias) => x.apply_op3(weight, bias, Depthwise(*params)),
        None => x.apply_op2(weight, Depthwise(*params)),
    }
}

/// A sum of `kernel²` shifted products: candle's own grouped convolution is one call for each channel, and its backward
/// refuses strides that do not divide the input.
pub(crate) fn composed(
    x: &Tensor,
    weight: &Tensor,
    bias: Option<&Tensor>,
    params: &DepthwiseParams,
) -> Result<Tensor> {
    let shape = params.shape(x.shape(), weight.shape())?;
    let padded = x
        .pad_with_zeros(1, params.pad_top, params.pad_bottom)?
        .pad_with_zeros(2, params.pad_left, params.pad_right)?;
    let shifted = |x: &Tensor, axis: usize, start: usize, count: usize| {
        if params.stride == 1 {
            return x.narrow(axis, start, count);
        }
        let indices: Vec<u32> = (0..count)
            .map(|i| (start + i * params.stride) as u32)
            .collect();
        x.contiguous()?
            .index_select(&Tensor::from_vec(indices, count, x.device())?, axis)
    };
    let mut total: Option<Tensor> = None;
    for ky in 0..params.kernel {
        let rows = shifted(&padded, 1, ky, shape.out_height())?;
        for kx in 0..params.kernel {
            let tap = weight.narrow(0, ky * params.kernel + kx, 1)?.squeeze(0)?;
            let product = shifted(&rows, 2, kx, shape.out_width())?.broadcast_mul(&tap)?;
            total = Some(match total {
                Some(total) => (total + product)?,
                None => product,
            });
        }
    }
    match (total, bias) {
        (Some(total), Some(bias)) => total.broadcast_add(bias),
        (Some(total), None) => Ok(total),
        (None, _) => candle_core::bail!("depthwise: empty kernel"),
    }
}

struct Depthwise(DepthwiseParams);

impl Depthwise {
    const NAME: &'static str = "depthwise";

    fn forward(
        &self,
        x: (&CpuStorage, &Layout),
        weight: (&CpuStorage, &Layout),
        bias: Option<&[f32]>,
    ) -> Result<(CpuStorage, Shape)> {
        let shape = self.0.shape(x.1.shape(), weight.1.shape())?;
        let (x, weight) = (
            host::values(x.0, x.1, Self::NAME)?,
            host::values(weight.0, weight.1, Self::NAME)?,
        );
        let dims = (
            shape.batch,
            shape.out_height(),
            shape.out_width(),
            shape.channels,
        );
        let out = host::output(dims.0 * dims.1 * dims.2 * dims.3, |out| {
            kernel::depthwise(&shape, &x, &weight, bias, out);
        });
        Ok((out, Shape::from(dims)))
    }

    fn gradients(
        &self,
        x: &Tensor,
        weight: &Tensor,
        grad: &Tensor,
    ) -> Result<(Tensor, Tensor, Tensor)> {
        let shape = self.0.shape(x.shape(), weight.shape())?;
        let hosts = [x, weight, grad].map(Host::new);
        let (x_values, weight_values) =
            (hosts[0].values(Self::NAME)?, hosts[1].values(Self::NAME)?);
        let grad = hosts[2].values(Self::NAME)?;
        let mut dx = vec![0.0; x_values.len()];
        let mut dw = vec![0.0; weight_values.len()];
        let mut db = vec![0.0; shape.channels];
        kernel::depthwise_backward(
            &shape,
            &x_values,
            &weight_values,
            &grad,
            &mut dx,
            &mut dw,
            &mut db,
        );
        Ok((
            host::tensor(dx, x.shape())?,
            host::tensor(dw, weight.shape())?,
            host::tensor(db, shape.channels)?,
        ))
    }
}

impl CustomOp2 for Depthwise {
    fn name(&self) -> &'static str {
        Self::NAME
    }

    fn cpu_fwd(
        &self,
        s1: &CpuStorage,
        l1: &Layout,
        s2: &CpuStorage,
        l2: &Layout,
    ) -> Result<(CpuStorage, Shape)> {
        self.forward((s1, l1), (s2, l2), None)
    }

    fn bwd(
        &self,
        x: &Tensor,
        weight: &Tensor,
        _: &Tensor,
        grad: &Tensor,
    ) -> Result<(Option<Tensor>, Option<Tensor>)> {
        let (dx, dw, _) = self.gradients(x, weight, grad)?;
        Ok((Some(dx), Some(dw)))
    }
}

impl CustomOp3 for Depthwise {
    fn name(&self) -> &'static str {
        Self::NAME
    }

    fn cpu_fwd(
        &self,
        s1: &CpuStorage,
        l1: &Layout,
        s2: &CpuStorage,
        l2: &Layout,
        s3: &CpuStorage,
        l3: &Layout,
    ) -> Result<(CpuStorage, Shape)> {
        let bias = host::values(s3, l3, Self::NAME)?;
        if l1.dims().last() != Some(&bias.len()) {
            candle_core::bail!(
                "depthwise: bias has shape {:?}, input {:?}",
                l3.dims(),
                l1.dims()
            );
        }
        self.forward((s1, l1), (s2, l2), Some(&bias))
    }

    fn bwd(
        &self,
        x: &Tensor,
        weight: &Tensor,
        _: &Tensor,
        _: &Tensor,
        grad: &Tensor,
    ) -> Result<(Option<Tensor>, Option<Tensor>, Option<Tensor>)> {
        let (dx, dw, db) = self.gradients(x, weight, grad)?;
        Ok((Some(dx), Some(dw), Some(db)))
    }
}
