use std::collections::HashMap;

use candle_core::{Device, Tensor};

use super::*;
use crate::weights::{Bias, WeightPolicy, WeightSource};

const NAMES: [&str; 2] = ["first", "second"];

/// Two matrices of `[48, 64]` and `[20, 256]` beside each other in one safetensors file.
fn model(folder: &Path) -> PathBuf {
    let file = folder.join("model.safetensors");
    let tensors: BTreeMap<String, Tensor> = NAMES
        .into_iter()
        .zip([(48, 64), (20, 256)])
        .map(|(name, shape)| {
            let values = Tensor::randn(0f32, 1.0, shape, &Device::Cpu).unwrap();
            (format!("{name}.weight"), values)
        })
        .collect();
    crate::save_safetensors(&file, &tensors, None).unwrap();
    file
}

fn source(file: &Path, storage: WeightStorage, kept: Option<&Arc<KeptMatrices>>) -> WeightSource {
    let source = WeightSource::open(file).unwrap().with_policy(WeightPolicy {
        storage,
        ..WeightPolicy::default()
    });
    match kept {
        Some(kept) => source.with_kept(Arc::clone(kept)),
        None => source,
    }
}

/// What both layers give for the same rows, to the bit.
fn results(source: &WeightSource) -> crate::Result<Vec<Vec<f32>>> {
    NAMES
        .into_iter()
        .zip([(64, 48), (256, 20)])
        .map(|(name, (width, count))| {
            let layer = source.linear(name, width, count, Bias::No)?;
            let x: Vec<f32> = (0..70 * width)
                .map(|i| (i % 17) as f32 / 8.0 - 1.0)
                .collect();
            let x = Tensor::from_vec(x, (70, width), &Device::Cpu)?;
            Ok(layer.forward(&x)?.flatten_all()?.to_vec1()?)
        })
        .collect()
}

fn open(path: &Path, file: &Path, storage: WeightStorage) -> Result<Arc<KeptMatrices>> {
    KeptMatrices::open(path, &[file.to_path_buf()], storage).map(Arc::new)
}

#[test]
fn matrices_come_back_as_they_were() {
    let folder = tempfile::tempdir().unwrap();
    let file = model(folder.path());
    for storage in [
        WeightStorage::F32,
        WeightStorage::Bf16,
        WeightStorage::F16,
        WeightStorage::Q8_0,
        WeightStorage::Int8,
    ] {
        let path = folder.path().join(format!("{storage:?}.kept"));
        let expected = results(&source(&file, storage, None)).unwrap();
        let kept = open(&path, &file, storage).unwrap();
        assert!(!kept.is_ready() && !path.exists());
        let made = results(&source(&file, storage, Some(&kept))).unwrap();
        assert!(made == expected, "{storage:?}");
        kept.finish().unwrap();
        kept.finish().unwrap();

        let kept = open(&path, &file, storage).unwrap();
        assert!(kept.is_ready());
        let in_order = prefers_interleaved() || storage != WeightStorage::Q8_0;
        if in_order {
            // Nothing but the file of kept matrices is read.
            let names = NAMES.map(|name| format!("{name}.weight"));
            let shapes = [(48, 64), (20, 256)];
            let zeros = names.into_iter().zip(shapes).map(|(name, shape)| {
                let zeros = Tensor::zeros(shape, candle_core::DType::F32, &Device::Cpu);
                (name, zeros.unwrap())
            });
            let zeros = WeightSource::from_tensors(HashMap::from_iter(zeros));
            let found = results(&zeros.with_kept(Arc::clone(&kept))).unwrap();
            assert!(found == expected, "{storage:?}");
        }
        let found = results(&source(&file, storage, Some(&kept))).unwrap();
        assert!(found == expected, "{storage:?}");
    }
    let left = std::fs::read_dir(folder.path()).unwrap().count();
    assert_eq!(left, 6, "the model and a file of each storage");
}

#[test]
fn another_model_or_storage_is_kept_anew() {
    let folder = tempfile::tempdir().unwrap();
    let file = model(folder.path());
    let path = folder.path().join("model.kept");
    let make = |storage| {
        let kept = open(&path, &file, storage).unwrap();
        assert!(!kept.is_ready());
        results(&source(&file, storage, Some(&kept))).unwrap();
        kept.finish().unwrap();
    };
    make(WeightStorage::Bf16);
    make(WeightStorage::Int8);
    assert!(open(&path, &file, WeightStorage::Int8).unwrap().is_ready());
    // Written again: another time, other values.
    std::thread::sleep(std::time::Duration::from_millis(20));
    model(folder.path());
    make(WeightStorage::Int8);
}

#[test]
fn what_was_begun_and_not_finished_is_gone() {
    let folder = tempfile::tempdir().unwrap();
    let file = model(folder.path());
    let path = folder.path().join("model.kept");
    let kept = open(&path, &file, WeightStorage::Bf16).unwrap();
    results(&source(&file, WeightStorage::Bf16, Some(&kept))).unwrap();
    drop(kept);
    // Of a process that is gone, and of one that is not.
    let of = |process: u32| folder.path().join(format!(".model.kept.{process}.partial"));
    std::fs::write(of(u32::MAX), "begun").unwrap();
    std::fs::write(of(1), "begun").unwrap();
    drop(open(&path, &file, WeightStorage::Bf16).unwrap());
    if Path::new("/proc/self").exists() {
        assert!(!of(u32::MAX).exists());
        std::fs::remove_file(of(1)).unwrap();
        assert_eq!(std::fs::read_dir(folder.path()).unwrap().count(), 1);
    }
}

#[test]
fn other_and_damaged_files_are_told() {
    let folder = tempfile::tempdir().unwrap();
    let file = model(folder.path());
    let path = folder.path().join("model.kept");
    let error = |storage| open(&path, &file, storage).unwrap_err().to_string();
    for other in ["", "a letter", "0123456789012345mgm-kept"] {
        std::fs::write(&path, other).unwrap();
        assert!(error(WeightStorage::Bf16).contains("remove it"), "{other}");
        assert_eq!(std::fs::read(&path).unwrap(), other.as_bytes());
    }
    std::fs::remove_file(&path).unwrap();
    let kept = open(&path, &file, WeightStorage::Bf16).unwrap();
    results(&source(&file, WeightStorage::Bf16, Some(&kept))).unwrap();
    kept.finish().unwrap();
    // An index that says something else than the file has.
    let written = std::fs::read(&path).unwrap();
    for (from, to) in [
        ("\"bytes\":8192", "\"bytes\":8191"),
        ("\"offset\":0", "\"offset\":8"),
        ("\"rows\":48", "\"rows\":47"),
    ] {
        let (from, to) = (from.as_bytes(), to.as_bytes());
        let mut bytes = written.clone();
        let at = bytes.windows(from.len()).position(|part| part == from);
        let at = at.unwrap_or_else(|| panic!("no {:?}", String::from_utf8_lossy(from)));
        bytes[at..at + to.len()].copy_from_slice(to);
        std::fs::write(&path, bytes).unwrap();
        let kept = open(&path, &file, WeightStorage::Bf16).unwrap();
        let error = results(&source(&file, WeightStorage::Bf16, Some(&kept))).unwrap_err();
        assert!(error.to_string().contains("matrix first.weight"), "{error}");
    }
}
