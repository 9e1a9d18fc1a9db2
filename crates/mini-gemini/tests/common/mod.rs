//! What the integration tests share: fixtures, comparison, and the way from stored pictures to a model's input.

#![allow(dead_code)]

use std::collections::HashMap;
use std::path::{Path, PathBuf};

use candle_core::{DType, Device, Tensor};
use mgm_image::{PreparedImage, bilinear_planar};
use mgm_nn::{LoraConfig, WeightPolicy, WeightStorage};
use mini_gemini::decoder::Context;
use mini_gemini::{LoadOptions, MiniGemini, ModelSource};

/// Every family that has a checkpoint among the fixtures.
pub(crate) const FAMILIES: [&str; 6] = ["gemma", "llama", "llama3", "mistral", "mixtral", "qwen2"];
/// Largest difference allowed, relative to the largest reference value.
pub(crate) const TOLERANCE: f32 = 1e-4;
/// Side of one low-resolution view of the tiny models.
pub(crate) const LOW_RES: usize = 84;
/// Side of the high-resolution picture of the tiny models; the HD variant sees twice as much.
pub(crate) const HIGH_RES: usize = 192;

pub(crate) type Named = HashMap<String, Tensor>;

pub(crate) fn fixture(path: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR"))
        .join("tests/fixtures")
        .join(path)
}

pub(crate) fn read(path: &str) -> Named {
    candle_core::safetensors::load(fixture(path), &Device::Cpu)
        .unwrap_or_else(|error| panic!("{path}: {error}"))
}

pub(crate) fn get<'a>(named: &'a Named, name: &str) -> &'a Tensor {
    named
        .get(name)
        .unwrap_or_else(|| panic!("the fixture lacks {name}"))
}

pub(crate) fn floats(tensor: &Tensor) -> Vec<f32> {
    tensor
        .to_dtype(DType::F32)
        .unwrap()
        .flatten_all()
        .unwrap()
        .to_vec1()
        .unwrap()
}

pub(crate) fn integers(tensor: &Tensor) -> Vec<i64> {
    tensor.flatten_all().unwrap().to_vec1().unwrap()
}

/// Largest absolute value.
pub(crate) fn magnitude(values: &[f32]) -> f32 {
    values
        .iter()
        .fold(0.0, |largest, value| largest.max(value.abs()))
}

/// Largest difference relative to the largest reference value; NaN counts as infinite.
pub(crate) fn relative_error(found: &[f32], reference: &[f32]) -> f32 {
    assert_eq!(found.len(), reference.len(), "number of values");
    let difference = found.iter().zip(reference).fold(0.0f32, |largest, (a, b)| {
        let difference = (a - b).abs();
        if difference.is_nan() {
            f32::INFINITY
        } else {
            largest.max(difference)
        }
    });
    difference / magnitude(reference)
}

pub(crate) fn assert_close(what: &str, found: &Tensor, reference: &Tensor, tolerance: f32) {
    assert_eq!(found.dims(), reference.dims(), "{what}: shape");
    let error = relative_error(&floats(found), &floats(reference));
    println!("{what}: relative error {error:.1e}");
    assert!(
        error <= tolerance,
        "{what}: relative error {error:.2e}, allowed {tolerance:.0e}"
    );
}

/// Frozen f32 weights; trainable where a name contains one of `trainable`.
pub(crate) fn policy(trainable: &[&str], lora: Option<LoraConfig>) -> WeightPolicy {
    WeightPolicy {
        device: Device::Cpu,
        storage: WeightStorage::F32,
        trainable: trainable.iter().map(|name| name.to_string()).collect(),
        lora,
    }
}

pub(crate) fn load_directory(directory: &Path, policy: WeightPolicy) -> MiniGemini {
    let source = ModelSource::Path(directory.to_path_buf());
    MiniGemini::load_with_policy(&source, &LoadOptions::default(), policy)
        .unwrap_or_else(|error| panic!("{}: {error}", directory.display()))
}

pub(crate) fn load(family: &str, trainable: &[&str]) -> MiniGemini {
    load_directory(&fixture(family), policy(trainable, None))
}

/// The Gemma checkpoint with the HD configuration beside the same weights.
pub(crate) fn hd_directory(name: &str) -> PathBuf {
    let directory = Path::new(env!("CARGO_TARGET_TMPDIR")).join(name);
    std::fs::create_dir_all(&directory).unwrap();
    for file in [
        "model.safetensors",
        "tokenizer.model",
        "tokenizer_config.json",
    ] {
        std::fs::copy(fixture("gemma").join(file), directory.join(file)).unwrap();
    }
    std::fs::copy(
        fixture("gemma/config_hd.json"),
        directory.join("config.json"),
    )
    .unwrap();
    directory
}

/// The stored pictures named `base` or `hd`, as normalised values `[3, size, size]` each.
pub(crate) fn pictures(name: &str) -> Vec<Vec<f32>> {
    let codes = read("images.safetensors");
    let codes = get(&codes, name);
    let value = |codes: Tensor| {
        let codes: Vec<u8> = codes.flatten_all().unwrap().to_vec1().unwrap();
        codes
            .into_iter()
            .map(|code| f32::from(code) / 32.0 - 4.0)
            .collect::<Vec<_>>()
    };
    let mut pictures: Vec<_> = (0..codes.dim(0).unwrap())
        .map(|index| value(codes.get(index).unwrap()))
        .collect();
    if name == "hd" {
        let side = 2 * HIGH_RES;
        let mirrored = pictures[0]
            .chunks(side)
            .flat_map(|row| row.iter().rev().copied())
            .collect();
        pictures.push(mirrored);
    }
    pictures
}

/// A normalised picture as the model takes it: the low-resolution views are derived the official way.
pub(crate) fn prepared(high_res: Vec<f32>, grid: usize) -> PreparedImage {
    let (side, small_side) = (HIGH_RES * grid, LOW_RES * grid);
    let small = bilinear_planar(&high_res, 3, side, side, small_side, small_side);
    let mut low_res = Vec::new();
    if grid == 1 {
        low_res.extend_from_slice(&small);
    } else {
        for crop in 0..grid * grid {
            let (top, left) = (crop / grid * LOW_RES, crop % grid * LOW_RES);
            for channel in 0..3 {
                for row in top..top + LOW_RES {
                    let start = (channel * small_side + row) * small_side + left;
                    low_res.extend_from_slice(&small[start..start + LOW_RES]);
                }
            }
        }
        low_res.extend(bilinear_planar(
            &small, 3, small_side, small_side, LOW_RES, LOW_RES,
        ));
    }
    PreparedImage {
        high_res,
        high_res_size: side as u32,
        views: low_res.len() / (3 * LOW_RES * LOW_RES),
        low_res,
        low_res_size: LOW_RES as u32,
    }
}

/// Visual tokens of the stored pictures.
pub(crate) fn visual_tokens(
    model: &MiniGemini,
    pictures: Vec<Vec<f32>>,
    grid: usize,
) -> Vec<Tensor> {
    pictures
        .into_iter()
        .map(|picture| {
            let features = model.tower_features(&prepared(picture, grid)).unwrap();
            model.visual_tokens(&features).unwrap()
        })
        .collect()
}

/// Logits of every position of whole sequences laid one after another, without a cache.
pub(crate) fn logits(model: &MiniGemini, sequences: &[Tensor]) -> Tensor {
    let lengths: Vec<usize> = sequences
        .iter()
        .map(|sequence| sequence.dim(0).unwrap())
        .collect();
    let rows = Tensor::cat(sequences, 0).unwrap();
    let hidden = model
        .decoder()
        .hidden(&rows, &mut Context::Sequences(&lengths))
        .unwrap();
    model.decoder().logits(&hidden).unwrap()
}

fn best(logits: &[f32]) -> u32 {
    let mut best = 0;
    for (index, value) in logits.iter().enumerate() {
        if *value > logits[best] {
            best = index;
        }
    }
    best as u32
}

/// Greedy tokens of several prompts decoded together, each with its own cache, and the logits that chose them
/// `[steps, vocab]` per prompt.
pub(crate) fn greedy_cached(
    model: &MiniGemini,
    prompts: &[Tensor],
    steps: usize,
) -> (Vec<Vec<i64>>, Vec<Tensor>) {
    let decoder = model.decoder();
    let mut caches: Vec<_> = prompts.iter().map(|_| decoder.new_cache()).collect();
    let mut rows: Vec<Tensor> = prompts.to_vec();
    let mut tokens = vec![Vec::new(); prompts.len()];
    let mut chosen_by = vec![Vec::new(); prompts.len()];
    for _ in 0..steps {
        let lengths: Vec<usize> = rows.iter().map(|row| row.dim(0).unwrap()).collect();
        let mut slots: Vec<_> = caches.iter_mut().zip(lengths.iter().copied()).collect();
        let input = Tensor::cat(&rows, 0).unwrap();
        let hidden = decoder
            .hidden(&input, &mut Context::Cached(&mut slots))
            .unwrap();
        let mut end = 0;
        for (index, length) in lengths.iter().enumerate() {
            end += length;
            let last = decoder
                .logits(&hidden.narrow(0, end - 1, 1).unwrap())
                .unwrap();
            let token = best(&floats(&last));
            tokens[index].push(i64::from(token));
            chosen_by[index].push(last);
            rows[index] = decoder.embed(&[token]).unwrap();
        }
    }
    (
        tokens,
        chosen_by
            .iter()
            .map(|logits| Tensor::cat(logits, 0).unwrap())
            .collect(),
    )
}

/// Checks one prompt of an `expected` file: logits of all positions, then 32 greedy tokens through the cache and the logits
/// of each step. `kept` rows of the reference are the last ones.
pub(crate) fn check_prompt(model: &MiniGemini, expected: &Named, prompt: &str, images: &[Tensor]) {
    let ids = integers(get(expected, &format!("{prompt}.ids")));
    let spliced = model.splice(&ids, images).unwrap();
    let reference = get(expected, &format!("{prompt}.logits"));
    let all = logits(model, std::slice::from_ref(&spliced));
    let (rows, kept) = (all.dim(0).unwrap(), reference.dim(0).unwrap());
    let all = all.narrow(0, rows - kept, kept).unwrap();
    assert_close(
        &format!("{prompt}: logits of the prompt"),
        &all,
        reference,
        TOLERANCE,
    );

    let wanted = integers(get(expected, &format!("{prompt}.greedy")));
    let (tokens, steps) = greedy_cached(model, &[spliced], wanted.len());
    assert_eq!(tokens[0], wanted, "{prompt}: greedy tokens");
    let reference = get(expected, &format!("{prompt}.step_logits"));
    assert_close(
        &format!("{prompt}: logits of the cached steps"),
        &steps[0],
        reference,
        TOLERANCE,
    );
}
