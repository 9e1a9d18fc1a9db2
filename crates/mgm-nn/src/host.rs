//! Access to the `f32` values of CPU tensors, whatever their strides.

use std::borrow::Cow;

use candle_core::backend::BackendStorage;
use candle_core::{CpuStorage, Device, Error, Layout, Result, Shape, Storage, StorageRef, Tensor};

/// The values of a CPU storage in row-major order: borrowed when they already lie so, else gathered.
pub(crate) fn values<'a>(
    storage: &'a CpuStorage,
    layout: &Layout,
    operation: &'static str,
) -> Result<Cow<'a, [f32]>> {
    let CpuStorage::F32(data) = storage else {
        return Err(Error::UnsupportedDTypeForOp(storage.dtype(), operation));
    };
    match layout.contiguous_offsets() {
        Some((start, end)) => Ok(Cow::Borrowed(&data[start..end])),
        None => Ok(Cow::Owned(gather(data, layout))),
    }
}

/// Copies a strided view into row-major order, moving the longest contiguous runs at once.
fn gather(data: &[f32], layout: &Layout) -> Vec<f32> {
    let (dims, strides) = (layout.dims(), layout.stride());
    let count = layout.shape().elem_count();
    let mut out = Vec::with_capacity(count);
    if count == 0 {
        return out;
    }
    let mut axis = dims.len();
    let mut run = 1;
    while axis > 0 && (dims[axis - 1] == 1 || strides[axis - 1] == run) {
        run *= dims[axis - 1];
        axis -= 1;
    }
    let Some(axis) = axis.checked_sub(1) else {
        out.extend_from_slice(&data[layout.start_offset()..layout.start_offset() + run]);
        return out;
    };
    let mut index = vec![0usize; axis];
    loop {
        let base =
            layout.start_offset() + index.iter().zip(strides).map(|(i, s)| i * s).sum::<usize>();
        let starts = (0..dims[axis]).map(|i| base + i * strides[axis]);
        if run == 1 {
            out.extend(starts.map(|start| data[start]));
        } else {
            starts.for_each(|start| out.extend_from_slice(&data[start..start + run]));
        }
        let Some(next) = (0..axis).rev().find(|&i| index[i] + 1 < dims[i]) else {
            return out;
        };
        index[next] += 1;
        index[next + 1..].fill(0);
    }
}

/// A CPU tensor held open for reading.
pub(crate) struct Host<'a> {
    storage: StorageRef<'a>,
    layout: &'a Layout,
}

impl<'a> Host<'a> {
    pub(crate) fn new(tensor: &'a Tensor) -> Self {
        let (storage, layout) = tensor.storage_and_layout();
        Self { storage, layout }
    }

    /// The values in row-major order.
    pub(crate) fn values(&self, operation: &'static str) -> Result<Cow<'_, [f32]>> {
        match &*self.storage {
            Storage::Cpu(storage) => values(storage, self.layout, operation),
            _ => Err(Error::Msg(format!(
                "{operation}: expected a tensor on the CPU"
            ))),
        }
    }
}

/// A CPU tensor that owns `data`.
pub(crate) fn tensor(data: Vec<f32>, shape: impl Into<Shape>) -> Result<Tensor> {
    Tensor::from_vec(data, shape.into(), &Device::Cpu)
}

/// A fresh storage of `len` zeros' worth of output, filled by `fill`.
pub(crate) fn output(len: usize, fill: impl FnOnce(&mut [f32])) -> CpuStorage {
    let mut out = vec![0.0; len];
    fill(&mut out);
    CpuStorage::F32(out)
}

/// Size of the last axis and number of rows before it.
pub(crate) fn rows_and_width(shape: &Shape, operation: &'static str) -> Result<(usize, usize)> {
    let Some(&width) = shape.dims().last() else {
        return Err(Error::Msg(format!(
            "{operation}: expected at least one axis, found a scalar"
        )));
    };
    let rows = shape.dims()[..shape.rank() - 1].iter().product();
    Ok((rows, width))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn strided_views_are_read_in_row_major_order() -> Result<()> {
        let base = Tensor::arange(0f32, 120., &Device::Cpu)?.reshape((4, 5, 6))?;
        let views = [
            base.clone(),
            base.transpose(0, 2)?,
            base.transpose(0, 1)?,
            base.narrow(1, 1, 3)?,
            base.narrow(2, 2, 3)?.transpose(0, 1)?,
            base.narrow(0, 3, 1)?,
            base.narrow(1, 2, 1)?.broadcast_as((4, 7, 6))?,
        ];
        for view in views {
            let expected = view.flatten_all()?.to_vec1::<f32>()?;
            assert_eq!(
                Host::new(&view).values("test")?.as_ref(),
                expected.as_slice(),
                "{:?}",
                view.layout()
            );
        }
        Ok(())
    }
}
