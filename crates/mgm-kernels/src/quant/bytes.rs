//! Shared bytes that any owner can back: a vector, a memory map.

use std::fmt;
use std::ops::Range;
use std::sync::Arc;

use super::QuantError;
use crate::buffer::Aligned;

/// Anything that owns bytes for as long as it lives.
pub type Owner = Arc<dyn AsRef<[u8]> + Send + Sync>;

/// A range of the bytes of a shared owner. Clones share the owner.
#[derive(Clone)]
pub struct Bytes {
    owner: Owner,
    start: usize,
    len: usize,
}

impl Bytes {
    /// Takes a vector.
    pub fn from_vec(data: Vec<u8>) -> Self {
        let len = data.len();
        Self {
            owner: Arc::new(data),
            start: 0,
            len,
        }
    }

    /// Takes the first `len` bytes of an aligned buffer.
    pub(crate) fn from_aligned(data: Aligned, len: usize) -> Self {
        debug_assert!(len <= data.len_bytes());
        Self {
            owner: Arc::new(data),
            start: 0,
            len,
        }
    }

    /// The bytes `range` of `owner`, which may be a memory map.
    pub fn slice(
        owner: Arc<dyn AsRef<[u8]> + Send + Sync>,
        range: Range<usize>,
    ) -> Result<Self, QuantError> {
        let len = (*owner).as_ref().len();
        if range.start > range.end || range.end > len {
            return Err(QuantError::Range {
                start: range.start,
                end: range.end,
                len,
            });
        }
        Ok(Self {
            owner,
            start: range.start,
            len: range.end - range.start,
        })
    }

    /// A part of these bytes, sharing their owner; `range` counts from their beginning.
    pub fn part(&self, range: Range<usize>) -> Result<Self, QuantError> {
        if range.start > range.end || range.end > self.len {
            return Err(QuantError::Range {
                start: range.start,
                end: range.end,
                len: self.len,
            });
        }
        Ok(Self {
            owner: self.owner.clone(),
            start: self.start + range.start,
            len: range.end - range.start,
        })
    }

    /// Whether these can be panels of a matrix `[n, k]` that take so many bytes, which vectors and tiles read from whole cache lines.
    pub(crate) fn check_panels(
        &self,
        n: usize,
        k: usize,
        expected: usize,
    ) -> Result<(), QuantError> {
        let bytes = self.as_slice();
        let aligned = bytes.is_empty() || bytes.as_ptr().addr().is_multiple_of(64);
        if bytes.len() == expected && aligned {
            return Ok(());
        }
        Err(QuantError::Panels {
            n,
            k,
            expected,
            found: bytes.len(),
        })
    }

    /// The bytes.
    pub fn as_slice(&self) -> &[u8] {
        // An owner that shrinks breaks its own contract; it then yields no bytes rather than foreign ones.
        (*self.owner)
            .as_ref()
            .get(self.start..self.start + self.len)
            .unwrap_or(&[])
    }
}

impl fmt::Debug for Bytes {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Bytes({} bytes)", self.len)
    }
}
