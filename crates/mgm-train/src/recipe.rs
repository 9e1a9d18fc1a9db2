use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use mgm_data::{MaskMismatch, MaskRule};
use serde::{Deserialize, Serialize};

use crate::error::TrainError;

/// Which of the two stages (training §1).
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Stage {
    /// Projector and miners learn to speak to a frozen language model.
    Align,
    /// Instruction tuning: those and the language model, or low-rank adapters on it.
    Instruct,
}

/// How a picture becomes a square.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum AspectMode {
    /// Padded with the reference colour (stage 2 of the official training).
    Pad,
    /// Shortest edge resized, centre cut out (stage 1 of the official training).
    Square,
}

/// In which order records are seen.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum SamplerKind {
    /// A plain random order.
    Random,
    /// Batches of one modality and of similar length (official `group_by_modality_length`).
    ModalityLength,
}

/// Where projector and miners start.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Initialise {
    /// Fresh values drawn from the seed, as PyTorch initialises these modules.
    Random,
    /// The values in the model's files.
    Checkpoint,
}

/// Number format of the result.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum SaveType {
    /// IEEE half precision.
    F16,
    /// bfloat16.
    Bf16,
    /// Single precision.
    F32,
}

/// A training recipe (a TOML file). Unknown keys are errors. Relative paths are relative to the working directory.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Recipe {
    /// `smol` (the built-in model) or a model directory. Default `smol`.
    #[serde(default = "defaults::model")]
    pub model: String,
    /// `align` or `instruct`.
    pub stage: Stage,
    /// Parameters that are trained: all whose checkpoint name contains one of these. Default: `mm_projector` and `vlm_uni`; in stage `instruct`
    /// without `[lora]` also the whole language model (`embed_tokens`, `model.layers`, `model.norm`, `lm_head`).
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub trainable: Option<Vec<String>>,
    /// Where projector and miners start: `random` (default in stage `align`) or `checkpoint` (default in stage `instruct`).
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub initialise: Option<Initialise>,
    /// A safetensors file whose tensors replace the model's before training, for example stage 1's `adapter.safetensors`. With it,
    /// `initialise` is `checkpoint`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub start_from: Option<PathBuf>,
    /// Low-rank adapters on the language model. Default: none.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub lora: Option<LoraRecipe>,
    /// Where the data is.
    pub data: DataRecipe,
    /// Conversation template, as `mgm chat --template`; `plain` for bare captions. Default: the model's own.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub template: Option<String>,
    /// Folder for results, checkpoints and the log.
    pub output: PathBuf,
    /// Passes over the data; exactly one of `epochs` and `steps` must be given.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub epochs: Option<f64>,
    /// Optimiser steps; exactly one of `epochs` and `steps` must be given.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub steps: Option<u64>,
    /// Records per micro batch. Default 4.
    #[serde(default = "defaults::batch")]
    pub batch: usize,
    /// Micro batches per step, averaged as Hugging Face does (mean of means). Default 1.
    #[serde(default = "defaults::accumulation")]
    pub accumulation: usize,
    /// Peak learning rate. Default 1e-3 in stage `align`, 2e-5 in stage `instruct`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub learning_rate: Option<f64>,
    /// Part of all steps during which the rate rises; afterwards it falls as a half cosine to zero. Default 0.03.
    #[serde(default = "defaults::warmup_ratio")]
    pub warmup_ratio: f64,
    /// Factors on the learning rate: `{ "mm_projector" = 2.0 }` for all parameters whose name contains the key. Default: none.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub lr_multipliers: BTreeMap<String, f64>,
    /// Decoupled weight decay (not on biases and norms). Default 0.
    #[serde(default)]
    pub weight_decay: f64,
    /// Gradients are scaled down to this global norm. Default: no clipping, as in the official runs.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub max_grad_norm: Option<f64>,
    /// Most positions of a sequence, visual tokens included; the tail is cut. Default 2048.
    #[serde(default = "defaults::max_length")]
    pub max_length: usize,
    /// Order of records: `random` (default in stage `align`) or `modality-length` (default in stage `instruct`).
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub sampler: Option<SamplerKind>,
    /// What to do when the answers of a record cannot be located: `error` (default) or `mask-whole` (learn nothing from it, as officially).
    #[serde(default)]
    pub mask_mismatch: MaskMismatch,
    /// Seed of record order and initial values. Default 42.
    #[serde(default = "defaults::seed")]
    pub seed: u64,
    /// A checkpoint is written every so many steps, and on Ctrl-C. Default 500.
    #[serde(default = "defaults::save_every")]
    pub save_every: u64,
    /// The newest checkpoints that are kept. Default 2.
    #[serde(default = "defaults::keep_checkpoints")]
    pub keep_checkpoints: usize,
    /// Folder where the frozen towers' outputs are kept, so that every picture is encoded once. Default: none.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub feature_cache: Option<PathBuf>,
    /// Bytes the feature cache may grow to; further pictures are encoded each time. Default 16 GiB.
    #[serde(default = "defaults::feature_cache_limit")]
    pub feature_cache_limit: u64,
    /// Micro batches prepared ahead. Default 3.
    #[serde(default = "defaults::prefetch")]
    pub prefetch: usize,
    /// Number format of the result: `f16` (default), `bf16` or `f32`.
    #[serde(default = "defaults::save_type")]
    pub save_type: SaveType,
}

/// `[lora]`: low-rank adapters.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct LoraRecipe {
    /// Rank. Default 8.
    #[serde(default = "defaults::rank")]
    pub rank: usize,
    /// Scale: the adapter's product is multiplied by alpha / rank. Default 16.
    #[serde(default = "defaults::alpha")]
    pub alpha: f64,
    /// Name parts of the linear layers that get one. Default: all of the decoder's.
    #[serde(default = "defaults::targets")]
    pub targets: Vec<String>,
}

/// `[data]`: what is learnt.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct DataRecipe {
    /// LLaVA-format JSON files, read one after another.
    pub json: Vec<PathBuf>,
    /// Folder that `image` paths are relative to. Default: the working directory.
    #[serde(default = "defaults::image_folder")]
    pub image_folder: PathBuf,
    /// `pad` or `square`. Default: `square` in stage `align`, `pad` in stage `instruct`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub aspect: Option<AspectMode>,
    /// Leave out records that break the format instead of stopping. Default false.
    #[serde(default)]
    pub skip_invalid: bool,
}

mod defaults {
    use std::path::PathBuf;

    use super::SaveType;

    pub(super) fn model() -> String {
        mini_gemini::BUILT_IN_NAME.to_owned()
    }
    pub(super) fn batch() -> usize {
        4
    }
    pub(super) fn accumulation() -> usize {
        1
    }
    pub(super) fn warmup_ratio() -> f64 {
        0.03
    }
    pub(super) fn max_length() -> usize {
        2048
    }
    pub(super) fn seed() -> u64 {
        42
    }
    pub(super) fn save_every() -> u64 {
        500
    }
    pub(super) fn keep_checkpoints() -> usize {
        2
    }
    pub(super) fn feature_cache_limit() -> u64 {
        16 << 30
    }
    pub(super) fn prefetch() -> usize {
        3
    }
    pub(super) fn save_type() -> SaveType {
        SaveType::F16
    }
    pub(super) fn rank() -> usize {
        8
    }
    pub(super) fn alpha() -> f64 {
        16.0
    }
    pub(super) fn targets() -> Vec<String> {
        mini_gemini::LORA_TARGETS
            .iter()
            .map(|&target| target.to_owned())
            .collect()
    }
    pub(super) fn image_folder() -> PathBuf {
        PathBuf::from(".")
    }
}

/// Parses TOML; `name` stands for the file in messages, which name the line.
pub(crate) fn parse_toml<T: serde::de::DeserializeOwned>(
    text: &str,
    name: &str,
) -> Result<T, TrainError> {
    toml::from_str(text).map_err(|error| {
        let line = error
            .span()
            .map(|span| 1 + text[..span.start.min(text.len())].matches('\n').count());
        TrainError::Recipe {
            path: line.map_or_else(|| name.to_owned(), |line| format!("{name}:{line}")),
            message: error.message().replace('\n', " "),
        }
    })
}

impl Recipe {
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
        match (self.epochs, self.steps) {
            (Some(epochs), None) if epochs > 0.0 && epochs.is_finite() => {}
            (Some(epochs), None) => {
                return Err(format!(
                    "epochs: expected a positive number, found {epochs}"
                ));
            }
            (None, Some(0)) => return Err("steps: expected at least 1, found 0".to_owned()),
            (None, Some(_)) => {}
            _ => return Err("expected exactly one of `epochs` and `steps`".to_owned()),
        }
        for (name, value) in [
            ("batch", self.batch),
            ("accumulation", self.accumulation),
            ("prefetch", self.prefetch),
            ("keep_checkpoints", self.keep_checkpoints),
        ] {
            if value == 0 {
                return Err(format!("{name}: expected at least 1, found 0"));
            }
        }
        if self.save_every == 0 {
            return Err("save_every: expected at least 1, found 0".to_owned());
        }
        if self.max_length < 2 {
            return Err(format!(
                "max_length: expected at least 2, found {}",
                self.max_length
            ));
        }
        let positive = |name: &str, value: f64| {
            if value > 0.0 && value.is_finite() {
                Ok(())
            } else {
                Err(format!("{name}: expected a positive number, found {value}"))
            }
        };
        positive("learning_rate", self.peak_learning_rate())?;
        for (name, &factor) in &self.lr_multipliers {
            positive(&format!("lr_multipliers.{name}"), factor)?;
        }
        if let Some(norm) = self.max_grad_norm {
            positive("max_grad_norm", norm)?;
        }
        if !(0.0..=1.0).contains(&self.warmup_ratio) {
            return Err(format!(
                "warmup_ratio: expected 0 to 1, found {}",
                self.warmup_ratio
            ));
        }
        if !(self.weight_decay >= 0.0 && self.weight_decay.is_finite()) {
            return Err(format!(
                "weight_decay: expected 0 or more, found {}",
                self.weight_decay
            ));
        }
        if self.data.json.is_empty() {
            return Err("data.json: expected at least one file, found none".to_owned());
        }
        if let Some(lora) = &self.lora {
            if lora.rank == 0 {
                return Err("lora.rank: expected at least 1, found 0".to_owned());
            }
            positive("lora.alpha", lora.alpha)?;
            if lora.targets.is_empty() {
                return Err("lora.targets: expected at least one name part, found none".to_owned());
            }
        }
        if self
            .trainable
            .as_ref()
            .is_some_and(|names| names.is_empty() || names.iter().any(String::is_empty))
            && self.lora.is_none()
        {
            return Err(
                "trainable: expected at least one part of a parameter's name, found none"
                    .to_owned(),
            );
        }
        if self.start_from.is_some() && self.initialise == Some(Initialise::Random) {
            return Err("initialise: `random` contradicts `start_from`".to_owned());
        }
        if let Some(template) = &self.template
            && MaskRule::for_template(template).is_none()
        {
            return Err(format!(
                "template: `{template}` has no rule for training labels"
            ));
        }
        Ok(())
    }

    /// The peak learning rate, given or the stage's.
    pub fn peak_learning_rate(&self) -> f64 {
        self.learning_rate.unwrap_or(match self.stage {
            Stage::Align => 1e-3,
            Stage::Instruct => 2e-5,
        })
    }

    /// Name parts of the trained parameters, given or the stage's (without the adapters of `[lora]`).
    pub fn trainable_names(&self) -> Vec<String> {
        if let Some(names) = &self.trainable {
            return names.clone();
        }
        let mut names = vec!["mm_projector", "vlm_uni"];
        if self.stage == Stage::Instruct && self.lora.is_none() {
            names.extend(["embed_tokens", "model.layers", "model.norm", "lm_head"]);
        }
        names.into_iter().map(str::to_owned).collect()
    }

    /// Where projector and miners start, given or the stage's.
    pub fn initialise(&self) -> Initialise {
        match (self.initialise, &self.start_from, self.stage) {
            (Some(initialise), _, _) => initialise,
            (None, None, Stage::Align) => Initialise::Random,
            _ => Initialise::Checkpoint,
        }
    }

    /// How pictures become squares, given or the stage's.
    pub fn aspect(&self) -> AspectMode {
        self.data.aspect.unwrap_or(match self.stage {
            Stage::Align => AspectMode::Square,
            Stage::Instruct => AspectMode::Pad,
        })
    }

    /// Order of records, given or the stage's.
    pub fn sampler(&self) -> SamplerKind {
        self.sampler.unwrap_or(match self.stage {
            Stage::Align => SamplerKind::Random,
            Stage::Instruct => SamplerKind::ModalityLength,
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::painter::{AnyRecipe, PainterRecipe};

    const SMALL: &str =
        "stage = \"align\"\noutput = \"runs/x\"\nsteps = 10\n[data]\njson = [\"a.json\"]\n";

    #[test]
    fn defaults_follow_the_stage() {
        let recipe = Recipe::parse(SMALL, "r.toml").unwrap();
        assert_eq!(recipe.model, "smol");
        assert_eq!(
            (
                recipe.batch,
                recipe.accumulation,
                recipe.seed,
                recipe.max_length
            ),
            (4, 1, 42, 2048)
        );
        assert_eq!(recipe.peak_learning_rate(), 1e-3);
        assert_eq!(recipe.trainable_names(), ["mm_projector", "vlm_uni"]);
        assert_eq!(
            (recipe.initialise(), recipe.aspect(), recipe.sampler()),
            (Initialise::Random, AspectMode::Square, SamplerKind::Random)
        );
        let instruct = Recipe::parse(&SMALL.replace("align", "instruct"), "r.toml").unwrap();
        assert_eq!(instruct.peak_learning_rate(), 2e-5);
        assert_eq!(instruct.trainable_names().len(), 6);
        assert_eq!(
            (instruct.initialise(), instruct.aspect(), instruct.sampler()),
            (
                Initialise::Checkpoint,
                AspectMode::Pad,
                SamplerKind::ModalityLength
            )
        );
        let lora = Recipe::parse(
            &format!("{}[lora]\n", SMALL.replace("align", "instruct")),
            "r.toml",
        )
        .unwrap();
        assert_eq!(lora.trainable_names(), ["mm_projector", "vlm_uni"]);
        assert_eq!(lora.lora.unwrap().targets.len(), 7);
    }

    #[test]
    fn errors_are_one_line_with_the_place() {
        let error = |text: &str| {
            let message = Recipe::parse(text, "r.toml").unwrap_err().to_string();
            assert!(!message.contains('\n'), "{message}");
            message
        };
        let unknown = error(&SMALL.replace("steps = 10", "steps = 10\nlearning_rat = 1.0"));
        assert!(
            unknown.starts_with("r.toml:4: unknown field `learning_rat`"),
            "{unknown}"
        );
        assert!(error(&SMALL.replace("json", "jsn")).contains("unknown field `jsn`"));
        assert!(
            error(&SMALL.replace("\"align\"", "\"both\""))
                .starts_with("r.toml:1: unknown variant `both`")
        );
        assert!(
            error(&SMALL.replace("steps = 10", "steps = \"ten\""))
                .starts_with("r.toml:3: invalid type: string \"ten\"")
        );
        assert!(
            error(&SMALL.replace("steps = 10\n", ""))
                .contains("exactly one of `epochs` and `steps`")
        );
        assert!(
            error(&SMALL.replace("steps = 10", "steps = 10\nepochs = 1"))
                .contains("exactly one of")
        );
        assert!(
            error(&SMALL.replace("steps = 10", "steps = 0")).contains("steps: expected at least 1")
        );
        assert!(
            error(&SMALL.replace("steps = 10", "steps = 10\nbatch = 0"))
                .contains("batch: expected at least 1")
        );
        assert!(
            error(&SMALL.replace("steps = 10", "steps = 10\nwarmup_ratio = 2"))
                .contains("warmup_ratio: expected 0 to 1")
        );
        assert!(
            error(&SMALL.replace("steps = 10", "steps = 10\ntemplate = \"phi_2\""))
                .contains("`phi_2` has no rule")
        );
        assert!(
            error(&SMALL.replace("[\"a.json\"]", "[]"))
                .contains("data.json: expected at least one file")
        );
        assert!(
            error(&SMALL.replace("output = \"runs/x\"\n", "")).contains("missing field `output`")
        );
        assert!(error("stage = ").starts_with("r.toml:1: "));
        let missing = Recipe::from_file("no/such/recipe.toml".as_ref())
            .unwrap_err()
            .to_string();
        assert!(
            missing.starts_with("cannot read no/such/recipe.toml"),
            "{missing}"
        );
    }

    #[test]
    fn committed_recipes_are_valid() {
        let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../recipes");
        let recipes: Vec<PathBuf> = std::fs::read_dir(folder)
            .unwrap()
            .map(|entry| entry.unwrap().path())
            .collect();
        assert!(recipes.len() >= 2);
        for path in recipes {
            // What a run records of its recipe reads back the same.
            match AnyRecipe::from_file(&path).unwrap() {
                AnyRecipe::Model(recipe) => {
                    let text = serde_json::to_string(&recipe).unwrap();
                    assert_eq!(serde_json::from_str::<Recipe>(&text).unwrap(), *recipe);
                }
                AnyRecipe::Painter(recipe) => {
                    let text = serde_json::to_string(&recipe).unwrap();
                    let again = serde_json::from_str::<PainterRecipe>(&text).unwrap();
                    assert_eq!(again, *recipe);
                }
            }
        }
    }
}
