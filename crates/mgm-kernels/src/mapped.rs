//! Read-only memory maps of weight files.

use std::fs::File;
use std::io;
use std::ops::Range;
use std::sync::Arc;

use memmap2::Mmap;

/// A whole file as bytes.
#[derive(Debug)]
pub struct Mapped(Content);

#[derive(Debug)]
enum Content {
    File(Mmap),
    Memory(Vec<u8>),
}

impl Mapped {
    /// Bytes that are in memory already stand in for a file.
    pub fn from_vec(bytes: Vec<u8>) -> Arc<Self> {
        Arc::new(Self(Content::Memory(bytes)))
    }

    /// Maps a regular file; an empty file gives an empty slice.
    ///
    /// # Errors
    /// When the file's size cannot be read or the system refuses the map.
    pub fn open(file: &File) -> io::Result<Arc<Self>> {
        if file.metadata()?.len() == 0 {
            return Ok(Self::from_vec(Vec::new()));
        }
        // SAFETY: the map is read-only and only ever read as bytes, any value of which is valid; files that this program writes are
        // replaced by renaming, so it never changes one that is mapped. A foreign process that truncates a file in use ends this one
        // with SIGBUS, which no program that maps its weights can prevent.
        let map = unsafe { Mmap::map(file) }?;
        Ok(Arc::new(Self(Content::File(map))))
    }

    /// Asks the system to read the whole file into its cache while other work goes on. A hint.
    pub fn will_need(&self) {
        #[cfg(unix)]
        if let Content::File(map) = &self.0 {
            let _ = map.advise(memmap2::Advice::WillNeed);
        }
    }

    /// Gives the pages that lie wholly inside these bytes back to the system: they no longer count as this process's memory and are read again
    /// from the file (or the system's cache of it) when next touched. Contents do not change. A hint: where the system has no such
    /// call, or refuses it, nothing happens.
    pub fn release(&self, bytes: Range<usize>) {
        #[cfg(unix)]
        if let Content::File(map) = &self.0 {
            const PAGE: usize = 4096;
            let (start, end) = (
                bytes.start.next_multiple_of(PAGE),
                bytes.end.min(map.len()) / PAGE * PAGE,
            );
            if start < end {
                // SAFETY: dropping pages of a shared read-only map of a file loses nothing, the next access reads them again from the
                // file; the range lies inside the map.
                let _ = unsafe {
                    map.unchecked_advise_range(
                        memmap2::UncheckedAdvice::DontNeed,
                        start,
                        end - start,
                    )
                };
            }
        }
        #[cfg(not(unix))]
        let _ = bytes;
    }
}

impl AsRef<[u8]> for Mapped {
    fn as_ref(&self) -> &[u8] {
        match &self.0 {
            Content::File(map) => map,
            Content::Memory(bytes) => bytes,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn released_pages_read_the_same_again() {
        let path = std::env::temp_dir().join(format!("mgm-kernels-mapped-{}", std::process::id()));
        let written: Vec<u8> = (0..40_000u32).map(|i| (i * 31 % 251) as u8).collect();
        std::fs::write(&path, &written).unwrap();
        let mapped = Mapped::open(&File::open(&path).unwrap()).unwrap();
        assert_eq!((*mapped).as_ref(), written);
        for range in [0..40_000, 5000..5001, 4096..8192, 39_999..50_000, 0..0] {
            mapped.release(range);
            assert_eq!((*mapped).as_ref(), written);
        }
        drop(mapped);
        std::fs::write(&path, []).unwrap();
        let empty = Mapped::open(&File::open(&path).unwrap()).unwrap();
        empty.release(0..10);
        assert!((*empty).as_ref().is_empty());
        std::fs::remove_file(&path).unwrap();
    }
}
