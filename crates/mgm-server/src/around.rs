//! What happens around every request: its id, who may ask, from where, the log and the counts.

use std::hash::{BuildHasher, Hash, RandomState};
use std::net::IpAddr;
use std::sync::Arc;
use std::sync::OnceLock;
use std::time::Instant;

use axum::body::Body;
use axum::extract::{MatchedPath, Request, State};
use axum::http::{HeaderMap, HeaderName, HeaderValue, Method, header};
use axum::middleware::Next;
use axum::response::{IntoResponse, Response};

use crate::app::App;
use crate::cors;
use crate::error::{ApiError, ErrorCode};
use crate::ids;
use crate::routes;

const REQUEST_ID: HeaderName = HeaderName::from_static("x-request-id");
/// What the log and the counts say of a client that left before it was answered (nginx's number).
const CLIENT_LEFT: u16 = 499;

/// Where a connection comes from.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Peer(pub(crate) IpAddr);

/// Who asks, and when.
#[derive(Clone, Debug)]
pub(crate) struct Caller {
    /// Id of the request.
    pub(crate) id: Arc<str>,
    /// The same number for all requests with the same key, or without keys from the same address.
    pub(crate) client: u64,
    pub(crate) arrived: Instant,
}

/// Handles one request.
pub(crate) async fn around(
    State(app): State<Arc<App>>,
    mut request: Request,
    next: Next,
) -> Response {
    let arrived = Instant::now();
    let headers = request.headers();
    let own_id = || headers.get(REQUEST_ID)?.to_str().ok();
    let id: Arc<str> = match own_id().filter(|id| ids::acceptable(id)) {
        Some(id) => id.into(),
        None => format!("req-{}", ids::unique()).into(),
    };
    let peer = request.extensions().get::<Peer>().map(|peer| peer.0);
    let key = bearer(headers);
    let client = match key.filter(|_| app.options.api_keys.required()) {
        Some(key) => number(key),
        None => number(peer),
    };
    let matched = request.extensions().get::<MatchedPath>();
    let route = routes::name(matched.map(MatchedPath::as_str));
    let mut account = Account {
        app: Arc::clone(&app),
        id: Arc::clone(&id),
        method: request.method().clone(),
        route,
        peer,
        arrived,
        status: CLIENT_LEFT,
        error: None,
    };

    let origin = headers.get(header::ORIGIN).cloned();
    let preflight = cors::is_preflight(request.method(), headers);
    let admitted = admit(&app, route, key, headers);
    request.extensions_mut().insert(Caller {
        id: Arc::clone(&id),
        client,
        arrived,
    });
    let mut response = if preflight && !app.options.cors_origins.is_empty() {
        cors::preflight()
    } else {
        match admitted {
            Ok(()) => next.run(request).await,
            Err(error) => error.into_response(),
        }
    };

    let headers = response.headers_mut();
    if let Some(origin) = origin {
        cors::permit(&app.options.cors_origins, &origin, headers);
    }
    if let Ok(id) = HeaderValue::from_str(&id) {
        headers.insert(REQUEST_ID, id);
    }
    headers
        .entry(header::X_CONTENT_TYPE_OPTIONS)
        .or_insert(HeaderValue::from_static("nosniff"));
    account.status = response.status().as_u16();
    account.error = response.extensions().get::<ErrorCode>().copied();
    response
}

/// The key that a request brings.
fn bearer(headers: &HeaderMap) -> Option<&str> {
    let (scheme, key) = headers
        .get(header::AUTHORIZATION)?
        .to_str()
        .ok()?
        .split_once(' ')?;
    scheme.eq_ignore_ascii_case("bearer").then(|| key.trim())
}

/// Who may ask, and under what name of this server.
fn admit(
    app: &App,
    route: &'static str,
    key: Option<&str>,
    headers: &HeaderMap,
) -> Result<(), ApiError> {
    let keys = &app.options.api_keys;
    if app.on_loopback && !keys.required() {
        check_host(&app.options.allowed_hosts, headers)?;
    }
    if !keys.required() || routes::is_open(route) {
        return Ok(());
    }
    match key {
        Some(key) if keys.admits(key) => Ok(()),
        Some(_) => Err(ApiError::unauthorized(
            "the API key is not one of this server's",
        )),
        None => Err(ApiError::unauthorized(
            "this server wants an API key: send the header Authorization: Bearer KEY",
        )),
    }
}

/// A page on the web can make its own name point to this machine and would then be of the same origin as this server; the name still
/// stands in the request.
fn check_host(allowed: &[String], headers: &HeaderMap) -> Result<(), ApiError> {
    let host = headers
        .get(header::HOST)
        .and_then(|host| host.to_str().ok());
    let name = host.map(without_port).unwrap_or_default();
    let is_loopback = name
        .trim_start_matches('[')
        .trim_end_matches(']')
        .parse()
        .is_ok_and(|address: IpAddr| address.is_loopback());
    let is_local = is_loopback
        || name.eq_ignore_ascii_case("localhost")
        || name.to_ascii_lowercase().ends_with(".localhost");
    if is_local
        || allowed
            .iter()
            .any(|allowed| allowed == "*" || allowed.eq_ignore_ascii_case(name))
    {
        return Ok(());
    }
    Err(ApiError::forbidden(
        "host_not_allowed",
        "the name in the Host header is not this server's: start it with --allowed-host NAME, or with API keys, if it should be",
    ))
}

fn without_port(host: &str) -> &str {
    match host.rsplit_once(':') {
        Some((name, port)) if port.bytes().all(|byte| byte.is_ascii_digit()) => name,
        _ => host,
    }
}

/// A number for a value, another one in every process.
fn number(value: impl Hash) -> u64 {
    static KEYS: OnceLock<RandomState> = OnceLock::new();
    KEYS.get_or_init(RandomState::new).hash_one(value)
}

/// Counts and logs a request when it is answered, or dropped because its client left.
struct Account {
    app: Arc<App>,
    id: Arc<str>,
    method: Method,
    route: &'static str,
    peer: Option<IpAddr>,
    arrived: Instant,
    status: u16,
    error: Option<ErrorCode>,
}

impl Drop for Account {
    fn drop(&mut self) {
        let time = self.arrived.elapsed();
        self.app.metrics.request(self.route, self.status, time);
        // Neither the path nor the query: they hold what clients choose to put there.
        tracing::info!(
            request = &*self.id,
            method = self.method.as_str(),
            route = self.route,
            status = self.status,
            error = self.error.map(|error| error.0),
            ms = time.as_millis() as u64,
            peer = self.peer.map(tracing::field::display),
            "request"
        );
    }
}

/// The answer to a path that leads nowhere, or to a method that a path does not have.
pub(crate) async fn method_not_allowed(method: Method) -> ApiError {
    ApiError::method_not_allowed(format!("{method} is not allowed here"))
}

/// An answer of JSON.
pub(crate) fn json(value: &impl serde::Serialize) -> Response {
    match serde_json::to_vec(value) {
        Ok(bytes) => {
            let mut response = Response::new(Body::from(bytes));
            response.headers_mut().insert(
                header::CONTENT_TYPE,
                HeaderValue::from_static("application/json"),
            );
            response
        }
        Err(error) => ApiError::internal(error.to_string()).into_response(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn host(allowed: &[&str], host: &str) -> bool {
        let mut headers = HeaderMap::new();
        headers.insert(header::HOST, HeaderValue::from_str(host).unwrap());
        let allowed: Vec<String> = allowed.iter().map(|name| name.to_string()).collect();
        check_host(&allowed, &headers).is_ok()
    }

    #[test]
    fn foreign_names_are_refused_on_loopback() {
        for own in [
            "localhost",
            "LOCALHOST:8080",
            "mgm.localhost:1",
            "127.0.0.1:8080",
            "127.8.8.8",
            "[::1]:8080",
            "[::1]",
        ] {
            assert!(host(&[], own), "{own}");
        }
        for foreign in [
            "evil.example",
            "evil.example:8080",
            "10.0.0.1",
            "localhost.evil.example",
            "",
            "[2001:db8::1]:80",
        ] {
            assert!(!host(&[], foreign), "{foreign}");
        }
        assert!(host(&["mgm.example"], "MGM.example:443"));
        assert!(host(&["*"], "anything"));
        assert!(check_host(&[], &HeaderMap::new()).is_err());
    }

    #[test]
    fn keys_come_as_bearer_tokens() {
        let key = |value: &str| {
            let mut headers = HeaderMap::new();
            headers.insert(header::AUTHORIZATION, HeaderValue::from_str(value).unwrap());
            bearer(&headers).map(str::to_string)
        };
        assert_eq!(key("Bearer abc").as_deref(), Some("abc"));
        assert_eq!(key("bearer  abc ").as_deref(), Some("abc"));
        for none in ["Basic abc", "abc", "Bearer"] {
            assert_eq!(key(none), None, "{none}");
        }
    }
}
