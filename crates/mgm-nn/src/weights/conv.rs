//! Convolutions and group normalisations from the weights of a source.

use mgm_kernels::gemm::{PackedWeight, WeightType};

use super::layers::{float_type, quantise_rows, wants_blocks};
use super::source::{Bias, Found, WeightSource};
use crate::conv2d::{Bias as ConvBias, Conv2d, GroupNorm, Matrix};
use crate::ops::ConvParams;
use crate::{FrozenWeight, Result};

impl WeightSource {
    /// The convolution `name` with weight `{name}.weight` `[out_channels, in_channels, kernel, kernel]` and, as `bias` says,
    /// `{name}.bias`.
    pub fn conv2d(
        &self,
        name: &str,
        in_channels: usize,
        out_channels: usize,
        params: ConvParams,
        bias: Bias,
    ) -> Result<Conv2d> {
        let base = self.full_name(name);
        let found = self.require(&format!("{base}.weight"))?;
        let kernel = params.kernel;
        let shape = [out_channels, in_channels, kernel, kernel];
        // A 1×1 convolution may be stored as the matrix that it is.
        if kernel != 1 || found.tensor.shape != shape[..2] {
            found.check_shape(&shape)?;
        }
        let matrix = if self.policy().is_trainable(&found.name) {
            let name = found.name.clone();
            let tensor = self.upload(found.into_values()?, &shape)?;
            let variable = self.parameters().register(&name, &tensor)?;
            Matrix::Dense(variable.as_tensor().clone())
        } else if self.device().is_cpu() {
            let weight = self.freeze_conv(&found, out_channels, in_channels, kernel)?;
            found.release();
            Matrix::Frozen(weight)
        } else {
            Matrix::Dense(self.upload(found.into_values()?, &shape)?)
        };
        let bias = self.conv_bias(&base, out_channels, bias)?;
        Ok(Conv2d::from_parts(matrix, bias, params, in_channels))
    }

    fn conv_bias(&self, base: &str, channels: usize, bias: Bias) -> Result<Option<ConvBias>> {
        let name = format!("{base}.bias");
        let found = match bias {
            Bias::No => return Ok(None),
            Bias::Yes => self.require(&name)?,
            Bias::IfPresent => match self.find(&name)? {
                Some(found) => found,
                None => return Ok(None),
            },
        };
        found.check_shape(&[channels])?;
        let values = found.into_values()?;
        if !self.policy().is_trainable(&name) && self.device().is_cpu() {
            return Ok(Some(ConvBias::Frozen(values.into())));
        }
        let tensor = self.upload(values, &[channels])?;
        if self.policy().is_trainable(&name) {
            let variable = self.parameters().register(&name, &tensor)?;
            return Ok(Some(ConvBias::Dense(variable.as_tensor().clone())));
        }
        Ok(Some(ConvBias::Dense(tensor)))
    }

    /// The weight as rows of patches `[out, kernel, kernel, in]`, stored as the policy says.
    fn freeze_conv(
        &self,
        found: &Found,
        out_channels: usize,
        in_channels: usize,
        kernel: usize,
    ) -> Result<std::sync::Arc<FrozenWeight>> {
        let (taps, patch) = (kernel * kernel, kernel * kernel * in_channels);
        // Stored rows are [in, kernel, kernel].
        let reorder = |stored: &[f32], out: &mut [f32]| {
            for (channel, stored) in stored.chunks_exact(taps.max(1)).enumerate() {
                for (tap, &value) in stored.iter().enumerate() {
                    out[tap * in_channels + channel] = value;
                }
            }
        };
        let storage = self.policy().storage;
        let build = |row: &(dyn Fn(usize, &mut [f32]) + Sync)| -> Result<_> {
            let reordered = |index: usize, out: &mut [f32]| {
                if taps == 1 {
                    return row(index, out);
                }
                let mut stored = vec![0.0; patch];
                row(index, &mut stored);
                reorder(&stored, out);
            };
            if wants_blocks(storage, patch) {
                let weight = quantise_rows(out_channels, patch, &reordered);
                return Ok(FrozenWeight::quantised(weight.map_err(|error| {
                    crate::Error::format(&found.file, format!("tensor {}: {error}", found.name))
                })?));
            }
            let weight_type = match float_type(storage, &found.tensor.kind) {
                // Blocks that cannot be used in place: bf16 is finer than all but Q8_0.
                WeightType::F32 if !matches_float(found) => WeightType::Bf16,
                weight_type => weight_type,
            };
            Ok(FrozenWeight::packed(PackedWeight::pack_rows(
                out_channels,
                patch,
                weight_type,
                reordered,
            )))
        };
        match found.tensor.matrix(out_channels, patch) {
            Some(matrix) => build(&|index, out| matrix.row(index, out)),
            None => {
                let values = found.values()?;
                build(&|index, out| out.copy_from_slice(&values[index * patch..][..patch]))
            }
        }
    }

    /// The group normalisation `name` with `{name}.weight` and `{name}.bias`.
    pub fn group_norm(
        &self,
        name: &str,
        groups: usize,
        channels: usize,
        eps: f64,
    ) -> Result<GroupNorm> {
        if groups == 0 || !channels.is_multiple_of(groups) {
            return Err(crate::Error::format(
                self.full_name(name),
                format!("{channels} channels cannot be split into {groups} groups"),
            ));
        }
        let part = |part: &str| self.tensor(&format!("{name}.{part}"), [channels]);
        Ok(GroupNorm::new(part("weight")?, part("bias")?, groups, eps))
    }
}

/// Whether the stored elements are single floats.
fn matches_float(found: &Found) -> bool {
    found.tensor.kind.block_len() == 1
}
