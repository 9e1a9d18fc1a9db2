//! What is written is read back; what cannot be written leaves nothing behind.

use std::path::PathBuf;

use mgm_kernels::quant::{self, QuantType};

use super::*;
use crate::weights::gguf::{GgufFile, GgufValue};

/// An empty directory that goes away with the value.
struct Folder(PathBuf);

impl Folder {
    fn new(name: &str) -> Self {
        let path =
            std::env::temp_dir().join(format!("mgm-gguf-writer-{}-{name}", std::process::id()));
        fs::create_dir_all(&path).unwrap();
        Self(path)
    }

    fn file(&self) -> PathBuf {
        self.0.join("model.gguf")
    }

    fn entries(&self) -> Vec<String> {
        fs::read_dir(&self.0)
            .unwrap()
            .map(|entry| entry.unwrap().file_name().into_string().unwrap())
            .collect()
    }
}

impl Drop for Folder {
    fn drop(&mut self) {
        let _ = fs::remove_dir_all(&self.0);
    }
}

fn tensor(name: &str, shape: &[usize], element_type: ElementType) -> GgufTensor {
    GgufTensor {
        name: name.into(),
        shape: shape.into(),
        element_type,
    }
}

fn values(count: usize) -> Vec<f32> {
    (0..count)
        .map(|i| ((i * 37 % 101) as f32 - 50.0) / 25.0)
        .collect()
}

#[test]
fn a_written_file_is_read_back() {
    let folder = Folder::new("round-trip");
    let metadata: Vec<(String, GgufValueOut)> = vec![
        ("general.architecture".into(), "other".into()),
        ("general.alignment".into(), 64u32.into()),
        ("a.u8".into(), GgufValueOut::U8(200)),
        ("a.i8".into(), GgufValueOut::I8(-3)),
        ("a.u16".into(), GgufValueOut::U16(60_000)),
        ("a.i16".into(), GgufValueOut::I16(-30_000)),
        ("a.i32".into(), (-7i32).into()),
        ("a.u64".into(), (1u64 << 40).into()),
        ("a.i64".into(), GgufValueOut::I64(-1 << 40)),
        ("a.f32".into(), 0.5f32.into()),
        ("a.f64".into(), GgufValueOut::F64(0.1)),
        ("a.bool".into(), true.into()),
        ("a.text".into(), "zwölf ▁".into()),
        ("a.bytes".into(), GgufValueOut::U8s(vec![1, 2])),
        ("a.u32s".into(), vec![1u32, 2, 3].into()),
        ("a.i32s".into(), vec![-1i32].into()),
        ("a.f32s".into(), vec![1.5f32, -2.0].into()),
        ("a.bools".into(), vec![true, false].into()),
        (
            "a.texts".into(),
            vec!["a".to_string(), String::new()].into(),
        ),
        ("a.none".into(), Vec::<String>::new().into()),
    ];
    let rows = values(3 * 256);
    let blocks = quant::quantize(QuantType::Q6K, &rows);
    let tensors = [
        tensor("odd", &[3], ElementType::F32),
        tensor("blocks", &[3, 256], ElementType::Quantised(QuantType::Q6K)),
        tensor("half", &[2, 1, 3], ElementType::F16),
    ];
    let mut writer = GgufWriter::create(&folder.file(), &metadata, &tensors).unwrap();
    assert_eq!(writer.current(), Some("odd"));
    writer
        .next_tensor(bytemuck::cast_slice(&[1.0f32, 2.0, 3.0]))
        .unwrap();
    for part in blocks.chunks(100) {
        assert_eq!(writer.current(), Some("blocks"));
        writer.write(part).unwrap();
    }
    let halves: Vec<u8> = values(6)
        .iter()
        .flat_map(|&value| half::f16::from_f32(value).to_le_bytes())
        .collect();
    writer.next_tensor(&halves).unwrap();
    assert_eq!(writer.current(), None);
    let total = writer.total_bytes();
    writer.finish().unwrap();
    assert_eq!(folder.entries(), ["model.gguf"]);
    assert_eq!(fs::metadata(folder.file()).unwrap().len(), total);

    let file = GgufFile::open(&folder.file()).unwrap();
    let texts = |key| file.metadata().strings(key).unwrap();
    assert_eq!(file.metadata().iter().count(), metadata.len());
    assert_eq!(file.metadata().unsigned("a.u8"), Some(200));
    assert_eq!(file.metadata().get("a.i8"), Some(&GgufValue::Signed(-3)));
    assert_eq!(file.metadata().unsigned("a.u16"), Some(60_000));
    assert_eq!(
        file.metadata().get("a.i16"),
        Some(&GgufValue::Signed(-30_000))
    );
    assert_eq!(file.metadata().get("a.i32"), Some(&GgufValue::Signed(-7)));
    assert_eq!(file.metadata().unsigned("a.u64"), Some(1 << 40));
    assert_eq!(
        file.metadata().get("a.i64"),
        Some(&GgufValue::Signed(-1 << 40))
    );
    assert_eq!(file.metadata().float("a.f32"), Some(0.5));
    assert_eq!(file.metadata().float("a.f64"), Some(0.1));
    assert_eq!(file.metadata().bool("a.bool"), Some(true));
    assert_eq!(file.metadata().string("a.text"), Some("zwölf ▁"));
    assert_eq!(file.metadata().integers("a.bytes"), Some(vec![1, 2]));
    assert_eq!(file.metadata().integers("a.u32s"), Some(vec![1, 2, 3]));
    assert_eq!(file.metadata().integers("a.i32s"), Some(vec![-1]));
    assert_eq!(file.metadata().floats("a.f32s"), Some(vec![1.5, -2.0]));
    let bools = file.metadata().get("a.bools").unwrap().as_array().unwrap();
    assert_eq!(bools, [GgufValue::Bool(true), GgufValue::Bool(false)]);
    assert_eq!(texts("a.texts"), ["a", ""]);
    assert!(texts("a.none").is_empty());

    let read = |name: &str| file.get(name).unwrap().unwrap();
    assert_eq!(read("odd").values().unwrap().unwrap(), [1.0, 2.0, 3.0]);
    assert_eq!(read("blocks").shape, [3, 256]);
    assert_eq!(read("blocks").blocks().unwrap().1.as_slice(), blocks);
    assert_eq!(read("half").shape, [2, 1, 3]);
    assert_eq!(read("half").values().unwrap().unwrap().len(), 6);
}

#[test]
fn an_unfinished_file_leaves_nothing() {
    let folder = Folder::new("unfinished");
    fs::write(folder.file(), "the old file").unwrap();
    let tensors = [tensor("a", &[4], ElementType::F32)];
    let create = || GgufWriter::create(&folder.file(), &[], &tensors).unwrap();
    let message = |result: Result<()>| result.unwrap_err().to_string();

    drop(create());
    let mut writer = create();
    writer.write(&[0; 8]).unwrap();
    let error = message(writer.finish());
    assert!(
        error.ends_with("model.gguf: tensor a: expected 16 bytes, given 8"),
        "{error}"
    );

    let mut writer = create();
    writer.write(&[0; 8]).unwrap();
    let error = message(writer.write(&[0; 9]));
    assert!(
        error.ends_with("tensor a: expected 16 bytes, given 17 or more"),
        "{error}"
    );
    let error = message(writer.next_tensor(&[0; 16]));
    assert!(
        error.ends_with("tensor a: expected 16 bytes, given 16 after 8"),
        "{error}"
    );
    drop(writer);

    let mut writer = create();
    let error = message(writer.next_tensor(&[0; 15]));
    assert!(
        error.ends_with("tensor a: expected 16 bytes, given 15 after 0"),
        "{error}"
    );
    writer.next_tensor(&[0; 16]).unwrap();
    let error = message(writer.write(&[0]));
    assert!(
        error.ends_with("1 bytes follow the last of 1 tensors"),
        "{error}"
    );
    drop(writer);

    assert_eq!(folder.entries(), ["model.gguf"]);
    assert_eq!(fs::read(folder.file()).unwrap(), b"the old file");
}

#[test]
fn what_readers_do_not_take_is_refused() {
    let folder = Folder::new("refused");
    let error = |metadata: &[(String, GgufValueOut)], tensors: &[GgufTensor]| {
        let error = GgufWriter::create(&folder.file(), metadata, tensors).err();
        let message = error.expect("an error").to_string();
        assert!(
            message.contains("model.gguf: ") && !message.contains('\n'),
            "{message}"
        );
        message
    };
    let f32 = || ElementType::F32;
    let q4_k = ElementType::Quantised(QuantType::Q4K);
    let long = "x".repeat(64);
    for (tensors, expected) in [
        (
            vec![tensor("a", &[1], f32()), tensor("a", &[1], f32())],
            "tensor a is given twice",
        ),
        (
            vec![tensor(&long, &[1], f32())],
            "has 64 bytes, expected 1 to 63",
        ),
        (vec![tensor("a", &[], f32())], "expected 1 to 4 axes"),
        (
            vec![tensor("a", &[2, 0], f32())],
            "expected 1 to 4 axes of at least 1",
        ),
        (
            vec![tensor("a", &[1, 1, 1, 1, 1], f32())],
            "expected 1 to 4 axes",
        ),
        (
            vec![tensor("a", &[1], ElementType::Bool)],
            "type BOOL has no place",
        ),
        // 512 values are two blocks, but a row is not a whole one.
        (
            vec![tensor("a", &[4, 128], q4_k)],
            "is not whole rows of Q4_K",
        ),
        (
            vec![tensor("a", &[usize::MAX, 8], f32())],
            "is not whole rows of F32",
        ),
    ] {
        let message = error(&[], &tensors);
        assert!(message.contains(expected), "{message}");
    }
    let twice = [
        ("k".to_string(), 1u32.into()),
        ("k".to_string(), 2u32.into()),
    ];
    assert!(error(&twice, &[]).ends_with("metadata key k is given twice"));
    let alignment = [("general.alignment".to_string(), 48u32.into())];
    assert!(error(&alignment, &[]).contains("expected a power of two"));
    assert!(folder.entries().is_empty());

    let nowhere = folder.0.join("missing").join("model.gguf");
    let message = GgufWriter::create(&nowhere, &[], &[])
        .err()
        .unwrap()
        .to_string();
    assert!(message.contains("creating failed"), "{message}");
}
