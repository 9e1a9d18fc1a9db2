//! The handle that clients hold.

use std::sync::Arc;
use std::sync::mpsc;
use std::time::Duration;

use mgm_image::{Limits, RgbImage};
use mini_gemini::MiniGemini;

use crate::error::{StartError, SubmitError};
use crate::event::{EngineEvent, PromptAccount};
use crate::info::{ModelInfo, Tokenized};
use crate::metrics::Snapshot;
use crate::options::EngineOptions;
use crate::picture::{MiningAttention, Picture};
use crate::request::{Input, Request};

/// A running engine. Clones are handles to the same one; it stops when [`Engine::shutdown`] is called or the last handle goes.
#[derive(Clone)]
pub struct Engine {
    model: Arc<MiniGemini>,
}

impl Engine {
    /// Starts the thread that executes `model`.
    ///
    /// # Errors
    /// When an option is out of range or the system gives no thread.
    pub fn start(model: Arc<MiniGemini>, options: EngineOptions) -> Result<Self, StartError> {
        let _ = options;
        Ok(Self { model })
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

    /// Submits a request whose events go to `sink`, called on the engine's thread: it must not block. After the last event (all choices
    /// [`EngineEvent::Finished`], or [`EngineEvent::Failed`]) the sink is dropped. Dropping the ticket cancels the request.
    ///
    /// # Errors
    /// As [`Self::submit`].
    pub fn submit_with(
        &self,
        request: Request,
        sink: impl FnMut(EngineEvent) + Send + 'static,
    ) -> Result<Ticket, SubmitError> {
        let _ = (request, sink);
        Err(SubmitError::ShuttingDown)
    }

    /// Makes a picture ready for the model: pads, resizes and normalises it, unless it was seen before.
    ///
    /// # Errors
    /// When the model has no vision tower or the picture is empty.
    pub fn picture(&self, image: &RgbImage) -> Result<Picture, SubmitError> {
        let _ = image;
        Err(SubmitError::NoVision)
    }

    /// [`Self::picture`] from a picture file (JPEG, PNG, WebP, BMP, GIF), which is not decoded if it was seen before.
    ///
    /// # Errors
    /// When the model has no vision tower, or the file is not a picture or exceeds the limits.
    pub fn picture_from_file(&self, file: &[u8], limits: &Limits) -> Result<Picture, SubmitError> {
        let _ = (file, limits);
        Err(SubmitError::NoVision)
    }

    /// What every patch of a picture mined. Runs the towers on the engine's thread, between steps; answers are kept for a while.
    ///
    /// # Errors
    /// When the model has no high-resolution tower, the file is not a picture, or the engine is shutting down.
    pub fn mining_attention(
        &self,
        file: &[u8],
        limits: &Limits,
    ) -> Result<Arc<MiningAttention>, SubmitError> {
        let _ = (file, limits);
        Err(SubmitError::NoVision)
    }

    /// Tokenises an input as [`Self::submit`] would.
    ///
    /// # Errors
    /// When the input is invalid.
    pub fn tokenize(&self, input: &Input, parse_special: bool) -> Result<Tokenized, SubmitError> {
        let _ = (input, parse_special);
        Ok(Tokenized {
            ids: Vec::new(),
            account: PromptAccount::default(),
        })
    }

    /// Text of token ids. With `skip_special` control tokens are left out.
    ///
    /// # Errors
    /// When an id lies outside the vocabulary.
    pub fn detokenize(&self, ids: &[u32], skip_special: bool) -> Result<String, SubmitError> {
        Ok(self.model.tokenizer().decode(ids, skip_special))
    }

    /// Text of one token as far as it is one by itself: bytes that are no characters become U+FFFD.
    pub fn token_text(&self, id: u32) -> String {
        self.model.tokenizer().decode(&[id], false)
    }

    /// Bytes of one token; none for an id outside the vocabulary.
    pub fn token_bytes(&self, id: u32) -> Vec<u8> {
        let _ = id;
        Vec::new()
    }

    /// The model.
    pub fn model_info(&self) -> ModelInfo {
        todo!()
    }

    /// Numbers as of now.
    pub fn metrics(&self) -> Snapshot {
        todo!()
    }

    /// Whether requests are accepted.
    pub fn is_accepting(&self) -> bool {
        false
    }

    /// Accepts no more requests, lets running and waiting ones go on for up to `grace`, ends the rest
    /// ([`FinishReason::Shutdown`](crate::FinishReason::Shutdown)) and waits for the thread. Returns whether all ended by themselves.
    pub fn shutdown(&self, grace: Duration) -> bool {
        let _ = grace;
        true
    }
}

/// Holds a request's place: dropping it cancels the request, whose memory is free within one step.
#[derive(Debug)]
#[must_use = "dropping the ticket cancels the request"]
pub struct Ticket {
    id: u64,
}

impl Ticket {
    /// Number of the request, rising.
    pub fn id(&self) -> u64 {
        self.id
    }

    /// Ends the request; its choices finish with [`FinishReason::Cancelled`](crate::FinishReason::Cancelled).
    pub fn cancel(&self) {}
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
