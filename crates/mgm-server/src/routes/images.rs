//! `POST /v1/images/generations`.

use std::sync::Arc;
use std::time::{SystemTime, UNIX_EPOCH};

use axum::Extension;
use axum::extract::{Request, State};
use axum::response::Response;
use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use serde::Serialize;

use crate::app::{App, model_not_found};
use crate::around::{Caller, json};
use crate::body::read_json;
use crate::error::ApiError;
use crate::ids;
use crate::painter::{PaintOrder, Painter};
use crate::painting::{self, PaintEvent, Painting};
use crate::wire::tokens::PaintRequest;

/// Longest prompt in characters, as in OpenAI's API for its oldest model.
const LONGEST_PROMPT: usize = 4000;
/// Most pictures in one request.
const PICTURES: u64 = 4;

#[derive(Serialize)]
struct Painted {
    created: u64,
    data: Vec<Picture>,
    output_format: &'static str,
    size: String,
}

#[derive(Serialize)]
struct Picture {
    b64_json: String,
    seed: u64,
}

/// Paints pictures.
pub(super) async fn generate(
    State(app): State<Arc<App>>,
    Extension(caller): Extension<Caller>,
    request: Request,
) -> Result<Response, ApiError> {
    let (request, _share): (PaintRequest, _) =
        read_json(request, &app.options.limits, &app.bodies).await?;
    let model = app.model()?;
    let Some(painter) = &model.painter else {
        return Err(ApiError::not_found(
            "no_painter",
            "this server has no model that paints: it answers in text only",
        ));
    };
    if let Some(name) = &request.model
        && name != painter.name()
        && !app.has_name(model, name)
    {
        return Err(model_not_found(name));
    }
    let orders = orders(&request, &**painter)?;
    let size = orders.first().map(|order| order.size).unwrap_or_default();
    let place = painting::take_place(&app)?;
    let mut data = Vec::with_capacity(orders.len());
    for order in orders {
        let seed = order.seed;
        let mut painting = Painting::start(&app, painter, &place, &caller.id, order);
        let png = loop {
            if let PaintEvent::Done(painted) = painting.next().await {
                break painted?;
            }
        };
        data.push(Picture {
            b64_json: STANDARD.encode(png),
            seed,
        });
    }
    let now = SystemTime::now().duration_since(UNIX_EPOCH);
    Ok(json(&Painted {
        created: now.unwrap_or_default().as_secs(),
        data,
        output_format: "png",
        size: painting::size_name(size),
    }))
}

fn orders(request: &PaintRequest, painter: &dyn Painter) -> Result<Vec<PaintOrder>, ApiError> {
    request.refusals.check()?;
    let prompt = request.prompt.as_deref().unwrap_or_default().trim();
    if prompt.is_empty() {
        return Err(ApiError::invalid("prompt", "a request without a `prompt`"));
    }
    if prompt.chars().count() > LONGEST_PROMPT {
        return Err(ApiError::invalid(
            "prompt",
            format!("the prompt is longer than {LONGEST_PROMPT} characters"),
        ));
    }
    let count = request.n.unwrap_or(1);
    if !(1..=PICTURES).contains(&count) {
        return Err(ApiError::invalid(
            "n",
            format!("`n` is {count}: expected 1 to {PICTURES}"),
        ));
    }
    let size = painting::size(painter, request.size.as_deref(), "size")?;
    let seed = request.seed.map_or_else(ids::seed, |seed| seed as u64);
    let order = |index| PaintOrder {
        prompt: prompt.into(),
        size,
        seed: seed.wrapping_add(index),
        preview_every: 0,
    };
    Ok((0..count).map(order).collect())
}
