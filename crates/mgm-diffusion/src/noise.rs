//! The noise that paintings start from: the same for a seed on every machine and in every release.

use std::f64::consts::TAU;

/// Standard normal values: SplitMix64 of a counter, and Box and Muller's transform in f64.
#[derive(Clone, Debug)]
pub struct Noise {
    state: u64,
    spare: Option<f32>,
}

impl Noise {
    /// The stream of a seed.
    pub fn new(seed: u64) -> Self {
        Self {
            state: seed,
            spare: None,
        }
    }

    fn word(&mut self) -> u64 {
        self.state = self.state.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut mixed = self.state;
        mixed = (mixed ^ (mixed >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        mixed = (mixed ^ (mixed >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        mixed ^ (mixed >> 31)
    }

    /// A whole number from 0 to below `end`, all alike likely; 0 if there is none.
    pub fn below(&mut self, end: usize) -> usize {
        // The upper half of the product of a uniform word and `end`.
        ((u128::from(self.word()) * end as u128) >> 64) as usize
    }

    /// The next value.
    pub fn value(&mut self) -> f32 {
        if let Some(spare) = self.spare.take() {
            return spare;
        }
        const UNIT: f64 = 1.0 / (1u64 << 53) as f64;
        // In (0, 1]: the logarithm of 0 is not wanted.
        let radius = ((self.word() >> 11) as f64 + 1.0) * UNIT;
        let angle = (self.word() >> 11) as f64 * UNIT * TAU;
        let radius = (-2.0 * radius.ln()).sqrt();
        self.spare = Some((radius * angle.sin()) as f32);
        (radius * angle.cos()) as f32
    }

    /// The next `count` values.
    pub fn values(&mut self, count: usize) -> Vec<f32> {
        (0..count).map(|_| self.value()).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_stream_is_normal_and_does_not_change() {
        let values = Noise::new(7).values(100_000);
        let count = values.len() as f64;
        let moment = |power: i32| {
            values
                .iter()
                .map(|&v| f64::from(v).powi(power))
                .sum::<f64>()
                / count
        };
        assert!(moment(1).abs() < 0.01, "{}", moment(1));
        assert!((moment(2) - 1.0).abs() < 0.02, "{}", moment(2));
        assert!((moment(4) - 3.0).abs() < 0.15, "{}", moment(4));
        assert_eq!(Noise::new(7).values(3), values[..3]);
        assert_ne!(Noise::new(8).values(3), values[..3]);
        let mut stream = Noise::new(9);
        let mut counts = [0; 3];
        (0..3000).for_each(|_| counts[stream.below(3)] += 1);
        assert!(
            counts.iter().all(|&c| (900..1100).contains(&c)),
            "{counts:?}"
        );
        assert_eq!(stream.below(0), 0);
    }
}
