//! Pictures painted through the seam.
#![allow(clippy::unwrap_used)]

mod support;

use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use mgm_engine::EngineOptions;
use mgm_server::{PaintError, PaintOrder, Painter};
use serde_json::json;
use support::{options, schema, start_painting};

const PATH: &str = "/v1/images/generations";

/// Remembers its orders and "paints" their number.
#[derive(Default)]
struct Apprentice {
    orders: Mutex<Vec<PaintOrder>>,
    cancelled: AtomicUsize,
}

impl Painter for Apprentice {
    fn name(&self) -> &str {
        "apprentice"
    }

    fn sizes(&self) -> &[(u32, u32)] {
        &[(1024, 1024), (512, 768)]
    }

    fn paint(&self, order: &PaintOrder, cancelled: &AtomicBool) -> Result<Vec<u8>, PaintError> {
        match order.prompt.as_str() {
            "forbidden" => return Err(PaintError::Prompt("not that".into())),
            "impossible" => return Err(PaintError::Failed("no more paint".into())),
            "forever" => {
                while !cancelled.load(Ordering::SeqCst) {
                    std::thread::sleep(Duration::from_millis(5));
                }
                self.cancelled.fetch_add(1, Ordering::SeqCst);
                return Err(PaintError::Cancelled);
            }
            _ => {}
        }
        let mut orders = self.orders.lock().unwrap();
        orders.push(order.clone());
        Ok(format!("picture {}", orders.len()).into_bytes())
    }
}

#[test]
fn pictures_are_painted_as_ordered() {
    let painter = Arc::new(Apprentice::default());
    let server = start_painting(options(), EngineOptions::default(), Some(painter.clone()));
    let model = server.get("/v1/models/smol").ok();
    assert_eq!(model["capabilities"]["painting"], true);

    let body = json!({"model": "apprentice", "prompt": " a red apple ", "n": 2, "size": "512x768", "seed": 7, "response_format": "b64_json"});
    let answer = server.post(PATH, &body).ok();
    schema::check("ImageAnswer", &answer);
    assert_eq!(answer["size"], "512x768");
    for (index, name) in ["picture 1", "picture 2"].iter().enumerate() {
        let file = STANDARD
            .decode(answer["data"][index]["b64_json"].as_str().unwrap())
            .unwrap();
        assert_eq!(file, name.as_bytes());
    }
    let order = |seed| PaintOrder {
        prompt: "a red apple".into(),
        size: (512, 768),
        seed: Some(seed),
    };
    assert_eq!(*painter.orders.lock().unwrap(), [order(7), order(8)]);
    server.post(PATH, &json!({"prompt": "x"})).ok();
    assert_eq!(painter.orders.lock().unwrap()[2].size, (1024, 1024));

    for (body, param) in [
        (json!({}), "prompt"),
        (json!({"prompt": "  "}), "prompt"),
        (json!({"prompt": "x".repeat(4001)}), "prompt"),
        (json!({"prompt": "forbidden"}), "prompt"),
        (json!({"prompt": "x", "n": 0}), "n"),
        (json!({"prompt": "x", "n": 5}), "n"),
        (json!({"prompt": "x", "size": "1x1"}), "size"),
        (
            json!({"prompt": "x", "response_format": "url"}),
            "response_format",
        ),
        (
            json!({"prompt": "x", "output_format": "webp"}),
            "output_format",
        ),
        (
            json!({"prompt": "x", "background": "transparent"}),
            "background",
        ),
        (json!({"prompt": "x", "stream": true}), "stream"),
    ] {
        assert_eq!(
            server.post(PATH, &body).fails(400)["param"],
            param,
            "{body}"
        );
    }
    server
        .post(PATH, &json!({"prompt": "x", "model": "dall-e-3"}))
        .fails(404);
    server
        .post(PATH, &json!({"prompt": "impossible"}))
        .fails(500);
}

#[test]
fn nobody_waits_for_a_picture_that_nobody_wants() {
    let painter = Arc::new(Apprentice::default());
    let server = start_painting(options(), EngineOptions::default(), Some(painter.clone()));
    let waiting: Vec<_> = (0..9)
        .map(|_| {
            let mut stream = server.connect();
            let body = json!({"prompt": "forever"}).to_string();
            let bytes = support::request("POST", PATH, &[support::JSON], body.as_bytes());
            std::io::Write::write_all(&mut stream, &bytes).unwrap();
            stream
        })
        .collect();
    // Eight wait or are painted; a ninth is told to come again.
    server.wait_for(
        "mgm_http_requests_total{route=\"/v1/images/generations\",status=\"429\"}",
        1.0,
    );
    drop(waiting);
    // Until the server has noticed that they are gone.
    while server.post(PATH, &json!({"prompt": "a red apple"})).status == 429 {
        std::thread::sleep(Duration::from_millis(20));
    }
    assert_eq!(painter.orders.lock().unwrap().len(), 1);
    assert!(painter.cancelled.load(Ordering::SeqCst) >= 1);
}
