//! `POST /tokenize` and `POST /detokenize`, with vLLM's fields.

use std::sync::Arc;

use axum::extract::{Request, State};
use axum::response::Response;
use mgm_engine::{ChatMessage, Input, Part};
use serde::Serialize;
use serde_json::json;

use crate::app::App;
use crate::around::json;
use crate::body::read_json;
use crate::error::ApiError;
use crate::generation::{check_length, refusal, text_length};
use crate::wire::message::{Piece, Turn};
use crate::wire::tokens::{DetokenizeRequest, TokenizeRequest};

#[derive(Serialize)]
struct Tokens {
    count: usize,
    max_model_len: usize,
    tokens: Vec<u32>,
    token_strs: Option<Vec<String>>,
}

/// Token ids of a text or a conversation.
pub(super) async fn tokenize(
    State(app): State<Arc<App>>,
    request: Request,
) -> Result<Response, ApiError> {
    let (request, share): (TokenizeRequest, _) =
        read_json(request, &app.options.limits, &app.bodies).await?;
    let model = app.model_named(request.model.as_deref())?;
    let (input, parse_special) = match (request.prompt, request.messages) {
        (Some(prompt), None) => (Input::Text(prompt), true),
        (None, Some(messages)) => (chat(messages.turns()?)?, false),
        _ => {
            return Err(ApiError::invalid(
                "prompt",
                "expected either `prompt` or `messages`",
            ));
        }
    };
    check_length(text_length(std::slice::from_ref(&input)), model)?;
    let add_special = request.add_special_tokens.unwrap_or(true);
    let permit = Arc::clone(&app.decoders).acquire_owned().await;
    let engine = model.engine.clone();
    let strings = request.return_token_strs;
    let tokens = tokio::task::spawn_blocking(move || {
        let _held = (permit, share);
        let tokens = engine.tokenize(&input, parse_special, add_special)?;
        // There are no pictures, so there are no places for them.
        let ids: Vec<u32> = tokens
            .ids
            .into_iter()
            .filter_map(|id| u32::try_from(id).ok())
            .collect();
        let strings = strings.then(|| ids.iter().map(|id| engine.token_text(*id)).collect());
        Ok((ids, strings))
    });
    let (tokens, token_strs) = tokens
        .await
        .map_err(|_| ApiError::internal("tokenising failed"))?
        .map_err(refusal)?;
    Ok(json(&Tokens {
        count: tokens.len(),
        max_model_len: model.info.context_limit,
        tokens,
        token_strs,
    }))
}

/// A conversation without pictures.
fn chat(turns: Vec<Turn>) -> Result<Input, ApiError> {
    let part = |piece| match piece {
        Piece::Text(text) => Ok(Part::Text(text)),
        Piece::Picture(picture) => Err(ApiError::unsupported(
            picture.param,
            "pictures have no token ids: leave them out",
        )),
    };
    let message = |turn: Turn| {
        Ok(ChatMessage {
            role: turn.role,
            parts: turn
                .pieces
                .into_iter()
                .map(part)
                .collect::<Result<_, _>>()?,
        })
    };
    Ok(Input::Chat {
        messages: turns.into_iter().map(message).collect::<Result<_, _>>()?,
        template: None,
    })
}

/// Text of token ids.
pub(super) async fn detokenize(
    State(app): State<Arc<App>>,
    request: Request,
) -> Result<Response, ApiError> {
    let (request, share): (DetokenizeRequest, _) =
        read_json(request, &app.options.limits, &app.bodies).await?;
    let model = app.model_named(request.model.as_deref())?;
    let Some(tokens) = request.tokens else {
        return Err(ApiError::invalid("tokens", "a request without `tokens`"));
    };
    let permit = Arc::clone(&app.decoders).acquire_owned().await;
    let engine = model.engine.clone();
    let text = tokio::task::spawn_blocking(move || {
        let _held = (permit, share);
        engine.detokenize(&tokens.0, false)
    });
    let text = text
        .await
        .map_err(|_| ApiError::internal("detokenising failed"))?
        .map_err(|error| refusal(error).with_param("tokens"))?;
    Ok(json(&json!({"prompt": text})))
}
