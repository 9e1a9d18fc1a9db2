//! A server with the built-in model, and a client that sends exactly the bytes it is told to.
#![allow(dead_code, clippy::unwrap_used)]

pub(crate) mod schema;

use std::io::{BufRead, BufReader, Read, Write};
use std::net::{Shutdown, SocketAddr, TcpStream};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, OnceLock};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use mgm_engine::{Engine, EngineOptions};
use mgm_server::{Painter, SamplingDefaults, Server, ServerOptions};
use mini_gemini::{LoadOptions, MiniGemini, ModelSource};
use serde_json::{Value, json};

/// Longer than anything here takes on the slowest machine.
pub(crate) const PATIENCE: Duration = Duration::from_secs(120);

fn model() -> Arc<MiniGemini> {
    static MODEL: OnceLock<Arc<MiniGemini>> = OnceLock::new();
    let load = || MiniGemini::load(&ModelSource::BuiltIn, &LoadOptions::default()).unwrap();
    Arc::clone(MODEL.get_or_init(|| Arc::new(load())))
}

/// Options for a test: any free port, greedy.
pub(crate) fn options() -> ServerOptions {
    ServerOptions {
        port: 0,
        defaults: SamplingDefaults {
            temperature: 0.0,
            ..SamplingDefaults::default()
        },
        grace: Duration::ZERO,
        ..ServerOptions::default()
    }
}

/// A running server; stops when dropped.
pub(crate) struct Running {
    pub(crate) address: SocketAddr,
    stop: Arc<AtomicBool>,
    thread: Option<JoinHandle<bool>>,
}

/// Starts a server without a model.
pub(crate) fn loading(options: ServerOptions) -> Running {
    let server = Server::start(options).unwrap();
    run(server)
}

/// Starts a server.
pub(crate) fn start(options: ServerOptions, engine: EngineOptions) -> Running {
    start_painting(options, engine, None)
}

/// Starts a server that paints.
pub(crate) fn start_painting(
    options: ServerOptions,
    engine: EngineOptions,
    painter: Option<Arc<dyn Painter>>,
) -> Running {
    let server = Server::start(options).unwrap();
    let engine = EngineOptions {
        kv_bytes: Some(engine.kv_bytes.unwrap_or(4 << 30)),
        ..engine
    };
    server.set_model(Engine::start(model(), engine).unwrap(), painter);
    run(server)
}

fn run(server: Server) -> Running {
    let address = server.address();
    let stop: Arc<AtomicBool> = Arc::default();
    let raised = Arc::clone(&stop);
    let thread = std::thread::spawn(move || server.run(&raised));
    Running {
        address,
        stop,
        thread: Some(thread),
    }
}

/// One server for all tests of a file that need nothing special.
pub(crate) fn shared() -> &'static Running {
    static SHARED: OnceLock<Running> = OnceLock::new();
    SHARED.get_or_init(|| start(options(), EngineOptions::default()))
}

impl Running {
    /// Tells the server to stop.
    pub(crate) fn raise_stop(&self) {
        self.stop.store(true, Ordering::SeqCst);
    }

    /// Waits until it has stopped; whether all answers were finished.
    pub(crate) fn join(mut self) -> bool {
        self.raise_stop();
        self.thread.take().unwrap().join().unwrap()
    }

    pub(crate) fn get(&self, path: &str) -> Answer {
        self.send(&request("GET", path, &[], b""))
    }

    pub(crate) fn post(&self, path: &str, body: &Value) -> Answer {
        self.post_bytes(path, body.to_string().as_bytes())
    }

    pub(crate) fn post_bytes(&self, path: &str, body: &[u8]) -> Answer {
        self.send(&request("POST", path, &[JSON], body))
    }

    /// Sends these bytes and reads the answer.
    pub(crate) fn send(&self, bytes: &[u8]) -> Answer {
        let mut stream = self.connect();
        stream.write_all(bytes).unwrap();
        Answer::read(stream)
    }

    pub(crate) fn connect(&self) -> TcpStream {
        let stream = TcpStream::connect(self.address).unwrap();
        stream.set_read_timeout(Some(PATIENCE)).unwrap();
        stream.set_write_timeout(Some(PATIENCE)).unwrap();
        stream.set_nodelay(true).unwrap();
        stream
    }

    /// Asks for a streamed answer.
    pub(crate) fn stream(&self, path: &str, body: &Value) -> Events {
        let mut stream = self.connect();
        let bytes = request("POST", path, &[JSON], body.to_string().as_bytes());
        stream.write_all(&bytes).unwrap();
        Events::new(stream)
    }

    /// The value of a sample in `/metrics`; 0 when it is not there.
    pub(crate) fn metric(&self, sample: &str) -> f64 {
        let answer = self.get("/metrics");
        assert_eq!(answer.status, 200);
        let text = answer.text();
        let line = text
            .lines()
            .find_map(|line| line.strip_prefix(sample)?.strip_prefix(' '));
        line.map_or(0.0, |value| value.parse().unwrap())
    }

    /// Waits for a sample to reach a value.
    #[track_caller]
    pub(crate) fn wait_for(&self, sample: &str, value: f64) {
        let started = Instant::now();
        while self.metric(sample) != value {
            assert!(
                started.elapsed() < PATIENCE,
                "{sample} is {} and not {value}",
                self.metric(sample)
            );
            std::thread::sleep(Duration::from_millis(20));
        }
    }

    /// Asserts that the server still does its work.
    #[track_caller]
    pub(crate) fn assert_alive(&self) {
        let answer = self.post(
            "/v1/chat/completions",
            &chat("Hi", json!({"max_tokens": 1})),
        );
        assert_eq!(answer.status, 200, "{answer:?}");
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        self.raise_stop();
        if let Some(thread) = self.thread.take() {
            let _ = thread.join();
        }
    }
}

pub(crate) const JSON: (&str, &str) = ("Content-Type", "application/json");

/// The bytes of a request.
pub(crate) fn request(method: &str, path: &str, headers: &[(&str, &str)], body: &[u8]) -> Vec<u8> {
    let mut bytes = format!("{method} {path} HTTP/1.1\r\nConnection: close\r\n");
    if !headers.iter().any(|(name, _)| *name == "Host") {
        bytes.push_str("Host: localhost\r\n");
    }
    if !body.is_empty() {
        bytes.push_str(&format!("Content-Length: {}\r\n", body.len()));
    }
    for (name, value) in headers {
        bytes.push_str(&format!("{name}: {value}\r\n"));
    }
    bytes.push_str("\r\n");
    let mut bytes = bytes.into_bytes();
    bytes.extend_from_slice(body);
    bytes
}

/// A chat request with one user message; `more` adds or replaces fields.
pub(crate) fn chat(content: impl Into<Value>, more: Value) -> Value {
    let mut body =
        json!({"messages": [{"role": "user", "content": content.into()}], "max_tokens": 8});
    body.as_object_mut()
        .unwrap()
        .extend(more.as_object().unwrap().clone());
    body
}

/// A request whose answer goes on until somebody ends it: the tokens that end a turn are forbidden.
pub(crate) fn endless(more: Value) -> Value {
    let mut body = chat(
        "Tell a very long story.",
        json!({"max_tokens": 4096, "stream": true, "logit_bias": {"0": -100, "2": -100}}),
    );
    body.as_object_mut()
        .unwrap()
        .extend(more.as_object().unwrap().clone());
    body
}

/// A photograph of `examples/`.
pub(crate) fn photograph(name: &str) -> Vec<u8> {
    std::fs::read(format!(
        "{}/../../examples/{name}",
        env!("CARGO_MANIFEST_DIR")
    ))
    .unwrap()
}

pub(crate) fn data_url(media_type: &str, bytes: &[u8]) -> String {
    format!("data:{media_type};base64,{}", STANDARD.encode(bytes))
}

/// A part that shows a picture.
pub(crate) fn picture(url: &str) -> Value {
    json!({"type": "image_url", "image_url": {"url": url}})
}

pub(crate) fn text(text: &str) -> Value {
    json!({"type": "text", "text": text})
}

/// An answer.
#[derive(Debug)]
pub(crate) struct Answer {
    pub(crate) status: u16,
    /// Names in lower case.
    pub(crate) headers: Vec<(String, String)>,
    pub(crate) body: Vec<u8>,
}

impl Answer {
    /// Reads an answer and everything after it.
    pub(crate) fn read(stream: TcpStream) -> Self {
        let mut reader = BufReader::new(stream);
        let (status, headers) = head(&mut reader);
        let mut answer = Self {
            status,
            headers,
            body: Vec::new(),
        };
        if answer.header("transfer-encoding") == Some("chunked") {
            Chunks::new(reader).read_to_end(&mut answer.body).unwrap();
        } else {
            reader.read_to_end(&mut answer.body).unwrap();
        }
        answer
    }

    pub(crate) fn header(&self, name: &str) -> Option<&str> {
        let found = self.headers.iter().find(|(found, _)| found == name);
        found.map(|(_, value)| value.as_str())
    }

    pub(crate) fn text(&self) -> String {
        String::from_utf8(self.body.clone()).unwrap()
    }

    /// The body of an answer with status 200.
    #[track_caller]
    pub(crate) fn ok(&self) -> Value {
        assert_eq!(self.status, 200, "{}", self.text());
        assert_eq!(self.header("content-type"), Some("application/json"));
        serde_json::from_slice(&self.body).unwrap()
    }

    /// Asserts that this is an error as OpenAI's clients expect it; gives what stands in it.
    #[track_caller]
    pub(crate) fn fails(&self, status: u16) -> Value {
        assert_eq!(self.status, status, "{}", self.text());
        assert_eq!(self.header("content-type"), Some("application/json"));
        let body: Value = serde_json::from_slice(&self.body).unwrap();
        schema::check("Error", &body);
        assert!(self.header("x-request-id").is_some());
        body["error"].clone()
    }
}

fn head(reader: &mut impl BufRead) -> (u16, Vec<(String, String)>) {
    let mut lines = Vec::new();
    loop {
        let mut line = String::new();
        assert!(
            reader.read_line(&mut line).unwrap() > 0,
            "no answer: {lines:?}"
        );
        let line = line.trim_end().to_string();
        if line.is_empty() {
            break;
        }
        lines.push(line);
    }
    let status = lines[0].split(' ').nth(1).unwrap().parse().unwrap();
    let headers = lines[1..].iter().map(|line| {
        let (name, value) = line.split_once(": ").unwrap();
        (name.to_lowercase(), value.to_string())
    });
    (status, headers.collect())
}

/// A body in chunks.
struct Chunks<R> {
    reader: R,
    left: usize,
    ended: bool,
}

impl<R: BufRead> Chunks<R> {
    fn new(reader: R) -> Self {
        Self {
            reader,
            left: 0,
            ended: false,
        }
    }
}

impl<R: BufRead> Read for Chunks<R> {
    fn read(&mut self, buffer: &mut [u8]) -> std::io::Result<usize> {
        while self.left == 0 && !self.ended {
            let mut line = String::new();
            if self.reader.read_line(&mut line)? == 0 {
                return Err(std::io::ErrorKind::UnexpectedEof.into());
            }
            if line.trim().is_empty() {
                continue;
            }
            self.left = usize::from_str_radix(line.trim(), 16).unwrap();
            self.ended = self.left == 0;
        }
        let wanted = buffer.len().min(self.left);
        let read = self.reader.read(&mut buffer[..wanted])?;
        self.left -= read;
        Ok(read)
    }
}

/// Server-sent events as they come.
pub(crate) struct Events {
    pub(crate) status: u16,
    pub(crate) headers: Vec<(String, String)>,
    reader: BufReader<Chunks<BufReader<TcpStream>>>,
    stream: TcpStream,
}

impl Events {
    fn new(stream: TcpStream) -> Self {
        let mut reader = BufReader::new(stream.try_clone().unwrap());
        let (status, headers) = head(&mut reader);
        Self {
            status,
            headers,
            reader: BufReader::new(Chunks::new(reader)),
            stream,
        }
    }

    /// The next event's data; `None` at the end of the body. Comments are passed over.
    pub(crate) fn next_data(&mut self) -> Option<String> {
        loop {
            let mut line = String::new();
            if self.reader.read_line(&mut line).unwrap() == 0 {
                return None;
            }
            if let Some(data) = line.trim_end().strip_prefix("data: ") {
                return Some(data.to_string());
            }
            assert!(line == "\n" || line.starts_with(':'), "{line:?}");
        }
    }

    /// All events up to `[DONE]`, which must be the last.
    #[track_caller]
    pub(crate) fn all(mut self) -> Vec<Value> {
        assert_eq!(self.status, 200);
        let mut events = Vec::new();
        while let Some(data) = self.next_data() {
            if data == "[DONE]" {
                assert_eq!(self.next_data(), None);
                return events;
            }
            events.push(serde_json::from_str(&data).unwrap());
        }
        panic!("no [DONE] after {events:?}");
    }

    /// Reads until there is text.
    pub(crate) fn wait_for_text(&mut self) {
        while let Some(data) = self.next_data() {
            let event: Value = serde_json::from_str(&data).unwrap();
            if event["choices"][0]["delta"]["content"]
                .as_str()
                .is_some_and(|text| !text.is_empty())
            {
                return;
            }
        }
        panic!("the stream ended without text");
    }

    /// Hangs up.
    pub(crate) fn leave(self) {
        let _ = self.stream.shutdown(Shutdown::Both);
    }
}
