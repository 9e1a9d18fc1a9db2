//! One answer while it is generated.

use std::cell::RefCell;
use std::rc::Rc;
use std::time::{Duration, Instant};

use mgm_text::DetokenizeStream;
use mini_gemini::Slot;
use mini_gemini::decoder::KvCache;

use crate::brain::Brain;
use crate::choose::Chooser;
use crate::client::Client;
use crate::event::{EngineEvent, FinishReason, Timings, TokenInfo, Usage};
use crate::request::Sampling;
use crate::stop::StopTexts;

/// A request's client, shared by its answers.
pub(crate) type SharedClient = Rc<RefCell<Client>>;

/// An answer being generated.
pub(crate) struct Answer {
    pub(crate) client: SharedClient,
    choice: usize,
    pub(crate) cache: KvCache,
    /// What the cache holds.
    pub(crate) slots: Vec<Slot>,
    /// The token chosen last, which the cache does not hold yet.
    pub(crate) next: [Slot; 1],
    pub(crate) chooser: Chooser,
    stream: DetokenizeStream,
    stop: StopTexts,
    max_new_tokens: usize,
    new_tokens: usize,
    first_token: Option<Instant>,
    last_token: Instant,
    timings: Timings,
    /// Blocks reserved for it.
    pub(crate) blocks: usize,
}

/// What became of an answer with another token.
pub(crate) enum Progress {
    /// It goes on.
    Goes,
    /// It is complete.
    Ends(FinishReason, Option<String>),
}

impl Answer {
    /// Choice number `choice` after a prompt that `cache` holds as `slots`.
    pub(crate) fn new(
        brain: &dyn Brain,
        client: SharedClient,
        choice: usize,
        sampling: &Sampling,
        max_new_tokens: usize,
        cache: KvCache,
        slots: Vec<Slot>,
        blocks: usize,
    ) -> Self {
        let timings = client.borrow().timings;
        Self {
            client,
            choice,
            cache,
            slots,
            next: [Slot::Text(0)],
            chooser: Chooser::new(sampling, choice, brain.stop_ids()),
            stream: brain.stream(),
            stop: StopTexts::new(&sampling.stop),
            max_new_tokens,
            new_tokens: 0,
            first_token: None,
            last_token: Instant::now(),
            timings,
            blocks,
        }
    }

    /// Takes the next token and tells the client. Gives the time since the token before as well; none for the first.
    pub(crate) fn advance(
        &mut self,
        chosen: TokenInfo,
        stop_ids: &[u32],
    ) -> (Progress, Option<Duration>) {
        let now = Instant::now();
        let since = self
            .first_token
            .is_some()
            .then(|| now.duration_since(self.last_token));
        self.last_token = now;
        if self.first_token.is_none() {
            self.first_token = Some(now);
            let mut client = self.client.borrow_mut();
            self.timings.first_token = client.age();
            client.timings.first_token = self.timings.first_token;
        }
        self.new_tokens += 1;
        let id = chosen.id;
        if stop_ids.contains(&id) {
            return (Progress::Ends(FinishReason::Stop, None), since);
        }
        let piece = self.stream.push(id).unwrap_or_default();
        let certain = self.stop.push(&piece);
        self.tell(certain.text, Some(chosen));
        if certain.stop.is_some() {
            return (Progress::Ends(FinishReason::Stop, certain.stop), since);
        }
        if self.new_tokens >= self.max_new_tokens {
            return (Progress::Ends(FinishReason::Length, None), since);
        }
        self.next = [Slot::Text(id)];
        (Progress::Goes, since)
    }

    /// Notes that the model has read the last token.
    pub(crate) fn has_read(&mut self) {
        self.slots.extend_from_slice(&self.next);
    }

    fn tell(&self, text: String, token: Option<TokenInfo>) {
        self.client.borrow_mut().tell(EngineEvent::Token {
            choice: self.choice,
            text,
            token,
        });
    }

    /// Lets go of held-back text and tells the client that the answer is complete.
    pub(crate) fn finish(mut self, reason: FinishReason, stop: Option<String>) -> Self {
        if stop.is_none() {
            let mut rest = std::mem::replace(&mut self.stop, StopTexts::new(&[]));
            let last = self.stream.clone().finish().unwrap_or_default();
            let certain = rest.push(&last);
            let text = certain.text + &rest.finish();
            if !text.is_empty() {
                self.tell(text, None);
            }
        }
        if let Some(first) = self.first_token {
            self.timings.decode = self.last_token.duration_since(first);
        }
        let mut client = self.client.borrow_mut();
        let usage = Usage {
            prompt: client.account,
            new_tokens: self.new_tokens,
        };
        client.tell(EngineEvent::Finished {
            choice: self.choice,
            reason,
            stop,
            usage,
            timings: self.timings,
        });
        drop(client);
        self
    }
}

/// Tells a client that all choices of its request end before they began.
pub(crate) fn finish_unbegun(client: &mut Client, choices: usize, reason: FinishReason) {
    for choice in 0..choices {
        let usage = Usage {
            prompt: client.account,
            new_tokens: 0,
        };
        let timings = client.timings;
        client.tell(EngineEvent::Finished {
            choice,
            reason,
            stop: None,
            usage,
            timings,
        });
    }
}
