//! What the integration tests share: fixtures and comparison.

#![allow(dead_code)]

use std::collections::HashMap;
use std::path::{Path, PathBuf};

use candle_core::{DType, Device, Tensor};
use mgm_diffusion::{FindOptions, ModelFiles, Painter, PainterStorage, Part};
use mgm_nn::{WeightPolicy, WeightSource, WeightStorage};

/// Largest difference allowed, relative to the largest reference value.
pub(crate) const TOLERANCE: f32 = 1e-4;

pub(crate) type Named = HashMap<String, Tensor>;

pub(crate) fn fixture(path: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR"))
        .join("tests/fixtures")
        .join(path)
}

pub(crate) fn model() -> PathBuf {
    fixture("tiny-sdxl")
}

pub(crate) fn expected() -> Named {
    candle_core::safetensors::load(fixture("expected.safetensors"), &Device::Cpu).unwrap()
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

/// Largest difference relative to the largest reference value; NaN counts as infinite.
pub(crate) fn relative_error(found: &[f32], reference: &[f32]) -> f32 {
    assert_eq!(found.len(), reference.len(), "number of values");
    let largest = reference.iter().fold(0f32, |m, v| m.max(v.abs()));
    let difference = found.iter().zip(reference).fold(0f32, |m, (a, b)| {
        let difference = (a - b).abs();
        if difference.is_nan() {
            f32::INFINITY
        } else {
            m.max(difference)
        }
    });
    difference / largest
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

pub(crate) fn files() -> ModelFiles {
    ModelFiles::find(&model(), &FindOptions::default()).unwrap()
}

pub(crate) fn stored(weights: WeightSource, storage: WeightStorage) -> WeightSource {
    weights.with_policy(WeightPolicy {
        storage,
        ..WeightPolicy::default()
    })
}

pub(crate) fn weights(part: Part) -> WeightSource {
    stored(files().open(part).unwrap(), WeightStorage::F32)
}

pub(crate) fn painter(storage: WeightStorage) -> Painter {
    Painter::open(
        &model(),
        &FindOptions::default(),
        PainterStorage::all(storage),
    )
    .unwrap()
}
