//! A picture in, its lines of text out.

use std::fmt;
use std::sync::Arc;
use std::sync::atomic::AtomicBool;

use mgm_image::RgbImage;

use crate::closer::{closer_size, merge};
use crate::crop::{LineImage, cut_line};
use crate::detect::{Detector, Region, regions};
use crate::error::Result;
use crate::files::ModelFiles;
use crate::network::Network;
use crate::order::{Placed, TELLING_RATIO, direction, page_direction, reading_order};
use crate::orient::Classifier;
use crate::recognise::{Reading, Recogniser};
use crate::view::View;

/// A reading with a confidence lower by this much is worse.
const CLEARLY_LESS_SURE: f32 = 0.05;

/// One line of text.
#[derive(Clone, Debug, PartialEq)]
pub struct Line {
    /// What it says; never empty.
    pub text: String,
    /// Mean probability of its characters, 0 to 1.
    pub confidence: f32,
    /// Its corners in pixels of the picture, clockwise, from where the line's upper side begins as it is read.
    pub corners: [[f32; 2]; 4],
    /// The direction in which it is read, in degrees clockwise from left to right, above -180 and up to 180.
    pub angle: f32,
}

/// The text of one picture.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Page {
    /// In the order of reading.
    pub lines: Vec<Line>,
    /// The direction in which most of it is read, as in [`Line::angle`].
    pub angle: f32,
}

/// The three networks, ready to read.
pub struct Reader {
    detector: Detector,
    classifier: Classifier,
    recogniser: Recogniser,
}

impl fmt::Debug for Reader {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.write_str("Reader")
    }
}

impl Reader {
    /// Loads the networks. They run on as many threads as rayon's pool has.
    ///
    /// # Errors
    /// When a file cannot be read, is not a network that can be run, or lacks its characters.
    pub fn load(files: &ModelFiles) -> Result<Self> {
        let threads = Arc::new(rten::ThreadPool::with_num_threads(
            rayon::current_num_threads(),
        ));
        let network = |file| Network::load(file, &threads);
        Ok(Self {
            detector: Detector::new(network(&files.detection)?),
            classifier: Classifier::new(network(&files.orientation)?),
            recogniser: Recogniser::new(network(&files.recognition)?)?,
        })
    }

    /// Reads `image`. Every line that says anything is returned, however unsure its reading.
    ///
    /// # Errors
    /// When the picture's size and buffer disagree, a network fails, or `stop` was set.
    pub fn read(&self, image: &RgbImage, stop: &AtomicBool) -> Result<Page> {
        image.validate()?;
        let Some(view) = View::of(image) else {
            return Ok(Page::default());
        };
        let size = view.network_size();
        let found = self.look(&view, size, stop)?;
        let scale = f64::from(size.0) / f64::from(image.width);
        let Some(size) = closer_size(&found, image.width, image.height, scale) else {
            return self.read_regions(image, &view, &found, stop);
        };
        let first: Vec<Region> = found
            .iter()
            .map(|region| Region {
                corners: view.original(&region.corners),
                ..*region
            })
            .collect();
        let whole = View::whole(image);
        let found = merge(&first, &self.look(&whole, size, stop)?);
        self.read_regions(image, &whole, &found, stop)
    }

    fn look(&self, view: &View<'_>, size: (u32, u32), stop: &AtomicBool) -> Result<Vec<Region>> {
        let map = self.detector.look(&view.picture, size.0, size.1, stop)?;
        Ok(regions(&map, view.picture.width, view.picture.height))
    }

    fn read_regions(
        &self,
        image: &RgbImage,
        view: &View<'_>,
        found: &[Region],
        stop: &AtomicBool,
    ) -> Result<Page> {
        let mut lines: Vec<LineImage> = Vec::new();
        for region in found {
            let original = view.original(&region.corners);
            let line = if view.reduced {
                cut_line(image, &original)
            } else {
                cut_line(&view.picture, &region.corners)
            };
            lines.extend(line.map(|line| {
                let line = LineImage {
                    corners: original,
                    ..line
                };
                line.turned(usize::from(line.is_upright()))
            }));
        }
        let upside_down = self.classifier.upside_down(&lines, stop)?;
        for (line, upside_down) in lines.iter_mut().zip(upside_down) {
            if upside_down {
                *line = line.turned(2);
            }
        }
        let mut readings = self.recogniser.read(&lines, stop)?;
        self.reconsider(&mut lines, &mut readings, stop)?;

        let (mut texts, mut placed) = (Vec::new(), Vec::new());
        for (reading, line) in readings.into_iter().zip(lines) {
            if !reading.text.trim().is_empty() {
                placed.push(Placed {
                    corners: line.corners,
                    confidence: reading.confidence,
                });
                texts.push(reading.text);
            }
        }
        let angle = page_direction(&placed);
        let size = (f64::from(image.width), f64::from(image.height));
        let lines = reading_order(&placed, angle)
            .into_iter()
            .map(|index| {
                let Placed {
                    corners,
                    confidence,
                } = placed[index];
                Line {
                    text: std::mem::take(&mut texts[index]),
                    confidence,
                    corners: corners.map(|corner| {
                        [
                            corner.x.clamp(0.0, size.0) as f32,
                            corner.y.clamp(0.0, size.1) as f32,
                        ]
                    }),
                    angle: above_minus_180(direction(&corners)) as f32,
                }
            })
            .collect();
        Ok(Page {
            lines,
            angle: angle as f32,
        })
    }

    /// Lines that lie otherwise than their page are read along the page too, and that reading counts unless it is clearly less sure. The
    /// orientation network is easily wrong about a few digits (969 and 696), and a single character has no direction of its own.
    fn reconsider(
        &self,
        lines: &mut [LineImage],
        readings: &mut [Reading],
        stop: &AtomicBool,
    ) -> Result<()> {
        let placed: Vec<Placed> = lines
            .iter()
            .zip(&*readings)
            .map(|(line, reading)| Placed {
                corners: line.corners,
                confidence: reading.confidence,
            })
            .collect();
        let page = page_direction(&placed);
        let (mut doubtful, mut turned) = (Vec::new(), Vec::new());
        for (index, line) in lines.iter().enumerate() {
            let quarters = ((page - direction(&line.corners)) / 90.0)
                .round()
                .rem_euclid(4.0);
            if quarters == 2.0 || (quarters != 0.0 && line.ratio() < TELLING_RATIO) {
                doubtful.push(index);
                turned.push(line.turned(quarters as usize));
            }
        }
        let again = self.recogniser.read(&turned, stop)?;
        for ((index, line), reading) in doubtful.into_iter().zip(turned).zip(again) {
            if reading.confidence + CLEARLY_LESS_SURE >= readings[index].confidence {
                lines[index] = line;
                readings[index] = reading;
            }
        }
        Ok(())
    }
}

fn above_minus_180(degrees: f64) -> f64 {
    if degrees <= -180.0 { 180.0 } else { degrees }
}
