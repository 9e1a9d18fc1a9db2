//! Towers that lie outside the checkpoint, in the directories that `mm_vision_tower` and `mm_vision_tower_aux` name.

use std::path::Path;

use mgm_nn::WeightSource;

use crate::checkpoint::Checkpoint;
use crate::error::{Error, Result};
use crate::layout::{first_of, open_first_of};
use crate::locate::Places;

/// Files of a Hugging Face model.
const HUGGING_FACE: [&str; 4] = [
    "model.safetensors",
    "model.safetensors.index.json",
    "pytorch_model.bin",
    "pytorch_model.bin.index.json",
];
/// Files of an open_clip model, then the others.
const OPEN_CLIP: [&str; 4] = [
    "open_clip_model.safetensors",
    "open_clip_pytorch_model.bin",
    "model.safetensors",
    "pytorch_model.bin",
];

/// Adds the towers the checkpoint does not hold itself.
///
/// # Errors
/// When a tower is neither in the checkpoint nor where its path leads; the message lists where was looked.
pub(crate) fn add(mut checkpoint: Checkpoint, model_zoo: Option<&Path>) -> Result<Checkpoint> {
    let towers: [(&'static str, _, _, &[&str], Rename); 2] = [
        (
            "low-resolution tower (mm_vision_tower)",
            checkpoint.config.mm_vision_tower.clone(),
            "model.vision_tower",
            &HUGGING_FACE,
            clip_name,
        ),
        (
            "high-resolution tower (mm_vision_tower_aux)",
            checkpoint.config.mm_vision_tower_aux.clone(),
            "model.vision_tower_aux",
            &OPEN_CLIP,
            trunk_name,
        ),
    ];
    for (what, name, prefix, files, rename) in towers {
        let Some(name) = name else { continue };
        if !checkpoint.weights.pp(prefix).names().is_empty() {
            continue;
        }
        let places = Places {
            checkpoint: &checkpoint.directory,
            model_zoo,
        };
        let suits = |path: &Path| first_of(path, files).is_some();
        let folder = places.find(what, &name, &suits)?;
        let stored = open_first_of(&folder, files)?;
        let example = stored.names().into_iter().next().unwrap_or_default();
        let tower: WeightSource = stored.renamed(rename);
        if tower.names().is_empty() {
            return Err(Error::WrongTower {
                folder,
                what,
                expected: "vision_model.… (CLIP) or visual.trunk.… (open_clip)",
                found: example,
            });
        }
        checkpoint
            .notes
            .push(format!("{what} read from {}", folder.display()));
        checkpoint.weights = checkpoint.weights.overlay(tower);
    }
    Ok(checkpoint)
}

type Rename = fn(&str) -> Option<String>;

/// `CLIPModel` and `CLIPVisionModel` to the checkpoint's names; the text tower is left out.
fn clip_name(name: &str) -> Option<String> {
    name.starts_with("vision_model.")
        .then(|| format!("model.vision_tower.vision_tower.{name}"))
}

/// open_clip's and timm's ConvNeXt to the checkpoint's names; heads and the text tower are left out (spec: model §4.3).
fn trunk_name(name: &str) -> Option<String> {
    let trunk = name.strip_prefix("visual.trunk.").unwrap_or(name);
    let part = ["stem.", "stages."]
        .iter()
        .any(|part| trunk.starts_with(part));
    part.then(|| format!("model.vision_tower_aux.vision_{trunk}"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_of_separate_towers() {
        assert_eq!(
            clip_name("vision_model.pre_layrnorm.weight").as_deref(),
            Some("model.vision_tower.vision_tower.vision_model.pre_layrnorm.weight")
        );
        assert_eq!(clip_name("text_model.final_layer_norm.weight"), None);
        for name in [
            "visual.trunk.stages.0.blocks.1.gamma",
            "stages.0.blocks.1.gamma",
        ] {
            assert_eq!(
                trunk_name(name).as_deref(),
                Some("model.vision_tower_aux.vision_stages.0.blocks.1.gamma")
            );
        }
        for name in [
            "visual.trunk.head.norm.weight",
            "visual.head.mlp.fc1.weight",
            "logit_scale",
        ] {
            assert_eq!(trunk_name(name), None);
        }
    }
}
