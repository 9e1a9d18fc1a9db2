//! Choosing the next token of one answer: biases, penalties, sampling, and how likely it was.

use std::collections::HashMap;

use mini_gemini::{GenerateOptions, Sampler};

use crate::event::TokenInfo;
use crate::request::Sampling;

pub(crate) struct Chooser {
    sampler: Sampler,
    bias: Vec<(u32, f32)>,
    presence: f32,
    frequency: f32,
    /// How often the answer holds each token; kept only with penalties.
    counts: HashMap<u32, u32>,
    logprobs: Option<usize>,
    /// Tokens that may not be chosen.
    barred: Vec<u32>,
}

impl Chooser {
    /// For choice number `choice` of a request; `ends` are the ids that end an answer.
    pub(crate) fn new(sampling: &Sampling, choice: usize, ends: &[u32]) -> Self {
        let options = GenerateOptions {
            temperature: sampling.temperature,
            top_k: sampling.top_k,
            top_p: sampling.top_p,
            seed: sampling.seed.map(|seed| seed.wrapping_add(choice as u64)),
            ..GenerateOptions::default()
        };
        Self {
            sampler: Sampler::new(&options),
            bias: sampling.logit_bias.clone(),
            presence: sampling.presence_penalty,
            frequency: sampling.frequency_penalty,
            counts: HashMap::new(),
            logprobs: sampling.logprobs,
            barred: if sampling.ignore_end {
                ends.to_vec()
            } else {
                Vec::new()
            },
        }
    }

    /// The next token after a row of logits, which is changed.
    pub(crate) fn next(&mut self, logits: &mut [f32]) -> TokenInfo {
        let penalised = self.presence != 0.0 || self.frequency != 0.0;
        let mut add = |id: u32, value: f32| {
            if let Some(logit) = logits.get_mut(id as usize) {
                *logit += value;
            }
        };
        for &(id, bias) in &self.bias {
            add(id, bias);
        }
        for (&id, &count) in &self.counts {
            add(id, -self.presence - self.frequency * count as f32);
        }
        for &id in &self.barred {
            add(id, f32::NEG_INFINITY);
        }
        let id = self.sampler.next(logits);
        if penalised {
            *self.counts.entry(id).or_default() += 1;
        }
        match self.logprobs {
            None => TokenInfo {
                id,
                logprob: None,
                top: Vec::new(),
            },
            Some(count) => with_logprobs(id, logits, count),
        }
    }
}

fn with_logprobs(id: u32, logits: &[f32], count: usize) -> TokenInfo {
    let largest = logits
        .iter()
        .copied()
        .filter(|logit| !logit.is_nan())
        .fold(f32::NEG_INFINITY, f32::max);
    let total: f64 = logits
        .iter()
        .filter(|logit| !logit.is_nan())
        .map(|logit| f64::from(logit - largest).exp())
        .sum();
    let logprob = |logit: f32| (f64::from(logit - largest) - total.ln()) as f32;
    let mut order: Vec<u32> = (0..logits.len() as u32)
        .filter(|id| !logits[*id as usize].is_nan())
        .collect();
    let falling = |a: &u32, b: &u32| {
        let (left, right) = (logits[*a as usize], logits[*b as usize]);
        right.total_cmp(&left).then(a.cmp(b))
    };
    let count = count.min(order.len());
    if count < order.len() && count > 0 {
        order.select_nth_unstable_by(count, falling);
    }
    order.truncate(count);
    order.sort_unstable_by(falling);
    TokenInfo {
        id,
        logprob: logits.get(id as usize).copied().map(logprob),
        top: order
            .into_iter()
            .map(|id| (id, logprob(logits[id as usize])))
            .collect(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn next(sampling: &Sampling, rows: &[[f32; 4]]) -> Vec<u32> {
        let mut chooser = Chooser::new(sampling, 0, &[1]);
        rows.iter()
            .map(|row| chooser.next(&mut row.to_vec()).id)
            .collect()
    }

    #[test]
    fn biases_penalties_and_bars_change_the_choice() {
        let row = [0.0, 3.0, 2.5, 1.0];
        let plain = Sampling::default();
        assert_eq!(next(&plain, &[row; 3]), [1, 1, 1]);
        let biased = Sampling {
            logit_bias: vec![(3, 2.5), (99, 100.0)],
            ..plain.clone()
        };
        assert_eq!(next(&biased, &[row; 2]), [3, 3]);
        let presence = Sampling {
            presence_penalty: 0.75,
            ..plain.clone()
        };
        // Once taken off, however often it comes.
        assert_eq!(next(&presence, &[row; 4]), [1, 2, 1, 1]);
        let frequency = Sampling {
            frequency_penalty: 0.75,
            ..plain.clone()
        };
        assert_eq!(next(&frequency, &[row; 6]), [1, 2, 1, 2, 1, 2]);
        let endless = Sampling {
            ignore_end: true,
            ..plain
        };
        assert_eq!(next(&endless, &[row; 2]), [2, 2]);
    }

    #[test]
    fn log_probabilities_are_those_of_the_softmax() {
        let sampling = Sampling {
            logprobs: Some(2),
            ..Sampling::default()
        };
        let mut row = [1.0f32.ln(), 5.0f32.ln(), f32::NAN, 2.0f32.ln()];
        let token = Chooser::new(&sampling, 0, &[]).next(&mut row);
        let close = |a: f32, b: f32| (a - b).abs() < 1e-6;
        assert_eq!(token.id, 1);
        assert!(close(token.logprob.unwrap_or(0.0), 0.625f32.ln()));
        let ids: Vec<u32> = token.top.iter().map(|(id, _)| *id).collect();
        assert_eq!(ids, [1, 3]);
        assert!(close(token.top[1].1, 0.25f32.ln()));
        // Zero likeliest tokens still tell the chosen one's.
        let sampling = Sampling {
            logprobs: Some(0),
            ..sampling
        };
        let token = Chooser::new(&sampling, 0, &[]).next(&mut row);
        assert!(token.logprob.is_some() && token.top.is_empty());
    }

    #[test]
    fn choices_of_one_seed_differ_and_repeat() {
        let sampling = Sampling {
            temperature: 1.0,
            seed: Some(u64::MAX),
            ..Sampling::default()
        };
        let draw = |choice| {
            let mut chooser = Chooser::new(&sampling, choice, &[]);
            (0..40)
                .map(|_| chooser.next(&mut [0.5; 8]).id)
                .collect::<Vec<_>>()
        };
        assert_eq!(draw(0), draw(0));
        assert_ne!(draw(0), draw(1));
    }
}
