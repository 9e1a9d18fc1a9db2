//! Answers streamed as server-sent events.

use std::convert::Infallible;
use std::pin::Pin;
use std::task::{Context, Poll};
use std::time::Duration;

use axum::body::Body;
use axum::http::{HeaderName, HeaderValue, header};
use axum::response::Response;
use bytes::Bytes;
use http_body::Frame;
use serde::Serialize;
use tokio::time::{Instant, Sleep, sleep};

use crate::easel::Answers;
use crate::generation::Update;
use crate::metrics::Held;
use crate::wire::answer::Usage;

/// Silence after which a comment is sent: it tells proxies that the connection lives, and us when it does not.
const KEEP_ALIVE: Duration = Duration::from_secs(10);
/// Events are handed on in pieces of about this many bytes when many have gathered.
const PIECE: usize = 16 << 10;

/// Events in the making.
#[derive(Default)]
pub(crate) struct Events(Vec<u8>);

impl Events {
    /// Adds an event.
    pub(crate) fn send(&mut self, value: &impl Serialize) {
        self.0.extend_from_slice(b"data: ");
        let start = self.0.len();
        // Writing plain data to memory cannot fail; half an event must not be sent if it did.
        if serde_json::to_writer(&mut self.0, value).is_err() {
            self.0.truncate(start);
        }
        self.0.extend_from_slice(b"\n\n");
    }

    fn done(&mut self) {
        self.0.extend_from_slice(b"data: [DONE]\n\n");
    }
}

/// Turns what happens into events.
pub(crate) trait EventWriter: Send + Unpin + 'static {
    /// Something happened.
    fn update(&mut self, update: Update, events: &mut Events);
    /// All answers are complete.
    fn finish(&mut self, usage: Usage, events: &mut Events);
}

struct EventStream<W> {
    answers: Answers,
    writer: W,
    keep_alive: Pin<Box<Sleep>>,
    ended: bool,
    _held: Held,
}

impl<W: EventWriter> http_body::Body for EventStream<W> {
    type Data = Bytes;
    type Error = Infallible;

    fn poll_frame(
        self: Pin<&mut Self>,
        context: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, Infallible>>> {
        let this = self.get_mut();
        let mut events = Events::default();
        while !this.ended && events.0.len() < PIECE {
            match this.answers.poll_next(context) {
                Poll::Ready(Some(Ok(update))) => this.writer.update(update, &mut events),
                Poll::Ready(Some(Err(error))) => {
                    events.send(&error.body());
                    this.ended = true;
                }
                Poll::Ready(None) => {
                    this.writer.finish(this.answers.usage(), &mut events);
                    events.done();
                    this.ended = true;
                }
                Poll::Pending => break,
            }
        }
        if events.0.is_empty() {
            if this.ended {
                return Poll::Ready(None);
            }
            std::task::ready!(this.keep_alive.as_mut().poll(context));
            events.0.extend_from_slice(b": keep-alive\n\n");
        }
        this.keep_alive.as_mut().reset(Instant::now() + KEEP_ALIVE);
        Poll::Ready(Some(Ok(Frame::data(events.0.into()))))
    }
}

/// The response that streams answers.
pub(crate) fn response(answers: Answers, writer: impl EventWriter, held: Held) -> Response {
    let stream = EventStream {
        answers,
        writer,
        keep_alive: Box::pin(sleep(KEEP_ALIVE)),
        ended: false,
        _held: held,
    };
    let mut response = Response::new(Body::new(stream));
    let headers = response.headers_mut();
    for (name, value) in [
        (header::CONTENT_TYPE, "text/event-stream; charset=utf-8"),
        (header::CACHE_CONTROL, "no-cache"),
        // nginx would otherwise collect the events.
        (HeaderName::from_static("x-accel-buffering"), "no"),
    ] {
        headers.insert(name, HeaderValue::from_static(value));
    }
    response
}
