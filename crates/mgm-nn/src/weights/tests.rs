//! Weight sources: formats, errors, storage, trainable parameters, adapters, saving.

use std::collections::{BTreeMap, HashMap};
use std::fs;
use std::path::{Path, PathBuf};

use candle_core::{DType, Device, Tensor};
use mgm_kernels::quant::{self, QuantType};

use super::*;
use crate::Error;
use crate::ops::linear_cross_entropy;

/// A folder that goes away with the test.
struct Folder(PathBuf);

impl Folder {
    fn new(name: &str) -> Self {
        let path = std::env::temp_dir().join(format!("mgm-nn-{name}-{}", std::process::id()));
        fs::create_dir_all(&path).unwrap();
        Self(path)
    }

    fn file(&self, name: &str) -> PathBuf {
        self.0.join(name)
    }
}

impl Drop for Folder {
    fn drop(&mut self) {
        let _ = fs::remove_dir_all(&self.0);
    }
}

fn tensor(shape: &[usize], seed: u64) -> Tensor {
    let values: Vec<f32> = (0..shape.iter().product::<usize>() as u64)
        .map(|i| ((i * 7919 + seed * 104_729) % 1009) as f32 / 504.5 - 1.0)
        .collect();
    Tensor::from_vec(values, shape, &Device::Cpu).unwrap()
}

fn values(tensor: &Tensor) -> Vec<f32> {
    tensor.flatten_all().unwrap().to_vec1().unwrap()
}

fn map<const N: usize>(entries: [(&str, Tensor); N]) -> BTreeMap<String, Tensor> {
    entries
        .into_iter()
        .map(|(name, tensor)| (name.to_string(), tensor))
        .collect()
}

fn layer() -> HashMap<String, Tensor> {
    map([
        ("fc.weight", tensor(&[6, 8], 1)),
        ("fc.bias", tensor(&[6], 2)),
    ])
    .into_iter()
    .collect()
}

fn message<T>(result: crate::Result<T>) -> String {
    let message = result.err().expect("an error").to_string();
    assert!(!message.contains('\n'), "{message}");
    message
}

fn save(path: &Path, tensors: &BTreeMap<String, Tensor>) {
    save_safetensors(path, tensors, None).unwrap();
}

#[test]
fn safetensors_round_trip_in_every_type() {
    let folder = Folder::new("round-trip");
    let path = folder.file("a.safetensors");
    let tensors = map([
        ("x", tensor(&[3, 5], 1)),
        ("half", tensor(&[7], 2).to_dtype(DType::F16).unwrap()),
        ("brain", tensor(&[7], 2).to_dtype(DType::BF16).unwrap()),
        ("wide", tensor(&[2], 3).to_dtype(DType::F64).unwrap()),
        ("ids", Tensor::new(&[1i64, 2], &Device::Cpu).unwrap()),
        ("view", tensor(&[4, 6], 4).t().unwrap()),
        (
            "empty",
            Tensor::zeros((0, 3), DType::F32, &Device::Cpu).unwrap(),
        ),
        ("scalar", Tensor::new(2.5f32, &Device::Cpu).unwrap()),
    ]);
    let metadata = BTreeMap::from([("lora_alpha".to_string(), "16".to_string())]);
    save_safetensors_with_metadata(&path, &tensors, None, &metadata).unwrap();
    let source = WeightSource::from_safetensors(std::slice::from_ref(&path)).unwrap();
    for (name, expected) in &tensors {
        assert_eq!(source.shape(name).unwrap(), expected.dims(), "{name}");
        if name != "ids" {
            let expected = values(&expected.to_dtype(DType::F32).unwrap());
            assert_eq!(
                values(&source.tensor_any(name).unwrap()),
                expected,
                "{name}"
            );
        }
    }
    assert!(message(source.tensor_any("ids")).contains("tensor ids has type I64, expected"));
    assert_eq!(source.safetensors_metadata()["lora_alpha"], "16");
    assert_eq!(source.safetensors_metadata()["format"], "pt");
    // The reader of others agrees.
    let other = candle_core::safetensors::load(&path, &Device::Cpu).unwrap();
    assert_eq!(values(&other["view"]), values(&tensors["view"]));

    save_safetensors(&path, &tensors, Some(DType::BF16)).unwrap();
    let other = candle_core::safetensors::load(&path, &Device::Cpu).unwrap();
    assert_eq!(other["x"].dtype(), DType::BF16);
    assert_eq!(other["ids"].dtype(), DType::I64);
    // Nothing is left beside the file, and a failed write leaves the old one.
    assert_eq!(fs::read_dir(&folder.0).unwrap().count(), 1);
    assert!(
        message(save_safetensors(
            &folder.file("no/such/folder.safetensors"),
            &tensors,
            None
        ))
        .contains("writing")
    );
}

#[test]
fn damaged_safetensors_name_file_and_tensor() {
    let folder = Folder::new("damage");
    let path = folder.file("a.safetensors");
    save(
        &path,
        &map([
            ("first", tensor(&[4, 4], 1)),
            ("second", tensor(&[10, 4], 2)),
        ]),
    );
    let sound = fs::read(&path).unwrap();
    let open = |bytes: &[u8]| {
        // Another name each time: the old file may still be mapped.
        fs::remove_file(&path).unwrap();
        fs::write(&path, bytes).unwrap();
        let text = message(WeightSource::from_safetensors(std::slice::from_ref(&path)));
        assert!(text.contains("a.safetensors: "), "{text}");
        text
    };
    let text = open(&sound[..sound.len() - 4]);
    assert!(
        text.contains(
            "truncated: tensor second [10, 4] ends at byte 224 of the data, found only 220"
        ),
        "{text}"
    );
    assert!(open(&sound[..20]).contains("truncated"));
    assert!(open(&[]).contains("at least 8 bytes, found 0"));
    assert!(open(b"not a weight file at all").contains("not a safetensors file"));
    assert!(
        open(&[sound.as_slice(), &[0; 4]].concat())
            .contains("expected 224 bytes of data after the header, found 228")
    );
    let mut reshaped = sound.clone();
    let at = reshaped
        .windows(5)
        .position(|window| window == b"[4,4]")
        .unwrap();
    reshaped[at + 3] = b'5';
    assert!(open(&reshaped).contains("do not match its shape and type"));
    for len in 0..sound.len() {
        open(&sound[..len]);
    }
    assert!(
        message(WeightSource::from_safetensors(&[
            folder.file("none.safetensors")
        ]))
        .contains("opening failed")
    );
    assert!(WeightSource::from_safetensors(std::slice::from_ref(&folder.0)).is_err());
    assert!(
        open(b"version https://git-lfs.github.com/spec/v1\noid sha256:0\n")
            .contains("a Git LFS pointer")
    );
}

#[test]
fn wrong_shapes_and_missing_names_are_named() {
    let folder = Folder::new("shapes");
    let path = folder.file("a.safetensors");
    save(&path, &map([("block.fc.weight", tensor(&[6, 8], 1))]));
    let source = WeightSource::from_safetensors(&[path]).unwrap().pp("block");
    let text = message(source.linear("fc", 9, 6, Bias::No));
    assert!(
        text.ends_with("a.safetensors: tensor block.fc.weight has shape [6, 8], expected [6, 9]"),
        "{text}"
    );
    assert!(matches!(
        source.tensor("fc.weight", [8, 6]),
        Err(Error::Shape { .. })
    ));
    let text = message(source.linear("fc", 8, 6, Bias::Yes));
    assert!(
        text.contains("tensor block.fc.bias not found in ") && text.contains("a.safetensors"),
        "{text}"
    );
    assert!(source.linear("fc", 8, 6, Bias::IfPresent).is_ok());
    assert!(source.contains("fc.weight") && !source.contains("fc.bias"));
    assert_eq!(source.names(), ["block.fc.weight"]);
    assert_eq!(source.pp(3).full_name("x"), "block.3.x");
}

#[test]
fn directories_and_indices() {
    let folder = Folder::new("directory");
    save(
        &folder.file("model-1.safetensors"),
        &map([("a", tensor(&[2], 1))]),
    );
    save(
        &folder.file("model-2.safetensors"),
        &map([("b", tensor(&[3], 2))]),
    );
    let index = folder.file("model.safetensors.index.json");
    fs::write(
        &index,
        r#"{"weight_map": {"a": "model-1.safetensors", "b": "model-2.safetensors"}}"#,
    )
    .unwrap();
    let source = WeightSource::open(&folder.0).unwrap();
    assert_eq!(source.names(), ["a", "b"]);
    assert_eq!(
        values(&source.tensor("b", [3]).unwrap()),
        values(&tensor(&[3], 2))
    );
    let error = |text: &str, expected: &str| {
        fs::write(&index, text).unwrap();
        let message = message(WeightSource::open(&folder.0));
        assert!(
            message.contains("model.safetensors.index.json: ") && message.contains(expected),
            "{message}"
        );
    };
    for name in [
        "../escape.safetensors",
        "/etc/passwd",
        "sub/a.safetensors",
        ".",
        "..",
    ] {
        let text = format!(r#"{{"weight_map": {{"a": "{name}"}}}}"#);
        error(&text, &format!("bad file name {name:?}"));
    }
    error(
        r#"{"weight_map": {"a": "model.safetensors.index.json"}}"#,
        "names model.safetensors.index.json, another index",
    );
    error(
        r#"{"weight_map": {"a": "missing.safetensors"}}"#,
        "names missing.safetensors, which is not in its folder",
    );
    error(
        r#"{"weight_map": {"a": "model-2.safetensors", "b": "model-2.safetensors", "c": "model-1.safetensors"}}"#,
        "tensor a should be in model-2.safetensors, which does not hold it (1 more tensors",
    );
    error(
        r#"{"weight_map": {"a": "model-1.safetensors", "a": "model-2.safetensors"}}"#,
        "tensor a is listed twice",
    );
    error(
        r#"{"weight_map": {}, "weight_map": {}}"#,
        "duplicate field `weight_map`",
    );
    error(&"[".repeat(100_000), "weight_map");
    error(r#"{"weight_map": {"a": 3}}"#, "weight_map");

    // Shards may hold more than the index says; where two have a tensor of one name, the index decides.
    let third = folder.file("model-3.safetensors");
    save(
        &third,
        &map([("a", tensor(&[7], 3)), ("extra", tensor(&[1], 4))]),
    );
    let shards =
        r#""a": "model-1.safetensors", "b": "model-2.safetensors", "extra": "model-3.safetensors""#;
    fs::write(
        &index,
        format!(r#"{{"metadata": {{"total_size": 1}}, "weight_map": {{{shards}}}}}"#),
    )
    .unwrap();
    let source = WeightSource::open(&folder.0).unwrap();
    assert_eq!(source.names(), ["a", "b", "extra"]);
    assert_eq!(source.shape("a"), Some(vec![2]));
    fs::remove_file(&third).unwrap();
    fs::write(&index, "[]").unwrap();
    assert!(message(WeightSource::open(&folder.0)).contains("weight_map"));
    fs::remove_file(&index).unwrap();
    assert_eq!(WeightSource::open(&folder.0).unwrap().names(), ["a", "b"]);
    let empty = Folder::new("empty");
    assert!(message(WeightSource::open(&empty.0)).contains("no weights"));
}

/// `fixtures/linear.bin` is `torch.save({"fc.weight": arange(6).reshape(2, 3) / 4, "fc.bias": [0.5, -0.5] as bf16})`.
#[test]
fn torch_files_are_read() {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/fixtures/linear.bin");
    let source = WeightSource::open(&path).unwrap();
    assert_eq!(source.names(), ["fc.bias", "fc.weight"]);
    assert_eq!(
        values(&source.tensor("fc.weight", [2, 3]).unwrap()),
        [0.0, 0.25, 0.5, 0.75, 1.0, 1.25]
    );
    assert_eq!(values(&source.tensor("fc.bias", [2]).unwrap()), [0.5, -0.5]);
    let folder = Folder::new("torch");
    let damaged = folder.file("damaged.bin");
    fs::write(&damaged, b"PK\x03\x04 not really").unwrap();
    assert!(
        message(WeightSource::open(&damaged)).contains("damaged.bin: truncated: a zip archive")
    );
}

#[test]
fn later_layers_win() {
    let below = WeightSource::from_tensors(
        map([("a", tensor(&[2], 1)), ("b", tensor(&[2], 2))])
            .into_iter()
            .collect(),
    );
    let above = WeightSource::from_tensors(map([("b", tensor(&[3], 3))]).into_iter().collect());
    let source = below.overlay(above);
    assert_eq!(source.names(), ["a", "b"]);
    assert_eq!(source.shape("b"), Some(vec![3]));
    assert_eq!(
        values(&source.tensor("a", [2]).unwrap()),
        values(&tensor(&[2], 1))
    );
}

#[test]
fn trainable_tensors_are_registered_variables_and_others_get_no_gradient() {
    let mut tensors = layer();
    tensors.insert("norm.weight".into(), tensor(&[8], 3));
    tensors.insert("head.weight".into(), tensor(&[5, 6], 4));
    let policy = |trainable: &[&str]| WeightPolicy {
        trainable: trainable.iter().map(|name| name.to_string()).collect(),
        ..WeightPolicy::default()
    };
    let run = |trainable: &[&str]| {
        let source = WeightSource::from_tensors(tensors.clone()).with_policy(policy(trainable));
        let norm = source.tensor("norm.weight", [8]).unwrap();
        let fc = source.linear("fc", 8, 6, Bias::Yes).unwrap();
        let head = source.linear("head", 6, 5, Bias::No).unwrap();
        let x = crate::ops::rms_norm(&tensor(&[4, 8], 5), &norm, 1e-5, 0.0).unwrap();
        let loss = linear_cross_entropy(&fc.forward(&x).unwrap(), &head, &[0, 1, -100, 4]).unwrap();
        let gradients = loss.backward().unwrap();
        for (name, variable) in source.parameters().all() {
            assert!(gradients.get(&variable).is_some(), "{name} has no gradient");
        }
        (
            source.parameters().names(),
            loss.to_scalar::<f32>().unwrap(),
        )
    };
    let (names, frozen_loss) = run(&[]);
    assert!(names.is_empty());
    for (trainable, expected) in [
        (vec!["norm"], vec!["norm.weight"]),
        (vec!["fc."], vec!["fc.bias", "fc.weight"]),
        (vec!["fc.bias"], vec!["fc.bias"]),
        (
            vec![""],
            vec!["fc.bias", "fc.weight", "head.weight", "norm.weight"],
        ),
    ] {
        let (names, loss) = run(&trainable);
        assert_eq!(names, expected);
        assert!((loss - frozen_loss).abs() < 1e-5);
    }
}

#[test]
fn adapters_start_as_nothing_and_are_loaded_when_present() {
    let lora = LoraConfig {
        rank: 2,
        alpha: 8.0,
        targets: vec!["fc".into()],
        seed: 5,
    };
    let policy = |trainable: &[&str]| WeightPolicy {
        trainable: trainable.iter().map(|name| name.to_string()).collect(),
        lora: Some(lora.clone()),
        ..WeightPolicy::default()
    };
    let x = tensor(&[3, 8], 6);
    let plain = WeightSource::from_tensors(layer())
        .linear("fc", 8, 6, Bias::Yes)
        .unwrap()
        .forward(&x)
        .unwrap();

    // A new adapter: A uniform in ±1/√8, B zero, both trainable; the base is not, though its name matches.
    let source = WeightSource::from_tensors(layer()).with_policy(policy(&["fc"]));
    let linear = source.linear("fc", 8, 6, Bias::Yes).unwrap();
    assert_eq!(
        source.parameters().names(),
        ["fc.bias", "fc.lora_A.weight", "fc.lora_B.weight"]
    );
    let a = source.parameters().get("fc.lora_A.weight").unwrap();
    assert_eq!(a.dims(), [2, 8]);
    let a_values = values(&a);
    assert!(
        a_values.iter().all(|value| value.abs() <= 0.3536)
            && a_values.iter().any(|value| value.abs() > 0.2)
    );
    assert_eq!(
        source.parameters().get("fc.lora_B.weight").unwrap().dims(),
        [6, 2]
    );
    assert_eq!(values(&linear.forward(&x).unwrap()), values(&plain));

    // The same seed draws the same values; no target, no adapter; not trainable and not there, no adapter.
    let again = WeightSource::from_tensors(layer()).with_policy(policy(&["lora_"]));
    again.linear("fc", 8, 6, Bias::Yes).unwrap();
    assert_eq!(
        values(&again.parameters().get("fc.lora_A.weight").unwrap()),
        a_values
    );
    let inference = WeightSource::from_tensors(layer()).with_policy(policy(&[]));
    inference.linear("fc", 8, 6, Bias::Yes).unwrap();
    assert!(inference.parameters().is_empty());

    // A stored one of another rank, trainable and frozen, adds alpha/rank·B·A.
    let mut tensors = layer();
    tensors.insert("fc.lora_A.weight".into(), tensor(&[4, 8], 7));
    tensors.insert("fc.lora_B.weight".into(), tensor(&[6, 4], 8));
    let low = x
        .matmul(&tensor(&[4, 8], 7).t().unwrap())
        .unwrap()
        .matmul(&tensor(&[6, 4], 8).t().unwrap())
        .unwrap();
    let expected = values(&(&plain + (low * 2.0).unwrap()).unwrap());
    for trainable in [vec!["lora_"], vec![]] {
        let source = WeightSource::from_tensors(tensors.clone()).with_policy(policy(&trainable));
        let linear = source.linear("fc", 8, 6, Bias::Yes).unwrap();
        assert_eq!(source.parameters().len(), 2 * trainable.len());
        let found = values(&linear.forward(&x).unwrap());
        let merged = crate::Linear::from_tensors(
            linear.weight().unwrap(),
            linear.bias(&Device::Cpu).unwrap(),
        )
        .unwrap();
        let through_weight = values(&merged.forward(&x).unwrap());
        let y = tensor(&[2, 6], 9);
        let transposed = values(&linear.forward_transposed(&y).unwrap());
        let expected_transposed = values(&y.matmul(&linear.weight().unwrap()).unwrap());
        for (found, expected) in [
            (&found, &expected),
            (&through_weight, &expected),
            (&transposed, &expected_transposed),
        ] {
            assert!(
                found
                    .iter()
                    .zip(expected)
                    .all(|(a, b)| (a - b).abs() < 1e-4),
                "{found:?} {expected:?}"
            );
        }
    }
    tensors.remove("fc.lora_B.weight");
    let half = WeightSource::from_tensors(tensors).with_policy(policy(&[]));
    assert!(message(half.linear("fc", 8, 6, Bias::Yes)).contains("fc.lora_B.weight not found"));
}

#[test]
fn embeddings_look_up_and_serve_as_head() {
    let table = tensor(&[10, 32], 1);
    let expected: Vec<f32> = [3usize, 0, 9]
        .iter()
        .flat_map(|&row| values(&table)[row * 32..][..32].to_vec())
        .collect();
    let tensors: HashMap<String, Tensor> =
        map([("embed.weight", table.clone())]).into_iter().collect();
    let hidden = tensor(&[4, 32], 2);
    let logits = values(&hidden.matmul(&table.t().unwrap()).unwrap());
    for trainable in [vec![], vec!["embed".to_string()]] {
        let policy = WeightPolicy {
            trainable: trainable.clone(),
            storage: WeightStorage::F32,
            ..WeightPolicy::default()
        };
        let source = WeightSource::from_tensors(tensors.clone()).with_policy(policy);
        let embedding = source.embedding("embed", 10, 32).unwrap();
        let rows = embedding.forward(&[3, 0, 9]).unwrap();
        assert_eq!(
            (rows.dims(), values(&rows)),
            ([3, 32].as_slice(), expected.clone())
        );
        assert_eq!(rows.track_op(), !trainable.is_empty());
        let head = embedding.as_linear().unwrap();
        let found = values(&head.forward(&hidden).unwrap());
        assert!(found.iter().zip(&logits).all(|(a, b)| (a - b).abs() < 1e-4));
        assert!(
            embedding
                .forward(&[10])
                .unwrap_err()
                .to_string()
                .contains("id 10 is not below the 10 rows")
        );
        if !trainable.is_empty() {
            // Tied: one variable gets the gradient of both uses.
            let logits = head.forward(&rows).unwrap();
            let gradients = logits.sum_all().unwrap().backward().unwrap();
            assert_eq!(source.parameters().len(), 1);
            assert!(
                gradients
                    .get(&source.parameters().get("embed.weight").unwrap())
                    .is_some()
            );
        }
    }
}

#[test]
fn quantised_files_are_used_in_place_or_unpacked() {
    let folder = Folder::new("gguf");
    let path = folder.file("q.gguf");
    let weight = tensor(&[16, 64], 1);
    let blocks = quant::quantize(QuantType::Q8_0, &values(&weight));
    let mut bytes = b"GGUF".to_vec();
    bytes.extend(3u32.to_le_bytes());
    bytes.extend(1u64.to_le_bytes());
    bytes.extend(0u64.to_le_bytes());
    bytes.extend(9u64.to_le_bytes());
    bytes.extend(b"fc.weight");
    bytes.extend(2u32.to_le_bytes());
    bytes.extend(64u64.to_le_bytes());
    bytes.extend(16u64.to_le_bytes());
    bytes.extend(8u32.to_le_bytes());
    bytes.extend(0u64.to_le_bytes());
    bytes.resize(bytes.len().next_multiple_of(32), 0);
    bytes.extend(&blocks);
    fs::write(&path, &bytes).unwrap();
    let mut dequantised = vec![0.0; 16 * 64];
    quant::dequantize(QuantType::Q8_0, &blocks, &mut dequantised);
    for (storage, kind) in [
        (WeightStorage::AsStored, "quantised"),
        (WeightStorage::Int8, "int8"),
        (WeightStorage::Bf16, "packed"),
        (WeightStorage::F32, "packed"),
    ] {
        let policy = WeightPolicy {
            storage,
            ..WeightPolicy::default()
        };
        let source = WeightSource::open(&path).unwrap().with_policy(policy);
        assert!(source.gguf_metadata().is_some());
        assert_eq!(
            values(&source.tensor("fc.weight", [16, 64]).unwrap()),
            dequantised
        );
        let linear = source.linear("fc", 64, 16, Bias::IfPresent).unwrap();
        assert!(format!("{linear:?}").contains(kind), "{linear:?}");
        let x = tensor(&[3, 64], 2);
        let found = values(&linear.forward(&x).unwrap());
        let dense = Tensor::from_vec(dequantised.clone(), (16, 64), &Device::Cpu).unwrap();
        let expected = values(&x.matmul(&dense.t().unwrap()).unwrap());
        let scale = expected
            .iter()
            .fold(0f32, |scale, value| scale.max(value.abs()));
        assert!(
            found
                .iter()
                .zip(&expected)
                .all(|(a, b)| (a - b).abs() < 1e-2 * scale),
            "{storage:?}"
        );
        let embedding = source.embedding("fc", 16, 64).unwrap();
        assert_eq!(
            values(&embedding.forward(&[5]).unwrap()),
            dequantised[5 * 64..6 * 64]
        );
        assert_eq!(embedding.as_linear().unwrap().out_features(), 16);
    }
}

#[test]
fn fused_activations_equal_separate_ones() {
    let source = WeightSource::from_tensors(layer());
    let linear = source.linear("fc", 8, 6, Bias::Yes).unwrap();
    let x = tensor(&[5, 8], 3);
    for kind in [
        crate::Activation::GeluErf,
        crate::Activation::Silu,
        crate::Activation::Relu6,
    ] {
        let fused = values(&linear.forward_with(&x, kind).unwrap());
        let separate = values(&crate::ops::activation(&linear.forward(&x).unwrap(), kind).unwrap());
        assert!(
            fused
                .iter()
                .zip(&separate)
                .all(|(a, b)| (a - b).abs() < 1e-5)
        );
    }
}

#[test]
fn convolution_weights_are_taken_flattened() {
    let tensors: HashMap<String, Tensor> = map([("patch.weight", tensor(&[6, 3, 2, 2], 1))])
        .into_iter()
        .collect();
    let linear = WeightSource::from_tensors(tensors)
        .linear("patch", 12, 6, Bias::No)
        .unwrap();
    let x = tensor(&[2, 12], 2);
    let expected = values(&x.matmul(&tensor(&[6, 12], 1).t().unwrap()).unwrap());
    let found = values(&linear.forward(&x).unwrap());
    assert!(
        found
            .iter()
            .zip(&expected)
            .all(|(a, b)| (a - b).abs() < 1e-5)
    );
}

#[test]
fn what_is_stored_is_known_and_read_in_parts() {
    let folder = Folder::new("parts");
    let path = folder.file("a.safetensors");
    // Larger than a page, so that releasing does something.
    let table = tensor(&[40, 3, 50], 1);
    let brain = table.to_dtype(DType::BF16).unwrap();
    let tensors = map([
        ("block.table", table.clone()),
        ("block.brain", brain.clone()),
        ("block.scalar", Tensor::new(2.5f32, &Device::Cpu).unwrap()),
        ("ids", Tensor::new(&[1i64, 2], &Device::Cpu).unwrap()),
    ]);
    save(&path, &tensors);
    let file = WeightSource::from_safetensors(std::slice::from_ref(&path)).unwrap();
    let label = path.display().to_string();
    assert_eq!(file.files(), [label.as_str()]);
    let memory = WeightSource::from_tensors(tensors.into_iter().collect());
    for (source, label) in [(&file, label.as_str()), (&memory, "memory")] {
        let block = source.pp("block");
        let info = block.info("brain").unwrap();
        assert_eq!(info.shape, [40, 3, 50]);
        assert_eq!(
            (info.element_type, info.bytes, info.file.as_str()),
            (ElementType::Bf16, 12_000, label)
        );
        let info = source.info("ids").unwrap();
        assert_eq!((info.element_type, info.bytes), (ElementType::I64, 16));
        assert_eq!(source.info("brain"), None);
        for range in [0..40, 7..9, 39..40, 5..5] {
            let expected = &values(&table)[range.start * 150..range.end * 150];
            assert_eq!(block.rows("table", range.clone()).unwrap(), expected);
            let expected =
                &values(&brain.to_dtype(DType::F32).unwrap())[range.start * 150..range.end * 150];
            assert_eq!(block.rows("brain", range).unwrap(), expected);
            block.release("table");
        }
        assert_eq!(block.rows("scalar", 0..1).unwrap(), [2.5]);
        assert!(message(block.rows("table", 30..41)).contains("has 40 rows, asked for 30..41"));
        assert!(message(block.rows("none", 0..1)).contains("block.none not found in"));
        assert!(message(source.rows("ids", 0..1)).contains("type I64, expected"));
        let stored = block.stored_bytes("table").unwrap();
        let expected: Vec<u8> = values(&table)
            .iter()
            .flat_map(|value| value.to_le_bytes())
            .collect();
        assert_eq!(stored.as_slice(), expected);
        assert_eq!(source.stored_bytes("ids").unwrap().as_slice()[8], 2);
        source.release("nothing of this name");
    }
}

#[test]
fn renamed_tensors_keep_everything_but_their_names() {
    let folder = Folder::new("renamed");
    let path = folder.file("a.safetensors");
    let metadata = BTreeMap::from([("key".to_string(), "value".to_string())]);
    let tensors = map([
        ("visual.trunk.a", tensor(&[4, 2], 1)),
        ("visual.trunk.b", tensor(&[3], 2)),
        ("logit_scale", tensor(&[1], 3)),
    ]);
    save_safetensors_with_metadata(&path, &tensors, None, &metadata).unwrap();
    let below =
        WeightSource::from_tensors(map([("tower.b", tensor(&[5], 4))]).into_iter().collect());
    let source = below.overlay(WeightSource::open(&path).unwrap().renamed(|name| {
        let rest = name.strip_prefix("visual.trunk.")?;
        Some(format!("tower.{rest}"))
    }));
    assert_eq!(source.names(), ["tower.a", "tower.b"]);
    let tower = source.pp("tower");
    assert_eq!(tower.shape("b"), Some(vec![3]));
    assert_eq!(
        tower.rows("a", 1..2).unwrap(),
        values(&tensor(&[4, 2], 1))[2..4]
    );
    tower.release("a");
    assert_eq!(
        values(&tower.tensor("b", [3]).unwrap()),
        values(&tensor(&[3], 2))
    );
    assert_eq!(source.safetensors_metadata()["key"], "value");
    // Errors speak of the file.
    assert!(message(tower.tensor("a", [2, 4])).contains("a.safetensors: tensor tower.a has shape"));
    let both = WeightSource::open(&path)
        .unwrap()
        .renamed(|_| Some("x".into()));
    assert_eq!(both.shape("x"), Some(vec![1]));
}

#[test]
fn matrices_may_stay_in_their_file() {
    let folder = Folder::new("mapped");
    let path = folder.file("a.safetensors");
    let weight = tensor(&[70, 96], 1);
    for dtype in [DType::F32, DType::F16, DType::BF16, DType::F64] {
        let _ = fs::remove_file(&path);
        let weight = weight.to_dtype(dtype).unwrap();
        let tensors = map([("fc.weight", weight.clone()), ("fc.bias", tensor(&[70], 2))]);
        save(&path, &tensors);
        let open = |storage| {
            let policy = WeightPolicy {
                storage,
                ..WeightPolicy::default()
            };
            WeightSource::open(&path).unwrap().with_policy(policy)
        };
        let mapped = open(WeightStorage::Mapped);
        let linear = mapped.linear("fc", 96, 70, Bias::Yes).unwrap();
        assert!(format!("{linear:?}").contains("mapped"), "{linear:?}");
        let packed = open(WeightStorage::AsStored)
            .linear("fc", 96, 70, Bias::Yes)
            .unwrap();
        assert!(format!("{packed:?}").contains("packed"), "{packed:?}");
        assert_eq!(
            values(&linear.weight().unwrap()),
            values(&weight.to_dtype(DType::F32).unwrap())
        );
        for rows in [1, 9, 40] {
            let x = tensor(&[rows, 96], 3);
            assert_eq!(
                values(&linear.forward(&x).unwrap()),
                values(&packed.forward(&x).unwrap())
            );
            let y = tensor(&[rows, 70], 4);
            assert_eq!(
                values(&linear.forward_transposed(&y).unwrap()),
                values(&packed.forward_transposed(&y).unwrap())
            );
        }
    }
    let memory = WeightSource::from_tensors(layer()).with_policy(WeightPolicy {
        storage: WeightStorage::Mapped,
        ..WeightPolicy::default()
    });
    let linear = memory.linear("fc", 8, 6, Bias::Yes).unwrap();
    assert!(format!("{linear:?}").contains("packed"));
}

/// Bytes of mapped files that are in this process's memory.
#[cfg(target_os = "linux")]
fn resident_file_bytes(path: &Path) -> usize {
    let maps = fs::read_to_string("/proc/self/smaps").unwrap();
    let mut lines = maps.lines();
    let mut total = 0;
    while let Some(line) = lines.next() {
        if line.ends_with(path.to_str().unwrap()) {
            let rss = lines.find(|line| line.starts_with("Rss:")).unwrap();
            total += rss
                .split_whitespace()
                .nth(1)
                .unwrap()
                .parse::<usize>()
                .unwrap()
                * 1024;
        }
    }
    total
}

#[test]
#[cfg(target_os = "linux")]
fn packed_matrices_leave_no_pages_of_the_file_behind() {
    let folder = Folder::new("resident");
    let path = folder.file("a.safetensors");
    let big = tensor(&[512, 1024], 1);
    let brain = big.to_dtype(DType::BF16).unwrap();
    save(
        &path,
        &map([("a.weight", big.clone()), ("b.weight", brain), ("c", big)]),
    );
    let source = WeightSource::open(&path).unwrap();
    let bytes = source.stored_bytes("c").unwrap();
    std::hint::black_box(bytes.as_slice().iter().fold(0u8, |sum, byte| sum ^ byte));
    assert!(resident_file_bytes(&path) >= 2 << 20);
    source.release("c");
    let _a = source.linear("a", 1024, 512, Bias::No).unwrap();
    let _b = source.linear("b", 1024, 512, Bias::No).unwrap();
    source.tensor("c", [512, 1024]).unwrap();
    let left = resident_file_bytes(&path);
    assert!(
        left < 256 << 10,
        "{left} bytes of the file are still in memory"
    );
}

#[test]
fn storage_decides_what_a_packed_matrix_takes() {
    let weight = tensor(&[64, 96], 1);
    let x = tensor(&[5, 96], 2);
    for (dtype, storage, bytes_each) in [
        (DType::F32, WeightStorage::AsStored, 4),
        (DType::F16, WeightStorage::AsStored, 2),
        (DType::BF16, WeightStorage::AsStored, 2),
        (DType::F32, WeightStorage::F16, 2),
        (DType::BF16, WeightStorage::F32, 4),
        (DType::F16, WeightStorage::Bf16, 2),
    ] {
        let weight = weight.to_dtype(dtype).unwrap();
        let tensors = map([("fc.weight", weight.clone())]).into_iter().collect();
        let source = WeightSource::from_tensors(tensors).with_policy(WeightPolicy {
            storage,
            ..WeightPolicy::default()
        });
        let linear = source.linear("fc", 96, 64, Bias::No).unwrap();
        assert_eq!(
            linear.bytes(),
            64 * 96 * bytes_each,
            "{dtype:?} {storage:?}"
        );
        let stored = weight.to_dtype(DType::F32).unwrap();
        let expected = values(&x.matmul(&stored.t().unwrap()).unwrap());
        let found = values(&linear.forward(&x).unwrap());
        let close = |(a, b): (&f32, &f32)| (a - b).abs() < 0.15;
        assert!(
            found.iter().zip(&expected).all(close),
            "{dtype:?} {storage:?}"
        );
    }
}

#[test]
fn blocks_made_while_loading_are_those_of_the_quantiser() {
    let weight = tensor(&[16, 64], 3);
    let layer = |storage: WeightStorage, width: usize| {
        let tensors = map([("fc.weight", tensor(&[16, width], 3))])
            .into_iter()
            .collect();
        WeightSource::from_tensors(tensors)
            .with_policy(WeightPolicy {
                storage,
                ..WeightPolicy::default()
            })
            .linear("fc", width, 16, Bias::No)
            .unwrap()
    };
    let blocks = quant::quantize(QuantType::Q8_0, &values(&weight));
    let mut expected = vec![0.0; 16 * 64];
    quant::dequantize(QuantType::Q8_0, &blocks, &mut expected);
    let quantised = layer(WeightStorage::Q8_0, 64);
    assert_eq!(quantised.bytes(), blocks.len());
    assert_eq!(values(&quantised.weight().unwrap()), expected);
    // Rows that are not whole blocks are bf16.
    let odd = layer(WeightStorage::Q8_0, 33);
    assert_eq!(
        values(&odd.weight().unwrap()),
        values(&layer(WeightStorage::Bf16, 33).weight().unwrap())
    );
}

#[test]
fn eight_bits_are_for_floats_and_blocks_of_eight() {
    for (element_type, kind) in [
        (ElementType::F32, "int8"),
        (ElementType::Bf16, "int8"),
        (ElementType::Quantised(QuantType::Q8_0), "int8"),
        (ElementType::Quantised(QuantType::Q4_0), "quantised"),
        (ElementType::Quantised(QuantType::Q6K), "quantised"),
    ] {
        let mut tensors = RandomTensors::new(1);
        let values_of = RandomValues::Uniform(0.1);
        tensors
            .add("fc.weight", [48, 512], element_type.clone(), values_of)
            .unwrap();
        let source = WeightSource::from_random(tensors).with_policy(WeightPolicy {
            storage: WeightStorage::Int8,
            ..WeightPolicy::default()
        });
        let linear = source.linear("fc", 512, 48, Bias::No).unwrap();
        assert!(format!("{linear:?}").contains(kind), "{linear:?}");
        let dense = source.tensor("fc.weight", [48, 512]).unwrap();
        // Few rows and many.
        for rows in [3, 100] {
            let x = tensor(&[rows, 512], 2);
            let found = values(&linear.forward(&x).unwrap());
            let expected = values(&x.matmul(&dense.t().unwrap()).unwrap());
            let square = |v: &mut dyn Iterator<Item = f32>| v.map(|v| v * v).sum::<f32>();
            let error = square(&mut found.iter().zip(&expected).map(|(a, b)| a - b));
            let far = (error / square(&mut expected.iter().copied())).sqrt();
            assert!(far < 0.02, "{element_type} {rows} rows: {far}");
        }
        // Its transpose, for gradients, has the values that the products have.
        let grad = tensor(&[2, 48], 3);
        let found = values(&linear.forward_transposed(&grad).unwrap());
        let held = linear.weight().unwrap();
        let expected = values(&grad.matmul(&held).unwrap());
        let close = |(a, b): (&f32, &f32)| (a - b).abs() < 0.02;
        assert!(found.iter().zip(&expected).all(close), "{element_type}");
    }
}

#[test]
fn derived_tensors_are_made_when_they_are_asked_for() {
    let folder = Folder::new("derived");
    let joined = tensor(&[6, 4], 1);
    let half = tensor(&[2, 3], 2).to_dtype(DType::F16).unwrap();
    let file = folder.file("a.safetensors");
    let entries: HashMap<String, Tensor> =
        map([("joined", joined.clone()), ("half", half.clone())])
            .into_iter()
            .collect();
    candle_core::safetensors::save(&entries, &file).unwrap();
    let source = || WeightSource::from_safetensors(std::slice::from_ref(&file)).unwrap();
    let entry = |name: &str, from: &str, how: Derivation| (name.to_string(), from.to_string(), how);
    let double: ValueChange = std::sync::Arc::new(|values| {
        values.iter_mut().for_each(|v| *v *= 2.0);
        Ok(())
    });
    let derived = source()
        .with_derived([
            entry("middle", "joined", Derivation::Rows(2..4)),
            entry("turned", "half", Derivation::Transposed),
            entry("half", "half", Derivation::Changed(double)),
        ])
        .unwrap();
    assert_eq!(
        values(&derived.tensor("middle", [2, 4]).unwrap()),
        values(&joined.narrow(0, 2, 2).unwrap().contiguous().unwrap())
    );
    let twice = (half.to_dtype(DType::F32).unwrap() * 2.0).unwrap();
    assert_eq!(
        values(&derived.tensor("half", [2, 3]).unwrap()),
        values(&twice)
    );
    assert_eq!(derived.info("half").unwrap().element_type, ElementType::F16);
    // The transpose is of what the file holds, not of the changed values that stand for it.
    assert_eq!(
        values(&derived.tensor("turned", [3, 2]).unwrap()),
        values(
            &half
                .to_dtype(DType::F32)
                .unwrap()
                .t()
                .unwrap()
                .contiguous()
                .unwrap()
        )
    );
    assert_eq!(derived.names(), ["half", "joined", "middle", "turned"]);
    let refused = |name: &str, how: Derivation| {
        source()
            .with_derived([entry("new", name, how)])
            .map(|_| ())
            .unwrap_err()
            .to_string()
    };
    assert!(refused("missing", Derivation::Transposed).contains("missing not found"));
    assert!(refused("joined", Derivation::Rows(5..7)).contains("expected 7 rows or more"));
}
