//! Micro batches prepared in the background while the model works.

use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::mpsc::SyncSender;

use mgm_data::{Dataset, Sampler, TokeniseSettings, tokenise};
use mini_gemini::{MiniGemini, TrainSample};

use crate::error::TrainError;
use crate::feature_store::FeatureStore;

/// One micro batch, ready for the model.
pub(crate) struct MicroBatch {
    /// Samples with something to learn.
    pub(crate) samples: Vec<TrainSample>,
    /// Positions of all samples, visual tokens included.
    pub(crate) tokens: usize,
    /// Positions that are learnt.
    pub(crate) supervised: usize,
}

/// Makes micro batches by position.
pub(crate) struct Loader<'a> {
    pub(crate) model: &'a MiniGemini,
    pub(crate) dataset: &'a Dataset,
    pub(crate) features: Option<FeatureStore<'a>>,
    pub(crate) sampler: Sampler,
    pub(crate) settings: TokeniseSettings,
}

impl Loader<'_> {
    /// Sends micro batches `first..end` in order until the receiver is gone, `stop` is set, or one fails.
    pub(crate) fn run(
        mut self,
        first: u64,
        end: u64,
        stop: &AtomicBool,
        sender: &SyncSender<Result<MicroBatch, TrainError>>,
    ) {
        for position in first..end {
            if stop.load(Ordering::Relaxed) {
                return;
            }
            let batch = self.micro_batch(position);
            let failed = batch.is_err();
            if sender.send(batch).is_err() || failed {
                return;
            }
        }
    }

    fn micro_batch(&mut self, position: u64) -> Result<MicroBatch, TrainError> {
        let mut batch = MicroBatch {
            samples: Vec::new(),
            tokens: 0,
            supervised: 0,
        };
        for record in self.sampler.micro_batch(position) {
            let conversation = self.dataset.conversation(record)?;
            let sequence = tokenise(&self.settings, &conversation, self.model.tokenizer())
                .map_err(|source| self.dataset.mask_error(record, source))?;
            let supervised = sequence.supervised();
            if supervised == 0 {
                // Only under `mask_mismatch = "mask-whole"`; elsewhere this is an error that names the record.
                continue;
            }
            // A picture beyond `max_length` was cut off with its placeholder.
            let mut images = Vec::with_capacity(sequence.images());
            for name in conversation.images.iter().take(sequence.images()) {
                let Some(store) = &mut self.features else {
                    return Err(TrainError::Model(mini_gemini::Error::NoVision));
                };
                let features = store
                    .get(name)
                    .map_err(|(path, message)| TrainError::Picture {
                        record: self.dataset.describe(record),
                        path,
                        message,
                    })?;
                images.push(features);
            }
            batch.tokens += sequence.positions(self.settings.visual_tokens);
            batch.supervised += supervised;
            batch.samples.push(TrainSample {
                ids: sequence.ids,
                labels: sequence.labels,
                images,
            });
        }
        Ok(batch)
    }
}
