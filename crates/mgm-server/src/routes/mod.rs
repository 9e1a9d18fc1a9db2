//! The routes. `openapi.json` describes the same ones; a test holds the two against each other.

mod chat;
mod completions;
mod docs;
mod images;
mod mining;
mod models;
mod page;
mod status;
mod tokens;

use std::sync::Arc;

use axum::Router;
use axum::middleware::from_fn_with_state;
use axum::routing::{MethodRouter, get, post};

use crate::app::App;
use crate::around::{around, method_not_allowed};

/// The route that catches everything else: the page and its files.
const PAGE: &str = "page";

struct Route {
    path: &'static str,
    /// Whether it is answered without a key.
    open: bool,
    handler: fn() -> MethodRouter<Arc<App>>,
    #[cfg(test)]
    method: &'static str,
}

macro_rules! routes {
    ($($access:ident $method:ident $path:literal $handler:path;)*) => {
        &[$(Route {
            path: $path,
            open: routes!(@open $access),
            handler: || $method($handler),
            #[cfg(test)]
            method: stringify!($method),
        },)*]
    };
    (@open open) => { true };
    (@open keyed) => { false };
}

const ROUTES: &[Route] = routes! {
    keyed post "/v1/chat/completions" chat::complete;
    keyed post "/v1/completions" completions::complete;
    keyed get "/v1/models" models::list;
    keyed get "/v1/models/{*model}" models::one;
    keyed post "/v1/images/generations" images::generate;
    keyed post "/v1/mining" mining::mine;
    keyed post "/tokenize" tokens::tokenize;
    keyed post "/detokenize" tokens::detokenize;
    keyed get "/metrics" status::metrics;
    open get "/health" status::health;
    open get "/ready" status::ready;
    open get "/openapi.json" docs::openapi;
    open get "/docs" docs::page;
    open get "/docs/docs.css" docs::style;
    open get "/docs/docs.js" docs::script;
};

/// All routes, with what happens around them.
pub(crate) fn router(app: Arc<App>) -> Router {
    let mut router = Router::new();
    for route in ROUTES {
        router = router.route(route.path, (route.handler)());
    }
    router
        .method_not_allowed_fallback(method_not_allowed)
        .fallback(page::file)
        .layer(from_fn_with_state(Arc::clone(&app), around))
        .with_state(app)
}

/// The name of a matched path, for the log and the counts.
pub(crate) fn name(matched: Option<&str>) -> &'static str {
    let route = ROUTES.iter().find(|route| Some(route.path) == matched);
    route.map_or(PAGE, |route| route.path)
}

/// Whether a route is answered without a key.
pub(crate) fn is_open(name: &str) -> bool {
    let route = ROUTES.iter().find(|route| route.path == name);
    route.is_none_or(|route| route.open)
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use super::*;

    #[test]
    fn the_description_has_exactly_these_routes() {
        let description: serde_json::Value = serde_json::from_str(docs::OPENAPI).unwrap();
        let mut described = BTreeSet::new();
        for (path, operations) in description["paths"].as_object().unwrap() {
            for (method, operation) in operations.as_object().unwrap() {
                let open = operation["security"] == serde_json::json!([]);
                described.insert((path.clone(), method.clone(), open));
            }
        }
        let routed: BTreeSet<_> = ROUTES
            .iter()
            // The files of the documentation's page are no interface.
            .filter(|route| !route.path.starts_with("/docs/"))
            .map(|route| {
                (
                    route.path.replace("{*", "{"),
                    route.method.to_string(),
                    route.open,
                )
            })
            .collect();
        assert_eq!(described, routed);
    }

    #[test]
    fn the_description_has_the_version_of_the_program() {
        let description: serde_json::Value = serde_json::from_str(docs::OPENAPI).unwrap();
        assert_eq!(description["info"]["version"], env!("CARGO_PKG_VERSION"));
    }
}
