//! A finished result with a backward of our own attached.

use candle_core::backend::BackendStorage;
use candle_core::{
    CpuStorage, CudaStorage, CustomOp1, Layout, MetalStorage, Result, Shape, Storage, Tensor,
};

type Backward = Box<dyn Fn(&Tensor) -> Result<Tensor> + Send + Sync>;

struct Attach {
    name: &'static str,
    result: Tensor,
    backward: Backward,
}

/// Puts `result`, computed from `x` without a tape, on the tape as a function of `x` whose gradient is
/// `backward(gradient of the result)`. Works on any device; costs one copy of the result. Used where candle's own
/// backward would also compute gradients of frozen weights.
pub(crate) fn attach_backward(
    name: &'static str,
    x: &Tensor,
    result: Tensor,
    backward: impl Fn(&Tensor) -> Result<Tensor> + Send + Sync + 'static,
) -> Result<Tensor> {
    if !x.track_op() {
        return Ok(result.detach());
    }
    x.apply_op1(Attach {
        name,
        result: result.detach(),
        backward: Box::new(backward),
    })
}

impl Attach {
    fn copy<S>(&self, pick: impl Fn(&Storage, &Layout) -> Result<Option<S>>) -> Result<(S, Shape)> {
        let (storage, layout) = self.result.storage_and_layout();
        match pick(&storage, layout)? {
            Some(copy) => Ok((copy, layout.shape().clone())),
            None => candle_core::bail!(
                "{}: the result is on another device than the input",
                self.name
            ),
        }
    }
}

impl CustomOp1 for Attach {
    fn name(&self) -> &'static str {
        self.name
    }

    fn cpu_fwd(&self, _: &CpuStorage, _: &Layout) -> Result<(CpuStorage, Shape)> {
        let values = crate::host::Host::new(&self.result)
            .values(self.name)?
            .into_owned();
        Ok((CpuStorage::F32(values), self.result.shape().clone()))
    }

    fn cuda_fwd(&self, _: &CudaStorage, _: &Layout) -> Result<(CudaStorage, Shape)> {
        self.copy(|storage, layout| match storage {
            Storage::Cuda(storage) => storage.try_clone(layout).map(Some),
            _ => Ok(None),
        })
    }

    fn metal_fwd(&self, _: &MetalStorage, _: &Layout) -> Result<(MetalStorage, Shape)> {
        self.copy(|storage, layout| match storage {
            Storage::Metal(storage) => storage.try_clone(layout).map(Some),
            _ => Ok(None),
        })
    }

    fn bwd(&self, _: &Tensor, _: &Tensor, gradient: &Tensor) -> Result<Option<Tensor>> {
        (self.backward)(gradient).map(Some)
    }
}
