//! Read-only memory maps of weight files.

use std::fs::File;
use std::io;
use std::sync::Arc;

use memmap2::Mmap;

/// Maps a whole regular file as bytes; an empty file gives an empty slice.
///
/// # Errors
/// When the file's size cannot be read or the system refuses the map.
pub fn map(file: &File) -> io::Result<Arc<dyn AsRef<[u8]> + Send + Sync>> {
    if file.metadata()?.len() == 0 {
        return Ok(Arc::new(Vec::new()));
    }
    // SAFETY: the map is read-only and only ever read as bytes, any value of which is valid; files that this program writes are replaced
    // by renaming, so it never changes one that is mapped. A foreign process that truncates a file in use ends this one with SIGBUS,
    // which no program that maps its weights can prevent.
    let map = unsafe { Mmap::map(file) }?;
    Ok(Arc::new(map))
}
