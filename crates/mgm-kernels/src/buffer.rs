//! Cache-line-aligned storage, and scratch buffers that a thread keeps between calls.

use std::cell::Cell;

use bytemuck::{Pod, Zeroable};
use memmap2::MmapMut;

#[derive(Clone, Copy, Pod, Zeroable)]
#[repr(C, align(64))]
struct Line([u8; 64]);

/// A buffer that starts on a 64-byte boundary, so that vector and tile loads never straddle cache lines.
pub(crate) struct Aligned(Storage);

enum Storage {
    Lines(Vec<Line>),
    /// Pages of the system's own, as many bytes as whole lines have.
    Pages(MmapMut),
}

/// Buffers of at least so many bytes are worth pages of their own.
const PAGES_BYTES: usize = 8 << 20;

impl Default for Aligned {
    fn default() -> Self {
        Self(Storage::Lines(Vec::new()))
    }
}

impl Clone for Aligned {
    fn clone(&self) -> Self {
        let mut copy = Self::lasting(self.len_bytes());
        copy.cast_mut::<u8>().copy_from_slice(self.cast());
        copy
    }
}

impl Aligned {
    /// Zero-filled buffer of at least `bytes` bytes (rounded up to whole lines).
    pub(crate) fn zeroed(bytes: usize) -> Self {
        Self(Storage::Lines(bytemuck::allocation::zeroed_vec(
            bytes.div_ceil(64),
        )))
    }

    /// [`Self::zeroed`] for weights: a large one lies in large pages where the system has them, which saves it hundreds of thousands of page
    /// faults a gigabyte and every pass over it the look-ups.
    pub(crate) fn lasting(bytes: usize) -> Self {
        if bytes >= PAGES_BYTES
            && let Ok(pages) = MmapMut::map_anon(bytes.next_multiple_of(64))
        {
            #[cfg(target_os = "linux")]
            // Without large pages small ones do.
            let _ = pages.advise(memmap2::Advice::HugePage);
            return Self(Storage::Pages(pages));
        }
        Self::zeroed(bytes)
    }

    /// Makes room for `bytes` bytes; the contents are unspecified.
    pub(crate) fn reserve(&mut self, bytes: usize) {
        if self.len_bytes() < bytes.next_multiple_of(64) {
            *self = Self::zeroed(bytes);
        }
    }

    pub(crate) fn len_bytes(&self) -> usize {
        match &self.0 {
            Storage::Lines(lines) => lines.len() * 64,
            Storage::Pages(pages) => pages.len(),
        }
    }

    pub(crate) fn cast<T: Pod>(&self) -> &[T] {
        match &self.0 {
            Storage::Lines(lines) => bytemuck::cast_slice(lines),
            Storage::Pages(pages) => bytemuck::cast_slice(pages),
        }
    }

    pub(crate) fn cast_mut<T: Pod>(&mut self) -> &mut [T] {
        match &mut self.0 {
            Storage::Lines(lines) => bytemuck::cast_slice_mut(lines),
            Storage::Pages(pages) => bytemuck::cast_slice_mut(pages),
        }
    }
}

impl AsRef<[u8]> for Aligned {
    fn as_ref(&self) -> &[u8] {
        self.cast()
    }
}

/// Asks for values that are needed soon, into the second-level cache: the first level can wait for few lines at a time.
pub(crate) fn fetch<T: Pod>(values: &[T]) {
    #[cfg(target_arch = "x86_64")]
    for line in bytemuck::cast_slice::<T, u8>(values).chunks(64) {
        use std::arch::x86_64::{_MM_HINT_T1, _mm_prefetch};
        // SAFETY: a hint; the line is in memory.
        unsafe { _mm_prefetch::<_MM_HINT_T1>(line.as_ptr().cast()) };
    }
    #[cfg(not(target_arch = "x86_64"))]
    let _ = values;
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
