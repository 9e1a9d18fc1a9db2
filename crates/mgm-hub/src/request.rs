//! Requests that can be given up: the network is waited for in a thread of its own, so that Ctrl-C and silence are noticed at once.

use std::io::{self, Read};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::mpsc::{Receiver, RecvTimeoutError, sync_channel};
use std::thread;
use std::time::{Duration, Instant};

use ureq::http::{Request, Response};
use ureq::{Agent, Body};

/// How often the stop flag is looked at.
const TICK: Duration = Duration::from_millis(50);
/// Most bytes handed over at once.
const CHUNK: usize = 256 << 10;
/// Chunks that may wait for whoever writes them.
const WAITING: usize = 8;

/// Why waiting ended without a result.
#[derive(Debug)]
pub(crate) enum Waiting {
    /// The stop flag is up.
    Stopped,
    /// Nothing came for too long.
    Silence,
    /// The thread is gone; it never should be.
    Lost,
}

fn receive<T>(receiver: &Receiver<T>, stop: &AtomicBool, patience: Duration) -> Result<T, Waiting> {
    let started = Instant::now();
    loop {
        if stop.load(Ordering::SeqCst) {
            return Err(Waiting::Stopped);
        }
        match receiver.recv_timeout(TICK) {
            Ok(value) => return Ok(value),
            Err(RecvTimeoutError::Disconnected) => return Err(Waiting::Lost),
            Err(RecvTimeoutError::Timeout) if started.elapsed() >= patience => {
                return Err(Waiting::Silence);
            }
            Err(RecvTimeoutError::Timeout) => {}
        }
    }
}

/// Sends a request and waits for the head of its answer.
pub(crate) fn send(
    agent: &Agent,
    request: Request<()>,
    stop: &AtomicBool,
    patience: Duration,
) -> Result<Result<Response<Body>, ureq::Error>, Waiting> {
    let (sender, receiver) = sync_channel(1);
    let agent = agent.clone();
    thread::spawn(move || {
        // Nobody listens any more once the wait was given up.
        let _ = sender.send(agent.run(request));
    });
    receive(&receiver, stop, patience)
}

/// The bytes of an answer as they come.
pub(crate) struct Stream(Receiver<io::Result<Vec<u8>>>);

impl Stream {
    pub(crate) fn new(body: Body) -> Self {
        let (sender, receiver) = sync_channel(WAITING);
        thread::spawn(move || {
            let mut reader = body.into_reader();
            let mut buffer = vec![0; CHUNK];
            loop {
                let chunk = match reader.read(&mut buffer) {
                    Ok(read) => Ok(buffer[..read].to_vec()),
                    Err(error) if error.kind() == io::ErrorKind::Interrupted => continue,
                    Err(error) => Err(error),
                };
                let last = chunk.as_ref().map_or(true, Vec::is_empty);
                if sender.send(chunk).is_err() || last {
                    return;
                }
            }
        });
        Self(receiver)
    }

    /// The next bytes; empty at the end.
    pub(crate) fn next(
        &self,
        stop: &AtomicBool,
        patience: Duration,
    ) -> Result<io::Result<Vec<u8>>, Waiting> {
        receive(&self.0, stop, patience)
    }
}

/// Sleeps, unless the stop flag is or goes up; whether the time has passed.
pub(crate) fn pause(duration: Duration, stop: &AtomicBool) -> bool {
    let started = Instant::now();
    loop {
        if stop.load(Ordering::SeqCst) {
            return false;
        }
        let left = duration.saturating_sub(started.elapsed());
        if left.is_zero() {
            return true;
        }
        thread::sleep(left.min(TICK));
    }
}
