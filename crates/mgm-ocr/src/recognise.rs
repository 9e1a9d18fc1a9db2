//! Reading a line: a network that gives every column of the picture a probability for each character, decoded by connectionist
//! temporal classification (Graves et al. 2006), greedily.

use std::sync::atomic::{AtomicBool, Ordering};

use mgm_image::RgbImage;

use crate::crop::LineImage;
use crate::error::{OcrError, Result};
use crate::network::{Batch, Network};
use crate::resize::resize;

/// Height of the network's input.
const HEIGHT: u32 = 48;
/// Its smallest width.
const NARROWEST: u32 = 320;
/// Lines in one run; they are as wide as the widest of them.
const BATCH: usize = 6;
/// Columns in one run, which bound the memory it takes.
const MOST_COLUMNS: u32 = 12_800;
/// Key of the characters in the network's metadata, one a line.
const CHARACTERS_KEY: &str = "character";

/// What a line says.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct Reading {
    /// The text.
    pub(crate) text: String,
    /// Mean probability of its characters; 0 without any.
    pub(crate) confidence: f32,
}

/// The recognition network.
pub(crate) struct Recogniser {
    network: Network,
    characters: Vec<String>,
}

impl Recogniser {
    /// Takes the characters from the network's metadata.
    pub(crate) fn new(network: Network) -> Result<Self> {
        let Some(text) = network.metadata(CHARACTERS_KEY) else {
            return Err(network.failure(format!(
                "expected the characters in the metadata under `{CHARACTERS_KEY}`, found nothing"
            )));
        };
        let characters = text.lines().chain([" "]).map(str::to_string).collect();
        Ok(Self {
            network,
            characters,
        })
    }

    /// Reads each line.
    pub(crate) fn read(&self, lines: &[LineImage], stop: &AtomicBool) -> Result<Vec<Reading>> {
        // Lines of similar width share a run, so that little of it is padding.
        let mut order: Vec<usize> = (0..lines.len()).collect();
        order.sort_by(|a, b| lines[*a].ratio().total_cmp(&lines[*b].ratio()));
        let mut readings = vec![None; lines.len()];
        let mut rest = &order[..];
        while !rest.is_empty() {
            if stop.load(Ordering::Relaxed) {
                return Err(OcrError::Interrupted);
            }
            let fitting = (1..=BATCH.min(rest.len()))
                .rev()
                .find(|count| {
                    *count as u32 * batch_width(lines[rest[count - 1]].ratio()) <= MOST_COLUMNS
                })
                .unwrap_or(1);
            let (now, later) = rest.split_at(fitting);
            rest = later;
            let width = batch_width(lines[now[now.len() - 1]].ratio());
            let pictures: Vec<RgbImage> = now
                .iter()
                .map(|index| {
                    let natural = (f64::from(HEIGHT) * lines[*index].ratio()).ceil() as u32;
                    resize(&lines[*index].image, natural.min(width), HEIGHT)
                })
                .collect();
            let read = self.run(&pictures, width)?;
            for (index, reading) in now.iter().zip(read) {
                readings[*index] = Some(reading);
            }
        }
        Ok(readings.into_iter().flatten().collect())
    }

    fn run(&self, pictures: &[RgbImage], width: u32) -> Result<Vec<Reading>> {
        let output = self.network.run(Batch::of(pictures, width as usize))?;
        let classes = self.characters.len() + 1;
        match output.shape[..] {
            [count, steps, found] if count == pictures.len() && found == classes && steps > 0 => {
                Ok(output
                    .values
                    .chunks_exact(steps * classes)
                    .map(|line| decode(line, &self.characters))
                    .collect())
            }
            _ => Err(self.network.wrong_shape(
                &format!("[{}, columns, {classes}]", pictures.len()),
                &output,
            )),
        }
    }
}

/// Width of a run whose widest line has this ratio of width to height.
fn batch_width(ratio: f64) -> u32 {
    ((f64::from(HEIGHT) * ratio) as u32).max(NARROWEST)
}

/// The likeliest class of each column, repetitions once, without the blank (class 0).
///
/// `probabilities` is `[columns, 1 + characters]`.
pub(crate) fn decode(probabilities: &[f32], characters: &[String]) -> Reading {
    let mut text = String::new();
    let (mut sum, mut count) = (0f64, 0u32);
    let mut previous = 0;
    for column in probabilities.chunks_exact(characters.len() + 1) {
        let mut class = 0;
        for (index, probability) in column.iter().enumerate() {
            if *probability > column[class] {
                class = index;
            }
        }
        if class != previous && class != 0 {
            text.push_str(&characters[class - 1]);
            sum += f64::from(column[class]);
            count += 1;
        }
        previous = class;
    }
    Reading {
        text,
        confidence: if count == 0 {
            0.0
        } else {
            (sum / f64::from(count)) as f32
        },
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn repetitions_are_one_character_unless_a_blank_parts_them() {
        let characters: Vec<String> = ["a", "b", " "].map(str::to_string).to_vec();
        let columns = [
            [0.1, 0.8, 0.1, 0.0], // a
            [0.2, 0.6, 0.2, 0.0], // still a
            [0.9, 0.1, 0.0, 0.0], // blank
            [0.3, 0.5, 0.2, 0.0], // another a
            [0.0, 0.0, 0.0, 1.0], // space
            [0.0, 0.3, 0.7, 0.0], // b
        ];
        let reading = decode(columns.as_flattened(), &characters);
        assert_eq!(reading.text, "aa b");
        assert!((reading.confidence - (0.8 + 0.5 + 1.0 + 0.7) / 4.0).abs() < 1e-6);
        let blank = decode(&[0.9, 0.1, 0.0, 0.0], &characters);
        assert_eq!((blank.text.as_str(), blank.confidence), ("", 0.0));
    }
}
