//! Decoding in overlapping tiles, blended as diffusers does: less memory for large pictures, at the price of slightly different colours
//! from tile to tile (the normalisations see one tile at a time).

use candle_core::Tensor;

use super::Vae;
use crate::config::VaeConfig;
use crate::error::{Error, Result};

/// Share of a tile that overlaps the next one.
const OVERLAP: f64 = 0.25;

/// Sizes of tiles.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Tiling {
    /// Side of a tile in pixels.
    pub sample: usize,
    /// Side of a tile in latent positions.
    pub latent: usize,
}

impl Tiling {
    /// diffusers' tiles: as large as the pictures the VAE was trained on.
    pub fn of(config: &VaeConfig) -> Self {
        Self::with_side(config, config.sample_size)
    }

    /// Tiles of another side in pixels.
    pub fn with_side(config: &VaeConfig, sample: usize) -> Self {
        Self {
            sample,
            latent: sample / config.scale(),
        }
    }

    /// Unscaled latents `[batch, height, width, latent]` → pictures `[batch, height', width', 3]`.
    pub(super) fn decode(
        &self,
        vae: &Vae,
        latents: &Tensor,
        keep_going: &mut dyn FnMut() -> bool,
    ) -> Result<Tensor> {
        let (batch, height, width, _) = latents.dims4()?;
        if height <= self.latent && width <= self.latent {
            return vae.decode(latents);
        }
        let step = (self.latent as f64 * (1.0 - OVERLAP)) as usize;
        let blend = (self.sample as f64 * OVERLAP) as usize;
        if step == 0 || blend >= self.sample {
            return Err(Error::Input(format!(
                "VAE: tiles of {} pixels are too small",
                self.sample
            )));
        }
        let keep = self.sample - blend;
        let starts = |side: usize| (0..side).step_by(step).collect::<Vec<_>>();
        let (scale, lefts) = (vae.config().scale(), starts(width));
        let (out_height, out_width) = (height * scale, width * scale);
        let mut picture = vec![0f32; batch * out_height * out_width * 3];
        let mut above: Vec<Tile> = Vec::new();
        let mut top = 0;
        for &i in &starts(height) {
            let mut row: Vec<Tile> = Vec::with_capacity(lefts.len());
            let mut left = 0;
            for (column, &j) in lefts.iter().enumerate() {
                if !keep_going() {
                    return Err(Error::Interrupted);
                }
                let part = latents
                    .narrow(1, i, self.latent.min(height - i))?
                    .narrow(2, j, self.latent.min(width - j))?
                    .contiguous()?;
                let mut tile = Tile::new(&vae.decode(&part)?)?;
                // The tiles to blend with are themselves blended already.
                if let Some(above) = above.get(column) {
                    tile.blend_below(above, blend);
                }
                if let Some(left) = row.last() {
                    tile.blend_right_of(left, blend);
                }
                tile.copy_to(keep, &mut picture, [out_height, out_width], [top, left]);
                left += keep.min(tile.width);
                row.push(tile);
            }
            top += keep.min(row.first().map_or(0, |tile| tile.height));
            above = row;
        }
        Ok(Tensor::from_vec(
            picture,
            (batch, out_height, out_width, 3),
            latents.device(),
        )?)
    }
}

/// A decoded tile, `[batch, height, width, 3]`.
struct Tile {
    values: Vec<f32>,
    batch: usize,
    height: usize,
    width: usize,
}

impl Tile {
    fn new(tensor: &Tensor) -> Result<Self> {
        let (batch, height, width, _) = tensor.dims4()?;
        Ok(Self {
            values: tensor.flatten_all()?.to_vec1()?,
            batch,
            height,
            width,
        })
    }

    fn at(&self, picture: usize, y: usize, x: usize) -> usize {
        ((picture * self.height + y) * self.width + x) * 3
    }

    /// Goes over from the last rows of `above` in the first rows.
    fn blend_below(&mut self, above: &Tile, extent: usize) {
        let extent = extent.min(above.height).min(self.height);
        for b in 0..self.batch {
            for y in 0..extent {
                let weight = y as f32 / extent as f32;
                for x in 0..self.width.min(above.width) {
                    let from = above.at(b, above.height - extent + y, x);
                    let to = self.at(b, y, x);
                    self.mix(&above.values[from..from + 3], to, weight);
                }
            }
        }
    }

    /// Goes over from the last columns of `left` in the first columns.
    fn blend_right_of(&mut self, left: &Tile, extent: usize) {
        let extent = extent.min(left.width).min(self.width);
        for b in 0..self.batch {
            for y in 0..self.height.min(left.height) {
                for x in 0..extent {
                    let weight = x as f32 / extent as f32;
                    let from = left.at(b, y, left.width - extent + x);
                    let to = self.at(b, y, x);
                    self.mix(&left.values[from..from + 3], to, weight);
                }
            }
        }
    }

    fn mix(&mut self, other: &[f32], at: usize, weight: f32) {
        for (own, &other) in self.values[at..at + 3].iter_mut().zip(other) {
            *own = other * (1.0 - weight) + *own * weight;
        }
    }

    /// Writes the first `keep` rows and columns to a place in a picture.
    fn copy_to(
        &self,
        keep: usize,
        picture: &mut [f32],
        [height, width]: [usize; 2],
        [top, left]: [usize; 2],
    ) {
        let rows = keep.min(self.height).min(height.saturating_sub(top));
        let columns = keep.min(self.width).min(width.saturating_sub(left));
        for b in 0..self.batch {
            for y in 0..rows {
                let from = self.at(b, y, 0);
                let to = ((b * height + top + y) * width + left) * 3;
                picture[to..to + 3 * columns]
                    .copy_from_slice(&self.values[from..from + 3 * columns]);
            }
        }
    }
}
