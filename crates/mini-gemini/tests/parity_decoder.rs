//! Every decoder family against Hugging Face: prompts without, with one and with two pictures; whole and through the cache.

// A test may end by a panic.
#![allow(clippy::unwrap_used)]

mod common;

use common::*;
use mini_gemini::{Family, ModelConfig};

fn check_family(family: &str) {
    let model = load(family, &[]);
    let expected = read(&format!("{family}/expected.safetensors"));
    let tokens = visual_tokens(&model, pictures("base").into_iter().take(2).collect(), 1);
    check_prompt(&model, &expected, "text", &[]);
    check_prompt(&model, &expected, "one", &tokens[..1]);
    check_prompt(&model, &expected, "two", &tokens);
}

#[test]
fn gemma() {
    check_family("gemma");
}

#[test]
fn llama() {
    check_family("llama");
}

#[test]
fn llama3() {
    check_family("llama3");
}

#[test]
fn mistral() {
    check_family("mistral");
}

#[test]
fn mixtral() {
    check_family("mixtral");
}

#[test]
fn qwen2() {
    check_family("qwen2");
}

#[test]
fn families_are_recognised_by_architecture() {
    let wanted = [
        Family::Gemma,
        Family::Llama,
        Family::Llama,
        Family::Mistral,
        Family::Mixtral,
        Family::Qwen2,
    ];
    for (name, family) in FAMILIES.iter().zip(wanted) {
        let config = ModelConfig::read(&fixture(name).join("config.json")).unwrap();
        assert_eq!(config.family(), family, "{name}");
    }
}

/// Sequences of unequal length in one pass do not see each other, whole or through their caches.
#[test]
fn sequences_together_equal_sequences_alone() {
    for family in ["gemma", "mixtral"] {
        let model = load(family, &[]);
        let expected = read(&format!("{family}/expected.safetensors"));
        let tokens = visual_tokens(&model, pictures("base").into_iter().take(2).collect(), 1);
        let prompts = [("two", &tokens[..]), ("text", &[]), ("one", &tokens[..1])];
        let spliced: Vec<_> = prompts
            .iter()
            .map(|(name, images)| {
                let ids = integers(get(&expected, &format!("{name}.ids")));
                model.splice(&ids, images).unwrap()
            })
            .collect();
        let together = logits(&model, &spliced);
        let (greedy, steps) = greedy_cached(&model, &spliced, 32);
        let mut start = 0;
        for (index, (name, _)) in prompts.iter().enumerate() {
            let reference = get(&expected, &format!("{name}.logits"));
            let rows = reference.dim(0).unwrap();
            let own = together.narrow(0, start, rows).unwrap();
            assert_close(
                &format!("{family} {name}: logits"),
                &own,
                reference,
                TOLERANCE,
            );
            start += rows;
            let wanted = integers(get(&expected, &format!("{name}.greedy")));
            assert_eq!(greedy[index], wanted, "{family} {name}: greedy tokens");
            let reference = get(&expected, &format!("{name}.step_logits"));
            assert_close(
                &format!("{family} {name}: steps"),
                &steps[index],
                reference,
                TOLERANCE,
            );
        }
    }
}

/// A prompt read in pieces through the cache, and a cache cut back and continued, give the same logits.
#[test]
fn cache_in_pieces_and_cut_back() {
    use mini_gemini::decoder::Context;
    let model = load("llama3", &[]);
    let decoder = model.decoder();
    let expected = read("llama3/expected.safetensors");
    let tokens = visual_tokens(&model, pictures("base").into_iter().take(1).collect(), 1);
    let ids = integers(get(&expected, "one.ids"));
    let rows = model.splice(&ids, &tokens).unwrap();
    let count = rows.dim(0).unwrap();
    let mut cache = decoder.new_cache();
    let read_rows = |cache: &mut mini_gemini::decoder::KvCache, from: usize, to: usize| {
        let piece = rows.narrow(0, from, to - from).unwrap();
        let hidden = decoder
            .hidden(&piece, &mut Context::Cached(&mut [(cache, to - from)]))
            .unwrap();
        decoder
            .logits(&hidden.narrow(0, to - from - 1, 1).unwrap())
            .unwrap()
    };
    read_rows(&mut cache, 0, 7);
    read_rows(&mut cache, 7, 8);
    // Something else entirely, forgotten again.
    read_rows(&mut cache, 0, 30);
    assert_eq!(cache.len(), 38);
    cache.truncate(8);
    read_rows(&mut cache, 8, 41);
    let last = read_rows(&mut cache, 41, count);
    assert_eq!(cache.len(), count);
    let reference = get(&expected, "one.logits")
        .narrow(0, count - 1, 1)
        .unwrap();
    assert_close("last logits", &last, &reference, TOLERANCE);
}

/// The hidden states of the last rows are those of all rows, to the last bit, and what is remembered is the same.
#[test]
fn last_rows_alone_equal_last_rows_of_all() {
    use mini_gemini::decoder::Context;
    for family in ["gemma", "mixtral"] {
        let model = load(family, &[]);
        let decoder = model.decoder();
        let lengths = [9, 4, 17];
        let ids = |count: usize, seed: usize| -> Vec<u32> {
            (0..count)
                .map(|index| (3 + (index * 7 + seed) % 50) as u32)
                .collect()
        };
        let prompt = decoder.embed(&ids(lengths.iter().sum(), 1)).unwrap();
        let next = decoder.embed(&ids(lengths.len(), 2)).unwrap();
        let mut whole: Vec<_> = lengths.iter().map(|_| decoder.new_cache()).collect();
        let mut tailed: Vec<_> = lengths.iter().map(|_| decoder.new_cache()).collect();
        let mut caches: Vec<_> = whole.iter_mut().zip(lengths).collect();
        let all = decoder
            .hidden(&prompt, &mut Context::Cached(&mut caches))
            .unwrap();
        let mut caches: Vec<_> = tailed.iter_mut().zip(lengths).collect();
        let last = decoder
            .hidden_tails(&prompt, &mut caches, &[2, 0, 1], &mut || Ok(()))
            .unwrap();
        let expected = candle_core::Tensor::cat(
            &[all.narrow(0, 7, 2).unwrap(), all.narrow(0, 29, 1).unwrap()],
            0,
        );
        assert_eq!(floats(&last), floats(&expected.unwrap()), "{family}");
        let follow = |caches: &mut Vec<mini_gemini::decoder::KvCache>| {
            let mut caches: Vec<_> = caches.iter_mut().zip([1, 1, 1]).collect();
            floats(
                &decoder
                    .hidden(&next, &mut Context::Cached(&mut caches))
                    .unwrap(),
            )
        };
        assert_eq!(follow(&mut tailed), follow(&mut whole), "{family}");
        // Rows that nothing is asked for.
        let mut caches: Vec<_> = tailed.iter_mut().zip(lengths).collect();
        let none = decoder
            .hidden_tails(&prompt, &mut caches, &[0, 0, 0], &mut || Ok(()))
            .unwrap();
        assert_eq!(none.dims(), [0, decoder.config().hidden_size], "{family}");
        let mut caches: Vec<_> = whole.iter_mut().zip(lengths).collect();
        decoder
            .hidden(&prompt, &mut Context::Cached(&mut caches))
            .unwrap();
        assert_eq!(follow(&mut tailed), follow(&mut whole), "{family}");
        let mut caches: Vec<_> = tailed.iter_mut().zip(lengths).collect();
        for wrong in [&[1, 1][..], &[1, 5, 1]] {
            assert!(
                decoder
                    .hidden_tails(&prompt, &mut caches, wrong, &mut || Ok(()))
                    .is_err()
            );
        }
    }
}

/// Gemma of transformers 4.38, asked for by the configuration or by an option; the default is another function, not far from it.
#[test]
fn gemma_numerics_switch() {
    let directory = std::path::Path::new(env!("CARGO_TARGET_TMPDIR")).join("gemma-erf");
    std::fs::create_dir_all(&directory).unwrap();
    for file in [
        "model.safetensors",
        "tokenizer.model",
        "tokenizer_config.json",
    ] {
        std::fs::copy(fixture("gemma").join(file), directory.join(file)).unwrap();
    }
    let text = std::fs::read_to_string(fixture("gemma/config.json")).unwrap();
    let text = text.replacen('{', "{ \"gemma_numerics\": \"erf\",", 1);
    std::fs::write(directory.join("config.json"), text).unwrap();
    let ids = integers(get(&read("gemma/expected.safetensors"), "text.ids"));
    let tanh = read("gemma/expected.safetensors");
    let erf = read("gemma/expected_erf.safetensors");
    let (tanh, erf) = (get(&tanh, "text.logits"), get(&erf, "text.logits"));
    let apart = relative_error(&floats(erf), &floats(tanh));
    assert!(apart > 2.0 * TOLERANCE, "the two differ by {apart:.1e}");
    let load_with = |directory: &std::path::Path, numerics| {
        let options = mini_gemini::LoadOptions {
            gemma_numerics: numerics,
            ..mini_gemini::LoadOptions::default()
        };
        let source = mini_gemini::ModelSource::Path(directory.to_path_buf());
        mini_gemini::MiniGemini::load_with_policy(&source, &options, policy(&[], None)).unwrap()
    };
    use mini_gemini::GemmaNumerics::{Erf, Tanh};
    let plain = fixture("gemma");
    for (directory, numerics, reference) in [
        (&plain, None, tanh),
        (&plain, Some(Erf), erf),
        (&directory, None, erf),
        (&directory, Some(Tanh), tanh),
    ] {
        let model = load_with(directory, numerics);
        let found = logits(&model, &[model.splice(&ids, &[]).unwrap()]);
        let what = format!("{numerics:?} asked of {}", directory.display());
        assert_close(&what, &found, reference, TOLERANCE);
    }
}

/// Weights held in 16 or 8 bits change the logits a little: by rounding, not by more. The files hold bf16 values, of which f16 loses the
/// smallest, and products of bf16 are of bf16 values.
#[test]
fn weights_of_fewer_bits_stay_close() {
    for (family, precision, allowed) in [
        ("gemma", mini_gemini::Precision::Bf16, 5e-2),
        ("llama", mini_gemini::Precision::Bf16, 5e-2),
        ("qwen2", mini_gemini::Precision::Bf16, 5e-2),
        ("gemma", mini_gemini::Precision::F16, 1e-3),
        ("llama", mini_gemini::Precision::F16, 1e-3),
        ("gemma", mini_gemini::Precision::Int8, 0.15),
        ("llama", mini_gemini::Precision::Int8, 0.15),
        ("qwen2", mini_gemini::Precision::Int8, 0.15),
        ("mixtral", mini_gemini::Precision::Int8, 0.15),
    ] {
        let source = mini_gemini::ModelSource::Path(fixture(family));
        let options = mini_gemini::LoadOptions {
            precision,
            ..mini_gemini::LoadOptions::default()
        };
        let model = mini_gemini::MiniGemini::load(&source, &options).unwrap();
        let expected = read(&format!("{family}/expected.safetensors"));
        let tokens = visual_tokens(&model, pictures("base").into_iter().take(1).collect(), 1);
        let ids = integers(get(&expected, "one.ids"));
        let spliced = model.splice(&ids, &tokens).unwrap();
        let found = logits(&model, &[spliced]);
        let error = relative_error(&floats(&found), &floats(get(&expected, "one.logits")));
        println!("{family}: {precision:?} relative error {error:.1e}");
        assert!(
            error < allowed,
            "{family}: {precision:?} differs by {error}"
        );
    }
}
