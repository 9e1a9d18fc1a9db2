//! `POST /v1/completions`.

use std::sync::Arc;

use axum::Extension;
use axum::extract::{Request, State};
use axum::response::Response;
use mgm_engine::{Engine, Input, TokenInfo};
use serde_json::{Map, Value};

use crate::app::App;
use crate::around::{Caller, json};
use crate::body::read_json;
use crate::error::ApiError;
use crate::generation::{self, Asked, Generation, Order, Update, refusal};
use crate::routes::chat::{FINGERPRINT, Head};
use crate::sse::{self, EventWriter, Events};
use crate::wire::answer::{TextChoice, TextCompletion, TextLogprobs, Usage};
use crate::wire::completion::CompletionRequest;

/// Goes on with texts.
pub(super) async fn complete(
    State(app): State<Arc<App>>,
    Extension(caller): Extension<Caller>,
    request: Request,
) -> Result<Response, ApiError> {
    let limits = &app.options.limits;
    let (mut request, share): (CompletionRequest, _) =
        read_json(request, limits, &app.bodies).await?;
    let model = app.model_named(request.shared.model.as_deref())?;
    let logprobs = request.logprobs()?;
    let mut sampling = request
        .shared
        .sampling(logprobs, &app.options.defaults, limits)?;
    // Here the client writes the whole prompt, markup included.
    sampling.parse_special = true;
    let inputs = request.inputs()?;
    let choices = request.shared.choices(inputs.len(), limits)?;
    let echo = match request.echo {
        true => Some(echoes(&model.engine, &inputs)?),
        false => None,
    };
    let prompts = inputs.len();
    let order = Order {
        asked: Asked::Inputs(inputs),
        sampling,
        choices,
        share,
    };
    let name = request.shared.model.take();
    let head = Head::new("cmpl", name.unwrap_or_else(|| model.info.name.clone()));
    let generation = generation::start(&app, model, &caller, order).await?;
    let engine = logprobs.map(|_| model.engine.clone());
    let offsets = vec![0; prompts * choices];
    if request.shared.stream {
        let writer = Writer {
            head,
            choices,
            echo,
            engine,
            offsets,
            usage: request.shared.include_usage(),
        };
        return Ok(sse::response(
            generation.into(),
            writer,
            app.metrics.streams.hold(),
        ));
    }
    collect(generation, head, choices, echo, engine, offsets).await
}

/// The prompts as texts.
fn echoes(engine: &Engine, inputs: &[Input]) -> Result<Vec<String>, ApiError> {
    let echo = |input: &Input| match input {
        Input::Text(text) => Ok(text.clone()),
        Input::Tokens(ids) => engine
            .detokenize(ids, false)
            .map_err(|error| refusal(error).with_param("prompt")),
        Input::Chat { .. } => Ok(String::new()),
    };
    inputs.iter().map(echo).collect()
}

async fn collect(
    mut generation: Generation,
    head: Head,
    choices: usize,
    echo: Option<Vec<String>>,
    engine: Option<Engine>,
    offsets: Vec<usize>,
) -> Result<Response, ApiError> {
    let mut texts: Vec<String> = (0..offsets.len())
        .map(|choice| match &echo {
            Some(echo) => echo[choice / choices].clone(),
            None => String::new(),
        })
        .collect();
    let mut logprobs = vec![engine.as_ref().map(|_| TextLogprobs::default()); texts.len()];
    let mut reasons = vec!["stop"; texts.len()];
    while let Some(update) = generation.next().await {
        match update? {
            // Texts are gone on with, not painted.
            Update::Started { .. } | Update::Painting { .. } | Update::Painted { .. } => {}
            Update::Token {
                choice,
                text,
                token,
            } => {
                if let (Some(engine), Some(logprobs), Some(token)) =
                    (&engine, &mut logprobs[choice], &token)
                {
                    add(logprobs, engine, token, texts[choice].chars().count());
                }
                texts[choice].push_str(&text);
            }
            Update::Finished { choice, reason } => reasons[choice] = reason,
        }
    }
    let choices: Vec<TextChoice> = texts
        .iter()
        .zip(logprobs)
        .zip(reasons)
        .enumerate()
        .map(|(index, ((text, logprobs), reason))| TextChoice {
            index,
            text,
            logprobs,
            finish_reason: Some(reason),
        })
        .collect();
    Ok(json(&TextCompletion {
        id: &head.id,
        object: "text_completion",
        created: head.created,
        model: &head.model,
        system_fingerprint: FINGERPRINT,
        choices: &choices,
        usage: Some(Some(generation.usage())),
    }))
}

/// Adds a token that begins `offset` characters into its text.
fn add(logprobs: &mut TextLogprobs, engine: &Engine, token: &TokenInfo, offset: usize) {
    let Some(logprob) = token.logprob else {
        return;
    };
    logprobs.tokens.push(engine.token_text(token.id));
    logprobs.token_logprobs.push(logprob);
    logprobs.text_offset.push(offset);
    let top: Map<String, Value> = token
        .top
        .iter()
        .map(|(id, logprob)| (engine.token_text(*id), Value::from(*logprob)))
        .collect();
    logprobs.top_logprobs.push(top);
}

/// Streams texts.
struct Writer {
    head: Head,
    /// Answers to each prompt.
    choices: usize,
    /// The prompts, until they have been repeated.
    echo: Option<Vec<String>>,
    /// There when log probabilities are wanted.
    engine: Option<Engine>,
    /// Characters of each answer sent so far.
    offsets: Vec<usize>,
    usage: bool,
}

impl Writer {
    fn send(&self, choices: &[TextChoice], usage: Option<Usage>, events: &mut Events) {
        events.send(&TextCompletion {
            id: &self.head.id,
            object: "text_completion",
            created: self.head.created,
            model: &self.head.model,
            system_fingerprint: FINGERPRINT,
            choices,
            usage: self.usage.then_some(usage),
        });
    }
}

impl EventWriter for Writer {
    fn update(&mut self, update: Update, events: &mut Events) {
        match update {
            Update::Started { prompt } => {
                let Some(text) = self.echo.as_ref().map(|echo| echo[prompt].clone()) else {
                    return;
                };
                for index in prompt * self.choices..(prompt + 1) * self.choices {
                    self.offsets[index] += text.chars().count();
                    let choice = TextChoice {
                        index,
                        text: &text,
                        logprobs: None,
                        finish_reason: None,
                    };
                    self.send(&[choice], None, events);
                }
            }
            Update::Token {
                choice: index,
                text,
                token,
            } => {
                let logprobs = match (&self.engine, &token) {
                    (Some(engine), Some(token)) => {
                        let mut logprobs = TextLogprobs::default();
                        add(&mut logprobs, engine, token, self.offsets[index]);
                        Some(logprobs)
                    }
                    _ => None,
                };
                if text.is_empty() && logprobs.is_none() {
                    return;
                }
                self.offsets[index] += text.chars().count();
                let choice = TextChoice {
                    index,
                    text: &text,
                    logprobs,
                    finish_reason: None,
                };
                self.send(&[choice], None, events);
            }
            Update::Painting { .. } | Update::Painted { .. } => {}
            Update::Finished {
                choice: index,
                reason,
            } => {
                let choice = TextChoice {
                    index,
                    text: "",
                    logprobs: None,
                    finish_reason: Some(reason),
                };
                self.send(&[choice], None, events);
            }
        }
    }

    fn finish(&mut self, usage: Usage, events: &mut Events) {
        if self.usage {
            self.send(&[], Some(usage), events);
        }
    }
}
