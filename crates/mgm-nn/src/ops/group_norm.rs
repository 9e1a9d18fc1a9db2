//! Group normalisation of channels-last maps.

use candle_core::{CpuStorage, CustomOp1, CustomOp3, Layout, Result, Shape, Tensor};
use mgm_kernels::gemm::Activation;
use mgm_kernels::group_norm::{self as kernel, ChannelAffine};
use mgm_kernels::group_norm_backward::{GroupNormShape, group_norm_backward};

use super::activation::activation;
use crate::host::{self, Host};

/// `activation((x − mean) / sqrt(var + eps) · gamma + beta)` of `x [batch, .., channels]`, mean and population variance over all positions
/// of a picture and the channels of one of `groups` groups; `gamma`, `beta` are `[channels]`.
///
/// Gradients for all three: fused ones for no activation and SiLU, else a composition of operations that have them.
pub fn group_norm(
    x: &Tensor,
    groups: usize,
    gamma: &Tensor,
    beta: &Tensor,
    eps: f64,
    kind: Activation,
) -> Result<Tensor> {
    check(x, groups, gamma, beta)?;
    let tracked = [x, gamma, beta].iter().any(|t| t.track_op());
    let differentiable = matches!(kind, Activation::None | Activation::Silu);
    if !x.device().is_cpu() || (tracked && !differentiable) {
        return activation(&composed(x, groups, gamma, beta, eps)?, kind);
    }
    if tracked {
        let op = Trainable { groups, eps, kind };
        return x.apply_op3(gamma, beta, op);
    }
    let affine = affine(x, groups, gamma, beta, eps)?;
    x.apply_op1(Apply { affine, kind })
}

fn check(x: &Tensor, groups: usize, gamma: &Tensor, beta: &Tensor) -> Result<()> {
    let channels = x.dims().last().copied().unwrap_or(0);
    if x.rank() < 2 || x.elem_count() == 0 {
        candle_core::bail!(
            "group norm: expected [batch, .., channels], found {:?}",
            x.dims()
        );
    }
    if groups == 0 || !channels.is_multiple_of(groups) {
        candle_core::bail!("group norm: {channels} channels cannot be split into {groups} groups");
    }
    for (what, tensor) in [("weight", gamma), ("bias", beta)] {
        if tensor.dims() != [channels] {
            candle_core::bail!(
                "group norm: {what} has shape {:?}, expected [{channels}]",
                tensor.dims()
            );
        }
    }
    Ok(())
}

/// The scale and shift of each picture's channels that the normalisation amounts to. CPU only, without gradients.
pub(crate) fn affine(
    x: &Tensor,
    groups: usize,
    gamma: &Tensor,
    beta: &Tensor,
    eps: f64,
) -> Result<ChannelAffine> {
    const NAME: &str = "group norm";
    check(x, groups, gamma, beta)?;
    let (x_host, gamma_host, beta_host) = (Host::new(x), Host::new(gamma), Host::new(beta));
    let (values, gamma) = (x_host.values(NAME)?, gamma_host.values(NAME)?);
    let beta = beta_host.values(NAME)?;
    Ok(kernel::group_norm_affine(
        x.dims()[0],
        gamma.len(),
        groups,
        &values,
        &gamma,
        &beta,
        eps as f32,
    ))
}

pub(crate) fn composed(
    x: &Tensor,
    groups: usize,
    gamma: &Tensor,
    beta: &Tensor,
    eps: f64,
) -> Result<Tensor> {
    let (batch, channels) = (x.dims()[0], gamma.elem_count());
    let positions = x.elem_count() / (batch * channels);
    let grouped = x.reshape((batch, positions, groups, channels / groups))?;
    let mean = grouped.mean_keepdim(3)?.mean_keepdim(1)?;
    let centred = grouped.broadcast_sub(&mean)?;
    let variance = centred.sqr()?.mean_keepdim(3)?.mean_keepdim(1)?;
    centred
        .broadcast_div(&(variance + eps)?.sqrt()?)?
        .reshape(x.dims())?
        .broadcast_mul(gamma)?
        .broadcast_add(beta)
}

struct Apply {
    affine: ChannelAffine,
    kind: Activation,
}

impl CustomOp1 for Apply {
    fn name(&self) -> &'static str {
        "group norm"
    }

    fn cpu_fwd(&self, storage: &CpuStorage, layout: &Layout) -> Result<(CpuStorage, Shape)> {
        let dims = layout.dims();
        let x = host::values(storage, layout, self.name())?;
        let channels = dims[dims.len() - 1];
        let out = host::output(x.len(), |out| {
            kernel::channel_affine(dims[0], channels, &x, &self.affine, self.kind, out);
        });
        Ok((out, layout.shape().clone()))
    }
}

/// Normalisation and activation with their gradients.
struct Trainable {
    groups: usize,
    eps: f64,
    kind: Activation,
}

impl CustomOp3 for Trainable {
    fn name(&self) -> &'static str {
        "group norm"
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
        let x = host::values(s1, l1, self.name())?;
        let gamma = host::values(s2, l2, self.name())?;
        let beta = host::values(s3, l3, self.name())?;
        let (batch, channels, eps) = (l1.dims()[0], gamma.len(), self.eps as f32);
        let affine =
            kernel::group_norm_affine(batch, channels, self.groups, &x, &gamma, &beta, eps);
        let out = host::output(x.len(), |out| {
            kernel::channel_affine(batch, channels, &x, &affine, self.kind, out);
        });
        Ok((out, l1.shape().clone()))
    }

    fn bwd(
        &self,
        x: &Tensor,
        gamma: &Tensor,
        beta: &Tensor,
        _: &Tensor,
        grad: &Tensor,
    ) -> Result<(Option<Tensor>, Option<Tensor>, Option<Tensor>)> {
        let hosts = [x, gamma, beta, grad].map(Host::new);
        let x_values = hosts[0].values(self.name())?;
        let shape = GroupNormShape {
            batch: x.dims()[0],
            channels: gamma.elem_count(),
            groups: self.groups,
            eps: self.eps as f32,
            silu: self.kind == Activation::Silu,
        };
        let mut dx = vec![0.0; x_values.len()];
        let (dgamma, dbeta) = group_norm_backward(
            &shape,
            &x_values,
            &hosts[1].values(self.name())?,
            &hosts[2].values(self.name())?,
            &hosts[3].values(self.name())?,
            &mut dx,
        );
        Ok((
            Some(host::tensor(dx, x.shape())?),
            Some(host::tensor(dgamma, gamma.shape())?),
            Some(host::tensor(dbeta, beta.shape())?),
        ))
    }
}
