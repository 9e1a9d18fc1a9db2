//! What the scheduler needs of a model. There is one model; tests put a faulty one in its place.

use std::any::Any;

use mgm_image::{PreparedImage, RgbImage};
use mgm_text::DetokenizeStream;
use mini_gemini::decoder::CachePool;
use mini_gemini::{Error, MiniGemini, MiningAttention, PictureKey, Read, VisualTokens};

/// Called between the layers of the towers.
pub(crate) type Pause<'a> = dyn FnMut() -> Result<(), Error> + 'a;

/// Finds what was seen in a picture.
pub(crate) type FindPicture<'a> = dyn Fn(PictureKey) -> Option<VisualTokens> + Sync + 'a;

pub(crate) trait Brain: Send + Sync {
    /// [`MiniGemini::read`].
    fn read(
        &self,
        reads: &mut [Read<'_>],
        pictures: &FindPicture<'_>,
    ) -> Result<Vec<Vec<f32>>, Error>;

    /// [`MiniGemini::look_at`].
    fn look_at(&self, image: &PreparedImage, pause: &mut Pause<'_>) -> Result<VisualTokens, Error>;

    /// [`MiniGemini::mining_attention`].
    fn mining_attention(
        &self,
        image: &RgbImage,
        pause: &mut Pause<'_>,
    ) -> Result<MiningAttention, Error>;

    /// Where caches come from.
    fn cache_pool(&self) -> CachePool;

    /// Ids that end an answer.
    fn stop_ids(&self) -> &[u32];

    /// Turns ids into text.
    fn stream(&self) -> DetokenizeStream;
}

impl Brain for MiniGemini {
    fn read(
        &self,
        reads: &mut [Read<'_>],
        pictures: &FindPicture<'_>,
    ) -> Result<Vec<Vec<f32>>, Error> {
        self.read(reads, pictures)
    }

    fn look_at(&self, image: &PreparedImage, pause: &mut Pause<'_>) -> Result<VisualTokens, Error> {
        self.look_at(image, pause)
    }

    fn mining_attention(
        &self,
        image: &RgbImage,
        pause: &mut Pause<'_>,
    ) -> Result<MiningAttention, Error> {
        self.mining_attention(image, pause)
    }

    fn cache_pool(&self) -> CachePool {
        self.decoder().cache_pool()
    }

    fn stop_ids(&self) -> &[u32] {
        self.stop_ids()
    }

    fn stream(&self) -> DetokenizeStream {
        self.tokenizer().stream()
    }
}

/// A panic as an error.
pub(crate) fn unwound<T>(
    result: Result<Result<T, Error>, Box<dyn Any + Send>>,
) -> Result<T, Error> {
    result.unwrap_or_else(|panic| {
        let message = panic
            .downcast_ref::<&str>()
            .map(|message| message.to_string())
            .or_else(|| panic.downcast_ref::<String>().cloned())
            .unwrap_or_default();
        Err(Error::Input(format!("internal fault: {message}")))
    })
}
