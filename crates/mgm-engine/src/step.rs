//! One pass of the decoder: which rows it has, and what becomes of its results.

use std::panic::{AssertUnwindSafe, catch_unwind};
use std::rc::Rc;
use std::sync::Arc;
use std::time::Instant;

use mini_gemini::decoder::BLOCK_POSITIONS;
use mini_gemini::{PictureKey, Read, VisualTokens};
use rayon::prelude::*;

use crate::answer::{Answer, Progress, SharedClient};
use crate::brain::unwound;
use crate::choose::Chooser;
use crate::event::{EngineEvent, TokenInfo};
use crate::prefix::common;
use crate::scheduler::{Reading, Scheduler};

/// Positions of one prompt that are read before another's turn.
const QUANTUM: usize = 64;

/// Rows of prompts in a step: for each prompt with rows its place among the readings and their number.
type Chunks = Vec<(usize, usize)>;

/// Logits where they were wanted, or why a sequence failed.
type Outcome = Result<Vec<f32>, String>;

impl Scheduler {
    /// A token for every answer, and some rows of prompts.
    pub(crate) fn step(&mut self) {
        let chunks = self.plan();
        if self.answers.is_empty() && chunks.is_empty() {
            return;
        }
        let start = Instant::now();
        self.make_room(&chunks);
        let mut outcomes = self.pass(&chunks);
        let mut metrics = self.metrics();
        if !self.answers.is_empty() {
            metrics.batch.record(self.answers.len() as f64);
        }
        metrics.prefix.positions_read += chunks.iter().map(|(_, rows)| *rows as u64).sum::<u64>();
        metrics.step_seconds.record_time(start.elapsed());
        drop(metrics);
        let of_chunks = outcomes.split_off(self.answers.len());
        let mut failed = self.go_on(outcomes);
        failed.extend(self.read_on(&chunks, of_chunks));
        let mut told: Vec<SharedClient> = Vec::new();
        for (client, error) in failed {
            if told.iter().all(|known| !Rc::ptr_eq(known, &client)) {
                self.fail(&client, &error);
                told.push(client);
            }
        }
    }

    /// Which prompts get rows in this step: half of them the prompt that came first, the others in turns. Short prompts are soon read, and
    /// a long one is not read the slower the more come after it.
    fn plan(&mut self) -> Chunks {
        // Nobody's next token waits for the step then, and larger ones are faster.
        let times = if self.answers.is_empty() { 2 } else { 1 };
        let mut left = times * self.shared.options.prefill_rows;
        let mut rows = vec![0; self.readings.len()];
        if let Some(first) = self.first() {
            rows[first] = self.readings[first].unread().min(left.div_ceil(2));
            left -= rows[first];
        }
        for (index, rows) in rows.iter_mut().enumerate() {
            if left == 0 {
                break;
            }
            if *rows == 0 && self.begin(index) {
                *rows = self.readings[index].unread().min(QUANTUM).min(left);
                left -= *rows;
            }
        }
        // What nobody else wants goes to those that have their turn.
        for (reading, rows) in self.readings.iter().zip(&mut rows) {
            if *rows > 0 {
                let more = (reading.unread() - *rows).min(left);
                *rows += more;
                left -= more;
            }
        }
        let chunks = rows.into_iter().enumerate();
        chunks.filter(|(_, rows)| *rows > 0).collect()
    }

    /// Of the prompts that can be read now the one that was asked first.
    fn first(&mut self) -> Option<usize> {
        let submitted = |index: &usize| self.readings[*index].client.borrow().submitted;
        let mut order: Vec<usize> = (0..self.readings.len()).collect();
        order.sort_by_key(submitted);
        order.into_iter().find(|index| self.begin(*index))
    }

    /// Whether a prompt can be read now: its pictures are known, and nobody is reading what it would read. Takes what is known already on
    /// its first turn.
    fn begin(&mut self, index: usize) -> bool {
        let reading = &self.readings[index];
        if reading.unseen().is_some() {
            return false;
        }
        if reading.cache.is_some() {
            return true;
        }
        let (blocks, known) = self.tree.find(&reading.slots);
        // At least one position is read, for the logits behind it.
        let known = known.min(reading.slots.len() - 1);
        let is_behind = |other: &Reading| {
            let common = common(&other.slots, &reading.slots);
            other.cache.is_some()
                && common > other.read()
                && common / BLOCK_POSITIONS > known / BLOCK_POSITIONS
        };
        if self.readings.iter().any(is_behind) {
            return false;
        }
        let cache = self.pool.cache_of(blocks, known);
        let reading = &mut self.readings[index];
        reading.cache = Some(cache);
        reading.began = Some(Instant::now());
        let mut client = reading.client.borrow_mut();
        client.account.cached_tokens = known;
        let prompt = client.account;
        client.tell(EngineEvent::Started { prompt });
        drop(client);
        let mut metrics = self.metrics();
        metrics.prefix.lookups += 1;
        metrics.prefix.hits += u64::from(known > 0);
        metrics.prefix.positions_reused += known as u64;
        true
    }

    /// Evicts what is kept for reuse until the blocks that a step may add fit.
    fn make_room(&mut self, chunks: &Chunks) {
        // One for each answer that comes to a new block, and one more where a shared block is copied.
        let of_chunk = |(_, rows): &(usize, usize)| rows.div_ceil(BLOCK_POSITIONS) + 1;
        let needed = self.answers.len() + chunks.iter().map(of_chunk).sum::<usize>();
        while self.pool.live_blocks() + needed > self.shared.block_limit {
            match self.tree.evict() {
                Some(positions) => self.metrics().prefix.positions_evicted += positions as u64,
                None => return,
            }
        }
    }

    /// Runs answers and chunks together. Gives the outcomes of the answers, then of the chunks.
    fn pass(&mut self, chunks: &Chunks) -> Vec<Outcome> {
        let pictures: Vec<(PictureKey, VisualTokens)> = chunks
            .iter()
            .flat_map(|(index, _)| self.readings[*index].seen.iter().cloned())
            .collect();
        let find = |key: PictureKey| {
            let (_, tokens) = pictures.iter().find(|(known, _)| *known == key)?;
            Some(tokens.clone())
        };
        let mut reads: Vec<Read> = self
            .answers
            .iter_mut()
            .map(|answer| Read {
                cache: &mut answer.cache,
                slots: &answer.next,
                logits: 1,
            })
            .collect();
        let mut rows = chunks.iter().peekable();
        for (index, reading) in self.readings.iter_mut().enumerate() {
            let Some((_, count)) = rows.next_if(|(place, _)| *place == index) else {
                continue;
            };
            if let Some(cache) = &mut reading.cache {
                let end = cache.len() + count;
                reads.push(Read {
                    slots: &reading.slots[cache.len()..end],
                    cache,
                    logits: usize::from(end == reading.slots.len()),
                });
            }
        }
        let held: Vec<usize> = reads.iter().map(|read| read.cache.len()).collect();
        let brain = &*self.brain;
        let run = |reads: &mut [Read]| {
            unwound(catch_unwind(AssertUnwindSafe(|| brain.read(reads, &find))))
        };
        if let Ok(logits) = run(&mut reads) {
            let mut logits = logits.into_iter();
            let mut of = |read: &Read| (read.logits > 0).then(|| logits.next()).flatten();
            return reads
                .iter()
                .map(|read| Ok(of(read).unwrap_or_default()))
                .collect();
        }
        // One by one, to see whose fault it is.
        let alone = |(read, held): (&mut [Read], usize)| {
            read.iter_mut().for_each(|read| read.cache.truncate(held));
            match run(read) {
                Ok(logits) => Ok(logits.into_iter().next().unwrap_or_default()),
                Err(error) => {
                    read.iter_mut().for_each(|read| read.cache.truncate(held));
                    Err(error.to_string())
                }
            }
        };
        reads.chunks_mut(1).zip(held).map(alone).collect()
    }

    /// Another token for every answer. Gives the requests that failed.
    fn go_on(&mut self, outcomes: Vec<Outcome>) -> Vec<(SharedClient, String)> {
        let mut failed = Vec::new();
        let (mut answers, mut logits) = (Vec::new(), Vec::new());
        for (answer, outcome) in std::mem::take(&mut self.answers).into_iter().zip(outcomes) {
            match outcome {
                Ok(row) => {
                    answers.push(answer);
                    logits.push(row);
                }
                Err(error) => {
                    failed.push((Rc::clone(&answer.client), error));
                    // Its request's other choices go with it.
                    self.answers.push(answer);
                }
            }
        }
        answers.iter_mut().for_each(Answer::has_read);
        self.choose(answers, logits);
        failed
    }

    /// Chooses a token for each of `answers` from its logits; those that go on are running answers afterwards.
    fn choose(&mut self, mut answers: Vec<Answer>, logits: Vec<Vec<f32>>) {
        let choosers: Vec<(&mut Chooser, Vec<f32>)> = answers
            .iter_mut()
            .map(|answer| &mut answer.chooser)
            .zip(logits)
            .collect();
        let chosen: Vec<TokenInfo> = choosers
            .into_par_iter()
            .map(|(chooser, mut logits)| chooser.next(&mut logits))
            .collect();
        let brain = Arc::clone(&self.brain);
        for (mut answer, token) in answers.into_iter().zip(chosen) {
            let (progress, since) = answer.advance(token, brain.stop_ids());
            let mut metrics = self.metrics();
            metrics.generated_tokens += 1;
            if let Some(since) = since {
                metrics.token_seconds.record_time(since);
            }
            drop(metrics);
            match progress {
                Progress::Goes => self.answers.push(answer),
                Progress::Ends(reason, stop) => self.end_answer(answer, reason, stop),
            }
        }
    }

    /// What was read of prompts is known to others from now on; prompts that are read to their end get their answers' first tokens. Gives
    /// the requests that failed.
    fn read_on(&mut self, chunks: &Chunks, outcomes: Vec<Outcome>) -> Vec<(SharedClient, String)> {
        let mut failed = Vec::new();
        let mut complete = Vec::new();
        for ((index, _), outcome) in chunks.iter().zip(outcomes) {
            let reading = &self.readings[*index];
            match outcome {
                Ok(logits) if reading.read() == reading.slots.len() => {
                    complete.push((*index, logits));
                }
                Ok(_) => {
                    if let Some(cache) = &reading.cache {
                        let whole = cache.len() / BLOCK_POSITIONS;
                        let slots = &reading.slots[..whole * BLOCK_POSITIONS];
                        self.tree.insert(slots, &cache.blocks()[..whole]);
                    }
                }
                Err(error) => failed.push((Rc::clone(&reading.client), error)),
            }
        }
        let mut had_rows = vec![false; self.readings.len()];
        chunks.iter().for_each(|(index, _)| had_rows[*index] = true);
        // From the last, so that the places of the others stay what they are.
        let mut begun = Vec::new();
        for (index, logits) in complete.into_iter().rev() {
            had_rows.remove(index);
            if let Some(reading) = self.readings.remove(index) {
                begun.push((reading, logits));
            }
        }
        for (reading, logits) in begun.into_iter().rev() {
            self.begin_answers(reading, logits);
        }
        self.turn(&had_rows);
        failed
    }

    /// Prompts that had rows and are not complete stand behind the others.
    fn turn(&mut self, had_rows: &[bool]) {
        let (moved, kept): (Vec<_>, Vec<_>) = std::mem::take(&mut self.readings)
            .into_iter()
            .zip(had_rows)
            .partition(|(_, had_rows)| **had_rows);
        let readings = kept.into_iter().chain(moved);
        self.readings = readings.map(|(reading, _)| reading).collect();
    }

    /// A prompt is read: its answers begin, all from the same logits.
    fn begin_answers(&mut self, reading: Reading, logits: Vec<f32>) {
        let Reading {
            client,
            slots,
            sampling,
            max_new_tokens,
            choices,
            blocks,
            cache: Some(cache),
            began,
            ..
        } = reading
        else {
            return;
        };
        let whole = slots.len() / BLOCK_POSITIONS;
        self.tree
            .insert(&slots[..whole * BLOCK_POSITIONS], &cache.blocks()[..whole]);
        {
            let mut client = client.borrow_mut();
            client.timings.prefill = began.map(|began| began.elapsed()).unwrap_or_default();
            let age = client.age().as_secs_f64();
            let mut metrics = self.metrics();
            metrics.prefill_seconds.record_time(client.timings.prefill);
            let first_token = if client.account.visual_tokens == 0 {
                &mut metrics.first_token_text
            } else if client.looked {
                &mut metrics.first_token_new_picture
            } else {
                &mut metrics.first_token_known_picture
            };
            first_token.record(age);
        }
        let answers: Vec<Answer> = (0..choices)
            .map(|choice| {
                Answer::new(
                    &*self.brain,
                    Rc::clone(&client),
                    choice,
                    &sampling,
                    max_new_tokens,
                    self.pool.cache_of(cache.blocks().to_vec(), cache.len()),
                    slots.clone(),
                    blocks,
                )
            })
            .collect();
        drop(cache);
        let rows = vec![logits; answers.len()];
        self.choose(answers, rows);
    }
}
