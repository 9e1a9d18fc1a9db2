//! Read-only memory maps of weight files.

use std::fs::File;
use std::path::Path;
use std::sync::Arc;

use mgm_kernels::mapped::Mapped;

use crate::{Error, Result};

/// A whole file as bytes, shared by everything that reads from it.
pub(crate) type MappedFile = Arc<Mapped>;

/// Maps a file. An empty file gives an empty slice.
pub(crate) fn map(path: &Path) -> Result<MappedFile> {
    let failed = |action| {
        move |source| Error::Io {
            path: path.to_path_buf(),
            action,
            source,
        }
    };
    let file = File::open(path).map_err(failed("opening"))?;
    let metadata = file.metadata().map_err(failed("reading the size"))?;
    if !metadata.is_file() {
        return Err(Error::format(
            path.display().to_string(),
            "expected a file, found a directory or device",
        ));
    }
    let mapped = Mapped::open(&file).map_err(failed("mapping"))?;
    // What a clone of a model's repository holds when its large files were not fetched.
    if (*mapped).as_ref().starts_with(b"version https://git-lfs") {
        return Err(Error::format(
            path.display().to_string(),
            "a Git LFS pointer, the weights themselves were not downloaded (git lfs pull)",
        ));
    }
    Ok(mapped)
}
