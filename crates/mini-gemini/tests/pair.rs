//! The GGUF pair: what is written from a checkpoint opens as the same model.

// A test may end by a panic.
#![allow(clippy::unwrap_used)]

mod common;

use std::collections::HashMap;
use std::path::{Path, PathBuf};

use candle_core::{Device, Tensor};
use common::*;
use mgm_nn::{ElementType, WeightSource, WeightStorage};
use mini_gemini::pair::{self, QuantizeOptions, QuantizeReport, Scheme};
use mini_gemini::{
    Checkpoint, Control, Error, LoadOptions, LoraKeys, MiniGemini, ModelConfig, ModelSource,
    lora_config,
};

/// A folder that goes away with its test.
struct Folder(PathBuf);

impl Folder {
    fn new(name: &str) -> Self {
        let path = std::env::temp_dir().join(format!("mgm-pair-{}-{name}", std::process::id()));
        std::fs::create_dir_all(&path).unwrap();
        Self(path)
    }

    fn files(&self) -> Vec<String> {
        let mut names: Vec<String> = std::fs::read_dir(&self.0)
            .unwrap()
            .map(|entry| entry.unwrap().file_name().to_string_lossy().into_owned())
            .collect();
        names.sort();
        names
    }
}

impl Drop for Folder {
    fn drop(&mut self) {
        let _ = std::fs::remove_dir_all(&self.0);
    }
}

fn checkpoint(family: &str) -> Checkpoint {
    let source = ModelSource::Path(fixture(family));
    Checkpoint::open(&source, &LoadOptions::default()).unwrap()
}

fn options(folder: &Folder, scheme: Scheme) -> QuantizeOptions {
    QuantizeOptions {
        scheme,
        directory: folder.0.clone(),
        name: None,
        importance: None,
        overwrite: false,
    }
}

fn write(checkpoint: &Checkpoint, folder: &Folder, scheme: Scheme) -> QuantizeReport {
    pair::quantize(checkpoint, &options(folder, scheme), &mut |_| {
        Control::Continue
    })
    .unwrap()
}

/// Loads a language file with the vision file beside it.
fn load_pair(language: &Path, storage: WeightStorage) -> MiniGemini {
    let mut policy = policy(&[], None);
    policy.storage = storage;
    let source = ModelSource::Path(language.into());
    MiniGemini::load_with_policy(&source, &LoadOptions::default(), policy).unwrap()
}

fn text_logits(model: &MiniGemini, family: &str) -> Tensor {
    let expected = read(&format!("{family}/expected.safetensors"));
    let ids = integers(get(&expected, "text.ids"));
    logits(model, &[model.splice(&ids, &[]).unwrap()])
}

#[test]
fn every_family_comes_back_in_f32() {
    for family in FAMILIES {
        println!("{family}");
        let folder = Folder::new(&format!("f32-{family}"));
        let report = write(&checkpoint(family), &folder, Scheme::F32);
        let mut expected = [
            format!("{family}-F32.gguf"),
            format!("mmproj-{family}-F32.gguf"),
        ];
        expected.sort();
        assert_eq!(folder.files(), expected);
        let size = |path: &Path| path.metadata().unwrap().len();
        assert_eq!(report.language.bytes, size(&report.language.path));
        let vision = report.vision.unwrap();
        assert_eq!(vision.bytes, size(&vision.path));

        let parts = pair::open(&report.language.path, None).unwrap();
        assert_eq!(parts.vision_file.as_deref(), Some(vision.path.as_path()));
        let official = ModelConfig::read(&fixture(family).join("config.json")).unwrap();
        let file = Path::new("config.json");
        assert_eq!(parts.config.family(), official.family());
        assert_eq!(
            format!("{:?}", parts.config.decoder(file).unwrap()),
            format!("{:?}", official.decoder(file).unwrap())
        );
        assert_eq!(parts.config.context_limit(), official.context_limit());
        let model = load_pair(&report.language.path, WeightStorage::F32);
        let original = load(family, &[]);
        assert_eq!(model.template().name(), original.template().name());

        // The same numbers, not only close ones: the files hold what the checkpoint holds. Gemma's norms are stored with 1 added.
        let (found, reference) = (text_logits(&model, family), text_logits(&original, family));
        let tolerance = if family == "gemma" { 1e-6 } else { 0.0 };
        assert_close("logits", &found, &reference, tolerance);
        let images = visual_tokens(&model, pictures("base"), 1);
        for (found, reference) in images
            .iter()
            .zip(visual_tokens(&original, pictures("base"), 1))
        {
            assert_close("visual tokens", found, &reference, 0.0);
        }
        // And against transformers.
        let expected = read(&format!("{family}/expected.safetensors"));
        check_prompt(&model, &expected, "text", &[]);
        check_prompt(&model, &expected, "one", &images[..1]);
    }
}

#[test]
fn an_hd_model_comes_back() {
    let folder = Folder::new("hd");
    let mut original = checkpoint("gemma");
    original.config = ModelConfig::read(&fixture("gemma/config_hd.json")).unwrap();
    let report = write(&original, &folder, Scheme::F32);
    let model = load_pair(&report.language.path, WeightStorage::F32);
    assert_eq!(model.config().grid(), 2);
    assert_eq!(model.config().image_global, Some(true));
    let expected = read("gemma/expected_hd.safetensors");
    let images = visual_tokens(&model, pictures("hd"), 2);
    check_prompt(&model, &expected, "one", &images[..1]);
}

/// Root mean square error allowed in a tensor of each type, relative to its root mean square.
fn rounding(element_type: &str) -> f64 {
    match element_type {
        "F32" => 1e-7,
        "F16" => 3e-4,
        "BF16" => 3e-3,
        "Q8_0" => 1e-2,
        "Q6_K" => 2e-2,
        "Q5_0" | "Q5_1" | "Q5_K" => 5e-2,
        "Q4_0" | "Q4_1" | "Q4_K" => 1.1e-1,
        other => panic!("unexpected type {other}"),
    }
}

/// Largest relative error of the logits and of the visual tokens. A tiny random model amplifies rounding far more than a trained one, so
/// that the coarser types are held to the errors of their tensors alone.
fn end_to_end(scheme: Scheme) -> Option<(f32, f32)> {
    match scheme {
        Scheme::F32 => Some((1e-6, 1e-6)),
        Scheme::F16 => Some((5e-3, 2e-3)),
        Scheme::Bf16 => Some((5e-2, 1e-2)),
        Scheme::Q8_0 => Some((2e-1, 3e-2)),
        _ => None,
    }
}

#[test]
fn every_type_is_within_its_rounding() {
    for family in ["gemma", "llama", "mistral", "mixtral", "qwen2"] {
        let original = load(family, &[]);
        let source = checkpoint(family).weights;
        let reference = text_logits(&original, family);
        let tokens = visual_tokens(&original, pictures("base"), 1);
        let folder = Folder::new(&format!("types-{family}"));
        for scheme in Scheme::ALL {
            println!("{family} {}", scheme.name());
            let report = write(&checkpoint(family), &folder, scheme);
            let parts = pair::open(&report.language.path, None).unwrap();
            let mut compared = 0;
            for name in parts.weights.names() {
                let info = parts.weights.info(&name).unwrap();
                let found = floats(&parts.weights.tensor_any(&name).unwrap());
                let values = floats(&source.tensor_any(&name).unwrap());
                assert_eq!(found.len(), values.len(), "{name}");
                let square = |values: &mut dyn Iterator<Item = f64>| -> f64 {
                    values.map(|value| value * value).sum::<f64>().sqrt()
                };
                let error = square(&mut found.iter().zip(&values).map(|(a, b)| f64::from(a - b)))
                    / square(&mut values.iter().map(|&value| f64::from(value))).max(1e-9);
                let allowed = rounding(info.element_type.name());
                assert!(
                    error <= allowed,
                    "{name} {}: {error:.1e}, allowed {allowed:.0e}",
                    info.element_type.name()
                );
                compared += 1;
            }
            // Everything but the head of a tied model, stored though it is not used.
            let stored = source
                .names()
                .iter()
                .filter(|name| source.info(name).unwrap().file.contains("/model"))
                .count();
            let left_out = usize::from(family == "gemma");
            assert_eq!(compared, stored - left_out, "{family}");

            let model = load_pair(&report.language.path, WeightStorage::AsStored);
            let logits = text_logits(&model, family);
            let found = visual_tokens(&model, pictures("base"), 1);
            if let Some((logit_error, token_error)) = end_to_end(scheme) {
                assert_close("logits", &logits, &reference, logit_error);
                assert_close("visual tokens", &found[0], &tokens[0], token_error);
            }
            assert!(floats(&logits).iter().all(|value| value.is_finite()));
        }
    }
}

#[test]
fn keys_and_tensors_are_those_of_llama_cpp() {
    let folder = Folder::new("keys");
    let report = write(&checkpoint("mixtral"), &folder, Scheme::Q8_0);
    let source = WeightSource::from_gguf(&report.language.path).unwrap();
    let metadata = source.gguf_metadata().unwrap();
    assert_eq!(metadata.architecture(), Some("llama"));
    assert_eq!(metadata.unsigned("llama.expert_count"), Some(4));
    assert_eq!(metadata.unsigned("llama.expert_used_count"), Some(2));
    assert_eq!(metadata.unsigned("llama.embedding_length"), Some(64));
    assert_eq!(metadata.unsigned("general.file_type"), Some(7));
    assert_eq!(metadata.string("mini_gemini.family"), Some("mixtral"));
    assert_eq!(
        metadata.string("mini_gemini.template"),
        Some("mistral_instruct")
    );
    assert_eq!(
        metadata.strings("tokenizer.ggml.tokens").unwrap().len(),
        160
    );
    let expert = "model.layers.0.block_sparse_moe.experts.3.w2.weight";
    assert!(matches!(
        source.info(expert).unwrap().element_type,
        ElementType::Quantised(_)
    ));
    assert_eq!(
        source
            .info("model.layers.0.block_sparse_moe.gate.weight")
            .unwrap()
            .element_type,
        ElementType::F32
    );

    let vision = WeightSource::from_gguf(&report.vision.unwrap().path).unwrap();
    let metadata = vision.gguf_metadata().unwrap();
    let key = |name: &str| format!("mini_gemini_mmproj.{name}");
    assert_eq!(metadata.architecture(), Some("mini_gemini_mmproj"));
    assert_eq!(metadata.string(&key("low_res.tower")), Some("clip"));
    assert_eq!(metadata.string(&key("high_res.tower")), Some("convnext"));
    assert_eq!(metadata.unsigned(&key("low_res.patch_size")), Some(14));
    assert_eq!(
        metadata.get(&key("low_res.select_layer")).unwrap().as_i64(),
        Some(-2)
    );
    assert!(vision.names().iter().all(|name| name.len() <= 63));
    assert_eq!(
        vision.shape("mining.query.1.weight"),
        Some(vec![64, 64]),
        "{:?}",
        vision.names()
    );
}

/// Whoever adds a key describes it.
#[test]
fn every_key_and_prefix_is_documented() {
    let guide = include_str!("../../../docs/formats.md");
    for family in FAMILIES {
        let folder = Folder::new(&format!("guide-{family}"));
        let report = write(&checkpoint(family), &folder, Scheme::F16);
        for path in [report.language.path, report.vision.unwrap().path] {
            let source = WeightSource::from_gguf(&path).unwrap();
            let metadata = source.gguf_metadata().unwrap();
            let arch = format!("{}.", metadata.architecture().unwrap());
            for (key, _) in metadata.iter() {
                let documented = match key.strip_prefix(&arch) {
                    Some(rest) if arch.starts_with("mini_gemini_mmproj") => format!("`P.{rest}`"),
                    Some(rest) => format!("`ARCH.{rest}`"),
                    None => format!("`{key}`"),
                };
                assert!(guide.contains(&documented), "{key}: {documented}");
            }
            if metadata.architecture() == Some("mini_gemini_mmproj") {
                for name in source.names() {
                    let prefixes = ["low_res.", "high_res.", "mining.", "projector."];
                    assert!(
                        prefixes.iter().any(|prefix| name.starts_with(prefix)),
                        "{name}"
                    );
                }
            }
        }
    }
}

#[test]
fn adapters_are_merged() {
    let folder = Folder::new("lora");
    let mut tensors = HashMap::new();
    for (index, part) in ["self_attn.q_proj", "self_attn.v_proj", "mlp.down_proj"]
        .into_iter()
        .enumerate()
    {
        let name = format!("model.layers.1.{part}");
        let shape = checkpoint("llama")
            .weights
            .shape(&format!("{name}.weight"))
            .unwrap();
        let wave = |count: usize, step: f32| -> Vec<f32> {
            (0..count)
                .map(|i| (i as f32 * step + index as f32).sin() * 0.2)
                .collect()
        };
        let (out, inner) = (shape[0], shape[1]);
        let tensor = |values: Vec<f32>, shape: [usize; 2]| {
            Tensor::from_vec(values, &shape, &Device::Cpu).unwrap()
        };
        tensors.insert(
            format!("{name}.lora_A.weight"),
            tensor(wave(3 * inner, 0.7), [3, inner]),
        );
        tensors.insert(
            format!("{name}.lora_B.weight"),
            tensor(wave(out * 3, 1.3), [out, 3]),
        );
    }
    let adapted = || {
        let mut checkpoint = checkpoint("llama");
        checkpoint.config.lora = Some(LoraKeys {
            rank: 3,
            alpha: 6.0,
        });
        checkpoint.lora = lora_config(&checkpoint.config);
        checkpoint.weights = checkpoint
            .weights
            .overlay(WeightSource::from_tensors(tensors.clone()));
        checkpoint
    };
    let live = adapted();
    let lora = lora_config(&live.config);
    let live =
        MiniGemini::from_checkpoint(live, &LoadOptions::default(), policy(&[], lora)).unwrap();
    let report = write(&adapted(), &folder, Scheme::F32);
    let merged = load_pair(&report.language.path, WeightStorage::F32);
    let reference = text_logits(&live, "llama");
    assert_close("logits", &text_logits(&merged, "llama"), &reference, 1e-5);
    // The adapter does something.
    let without = text_logits(&load("llama", &[]), "llama");
    assert!(relative_error(&floats(&without), &floats(&reference)) > 1e-2);
}

#[test]
fn the_vision_file_is_found_or_asked_for() {
    let folder = Folder::new("beside");
    let report = write(&checkpoint("llama3"), &folder, Scheme::Q8_0);
    let (language, vision) = (report.language.path, report.vision.unwrap().path);
    let found = |file: &Path| pair::open(file, None).map(|parts| parts.vision_file);

    // Another type's vision file serves too, and other files do not disturb.
    std::fs::write(folder.0.join("mmproj-other.gguf"), b"GGUF").unwrap();
    let other = folder.0.join("mmproj-llama3-F16.gguf");
    std::fs::rename(&vision, &other).unwrap();
    assert_eq!(found(&language).unwrap(), Some(other.clone()));
    // Two of them are one too many, unless one has the language file's own name.
    let third = folder.0.join("mmproj-third.gguf");
    std::fs::copy(&other, &third).unwrap();
    let message = found(&language).unwrap_err().to_string();
    assert!(
        message.contains("mmproj-llama3-F16.gguf, mmproj-third.gguf")
            && message.contains("--mmproj"),
        "{message}"
    );
    assert_eq!(
        pair::open(&language, Some(&third)).unwrap().vision_file,
        Some(third.clone())
    );
    std::fs::copy(&other, &vision).unwrap();
    assert_eq!(found(&language).unwrap(), Some(vision.clone()));

    // None: text only, and said so.
    for file in [&vision, &other, &third] {
        std::fs::remove_file(file).unwrap();
    }
    let parts = pair::open(&language, None).unwrap();
    assert_eq!(parts.vision_file, None);
    assert!(parts.config.mm_vision_tower.is_none());
    assert!(parts.notes[0].contains("mmproj-llama3-Q8_0.gguf"));
    let model = load_pair(&language, WeightStorage::AsStored);
    assert!(model.vision().is_none());
}

#[test]
fn files_that_do_not_fit_are_refused() {
    let folder = Folder::new("refused");
    let mixtral = write(&checkpoint("mixtral"), &folder, Scheme::F16);
    let llama3 = write(&checkpoint("llama3"), &folder, Scheme::F16);
    let (language, vision) = (mixtral.language.path, llama3.vision.unwrap().path);
    let refused = |language: &Path, vision: Option<&Path>| {
        pair::open(language, vision)
            .map(|_| ())
            .unwrap_err()
            .to_string()
    };
    let message = refused(&language, Some(&vision));
    assert!(
        message.contains("mmproj-llama3-F16.gguf")
            && message.contains("expected 64")
            && message.contains("found 96"),
        "{message}"
    );
    let message = refused(&vision, None);
    assert!(message.contains("name the language file"), "{message}");
    let message = refused(&language, Some(&language));
    assert!(message.contains("expected mini_gemini_mmproj"), "{message}");

    // What another writer may say and this program does not compute: bytes of the value behind a key (type and length between).
    let bytes = std::fs::read(&vision).unwrap();
    let altered = folder.0.join("mmproj-altered.gguf");
    for (key, behind, value, expected) in [
        (
            "low_res.tower",
            12,
            b"blip",
            "expected clip or dinov2, found blip",
        ),
        (
            "high_res.tower",
            12,
            b"CONV",
            "expected convnext or efficientnet_lite, found CONVnext",
        ),
        (
            "low_res.select_feature",
            12,
            b"Patc",
            "expected patch, found Patch",
        ),
        (
            "image.aspect_ratio",
            11,
            b"\0any",
            "image.aspect_ratio: expected pad or square",
        ),
        ("image.mean", 16, b"\0\0\0\0", "expected CLIP's [0.4814"),
        ("image.std", 16, b"\0\0\x80\x3f", "found [1.0, 0.26"),
        (
            "mmproj.version",
            4,
            b"\x02\0\0\0",
            "expected at most 1, found 2",
        ),
    ] {
        let mut bytes = bytes.clone();
        let key = key.as_bytes();
        let at = bytes.windows(key.len()).position(|window| window == key);
        let start = at.unwrap() + key.len() + behind;
        bytes[start..start + 4].copy_from_slice(value);
        std::fs::write(&altered, &bytes).unwrap();
        let message = refused(&llama3.language.path, Some(&altered));
        assert!(
            message.contains("mmproj-altered.gguf") && message.contains(expected),
            "{message}"
        );
    }

    // Damage is told, never a panic: cut everywhere in the header, and bits flipped.
    let damaged = folder.0.join("mmproj-damaged.gguf");
    for length in (0..6000).step_by(61) {
        std::fs::write(&damaged, &bytes[..length]).unwrap();
        let message = refused(&language, Some(&damaged));
        assert!(message.contains("mmproj-damaged.gguf"), "{message}");
    }
    let mut state = 7u64;
    for _ in 0..400 {
        let mut bytes = bytes.clone();
        for _ in 0..2 {
            state = state
                .wrapping_mul(6_364_136_223_846_793_005)
                .wrapping_add(1_442_695_040_888_963_407);
            bytes[(state >> 33) as usize % 3000] = (state >> 20) as u8;
        }
        std::fs::write(&damaged, &bytes).unwrap();
        let _ = pair::open(&llama3.language.path, Some(&damaged));
    }
}

#[test]
fn nothing_is_left_of_work_that_ends_early() {
    let folder = Folder::new("stopped");
    let llama = checkpoint("llama");
    for steps in [1, 50, 150] {
        let mut left = steps;
        let result = pair::quantize(&llama, &options(&folder, Scheme::Q8_0), &mut |progress| {
            assert!(progress.done <= progress.total);
            left -= 1;
            if left == 0 {
                Control::Stop
            } else {
                Control::Continue
            }
        });
        assert!(matches!(result, Err(Error::Stopped)), "{result:?}");
        assert_eq!(folder.files(), [] as [String; 0]);
    }
    // Files that are there already are not touched unless that is asked for.
    write(&llama, &folder, Scheme::Q8_0);
    let again = pair::quantize(&llama, &options(&folder, Scheme::Q8_0), &mut |_| {
        Control::Continue
    });
    assert!(
        matches!(again, Err(Error::OutputExists { .. })),
        "{again:?}"
    );
    let mut over = options(&folder, Scheme::Q8_0);
    over.overwrite = true;
    pair::quantize(&llama, &over, &mut |_| Control::Continue).unwrap();
    assert_eq!(folder.files().len(), 2);

    // A tensor of the wrong shape is found before anything is written.
    let mut broken = checkpoint("llama3");
    broken.config.intermediate_size = 96;
    let error = pair::quantize(&broken, &options(&folder, Scheme::F32), &mut |_| {
        Control::Continue
    })
    .unwrap_err()
    .to_string();
    assert!(
        error.contains("model.layers.0.mlp.gate_proj.weight")
            && error.contains("expected shape [96, 96], found [128, 96]")
            && error.contains("5 more"),
        "{error}"
    );
    assert_eq!(folder.files().len(), 2);
}

/// A pair can be the source of another: the same values where the type holds them.
#[test]
fn a_pair_of_a_pair() {
    let folder = Folder::new("again");
    let first = write(&checkpoint("llama"), &folder, Scheme::Bf16);
    let source = ModelSource::Path(first.language.path.clone());
    let source = Checkpoint::open(&source, &LoadOptions::default()).unwrap();
    let mut over = options(&folder, Scheme::Bf16);
    over.name = Some("second".into());
    let second = pair::quantize(&source, &over, &mut |_| Control::Continue).unwrap();
    let weights = |report: &QuantizeReport| WeightSource::from_gguf(&report.language.path).unwrap();
    let (one, two) = (weights(&first), weights(&second));
    assert_eq!(one.names(), two.names());
    for name in one.names() {
        assert_eq!(
            one.stored_bytes(&name).unwrap().as_slice(),
            two.stored_bytes(&name).unwrap().as_slice(),
            "{name}"
        );
    }
    let tokens = |source: &WeightSource| {
        let metadata = source.gguf_metadata().unwrap();
        metadata
            .iter()
            .filter(|(key, _)| key.contains("tokenizer"))
            .map(|(key, value)| (key.to_string(), format!("{value:?}")))
            .collect::<Vec<_>>()
    };
    assert_eq!(tokens(&one), tokens(&two));
}
