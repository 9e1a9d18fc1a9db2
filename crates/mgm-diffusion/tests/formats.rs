//! File layouts: single-file checkpoints, adapters, and what is missing or does not fit.

// A test may end by a panic.
#![allow(clippy::unwrap_used)]

mod common;

use std::collections::{BTreeMap, HashMap};
use std::path::Path;

use candle_core::{Device, Tensor};
use common::*;
use mgm_diffusion::{
    Condition, Control, FindOptions, LoraFile, ModelFiles, PaintRequest, Painter, PainterStorage,
    Part, TextEncoder, UNet,
};
use mgm_nn::{WeightStorage, save_safetensors};

fn load(path: &str) -> HashMap<String, Tensor> {
    candle_core::safetensors::load(model().join(path), &Device::Cpu).unwrap()
}

/// The tiny model as one file, by the map of names that was checked against diffusers' converter.
fn write_single_file(path: &Path) {
    let names: BTreeMap<String, BTreeMap<String, String>> =
        serde_json::from_slice(&std::fs::read(fixture("single_file_names.json")).unwrap()).unwrap();
    let mut tensors = BTreeMap::new();
    for (part, file) in [
        ("unet", "unet/diffusion_pytorch_model.fp16.safetensors"),
        ("vae", "vae/diffusion_pytorch_model.safetensors"),
    ] {
        let stored = load(file);
        assert_eq!(stored.len(), names[part].len());
        for (old, new) in &names[part] {
            let mut tensor = stored[new].clone();
            // The original code has its attention as 1×1 convolutions.
            if old.contains(".attn_1.") && tensor.rank() == 2 {
                tensor = tensor.unsqueeze(2).unwrap().unsqueeze(3).unwrap();
            }
            tensors.insert(old.clone(), tensor);
        }
    }
    for (name, tensor) in load("text_encoder/model.safetensors") {
        tensors.insert(
            format!("conditioner.embedders.0.transformer.{name}"),
            tensor,
        );
    }
    let second = load("text_encoder_2/model.fp16.safetensors");
    let part = |name: String| second[&name].clone();
    let mut insert = |name: &str, tensor: Tensor| {
        tensors.insert(format!("conditioner.embedders.1.model.{name}"), tensor)
    };
    insert("logit_scale", Tensor::new(&[4.6f32], &Device::Cpu).unwrap());
    insert(
        "token_embedding.weight",
        part("text_model.embeddings.token_embedding.weight".into()),
    );
    insert(
        "positional_embedding",
        part("text_model.embeddings.position_embedding.weight".into()),
    );
    insert(
        "text_projection",
        part("text_projection.weight".into())
            .t()
            .unwrap()
            .contiguous()
            .unwrap(),
    );
    for kind in ["weight", "bias"] {
        insert(
            &format!("ln_final.{kind}"),
            part(format!("text_model.final_layer_norm.{kind}")),
        );
        for layer in 0..3 {
            let own = |name: &str| part(format!("text_model.encoder.layers.{layer}.{name}.{kind}"));
            let joined = ["q", "k", "v"].map(|p| own(&format!("self_attn.{p}_proj")));
            let block = format!("transformer.resblocks.{layer}");
            insert(
                &format!("{block}.attn.in_proj_{kind}"),
                Tensor::cat(&joined, 0).unwrap(),
            );
            for (old, new) in [
                ("ln_1", "layer_norm1"),
                ("ln_2", "layer_norm2"),
                ("attn.out_proj", "self_attn.out_proj"),
                ("mlp.c_fc", "mlp.fc1"),
                ("mlp.c_proj", "mlp.fc2"),
            ] {
                insert(&format!("{block}.{old}.{kind}"), own(new));
            }
        }
    }
    save_safetensors(path, &tensors, None).unwrap();
}

fn request(seed: u64) -> PaintRequest {
    PaintRequest {
        size: (32, 32),
        steps: 2,
        guidance: 5.0,
        scheduler: None,
        seeds: vec![seed],
        noise: None,
        original_size: None,
        crop: (0, 0),
        target_size: None,
        preview_every: 0,
    }
}

fn picture(painter: &mut Painter) -> mgm_image::RgbImage {
    let prompt = painter.encode("a red apple", Some("blurry")).unwrap();
    let latents = painter
        .denoise(&prompt, &request(3), &mut |_| Control::Continue)
        .unwrap();
    painter
        .decode(&latents, None, &mut || true)
        .unwrap()
        .remove(0)
}

#[test]
fn a_single_file_is_the_same_model() {
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("tiny.safetensors");
    write_single_file(&file);
    let options = FindOptions {
        tokenizer: Some(model().join("tokenizer")),
        ..FindOptions::default()
    };
    // Without configurations it is taken for the real SDXL, whose tensors are larger.
    let storage = PainterStorage::all(WeightStorage::F32);
    let mut wrong = Painter::open(&file, &options, storage).unwrap();
    let error = wrong.encode("a", None).unwrap_err().to_string();
    assert!(error.contains("has shape [24], expected [768]"), "{error}");
    // Configurations beside it, and tokenisers too.
    for part in ["unet", "vae", "text_encoder", "text_encoder_2"] {
        let beside = folder.path().join("tiny").join(part);
        std::fs::create_dir_all(&beside).unwrap();
        std::fs::copy(
            model().join(part).join("config.json"),
            beside.join("config.json"),
        )
        .unwrap();
    }
    for name in ["tokenizer", "tokenizer_2"] {
        std::fs::create_dir_all(folder.path().join(name)).unwrap();
        for entry in std::fs::read_dir(model().join(name)).unwrap() {
            let entry = entry.unwrap();
            std::fs::copy(
                entry.path(),
                folder.path().join(name).join(entry.file_name()),
            )
            .unwrap();
        }
    }
    let mut single = Painter::open(&file, &FindOptions::default(), storage).unwrap();
    assert_eq!(
        picture(&mut single),
        picture(&mut painter(WeightStorage::F32))
    );
}

#[test]
fn adapters_in_every_spelling() {
    let expected = expected();
    let files = files();
    let sizes: Vec<Vec<f32>> = get(&expected, "unet.even.sizes").to_vec2().unwrap();
    let condition = Condition {
        words: get(&expected, "unet.even.words").flatten_to(1).unwrap(),
        pooled: get(&expected, "unet.even.pooled").clone(),
        sizes: sizes
            .iter()
            .map(|row| std::array::from_fn(|i| f64::from(row[i])))
            .collect(),
    };
    let ids: Vec<Vec<i32>> = get(&expected, "ids.1").to_vec2().unwrap();
    let window: Vec<u32> = ids[0].iter().map(|&id| id as u32).collect();
    for spelling in ["kohya", "original", "peft"] {
        let lora = LoraFile::open(&fixture(&format!("lora_{spelling}.safetensors"))).unwrap();
        assert_eq!(lora.len(), 5);
        // f32 weights: a file's half precision would round the sums.
        let weights = |part: Part| {
            let tensors = files.open(part).unwrap();
            let widened = tensors
                .names()
                .into_iter()
                .map(|name| (name.clone(), tensors.tensor_any(&name).unwrap()))
                .collect();
            let (weights, report) = lora
                .apply(
                    mgm_nn::WeightSource::from_tensors(widened),
                    part,
                    &files.unet,
                    1.0,
                )
                .unwrap();
            (stored(weights, WeightStorage::F32), report)
        };
        let (unet, report) = weights(Part::UNet);
        assert_eq!((report.applied, report.unknown), (4, 0), "{spelling}");
        let unet = UNet::load(&unet, &files.unet).unwrap();
        let out = unet
            .forward(
                get(&expected, "unet.even.latents"),
                &[701.0],
                &condition,
                5.0,
            )
            .unwrap();
        // Up to the half precision of the files' scaled matrices.
        let tolerance = if spelling == "peft" { 2e-3 } else { 2e-4 };
        assert_close(
            &format!("UNet, {spelling}"),
            &out,
            get(&expected, "lora.unet"),
            tolerance,
        );
        let (second, report) = weights(Part::SecondEncoder);
        assert_eq!((report.applied, report.unknown), (1, 0), "{spelling}");
        let encoder = TextEncoder::load(&second, &files.text_encoders[1], true).unwrap();
        let pooled = encoder
            .encode(std::slice::from_ref(&window))
            .unwrap()
            .pooled
            .unwrap();
        assert_close(
            &format!("pooled, {spelling}"),
            &pooled,
            get(&expected, "lora.pooled"),
            tolerance,
        );
        let (_, report) = weights(Part::FirstEncoder);
        assert_eq!(report.applied, 0);
    }
}

#[test]
fn adapters_change_pictures_and_foreign_files_are_refused() {
    let plain = picture(&mut painter(WeightStorage::F32));
    let mut with = painter(WeightStorage::F32);
    with.add_lora(
        LoraFile::open(&fixture("lora_kohya.safetensors")).unwrap(),
        1.0,
    );
    assert_eq!(with.lora_reports().unwrap()[0].applied, 5);
    assert_ne!(picture(&mut with), plain);
    let mut without = painter(WeightStorage::F32);
    without.add_lora(
        LoraFile::open(&fixture("lora_kohya.safetensors")).unwrap(),
        0.0,
    );
    assert_eq!(picture(&mut without), plain);

    let refused = |path: &Path| LoraFile::open(path).map(|_| ()).unwrap_err().to_string();
    let error = refused(&model().join("vae/diffusion_pytorch_model.safetensors"));
    assert!(error.contains("no LoRA adapters"), "{error}");
    assert!(refused(Path::new("nowhere.safetensors")).contains("no such file"));
    let folder = tempfile::tempdir().unwrap();
    let half = folder.path().join("half.safetensors");
    let tensor = Tensor::zeros((2, 16), candle_core::DType::F32, &Device::Cpu).unwrap();
    save_safetensors(
        &half,
        &BTreeMap::from([("lora_unet_conv_in.lora_down.weight".to_string(), tensor)]),
        None,
    )
    .unwrap();
    assert!(refused(&half).contains("half an adapter"));
    let name = "lora_unet_up_blocks_1_attentions_1_proj_in";
    let wide = folder.path().join("wide.safetensors");
    let pair = BTreeMap::from([
        (
            format!("{name}.lora_down.weight"),
            Tensor::zeros((2, 17), candle_core::DType::F32, &Device::Cpu).unwrap(),
        ),
        (
            format!("{name}.lora_up.weight"),
            Tensor::zeros((16, 2), candle_core::DType::F32, &Device::Cpu).unwrap(),
        ),
    ]);
    save_safetensors(&wide, &pair, None).unwrap();
    let mut painter = painter(WeightStorage::F32);
    painter.add_lora(LoraFile::open(&wide).unwrap(), 1.0);
    let error = painter.lora_reports().unwrap_err().to_string();
    assert!(error.contains("do not fit"), "{error}");
}

fn broken(change: impl FnOnce(&Path)) -> String {
    let folder = tempfile::tempdir().unwrap();
    copy(&model(), folder.path());
    change(folder.path());
    match ModelFiles::find(folder.path(), &FindOptions::default()) {
        Err(error) => error.to_string(),
        Ok(files) => {
            let unet = files
                .open(Part::UNet)
                .and_then(|weights| UNet::load(&stored(weights, WeightStorage::F32), &files.unet));
            unet.map(|_| ()).unwrap_err().to_string()
        }
    }
}

fn copy(from: &Path, to: &Path) {
    std::fs::create_dir_all(to).unwrap();
    for entry in std::fs::read_dir(from).unwrap() {
        let entry = entry.unwrap();
        let target = to.join(entry.file_name());
        match entry.path().is_dir() {
            true => copy(&entry.path(), &target),
            false => {
                std::fs::copy(entry.path(), target).unwrap();
            }
        }
    }
}

fn edit(path: &Path, entry: &str, value: serde_json::Value) {
    let mut config: serde_json::Map<String, serde_json::Value> =
        serde_json::from_slice(&std::fs::read(path).unwrap()).unwrap();
    config.insert(entry.into(), value);
    std::fs::write(path, serde_json::to_vec(&config).unwrap()).unwrap();
}

#[test]
fn what_is_missing_or_damaged_is_named() {
    let remove =
        |name: &'static str| move |folder: &Path| std::fs::remove_file(folder.join(name)).unwrap();
    let set = |file: &'static str, entry: &'static str, value: serde_json::Value| {
        move |folder: &Path| edit(&folder.join(file), entry, value)
    };
    for (error, says) in [
        (broken(remove("model_index.json")), "no model_index.json"),
        (
            broken(remove("unet/config.json")),
            "unet/config.json: not there",
        ),
        (
            broken(remove("unet/diffusion_pytorch_model.fp16.safetensors")),
            "no weights: expected diffusion_pytorch_model",
        ),
        (
            broken(remove("text_encoder/model.safetensors")),
            "no weights: expected model.safetensors",
        ),
        (
            broken(remove("tokenizer_2/merges.txt")),
            "merges.txt: not there",
        ),
        (
            broken(set(
                "model_index.json",
                "_class_name",
                "FluxPipeline".into(),
            )),
            "FluxPipeline, expected a Stable Diffusion XL model",
        ),
        (
            broken(set("unet/config.json", "act_fn", "gelu".into())),
            "act_fn \"gelu\" is not supported",
        ),
        (
            broken(set("unet/config.json", "norm_num_groups", 3.into())),
            "8 channels cannot be split into 3 groups",
        ),
        (
            broken(set("unet/config.json", "cross_attention_dim", 63.into())),
            "does not fit text encoders of 24 and 40",
        ),
        (
            broken(set(
                "unet/config.json",
                "block_out_channels",
                serde_json::json!([]),
            )),
            "block_out_channels",
        ),
        (
            broken(set(
                "unet/config.json",
                "layers_per_block",
                serde_json::json!([2, 2]),
            )),
            "layers_per_block",
        ),
        (
            broken(set("unet/config.json", "layers_per_block", 2.into())),
            "not found in",
        ),
        (
            broken(set("vae/config.json", "scaling_factor", 0.into())),
            "scaling_factor",
        ),
        (
            broken(set("text_encoder/config.json", "hidden_act", "relu".into())),
            "hidden_act",
        ),
        (
            broken(|folder| {
                std::fs::write(
                    folder.join("unet/diffusion_pytorch_model.fp16.safetensors"),
                    [7; 100],
                )
                .unwrap()
            }),
            "not a safetensors file",
        ),
    ] {
        assert!(error.contains(says), "{error:?} should say {says:?}");
        assert!(!error.contains('\n'), "{error:?} is one line");
    }
    let error = ModelFiles::find(Path::new("nowhere"), &FindOptions::default())
        .map(|_| ())
        .unwrap_err()
        .to_string();
    assert!(error.contains("no such file or folder"), "{error}");
}

/// Half and full precision beside each other: what is asked for is taken.
#[test]
fn variants_of_weight_files() {
    let folder = tempfile::tempdir().unwrap();
    copy(&model(), folder.path());
    let unet = folder.path().join("unet");
    let half = unet.join("diffusion_pytorch_model.fp16.safetensors");
    std::fs::write(unet.join("diffusion_pytorch_model.safetensors"), b"full").unwrap();
    let open = |full_precision: bool| {
        let options = FindOptions {
            full_precision,
            ..FindOptions::default()
        };
        let files = ModelFiles::find(folder.path(), &options).unwrap();
        files
            .open(Part::UNet)
            .map(|_| ())
            .map_err(|error| error.to_string())
    };
    assert!(open(false).is_ok());
    assert!(
        open(true)
            .unwrap_err()
            .contains("diffusion_pytorch_model.safetensors")
    );
    // Shards: the index names the file.
    std::fs::rename(&half, unet.join("shard.safetensors")).unwrap();
    let names = load("unet/diffusion_pytorch_model.fp16.safetensors");
    let map: BTreeMap<_, _> = names
        .keys()
        .map(|name| (name.clone(), "shard.safetensors"))
        .collect();
    let index = serde_json::json!({"metadata": {}, "weight_map": map});
    std::fs::write(
        unet.join("diffusion_pytorch_model.fp16.safetensors.index.json"),
        index.to_string(),
    )
    .unwrap();
    assert!(open(false).is_ok());
}
