//! The pictures of a conversation: which they are by content, and what the model saw in them.

use mgm_image::PreparedImage;
use sha2::{Digest, Sha256};

use crate::slots::VisualTokens;

/// Visual tokens of pictures that have left the conversation are kept up to this many bytes.
const KEPT_BYTES: usize = 128 << 20;

/// A picture by its content, as the model gets to see it: equal keys, equal visual tokens.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct PictureKey([u8; 16]);

impl PictureKey {
    /// Half a SHA-256 digest of what the towers read.
    pub fn of(prepared: &PreparedImage) -> Self {
        let mut digest = Sha256::new();
        let sizes = [
            prepared.high_res_size,
            prepared.low_res_size,
            u32::try_from(prepared.views).unwrap_or(u32::MAX),
        ];
        for size in sizes {
            digest.update(size.to_le_bytes());
        }
        let mut bytes = [0; 4096];
        // The small views are made from the large picture, which therefore tells all.
        for values in prepared.high_res.chunks(bytes.len() / 4) {
            let filled = &mut bytes[..values.len() * 4];
            for (slot, value) in filled.chunks_exact_mut(4).zip(values) {
                slot.copy_from_slice(&value.to_le_bytes());
            }
            digest.update(filled);
        }
        let mut key = [0; 16];
        key.copy_from_slice(&digest.finalize()[..16]);
        Self(key)
    }
}

/// One picture of the conversation.
#[derive(Clone, Debug)]
pub(crate) struct Picture {
    pub(crate) key: PictureKey,
    pub(crate) visual_tokens: VisualTokens,
}

/// Pictures that have left the conversation, the latest last. Shown again, they are not looked at again.
#[derive(Debug, Default)]
pub(crate) struct SeenPictures {
    held: Vec<Picture>,
}

impl SeenPictures {
    /// Keeps pictures for later; the oldest go when there are too many.
    pub(crate) fn keep(&mut self, pictures: impl IntoIterator<Item = Picture>) {
        for picture in pictures {
            self.held.retain(|held| held.key != picture.key);
            self.held.push(picture);
        }
        let mut total = 0;
        let fits = |picture: &&Picture| {
            total += picture.visual_tokens.bytes();
            total <= KEPT_BYTES
        };
        let kept = self.held.iter().rev().take_while(fits).count();
        self.held.drain(..self.held.len() - kept);
    }

    /// What was seen in this picture, if it is still known.
    pub(crate) fn find(&self, key: PictureKey) -> Option<&Picture> {
        self.held.iter().find(|picture| picture.key == key)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use candle_core::{DType, Device, Tensor};

    fn prepared(values: &[f32], views: usize) -> PreparedImage {
        PreparedImage {
            high_res: values.to_vec(),
            high_res_size: 1,
            low_res: Vec::new(),
            views,
            low_res_size: 1,
        }
    }

    fn picture(number: u8, rows: usize) -> Picture {
        Picture {
            key: PictureKey([number; 16]),
            visual_tokens: VisualTokens::new(
                Tensor::zeros((rows, 1 << 10), DType::F32, &Device::Cpu).expect("a small tensor"),
            ),
        }
    }

    #[test]
    fn keys_tell_contents_apart() {
        let key = PictureKey::of(&prepared(&[0.0, 1.0, 2.0], 1));
        assert_eq!(key, PictureKey::of(&prepared(&[0.0, 1.0, 2.0], 1)));
        assert_ne!(key, PictureKey::of(&prepared(&[0.0, 1.0, -2.0], 1)));
        assert_ne!(key, PictureKey::of(&prepared(&[0.0, 1.0, 2.0], 5)));
        let long: Vec<f32> = (0..5000).map(|index| index as f32).collect();
        let mut changed = long.clone();
        changed[4999] = 0.5;
        assert_ne!(
            PictureKey::of(&prepared(&long, 1)),
            PictureKey::of(&prepared(&changed, 1))
        );
    }

    #[test]
    fn the_oldest_pictures_go_first() {
        let mut seen = SeenPictures::default();
        // 48 MiB each: two fit, three do not.
        let rows = 48 << 8;
        seen.keep([
            picture(1, rows),
            picture(2, rows),
            picture(1, rows),
            picture(3, rows),
        ]);
        assert!(seen.find(PictureKey([2; 16])).is_none());
        assert!(
            seen.find(PictureKey([1; 16])).is_some() && seen.find(PictureKey([3; 16])).is_some()
        );
        // One that is too large by itself is not kept, and nothing older outlives it.
        seen.keep([picture(4, 160 << 8)]);
        assert!(seen.held.is_empty());
    }
}
