//! `GET /health`, `GET /ready` and `GET /metrics`.

use std::sync::Arc;

use axum::extract::State;
use axum::http::{HeaderValue, header};
use axum::response::{IntoResponse, Response};
use serde_json::json;

use crate::app::App;
use crate::around::json;
use crate::error::ApiError;
use crate::metrics::Engine;

/// The process answers.
pub(super) async fn health() -> Response {
    json(&json!({"status": "ok"}))
}

/// A new request would be taken: the model is loaded, the server goes on, and there is room in the queue.
pub(super) async fn ready(State(app): State<Arc<App>>) -> Result<Response, ApiError> {
    check_ready(&app)?;
    Ok(json(&json!({"status": "ready"})))
}

fn check_ready(app: &App) -> Result<(), ApiError> {
    let model = app.model()?;
    if !model.engine.is_accepting() {
        return Err(ApiError::unavailable(
            "shutting_down",
            "the engine takes no requests",
        ));
    }
    let snapshot = model.engine.metrics();
    if snapshot.queued >= snapshot.queue_limit {
        return Err(ApiError::unavailable("queue_full", "the queue is full"));
    }
    Ok(())
}

/// What Prometheus reads.
pub(super) async fn metrics(State(app): State<Arc<App>>) -> Response {
    let engine = app.loaded().map(|model| Engine {
        model: &model.info.name,
        snapshot: model.engine.metrics(),
    });
    let page = app.metrics.render(engine, check_ready(&app).is_ok());
    let mut response = page.into_response();
    response.headers_mut().insert(
        header::CONTENT_TYPE,
        HeaderValue::from_static("text/plain; version=0.0.4; charset=utf-8"),
    );
    response
}
