//! Where a model's parts may lie: every layout of the official files gives the same model, and what is missing or wrong is told in one line.

#![allow(clippy::unwrap_used)]

mod common;

use std::collections::HashMap;
use std::path::{Path, PathBuf};

use candle_core::{DType, Tensor};
use common::*;
use mini_gemini::{
    Checkpoint, Control, LoadOptions, MiniGemini, ModelSource, Precision, SHARD_BYTES, merge,
};

const CLIP: &str = "OpenAI/clip-vit-large-patch14-336";
const CONVNEXT: &str = "OpenAI/openclip-convnext-large-d-320-laion2B-s29B-b131K-ft-soup";

/// An empty folder of this test's own.
fn folder(name: &str) -> PathBuf {
    let directory = Path::new(env!("CARGO_TARGET_TMPDIR"))
        .join("loading")
        .join(name);
    let _ = std::fs::remove_dir_all(&directory);
    std::fs::create_dir_all(&directory).unwrap();
    directory
}

fn save(path: &Path, tensors: &Named) {
    std::fs::create_dir_all(path.parent().unwrap()).unwrap();
    candle_core::safetensors::save(tensors, path).unwrap();
}

fn copy(from: &Path, to: &Path, names: &[&str]) {
    std::fs::create_dir_all(to).unwrap();
    for name in names {
        std::fs::copy(from.join(name), to.join(name)).unwrap();
    }
}

const TOKENIZER: [&str; 2] = ["tokenizer.model", "tokenizer_config.json"];

/// The tensors of a fixture whose names `keep` keeps, under the names it gives.
fn part(family: &str, keep: impl Fn(&str) -> Option<String>) -> Named {
    let directory = fixture(family);
    let mut all = Named::new();
    for entry in std::fs::read_dir(&directory).unwrap() {
        let path = entry.unwrap().path();
        let name = path.file_name().unwrap().to_str().unwrap();
        if name.starts_with("model") && name.ends_with(".safetensors") {
            all.extend(read(&format!("{family}/{name}")));
        }
    }
    all.into_iter()
        .filter_map(|(name, tensor)| Some((keep(&name)?, tensor)))
        .collect()
}

fn is_language(name: &str) -> bool {
    name == "lm_head.weight"
        || name == "model.norm.weight"
        || ["model.layers.", "model.embed_tokens."]
            .iter()
            .any(|prefix| name.starts_with(prefix))
}

fn kept(name: &str, keep: bool) -> Option<String> {
    keep.then(|| name.to_string())
}

fn options() -> LoadOptions {
    LoadOptions {
        precision: Precision::F32,
        ..LoadOptions::default()
    }
}

fn open(path: &Path, options: &LoadOptions) -> MiniGemini {
    MiniGemini::load(&ModelSource::Path(path.into()), options)
        .unwrap_or_else(|error| panic!("{}: {error}", path.display()))
}

fn error(path: &Path, options: &LoadOptions) -> String {
    match MiniGemini::load(&ModelSource::Path(path.into()), options) {
        Ok(_) => panic!("{} was loaded", path.display()),
        Err(error) => {
            let text = error.to_string();
            assert!(!text.contains('\n'), "{text}");
            text
        }
    }
}

/// Bit by bit the same logits with a picture.
fn assert_same(found: &MiniGemini, expected: &MiniGemini) {
    let logits = |model: &MiniGemini| {
        let images = visual_tokens(model, pictures("base").split_off(1), 1);
        let prompt = model.splice(&[1, 5, -200, 9, 30], &images[..1]).unwrap();
        floats(&logits(model, &[prompt]))
    };
    assert_eq!(logits(found), logits(expected));
}

/// Both towers in the layout in which they are published.
fn write_towers(family: &str, zoo: &Path) {
    let clip = part(family, |name| {
        let name = name.strip_prefix("model.vision_tower.vision_tower.")?;
        Some(name.to_string())
    });
    assert!(!clip.is_empty());
    save(&zoo.join(CLIP).join("model.safetensors"), &clip);
    let mut convnext = part(family, |name| {
        let name = name.strip_prefix("model.vision_tower_aux.vision_")?;
        Some(format!("visual.trunk.{name}"))
    });
    assert!(!convnext.is_empty());
    let scalar = Tensor::new(&[1f32], &candle_core::Device::Cpu).unwrap();
    convnext.insert("logit_scale".into(), scalar);
    save(
        &zoo.join(CONVNEXT).join("open_clip_model.safetensors"),
        &convnext,
    );
}

#[test]
fn towers_outside_the_checkpoint() {
    let whole = open(&fixture("llama"), &options());
    let root = folder("towers");
    let model = root.join("model");
    copy(&fixture("llama"), &model, &TOKENIZER);
    copy(&fixture("llama"), &model, &["config.json"]);
    let without = part("llama", |name| {
        kept(name, !name.starts_with("model.vision_tower"))
    });
    save(&model.join("model.safetensors"), &without);

    // Nowhere: the error lists the places.
    let missing = error(&model, &options());
    for part in ["mm_vision_tower", CLIP, "model_zoo", "openai/clip-vit"] {
        assert!(missing.contains(part), "{missing}");
    }
    // In a zoo named by an option.
    let zoo = root.join("zoo");
    write_towers("llama", &zoo);
    let with_zoo = LoadOptions {
        model_zoo: Some(zoo.clone()),
        ..options()
    };
    assert_same(&open(&model, &with_zoo), &whole);
    // In the checkpoint's own folder, under the configured path.
    std::fs::rename(&zoo, model.join("model_zoo")).unwrap();
    assert_same(&open(&model, &options()), &whole);
    let checkpoint = Checkpoint::open(&ModelSource::Path(model.clone()), &options()).unwrap();
    assert_eq!(checkpoint.notes.len(), 2, "{:?}", checkpoint.notes);

    // The wrong model in a tower's place.
    let clip = model.join("model_zoo").join(CLIP).join("model.safetensors");
    std::fs::copy(
        model
            .join("model_zoo")
            .join(CONVNEXT)
            .join("open_clip_model.safetensors"),
        clip,
    )
    .unwrap();
    let wrong = error(&model, &options());
    assert!(wrong.contains("vision_model"), "{wrong}");
}

#[test]
fn stage_one_on_a_base() {
    let whole = open(&fixture("llama"), &options());
    let root = folder("stage-one");
    let base = root.join("base");
    copy(&fixture("llama"), &base, &TOKENIZER);
    copy(&fixture("llama"), &base, &["config.json"]);
    save(
        &base.join("model.safetensors"),
        &part("llama", |name| kept(name, is_language(name))),
    );
    let stage_one = root.join("stage-one");
    copy(&fixture("llama"), &stage_one, &["config.json"]);
    save(
        &stage_one.join("mm_projector.safetensors"),
        &part("llama", |name| kept(name, !is_language(name))),
    );
    // The configured base, `model_zoo/LLM/llama`, is not there.
    let missing = error(&stage_one, &options());
    assert!(missing.contains("model_zoo/LLM/llama"), "{missing}");
    let with_base = LoadOptions {
        base: Some(base.clone()),
        ..options()
    };
    let found = open(&stage_one, &with_base);
    assert_same(&found, &whole);
    assert_eq!(found.name(), "stage-one");
    // Found by its configured name in the zoo.
    std::fs::create_dir_all(root.join("zoo/LLM")).unwrap();
    std::fs::rename(&base, root.join("zoo/LLM/llama")).unwrap();
    let with_zoo = LoadOptions {
        model_zoo: Some(root.join("zoo")),
        ..options()
    };
    assert_same(&open(&stage_one, &with_zoo), &whole);
    // A whole model has no base.
    let conflict = error(&fixture("llama"), &with_base);
    assert!(conflict.contains("whole model"), "{conflict}");
}

/// The training fixture's adapters in the layout in which PEFT writes them.
fn adapter_tensors() -> Named {
    read("llama/training.safetensors")
        .into_iter()
        .filter_map(|(name, tensor)| {
            let name = name.strip_prefix("lora.weight.")?;
            Some((format!("base_model.model.{name}"), tensor))
        })
        .collect()
}

fn write_adapter(directory: &Path, config: &str, tensors: &Named) {
    std::fs::create_dir_all(directory).unwrap();
    std::fs::write(directory.join("adapter_config.json"), config).unwrap();
    save(&directory.join("adapter_model.safetensors"), tensors);
}

/// The whole fixture with `W + scale · B·A` in place of each adapted matrix.
fn merged(name: &str, scale: impl Fn(&str) -> f64) -> MiniGemini {
    let directory = folder(name);
    copy(&fixture("llama"), &directory, &TOKENIZER);
    copy(&fixture("llama"), &directory, &["config.json"]);
    let adapters = adapter_tensors();
    let mut tensors = part("llama", |name| Some(name.to_string()));
    for (name, b) in &adapters {
        let Some(module) = name.strip_suffix(".lora_B.weight") else {
            continue;
        };
        let a = &adapters[&format!("{module}.lora_A.weight")];
        let module = module.strip_prefix("base_model.model.").unwrap();
        let key = format!("{module}.weight");
        let base = tensors[&key].to_dtype(DType::F32).unwrap();
        let product = (b.matmul(a).unwrap() * scale(module)).unwrap();
        tensors.insert(key, (base + product).unwrap());
    }
    save(&directory.join("model.safetensors"), &tensors);
    open(&directory, &options())
}

fn assert_close_models(what: &str, found: &MiniGemini, expected: &MiniGemini) {
    let logits = |model: &MiniGemini| {
        let prompt = model.splice(&[1, 5, 9, 30, 17], &[]).unwrap();
        logits(model, &[prompt])
    };
    assert_close(what, &logits(found), &logits(expected), 1e-5);
}

#[test]
fn adapter_folders() {
    let root = folder("adapters");
    let adapter = root.join("adapter");
    let base = fixture("llama");
    let plain = open(&base, &options());
    let config = format!(
        r#"{{"peft_type": "LORA", "r": 4, "lora_alpha": 8, "base_model_name_or_path": {:?}}}"#,
        base.display().to_string()
    );
    let tensors = adapter_tensors();
    write_adapter(&adapter, &config, &tensors);
    let expected = merged("adapters/merged", |_| 2.0);
    assert_close_models("adapter folder", &open(&adapter, &options()), &expected);
    let on_top = LoadOptions {
        adapter: Some(adapter.clone()),
        ..options()
    };
    assert_close_models("adapter option", &open(&base, &on_top), &expected);
    let images = |model: &MiniGemini| floats(&visual_tokens(model, pictures("base"), 1)[0]);
    assert_eq!(images(&open(&adapter, &options())), images(&plain));

    // Rank-stabilised, with a pattern, under the adapter's name.
    let named: Named = tensors
        .iter()
        .map(|(name, tensor)| (name.replace(".weight", ".default.weight"), tensor.clone()))
        .collect();
    let patterned = root.join("patterned");
    let text = r#"{"peft_type": "LORA", "r": 4, "lora_alpha": 8, "use_rslora": true, "alpha_pattern": {"up_proj": 3.0}}"#;
    write_adapter(&patterned, text, &named);
    let expected = merged("adapters/merged-patterned", |module| {
        if module.ends_with("up_proj") {
            1.5
        } else {
            4.0
        }
    });
    let with_base = LoadOptions {
        base: Some(base.clone()),
        ..options()
    };
    assert_close_models("patterns", &open(&patterned, &with_base), &expected);
    let homeless = error(&patterned, &options());
    assert!(homeless.contains("--model-base"), "{homeless}");

    // Adapters that do not fit.
    let damaged = root.join("damaged");
    type Damage = (
        &'static str,
        fn(&mut Named, &mut String),
        &'static [&'static str],
    );
    let layer = "base_model.model.model.layers.0.self_attn.q_proj";
    let damages: [Damage; 6] = [
        (
            "half",
            |tensors, _| {
                tensors.remove("base_model.model.model.layers.0.self_attn.q_proj.lora_B.weight");
            },
            &["layers.0.self_attn.q_proj", "lora_B", "missing"],
        ),
        (
            "foreign layer",
            |tensors, _| {
                let tensor =
                    tensors["base_model.model.model.layers.0.self_attn.q_proj.lora_A.weight"]
                        .clone();
                tensors.insert(
                    "base_model.model.model.layers.77.self_attn.q_proj.lora_A.weight".into(),
                    tensor,
                );
            },
            &["layers.77.self_attn.q_proj", "does not have"],
        ),
        (
            "rank",
            |_, config| *config = config.replace("\"r\": 4", "\"r\": 5"),
            &["expected 5 rows"],
        ),
        (
            "DoRA",
            |_, config| *config = config.replace('{', "{\"use_dora\": true, "),
            &["use_dora"],
        ),
        (
            "kind",
            |_, config| *config = config.replace("LORA", "IA3"),
            &["IA3", "LORA"],
        ),
        (
            "shape",
            |tensors, _| {
                let name = "base_model.model.model.layers.0.self_attn.q_proj.lora_B.weight";
                let tensor = tensors[name].narrow(0, 0, 8).unwrap().contiguous().unwrap();
                tensors.insert(name.into(), tensor);
            },
            &["layers.0.self_attn.q_proj", "[8, 4]", "[64, 64]"],
        ),
    ];
    assert!(tensors.contains_key(&format!("{layer}.lora_A.weight")));
    for (what, damage, expected) in damages {
        let (mut tensors, mut config) = (tensors.clone(), config.clone());
        damage(&mut tensors, &mut config);
        write_adapter(&damaged, &config, &tensors);
        let text = error(&damaged, &options());
        for part in expected {
            assert!(text.contains(part), "{what}: {text}");
        }
    }
}

/// What LoRA training trained besides adapters, over a base that is a language model alone.
#[test]
fn adapter_of_multimodal_training() {
    let root = folder("multimodal-adapter");
    let base = root.join("base");
    copy(&fixture("llama"), &base, &TOKENIZER);
    let config = std::fs::read_to_string(fixture("llama/config.json")).unwrap();
    std::fs::write(
        base.join("config.json"),
        config.replace("mm_vision_tower", "unused"),
    )
    .unwrap();
    save(
        &base.join("model.safetensors"),
        &part("llama", |name| kept(name, is_language(name))),
    );
    let adapter = root.join("adapter");
    write_adapter(
        &adapter,
        r#"{"peft_type": "LORA", "r": 4, "lora_alpha": 8, "base_model_name_or_path": "base"}"#,
        &adapter_tensors(),
    );
    copy(&fixture("llama"), &adapter, &["config.json"]);
    save(
        &adapter.join("non_lora_trainables.safetensors"),
        &part("llama", |name| {
            (!is_language(name)).then(|| format!("base_model.model.{name}"))
        }),
    );
    let zoo = LoadOptions {
        model_zoo: Some(root.clone()),
        ..options()
    };
    let expected = merged("multimodal-adapter/merged", |_| 2.0);
    let found = open(&adapter, &zoo);
    assert_close_models("adapter", &found, &expected);
    let images = |model: &MiniGemini| floats(&visual_tokens(model, pictures("base"), 1)[0]);
    assert_eq!(images(&found), images(&expected));
}

/// Missing and mis-shaped tensors are told together, before anything is loaded.
#[test]
fn what_a_checkpoint_lacks() {
    let directory = folder("lacking");
    copy(&fixture("mixtral"), &directory, &["config.json"]);
    copy(&fixture("mixtral"), &directory, &TOKENIZER);
    let mut tensors = part("mixtral", |name| {
        let gone = name.starts_with("model.layers.1.self_attn")
            || name.ends_with("experts.2.w3.weight")
            || name.ends_with("vision_stages.1.blocks.0.gamma");
        kept(name, !gone)
    });
    let tensor = tensors["model.norm.weight"].narrow(0, 0, 8).unwrap();
    tensors.insert("model.norm.weight".into(), tensor.contiguous().unwrap());
    save(&directory.join("model.safetensors"), &tensors);
    let text = error(&directory, &options());
    for part in [
        "7 tensors missing",
        "model.layers.0.block_sparse_moe.experts.2.w3.weight",
        "and 4 more",
        "model.safetensors",
        "model.norm.weight has shape [8], expected [64]",
    ] {
        assert!(text.contains(part), "{text}");
    }

    // A layer count far beyond the files.
    let config = std::fs::read_to_string(fixture("llama/config.json")).unwrap();
    let many = folder("many-layers");
    copy(&fixture("llama"), &many, &TOKENIZER);
    copy(&fixture("llama"), &many, &["model.safetensors"]);
    let layers = "\"num_hidden_layers\": 3";
    assert!(config.contains(layers));
    for (count, expected) in [
        ("9000000", "tensors missing"),
        ("90000000000", "num_hidden_layers"),
        ("0", "num_hidden_layers"),
    ] {
        let text = config.replace(layers, &format!("\"num_hidden_layers\": {count}"));
        std::fs::write(many.join("config.json"), text).unwrap();
        let text = error(&many, &options());
        assert!(text.contains(expected), "{count}: {text}");
    }
}

/// Configurations of models that would be computed wrongly are refused, naming the key.
#[test]
fn other_models_are_refused() {
    let directory = folder("others");
    copy(&fixture("llama"), &directory, &TOKENIZER);
    copy(&fixture("llama"), &directory, &["model.safetensors"]);
    let config: serde_json::Value =
        serde_json::from_slice(&std::fs::read(fixture("llama/config.json")).unwrap()).unwrap();
    let cases = [
        ("architectures", r#"["PhiForCausalLM"]"#, "PhiForCausalLM"),
        ("architectures", r#"["Gemma2ForCausalLM"]"#, "Gemma2"),
        (
            "rope_scaling",
            r#"{"rope_type": "llama3", "factor": 8.0}"#,
            "llama3",
        ),
        ("quantization_config", r#"{"quant_method": "gptq"}"#, "gptq"),
        ("hidden_act", "\"relu\"", "hidden_act"),
        ("num_attention_heads", "5", "num_attention_heads"),
        ("hidden_size", "\"wide\"", "config.json"),
    ];
    for (key, value, expected) in cases {
        let mut changed = config.clone();
        changed[key] = serde_json::from_str(value).unwrap();
        if key == "architectures" {
            changed.as_object_mut().unwrap().remove("model_type");
        }
        std::fs::write(directory.join("config.json"), changed.to_string()).unwrap();
        let text = error(&directory, &options());
        assert!(text.contains(expected), "{key}: {text}");
    }
}

/// Paths that hold no model say so.
#[test]
fn paths_without_a_model() {
    let nowhere = error(Path::new("no/such/model/anywhere"), &options());
    assert!(nowhere.contains("no/such/model/anywhere"), "{nowhere}");
    let unknown = error(Path::new("someone/something"), &options());
    assert!(unknown.contains("someone/something in "), "{unknown}");
    let empty = folder("empty");
    let text = error(&empty, &options());
    assert!(text.contains("config.json"), "{text}");
    let file = fixture("llama/model.safetensors");
    let text = error(&file, &options());
    assert!(text.contains("neither a model's folder nor"), "{text}");
    let weights_only = folder("weights-only");
    copy(&fixture("llama"), &weights_only, &["model.safetensors"]);
    let text = error(&weights_only, &options());
    assert!(text.contains("config.json"), "{text}");
}

/// The family is known without class names: by numeric keys, then by the folder's name.
#[test]
fn families_without_names() {
    for (family, folder_name, template) in [
        ("mixtral", "anything", "mistral_instruct"),
        ("gemma", "my-mgm-2b", "gemma"),
        ("llama", "MGM-7B", "vicuna_v1"),
        ("llama", "MGM-8B-HD", "llama_3"),
        ("llama", "MGM-34B", "chatml_direct"),
    ] {
        let directory = folder(&format!("unnamed/{folder_name}"));
        for entry in std::fs::read_dir(fixture(family)).unwrap() {
            let path = entry.unwrap().path();
            std::fs::copy(&path, directory.join(path.file_name().unwrap())).unwrap();
        }
        let text = std::fs::read_to_string(directory.join("config.json")).unwrap();
        let mut config: HashMap<String, serde_json::Value> = serde_json::from_str(&text).unwrap();
        config.remove("architectures");
        config.remove("model_type");
        let text = serde_json::to_string(&config).unwrap();
        std::fs::write(directory.join("config.json"), text).unwrap();
        let found = open(&directory, &options());
        assert_eq!(found.template().name(), template, "{folder_name}");
        if family != "llama" {
            assert_same(&found, &open(&fixture(family), &options()));
        }
    }
}

/// A merged checkpoint computes what the live adapter does, sharded or not, and leaves nothing behind when it is stopped.
#[test]
fn merging_an_adapter() {
    let root = folder("merging");
    let adapter = root.join("adapter");
    let text = r#"{"peft_type": "LORA", "r": 4, "lora_alpha": 8}"#;
    write_adapter(&adapter, text, &adapter_tensors());
    let with_adapter = LoadOptions {
        adapter: Some(adapter.clone()),
        ..options()
    };
    // In f32, so that merging does not round.
    let base = root.join("base");
    copy(&fixture("llama"), &base, &TOKENIZER);
    copy(&fixture("llama"), &base, &["config.json"]);
    let wide = part("llama", |name| Some(name.to_string()))
        .into_iter()
        .map(|(name, tensor)| (name, tensor.to_dtype(DType::F32).unwrap()))
        .collect();
    save(&base.join("model.safetensors"), &wide);
    let source = ModelSource::Path(base.clone());
    let checkpoint = Checkpoint::open(&source, &with_adapter).unwrap();
    let live = open(&base, &with_adapter);
    for (name, shard_bytes) in [("one", SHARD_BYTES), ("several", 100_000)] {
        let output = root.join(name);
        let mut last = None;
        let merged = merge(&checkpoint, &output, shard_bytes, &mut |progress| {
            last = Some(progress);
            Control::Continue
        })
        .unwrap()
        .unwrap();
        assert_eq!(merged.adapted, 7 * 3);
        assert_eq!(merged.shards == 1, name == "one", "{merged:?}");
        let last = last.unwrap();
        assert_eq!((last.done, last.total), (merged.bytes, merged.bytes));
        let found = open(&output, &options());
        let rows = |model: &MiniGemini| {
            let prompt = model.splice(&[1, 5, 9, 30, 17], &[]).unwrap();
            logits(model, &[prompt])
        };
        assert_close(name, &rows(&found), &rows(&live), 1e-5);
        let again = merge(&checkpoint, &output, shard_bytes, &mut |_| {
            Control::Continue
        });
        assert!(again.unwrap_err().to_string().contains("not empty"));
    }
    let stopped = merge(&checkpoint, &root.join("stopped"), SHARD_BYTES, &mut |_| {
        Control::Stop
    });
    assert_eq!(stopped.unwrap(), None);
    let mut left: Vec<String> = std::fs::read_dir(&root)
        .unwrap()
        .map(|entry| entry.unwrap().file_name().into_string().unwrap())
        .collect();
    left.sort();
    assert_eq!(left, ["adapter", "base", "one", "several"]);
}
