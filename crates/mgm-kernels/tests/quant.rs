//! Quantised formats against ggml's reference blocks (see `tools/fixtures/quant_blocks.py`), and products with them.

use std::sync::Arc;

use mgm_kernels::gemm::{Activation, Epilogue, WeightType};
use mgm_kernels::level::{Level, available, has_avx512_bf16};
use mgm_kernels::quant::{
    Bytes, QuantError, QuantType, QuantWeight, dequantize, quant_gemm_at, quantize,
};

struct Section {
    quant_type: QuantType,
    data: Vec<u8>,
    values: Vec<f32>,
    source: Vec<f32>,
}

fn sections() -> Vec<Section> {
    let mut rest: &[u8] = include_bytes!("fixtures/quant_blocks.bin");
    let mut sections = Vec::new();
    fn take<'a>(rest: &mut &'a [u8], count: usize) -> &'a [u8] {
        let (head, tail) = rest.split_at(count);
        *rest = tail;
        head
    }
    fn word(rest: &mut &[u8]) -> usize {
        u32::from_le_bytes(take(rest, 4).try_into().unwrap()) as usize
    }
    fn floats(rest: &mut &[u8], count: usize) -> Vec<f32> {
        take(rest, 4 * count)
            .chunks_exact(4)
            .map(|b| f32::from_le_bytes(b.try_into().unwrap()))
            .collect()
    }
    while !rest.is_empty() {
        let quant_type = QuantType::from_ggml(word(&mut rest) as u32).unwrap();
        let (values, bytes, source) = (word(&mut rest), word(&mut rest), word(&mut rest));
        let data = take(&mut rest, bytes).to_vec();
        let values = floats(&mut rest, values);
        let source = floats(&mut rest, source);
        sections.push(Section {
            quant_type,
            data,
            values,
            source,
        });
    }
    sections
}

fn random(seed: u64, count: usize) -> Vec<f32> {
    let mut state = seed;
    let mut uniform = || {
        state = state
            .wrapping_mul(6_364_136_223_846_793_005)
            .wrapping_add(1_442_695_040_888_963_407);
        (state >> 33) as f32 / (1u64 << 30) as f32 - 1.0
    };
    // A sum of three: roughly the bell shape of trained weights.
    (0..count)
        .map(|_| uniform() + uniform() + uniform())
        .collect()
}

#[test]
fn dequantisation_matches_the_reference_bits() {
    let sections = sections();
    for t in QuantType::ALL {
        assert!(
            sections.iter().any(|s| s.quant_type == t),
            "no fixture for {}",
            t.name()
        );
    }
    for s in sections {
        let mut out = vec![f32::NAN; s.values.len()];
        dequantize(s.quant_type, &s.data, &mut out);
        for (i, (got, want)) in out.iter().zip(&s.values).enumerate() {
            assert!(
                got == want,
                "{} value {i}: got {got}, expected {want}",
                s.quant_type.name()
            );
        }
    }
}

#[test]
fn quantisation_matches_the_reference_bytes() {
    let mut tested = 0;
    for s in sections().into_iter().filter(|s| !s.source.is_empty()) {
        let got = quantize(s.quant_type, &s.source);
        let bytes = s.quant_type.block_bytes();
        for (block, (got, want)) in got.chunks(bytes).zip(s.data.chunks(bytes)).enumerate() {
            assert_eq!(
                got,
                want,
                "{} block {block}: {:?}",
                s.quant_type.name(),
                &s.source[32 * block..][..32]
            );
        }
        tested += 1;
    }
    assert_eq!(tested, 5);
}

#[test]
fn quantisation_error_is_that_of_the_bit_width() {
    let values = random(4, 256 * 40);
    let rms = |v: &[f32]| (v.iter().map(|x| f64::from(x * x)).sum::<f64>() / v.len() as f64).sqrt();
    // Relative root-mean-square error on bell-shaped values; the K formats must beat the plain ones of their width.
    for (t, bound) in [
        (QuantType::Q8_0, 0.006),
        (QuantType::Q6K, 0.02),
        (QuantType::Q5_0, 0.05),
        (QuantType::Q5_1, 0.045),
        (QuantType::Q5K, 0.04),
        (QuantType::Q4_0, 0.1),
        (QuantType::Q4_1, 0.09),
        (QuantType::Q4K, 0.08),
    ] {
        let data = quantize(t, &values);
        let mut back = vec![0.0; values.len()];
        dequantize(t, &data, &mut back);
        let difference: Vec<f32> = back.iter().zip(&values).map(|(a, b)| a - b).collect();
        let error = rms(&difference) / rms(&values);
        assert!(error < bound, "{}: relative error {error}", t.name());
    }
}

#[test]
fn k_quantisation_of_degenerate_blocks() {
    for t in [QuantType::Q4K, QuantType::Q5K, QuantType::Q6K] {
        for value in [0.0f32, 1.0, -1.0, 1e-20] {
            let values = vec![value; 256];
            let mut back = vec![f32::NAN; 256];
            dequantize(t, &quantize(t, &values), &mut back);
            for b in back {
                assert!(
                    (b - value).abs() <= 0.04 * value.abs() + 1e-12,
                    "{} {value}: {b}",
                    t.name()
                );
            }
        }
    }
}

#[test]
fn hostile_sizes_are_refused() {
    let new = |t, n, k, len| QuantWeight::new(t, n, k, Bytes::from_vec(vec![0; len]));
    assert!(new(QuantType::Q4_1, 3, 64, 3 * 2 * 20).is_ok());
    assert!(new(QuantType::Q4_1, 0, 64, 0).is_ok());
    assert!(matches!(
        new(QuantType::Q4_1, 3, 65, 120),
        Err(QuantError::RowLength { .. })
    ));
    assert!(matches!(
        new(QuantType::Q4K, 1, 32, 18),
        Err(QuantError::RowLength { .. })
    ));
    for len in [0, 119, 121] {
        assert!(matches!(
            new(QuantType::Q4_1, 3, 64, len),
            Err(QuantError::DataLength { .. })
        ));
    }
    for (n, k) in [
        (usize::MAX, 32),
        (usize::MAX, usize::MAX / 32 * 32),
        (1 << 62, 1 << 62),
        (1, 1 << 63),
    ] {
        let error = new(QuantType::Q8_0, n, k, 34).unwrap_err();
        assert!(
            matches!(error, QuantError::DataLength { found: 34, .. }),
            "{error}"
        );
    }
    let owner: Arc<dyn AsRef<[u8]> + Send + Sync> = Arc::new(vec![1u8, 2, 3, 4]);
    assert_eq!(
        Bytes::slice(owner.clone(), 1..3).unwrap().as_slice(),
        [2, 3]
    );
    assert!(matches!(
        Bytes::slice(owner.clone(), 2..5),
        Err(QuantError::Range { .. })
    ));
    #[allow(clippy::reversed_empty_ranges)]
    let reversed = 3..2;
    assert!(matches!(
        Bytes::slice(owner.clone(), reversed),
        Err(QuantError::Range { .. })
    ));
    assert!(matches!(
        Bytes::slice(owner, usize::MAX - 1..usize::MAX),
        Err(QuantError::Range { .. })
    ));
    let message = new(QuantType::Q4_1, 3, 64, 5).unwrap_err().to_string();
    assert_eq!(message, "Q4_1 [3, 64]: expected 120 bytes, found 5");
}

/// What the integer path computes: activations rounded to int8 in blocks of 32.
fn round_activations(x: &[f32]) -> Vec<f32> {
    x.chunks(32)
        .flat_map(|block| {
            let largest = block.iter().fold(0.0f32, |m, v| m.max(v.abs()));
            let inverse = if largest > 0.0 { 127.0 / largest } else { 0.0 };
            let scale = largest / 127.0;
            block
                .iter()
                .map(move |v| (v * inverse).round_ties_even() * scale)
                .collect::<Vec<_>>()
        })
        .collect()
}

#[test]
fn products_match_the_dequantised_weights() {
    for level in available() {
        for t in QuantType::ALL {
            for (m, n, blocks) in [
                (1, 1, 1),
                (1, 77, 3),
                (2, 33, 9),
                (3, 64, 2),
                (5, 40, 11),
                (8, 31, 5),
                (9, 50, 3),
                (17, 16, 2),
                (40, 65, 2),
                // More than a block along k of the tile unit.
                (40, 35, 19),
            ] {
                // Row lengths that are not whole chunks of 256 where the format allows it.
                let most = if m == 40 {
                    1280 / t.block_len()
                } else {
                    blocks
                };
                let k = blocks.min(most) * t.block_len();
                let weights = quantize(t, &random(9, n * k));
                let w = QuantWeight::new(t, n, k, Bytes::from_vec(weights)).unwrap();
                let dense = w.dequantize_all();
                let x = random(10 + m as u64, m * k);
                let bias = random(77, n);
                let integer = match level {
                    Level::Portable | Level::Avx2 => m <= 8,
                    Level::Avx512 => true,
                    Level::Amx => m <= 32,
                };
                let bf16 = !integer && level >= Level::Avx512 && has_avx512_bf16();
                let seen = if integer {
                    round_activations(&x)
                } else {
                    x.clone()
                };
                let before = random(5, m * n);
                let mut out = before.clone();
                let epilogue = Epilogue {
                    bias: Some(&bias),
                    activation: Activation::None,
                    accumulate: true,
                };
                quant_gemm_at(level, m, &x, &w, &mut out, &epilogue);
                for i in 0..m {
                    for j in 0..n {
                        let (mut want, mut size) = (0.0f64, 0.0f64);
                        for p in 0..k {
                            let product = f64::from(seen[i * k + p]) * f64::from(dense[j * k + p]);
                            want += product;
                            size += product * product;
                        }
                        want += f64::from(bias[j]) + f64::from(before[i * n + j]);
                        let got = f64::from(out[i * n + j]);
                        // bf16 rounds both factors by up to 2⁻⁹ relative each.
                        let tolerance = if bf16 { 0.02 * size.sqrt() } else { 1e-4 } + 1e-4;
                        assert!(
                            (got - want).abs() < tolerance,
                            "{level:?} {} {m}×{n}×{k} ({i}, {j}): {got} {want}",
                            t.name()
                        );
                    }
                }
                let mut out = vec![0.0; m * n];
                let silu = Epilogue {
                    activation: Activation::Silu,
                    ..Epilogue::default()
                };
                quant_gemm_at(level, m, &x, &w, &mut out, &silu);
                let mut plain = vec![0.0; m * n];
                quant_gemm_at(level, m, &x, &w, &mut plain, &Epilogue::default());
                for (got, v) in out.iter().zip(plain) {
                    assert!(
                        (got - v / (1.0 + (-v).exp())).abs() < 1e-4 * (1.0 + v.abs()),
                        "{got} {v}"
                    );
                }
            }
        }
    }
}

/// Whatever rows stand beside a row, its results have the same bits.
#[test]
fn integer_rows_do_not_depend_on_their_neighbours() {
    for level in available() {
        let most = match level {
            Level::Portable | Level::Avx2 => 8,
            Level::Avx512 => 300,
            Level::Amx => 32,
        };
        for t in QuantType::ALL {
            // An odd number of blocks where they are small.
            let (n, k) = (45, 768 + t.block_len() % 256);
            let weights = quantize(t, &random(9, n * k));
            let w = QuantWeight::new(t, n, k, Bytes::from_vec(weights)).unwrap();
            let x = random(3, most * k);
            let alone: Vec<f32> = x
                .chunks(k)
                .flat_map(|row| {
                    let mut out = vec![0.0; n];
                    quant_gemm_at(level, 1, row, &w, &mut out, &Epilogue::default());
                    out
                })
                .collect();
            for m in
                (2..=most).filter(|m| *m <= 20 || (47..50).contains(m) || m % 41 == 0 || *m == most)
            {
                let mut out = vec![0.0; m * n];
                quant_gemm_at(level, m, &x[..m * k], &w, &mut out, &Epilogue::default());
                assert_eq!(out, alone[..m * n], "{level:?} {} {m} rows", t.name());
            }
        }
    }
}

/// An interleaved copy has the same values and gives the same bits in every product.
#[test]
fn interleaved_weights_are_the_same_weights() {
    for t in QuantType::ALL {
        let (n, k) = (45, 768);
        let weights = quantize(t, &random(9, n * k));
        let rows = QuantWeight::new(t, n, k, Bytes::from_vec(weights)).unwrap();
        let groups = rows.interleave();
        assert!(groups.is_interleaved() && groups.interleave().is_interleaved());
        assert_eq!(groups.dequantize_all(), rows.dequantize_all());
        let x = random(3, 40 * k);
        for level in available() {
            for m in [1, 5, 17, 40] {
                let product = |w: &QuantWeight| {
                    let mut out = vec![0.0; m * n];
                    quant_gemm_at(level, m, &x[..m * k], w, &mut out, &Epilogue::default());
                    out
                };
                let name = t.name();
                assert_eq!(product(&groups), product(&rows), "{level:?} {name} {m}");
            }
        }
    }
}

#[test]
fn packed_copies_hold_the_dequantised_values() {
    let (n, k) = (35, 96);
    let w = QuantWeight::new(
        QuantType::Q5_0,
        n,
        k,
        Bytes::from_vec(quantize(QuantType::Q5_0, &random(2, n * k))),
    )
    .unwrap();
    assert_eq!(w.to_packed(WeightType::F32).unpack(), w.dequantize_all());
    let mut row = vec![0.0; k];
    w.dequantize_row(34, &mut row);
    assert_eq!(row, w.dequantize_all()[34 * k..]);
}
