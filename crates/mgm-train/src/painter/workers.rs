use std::sync::Mutex;
use std::sync::atomic::{AtomicUsize, Ordering};

use rayon::{ThreadPool, ThreadPoolBuilder};

use crate::error::TrainError;

/// One thread for each core, each of which does a whole part of a step by itself. A small model's operations are too short to be worth
/// sharing.
pub(super) struct Workers(Vec<ThreadPool>);

impl Workers {
    pub(super) fn new() -> Result<Self, TrainError> {
        let build = |_| {
            let pool = ThreadPoolBuilder::new().num_threads(1).build();
            pool.map_err(|error| TrainError::Parameters(format!("threads: {error}")))
        };
        let pools = (0..rayon::current_num_threads().max(1)).map(build);
        Ok(Self(pools.collect::<Result<_, _>>()?))
    }

    /// `work(0)` to `work(count - 1)`, results in this order.
    pub(super) fn map<T: Send>(&self, count: usize, work: impl Fn(usize) -> T + Sync) -> Vec<T> {
        let next = AtomicUsize::new(0);
        let done = Mutex::new(Vec::with_capacity(count));
        std::thread::scope(|scope| {
            for pool in self.0.iter().take(count) {
                scope.spawn(|| {
                    pool.install(|| {
                        loop {
                            let index = next.fetch_add(1, Ordering::Relaxed);
                            if index >= count {
                                break;
                            }
                            let result = work(index);
                            lock(&done).push((index, result));
                        }
                    });
                });
            }
        });
        let mut done = std::mem::take(&mut *lock(&done));
        done.sort_by_key(|(index, _)| *index);
        done.into_iter().map(|(_, result)| result).collect()
    }
}

fn lock<T>(mutex: &Mutex<T>) -> std::sync::MutexGuard<'_, T> {
    mutex
        .lock()
        .unwrap_or_else(std::sync::PoisonError::into_inner)
}
