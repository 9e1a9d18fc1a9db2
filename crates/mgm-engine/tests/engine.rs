//! Limits, endings and reuse.

// A test may end by a panic.
#![allow(clippy::unwrap_used)]

mod common;

use std::sync::Arc;
use std::sync::mpsc;
use std::time::{Duration, Instant};

use common::*;
use mgm_engine::{
    ChatMessage, Engine, EngineEvent, EngineOptions, FinishReason, Input, Part, Request, Role,
    SubmitError,
};
use mgm_image::Limits;

#[test]
fn events_tell_the_whole_story_in_order() {
    let engine = start(small_steps());
    let mut request = ask("the thing in the air?");
    request.sampling.logprobs = Some(3);
    let events: Vec<EngineEvent> = engine.submit(request).unwrap().collect();
    assert!(matches!(events[0], EngineEvent::Queued { position: 0 }));
    let EngineEvent::Started { prompt } = &events[1] else {
        panic!("{:?}", events[1]);
    };
    assert!(prompt.text_tokens > 5 && prompt.visual_tokens == 0);
    let (last, tokens) = events[2..].split_last().unwrap();
    for event in tokens {
        let EngineEvent::Token {
            choice: 0,
            token: Some(token),
            ..
        } = event
        else {
            panic!("{event:?}");
        };
        let logprob = token.logprob.unwrap();
        assert!(logprob <= 0.0 && token.top.len() == 3);
        // Greedy: the likeliest is the one that came.
        assert_eq!(token.top[0], (token.id, logprob));
        assert!(token.top[0].1 >= token.top[1].1 && token.top[1].1 >= token.top[2].1);
        assert!(!engine.token_bytes(token.id).is_empty());
    }
    let EngineEvent::Finished {
        choice: 0,
        reason,
        usage,
        timings,
        ..
    } = last
    else {
        panic!("{last:?}");
    };
    assert_eq!((*reason, usage.new_tokens), (FinishReason::Length, 12));
    assert_eq!(usage.prompt, *prompt);
    assert!(timings.first_token >= timings.prefill && timings.prefill > Duration::ZERO);
    let metrics = engine.metrics();
    assert_eq!((metrics.requests.accepted, metrics.requests.length), (1, 1));
    assert_eq!(metrics.generated_tokens, 12);
    assert_eq!(metrics.prompt_tokens, prompt.text_tokens as u64);
    assert_eq!(metrics.first_token_text.count(), 1);
    assert_eq!(metrics.token_seconds.count(), 11);
}

#[test]
fn a_client_that_leaves_frees_its_place() {
    let engine = start(small_steps());
    let stays = engine.submit(go_on(1, 20, 100)).unwrap();
    let mut leaves = engine.submit(go_on(2, 20, 2000)).unwrap();
    first_token(&mut leaves);
    drop(leaves);
    // Also those that wait or are being read.
    drop(engine.submit(go_on(3, 300, 1000)).unwrap());
    wait_for(&engine, "both gone", |now| now.requests.cancelled == 2);
    let cancelled = engine.submit(go_on(4, 10, 1000)).unwrap();
    cancelled.cancel();
    let done = collect(cancelled).unwrap().remove(0);
    assert_eq!(done.reason, FinishReason::Cancelled);
    let done = collect(stays).unwrap().remove(0);
    assert_eq!(done.content(), alone(&llama(), go_on(1, 20, 100)).content());
    wait_for(&engine, "nothing reserved", |now| {
        now.kv.positions_reserved == 0 && now.running == 0 && now.reading == 0
    });
    let kept = engine.metrics();
    // Nothing is in memory but what is kept for reuse.
    assert!(kept.kv.positions_held <= kept.prefix.positions_kept.next_multiple_of(32) + 32 * 8);
}

#[test]
fn deadlines_end_answers_wherever_they_are() {
    let options = EngineOptions {
        max_running: 1,
        ..small_steps()
    };
    let engine = start(options);
    let soon = Some(Instant::now() + Duration::from_millis(300));
    let mut running = go_on(1, 20, 1_000_000);
    running.deadline = soon;
    let mut waiting = go_on(2, 20, 10);
    waiting.deadline = soon;
    let running = engine.submit(running).unwrap();
    let waiting = engine.submit(waiting).unwrap();
    let running = collect(running).unwrap().remove(0);
    assert_eq!(running.reason, FinishReason::Deadline);
    assert!(running.usage.new_tokens > 1 && !running.tokens.is_empty());
    let waiting = collect(waiting).unwrap().remove(0);
    assert_eq!(waiting.reason, FinishReason::Deadline);
    assert_eq!(waiting.usage.new_tokens, 0);
    // One that is long past is accepted and ended.
    let mut past = go_on(3, 20, 10);
    past.deadline = Some(Instant::now());
    assert_eq!(run(&engine, past).reason, FinishReason::Deadline);
    assert_eq!(engine.metrics().requests.deadline, 3);
}

#[test]
fn stop_texts_end_answers_across_tokens() {
    let engine = start(small_steps());
    let whole = run(&engine, go_on(5, 30, 40));
    // A text over the border of two tokens that is nowhere earlier.
    let texts: Vec<String> = whole
        .tokens
        .iter()
        .map(|(id, _)| engine.detokenize(&[*id], true).unwrap())
        .collect();
    let found = texts.windows(2).find_map(|pair| {
        let joint = format!("{}{}", pair[0].trim(), pair[1]);
        let is_new = !texts.iter().any(|text| text.contains(&joint));
        let at = whole.text.find(&joint)?;
        (pair[0].trim().len() > 1 && pair[1].len() > 1 && is_new && at > 0).then_some((joint, at))
    });
    let (stop, at) = found.unwrap();
    let mut request = go_on(5, 30, 40);
    request.sampling.stop = vec!["never in any answer".into(), stop.clone()];
    let done = run(&engine, request);
    assert_eq!(done.text, whole.text[..at]);
    assert_eq!(
        (done.reason, done.stop),
        (FinishReason::Stop, Some(stop.clone()))
    );
    assert!(done.usage.new_tokens < 40);

    // Only the beginning of a stop text: it is held back, and let go at the end.
    let mut request = go_on(5, 30, 40);
    request.sampling.stop = vec![format!("{}\u{1}", whole.text)];
    let mut pieces = 0;
    let mut last = String::new();
    for event in engine.submit(request).unwrap() {
        if let EngineEvent::Token { text, token, .. } = event {
            pieces += usize::from(!text.is_empty());
            assert!(text.is_empty() || token.is_none());
            last = text;
        }
    }
    assert_eq!((pieces, last), (1, whole.text));
}

#[test]
fn the_queue_is_bounded() {
    let options = EngineOptions {
        max_running: 1,
        max_queued: 2,
        ..small_steps()
    };
    let engine = start(options);
    let mut running = engine.submit(go_on(1, 10, 1500)).unwrap();
    first_token(&mut running);
    let waiting: Vec<_> = (0..2)
        .map(|index| {
            let mut submission = engine.submit(go_on(2, 10, 5)).unwrap();
            let queued = submission.next().unwrap();
            assert_eq!(queued, EngineEvent::Queued { position: index });
            submission
        })
        .collect();
    assert_eq!(engine.metrics().queued, 2);
    let error = engine.submit(go_on(3, 10, 5)).unwrap_err();
    assert_eq!(error, SubmitError::QueueFull { queued: 2 });
    assert!(error.is_retryable());
    assert_eq!(engine.metrics().requests.refused_busy, 1);
    drop(running);
    for submission in waiting {
        let done = collect(submission).unwrap().remove(0);
        assert_eq!(done.reason, FinishReason::Length);
    }
    assert_eq!(run(&engine, go_on(3, 10, 5)).usage.new_tokens, 5);
}

#[test]
fn memory_is_bounded_and_requests_wait_for_it() {
    let position = llama().decoder().position_bytes();
    let limit = 20 * 32;
    let engine = start(EngineOptions {
        kv_bytes: Some(limit * position),
        ..small_steps()
    });
    assert_eq!(engine.metrics().kv.positions_limit, limit);
    let error = engine.submit(go_on(1, 300, 400)).unwrap_err();
    assert!(
        matches!(error, SubmitError::MemoryTooSmall { limit: 640, .. }),
        "{error}"
    );
    assert!(!error.is_retryable());
    // Each needs seven or eight blocks of the twenty: two run together, the others wait.
    let submissions: Vec<_> = (0..8)
        .map(|seed| engine.submit(go_on(seed, 150, 50)).unwrap())
        .collect();
    for (seed, submission) in submissions.into_iter().enumerate() {
        let mut events = Vec::new();
        for event in submission {
            let now = engine.metrics();
            assert!(now.kv.positions_held <= limit, "{:?}", now.kv);
            assert!(now.kv.positions_reserved <= limit, "{:?}", now.kv);
            assert!(now.running <= 2);
            events.push(event);
        }
        let done = collect(events.into_iter()).unwrap().remove(0);
        assert_eq!(
            done.content(),
            alone(&llama(), go_on(seed, 150, 50)).content()
        );
    }
    let prefix = engine.metrics().prefix;
    assert!(prefix.positions_evicted > 0, "{prefix:?}");
}

#[test]
fn what_was_read_is_not_read_again() {
    let engine = start(small_steps());
    let first = run(&engine, go_on(7, 100, 40));
    assert_eq!(first.usage.prompt.cached_tokens, 0);
    // The same again: all but the last position.
    let again = run(&engine, go_on(7, 100, 40));
    assert_eq!(again.usage.prompt.cached_tokens, 99);
    assert_eq!(again.content(), first.content());
    // A prompt that goes on from the answer: also what was generated. The last token was never read.
    let Input::Tokens(mut ids) = tokens(7, 100) else {
        panic!("token ids");
    };
    ids.extend(first.tokens.iter().map(|(id, _)| *id));
    ids.extend([11, 12]);
    let longer = limited(Request::new(Input::Tokens(ids)), 10);
    let done = run(&engine, longer.clone());
    assert_eq!(done.usage.prompt.cached_tokens, 139);
    assert_eq!(done.content(), alone(&llama(), longer).content());
    // One that parts in the middle of a block.
    let Input::Tokens(mut ids) = tokens(7, 100) else {
        panic!("token ids");
    };
    ids[45] = 9;
    let parted = limited(Request::new(Input::Tokens(ids)), 10);
    let done = run(&engine, parted.clone());
    assert_eq!(done.usage.prompt.cached_tokens, 45);
    assert_eq!(done.content(), alone(&llama(), parted).content());
    let prefix = engine.metrics().prefix;
    assert_eq!((prefix.lookups, prefix.hits), (4, 3));
    assert_eq!(prefix.positions_reused, 99 + 139 + 45);
    assert_eq!(prefix.positions_read, 100 + 1 + 3 + 55);
}

#[test]
fn the_same_prompt_at_the_same_time_is_read_once() {
    let engine = start(small_steps());
    let submissions: Vec<_> = (0..6)
        .map(|_| engine.submit(go_on(8, 200, 8)).unwrap())
        .collect();
    let expected = alone(&llama(), go_on(8, 200, 8));
    for submission in submissions {
        let done = collect(submission).unwrap().remove(0);
        assert_eq!(done.content(), expected.content());
    }
    let prefix = engine.metrics().prefix;
    // The first reads all, the others what is behind the last whole block.
    assert_eq!(prefix.positions_read, 200 + 5 * (200 % 32));
}

#[test]
fn choices_share_the_reading_and_have_their_own_seeds() {
    let engine = start(small_steps());
    let mut request = sampled(go_on(9, 100, 15), 40);
    request.choices = 4;
    let done = collect(engine.submit(request).unwrap()).unwrap();
    assert_eq!(done.len(), 4);
    assert_eq!(engine.metrics().prefix.positions_read, 100);
    for (index, choice) in done.iter().enumerate() {
        let single = sampled(go_on(9, 100, 15), 40 + index as u64);
        assert_eq!(choice.content(), alone(&llama(), single).content());
    }
    assert!(done.iter().any(|choice| choice.text != done[0].text));
}

#[test]
fn pictures_are_looked_at_once() {
    let engine = start(small_steps());
    let file = bmp(&picture(60, 40, 1));
    let limits = Limits::default();
    let shown = engine.picture_from_file(&file, &limits).unwrap();
    assert_eq!(shown.size(), (60, 40));
    let first = run(&engine, ask_about(shown, "the thing?"));
    assert_eq!(first.usage.prompt.visual_tokens, 36);
    assert!(first.timings.encode > Duration::ZERO);
    // The same file again is not even decoded: limits that forbid it do not matter.
    let forbidding = Limits {
        max_pixels: 1,
        ..limits
    };
    assert!(
        engine
            .picture_from_file(&bmp(&picture(9, 9, 2)), &forbidding)
            .is_err()
    );
    let again = engine.picture_from_file(&file, &forbidding).unwrap();
    let second = run(&engine, ask_about(again, "is it in the air?"));
    assert_eq!(second.timings.encode, Duration::ZERO);
    assert!(second.usage.prompt.cached_tokens >= 36);
    // The same picture in another file is the same picture.
    let other = engine.picture(&picture(60, 40, 1)).unwrap();
    let third = run(&engine, ask_about(other, "the thing?"));
    assert_eq!(third.content(), first.content());
    let metrics = engine.metrics();
    assert_eq!((metrics.vision.hits, metrics.vision.misses), (2, 1));
    assert_eq!(metrics.encode_seconds.count(), 1);
    assert_eq!(metrics.first_token_new_picture.count(), 1);
    assert_eq!(metrics.first_token_known_picture.count(), 2);
}

#[test]
fn several_who_wait_for_a_picture_wait_for_one_look() {
    let engine = start(small_steps());
    let shown = engine.picture(&picture(50, 50, 3)).unwrap();
    let texts = ["the thing?", "is it", "what"];
    let submissions = texts.map(|text| engine.submit(ask_about(shown.clone(), text)).unwrap());
    for (text, submission) in texts.iter().zip(submissions) {
        let done = collect(submission).unwrap().remove(0);
        let fresh = alone(&llama(), ask_about(shown.clone(), text));
        assert_eq!(done.content(), fresh.content());
    }
    assert_eq!(engine.metrics().encode_seconds.count(), 1);
}

#[test]
fn the_vision_cache_is_bounded() {
    let one = {
        let engine = start(small_steps());
        let shown = engine.picture(&picture(50, 50, 1)).unwrap();
        run(&engine, ask_about(shown, "what"));
        engine.metrics().vision.bytes
    };
    assert!(one > 0);
    let engine = start(EngineOptions {
        vision_cache_bytes: 2 * one + one / 2,
        ..small_steps()
    });
    for seed in [1, 2, 1, 3, 2, 1] {
        let shown = engine.picture(&picture(50, 50, seed)).unwrap();
        run(&engine, ask_about(shown, "what"));
        assert!(engine.metrics().vision.bytes <= 2 * one);
    }
    // 1 and 2 are new, 1 is known; 3 takes the place of 2, then 2 that of 1, and 1 that of 3.
    let vision = engine.metrics().vision;
    assert_eq!((vision.hits, vision.misses), (1, 5));
    assert_eq!((vision.pictures, vision.evictions), (2, 3));

    // Waiting pictures are bounded too.
    let engine = start(EngineOptions {
        max_running: 1,
        pending_picture_bytes: 1 << 20,
        ..small_steps()
    });
    let mut running = engine.submit(go_on(1, 10, 1500)).unwrap();
    first_token(&mut running);
    let shown = |seed| engine.picture(&picture(50, 50, seed)).unwrap();
    let waiting: Vec<_> = (0..20)
        .map(|seed| engine.submit(ask_about(shown(seed), "what")))
        .collect();
    let full = waiting
        .iter()
        .filter(|result| matches!(result, Err(SubmitError::PicturesFull { .. })))
        .count();
    assert!((1..20).contains(&full), "{full} refused");
    drop((running, waiting));
    wait_for(&engine, "all gone", |now| {
        now.queued == 0 && now.running == 0 && now.reading == 0
    });
    run(&engine, ask_about(shown(21), "what"));
}

/// Events of several requests in the order in which they came.
fn log(engine: &Engine, requests: Vec<Request>) -> Vec<(usize, EngineEvent)> {
    let (sender, receiver) = mpsc::channel();
    let tickets: Vec<_> = requests
        .into_iter()
        .enumerate()
        .map(|(index, request)| {
            let sender = sender.clone();
            engine
                .submit_with(request, move |event| {
                    let _ = sender.send((index, event));
                })
                .unwrap()
        })
        .collect();
    drop(sender);
    let events = receiver.iter().collect();
    drop(tickets);
    events
}

fn place(events: &[(usize, EngineEvent)], request: usize, what: fn(&EngineEvent) -> bool) -> usize {
    events
        .iter()
        .position(|(index, event)| *index == request && what(event))
        .unwrap()
}

const IS_TOKEN: fn(&EngineEvent) -> bool = |event| matches!(event, EngineEvent::Token { .. });
const IS_START: fn(&EngineEvent) -> bool = |event| matches!(event, EngineEvent::Started { .. });

#[test]
fn a_long_prompt_does_not_hold_up_answers_or_short_prompts() {
    let engine = start(small_steps());
    // The first answers all the while; the second is long; the third comes behind it and is short.
    let events = log(
        &engine,
        vec![go_on(1, 5, 400), go_on(2, 800, 3), go_on(3, 10, 3)],
    );
    let (start, end) = (place(&events, 1, IS_START), place(&events, 1, IS_TOKEN));
    let meanwhile = events[start..end]
        .iter()
        .filter(|(index, event)| *index == 0 && IS_TOKEN(event))
        .count();
    // 800 positions in steps of 16 rows: an answer goes on with every one of them.
    assert!(meanwhile >= 800 / 16 - 2, "{meanwhile} tokens meanwhile");
    assert!(place(&events, 2, IS_TOKEN) < end, "the short prompt waited");
}

#[test]
fn a_long_prompt_is_not_starved_by_those_that_come_after_it() {
    let engine = start(small_steps());
    // The first is long; twenty come behind it and are half as long.
    let behind = (2..22).map(|seed| go_on(seed, 320, 2));
    let requests = std::iter::once(go_on(1, 640, 2)).chain(behind).collect();
    let events = log(&engine, requests);
    let first = place(&events, 0, IS_TOKEN);
    let earlier = events[..first].iter().filter(|(_, event)| IS_TOKEN(event));
    assert_eq!(earlier.count(), 0, "tokens of those behind it");
}

#[test]
fn answers_go_on_while_a_picture_is_looked_at() {
    let engine = start(small_steps());
    let shown = engine.picture(&picture(90, 60, 4)).unwrap();
    let events = log(&engine, vec![go_on(1, 5, 400), ask_about(shown, "what")]);
    let start = place(&events, 1, |event| {
        matches!(event, EngineEvent::Queued { .. })
    });
    let looked = place(&events, 1, IS_START);
    let meanwhile = events[start..looked]
        .iter()
        .filter(|(index, event)| *index == 0 && IS_TOKEN(event))
        .count();
    assert!(meanwhile >= 5, "{meanwhile} tokens meanwhile");
}

#[test]
fn shutdown_lets_answers_finish_or_ends_them() {
    let engine = start(small_steps());
    let submission = engine.submit(go_on(1, 50, 60)).unwrap();
    assert!(engine.is_accepting());
    assert!(engine.shutdown(Duration::from_secs(600)));
    assert!(!engine.is_accepting());
    let done = collect(submission).unwrap().remove(0);
    assert_eq!(
        (done.reason, done.usage.new_tokens),
        (FinishReason::Length, 60)
    );
    let refused = engine.submit(go_on(1, 5, 5)).unwrap_err();
    assert_eq!(refused, SubmitError::ShuttingDown);

    let engine = start(EngineOptions {
        max_running: 1,
        ..small_steps()
    });
    let mut running = engine.submit(go_on(1, 50, 1900)).unwrap();
    first_token(&mut running);
    let waiting = engine.submit(go_on(2, 50, 10)).unwrap();
    assert!(!engine.shutdown(Duration::ZERO));
    for submission in [running, waiting] {
        let done = collect(submission).unwrap().remove(0);
        assert_eq!(done.reason, FinishReason::Shutdown);
    }
    // The last handle ends it as well, also from an event's sink.
    let engine = start(small_steps());
    let running = engine.submit(go_on(1, 50, 1900)).unwrap();
    drop(engine);
    assert_eq!(collect(running).unwrap()[0].reason, FinishReason::Shutdown);
    let engine = start(small_steps());
    let (sender, receiver) = mpsc::channel();
    let mut held = vec![engine.clone()];
    let ticket = engine.submit_with(go_on(1, 5, 5), move |event| {
        if matches!(event, EngineEvent::Token { .. }) {
            held.clear();
        }
        let _ = sender.send(event);
    });
    drop(engine);
    assert!(receiver.iter().last().is_some());
    drop(ticket);
}

#[test]
fn bad_requests_are_refused_by_name() {
    let engine = start(small_steps());
    let refused = |change: fn(&mut Request)| {
        let mut request = ask("what");
        change(&mut request);
        match engine.submit(request).unwrap_err() {
            SubmitError::InvalidOption { name, .. } => name,
            other => panic!("{other}"),
        }
    };
    for (name, change) in [
        (
            "temperature",
            (|r| r.sampling.temperature = -0.1) as fn(&mut Request),
        ),
        ("temperature", |r| r.sampling.temperature = f32::NAN),
        ("top_p", |r| r.sampling.top_p = 0.0),
        ("top_p", |r| r.sampling.top_p = 1.01),
        ("top_k", |r| r.sampling.top_k = Some(0)),
        ("max_tokens", |r| r.sampling.max_new_tokens = Some(0)),
        ("presence_penalty", |r| r.sampling.presence_penalty = 2.1),
        ("frequency_penalty", |r| {
            r.sampling.frequency_penalty = f32::NAN
        }),
        ("logit_bias", |r| {
            r.sampling.logit_bias = vec![(1 << 30, 1.0)]
        }),
        ("logit_bias", |r| r.sampling.logit_bias = vec![(1, 101.0)]),
        ("top_logprobs", |r| r.sampling.logprobs = Some(21)),
        ("stop", |r| r.sampling.stop = vec!["x".into(); 17]),
        ("stop", |r| r.sampling.stop = vec![String::new()]),
        ("n", |r| r.choices = 0),
        ("n", |r| r.choices = 17),
    ] {
        assert_eq!(refused(change), name);
    }
    let long = engine.submit(go_on(1, 3000, 5)).unwrap_err();
    assert!(
        matches!(&long, SubmitError::PromptTooLong { account, limit: 2048 } if account.text_tokens == 3000),
        "{long}"
    );
    let nothing = Request::chat(vec![]);
    assert!(matches!(
        engine.submit(nothing),
        Err(SubmitError::InvalidInput { .. })
    ));
    assert!(matches!(
        engine.picture_from_file(b"no picture", &Limits::default()),
        Err(SubmitError::BadPicture(_))
    ));
    assert!(engine.detokenize(&[1 << 30], true).is_err());
    assert_eq!(engine.token_bytes(1 << 30), Vec::<u8>::new());
    // More than the context holds is less.
    let filled = run(&engine, go_on(1, 2000, 1_000_000));
    assert_eq!(filled.reason, FinishReason::Length);
    let context = engine.model_info().context_limit;
    assert_eq!(filled.usage.new_tokens, context - 2000);
    let metrics = engine.metrics();
    assert_eq!(metrics.requests.refused, 17);
    for options in [
        EngineOptions {
            max_running: 0,
            ..small_steps()
        },
        EngineOptions {
            max_queued: 0,
            ..small_steps()
        },
        EngineOptions {
            prefill_rows: 0,
            ..small_steps()
        },
        EngineOptions {
            kv_bytes: Some(1000),
            ..small_steps()
        },
    ] {
        assert!(Engine::start(llama(), options).is_err());
    }
}

#[test]
fn the_inside_of_a_picture_is_what_the_model_mines() {
    let engine = start(small_steps());
    let image = picture(60, 40, 2);
    let file = bmp(&image);
    let inside = engine.mining_attention(&file, &Limits::default()).unwrap();
    let direct = llama().mining_attention(&image, &mut || Ok(())).unwrap();
    assert_eq!(*inside, direct);
    let again = engine.mining_attention(&file, &Limits::default()).unwrap();
    assert!(Arc::ptr_eq(&inside, &again));
    assert!(engine.model_info().vision.unwrap().mines);
    engine.shutdown(Duration::ZERO);
    let other = engine.mining_attention(&bmp(&picture(8, 8, 1)), &Limits::default());
    assert_eq!(other, Err(SubmitError::ShuttingDown));
}

#[test]
fn tokens_and_texts_agree_with_what_is_read() {
    let engine = start(small_steps());
    let shown = engine.picture(&picture(60, 40, 2)).unwrap();
    let input = Input::Chat {
        messages: vec![
            ChatMessage::text(Role::System, "the air"),
            user(vec![Part::Image(shown), Part::Text("what?".into())]),
        ],
        template: None,
    };
    let tokenized = engine.tokenize(&input, false, true).unwrap();
    let done = run(&engine, limited(Request::new(input), 3));
    assert_eq!(done.usage.prompt.text_tokens, tokenized.account.text_tokens);
    assert_eq!(
        done.usage.prompt.visual_tokens,
        tokenized.account.visual_tokens
    );
    let text = Input::Text("in the air".into());
    let ids = engine.tokenize(&text, false, true).unwrap().ids;
    let ids: Vec<u32> = ids.iter().map(|id| u32::try_from(*id).unwrap()).collect();
    assert_eq!(engine.detokenize(&ids, true).unwrap().trim(), "in the air");
    // Those ids and that text are the same prompt.
    let (by_text, by_ids) = (
        run(&engine, limited(Request::new(text), 6)),
        run(&engine, limited(Request::new(Input::Tokens(ids)), 6)),
    );
    assert_eq!(by_text.content(), by_ids.content());
}
