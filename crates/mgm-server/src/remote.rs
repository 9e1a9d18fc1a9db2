//! Pictures from http and https addresses, fetched so that a client cannot make this machine talk to places only it can reach.
//!
//! The check sits where names become addresses, in the one lookup whose result is connected to: a name that answers differently the next
//! time (DNS rebinding) gains nothing. Redirections are followed here, each through the same check. Proxies of the environment are not
//! used: they would do the lookup elsewhere.

use std::net::{IpAddr, SocketAddr, ToSocketAddrs};
use std::sync::Arc;
use std::time::{Duration, Instant};

use ureq::http::{Uri, header};
use ureq::unversioned::resolver::{ResolvedSocketAddrs, Resolver};
use ureq::unversioned::transport::{DefaultConnector, NextTimeout};
use url::Url;

use crate::address::is_public;

/// Most redirections followed.
const REDIRECTIONS: usize = 3;
/// Longest time for one picture, redirections included.
const TIMEOUT: Duration = Duration::from_secs(20);
/// Longest time to connect.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(5);

/// Why a picture was not fetched. Says nothing that would tell a client what is where in the network.
#[derive(Debug, thiserror::Error)]
pub(crate) enum FetchError {
    #[error("this is not an http or https address")]
    Address,
    #[error("addresses with a user name or password are not fetched")]
    Credentials,
    #[error(
        "the host is unknown or has no public address; private, local and reserved addresses are never fetched from"
    )]
    NotPublic,
    #[error("the server redirects from https to http")]
    Downgrade,
    #[error("the server redirects more than {REDIRECTIONS} times")]
    Redirections,
    #[error("the server redirects nowhere")]
    Nowhere,
    #[error("the server answered with status {0}")]
    Status(u16),
    #[error("the picture is larger than {0} bytes")]
    TooLarge(u64),
    #[error("it took longer than {} s", TIMEOUT.as_secs())]
    Timeout,
    #[error("the server could not be reached or did not answer properly")]
    Failed,
}

impl From<ureq::Error> for FetchError {
    fn from(error: ureq::Error) -> Self {
        match error {
            ureq::Error::HostNotFound => Self::NotPublic,
            ureq::Error::BodyExceedsLimit(limit) => Self::TooLarge(limit),
            ureq::Error::Timeout(_) => Self::Timeout,
            _ => Self::Failed,
        }
    }
}

/// The addresses of a host and port.
type Lookup = dyn Fn(&str, u16) -> std::io::Result<Vec<SocketAddr>> + Send + Sync;

/// Looks a host up and lets only permitted addresses through.
struct Guard {
    lookup: Arc<Lookup>,
    permitted: fn(IpAddr) -> bool,
}

impl std::fmt::Debug for Guard {
    fn fmt(&self, formatter: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        formatter.write_str("Guard")
    }
}

impl Resolver for Guard {
    fn resolve(
        &self,
        uri: &Uri,
        _: &ureq::config::Config,
        timeout: NextTimeout,
    ) -> Result<ResolvedSocketAddrs, ureq::Error> {
        let host = uri.host().ok_or(ureq::Error::HostNotFound)?;
        let host = host
            .trim_start_matches('[')
            .trim_end_matches(']')
            .to_string();
        let default = if uri.scheme_str() == Some("https") {
            443
        } else {
            80
        };
        let port = uri.port_u16().unwrap_or(default);
        // The system's lookup knows no time limit: it gets a thread, which is left behind when it takes too long.
        let (sender, receiver) = std::sync::mpsc::sync_channel(1);
        let lookup = Arc::clone(&self.lookup);
        std::thread::Builder::new()
            .name("lookup".into())
            .spawn(move || {
                let _ = sender.send(lookup(&host, port));
            })
            .map_err(ureq::Error::Io)?;
        let found = receiver
            .recv_timeout(*timeout.after)
            .map_err(|_| ureq::Error::Timeout(timeout.reason))?
            .map_err(|_| ureq::Error::HostNotFound)?;
        let mut addresses = self.empty();
        for address in found
            .into_iter()
            .filter(|address| (self.permitted)(address.ip()))
        {
            // There is room for 16, which are plenty.
            if addresses.try_push(address).is_err() {
                break;
            }
        }
        if addresses.is_empty() {
            return Err(ureq::Error::HostNotFound);
        }
        Ok(addresses)
    }
}

/// Fetches pictures. Blocks: for threads that may.
#[derive(Debug)]
pub(crate) struct Fetcher {
    agent: ureq::Agent,
}

impl Default for Fetcher {
    fn default() -> Self {
        let system = |host: &str, port: u16| Ok((host, port).to_socket_addrs()?.collect());
        Self::new(Arc::new(system), is_public)
    }
}

impl Fetcher {
    fn new(lookup: Arc<Lookup>, permitted: fn(IpAddr) -> bool) -> Self {
        let config = ureq::Agent::config_builder()
            .proxy(None)
            .max_redirects(0)
            .max_idle_connections(0)
            .http_status_as_error(false)
            .timeout_connect(Some(CONNECT_TIMEOUT))
            .accept("image/jpeg, image/png, image/webp, image/bmp, image/gif")
            .user_agent(concat!("mgm/", env!("CARGO_PKG_VERSION")))
            .build();
        let guard = Guard { lookup, permitted };
        Self {
            agent: ureq::Agent::with_parts(config, DefaultConnector::default(), guard),
        }
    }

    /// The bytes at `address`, at most `limit`. Whether they are a picture is for the decoder to say.
    pub(crate) fn fetch(&self, address: &str, limit: u64) -> Result<Vec<u8>, FetchError> {
        let deadline = Instant::now() + TIMEOUT;
        let mut url = checked(address)?;
        for _ in 0..=REDIRECTIONS {
            let left = deadline.saturating_duration_since(Instant::now());
            if left.is_zero() {
                return Err(FetchError::Timeout);
            }
            let mut response = self
                .agent
                .get(url.as_str())
                .config()
                .timeout_global(Some(left))
                .build()
                .call()?;
            let status = response.status();
            if !status.is_redirection() {
                if !status.is_success() {
                    return Err(FetchError::Status(status.as_u16()));
                }
                let body = response.body_mut().with_config().limit(limit);
                return Ok(body.read_to_vec()?);
            }
            let target = response.headers().get(header::LOCATION);
            let target = target
                .and_then(|target| target.to_str().ok())
                .and_then(|target| url.join(target).ok())
                .ok_or(FetchError::Nowhere)?;
            let target = checked(target.as_str())?;
            if url.scheme() == "https" && target.scheme() != "https" {
                return Err(FetchError::Downgrade);
            }
            url = target;
        }
        Err(FetchError::Redirections)
    }
}

fn checked(address: &str) -> Result<Url, FetchError> {
    let url = Url::parse(address).map_err(|_| FetchError::Address)?;
    if !matches!(url.scheme(), "http" | "https") || url.host_str().is_none() {
        return Err(FetchError::Address);
    }
    if !url.username().is_empty() || url.password().is_some() {
        return Err(FetchError::Credentials);
    }
    Ok(url)
}

// Both ends of these conversations are on loopback: 127.0.0.2 stands for the public Internet, everything else is refused as it would be.
#[cfg(all(test, target_os = "linux"))]
mod tests {
    use std::io::{BufRead, BufReader, Write};
    use std::net::TcpListener;
    use std::sync::Mutex;

    use super::*;

    const PUBLIC: IpAddr = IpAddr::V4(std::net::Ipv4Addr::new(127, 0, 0, 2));

    /// A server on `ip` that gives every request the answer that `answer` makes of its path; its port, and the paths asked for.
    fn server(
        ip: &str,
        answer: impl Fn(&str) -> Vec<u8> + Send + 'static,
    ) -> (u16, Arc<Mutex<Vec<String>>>) {
        let listener = TcpListener::bind((ip, 0)).unwrap();
        let port = listener.local_addr().unwrap().port();
        let asked = Arc::new(Mutex::new(Vec::new()));
        let paths = Arc::clone(&asked);
        std::thread::spawn(move || {
            for stream in listener.incoming() {
                let mut stream = stream.unwrap();
                let mut lines = BufReader::new(stream.try_clone().unwrap()).lines();
                let first = lines.next().unwrap().unwrap();
                for line in lines {
                    if line.unwrap().is_empty() {
                        break;
                    }
                }
                let path = first.split(' ').nth(1).unwrap().to_string();
                let bytes = answer(&path);
                paths.lock().unwrap().push(path);
                let _ = stream.write_all(&bytes);
            }
        });
        (port, asked)
    }

    fn ok(body: &str) -> Vec<u8> {
        format!(
            "HTTP/1.1 200 OK\r\nContent-Length: {}\r\n\r\n{body}",
            body.len()
        )
        .into_bytes()
    }

    fn redirect(target: &str) -> Vec<u8> {
        format!("HTTP/1.1 302 Found\r\nLocation: {target}\r\nContent-Length: 0\r\n\r\n")
            .into_bytes()
    }

    /// Names: `public.test` is public, `private.test` is not, `rebinding.test` is public the first time and private ever after.
    fn fetcher() -> Fetcher {
        let asked = Mutex::new(0);
        let lookup = move |host: &str, port: u16| {
            let address: IpAddr = match host {
                "public.test" => PUBLIC,
                "private.test" => "127.0.0.1".parse().unwrap(),
                "rebinding.test" => {
                    let mut asked = asked.lock().unwrap();
                    *asked += 1;
                    if *asked == 1 {
                        PUBLIC
                    } else {
                        "127.0.0.1".parse().unwrap()
                    }
                }
                host => match host.parse() {
                    Ok(address) => address,
                    Err(_) => return Err(std::io::Error::other("no such host")),
                },
            };
            Ok(vec![SocketAddr::new(address, port)])
        };
        Fetcher::new(Arc::new(lookup), |address| address == PUBLIC)
    }

    #[test]
    fn public_addresses_are_fetched_and_redirections_followed() {
        let (port, asked) = server("127.0.0.2", |path| match path {
            "/here" => redirect("/there?x=1"),
            "/there?x=1" => ok("picture"),
            _ => b"HTTP/1.1 404 Not Found\r\nContent-Length: 0\r\n\r\n".to_vec(),
        });
        let fetch =
            |path: &str, limit| fetcher().fetch(&format!("http://public.test:{port}{path}"), limit);
        assert_eq!(fetch("/here", 7).unwrap(), b"picture");
        assert_eq!(*asked.lock().unwrap(), ["/here", "/there?x=1"]);
        assert!(matches!(fetch("/here", 6), Err(FetchError::TooLarge(6))));
        assert!(matches!(fetch("/gone", 6), Err(FetchError::Status(404))));
    }

    #[test]
    fn private_places_are_reached_by_no_road() {
        let (inside, asked_inside) = server("127.0.0.1", |_| ok("secret"));
        let (outside, _) = server("127.0.0.2", move |path| match path {
            "/address" => redirect(&format!("http://127.0.0.1:{inside}/")),
            "/decimal" => redirect(&format!("http://2130706433:{inside}/")),
            "/mapped" => redirect(&format!("http://[::ffff:127.0.0.1]:{inside}/")),
            "/name" => redirect(&format!("http://private.test:{inside}/")),
            "/file" => redirect("file:///etc/passwd"),
            "/nowhere" => b"HTTP/1.1 302 Found\r\nContent-Length: 0\r\n\r\n".to_vec(),
            _ => redirect("/loop"),
        });
        let not_public = |url: String| {
            let result = fetcher().fetch(&url, 100);
            assert!(
                matches!(result, Err(FetchError::NotPublic)),
                "{url}: {result:?}"
            );
        };
        for host in [
            "127.0.0.1",
            "private.test",
            "0x7f.1",
            "2130706433",
            "[::ffff:127.0.0.1]",
        ] {
            not_public(format!("http://{host}:{inside}/"));
        }
        for path in ["/address", "/decimal", "/mapped", "/name"] {
            not_public(format!("http://public.test:{outside}{path}"));
        }
        let fetch = |path| fetcher().fetch(&format!("http://public.test:{outside}{path}"), 100);
        assert!(matches!(fetch("/file"), Err(FetchError::Address)));
        assert!(matches!(fetch("/nowhere"), Err(FetchError::Nowhere)));
        assert!(matches!(fetch("/loop"), Err(FetchError::Redirections)));
        assert_eq!(*asked_inside.lock().unwrap(), [""; 0]);
    }

    #[test]
    fn the_address_that_was_checked_is_the_one_connected_to() {
        let (port, _) = server("127.0.0.2", |_| ok("public"));
        let fetcher = fetcher();
        let url = format!("http://rebinding.test:{port}/");
        assert_eq!(fetcher.fetch(&url, 100).unwrap(), b"public");
        assert!(matches!(
            fetcher.fetch(&url, 100),
            Err(FetchError::NotPublic)
        ));
    }

    #[test]
    fn other_addresses_are_refused() {
        for (address, credentials) in [
            ("ftp://public.test/", false),
            ("file:///etc/passwd", false),
            ("gopher://public.test/", false),
            ("//public.test/", false),
            ("picture.png", false),
            ("http://", false),
            ("http://user@public.test/", true),
            ("http://user:word@public.test/", true),
        ] {
            let result = fetcher().fetch(address, 100);
            match credentials {
                true => assert!(matches!(result, Err(FetchError::Credentials)), "{address}"),
                false => assert!(matches!(result, Err(FetchError::Address)), "{address}"),
            }
        }
    }
}
