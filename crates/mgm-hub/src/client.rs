//! Talking to the hub: redirections, the token, what its statuses mean, and trying again.

use std::io;
use std::sync::atomic::AtomicBool;
use std::time::Duration;

use ureq::Agent;
use ureq::http::{HeaderMap, Method, Request, Uri, header};

use crate::environment::Environment;
use crate::error::{Error, Result};
use crate::repository::{Repository, Revision};
use crate::request::{self, Stream, Waiting};

/// Most redirections one request may take.
const REDIRECTIONS: usize = 5;
/// Longest wait that a server may ask for.
const LONGEST_PAUSE: Duration = Duration::from_secs(300);
/// Longest text of a server that is passed on.
const MESSAGE: usize = 200;

/// How long to wait and how often to try again.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Patience {
    /// Attempts without a single new byte before giving up.
    pub attempts: u32,
    /// Pause before the second attempt; each further one is twice as long.
    pub first_pause: Duration,
    /// Silence after which a connection counts as broken.
    pub silence: Duration,
}

impl Default for Patience {
    fn default() -> Self {
        Self {
            attempts: 6,
            first_pause: Duration::from_secs(1),
            silence: Duration::from_secs(60),
        }
    }
}

/// Why an attempt failed.
#[derive(Debug)]
pub(crate) enum Trouble {
    /// Trying again will not help.
    Final(Error),
    /// Trying again may help, after the time the server asks for.
    Passing {
        reason: String,
        wait: Option<Duration>,
    },
    /// No connection came about. While a download runs this may pass; at its start it is most likely a wrong address or no network.
    Unreachable { reason: String },
}

impl From<Error> for Trouble {
    fn from(error: Error) -> Self {
        Self::Final(error)
    }
}

impl Trouble {
    pub(crate) fn passing(reason: impl Into<String>) -> Self {
        Self::Passing {
            reason: reason.into(),
            wait: None,
        }
    }

    pub(crate) fn broken(error: &io::Error) -> Self {
        Self::passing(format!("the connection broke: {error}"))
    }

    pub(crate) fn waiting(waiting: Waiting, patience: Patience) -> Self {
        match waiting {
            Waiting::Stopped => Self::Final(Error::Stopped),
            Waiting::Silence => Self::passing(format!(
                "nothing came for {} s",
                patience.silence.as_secs_f32()
            )),
            Waiting::Lost => Self::passing("the connection was lost"),
        }
    }
}

/// What the hub says about a file, gathered along the redirections.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct FileFacts {
    pub(crate) commit: Option<String>,
    pub(crate) tag: Option<String>,
    pub(crate) size: Option<u64>,
}

impl FileFacts {
    /// The first answer that knows a fact wins: the hub's own, not that of the store it redirects to.
    fn learn(&mut self, headers: &HeaderMap) {
        let text = |name| Some(headers.get(name)?.to_str().ok()?.trim().to_string());
        self.commit = self.commit.take().or_else(|| text("x-repo-commit"));
        self.tag = self.tag.take().or_else(|| text("x-linked-etag"));
        self.size = self.size.or_else(|| text("x-linked-size")?.parse().ok());
    }

    /// The plain headers of an answer that is the file itself.
    fn learn_plain(&mut self, headers: &HeaderMap) {
        let text = |name| Some(headers.get(name)?.to_str().ok()?.trim().to_string());
        self.tag = self.tag.take().or_else(|| text(header::ETAG));
        self.size = self
            .size
            .or_else(|| text(header::CONTENT_LENGTH)?.parse().ok());
    }
}

/// An answer with a status of success.
pub(crate) struct Answer {
    pub(crate) status: u16,
    pub(crate) headers: HeaderMap,
    pub(crate) facts: FileFacts,
    pub(crate) body: Stream,
}

/// Asks the hub about one repository.
pub(crate) struct Client<'a> {
    agent: Agent,
    pub(crate) environment: &'a Environment,
    pub(crate) repository: &'a Repository,
    pub(crate) revision: &'a Revision,
    pub(crate) patience: Patience,
    pub(crate) stop: &'a AtomicBool,
}

impl<'a> Client<'a> {
    pub(crate) fn new(
        environment: &'a Environment,
        repository: &'a Repository,
        revision: &'a Revision,
        patience: Patience,
        stop: &'a AtomicBool,
    ) -> Self {
        let agent = Agent::config_builder()
            .timeout_connect(Some(patience.silence.min(Duration::from_secs(20))))
            .timeout_recv_response(Some(patience.silence))
            // Redirections are followed here: the token must stay with the hub, and the answers on the way carry facts.
            .max_redirects(0)
            .http_status_as_error(false)
            .user_agent(concat!("mgm/", env!("CARGO_PKG_VERSION")))
            .build()
            .into();
        Self {
            agent,
            environment,
            repository,
            revision,
            patience,
            stop,
        }
    }

    /// The bytes of `url` from `offset` on, wherever the hub keeps them.
    pub(crate) fn get(&self, url: &str, offset: u64) -> Result<Answer, Trouble> {
        self.follow(Method::GET, url, offset, true)
    }

    /// What the hub says about the file at `url`.
    pub(crate) fn file_facts(&self, url: &str) -> Result<FileFacts, Trouble> {
        Ok(self.follow(Method::HEAD, url, 0, false)?.facts)
    }

    fn follow(
        &self,
        method: Method,
        url: &str,
        offset: u64,
        elsewhere: bool,
    ) -> Result<Answer, Trouble> {
        let mut facts = FileFacts::default();
        let mut url = url.to_string();
        let mut at_home = true;
        for _ in 0..=REDIRECTIONS {
            let response = self.send(&method, &url, offset, at_home)?;
            let (head, body) = response.into_parts();
            let status = head.status.as_u16();
            if at_home {
                facts.learn(&head.headers);
            }
            if !head.status.is_redirection() {
                self.check(status, &head.headers, &url, at_home)?;
                if at_home && offset == 0 {
                    facts.learn_plain(&head.headers);
                }
                return Ok(Answer {
                    status,
                    headers: head.headers,
                    facts,
                    body: Stream::new(body),
                });
            }
            let target = head
                .headers
                .get(header::LOCATION)
                .and_then(|location| resolve(&url, location.to_str().ok()?))
                .ok_or_else(|| Error::Answer {
                    url: shown(&url),
                    message: format!("status {status} without a usable Location"),
                })?;
            if url.starts_with("https://") && !target.starts_with("https://") {
                return Err(Error::Answer {
                    url: shown(&url),
                    message: format!("it redirects to {}, which is not encrypted", shown(&target)),
                }
                .into());
            }
            // Once away from the hub, the token is not sent again even if the way leads back.
            at_home = at_home && origin(&target) == origin(&self.environment.endpoint);
            if !at_home && !elsewhere {
                return Ok(Answer {
                    status,
                    headers: head.headers,
                    facts,
                    body: Stream::new(body),
                });
            }
            url = target;
        }
        Err(Error::Answer {
            url: shown(&url),
            message: format!("more than {REDIRECTIONS} redirections"),
        }
        .into())
    }

    fn send(
        &self,
        method: &Method,
        url: &str,
        offset: u64,
        at_home: bool,
    ) -> Result<ureq::http::Response<ureq::Body>, Trouble> {
        let mut request = Request::builder()
            .method(method)
            .uri(url)
            // The size on the way must be the file's.
            .header(header::ACCEPT_ENCODING, "identity");
        if offset > 0 {
            request = request.header(header::RANGE, format!("bytes={offset}-"));
        }
        if let Some(token) = self.environment.token.as_ref().filter(|_| at_home) {
            request = request.header(header::AUTHORIZATION, format!("Bearer {}", token.secret));
        }
        let request = request.body(()).map_err(|error| Error::Answer {
            url: shown(url),
            message: format!("no usable address: {error}"),
        })?;
        // The agent's own limits are shorter; this one holds whatever they do not cover.
        let patience = self.patience.silence * 2;
        request::send(&self.agent, request, self.stop, patience)
            .map_err(|waiting| Trouble::waiting(waiting, self.patience))?
            .map_err(|error| trouble(error, url))
    }

    /// What a status means.
    fn check(
        &self,
        status: u16,
        headers: &HeaderMap,
        url: &str,
        at_home: bool,
    ) -> Result<(), Trouble> {
        if (200..300).contains(&status) {
            return Ok(());
        }
        let text = |name| {
            let text = headers.get(name).and_then(|value| value.to_str().ok());
            let text = text.unwrap_or_default().chars().filter(|c| !c.is_control());
            text.take(MESSAGE).collect::<String>()
        };
        let (code, message) = (text("x-error-code"), text("x-error-message"));
        if matches!(status, 408 | 425 | 429 | 500..) {
            let seconds = text("retry-after").parse().ok();
            let wait = seconds.map(Duration::from_secs);
            return match wait {
                Some(wait) if wait > LONGEST_PAUSE => Err(Error::Status {
                    url: shown(url),
                    status,
                    message: format!("try again in {} s", wait.as_secs()),
                }
                .into()),
                wait => Err(Trouble::Passing {
                    reason: format!("status {status}"),
                    wait,
                }),
            };
        }
        if !at_home && matches!(status, 401 | 403) {
            // Addresses of the hub's stores are valid for a while only; the hub gives a new one.
            return Err(Trouble::passing(format!(
                "{} answered {status}",
                shown(url)
            )));
        }
        let endpoint = self.environment.endpoint.clone();
        let repository = self.repository.to_string();
        let token = self.environment.token.as_ref();
        Err(Trouble::Final(match (code.as_str(), status, token) {
            ("GatedRepo", ..) => Error::Gated {
                endpoint,
                repository,
                token: token.is_some(),
            },
            ("RevisionNotFound", ..) => Error::NoRevision {
                repository,
                revision: self.revision.to_string(),
            },
            (_, 401, Some(token)) if message.contains("Invalid credentials") => Error::Token {
                endpoint,
                origin: token.origin.clone(),
            },
            ("RepoNotFound", ..) | ("", 401 | 404, _) => Error::NoRepository {
                endpoint,
                repository,
                token: token.is_some(),
            },
            _ => Error::Status {
                url: shown(url),
                status,
                message,
            },
        }))
    }
}

/// Whether an error of the connection may pass.
fn trouble(error: ureq::Error, url: &str) -> Trouble {
    use std::io::ErrorKind::{ConnectionRefused, InvalidData, InvalidInput};
    let reason = error.to_string();
    match error {
        ureq::Error::HostNotFound | ureq::Error::ConnectionFailed => {
            Trouble::Unreachable { reason }
        }
        ureq::Error::Io(error) if error.kind() == ConnectionRefused => {
            Trouble::Unreachable { reason }
        }
        // A certificate that is not trusted, an address that is none.
        ureq::Error::Io(error) if matches!(error.kind(), InvalidData | InvalidInput) => {
            Trouble::Final(network(url, reason))
        }
        ureq::Error::Io(_) | ureq::Error::Timeout(_) | ureq::Error::Protocol(_) => {
            Trouble::passing(reason)
        }
        _ => Trouble::Final(network(url, reason)),
    }
}

fn network(url: &str, reason: String) -> Error {
    Error::Network {
        url: shown(url),
        reason,
        attempts: 1,
    }
}

/// Counts attempts that brought nothing new, and waits between them.
pub(crate) struct Attempts<'a> {
    patience: Patience,
    stop: &'a AtomicBool,
    /// Whether an unreachable server may come back.
    reached: bool,
    failed: u32,
}

impl<'a> Attempts<'a> {
    /// `reached`: whether the server has answered before.
    pub(crate) fn new(client: &Client<'a>, reached: bool) -> Self {
        Self {
            patience: client.patience,
            stop: client.stop,
            reached,
            failed: 0,
        }
    }

    /// Something came: the count starts again.
    pub(crate) fn progressed(&mut self) {
        self.failed = 0;
    }

    /// Waits before the next attempt, or gives up.
    pub(crate) fn failed(
        &mut self,
        trouble: Trouble,
        url: &str,
        note: &mut dyn FnMut(String),
    ) -> Result<()> {
        let (reason, wait) = match trouble {
            Trouble::Final(error) => return Err(error),
            Trouble::Unreachable { reason } if !self.reached => return Err(network(url, reason)),
            Trouble::Unreachable { reason } => (reason, None),
            Trouble::Passing { reason, wait } => (reason, wait),
        };
        self.failed += 1;
        if self.failed >= self.patience.attempts {
            return Err(Error::Network {
                url: shown(url),
                reason,
                attempts: self.failed,
            });
        }
        let doubled = self.patience.first_pause * 2u32.saturating_pow((self.failed - 1).min(5));
        let wait = wait.unwrap_or(doubled);
        note(format!(
            "{reason}; trying again in {} s (attempt {} of {})",
            wait.as_secs_f32(),
            self.failed + 1,
            self.patience.attempts
        ));
        match request::pause(wait, self.stop) {
            true => Ok(()),
            false => Err(Error::Stopped),
        }
    }
}

/// An address without its query, which may hold a signature.
pub(crate) fn shown(url: &str) -> String {
    url.split(['?', '#']).next().unwrap_or_default().to_string()
}

/// Scheme, host and port. `None` equals no other.
fn origin(url: &str) -> Option<(String, String, u16)> {
    let uri: Uri = url.parse().ok()?;
    let scheme = uri.scheme_str()?.to_ascii_lowercase();
    let port = uri
        .port_u16()
        .unwrap_or(if scheme == "https" { 443 } else { 80 });
    Some((scheme, uri.host()?.to_ascii_lowercase(), port))
}

/// The address that a `Location` means, seen from `base`.
fn resolve(base: &str, location: &str) -> Option<String> {
    let uri: Uri = base.parse().ok()?;
    let target = if location.starts_with("http://") || location.starts_with("https://") {
        location.to_string()
    } else if let Some(rest) = location.strip_prefix("//") {
        format!("{}://{rest}", uri.scheme_str()?)
    } else if location.starts_with('/') {
        format!("{}://{}{location}", uri.scheme_str()?, uri.authority()?)
    } else {
        return None;
    };
    origin(&target).is_some().then_some(target)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn redirections_are_resolved() {
        let base = "https://hub.test/a/b/resolve/main/c";
        for (location, expected) in [
            ("/x/y?z=1", Some("https://hub.test/x/y?z=1")),
            ("https://cdn.test/x", Some("https://cdn.test/x")),
            ("//cdn.test/x", Some("https://cdn.test/x")),
            ("x", None),
            ("file:///etc/passwd", None),
            ("https://", None),
        ] {
            assert_eq!(resolve(base, location).as_deref(), expected, "{location}");
        }
        assert_eq!(origin("https://Hub.test/x"), origin("https://hub.test:443"));
        for other in [
            "http://hub.test",
            "https://hub.test:444",
            "https://hub.test.evil.test",
            "https://cdn.hub.test",
        ] {
            assert_ne!(origin("https://hub.test"), origin(other), "{other}");
        }
        assert_eq!(
            shown("https://cdn.test/x?Signature=secret#y"),
            "https://cdn.test/x"
        );
    }
}
