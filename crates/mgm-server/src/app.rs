//! What all requests share.

use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, OnceLock};

use mgm_engine::{Engine, ModelInfo};
use tokio::sync::Semaphore;

use crate::budget::Budget;
use crate::error::ApiError;
use crate::metrics::{Gauge, Metrics};
use crate::options::ServerOptions;
use crate::painter::Painter;

/// Pictures being fetched at one moment.
#[cfg(feature = "remote-images")]
const FETCHES: usize = 4;

/// A loaded model.
pub(crate) struct Model {
    pub(crate) engine: Engine,
    pub(crate) info: ModelInfo,
    pub(crate) painter: Option<Arc<dyn Painter>>,
    /// When it was loaded, seconds since the Unix epoch.
    pub(crate) created: u64,
}

/// The state of a server.
pub(crate) struct App {
    pub(crate) options: ServerOptions,
    pub(crate) metrics: Metrics,
    model: OnceLock<Model>,
    draining: AtomicBool,
    /// Whether the server listens on loopback alone.
    pub(crate) on_loopback: bool,
    pub(crate) bodies: Budget,
    pub(crate) decoders: Arc<Semaphore>,
    pub(crate) painting: Arc<Semaphore>,
    pub(crate) waiting_to_paint: Gauge,
    #[cfg(feature = "remote-images")]
    pub(crate) fetches: Arc<Semaphore>,
    #[cfg(feature = "remote-images")]
    pub(crate) fetcher: Arc<crate::remote::Fetcher>,
}

impl App {
    pub(crate) fn new(options: ServerOptions, on_loopback: bool) -> Self {
        Self {
            bodies: Budget::new(options.limits.bodies_bytes),
            decoders: Arc::new(Semaphore::new(options.limits.decoders.max(1))),
            painting: Arc::new(Semaphore::new(1)),
            waiting_to_paint: Gauge::default(),
            #[cfg(feature = "remote-images")]
            fetches: Arc::new(Semaphore::new(FETCHES)),
            #[cfg(feature = "remote-images")]
            fetcher: Arc::default(),
            options,
            metrics: Metrics::default(),
            model: OnceLock::new(),
            draining: AtomicBool::new(false),
            on_loopback,
        }
    }

    /// Gives the server its model; only the first call does.
    pub(crate) fn set_model(&self, model: Model) {
        let _ = self.model.set(model);
    }

    /// The model, if it is loaded, whatever else goes on.
    pub(crate) fn loaded(&self) -> Option<&Model> {
        self.model.get()
    }

    /// No new work is taken from now on.
    pub(crate) fn drain(&self) {
        self.draining.store(true, Ordering::SeqCst);
    }

    pub(crate) fn is_draining(&self) -> bool {
        self.draining.load(Ordering::SeqCst)
    }

    /// The model, for new work.
    pub(crate) fn model(&self) -> Result<&Model, ApiError> {
        if self.is_draining() {
            return Err(ApiError::unavailable(
                "shutting_down",
                "the server is shutting down",
            ));
        }
        self.loaded().ok_or_else(|| {
            ApiError::unavailable("model_loading", "the model is still being loaded")
        })
    }

    /// The model, for new work that asks for it by `name`. A request without a name is meant for the model that there is.
    pub(crate) fn model_named(&self, name: Option<&str>) -> Result<&Model, ApiError> {
        let model = self.model()?;
        match name {
            Some(name) if !self.has_name(model, name) => Err(model_not_found(name)),
            _ => Ok(model),
        }
    }

    /// Whether the model goes by `name`.
    pub(crate) fn has_name(&self, model: &Model, name: &str) -> bool {
        self.names(model).any(|known| known == name)
    }

    /// The names of the model, its first.
    pub(crate) fn names<'a>(&'a self, model: &'a Model) -> impl Iterator<Item = &'a str> {
        let further = self.options.model_names.iter().map(String::as_str);
        let own = model.info.name.as_str();
        std::iter::once(own).chain(further.filter(move |name| *name != own))
    }
}

/// 404 for a model of another name.
pub(crate) fn model_not_found(name: &str) -> ApiError {
    ApiError::not_found(
        "model_not_found",
        format!("the model `{name}` does not exist: GET /v1/models lists those that do"),
    )
    .with_param("model")
}
