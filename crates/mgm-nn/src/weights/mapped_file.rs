//! Read-only memory maps of weight files.

use std::fs::File;
use std::path::Path;
use std::sync::Arc;

use memmap2::Mmap;

use crate::{Error, Result};

/// A whole file as bytes, shared by everything that reads from it.
pub(crate) type MappedFile = Arc<dyn AsRef<[u8]> + Send + Sync>;

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
    if metadata.len() == 0 {
        return Ok(Arc::new(Vec::new()));
    }
    // The one place outside the kernels that needs it: there is no safe way to map a file, because another process could
    // change it meanwhile.
    // SAFETY: the map is read-only and only ever read as bytes, any value of which is valid; `save_safetensors` replaces
    // files by renaming, so this program never changes one that is mapped. A foreign process that truncates a file in use
    // ends this one with SIGBUS, which no program that maps its weights can prevent.
    #[allow(unsafe_code)]
    let map = unsafe { Mmap::map(&file) }.map_err(failed("mapping"))?;
    Ok(Arc::new(map))
}
