//! Whether anything else is computing on this machine. On two cores a neighbour changes a timing several times over, so timings wait until
//! there is none and tell how much there was.
//!
//! Counted from `/proc`; where that does not exist nothing is waited for and nothing is told.

use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

/// Length of one look at the machine.
const WINDOW: Duration = Duration::from_millis(500);
/// Looks in a row that must find it idle.
const IDLE_WINDOWS: usize = 3;
/// Share of all cores that others may take and the machine still counts as idle; the clock ticks that are counted are a hundredth of a
/// second long.
pub const IDLE_SHARE: f64 = 0.03;

/// Processor time up to now, in clock ticks.
#[derive(Clone, Copy, Debug)]
struct Ticks {
    busy: u64,
    own: u64,
}

/// Counts how much processor time other programs take.
#[derive(Debug)]
pub struct Others {
    start: Option<Ticks>,
    started: Instant,
}

impl Others {
    /// Starts counting.
    pub fn watch() -> Self {
        Self {
            start: ticks(),
            started: Instant::now(),
        }
    }

    /// The share of all cores that others have taken since the start, from 0 to 1; `None` where the system does not tell or too little time
    /// has passed to say.
    pub fn share(&self) -> Option<f64> {
        const TICKS_A_SECOND: f64 = 100.0;
        let (start, end) = (self.start?, ticks()?);
        let cores = std::thread::available_parallelism().map_or(1, usize::from);
        let whole = self.started.elapsed().as_secs_f64() * TICKS_A_SECOND * cores as f64;
        if whole < 20.0 {
            return None;
        }
        let busy = end.busy.saturating_sub(start.busy) as f64;
        let own = end.own.saturating_sub(start.own) as f64;
        Some(((busy - own) / whole).clamp(0.0, 1.0))
    }
}

/// Waits until others take next to nothing, at most `most`, or until `stop` is raised. Returns how long it took.
pub fn wait(most: Duration, stop: &AtomicBool) -> Duration {
    let started = Instant::now();
    let mut idle = 0;
    while idle < IDLE_WINDOWS && started.elapsed() < most && !stop.load(Ordering::SeqCst) {
        let others = Others::watch();
        std::thread::sleep(WINDOW);
        match others.share() {
            None => break,
            Some(share) if share < IDLE_SHARE => idle += 1,
            Some(_) => idle = 0,
        }
    }
    started.elapsed()
}

fn ticks() -> Option<Ticks> {
    let stat = std::fs::read_to_string("/proc/stat").ok()?;
    let own = std::fs::read_to_string("/proc/self/stat").ok()?;
    Some(Ticks {
        busy: busy(&stat)?,
        own: own_ticks(&own)?,
    })
}

/// Ticks in which any core computed: the first line's user, nice, system, interrupt and soft-interrupt fields, and those stolen by other
/// virtual machines. Idle and waiting are left out.
fn busy(stat: &str) -> Option<u64> {
    let fields: Vec<u64> = stat
        .lines()
        .next()?
        .strip_prefix("cpu ")?
        .split_whitespace()
        .take(8)
        .map(|field| field.parse().ok())
        .collect::<Option<_>>()?;
    let &[user, nice, system, _, _, interrupts, soft, stolen] = fields.as_slice() else {
        return None;
    };
    Some(user + nice + system + interrupts + soft + stolen)
}

/// User and system ticks of this process, all threads: fields 14 and 15, counted behind the name, which may hold anything.
fn own_ticks(stat: &str) -> Option<u64> {
    let (_, fields) = stat.rsplit_once(')')?;
    let mut fields = fields.split_whitespace().skip(11);
    let user: u64 = fields.next()?.parse().ok()?;
    let system: u64 = fields.next()?.parse().ok()?;
    Some(user + system)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn files_of_the_system_are_read() {
        assert_eq!(
            busy("cpu  10 20 30 4000 500 6 7 8 9 0\ncpu0 1 2\n"),
            Some(81)
        );
        assert_eq!(busy("cpu0 1 2 3"), None);
        assert_eq!(busy("cpu  1 x 3 4 5 6 7 8"), None);
        let line = "12 (a) b) S 1 12 12 0 -1 4194304 100 0 0 0 250 50 3 4 20 0 3 0 99 1000 5 18446744073709551615";
        assert_eq!(own_ticks(line), Some(300));
        assert_eq!(own_ticks("12 (a"), None);
    }

    #[cfg(target_os = "linux")]
    #[test]
    fn own_work_is_not_that_of_others() {
        let before = ticks().expect("a system that tells");
        let others = Others::watch();
        let mut value = 1u64;
        while others.started.elapsed() < Duration::from_millis(400) {
            for _ in 0..10_000 {
                value = std::hint::black_box(value.wrapping_mul(3));
            }
        }
        let after = ticks().expect("a system that tells");
        assert!(after.own > before.own, "{before:?} {after:?}");
        // Whatever the others do, a share is a share.
        let share = others.share().expect("enough time");
        assert!((0.0..=1.0).contains(&share));
    }

    #[test]
    fn waiting_ends() {
        let raised = AtomicBool::new(true);
        assert!(wait(Duration::from_secs(600), &raised) < Duration::from_secs(60));
        let most = Duration::from_millis(1);
        assert!(wait(most, &AtomicBool::new(false)) < Duration::from_secs(60));
    }
}
