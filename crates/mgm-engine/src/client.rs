//! A request on its way: who listens, what is wanted, what has happened.

use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use crate::event::{EngineEvent, FinishReason, PromptAccount, Timings};
use crate::prompt::ReadyPrompt;
use crate::request::Sampling;

/// Where events go.
pub(crate) type Sink = Box<dyn FnMut(EngineEvent) + Send>;

/// An accepted request.
pub(crate) struct Job {
    pub(crate) prompt: ReadyPrompt,
    pub(crate) sampling: Sampling,
    /// Tokens per answer, within the context.
    pub(crate) max_new_tokens: usize,
    pub(crate) choices: usize,
    /// Blocks of positions that one answer may come to need.
    pub(crate) blocks: usize,
    pub(crate) client: Client,
    /// Counts the pictures' bytes while they wait.
    pub(crate) pending: PendingBytes,
}

/// Who asked.
pub(crate) struct Client {
    sink: Sink,
    cancelled: Arc<AtomicBool>,
    deadline: Option<Instant>,
    pub(crate) submitted: Instant,
    /// The prompt, its cached part known once it is being read.
    pub(crate) account: PromptAccount,
    pub(crate) timings: Timings,
    /// Whether a picture had to be looked at.
    pub(crate) looked: bool,
}

impl Client {
    pub(crate) fn new(
        sink: Sink,
        cancelled: Arc<AtomicBool>,
        deadline: Option<Instant>,
        account: PromptAccount,
    ) -> Self {
        Self {
            sink,
            cancelled,
            deadline,
            submitted: Instant::now(),
            account,
            timings: Timings::default(),
            looked: false,
        }
    }

    /// Tells the client; one whose sink panics has left.
    pub(crate) fn tell(&mut self, event: EngineEvent) {
        let sink = &mut self.sink;
        if catch_unwind(AssertUnwindSafe(|| sink(event))).is_err() {
            self.cancelled.store(true, Ordering::Relaxed);
            self.sink = Box::new(|_| ());
        }
    }

    /// Why the request must end now, if it must.
    pub(crate) fn ends(&self, now: Instant) -> Option<FinishReason> {
        if self.cancelled.load(Ordering::Relaxed) {
            Some(FinishReason::Cancelled)
        } else if self.deadline.is_some_and(|deadline| deadline <= now) {
            Some(FinishReason::Deadline)
        } else {
            None
        }
    }

    /// Time since submission.
    pub(crate) fn age(&self) -> Duration {
        self.submitted.elapsed()
    }
}

/// Bytes counted in a total while this value lives.
pub(crate) struct PendingBytes {
    total: Arc<AtomicUsize>,
    bytes: usize,
}

impl PendingBytes {
    /// Adds `bytes` unless the total would exceed `limit`; gives the total then.
    pub(crate) fn new(total: &Arc<AtomicUsize>, bytes: usize, limit: usize) -> Result<Self, usize> {
        let fits = |held: usize| held.checked_add(bytes).filter(|sum| *sum <= limit);
        total.fetch_update(Ordering::Relaxed, Ordering::Relaxed, fits)?;
        Ok(Self {
            total: Arc::clone(total),
            bytes,
        })
    }
}

impl Drop for PendingBytes {
    fn drop(&mut self) {
        self.total.fetch_sub(self.bytes, Ordering::Relaxed);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pending_bytes_are_bounded_and_given_back() {
        let total = Arc::new(AtomicUsize::new(0));
        let first = PendingBytes::new(&total, 60, 100).expect("fits");
        assert_eq!(PendingBytes::new(&total, 41, 100).err(), Some(60));
        assert_eq!(PendingBytes::new(&total, usize::MAX, 100).err(), Some(60));
        let second = PendingBytes::new(&total, 40, 100).expect("fits");
        drop(first);
        assert_eq!(total.load(Ordering::Relaxed), 40);
        drop(second);
        assert_eq!(total.load(Ordering::Relaxed), 0);
    }

    #[test]
    fn a_panicking_sink_is_a_client_that_left() {
        let cancelled = Arc::new(AtomicBool::new(false));
        let sink = Box::new(|_| panic!("the sink's own fault"));
        let account = PromptAccount::default();
        let mut client = Client::new(sink, Arc::clone(&cancelled), None, account);
        assert_eq!(client.ends(Instant::now()), None);
        client.tell(EngineEvent::Queued { position: 0 });
        assert_eq!(client.ends(Instant::now()), Some(FinishReason::Cancelled));
        client.tell(EngineEvent::Queued { position: 0 });
    }
}
