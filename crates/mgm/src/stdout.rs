//! Results on stdout, where a reader that stops reading is no failure.

use std::io::Write;

use crate::failure::Failure;

/// Writes `bytes` and makes sure they have left.
pub(crate) fn write(bytes: impl AsRef<[u8]>) -> Result<(), Failure> {
    let mut stdout = std::io::stdout().lock();
    stdout
        .write_all(bytes.as_ref())
        .and_then(|()| stdout.flush())
        .map_err(|error| Failure::stdout(&error))
}

/// Writes one JSON value and a line end.
pub(crate) fn write_json(value: &impl serde::Serialize) -> Result<(), Failure> {
    let mut text = serde_json::to_string_pretty(value).map_err(|error| {
        Failure::failed(format!("the result cannot be written as JSON: {error}"))
    })?;
    text.push('\n');
    write(text)
}
