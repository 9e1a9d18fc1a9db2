//! Pictures as the engine takes them, and what is known of those seen before.

use std::collections::{HashMap, VecDeque};
use std::fmt;
use std::sync::Arc;

use mgm_image::PreparedImage;
use mini_gemini::{PictureKey, VisualTokens};

use crate::metrics::VisionMetrics;

/// A picture made ready for the engine's model and known by its content. Cheap to clone.
///
/// [`Engine::picture`](crate::Engine::picture) and [`Engine::picture_from_file`](crate::Engine::picture_from_file) make one, on the
/// calling thread. A file that was seen before is not even decoded.
#[derive(Clone)]
pub struct Picture(pub(crate) Arc<PictureInner>);

pub(crate) struct PictureInner {
    pub(crate) key: PictureKey,
    pub(crate) width: u32,
    pub(crate) height: u32,
    pub(crate) content: Content,
}

pub(crate) enum Content {
    /// What the model saw in it.
    Seen(VisualTokens),
    /// Ready to be looked at.
    Prepared(PreparedImage),
}

impl Picture {
    /// Columns and rows of the picture as it was given.
    pub fn size(&self) -> (u32, u32) {
        (self.0.width, self.0.height)
    }

    pub(crate) fn key(&self) -> PictureKey {
        self.0.key
    }

    /// Bytes held until the picture has been looked at.
    pub(crate) fn pending_bytes(&self) -> usize {
        match &self.0.content {
            Content::Seen(_) => 0,
            Content::Prepared(image) => {
                (image.high_res.len() + image.low_res.len()) * size_of::<f32>()
            }
        }
    }
}

impl fmt::Debug for Picture {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(formatter, "Picture({}×{})", self.0.width, self.0.height)
    }
}

/// SHA-256 of a picture file.
pub(crate) type FileDigest = [u8; 32];

/// Picture files remembered by their digest.
const FILES: usize = 4096;

/// What the model saw in pictures, least recently used first out.
#[derive(Debug)]
pub(crate) struct VisionCache {
    limit: usize,
    bytes: usize,
    clock: u64,
    seen: HashMap<PictureKey, (VisualTokens, u64)>,
    files: HashMap<FileDigest, File>,
    /// Oldest first.
    file_order: VecDeque<FileDigest>,
    hits: u64,
    misses: u64,
    evictions: u64,
}

/// What a picture file turned out to be.
#[derive(Clone, Copy, Debug)]
pub(crate) struct File {
    pub(crate) key: PictureKey,
    pub(crate) width: u32,
    pub(crate) height: u32,
}

impl VisionCache {
    pub(crate) fn new(limit: usize) -> Self {
        Self {
            limit,
            bytes: 0,
            clock: 0,
            seen: HashMap::new(),
            files: HashMap::new(),
            file_order: VecDeque::new(),
            hits: 0,
            misses: 0,
            evictions: 0,
        }
    }

    /// What was seen in a picture.
    pub(crate) fn get(&mut self, key: PictureKey) -> Option<VisualTokens> {
        self.clock += 1;
        let (tokens, used) = self.seen.get_mut(&key)?;
        *used = self.clock;
        Some(tokens.clone())
    }

    /// Keeps what was seen in a picture, if it does not fill the cache by itself.
    pub(crate) fn keep(&mut self, key: PictureKey, tokens: VisualTokens) {
        let bytes = tokens.bytes();
        if bytes > self.limit {
            return;
        }
        self.clock += 1;
        self.bytes += bytes;
        if let Some((old, _)) = self.seen.insert(key, (tokens, self.clock)) {
            self.bytes -= old.bytes();
        }
        while self.bytes > self.limit {
            let oldest = self.seen.iter().min_by_key(|(_, (_, used))| *used);
            let Some(oldest) = oldest.map(|(key, _)| *key) else {
                return;
            };
            if let Some((tokens, _)) = self.seen.remove(&oldest) {
                self.bytes -= tokens.bytes();
                self.evictions += 1;
            }
        }
    }

    /// A file's picture, where the file is remembered and its picture still known.
    pub(crate) fn file(&mut self, digest: &FileDigest) -> Option<(File, VisualTokens)> {
        let file = *self.files.get(digest)?;
        Some((file, self.get(file.key)?))
    }

    /// Remembers which picture a file holds.
    pub(crate) fn remember_file(&mut self, digest: FileDigest, file: File) {
        if self.files.insert(digest, file).is_none() {
            self.file_order.push_back(digest);
        }
        while self.file_order.len() > FILES {
            if let Some(oldest) = self.file_order.pop_front() {
                self.files.remove(&oldest);
            }
        }
    }

    /// Counts a request's picture as known or not.
    pub(crate) fn count(&mut self, known: bool) {
        if known {
            self.hits += 1;
        } else {
            self.misses += 1;
        }
    }

    pub(crate) fn metrics(&self) -> VisionMetrics {
        VisionMetrics {
            hits: self.hits,
            misses: self.misses,
            pictures: self.seen.len(),
            bytes: self.bytes,
            bytes_limit: self.limit,
            evictions: self.evictions,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::test_model::{picture, tiny};

    fn seen(number: u32) -> (PictureKey, VisualTokens) {
        let prepared = tiny().prepare(&picture(40, 30, number)).expect("prepared");
        let tokens = tiny().look_at(&prepared, &mut || Ok(())).expect("seen");
        (PictureKey::of(&prepared), tokens)
    }

    #[test]
    fn the_least_recently_used_goes_first() {
        let pictures: Vec<_> = (0..4).map(seen).collect();
        let one = pictures[0].1.bytes();
        let mut cache = VisionCache::new(3 * one + one / 2);
        for (key, tokens) in &pictures[..3] {
            cache.keep(*key, tokens.clone());
        }
        assert!(cache.get(pictures[0].0).is_some());
        cache.keep(pictures[3].0, pictures[3].1.clone());
        let held: Vec<bool> = pictures
            .iter()
            .map(|(key, _)| cache.get(*key).is_some())
            .collect();
        assert_eq!(held, [true, false, true, true]);
        let metrics = cache.metrics();
        assert_eq!((metrics.pictures, metrics.evictions), (3, 1));
        assert_eq!(metrics.bytes, 3 * one);
        // Kept twice, counted once.
        cache.keep(pictures[3].0, pictures[3].1.clone());
        assert_eq!(cache.metrics().bytes, 3 * one);

        let mut small = VisionCache::new(one - 1);
        small.keep(pictures[0].0, pictures[0].1.clone());
        assert_eq!(small.metrics().bytes, 0);
    }

    #[test]
    fn files_are_known_while_their_picture_is() {
        let (key, tokens) = seen(9);
        let one = tokens.bytes();
        let mut cache = VisionCache::new(one);
        let file = File {
            key,
            width: 40,
            height: 30,
        };
        cache.remember_file([7; 32], file);
        assert!(cache.file(&[7; 32]).is_none(), "not looked at yet");
        cache.keep(key, tokens);
        assert_eq!(cache.file(&[7; 32]).map(|(file, _)| file.width), Some(40));
        let (other, tokens) = seen(10);
        cache.keep(other, tokens);
        assert!(cache.file(&[7; 32]).is_none(), "given up");
        for number in 0..=FILES {
            let mut digest = [0; 32];
            digest[..8].copy_from_slice(&number.to_le_bytes());
            cache.remember_file(digest, file);
        }
        assert_eq!(cache.files.len(), FILES);
    }
}
