//! Telling upright lines from those upside down.

use std::sync::atomic::{AtomicBool, Ordering};

use crate::crop::LineImage;
use crate::error::{OcrError, Result};
use crate::network::{Batch, Network};
use crate::resize::resize;

/// Size of the network's input.
const HEIGHT: u32 = 48;
const WIDTH: u32 = 192;
/// Lines in one run.
const BATCH: usize = 6;
/// A line is turned only when the network is surer than this.
const THRESHOLD: f32 = 0.9;

/// The orientation network.
pub(crate) struct Classifier {
    network: Network,
}

impl Classifier {
    pub(crate) fn new(network: Network) -> Self {
        Self { network }
    }

    /// For each line whether it is upside down.
    pub(crate) fn upside_down(&self, lines: &[LineImage], stop: &AtomicBool) -> Result<Vec<bool>> {
        let mut turned = Vec::with_capacity(lines.len());
        for lines in lines.chunks(BATCH) {
            if stop.load(Ordering::Relaxed) {
                return Err(OcrError::Interrupted);
            }
            let pictures: Vec<_> = lines
                .iter()
                .map(|line| {
                    let width = (f64::from(HEIGHT) * line.ratio()).ceil() as u32;
                    resize(&line.image, width.min(WIDTH), HEIGHT)
                })
                .collect();
            let output = self.network.run(Batch::of(&pictures, WIDTH as usize))?;
            if output.shape != [lines.len(), 2] {
                return Err(self
                    .network
                    .wrong_shape(&format!("[{}, 2]", lines.len()), &output));
            }
            turned.extend(
                output
                    .values
                    .chunks_exact(2)
                    .map(|pair| pair[1] > pair[0] && pair[1] > THRESHOLD),
            );
        }
        Ok(turned)
    }
}
