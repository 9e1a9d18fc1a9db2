//! Cache-line-aligned storage, and scratch buffers that a thread keeps between calls.

use std::cell::Cell;

use bytemuck::{Pod, Zeroable};

#[derive(Clone, Copy, Pod, Zeroable)]
#[repr(C, align(64))]
struct Line([u8; 64]);

/// A buffer that starts on a 64-byte boundary, so that vector and tile loads never straddle cache lines.
#[derive(Clone, Default)]
pub(crate) struct Aligned {
    lines: Vec<Line>,
}

impl Aligned {
    /// Zero-filled buffer of at least `bytes` bytes (rounded up to whole lines).
    pub(crate) fn zeroed(bytes: usize) -> Self {
        Self {
            lines: bytemuck::allocation::zeroed_vec(bytes.div_ceil(64)),
        }
    }

    /// Makes room for `bytes` bytes; the contents are unspecified.
    pub(crate) fn reserve(&mut self, bytes: usize) {
        let lines = bytes.div_ceil(64);
        if self.lines.len() < lines {
            *self = Self::zeroed(bytes);
        }
    }

    pub(crate) fn len_bytes(&self) -> usize {
        self.lines.len() * 64
    }

    pub(crate) fn cast<T: Pod>(&self) -> &[T] {
        bytemuck::cast_slice(&self.lines)
    }

    pub(crate) fn cast_mut<T: Pod>(&mut self) -> &mut [T] {
        bytemuck::cast_slice_mut(&mut self.lines)
    }
}

impl AsRef<[u8]> for Aligned {
    fn as_ref(&self) -> &[u8] {
        self.cast()
    }
}

thread_local! {
    static SCRATCH: Cell<Vec<Aligned>> = const { Cell::new(Vec::new()) };
}

/// Largest scratch buffer that a thread keeps for the next call.
const KEEP_BYTES: usize = 64 << 20;

/// Runs `f` with a scratch buffer of at least `bytes` bytes with unspecified contents. Nested calls get their own buffer
/// each; the buffers stay with the thread, which saves page faults in the hot loops.
pub(crate) fn with_scratch<R>(bytes: usize, f: impl FnOnce(&mut Aligned) -> R) -> R {
    let mut pool = SCRATCH.take();
    let mut buffer = pool.pop().unwrap_or_default();
    SCRATCH.set(pool);
    buffer.reserve(bytes);
    let result = f(&mut buffer);
    if buffer.len_bytes() <= KEEP_BYTES {
        let mut pool = SCRATCH.take();
        pool.push(buffer);
        SCRATCH.set(pool);
    }
    result
}
