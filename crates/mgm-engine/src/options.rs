//! How an engine runs.

use std::time::Duration;

/// Limits and shares.
#[derive(Clone, Debug)]
pub struct EngineOptions {
    /// Answers generated together.
    pub max_running: usize,
    /// Requests that may wait for a place.
    pub max_queued: usize,
    /// Bytes for keys and values, of running answers and of what is kept for reuse; a quarter of the free memory when absent.
    pub kv_bytes: Option<usize>,
    /// Bytes of visual tokens kept by picture.
    pub vision_cache_bytes: usize,
    /// Bytes of pictures that wait to be looked at.
    pub pending_picture_bytes: usize,
    /// Prompt rows read in one step, beside the rows of running answers: more reads faster, fewer keeps others' answers flowing. Twice as many
    /// where no answer is running.
    pub prefill_rows: usize,
    /// While a picture is looked at, running answers get a step each time so long has passed; less often, up to a quarter, when several
    /// requests wait for pictures.
    pub encode_slice: Duration,
    /// Most answers to one request.
    pub max_choices: usize,
    /// Most stop texts in one request.
    pub max_stop_texts: usize,
    /// Most likeliest tokens told with each token.
    pub max_logprobs: usize,
}

impl Default for EngineOptions {
    fn default() -> Self {
        Self {
            max_running: 32,
            max_queued: 256,
            kv_bytes: None,
            vision_cache_bytes: 256 << 20,
            pending_picture_bytes: 1 << 30,
            prefill_rows: 128,
            encode_slice: Duration::from_millis(50),
            max_choices: 16,
            max_stop_texts: 16,
            max_logprobs: 20,
        }
    }
}
