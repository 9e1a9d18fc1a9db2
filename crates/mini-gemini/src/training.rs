//! The training loss over a micro batch (spec: training §4).

use candle_core::Tensor;
use mgm_text::IMAGE_TOKEN;

use crate::decoder::Context;
use crate::error::{Error, Result};
use crate::model::MiniGemini;
use crate::vision::TowerFeatures;

/// Label of a position that is not supervised.
pub const IGNORE_LABEL: i64 = mgm_text::IGNORE_LABEL;

/// One tokenised conversation with what the frozen towers saw in its pictures.
#[derive(Clone, Debug)]
pub struct TrainSample {
    /// Token ids, [`IMAGE_TOKEN`] at each picture's place.
    pub ids: Vec<i64>,
    /// As long as `ids`; [`IGNORE_LABEL`] where nothing is supervised.
    pub labels: Vec<i64>,
    /// Features of the pictures, in order.
    pub images: Vec<TowerFeatures>,
}

impl MiniGemini {
    /// Mean cross entropy (f32 scalar, differentiable) over all supervised positions of the micro batch: each position predicts the next
    /// label of its own sequence. Sequences are laid one after another, without padding; the loss equals that of a padded batch.
    /// Sequences longer than `max_length` positions, visual ones included, are cut there.
    ///
    /// # Errors
    /// When a sample's parts disagree or nothing is supervised.
    pub fn loss(&self, samples: &[TrainSample], max_length: usize) -> Result<Tensor> {
        let mut embeddings = Vec::with_capacity(samples.len());
        let mut lengths = Vec::with_capacity(samples.len());
        // Rows whose hidden state predicts a label; only these pay for the output head.
        let mut rows = Vec::new();
        let mut targets = Vec::new();
        let mut start = 0;
        for sample in samples {
            if sample.ids.len() != sample.labels.len() {
                return Err(Error::Input(format!(
                    "{} ids but {} labels",
                    sample.ids.len(),
                    sample.labels.len()
                )));
            }
            let images = sample
                .images
                .iter()
                .map(|features| self.visual_tokens(features))
                .collect::<Result<Vec<_>>>()?;
            let spliced = self.splice(&sample.ids, &images)?;
            let length = spliced.dim(0)?.min(max_length);
            let mut position = 0;
            let mut images = images.iter();
            for (id, label) in sample.ids.iter().zip(&sample.labels) {
                if *id == IMAGE_TOKEN {
                    position += images.next().map_or(Ok(0), |image| image.dim(0))?;
                    continue;
                }
                if *label != IGNORE_LABEL && position > 0 && position < length {
                    rows.push((start + position - 1) as u32);
                    targets.push(*label);
                }
                position += 1;
            }
            embeddings.push(spliced.narrow(0, 0, length)?);
            lengths.push(length);
            start += length;
        }
        if targets.is_empty() {
            return Err(Error::Input(
                "no position of the micro batch is supervised: all labels are ignored or cut off"
                    .into(),
            ));
        }
        let embeddings = Tensor::cat(&embeddings, 0)?;
        let hidden = self
            .decoder()
            .hidden(&embeddings, &mut Context::Sequences(&lengths))?;
        let count = rows.len();
        let rows = Tensor::from_vec(rows, count, hidden.device())?;
        self.decoder()
            .loss(&hidden.index_select(&rows, 0)?, &targets)
    }
}
