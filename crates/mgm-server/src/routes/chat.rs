//! `POST /v1/chat/completions`.

use std::sync::Arc;
use std::time::{SystemTime, UNIX_EPOCH};

use axum::Extension;
use axum::extract::{Request, State};
use axum::response::Response;
use mgm_engine::{Engine, TokenInfo};

use crate::app::{App, Model};
use crate::around::{Caller, json};
use crate::body::read_json;
use crate::easel::{self, Answers, Easel};
use crate::error::ApiError;
use crate::generation::{self, Asked, Order, Update};
use crate::ids;
use crate::painting;
use crate::sse::{self, EventWriter, Events};
use crate::wire::answer::{
    AssistantMessage, ChatChoice, ChatChunk, ChatCompletion, ChatLogprobs, ChunkChoice,
    ContentLogprob, Delta, PaintedImage, Painting, TokenLogprob, Usage,
};
use crate::wire::chat::{ChatRequest, PaintingOptions};

/// Which program made an answer.
pub(super) const FINGERPRINT: &str = concat!("mgm-", env!("CARGO_PKG_VERSION"));

/// What all pieces of an answer say.
pub(super) struct Head {
    pub(super) id: String,
    pub(super) created: u64,
    pub(super) model: String,
}

impl Head {
    pub(super) fn new(prefix: &str, model: String) -> Self {
        let now = SystemTime::now().duration_since(UNIX_EPOCH);
        Self {
            id: format!("{prefix}-{}", ids::unique()),
            created: now.unwrap_or_default().as_secs(),
            model,
        }
    }
}

/// Answers a conversation.
pub(super) async fn complete(
    State(app): State<Arc<App>>,
    Extension(caller): Extension<Caller>,
    request: Request,
) -> Result<Response, ApiError> {
    let limits = &app.options.limits;
    let (mut request, share): (ChatRequest, _) = read_json(request, limits, &app.bodies).await?;
    let model = app.model_named(request.shared.model.as_deref())?;
    let logprobs = request.logprobs()?;
    let sampling = request
        .shared
        .sampling(logprobs, &app.options.defaults, limits)?;
    let choices = request.shared.choices(1, limits)?;
    let mut turns = request.turns()?;
    let easel = match request.painting()? {
        Some(options) => Some(easel(&app, model, &caller, &options, sampling.seed)?),
        None => None,
    };
    if easel.is_some() {
        easel::ask_for_picture(&mut turns);
    }
    let order = Order {
        asked: Asked::Chat(turns),
        sampling,
        choices,
        share,
    };
    let name = request.shared.model.take();
    let head = Head::new("chatcmpl", name.unwrap_or_else(|| model.info.name.clone()));
    let generation = generation::start(&app, model, &caller, order).await?;
    let answers = match easel {
        Some(easel) => Answers::painted(generation, choices, easel),
        None => generation.into(),
    };
    let engine = logprobs.map(|_| model.engine.clone());
    if request.shared.stream {
        let writer = Writer {
            head,
            choices,
            engine,
            usage: request.shared.include_usage(),
        };
        return Ok(sse::response(answers, writer, app.metrics.streams.hold()));
    }
    collect(answers, head, choices, engine).await
}

/// What is needed to paint the answers' pictures.
fn easel(
    app: &Arc<App>,
    model: &Model,
    caller: &Caller,
    options: &PaintingOptions,
    seed: Option<u64>,
) -> Result<Easel, ApiError> {
    let Some(painter) = &model.painter else {
        return Err(ApiError::invalid(
            "modalities",
            "`image` in `modalities`: this server has no model that paints, it answers in text only",
        )
        .with_code("no_painter"));
    };
    let own_seed = options.seed.map(|seed| seed as u64);
    let preview_every = options.preview_every.unwrap_or(0);
    Ok(Easel {
        app: Arc::clone(app),
        painter: Arc::clone(painter),
        request: Arc::clone(&caller.id),
        size: painting::size(&**painter, options.size.as_deref(), "painting.size")?,
        seed: own_seed.or(seed).unwrap_or_else(ids::seed),
        preview_every: usize::try_from(preview_every).unwrap_or(usize::MAX),
        place: painting::take_place(app)?,
    })
}

/// An answer in the making.
struct Collected {
    text: String,
    logprobs: Option<ChatLogprobs>,
    images: Vec<PaintedImage>,
    finish_reason: &'static str,
}

async fn collect(
    mut generation: Answers,
    head: Head,
    choices: usize,
    engine: Option<Engine>,
) -> Result<Response, ApiError> {
    let empty = || Collected {
        text: String::new(),
        logprobs: engine.as_ref().map(|_| no_logprobs()),
        images: Vec::new(),
        finish_reason: "stop",
    };
    let mut answers: Vec<Collected> = std::iter::repeat_with(empty).take(choices).collect();
    while let Some(update) = generation.next().await {
        match update? {
            Update::Started { .. } | Update::Painting { .. } => {}
            Update::Token {
                choice,
                text,
                token,
            } => {
                let answer = &mut answers[choice];
                answer.text.push_str(&text);
                if let (Some(engine), Some(logprobs), Some(token)) =
                    (&engine, &mut answer.logprobs, &token)
                {
                    logprobs.content.extend(logprob(engine, token));
                }
            }
            Update::Painted {
                choice,
                sketch,
                png,
            } => answers[choice]
                .images
                .push(PaintedImage::new(&png, &sketch)),
            Update::Finished { choice, reason } => answers[choice].finish_reason = reason,
        }
    }
    let choices = answers.into_iter().enumerate();
    Ok(json(&ChatCompletion {
        id: &head.id,
        object: "chat.completion",
        created: head.created,
        model: &head.model,
        choices: choices
            .map(|(index, answer)| ChatChoice {
                index,
                message: AssistantMessage {
                    role: "assistant",
                    content: answer.text,
                    refusal: None,
                    images: answer.images,
                },
                logprobs: answer.logprobs,
                finish_reason: answer.finish_reason,
            })
            .collect(),
        usage: generation.usage(),
        system_fingerprint: FINGERPRINT,
    }))
}

fn no_logprobs() -> ChatLogprobs {
    ChatLogprobs {
        content: Vec::new(),
        refusal: None,
    }
}

fn logprob(engine: &Engine, token: &TokenInfo) -> Option<ContentLogprob> {
    let one = |id, logprob| TokenLogprob {
        token: engine.token_text(id),
        logprob,
        bytes: engine.token_bytes(id),
    };
    Some(ContentLogprob {
        token: one(token.id, token.logprob?),
        top_logprobs: token
            .top
            .iter()
            .map(|(id, logprob)| one(*id, *logprob))
            .collect(),
    })
}

/// Streams chat answers.
struct Writer {
    head: Head,
    choices: usize,
    /// There when log probabilities are wanted.
    engine: Option<Engine>,
    usage: bool,
}

impl Writer {
    fn send(&self, choices: &[ChunkChoice], usage: Option<Usage>, events: &mut Events) {
        events.send(&ChatChunk {
            id: &self.head.id,
            object: "chat.completion.chunk",
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
            Update::Started { .. } => {
                for index in 0..self.choices {
                    let delta = Delta {
                        role: Some("assistant"),
                        content: Some(""),
                        refusal: Some(None),
                        ..Delta::default()
                    };
                    self.send(&[ChunkChoice::new(index, delta)], None, events);
                }
            }
            Update::Token {
                choice,
                text,
                token,
            } => {
                let logprobs = match (&self.engine, &token) {
                    (Some(engine), Some(token)) => {
                        logprob(engine, token).map(|logprob| ChatLogprobs {
                            content: vec![logprob],
                            refusal: None,
                        })
                    }
                    _ => None,
                };
                if text.is_empty() && logprobs.is_none() {
                    return;
                }
                let delta = Delta {
                    content: Some(&text),
                    ..Delta::default()
                };
                let choice = ChunkChoice {
                    logprobs,
                    ..ChunkChoice::new(choice, delta)
                };
                self.send(&[choice], None, events);
            }
            Update::Painting {
                choice,
                sketch,
                progress,
            } => {
                let choice = ChunkChoice {
                    painting: Some(Painting::in_progress(&sketch, progress.as_ref())),
                    ..ChunkChoice::new(choice, Delta::default())
                };
                self.send(&[choice], None, events);
            }
            Update::Painted {
                choice,
                sketch,
                png,
            } => {
                let delta = Delta {
                    images: vec![PaintedImage::new(&png, &sketch)],
                    ..Delta::default()
                };
                self.send(&[ChunkChoice::new(choice, delta)], None, events);
            }
            Update::Finished { choice, reason } => {
                let choice = ChunkChoice {
                    finish_reason: Some(reason),
                    ..ChunkChoice::new(choice, Delta::default())
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
