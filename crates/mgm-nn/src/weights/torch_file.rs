//! Reading torch `.bin`/`.pt` files (zip archives of a restricted pickle and raw storages).

use std::collections::HashMap;
use std::path::Path;

use candle_core::{Tensor, pickle};

use crate::{Error, Result};

/// All tensors of the file. Candle's unpickler executes nothing.
pub(crate) fn read(path: &Path) -> Result<HashMap<String, Tensor>> {
    let tensors = pickle::read_all(path).map_err(|error| {
        Error::format(
            path.display().to_string(),
            format!("expected a torch checkpoint: {error}"),
        )
    })?;
    Ok(tensors.into_iter().collect())
}
