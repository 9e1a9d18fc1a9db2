//! An ONNX graph with one picture-like input and one output.

use std::path::{Path, PathBuf};
use std::sync::Arc;

use mgm_image::RgbImage;
use rten::{Model, RunOptions, ThreadPool};
use rten_tensor::prelude::*;
use rten_tensor::{NdTensor, Tensor};

use crate::error::{OcrError, Result};

/// A loaded network.
pub(crate) struct Network {
    file: PathBuf,
    model: Model,
    threads: Arc<ThreadPool>,
}

/// What a network made of a batch.
pub(crate) struct Output {
    /// Sizes of the axes.
    pub(crate) shape: Vec<usize>,
    /// Row-major.
    pub(crate) values: Vec<f32>,
}

impl Network {
    /// Reads the graph of `file`.
    pub(crate) fn load(file: &Path, threads: &Arc<ThreadPool>) -> Result<Self> {
        let failure = |message: String| OcrError::Network {
            file: file.into(),
            message,
        };
        let bytes = std::fs::read(file).map_err(|error| failure(error.to_string()))?;
        let model = Model::load(bytes)
            .map_err(|error| failure(format!("not a network that can be run: {error}")))?;
        if (model.input_ids().len(), model.output_ids().len()) != (1, 1) {
            return Err(failure(format!(
                "expected a network with one input and one output, found {} and {}",
                model.input_ids().len(),
                model.output_ids().len()
            )));
        }
        Ok(Self {
            file: file.into(),
            model,
            threads: threads.clone(),
        })
    }

    /// Text stored beside the graph.
    pub(crate) fn metadata(&self, key: &str) -> Option<&str> {
        self.model.metadata().get(key)
    }

    /// Something is wrong with this network.
    pub(crate) fn failure(&self, message: impl Into<String>) -> OcrError {
        OcrError::Network {
            file: self.file.clone(),
            message: message.into(),
        }
    }

    /// Runs the graph on `batch`.
    pub(crate) fn run(&self, batch: Batch) -> Result<Output> {
        let input = NdTensor::from_data(batch.shape, batch.values);
        let options = RunOptions::default().with_thread_pool(Some(self.threads.clone()));
        let output = self
            .model
            .run_one(input.into(), Some(options))
            .map_err(|error| self.failure(format!("the network failed: {error}")))?;
        let tensor: Tensor<f32> = output
            .try_into()
            .map_err(|error| self.failure(format!("expected an output of floats: {error}")))?;
        Ok(Output {
            shape: tensor.shape().to_vec(),
            values: tensor.into_data(),
        })
    }

    /// An output of another shape than the step expects.
    pub(crate) fn wrong_shape(&self, expected: &str, output: &Output) -> OcrError {
        self.failure(format!(
            "expected an output of shape {expected}, found {:?}",
            output.shape
        ))
    }
}

/// Pictures of one size as PP-OCR's networks take them: `[pictures, 3, height, width]`, blue first, from -1 to 1; zero where a picture is
/// narrower than the batch.
pub(crate) struct Batch {
    shape: [usize; 4],
    values: Vec<f32>,
}

impl Batch {
    /// `pictures`, each of the same height and at most `width` wide.
    ///
    /// # Panics
    /// If they are not.
    pub(crate) fn of(pictures: &[RgbImage], width: usize) -> Self {
        let height = pictures
            .first()
            .map_or(0, |picture| picture.height as usize);
        let plane = width * height;
        let mut values = vec![0f32; pictures.len() * 3 * plane];
        for (picture, planes) in pictures
            .iter()
            .zip(values.chunks_exact_mut(3 * plane.max(1)))
        {
            assert_eq!(picture.height as usize, height, "one height");
            for (channel, plane) in planes.chunks_exact_mut(plane.max(1)).enumerate() {
                for (y, line) in plane.chunks_exact_mut(width).enumerate() {
                    let row = picture.row(y as u32).chunks_exact(3);
                    for (value, pixel) in line[..picture.width as usize].iter_mut().zip(row) {
                        *value = (f32::from(pixel[2 - channel]) / 255.0 - 0.5) / 0.5;
                    }
                }
            }
        }
        Self {
            shape: [pictures.len(), 3, height, width],
            values,
        }
    }
}
