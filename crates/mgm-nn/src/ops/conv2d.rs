//! Two-dimensional convolution, channels last.

use std::sync::Arc;

use candle_core::{CpuStorage, CustomOp1, CustomOp2, CustomOp3, Layout, Result, Shape, Tensor};
use mgm_kernels::conv::{self as kernel, ConvBias, ConvInput, ConvShape, ConvWeight};
use mgm_kernels::conv_backward::conv2d_backward;
use mgm_kernels::gemm::{Activation, PackedWeight, WeightType};
use mgm_kernels::group_norm::ChannelAffine;

use super::linear::column_sums;
use crate::FrozenWeight;
use crate::host::{self, Host};

/// Kernel, stride, zero padding and enlargement of a convolution.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ConvParams {
    /// Side of the square kernel.
    pub kernel: usize,
    /// Step in both directions.
    pub stride: usize,
    /// Zero rows above and below.
    pub pad_rows: [usize; 2],
    /// Zero columns left and right.
    pub pad_columns: [usize; 2],
    /// The input is first enlarged by this factor, nearest neighbour; 1 for a plain convolution.
    pub enlarge: usize,
    /// Rows below and columns right that are cut off the enlarged input before it is padded.
    pub trim: [usize; 2],
}

impl ConvParams {
    /// Stride 1 and padding that keeps the size, for an odd kernel.
    pub fn same(kernel: usize) -> Self {
        Self::strided(kernel, 1, kernel / 2)
    }

    /// The same padding on all four sides.
    pub fn strided(kernel: usize, stride: usize, padding: usize) -> Self {
        Self {
            kernel,
            stride,
            pad_rows: [padding; 2],
            pad_columns: [padding; 2],
            enlarge: 1,
            trim: [0; 2],
        }
    }

    /// The shape of a convolution of `x [batch, height, width, channels]`.
    pub(crate) fn shape(&self, x: &Shape, channels: usize) -> Result<ConvShape> {
        let (batch, height, width, found) = x.dims4()?;
        if found != channels {
            candle_core::bail!("convolution: input has {found} channels, expected {channels}");
        }
        let shape = ConvShape {
            batch,
            height,
            width,
            channels,
            kernel: self.kernel,
            stride: self.stride,
            pad_rows: self.pad_rows,
            pad_columns: self.pad_columns,
            enlarge: self.enlarge,
            trim: self.trim,
        };
        let trimmed = self.trim[0] >= height * self.enlarge || self.trim[1] >= width * self.enlarge;
        if self.enlarge == 0 || trimmed || shape.out_height() == 0 || shape.out_width() == 0 {
            candle_core::bail!(
                "convolution: {self:?} does not fit an input of {:?}",
                x.dims()
            );
        }
        Ok(shape)
    }
}

/// Candle's own operations: `x [batch, height, width, channels]`, `weight [out, channels, kernel, kernel]`.
pub(crate) fn composed(
    x: &Tensor,
    weight: &Tensor,
    bias: Option<&Tensor>,
    params: &ConvParams,
) -> Result<Tensor> {
    let (_, channels, ..) = weight.dims4()?;
    let shape = params.shape(x.shape(), channels)?;
    let x = x.permute((0, 3, 1, 2))?.contiguous()?;
    let x = match params.enlarge {
        1 => x,
        by => x.upsample_nearest2d(shape.height * by, shape.width * by)?,
    };
    let [rows, columns] = params.trim;
    let x = x
        .narrow(2, 0, shape.height * params.enlarge - rows)?
        .narrow(3, 0, shape.width * params.enlarge - columns)?;
    let x = x
        .pad_with_zeros(2, params.pad_rows[0], params.pad_rows[1])?
        .pad_with_zeros(3, params.pad_columns[0], params.pad_columns[1])?;
    let y = x
        .conv2d(weight, 0, params.stride, 1, 1)?
        .permute((0, 2, 3, 1))?
        .contiguous()?;
    match bias {
        Some(bias) => y.broadcast_add(bias),
        None => Ok(y),
    }
}

/// Convolution of `x [batch, height, width, channels]` with `weight [out, channels, kernel, kernel]` and an optional `bias [out]`; gradients for
/// all.
pub fn conv2d(
    x: &Tensor,
    weight: &Tensor,
    bias: Option<&Tensor>,
    params: &ConvParams,
) -> Result<Tensor> {
    let (out, channels, kernel, width) = weight.dims4()?;
    if (kernel, width) != (params.kernel, params.kernel) {
        candle_core::bail!(
            "convolution: weight has shape {:?}, expected a kernel of {}",
            weight.dims(),
            params.kernel
        );
    }
    if !x.device().is_cpu() {
        return composed(x, weight, bias, params);
    }
    let rows = weight
        .permute((0, 2, 3, 1))?
        .contiguous()?
        .reshape((out, kernel * kernel * channels))?;
    let op = DenseConv {
        params: *params,
        channels,
    };
    match bias {
        Some(bias) if bias.dims() != [out] => candle_core::bail!(
            "convolution: bias has shape {:?}, expected [{out}]",
            bias.dims()
        ),
        Some(bias) => x.apply_op3(&rows, bias, op),
        None => x.apply_op2(&rows, op),
    }
}

/// A convolution with a weight `[out, kernel · kernel · channels]` that may be trained.
struct DenseConv {
    params: ConvParams,
    channels: usize,
}

impl DenseConv {
    const NAME: &str = "convolution";

    fn forward(
        &self,
        s1: &CpuStorage,
        l1: &Layout,
        s2: &CpuStorage,
        l2: &Layout,
        bias: ConvBias,
    ) -> Result<(CpuStorage, Shape)> {
        let shape = self.params.shape(l1.shape(), self.channels)?;
        let (n, k) = l2.shape().dims2()?;
        let (x, w) = (
            host::values(s1, l1, Self::NAME)?,
            host::values(s2, l2, Self::NAME)?,
        );
        let weight = PackedWeight::pack(n, k, &w, WeightType::F32);
        let dims = [shape.batch, shape.out_height(), shape.out_width(), n];
        let input = ConvInput {
            values: &x,
            affine: None,
        };
        let out = host::output(dims.iter().product(), |out| {
            kernel::conv2d(&shape, input, ConvWeight::Packed(&weight), bias, out);
        });
        Ok((out, Shape::from_dims(&dims)))
    }

    fn backward(
        &self,
        x: &Tensor,
        w: &Tensor,
        grad: &Tensor,
    ) -> Result<(Option<Tensor>, Option<Tensor>)> {
        let shape = self.params.shape(x.shape(), self.channels)?;
        let hosts = [x, w, grad].map(Host::new);
        let (x_values, w_values) = (hosts[0].values(Self::NAME)?, hosts[1].values(Self::NAME)?);
        let grad = hosts[2].values(Self::NAME)?;
        let mut dx = x.track_op().then(|| vec![0.0; x_values.len()]);
        let mut dw = w.track_op().then(|| vec![0.0; w_values.len()]);
        conv2d_backward(
            &shape,
            &x_values,
            &w_values,
            &grad,
            dx.as_deref_mut(),
            dw.as_deref_mut(),
        );
        Ok((
            dx.map(|dx| host::tensor(dx, x.shape())).transpose()?,
            dw.map(|dw| host::tensor(dw, w.shape())).transpose()?,
        ))
    }
}

impl CustomOp2 for DenseConv {
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
        self.forward(s1, l1, s2, l2, ConvBias::None)
    }

    fn bwd(
        &self,
        x: &Tensor,
        w: &Tensor,
        _: &Tensor,
        grad: &Tensor,
    ) -> Result<(Option<Tensor>, Option<Tensor>)> {
        self.backward(x, w, grad)
    }
}

impl CustomOp3 for DenseConv {
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
        self.forward(s1, l1, s2, l2, ConvBias::Shared(&bias))
    }

    fn bwd(
        &self,
        x: &Tensor,
        w: &Tensor,
        bias: &Tensor,
        _: &Tensor,
        grad: &Tensor,
    ) -> Result<(Option<Tensor>, Option<Tensor>, Option<Tensor>)> {
        let (dx, dw) = self.backward(x, w, grad)?;
        let db = match bias.track_op() {
            true => Some(column_sums(grad)?),
            false => None,
        };
        Ok((dx, dw, db))
    }
}

/// A convolution with everything but the input frozen, and without a backward: models that are trained through it use [`conv2d`].
pub(crate) struct FrozenConv {
    /// `[out, kernel · kernel · channels]`.
    pub(crate) weight: Arc<FrozenWeight>,
    pub(crate) channels: usize,
    pub(crate) params: ConvParams,
    /// Applied to the input as it is read.
    pub(crate) affine: Option<(ChannelAffine, Activation)>,
    pub(crate) bias: FrozenBias,
}

pub(crate) enum FrozenBias {
    None,
    Shared(Arc<[f32]>),
    /// `[batch, out]`.
    PerPicture(Vec<f32>),
}

impl CustomOp1 for FrozenConv {
    fn name(&self) -> &'static str {
        "frozen convolution"
    }

    fn cpu_fwd(&self, storage: &CpuStorage, layout: &Layout) -> Result<(CpuStorage, Shape)> {
        let shape = self.params.shape(layout.shape(), self.channels)?;
        let Some(weight) = self.weight.as_conv() else {
            candle_core::bail!("convolution: the weight is on a device, the input on the CPU");
        };
        let x = host::values(storage, layout, self.name())?;
        let n = weight.n();
        let dims = [shape.batch, shape.out_height(), shape.out_width(), n];
        let bias = match &self.bias {
            FrozenBias::None => ConvBias::None,
            FrozenBias::Shared(bias) => ConvBias::Shared(bias),
            FrozenBias::PerPicture(bias) => ConvBias::PerPicture(bias),
        };
        let input = ConvInput {
            values: &x,
            affine: self.affine.as_ref().map(|(affine, kind)| (affine, *kind)),
        };
        let out = host::output(dims.iter().product(), |out| {
            kernel::conv2d(&shape, input, weight, bias, out);
        });
        Ok((out, Shape::from_dims(&dims)))
    }
}
