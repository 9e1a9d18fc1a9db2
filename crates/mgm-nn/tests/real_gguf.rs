//! The built-in model's language file against numbers from the `gguf` Python package (its `dequantize`, then the inverse
//! of the converter's row permutation).

use std::path::Path;

use mgm_nn::{Result, WeightSource};

/// `Σ value·(index mod 97)`, which notices a permuted row, and one single value.
fn fingerprint(source: &WeightSource, name: &str, shape: &[usize]) -> Result<(f64, f64)> {
    let values = source
        .tensor(name, shape)?
        .flatten_all()?
        .to_vec1::<f32>()?;
    let sum = values
        .iter()
        .enumerate()
        .map(|(i, &value)| f64::from(value) * (i % 97) as f64)
        .sum();
    Ok((sum, f64::from(values[12345 % values.len()])))
}

#[test]
fn smollm2_reads_as_the_reference_does() -> Result<()> {
    let path = Path::new(env!("CARGO_MANIFEST_DIR"))
        .join("../../models/smol/smollm2-135m-instruct.q4_1.gguf");
    let source = WeightSource::from_gguf(&path)?;
    assert_eq!(source.names().len(), 272);
    let expected: [(&str, &[usize], f64, f64); 5] = [
        (
            "model.embed_tokens.weight",
            &[49152, 576],
            -740630.3343496323,
            0.031005859375,
        ),
        (
            "model.layers.3.self_attn.q_proj.weight",
            &[576, 576],
            -3656.859893798828,
            -0.15032958984375,
        ),
        (
            "model.layers.3.self_attn.k_proj.weight",
            &[192, 576],
            -7556.250686645508,
            0.00897216796875,
        ),
        (
            "model.layers.29.mlp.down_proj.weight",
            &[576, 1536],
            3770.8242797851562,
            -0.04498291015625,
        ),
        ("model.norm.weight", &[576], 49451.53125, 1.8046875),
    ];
    for (name, shape, sum, single) in expected {
        let (found_sum, found_single) = fingerprint(&source, name, shape)?;
        assert!(
            (found_sum - sum).abs() < 1e-6 * sum.abs(),
            "{name}: {found_sum}, expected {sum}"
        );
        assert_eq!(found_single, single, "{name}");
    }
    let metadata = source.gguf_metadata();
    assert_eq!(
        metadata.and_then(|metadata| metadata.architecture()),
        Some("llama")
    );
    assert_eq!(
        metadata
            .and_then(|metadata| metadata.strings("tokenizer.ggml.tokens"))
            .map(|tokens| tokens.len()),
        Some(49152)
    );
    Ok(())
}
