use crate::error::TrainError;
use crate::gradients::Gradients;

/// The other processes of a data-parallel run. Each process trains on its own micro batches (dealt by the sampler from `rank` and `world`);
/// [`Self::mean`] is the only place where they meet before the optimiser.
pub trait Collective: Send + Sync {
    /// This process' number, from 0.
    fn rank(&self) -> usize;
    /// Number of processes.
    fn world(&self) -> usize;
    /// Replaces the gradients, and `loss`, by their mean over all processes. Every process must end with the same bits.
    ///
    /// # Errors
    /// When another process is lost.
    fn mean(&self, gradients: &mut Gradients, loss: &mut f32) -> Result<(), TrainError>;
    /// Whether the flag is set in any process, so that all stop after the same step.
    ///
    /// # Errors
    /// When another process is lost.
    fn any(&self, flag: bool) -> Result<bool, TrainError>;
}

/// A run of one process.
pub struct SingleProcess;

impl Collective for SingleProcess {
    fn rank(&self) -> usize {
        0
    }

    fn world(&self) -> usize {
        1
    }

    fn mean(&self, _gradients: &mut Gradients, _loss: &mut f32) -> Result<(), TrainError> {
        Ok(())
    }

    fn any(&self, flag: bool) -> Result<bool, TrainError> {
        Ok(flag)
    }
}
