//! Pictures painted through the seam.
#![allow(clippy::unwrap_used)]

mod support;

use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use mgm_engine::EngineOptions;
use mgm_server::{PaintError, PaintOrder, PaintProgress, Painter, ServerOptions};
use serde_json::{Value, json};
use support::{
    Running, chat, data_url, options, photograph, picture, schema, start_painting, text,
};

const PATH: &str = "/v1/images/generations";
const CHAT: &str = "/v1/chat/completions";

/// Remembers its orders and "paints" their number, in three steps.
#[derive(Default)]
struct Apprentice {
    orders: Mutex<Vec<PaintOrder>>,
    cancelled: AtomicUsize,
    /// While it is locked, the apprentice waits after the first step of a picture.
    brush: Mutex<()>,
}

impl Painter for Apprentice {
    fn name(&self) -> &str {
        "apprentice"
    }

    fn sizes(&self) -> &[(u32, u32)] {
        &[(1024, 1024), (512, 768)]
    }

    fn paint(
        &self,
        order: &PaintOrder,
        cancelled: &(dyn Fn() -> bool + Sync),
        progress: &mut (dyn FnMut(PaintProgress) + Send),
    ) -> Result<Vec<u8>, PaintError> {
        match order.prompt.as_str() {
            "forbidden" => return Err(PaintError::Prompt("not that".into())),
            "impossible" => return Err(PaintError::Failed("no more paint".into())),
            "forever" => {
                while !cancelled() {
                    std::thread::sleep(Duration::from_millis(5));
                }
                self.cancelled.fetch_add(1, Ordering::SeqCst);
                return Err(PaintError::Cancelled);
            }
            _ => {}
        }
        for step in 0..=3 {
            let due = order.preview_every > 0 && step == order.preview_every;
            let preview = due.then(|| b"preview".to_vec());
            progress(PaintProgress {
                step,
                steps: 3,
                preview,
            });
            if step == 1 {
                drop(self.brush.lock().unwrap());
            }
        }
        let mut orders = self.orders.lock().unwrap();
        orders.push(order.clone());
        Ok(format!("picture {}", orders.len()).into_bytes())
    }
}

fn studio(options: ServerOptions) -> (Arc<Apprentice>, Running) {
    let painter = Arc::new(Apprentice::default());
    let server = start_painting(options, EngineOptions::default(), Some(painter.clone()));
    (painter, server)
}

/// A conversation in which the built-in model writes the picture prompt `a`: it has done nothing else so far.
fn drawing(more: Value) -> Value {
    let turn = |role: &str, content: &str| json!({"role": role, "content": content});
    let mut messages: Vec<Value> = (0..6)
        .flat_map(|_| [turn("user", "a"), turn("assistant", "<h>a</h>")])
        .collect();
    messages.push(turn("user", "a"));
    let mut body = json!({"messages": messages, "max_tokens": 16, "modalities": ["text", "image"]});
    body.as_object_mut()
        .unwrap()
        .extend(more.as_object().unwrap().clone());
    body
}

/// The prompt in an answer.
#[track_caller]
fn written(answer: &str) -> &str {
    let start = answer.find("<h>").unwrap() + "<h>".len();
    &answer[start..answer.find("</h>").unwrap()]
}

/// Clients that take all places before the painter.
fn crowd(server: &Running) -> Vec<std::net::TcpStream> {
    let waiting = (0..9)
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
    waiting
}

#[test]
fn pictures_are_painted_as_ordered() {
    let (painter, server) = studio(options());
    let model = server.get("/v1/models/smol").ok();
    schema::check("Model", &model);
    assert_eq!(model["capabilities"]["painting"], true);
    let described = json!({"id": "apprentice", "sizes": ["1024x1024", "512x768"]});
    assert_eq!(model["painter"], described);

    let body = json!({"model": "apprentice", "prompt": " a red apple ", "n": 2, "size": "512x768", "seed": 7, "response_format": "b64_json"});
    let answer = server.post(PATH, &body).ok();
    schema::check("ImageAnswer", &answer);
    assert_eq!(answer["size"], "512x768");
    assert_eq!(
        (&answer["data"][0]["seed"], &answer["data"][1]["seed"]),
        (&json!(7), &json!(8))
    );
    for (index, name) in ["picture 1", "picture 2"].iter().enumerate() {
        let file = STANDARD
            .decode(answer["data"][index]["b64_json"].as_str().unwrap())
            .unwrap();
        assert_eq!(file, name.as_bytes());
    }
    let order = |seed| PaintOrder {
        prompt: "a red apple".into(),
        size: (512, 768),
        seed,
        preview_every: 0,
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
    let (painter, server) = studio(options());
    let waiting = crowd(&server);
    drop(waiting);
    // Until the server has noticed that they are gone.
    while server.post(PATH, &json!({"prompt": "a red apple"})).status == 429 {
        std::thread::sleep(Duration::from_millis(20));
    }
    assert_eq!(server.metric("mgm_pictures_painted_total"), 1.0);
    assert_eq!(painter.orders.lock().unwrap().len(), 1);
    assert!(painter.cancelled.load(Ordering::SeqCst) >= 1);
}

#[test]
fn an_answer_brings_its_picture() {
    let (painter, server) = studio(options());
    let more = json!({"painting": {"size": "512x768", "seed": 7}});
    let answer = server.post(CHAT, &drawing(more)).ok();
    schema::check("ChatCompletion", &answer);
    let message = &answer["choices"][0]["message"];
    let prompt = written(message["content"].as_str().unwrap());
    let painting = json!({"prompt": prompt, "seed": 7, "size": "512x768"});
    let image = json!({
        "type": "image_url", "index": 0, "painting": painting,
        "image_url": {"url": data_url("image/png", b"picture 1")},
    });
    assert_eq!(message["images"], json!([image]));
    assert_eq!(answer["choices"][0]["finish_reason"], "stop");
    assert_eq!(
        *painter.orders.lock().unwrap(),
        [PaintOrder {
            prompt: prompt.into(),
            size: (512, 768),
            seed: 7,
            preview_every: 0
        }]
    );
    // The request for a picture is part of the prompt.
    let plain = drawing(json!({"modalities": ["text"]}));
    let plain = server.post(CHAT, &plain).ok();
    assert!(plain["usage"]["prompt_tokens"].as_u64() < answer["usage"]["prompt_tokens"].as_u64());
    assert!(plain["choices"][0]["message"].get("images").is_none());
    assert_eq!(painter.orders.lock().unwrap().len(), 1, "nobody asked");

    // Two answers, two pictures; without a seed of its own the picture has the request's.
    let both = server.post(CHAT, &drawing(json!({"n": 2, "seed": 3}))).ok();
    schema::check("ChatCompletion", &both);
    for index in 0..2 {
        let image = &both["choices"][index]["message"]["images"][0];
        assert_eq!(image["painting"]["seed"], 3 + index);
    }
    // An answer without a prompt has no picture.
    let asked = json!({"modalities": ["text", "image"], "max_tokens": 1});
    let answer = server.post(CHAT, &chat("Name a colour.", asked)).ok();
    schema::check("ChatCompletion", &answer);
    assert!(answer["choices"][0]["message"].get("images").is_none());
}

#[test]
fn a_stream_tells_how_the_picture_comes_along() {
    let (_, server) = studio(options());
    let more = json!({"stream": true, "stream_options": {"include_usage": true}, "painting": {"seed": 5, "preview_every": 2}});
    let events = server.stream(CHAT, &drawing(more)).all();
    let (mut said, mut steps, mut images) = (String::new(), Vec::new(), Vec::new());
    let mut prompts = Vec::new();
    for event in &events {
        schema::check("ChatCompletionChunk", event);
        let Some(choice) = event["choices"].get(0) else {
            continue;
        };
        let delta = &choice["delta"];
        if let Some(text) = delta["content"].as_str() {
            assert!(steps.is_empty(), "text comes first");
            said.push_str(text);
        }
        if let Some(painting) = choice.get("painting") {
            assert_eq!(painting["seed"], 5);
            prompts.push(painting["prompt"].clone());
            let preview = painting.get("preview").map(|url| url.as_str().unwrap());
            let expected = data_url("image/png", b"preview");
            assert_eq!(preview, (painting["step"] == 2).then_some(&*expected));
            steps.push((painting["step"].as_u64(), painting["steps"].as_u64()));
        }
        if let Some(image) = delta["images"].get(0) {
            images.push(image["image_url"]["url"].clone());
        }
        if choice["finish_reason"] == "stop" {
            assert_eq!(images.len(), 1, "an answer ends with its picture");
        }
    }
    assert_eq!(prompts, vec![json!(written(&said)); prompts.len()]);
    let step = |step| (Some(step), Some(3));
    assert_eq!(steps, [(Some(0), None), step(0), step(1), step(2), step(3)]);
    assert_eq!(images, [data_url("image/png", b"picture 1")]);
    assert!(events.last().unwrap()["usage"]["total_tokens"].is_u64());
}

#[test]
fn others_get_their_text_while_a_picture_is_painted() {
    let (painter, server) = studio(options());
    let brush = painter.brush.lock().unwrap();
    let mut stream = server.stream(CHAT, &drawing(json!({"stream": true})));
    while !stream.next_data().unwrap().contains("\"step\":1") {}
    server.assert_alive();
    drop(brush);
    let mut last = String::new();
    while let Some(data) = stream.next_data() {
        last = data;
    }
    assert_eq!(last, "[DONE]");
    assert_eq!(painter.orders.lock().unwrap().len(), 1);
}

#[test]
fn a_painted_picture_is_seen_with_the_next_question() {
    let (_, server) = studio(options());
    let cat = picture(&data_url("image/jpeg", &photograph("cat.jpg")));
    let question = "What is in the picture?";
    let turn = |role: &str, content: Value| json!({"role": role, "content": content});
    let ask = |messages: Value| {
        let body = json!({"messages": messages, "max_tokens": 16});
        server.post(CHAT, &body).ok()
    };
    let said = |answer: &Value| answer["choices"][0]["message"]["content"].clone();
    let (before, answered) = (turn("user", json!("Draw a cat.")), "<h>a cat</h>");
    let by_hand = ask(json!([
        before,
        turn("assistant", json!(answered)),
        turn("user", json!([cat, text(question)]))
    ]));
    for painted in [
        json!({"role": "assistant", "content": answered, "images": [cat]}),
        turn("assistant", json!([text(answered), cat])),
    ] {
        let answer = ask(json!([before, painted, turn("user", json!(question))]));
        assert_eq!(said(&answer), said(&by_hand));
        let tokens = |answer: &Value| answer["usage"]["prompt_tokens"].clone();
        assert_eq!(tokens(&answer), tokens(&by_hand));
    }
    let broken = json!({"role": "assistant", "images": [picture("data:image/png;base64,AAAA")]});
    let body = json!({"messages": [before, broken, turn("user", json!(question))]});
    let error = server.post(CHAT, &body).fails(400);
    assert_eq!(error["param"], "messages[1].images[0].image_url");
}

#[test]
fn what_cannot_be_painted_is_told() {
    let (painter, server) = studio(options());
    let huge = drawing(json!({"painting": {"size": "7x7"}}));
    let error = server.post(CHAT, &huge).fails(400);
    assert_eq!(error["param"], "painting.size");
    let message = error["message"].as_str().unwrap();
    assert!(message.contains("1024x1024, 512x768"), "{message}");
    // The queue is looked at before any text is made.
    let waiting = crowd(&server);
    assert_eq!(server.post(CHAT, &drawing(json!({}))).status, 429);
    drop(waiting);
    while server.post(CHAT, &drawing(json!({}))).status == 429 {
        std::thread::sleep(Duration::from_millis(20));
    }
    assert_eq!(painter.orders.lock().unwrap().len(), 1);

    let poor = support::start(options(), EngineOptions::default());
    let error = poor.post(CHAT, &drawing(json!({}))).fails(400);
    assert_eq!(
        (&error["code"], &error["param"]),
        (&json!("no_painter"), &json!("modalities"))
    );
    let model = poor.get("/v1/models/smol").ok();
    schema::check("Model", &model);
    assert_eq!(model["painter"], Value::Null);
}

#[test]
fn a_server_that_stops_tells_those_who_wait_for_a_picture() {
    let (_, server) = studio(options());
    let body = json!({"prompt": "forever"}).to_string();
    let mut stream = server.connect();
    let bytes = support::request("POST", PATH, &[support::JSON], body.as_bytes());
    std::io::Write::write_all(&mut stream, &bytes).unwrap();
    // One that waits comes to know, too.
    let mut second = server.connect();
    std::io::Write::write_all(&mut second, &bytes).unwrap();
    std::thread::sleep(Duration::from_millis(200));
    assert!(!server.join(), "not everything was finished");
    for stream in [stream, second] {
        let error = support::Answer::read(stream).fails(503);
        assert_eq!(error["code"], "shutting_down");
    }
}
