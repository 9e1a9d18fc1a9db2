//! Cross-origin requests: which web pages may use the server from a browser.

use axum::http::{HeaderMap, HeaderValue, Method, StatusCode, header};
use axum::response::{IntoResponse, Response};

/// Whether a browser asks what it may send.
pub(crate) fn is_preflight(method: &Method, headers: &HeaderMap) -> bool {
    *method == Method::OPTIONS
        && headers.contains_key(header::ORIGIN)
        && headers.contains_key(header::ACCESS_CONTROL_REQUEST_METHOD)
}

/// The answer to it; [`permit`] adds for whom it holds.
pub(crate) fn preflight() -> Response {
    let mut response = StatusCode::NO_CONTENT.into_response();
    let headers = response.headers_mut();
    for (name, value) in [
        (header::ACCESS_CONTROL_ALLOW_METHODS, "GET, POST"),
        // What OpenAI's clients send from a browser, too: any `x-stainless-…`; `*` would not cover Authorization.
        (
            header::ACCESS_CONTROL_ALLOW_HEADERS,
            "authorization, content-type, x-conversation, x-request-id, openai-organization, openai-project, x-stainless-arch, \
             x-stainless-async, x-stainless-helper-method, x-stainless-lang, x-stainless-os, x-stainless-package-version, \
             x-stainless-poll-helper, x-stainless-retry-count, x-stainless-runtime, x-stainless-runtime-version, \
             x-stainless-timeout",
        ),
        (header::ACCESS_CONTROL_MAX_AGE, "600"),
    ] {
        headers.insert(name, HeaderValue::from_static(value));
    }
    response
}

/// Lets the page at `origin` read the answer, if it is one of the permitted.
pub(crate) fn permit(permitted: &[String], origin: &HeaderValue, headers: &mut HeaderMap) {
    if permitted.is_empty() {
        return;
    }
    // The answer depends on who asks; caches must know.
    headers.append(header::VARY, HeaderValue::from_static("Origin"));
    let any = permitted.iter().any(|permitted| permitted == "*");
    if any || permitted.iter().any(|permitted| permitted == origin) {
        headers.insert(header::ACCESS_CONTROL_ALLOW_ORIGIN, origin.clone());
        headers.insert(
            header::ACCESS_CONTROL_EXPOSE_HEADERS,
            HeaderValue::from_static("x-request-id, retry-after"),
        );
    }
}
