//! Pictures named on the command line: files and http(s) addresses.

use std::fmt;
use std::path::PathBuf;
use std::str::FromStr;

use mgm_image::{Limits, RgbImage};

use crate::failure::Failure;

/// Where a picture comes from.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum PictureSource {
    /// A file.
    File(PathBuf),
    /// An http or https address.
    Url(String),
}

impl FromStr for PictureSource {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let lower = text.to_ascii_lowercase();
        if text.is_empty() {
            Err("expected a file or an http(s) address".into())
        } else if lower.starts_with("http://") || lower.starts_with("https://") {
            Ok(Self::Url(text.into()))
        } else {
            Ok(Self::File(text.into()))
        }
    }
}

impl fmt::Display for PictureSource {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::File(path) => path.display().fmt(f),
            Self::Url(url) => url.fmt(f),
        }
    }
}

impl PictureSource {
    /// Reads and decodes the picture.
    pub(crate) fn load(&self) -> Result<RgbImage, Failure> {
        let limits = Limits::default();
        match self {
            Self::File(path) => {
                mgm_image::open(path, &limits).map_err(|error| self.failure(&error))
            }
            Self::Url(url) => {
                let bytes =
                    download(url, limits.max_bytes).map_err(|failure| failure.about(url))?;
                mgm_image::decode(&bytes, &limits).map_err(|error| self.failure(&error))
            }
        }
    }

    fn failure(&self, error: &mgm_image::ImageError) -> Failure {
        Failure::from_error(error).about(&self.to_string())
    }
}

/// Fetches at most `max_bytes`, within half a minute, over at most five redirections.
#[cfg(feature = "http")]
fn download(url: &str, max_bytes: u64) -> Result<Vec<u8>, Failure> {
    use std::time::Duration;

    let agent: ureq::Agent = ureq::Agent::config_builder()
        .timeout_global(Some(Duration::from_secs(30)))
        .timeout_connect(Some(Duration::from_secs(10)))
        .max_redirects(5)
        .user_agent(concat!("mgm/", env!("CARGO_PKG_VERSION")))
        .build()
        .into();
    let failure = |error: ureq::Error| match error {
        ureq::Error::BodyExceedsLimit(limit) => {
            Failure::failed(format!("larger than the limit of {} MiB", limit >> 20))
        }
        error => Failure::from_error(&error),
    };
    let mut response = agent.get(url).call().map_err(failure)?;
    response
        .body_mut()
        .with_config()
        .limit(max_bytes)
        .read_to_vec()
        .map_err(failure)
}

#[cfg(not(feature = "http"))]
fn download(_: &str, _: u64) -> Result<Vec<u8>, Failure> {
    Err(Failure::failed("this build cannot fetch pictures")
        .hint("download the file first, or build with the feature `http`"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn addresses_are_told_from_files() {
        assert_eq!(
            "HTTPS://a.b/c.png".parse(),
            Ok(PictureSource::Url("HTTPS://a.b/c.png".into()))
        );
        assert_eq!(
            "http.png".parse(),
            Ok(PictureSource::File("http.png".into()))
        );
        assert!("".parse::<PictureSource>().is_err());
    }
}
