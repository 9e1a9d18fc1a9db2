//! The fixtures written by `tools/fixtures/image_fixtures.py`.
#![allow(dead_code, missing_docs, unreachable_pub, clippy::unwrap_used)]

use std::path::{Path, PathBuf};

use mgm_image::{Limits, RgbImage};
use serde_json::Value;
use sha2::{Digest, Sha256};

pub fn fixture(name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR"))
        .join("tests/fixtures")
        .join(name)
}

pub fn read(name: &str) -> Vec<u8> {
    std::fs::read(fixture(name)).unwrap_or_else(|error| panic!("{name}: {error}"))
}

pub fn cases(section: &str) -> Vec<Value> {
    let manifest: Value = serde_json::from_slice(&read("manifest.json")).unwrap();
    manifest[section].as_array().unwrap().clone()
}

pub fn open(name: &str) -> RgbImage {
    mgm_image::open(fixture(name), &Limits::default()).unwrap()
}

pub fn text<'a>(case: &'a Value, key: &str) -> &'a str {
    case[key]
        .as_str()
        .unwrap_or_else(|| panic!("{key} in {case}"))
}

pub fn number(case: &Value, key: &str) -> u32 {
    case[key]
        .as_u64()
        .unwrap_or_else(|| panic!("{key} in {case}")) as u32
}

pub fn size(case: &Value, key: &str) -> (u32, u32) {
    let side = |index: usize| case[key][index].as_u64().unwrap() as u32;
    (side(0), side(1))
}

pub fn sha256(bytes: &[u8]) -> String {
    Sha256::digest(bytes)
        .iter()
        .map(|byte| format!("{byte:02x}"))
        .collect()
}

/// Largest difference of two buffers.
pub fn largest_difference(left: &[u8], right: &[u8]) -> u8 {
    assert_eq!(left.len(), right.len());
    left.iter()
        .zip(right)
        .map(|(a, b)| a.abs_diff(*b))
        .max()
        .unwrap_or(0)
}
