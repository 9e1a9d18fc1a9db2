//! Who may ask what, under which name, and what lies at which path.
#![allow(clippy::unwrap_used)]

mod support;

use mgm_engine::EngineOptions;
use mgm_server::{ApiKeys, ServerOptions};
use serde_json::json;
use support::{Answer, JSON, Running, chat, options, request, shared, start};

const CHAT: &str = "/v1/chat/completions";

fn keyed() -> Running {
    let mut api_keys = ApiKeys::default();
    api_keys.add("first-key", "test").unwrap();
    api_keys.add("second-key", "test").unwrap();
    start(
        ServerOptions {
            api_keys,
            ..options()
        },
        EngineOptions::default(),
    )
}

#[test]
fn a_key_opens_what_is_closed_and_nothing_else_does() {
    let server = keyed();
    let closed = [
        ("GET", "/v1/models"),
        ("GET", "/v1/models/smol"),
        ("POST", CHAT),
        ("POST", "/v1/completions"),
        ("POST", "/v1/images/generations"),
        ("POST", "/v1/mining"),
        ("POST", "/tokenize"),
        ("POST", "/detokenize"),
        ("GET", "/metrics"),
    ];
    for (method, path) in closed {
        for header in [
            None,
            Some("Bearer wrong"),
            Some("Bearer first-ke"),
            Some("Bearer first-keyy"),
            Some("Bearer "),
            Some("Basic first-key"),
            Some("first-key"),
        ] {
            let headers: Vec<(&str, &str)> = header
                .iter()
                .map(|value| ("Authorization", *value))
                .collect();
            let answer = server.send(&request(method, path, &headers, b""));
            let error = answer.fails(401);
            assert_eq!(
                error["code"], "invalid_api_key",
                "{method} {path} {header:?}"
            );
            assert_eq!(answer.header("www-authenticate"), Some("Bearer"));
        }
    }
    for path in ["/health", "/ready", "/", "/docs", "/openapi.json"] {
        assert_eq!(server.get(path).status, 200, "{path}");
    }
    for key in ["first-key", "second-key"] {
        let authorization = format!("Bearer {key}");
        let headers = [("Authorization", authorization.as_str()), JSON];
        let body = chat("Hi", json!({"max_tokens": 1})).to_string();
        let answer = server.send(&request("POST", CHAT, &headers, body.as_bytes()));
        assert_eq!(answer.status, 200, "{answer:?}");
        assert_eq!(
            server
                .send(&request("GET", "/metrics", &headers, b""))
                .status,
            200
        );
    }
    // With a key, the name does not matter.
    let headers = [
        ("Authorization", "Bearer first-key"),
        ("Host", "mgm.example.org"),
    ];
    assert_eq!(
        server
            .send(&request("GET", "/v1/models", &headers, b""))
            .status,
        200
    );
}

#[test]
fn on_loopback_without_keys_only_local_names_are_answered() {
    for (host, status) in [
        ("localhost", 200),
        ("localhost:8080", 200),
        ("127.0.0.1", 200),
        ("[::1]:8080", 200),
        ("rebound.example", 403),
        ("rebound.example:8080", 403),
        ("192.168.0.1", 403),
    ] {
        for path in ["/v1/models", "/", "/metrics"] {
            let answer = shared().send(&request("GET", path, &[("Host", host)], b""));
            assert_eq!(answer.status, status, "{host} {path}");
            if status == 403 {
                assert_eq!(answer.fails(403)["code"], "host_not_allowed");
            }
        }
    }
    let server = start(
        ServerOptions {
            allowed_hosts: vec!["mgm.example.org".into()],
            ..options()
        },
        EngineOptions::default(),
    );
    let status = |host| {
        server
            .send(&request("GET", "/v1/models", &[("Host", host)], b""))
            .status
    };
    assert_eq!(
        (status("mgm.example.org"), status("other.example.org")),
        (200, 403)
    );
}

#[test]
fn web_pages_of_other_origins_need_permission() {
    let preflight = |server: &Running, origin: &str| {
        let headers = [
            ("Origin", origin),
            ("Access-Control-Request-Method", "POST"),
            (
                "Access-Control-Request-Headers",
                "authorization,content-type",
            ),
        ];
        server.send(&request("OPTIONS", CHAT, &headers, b""))
    };
    let get = |server: &Running, origin: &str| {
        server.send(&request("GET", "/v1/models", &[("Origin", origin)], b""))
    };
    let permitted = |answer: &Answer| {
        answer
            .header("access-control-allow-origin")
            .map(str::to_string)
    };

    let answer = preflight(shared(), "https://app.example");
    assert_eq!((answer.status, permitted(&answer)), (405, None));
    assert_eq!(permitted(&get(shared(), "https://app.example")), None);

    let allowing = |origin: &str| {
        start(
            ServerOptions {
                cors_origins: vec![origin.into()],
                ..options()
            },
            EngineOptions::default(),
        )
    };
    let server = allowing("https://app.example");
    let answer = preflight(&server, "https://app.example");
    assert_eq!(answer.status, 204);
    assert_eq!(permitted(&answer).as_deref(), Some("https://app.example"));
    assert!(
        answer
            .header("access-control-allow-headers")
            .unwrap()
            .contains("authorization")
    );
    let answer = get(&server, "https://app.example");
    assert_eq!(permitted(&answer).as_deref(), Some("https://app.example"));
    assert_eq!(answer.header("vary"), Some("Origin"));
    for other in ["https://evil.example", "http://app.example", "null"] {
        assert_eq!(permitted(&preflight(&server, other)), None, "{other}");
        assert_eq!(permitted(&get(&server, other)), None, "{other}");
    }
    assert_eq!(
        permitted(&get(&allowing("*"), "https://any.example")).as_deref(),
        Some("https://any.example")
    );
}

#[test]
fn a_page_cannot_send_what_needs_no_permission() {
    // What a form or a simple request of a foreign page may carry.
    let body = chat("Hi", json!({})).to_string();
    for media_type in [
        "text/plain",
        "application/x-www-form-urlencoded",
        "multipart/form-data; boundary=x",
        "",
    ] {
        let answer = shared().send(&request(
            "POST",
            CHAT,
            &[("Content-Type", media_type)],
            body.as_bytes(),
        ));
        assert_eq!(
            answer.fails(415)["code"],
            "unsupported_media_type",
            "{media_type}"
        );
    }
    let answer = shared().send(&request("POST", CHAT, &[], body.as_bytes()));
    answer.fails(415);
    let headers = [JSON, ("Content-Encoding", "gzip")];
    shared()
        .send(&request("POST", CHAT, &headers, body.as_bytes()))
        .fails(415);
    let headers = [("Content-Type", "Application/JSON; charset=utf-8")];
    let body = chat("Hi", json!({"max_tokens": 1})).to_string();
    assert_eq!(
        shared()
            .send(&request("POST", CHAT, &headers, body.as_bytes()))
            .status,
        200
    );
}

#[test]
fn requests_keep_their_ids() {
    let id = |headers: &[(&str, &str)]| {
        let answer = shared().send(&request("GET", "/health", headers, b""));
        answer.header("x-request-id").unwrap().to_string()
    };
    assert_eq!(id(&[("X-Request-Id", "my-id_1.2")]), "my-id_1.2");
    let (first, second) = (id(&[]), id(&[("X-Request-Id", "not one, but\ttwo")]));
    assert!(first.starts_with("req-") && second.starts_with("req-") && first != second);
}

#[test]
fn the_description_and_the_page_come_with_the_server() {
    let description = shared().get("/openapi.json").ok();
    assert_eq!(description["openapi"], "3.1.0");
    for (path, media_type) in [
        ("/", "text/html"),
        ("/index.html", "text/html"),
        ("/docs", "text/html"),
        ("/docs/docs.js", "text/javascript"),
        ("/docs/docs.css", "text/css"),
    ] {
        let answer = shared().get(path);
        assert_eq!(answer.status, 200, "{path}");
        assert!(
            answer
                .header("content-type")
                .unwrap()
                .starts_with(media_type),
            "{path}"
        );
        let policy = answer.header("content-security-policy").unwrap();
        assert!(
            policy.contains("default-src") && !policy.contains("unsafe"),
            "{path}: {policy}"
        );
        assert_eq!(answer.header("x-content-type-options"), Some("nosniff"));
    }
    let page = shared().get("/");
    let tag = page.header("etag").unwrap();
    let again = shared().send(&request("GET", "/", &[("If-None-Match", tag)], b""));
    assert_eq!((again.status, again.body.len()), (304, 0));
    let head = shared().send(&request("HEAD", "/", &[], b""));
    assert_eq!((head.status, head.body.len()), (200, 0));
    assert_eq!(
        head.header("content-length").unwrap(),
        page.body.len().to_string()
    );
}

#[test]
fn paths_and_methods_that_are_not_there_are_errors_in_openai_shape() {
    for path in [
        "/nothing",
        "/v1",
        "/v1/",
        "/v1/chat",
        "/v2/models",
        "/../etc/passwd",
        "/%2e%2e/etc/passwd",
        "/docs/../Cargo.toml",
        "//",
        "/%00",
    ] {
        let error = shared().get(path).fails(404);
        assert_eq!(error["code"], "not_found", "{path}");
    }
    for (method, path, allowed) in [
        ("GET", CHAT, "POST"),
        ("DELETE", "/v1/models", "GET,HEAD"),
        ("PUT", "/tokenize", "POST"),
        ("POST", "/", "GET, HEAD"),
        ("TRACE", "/health", "GET,HEAD"),
        ("BREW", "/metrics", "GET,HEAD"),
    ] {
        let answer = shared().send(&request(method, path, &[], b""));
        assert_eq!(
            answer.fails(405)["code"],
            "method_not_allowed",
            "{method} {path}"
        );
        assert_eq!(answer.header("allow"), Some(allowed), "{method} {path}");
    }
}
