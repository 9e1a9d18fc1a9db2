//! Answers being made: from a request's prompts to the engine, and the engine's events back.

use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, OnceLock};
use std::task::{Context, Poll, ready};
use std::time::{Duration, Instant};

use mgm_engine::{
    ChatMessage, Engine, EngineEvent, FinishReason, Input, Part, PromptAccount, Request, Sampling,
    SubmitError, Ticket, TokenInfo,
};
use tokio::sync::mpsc;

use crate::app::{App, Model};
use crate::around::Caller;
use crate::budget::Share;
use crate::easel::Sketch;
use crate::error::ApiError;
use crate::painter::PaintProgress;
use crate::pictures::{self, PictureFile};
use crate::wire::answer::Usage;
use crate::wire::message::{Piece, Turn};

/// Events that may wait for a client that reads slowly.
const WAITING_EVENTS: usize = 1024;
/// Text that is rendered and tokenised without asking for one of the places for heavy work, in bytes.
const LIGHT_TEXT: usize = 32 << 10;
/// Most bytes of text for each token of the context; ordinary text has about four.
const BYTES_PER_TOKEN: usize = 64;

/// What is asked of the model.
pub(crate) enum Asked {
    /// The next turn of a conversation.
    Chat(Vec<Turn>),
    /// To go on with each of these.
    Inputs(Vec<Input>),
}

/// How it is asked.
pub(crate) struct Order {
    pub(crate) asked: Asked,
    pub(crate) sampling: Sampling,
    /// Answers to each prompt.
    pub(crate) choices: usize,
    /// The request's share of memory, held until the engine has what it needs.
    pub(crate) share: Share,
}

/// What has happened to an answer. Answers are numbered through all prompts.
#[derive(Debug)]
pub(crate) enum Update {
    /// The prompt with this number is being read.
    Started { prompt: usize },
    /// More text, and the token it came with.
    Token {
        choice: usize,
        text: String,
        token: Option<TokenInfo>,
    },
    /// An answer's picture is being painted; without progress it waits for those before it.
    Painting {
        choice: usize,
        sketch: Sketch,
        progress: Option<PaintProgress>,
    },
    /// An answer's picture is finished.
    Painted {
        choice: usize,
        sketch: Sketch,
        png: Vec<u8>,
    },
    /// An answer is complete.
    Finished { choice: usize, reason: &'static str },
}

/// Answers being made. Dropping it ends them.
pub(crate) struct Generation {
    events: mpsc::Receiver<(usize, EngineEvent)>,
    tickets: Vec<Arc<OnceLock<Ticket>>>,
    /// Raised when events were lost because nobody took them.
    lost: Arc<AtomicBool>,
    choices: usize,
    unfinished: usize,
    record: Record,
}

/// What the log and the answer say about a generation.
struct Record {
    app: Arc<App>,
    request: Arc<str>,
    asked_at: Instant,
    first_token: Option<Duration>,
    prompts: Vec<PromptAccount>,
    completion_tokens: usize,
    /// How it ended; a client that leaves ends it without a word.
    outcome: &'static str,
    /// The answers, if they are to be logged.
    content: Option<Vec<String>>,
}

/// Gives an order to the engine.
pub(crate) async fn start(
    app: &Arc<App>,
    model: &Model,
    caller: &Caller,
    order: Order,
) -> Result<Generation, ApiError> {
    let (turns, inputs) = match order.asked {
        Asked::Chat(turns) => (turns, Vec::new()),
        Asked::Inputs(inputs) => (Vec::new(), inputs),
    };
    let limits = &app.options.limits;
    let addresses = turns
        .iter()
        .flat_map(|turn| &turn.pieces)
        .filter(|piece| matches!(piece, Piece::Picture(_)));
    let pictures = addresses.count();
    if pictures > limits.images {
        return Err(ApiError::invalid(
            "messages",
            format!(
                "{pictures} pictures: at most {} are looked at in one request",
                limits.images
            ),
        )
        .with_code("too_many_images"));
    }
    let (text, chat) = obtain_pictures(app, turns).await?;
    if app.options.log_content {
        log_prompt(&caller.id, &chat, &inputs);
    }

    let text = text + text_length(&inputs);
    check_length(text, model)?;
    let heavy = pictures > 0 || text > LIGHT_TEXT;
    let permit = match heavy {
        true => Some(Arc::clone(&app.decoders).acquire_owned().await),
        false => None,
    };
    let (app, engine, caller) = (Arc::clone(app), model.engine.clone(), caller.clone());
    let (sampling, choices) = (order.sampling, order.choices);
    let share = order.share;
    let submitted = tokio::task::spawn_blocking(move || {
        let _held = (permit, share);
        let inputs = match chat.is_empty() {
            true => inputs,
            false => vec![Input::Chat {
                messages: messages(&app, &engine, chat)?,
                template: None,
            }],
        };
        submit(&app, &engine, &caller, inputs, &sampling, choices)
    });
    submitted
        .await
        .map_err(|_| ApiError::internal("the request could not be prepared"))?
}

/// Refuses a text that is far too long: tokenising megabytes only to find that out would keep others waiting.
pub(crate) fn check_length(text: usize, model: &Model) -> Result<(), ApiError> {
    let limit = model.info.context_limit.saturating_mul(BYTES_PER_TOKEN);
    if text <= limit {
        return Ok(());
    }
    Err(ApiError::malformed(format!(
        "{text} bytes of text are too many for this model: at most {limit} are read"
    ))
    .with_code("context_length_exceeded"))
}

/// A turn whose pictures are at hand.
struct FilledTurn {
    role: mgm_engine::Role,
    pieces: Vec<FilledPiece>,
}

enum FilledPiece {
    Text(String),
    Picture(PictureFile),
}

/// Gets hold of all pictures; gives the length of the text, too.
async fn obtain_pictures(
    app: &Arc<App>,
    turns: Vec<Turn>,
) -> Result<(usize, Vec<FilledTurn>), ApiError> {
    let mut length = 0;
    let mut filled = Vec::with_capacity(turns.len());
    for turn in turns {
        let mut pieces = Vec::with_capacity(turn.pieces.len());
        for piece in turn.pieces {
            pieces.push(match piece {
                Piece::Text(text) => {
                    length += text.len();
                    FilledPiece::Text(text)
                }
                Piece::Picture(address) => {
                    FilledPiece::Picture(pictures::obtain(app, address).await?)
                }
            });
        }
        filled.push(FilledTurn {
            role: turn.role,
            pieces,
        });
    }
    Ok((length, filled))
}

/// Bytes of text, or token ids, in inputs.
pub(crate) fn text_length(inputs: &[Input]) -> usize {
    let part = |part: &Part| match part {
        Part::Text(text) => text.len(),
        Part::Image(_) => 0,
    };
    let length = |input: &Input| match input {
        Input::Text(text) => text.len(),
        Input::Tokens(ids) => ids.len(),
        Input::Chat { messages, .. } => {
            messages.iter().flat_map(|turn| &turn.parts).map(part).sum()
        }
    };
    inputs.iter().map(length).sum()
}

/// Decodes pictures and makes them ready for the model.
fn messages(
    app: &App,
    engine: &Engine,
    turns: Vec<FilledTurn>,
) -> Result<Vec<ChatMessage>, ApiError> {
    let mut messages = Vec::with_capacity(turns.len());
    for turn in turns {
        let mut parts = Vec::with_capacity(turn.pieces.len());
        for piece in turn.pieces {
            parts.push(match piece {
                FilledPiece::Text(text) => Part::Text(text),
                FilledPiece::Picture(file) => Part::Image(picture(app, engine, file)?),
            });
        }
        messages.push(ChatMessage {
            role: turn.role,
            parts,
        });
    }
    Ok(messages)
}

/// A picture made ready for the model.
fn picture(app: &App, engine: &Engine, file: PictureFile) -> Result<mgm_engine::Picture, ApiError> {
    let param = file.param.clone();
    let bytes = file.into_bytes(app.options.limits.image_bytes)?;
    engine
        .picture_from_file(&bytes, &decoding_limits(app))
        .map_err(|error| refusal(error).with_param(param))
}

/// The limits of the picture decoder.
pub(crate) fn decoding_limits(app: &App) -> mgm_image::Limits {
    mgm_image::Limits {
        max_bytes: app.options.limits.image_bytes,
        max_pixels: app.options.limits.image_pixels,
    }
}

fn submit(
    app: &Arc<App>,
    engine: &Engine,
    caller: &Caller,
    inputs: Vec<Input>,
    sampling: &Sampling,
    choices: usize,
) -> Result<Generation, ApiError> {
    let prompts = inputs.len();
    let (sender, events) = mpsc::channel(WAITING_EVENTS);
    let content = app
        .options
        .log_content
        .then(|| vec![String::new(); prompts * choices]);
    let mut generation = Generation {
        events,
        tickets: Vec::with_capacity(prompts),
        lost: Arc::default(),
        choices,
        unfinished: prompts * choices,
        record: Record {
            app: Arc::clone(app),
            request: Arc::clone(&caller.id),
            asked_at: caller.arrived,
            first_token: None,
            prompts: vec![PromptAccount::default(); prompts],
            completion_tokens: 0,
            outcome: "client left",
            content,
        },
    };
    let deadline = caller.arrived + app.options.limits.request_timeout;
    for (index, input) in inputs.into_iter().enumerate() {
        let ticket: Arc<OnceLock<Ticket>> = Arc::default();
        generation.tickets.push(Arc::clone(&ticket));
        let (sender, lost) = (sender.clone(), Arc::clone(&generation.lost));
        let slow = Arc::clone(app);
        let request = Request {
            input,
            sampling: sampling.clone(),
            choices,
            deadline: Some(deadline),
            client: caller.client,
        };
        // Runs on the engine's thread: whoever does not take his events must not keep the others waiting.
        let submitted = engine.submit_with(request, move |event| {
            if lost.load(Ordering::SeqCst) {
                return;
            }
            if let Err(mpsc::error::TrySendError::Full(_)) = sender.try_send((index, event)) {
                lost.store(true, Ordering::SeqCst);
                slow.metrics
                    .clients_too_slow
                    .fetch_add(1, Ordering::Relaxed);
                if let Some(ticket) = ticket.get() {
                    ticket.cancel();
                }
            }
        });
        match submitted {
            Ok(submitted) => {
                let _ = generation.tickets[index].set(submitted);
            }
            Err(error) => {
                let error = refusal(error);
                generation.record.outcome = error.code();
                return Err(error);
            }
        }
    }
    Ok(generation)
}

/// What the engine's refusal is to a client.
pub(crate) fn refusal(error: SubmitError) -> ApiError {
    let message = error.to_string();
    match error {
        SubmitError::QueueFull { .. } | SubmitError::PicturesFull { .. } => {
            ApiError::overloaded(message)
        }
        SubmitError::PromptTooLong { .. } => {
            ApiError::malformed(message).with_code("context_length_exceeded")
        }
        SubmitError::MemoryTooSmall { .. } => ApiError::invalid("max_tokens", message),
        SubmitError::InvalidOption { name, .. } => ApiError::invalid(name, message),
        SubmitError::InvalidInput { .. } => ApiError::malformed(message),
        SubmitError::NoVision => ApiError::malformed(message).with_code("unsupported_value"),
        SubmitError::BadPicture(_) => ApiError::malformed(message).with_code("invalid_image"),
        SubmitError::ShuttingDown => {
            ApiError::unavailable("shutting_down", "the server is shutting down")
        }
        _ => ApiError::malformed(message),
    }
}

impl Generation {
    /// The next thing that happens; `None` after the last answer is complete. After an error there is nothing more.
    pub(crate) async fn next(&mut self) -> Option<Result<Update, ApiError>> {
        std::future::poll_fn(|context| self.poll_next(context)).await
    }

    /// As [`Self::next`].
    pub(crate) fn poll_next(
        &mut self,
        context: &mut Context<'_>,
    ) -> Poll<Option<Result<Update, ApiError>>> {
        loop {
            if self.unfinished == 0 {
                return Poll::Ready(None);
            }
            let event = ready!(self.events.poll_recv(context));
            let update = match event {
                Some((prompt, event)) => match self.update(prompt, event) {
                    Some(update) => update,
                    None => continue,
                },
                None if self.lost.load(Ordering::SeqCst) => Err(ApiError::request_timeout(
                    "the answer was not read fast enough and was given up",
                )),
                None => Err(ApiError::internal("the engine gave the request up")),
            };
            if let Err(error) = &update {
                self.record.outcome = error.code();
                self.unfinished = 0;
            }
            return Poll::Ready(Some(update));
        }
    }

    fn update(&mut self, prompt: usize, event: EngineEvent) -> Option<Result<Update, ApiError>> {
        let record = &mut self.record;
        let number = |choice| prompt * self.choices + choice;
        Some(match event {
            EngineEvent::Queued { .. } => return None,
            EngineEvent::Started { prompt: account } => {
                record.prompts[prompt] = account;
                Ok(Update::Started { prompt })
            }
            EngineEvent::Token {
                choice,
                text,
                token,
            } => {
                record
                    .first_token
                    .get_or_insert_with(|| record.asked_at.elapsed());
                if let Some(content) = &mut record.content {
                    content[number(choice)].push_str(&text);
                }
                Ok(Update::Token {
                    choice: number(choice),
                    text,
                    token,
                })
            }
            EngineEvent::Finished {
                choice,
                reason,
                usage,
                ..
            } => {
                record.completion_tokens += usage.new_tokens;
                record.prompts[prompt] = usage.prompt;
                let reason = match reason {
                    FinishReason::Stop => "stop",
                    FinishReason::Length => "length",
                    FinishReason::Deadline => {
                        let limit = record.app.options.limits.request_timeout;
                        return Some(Err(ApiError::unavailable(
                            "request_timeout",
                            format!("the answer took longer than {} s", limit.as_secs()),
                        )));
                    }
                    FinishReason::Shutdown => {
                        return Some(Err(ApiError::unavailable(
                            "shutting_down",
                            "the server shut down before the answer was complete",
                        )));
                    }
                    // Only this side cancels, and then it says why by other means.
                    FinishReason::Cancelled => return None,
                };
                self.unfinished = self.unfinished.saturating_sub(1);
                if self.unfinished == 0 {
                    record.outcome = "finished";
                }
                Ok(Update::Finished {
                    choice: number(choice),
                    reason,
                })
            }
            EngineEvent::Failed { error } => {
                tracing::error!(request = &*record.request, error, "the model failed");
                Err(ApiError::internal("the model failed at this request"))
            }
        })
    }

    /// What all answers cost so far.
    pub(crate) fn usage(&self) -> Usage {
        let mut usage = Usage::default();
        for prompt in &self.record.prompts {
            usage.add(&Usage::new(*prompt, 0));
        }
        usage.completion_tokens = self.record.completion_tokens;
        usage.total_tokens += usage.completion_tokens;
        usage
    }
}

impl Drop for Generation {
    fn drop(&mut self) {
        for ticket in self.tickets.iter().filter_map(|ticket| ticket.get()) {
            ticket.cancel();
        }
        let record = &self.record;
        let usage = self.usage();
        tracing::info!(
            request = &*record.request,
            outcome = record.outcome,
            prompt_tokens = usage.prompt_tokens,
            cached_tokens = usage.prompt_tokens_details.cached_tokens,
            image_tokens = usage.prompt_tokens_details.image_tokens,
            completion_tokens = usage.completion_tokens,
            first_token_ms = record.first_token.map(|time| time.as_millis() as u64),
            total_ms = record.asked_at.elapsed().as_millis() as u64,
            "generation"
        );
        for (choice, text) in record.content.iter().flatten().enumerate() {
            tracing::info!(request = &*record.request, choice, text, "answer");
        }
    }
}

/// The prompt in the log, only where the operator asked for it. Pictures are named, not shown.
fn log_prompt(request: &str, turns: &[FilledTurn], inputs: &[Input]) {
    for turn in turns {
        let role = format!("{:?}", turn.role).to_lowercase();
        for piece in &turn.pieces {
            match piece {
                FilledPiece::Text(text) => tracing::info!(request, role, text, "prompt"),
                FilledPiece::Picture(file) => {
                    tracing::info!(request, role, picture = file.param, "prompt");
                }
            }
        }
    }
    for input in inputs {
        match input {
            Input::Text(text) => tracing::info!(request, text, "prompt"),
            Input::Tokens(ids) => tracing::info!(request, tokens = ?ids, "prompt"),
            Input::Chat { .. } => {}
        }
    }
}
