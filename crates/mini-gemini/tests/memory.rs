//! Models larger than memory: what does not fit stays in its files and computes the same; experts are loaded when they are needed.

// A test may end by a panic.
#![allow(clippy::unwrap_used)]

mod common;

use std::path::Path;

use candle_core::Tensor;
use common::*;
use mini_gemini::{LoadEvent, LoadOptions, MiniGemini, ModelSource, Precision};

/// Far more than any fixture takes.
const PLENTY: u64 = 1 << 40;

/// Loads with so many bytes of memory, and what was told meanwhile.
fn load_within(family: &str, memory: u64, precision: Precision) -> (MiniGemini, Vec<String>) {
    let options = LoadOptions {
        precision,
        available_memory: Some(memory),
        ..LoadOptions::default()
    };
    let mut notes = Vec::new();
    let source = ModelSource::Path(fixture(family));
    let model = MiniGemini::load_with_progress(&source, &options, &mut |event| {
        if let LoadEvent::Note(note) = event {
            notes.push(note.to_string());
        }
    });
    (model.unwrap(), notes)
}

/// Logits of a prompt with a picture, whole and one row after another.
fn outputs(model: &MiniGemini) -> (Tensor, Tensor) {
    let images = visual_tokens(model, pictures("base")[..1].to_vec(), 1);
    let prompt = model.splice(&[1, 5, -200, 9, 30, 17], &images).unwrap();
    let whole = logits(model, std::slice::from_ref(&prompt));
    let (_, steps) = greedy_cached(model, &[prompt], 6);
    (whole, steps[0].clone())
}

#[test]
fn what_does_not_fit_stays_in_its_files_and_computes_the_same() {
    for family in FAMILIES {
        let (packed, notes) = load_within(family, PLENTY, Precision::Auto);
        assert!(notes.is_empty(), "{family}: {notes:?}");
        let expected = outputs(&packed);
        // Nothing fits beside the working memory that is kept free.
        let (streamed, notes) = load_within(family, 1 << 20, Precision::Auto);
        let [warning] = notes.as_slice() else {
            panic!("{family}: {notes:?}");
        };
        let layers = packed.decoder().config().layers;
        for part in [
            format!("warning: {family} needs "),
            " and 1 MB are free".to_string(),
            format!("{layers} of its {layers} layers stay in their files"),
        ] {
            assert!(warning.contains(&part), "{warning}");
        }
        let found = outputs(&streamed);
        assert_close(family, &found.0, &expected.0, 1e-5);
        assert_close(family, &found.1, &expected.1, 1e-5);
    }
}

/// A type that is asked for is kept; the warning says what else there is.
#[test]
fn weights_to_be_converted_are_converted() {
    for precision in [Precision::F32, Precision::Bf16, Precision::F16] {
        let (model, notes) = load_within("llama", 1 << 20, precision);
        assert!(
            notes.len() == 1 && notes[0].contains("dtype auto"),
            "{notes:?}"
        );
        let (expected, _) = load_within("llama", PLENTY, precision);
        let (found, expected) = (outputs(&model), outputs(&expected));
        assert_eq!(floats(&found.0), floats(&expected.0));
    }
}

/// Loads a copy of a fixture that keeps its packed matrices, and what was told meanwhile.
fn load_keeping(folder: &Path, memory: u64, precision: Precision) -> (MiniGemini, Vec<String>) {
    let options = LoadOptions {
        precision,
        keep_packed: true,
        available_memory: Some(memory),
        ..LoadOptions::default()
    };
    let mut told = Vec::new();
    let source = ModelSource::Path(folder.to_path_buf());
    let model = MiniGemini::load_with_progress(&source, &options, &mut |event| match event {
        LoadEvent::Note(note) => told.push(note.to_string()),
        LoadEvent::Keeping => told.push("keeping".to_string()),
        LoadEvent::Layer { .. } | LoadEvent::Vision => {}
    });
    (model.unwrap(), told)
}

fn copied(family: &str) -> tempfile::TempDir {
    let folder = tempfile::tempdir().unwrap();
    for entry in std::fs::read_dir(fixture(family)).unwrap() {
        let entry = entry.unwrap();
        let to = folder.path().join(entry.file_name());
        std::fs::copy(entry.path(), to).unwrap();
    }
    folder
}

/// The second time nothing is packed, whatever memory there is, and the results are the same bits.
#[test]
fn packed_matrices_are_kept_beside_the_model() {
    for family in ["llama", "gemma"] {
        let folder = copied(family);
        for precision in [Precision::Auto, Precision::Bf16, Precision::Int8] {
            let (plain, _) = load_within(family, PLENTY, precision);
            let expected = outputs(&plain);
            for (memory, said) in [(PLENTY, &["keeping"][..]), (PLENTY, &[]), (1 << 20, &[])] {
                let (model, told) = load_keeping(folder.path(), memory, precision);
                assert_eq!(told, said, "{family} {precision:?}");
                let found = outputs(&model);
                assert_eq!(
                    floats(&found.0),
                    floats(&expected.0),
                    "{family} {precision:?}"
                );
                assert_eq!(
                    floats(&found.1),
                    floats(&expected.1),
                    "{family} {precision:?}"
                );
            }
        }
        let kept = std::fs::read_dir(folder.path()).unwrap().filter(|entry| {
            let path = entry.as_ref().unwrap().path();
            path.extension().is_some_and(|kind| kind == "kept")
        });
        assert_eq!(kept.count(), 3);
    }
}

/// A model whose weights cannot be kept answers all the same.
#[test]
fn weights_that_cannot_be_kept_are_told() {
    let folder = copied("llama");
    let (_, told) = load_keeping(folder.path(), 1 << 20, Precision::Auto);
    let last = told.last().unwrap();
    assert!(
        last.contains("are not kept: not all of them are packed"),
        "{told:?}"
    );
    let name = folder.path().file_name().unwrap().to_string_lossy();
    let file = folder.path().join(format!("{name}.stored.kept"));
    std::fs::write(&file, "a letter").unwrap();
    let (model, told) = load_keeping(folder.path(), PLENTY, Precision::Auto);
    let [note] = told.as_slice() else {
        panic!("{told:?}");
    };
    assert!(
        note.contains("are not kept") && note.contains("remove it"),
        "{note}"
    );
    assert_eq!(std::fs::read(&file).unwrap(), b"a letter");
    let (expected, _) = load_within("llama", PLENTY, Precision::Auto);
    assert_eq!(floats(&outputs(&model).0), floats(&outputs(&expected).0));
}

/// A token needs two of the four experts of a layer; the others are not read for it.
#[test]
fn experts_are_loaded_when_a_token_needs_them() {
    let (model, _) = load_within("mixtral", PLENTY, Precision::Auto);
    let layers = model.decoder().config().layers;
    let all = layers * model.decoder().config().experts.unwrap().count;
    assert_eq!(model.decoder().experts_loaded(), (0, all));
    logits(&model, &[model.splice(&[5], &[]).unwrap()]);
    assert_eq!(model.decoder().experts_loaded(), (2 * layers, all));
    let ids: Vec<i64> = (0..100).collect();
    logits(&model, &[model.splice(&ids, &[]).unwrap()]);
    assert_eq!(model.decoder().experts_loaded(), (all, all));
    // A model of another kind has none.
    let (model, _) = load_within("llama", PLENTY, Precision::Auto);
    assert_eq!(model.decoder().experts_loaded(), (0, 0));
}

/// Every layer is told when it is loaded, and the towers before they are.
#[test]
fn loading_tells_how_far_it_is() {
    let source = ModelSource::Path(fixture("llama"));
    let mut told = Vec::new();
    let options = LoadOptions {
        available_memory: Some(PLENTY),
        ..LoadOptions::default()
    };
    MiniGemini::load_with_progress(&source, &options, &mut |event| {
        told.push(match event {
            LoadEvent::Layer { done, total } => format!("{done} of {total}"),
            LoadEvent::Vision => "vision".to_string(),
            other => panic!("{other:?}"),
        });
    })
    .unwrap();
    assert_eq!(told, ["1 of 3", "2 of 3", "3 of 3", "vision"]);
}
