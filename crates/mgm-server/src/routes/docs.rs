//! `GET /openapi.json` and `GET /docs`: the description of the interface, for programs and for people.

use axum::http::{HeaderValue, header};
use axum::response::{IntoResponse, Response};

/// The description.
pub(super) const OPENAPI: &str = include_str!("../../docs/openapi.json");

pub(super) async fn openapi() -> Response {
    file("application/json", OPENAPI)
}

pub(super) async fn page() -> Response {
    file(
        "text/html; charset=utf-8",
        include_str!("../../docs/docs.html"),
    )
}

pub(super) async fn style() -> Response {
    file(
        "text/css; charset=utf-8",
        include_str!("../../docs/docs.css"),
    )
}

pub(super) async fn script() -> Response {
    file(
        "text/javascript; charset=utf-8",
        include_str!("../../docs/docs.js"),
    )
}

fn file(media_type: &'static str, text: &'static str) -> Response {
    let mut response = text.into_response();
    let headers = response.headers_mut();
    for (name, value) in [
        (header::CONTENT_TYPE, media_type),
        (
            header::CONTENT_SECURITY_POLICY,
            "default-src 'none'; script-src 'self'; style-src 'self'; connect-src 'self'; base-uri 'none'; form-action 'none'; frame-ancestors 'none'",
        ),
        (header::CACHE_CONTROL, "no-cache"),
        (header::REFERRER_POLICY, "no-referrer"),
    ] {
        headers.insert(name, HeaderValue::from_static(value));
    }
    response
}
