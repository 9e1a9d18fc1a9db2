//! Models whose parts lie in several places, do not fit into memory, or are not what they should be, as a user meets them.
#![allow(clippy::unwrap_used)]

mod support;

use std::collections::HashMap;
use std::path::{Path, PathBuf};

use safetensors::SafeTensors;
use safetensors::tensor::{Dtype, TensorView};
use support::{command, example, finish, root};

const CLIP: &str = "model_zoo/OpenAI/clip-vit-large-patch14-336";
const CONVNEXT: &str = "model_zoo/OpenAI/openclip-convnext-large-d-320-laion2B-s29B-b131K-ft-soup";

/// A tiny checkpoint in the official layout.
fn fixture(family: &str) -> PathBuf {
    root()
        .join("crates/mini-gemini/tests/fixtures")
        .join(family)
}

/// Copies the tensors of a file whose names `rename` knows, under the names it gives.
fn copy_tensors(from: &Path, to: &Path, rename: impl Fn(&str) -> Option<String>) {
    let bytes = std::fs::read(from).unwrap();
    let tensors = SafeTensors::deserialize(&bytes).unwrap();
    let kept: HashMap<String, TensorView> = tensors
        .iter()
        .filter_map(|(name, view)| Some((rename(name)?, view)))
        .collect();
    assert!(!kept.is_empty());
    std::fs::create_dir_all(to.parent().unwrap()).unwrap();
    std::fs::write(to, safetensors::serialize(kept, None).unwrap()).unwrap();
}

fn copy_small_files(family: &str, to: &Path) {
    std::fs::create_dir_all(to).unwrap();
    for name in ["config.json", "tokenizer.model", "tokenizer_config.json"] {
        std::fs::copy(fixture(family).join(name), to.join(name)).unwrap();
    }
}

/// Puts both towers where `places` says, in the layouts in which they are published.
fn write_towers(clip: &Path, convnext: &Path) {
    let whole = fixture("llama/model.safetensors");
    copy_tensors(&whole, &clip.join("model.safetensors"), |name| {
        let name = name.strip_prefix("model.vision_tower.vision_tower.")?;
        Some(name.to_string())
    });
    let file = convnext.join("open_clip_model.safetensors");
    copy_tensors(&whole, &file, |name| {
        let name = name.strip_prefix("model.vision_tower_aux.vision_")?;
        Some(format!("visual.trunk.{name}"))
    });
}

/// A snapshot in Hugging Face's cache.
fn snapshot(cache: &Path, repository: &str) -> PathBuf {
    let folder = cache.join(format!("models--{}", repository.replace('/', "--")));
    std::fs::create_dir_all(folder.join("refs")).unwrap();
    std::fs::write(folder.join("refs/main"), "0123abc").unwrap();
    folder.join("snapshots/0123abc")
}

/// The working directory comes first, then the checkpoint, the model zoo, and Hugging Face's cache; the same model comes out each time.
#[test]
fn towers_are_looked_for_in_four_places_in_order() {
    let folder = tempfile::tempdir().unwrap();
    let at = |name: &str| folder.path().join(name);
    let (here, model, zoo, cache) = (at("here"), at("model"), at("zoo"), at("cache"));
    std::fs::create_dir_all(&here).unwrap();
    copy_small_files("llama", &model);
    copy_tensors(
        &fixture("llama/model.safetensors"),
        &model.join("model.safetensors"),
        |name| (!name.starts_with("model.vision_tower")).then(|| name.to_string()),
    );
    let clip_snapshot = snapshot(&cache, "openai/clip-vit-large-patch14-336");
    let convnext_snapshot = snapshot(
        &cache,
        "laion/CLIP-convnext_large_d_320.laion2B-s29B-b131K-ft-soup",
    );
    let last = |path: &'static str| path.rsplit('/').next().unwrap();
    let places = [
        (here.join(CLIP), here.join(CONVNEXT)),
        (model.join(CLIP), model.join(CONVNEXT)),
        (
            zoo.join("OpenAI").join(last(CLIP)),
            zoo.join(last(CONVNEXT)),
        ),
        (clip_snapshot, convnext_snapshot),
    ];
    // The working directory's is told as it stands in the configuration.
    let told = |path: &Path| {
        let path = path.strip_prefix(&here).unwrap_or(path);
        path.display().to_string()
    };
    for (clip, convnext) in &places {
        write_towers(clip, convnext);
    }
    let output = at("tokens.safetensors");
    let embed = |model: &Path| {
        let mut command = command(&["embed", "--image", &example("cat.jpg"), "--model"]);
        command
            .arg(model)
            .arg("--output")
            .arg(&output)
            .args(["--dtype", "f32"])
            .arg("--model-zoo")
            .arg(&zoo)
            .current_dir(&here)
            .env("HF_HUB_CACHE", &cache);
        finish(&mut command)
    };
    embed(&fixture("llama")).ok();
    let expected = std::fs::read(&output).unwrap();
    for (clip, convnext) in &places {
        std::fs::remove_file(&output).unwrap();
        let run = embed(&model);
        for line in [
            format!(
                "low-resolution tower (mm_vision_tower) read from {}\n",
                told(clip)
            ),
            format!(
                "high-resolution tower (mm_vision_tower_aux) read from {}\n",
                told(convnext)
            ),
        ] {
            assert!(run.stderr.contains(&line), "{line}{run:?}");
        }
        run.ok();
        assert_eq!(
            std::fs::read(&output).unwrap(),
            expected,
            "{}",
            clip.display()
        );
        std::fs::remove_dir_all(clip).unwrap();
        std::fs::remove_dir_all(convnext).unwrap();
    }
    // Nowhere: one line names all places.
    let searched = [
        CLIP.to_string(),
        model.join(CLIP).display().to_string(),
        zoo.display().to_string(),
        format!("openai/clip-vit-large-patch14-336 in {}", cache.display()),
    ];
    let needles: Vec<&str> = searched.iter().map(String::as_str).collect();
    embed(&model).fails_clearly(&needles);
}

/// A name that is no path is a folder of the model zoo, else a downloaded repository, whose letters' case does not matter.
#[test]
fn models_are_found_by_name() {
    let folder = tempfile::tempdir().unwrap();
    let (zoo, cache) = (folder.path().join("zoo"), folder.path().join("cache"));
    let snapshot = snapshot(&cache, "YanweiLi/MGM-7B");
    for model in [&zoo.join("mine/MGM-7B"), &snapshot] {
        copy_small_files("llama", model);
        std::fs::copy(
            fixture("llama/model.safetensors"),
            model.join("model.safetensors"),
        )
        .unwrap();
    }
    let inspect = |name: &str| {
        let mut command = command(&["models", "inspect", "--json", name]);
        command
            .current_dir(folder.path())
            .env("MGM_MODEL_ZOO", &zoo)
            .env("HF_HUB_CACHE", &cache);
        finish(&mut command)
    };
    for (name, place) in [
        ("mine/MGM-7B", &zoo.join("mine/MGM-7B")),
        ("YanweiLi/MGM-7B", &snapshot),
        ("yanweili/mgm-7b", &snapshot),
        ("mgm-7b", &snapshot),
        (
            "zoo/mine/MGM-7B",
            &Path::new("zoo/mine/MGM-7B").to_path_buf(),
        ),
    ] {
        let report: serde_json::Value = serde_json::from_str(&inspect(name).ok()).unwrap();
        let model = &report["model"];
        assert_eq!(model["directory"], place.display().to_string(), "{name}");
        assert_eq!(model["name"], "MGM-7B");
        assert_eq!(model["template"], "vicuna_v1");
    }
    let missing = inspect("someone/else");
    missing.fails_clearly(&[
        "someone/else",
        &zoo.display().to_string(),
        &cache.display().to_string(),
    ]);
}

/// What does not fit into memory stays in its files: one line says so, and the answer is the same.
#[test]
fn a_model_larger_than_memory_answers() {
    for family in ["llama", "mixtral", "gemma"] {
        let model = fixture(family).display().to_string();
        let ask = |memory: &str| {
            let arguments = [
                "chat",
                "--model",
                &model,
                "--temperature",
                "0",
                "--max-new-tokens",
                "12",
                "--image",
                &example("cat.jpg"),
                "Say hello.",
            ];
            finish(command(&arguments).env("MGM_AVAILABLE_MEMORY", memory))
        };
        let (small, large) = (ask("1M"), ask("64G"));
        assert_eq!(large.stderr, "", "{large:?}");
        let lines: Vec<&str> = small.stderr.lines().collect();
        let [warning] = lines.as_slice() else {
            panic!("{small:?}");
        };
        for part in [
            &*format!("warning: {family} needs "),
            "1 MB are free",
            "stay in their files",
        ] {
            assert!(warning.contains(part), "{part}: {warning}");
        }
        assert_eq!(small.ok(), large.ok());
    }
}

/// What is wrong with a tensor is told with file, name, what was expected and what was found.
#[test]
fn a_wrong_tensor_is_told_whole() {
    const NAME: &str = "model.layers.1.mlp.up_proj.weight";
    let cases: [(Dtype, &[usize], &str); 3] = [
        (
            Dtype::BF16,
            &[160, 32],
            "has shape [160, 32], expected [160, 64]",
        ),
        (
            Dtype::I16,
            &[160, 64],
            "has type I16, expected F32, F16, BF16, F64",
        ),
        (
            Dtype::F8_E4M3,
            &[160, 64],
            "has type F8_E4M3, expected F32, F16, BF16, F64",
        ),
    ];
    let whole = std::fs::read(fixture("llama/model.safetensors")).unwrap();
    let zeros = vec![0u8; 2 * 160 * 64];
    for (dtype, shape, needle) in cases {
        let folder = tempfile::tempdir().unwrap();
        copy_small_files("llama", folder.path());
        let tensors = SafeTensors::deserialize(&whole).unwrap();
        let size = shape.iter().product::<usize>() * dtype.bitsize() / 8;
        let wrong = TensorView::new(dtype, shape.to_vec(), &zeros[..size]).unwrap();
        let mut all: HashMap<String, TensorView> = tensors
            .iter()
            .map(|(name, view)| (name.to_string(), view))
            .collect();
        assert!(all.insert(NAME.to_string(), wrong).is_some());
        let file = folder.path().join("model.safetensors");
        std::fs::write(&file, safetensors::serialize(all, None).unwrap()).unwrap();
        let model = folder.path().display().to_string();
        let file = file.display().to_string();
        finish(&mut command(&["chat", "--model", &model, "hi"]))
            .fails_clearly(&[&file, NAME, needle]);
    }
}
