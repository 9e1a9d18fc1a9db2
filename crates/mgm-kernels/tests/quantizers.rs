//! Quantisers against the bytes of ggml's (see `tools/llama_cpp/quantizer_fixture.py`).

use mgm_kernels::quant::{QuantType, dequantize, quantize, quantize_weighted};

struct Reference {
    width: usize,
    values: Vec<f32>,
    importance: Vec<f32>,
    /// Format, with importances, blocks.
    sections: Vec<(QuantType, bool, Vec<u8>)>,
}

fn reference() -> Reference {
    let bytes: &[u8] = include_bytes!("fixtures/ggml_quantizers.bin");
    let (words, rest) = bytes.as_chunks::<4>();
    assert!(rest.is_empty());
    let word = |index: usize| u32::from_le_bytes(words[index]) as usize;
    let (rows, width) = (word(0), word(1));
    let floats: Vec<f32> = words[2..2 + (rows + 1) * width]
        .iter()
        .map(|&word| f32::from_le_bytes(word))
        .collect();
    let (values, importance) = floats.split_at(rows * width);
    let mut at = 4 * (2 + floats.len());
    let mut sections = Vec::new();
    while at < bytes.len() {
        let word = |at: usize| u32::from_le_bytes(bytes[at..at + 4].try_into().unwrap());
        let quant_type = QuantType::from_ggml(word(at)).unwrap();
        let weighted = word(at + 4) == 1;
        let len = values.len() / quant_type.block_len() * quant_type.block_bytes();
        sections.push((quant_type, weighted, bytes[at + 8..][..len].to_vec()));
        at += 8 + len;
    }
    Reference {
        width,
        values: values.to_vec(),
        importance: importance.to_vec(),
        sections,
    }
}

#[test]
fn blocks_are_those_of_the_reference() {
    let reference = reference();
    assert_eq!(reference.sections.len(), 2 * QuantType::ALL.len());
    for (t, weighted, expected) in &reference.sections {
        let found = if *weighted {
            quantize_weighted(
                *t,
                &reference.values,
                reference.width,
                &reference.importance,
            )
        } else {
            quantize(*t, &reference.values)
        };
        let bytes = t.block_bytes();
        for (block, (found, expected)) in
            found.chunks(bytes).zip(expected.chunks(bytes)).enumerate()
        {
            let values = &reference.values[block * t.block_len()..][..t.block_len()];
            assert_eq!(
                found,
                expected,
                "{} weighted {weighted} block {block}: {values:?}",
                t.name()
            );
        }
    }
}

/// Root of the mean square error, each value counted by its importance.
fn error(t: QuantType, blocks: &[u8], values: &[f32], importance: &[f32]) -> f64 {
    let mut back = vec![0.0; values.len()];
    dequantize(t, blocks, &mut back);
    let sum: f64 = back
        .iter()
        .zip(values)
        .zip(importance.iter().cycle())
        .map(|((b, v), &w)| f64::from(w) * f64::from(b - v).powi(2))
        .sum();
    (sum / values.len() as f64).sqrt()
}

#[test]
fn importances_lower_the_error_that_counts() {
    let Reference {
        width,
        values,
        importance,
        ..
    } = reference();
    for t in QuantType::ALL {
        let plain = quantize(t, &values);
        let weighted = quantize_weighted(t, &values, width, &importance);
        if t == QuantType::Q8_0 {
            assert_eq!(plain, weighted);
            continue;
        }
        let plain = error(t, &plain, &values, &importance);
        let weighted = error(t, &weighted, &values, &importance);
        assert!(weighted < plain, "{}: {weighted} {plain}", t.name());
    }
}

#[test]
fn blocks_without_importance_stay_finite() {
    let values: Vec<f32> = (0..512)
        .map(|i| ((i * 37 % 101) as f32 - 50.0) / 25.0)
        .collect();
    // Nothing counts in the first 256 values; in the second only values that are zero do.
    let mut second = values.clone();
    for i in 0..32 {
        second[256 + i] = 0.0;
    }
    let mut importance = vec![0.0; 512];
    importance[256..288].fill(1.0);
    for t in [QuantType::Q4K, QuantType::Q5K] {
        let blocks = quantize_weighted(t, &second, 512, &importance);
        assert_eq!(blocks, quantize(t, &second), "{}", t.name());
    }
    for t in QuantType::ALL {
        let blocks = quantize_weighted(t, &second, 512, &importance);
        assert!(
            error(t, &blocks, &second, &[1.0]).is_finite(),
            "{}",
            t.name()
        );
    }
}
