//! How a server behaves, and what it puts up with.

use std::time::Duration;

use crate::keys::ApiKeys;

/// Everything about a server but its model.
#[derive(Clone, Debug)]
pub struct ServerOptions {
    /// Name or address to listen on.
    pub host: String,
    /// Port to listen on; 0 takes any that is free.
    pub port: u16,
    /// Keys of which a request must bring one, when there are any.
    pub api_keys: ApiKeys,
    /// Names in the `Host` header that are this server's, besides those of loopback; `*` accepts any. Looked at only on loopback without
    /// keys, where a web page could otherwise reach the server through a name of its own (DNS rebinding).
    pub allowed_hosts: Vec<String>,
    /// Origins whose pages may use the server from a browser; `*` allows all.
    pub cors_origins: Vec<String>,
    /// Whether pictures are fetched from http and https addresses. Private and local addresses are never fetched from.
    pub allow_remote_images: bool,
    /// Further names under which requests may ask for the model.
    pub model_names: Vec<String>,
    /// What is used where a request says nothing.
    pub defaults: SamplingDefaults,
    /// What the server puts up with.
    pub limits: Limits,
    /// How long running answers may go on once the server is to stop.
    pub grace: Duration,
    /// Whether prompts and answers are logged.
    pub log_content: bool,
}

impl Default for ServerOptions {
    fn default() -> Self {
        Self {
            host: "127.0.0.1".into(),
            port: 8080,
            api_keys: ApiKeys::default(),
            allowed_hosts: Vec::new(),
            cors_origins: Vec::new(),
            allow_remote_images: false,
            model_names: Vec::new(),
            defaults: SamplingDefaults::default(),
            limits: Limits::default(),
            grace: Duration::from_secs(30),
            log_content: false,
        }
    }
}

/// Sampling of requests that do not say how.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct SamplingDefaults {
    /// 0 is greedy.
    pub temperature: f32,
    /// Share of the probability that is sampled from; in (0, 1].
    pub top_p: f32,
    /// Number of likeliest tokens that are sampled from.
    pub top_k: Option<usize>,
    /// Longest answer in tokens; [`Limits::max_tokens`] caps it.
    pub max_tokens: usize,
}

impl Default for SamplingDefaults {
    fn default() -> Self {
        Self {
            temperature: 0.2,
            top_p: 1.0,
            top_k: Some(50),
            max_tokens: 512,
        }
    }
}

/// What one client, and all together, may ask of the server.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Limits {
    /// Bytes of one request's body.
    pub body_bytes: usize,
    /// Bytes of all bodies that are being received or read at one moment.
    pub bodies_bytes: usize,
    /// Bytes of one picture file.
    pub image_bytes: u64,
    /// Width times height of one picture.
    pub image_pixels: u64,
    /// Pictures in one request.
    pub images: usize,
    /// Longest answer in tokens that may be asked for.
    pub max_tokens: usize,
    /// Answers to one request: `n` times the number of prompts.
    pub choices: usize,
    /// Connections at one moment.
    pub connections: usize,
    /// Bytes of a request's head.
    pub header_bytes: usize,
    /// Header fields of a request.
    pub headers: usize,
    /// Time for the head of a request, counted from the end of the one before: idle connections are closed after it.
    pub header_timeout: Duration,
    /// Time for the body of a request to begin; it must then come with [`Self::body_bytes_per_second`].
    pub body_timeout: Duration,
    /// Slowest body.
    pub body_bytes_per_second: usize,
    /// Time that a client may take to accept what was sent, before it counts as gone.
    pub write_timeout: Duration,
    /// Time for one answer, waiting included.
    pub request_timeout: Duration,
    /// Pictures decoded at one moment; each may take [`Self::image_pixels`] several times over.
    pub decoders: usize,
}

impl Default for Limits {
    fn default() -> Self {
        Self {
            body_bytes: 32 << 20,
            bodies_bytes: 256 << 20,
            image_bytes: 20 << 20,
            image_pixels: 50_000_000,
            images: 16,
            max_tokens: 4096,
            choices: 8,
            connections: 512,
            header_bytes: 32 << 10,
            headers: 100,
            header_timeout: Duration::from_secs(30),
            body_timeout: Duration::from_secs(20),
            body_bytes_per_second: 16 << 10,
            write_timeout: Duration::from_secs(30),
            request_timeout: Duration::from_secs(600),
            decoders: 2,
        }
    }
}
