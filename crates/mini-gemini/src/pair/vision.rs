//! The keys of a vision file: writing them from a configuration and the towers' tensors, and reading them back.

use std::path::Path;

use mgm_nn::{GgufMetadata, GgufValueOut, WeightSource};
use serde_json::{Map, Value};

use super::{VERSION, VISION_ARCHITECTURE, language};
use crate::config::ModelConfig;
use crate::error::{Error, Result};

/// Names of the tensors that tell the towers and give their sizes: kind, patch (or stem) weight, and the norm of layer `N`.
const LOW_RES_KINDS: [(&str, &str, &str, &str); 2] = [
    (
        "clip",
        "model.vision_tower.vision_tower.vision_model.embeddings.patch_embedding.weight",
        "model.vision_tower.vision_tower.vision_model.encoder.layers",
        "layer_norm1.weight",
    ),
    (
        "dinov2",
        "model.vision_tower.vision_tower.embeddings.patch_embeddings.projection.weight",
        "model.vision_tower.vision_tower.encoder.layer",
        "norm1.weight",
    ),
];
const HIGH_RES_KINDS: [(&str, &str); 2] = [
    ("convnext", "model.vision_tower_aux.vision_stem.0.weight"),
    (
        "efficientnet_lite",
        "model.vision_tower_aux._conv_stem.weight",
    ),
];

/// All keys of a vision file. `weights` has official names.
pub(super) fn metadata(
    name: &str,
    file_type: u32,
    config: &ModelConfig,
    weights: &WeightSource,
) -> Result<Vec<(String, GgufValueOut)>> {
    let mut keys: Vec<(String, GgufValueOut)> = vec![
        ("general.architecture".into(), VISION_ARCHITECTURE.into()),
        ("general.type".into(), "mmproj".into()),
        ("general.name".into(), name.into()),
        ("general.file_type".into(), file_type.into()),
        ("general.quantization_version".into(), 2u32.into()),
    ];
    let mut put = |key: &str, value: GgufValueOut| {
        keys.push((format!("{VISION_ARCHITECTURE}.{key}"), value));
    };
    let number = |value: usize| -> Result<GgufValueOut> {
        u32::try_from(value)
            .map(GgufValueOut::U32)
            .map_err(|_| Error::Input(format!("{value} is more than a file can say")))
    };
    put("version", VERSION.into());
    put("projection_dim", number(config.hidden_size)?);
    put("projector_type", config.mm_projector_type.as_str().into());
    put("image.grid", number(config.grid())?);
    put("image.global", config.image_global.unwrap_or(false).into());
    // As it is run: anything but `square` is padded.
    let aspect_ratio = match config.image_aspect_ratio.as_deref() {
        Some("square") => "square",
        _ => "pad",
    };
    put("image.aspect_ratio", aspect_ratio.into());
    let statistics = |values: [f32; 3]| GgufValueOut::F32s(values.to_vec());
    put("image.mean", statistics(mgm_image::CLIP_MEAN));
    put("image.std", statistics(mgm_image::CLIP_STD));

    let low_res = LOW_RES_KINDS
        .iter()
        .find_map(|kind| Some((kind, weights.shape(kind.1)?)));
    let Some(((kind, _, layers, norm), shape)) = low_res else {
        return Err(Error::Input(
            "the checkpoint holds no low-resolution tower: expected CLIP or DINOv2 tensors under model.vision_tower".into(),
        ));
    };
    put("low_res.tower", (*kind).into());
    put(
        "low_res.name",
        config.mm_vision_tower.as_deref().unwrap_or_default().into(),
    );
    put(
        "low_res.embedding_length",
        number(shape.first().copied().unwrap_or(0))?,
    );
    put(
        "low_res.patch_size",
        number(shape.last().copied().unwrap_or(0))?,
    );
    let blocks = (0..)
        .take_while(|index| weights.contains(&format!("{layers}.{index}.{norm}")))
        .count();
    put("low_res.block_count", number(blocks)?);
    let layer = i32::try_from(config.mm_vision_select_layer).map_err(|_| {
        Error::Input(format!(
            "mm_vision_select_layer is {}: out of range",
            config.mm_vision_select_layer
        ))
    })?;
    put("low_res.select_layer", layer.into());
    put(
        "low_res.select_feature",
        config.mm_vision_select_feature.as_str().into(),
    );

    if let Some(name) = &config.mm_vision_tower_aux {
        let kind = HIGH_RES_KINDS
            .iter()
            .find(|(_, stem)| weights.contains(stem))
            .ok_or_else(|| {
                Error::Input(
                    "the checkpoint holds no high-resolution tower: expected ConvNeXt or EfficientNet-Lite tensors under model.vision_tower_aux".into(),
                )
            })?;
        put("high_res.tower", kind.0.into());
        put("high_res.name", name.as_str().into());
        let channels = weights
            .shape("model.vlm_uni_aux_projector.0.weight")
            .and_then(|shape| shape.first().copied())
            .or(config.mm_hidden_size_aux);
        if let Some(channels) = channels {
            put("high_res.channels", number(channels)?);
        }
        if let Some(size) = config.image_size_aux {
            put("high_res.image_size", number(size)?);
        }
    }
    Ok(keys)
}

/// Adds what a vision file says to the keys of a `config.json`.
pub(super) fn add_config_keys(
    file: &Path,
    metadata: &GgufMetadata,
    keys: &mut Map<String, Value>,
) -> Result<()> {
    let full = |key: &str| format!("{VISION_ARCHITECTURE}.{key}");
    let bad = |key: &str, message: String| Error::Config {
        file: file.into(),
        message: format!("{}: {message}", full(key)),
    };
    if metadata.architecture() != Some(VISION_ARCHITECTURE) {
        return Err(Error::Config {
            file: file.into(),
            message: format!(
                "general.architecture: expected {VISION_ARCHITECTURE}, found {}",
                metadata.architecture().unwrap_or("none")
            ),
        });
    }
    language::check_version(file, true, || metadata.unsigned(&full("version")))?;
    let text = |key: &str| metadata.string(&full(key));
    let number = |key: &str| metadata.unsigned(&full(key));
    let required =
        |key: &str| text(key).ok_or_else(|| bad(key, "expected text, found none".into()));
    // What a later version, or another writer, may say that this program does not compute.
    let one_of = |key: &str, known: &[&str]| match text(key) {
        Some(found) if !known.contains(&found) => Err(bad(
            key,
            format!("expected {}, found {found}", known.join(" or ")),
        )),
        _ => Ok(()),
    };
    required("low_res.tower")?;
    one_of("low_res.tower", &LOW_RES_KINDS.map(|kind| kind.0))?;
    one_of("low_res.select_feature", &["patch"])?;
    one_of("high_res.tower", &HIGH_RES_KINDS.map(|kind| kind.0))?;
    one_of("image.aspect_ratio", &["pad", "square"])?;
    for (key, expected) in [
        ("image.mean", mgm_image::CLIP_MEAN),
        ("image.std", mgm_image::CLIP_STD),
    ] {
        let found = metadata.floats(&full(key)).unwrap_or_default();
        let equal = found.len() == expected.len()
            && found
                .iter()
                .zip(expected)
                .all(|(a, b)| (a - b).abs() < 1e-4);
        if metadata.get(&full(key)).is_some() && !equal {
            return Err(bad(
                key,
                format!("expected CLIP's {expected:?}, found {found:?}"),
            ));
        }
    }
    let width = number("projection_dim");
    let expected = keys.get("hidden_size").and_then(Value::as_u64);
    if width != expected {
        return Err(bad(
            "projection_dim",
            format!(
                "expected {}, the language model's width, found {}: the two files belong to different models",
                expected.map_or("none".into(), |width| width.to_string()),
                width.map_or("none".into(), |width| width.to_string()),
            ),
        ));
    }
    let mut put = |key: &str, value: Value| {
        if !value.is_null() {
            keys.insert(key.into(), value);
        }
    };
    put("mm_vision_tower", required("low_res.name")?.into());
    put("mm_projector_type", required("projector_type")?.into());
    put("mm_hidden_size", number("low_res.embedding_length").into());
    put(
        "mm_vision_select_layer",
        metadata
            .get(&full("low_res.select_layer"))
            .and_then(|value| value.as_i64())
            .into(),
    );
    put(
        "mm_vision_select_feature",
        text("low_res.select_feature").into(),
    );
    if text("high_res.tower").is_some() {
        put("mm_vision_tower_aux", required("high_res.name")?.into());
        put("mm_hidden_size_aux", number("high_res.channels").into());
        put("image_size_aux", number("high_res.image_size").into());
    }
    put("image_grid", number("image.grid").into());
    put("image_global", metadata.bool(&full("image.global")).into());
    put("image_aspect_ratio", text("image.aspect_ratio").into());
    Ok(())
}
