use std::path::Path;

use mgm_diffusion::Noise;
use mgm_image::Limits;
use serde::Deserialize;

use super::recipe::PainterRecipe;
use crate::error::TrainError;

#[derive(Deserialize)]
struct Record {
    image: String,
    prompts: Vec<String>,
}

/// The pictures that are learnt, all in memory.
pub(super) struct Pictures {
    /// Columns and rows of every picture.
    pub(super) side: usize,
    /// `[side, side, 3]` bytes of every picture.
    pixels: Vec<Vec<u8>>,
    /// Texts of every picture.
    pub(super) prompts: Vec<Vec<String>>,
}

impl Pictures {
    pub(super) fn open(recipe: &PainterRecipe) -> Result<Self, TrainError> {
        let path = &recipe.data;
        let text = std::fs::read(path).map_err(TrainError::io("read", path))?;
        let records: Vec<Record> =
            serde_json::from_slice(&text).map_err(|error| TrainError::Recipe {
                path: path.display().to_string(),
                message: format!(
                    "{error}: expected a list of {{\"image\": path, \"prompts\": [text, ..]}}"
                ),
            })?;
        if records.is_empty() {
            return Err(TrainError::Recipe {
                path: path.display().to_string(),
                message: "no pictures".to_owned(),
            });
        }
        let (mut side, mut pixels, mut prompts) = (0, Vec::new(), Vec::new());
        for (index, record) in records.into_iter().enumerate() {
            let file = recipe.image_folder.join(&record.image);
            let fail = |message: String| TrainError::Picture {
                record: format!("{}: record {index}", path.display()),
                path: file.clone(),
                message,
            };
            if record.prompts.is_empty() {
                return Err(fail("no prompts".to_owned()));
            }
            let (found, values) = read(&file).map_err(&fail)?;
            if index == 0 {
                side = found;
            }
            if found != side {
                return Err(fail(format!("{found} pixels wide, the first one {side}")));
            }
            pixels.push(values);
            prompts.push(record.prompts);
        }
        Ok(Self {
            side,
            pixels,
            prompts,
        })
    }

    pub(super) fn len(&self) -> usize {
        self.pixels.len()
    }

    /// Appends the square of `side` pixels at (`left`, `top`) of a picture, in ±1.
    pub(super) fn append(
        &self,
        picture: usize,
        side: usize,
        (left, top): (usize, usize),
        out: &mut Vec<f32>,
    ) {
        for row in self.pixels[picture]
            .chunks_exact(3 * self.side)
            .skip(top)
            .take(side)
        {
            let row = &row[3 * left..3 * (left + side)];
            out.extend(row.iter().map(|&v| f32::from(v) / 127.5 - 1.0));
        }
    }
}

fn read(path: &Path) -> Result<(usize, Vec<u8>), String> {
    let bytes = std::fs::read(path).map_err(|error| error.to_string())?;
    let image = mgm_image::decode(&bytes, &Limits::default()).map_err(|error| error.to_string())?;
    match image.width == image.height {
        true => Ok((image.width as usize, image.data)),
        false => Err(format!(
            "{}x{}, expected a square",
            image.width, image.height
        )),
    }
}

/// A random order of all records for each pass, the same whenever it is asked for.
pub(super) struct Order {
    seed: u64,
    pass: Option<u64>,
    order: Vec<usize>,
}

impl Order {
    pub(super) fn new(seed: u64, records: usize) -> Self {
        Self {
            seed,
            pass: None,
            order: (0..records).collect(),
        }
    }

    /// The record at a position of the endless sequence of passes.
    pub(super) fn at(&mut self, position: u64) -> usize {
        let records = self.order.len() as u64;
        let pass = position / records;
        if self.pass != Some(pass) {
            let mut random = Noise::new(self.seed ^ pass.wrapping_mul(0xd134_2543_de82_ef95));
            self.order = (0..self.order.len()).collect();
            for last in (1..self.order.len()).rev() {
                self.order.swap(last, random.below(last + 1));
            }
            self.pass = Some(pass);
        }
        self.order[(position % records) as usize]
    }
}
