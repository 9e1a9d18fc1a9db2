//! Gradient checkpointing: a segment of the model that keeps only its input and is run again in the backward pass
//! (arXiv 1604.06174).

use std::collections::HashMap;
use std::sync::{Arc, Mutex, PoisonError};

use candle_core::backend::BackendStorage;
use candle_core::backprop::GradStore;
use candle_core::{
    CpuStorage, CudaStorage, CustomOp1, CustomOp2, Device, Layout, MetalStorage, Result, Shape,
    Storage, Tensor, TensorId, Var,
};

use crate::host::Host;

/// Collects the gradients of parameters used inside checkpointed segments, which candle's own store cannot see.
/// Cloning gives another handle to the same collection.
#[derive(Clone, Default)]
pub struct GradientSink(Arc<Mutex<HashMap<TensorId, Tensor>>>);

impl GradientSink {
    /// An empty collection.
    pub fn new() -> Self {
        Self::default()
    }

    /// Moves everything collected so far into `store`, adding to what is there. Call it after `backward`.
    pub fn drain_into(&self, store: &mut GradStore) -> Result<()> {
        let collected = std::mem::take(&mut *self.0.lock().unwrap_or_else(PoisonError::into_inner));
        for (id, gradient) in collected {
            let total = match store.get_id(id) {
                Some(present) => (present + &gradient)?,
                None => gradient,
            };
            store.insert_id(id, total);
        }
        Ok(())
    }

    /// Forgets everything (after a failed step).
    pub fn clear(&self) {
        self.0
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .clear();
    }

    fn add(&self, variable: &Tensor, gradient: Tensor) -> Result<()> {
        let mut collected = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let total = match collected.remove(&variable.id()) {
            Some(present) => (present + gradient)?,
            None => gradient,
        };
        collected.insert(variable.id(), total);
        Ok(())
    }
}

type Segment = Box<dyn Fn(&Tensor) -> Result<Tensor> + Send + Sync>;

/// Runs `segment(x)` without keeping its intermediate results; backward runs it again. The gradient of `x` flows on as
/// usual, the gradients of parameters that the segment uses go to `sink`.
///
/// `segment` must compute the same both times. With nothing to train it costs nothing.
pub fn checkpoint(
    sink: &GradientSink,
    x: &Tensor,
    segment: impl Fn(&Tensor) -> Result<Tensor> + Send + Sync + 'static,
) -> Result<Tensor> {
    let result = segment(&x.detach())?;
    if !x.track_op() && !result.track_op() {
        return Ok(result);
    }
    // An input without a gradient would take the segment off the tape although it may hold parameters; this variable
    // without elements of its own keeps it on.
    let anchor = Var::zeros(1, candle_core::DType::F32, &Device::Cpu)?
        .as_tensor()
        .to_device(x.device())?;
    let anchor = Var::from_tensor(&anchor)?;
    let operation = Checkpoint {
        segment: Box::new(segment),
        result: result.detach(),
        sink: sink.clone(),
    };
    x.apply_op2(anchor.as_tensor(), operation)
}

struct Checkpoint {
    segment: Segment,
    result: Tensor,
    sink: GradientSink,
}

impl Checkpoint {
    fn wrong_device<T>(&self) -> Result<T> {
        candle_core::bail!("checkpoint: the segment moved its input to another device")
    }
}

impl CustomOp2 for Checkpoint {
    fn name(&self) -> &'static str {
        "checkpoint"
    }

    fn cpu_fwd(
        &self,
        _: &CpuStorage,
        _: &Layout,
        _: &CpuStorage,
        _: &Layout,
    ) -> Result<(CpuStorage, Shape)> {
        let values = Host::new(&self.result).values(self.name())?.into_owned();
        Ok((CpuStorage::F32(values), self.result.shape().clone()))
    }

    fn cuda_fwd(
        &self,
        _: &CudaStorage,
        _: &Layout,
        _: &CudaStorage,
        _: &Layout,
    ) -> Result<(CudaStorage, Shape)> {
        let result = self.result.contiguous()?;
        let (storage, layout) = result.storage_and_layout();
        match &*storage {
            Storage::Cuda(storage) => Ok((storage.try_clone(layout)?, layout.shape().clone())),
            _ => self.wrong_device(),
        }
    }

    fn metal_fwd(
        &self,
        _: &MetalStorage,
        _: &Layout,
        _: &MetalStorage,
        _: &Layout,
    ) -> Result<(MetalStorage, Shape)> {
        let result = self.result.contiguous()?;
        let (storage, layout) = result.storage_and_layout();
        match &*storage {
            Storage::Metal(storage) => Ok((storage.try_clone(layout)?, layout.shape().clone())),
            _ => self.wrong_device(),
        }
    }

    fn bwd(
        &self,
        x: &Tensor,
        _: &Tensor,
        _: &Tensor,
        grad: &Tensor,
    ) -> Result<(Option<Tensor>, Option<Tensor>)> {
        let input = if x.track_op() {
            Var::from_tensor(&x.detach())?.into_inner()
        } else {
            x.clone()
        };
        let result = (self.segment)(&input)?;
        if !result.track_op() {
            return Ok((None, None));
        }
        let root = result.apply_op1(Inject {
            gradient: grad.clone(),
        })?;
        let mut gradients = root.backward()?;
        for node in root.sorted_nodes() {
            if node.is_variable()
                && node.id() != input.id()
                && let Some(gradient) = gradients.remove(node)
            {
                self.sink.add(node, gradient)?;
            }
        }
        let dx = match gradients.remove(&input) {
            Some(dx) => Some(dx),
            None if x.track_op() => Some(x.zeros_like()?),
            None => None,
        };
        Ok((dx, None))
    }
}

/// A scalar whose gradient with respect to its input is a given tensor: the starting point of the inner backward.
struct Inject {
    gradient: Tensor,
}

impl CustomOp1 for Inject {
    fn name(&self) -> &'static str {
        "checkpoint"
    }

    fn cpu_fwd(&self, _: &CpuStorage, _: &Layout) -> Result<(CpuStorage, Shape)> {
        Ok((CpuStorage::F32(vec![0.0]), Shape::from(())))
    }

    fn cuda_fwd(&self, storage: &CudaStorage, layout: &Layout) -> Result<(CudaStorage, Shape)> {
        let first = Layout::contiguous_with_offset((), layout.start_offset());
        Ok((storage.try_clone(&first)?, Shape::from(())))
    }

    fn metal_fwd(&self, storage: &MetalStorage, layout: &Layout) -> Result<(MetalStorage, Shape)> {
        let first = Layout::contiguous_with_offset((), layout.start_offset());
        Ok((storage.try_clone(&first)?, Shape::from(())))
    }

    fn bwd(&self, _: &Tensor, _: &Tensor, _: &Tensor) -> Result<Option<Tensor>> {
        Ok(Some(self.gradient.clone()))
    }
}
