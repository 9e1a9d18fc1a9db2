//! The engine's thread: which work is done when.
//!
//! # A step
//!
//! Every step is one pass of the decoder that advances all running answers by one token and reads up to
//! [`EngineOptions::prefill_rows`](crate::EngineOptions::prefill_rows) further positions of prompts: the weights are read once for both.
//! Half of the positions are the oldest prompt's, so that a long one does not wait the longer the more come after it; with the others
//! prompts take turns, 64 positions at a time, so that a short prompt is not behind a long one for longer than a few steps. No prompt,
//! however long, holds up the answers of others by more than one step's rows.
//!
//! # Memory
//!
//! Keys and values lie in blocks of 32 positions. A request gets a place when all blocks that its prompt and its longest answer could need
//! are free or may be evicted; until then it waits, and those behind it too, so that a large request is not overtaken for ever. Memory is
//! allocated as positions come, but what is promised is never more than there is: an answer that has begun is never thrown out and read
//! again. On a CPU memory is cheap and reading twice is not, which decides between reserving and preempting.
//!
//! # What is known is not read again
//!
//! Finished sequences leave their blocks to a tree of prefixes ([`crate::prefix`]); prompts add theirs as they are read. Before its first
//! row a prompt takes what the tree has. If another prompt that is being read has more in common with it than the tree has, it waits for
//! that one.
//!
//! # Pictures
//!
//! A tower is one long piece of work. It is done on this thread, not beside it: the kernels use all cores anyway, and two threads that
//! share them would only slow each other. Between the layers of the towers, whenever
//! [`EngineOptions::encode_slice`](crate::EngineOptions::encode_slice) has passed, other requests get a step; slices are up to four times
//! as long when several requests wait for pictures.
//!
//! # Faults
//!
//! When a pass fails, or panics, its sequences are run one by one: only those that fail by themselves end with
//! [`EngineEvent::Failed`](crate::EngineEvent::Failed).

use std::cell::RefCell;
use std::collections::VecDeque;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::rc::Rc;
use std::sync::{Arc, MutexGuard};
use std::time::{Duration, Instant};

use mini_gemini::decoder::{BLOCK_POSITIONS, CachePool, KvCache};
use mini_gemini::{Error, PictureKey, Slot, VisualTokens};

use crate::answer::{Answer, SharedClient, finish_unbegun};
use crate::brain::{Brain, unwound};
use crate::client::{Client, Job, PendingBytes};
use crate::event::{EngineEvent, FinishReason};
use crate::metrics::Snapshot;
use crate::picture::{Content, Picture};
use crate::prefix::PrefixTree;
use crate::request::Sampling;
use crate::shared::{Look, Shared};

/// Most slices of looking in a row, when many wait for it.
const MOST_SLICES: usize = 4;

/// A request whose pictures are being looked at or whose prompt is being read.
pub(crate) struct Reading {
    pub(crate) client: SharedClient,
    pub(crate) slots: Vec<Slot>,
    pub(crate) sampling: Sampling,
    pub(crate) max_new_tokens: usize,
    pub(crate) choices: usize,
    /// Blocks reserved for each choice.
    pub(crate) blocks: usize,
    pictures: Vec<Picture>,
    /// What was seen in the pictures so far.
    pub(crate) seen: Vec<(PictureKey, VisualTokens)>,
    /// Positions known or read; none before its first row.
    pub(crate) cache: Option<KvCache>,
    /// When its first row was read.
    pub(crate) began: Option<Instant>,
    pending: Option<PendingBytes>,
}

impl Reading {
    /// The first picture that was not looked at yet.
    pub(crate) fn unseen(&self) -> Option<&Picture> {
        self.pictures
            .iter()
            .find(|picture| self.seen.iter().all(|(key, _)| *key != picture.key()))
    }

    /// Positions known or read.
    pub(crate) fn read(&self) -> usize {
        self.cache.as_ref().map_or(0, KvCache::len)
    }

    /// Positions of the prompt that are left.
    pub(crate) fn unread(&self) -> usize {
        self.slots.len() - self.read()
    }
}

/// Everything the thread knows.
pub(crate) struct Scheduler {
    pub(crate) shared: Arc<Shared>,
    pub(crate) brain: Arc<dyn Brain>,
    pub(crate) pool: CachePool,
    pub(crate) readings: VecDeque<Reading>,
    pub(crate) answers: Vec<Answer>,
    pub(crate) tree: PrefixTree,
    /// Blocks promised to readings and answers.
    pub(crate) reserved: usize,
    last_step: Instant,
    /// When everything ends, once shutting down.
    end: Option<Instant>,
}

impl Scheduler {
    pub(crate) fn new(shared: Arc<Shared>, brain: Arc<dyn Brain>) -> Self {
        Self {
            shared,
            pool: brain.cache_pool(),
            brain,
            readings: VecDeque::new(),
            answers: Vec::new(),
            tree: PrefixTree::default(),
            reserved: 0,
            last_step: Instant::now(),
            end: None,
        }
    }

    /// Works until the engine is shut down.
    pub(crate) fn run(mut self) {
        while self.wait() {
            self.tidy();
            self.admit();
            while self.look() && self.last_step.elapsed() < self.slice() {
                self.tidy();
                self.admit();
            }
            self.step();
            self.last_step = Instant::now();
            self.publish();
        }
        self.end_all();
        self.publish();
    }

    fn is_idle(&self) -> bool {
        self.readings.is_empty() && self.answers.is_empty()
    }

    /// Waits for something to do; false when there will be nothing any more.
    fn wait(&mut self) -> bool {
        let mut inbox = self.shared.inbox();
        loop {
            self.end = inbox.end;
            let has_work = !self.is_idle() || inbox.queue.len() > 0 || !inbox.looks.is_empty();
            match inbox.end {
                Some(end) if !has_work || end <= Instant::now() => return false,
                _ if has_work => return true,
                _ => inbox = self.shared.sleep(inbox),
            }
        }
    }

    /// Ends requests whose client has left or whose time is over, waiting or not.
    fn tidy(&mut self) {
        let now = Instant::now();
        let left = self
            .shared
            .inbox()
            .queue
            .take_where(|job| job.client.ends(now).is_some());
        for mut job in left {
            let reason = job.client.ends(now).unwrap_or(FinishReason::Cancelled);
            self.finish_unbegun(&mut job.client, job.choices, reason);
        }
        let mut index = 0;
        while let Some(reading) = self.readings.get(index) {
            let ends = reading.client.borrow().ends(now);
            match ends {
                Some(reason) => self.end_reading(index, reason),
                None => index += 1,
            }
        }
        let mut index = 0;
        while let Some(answer) = self.answers.get(index) {
            let ends = answer.client.borrow().ends(now);
            match ends {
                Some(reason) => {
                    let answer = self.answers.remove(index);
                    self.end_answer(answer, reason, None);
                }
                None => index += 1,
            }
        }
    }

    pub(crate) fn metrics(&self) -> MutexGuard<'_, Snapshot> {
        self.shared.metrics()
    }

    fn finish_unbegun(&self, client: &mut Client, choices: usize, reason: FinishReason) {
        finish_unbegun(client, choices, reason);
        let mut metrics = self.metrics();
        (0..choices).for_each(|_| metrics.count_end(reason));
    }

    fn end_reading(&mut self, index: usize, reason: FinishReason) {
        if let Some(reading) = self.remove_reading(index) {
            self.finish_unbegun(&mut reading.client.borrow_mut(), reading.choices, reason);
        }
    }

    /// Takes a reading out; what it has read is kept for others.
    pub(crate) fn remove_reading(&mut self, index: usize) -> Option<Reading> {
        let reading = self.readings.remove(index)?;
        self.reserved -= reading.blocks * reading.choices;
        if let Some(cache) = &reading.cache {
            self.tree
                .insert(&reading.slots[..cache.len()], cache.blocks());
        }
        Some(reading)
    }

    /// Ends an answer that was taken out of [`Self::answers`].
    pub(crate) fn end_answer(
        &mut self,
        answer: Answer,
        reason: FinishReason,
        stop: Option<String>,
    ) {
        let answer = answer.finish(reason, stop);
        self.metrics().count_end(reason);
        self.give_back(&answer);
    }

    /// Frees an answer's place; what it has read is kept for others.
    pub(crate) fn give_back(&mut self, answer: &Answer) {
        self.reserved -= answer.blocks;
        let read = answer.cache.len().min(answer.slots.len());
        self.tree
            .insert(&answer.slots[..read], answer.cache.blocks());
    }

    /// A request that was accepted could not be answered: it ends, choices and all. Nothing of it is kept.
    pub(crate) fn fail(&mut self, client: &SharedClient, error: &str) {
        let (failed, others): (Vec<Answer>, Vec<Answer>) = std::mem::take(&mut self.answers)
            .into_iter()
            .partition(|answer| Rc::ptr_eq(&answer.client, client));
        self.answers = others;
        self.reserved -= failed.iter().map(|answer| answer.blocks).sum::<usize>();
        let is_its = |reading: &Reading| Rc::ptr_eq(&reading.client, client);
        if let Some(index) = self.readings.iter().position(is_its)
            && let Some(reading) = self.readings.remove(index)
        {
            self.reserved -= reading.blocks * reading.choices;
        }
        client.borrow_mut().tell(EngineEvent::Failed {
            error: error.to_string(),
        });
        self.metrics().requests.failed += 1;
    }

    /// Ends everything that is left.
    fn end_all(&mut self) {
        for answer in std::mem::take(&mut self.answers) {
            self.end_answer(answer, FinishReason::Shutdown, None);
        }
        while !self.readings.is_empty() {
            self.end_reading(0, FinishReason::Shutdown);
        }
        let (waiting, looks) = {
            let mut inbox = self.shared.inbox();
            (
                inbox.queue.take_where(|_| true),
                std::mem::take(&mut inbox.looks),
            )
        };
        for mut job in waiting {
            self.finish_unbegun(&mut job.client, job.choices, FinishReason::Shutdown);
        }
        // Whoever asked for these sees that nobody will answer.
        drop(looks);
    }

    /// Gives places to waiting requests, in their order, as long as there are any.
    fn admit(&mut self) {
        loop {
            let taken: usize =
                self.answers.len() + self.readings.iter().map(|r| r.choices).sum::<usize>();
            let job = {
                let mut inbox = self.shared.inbox();
                let fits = inbox.queue.peek().is_some_and(|job| {
                    taken + job.choices <= self.shared.options.max_running
                        && self.reserved + job.blocks * job.choices <= self.shared.block_limit
                });
                if !fits {
                    return;
                }
                inbox.queue.pop()
            };
            let Some(job) = job else { return };
            self.place(job);
        }
    }

    fn place(&mut self, job: Job) {
        let Job {
            prompt,
            sampling,
            max_new_tokens,
            choices,
            blocks,
            mut client,
            pending,
        } = job;
        client.timings.queued = client.age();
        self.reserved += blocks * choices;
        let mut seen = Vec::new();
        let mut vision = self.shared.vision();
        for picture in &prompt.pictures {
            let known = match &picture.0.content {
                Content::Seen(tokens) => Some(tokens.clone()),
                Content::Prepared(_) => vision.get(picture.key()),
            };
            vision.count(known.is_some());
            seen.extend(known.map(|tokens| (picture.key(), tokens)));
        }
        drop(vision);
        let mut metrics = self.metrics();
        metrics.queue_seconds.record_time(client.timings.queued);
        metrics.prompt_tokens += prompt.account.text_tokens as u64;
        metrics.visual_tokens += prompt.account.visual_tokens as u64;
        drop(metrics);
        self.readings.push_back(Reading {
            client: Rc::new(RefCell::new(client)),
            slots: prompt.slots,
            sampling,
            max_new_tokens,
            choices,
            blocks,
            pictures: prompt.pictures,
            seen,
            cache: None,
            began: None,
            pending: Some(pending),
        });
    }

    /// Looks at the next picture that somebody waits for, or else answers the next question about the inside of one. Others get their
    /// steps meanwhile. False when there is nothing to look at.
    fn look(&mut self) -> bool {
        let next = self.readings.iter().find_map(Reading::unseen).cloned();
        if let Some(picture) = next {
            self.look_at(&picture);
            return true;
        }
        let look = self.shared.inbox().looks.pop_front();
        if let Some(look) = look {
            self.look_inside(look);
            return true;
        }
        false
    }

    /// How long pictures may be looked at between two steps: the longer, the more requests wait for one.
    fn slice(&self) -> Duration {
        let waiting = self
            .readings
            .iter()
            .filter(|reading| reading.unseen().is_some())
            .count();
        self.shared.options.encode_slice * waiting.clamp(1, MOST_SLICES) as u32
    }

    fn look_at(&mut self, picture: &Picture) {
        let key = picture.key();
        let known = match &picture.0.content {
            Content::Seen(tokens) => Some(tokens.clone()),
            // Somebody else may have waited for the same picture.
            Content::Prepared(_) => self.shared.vision().get(key),
        };
        if let Some(tokens) = known {
            self.hand_out(key, &tokens, Duration::ZERO);
            return;
        }
        let Content::Prepared(image) = &picture.0.content else {
            return;
        };
        let start = Instant::now();
        let brain = Arc::clone(&self.brain);
        let looked = catch_unwind(AssertUnwindSafe(|| {
            brain.look_at(image, &mut || self.pause(Some(key)))
        }));
        match unwound(looked) {
            Ok(tokens) => {
                let time = start.elapsed();
                self.metrics().encode_seconds.record_time(time);
                self.shared.vision().keep(key, tokens.clone());
                self.hand_out(key, &tokens, time);
            }
            // Everybody who waited for it has left.
            Err(Error::Stopped) => {}
            Err(error) => {
                let waits =
                    |reading: &&Reading| reading.pictures.iter().any(|wanted| wanted.key() == key);
                let waiting: Vec<SharedClient> = self
                    .readings
                    .iter()
                    .filter(waits)
                    .map(|reading| Rc::clone(&reading.client))
                    .collect();
                for client in waiting {
                    self.fail(&client, &error.to_string());
                }
            }
        }
    }

    /// Gives what was seen to everybody who waits for it.
    fn hand_out(&mut self, key: PictureKey, tokens: &VisualTokens, time: Duration) {
        for reading in &mut self.readings {
            let wants = reading.pictures.iter().any(|wanted| wanted.key() == key);
            if wants && reading.seen.iter().all(|(seen, _)| *seen != key) {
                reading.seen.push((key, tokens.clone()));
                let mut client = reading.client.borrow_mut();
                client.timings.encode += time;
                client.looked = true;
                drop(client);
                if reading.unseen().is_none() {
                    // What was prepared is not needed any more.
                    reading.pictures.clear();
                    reading.pending = None;
                }
            }
        }
    }

    fn look_inside(&mut self, look: Look) {
        let brain = Arc::clone(&self.brain);
        let found = catch_unwind(AssertUnwindSafe(|| {
            brain.mining_attention(&look.image, &mut || self.pause(None))
        }));
        look.answer(unwound(found));
    }

    /// Called between the layers of the towers: gives others a step when it is time. An error ends the work on the picture `key` that
    /// nobody waits for any more, and all such work when the engine ends.
    fn pause(&mut self, key: Option<PictureKey>) -> Result<(), Error> {
        if self.last_step.elapsed() < self.slice() {
            return Ok(());
        }
        self.end = self.shared.inbox().end;
        self.tidy();
        self.admit();
        self.step();
        self.publish();
        self.last_step = Instant::now();
        let is_wanted = key.is_none_or(|key| {
            self.readings
                .iter()
                .any(|reading| reading.pictures.iter().any(|wanted| wanted.key() == key))
        });
        let is_over = self.end.is_some_and(|end| end <= Instant::now());
        if is_wanted && !is_over {
            Ok(())
        } else {
            Err(Error::Stopped)
        }
    }

    /// Tells the metrics what is there now.
    fn publish(&self) {
        let live = self.pool.live_blocks();
        let mut metrics = self.metrics();
        metrics.reading = self.readings.len();
        metrics.running = self.answers.len();
        metrics.kv.positions_held = live * BLOCK_POSITIONS;
        metrics.kv.positions_reserved = self.reserved * BLOCK_POSITIONS;
        metrics.prefix.positions_kept = self.tree.positions();
    }
}
