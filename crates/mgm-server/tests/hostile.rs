//! Requests that no friend would send: each gets a 4xx or is hung up on, and the server lives on in bounded memory.
#![allow(clippy::unwrap_used)]

mod support;

use std::io::{Read, Write};
use std::net::{Shutdown, TcpListener, TcpStream};
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use mgm_engine::EngineOptions;
use mgm_server::{Limits, ServerOptions};
use serde_json::{Value, json};
use support::{
    Answer, JSON, Running, chat, data_url, options, photograph, picture, request, shared, start,
};

const CHAT: &str = "/v1/chat/completions";

fn with_limits(limits: Limits) -> Running {
    start(
        ServerOptions {
            limits,
            ..options()
        },
        EngineOptions::default(),
    )
}

/// What the server does with bytes that may be no request: the status of its answer, or nothing.
fn thrown(server: &Running, bytes: &[u8]) -> Option<u16> {
    let mut stream = server.connect();
    let _ = stream.write_all(bytes);
    let _ = stream.shutdown(Shutdown::Write);
    status(stream)
}

/// The status that the server answers before it hangs up.
fn status(mut stream: TcpStream) -> Option<u16> {
    let mut answer = Vec::new();
    let _ = stream.read_to_end(&mut answer);
    let text = String::from_utf8_lossy(&answer);
    Some(
        text.strip_prefix("HTTP/1.1 ")?
            .split(' ')
            .next()?
            .parse()
            .unwrap(),
    )
}

#[test]
fn bodies_that_are_too_large_are_not_read() {
    let server = with_limits(Limits {
        body_bytes: 100_000,
        ..Limits::default()
    });
    // Announced: answered before anything of it has come.
    let mut stream = server.connect();
    let head = format!(
        "POST {CHAT} HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\nContent-Length: 99999999999\r\n\r\n"
    );
    stream.write_all(head.as_bytes()).unwrap();
    assert_eq!(Answer::read(stream).fails(413)["code"], "request_too_large");
    // Sent all the same: the answer still arrives.
    let body = chat("x".repeat(8 << 20), json!({})).to_string();
    server.post_bytes(CHAT, body.as_bytes()).fails(413);
    // In chunks, so that the length shows only as it comes.
    let mut stream = server.connect();
    let head = request("POST", CHAT, &[JSON, ("Transfer-Encoding", "chunked")], b"");
    stream.write_all(&head).unwrap();
    let chunk = format!("{:x}\r\n{}\r\n", 1 << 16, " ".repeat(1 << 16));
    for _ in 0..64 {
        if stream.write_all(chunk.as_bytes()).is_err() {
            break;
        }
    }
    Answer::read(stream).fails(413);
    server.assert_alive();
}

#[test]
fn all_bodies_together_are_limited() {
    let server = with_limits(Limits {
        bodies_bytes: 1 << 20,
        body_timeout: Duration::from_secs(60),
        ..Limits::default()
    });
    let head = format!(
        "POST {CHAT} HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\nContent-Length: 1000000\r\n\r\n"
    );
    let question = chat("Hi", json!({"max_tokens": 1}));
    let body = format!("{}{question}", " ".repeat(500_000));
    // One client holds most of it and does not go on. Until it was the quicker one, that is: otherwise it is the one refused.
    let (holding, answer) = loop {
        let mut holding = server.connect();
        holding.write_all(head.as_bytes()).unwrap();
        let _ = holding.write_all(&vec![b' '; 900_000]);
        let answer = server.post_bytes(CHAT, body.as_bytes());
        if answer.status == 503 {
            break (holding, answer);
        }
        answer.ok();
    };
    assert_eq!(answer.fails(503)["code"], "bodies_full");
    server.assert_alive();
    drop(holding);
    while server.post_bytes(CHAT, body.as_bytes()).status == 503 {
        std::thread::sleep(Duration::from_millis(20));
    }
}

#[test]
fn bodies_that_are_no_json_are_refused() {
    let deep = [b"{\"messages\":".to_vec(), vec![b'['; 1 << 20]].concat();
    for body in [
        &b"{"[..],
        b"null",
        b"[]",
        b"\"messages\"",
        b"{\"messages\": [{\"role\": \"user\", \"content\": \"\xff\xfe\"}]}",
        b"{\"messages\": [{\"role\": \"user\", \"content\": \"\\ud800\"}]}",
        b"{\"messages\": [{\"role\": \"user\", \"content\": \"a\nb\"}]}",
        b"{\"messages\": [{\"role\": \"user\", \"content\": \"a\"}], \"temperature\": 1e999}",
        b"{\"messages\": [{\"role\": \"user\", \"content\": \"a\"}], \"seed\": 99999999999999999999999}",
        b"{\"messages\": [{\"role\": \"user\", \"content\": \"a\"}]} {}",
        b"\xef\xbb\xbf{}",
        b"\0",
        b"<?xml version=\"1.0\"?>",
        &deep,
    ] {
        let error = shared().post_bytes(CHAT, body).fails(400);
        assert!(error["message"].as_str().unwrap().len() < 1000);
    }
    shared().assert_alive();
}

#[test]
fn pictures_that_are_none_are_refused_by_their_place() {
    let photograph = photograph("cat.jpg");
    let truncated = &photograph[..photograph.len() / 2];
    let cases: Vec<(String, &str)> = vec![
        ("data:image/png;base64,!!!!".into(), "base64"),
        ("data:image/png;base64,AAAA".into(), "not an image"),
        ("data:image/png;base64,".into(), "empty"),
        ("data:image/png,AAAA".into(), "base64"),
        ("data:text/html;base64,PGI+".into(), "text/html"),
        (data_url("image/jpeg", truncated), "truncated"),
        (data_url("image/png", &bomb(60_000, 60_000)), "too large"),
        (data_url("image/png", &bomb(0, 10)), "corrupt"),
        (data_url("image/png", &bomb(7_000, 7_000)), ""),
        (data_url("image/gif", &gif_bomb()), "too large"),
        (
            data_url(
                "image/svg+xml",
                b"<svg xmlns='http://www.w3.org/2000/svg'/>",
            ),
            "SVG",
        ),
        ("file:///etc/passwd".into(), "file"),
        ("ftp://example.org/a.png".into(), "ftp"),
        ("javascript:alert(1)".into(), "javascript"),
        ("/etc/passwd".into(), "no address"),
        ("".into(), "no address"),
        ("https://example.org/a.png".into(), "does not fetch"),
        (
            "http://169.254.169.254/latest/meta-data/".into(),
            "does not fetch",
        ),
    ];
    for (url, needle) in cases {
        let answer = shared().post(CHAT, &chat(json!([picture(&url)]), json!({})));
        let error = answer.fails(400);
        assert_eq!(
            error["param"], "messages[0].content[0].image_url",
            "{error}"
        );
        let message = error["message"].as_str().unwrap();
        assert!(message.contains(needle), "{needle}: {message}");
        let mining = shared().post("/v1/mining", &json!({"image_url": url}));
        assert_eq!(mining.fails(400)["param"], "image_url");
    }
    shared().assert_alive();
}

/// A PNG that promises so many pixels and holds a few bytes that inflate to nothing like them.
fn bomb(width: u32, height: u32) -> Vec<u8> {
    let mut file = b"\x89PNG\r\n\x1a\n".to_vec();
    let mut header = [width.to_be_bytes(), height.to_be_bytes()].concat();
    header.extend([8, 2, 0, 0, 0]);
    // A deflate stream of stored zeros, cut off.
    let data = [&[0x78, 0x01, 0x00, 0xff, 0xff, 0x00, 0x00][..], &[0; 4096]].concat();
    for (kind, content) in [(b"IHDR", header), (b"IDAT", data), (b"IEND", Vec::new())] {
        file.extend((content.len() as u32).to_be_bytes());
        let checked = [kind.as_slice(), &content].concat();
        file.extend(&checked);
        file.extend(crc(&checked).to_be_bytes());
    }
    file
}

fn crc(bytes: &[u8]) -> u32 {
    !bytes.iter().fold(u32::MAX, |crc, byte| {
        (0..8).fold(crc ^ u32::from(*byte), |crc, _| {
            if crc & 1 == 1 {
                crc >> 1 ^ 0xedb8_8320
            } else {
                crc >> 1
            }
        })
    })
}

/// A GIF of 65535×65535 in a few bytes.
fn gif_bomb() -> Vec<u8> {
    let mut file = b"GIF89a\xff\xff\xff\xff\x80\0\0\0\0\0\xff\xff\xff".to_vec();
    file.extend(b"\x2c\0\0\0\0\xff\xff\xff\xff\0\x02\x02\x44\x01\0\x3b");
    file
}

#[test]
fn pictures_are_limited_in_number_and_size() {
    let small = picture("data:image/png;base64,AAAA");
    let many = vec![small.clone(); 10_000];
    shared()
        .post(CHAT, &chat(json!(many), json!({})))
        .fails(400);
    // Spread over messages, which are limited on their own.
    let messages = vec![json!({"role": "user", "content": [small.clone()]}); 2000];
    let error = shared()
        .post(CHAT, &json!({"messages": messages}))
        .fails(400);
    assert_eq!(error["code"], "too_many_images");
    assert!(
        error["message"].as_str().unwrap().contains("2000"),
        "{error}"
    );
    let error = shared()
        .post(CHAT, &chat(json!(vec![small; 17]), json!({})))
        .fails(400);
    assert_eq!(error["code"], "too_many_images");

    let server = with_limits(Limits {
        image_bytes: 10_000,
        image_pixels: 10_000,
        ..Limits::default()
    });
    let cat = data_url("image/jpeg", &photograph("cat.jpg"));
    let error = server
        .post(CHAT, &chat(json!([picture(&cat)]), json!({})))
        .fails(400);
    assert_eq!(error["code"], "image_too_large");
    let error = server
        .post(
            CHAT,
            &chat(
                json!([picture(&data_url("image/png", &bomb(101, 100)))]),
                json!({}),
            ),
        )
        .fails(400);
    assert!(
        error["message"].as_str().unwrap().contains("10000"),
        "{error}"
    );
}

#[test]
fn heads_are_limited_in_number_and_size() {
    let server = with_limits(Limits {
        headers: 20,
        header_bytes: 8 << 10,
        ..Limits::default()
    });
    // The client stays, to see the answer: one that hangs up may get none.
    let get = |headers: String| {
        let mut stream = server.connect();
        let head = "GET /health HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n";
        let _ = stream.write_all(format!("{head}{headers}\r\n").as_bytes());
        status(stream)
    };
    assert_eq!(get("X-A: 1\r\n".into()), Some(200));
    let flood: String = (0..1000)
        .map(|number| format!("X-{number}: 1\r\n"))
        .collect();
    assert_eq!(get(flood), Some(431));
    assert_eq!(get(format!("X-A: {}\r\n", "x".repeat(1 << 20))), Some(431));
    let long = format!(
        "GET /{} HTTP/1.1\r\nHost: localhost\r\n\r\n",
        "x".repeat(1 << 20)
    );
    assert!(matches!(
        thrown(&server, long.as_bytes()),
        Some(414 | 431 | 400)
    ));
    server.assert_alive();
}

#[test]
fn what_is_no_http_is_hung_up_on() {
    let client_hello = b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03";
    let noise: Vec<u8> = (0..100_000u32)
        .map(|number| (number.wrapping_mul(2_654_435_761) >> 13) as u8)
        .collect();
    for bytes in [
        &client_hello[..],
        &noise,
        b"\0\0\0\0",
        b"GET\r\n\r\n",
        b"GET /health\r\n\r\n",
        b"GET /health HTTP/9.9\r\n\r\n",
        b"GET /he alth HTTP/1.1\r\nHost: localhost\r\n\r\n",
        b"GET /health HTTP/1.1\r\nHost : localhost\r\n\r\n",
        b"GET /health HTTP/1.1\r\nHost: localhost\r\nX\r\n\r\n",
        b"POST /tokenize HTTP/1.1\r\nHost: localhost\r\nContent-Length: 2, 3\r\n\r\n{}",
        b"POST /tokenize HTTP/1.1\r\nHost: localhost\r\nContent-Length: -1\r\n\r\n{}",
        b"POST /tokenize HTTP/1.1\r\nHost: localhost\r\nTransfer-Encoding: chunked\r\nContent-Type: application/json\r\n\r\nZZ\r\n{}\r\n0\r\n\r\n",
        b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n",
        b"CONNECT example.org:443 HTTP/1.1\r\nHost: example.org:443\r\n\r\n",
        b"GET http://example.org/ HTTP/1.1\r\nHost: example.org\r\n\r\n",
    ] {
        let status = thrown(shared(), bytes);
        assert!(status.is_none_or(|status| (400..500).contains(&status)), "{status:?} to {:?}", String::from_utf8_lossy(&bytes[..bytes.len().min(60)]));
    }
    shared().assert_alive();
}

#[test]
fn slow_clients_do_not_hold_connections() {
    let server = with_limits(Limits {
        header_timeout: Duration::from_millis(300),
        body_timeout: Duration::from_millis(300),
        ..Limits::default()
    });
    // Nothing at all, half a head, an idle connection after an answer: closed.
    for beginning in [
        &b""[..],
        b"GET /health HTTP/1.1\r\nHost: loc",
        b"GET /health HTTP/1.1\r\nHost: localhost\r\n\r\n",
    ] {
        let mut stream = server.connect();
        stream.write_all(beginning).unwrap();
        let mut rest = Vec::new();
        stream.read_to_end(&mut rest).unwrap();
    }
    // A byte now and then does not help.
    let mut stream = server.connect();
    let drip = std::thread::spawn(move || {
        for byte in b"GET /health HTTP/1.1\r\nX-Drip: "
            .iter()
            .chain(std::iter::repeat(&b'x'))
        {
            if stream.write_all(&[*byte]).is_err() {
                break;
            }
            std::thread::sleep(Duration::from_millis(20));
        }
    });
    drip.join().unwrap();
    // A body that stops, and one that drips.
    for drips in [false, true] {
        let mut stream = server.connect();
        let head = request("POST", CHAT, &[JSON, ("Content-Length", "1000")], b"");
        stream.write_all(&head).unwrap();
        stream.write_all(b"{").unwrap();
        let mut sending = stream.try_clone().unwrap();
        let drip = std::thread::spawn(move || {
            while drips && sending.write_all(b" ").is_ok() {
                std::thread::sleep(Duration::from_millis(20));
            }
        });
        assert_eq!(Answer::read(stream).fails(408)["code"], "request_timeout");
        drip.join().unwrap();
    }
    server.assert_alive();
    server.wait_for("mgm_http_connections", 1.0);
}

#[test]
fn bodies_that_end_early_disturb_nobody() {
    for length in [0, 1, 20] {
        let mut stream = shared().connect();
        let body = chat("Hi", json!({})).to_string();
        let mut bytes = request("POST", CHAT, &[JSON], body.as_bytes());
        bytes.truncate(bytes.len() - body.len() + length);
        stream.write_all(&bytes).unwrap();
        drop(stream);
    }
    shared().assert_alive();
}

#[test]
fn nothing_on_this_machine_is_fetched() {
    // A server that only local programs can reach counts who comes.
    let inside = TcpListener::bind("127.0.0.1:0").unwrap();
    let port = inside.local_addr().unwrap().port();
    let visits = Arc::new(AtomicUsize::new(0));
    let counted = Arc::clone(&visits);
    std::thread::spawn(move || {
        for _ in inside.incoming() {
            counted.fetch_add(1, Ordering::SeqCst);
        }
    });
    let server = start(
        ServerOptions {
            allow_remote_images: true,
            ..options()
        },
        EngineOptions::default(),
    );
    for host in [
        "127.0.0.1",
        "localhost",
        "127.1",
        "0.0.0.0",
        "2130706433",
        "0x7f000001",
        "017700000001",
        "[::1]",
        "[::ffff:127.0.0.1]",
        "[::]",
        "169.254.169.254",
        "user@127.0.0.1",
    ] {
        let url = format!("http://{host}:{port}/a.png");
        let error = server
            .post(CHAT, &chat(json!([picture(&url)]), json!({})))
            .fails(400);
        assert_eq!(error["code"], "image_not_fetched", "{host}: {error}");
    }
    assert_eq!(visits.load(Ordering::SeqCst), 0);
    server.assert_alive();
}

#[test]
fn memory_stays_bounded_under_a_crowd() {
    if shared().metric("process_resident_memory_bytes") == 0.0 {
        return; // the system does not tell
    }
    let many: Value = vec![picture("data:image/png;base64,AAAA"); 10_000].into();
    let bodies = [
        chat(many, json!({})).to_string(),
        chat(
            json!([picture(&data_url("image/png", &bomb(60_000, 60_000)))]),
            json!({}),
        )
        .to_string(),
        format!("{{\"messages\": [{}]}}", vec!["{}"; 1_000_000].join(",")),
        format!(
            "{{\"ignored\": [{}], \"messages\": []}}",
            vec!["[]"; 1_000_000].join(",")
        ),
        format!("{{\"prompt\": [{}]}}", vec!["[]"; 1_000_000].join(",")),
    ];
    let round = || {
        std::thread::scope(|scope| {
            for _ in 0..4 {
                for body in &bodies {
                    scope.spawn(|| {
                        for path in [CHAT, "/v1/completions"] {
                            let status = shared().post_bytes(path, body.as_bytes()).status;
                            assert!((400..500).contains(&status), "{status}");
                        }
                    });
                }
            }
        });
        shared().metric("process_resident_memory_bytes")
    };
    let first = round();
    let later = (0..5).map(|_| round()).fold(0.0, f64::max);
    assert!(later < first + 256e6, "{first} bytes became {later}");
    shared().assert_alive();
}
