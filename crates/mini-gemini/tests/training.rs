//! Losses, gradients and loss curves against PyTorch; and that exactly the trainable parameters get gradients.

// A test may end by a panic.
#![allow(clippy::unwrap_used)]

mod common;

use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};

use candle_core::backprop::GradStore;
use candle_core::{Device, Tensor, Var};
use common::*;
use mgm_nn::LoraConfig;
use mini_gemini::{IGNORE_LABEL, LORA_TARGETS, LoadOptions, MiniGemini, ModelSource, TrainSample};

const STAGE1: [&str; 2] = ["mm_projector", "vlm_uni_"];
const STAGE2: [&str; 6] = [
    "mm_projector",
    "vlm_uni_",
    "model.layers.",
    "embed_tokens",
    "model.norm",
    "lm_head",
];
/// Softmax does not see a constant added to all keys of a region: in exact arithmetic these have no gradient.
const WITHOUT_GRADIENT: [&str; 2] = [
    "model.vlm_uni_aux_projector.0.bias",
    "model.vlm_uni_aux_projector.1.bias",
];
const MAX_LENGTH: usize = 2048;
const CURVE_TOLERANCE: f32 = 1e-3;

fn samples(model: &MiniGemini, fixture: &Named) -> Vec<TrainSample> {
    let features: Vec<_> = pictures("base")
        .into_iter()
        .map(|picture| model.tower_features(&prepared(picture, 1)).unwrap())
        .collect();
    (0..)
        .map_while(|index| {
            let ids = fixture.get(&format!("sample.{index}.ids"))?;
            let images = integers(get(fixture, &format!("sample.{index}.images")));
            Some(TrainSample {
                ids: integers(ids),
                labels: integers(get(fixture, &format!("sample.{index}.labels"))),
                images: images
                    .iter()
                    .map(|image| features[*image as usize].clone())
                    .collect(),
            })
        })
        .collect()
}

fn batch(samples: &[TrainSample], indices: &[i64]) -> Vec<TrainSample> {
    indices
        .iter()
        .map(|index| samples[*index as usize].clone())
        .collect()
}

fn parameters(model: &MiniGemini) -> BTreeMap<String, Var> {
    model.parameters().all().into_iter().collect()
}

fn scalar(tensor: &Tensor) -> f32 {
    floats(tensor)[0]
}

/// Compares one step's loss and all its gradients with the fixture's `{prefix}.loss` and `{prefix}.grad.*`.
fn check_step(model: &MiniGemini, fixture: &Named, prefix: &str, rename: impl Fn(&str) -> String) {
    let samples = samples(model, fixture);
    let indices = integers(get(fixture, &format!("{prefix}.batch")));
    let loss = model.loss(&batch(&samples, &indices), MAX_LENGTH).unwrap();
    let reference = scalar(get(fixture, &format!("{prefix}.loss")));
    let error = (scalar(&loss) - reference).abs() / reference;
    println!(
        "{prefix}: loss {} against {reference}, {error:.1e}",
        scalar(&loss)
    );
    assert!(
        error < TOLERANCE,
        "{prefix}: loss {} against {reference}",
        scalar(&loss)
    );
    let gradients = loss.backward().unwrap();

    let parameters = parameters(model);
    let start = format!("{prefix}.grad.");
    let wanted: BTreeSet<String> = fixture
        .keys()
        .filter_map(|name| name.strip_prefix(&start))
        .map(&rename)
        .collect();
    let found: BTreeSet<String> = parameters.keys().cloned().collect();
    assert_eq!(found, wanted, "{prefix}: trainable parameters");
    // Gradients are compared relative to each tensor's own largest value.
    let mut worst = (0.0f32, String::new());
    let mut largest = 0.0f32;
    for name in fixture.keys().filter_map(|name| name.strip_prefix(&start)) {
        let reference = floats(get(fixture, &format!("{start}{name}")));
        largest = largest.max(magnitude(&reference));
        if WITHOUT_GRADIENT.contains(&name) {
            continue;
        }
        let gradient = gradient(&gradients, &parameters[&rename(name)], name);
        let error = relative_error(&gradient, &reference);
        if error > worst.0 {
            worst = (error, name.to_string());
        }
        assert!(
            error <= TOLERANCE,
            "{prefix}: gradient of {name}: relative error {error:.2e}"
        );
    }
    for name in WITHOUT_GRADIENT {
        if let Some(parameter) = parameters.get(name) {
            let gradient = gradient(&gradients, parameter, name);
            let size = magnitude(&gradient);
            assert!(
                size < 1e-5 * largest,
                "{prefix}: gradient of {name} is {size:.1e}, expected 0"
            );
        }
    }
    println!(
        "{prefix}: {} gradients, worst {:.1e} ({})",
        wanted.len(),
        worst.0,
        worst.1
    );
}

fn gradient(gradients: &GradStore, parameter: &Var, name: &str) -> Vec<f32> {
    floats(
        gradients
            .get(parameter)
            .unwrap_or_else(|| panic!("no gradient reached {name}")),
    )
}

fn training_fixture(family: &str) -> Named {
    read(&format!("{family}/training.safetensors"))
}

#[test]
fn stage_1_step() {
    for family in ["llama", "gemma"] {
        println!("{family}");
        let model = load(family, &STAGE1);
        check_step(&model, &training_fixture(family), "stage1", str::to_string);
    }
}

#[test]
fn stage_2_step() {
    for family in ["llama", "gemma"] {
        println!("{family}");
        let model = load(family, &STAGE2);
        check_step(&model, &training_fixture(family), "stage2", str::to_string);
    }
}

/// AdamW without weight decay, in f64 beside the f32 weights; written here so that the curve tests the model alone.
struct Adam {
    moments: BTreeMap<String, (Vec<f64>, Vec<f64>)>,
    step: i32,
}

impl Adam {
    fn update(&mut self, parameters: &BTreeMap<String, Var>, gradients: &GradStore, rate: f64) {
        self.step += 1;
        let (beta1, beta2, eps) = (0.9f64, 0.999f64, 1e-8f64);
        let correction1 = 1.0 - beta1.powi(self.step);
        let correction2 = 1.0 - beta2.powi(self.step);
        for (name, parameter) in parameters {
            // Without a picture in the batch nothing reaches the visual parts: PyTorch skips or adds zeros.
            let Some(gradient) = gradients.get(parameter) else {
                continue;
            };
            let mut values = floats(parameter);
            let zeros = || (vec![0.0; values.len()], vec![0.0; values.len()]);
            let (first, second) = self.moments.entry(name.clone()).or_insert_with(zeros);
            for (index, gradient) in floats(gradient).into_iter().map(f64::from).enumerate() {
                first[index] = beta1 * first[index] + (1.0 - beta1) * gradient;
                second[index] = beta2 * second[index] + (1.0 - beta2) * gradient * gradient;
                let scale = (second[index] / correction2).sqrt() + eps;
                values[index] -= (rate * first[index] / correction1 / scale) as f32;
            }
            let updated = Tensor::from_vec(values, parameter.dims(), &Device::Cpu).unwrap();
            parameter.set(&updated).unwrap();
        }
    }
}

fn check_curve(family: &str, stage: &str, trainable: &[&str]) {
    let fixture = training_fixture(family);
    let model = load(family, trainable);
    let samples = samples(&model, &fixture);
    let parameters = parameters(&model);
    let batches = get(&fixture, &format!("{stage}.curve.batches"))
        .to_vec2::<i64>()
        .unwrap();
    let losses = floats(get(&fixture, &format!("{stage}.curve.losses")));
    let rates = floats(get(&fixture, &format!("{stage}.curve.rates")));
    assert_eq!((batches.len(), losses.len()), (20, 20));
    let mut adam = Adam {
        moments: BTreeMap::new(),
        step: 0,
    };
    let mut worst = 0.0f32;
    for (step, indices) in batches.iter().enumerate() {
        let loss = model.loss(&batch(&samples, indices), MAX_LENGTH).unwrap();
        let error = (scalar(&loss) - losses[step]).abs() / losses[step];
        worst = worst.max(error);
        assert!(
            error < CURVE_TOLERANCE,
            "{family} {stage}, step {step}: loss {} against {}",
            scalar(&loss),
            losses[step]
        );
        let gradients = loss.backward().unwrap();
        adam.update(&parameters, &gradients, f64::from(rates[step]));
    }
    println!("{family} {stage}: worst relative error of 20 losses {worst:.1e}");
}

#[test]
fn stage_1_curve() {
    check_curve("llama", "stage1", &STAGE1);
    check_curve("gemma", "stage1", &STAGE1);
}

#[test]
fn stage_2_curve() {
    check_curve("llama", "stage2", &STAGE2);
    check_curve("gemma", "stage2", &STAGE2);
}

fn temporary(name: &str) -> PathBuf {
    let directory = Path::new(env!("CARGO_TARGET_TMPDIR")).join(name);
    std::fs::create_dir_all(&directory).unwrap();
    directory
}

#[test]
fn lora_step() {
    let fixture = training_fixture("llama");
    let adapters: std::collections::HashMap<String, Tensor> = fixture
        .iter()
        .filter_map(|(name, tensor)| {
            Some((
                name.strip_prefix("lora.weight.")?.to_string(),
                tensor.clone(),
            ))
        })
        .collect();
    assert_eq!(adapters.len(), 2 * 7 * 3);
    let file = temporary("lora").join("adapter.safetensors");
    candle_core::safetensors::save(&adapters, &file).unwrap();
    let lora = LoraConfig {
        rank: 4,
        alpha: 8.0,
        targets: LORA_TARGETS
            .iter()
            .map(|target| target.to_string())
            .collect(),
        seed: 0,
    };
    let source = ModelSource::Path(common::fixture("llama"));
    let load = |trainable: &[&str]| {
        let policy = policy(trainable, Some(lora.clone()));
        let options = LoadOptions::default();
        MiniGemini::load_with_overlay(&source, &options, policy, std::slice::from_ref(&file))
            .unwrap()
    };
    check_step(&load(&["lora_"]), &fixture, "lora", str::to_string);

    // For answering the same adapter is frozen: the same function by another path.
    let frozen = load(&[]);
    assert!(frozen.parameters().is_empty());
    let samples = samples(&frozen, &fixture);
    let indices = integers(get(&fixture, "lora.batch"));
    let loss = scalar(&frozen.loss(&batch(&samples, &indices), MAX_LENGTH).unwrap());
    let reference = scalar(get(&fixture, "lora.loss"));
    assert!(
        (loss - reference).abs() / reference < TOLERANCE,
        "{loss} against {reference}"
    );
}

/// A micro batch with text and pictures for any family: ids, labels on the second half.
fn small_batch(model: &MiniGemini, family: &str) -> Vec<TrainSample> {
    let expected = read(&format!("{family}/expected.safetensors"));
    let features: Vec<_> = pictures("base")
        .into_iter()
        .take(2)
        .map(|picture| model.tower_features(&prepared(picture, 1)).unwrap())
        .collect();
    [("one", 1), ("text", 0), ("two", 2)]
        .into_iter()
        .map(|(name, images)| {
            let ids = integers(get(&expected, &format!("{name}.ids")));
            let half = ids.len() / 2;
            let label = |(index, id): (usize, &i64)| {
                if index < half || *id < 0 {
                    IGNORE_LABEL
                } else {
                    *id
                }
            };
            let labels = ids.iter().enumerate().map(label).collect();
            TrainSample {
                ids,
                labels,
                images: features[..images].to_vec(),
            }
        })
        .collect()
}

fn stored_names(family: &str) -> BTreeSet<String> {
    let directory = common::fixture(family);
    let mut names = BTreeSet::new();
    for entry in std::fs::read_dir(directory).unwrap() {
        let path = entry.unwrap().path();
        let file = path.file_name().unwrap().to_string_lossy().into_owned();
        if file.starts_with("model") && file.ends_with(".safetensors") {
            names.extend(
                candle_core::safetensors::load(&path, &Device::Cpu)
                    .unwrap()
                    .into_keys(),
            );
        }
    }
    names
}

/// Per family and stage: every trainable parameter gets a gradient that is not zero, nothing else is a parameter.
#[test]
fn every_trainable_parameter_and_no_other_gets_a_gradient() {
    for family in FAMILIES {
        for (stage, trainable) in [("stage 1", &STAGE1[..]), ("stage 2", &STAGE2[..])] {
            let model = load(family, trainable);
            let parameters = parameters(&model);
            let mut wanted: BTreeSet<String> = stored_names(family)
                .into_iter()
                .filter(|name| trainable.iter().any(|part| name.contains(part)))
                .collect();
            if family == "gemma" {
                // Tied: the stored copy is not a parameter of its own.
                wanted.remove("lm_head.weight");
            }
            let found: BTreeSet<String> = parameters.keys().cloned().collect();
            assert_eq!(found, wanted, "{family} {stage}");
            assert!(
                found.iter().all(|name| !name.contains("vision_tower")),
                "towers are frozen"
            );

            let loss = model
                .loss(&small_batch(&model, family), MAX_LENGTH)
                .unwrap();
            let gradients = loss.backward().unwrap();
            for (name, parameter) in &parameters {
                let gradient = gradient(&gradients, parameter, name);
                assert_eq!(
                    gradient.len(),
                    parameter.elem_count(),
                    "{family} {stage}: {name}"
                );
                assert!(
                    gradient.iter().all(|value| value.is_finite()),
                    "{family} {stage}: {name}"
                );
                assert!(
                    magnitude(&gradient) > 1e-7 || WITHOUT_GRADIENT.contains(&name.as_str()),
                    "{family} {stage}: the gradient of {name} is zero"
                );
            }
        }
        // With nothing trainable there is nothing to differentiate.
        let model = load(family, &[]);
        assert!(model.parameters().is_empty());
        let loss = model
            .loss(&small_batch(&model, family), MAX_LENGTH)
            .unwrap();
        assert!(!loss.track_op() || loss.backward().is_ok());
    }
}

/// Cutting at the maximal length counts visual positions, and a batch without labels is an error.
#[test]
fn length_limit_and_missing_labels() {
    let fixture = training_fixture("llama");
    let model = load("llama", &STAGE1);
    let samples = samples(&model, &fixture);
    let sample = &samples[1];
    let length = sample.ids.len() - 1 + 36;
    let whole = scalar(&model.loss(&batch(&samples, &[1]), MAX_LENGTH).unwrap());
    let exact = scalar(&model.loss(&batch(&samples, &[1]), length).unwrap());
    assert_eq!(whole, exact);
    let mut shorter = sample.clone();
    shorter.ids.truncate(sample.ids.len() - 3);
    shorter.labels.truncate(sample.labels.len() - 3);
    let cut = scalar(&model.loss(&batch(&samples, &[1]), length - 3).unwrap());
    let reference = scalar(&model.loss(&[shorter], MAX_LENGTH).unwrap());
    assert!((cut - reference).abs() < 1e-5, "{cut} against {reference}");
    assert!((cut - whole).abs() > 1e-3);
    let mut unlabelled = sample.clone();
    unlabelled.labels.fill(IGNORE_LABEL);
    assert!(model.loss(&[unlabelled], MAX_LENGTH).is_err());
}
