//! The HD form (2×2 crops and the overview) against the official formula: order of views, pooling, crops of the map.

// A test may end by a panic.
#![allow(clippy::unwrap_used)]

mod common;

use candle_core::{Device, Tensor};
use common::*;

#[test]
fn views_are_four_crops_and_the_overview() {
    let expected = read("gemma/expected_hd.safetensors");
    let image = prepared(pictures("hd").swap_remove(0), 2);
    assert_eq!(image.views, 5);
    let views = Tensor::from_vec(image.low_res, (5, 3, LOW_RES, LOW_RES), &Device::Cpu).unwrap();
    let kept = Tensor::stack(&[views.get(0).unwrap(), views.get(4).unwrap()], 0).unwrap();
    assert_close(
        "first crop and overview",
        &kept,
        get(&expected, "views"),
        1e-6,
    );
}

#[test]
fn visual_tokens_of_two_pictures() {
    let model = load_directory(&hd_directory("hd-tokens"), policy(&[], None));
    let vision = model.vision().unwrap();
    assert_eq!(vision.tokens_per_image(), 5 * 36);
    let expected = read("gemma/expected_hd.safetensors");
    for (index, picture) in pictures("hd").into_iter().enumerate() {
        let features = model.tower_features(&prepared(picture, 2)).unwrap();
        if index == 0 {
            // The reference has the sequence's order (overview first), the features the input's (overview last).
            let order = [4, 0, 1, 2, 3];
            let low_res: Vec<Tensor> = order
                .iter()
                .map(|view| features.low_res.get(*view).unwrap())
                .collect();
            let low_res = Tensor::cat(&low_res, 0).unwrap();
            let reference = get(&expected, "low_res").get(0).unwrap();
            assert_close("CLIP features", &low_res, &reference, TOLERANCE);
            let mined: Vec<Tensor> = order
                .iter()
                .map(|view| vision.mined(&features, *view).unwrap().unwrap())
                .collect();
            let mined = Tensor::cat(&mined, 0).unwrap();
            let reference = get(&expected, "mined").get(0).unwrap();
            assert_close("mined features", &mined, &reference, TOLERANCE);
        }
        let tokens = model.visual_tokens(&features).unwrap();
        let reference = get(&expected, "tokens").get(index).unwrap();
        assert_close(
            &format!("visual tokens of picture {index}"),
            &tokens,
            &reference,
            TOLERANCE,
        );
    }
}

#[test]
fn answers_about_one_and_two_pictures() {
    let model = load_directory(&hd_directory("hd-answers"), policy(&[], None));
    assert_eq!(model.context_limit(), 4096);
    let expected = read("gemma/expected_hd.safetensors");
    let tokens = visual_tokens(&model, pictures("hd"), 2);
    check_prompt(&model, &expected, "one", &tokens[..1]);
    check_prompt(&model, &expected, "two", &tokens);
}

/// CLIP sees each crop alone: changing one quadrant leaves the low-resolution features of the other crops as they were.
#[test]
fn crops_are_seen_separately() {
    let model = load_directory(&hd_directory("hd-crops"), policy(&[], None));
    let picture = pictures("hd").swap_remove(0);
    let side = 2 * HIGH_RES;
    let mut changed = picture.clone();
    for channel in 0..3 {
        for row in 0..HIGH_RES - 4 {
            for column in HIGH_RES + 4..side {
                changed[(channel * side + row) * side + column] *= -1.0;
            }
        }
    }
    let before = model.tower_features(&prepared(picture, 2)).unwrap();
    let after = model.tower_features(&prepared(changed, 2)).unwrap();
    for (view, differs) in [false, true, false, false, true].into_iter().enumerate() {
        let error = relative_error(
            &floats(&after.low_res.get(view).unwrap()),
            &floats(&before.low_res.get(view).unwrap()),
        );
        assert_eq!(error > 1e-3, differs, "view {view} changed by {error}");
    }
}

#[test]
fn grid_without_overview_and_overview_without_grid() {
    let directory = hd_directory("hd-config");
    let file = directory.join("config.json");
    let text = std::fs::read_to_string(&file).unwrap();
    // Only crops: the tokens of the full form without the overview's, which come first.
    std::fs::write(
        &file,
        text.replace("\"image_global\": true", "\"image_global\": false"),
    )
    .unwrap();
    let model = load_directory(&directory, policy(&[], None));
    assert_eq!(model.vision().unwrap().tokens_per_image(), 4 * 36);
    let mut image = prepared(pictures("hd").swap_remove(0), 2);
    image.views = 4;
    image.low_res.truncate(4 * 3 * LOW_RES * LOW_RES);
    let tokens = model
        .visual_tokens(&model.tower_features(&image).unwrap())
        .unwrap();
    let expected = read("gemma/expected_hd.safetensors");
    let reference = get(&expected, "tokens")
        .get(0)
        .unwrap()
        .narrow(0, 36, 4 * 36)
        .unwrap();
    assert_close("tokens of the crops", &tokens, &reference, TOLERANCE);
    // The overview without crops is undefined in the reference and refused here.
    std::fs::write(
        &file,
        text.replace("\"image_grid\": 2", "\"image_grid\": 1"),
    )
    .unwrap();
    let source = mini_gemini::ModelSource::Path(directory.clone());
    let result = mini_gemini::MiniGemini::load(&source, &mini_gemini::LoadOptions::default());
    let error = result
        .err()
        .map(|error| error.to_string())
        .unwrap_or_default();
    assert!(error.contains("image_global"), "{error:?}");
}
