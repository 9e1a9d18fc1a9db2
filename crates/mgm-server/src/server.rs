//! The server's life: listening, connections and their limits, shutting down.

use std::net::{SocketAddr, ToSocketAddrs};
use std::pin::pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use axum::Router;
use hyper::body::Incoming;
use hyper::server::conn::http1;
use hyper::service::{Service as _, service_fn};
use hyper_util::rt::{TokioIo, TokioTimer};
use hyper_util::service::TowerToHyperService;
use mgm_engine::Engine;
use tokio::io::AsyncWriteExt;
use tokio::net::{TcpListener, TcpStream};
use tokio::runtime::Runtime;
use tokio::sync::{OwnedSemaphorePermit, Semaphore, watch};
use tokio::task::JoinSet;

use crate::app::{App, Model};
use crate::around::Peer;
use crate::options::ServerOptions;
use crate::painter::Painter;
use crate::routes;
use crate::stream::PatientStream;

/// How often the stop flag is looked at.
const TICK: Duration = Duration::from_millis(50);
/// Threads for work that blocks: decoding, tokenising, fetching, looking names up.
const BLOCKING_THREADS: usize = 32;
/// Threads that serve connections.
const WORKERS: usize = 2;
/// Time for streams to say their last words once the grace is over.
const LAST_WORDS: Duration = Duration::from_secs(2);
/// Connections beyond the limit that are told so at one moment; further ones are dropped.
const TOLD_FULL: usize = 64;

/// Why a server does not start.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum ServerError {
    /// There is nothing to listen on.
    #[error("cannot listen on {host}:{port}: {error}")]
    Listen {
        /// The name or address.
        host: String,
        /// The port.
        port: u16,
        /// The system's reason.
        error: std::io::Error,
    },
    /// The system gave no threads.
    #[error("the server's threads cannot be started: {0}")]
    Threads(#[from] std::io::Error),
}

/// A listening server. Until it has a model it answers that it is not ready.
pub struct Server {
    runtime: Runtime,
    app: Arc<App>,
    address: SocketAddr,
    stop: watch::Sender<Phase>,
}

/// How far the end has come.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Phase {
    Serving,
    /// Connections end with the request they are at.
    Draining,
}

impl Server {
    /// Listens, and serves from now on: the page, `/health` and the documentation at once, the rest when [`Self::set_model`] has been called.
    ///
    /// # Errors
    /// When the address cannot be listened on or the system gives no threads.
    pub fn start(options: ServerOptions) -> Result<Self, ServerError> {
        let runtime = tokio::runtime::Builder::new_multi_thread()
            .worker_threads(WORKERS)
            .max_blocking_threads(BLOCKING_THREADS)
            .thread_name("http")
            .enable_io()
            .enable_time()
            .build()?;
        let listen_error = |error| ServerError::Listen {
            host: options.host.clone(),
            port: options.port,
            error,
        };
        let addresses: Vec<SocketAddr> = (options.host.as_str(), options.port)
            .to_socket_addrs()
            .map_err(listen_error)?
            .collect();
        let listener = runtime
            .block_on(TcpListener::bind(&*addresses))
            .map_err(listen_error)?;
        let address = listener.local_addr().map_err(listen_error)?;
        let app = Arc::new(App::new(options, address.ip().is_loopback()));
        let (stop, phase) = watch::channel(Phase::Serving);
        let router = routes::router(Arc::clone(&app));
        runtime.spawn(accept(listener, Arc::clone(&app), router, phase));
        Ok(Self {
            runtime,
            app,
            address,
            stop,
        })
    }

    /// Where it listens.
    pub fn address(&self) -> SocketAddr {
        self.address
    }

    /// Gives the server its model, and one that paints where there is one. Only the first call counts.
    pub fn set_model(&self, engine: Engine, painter: Option<Arc<dyn Painter>>) {
        let now = SystemTime::now().duration_since(UNIX_EPOCH);
        self.app.set_model(Model {
            info: engine.model_info(),
            engine,
            painter,
            created: now.unwrap_or_default().as_secs(),
        });
    }

    /// Serves until `stop` is raised, then shuts down as [`Self::shutdown`] does.
    pub fn run(self, stop: &AtomicBool) -> bool {
        while !stop.load(Ordering::SeqCst) {
            std::thread::sleep(TICK);
        }
        self.shutdown()
    }

    /// Takes no more requests, lets running answers go on for the time of grace, ends the others with an error that clients can retry,
    /// and stops. Returns whether all answers were finished.
    pub fn shutdown(self) -> bool {
        let Self {
            runtime, app, stop, ..
        } = self;
        let grace = app.options.grace;
        app.drain();
        tracing::info!(grace_s = grace.as_secs_f32(), "shutting down");
        let _ = stop.send(Phase::Draining);
        let deadline = Instant::now() + grace;
        let closed =
            runtime.block_on(async { tokio::time::timeout(grace, stop.closed()).await.is_ok() });
        // Whoever paints, or waits for it, gives up and says so.
        app.painting.close();
        let mut finished = app.waiting_to_paint.value() == 0;
        if let Some(model) = app.loaded() {
            finished &= model
                .engine
                .shutdown(deadline.saturating_duration_since(Instant::now()));
        }
        if !closed {
            let _ =
                runtime.block_on(async { tokio::time::timeout(LAST_WORDS, stop.closed()).await });
        }
        runtime.shutdown_timeout(LAST_WORDS);
        finished
    }
}

/// Takes connections until the server stops, then waits for those that there are. The receiver of the phase is dropped with the last one.
async fn accept(
    listener: TcpListener,
    app: Arc<App>,
    router: Router,
    mut phase: watch::Receiver<Phase>,
) {
    let places = Arc::new(Semaphore::new(app.options.limits.connections.max(1)));
    let told = Arc::new(Semaphore::new(TOLD_FULL));
    let mut connections = JoinSet::new();
    loop {
        let accepted = tokio::select! {
            accepted = listener.accept() => accepted,
            _ = phase.wait_for(|phase| *phase != Phase::Serving) => break,
            Some(_) = connections.join_next() => continue,
        };
        let (stream, peer) = match accepted {
            Ok(accepted) => accepted,
            Err(error) => {
                // Too many open files, most likely: others must end first.
                tracing::warn!(%error, "a connection could not be accepted");
                tokio::time::sleep(TICK).await;
                continue;
            }
        };
        let _ = stream.set_nodelay(true);
        match Arc::clone(&places).try_acquire_owned() {
            Ok(place) => {
                let (app, router, phase) = (Arc::clone(&app), router.clone(), phase.clone());
                connections.spawn(serve(stream, peer, app, router, phase, place));
            }
            Err(_) => {
                let refused = &app.metrics.connections_refused;
                refused.fetch_add(1, Ordering::Relaxed);
                if let Ok(place) = Arc::clone(&told).try_acquire_owned() {
                    connections.spawn(tell_full(stream, place));
                }
            }
        }
    }
    drop(listener);
    while connections.join_next().await.is_some() {}
}

/// Serves one connection.
async fn serve(
    stream: TcpStream,
    peer: SocketAddr,
    app: Arc<App>,
    router: Router,
    mut phase: watch::Receiver<Phase>,
    _place: OwnedSemaphorePermit,
) {
    let _held = app.metrics.connections.hold();
    let limits = &app.options.limits;
    let stream = PatientStream::new(stream, limits.write_timeout);
    let service = TowerToHyperService::new(router);
    let service = service_fn(move |mut request: hyper::Request<Incoming>| {
        request.extensions_mut().insert(Peer(peer.ip()));
        service.call(request)
    });
    let connection = http1::Builder::new()
        .timer(TokioTimer::new())
        .header_read_timeout(limits.header_timeout)
        .max_headers(limits.headers)
        .max_header_size(limits.header_bytes)
        .max_buf_size(limits.header_bytes.max(64 << 10))
        .serve_connection(TokioIo::new(stream), service);
    let mut connection = pin!(connection);
    let draining = phase.wait_for(|phase| *phase != Phase::Serving);
    let ended = tokio::select! {
        ended = connection.as_mut() => Some(ended),
        _ = draining => None,
    };
    let ended = match ended {
        Some(ended) => ended,
        None => {
            connection.as_mut().graceful_shutdown();
            connection.await
        }
    };
    if let Err(error) = ended {
        tracing::debug!(%peer, %error, "a connection ended badly");
    }
}

/// Tells a client that all connections are taken.
async fn tell_full(stream: TcpStream, _place: OwnedSemaphorePermit) {
    const BODY: &str = r#"{"error":{"message":"all connections of the server are taken: try again later","type":"server_error","param":null,"code":"connections_full"}}"#;
    let answer = format!(
        "HTTP/1.1 503 Service Unavailable\r\nContent-Type: application/json\r\nRetry-After: 1\r\nConnection: close\r\nContent-Length: {}\r\n\r\n{BODY}",
        BODY.len()
    );
    let mut stream = PatientStream::new(stream, LAST_WORDS);
    if stream.write_all(answer.as_bytes()).await.is_ok() {
        let _ = stream.shutdown().await;
    }
}
