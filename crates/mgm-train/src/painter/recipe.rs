use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};

use crate::error::TrainError;
use crate::recipe::{Recipe, SaveType, parse_toml};

/// What of a painter is trained.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum PainterStage {
    /// The autoencoder: pictures to latents and back.
    Autoencoder,
    /// UNet and both text encoders, on the latents of a trained autoencoder.
    Denoiser,
}

/// A recipe for a model that paints (a TOML file). Unknown keys are errors. Relative paths are relative to the working directory.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct PainterRecipe {
    /// `autoencoder` or `denoiser`.
    pub stage: PainterStage,
    /// The model to start from: a folder in the diffusers layout, of Stable Diffusion XL's classes.
    pub model: PathBuf,
    /// Folder of a trained autoencoder that takes the place of the model's own (stage `denoiser`).
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub vae: Option<PathBuf>,
    /// JSON list of `{"image": path, "prompts": [text, ..]}`; all pictures are squares of one size.
    pub data: PathBuf,
    /// Folder that `image` paths are relative to. Default: the working directory.
    #[serde(default = "defaults::here")]
    pub image_folder: PathBuf,
    /// Folder for the result, the checkpoint and the log.
    pub output: PathBuf,
    /// Optimiser steps.
    pub steps: u64,
    /// Pictures of a step.
    pub batch: usize,
    /// Parts of a step's pictures that are learnt side by side, one core each; the result depends on it, but not on the number of cores.
    /// Default 4.
    #[serde(default = "defaults::parts")]
    pub parts: usize,
    /// Peak learning rate.
    pub learning_rate: f64,
    /// Part of all steps during which the rate rises; afterwards it falls as a half cosine to zero. Default 0.02.
    #[serde(default = "defaults::warmup_ratio")]
    pub warmup_ratio: f64,
    /// Gradients are scaled down to this global norm. Default 1.
    #[serde(default = "defaults::max_grad_norm")]
    pub max_grad_norm: f64,
    /// Decoupled weight decay (not on biases and norms). Default 0.
    #[serde(default)]
    pub weight_decay: f64,
    /// Share of the past in the running mean of the parameters, which is what a run results in. Default 0.999.
    #[serde(default = "defaults::ema")]
    pub ema: f64,
    /// Seed of order, noise and times. Default 42.
    #[serde(default = "defaults::seed")]
    pub seed: u64,
    /// The checkpoint is written every so many steps, and on Ctrl-C. Default 500.
    #[serde(default = "defaults::save_every")]
    pub save_every: u64,
    /// Number format of the result: `f16` (default), `bf16` or `f32`.
    #[serde(default = "defaults::save_type")]
    pub save_type: SaveType,
    /// Side of the squares that are cut out of the pictures (stage `autoencoder`). Default: whole pictures.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub crop: Option<usize>,
    /// Part of all steps after which whole pictures are learnt, as many as have the squares' pixels. Default 0.7.
    #[serde(default = "defaults::crop_until")]
    pub crop_until: f64,
    /// Weight of the latents' divergence from a normal distribution, per latent value (stage `autoencoder`). Default 1e-3.
    #[serde(default = "defaults::kl_weight")]
    pub kl_weight: f64,
    /// Weight of the differences of neighbouring pixels beside that of the pixels themselves (stage `autoencoder`). Default 1.
    #[serde(default = "defaults::edge_weight")]
    pub edge_weight: f64,
    /// How often a picture is learnt without its prompt, for guidance (stage `denoiser`). Default 0.1.
    #[serde(default = "defaults::drop_prompt")]
    pub drop_prompt: f64,
}

mod defaults {
    use std::path::PathBuf;

    use crate::recipe::SaveType;

    pub(super) fn here() -> PathBuf {
        PathBuf::from(".")
    }
    pub(super) fn parts() -> usize {
        4
    }
    pub(super) fn warmup_ratio() -> f64 {
        0.02
    }
    pub(super) fn max_grad_norm() -> f64 {
        1.0
    }
    pub(super) fn ema() -> f64 {
        0.999
    }
    pub(super) fn seed() -> u64 {
        42
    }
    pub(super) fn save_every() -> u64 {
        500
    }
    pub(super) fn save_type() -> SaveType {
        SaveType::F16
    }
    pub(super) fn crop_until() -> f64 {
        0.7
    }
    pub(super) fn kl_weight() -> f64 {
        1e-3
    }
    pub(super) fn edge_weight() -> f64 {
        1.0
    }
    pub(super) fn drop_prompt() -> f64 {
        0.1
    }
}

impl PainterRecipe {
    /// Reads and checks a recipe file.
    ///
    /// # Errors
    /// [`TrainError::Recipe`] with file, line and what was expected.
    pub fn from_file(path: &Path) -> Result<Self, TrainError> {
        let text = std::fs::read_to_string(path).map_err(TrainError::io("read", path))?;
        Self::parse(&text, &path.display().to_string())
    }

    /// Parses and checks a recipe; `name` stands for the file in messages.
    ///
    /// # Errors
    /// As [`Self::from_file`].
    pub fn parse(text: &str, name: &str) -> Result<Self, TrainError> {
        let recipe: Self = parse_toml(text, name)?;
        recipe.check().map_err(|message| TrainError::Recipe {
            path: name.to_owned(),
            message,
        })?;
        Ok(recipe)
    }

    fn check(&self) -> Result<(), String> {
        for (name, count) in [
            ("steps", self.steps),
            ("batch", self.batch as u64),
            ("parts", self.parts as u64),
            ("save_every", self.save_every),
        ] {
            if count == 0 {
                return Err(format!("{name}: expected at least 1, found 0"));
            }
        }
        for (name, value) in [
            ("learning_rate", self.learning_rate),
            ("max_grad_norm", self.max_grad_norm),
        ] {
            if !(value > 0.0 && value.is_finite()) {
                return Err(format!("{name}: expected a positive number, found {value}"));
            }
        }
        for (name, value) in [
            ("weight_decay", self.weight_decay),
            ("kl_weight", self.kl_weight),
            ("edge_weight", self.edge_weight),
        ] {
            if !(value >= 0.0 && value.is_finite()) {
                return Err(format!("{name}: expected 0 or more, found {value}"));
            }
        }
        for (name, value) in [
            ("warmup_ratio", self.warmup_ratio),
            ("crop_until", self.crop_until),
            ("drop_prompt", self.drop_prompt),
        ] {
            if !(0.0..=1.0).contains(&value) {
                return Err(format!("{name}: expected 0 to 1, found {value}"));
            }
        }
        if !(0.0..1.0).contains(&self.ema) {
            return Err(format!("ema: expected 0 to below 1, found {}", self.ema));
        }
        if self.vae.is_some() && self.stage == PainterStage::Autoencoder {
            return Err("vae: only stage `denoiser` takes another autoencoder".to_owned());
        }
        Ok(())
    }
}

/// A recipe of either kind, told apart by its stage.
pub enum AnyRecipe {
    /// For a model that sees and writes.
    Model(Box<Recipe>),
    /// For a model that paints.
    Painter(Box<PainterRecipe>),
}

impl AnyRecipe {
    /// Reads and checks a recipe file.
    ///
    /// # Errors
    /// [`TrainError::Recipe`] with file, line and what was expected.
    pub fn from_file(path: &Path) -> Result<Self, TrainError> {
        #[derive(Deserialize)]
        struct Peek {
            stage: Option<toml::Value>,
        }
        let text = std::fs::read_to_string(path).map_err(TrainError::io("read", path))?;
        let name = path.display().to_string();
        let peek: Peek = parse_toml(&text, &name)?;
        let stage = peek.stage.as_ref().and_then(toml::Value::as_str);
        Ok(match stage {
            Some("autoencoder" | "denoiser") => {
                Self::Painter(Box::new(PainterRecipe::parse(&text, &name)?))
            }
            _ => Self::Model(Box::new(Recipe::parse(&text, &name)?)),
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const GOOD: &str = "stage = \"denoiser\"\nmodel = \"m\"\ndata = \"d.json\"\noutput = \"o\"\nsteps = 3\nbatch = 2\nlearning_rate = 1e-3\n";

    #[test]
    fn mistakes_are_named() {
        let parse = |extra: &str| PainterRecipe::parse(&format!("{GOOD}{extra}"), "r.toml");
        let recipe = parse("").unwrap();
        assert_eq!((recipe.ema, recipe.drop_prompt), (0.999, 0.1));
        for (extra, expected) in [
            ("ema = 1.0\n", "ema: expected 0 to below 1"),
            ("drop_prompt = 2.0\n", "drop_prompt: expected 0 to 1"),
            ("crop_size = 3\n", "crop_size"),
            (
                "max_grad_norm = 0.0\n",
                "max_grad_norm: expected a positive",
            ),
        ] {
            let message = parse(extra).unwrap_err().to_string();
            assert!(message.contains(expected), "{message}");
        }
        let autoencoder = GOOD.replace("denoiser", "autoencoder") + "vae = \"v\"\n";
        assert!(PainterRecipe::parse(&autoencoder, "r").is_err());
    }
}
