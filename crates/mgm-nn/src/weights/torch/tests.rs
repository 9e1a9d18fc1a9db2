//! The torch reader against files that torch wrote (tools/fixtures/torch_files.py), and against damaged and hostile ones.

use std::path::PathBuf;

use mgm_kernels::mapped::Mapped;

use super::*;
use crate::weights::{ElementType, WeightSource};

fn fixture(name: &str) -> PathBuf {
    PathBuf::from(env!("CARGO_MANIFEST_DIR"))
        .join("tests/fixtures/torch")
        .join(name)
}

fn open(bytes: Vec<u8>) -> Result<TorchFile> {
    TorchFile::from_mapped("test.bin".into(), Mapped::from_vec(bytes))
}

fn error(bytes: Vec<u8>) -> String {
    let message = open(bytes).err().expect("an error").to_string();
    assert!(
        message.starts_with("test.bin: ") && !message.contains('\n'),
        "{message}"
    );
    assert!(message.len() < 600, "{message}");
    message
}

/// Everything in `torch` equals what the safetensors file of the same tensors holds.
fn compare(torch: &str, expected: &str) {
    let torch = WeightSource::open(&fixture(torch)).unwrap();
    let expected = WeightSource::open(&fixture(expected)).unwrap();
    assert_eq!(torch.names(), expected.names());
    for name in expected.names() {
        let (found, wanted) = (torch.info(&name).unwrap(), expected.info(&name).unwrap());
        assert_eq!(
            (found.shape, found.element_type, found.bytes),
            (
                wanted.shape.clone(),
                wanted.element_type.clone(),
                wanted.bytes
            ),
            "{name}"
        );
        assert_eq!(
            torch.stored_bytes(&name).unwrap().as_slice(),
            expected.stored_bytes(&name).unwrap().as_slice(),
            "{name}"
        );
        if wanted.element_type.is_float() {
            let rows = wanted.shape.first().copied().unwrap_or(1);
            for range in [0..rows, rows / 2..rows, rows / 3..rows / 2, 0..0] {
                assert_eq!(
                    torch.rows(&name, range.clone()).unwrap(),
                    expected.rows(&name, range).unwrap(),
                    "{name}"
                );
                torch.release(&name);
            }
        }
    }
}

#[test]
fn every_type_and_view_equals_torch() {
    for file in [
        "mixed.bin",
        "protocol3.bin",
        "protocol4.bin",
        "protocol5.bin",
        "legacy.bin",
    ] {
        compare(file, "mixed.safetensors");
    }
}

#[test]
fn state_dicts_are_found_inside_training_checkpoints() {
    compare("wrapped.bin", "wrapped.safetensors");
    compare("wrapped_twice.bin", "wrapped.safetensors");
}

#[test]
fn row_major_tensors_stay_in_the_file() {
    let file = TorchFile::open(&fixture("mixed.bin")).unwrap();
    let mapped = (*file.file).as_ref().as_ptr_range();
    for (name, in_place) in [
        ("f32", true),
        ("rows", true),
        ("unsqueezed", true),
        ("tied.b", true),
        ("transposed", false),
    ] {
        let bytes = file.get(name).unwrap().unwrap().bytes().unwrap().unwrap();
        assert_eq!(
            mapped.contains(&bytes.as_slice().as_ptr()),
            in_place,
            "{name}"
        );
    }
}

#[test]
fn foreign_types_are_listed_and_refused_when_used() {
    let source = WeightSource::open(&fixture("foreign.bin")).unwrap();
    assert_eq!(source.names(), ["complex", "f8", "known", "u16"]);
    assert_eq!(source.rows("known", 1..2).unwrap(), [-13.0 / 8.0]);
    for (name, element_type) in [
        ("f8", "FLOAT8_E4M3FN"),
        ("u16", "UINT16"),
        ("complex", "COMPLEXFLOAT"),
    ] {
        let info = source.info(name).unwrap();
        assert_eq!(
            info.element_type,
            ElementType::Other(element_type.into()),
            "{name}"
        );
        let message = source.tensor_any(name).unwrap_err().to_string();
        assert!(
            message.contains(&format!(
                "tensor {name} has type {element_type}, expected F32"
            )),
            "{message}"
        );
    }
}

#[test]
fn what_a_checkpoint_does_not_need_is_refused_by_name() {
    for (file, expected) in [
        // On the machine that wrote it, `os.system` is `posix.system`.
        (
            "refused.bin",
            "refused.bin: data.pkl: pickle, byte 178: refused: it names \"posix.system\"",
        ),
        (
            "module.bin",
            "refused: it names \"torch.nn.modules.linear.Linear\"",
        ),
        ("script.bin", "TorchScript"),
        (
            "list.bin",
            "expected a dictionary of tensors, found something else",
        ),
        (
            "no_tensors.bin",
            "expected a dictionary of tensors, found none among its 1 entries",
        ),
    ] {
        let message = WeightSource::open(&fixture(file))
            .err()
            .expect(file)
            .to_string();
        assert!(
            message.contains(expected) && !message.contains('\n'),
            "{message}"
        );
    }
}

/// Opens, and if that works reads everything.
fn exercise(bytes: &[u8]) {
    match open(bytes.to_vec()) {
        Ok(file) => {
            let names: Vec<String> = file.names().cloned().collect();
            for name in names {
                let rows = file
                    .entry(&name)
                    .unwrap()
                    .shape
                    .first()
                    .copied()
                    .unwrap_or(1);
                let tensor = file.get(&name).unwrap().unwrap();
                assert!(tensor.bytes().unwrap().unwrap().as_slice().len() <= bytes.len());
                tensor.values().unwrap();
                file.rows(&name, rows / 2..rows).unwrap();
                file.release(&name);
            }
        }
        Err(error) => assert!(!error.to_string().contains('\n'), "{error}"),
    }
}

#[test]
fn damaged_files_are_errors() {
    for file in ["mixed.bin", "legacy.bin", "wrapped.bin", "foreign.bin"] {
        let sound = std::fs::read(fixture(file)).unwrap();
        for len in 0..sound.len() {
            error(sound[..len].to_vec());
        }
        let mut damaged = sound.clone();
        for at in 0..sound.len() {
            for mask in [0x01, 0x80, 0xff] {
                damaged[at] ^= mask;
                exercise(&damaged);
                damaged[at] = sound[at];
            }
        }
    }
}

/// A zip archive of stored entries.
fn archive(entries: &[(&str, &[u8])]) -> Vec<u8> {
    let (mut out, mut directory) = (Vec::new(), Vec::new());
    for (name, content) in entries {
        let mut sizes = Vec::new();
        // checksum (unused), stored and real size, length of name, no extra field
        sizes.extend([0; 4]);
        sizes.extend((content.len() as u32).to_le_bytes());
        sizes.extend((content.len() as u32).to_le_bytes());
        sizes.extend((name.len() as u16).to_le_bytes());
        sizes.extend([0; 2]);
        directory.extend(b"PK\x01\x02");
        directory.extend([0; 12]);
        directory.extend(&sizes);
        directory.extend([0; 10]);
        directory.extend((out.len() as u32).to_le_bytes());
        directory.extend(name.as_bytes());
        out.extend(b"PK\x03\x04");
        out.extend([0; 10]);
        out.extend(&sizes);
        out.extend(name.as_bytes());
        out.extend(*content);
    }
    let start = out.len() as u32;
    out.extend(&directory);
    out.extend(b"PK\x05\x06\0\0\0\0");
    out.extend((entries.len() as u16).to_le_bytes());
    out.extend((entries.len() as u16).to_le_bytes());
    out.extend((directory.len() as u32).to_le_bytes());
    out.extend(start.to_le_bytes());
    out.extend([0; 2]);
    out
}

fn with_pickle(pickle: &[u8], storage: &[u8]) -> Vec<u8> {
    archive(&[("a/data.pkl", pickle), ("a/data/0", storage)])
}

/// The pickle of `{"w": tensor}` over `numel` floats of the storage 0.
fn one_tensor(numel: i32, offset: i32, shape: &[i32], strides: &[i32]) -> Vec<u8> {
    let tuple = |numbers: &[i32]| {
        let mut out = b"(".to_vec();
        for number in numbers {
            out.push(b'J');
            out.extend(number.to_le_bytes());
        }
        out.push(b't');
        out
    };
    let mut out = b"\x80\x02}U\x01wctorch._utils\n_rebuild_tensor_v2\n((U\x07storagectorch\nFloatStorage\nU\x010U\x03cpuJ".to_vec();
    out.extend(numel.to_le_bytes());
    out.extend(b"tQJ");
    out.extend(offset.to_le_bytes());
    out.extend(tuple(shape));
    out.extend(tuple(strides));
    out.extend(b"\x89NtRs.");
    out
}

#[test]
fn views_are_checked_against_their_storage() {
    let storage: Vec<u8> = (0..6u8).flat_map(|i| f32::from(i).to_le_bytes()).collect();
    let view = |numel, offset, shape: &[i32], strides: &[i32]| {
        with_pickle(&one_tensor(numel, offset, shape, strides), &storage)
    };
    let read = |bytes| {
        open(bytes)
            .unwrap()
            .get("w")
            .unwrap()
            .unwrap()
            .values()
            .unwrap()
            .unwrap()
    };
    assert_eq!(read(view(6, 1, &[2, 2], &[1, 3])), [1.0, 4.0, 2.0, 5.0]);
    assert_eq!(read(view(6, 5, &[1, 1], &[100, 100])), [5.0]);
    assert!(read(view(6, 6, &[0, 3], &[3, 1])).is_empty());
    for (bytes, expected) in [
        (
            view(6, 2, &[2, 2], &[1, 3]),
            "tensor w [2, 2] with strides [1, 3] from element 2 reaches beyond its storage of 6 elements",
        ),
        (
            view(6, 0, &[1_000_000_000, 1_000_000_000], &[0, 0]),
            "reaches beyond",
        ),
        (view(6, 0, &[i32::MAX; 8], &[i32::MAX; 8]), "reaches beyond"),
        (view(6, 0, &[2], &[i32::MAX]), "reaches beyond"),
        (view(6, 7, &[0], &[1]), "reaches beyond"),
        (view(6, 0, &[7], &[0]), "reaches beyond"),
        (
            view(7, 0, &[7], &[1]),
            "tensor w needs a storage of 7 F32 elements, found 24 bytes",
        ),
        (view(i32::MAX, 0, &[7], &[1]), "found 24 bytes"),
        (view(6, -1, &[2], &[1]), "offset that is not a size"),
        (view(6, 0, &[2], &[-1]), "not sizes"),
        (view(6, 0, &[2, 2], &[1]), "2 axes and 1 strides"),
        (view(6, 0, &[1; 9], &[1; 9]), "at most 8"),
        (
            archive(&[("a/data.pkl", &one_tensor(6, 0, &[6], &[1]))]),
            "tensor w needs the storage data/0, which the archive does not hold",
        ),
    ] {
        let message = error(bytes);
        assert!(message.contains(expected), "{message}");
    }
}

#[test]
fn hostile_pickles_cost_no_more_than_their_bytes() {
    let deep = |open: u8, close: &[u8]| {
        let mut pickle = vec![open; 200_000];
        for _ in 1..200_000 {
            pickle.extend(close);
        }
        pickle.push(b'.');
        pickle
    };
    // Each dictionary holds the one before twice; written out it would have 2^60 entries.
    let mut doubling = b"}q\x00".to_vec();
    for i in 1..60u8 {
        doubling.extend([
            b'}',
            b'q',
            i,
            b'(',
            b'U',
            1,
            b'a',
            b'h',
            i - 1,
            b'U',
            1,
            b'b',
            b'h',
            i - 1,
            b'u',
        ]);
    }
    doubling.push(b'.');
    // A wrapper that holds itself.
    let cyclic = b"}q\x00U\x0astate_dicth\x00s.".to_vec();
    let mut long = b"\x8b\xff\xff\xff\x7f".to_vec();
    long.extend([0; 64]);
    let mut text = b"\x8d".to_vec();
    text.extend(u64::MAX.to_le_bytes());
    let mut marks = vec![b'('; 100_000];
    marks.push(b'.');
    for (pickle, expected) in [
        (deep(b'(', b"t"), "dictionary of tensors"),
        (deep(b']', b"a"), "dictionary"),
        (doubling, "found none among its 2 entries"),
        (cyclic, "found none among its 1 entries"),
        (long, "truncated: 2147483647 bytes are needed, 64 left"),
        (text, "truncated"),
        (marks, "1 values are needed"),
        (
            b"j\xff\xff\xff\xff.".to_vec(),
            "nothing was remembered as number 4294967295",
        ),
        (b"Nr\xff\xff\xff\xff.".to_vec(), "dictionary of tensors"),
        (
            b"cos\nsystem\nU\x02lsR.".to_vec(),
            "refused: it names \"os.system\"",
        ),
        (
            b"U\x02osU\x06system\x93.".to_vec(),
            "refused: it names \"os.system\"",
        ),
        (
            b"ccollections\nOrderedDict\n].".to_vec(),
            "dictionary of tensors",
        ),
        (
            b"ccollections\nOrderedDict\n(]tR.".to_vec(),
            "a call of OrderedDict",
        ),
        (b"ios\nsystem\n.".to_vec(), "opcode 'i' (0x69)"),
        (b"\x80\x09.".to_vec(), "protocol 5 or lower, found 9"),
        (b"}(N u.".to_vec(), "opcode ' '"),
        (b"}(Nu.".to_vec(), "a key without a value"),
        (b"ctorch\n".to_vec(), "a name without an end"),
        (b"".to_vec(), "truncated"),
    ] {
        let message = error(with_pickle(&pickle, &[]));
        assert!(message.contains(expected), "{message}");
    }
}

#[test]
fn hostile_archives_are_refused() {
    let sound = with_pickle(b"}.", b"");
    assert_eq!(open(sound.clone()).unwrap().names().count(), 0);
    let end = sound.len() - 22;
    let changed = |at: usize, bytes: &[u8]| {
        let mut changed = sound.clone();
        changed[at..at + bytes.len()].copy_from_slice(bytes);
        changed
    };
    let directory = sound
        .windows(4)
        .position(|window| window == b"PK\x01\x02")
        .unwrap();
    let mut bomb = sound[..end].to_vec();
    let wide = bomb.len() as u64;
    bomb.extend(b"PK\x06\x06");
    bomb.extend([0; 28]);
    bomb.extend((1u64 << 60).to_le_bytes());
    bomb.extend((end as u64 - directory as u64).to_le_bytes());
    bomb.extend((directory as u64).to_le_bytes());
    bomb.extend(b"PK\x06\x07\0\0\0\0");
    bomb.extend(wide.to_le_bytes());
    bomb.extend([0; 4]);
    bomb.extend(&sound[end..]);
    for (bytes, expected) in [
        (
            bomb,
            "its directory claims 1152921504606846976 entries, it can hold at most 2",
        ),
        (
            changed(end + 10, &[0xff, 0xff]),
            "its directory claims 65535 entries",
        ),
        (changed(end + 16, &[0xff; 4]), "outside the file"),
        (
            changed(end + 20, &[1, 0]),
            "without the directory at its end",
        ),
        (
            changed(directory + 10, &[8, 0]),
            "entry data.pkl is compressed or encrypted",
        ),
        (
            changed(directory + 8, &[1, 0]),
            "entry data.pkl is compressed or encrypted",
        ),
        (
            changed(
                directory + 20,
                &[0xff, 0xff, 0xff, 0x7f, 0xff, 0xff, 0xff, 0x7f],
            ),
            "not inside the file",
        ),
        (
            changed(directory + 42, &[9, 0, 0, 0]),
            "not inside the file",
        ),
        (
            archive(&[("a/data.pkl", b"}."), ("a/data.pkl", b"}.")]),
            "two entries named a/data.pkl",
        ),
        (
            archive(&[("a/data.pkl", b"}."), ("b/data.pkl", b"}.")]),
            "several",
        ),
        (
            archive(&[("a/other", b"}.")]),
            "a zip archive without data.pkl",
        ),
        (
            archive(&[("a/data.pkl", b"}."), ("a/byteorder", b"big")]),
            "little-endian storages, found \"big\"",
        ),
        (b"PK".to_vec(), "truncated"),
        (
            b"\x80\x04nonsense".to_vec(),
            "expected a torch checkpoint (a zip archive), found a file that begins with",
        ),
        (Vec::new(), "expected a torch checkpoint"),
    ] {
        let message = error(bytes);
        assert!(message.contains(expected), "{message}");
    }
}
