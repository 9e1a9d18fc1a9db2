//! What the engine's thread and its clients share.

use std::collections::{HashMap, VecDeque};
use std::sync::atomic::AtomicUsize;
use std::sync::mpsc::Sender;
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::time::Instant;

use mgm_image::RgbImage;
use mini_gemini::{Error, MiningAttention};

use crate::client::Job;
use crate::error::SubmitError;
use crate::metrics::Snapshot;
use crate::options::EngineOptions;
use crate::picture::{FileDigest, VisionCache};
use crate::queue::Queue;

/// What waits for the thread.
pub(crate) struct Inbox {
    pub(crate) queue: Queue<Job>,
    pub(crate) looks: VecDeque<Look>,
    /// When everything ends; set by shutdown, after which nothing more is accepted.
    pub(crate) end: Option<Instant>,
    pub(crate) next_id: u64,
}

/// A question about the inside of a picture.
pub(crate) struct Look {
    pub(crate) image: RgbImage,
    answer: Sender<Result<MiningAttention, SubmitError>>,
}

impl Look {
    pub(crate) fn new(
        image: RgbImage,
        answer: Sender<Result<MiningAttention, SubmitError>>,
    ) -> Self {
        Self { image, answer }
    }

    pub(crate) fn answer(self, found: Result<MiningAttention, Error>) {
        let found = found.map_err(|error| match error {
            Error::Stopped => SubmitError::ShuttingDown,
            error => SubmitError::BadPicture(error.to_string()),
        });
        // Whoever asked may have left.
        let _ = self.answer.send(found);
    }
}

/// Answers to questions about the inside of pictures kept for those who ask again.
const INSIDES: usize = 16;

/// The latest answers to questions about the inside of pictures.
#[derive(Default)]
pub(crate) struct Insides {
    known: HashMap<FileDigest, Arc<MiningAttention>>,
    order: VecDeque<FileDigest>,
}

impl Insides {
    pub(crate) fn get(&self, file: &FileDigest) -> Option<Arc<MiningAttention>> {
        self.known.get(file).cloned()
    }

    pub(crate) fn keep(&mut self, file: FileDigest, inside: Arc<MiningAttention>) {
        if self.known.insert(file, inside).is_none() {
            self.order.push_back(file);
        }
        while self.order.len() > INSIDES {
            if let Some(oldest) = self.order.pop_front() {
                self.known.remove(&oldest);
            }
        }
    }
}

pub(crate) struct Shared {
    pub(crate) options: EngineOptions,
    /// Blocks of positions that may be in memory.
    pub(crate) block_limit: usize,
    /// Bytes of pictures that wait to be looked at.
    pub(crate) pending: Arc<AtomicUsize>,
    inbox: Mutex<Inbox>,
    wake: Condvar,
    metrics: Mutex<Snapshot>,
    vision: Mutex<VisionCache>,
    insides: Mutex<Insides>,
}

impl Shared {
    pub(crate) fn new(options: EngineOptions, block_limit: usize, metrics: Snapshot) -> Self {
        Self {
            block_limit,
            pending: Arc::default(),
            inbox: Mutex::new(Inbox {
                queue: Queue::default(),
                looks: VecDeque::new(),
                end: None,
                next_id: 1,
            }),
            wake: Condvar::new(),
            metrics: Mutex::new(metrics),
            vision: Mutex::new(VisionCache::new(options.vision_cache_bytes)),
            insides: Mutex::default(),
            options,
        }
    }

    // A panic inside one of these short locks leaves nothing half done that matters.

    pub(crate) fn inbox(&self) -> MutexGuard<'_, Inbox> {
        self.inbox.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub(crate) fn metrics(&self) -> MutexGuard<'_, Snapshot> {
        self.metrics.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub(crate) fn vision(&self) -> MutexGuard<'_, VisionCache> {
        self.vision.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub(crate) fn insides(&self) -> MutexGuard<'_, Insides> {
        self.insides.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Wakes the thread.
    pub(crate) fn wake(&self) {
        self.wake.notify_all();
    }

    /// Lets the thread sleep until it is woken.
    pub(crate) fn sleep<'a>(&self, inbox: MutexGuard<'a, Inbox>) -> MutexGuard<'a, Inbox> {
        self.wake
            .wait(inbox)
            .unwrap_or_else(PoisonError::into_inner)
    }
}
