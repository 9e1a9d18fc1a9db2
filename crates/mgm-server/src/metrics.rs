//! Numbers about the server and its engine, in Prometheus' text format.

use std::collections::BTreeMap;
use std::fmt::Write;
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use mgm_engine::Snapshot;

/// Upper ends of the buckets of request times, in seconds.
const REQUEST_BOUNDS: [f64; 12] = [
    0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 10.0, 60.0, 300.0,
];

/// A gauge that goes up while somebody holds its guard.
#[derive(Debug, Default)]
pub(crate) struct Gauge(Arc<AtomicUsize>);

/// Counts one in a [`Gauge`] until dropped.
#[derive(Debug)]
pub(crate) struct Held(Arc<AtomicUsize>);

impl Gauge {
    pub(crate) fn hold(&self) -> Held {
        self.0.fetch_add(1, Ordering::Relaxed);
        Held(Arc::clone(&self.0))
    }

    pub(crate) fn value(&self) -> usize {
        self.0.load(Ordering::Relaxed)
    }
}

impl Drop for Held {
    fn drop(&mut self) {
        self.0.fetch_sub(1, Ordering::Relaxed);
    }
}

#[derive(Debug, Default)]
struct Durations {
    buckets: [u64; REQUEST_BOUNDS.len() + 1],
    sum: f64,
}

/// What the server itself counts.
#[derive(Debug)]
pub(crate) struct Metrics {
    started: Instant,
    started_at: SystemTime,
    /// By route and status.
    requests: Mutex<BTreeMap<(&'static str, u16), u64>>,
    /// By route: time until the answer, or the beginning of a streamed one.
    durations: Mutex<BTreeMap<&'static str, Durations>>,
    pub(crate) connections: Gauge,
    pub(crate) connections_refused: AtomicU64,
    pub(crate) streams: Gauge,
    pub(crate) clients_too_slow: AtomicU64,
    pub(crate) painted: AtomicU64,
}

impl Default for Metrics {
    fn default() -> Self {
        Self {
            started: Instant::now(),
            started_at: SystemTime::now(),
            requests: Mutex::default(),
            durations: Mutex::default(),
            connections: Gauge::default(),
            connections_refused: AtomicU64::default(),
            streams: Gauge::default(),
            clients_too_slow: AtomicU64::default(),
            painted: AtomicU64::default(),
        }
    }
}

/// Whose model is described.
pub(crate) struct Engine<'a> {
    pub(crate) model: &'a str,
    pub(crate) snapshot: Snapshot,
}

impl Metrics {
    /// A request was answered, or its client left (status 499).
    pub(crate) fn request(&self, route: &'static str, status: u16, time: Duration) {
        let mut requests = self.requests.lock().unwrap_or_else(PoisonError::into_inner);
        *requests.entry((route, status)).or_default() += 1;
        drop(requests);
        let seconds = time.as_secs_f64();
        let bucket = REQUEST_BOUNDS.partition_point(|bound| *bound < seconds);
        let mut durations = self
            .durations
            .lock()
            .unwrap_or_else(PoisonError::into_inner);
        let durations = durations.entry(route).or_default();
        durations.buckets[bucket] += 1;
        durations.sum += seconds;
    }

    /// The page that Prometheus reads.
    pub(crate) fn render(&self, engine: Option<Engine<'_>>, ready: bool) -> String {
        let mut page = Page::default();
        page.info(
            "mgm_build_info",
            "Version of the program and name of the model.",
            &[
                ("version", env!("CARGO_PKG_VERSION")),
                ("model", engine.as_ref().map_or("", |engine| engine.model)),
            ],
        );
        self.render_process(&mut page, ready);
        self.render_http(&mut page);
        if let Some(engine) = &engine {
            render_requests(&mut page, &engine.snapshot);
            render_memory(&mut page, &engine.snapshot);
            render_times(&mut page, &engine.snapshot);
        }
        page.text
    }

    fn render_process(&self, page: &mut Page, ready: bool) {
        page.gauge(
            "mgm_ready",
            "1 while the server takes requests.",
            f64::from(u8::from(ready)),
        );
        page.gauge(
            "mgm_uptime_seconds",
            "Time since the start.",
            self.started.elapsed().as_secs_f64(),
        );
        let started = self.started_at.duration_since(UNIX_EPOCH);
        page.gauge(
            "process_start_time_seconds",
            "Start of the process since the Unix epoch.",
            started.unwrap_or_default().as_secs_f64(),
        );
        if let Some(bytes) = resident_bytes() {
            page.gauge(
                "process_resident_memory_bytes",
                "Resident memory of the process, mapped model files included.",
                bytes as f64,
            );
        }
    }

    fn render_http(&self, page: &mut Page) {
        page.head(
            "mgm_http_requests_total",
            "counter",
            "Requests by route and status; 499 is a client that left.",
        );
        let requests = self.requests.lock().unwrap_or_else(PoisonError::into_inner);
        for ((route, status), count) in requests.iter() {
            let status = status.to_string();
            page.sample(
                "mgm_http_requests_total",
                &[("route", route), ("status", &status)],
                *count as f64,
            );
        }
        drop(requests);
        page.head(
            "mgm_http_request_duration_seconds",
            "histogram",
            "Time until the answer, or the beginning of a streamed one.",
        );
        let durations = self
            .durations
            .lock()
            .unwrap_or_else(PoisonError::into_inner);
        for (route, durations) in durations.iter() {
            page.buckets(
                "mgm_http_request_duration_seconds",
                &[("route", route)],
                &REQUEST_BOUNDS,
                &durations.buckets,
                durations.sum,
            );
        }
        drop(durations);
        page.gauge(
            "mgm_http_connections",
            "Open connections.",
            self.connections.value() as f64,
        );
        page.counter(
            "mgm_http_connections_refused_total",
            "Connections beyond the limit.",
            self.connections_refused.load(Ordering::Relaxed),
        );
        page.gauge(
            "mgm_http_streams",
            "Answers being streamed.",
            self.streams.value() as f64,
        );
        page.counter(
            "mgm_http_slow_clients_total",
            "Clients given up because they did not read their answer.",
            self.clients_too_slow.load(Ordering::Relaxed),
        );
        page.counter(
            "mgm_pictures_painted_total",
            "Pictures painted.",
            self.painted.load(Ordering::Relaxed),
        );
    }
}

fn render_requests(page: &mut Page, snapshot: &Snapshot) {
    page.gauge(
        "mgm_queue_requests",
        "Requests waiting for a place.",
        snapshot.queued as f64,
    );
    page.gauge(
        "mgm_reading_requests",
        "Requests whose pictures or prompt are being read.",
        snapshot.reading as f64,
    );
    page.gauge(
        "mgm_running_answers",
        "Answers being generated.",
        snapshot.running as f64,
    );
    let requests = &snapshot.requests;
    page.counter(
        "mgm_requests_accepted_total",
        "Requests accepted by the engine.",
        requests.accepted,
    );
    page.head(
        "mgm_requests_refused_total",
        "counter",
        "Requests refused by the engine.",
    );
    for (reason, count) in [
        ("busy", requests.refused_busy),
        ("invalid", requests.refused),
    ] {
        page.sample(
            "mgm_requests_refused_total",
            &[("reason", reason)],
            count as f64,
        );
    }
    page.counter(
        "mgm_requests_failed_total",
        "Requests that failed after they were accepted.",
        requests.failed,
    );
    page.head(
        "mgm_answers_total",
        "counter",
        "Finished answers by how they ended.",
    );
    for (reason, count) in [
        ("stop", requests.stop),
        ("length", requests.length),
        ("cancelled", requests.cancelled),
        ("deadline", requests.deadline),
        ("shutdown", requests.shutdown),
    ] {
        page.sample("mgm_answers_total", &[("reason", reason)], count as f64);
    }
    page.head(
        "mgm_prompt_tokens_total",
        "counter",
        "Tokens of prompts, from text and from pictures.",
    );
    for (kind, count) in [
        ("text", snapshot.prompt_tokens),
        ("visual", snapshot.visual_tokens),
    ] {
        page.sample("mgm_prompt_tokens_total", &[("kind", kind)], count as f64);
    }
    page.counter(
        "mgm_generated_tokens_total",
        "Tokens generated.",
        snapshot.generated_tokens,
    );
}

fn render_memory(page: &mut Page, snapshot: &Snapshot) {
    let kv = &snapshot.kv;
    for (name, help, value) in [
        (
            "mgm_kv_positions_held",
            "Positions whose keys and values are in memory.",
            kv.positions_held,
        ),
        (
            "mgm_kv_positions_reserved",
            "Positions that running answers may come to need.",
            kv.positions_reserved,
        ),
        (
            "mgm_kv_positions_limit",
            "Most positions that may be in memory.",
            kv.positions_limit,
        ),
        (
            "mgm_kv_position_bytes",
            "Bytes of one position.",
            kv.position_bytes,
        ),
    ] {
        page.gauge(name, help, value as f64);
    }
    let prefix = &snapshot.prefix;
    for (name, help, value) in [
        (
            "mgm_prefix_cache_lookups_total",
            "Prompts looked up in the prefix cache.",
            prefix.lookups,
        ),
        (
            "mgm_prefix_cache_hits_total",
            "Prompts of which a beginning was known.",
            prefix.hits,
        ),
        (
            "mgm_prefix_cache_positions_reused_total",
            "Prompt positions taken from earlier requests.",
            prefix.positions_reused,
        ),
        (
            "mgm_prefix_cache_positions_read_total",
            "Prompt positions that had to be read.",
            prefix.positions_read,
        ),
        (
            "mgm_prefix_cache_positions_evicted_total",
            "Positions given up for others.",
            prefix.positions_evicted,
        ),
        (
            "mgm_vision_cache_hits_total",
            "Pictures of requests that were known.",
            snapshot.vision.hits,
        ),
        (
            "mgm_vision_cache_misses_total",
            "Pictures of requests that had to be looked at.",
            snapshot.vision.misses,
        ),
        (
            "mgm_vision_cache_evictions_total",
            "Pictures given up for others.",
            snapshot.vision.evictions,
        ),
    ] {
        page.counter(name, help, value);
    }
    for (name, help, value) in [
        (
            "mgm_prefix_cache_positions",
            "Positions kept for reuse.",
            prefix.positions_kept,
        ),
        (
            "mgm_vision_cache_pictures",
            "Pictures kept.",
            snapshot.vision.pictures,
        ),
        (
            "mgm_vision_cache_bytes",
            "Bytes of the pictures kept.",
            snapshot.vision.bytes,
        ),
        (
            "mgm_vision_cache_limit_bytes",
            "Most bytes of pictures kept.",
            snapshot.vision.bytes_limit,
        ),
    ] {
        page.gauge(name, help, value as f64);
    }
}

fn render_times(page: &mut Page, snapshot: &Snapshot) {
    page.head(
        "mgm_time_to_first_token_seconds",
        "histogram",
        "Time from a request's acceptance to its first token: without pictures, with a picture not seen before, with known ones.",
    );
    for (pictures, histogram) in [
        ("none", &snapshot.first_token_text),
        ("new", &snapshot.first_token_new_picture),
        ("known", &snapshot.first_token_known_picture),
    ] {
        page.buckets(
            "mgm_time_to_first_token_seconds",
            &[("pictures", pictures)],
            histogram.bounds,
            &histogram.counts,
            histogram.sum,
        );
    }
    for (name, help, histogram) in [
        (
            "mgm_time_per_token_seconds",
            "Time between two tokens of an answer.",
            &snapshot.token_seconds,
        ),
        (
            "mgm_queue_seconds",
            "Time in the queue.",
            &snapshot.queue_seconds,
        ),
        (
            "mgm_encode_seconds",
            "Time of looking at one picture.",
            &snapshot.encode_seconds,
        ),
        (
            "mgm_prefill_seconds",
            "Time of reading one prompt.",
            &snapshot.prefill_seconds,
        ),
        (
            "mgm_step_seconds",
            "Time of one step of the model.",
            &snapshot.step_seconds,
        ),
        (
            "mgm_batch_size",
            "Answers advanced in one step.",
            &snapshot.batch,
        ),
    ] {
        page.head(name, "histogram", help);
        page.buckets(
            name,
            &[],
            histogram.bounds,
            &histogram.counts,
            histogram.sum,
        );
    }
}

/// The text format, version 0.0.4.
#[derive(Default)]
struct Page {
    text: String,
}

impl Page {
    fn head(&mut self, name: &str, kind: &str, help: &str) {
        let _ = writeln!(self.text, "# HELP {name} {help}\n# TYPE {name} {kind}");
    }

    fn sample(&mut self, name: &str, labels: &[(&str, &str)], value: f64) {
        self.text.push_str(name);
        for (index, (label, value)) in labels.iter().enumerate() {
            let value = value
                .replace('\\', "\\\\")
                .replace('"', "\\\"")
                .replace('\n', "\\n");
            let opening = if index == 0 { '{' } else { ',' };
            let _ = write!(self.text, "{opening}{label}=\"{value}\"");
        }
        if !labels.is_empty() {
            self.text.push('}');
        }
        let _ = writeln!(self.text, " {value}");
    }

    fn gauge(&mut self, name: &str, help: &str, value: f64) {
        self.head(name, "gauge", help);
        self.sample(name, &[], value);
    }

    fn counter(&mut self, name: &str, help: &str, value: u64) {
        self.head(name, "counter", help);
        self.sample(name, &[], value as f64);
    }

    fn info(&mut self, name: &str, help: &str, labels: &[(&str, &str)]) {
        self.head(name, "gauge", help);
        self.sample(name, labels, 1.0);
    }

    /// The samples of a histogram: `counts` has one bucket more than `bounds`.
    fn buckets(
        &mut self,
        name: &str,
        labels: &[(&str, &str)],
        bounds: &[f64],
        counts: &[u64],
        sum: f64,
    ) {
        let bucket = format!("{name}_bucket");
        let mut total = 0;
        let ends = bounds.iter().map(f64::to_string);
        for (end, count) in ends.chain(["+Inf".to_string()]).zip(counts) {
            total += count;
            let mut labels = labels.to_vec();
            labels.push(("le", &end));
            self.sample(&bucket, &labels, total as f64);
        }
        self.sample(&format!("{name}_sum"), labels, sum);
        self.sample(&format!("{name}_count"), labels, total as f64);
    }
}

/// Resident memory of this process, where the system tells (Linux).
fn resident_bytes() -> Option<u64> {
    let status = std::fs::read_to_string("/proc/self/status").ok()?;
    let line = status.lines().find(|line| line.starts_with("VmRSS:"))?;
    let kibibytes: u64 = line.split_whitespace().nth(1)?.parse().ok()?;
    Some(kibibytes << 10)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_text_format_is_kept() {
        let metrics = Metrics::default();
        metrics.request("/v1/models", 200, Duration::from_millis(20));
        metrics.request("/v1/models", 200, Duration::from_secs(1000));
        let held = metrics.connections.hold();
        let page = metrics.render(None, false);
        for line in [
            "mgm_ready 0",
            "mgm_http_connections 1",
            "mgm_http_requests_total{route=\"/v1/models\",status=\"200\"} 2",
            "mgm_http_request_duration_seconds_bucket{route=\"/v1/models\",le=\"0.025\"} 1",
            "mgm_http_request_duration_seconds_bucket{route=\"/v1/models\",le=\"300\"} 1",
            "mgm_http_request_duration_seconds_bucket{route=\"/v1/models\",le=\"+Inf\"} 2",
            "mgm_http_request_duration_seconds_count{route=\"/v1/models\"} 2",
            "# TYPE mgm_http_requests_total counter",
        ] {
            assert!(page.lines().any(|found| found == line), "{line}\n{page}");
        }
        drop(held);
        assert!(
            metrics
                .render(None, true)
                .contains("\nmgm_http_connections 0\n")
        );
    }

    #[test]
    fn labels_are_escaped() {
        let mut page = Page::default();
        page.sample("m", &[("a", "x\"y\\z\n"), ("b", "")], 1.5);
        assert_eq!(page.text, "m{a=\"x\\\"y\\\\z\\n\",b=\"\"} 1.5\n");
    }

    #[cfg(target_os = "linux")]
    #[test]
    fn resident_memory_is_known() {
        assert!(resident_bytes().unwrap() > 1 << 20);
    }
}
