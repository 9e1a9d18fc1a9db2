//! The interface as clients see it; every answer is held against the description.
#![allow(clippy::unwrap_used)]

mod support;

use mgm_engine::EngineOptions;
use serde_json::{Value, json};
use support::{chat, data_url, options, photograph, picture, schema, shared, start, text};

const CHAT: &str = "/v1/chat/completions";
const COMPLETIONS: &str = "/v1/completions";

fn content(answer: &Value) -> &str {
    answer["choices"][0]["message"]["content"].as_str().unwrap()
}

#[test]
fn a_chat_answer_has_openai_shape() {
    let answer = shared().post(
        CHAT,
        &chat("What is the capital of France?", json!({"model": "smol"})),
    );
    let answer = answer.ok();
    schema::check("ChatCompletion", &answer);
    assert!(answer["id"].as_str().unwrap().starts_with("chatcmpl-"));
    assert_eq!(answer["model"], "smol");
    assert!(!content(&answer).is_empty());
    let usage = &answer["usage"];
    let count = |name: &str| usage[name].as_u64().unwrap();
    assert!((1..=8).contains(&count("completion_tokens")), "{usage}");
    assert_eq!(
        count("total_tokens"),
        count("prompt_tokens") + count("completion_tokens")
    );
}

#[test]
fn a_streamed_answer_is_the_same_in_pieces() {
    let body = chat("What is the capital of France?", json!({}));
    let whole = shared().post(CHAT, &body).ok();
    let mut streamed = body.clone();
    streamed["stream"] = true.into();
    let events = shared().stream(CHAT, &streamed);
    let header = |name: &str| {
        let found = events.headers.iter().find(|(found, _)| found == name);
        found.map(|(_, value)| value.clone())
    };
    assert_eq!(
        header("content-type").unwrap(),
        "text/event-stream; charset=utf-8"
    );
    assert_eq!(header("cache-control").unwrap(), "no-cache");
    let events = events.all();
    for event in &events {
        schema::check("ChatCompletionChunk", event);
        assert_eq!(event["id"], events[0]["id"]);
        assert!(event.get("usage").is_none());
    }
    assert_eq!(
        events[0]["choices"][0]["delta"],
        json!({"role": "assistant", "content": "", "refusal": null})
    );
    let last = &events.last().unwrap()["choices"][0];
    assert_eq!(last["delta"], json!({}));
    assert_eq!(last["finish_reason"], whole["choices"][0]["finish_reason"]);
    let text: String = events
        .iter()
        .filter_map(|event| event["choices"][0]["delta"]["content"].as_str())
        .collect();
    assert_eq!(text, content(&whole));

    streamed["stream_options"] = json!({"include_usage": true});
    let events = shared().stream(CHAT, &streamed).all();
    let (last, others) = events.split_last().unwrap();
    schema::check("ChatCompletionChunk", last);
    assert_eq!(last["choices"], json!([]));
    assert_eq!(
        last["usage"]["completion_tokens"],
        whole["usage"]["completion_tokens"]
    );
    assert!(
        others
            .iter()
            .all(|event| event["usage"] == Value::Null && event.get("usage").is_some())
    );
}

#[test]
fn several_answers_come_together_and_apart() {
    let body = chat(
        "Name a colour.",
        json!({"n": 3, "temperature": 1.5, "seed": 7, "max_tokens": 6}),
    );
    let whole = shared().post(CHAT, &body).ok();
    schema::check("ChatCompletion", &whole);
    let choices = whole["choices"].as_array().unwrap();
    let indices: Vec<u64> = choices
        .iter()
        .map(|choice| choice["index"].as_u64().unwrap())
        .collect();
    assert_eq!(indices, [0, 1, 2]);
    let mut streamed = body;
    streamed["stream"] = true.into();
    let events = shared().stream(CHAT, &streamed).all();
    let mut texts = vec![String::new(); 3];
    let mut finished = [0; 3];
    for event in &events {
        for choice in event["choices"].as_array().unwrap() {
            let index = choice["index"].as_u64().unwrap() as usize;
            texts[index] += choice["delta"]["content"].as_str().unwrap_or_default();
            finished[index] += u32::from(!choice["finish_reason"].is_null());
        }
    }
    assert_eq!(finished, [1, 1, 1]);
    for (text, choice) in texts.iter().zip(choices) {
        assert_eq!(text, choice["message"]["content"].as_str().unwrap());
    }
}

#[test]
fn log_probabilities_belong_to_their_tokens() {
    let body = chat(
        "What is the capital of France?",
        json!({"logprobs": true, "top_logprobs": 3, "max_tokens": 4}),
    );
    let answer = shared().post(CHAT, &body).ok();
    schema::check("ChatCompletion", &answer);
    let tokens = answer["choices"][0]["logprobs"]["content"]
        .as_array()
        .unwrap();
    // The token that ends a turn is counted, but is no part of the answer.
    let ended = u64::from(answer["choices"][0]["finish_reason"] == "stop");
    let counted = answer["usage"]["completion_tokens"].as_u64().unwrap();
    assert_eq!(tokens.len() as u64 + ended, counted);
    for token in tokens {
        let top = token["top_logprobs"].as_array().unwrap();
        assert_eq!(top.len(), 3);
        // Greedy: the token is the likeliest.
        assert_eq!(top[0]["token"], token["token"]);
        let values: Vec<f64> = top
            .iter()
            .map(|top| top["logprob"].as_f64().unwrap())
            .collect();
        assert!(
            values.is_sorted_by(|a, b| a >= b) && values[0] <= 0.0,
            "{values:?}"
        );
        let bytes: Vec<u8> = serde_json::from_value(token["bytes"].clone()).unwrap();
        assert_eq!(
            String::from_utf8_lossy(&bytes),
            token["token"].as_str().unwrap()
        );
    }
    let mut streamed = body;
    streamed["stream"] = true.into();
    let events = shared().stream(CHAT, &streamed).all();
    let apart: Vec<&Value> = events
        .iter()
        .flat_map(|event| {
            event["choices"][0]["logprobs"]["content"]
                .as_array()
                .into_iter()
                .flatten()
        })
        .collect();
    let names = |tokens: &[&Value]| -> Vec<Value> {
        tokens.iter().map(|token| token["token"].clone()).collect()
    };
    assert_eq!(names(&apart), names(&tokens.iter().collect::<Vec<_>>()));
}

#[test]
fn a_stop_text_ends_the_answer_and_is_not_part_of_it() {
    let ask = |stop: Value| {
        let body = json!({"prompt": "Once upon a time", "max_tokens": 24, "stop": stop});
        let answer = shared().post(COMPLETIONS, &body).ok();
        let choice = &answer["choices"][0];
        let text = choice["text"].as_str().unwrap().to_string();
        (text, choice["finish_reason"].clone())
    };
    let (plain, _) = ask(Value::Null);
    let word = plain.split_whitespace().nth(3).unwrap();
    let before = &plain[..plain.find(word).unwrap()];
    for stop in [json!(word), json!(["never there", word])] {
        assert_eq!(ask(stop), (before.to_string(), json!("stop")));
    }
    let answer = shared()
        .post(CHAT, &chat("Hi", json!({"stop": plain})))
        .ok();
    schema::check("ChatCompletion", &answer);
}

#[test]
fn sampling_follows_its_options() {
    let ask = |more: Value| {
        let mut options = json!({"max_tokens": 12});
        options
            .as_object_mut()
            .unwrap()
            .extend(more.as_object().unwrap().clone());
        let answer = shared()
            .post(CHAT, &chat("Tell a story about a dog.", options))
            .ok();
        content(&answer).to_string()
    };
    let greedy = ask(json!({}));
    assert_eq!(ask(json!({"temperature": 2, "top_k": 1})), greedy);
    assert_eq!(ask(json!({"temperature": 2, "top_p": 0})), greedy);
    let seeded = |seed| ask(json!({"temperature": 1.5, "top_k": 0, "seed": seed}));
    assert_eq!(seeded(-3), seeded(-3));
    assert!((0..5).any(|seed| seeded(seed) != seeded(-3)));
    let three = shared().post(
        CHAT,
        &chat(
            "Tell a story about a dog.",
            json!({"max_tokens": null, "max_completion_tokens": 3}),
        ),
    );
    let three = three.ok();
    assert_eq!(three["usage"]["completion_tokens"], 3);
    assert_eq!(three["choices"][0]["finish_reason"], "length");
}

#[test]
fn pictures_are_seen_and_remembered() {
    let cat = picture(&data_url("image/jpeg", &photograph("cat.jpg")));
    let question = text("What is in the picture?");
    let body = chat(json!([cat, question]), json!({"max_tokens": 16}));
    let first = shared().post(CHAT, &body).ok();
    schema::check("ChatCompletion", &first);
    assert!(content(&first).to_lowercase().contains("cat"), "{first}");
    let details = &first["usage"]["prompt_tokens_details"];
    assert!(details["image_tokens"].as_u64().unwrap() > 0, "{first}");

    // The same picture later in a conversation, and another one; the address may stand alone.
    let coffee = data_url("image/jpeg", &photograph("coffee.jpg"));
    let body = json!({"max_tokens": 16, "messages": [
        {"role": "system", "content": "You are terse."},
        {"role": "user", "content": [cat, question]},
        {"role": "assistant", "content": content(&first)},
        {"role": "user", "content": [text("And what is this?"), {"type": "image_url", "image_url": coffee}]}]});
    let second = shared().post(CHAT, &body).ok();
    let tokens = |answer: &Value| {
        answer["usage"]["prompt_tokens_details"]["image_tokens"]
            .as_u64()
            .unwrap()
    };
    assert_eq!(tokens(&second), 2 * tokens(&first));
    assert!(shared().metric("mgm_vision_cache_hits_total") >= 1.0);
}

#[test]
fn text_completions_go_on_where_the_prompt_ends() {
    let body = json!({"prompt": "One, two, three,", "max_tokens": 6});
    let answer = shared().post(COMPLETIONS, &body).ok();
    schema::check("Completion", &answer);
    assert!(answer["id"].as_str().unwrap().starts_with("cmpl-"));
    let plain = answer["choices"][0]["text"].as_str().unwrap().to_string();
    assert!(!plain.is_empty());

    let tokens = shared()
        .post("/tokenize", &json!({"prompt": "One, two, three,"}))
        .ok()["tokens"]
        .clone();
    let by_tokens = json!({"prompt": tokens, "max_tokens": 6, "echo": true});
    let answer = shared().post(COMPLETIONS, &by_tokens).ok();
    assert_eq!(
        answer["choices"][0]["text"],
        format!("One, two, three,{plain}")
    );

    let several = json!({"prompt": ["One, two, three,", "Red, green,"], "n": 2, "max_tokens": 6, "logprobs": 2});
    let answer = shared().post(COMPLETIONS, &several).ok();
    schema::check("Completion", &answer);
    let choices = answer["choices"].as_array().unwrap();
    assert_eq!(choices.len(), 4);
    assert_eq!(choices[0]["text"], plain);
    assert_eq!(choices[0]["text"], choices[1]["text"]);
    assert_eq!(choices[2]["text"], choices[3]["text"]);
    let logprobs = &choices[0]["logprobs"];
    let length = |name: &str| logprobs[name].as_array().unwrap().len();
    assert!(
        ["token_logprobs", "top_logprobs", "text_offset"]
            .iter()
            .all(|name| length(name) == length("tokens"))
    );
    assert_eq!(logprobs["text_offset"][0], 0);

    let mut streamed = several;
    streamed["stream"] = true.into();
    streamed["echo"] = true.into();
    streamed["logprobs"] = Value::Null;
    streamed["stream_options"] = json!({"include_usage": true});
    let events = shared().stream(COMPLETIONS, &streamed).all();
    let mut texts = vec![String::new(); 4];
    for event in &events {
        schema::check("Completion", event);
        for choice in event["choices"].as_array().unwrap() {
            texts[choice["index"].as_u64().unwrap() as usize] += choice["text"].as_str().unwrap();
        }
    }
    assert_eq!(texts[0], format!("One, two, three,{plain}"));
    assert_eq!(
        texts[3],
        format!("Red, green,{}", choices[3]["text"].as_str().unwrap())
    );
    let usage = &events.last().unwrap()["usage"];
    for name in ["prompt_tokens", "completion_tokens", "total_tokens"] {
        assert_eq!(usage[name], answer["usage"][name], "{name}");
    }
}

#[test]
fn the_model_goes_by_all_its_names() {
    let server = start(
        mgm_server::ServerOptions {
            model_names: vec!["org/smol".into(), "smol".into()],
            ..options()
        },
        EngineOptions::default(),
    );
    let list = server.get("/v1/models").ok();
    schema::check("ModelList", &list);
    let names: Vec<&str> = list["data"]
        .as_array()
        .unwrap()
        .iter()
        .map(|model| model["id"].as_str().unwrap())
        .collect();
    assert_eq!(names, ["smol", "org/smol"]);
    for path in [
        "/v1/models/smol",
        "/v1/models/org/smol",
        "/v1/models/org%2Fsmol",
    ] {
        let model = server.get(path).ok();
        schema::check("Model", &model);
        assert!(model["capabilities"]["vision"].as_bool().unwrap());
        assert_eq!(model["capabilities"]["painting"], false);
    }
    let answer = server
        .post(
            CHAT,
            &chat("Hi", json!({"model": "org/smol", "max_tokens": 1})),
        )
        .ok();
    assert_eq!(answer["model"], "org/smol");
    for answer in [
        server.get("/v1/models/gpt-4o"),
        server.post(CHAT, &chat("Hi", json!({"model": "gpt-4o"}))),
        server.post(COMPLETIONS, &json!({"model": "gpt-4o", "prompt": "Hi"})),
        server.post("/tokenize", &json!({"model": "gpt-4o", "prompt": "Hi"})),
    ] {
        let error = answer.fails(404);
        assert_eq!(error["code"], "model_not_found");
        assert!(error["message"].as_str().unwrap().contains("gpt-4o"));
    }
}

#[test]
fn tokens_become_text_and_text_tokens() {
    let prompt = "Grüße, 世界! <|im_end|>";
    let tokens = shared()
        .post(
            "/tokenize",
            &json!({"prompt": prompt, "return_token_strs": true}),
        )
        .ok();
    schema::check("Tokens", &tokens);
    let ids = tokens["tokens"].as_array().unwrap();
    assert_eq!(tokens["count"].as_u64().unwrap() as usize, ids.len());
    assert_eq!(
        tokens["token_strs"].as_array().unwrap().last().unwrap(),
        "<|im_end|>"
    );
    let back = shared().post("/detokenize", &json!({"tokens": ids})).ok();
    schema::check("Text", &back);
    assert_eq!(back["prompt"], prompt);
    // In a conversation the template adds its part, and what was typed stays text.
    let chat = shared()
        .post(
            "/tokenize",
            &json!({"messages": [{"role": "user", "content": prompt}]}),
        )
        .ok();
    schema::check("Tokens", &chat);
    assert!(chat["count"].as_u64().unwrap() as usize > ids.len());
    let error = shared()
        .post("/detokenize", &json!({"tokens": [4_000_000_000u32]}))
        .fails(400);
    assert_eq!(error["param"], "tokens");
    for body in [
        json!({}),
        json!({"prompt": "a", "messages": [{"role": "user", "content": "a"}]}),
    ] {
        shared().post("/tokenize", &body).fails(400);
    }
}

#[test]
fn mining_tells_where_every_patch_looked() {
    let cat = data_url("image/jpeg", &photograph("cat.jpg"));
    let all = shared()
        .post("/v1/mining", &json!({"image_url": {"url": cat}}))
        .ok();
    schema::check("Mining", &all);
    let (width, height) = (
        all["image"]["width"].as_f64().unwrap(),
        all["image"]["height"].as_f64().unwrap(),
    );
    let views = all["views"].as_array().unwrap();
    assert_eq!(views.len(), 1);
    let view = &views[0];
    assert_eq!(view["name"], "picture");
    // Padded to a square around its middle.
    let region = |name: &str| view["region"][name].as_f64().unwrap();
    let side = width.max(height);
    assert!(
        (region("width") - side).abs() < 1.0 && (region("height") - side).abs() < 1.0,
        "{}",
        view["region"]
    );
    assert!(
        (region("x") + region("width") / 2.0 - width / 2.0).abs() <= 1.0,
        "{}",
        view["region"]
    );
    let count = |name: &str| view[name].as_u64().unwrap() as usize;
    let weights = view["weights"].as_array().unwrap();
    assert_eq!(weights.len(), count("rows") * count("columns"));
    for row in weights {
        let row: Vec<f64> = serde_json::from_value(row.clone()).unwrap();
        assert_eq!(row.len(), count("cell_rows") * count("cell_columns"));
        assert!((row.iter().sum::<f64>() - 1.0).abs() < 0.01, "{row:?}");
    }
    let some = shared()
        .post("/v1/mining", &json!({"image_url": cat, "patches": [5, 0]}))
        .ok();
    schema::check("Mining", &some);
    assert_eq!(some["views"][0]["weights"], json!([weights[5], weights[0]]));
    let error = shared()
        .post(
            "/v1/mining",
            &json!({"image_url": cat, "patches": [weights.len()]}),
        )
        .fails(400);
    assert_eq!(error["param"], "patches");
    assert_eq!(
        shared().post("/v1/mining", &json!({})).fails(400)["param"],
        "image_url"
    );
}

#[test]
fn without_a_painter_that_is_said() {
    let error = shared()
        .post("/v1/images/generations", &json!({"prompt": "a red apple"}))
        .fails(404);
    assert_eq!(error["code"], "no_painter");
}

#[test]
fn values_that_are_not_supported_are_refused_by_name() {
    for (more, param) in [
        (
            json!({"tools": [{"type": "function", "function": {"name": "f"}}]}),
            "tools",
        ),
        (
            json!({"response_format": {"type": "json_schema"}}),
            "response_format",
        ),
        (json!({"temperature": "warm"}), "temperature"),
        (json!({"max_tokens": 1.5}), "max_tokens"),
        (json!({"n": 100}), "n"),
        (json!({"logit_bias": {"100000000": 1}}), "logit_bias"),
        (json!({"messages": "Hi"}), "messages"),
        (
            json!({"messages": [{"role": "user", "content": 5}]}),
            "messages[0].content",
        ),
    ] {
        let error = shared().post(CHAT, &chat("Hi", more.clone())).fails(400);
        assert_eq!(error["param"], param, "{more}: {error}");
        assert_eq!(error["type"], "invalid_request_error");
    }
    let error = shared()
        .post(CHAT, &chat("word ".repeat(20_000), json!({})))
        .fails(400);
    assert_eq!(error["code"], "context_length_exceeded");
    // So long that nobody counts its tokens.
    let huge = "word ".repeat(1_000_000);
    for answer in [
        shared().post(CHAT, &chat(huge.as_str(), json!({}))),
        shared().post(COMPLETIONS, &json!({"prompt": huge})),
        shared().post("/tokenize", &json!({"prompt": huge})),
    ] {
        assert_eq!(answer.fails(400)["code"], "context_length_exceeded");
    }
    // What is not known is ignored.
    shared()
        .post(
            CHAT,
            &chat(
                "Hi",
                json!({"max_tokens": 1, "user": 5, "frobnicate": {"a": [1]}}),
            ),
        )
        .ok();
}

#[test]
fn the_server_tells_how_it_is() {
    let health = shared().get("/health").ok();
    schema::check("Status", &health);
    let ready = shared().get("/ready").ok();
    schema::check("Status", &ready);
    shared().assert_alive();
    let metrics = shared().get("/metrics");
    assert_eq!(
        metrics.header("content-type"),
        Some("text/plain; version=0.0.4; charset=utf-8")
    );
    let text = metrics.text();
    for sample in [
        "mgm_ready 1",
        "mgm_queue_requests ",
        "mgm_running_answers ",
        "mgm_batch_size_bucket{le=\"1\"} ",
        "mgm_time_to_first_token_seconds_bucket{pictures=\"none\",le=\"+Inf\"} ",
        "mgm_time_per_token_seconds_count ",
        "mgm_prefix_cache_hits_total ",
        "mgm_vision_cache_bytes ",
        "mgm_http_requests_total{route=\"/v1/chat/completions\",status=\"200\"} ",
    ] {
        assert!(
            text.lines().any(|line| line.starts_with(sample)),
            "{sample}\n{text}"
        );
    }
    well_formed(&text);
}

/// Every sample follows the head of its metric, every name has one head, and the buckets of a histogram rise.
fn well_formed(text: &str) {
    let mut current = "";
    let mut seen = std::collections::HashSet::new();
    let mut last_bucket = 0.0;
    for line in text.lines() {
        if let Some(rest) = line.strip_prefix("# TYPE ") {
            current = rest.split(' ').next().unwrap();
            assert!(seen.insert(current), "{current} twice");
        } else if !line.starts_with("# HELP ") {
            let name = line.split(['{', ' ']).next().unwrap();
            assert!(
                ["", "_bucket", "_sum", "_count"]
                    .iter()
                    .any(|end| name.strip_suffix(end) == Some(current)),
                "{line} under {current}"
            );
            let value: f64 = line.rsplit(' ').next().unwrap().parse().unwrap();
            if name.ends_with("_bucket") {
                assert!(value >= last_bucket, "{line}");
                last_bucket = if line.contains("+Inf") { 0.0 } else { value };
            }
        }
    }
}
