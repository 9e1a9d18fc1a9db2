//! Choosing the next token: greedy, or temperature with top-k and top-p.

use rand::rngs::StdRng;
use rand::{Rng, SeedableRng};

use crate::error::{Error, Result};

/// How an answer is generated.
#[derive(Clone, Debug)]
pub struct GenerateOptions {
    /// 0 is greedy; above, logits are divided by it before sampling.
    pub temperature: f32,
    /// Only the k most likely tokens are sampled from. 50 is what the official command line leaves in force (spec: model §9.6).
    pub top_k: Option<usize>,
    /// Only the smallest set of tokens whose probability reaches this share is sampled from; in (0, 1].
    pub top_p: f32,
    /// Longest answer in tokens.
    pub max_new_tokens: usize,
    /// Seed of the sampler; drawn from the system when absent.
    pub seed: Option<u64>,
    /// What to do with a prompt that does not fit.
    pub overlong: Overlong,
    /// Whether control strings that somebody typed (`</s>`, `<|im_end|>`) become control tokens, as in the official code.
    pub parse_special: bool,
    /// Whether several tokens are read at a time where the answer seems to repeat what was said before. The answer is the same, sooner.
    pub lookup: bool,
}

/// What to do with a prompt longer than the model's limit.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Overlong {
    /// Refuse it, with the account of its tokens.
    #[default]
    Refuse,
    /// Cut it at the limit, losing its end, and let the answer run past the limit, as the official code does.
    Truncate,
}

impl Default for GenerateOptions {
    fn default() -> Self {
        Self {
            temperature: 0.0,
            top_k: Some(50),
            top_p: 1.0,
            max_new_tokens: 512,
            seed: None,
            overlong: Overlong::Refuse,
            parse_special: false,
            lookup: true,
        }
    }
}

impl GenerateOptions {
    /// Checks every value's range.
    ///
    /// # Errors
    /// Names the first option out of range.
    pub fn check(&self) -> Result<()> {
        let refuse = |name, value: String, expected| {
            Err(Error::Option {
                name,
                value,
                expected,
            })
        };
        if !self.temperature.is_finite() || self.temperature < 0.0 {
            return refuse(
                "temperature",
                self.temperature.to_string(),
                "a number of 0 or more",
            );
        }
        if !(self.top_p > 0.0 && self.top_p <= 1.0) {
            return refuse(
                "top-p",
                self.top_p.to_string(),
                "a number above 0 and at most 1",
            );
        }
        if self.top_k == Some(0) {
            return refuse("top-k", "0".into(), "1 or more");
        }
        if self.max_new_tokens == 0 {
            return refuse("max-new-tokens", "0".into(), "1 or more");
        }
        Ok(())
    }
}

/// Draws tokens according to [`GenerateOptions`]; the same seed and logits give the same tokens.
pub struct Sampler {
    temperature: f32,
    top_k: Option<usize>,
    top_p: f32,
    random: StdRng,
}

impl Sampler {
    /// A sampler for one answer.
    pub fn new(options: &GenerateOptions) -> Self {
        let random = match options.seed {
            Some(seed) => StdRng::seed_from_u64(seed),
            None => StdRng::seed_from_u64(system_seed()),
        };
        Self {
            temperature: options.temperature,
            top_k: options.top_k,
            top_p: options.top_p,
            random,
        }
    }

    /// The next token id for one row of logits.
    pub fn next(&mut self, logits: &[f32]) -> u32 {
        if self.temperature == 0.0 {
            return greedy(logits);
        }
        let mut candidates: Vec<(u32, f32)> = logits
            .iter()
            .enumerate()
            .map(|(id, logit)| (id as u32, logit / self.temperature))
            .filter(|(_, logit)| !logit.is_nan())
            .collect();
        if let Some(kept) = self.top_k.filter(|kept| *kept < candidates.len()) {
            likeliest(&mut candidates, kept);
            candidates.truncate(kept);
        }
        let best = candidates
            .iter()
            .map(|(_, logit)| *logit)
            .fold(f32::NEG_INFINITY, f32::max);
        if best == f32::NEG_INFINITY {
            return greedy(logits);
        }
        let mut total = 0f64;
        for candidate in &mut candidates {
            candidate.1 = (candidate.1 - best).exp();
            total += f64::from(candidate.1);
        }
        let (end, mass) = self.nucleus(&mut candidates, total);
        let mut point = self.random.random::<f64>() * mass;
        for (id, weight) in &candidates[..end] {
            point -= f64::from(*weight);
            if point <= 0.0 {
                return *id;
            }
        }
        candidates[end - 1].0
    }

    /// Brings the smallest set of candidates whose share of `total` reaches top-p to the front, at least one; gives its size and weight.
    fn nucleus(&self, candidates: &mut [(u32, f32)], total: f64) -> (usize, f64) {
        if self.top_p >= 1.0 {
            return (candidates.len(), total);
        }
        let limit = f64::from(self.top_p) * total;
        // A vocabulary is large and a nucleus small: only as many are sorted as may be needed.
        let mut sorted = FIRST_SORTED;
        loop {
            likeliest(candidates, sorted);
            let front = candidates.len().min(sorted);
            candidates[..front].sort_unstable_by(falling);
            let mut mass = 0f64;
            for (index, (_, weight)) in candidates[..front].iter().enumerate() {
                mass += f64::from(*weight);
                if mass >= limit {
                    return (index + 1, mass);
                }
            }
            if front == candidates.len() {
                return (front, mass);
            }
            sorted *= 8;
        }
    }
}

/// Candidates sorted at first when a nucleus is looked for.
const FIRST_SORTED: usize = 128;

/// Falling by value, equals by id.
fn falling(a: &(u32, f32), b: &(u32, f32)) -> std::cmp::Ordering {
    b.1.total_cmp(&a.1).then(a.0.cmp(&b.0))
}

/// Brings the `count` largest to the front, in an order that depends on nothing but the candidates.
fn likeliest(candidates: &mut [(u32, f32)], count: usize) {
    if count > 0 && count < candidates.len() {
        candidates.select_nth_unstable_by(count, falling);
    }
}

/// The id of the largest logit, the first of equals.
pub fn greedy(logits: &[f32]) -> u32 {
    let mut best = 0;
    for (id, logit) in logits.iter().enumerate() {
        if *logit > logits[best] || logits[best].is_nan() {
            best = id;
        }
    }
    best as u32
}

fn system_seed() -> u64 {
    use std::hash::{BuildHasher, Hasher};
    let mut hasher = std::collections::hash_map::RandomState::new().build_hasher();
    hasher.write_u128(
        std::time::SystemTime::now()
            .duration_since(std::time::UNIX_EPOCH)
            .map_or(0, |elapsed| elapsed.as_nanos()),
    );
    hasher.finish()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn draw(options: &GenerateOptions, logits: &[f32], count: usize) -> Vec<u32> {
        let mut sampler = Sampler::new(options);
        (0..count).map(|_| sampler.next(logits)).collect()
    }

    #[test]
    fn greedy_takes_the_first_largest() {
        assert_eq!(greedy(&[0.0, 3.0, 3.0, -1.0]), 1);
        assert_eq!(greedy(&[f32::NAN, 1.0]), 1);
    }

    #[test]
    fn seed_repeats_and_top_k_top_p_bound_the_choice() {
        let logits = [1.0, 2.0, 3.0, 0.0, -1.0];
        let options = GenerateOptions {
            temperature: 1.0,
            seed: Some(7),
            ..Default::default()
        };
        assert_eq!(draw(&options, &logits, 50), draw(&options, &logits, 50));
        let top_two = GenerateOptions {
            top_k: Some(2),
            ..options.clone()
        };
        assert!(
            draw(&top_two, &logits, 200)
                .iter()
                .all(|id| [1, 2].contains(id))
        );
        let nucleus = GenerateOptions {
            top_p: 0.5,
            ..options
        };
        assert!(draw(&nucleus, &logits, 200).iter().all(|id| *id == 2));
    }

    #[test]
    fn the_nucleus_is_the_smallest_set_that_reaches_its_share() {
        // Falling weights in a scrambled order, so many that the nucleus is larger than what is sorted at first.
        let logits: Vec<f32> = (0..3001u32)
            .map(|id| -((id * 1009 % 3001) as f32) / 700.0)
            .collect();
        let mut sorted: Vec<(u32, f64)> = (0..3001)
            .map(|id| (id, f64::from(logits[id as usize]).exp()))
            .collect();
        sorted.sort_by(|a, b| b.1.total_cmp(&a.1));
        let total: f64 = sorted.iter().map(|(_, weight)| weight).sum();
        for top_p in [0.001f32, 0.1, 0.5, 0.9] {
            let mut mass = 0.0;
            let size = sorted
                .iter()
                .take_while(|(_, weight)| {
                    let before = mass;
                    mass += weight;
                    before < f64::from(top_p) * total
                })
                .count();
            let options = GenerateOptions {
                temperature: 1.0,
                top_k: None,
                top_p,
                seed: Some(3),
                ..Default::default()
            };
            let sampler = Sampler::new(&options);
            let mut candidates: Vec<(u32, f32)> = logits
                .iter()
                .enumerate()
                .map(|(id, logit)| (id as u32, logit.exp()))
                .collect();
            let (end, found) = sampler.nucleus(&mut candidates, total);
            assert!(end.abs_diff(size) <= 1, "top-p {top_p}: {end} of {size}");
            assert!(found >= f64::from(top_p) * total);
            let mut ids: Vec<u32> = candidates[..end].iter().map(|(id, _)| *id).collect();
            let mut wanted: Vec<u32> = sorted[..end].iter().map(|(id, _)| *id).collect();
            ids.sort_unstable();
            wanted.sort_unstable();
            assert_eq!(ids, wanted);
            for id in draw(&options, &logits, 50) {
                assert!(wanted.contains(&id));
            }
        }
    }

    #[test]
    fn frequencies_follow_the_softmax() {
        let logits = [0.0f32, 2f32.ln(), 3f32.ln()];
        let options = GenerateOptions {
            temperature: 1.0,
            seed: Some(1),
            ..Default::default()
        };
        let drawn = draw(&options, &logits, 12_000);
        for (id, share) in [(0, 1.0 / 6.0), (1, 2.0 / 6.0), (2, 3.0 / 6.0)] {
            let found = drawn.iter().filter(|drawn| **drawn == id).count() as f64 / 12_000.0;
            assert!(
                (found - share).abs() < 0.02,
                "token {id}: {found} instead of {share}"
            );
        }
    }
}
