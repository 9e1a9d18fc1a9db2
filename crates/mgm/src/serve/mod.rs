//! `mgm serve`: an OpenAI-compatible API and a web page.

mod args;
mod painter;

use std::io::Write;
use std::net::IpAddr;
use std::sync::Arc;

use mgm_engine::{Engine, EngineOptions};
use mgm_server::{ApiKeys, Limits, SamplingDefaults, Server, ServerError, ServerOptions};
use tracing_subscriber::filter::LevelFilter;

pub(crate) use args::ServeArgs;
use args::{LimitArgs, LogFormat, LogLevel};
use painter::ServedPainter;

use crate::failure::Failure;
use crate::{interrupt, model};

/// Temperature of models other than the built-in one, as in the official command line.
const TEMPERATURE: f32 = 0.2;

/// Runs the command.
pub(crate) fn run(args: ServeArgs) -> Result<(), Failure> {
    model::prepare(&args.model)?;
    let options = options(&args)?;
    let painter = ServedPainter::open(
        &args.painter,
        args.model.model == mini_gemini::BUILT_IN_NAME,
    )?;
    start_log(args.log_level, args.log_format);
    let (open, reachable) = (!options.api_keys.required(), !is_loopback(&options.host));
    // Listening comes first: that the port is taken is known before gigabytes are loaded.
    let server = Server::start(options)?;
    if open && reachable {
        note!(
            "warning: whoever reaches {} may use this server: --api-key-file keeps others out",
            args.host
        );
    }
    let model = model::load(&args.model, args.template.as_deref())?;
    let name = model.name().to_string();
    let engine = Engine::start(Arc::new(model), engine_options(&args))
        .map_err(|error| Failure::from_error(&error))?;
    server.set_model(engine, painter);

    let watch = interrupt::watch();
    let mut stdout = std::io::stdout().lock();
    writeln!(stdout, "{name}: http://{}", server.address())
        .and_then(|()| stdout.flush())
        .map_err(|error| Failure::stdout(&error))?;
    drop(stdout);
    if !server.run(watch.flag()) {
        note!(
            "some answers were not finished within {} s",
            args.grace.as_secs_f32()
        );
    }
    Ok(())
}

fn is_loopback(host: &str) -> bool {
    host == "localhost"
        || host
            .parse()
            .is_ok_and(|address: IpAddr| address.is_loopback())
}

fn start_log(level: LogLevel, format: LogFormat) {
    let level = match level {
        LogLevel::Off => LevelFilter::OFF,
        LogLevel::Error => LevelFilter::ERROR,
        LogLevel::Warn => LevelFilter::WARN,
        LogLevel::Info => LevelFilter::INFO,
        LogLevel::Debug => LevelFilter::DEBUG,
    };
    let log = tracing_subscriber::fmt()
        .with_max_level(level)
        .with_target(false)
        .with_writer(std::io::stderr);
    match format {
        LogFormat::Text => log.with_ansi(false).init(),
        LogFormat::Json => log.json().flatten_event(true).init(),
    }
}

fn options(args: &ServeArgs) -> Result<ServerOptions, Failure> {
    let mut api_keys = ApiKeys::default();
    let unusable = |error| Failure::from_error(&error);
    for key in &args.api_keys {
        api_keys.add(key, "--api-key").map_err(unusable)?;
    }
    for file in &args.api_key_files {
        api_keys.add_file(file).map_err(unusable)?;
    }
    let built_in = args.model.model == mini_gemini::BUILT_IN_NAME;
    let temperature = if built_in { 0.0 } else { TEMPERATURE };
    Ok(ServerOptions {
        host: args.host.clone(),
        port: args.port,
        api_keys,
        allowed_hosts: args.allowed_hosts.clone(),
        cors_origins: args.cors_origins.clone(),
        #[cfg(feature = "http")]
        allow_remote_images: args.allow_remote_images,
        #[cfg(not(feature = "http"))]
        allow_remote_images: false,
        model_names: args.model_names.clone(),
        defaults: SamplingDefaults {
            temperature: args.temperature.unwrap_or(temperature),
            top_p: args.top_p,
            top_k: Some(args.top_k).filter(|k| *k > 0),
            max_tokens: args.default_max_tokens.get(),
        },
        limits: limits(&args.limits),
        grace: args.grace,
        log_content: args.log_content,
    })
}

fn limits(args: &LimitArgs) -> Limits {
    let bytes = |size: u64| usize::try_from(size).unwrap_or(usize::MAX);
    Limits {
        body_bytes: bytes(args.max_body_bytes),
        bodies_bytes: bytes(args.max_body_memory),
        image_bytes: args.max_image_bytes,
        image_pixels: args.max_image_pixels,
        images: args.max_images,
        max_tokens: args.max_tokens.get(),
        choices: args.max_choices.get(),
        connections: args.max_connections.get(),
        header_bytes: bytes(args.max_header_bytes),
        header_timeout: args.header_timeout,
        body_timeout: args.body_timeout,
        write_timeout: args.write_timeout,
        request_timeout: args.request_timeout,
        decoders: args.max_decoding.get(),
        ..Limits::default()
    }
}

fn engine_options(args: &ServeArgs) -> EngineOptions {
    let bytes = |size: u64| usize::try_from(size).unwrap_or(usize::MAX);
    EngineOptions {
        max_running: args.max_concurrent.get(),
        max_queued: args.max_queue,
        kv_bytes: args.kv_bytes.map(bytes),
        vision_cache_bytes: bytes(args.vision_cache_bytes),
        max_choices: args.limits.max_choices.get(),
        ..EngineOptions::default()
    }
}

impl From<ServerError> for Failure {
    fn from(error: ServerError) -> Self {
        let failure = Self::from_error(&error);
        match &error {
            ServerError::Listen { error, .. } => match error.kind() {
                std::io::ErrorKind::AddrInUse => failure
                    .hint("something listens there already: choose another --port, or 0 for any"),
                std::io::ErrorKind::PermissionDenied => {
                    failure.hint("ports below 1024 belong to the system: choose another --port")
                }
                _ => failure,
            },
            _ => failure,
        }
    }
}
