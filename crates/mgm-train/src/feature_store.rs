//! What the frozen towers see in each picture, computed once and kept on disk.

use std::collections::HashMap;
use std::path::{Path, PathBuf};

use candle_core::{DType, Tensor};
use mgm_data::resolve_image;
use mgm_image::{Aspect, Limits, PreprocessConfig};
use mini_gemini::{MiniGemini, TowerFeatures};

use crate::error::TrainError;
use crate::fingerprint;
use crate::recipe::{AspectMode, Recipe};
use crate::tensor_file;

/// Finds the tower features of a record's picture: from a file of features, from the cache, or by running the towers.
pub(crate) struct FeatureStore<'a> {
    model: &'a MiniGemini,
    image_folder: PathBuf,
    preprocess: PreprocessConfig,
    preprocess_text: String,
    towers: [u8; 32],
    cache: Option<PathBuf>,
    limit: u64,
    used: u64,
    /// Cache file of each picture path seen, so that a picture is read and hashed once per run.
    known: HashMap<PathBuf, PathBuf>,
}

impl<'a> FeatureStore<'a> {
    /// A store for one run.
    pub(crate) fn new(model: &'a MiniGemini, recipe: &Recipe) -> Result<Option<Self>, TrainError> {
        let Some(vision) = model.vision() else {
            return Ok(None);
        };
        let aspect = match recipe.aspect() {
            AspectMode::Pad => Aspect::Pad,
            AspectMode::Square => Aspect::Square,
        };
        let preprocess = PreprocessConfig {
            aspect,
            ..vision.preprocess().clone()
        };
        let mut used = 0;
        let mut towers = [0; 32];
        if let Some(cache) = &recipe.feature_cache {
            std::fs::create_dir_all(cache).map_err(TrainError::io("create", cache))?;
            used = folder_size(cache);
            towers = fingerprint::towers(model)?;
        }
        Ok(Some(Self {
            model,
            image_folder: recipe.data.image_folder.clone(),
            preprocess_text: format!("{preprocess:?}"),
            preprocess,
            towers,
            cache: recipe.feature_cache.clone(),
            limit: recipe.feature_cache_limit,
            used,
            known: HashMap::new(),
        }))
    }

    /// Features of the picture that a record names. A path that ends in `.safetensors` is a file of ready features
    /// (`low_res`, `high_res.0`, …).
    ///
    /// Features pass through f16 whether they come from the cache or not, so that a full cache or a resumed run changes no bit.
    pub(crate) fn get(&mut self, relative: &str) -> Result<TowerFeatures, (PathBuf, String)> {
        let path = resolve_image(&self.image_folder, relative);
        let fail = |message: String| (path.clone(), message);
        if path
            .extension()
            .is_some_and(|extension| extension == "safetensors")
        {
            return load(&path).map_err(fail);
        }
        if let Some(cached) = self.known.get(&path)
            && let Ok(features) = load(cached)
        {
            return Ok(features);
        }
        let bytes = std::fs::read(&path).map_err(|error| fail(format!("cannot read: {error}")))?;
        let cached = self.cache.as_ref().map(|cache| {
            let name = fingerprint::picture(&self.towers, &self.preprocess_text, &bytes);
            cache.join(&name[..2]).join(format!("{name}.safetensors"))
        });
        if let Some(cached) = &cached {
            self.known.insert(path.clone(), cached.clone());
            // An unreadable cache file is simply made anew.
            if let Ok(features) = load(cached) {
                return Ok(features);
            }
        }
        let image = mgm_image::decode(&bytes, &Limits::default())
            .map_err(|error| fail(error.to_string()))?;
        let prepared = mgm_image::prepare(&image, &self.preprocess)
            .map_err(|error| fail(error.to_string()))?;
        let features = self
            .model
            .tower_features(&prepared)
            .map_err(|error| fail(error.to_string()))?;
        let half = to_half(&features).map_err(|error| fail(error.to_string()))?;
        if let Some(cached) = &cached {
            self.keep(cached, &half)
                .map_err(|error| fail(error.to_string()))?;
        }
        from_half(half).map_err(|error| fail(error.to_string()))
    }

    fn keep(&mut self, path: &Path, half: &[(String, Tensor)]) -> Result<(), TrainError> {
        let bytes: u64 = half
            .iter()
            .map(|(_, tensor)| 2 * tensor.elem_count() as u64)
            .sum();
        if self.used + bytes > self.limit {
            return Ok(());
        }
        self.used += bytes;
        if let Some(folder) = path.parent() {
            std::fs::create_dir_all(folder).map_err(TrainError::io("create", folder))?;
        }
        let invalid = |error: String| TrainError::Checkpoint {
            path: path.to_owned(),
            message: error,
        };
        let views = half
            .iter()
            .map(|(name, tensor)| (name.as_str(), tensor.clone()))
            .collect::<Vec<_>>();
        let bytes =
            safetensors::serialize(views, None).map_err(|error| invalid(error.to_string()))?;
        tensor_file::write_atomically(path, &bytes)
    }
}

fn to_half(features: &TowerFeatures) -> candle_core::Result<Vec<(String, Tensor)>> {
    features
        .to_named()
        .into_iter()
        .map(|(name, tensor)| Ok((name, tensor.to_dtype(DType::F16)?.contiguous()?)))
        .collect()
}

fn from_half(half: Vec<(String, Tensor)>) -> mini_gemini::Result<TowerFeatures> {
    let mut named: HashMap<String, Tensor> = half.into_iter().collect();
    TowerFeatures::from_named(|name| named.remove(name))
}

fn load(path: &Path) -> Result<TowerFeatures, String> {
    let mut named = tensor_file::read(path).map_err(|error| error.to_string())?;
    TowerFeatures::from_named(|name| named.remove(name)).map_err(|error| error.to_string())
}

fn folder_size(folder: &Path) -> u64 {
    let Ok(entries) = std::fs::read_dir(folder) else {
        return 0;
    };
    entries
        .filter_map(Result::ok)
        .map(|entry| match entry.metadata() {
            Ok(metadata) if metadata.is_dir() => folder_size(&entry.path()),
            Ok(metadata) => metadata.len(),
            Err(_) => 0,
        })
        .sum()
}
