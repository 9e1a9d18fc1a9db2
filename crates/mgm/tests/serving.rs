//! `mgm serve` as its operator sees it.
#![cfg(unix)]
#![allow(clippy::unwrap_used)]

mod support;

use std::io::{BufRead, BufReader, Read, Write};
use std::net::{TcpListener, TcpStream};
use std::process::{Child, Stdio};
use std::time::Duration;

use rustix::process::{Pid, Signal, kill_process};
use support::{command, mgm};

const PROMPT: &str = "What is the colour of the sky?";

/// A server that is ready, and its address.
struct Served {
    child: Child,
    address: String,
}

impl Served {
    fn start(arguments: &[&str]) -> Self {
        let mut child = command(&[&["serve", "--port", "0"], arguments].concat())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .spawn()
            .unwrap();
        let mut line = String::new();
        BufReader::new(child.stdout.take().unwrap())
            .read_line(&mut line)
            .unwrap();
        let address = line.trim().strip_prefix("smol: http://");
        let address = address.unwrap_or_else(|| panic!("{line:?}")).to_string();
        Self { child, address }
    }

    /// Sends a request, as of now without reading the answer.
    fn send(&self, method: &str, path: &str, headers: &str, body: &str) -> TcpStream {
        let mut stream = TcpStream::connect(&self.address).unwrap();
        stream
            .set_read_timeout(Some(Duration::from_secs(120)))
            .unwrap();
        let length = body.len();
        let request = format!(
            "{method} {path} HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\nContent-Type: application/json\r\n{headers}Content-Length: {length}\r\n\r\n{body}"
        );
        stream.write_all(request.as_bytes()).unwrap();
        stream
    }

    fn ask(&self, headers: &str) -> String {
        let body = format!(
            r#"{{"messages": [{{"role": "user", "content": "{PROMPT}"}}], "max_tokens": 4}}"#
        );
        let mut answer = String::new();
        self.send("POST", "/v1/chat/completions", headers, &body)
            .read_to_string(&mut answer)
            .unwrap();
        answer
    }

    fn signal(&self, signal: Signal) {
        kill_process(Pid::from_child(&self.child), signal).unwrap();
    }

    /// Waits for the end; the exit code and what was written to stderr.
    fn end(self) -> (Option<i32>, String) {
        let output = self.child.wait_with_output().unwrap();
        (
            output.status.code(),
            String::from_utf8(output.stderr).unwrap(),
        )
    }
}

#[test]
fn the_address_is_printed_and_the_log_keeps_secrets() {
    let served = Served::start(&[]);
    let answer = served.ask("x-request-id: my-request\r\n");
    assert!(answer.starts_with("HTTP/1.1 200 OK\r\n"), "{answer}");
    assert!(answer.contains(r#""object":"chat.completion""#), "{answer}");
    let mut hidden = String::new();
    served
        .send("GET", "/secret-path?token=secret-query", "", "")
        .read_to_string(&mut hidden)
        .unwrap();
    assert!(hidden.starts_with("HTTP/1.1 404"), "{hidden}");
    served.signal(Signal::TERM);
    let (code, log) = served.end();
    assert_eq!(code, Some(0), "{log}");
    assert!(
        log.contains("my-request") && log.contains("/v1/chat/completions"),
        "{log}"
    );
    for secret in [PROMPT, "sky", "secret"] {
        assert!(!log.contains(secret), "{secret:?} is in the log:\n{log}");
    }
}

#[test]
fn content_is_logged_where_that_is_asked_for() {
    let served = Served::start(&["--log-content", "--log-format", "json"]);
    served.ask("");
    served.signal(Signal::INT);
    let (code, log) = served.end();
    assert_eq!(code, Some(0), "{log}");
    let lines: Vec<serde_json::Value> = log
        .lines()
        .map(|line| serde_json::from_str(line).unwrap_or_else(|_| panic!("{line}")))
        .collect();
    assert!(lines.iter().any(|line| line["text"] == PROMPT), "{log}");
    assert!(
        lines.iter().any(|line| line["message"] == "answer"),
        "{log}"
    );
}

#[test]
fn a_second_signal_ends_at_once() {
    let served = Served::start(&["--grace", "600", "--log-level", "off"]);
    let body = r#"{"messages": [{"role": "user", "content": "Go on."}], "max_tokens": 4096, "stream": true, "logit_bias": {"0": -100, "2": -100}}"#;
    let mut stream = BufReader::new(served.send("POST", "/v1/chat/completions", "", body));
    let mut line = String::new();
    while !line.starts_with("data: ") {
        line.clear();
        assert!(stream.read_line(&mut line).unwrap() > 0);
    }
    served.signal(Signal::TERM);
    // It shuts down, but the answer goes on.
    while TcpStream::connect(&served.address).is_ok() {
        std::thread::sleep(Duration::from_millis(20));
    }
    line.clear();
    assert!(stream.read_line(&mut line).unwrap() > 0);
    served.signal(Signal::TERM);
    let (code, log) = served.end();
    assert_eq!(code, Some(130), "{log}");
}

#[test]
fn keys_come_from_a_file() {
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("keys");
    std::fs::write(&file, "# ours\nopen-sesame\n").unwrap();
    let served = Served::start(&["--api-key-file", file.to_str().unwrap()]);
    assert!(served.ask("").starts_with("HTTP/1.1 401"));
    let answer = served.ask("Authorization: Bearer open-sesame\r\n");
    assert!(answer.starts_with("HTTP/1.1 200"), "{answer}");
    served.signal(Signal::TERM);
    let (code, log) = served.end();
    assert_eq!(code, Some(0));
    assert!(!log.contains("sesame"), "{log}");

    std::fs::write(&file, "\n").unwrap();
    mgm(&["serve", "--api-key-file", file.to_str().unwrap()]).fails_clearly(&["holds no API key"]);
    mgm(&["serve", "--api-key-file", "/nowhere/keys"]).fails_clearly(&["/nowhere/keys"]);
    mgm(&["serve", "--api-key", "two words"]).fails_clearly(&["--api-key", "visible ASCII"]);
}

#[test]
fn what_cannot_be_served_is_told_before_the_model_is_loaded() {
    let taken = TcpListener::bind("127.0.0.1:0").unwrap();
    let port = taken.local_addr().unwrap().port().to_string();
    let run = mgm(&["serve", "--port", &port]).fails_clearly(&["127.0.0.1", &port]);
    assert!(run.stderr.contains("--port"), "{run:?}");
    mgm(&["serve", "--port", "0", "--model", "no-such-model"]).fails_clearly(&["no-such-model"]);
    for (flag, value) in [
        ("--port", "65536"),
        ("--max-body-bytes", "much"),
        ("--grace", "-1"),
        ("--max-concurrent", "0"),
        ("--temperature", "warm"),
    ] {
        mgm(&["serve", &format!("{flag}={value}")]).fails(2, &[flag]);
    }
}

fn painter() -> String {
    let path = "crates/mgm-diffusion/tests/fixtures/tiny-sdxl";
    support::root().join(path).display().to_string()
}

/// The body of an answer with status 200.
fn body(stream: TcpStream) -> serde_json::Value {
    let mut answer = String::new();
    BufReader::new(stream).read_to_string(&mut answer).unwrap();
    let (head, body) = answer.split_once("\r\n\r\n").unwrap();
    assert!(head.starts_with("HTTP/1.1 200"), "{answer}");
    serde_json::from_str(body).unwrap()
}

/// The bytes that base64 stands for.
fn bytes(text: &str) -> Vec<u8> {
    let digit = |byte: u8| match byte {
        b'A'..=b'Z' => byte - b'A',
        b'a'..=b'z' => byte - b'a' + 26,
        b'0'..=b'9' => byte - b'0' + 52,
        b'+' => 62,
        _ => 63,
    };
    let digits: Vec<u8> = text.trim_end_matches('=').bytes().map(digit).collect();
    let bytes = digits.chunks(4).flat_map(|group| {
        let word = group.iter().enumerate().fold(0, |word, (at, digit)| {
            word | u32::from(*digit) << (18 - 6 * at)
        });
        word.to_be_bytes()[1..group.len()].to_vec()
    });
    bytes.collect()
}

#[test]
fn a_server_with_a_painter_paints_what_imagine_paints() {
    let painter = painter();
    let served = Served::start(&["--painter", &painter, "--painter-steps", "3"]);
    let model = body(served.send("GET", "/v1/models/smol", "", ""));
    assert_eq!(model["painter"]["id"], "tiny-sdxl");
    assert_eq!(model["painter"]["sizes"][0], "32x32");
    assert_eq!(model["painter"]["sizes"][1], "48x32");
    let order = r#"{"prompt": "a secret fox, and so on: word word word word word word word word word word word word word word word word word word word word word word word word word word word word word word word word word word word word word word word word word word word word word word word word word word word word word word word word word word word word word word word word word word", "size": "48x32", "seed": 5, "n": 2}"#;
    let prompt = order.split('"').nth(3).unwrap();
    let painted = body(served.send("POST", "/v1/images/generations", "", order));
    let folder = tempfile::tempdir().unwrap();
    for (index, seed) in ["5", "6"].iter().enumerate() {
        let file = bytes(painted["data"][index]["b64_json"].as_str().unwrap());
        let texts = mgm_image::png_texts(&file).unwrap();
        let text = |keyword: &str| &texts.iter().find(|(key, _)| key == keyword).unwrap().1;
        assert_eq!(
            (text("Prompt"), text("Seed")),
            (&prompt.to_string(), &seed.to_string())
        );
        assert_eq!((&**text("Steps"), &**text("Size")), ("3", "48x32"));
        let path = folder.path().join("fox.png").display().to_string();
        let size = ["--size", "48x32", "--steps", "3", "--seed", *seed];
        let imagine = ["imagine", prompt, "--model", &painter, "-o", &path];
        mgm(&[&imagine[..], &size].concat()).ok();
        let image = |file: &[u8]| mgm_image::decode(file, &mgm_image::Limits::default()).unwrap();
        assert_eq!(image(&file), image(&std::fs::read(&path).unwrap()));
    }
    served.signal(Signal::TERM);
    let (code, log) = served.end();
    assert_eq!(code, Some(0), "{log}");
    assert!(log.contains("outcome=\"finished\""), "{log}");
    // Not even the end of a prompt that is too long for the encoders.
    assert!(!log.contains("fox") && !log.contains("word"), "{log}");
}

#[test]
fn painting_ends_with_the_last_who_wanted_it() {
    let painter = painter();
    let served = Served::start(&["--painter", &painter, "--painter-steps", "999"]);
    let order = r#"{"prompt": "a fox"}"#;
    let stream = served.send("POST", "/v1/images/generations", "", order);
    // Text is answered meanwhile.
    assert!(served.ask("").starts_with("HTTP/1.1 200"));
    drop(stream);
    served.signal(Signal::TERM);
    let (code, log) = served.end();
    assert_eq!(code, Some(0), "{log}");
    assert!(log.contains("outcome=\"cancelled\""), "{log}");
}

#[test]
fn a_painter_that_cannot_paint_is_told_before_the_model_is_loaded() {
    let serve = |more: &[&str]| mgm(&[&["serve", "--port", "0"], more].concat());
    serve(&["--painter", "no-such-painter"]).fails_clearly(&["no-such-painter"]);
    serve(&["--painter", &painter(), "--painter-size", "31x31"]).fails_clearly(&["31x31"]);
    serve(&["--painter", "none", "--painter-steps", "3"])
        .fails(2, &["--painter-steps", "needs --painter"]);
}

#[test]
fn the_help_tells_every_documented_option() {
    let help = mgm(&["serve", "--help"]).ok();
    let guide = std::fs::read_to_string(support::root().join("docs/server.md")).unwrap();
    let words =
        guide.split(|character: char| !character.is_ascii_alphanumeric() && character != '-');
    let mut options: Vec<&str> = words
        .filter(|word| {
            word.starts_with("--") && word.as_bytes().get(2).is_some_and(u8::is_ascii_lowercase)
        })
        .collect();
    options.sort_unstable();
    options.dedup();
    assert!(options.len() > 25, "{options:?}");
    for option in options {
        assert!(
            help.contains(option),
            "{option} is in docs/server.md and not in the help"
        );
    }
}
