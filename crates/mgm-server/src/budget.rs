//! Bytes that all requests together may hold before they reach the model.

use std::sync::Arc;

use tokio::sync::{OwnedSemaphorePermit, Semaphore};

use crate::error::ApiError;

/// What is counted in.
const UNIT: usize = 4 << 10;

/// A number of bytes, of which requests take shares.
#[derive(Clone)]
pub(crate) struct Budget(Arc<Semaphore>);

/// A share, given back when it is dropped.
#[derive(Debug, Default)]
pub(crate) struct Share(Option<OwnedSemaphorePermit>);

impl Budget {
    pub(crate) fn new(bytes: usize) -> Self {
        let units = (bytes / UNIT).min(Semaphore::MAX_PERMITS);
        Self(Arc::new(Semaphore::new(units)))
    }

    /// Lets a share grow to so many bytes. Nobody waits for others here: two that wait for each other would do so for ever.
    pub(crate) fn grow(&self, share: &mut Share, bytes: usize) -> Result<(), ApiError> {
        let held = share.units();
        let wanted = bytes.div_ceil(UNIT).saturating_sub(held);
        if wanted == 0 {
            return Ok(());
        }
        let more = u32::try_from(wanted)
            .ok()
            .and_then(|wanted| Arc::clone(&self.0).try_acquire_many_owned(wanted).ok())
            .ok_or_else(|| {
                ApiError::unavailable(
                    "bodies_full",
                    "the server is receiving too much at once: try again later",
                )
            })?;
        match &mut share.0 {
            Some(permit) => permit.merge(more),
            None => share.0 = Some(more),
        }
        Ok(())
    }
}

impl Share {
    fn units(&self) -> usize {
        self.0.as_ref().map_or(0, OwnedSemaphorePermit::num_permits)
    }

    /// Gives back what is not needed for so many bytes.
    #[cfg(any(feature = "remote-images", test))]
    pub(crate) fn shrink(&mut self, bytes: usize) {
        let surplus = self.units().saturating_sub(bytes.div_ceil(UNIT));
        drop(self.0.as_mut().and_then(|permit| permit.split(surplus)));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn shares_grow_shrink_and_come_back() {
        let budget = Budget::new(10 * UNIT);
        let (mut first, mut second) = (Share::default(), Share::default());
        budget.grow(&mut first, 6 * UNIT).unwrap();
        budget.grow(&mut first, 3 * UNIT).unwrap();
        assert_eq!(first.units(), 6);
        assert_eq!(
            budget.grow(&mut second, 4 * UNIT + 1).unwrap_err().status(),
            503
        );
        budget.grow(&mut second, 4 * UNIT).unwrap();
        first.shrink(UNIT + 1);
        assert_eq!(first.units(), 2);
        budget.grow(&mut second, 8 * UNIT).unwrap();
        drop(first);
        budget.grow(&mut second, 10 * UNIT).unwrap();
        assert!(budget.grow(&mut second, usize::MAX).is_err());
    }
}
