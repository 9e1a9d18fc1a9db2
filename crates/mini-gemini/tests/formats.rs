//! One model, every format people have it in: the same tensors give the same bits, whichever files they lie in.

// A test may end by a panic.
#![allow(clippy::unwrap_used)]

mod common;
#[path = "common/torch_file.rs"]
mod torch_file;

use std::collections::{BTreeMap, HashMap};
use std::fs;
use std::path::Path;

use candle_core::{Device, Tensor};
use common::*;
use mini_gemini::{LoadOptions, MiniGemini, ModelSource};
use serde_json::json;

type Tensors = BTreeMap<String, Tensor>;

/// All tensors of a fixture, as stored.
fn tensors_of(family: &str) -> Tensors {
    let mut files: Vec<_> = fs::read_dir(fixture(family))
        .unwrap()
        .map(|entry| entry.unwrap().path())
        .filter(|path| {
            let name = path.file_name().unwrap().to_str().unwrap();
            name.starts_with("model") && name.ends_with(".safetensors")
        })
        .collect();
    files.sort();
    files
        .iter()
        .flat_map(|file| candle_core::safetensors::load(file, &Device::Cpu).unwrap())
        .collect()
}

/// Configuration and tokeniser of a fixture, without its weights.
fn copy_small_files(family: &str, directory: &Path) {
    fs::create_dir_all(directory).unwrap();
    for name in [
        "config.json",
        "generation_config.json",
        "tokenizer.model",
        "tokenizer_config.json",
    ] {
        fs::copy(fixture(family).join(name), directory.join(name)).unwrap();
    }
}

fn save_safetensors<'a>(path: &Path, tensors: impl IntoIterator<Item = (&'a String, &'a Tensor)>) {
    let tensors: HashMap<&str, Tensor> = tensors
        .into_iter()
        .map(|(name, tensor)| (name.as_str(), tensor.clone()))
        .collect();
    candle_core::safetensors::save(&tensors, path).unwrap();
}

fn save_torch<'a>(path: &Path, tensors: impl IntoIterator<Item = (&'a String, &'a Tensor)>) {
    let tensors: Vec<_> = tensors
        .into_iter()
        .map(|(name, tensor)| (name.as_str(), tensor))
        .collect();
    torch_file::save(path, &tensors);
}

/// Three shards and their index, as Hugging Face names them.
fn save_shards(directory: &Path, stem: &str, ending: &str, tensors: &Tensors) {
    let entries: Vec<_> = tensors.iter().collect();
    let mut index = serde_json::Map::new();
    let shards: Vec<_> = entries.chunks(entries.len().div_ceil(3)).collect();
    for (number, shard) in shards.iter().enumerate() {
        let file = format!("{stem}-{:05}-of-{:05}.{ending}", number + 1, shards.len());
        let tensors = shard.iter().copied();
        match ending {
            "bin" => save_torch(&directory.join(&file), tensors),
            _ => save_safetensors(&directory.join(&file), tensors),
        }
        index.extend(
            shard
                .iter()
                .map(|(name, _)| (name.to_string(), json!(file))),
        );
    }
    let index = json!({"metadata": {}, "weight_map": index});
    fs::write(
        directory.join(format!("{stem}.{ending}.index.json")),
        index.to_string(),
    )
    .unwrap();
}

fn try_load(model: &Path, options: &LoadOptions) -> mini_gemini::Result<MiniGemini> {
    let source = ModelSource::Path(model.to_path_buf());
    MiniGemini::load_with_policy(&source, options, policy(&[], None))
}

fn load_from(model: &Path, options: &LoadOptions) -> MiniGemini {
    try_load(model, options).unwrap_or_else(|error| panic!("{}: {error}", model.display()))
}

/// What a model makes of the fixture's picture and prompts.
#[derive(PartialEq)]
struct Outputs {
    tokens: Vec<f32>,
    text: Vec<f32>,
    image: Vec<f32>,
}

impl Outputs {
    fn of(model: &MiniGemini, family: &str) -> Self {
        let expected = read(&format!("{family}/expected.safetensors"));
        let image = visual_tokens(model, pictures("base")[..1].to_vec(), 1);
        let prompt = |name: &str, images: &[Tensor]| {
            let ids = integers(get(&expected, &format!("{name}.ids")));
            floats(&logits(model, &[model.splice(&ids, images).unwrap()]))
        };
        Self {
            tokens: floats(&image[0]),
            text: prompt("text", &[]),
            image: prompt("one", &image),
        }
    }

    /// Largest relative difference of any of the three.
    fn distance(&self, reference: &Self) -> f32 {
        [
            relative_error(&self.tokens, &reference.tokens),
            relative_error(&self.text, &reference.text),
            relative_error(&self.image, &reference.image),
        ]
        .into_iter()
        .fold(0.0, f32::max)
    }
}

fn assert_same_bits(what: &str, model: &MiniGemini, family: &str, reference: &Outputs) {
    let found = Outputs::of(model, family);
    assert!(
        found == *reference,
        "{what}: differs from the fixture's own files by {:.1e}",
        found.distance(reference)
    );
}

#[test]
fn safetensors_and_torch_files_one_or_several() {
    for family in FAMILIES {
        let reference = Outputs::of(&load(family, &[]), family);
        let tensors = tensors_of(family);
        let folder = tempfile::tempdir().unwrap();
        for format in ["safetensors", "shards", "torch", "torch-shards"] {
            let directory = folder.path().join(format);
            copy_small_files(family, &directory);
            match format {
                "safetensors" => save_safetensors(&directory.join("model.safetensors"), &tensors),
                "shards" => save_shards(&directory, "model", "safetensors", &tensors),
                "torch" => save_torch(&directory.join("pytorch_model.bin"), &tensors),
                _ => save_shards(&directory, "pytorch_model", "bin", &tensors),
            }
            let model = load_from(&directory, &LoadOptions::default());
            assert_same_bits(&format!("{family}, {format}"), &model, family, &reference);
        }
    }
}
