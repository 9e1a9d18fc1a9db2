/// Hugging Face's cosine schedule with linear warm-up (training §1).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Schedule {
    total: u64,
    warmup: u64,
}

impl Schedule {
    /// `total` optimiser steps, of which the first ⌈ratio·total⌉ warm up.
    pub fn new(total: u64, warmup_ratio: f64) -> Self {
        Self {
            total,
            warmup: (warmup_ratio * total as f64).ceil() as u64,
        }
    }

    /// Factor on every group's learning rate in the step that follows `done` finished steps. The very first step of a run with
    /// warm-up has the factor 0, as in the official runs.
    pub fn factor(&self, done: u64) -> f64 {
        if done < self.warmup {
            return done as f64 / self.warmup.max(1) as f64;
        }
        let progress =
            (done - self.warmup) as f64 / (self.total.saturating_sub(self.warmup)).max(1) as f64;
        (0.5 * (1.0 + (std::f64::consts::PI * progress).cos())).max(0.0)
    }

    /// All steps.
    pub fn total(&self) -> u64 {
        self.total
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn warm_up_then_half_a_cosine() {
        let schedule = Schedule::new(100, 0.03);
        assert_eq!(schedule.factor(0), 0.0);
        assert!((schedule.factor(1) - 1.0 / 3.0).abs() < 1e-15);
        assert_eq!(schedule.factor(3), 1.0);
        // 3 + 97/2 is not whole; compare with the formula written out once more, and the ends.
        assert!(
            (schedule.factor(51) - 0.5 * (1.0 + (std::f64::consts::PI * 48.0 / 97.0).cos())).abs()
                < 1e-15
        );
        assert!(schedule.factor(99) > 0.0 && schedule.factor(99) < 1e-3);
        assert_eq!(schedule.factor(100), 0.0);
        // ⌈0.03·101⌉ = 4.
        assert!((Schedule::new(101, 0.03).factor(3) - 0.75).abs() < 1e-15);
        assert_eq!(Schedule::new(10, 0.0).factor(0), 1.0);
        assert_eq!(Schedule::new(10, 1.0).factor(9), 0.9);
    }
}
