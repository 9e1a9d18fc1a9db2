//! Pictures being painted: one at a time, on a thread of their own, for as long as somebody waits for them.

use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::task::{Context, Poll, ready};
use std::time::Instant;

use tokio::sync::mpsc;
use tokio::task::JoinHandle;

use crate::app::App;
use crate::error::ApiError;
use crate::metrics::Held;
use crate::painter::{PaintError, PaintOrder, PaintProgress, Painter};

/// Requests that may wait while a picture is painted, with the one it is painted for.
const PLACES: usize = 8;
/// Words on the progress that may wait for a client that reads slowly; further ones are left out.
const WAITING_PROGRESS: usize = 4;

/// A request's place before the painter. Taken before any work is done for the request, so that a text is not written in vain.
#[derive(Clone)]
pub(crate) struct Place {
    _held: Arc<Held>,
}

/// Takes a place, if one is free.
pub(crate) fn take_place(app: &App) -> Result<Place, ApiError> {
    let held = app.waiting_to_paint.hold();
    if app.waiting_to_paint.value() > PLACES {
        return Err(ApiError::overloaded(
            "too many pictures are waiting to be painted: try again later",
        ));
    }
    Ok(Place {
        _held: Arc::new(held),
    })
}

/// The size that a request asks for: its name, or the painter's own.
pub(crate) fn size(
    painter: &dyn Painter,
    name: Option<&str>,
    param: &'static str,
) -> Result<(u32, u32), ApiError> {
    let mut sizes = painter.sizes().iter().copied();
    let size = match name {
        None | Some("auto") => sizes.next(),
        Some(name) => sizes.find(|size| name == size_name(*size)),
    };
    size.ok_or_else(|| {
        let known: Vec<String> = painter
            .sizes()
            .iter()
            .map(|size| size_name(*size))
            .collect();
        ApiError::unsupported(
            param,
            format!(
                "`{param}` is {}: expected auto or one of {}",
                name.unwrap_or("auto"),
                known.join(", ")
            ),
        )
    })
}

/// A size as requests and answers write it.
pub(crate) fn size_name((width, height): (u32, u32)) -> String {
    format!("{width}x{height}")
}

/// A picture being painted, or waiting for it. Dropping it ends that.
pub(crate) struct Painting {
    progress: mpsc::Receiver<PaintProgress>,
    task: JoinHandle<Result<Vec<u8>, ApiError>>,
    cancelled: Arc<AtomicBool>,
}

/// What has happened to a picture.
pub(crate) enum PaintEvent {
    /// A step is done.
    Progress(PaintProgress),
    /// It is finished, a PNG file, or will never be. Nothing comes after it.
    Done(Result<Vec<u8>, ApiError>),
}

impl Painting {
    /// Has a picture painted as soon as those before it are finished. `request` is the request's id, for the log.
    pub(crate) fn start(
        app: &Arc<App>,
        painter: &Arc<dyn Painter>,
        place: &Place,
        request: &Arc<str>,
        order: PaintOrder,
    ) -> Self {
        let (sender, progress) = mpsc::channel(WAITING_PROGRESS);
        let cancelled: Arc<AtomicBool> = Arc::default();
        let (app, painter, place) = (Arc::clone(app), Arc::clone(painter), place.clone());
        let (request, raised) = (Arc::clone(request), Arc::clone(&cancelled));
        let task = tokio::spawn(async move {
            let waiting = Instant::now();
            let permit = Arc::clone(&app.painting).acquire_owned().await;
            // Only a server that shuts down closes the painter's door.
            let permit = permit.map_err(|_| shutting_down())?;
            let waited = waiting.elapsed();
            let painted = tokio::task::spawn_blocking(move || {
                let _held = (permit, place);
                let started = Instant::now();
                let cancelled = || raised.load(Ordering::SeqCst) || app.painting.is_closed();
                let painted = match cancelled() {
                    true => Err(PaintError::Cancelled),
                    false => painter.paint(&order, &cancelled, &mut |progress| {
                        let _ = sender.try_send(progress);
                    }),
                };
                tracing::info!(
                    request = &*request,
                    outcome = outcome(&painted),
                    size = size_name(order.size),
                    waited_ms = waited.as_millis() as u64,
                    painting_ms = started.elapsed().as_millis() as u64,
                    "picture"
                );
                if app.options.log_content {
                    tracing::info!(request = &*request, text = order.prompt, "picture prompt");
                }
                if painted.is_ok() {
                    app.metrics.painted.fetch_add(1, Ordering::Relaxed);
                }
                painted.map_err(refusal)
            });
            painted
                .await
                .map_err(|_| ApiError::internal("painting failed"))?
        });
        Self {
            progress,
            task,
            cancelled,
        }
    }

    /// The next thing that happens.
    pub(crate) async fn next(&mut self) -> PaintEvent {
        std::future::poll_fn(|context| self.poll_next(context)).await
    }

    /// As [`Self::next`].
    pub(crate) fn poll_next(&mut self, context: &mut Context<'_>) -> Poll<PaintEvent> {
        if let Poll::Ready(Some(progress)) = self.progress.poll_recv(context) {
            return Poll::Ready(PaintEvent::Progress(progress));
        }
        let done = ready!(Pin::new(&mut self.task).poll(context));
        let failed = |_| Err(ApiError::internal("painting failed"));
        Poll::Ready(PaintEvent::Done(done.unwrap_or_else(failed)))
    }
}

impl Drop for Painting {
    fn drop(&mut self) {
        // Whoever paints looks at the flag; whoever waits for the painter is not woken for nothing.
        self.cancelled.store(true, Ordering::SeqCst);
        self.task.abort();
    }
}

fn outcome(painted: &Result<Vec<u8>, PaintError>) -> &'static str {
    match painted {
        Ok(_) => "finished",
        Err(PaintError::Cancelled) => "cancelled",
        Err(PaintError::Prompt(_)) => "refused",
        Err(_) => "failed",
    }
}

fn refusal(error: PaintError) -> ApiError {
    match error {
        PaintError::Prompt(message) => ApiError::invalid("prompt", message),
        PaintError::Cancelled => shutting_down(),
        error => {
            tracing::error!(%error, "painting failed");
            ApiError::internal("painting failed")
        }
    }
}

fn shutting_down() -> ApiError {
    ApiError::unavailable(
        "shutting_down",
        "the server shut down before the picture was finished",
    )
}
