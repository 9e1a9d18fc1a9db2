//! Towers, mining and projector against Hugging Face, timm and the plain official formula.

// A test may end by a panic.
#![allow(clippy::unwrap_used)]

mod common;

use candle_core::{Device, Tensor};
use common::*;
use mgm_image::{PreprocessConfig, RgbImage};
use mgm_nn::WeightSource;
use mini_gemini::mining::Mining;
use mini_gemini::{LoadOptions, MiniGemini, ModelConfig, ModelSource, Vision};

/// The views a model sees are derived from the normalised high-resolution tensor.
#[test]
fn low_res_view_of_the_normalised_picture() {
    let expected = read("gemma/expected.safetensors");
    let picture = pictures("base").swap_remove(0);
    let image = prepared(picture, 1);
    let view = Tensor::from_vec(image.low_res, (1, 3, LOW_RES, LOW_RES), &Device::Cpu).unwrap();
    assert_close("low-resolution view", &view, get(&expected, "views"), 1e-6);
}

/// CLIP hidden_states[-2] without the class token, every ConvNeXt stage, mined features, visual tokens: two pictures.
#[test]
fn vision_of_every_family() {
    for family in FAMILIES {
        println!("{family}");
        let model = load(family, &[]);
        let vision = model.vision().unwrap();
        let expected = read(&format!("{family}/expected.safetensors"));
        for (index, picture) in pictures("base").into_iter().take(2).enumerate() {
            let features = model.tower_features(&prepared(picture, 1)).unwrap();
            let reference = |name: &str| get(&expected, name).get(index).unwrap();
            let low_res = features.low_res.squeeze(0).unwrap();
            assert_close("CLIP features", &low_res, &reference("low_res"), TOLERANCE);
            let mined = vision.mined(&features, 0).unwrap().unwrap();
            assert_close("mined features", &mined, &reference("mined"), TOLERANCE);
            let tokens = model.visual_tokens(&features).unwrap();
            assert_close("visual tokens", &tokens, &reference("tokens"), TOLERANCE);
        }
        assert_eq!(vision.tokens_per_image(), 36);
    }
}

#[test]
fn convnext_stages() {
    let model = load("gemma", &[]);
    let expected = read("gemma/expected.safetensors");
    let features = model
        .tower_features(&prepared(pictures("base").swap_remove(0), 1))
        .unwrap();
    assert_eq!(features.high_res.len(), 4);
    for (index, stage) in features.high_res.iter().enumerate() {
        let reference = get(&expected, &format!("stage.{index}"));
        assert_close(
            &format!("ConvNeXt stage {index}"),
            stage,
            reference,
            TOLERANCE,
        );
    }
}

/// The whole upsampled and concatenated map that the reference builds: `[channels, 48, 48]`.
fn concatenated(stages: &[Tensor]) -> Tensor {
    let (_, side, _) = stages[0].dims3().unwrap();
    let upsampled: Vec<Tensor> = stages
        .iter()
        .map(|stage| {
            let (channels, rows, columns) = stage.dims3().unwrap();
            let values =
                mgm_image::bilinear_planar(&floats(stage), channels, rows, columns, side, side);
            Tensor::from_vec(values, (channels, side, side), &Device::Cpu).unwrap()
        })
        .collect();
    Tensor::cat(&upsampled, 0).unwrap()
}

/// The cells of chosen regions: interpolation to the finest stage, channel order, and the order inside a region.
#[test]
fn region_cells_of_the_concatenated_map() {
    let model = load("gemma", &[]);
    let expected = read("gemma/expected.safetensors");
    let features = model
        .tower_features(&prepared(pictures("base").swap_remove(0), 1))
        .unwrap();
    let map = concatenated(&features.high_res);
    for (index, region) in integers(get(&expected, "cells.regions"))
        .into_iter()
        .enumerate()
    {
        let (top, left) = (region as usize / 6 * 8, region as usize % 6 * 8);
        let channels = map.dim(0).unwrap();
        let cells = map.narrow(1, top, 8).unwrap().narrow(2, left, 8).unwrap();
        let cells = cells
            .contiguous()
            .unwrap()
            .reshape((channels, 64))
            .unwrap()
            .t()
            .unwrap();
        let reference = get(&expected, "cells").get(index).unwrap();
        assert_close(
            &format!("cells of region {region}"),
            &cells,
            &reference,
            TOLERANCE,
        );
    }
}

/// The folded mining equals the formula as the reference writes it, on the same features.
#[test]
fn folded_mining_equals_the_plain_formula() {
    for family in ["gemma", "llama"] {
        let directory = fixture(family);
        let config = ModelConfig::read(&directory.join("config.json")).unwrap();
        let weights = WeightSource::from_directory(&directory)
            .unwrap()
            .with_policy(policy(&[], None));
        let (width, channels) = (
            config.mm_hidden_size.unwrap(),
            config.mm_hidden_size_aux.unwrap(),
        );
        let mining = Mining::load(&weights.pp("model"), width, channels).unwrap();
        let vision = Vision::load(&config, &weights).unwrap().unwrap();
        let features = vision
            .tower_features(&prepared(pictures("base").swap_remove(1), 1))
            .unwrap();
        let low_res = features.low_res.squeeze(0).unwrap();
        let (plain, plain_weights) = mining
            .forward_plain(&low_res, &concatenated(&features.high_res))
            .unwrap();
        let folded = vision.mined(&features, 0).unwrap().unwrap();
        assert_close(&format!("{family}: folded mining"), &folded, &plain, 1e-5);
        let attention = vision.mining_attention(&features, 0).unwrap();
        assert_eq!(attention.dims(), [36, 64]);
        assert_close(
            &format!("{family}: attention weights"),
            &attention,
            &plain_weights,
            1e-5,
        );
        for row in attention.to_vec2::<f32>().unwrap() {
            let sum: f32 = row.iter().sum();
            assert!(
                (sum - 1.0).abs() < 1e-5,
                "{family}: attention over a region sums to {sum}"
            );
        }
    }
}

/// Without high-resolution features the projector sees the low-resolution ones alone.
#[test]
fn no_mining_without_high_resolution_features() {
    let model = load("llama", &[]);
    let mut features = model
        .tower_features(&prepared(pictures("base").swap_remove(0), 1))
        .unwrap();
    let with = model.visual_tokens(&features).unwrap();
    features.high_res.clear();
    let without = model.visual_tokens(&features).unwrap();
    assert_eq!(with.dims(), without.dims());
    assert!(relative_error(&floats(&without), &floats(&with)) > 0.05);
}

/// The two real towers of the built-in model on a photograph, against Hugging Face's Dinov2Model and timm.
#[test]
fn built_in_towers_on_a_photograph() {
    let expected = read("towers.safetensors");
    let source = ModelSource::BuiltIn;
    let directory = source.directory().unwrap();
    let config = ModelConfig::read(&directory.join("config.json")).unwrap();
    let file = directory.join("towers.safetensors");
    let weights = WeightSource::open(&file)
        .unwrap()
        .with_policy(policy(&[], None));
    let model = weights.pp("model");
    let low = mini_gemini::towers::load_low_res(
        config.mm_vision_tower.as_deref().unwrap(),
        -2,
        "patch",
        &model.pp("vision_tower"),
    )
    .unwrap();
    let high = mini_gemini::towers::load_high_res(
        config.mm_vision_tower_aux.as_deref().unwrap(),
        &model.pp("vision_tower_aux"),
    )
    .unwrap();

    let pixels: Vec<u8> = get(&expected, "pixels")
        .flatten_all()
        .unwrap()
        .to_vec1()
        .unwrap();
    let photograph = RgbImage {
        width: 256,
        height: 256,
        data: pixels,
    };
    let preprocess = PreprocessConfig {
        low_res_size: low.picture_size() as u32,
        high_res_size: 256,
        grid: 1,
        global: false,
        ..PreprocessConfig::base()
    };
    let image = mgm_image::prepare(&photograph, &preprocess).unwrap();
    assert_eq!(low.picture_size(), 112);
    let view = Tensor::from_vec(image.low_res, (1, 3, 112, 112), &Device::Cpu).unwrap();
    let picture = Tensor::from_vec(image.high_res, (3, 256, 256), &Device::Cpu).unwrap();

    // The reference is the output before standardisation; the buffers are part of the weights.
    let buffers = candle_core::safetensors::load(&file, &Device::Cpu).unwrap();
    let standardised = |reference: &Tensor, name: &str, channels: &[usize]| -> Tensor {
        // `reference` has its channels first.
        let [mean, std] =
            ["mean", "std"].map(|part| floats(get(&buffers, &format!("{name}.{part}"))));
        let rows: Vec<Tensor> = channels
            .iter()
            .enumerate()
            .map(|(row, channel)| {
                let (scale, shift) = (f64::from(std[*channel]), f64::from(mean[*channel]));
                ((reference.get(row).unwrap() - shift).unwrap() / scale).unwrap()
            })
            .collect();
        Tensor::stack(&rows, 0).unwrap()
    };
    let state = low
        .encode(&view, &mut || Ok(()))
        .unwrap()
        .squeeze(0)
        .unwrap();
    let all: Vec<usize> = (0..384).collect();
    let reference = get(&expected, "low_res").t().unwrap().contiguous().unwrap();
    let reference = standardised(&reference, "model.vision_tower.feature_norm", &all);
    assert_close("ViT state", &state.t().unwrap(), &reference, TOLERANCE);
    let taps = high.encode(&picture, &mut || Ok(())).unwrap();
    assert_eq!(taps.len(), 3);
    for (index, tap) in taps.iter().enumerate() {
        let channels: Vec<usize> = integers(get(&expected, &format!("high_res.{index}.channels")))
            .into_iter()
            .map(|channel| channel as usize)
            .collect();
        let name = format!("model.vision_tower_aux.feature_norm.{index}");
        let reference = get(&expected, &format!("high_res.{index}"));
        let reference = standardised(reference, &name, &channels);
        let found: Vec<Tensor> = channels
            .iter()
            .map(|channel| tap.get(*channel).unwrap())
            .collect();
        let found = Tensor::stack(&found, 0).unwrap();
        assert_close(
            &format!("EfficientNet tap {index}"),
            &found,
            &reference,
            TOLERANCE,
        );
    }
}

/// A picture prepared for another model is an error, not a wrong answer.
#[test]
fn wrong_picture_size_is_an_error() {
    let model = load("llama", &[]);
    let mut image = prepared(pictures("base").swap_remove(0), 1);
    image.low_res_size = 42;
    image.views = 4;
    let error = model.tower_features(&image).unwrap_err().to_string();
    assert!(error.contains("84"), "{error}");
}

/// Placeholders and pictures must agree.
#[test]
fn placeholders_and_pictures_must_agree() {
    let model = load("llama", &[]);
    let tokens = visual_tokens(&model, pictures("base"), 1);
    let error = model
        .splice(&[1, -200, 5], &tokens[..2])
        .unwrap_err()
        .to_string();
    assert!(error.contains('1') && error.contains('2'), "{error}");
    let spliced = model.splice(&[1, -200, 5, -200], &tokens[..2]).unwrap();
    assert_eq!(spliced.dim(0).unwrap(), 2 + 2 * 36);
}

/// The public loader reads each directory as it is, sharded and half precision included.
#[test]
fn every_directory_loads_with_default_options() {
    for family in FAMILIES {
        let source = ModelSource::Path(fixture(family));
        let model = MiniGemini::load(&source, &LoadOptions::default())
            .unwrap_or_else(|error| panic!("{family}: {error}"));
        assert!(
            model.parameters().is_empty(),
            "{family}: nothing is trainable"
        );
        assert_eq!(model.context_limit(), 2048);
    }
}

/// The look inside a picture tells where each view lies and what the miner's attention was there.
#[test]
fn the_look_inside_is_the_miners_attention() {
    let mut image = mgm_image::RgbImage::filled(50, 30, [10, 20, 30]);
    for (index, value) in image.data.iter_mut().enumerate() {
        *value = (index as u32).wrapping_mul(2_654_435_761) as u8;
    }
    let hd = load_directory(&hd_directory("look-inside"), policy(&[], None));
    let base = load("llama", &[]);
    for (model, views, corner) in [(&base, 1, [0.0, -10.0]), (&hd, 5, [25.0, 15.0])] {
        let mut pauses = 0;
        let inside = model
            .mining_attention(&image, &mut || {
                pauses += 1;
                Ok(())
            })
            .unwrap();
        assert!(pauses > 2, "the towers were not interruptible");
        assert_eq!((inside.width, inside.height), (50, 30));
        assert_eq!(inside.views.len(), views);
        // The last crop, or the only view.
        let view = &inside.views[views.saturating_sub(2).min(3)];
        let last = if views == 1 { [50.0; 1] } else { [25.0; 1] };
        assert_eq!(([view.left, view.top], [view.side]), (corner, last));
        let features = model
            .tower_features(&model.prepare(&image).unwrap())
            .unwrap();
        for (index, view) in inside.views.iter().enumerate() {
            let direct = model
                .vision()
                .unwrap()
                .mining_attention(&features, index)
                .unwrap();
            assert_eq!(
                direct.dims(),
                [view.patches * view.patches, view.cells * view.cells]
            );
            assert_eq!(view.weights, floats(&direct));
        }
    }
    let stopped = base.mining_attention(&image, &mut || Err(mini_gemini::Error::Stopped));
    assert!(matches!(stopped, Err(mini_gemini::Error::Stopped)));
}
