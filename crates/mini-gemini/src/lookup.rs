//! Prompt lookup: reading several tokens of an answer at a time.
//!
//! Answers often repeat what stands in the prompt, or further up in themselves. What followed the latest earlier occurrence of the last few
//! tokens is taken as a *draft* and read in one pass with the token at hand, which takes little longer than reading that token alone where
//! the weights come from memory (speculative decoding, Leviathan et al., arXiv 2211.17192, with a draft that costs nothing to make).
//!
//! **The answer stays the same.** Logits are computed behind every drafted token, and the tokens are chosen from them in order by the very
//! same sampler: as long as it chooses what was drafted, the next logits are there already; at the first token that differs the rest of the
//! draft is forgotten. A drafted token `d` is thus accepted with its probability `p(d)`, and what takes its place otherwise is drawn from `p`
//! without `d`, which is what speculative sampling prescribes for a certain draft. More than that: the sampler draws as many random
//! numbers, in the same order, as without drafts, so one seed gives one answer. That is exact as far as a row's logits do not
//! depend on how many rows are read with it. Where kernels for several rows add up in another order, logits differ in their last bits, and an
//! answer can differ where two tokens are that close.

use std::collections::HashMap;
use std::collections::VecDeque;

use crate::error::{Error, Result};

/// Tokens that must match, the longer first.
const LONG: usize = 3;
const SHORT: usize = 2;
/// Longest draft. Quantised products of up to eight rows are integer products, of one and the same form.
const LONGEST_DRAFT: usize = 7;
/// Stands for a position that holds no text.
const NO_TEXT: u32 = u32::MAX;

/// Where each run of `N` tokens was last followed by another one.
type Latest<const N: usize> = HashMap<[u32; N], usize>;

/// Text so far, and what followed what.
#[derive(Debug, Default)]
struct History {
    tokens: Vec<u32>,
    long: Latest<LONG>,
    short: Latest<SHORT>,
}

impl History {
    fn push(&mut self, token: u32) {
        let position = self.tokens.len();
        if let Some(key) = key(&self.tokens) {
            self.long.insert(key, position);
        }
        if let Some(key) = key(&self.tokens) {
            self.short.insert(key, position);
        }
        self.tokens.push(token);
    }

    /// What followed the latest earlier occurrence of the last tokens, at most `most` tokens. A repetition that reaches up to the end is
    /// taken to go on.
    fn draft(&self, most: usize) -> Vec<u32> {
        let long = key(&self.tokens).and_then(|key| self.long.get(&key));
        let short = || key(&self.tokens).and_then(|key| self.short.get(&key));
        let Some(&start) = long.or_else(short) else {
            return Vec::new();
        };
        let followed = &self.tokens[start..];
        let repeated = followed.iter().cycle().take(most);
        repeated
            .take_while(|&&token| token != NO_TEXT)
            .copied()
            .collect()
    }
}

/// The last `N` tokens, if they are text.
fn key<const N: usize>(tokens: &[u32]) -> Option<[u32; N]> {
    let key: [u32; N] = *tokens.last_chunk()?;
    (!key.contains(&NO_TEXT)).then_some(key)
}

/// How long drafts are, and whether there are any: decided by what became of earlier ones. Nothing here looks at a clock, so equal answers
/// are made in equal steps.
#[derive(Debug)]
struct Pace {
    length: usize,
    /// Steps won so far, those lost taken off.
    balance: f64,
    /// Tokens to come before the next draft.
    pause: usize,
    next_pause: usize,
}

impl Pace {
    /// What a drafted token adds to the time of a step, as a part of it.
    const COST: f64 = 0.25;
    const FIRST_LENGTH: usize = 3;
    const FIRST_BALANCE: f64 = 2.0;
    const MOST_BALANCE: f64 = 4.0;
    const FIRST_PAUSE: usize = 8;
    const LONGEST_PAUSE: usize = 256;

    fn new() -> Self {
        Self {
            length: Self::FIRST_LENGTH,
            balance: Self::FIRST_BALANCE,
            pause: 0,
            next_pause: Self::FIRST_PAUSE,
        }
    }

    /// Tokens that the next draft may have. Called for every token that was not there already.
    fn next_length(&mut self) -> usize {
        if self.pause > 0 {
            self.pause -= 1;
            return 0;
        }
        self.length
    }

    fn learn(&mut self, drafted: usize, accepted: usize) {
        if drafted == 0 {
            return;
        }
        let won = accepted as f64 - Self::COST * drafted as f64;
        self.balance = (self.balance + won).min(Self::MOST_BALANCE);
        self.length = if accepted == drafted {
            (2 * self.length).min(LONGEST_DRAFT)
        } else {
            (accepted + 1).min(LONGEST_DRAFT)
        };
        if won > 0.0 {
            self.next_pause = Self::FIRST_PAUSE;
        }
        if self.balance < 0.0 {
            // One short draft after the pause decides about the next.
            self.balance = 0.0;
            self.pause = self.next_pause;
            self.next_pause = (2 * self.next_pause).min(Self::LONGEST_PAUSE);
        }
    }
}

/// Tokens read before they were chosen, each with the logits behind it.
#[derive(Debug, Default)]
struct Ahead {
    rows: VecDeque<(u32, Vec<f32>)>,
    drafted: usize,
    accepted: usize,
}

/// How many tokens were drafted for an answer and how many of them it has.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Drafts {
    /// Tokens read before they were chosen.
    pub drafted: usize,
    /// Those of them that were chosen.
    pub accepted: usize,
}

/// The lookup of one answer.
#[derive(Debug)]
pub(crate) struct Lookup {
    /// `None` when it is switched off.
    history: Option<History>,
    pace: Pace,
    ahead: Ahead,
    drafts: Drafts,
}

/// Reads tokens behind the sequence: forgets so many of its last positions, reads these tokens, gives the logits `[vocabulary]` behind each.
pub(crate) type ReadTokens<'a> = dyn FnMut(usize, &[u32]) -> Result<Vec<Vec<f32>>> + 'a;

impl Lookup {
    /// For an answer to `prompt`, in which `None` stands for a position that holds no text. Switched off it reads one token at a time.
    pub(crate) fn new(prompt: impl Iterator<Item = Option<u32>>, on: bool) -> Self {
        let history = on.then(|| {
            let mut history = History::default();
            prompt.for_each(|token| history.push(token.unwrap_or(NO_TEXT)));
            history
        });
        Self {
            history,
            pace: Pace::new(),
            ahead: Ahead::default(),
            drafts: Drafts::default(),
        }
    }

    /// Positions that the sequence has been read beyond what was chosen.
    pub(crate) fn unchosen(&self) -> usize {
        self.ahead.rows.len()
    }

    /// What became of the drafts so far.
    pub(crate) fn drafts(&self) -> Drafts {
        self.drafts
    }

    /// The logits behind `token`, which was chosen. They may be there already, else `read` is called, once, with at most `most` more tokens.
    pub(crate) fn advance(
        &mut self,
        token: u32,
        most: usize,
        read: &mut ReadTokens,
    ) -> Result<Vec<f32>> {
        if let Some(history) = &mut self.history {
            history.push(token);
        }
        if let Some((drafted, _)) = self.ahead.rows.front()
            && *drafted == token
            && let Some((_, logits)) = self.ahead.rows.pop_front()
        {
            self.ahead.accepted += 1;
            self.drafts.accepted += 1;
            return Ok(logits);
        }
        let forgotten = self.ahead.rows.len();
        self.pace.learn(self.ahead.drafted, self.ahead.accepted);
        self.ahead = Ahead::default();
        let mut tokens = vec![token];
        if let Some(history) = &self.history {
            tokens.extend(history.draft(self.pace.next_length().min(most)));
        }
        let mut rows = read(forgotten, &tokens)?.into_iter();
        let logits = rows.next().ok_or_else(|| {
            Error::Input("the decoder gave no logits for the token at hand".into())
        })?;
        self.ahead.rows = tokens.drain(1..).zip(rows).collect();
        self.ahead.drafted = self.ahead.rows.len();
        self.drafts.drafted += self.ahead.drafted;
        Ok(logits)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::sampling::{GenerateOptions, Sampler};

    fn history(tokens: &[u32]) -> History {
        let mut history = History::default();
        tokens.iter().for_each(|&token| history.push(token));
        history
    }

    #[test]
    fn drafts_are_what_followed_last() {
        // After 1 2 came 3 first and 4 later.
        assert_eq!(history(&[1, 2, 3, 1, 2, 4, 9, 1, 2]).draft(2), [4, 9]);
        // Three matching tokens tell more than two.
        let tokens = [7, 1, 2, 5, 8, 1, 2, 6, 7, 1, 2];
        assert_eq!(history(&tokens).draft(1), [5]);
        // One token is no match, and nothing matches itself.
        assert!(history(&[1, 2, 3, 1]).draft(4).is_empty());
        assert!(history(&[1, 2]).draft(4).is_empty());
        assert!(history(&[]).draft(4).is_empty());
    }

    #[test]
    fn repetitions_go_on() {
        assert_eq!(history(&[1, 2, 3, 1, 2, 3]).draft(7), [1, 2, 3, 1, 2, 3, 1]);
        assert_eq!(history(&[4, 4, 4]).draft(3), [4, 4, 4]);
        assert!(history(&[4, 4, 4]).draft(0).is_empty());
    }

    #[test]
    fn pictures_are_neither_matched_nor_drafted() {
        let gap = NO_TEXT;
        assert_eq!(history(&[1, 2, 5, gap, gap, 1, 2]).draft(4), [5]);
        assert!(history(&[1, gap, 3, 1, gap]).draft(4).is_empty());
        assert!(history(&[1, 2, gap, 1, 2]).draft(4).is_empty());
    }

    #[test]
    fn drafts_grow_when_they_are_right_and_stop_when_they_are_not() {
        let mut pace = Pace::new();
        for expected in [3, 6, 7, 7] {
            let length = pace.next_length();
            assert_eq!(length, expected);
            pace.learn(length, length);
        }
        // Nothing accepted: shorter at once, and after a few times a pause, longer each time.
        let mut pauses = Vec::new();
        let mut pause = 0;
        for _ in 0..2000 {
            match pace.next_length() {
                0 => pause += 1,
                length => {
                    if pause > 0 {
                        pauses.push(pause);
                        pause = 0;
                    }
                    pace.learn(length, 0);
                }
            }
        }
        assert_eq!(pauses[..6], [8, 16, 32, 64, 128, 256]);
        assert_eq!(pauses.last(), Some(&256));
        // A lucky draft counts again.
        while pace.next_length() == 0 {}
        pace.learn(1, 1);
        assert_eq!(pace.next_length(), 2);
    }

    /// A language model of five words: what comes next depends on the last word and on the position, so that what followed
    /// earlier is a poor guide.
    struct Words {
        read: Vec<u32>,
        passes: usize,
    }

    const VOCABULARY: usize = 5;

    fn logits(position: usize, last: u32) -> Vec<f32> {
        let logit = |word: usize| {
            let mixed =
                (position % 3 * 31 + last as usize * 7 + word * 13).wrapping_mul(2_654_435_761);
            (mixed >> 16 & 0xff) as f32 / 100.0
        };
        (0..VOCABULARY).map(logit).collect()
    }

    fn probabilities(position: usize, last: u32) -> Vec<f64> {
        let weights: Vec<f64> = logits(position, last)
            .iter()
            .map(|logit| f64::from(*logit).exp())
            .collect();
        let total: f64 = weights.iter().sum();
        weights.iter().map(|weight| weight / total).collect()
    }

    impl Words {
        fn read(&mut self, forgotten: usize, tokens: &[u32]) -> Vec<Vec<f32>> {
            self.passes += 1;
            self.read.truncate(self.read.len() - forgotten);
            let read = |&token: &u32| {
                self.read.push(token);
                logits(self.read.len(), token)
            };
            tokens.iter().map(read).collect()
        }
    }

    /// One choice: what was chosen, what was drafted for it, and what the choice was made from.
    struct Choice {
        chosen: u32,
        drafted: Option<u32>,
        position: usize,
        last: u32,
    }

    fn answer(options: &GenerateOptions, count: usize, on: bool) -> (Vec<Choice>, Lookup, usize) {
        let prompt = [0, 1, 2, 3, 4, 0, 2, 4, 1, 3];
        let mut words = Words {
            read: prompt.to_vec(),
            passes: 0,
        };
        let mut lookup = Lookup::new(prompt.into_iter().map(Some), on);
        let mut sampler = Sampler::new(options);
        let mut chosen = prompt.to_vec();
        let mut row = logits(chosen.len(), chosen[chosen.len() - 1]);
        let mut choices = Vec::new();
        for _ in 0..count {
            let token = sampler.next(&row);
            choices.push(Choice {
                chosen: token,
                drafted: lookup.ahead.rows.front().map(|(token, _)| *token),
                position: chosen.len(),
                last: chosen[chosen.len() - 1],
            });
            chosen.push(token);
            row = lookup
                .advance(token, 100, &mut |forgotten, tokens| {
                    Ok(words.read(forgotten, tokens))
                })
                .unwrap();
            // What has been read is what was chosen, and the draft.
            let read = &words.read[..words.read.len() - lookup.unchosen()];
            assert_eq!(read, chosen);
        }
        (choices, lookup, words.passes)
    }

    fn chosen(choices: &[Choice]) -> Vec<u32> {
        choices.iter().map(|choice| choice.chosen).collect()
    }

    #[test]
    fn equal_seeds_give_equal_answers_with_and_without() {
        for temperature in [0.0, 0.3, 1.0] {
            for seed in 0..4 {
                let options = GenerateOptions {
                    temperature,
                    seed: Some(seed),
                    top_p: 0.9,
                    ..GenerateOptions::default()
                };
                let (with, lookup, fewer) = answer(&options, 500, true);
                let (without, off, passes) = answer(&options, 500, false);
                assert_eq!(chosen(&with), chosen(&without));
                assert_eq!((off.drafts(), passes), (Drafts::default(), 500));
                let drafts = lookup.drafts();
                assert!(drafts.accepted > 0 && drafts.accepted <= drafts.drafted);
                assert_eq!(fewer + drafts.accepted, 500, "{drafts:?}");
            }
        }
    }

    /// Sum of squared differences between counts and expectations over the expectations, for choices at `position % 3` after `last`.
    fn chi_square(choices: &[Choice], word: impl Fn(&Choice) -> u32) -> f64 {
        let mut total = 0.0;
        for phase in 0..3 {
            for last in 0..VOCABULARY as u32 {
                let here = |choice: &&Choice| choice.position % 3 == phase && choice.last == last;
                let made: Vec<&Choice> = choices.iter().filter(here).collect();
                let probabilities = probabilities(phase, last);
                for (id, probability) in probabilities.iter().enumerate() {
                    let expected = probability * made.len() as f64;
                    let found = made
                        .iter()
                        .filter(|choice| word(choice) as usize == id)
                        .count();
                    if expected > 0.0 {
                        total += (found as f64 - expected).powi(2) / expected;
                    }
                }
            }
        }
        total
    }

    #[test]
    fn where_there_was_a_draft_the_distribution_is_the_models() {
        let options = GenerateOptions {
            temperature: 1.0,
            top_k: None,
            seed: Some(11),
            ..GenerateOptions::default()
        };
        let (mut choices, ..) = answer(&options, 240_000, true);
        choices.retain(|choice| choice.drafted.is_some());
        let kept = |choice: &&Choice| choice.drafted == Some(choice.chosen);
        let accepted = choices.iter().filter(kept).count();
        assert!(choices.len() > 4000, "{} choices", choices.len());
        assert!(
            accepted > 500 && accepted < choices.len() - 500,
            "{accepted}"
        );
        // 15 distributions of 5 words have 60 degrees of freedom: beyond 99.6 with a probability of one in a thousand.
        let found = chi_square(&choices, |choice| choice.chosen);
        assert!(found < 99.6, "χ² {found}");
        // Taking every draft would not pass.
        let drafted = chi_square(&choices, |choice| choice.drafted.unwrap_or(0));
        assert!(drafted > 1000.0, "χ² of the drafts {drafted}");
    }

    #[test]
    fn no_more_is_read_than_there_is_room_for() {
        let mut lookup = Lookup::new([1, 2, 3, 1, 2].into_iter().map(Some), true);
        let mut lengths = Vec::new();
        for most in [0, 1, 2] {
            lookup
                .advance(3, most, &mut |_, tokens| {
                    lengths.push(tokens.len());
                    Ok(vec![vec![0.0]; tokens.len()])
                })
                .unwrap();
            lookup.ahead = Ahead::default();
            lookup.history.as_mut().unwrap().tokens.truncate(5);
        }
        assert_eq!(lengths, [1, 2, 3]);
    }

    #[test]
    fn a_reader_without_logits_is_an_error() {
        let mut lookup = Lookup::new(std::iter::empty(), true);
        assert!(lookup.advance(1, 4, &mut |_, _| Ok(Vec::new())).is_err());
    }
}
