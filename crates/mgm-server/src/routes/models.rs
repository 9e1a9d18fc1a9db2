//! `GET /v1/models` and `GET /v1/models/{model}`.

use std::sync::Arc;

use axum::extract::{Path, State};
use axum::response::Response;
use serde::Serialize;

use crate::app::{App, Model, model_not_found};
use crate::around::json;
use crate::error::ApiError;
use crate::painting::size_name;

/// A model, as OpenAI describes it, and what else is worth knowing.
#[derive(Serialize)]
struct Description<'a> {
    id: &'a str,
    object: &'static str,
    created: u64,
    owned_by: &'static str,
    context_length: usize,
    max_model_len: usize,
    capabilities: Capabilities,
    painter: Option<PainterDescription>,
    defaults: Defaults,
    limits: Limits,
}

#[derive(Serialize)]
struct Capabilities {
    vision: bool,
    mining: bool,
    painting: bool,
}

/// The model that paints.
#[derive(Serialize)]
struct PainterDescription {
    id: String,
    /// The preferred one first.
    sizes: Vec<String>,
}

/// What is used where a request says nothing.
#[derive(Serialize)]
struct Defaults {
    temperature: f32,
    top_p: f32,
    top_k: Option<usize>,
    max_tokens: usize,
}

#[derive(Serialize)]
struct Limits {
    max_tokens: usize,
    choices: usize,
    images: usize,
    image_bytes: u64,
    image_pixels: u64,
    body_bytes: usize,
}

#[derive(Serialize)]
struct List<'a> {
    object: &'static str,
    data: Vec<Description<'a>>,
}

fn describe<'a>(app: &App, model: &Model, name: &'a str) -> Description<'a> {
    let (info, defaults, limits) = (&model.info, &app.options.defaults, &app.options.limits);
    Description {
        id: name,
        object: "model",
        created: model.created,
        owned_by: "mini-gemini",
        context_length: info.context_limit,
        max_model_len: info.context_limit,
        capabilities: Capabilities {
            vision: info.vision.is_some(),
            mining: info.vision.is_some_and(|vision| vision.mines),
            painting: model.painter.is_some(),
        },
        painter: model.painter.as_ref().map(|painter| PainterDescription {
            id: painter.name().into(),
            sizes: painter
                .sizes()
                .iter()
                .map(|size| size_name(*size))
                .collect(),
        }),
        defaults: Defaults {
            temperature: defaults.temperature,
            top_p: defaults.top_p,
            top_k: defaults.top_k,
            max_tokens: defaults.max_tokens.min(limits.max_tokens),
        },
        limits: Limits {
            max_tokens: limits.max_tokens,
            choices: limits.choices,
            images: limits.images,
            image_bytes: limits.image_bytes,
            image_pixels: limits.image_pixels,
            body_bytes: limits.body_bytes,
        },
    }
}

/// All models: one, under each of its names.
pub(super) async fn list(State(app): State<Arc<App>>) -> Result<Response, ApiError> {
    let model = app.model()?;
    let names = app.names(model);
    Ok(json(&List {
        object: "list",
        data: names.map(|name| describe(&app, model, name)).collect(),
    }))
}

/// One model. Names may hold slashes.
pub(super) async fn one(
    State(app): State<Arc<App>>,
    Path(name): Path<String>,
) -> Result<Response, ApiError> {
    let model = app.model()?;
    match app.has_name(model, &name) {
        true => Ok(json(&describe(&app, model, &name))),
        false => Err(model_not_found(&name)),
    }
}
