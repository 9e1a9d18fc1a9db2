//! The handle that clients hold.

use std::fmt;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, PoisonError, mpsc};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use mgm_image::{Limits, RgbImage};
use mini_gemini::decoder::BLOCK_POSITIONS;
use mini_gemini::{MiniGemini, MiningAttention, PictureKey, available_memory};
use sha2::{Digest, Sha256};

use crate::brain::Brain;
use crate::check;
use crate::client::{Client, Job, PendingBytes};
use crate::error::{StartError, SubmitError};
use crate::event::EngineEvent;
use crate::info::{ModelInfo, Tokenized, VisionInfo};
use crate::metrics::Snapshot;
use crate::options::EngineOptions;
use crate::picture::{Content, File, FileDigest, Picture, PictureInner};
use crate::prompt::{self, ReadyPrompt};
use crate::request::{Input, Request};
use crate::scheduler::Scheduler;
use crate::shared::{Look, Shared};

/// A running engine. Clones are handles to the same one; it stops when [`Engine::shutdown`] is called or the last handle goes.
#[derive(Clone)]
pub struct Engine {
    handle: Arc<Handle>,
}

struct Handle {
    model: Arc<MiniGemini>,
    shared: Arc<Shared>,
    thread: Mutex<Option<JoinHandle<()>>>,
    started: Instant,
}

impl Engine {
    /// Starts the thread that executes `model`.
    ///
    /// # Errors
    /// When an option is out of range or the system gives no thread.
    pub fn start(model: Arc<MiniGemini>, options: EngineOptions) -> Result<Self, StartError> {
        let brain: Arc<dyn Brain> = Arc::clone(&model) as _;
        Self::start_with(model, brain, options)
    }

    pub(crate) fn start_with(
        model: Arc<MiniGemini>,
        brain: Arc<dyn Brain>,
        options: EngineOptions,
    ) -> Result<Self, StartError> {
        check::options(&options)?;
        let position_bytes = model.decoder().position_bytes();
        let kv_bytes = options
            .kv_bytes
            .unwrap_or_else(|| default_kv_bytes(&model, position_bytes));
        let block_limit = kv_bytes / (position_bytes * BLOCK_POSITIONS).max(1);
        if block_limit < 2 {
            return Err(StartError::InvalidOption {
                name: "kv_bytes",
                value: kv_bytes.to_string(),
                expected: "room for 64 positions at least",
            });
        }
        let mut metrics = Snapshot::new();
        metrics.queue_limit = options.max_queued;
        metrics.kv.positions_limit = block_limit * BLOCK_POSITIONS;
        metrics.kv.position_bytes = position_bytes;
        let shared = Arc::new(Shared::new(options, block_limit, metrics));
        let scheduler_shared = Arc::clone(&shared);
        let thread = std::thread::Builder::new()
            .name("mgm-engine".into())
            .spawn(move || {
                // However the thread ends, nothing is accepted after it.
                let _closed = Closed(Arc::clone(&scheduler_shared));
                Scheduler::new(scheduler_shared, brain).run();
            })?;
        Ok(Self {
            handle: Arc::new(Handle {
                model,
                shared,
                thread: Mutex::new(Some(thread)),
                started: Instant::now(),
            }),
        })
    }

    /// Submits a request whose events are received from the [`Submission`]; dropping that cancels the request.
    ///
    /// Rendering and tokenising happen here, on the calling thread.
    ///
    /// # Errors
    /// When the request is invalid, does not fit, or may not wait.
    pub fn submit(&self, request: Request) -> Result<Submission, SubmitError> {
        let (sender, events) = mpsc::channel();
        let ticket = self.submit_with(request, move |event| {
            // Nobody listens any more: the ticket has cancelled the request.
            let _ = sender.send(event);
        })?;
        Ok(Submission { ticket, events })
    }

    /// Submits a request whose events go to `sink`, called on the engine's thread (the first, [`EngineEvent::Queued`], before this returns,
    /// on the calling one): it must not block. After the last event (all choices [`EngineEvent::Finished`], or [`EngineEvent::Failed`]) the
    /// sink is dropped. Dropping the ticket cancels the request.
    ///
    /// # Errors
    /// As [`Self::submit`].
    pub fn submit_with(
        &self,
        request: Request,
        sink: impl FnMut(EngineEvent) + Send + 'static,
    ) -> Result<Ticket, SubmitError> {
        let accepted = self.accept(request, Box::new(sink));
        let mut metrics = self.handle.shared.metrics();
        match &accepted {
            Ok(_) => metrics.requests.accepted += 1,
            Err(error) if error.is_retryable() => metrics.requests.refused_busy += 1,
            Err(_) => metrics.requests.refused += 1,
        }
        drop(metrics);
        accepted
    }

    fn accept(&self, request: Request, sink: crate::client::Sink) -> Result<Ticket, SubmitError> {
        let Handle { model, shared, .. } = &*self.handle;
        // Whether there is room is known before the work of tokenising.
        self.check_room(shared.inbox().queue.len())?;
        check::request(&request, &shared.options, model)?;
        let prompt = ReadyPrompt::new(model, &request.input, request.sampling.parse_special)?;
        let limits = self.limits();
        let length = prompt.slots.len();
        if length > limits.prompt || length >= limits.context {
            return Err(SubmitError::PromptTooLong {
                account: prompt.account,
                limit: limits.prompt.min(limits.context - 1),
            });
        }
        let left = limits.context - length;
        let max_new_tokens = request.sampling.max_new_tokens.unwrap_or(left).min(left);
        // One more where a shared block has to be copied.
        let blocks = (length + max_new_tokens).div_ceil(BLOCK_POSITIONS) + 1;
        if blocks * request.choices > shared.block_limit {
            return Err(SubmitError::MemoryTooSmall {
                needed: blocks * request.choices * BLOCK_POSITIONS,
                limit: shared.block_limit * BLOCK_POSITIONS,
            });
        }
        let bytes = prompt.pictures.iter().map(Picture::pending_bytes).sum();
        let limit = shared.options.pending_picture_bytes;
        let pending = PendingBytes::new(&shared.pending, bytes, limit)
            .map_err(|held| SubmitError::PicturesFull { held, limit })?;
        let cancelled = Arc::new(AtomicBool::new(false));
        let account = prompt.account;
        let mut client = Client::new(sink, Arc::clone(&cancelled), request.deadline, account);

        let mut inbox = shared.inbox();
        let position = inbox.queue.len();
        if inbox.end.is_some() {
            return Err(SubmitError::ShuttingDown);
        }
        self.check_room(position)?;
        let id = inbox.next_id;
        inbox.next_id += 1;
        client.tell(EngineEvent::Queued { position });
        let job = Job {
            prompt,
            sampling: request.sampling,
            max_new_tokens,
            choices: request.choices,
            blocks,
            client,
            pending,
        };
        inbox.queue.push(request.client, job);
        drop(inbox);
        shared.wake();
        Ok(Ticket {
            id,
            cancelled,
            shared: Arc::clone(shared),
        })
    }

    fn check_room(&self, queued: usize) -> Result<(), SubmitError> {
        if queued >= self.handle.shared.options.max_queued {
            return Err(SubmitError::QueueFull { queued });
        }
        Ok(())
    }

    fn limits(&self) -> ContextLimits {
        let model = &self.handle.model;
        let prompt = model.context_limit();
        ContextLimits {
            prompt,
            // Answers may go on past the training limit as far as positions are defined (spec: pitfalls A17).
            context: model
                .config()
                .max_position_embeddings
                .unwrap_or(prompt)
                .max(prompt),
        }
    }

    /// Makes a picture ready for the model: pads, resizes and normalises it.
    ///
    /// # Errors
    /// When the model has no vision tower or the picture is empty.
    pub fn picture(&self, image: &RgbImage) -> Result<Picture, SubmitError> {
        let Handle { model, shared, .. } = &*self.handle;
        if model.vision().is_none() {
            return Err(SubmitError::NoVision);
        }
        let prepared = model
            .prepare(image)
            .map_err(|error| SubmitError::BadPicture(error.to_string()))?;
        let key = PictureKey::of(&prepared);
        let content = match shared.vision().get(key) {
            Some(tokens) => Content::Seen(tokens),
            None => Content::Prepared(prepared),
        };
        Ok(Picture(Arc::new(PictureInner {
            key,
            width: image.width,
            height: image.height,
            content,
        })))
    }

    /// [`Self::picture`] from a picture file (JPEG, PNG, WebP, BMP, GIF), which is not decoded if it was seen before.
    ///
    /// # Errors
    /// When the model has no vision tower, or the file is not a picture or exceeds the limits.
    pub fn picture_from_file(&self, file: &[u8], limits: &Limits) -> Result<Picture, SubmitError> {
        let Handle { model, shared, .. } = &*self.handle;
        if model.vision().is_none() {
            return Err(SubmitError::NoVision);
        }
        let digest = FileDigest::from(Sha256::digest(file));
        let known = shared.vision().file(&digest);
        if let Some((known, tokens)) = known {
            return Ok(Picture(Arc::new(PictureInner {
                key: known.key,
                width: known.width,
                height: known.height,
                content: Content::Seen(tokens),
            })));
        }
        let picture = self.picture(&decode(file, limits)?)?;
        let (width, height) = picture.size();
        let key = picture.key();
        let file = File { key, width, height };
        shared.vision().remember_file(digest, file);
        Ok(picture)
    }

    /// What every patch of a picture file's picture mined. Runs the towers on the engine's thread, between steps; the latest answers are
    /// kept. Waits for the engine: not for a thread that must not block.
    ///
    /// # Errors
    /// When the model has no high-resolution tower, the file is not a picture or exceeds the limits, or the engine is shutting down.
    pub fn mining_attention(
        &self,
        file: &[u8],
        limits: &Limits,
    ) -> Result<Arc<MiningAttention>, SubmitError> {
        let shared = &self.handle.shared;
        if !self.model_info().vision.is_some_and(|vision| vision.mines) {
            return Err(SubmitError::NoVision);
        }
        let digest = FileDigest::from(Sha256::digest(file));
        if let Some(inside) = shared.insides().get(&digest) {
            return Ok(inside);
        }
        let image = decode(file, limits)?;
        let (sender, receiver) = mpsc::channel();
        {
            let mut inbox = shared.inbox();
            if inbox.end.is_some() {
                return Err(SubmitError::ShuttingDown);
            }
            self.check_room(inbox.queue.len() + inbox.looks.len())?;
            inbox.looks.push_back(Look::new(image, sender));
        }
        shared.wake();
        let inside = Arc::new(receiver.recv().map_err(|_| SubmitError::ShuttingDown)??);
        shared.insides().keep(digest, Arc::clone(&inside));
        Ok(inside)
    }

    /// Tokenises an input as [`Self::submit`] would.
    ///
    /// # Errors
    /// When the input is invalid.
    pub fn tokenize(
        &self,
        input: &Input,
        parse_special: bool,
        add_special: bool,
    ) -> Result<Tokenized, SubmitError> {
        prompt::tokenized(&self.handle.model, input, parse_special, add_special)
    }

    /// Text of token ids. With `skip_special` control tokens are left out.
    ///
    /// # Errors
    /// When an id lies outside the vocabulary.
    pub fn detokenize(&self, ids: &[u32], skip_special: bool) -> Result<String, SubmitError> {
        let tokenizer = self.handle.model.tokenizer();
        if let Some(id) = ids.iter().find(|id| tokenizer.token_bytes(**id).is_none()) {
            return Err(SubmitError::InvalidInput {
                message: format!("token id {id} lies outside the vocabulary"),
            });
        }
        Ok(tokenizer.decode(ids, skip_special))
    }

    /// Text of one token as far as it is one by itself: bytes that are no characters become U+FFFD.
    pub fn token_text(&self, id: u32) -> String {
        String::from_utf8_lossy(&self.token_bytes(id)).into_owned()
    }

    /// Bytes of one token; none for an id outside the vocabulary.
    pub fn token_bytes(&self, id: u32) -> Vec<u8> {
        let tokenizer = self.handle.model.tokenizer();
        tokenizer.token_bytes(id).unwrap_or_default().to_vec()
    }

    /// The model.
    pub fn model_info(&self) -> ModelInfo {
        let model = &self.handle.model;
        let limits = self.limits();
        ModelInfo {
            name: model.name().to_string(),
            template: model.template().name(),
            prompt_limit: limits.prompt,
            context_limit: limits.context,
            vocab_size: model.decoder().config().vocab_size,
            vision: model.vision().map(|vision| VisionInfo {
                tokens_per_picture: vision.tokens_per_image(),
                low_res_size: vision.preprocess().low_res_size,
                high_res_size: vision.preprocess().high_res_size,
                mines: vision.mines(),
            }),
        }
    }

    /// Numbers as of now.
    pub fn metrics(&self) -> Snapshot {
        let shared = &self.handle.shared;
        let queued = shared.inbox().queue.len();
        let vision = shared.vision().metrics();
        let mut snapshot = shared.metrics().clone();
        snapshot.queued = queued;
        snapshot.vision = vision;
        snapshot.uptime = self.handle.started.elapsed();
        snapshot
    }

    /// Whether requests are accepted.
    pub fn is_accepting(&self) -> bool {
        self.handle.shared.inbox().end.is_none()
    }

    /// Accepts no more requests, lets running and waiting ones go on for up to `grace`, ends the rest
    /// ([`FinishReason::Shutdown`](crate::FinishReason::Shutdown)) and waits for the thread. Returns whether all ended by themselves.
    pub fn shutdown(&self, grace: Duration) -> bool {
        let before = self.handle.shared.metrics().requests.shutdown;
        self.handle.stop(grace);
        self.handle.shared.metrics().requests.shutdown == before
    }
}

impl fmt::Debug for Engine {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(formatter, "Engine({})", self.handle.model.name())
    }
}

impl Handle {
    fn stop(&self, grace: Duration) {
        {
            let mut inbox = self.shared.inbox();
            let now = Instant::now();
            let end = now.checked_add(grace).unwrap_or(now);
            // A second call may only shorten what the first has promised.
            inbox.end = Some(inbox.end.map_or(end, |known| known.min(end)));
        }
        self.shared.wake();
        let thread = self
            .thread
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .take();
        if let Some(thread) = thread
            // The last handle may go in an event's sink, on that very thread.
            && thread.thread().id() != std::thread::current().id()
        {
            // A panic of the thread was reported there.
            let _ = thread.join();
        }
    }
}

impl Drop for Handle {
    fn drop(&mut self) {
        self.stop(Duration::ZERO);
    }
}

/// Ends everything when the engine's thread does.
struct Closed(Arc<Shared>);

impl Drop for Closed {
    fn drop(&mut self) {
        let mut inbox = self.0.inbox();
        inbox.end = Some(Instant::now());
        let waiting = inbox.queue.take_where(|_| true);
        let looks = std::mem::take(&mut inbox.looks);
        drop(inbox);
        drop((waiting, looks));
    }
}

struct ContextLimits {
    prompt: usize,
    context: usize,
}

/// A quarter of the free memory, but no more than a gibibyte or eight whole contexts, whichever is more.
fn default_kv_bytes(model: &MiniGemini, position_bytes: usize) -> usize {
    let enough = (1usize << 30).max(8 * model.context_limit().saturating_mul(position_bytes));
    let free = available_memory().unwrap_or(4 << 30);
    enough.min(usize::try_from(free / 4).unwrap_or(usize::MAX))
}

fn decode(file: &[u8], limits: &Limits) -> Result<RgbImage, SubmitError> {
    mgm_image::decode(file, limits).map_err(|error| SubmitError::BadPicture(error.to_string()))
}

/// Holds a request's place: dropping it cancels the request, whose memory is free within one step.
#[must_use = "dropping the ticket cancels the request"]
pub struct Ticket {
    id: u64,
    cancelled: Arc<AtomicBool>,
    shared: Arc<Shared>,
}

impl Ticket {
    /// Number of the request, rising.
    pub fn id(&self) -> u64 {
        self.id
    }

    /// Ends the request; its choices finish with [`FinishReason::Cancelled`](crate::FinishReason::Cancelled).
    pub fn cancel(&self) {
        self.cancelled.store(true, Ordering::Relaxed);
        self.shared.wake();
    }
}

impl Drop for Ticket {
    fn drop(&mut self) {
        self.cancel();
    }
}

impl fmt::Debug for Ticket {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(formatter, "Ticket({})", self.id)
    }
}

/// The events of one request, an iterator that waits for the next one and ends after the last. Dropping it cancels the request.
#[derive(Debug)]
pub struct Submission {
    ticket: Ticket,
    events: mpsc::Receiver<EngineEvent>,
}

impl Submission {
    /// Number of the request, rising.
    pub fn id(&self) -> u64 {
        self.ticket.id()
    }

    /// Ends the request; its choices finish with [`FinishReason::Cancelled`](crate::FinishReason::Cancelled).
    pub fn cancel(&self) {
        self.ticket.cancel();
    }

    /// The next event; `None` after the last, or when none came in time.
    pub fn next_timeout(&self, timeout: Duration) -> Option<EngineEvent> {
        self.events.recv_timeout(timeout).ok()
    }
}

impl Iterator for Submission {
    type Item = EngineEvent;

    fn next(&mut self) -> Option<EngineEvent> {
        self.events.recv().ok()
    }
}
