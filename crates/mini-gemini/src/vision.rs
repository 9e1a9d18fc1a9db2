//! From prepared pictures to visual tokens: both towers, mining, projector; base and HD (spec: model §7).

use candle_core::{DType, Device, Tensor};
use mgm_image::{Aspect, PreparedImage, PreprocessConfig};
use mgm_nn::WeightSource;
use mgm_nn::ops::{CellWindow, RegionCells};

use crate::config::ModelConfig;
use crate::error::{Error, Result};
use crate::mining::Mining;
use crate::projector::Projector;
use crate::towers::{self, HighResTower, LowResTower, Pause};

/// What the frozen towers see in one picture. Made once, cached by callers, reused for every question about it.
#[derive(Clone, Debug)]
pub struct TowerFeatures {
    /// Low-resolution features `[views, patches, width]`, f32. HD: four crops, then the overview.
    pub low_res: Tensor,
    /// High-resolution stage maps `[channels_i, height_i, width_i]`, finest first, f32; empty when the model has one tower.
    pub high_res: Vec<Tensor>,
}

impl TowerFeatures {
    /// Named tensors for a safetensors file: `low_res`, `high_res.0`, `high_res.1`, …
    pub fn to_named(&self) -> Vec<(String, Tensor)> {
        let mut named = vec![("low_res".to_string(), self.low_res.clone())];
        for (index, map) in self.high_res.iter().enumerate() {
            named.push((format!("high_res.{index}"), map.clone()));
        }
        named
    }

    /// The inverse of [`Self::to_named`]; any float dtype becomes f32.
    ///
    /// # Errors
    /// When `low_res` is missing or a tensor has the wrong rank.
    pub fn from_named(mut get: impl FnMut(&str) -> Option<Tensor>) -> Result<Self> {
        let low_res = get("low_res")
            .ok_or_else(|| Error::Input("picture features lack the tensor `low_res`".into()))?
            .to_dtype(DType::F32)?;
        low_res.dims3()?;
        let mut high_res = Vec::new();
        while let Some(map) = get(&format!("high_res.{}", high_res.len())) {
            map.dims3()?;
            high_res.push(map.to_dtype(DType::F32)?);
        }
        Ok(Self { low_res, high_res })
    }
}

/// Both towers, the miner and the projector.
pub struct Vision {
    low_res: Box<dyn LowResTower>,
    high_res: Option<(Box<dyn HighResTower>, Mining)>,
    projector: Projector,
    preprocess: PreprocessConfig,
    grid: usize,
    global: bool,
}

impl Vision {
    /// Loads everything visual; `None` for a text-only model. `weights` stands at the root of the checkpoint.
    ///
    /// # Errors
    /// When a tower is unknown, a tensor does not fit, or the picture sizes contradict each other.
    pub fn load(config: &ModelConfig, weights: &WeightSource) -> Result<Option<Self>> {
        let Some(name) = &config.mm_vision_tower else {
            return Ok(None);
        };
        let model = weights.pp("model");
        let low_res = towers::load_low_res(
            name,
            config.mm_vision_select_layer,
            &config.mm_vision_select_feature,
            &model.pp("vision_tower"),
        )?;
        let high_res = match &config.mm_vision_tower_aux {
            Some(name) => {
                let tower = towers::load_high_res(name, &model.pp("vision_tower_aux"))?;
                let mining = Mining::load(&model, low_res.width(), tower.channels())?;
                Some((tower, mining))
            }
            None => None,
        };
        let projector = Projector::load(
            &config.mm_projector_type,
            low_res.width(),
            config.hidden_size,
            &model,
        )?;
        let (grid, global) = (config.grid(), config.image_global.unwrap_or(false));
        match (grid, global) {
            (1, false) | (2, _) => {}
            _ => {
                return Err(Error::Input(format!(
                    "image_grid {grid} with image_global {global}: expected 1 with false or 2"
                )));
            }
        }
        let low_res_size = low_res.picture_size();
        let high_res_size = match &high_res {
            Some((tower, _)) => {
                let size = config.image_size_aux.unwrap_or(320);
                let cells = size / tower.stride() / grid;
                let side = low_res.patches().isqrt();
                if !cells.is_multiple_of(side) || !size.is_multiple_of(tower.stride() * grid) {
                    return Err(Error::Input(format!(
                        "image_size_aux {size} gives {cells} cells a side, which {side} queries do not divide"
                    )));
                }
                size
            }
            None => low_res_size * grid,
        };
        let preprocess = PreprocessConfig {
            low_res_size: low_res_size as u32,
            high_res_size: high_res_size as u32,
            grid: grid as u32,
            global,
            aspect: match config.image_aspect_ratio.as_deref() {
                Some("square") => Aspect::Square,
                _ => Aspect::Pad,
            },
        };
        Ok(Some(Self {
            low_res,
            high_res,
            projector,
            preprocess,
            grid,
            global,
        }))
    }

    /// How pictures must be prepared.
    pub fn preprocess(&self) -> &PreprocessConfig {
        &self.preprocess
    }

    /// Visual tokens per picture.
    pub fn tokens_per_image(&self) -> usize {
        let views = self.grid * self.grid + usize::from(self.global);
        self.low_res.patches() * if self.grid == 1 { 1 } else { views }
    }

    /// Whether patches mine a high-resolution tower.
    pub fn mines(&self) -> bool {
        self.high_res.is_some()
    }

    /// Runs both towers on one prepared picture.
    ///
    /// # Errors
    /// When the picture was prepared for other sizes.
    pub fn tower_features(&self, image: &PreparedImage) -> Result<TowerFeatures> {
        self.tower_features_with(image, &mut || Ok(()))
    }

    /// [`Self::tower_features`] with something to do between the layers.
    ///
    /// # Errors
    /// When the picture was prepared for other sizes, or `pause` says so.
    pub fn tower_features_with(
        &self,
        image: &PreparedImage,
        pause: &mut Pause<'_>,
    ) -> Result<TowerFeatures> {
        Ok(TowerFeatures {
            low_res: self.low_res_features(image, pause)?,
            high_res: self.high_res_features(image, pause)?,
        })
    }

    /// The low-resolution tower's part of [`Self::tower_features_with`].
    ///
    /// # Errors
    /// As there.
    pub fn low_res_features(&self, image: &PreparedImage, pause: &mut Pause<'_>) -> Result<Tensor> {
        let side = image.low_res_size as usize;
        let shape = (image.views, 3, side, side);
        let views = Tensor::from_slice(&image.low_res, shape, &Device::Cpu)?;
        self.low_res.encode(&views, pause)
    }

    /// The high-resolution tower's part of [`Self::tower_features_with`]; empty for a model without one.
    ///
    /// # Errors
    /// As there.
    pub fn high_res_features(
        &self,
        image: &PreparedImage,
        pause: &mut Pause<'_>,
    ) -> Result<Vec<Tensor>> {
        let Some((tower, _)) = &self.high_res else {
            return Ok(Vec::new());
        };
        let side = image.high_res_size as usize;
        let picture = Tensor::from_slice(&image.high_res, (3, side, side), &Device::Cpu)?;
        tower.encode(&picture, pause)
    }

    /// The region cells that view `view` of the features mines (HD: crops in the order TL, TR, BL, BR, then the overview).
    fn cells(&self, features: &TowerFeatures, view: usize) -> Result<RegionCells> {
        let side = features
            .high_res
            .first()
            .ok_or_else(|| Error::Input("picture features lack `high_res.0`".into()))?
            .dim(1)?;
        let queries = self.low_res.patches().isqrt();
        let cells = RegionCells::new(&features.high_res, queries)?;
        if self.grid == 1 {
            return Ok(cells);
        }
        let window = if view == self.grid * self.grid {
            // The overview mines the map pooled by two: bilinear at scale 1/2 is an exact 2×2 mean.
            let rows = side / self.grid;
            CellWindow {
                top: 0,
                left: 0,
                rows,
                columns: rows,
                pool: self.grid,
            }
        } else {
            let crop = side / self.grid;
            CellWindow {
                top: view / self.grid * crop,
                left: view % self.grid * crop,
                rows: crop,
                columns: crop,
                pool: 1,
            }
        };
        Ok(cells.with_window(window)?)
    }

    /// Mined features `[patches, width]` of one view.
    ///
    /// # Errors
    /// When the features are those of another model.
    pub fn mined(&self, features: &TowerFeatures, view: usize) -> Result<Option<Tensor>> {
        let Some((_, mining)) = &self.high_res else {
            return Ok(None);
        };
        if features.high_res.is_empty() {
            // One tower only: the projector sees the low-resolution features alone (spec: model §7.1).
            return Ok(None);
        }
        let low_res = features.low_res.get(view)?;
        Ok(Some(
            mining.forward(&low_res, &self.cells(features, view)?)?,
        ))
    }

    /// Attention `[patches, cells per region]` of one view over its regions: what each patch mined.
    ///
    /// # Errors
    /// When the model has one tower or the features are those of another model.
    pub fn mining_attention(&self, features: &TowerFeatures, view: usize) -> Result<Tensor> {
        let Some((_, mining)) = &self.high_res else {
            return Err(Error::Input(
                "this model has no high-resolution tower".into(),
            ));
        };
        mining.attention_weights(&features.low_res.get(view)?, &self.cells(features, view)?)
    }

    /// Visual tokens `[tokens, hidden]`: the overview's first, then each crop's, in raster order.
    ///
    /// # Errors
    /// When the features are those of another model.
    pub fn visual_tokens(&self, features: &TowerFeatures) -> Result<Tensor> {
        let views = features.low_res.dim(0)?;
        let order: Vec<usize> = if self.global {
            // Last in the input, first in the sequence (spec: pitfalls A3).
            std::iter::once(views - 1).chain(0..views - 1).collect()
        } else {
            (0..views).collect()
        };
        let mut parts = Vec::with_capacity(views);
        for view in order {
            let low_res = features.low_res.get(view)?;
            parts.push(match self.mined(features, view)? {
                Some(mined) => (low_res + mined)?,
                None => low_res,
            });
        }
        self.projector.forward(&Tensor::cat(&parts, 0)?)
    }
}
