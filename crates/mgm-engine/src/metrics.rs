//! Numbers about an engine, as of one moment.

use std::time::Duration;

use crate::event::FinishReason;

/// Counts of values by size.
#[derive(Clone, Debug, PartialEq)]
pub struct Histogram {
    /// Upper ends of the buckets, rising; one more bucket takes what is larger than the last.
    pub bounds: &'static [f64],
    /// Values in each bucket (`bounds.len() + 1`), not cumulative.
    pub counts: Vec<u64>,
    /// Sum of all values.
    pub sum: f64,
}

impl Histogram {
    pub(crate) fn new(bounds: &'static [f64]) -> Self {
        Self {
            bounds,
            counts: vec![0; bounds.len() + 1],
            sum: 0.0,
        }
    }

    pub(crate) fn record(&mut self, value: f64) {
        let bucket = self.bounds.partition_point(|bound| *bound < value);
        self.counts[bucket] += 1;
        self.sum += value;
    }

    pub(crate) fn record_time(&mut self, time: Duration) {
        self.record(time.as_secs_f64());
    }

    /// Number of values.
    pub fn count(&self) -> u64 {
        self.counts.iter().sum()
    }
}

/// Bounds of times in seconds.
pub(crate) const TIME_BOUNDS: &[f64] = &[
    0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0,
];
/// Bounds of numbers of rows.
pub(crate) const ROW_BOUNDS: &[f64] = &[
    1.0, 2.0, 4.0, 8.0, 12.0, 16.0, 24.0, 32.0, 48.0, 64.0, 128.0, 256.0,
];

/// Keys and values.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct KvMetrics {
    /// Positions in memory: those of running answers and those kept for reuse, shared ones once.
    pub positions_held: usize,
    /// Positions that running answers may come to need.
    pub positions_reserved: usize,
    /// Most positions that may be in memory.
    pub positions_limit: usize,
    /// Bytes of one position.
    pub position_bytes: usize,
}

/// Reuse of what was read before.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct PrefixMetrics {
    /// Prompts looked up.
    pub lookups: u64,
    /// Prompts of which a beginning was known.
    pub hits: u64,
    /// Positions taken from earlier requests.
    pub positions_reused: u64,
    /// Prompt positions that had to be read.
    pub positions_read: u64,
    /// Positions kept for reuse now.
    pub positions_kept: usize,
    /// Positions given up for others.
    pub positions_evicted: u64,
}

/// Reuse of what was seen before.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct VisionMetrics {
    /// Pictures of requests that were known.
    pub hits: u64,
    /// Pictures of requests that had to be looked at.
    pub misses: u64,
    /// Pictures kept now.
    pub pictures: usize,
    /// Bytes of their visual tokens.
    pub bytes: usize,
    /// Most bytes kept.
    pub bytes_limit: usize,
    /// Pictures given up for others.
    pub evictions: u64,
}

/// Requests by how they went.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct RequestMetrics {
    /// Accepted.
    pub accepted: u64,
    /// Refused because the queue or the memory for waiting pictures was full.
    pub refused_busy: u64,
    /// Refused for any other reason.
    pub refused: u64,
    /// Choices that ended by themselves or by a stop text.
    pub stop: u64,
    /// Choices that reached their token limit.
    pub length: u64,
    /// Choices whose client left.
    pub cancelled: u64,
    /// Choices whose deadline passed.
    pub deadline: u64,
    /// Choices ended by shutdown.
    pub shutdown: u64,
    /// Requests that failed after they were accepted.
    pub failed: u64,
}

/// An engine at one moment; counters run since its start.
#[derive(Clone, Debug)]
pub struct Snapshot {
    /// Since the start.
    pub uptime: Duration,
    /// Requests waiting for a place.
    pub queued: usize,
    /// Requests that may wait.
    pub queue_limit: usize,
    /// Requests whose pictures are being looked at or whose prompt is being read.
    pub reading: usize,
    /// Answers being generated.
    pub running: usize,
    /// Requests.
    pub requests: RequestMetrics,
    /// Text tokens of prompts.
    pub prompt_tokens: u64,
    /// Visual tokens of prompts.
    pub visual_tokens: u64,
    /// Tokens generated.
    pub generated_tokens: u64,
    /// Keys and values.
    pub kv: KvMetrics,
    /// Reuse of prompts.
    pub prefix: PrefixMetrics,
    /// Reuse of pictures.
    pub vision: VisionMetrics,
    /// Answers advanced in one step.
    pub batch: Histogram,
    /// Seconds of one step.
    pub step_seconds: Histogram,
    /// Seconds from submission to the first token: requests without pictures.
    pub first_token_text: Histogram,
    /// Seconds from submission to the first token: requests with a picture that had to be looked at.
    pub first_token_new_picture: Histogram,
    /// Seconds from submission to the first token: requests whose pictures were all known.
    pub first_token_known_picture: Histogram,
    /// Seconds between two tokens of an answer.
    pub token_seconds: Histogram,
    /// Seconds in the queue.
    pub queue_seconds: Histogram,
    /// Seconds of looking at one picture.
    pub encode_seconds: Histogram,
    /// Seconds from the first position read to the first token.
    pub prefill_seconds: Histogram,
}

impl Snapshot {
    pub(crate) fn new() -> Self {
        let times = || Histogram::new(TIME_BOUNDS);
        Self {
            uptime: Duration::ZERO,
            queued: 0,
            queue_limit: 0,
            reading: 0,
            running: 0,
            requests: RequestMetrics::default(),
            prompt_tokens: 0,
            visual_tokens: 0,
            generated_tokens: 0,
            kv: KvMetrics::default(),
            prefix: PrefixMetrics::default(),
            vision: VisionMetrics::default(),
            batch: Histogram::new(ROW_BOUNDS),
            step_seconds: times(),
            first_token_text: times(),
            first_token_new_picture: times(),
            first_token_known_picture: times(),
            token_seconds: times(),
            queue_seconds: times(),
            encode_seconds: times(),
            prefill_seconds: times(),
        }
    }

    /// Counts a choice by how it ended.
    pub(crate) fn count_end(&mut self, reason: FinishReason) {
        let requests = &mut self.requests;
        *match reason {
            FinishReason::Stop => &mut requests.stop,
            FinishReason::Length => &mut requests.length,
            FinishReason::Cancelled => &mut requests.cancelled,
            FinishReason::Deadline => &mut requests.deadline,
            FinishReason::Shutdown => &mut requests.shutdown,
        } += 1;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn values_fall_into_their_buckets() {
        let mut histogram = Histogram::new(&[1.0, 2.0, 4.0]);
        for value in [0.0, 1.0, 1.5, 2.0, 3.0, 4.0, 4.1, 100.0] {
            histogram.record(value);
        }
        assert_eq!(histogram.counts, [2, 2, 2, 2]);
        assert_eq!((histogram.count(), histogram.sum), (8, 115.6));
    }
}
