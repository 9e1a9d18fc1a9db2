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
use mini_gemini::pair::{self, QuantizeOptions, Scheme};
use mini_gemini::{Checkpoint, Control, LoadOptions, MiniGemini, ModelSource};
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

const CLIP: &str = "OpenAI/clip-vit-large-patch14-336";
const CONVNEXT: &str = "OpenAI/openclip-convnext-large-d-320-laion2B-s29B-b131K-ft-soup";

/// The tensors whose names `rename` knows, as a torch file, under the names it gives.
fn save_part(path: &Path, tensors: &Tensors, rename: impl Fn(&str) -> Option<String>) {
    let part: Tensors = tensors
        .iter()
        .filter_map(|(name, tensor)| Some((rename(name)?, tensor.clone())))
        .collect();
    assert!(!part.is_empty(), "{}", path.display());
    fs::create_dir_all(path.parent().unwrap()).unwrap();
    save_torch(path, &part);
}

fn is_language(name: &str) -> bool {
    !["model.vision_tower", "model.vlm_uni_", "model.mm_projector"]
        .iter()
        .any(|prefix| name.starts_with(prefix))
}

/// Towers, stage-1 weights and bases as torch files, which is how they are published and how the official code writes them.
#[test]
fn parts_in_torch_files() {
    for family in FAMILIES {
        let reference = Outputs::of(&load(family, &[]), family);
        let tensors = tensors_of(family);
        let folder = tempfile::tempdir().unwrap();
        let at = |path: &str| folder.path().join(path);

        // No towers in the checkpoint.
        copy_small_files(family, &at("model"));
        save_part(&at("model/pytorch_model.bin"), &tensors, |name| {
            (!name.starts_with("model.vision_tower")).then(|| name.to_string())
        });
        let clip = at("zoo").join(CLIP).join("pytorch_model.bin");
        save_part(&clip, &tensors, |name| {
            let name = name.strip_prefix("model.vision_tower.vision_tower.")?;
            Some(name.to_string())
        });
        let convnext = at("zoo").join(CONVNEXT).join("open_clip_pytorch_model.bin");
        save_part(&convnext, &tensors, |name| {
            let name = name.strip_prefix("model.vision_tower_aux.vision_")?;
            Some(format!("visual.trunk.{name}"))
        });
        let options = LoadOptions {
            model_zoo: Some(at("zoo")),
            ..LoadOptions::default()
        };
        let model = load_from(&at("model"), &options);
        assert_same_bits(&format!("{family}, towers"), &model, family, &reference);

        // A stage-1 folder on the language model alone.
        copy_small_files(family, &at("base"));
        save_part(&at("base/pytorch_model.bin"), &tensors, |name| {
            is_language(name).then(|| name.to_string())
        });
        fs::create_dir(at("stage-1")).unwrap();
        fs::copy(
            fixture(family).join("config.json"),
            at("stage-1/config.json"),
        )
        .unwrap();
        save_part(&at("stage-1/mm_projector.bin"), &tensors, |name| {
            (!is_language(name)).then(|| name.to_string())
        });
        let options = LoadOptions {
            base: Some(at("base")),
            ..LoadOptions::default()
        };
        let model = load_from(&at("stage-1"), &options);
        assert_same_bits(&format!("{family}, stage 1"), &model, family, &reference);
    }
}

/// A PEFT folder of torch files computes what the same adapters among the checkpoint's own tensors do, over safetensors and over a GGUF
/// pair.
#[test]
fn adapters_in_torch_files_over_every_format() {
    let trained = read("llama/training.safetensors");
    let adapters: Tensors = trained
        .iter()
        .filter_map(|(name, tensor)| {
            let name = name.strip_prefix("lora.weight.")?;
            name.contains(".lora_")
                .then(|| (name.to_string(), tensor.clone()))
        })
        .collect();
    let folder = tempfile::tempdir().unwrap();
    let peft = folder.path().join("peft");
    fs::create_dir(&peft).unwrap();
    let config = json!({"peft_type": "LORA", "r": 4, "lora_alpha": 8});
    fs::write(peft.join("adapter_config.json"), config.to_string()).unwrap();
    let wrapped = |name: &str| Some(format!("base_model.model.{name}"));
    save_part(&peft.join("adapter_model.bin"), &adapters, wrapped);
    let tensors = tensors_of("llama");
    let doubled: Tensors = tensors
        .iter()
        .filter(|(name, _)| name.starts_with("model.mm_projector.2."))
        .map(|(name, tensor)| (name.clone(), (tensor * 2.0).unwrap()))
        .collect();
    save_part(&peft.join("non_lora_trainables.bin"), &doubled, wrapped);

    // The same in one checkpoint, which announces its adapters.
    let whole = folder.path().join("whole");
    copy_small_files("llama", &whole);
    let mut config: serde_json::Value =
        serde_json::from_slice(&fs::read(whole.join("config.json")).unwrap()).unwrap();
    config["lora"] = json!({"rank": 4, "alpha": 8.0});
    fs::write(whole.join("config.json"), config.to_string()).unwrap();
    let mut all = tensors;
    all.extend(adapters);
    all.extend(doubled);
    save_safetensors(&whole.join("model.safetensors"), &all);
    let source = ModelSource::Path(whole);
    let checkpoint = Checkpoint::open(&source, &LoadOptions::default()).unwrap();
    let lora = checkpoint.lora.clone();
    let options = LoadOptions::default();
    let expected = MiniGemini::from_checkpoint(checkpoint, &options, policy(&[], lora)).unwrap();
    let expected = Outputs::of(&expected, "llama");
    let plain = Outputs::of(&load("llama", &[]), "llama");
    assert!(
        expected.distance(&plain) > 1e-2,
        "the adapters do something"
    );

    let options = LoadOptions {
        adapter: Some(peft),
        ..options
    };
    let found = load_from(&fixture("llama"), &options);
    assert_same_bits("checkpoint", &found, "llama", &expected);
    let checkpoint = Checkpoint::open(
        &ModelSource::Path(fixture("llama")),
        &LoadOptions::default(),
    )
    .unwrap();
    for scheme in [Scheme::F32, Scheme::Bf16] {
        let pair = QuantizeOptions {
            scheme,
            directory: folder.path().join(scheme.name()),
            name: None,
            importance: None,
            overwrite: false,
        };
        let written = pair::quantize(&checkpoint, &pair, &mut |_| Control::Continue).unwrap();
        let found = load_from(&written.language.path, &options);
        assert_same_bits(scheme.name(), &found, "llama", &expected);
    }
}
