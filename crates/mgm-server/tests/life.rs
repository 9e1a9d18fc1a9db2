//! From loading to shutting down, and clients that leave, wait, or stop reading.
#![allow(clippy::unwrap_used)]

mod support;

use std::io::{Read, Write};
use std::time::Duration;

use mgm_engine::EngineOptions;
use mgm_server::{Limits, ServerOptions};
use serde_json::{Value, json};
use support::{Answer, JSON, PATIENCE, chat, endless, loading, options, request, schema, start};

const CHAT: &str = "/v1/chat/completions";

fn at_a_time(running: usize, queued: usize) -> EngineOptions {
    EngineOptions {
        max_running: running,
        max_queued: queued,
        ..EngineOptions::default()
    }
}

#[test]
fn while_the_model_is_loading_the_server_says_so() {
    let server = loading(options());
    assert_eq!(server.get("/health").status, 200);
    assert_eq!(server.get("/").status, 200);
    assert_eq!(server.metric("mgm_ready"), 0.0);
    for answer in [
        server.get("/ready"),
        server.get("/v1/models"),
        server.post(CHAT, &chat("Hi", json!({}))),
        server.post("/v1/mining", &json!({"image_url": "data:,"})),
        server.post("/v1/images/generations", &json!({"prompt": "x"})),
    ] {
        let error = answer.fails(503);
        assert_eq!(error["code"], "model_loading");
        assert_eq!(answer.header("retry-after"), Some("1"));
    }
}

#[test]
fn a_full_queue_refuses_and_recovers() {
    let server = start(options(), at_a_time(1, 1));
    let mut running = server.stream(CHAT, &endless(json!({})));
    running.wait_for_text();
    let mut waiting = server.connect();
    let bytes = request(
        "POST",
        CHAT,
        &[JSON],
        endless(json!({})).to_string().as_bytes(),
    );
    waiting.write_all(&bytes).unwrap();
    server.wait_for("mgm_queue_requests", 1.0);

    let answer = server.post(CHAT, &chat("Hi", json!({})));
    assert_eq!(answer.fails(429)["code"], "rate_limit_exceeded");
    assert_eq!(answer.header("retry-after"), Some("1"));
    assert_eq!(server.get("/ready").fails(503)["code"], "queue_full");
    assert_eq!(server.get("/health").status, 200);

    // The one that waits goes first, so that it never gets the place of the other.
    drop(waiting);
    server.wait_for("mgm_queue_requests", 0.0);
    assert_eq!(server.get("/ready").status, 200);
    running.leave();
    server.wait_for("mgm_running_answers", 0.0);
    server.assert_alive();
}

#[test]
fn clients_that_leave_free_their_places() {
    let server = start(options(), at_a_time(2, 8));
    // In the middle of a stream.
    let mut events = server.stream(CHAT, &endless(json!({"n": 2})));
    events.wait_for_text();
    events.leave();
    server.wait_for("mgm_answers_total{reason=\"cancelled\"}", 2.0);
    // While waiting for a whole answer.
    let mut waiting = server.connect();
    let body = endless(json!({"stream": false})).to_string();
    waiting
        .write_all(&request("POST", CHAT, &[JSON], body.as_bytes()))
        .unwrap();
    server.wait_for("mgm_running_answers", 1.0);
    drop(waiting);
    server.wait_for("mgm_answers_total{reason=\"cancelled\"}", 3.0);
    server.wait_for(
        "mgm_http_requests_total{route=\"/v1/chat/completions\",status=\"499\"}",
        1.0,
    );
    server.wait_for("mgm_running_answers", 0.0);
    server.wait_for("mgm_http_streams", 0.0);
    server.assert_alive();
}

#[test]
fn a_client_that_stops_reading_is_given_up() {
    let limits = Limits {
        write_timeout: Duration::from_millis(300),
        ..Limits::default()
    };
    let server = start(
        ServerOptions {
            limits,
            ..options()
        },
        EngineOptions::default(),
    );
    // Small buffers on this side, many bytes on the other: eight answers, twenty log probabilities to each token.
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .unwrap();
    let address = server.address;
    let stream = runtime.block_on(async {
        let socket = tokio::net::TcpSocket::new_v4().unwrap();
        socket.set_recv_buffer_size(4096).unwrap();
        socket.connect(address).await.unwrap().into_std().unwrap()
    });
    stream.set_nonblocking(false).unwrap();
    let body = endless(json!({"n": 8, "temperature": 1, "logprobs": true, "top_logprobs": 20}))
        .to_string();
    (&stream)
        .write_all(&request("POST", CHAT, &[JSON], body.as_bytes()))
        .unwrap();
    server.wait_for("mgm_answers_total{reason=\"cancelled\"}", 8.0);
    server.wait_for("mgm_http_streams", 0.0);
    assert_eq!(server.metric("mgm_answers_total{reason=\"length\"}"), 0.0);
    server.assert_alive();
}

#[test]
fn answers_that_take_too_long_are_errors() {
    let limits = Limits {
        request_timeout: Duration::from_millis(400),
        ..Limits::default()
    };
    let server = start(
        ServerOptions {
            limits,
            ..options()
        },
        EngineOptions::default(),
    );
    let answer = server.post(CHAT, &endless(json!({"stream": false})));
    assert_eq!(answer.fails(503)["code"], "request_timeout");
    let mut events = server.stream(CHAT, &endless(json!({})));
    let last = last_event(&mut events);
    assert_eq!(last["error"]["code"], "request_timeout");
    server.wait_for("mgm_running_answers", 0.0);
}

/// The last event of a stream that does not end well.
fn last_event(events: &mut support::Events) -> Value {
    let mut last = None;
    while let Some(data) = events.next_data() {
        assert_ne!(data, "[DONE]");
        last = Some(data);
    }
    serde_json::from_str(&last.unwrap()).unwrap()
}

#[test]
fn shutting_down_ends_streams_with_an_error_that_can_be_retried() {
    let server = start(
        ServerOptions {
            grace: Duration::from_millis(300),
            ..options()
        },
        at_a_time(1, 8),
    );
    let mut running = server.stream(CHAT, &endless(json!({})));
    running.wait_for_text();
    let mut waiting = server.connect();
    let body = endless(json!({"stream": false})).to_string();
    waiting
        .write_all(&request("POST", CHAT, &[JSON], body.as_bytes()))
        .unwrap();
    server.wait_for("mgm_queue_requests", 1.0);
    let mut idle = server.connect();
    let address = server.address;
    assert!(
        !server.join(),
        "an endless answer cannot have been finished"
    );
    let last = last_event(&mut running);
    schema::check("Error", &last);
    assert_eq!(last["error"]["code"], "shutting_down");
    assert_eq!(Answer::read(waiting).fails(503)["code"], "shutting_down");
    assert_eq!(
        idle.read(&mut [0; 8]).unwrap(),
        0,
        "idle connections are closed"
    );
    assert!(
        std::net::TcpStream::connect(address).is_err(),
        "nobody listens any more"
    );
}

#[test]
fn answers_are_finished_within_the_grace() {
    let server = start(
        ServerOptions {
            grace: PATIENCE,
            ..options()
        },
        EngineOptions::default(),
    );
    let mut events = server.stream(CHAT, &endless(json!({"max_tokens": 40})));
    events.wait_for_text();
    server.raise_stop();
    let rest = events.all();
    assert_eq!(
        rest.last().unwrap()["choices"][0]["finish_reason"],
        "length"
    );
    assert!(server.join());
}

#[test]
fn connections_are_limited() {
    let limits = Limits {
        connections: 3,
        ..Limits::default()
    };
    let server = start(
        ServerOptions {
            limits,
            ..options()
        },
        EngineOptions::default(),
    );
    // Each is known to be served once it has been answered.
    let held: Vec<_> = (0..3)
        .map(|_| {
            let mut stream = server.connect();
            stream
                .write_all(b"GET /health HTTP/1.1\r\nHost: localhost\r\n\r\n")
                .unwrap();
            assert!(stream.read(&mut [0; 512]).unwrap() > 0);
            stream
        })
        .collect();
    let answer = Answer::read(server.connect());
    assert_eq!(answer.status, 503);
    assert_eq!(answer.header("retry-after"), Some("1"));
    let body: Value = serde_json::from_slice(&answer.body).unwrap();
    schema::check("Error", &body);
    drop(held);
    while Answer::read({
        let mut stream = server.connect();
        let _ = stream.write_all(&request("GET", "/health", &[], b""));
        stream
    })
    .status
        != 200
    {
        std::thread::sleep(Duration::from_millis(20));
    }
    assert!(server.metric("mgm_http_connections_refused_total") >= 1.0);
}

#[test]
fn the_listener_must_be_free() {
    let server = loading(options());
    let taken = ServerOptions {
        port: server.address.port(),
        ..options()
    };
    let error = mgm_server::Server::start(taken).err().unwrap().to_string();
    assert!(
        error.contains("127.0.0.1") && error.contains(&server.address.port().to_string()),
        "{error}"
    );
    let nowhere = ServerOptions {
        host: "name.invalid".into(),
        ..options()
    };
    assert!(mgm_server::Server::start(nowhere).is_err());
}
