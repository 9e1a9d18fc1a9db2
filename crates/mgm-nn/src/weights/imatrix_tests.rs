//! Both kinds of files, sound and damaged.

use super::*;
use crate::weights::{ElementType, GgufTensor, GgufValueOut, GgufWriter};

fn text(out: &mut Vec<u8>, text: &str) {
    out.extend((text.len() as i32).to_le_bytes());
    out.extend(text.as_bytes());
}

/// A file of the older kind: name, calls, sums.
fn legacy(entries: &[(&str, i32, &[f32])], dataset: Option<&str>) -> Vec<u8> {
    let mut out = (entries.len() as i32).to_le_bytes().to_vec();
    for (name, calls, sums) in entries {
        text(&mut out, name);
        out.extend(calls.to_le_bytes());
        out.extend((sums.len() as i32).to_le_bytes());
        out.extend(sums.iter().flat_map(|sum| sum.to_le_bytes()));
    }
    if let Some(dataset) = dataset {
        out.extend(7i32.to_le_bytes());
        text(&mut out, dataset);
    }
    out
}

/// A file of the newer kind: name, experts, sums, counts.
fn gguf(kind: &str, entries: &[(&str, &[f32], &[f32])]) -> Vec<u8> {
    let path = std::env::temp_dir().join(format!(
        "mgm-imatrix-{}-{:?}.gguf",
        std::process::id(),
        std::thread::current().id()
    ));
    let mut tensors = Vec::new();
    for (name, sums, counts) in entries {
        let tensor = |suffix: &str, shape: Vec<usize>| GgufTensor {
            name: format!("{name}{suffix}"),
            shape,
            element_type: ElementType::F32,
        };
        let experts = counts.len();
        tensors.push(tensor(".in_sum2", vec![experts, sums.len() / experts]));
        tensors.push(tensor(".counts", vec![experts, 1]));
    }
    let metadata = [("general.type".to_string(), GgufValueOut::from(kind))];
    let mut writer = GgufWriter::create(&path, &metadata, &tensors).unwrap();
    for (_, sums, counts) in entries {
        writer.next_tensor(bytemuck::cast_slice(sums)).unwrap();
        writer.next_tensor(bytemuck::cast_slice(counts)).unwrap();
    }
    writer.finish().unwrap();
    let bytes = std::fs::read(&path).unwrap();
    std::fs::remove_file(path).unwrap();
    bytes
}

fn error(bytes: Vec<u8>) -> String {
    let error = ImportanceMatrix::from_bytes("test.imatrix", bytes).unwrap_err();
    let message = error.to_string();
    assert!(
        message.contains("test.imatrix") && !message.contains('\n'),
        "{message}"
    );
    message
}

#[test]
fn older_files_hold_sums_over_calls() {
    for dataset in [None, Some("wiki.txt")] {
        let bytes = legacy(
            &[
                ("blk.0.attn_q.weight", 4, &[2.0, 0.0, 8.0]),
                ("output.weight", 0, &[3.0]),
            ],
            dataset,
        );
        let matrix = ImportanceMatrix::from_bytes("test.imatrix", bytes).unwrap();
        assert_eq!(
            matrix.get("blk.0.attn_q.weight"),
            Some(&[0.5, 0.0, 2.0][..])
        );
        assert_eq!(matrix.get("output.weight"), Some(&[3.0][..]));
        assert_eq!(matrix.get("blk.1.attn_q.weight"), None);
        assert_eq!(matrix.names(), ["blk.0.attn_q.weight", "output.weight"]);
    }
}

#[test]
fn newer_files_hold_sums_and_counts_of_each_expert() {
    let bytes = gguf(
        "imatrix",
        &[
            (
                "blk.0.ffn_up_exps.weight",
                &[2.0, 4.0, 9.0, 9.0, 3.0, 0.0],
                &[2.0, 0.0, 1.0],
            ),
            ("blk.0.attn_q.weight", &[8.0, 0.0], &[4.0]),
        ],
    );
    let matrix = ImportanceMatrix::from_bytes("test.imatrix", bytes).unwrap();
    let experts = matrix.get("blk.0.ffn_up_exps.weight");
    assert_eq!(experts, Some(&[1.0, 2.0, 1.0, 1.0, 3.0, 0.0][..]));
    assert_eq!(matrix.get("blk.0.attn_q.weight"), Some(&[2.0, 0.0][..]));
}

#[test]
fn unusable_files_are_refused() {
    let sound = legacy(&[("a", 1, &[1.0, 2.0])], Some("text"));
    for len in 0..sound.len() {
        // Cut after the entries it is a file without the last part.
        if len == legacy(&[("a", 1, &[1.0, 2.0])], None).len() {
            continue;
        }
        error(sound[..len].to_vec());
    }
    let mut longer = sound;
    longer.push(0);
    assert!(error(longer).contains("follow the entries"));
    let cases: [(&[f32], &str); 3] = [
        (&[1.0, f32::NAN], "a: importance 1 is NaN"),
        (&[f32::INFINITY], "a: importance 0 is inf"),
        (&[0.0, 0.0, -1.0], "a: importance 2 is -1"),
    ];
    for (sums, expected) in cases {
        assert!(error(legacy(&[("a", 1, sums)], None)).contains(expected));
    }
    let twice = legacy(&[("a", 1, &[1.0]), ("a", 1, &[1.0])], None);
    assert!(error(twice).contains("a is there twice"));
    let mut huge = 1i32.to_le_bytes().to_vec();
    huge.extend(i32::MAX.to_le_bytes());
    huge.extend([0; 64]);
    assert!(error(huge).contains("found a count of 2147483647, expected 1 to 64"));

    let model = error(gguf("model", &[("a", &[1.0], &[1.0])]));
    assert!(
        model.contains("expected general.type \"imatrix\", found \"model\""),
        "{model}"
    );
    let uneven = error(gguf(
        "imatrix",
        &[("a", &[1.0; 4], &[1.0]), ("b", &[1.0, -1.0], &[1.0])],
    ));
    assert!(uneven.contains("b: importance 1 is -1"), "{uneven}");
    assert!(error(gguf("imatrix", &[])).contains("without any entry"));
}
