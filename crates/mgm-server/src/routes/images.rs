//! `POST /v1/images/generations`.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{SystemTime, UNIX_EPOCH};

use axum::extract::{Request, State};
use axum::response::Response;
use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use serde::Serialize;

use crate::app::{App, model_not_found};
use crate::around::json;
use crate::body::read_json;
use crate::error::ApiError;
use crate::painter::{PaintError, PaintOrder, Painter};
use crate::wire::tokens::PaintRequest;

/// Longest prompt in characters, as in OpenAI's API for its oldest model.
const LONGEST_PROMPT: usize = 4000;
/// Most pictures in one request.
const PICTURES: u64 = 4;
/// Requests that may wait while one is painted.
const WAITING: usize = 8;

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
}

/// Raised when nobody waits for the picture any more.
struct RaisedOnDrop(Arc<AtomicBool>);

impl Drop for RaisedOnDrop {
    fn drop(&mut self) {
        self.0.store(true, Ordering::SeqCst);
    }
}

/// Paints pictures.
pub(super) async fn generate(
    State(app): State<Arc<App>>,
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
    let orders = orders(&request, painter.sizes())?;
    let size = orders.first().map(|order| order.size).unwrap_or_default();
    let waiting = app.waiting_to_paint.hold();
    if app.waiting_to_paint.value() > WAITING {
        return Err(ApiError::overloaded(
            "too many pictures are waiting to be painted: try again later",
        ));
    }
    let closed = |_| ApiError::internal("pictures cannot be painted any more");
    let permit = Arc::clone(&app.painting).acquire_owned().await;
    let permit = permit.map_err(closed)?;
    let cancelled = Arc::new(AtomicBool::new(false));
    let _raised = RaisedOnDrop(Arc::clone(&cancelled));
    let painter = Arc::clone(painter);
    let painted = tokio::task::spawn_blocking(move || {
        let _held = (permit, waiting);
        paint(&*painter, &orders, &cancelled)
    });
    let data = painted
        .await
        .map_err(|_| ApiError::internal("painting failed"))??;
    let now = SystemTime::now().duration_since(UNIX_EPOCH);
    Ok(json(&Painted {
        created: now.unwrap_or_default().as_secs(),
        data,
        output_format: "png",
        size: format!("{}x{}", size.0, size.1),
    }))
}

fn orders(request: &PaintRequest, sizes: &[(u32, u32)]) -> Result<Vec<PaintOrder>, ApiError> {
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
    let known = || {
        let names: Vec<String> = sizes.iter().map(|(w, h)| format!("{w}x{h}")).collect();
        names.join(", ")
    };
    let size = match request.size.as_deref() {
        None | Some("auto") => sizes.first().copied(),
        Some(name) => sizes
            .iter()
            .copied()
            .find(|(width, height)| name == format!("{width}x{height}")),
    };
    let size = size.ok_or_else(|| {
        let name = request.size.as_deref().unwrap_or_default();
        ApiError::unsupported(
            "size",
            format!("`size` is {name}: expected auto or one of {}", known()),
        )
    })?;
    let order = |index| PaintOrder {
        prompt: prompt.into(),
        size,
        seed: request.seed.map(|seed| (seed as u64).wrapping_add(index)),
    };
    Ok((0..count).map(order).collect())
}

fn paint(
    painter: &dyn Painter,
    orders: &[PaintOrder],
    cancelled: &AtomicBool,
) -> Result<Vec<Picture>, ApiError> {
    let mut pictures = Vec::with_capacity(orders.len());
    for order in orders {
        let png = painter
            .paint(order, cancelled)
            .map_err(|error| match error {
                PaintError::Prompt(message) => ApiError::invalid("prompt", message),
                error => {
                    tracing::error!(%error, "painting failed");
                    ApiError::internal("painting failed")
                }
            })?;
        pictures.push(Picture {
            b64_json: STANDARD.encode(png),
        });
    }
    Ok(pictures)
}
