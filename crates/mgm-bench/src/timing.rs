//! Repeated timings and what they say together.

use std::time::{Duration, Instant};

use serde::{Deserialize, Serialize};

use crate::error::Error;

/// Runs are added until this much time is measured, so that short stages are not judged by a handful of runs.
const LEAST_TIME: Duration = Duration::from_millis(300);
/// And no more than this many.
const MOST_RUNS: usize = 50;

/// Times of the same work, in seconds.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
pub struct Spread {
    /// The middle one.
    pub median: f64,
    /// The shortest.
    pub min: f64,
    /// The longest.
    pub max: f64,
    /// How many.
    pub runs: usize,
}

impl Spread {
    /// Puts times in order; `None` without any.
    pub fn of(seconds: &[f64]) -> Option<Self> {
        let mut seconds = seconds.to_vec();
        seconds.sort_by(f64::total_cmp);
        let (&min, &max) = (seconds.first()?, seconds.last()?);
        let runs = seconds.len();
        let median = match runs % 2 {
            1 => seconds[runs / 2],
            _ => (seconds[runs / 2 - 1] + seconds[runs / 2]) / 2.0,
        };
        Some(Self {
            median,
            min,
            max,
            runs,
        })
    }

    /// Whether two spreads tell different things: neither median lies within the other's range.
    pub fn differs(&self, other: &Self) -> bool {
        let inside = |value: f64, range: &Self| (range.min..=range.max).contains(&value);
        !inside(self.median, other) && !inside(other.median, self)
    }
}

/// Runs `work` once to warm up and then at least `runs` times; `goes_on` is asked before every run. `work` returns the time it wants to be
/// counted. Gives the times in seconds, in order; none when it was stopped before the first counted run.
pub(crate) fn measure<E>(
    runs: usize,
    goes_on: &dyn Fn() -> bool,
    mut work: impl FnMut() -> Result<Duration, E>,
) -> Result<Vec<f64>, E> {
    if !goes_on() {
        return Ok(Vec::new());
    }
    work()?;
    let mut seconds: Vec<f64> = Vec::with_capacity(runs);
    let mut total = Duration::ZERO;
    while goes_on()
        && (seconds.len() < runs || (total < LEAST_TIME && seconds.len() < runs.max(MOST_RUNS)))
    {
        let time = work()?;
        total += time;
        seconds.push(time.as_secs_f64());
    }
    Ok(seconds)
}

/// The time that `work` takes.
pub(crate) fn timed<T, E>(work: impl FnOnce() -> Result<T, E>) -> Result<Duration, Error>
where
    Error: From<E>,
{
    let started = Instant::now();
    let made = work()?;
    let time = started.elapsed();
    drop(made);
    Ok(time)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn spread(seconds: &[f64]) -> Spread {
        Spread::of(seconds).expect("times")
    }

    #[test]
    fn the_middle_and_the_ends() {
        let odd = spread(&[3.0, 1.0, 2.0]);
        assert_eq!((odd.median, odd.min, odd.max, odd.runs), (2.0, 1.0, 3.0, 3));
        assert_eq!(spread(&[4.0, 1.0, 2.0, 3.0]).median, 2.5);
        assert_eq!(Spread::of(&[]), None);
    }

    #[test]
    fn differences_within_the_spread_are_none() {
        let wide = spread(&[1.0, 2.0, 3.0]);
        assert!(!wide.differs(&spread(&[2.5, 2.6, 2.7])));
        assert!(!spread(&[2.5, 2.6, 2.7]).differs(&wide));
        assert!(wide.differs(&spread(&[3.1, 3.2, 3.3])));
        // Ranges that touch, medians outside both.
        assert!(wide.differs(&spread(&[2.9, 3.2, 3.3])));
    }

    #[test]
    fn runs_are_counted_without_the_first() {
        let mut calls = 0;
        let slow = measure(5, &|| true, || {
            calls += 1;
            Ok::<_, ()>(Duration::from_secs(1))
        });
        assert_eq!(slow.map(|times| times.len()), Ok(5));
        assert_eq!(calls, 6);
        // Short work is repeated until enough time is measured.
        let short = measure(5, &|| true, || Ok::<_, ()>(Duration::from_millis(30)));
        assert_eq!(short.map(|times| times.len()), Ok(10));
        let nothing = measure(5, &|| true, || Ok::<_, ()>(Duration::ZERO));
        assert_eq!(nothing.map(|times| times.len()), Ok(MOST_RUNS));
    }

    #[test]
    fn a_stop_keeps_what_there_is() {
        let left = std::cell::Cell::new(3);
        let goes_on = || {
            left.set(left.get() - 1);
            left.get() >= 0
        };
        let stopped = measure(5, &goes_on, || Ok::<_, ()>(Duration::from_secs(1)));
        assert_eq!(stopped.map(|times| times.len()), Ok(2));
        let never = measure(5, &|| false, || Ok::<_, ()>(Duration::from_secs(1)));
        assert_eq!(never, Ok(Vec::new()));
        assert_eq!(measure(5, &|| true, || Err(7)), Err(7));
    }
}
