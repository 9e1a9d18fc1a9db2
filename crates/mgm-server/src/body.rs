//! Request bodies: JSON, of limited size, that must come at a decent pace.

use std::time::Instant;

use axum::body::Body;
use axum::http::{HeaderMap, Request, header};
use http_body_util::BodyExt;
use serde::de::DeserializeOwned;

use crate::budget::{Budget, Share};
use crate::error::ApiError;
use crate::options::Limits;

/// Reads a JSON body. Its share of the budget comes with it, to be held for as long as what was read takes memory.
pub(crate) async fn read_json<T: DeserializeOwned>(
    request: Request<Body>,
    limits: &Limits,
    budget: &Budget,
) -> Result<(T, Share), ApiError> {
    let (head, body) = request.into_parts();
    check_headers(&head.headers, limits)?;
    let (bytes, share) = receive(body, limits, budget).await?;
    Ok((parse(&bytes)?, share))
}

fn check_headers(headers: &HeaderMap, limits: &Limits) -> Result<(), ApiError> {
    let text = |name| {
        headers
            .get(name)
            .map(|value| value.to_str().unwrap_or_default())
    };
    // A web page may send any other type to any server without asking first.
    let media_type = text(header::CONTENT_TYPE).unwrap_or_default();
    let essence = media_type.split(';').next().unwrap_or_default().trim();
    if !essence.eq_ignore_ascii_case("application/json") {
        return Err(ApiError::media_type(
            "the body must be JSON: send the header Content-Type: application/json",
        ));
    }
    match text(header::CONTENT_ENCODING) {
        None | Some("identity" | "") => {}
        Some(_) => {
            return Err(ApiError::media_type(
                "compressed bodies are not accepted: send the body without Content-Encoding",
            ));
        }
    }
    let length = text(header::CONTENT_LENGTH).and_then(|length| length.parse::<u64>().ok());
    match length {
        Some(length) if length > limits.body_bytes as u64 => Err(too_large(limits)),
        _ => Ok(()),
    }
}

fn too_large(limits: &Limits) -> ApiError {
    ApiError::too_large(format!(
        "the body is larger than the limit of {} bytes",
        limits.body_bytes
    ))
}

async fn receive(
    mut body: Body,
    limits: &Limits,
    budget: &Budget,
) -> Result<(Vec<u8>, Share), ApiError> {
    let started = Instant::now();
    let mut bytes = Vec::new();
    let mut share = Share::default();
    loop {
        // The time allowed grows with what has come.
        let earned = bytes.len() as f64 / limits.body_bytes_per_second.max(1) as f64;
        let allowed = limits.body_timeout.as_secs_f64() + earned;
        let left = allowed - started.elapsed().as_secs_f64();
        let frame = match std::time::Duration::try_from_secs_f64(left) {
            Ok(left) => tokio::time::timeout(left, body.frame()).await.ok(),
            Err(_) => None,
        };
        let Some(frame) = frame else {
            return Err(ApiError::request_timeout(format!(
                "the body came too slowly: {} bytes in {:.0} s",
                bytes.len(),
                started.elapsed().as_secs_f64()
            )));
        };
        let data = match frame {
            None => break,
            Some(Ok(frame)) => match frame.into_data() {
                Ok(data) => data,
                Err(_) => continue,
            },
            Some(Err(_)) => return Err(ApiError::malformed("the body ended early")),
        };
        let length = bytes.len() + data.len();
        if length > limits.body_bytes {
            return Err(too_large(limits));
        }
        budget.grow(&mut share, length)?;
        bytes.extend_from_slice(&data);
    }
    Ok((bytes, share))
}

fn parse<T: DeserializeOwned>(bytes: &[u8]) -> Result<T, ApiError> {
    let text = std::str::from_utf8(bytes).map_err(|error| {
        ApiError::malformed(format!(
            "the body is not UTF-8: byte {} does not belong there",
            error.valid_up_to()
        ))
    })?;
    let mut deserializer = serde_json::Deserializer::from_str(text);
    let value = serde_path_to_error::deserialize(&mut deserializer).map_err(|error| {
        let path = error.path().to_string();
        let inner = error.into_inner();
        match inner.classify() {
            serde_json::error::Category::Data if path != "." => {
                ApiError::invalid(path, plain(&inner.to_string()))
            }
            serde_json::error::Category::Data => ApiError::malformed(plain(&inner.to_string())),
            _ => ApiError::malformed(format!("the body is not JSON: {inner}")),
        }
    })?;
    deserializer
        .end()
        .map_err(|error| ApiError::malformed(format!("the body is not one JSON value: {error}")))?;
    Ok(value)
}

/// serde's words without the names of Rust's types and without the place, which is told by the field's name.
fn plain(message: &str) -> String {
    let message = match message.rfind(" at line ") {
        Some(place) => &message[..place],
        None => message,
    };
    let mut message = message.to_string();
    for (name, plain) in [
        ("expected u8", "expected a whole number from 0 to 255"),
        ("expected u32", "expected a whole number of 0 or more"),
        ("expected u64", "expected a whole number of 0 or more"),
        ("expected usize", "expected a whole number of 0 or more"),
        ("expected i64", "expected a whole number"),
        ("expected f32", "expected a number"),
        ("expected f64", "expected a number"),
    ] {
        if message.ends_with(name) {
            message.truncate(message.len() - name.len());
            message.push_str(plain);
            break;
        }
    }
    message
}

#[cfg(test)]
mod tests {
    use serde::Deserialize;

    use super::*;

    #[derive(Debug, Deserialize)]
    struct Thing {
        #[allow(dead_code)]
        n: Option<u64>,
    }

    fn refused(body: &[u8]) -> ApiError {
        parse::<Thing>(body).unwrap_err()
    }

    #[test]
    fn errors_name_the_field_in_plain_words() {
        let error = refused(br#"{"n": -1}"#);
        assert_eq!(error.body()["error"]["param"], "n");
        assert_eq!(
            error.message(),
            "invalid value: integer `-1`, expected a whole number of 0 or more"
        );
        assert!(
            refused(b"{\"n\": 1")
                .message()
                .starts_with("the body is not JSON")
        );
        assert!(
            refused(b"{} {}")
                .message()
                .starts_with("the body is not one JSON value")
        );
        assert!(refused(b"{\"n\": \"\xff\"}").message().contains("byte 7"));
        assert_eq!(refused(b"").status(), 400);
        let deep = format!("{{\"x\": {}", "[".repeat(1 << 20));
        assert_eq!(refused(deep.as_bytes()).status(), 400);
        let quoted = format!("{{\"n\": \"{}\"}}", "x".repeat(1 << 20));
        assert!(refused(quoted.as_bytes()).message().len() < 1000);
    }
}
