//! From what a request says about a picture to the bytes of its file.

use std::sync::Arc;

use base64::Engine as _;
use base64::alphabet;
use base64::engine::{DecodePaddingMode, GeneralPurpose, GeneralPurposeConfig};

use crate::app::App;
use crate::budget::Share;
use crate::error::ApiError;
use crate::wire::message::PictureAddress;

/// Standard base64; the padding may be left out.
const BASE64: GeneralPurpose = GeneralPurpose::new(
    &alphabet::STANDARD,
    GeneralPurposeConfig::new().with_decode_padding_mode(DecodePaddingMode::Indifferent),
);

/// A picture file, perhaps still in base64.
pub(crate) struct PictureFile {
    content: Content,
    /// The field it came in, for error messages.
    pub(crate) param: String,
    /// Of the memory for requests, where the file did not come in the body.
    _share: Share,
}

enum Content {
    /// A data URL whose base64 begins at the offset.
    DataUrl(String, usize),
    #[cfg(feature = "remote-images")]
    Bytes(Vec<u8>),
}

/// Looks at an address, and fetches the picture if it is elsewhere and that is allowed.
pub(crate) async fn obtain(
    app: &Arc<App>,
    address: PictureAddress,
) -> Result<PictureFile, ApiError> {
    let PictureAddress { url, param } = address;
    let scheme = scheme(&url).map(str::to_ascii_lowercase);
    match scheme.as_deref() {
        Some("data") => {
            let start = data_start(&url).map_err(|message| ApiError::invalid(&*param, message))?;
            Ok(PictureFile {
                content: Content::DataUrl(url, start),
                param,
                _share: Share::default(),
            })
        }
        Some("http" | "https") if !app.options.allow_remote_images => Err(ApiError::unsupported(
            param,
            "this server does not fetch pictures from addresses: send the file itself as a data URL, data:image/jpeg;base64,…",
        )),
        Some("http" | "https") => fetch(app, url, param).await,
        Some(scheme) => Err(ApiError::unsupported(
            param,
            format!(
                "`{scheme}:` addresses are not supported: expected a data URL, data:image/jpeg;base64,…"
            ),
        )),
        None => Err(ApiError::invalid(
            param,
            "`url` is no address: expected a data URL, data:image/jpeg;base64,…",
        )),
    }
}

#[cfg(feature = "remote-images")]
async fn fetch(app: &Arc<App>, url: String, param: String) -> Result<PictureFile, ApiError> {
    let closed = |_| ApiError::internal("pictures cannot be fetched any more");
    let permit = Arc::clone(&app.fetches)
        .acquire_owned()
        .await
        .map_err(closed)?;
    let mut share = Share::default();
    let largest = usize::try_from(app.options.limits.image_bytes).unwrap_or(usize::MAX);
    app.bodies.grow(&mut share, largest)?;
    let (fetcher, limit) = (Arc::clone(&app.fetcher), app.options.limits.image_bytes);
    let fetched = tokio::task::spawn_blocking(move || {
        let fetched = fetcher.fetch(&url, limit);
        drop(permit);
        fetched
    });
    match fetched.await {
        Ok(Ok(bytes)) => {
            share.shrink(bytes.len());
            Ok(PictureFile {
                content: Content::Bytes(bytes),
                param,
                _share: share,
            })
        }
        Ok(Err(error)) => Err(ApiError::invalid(
            param,
            format!("the picture cannot be fetched: {error}"),
        )
        .with_code("image_not_fetched")),
        Err(_) => Err(ApiError::internal("fetching the picture failed")),
    }
}

#[cfg(not(feature = "remote-images"))]
async fn fetch(_: &Arc<App>, _: String, param: String) -> Result<PictureFile, ApiError> {
    Err(ApiError::unsupported(
        param,
        "this build does not fetch pictures from addresses: send a data URL",
    ))
}

/// What stands before the first colon, if it can be a scheme.
fn scheme(url: &str) -> Option<&str> {
    let (scheme, _) = url.split_at_checked(url.bytes().take(32).position(|byte| byte == b':')?)?;
    let fit = |byte: u8| byte.is_ascii_alphanumeric() || matches!(byte, b'+' | b'-' | b'.');
    (!scheme.is_empty() && scheme.bytes().all(fit)).then_some(scheme)
}

/// Where the base64 of a data URL begins.
fn data_start(url: &str) -> Result<usize, String> {
    let head = &url.as_bytes()[..url.len().min(256)];
    let comma = head
        .iter()
        .position(|byte| *byte == b',')
        .ok_or("a data URL without a comma: expected data:image/jpeg;base64,…")?;
    let description = String::from_utf8_lossy(&head[..comma]).to_ascii_lowercase();
    let description = description.trim_start_matches("data:");
    let mut parts = description.split(';').map(str::trim);
    let media_type = parts.next().unwrap_or_default();
    if !media_type.is_empty() && !media_type.starts_with("image/") {
        return Err(format!(
            "a data URL of type `{media_type}`: expected a picture, data:image/jpeg;base64,…"
        ));
    }
    if parts.next_back() != Some("base64") {
        return Err("a data URL without `;base64`: expected data:image/jpeg;base64,…".into());
    }
    Ok(comma + 1)
}

impl PictureFile {
    /// The bytes of the file, at most `limit`. Takes time: for threads that may.
    pub(crate) fn into_bytes(self, limit: u64) -> Result<Vec<u8>, ApiError> {
        let Self { content, param, .. } = self;
        let bytes = match content {
            Content::DataUrl(url, start) => decode(&url[start..], limit).map_err(|error| {
                ApiError::invalid(&*param, format!("the picture's base64 is broken: {error}"))
            })?,
            #[cfg(feature = "remote-images")]
            Content::Bytes(bytes) => Some(bytes),
        };
        match bytes.filter(|bytes| bytes.len() as u64 <= limit) {
            Some(bytes) => Ok(bytes),
            None => Err(ApiError::invalid(
                param,
                format!("the picture file is larger than the limit of {limit} bytes"),
            )
            .with_code("image_too_large")),
        }
    }
}

/// The bytes; nothing when there would be more than `limit`.
fn decode(text: &str, limit: u64) -> Result<Option<Vec<u8>>, base64::DecodeError> {
    // Some programs break base64 into lines.
    let compact: String;
    let text = if text.bytes().any(|byte| byte.is_ascii_whitespace()) {
        compact = text.split_ascii_whitespace().collect();
        &compact
    } else {
        text
    };
    // Rounded down: a little too much is noticed afterwards.
    if text.len() as u64 / 4 * 3 > limit.saturating_add(3) {
        return Ok(None);
    }
    BASE64.decode(text).map(Some)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn file(url: &str, limit: u64) -> Result<Vec<u8>, String> {
        let start = data_start(url)?;
        let file = PictureFile {
            content: Content::DataUrl(url.into(), start),
            param: "here".into(),
            _share: Share::default(),
        };
        file.into_bytes(limit)
            .map_err(|error| error.message().to_string())
    }

    #[test]
    fn data_urls_are_read_as_browsers_and_programs_write_them() {
        for url in [
            "data:image/png;base64,aGVsbG8=",
            "DATA:IMAGE/PNG;BASE64,aGVsbG8=",
            "data:image/jpeg;name=a.jpg;base64,aGVsbG8",
            "data:;base64,aGVs\r\nbG8=",
        ] {
            assert_eq!(scheme(url).map(str::to_lowercase).as_deref(), Some("data"));
            assert_eq!(file(url, 5).unwrap(), b"hello", "{url}");
        }
        for (url, needle) in [
            ("data:image/png,aGVsbG8=", "base64"),
            ("data:text/html;base64,aGVsbG8=", "text/html"),
            ("data:image/png;base64", "comma"),
            ("data:image/png;base64,%%%%", "broken"),
            ("data:image/png;base64,aGVé", "broken"),
            ("data:image/png;base64,aGVsbG8h", "limit of 5"),
        ] {
            let error = file(url, 5).unwrap_err();
            assert!(error.contains(needle), "{url}: {error}");
        }
    }

    #[test]
    fn schemes_are_told_from_other_text() {
        assert_eq!(scheme("https://a.b/c.png"), Some("https"));
        assert_eq!(scheme("file:///etc/passwd"), Some("file"));
        for none in ["picture.png", "", ":", "a b:c", "é:x", &"x".repeat(100)] {
            assert_eq!(scheme(none), None, "{none}");
        }
    }
}
