//! Products in 8 bits throughout, against the same rounding done here in double precision.

use mgm_kernels::gemm::{Activation, Epilogue};
use mgm_kernels::int8::{
    GatedWeight, Int8Weight, gated_mlp, int8_gemm_at, quant_gemm_int8_at, takes_gated_mlp,
};
use mgm_kernels::level::{Level, available, level};
use mgm_kernels::quant::{Bytes, QuantType, QuantWeight, quantize};

fn random(seed: u64, count: usize) -> Vec<f32> {
    let mut state = seed;
    let mut uniform = || {
        state = state
            .wrapping_mul(6_364_136_223_846_793_005)
            .wrapping_add(1_442_695_040_888_963_407);
        (state >> 33) as f32 / (1u64 << 30) as f32 - 1.0
    };
    (0..count)
        .map(|_| uniform() + uniform() + uniform())
        .collect()
}

/// Rows rounded as the products round them.
fn rounded(k: usize, x: &[f32]) -> Vec<f64> {
    let mut out = Vec::with_capacity(x.len());
    for row in x.chunks(k) {
        for chunk in row.chunks(256) {
            let largest = chunk.iter().fold(0.0f32, |most, v| most.max(v.abs()));
            let inverse = if largest > 0.0 { 127.0 / largest } else { 0.0 };
            let scale = f64::from(largest / 127.0);
            out.extend(
                chunk
                    .iter()
                    .map(|v| f64::from((v * inverse).round_ties_even()) * scale),
            );
        }
    }
    out
}

fn product(n: usize, k: usize, x: &[f64], w: &[f32]) -> Vec<f64> {
    x.chunks(k)
        .flat_map(|x| {
            w.chunks(k).take(n).map(move |w| {
                let products = x.iter().zip(w).map(|(x, w)| x * f64::from(*w));
                products.sum::<f64>()
            })
        })
        .collect()
}

/// Root of the mean square of the differences over that of the values.
fn distance(found: &[f32], expected: &[f64]) -> f64 {
    assert_eq!(found.len(), expected.len());
    let square = |values: &mut dyn Iterator<Item = f64>| values.map(|v| v * v).sum::<f64>();
    let error = square(&mut found.iter().zip(expected).map(|(f, e)| f64::from(*f) - e));
    (error / square(&mut expected.iter().copied())).sqrt()
}

#[test]
fn products_are_those_of_the_rounded_operands() {
    for (m, n, k) in [
        (1, 1, 1),
        (1, 70, 256),
        (3, 33, 6),
        (12, 32, 258),
        (13, 64, 588),
        (29, 100, 1024),
        (300, 40, 515),
    ] {
        let (x, w) = (random(1, m * k), Int8Weight::pack(n, k, &random(2, n * k)));
        let bias = random(3, n);
        let bare = product(n, k, &rounded(k, &x), &w.unpack());
        for level in available() {
            let mut found = vec![f32::NAN; m * n];
            int8_gemm_at(level, m, &x, &w, &mut found, &Epilogue::default());
            let far = distance(&found, &bare);
            assert!(far < 1e-6, "{level:?} {m} {n} {k}: {far:e}");
            let epilogue = Epilogue {
                bias: Some(&bias),
                activation: Activation::Relu6,
                accumulate: true,
            };
            let mut found = random(4, m * n);
            let expected: Vec<f64> = (found.iter().enumerate())
                .map(|(i, before)| {
                    let sum = bare[i] + f64::from(bias[i % n]);
                    f64::from(*before) + sum.clamp(0.0, 6.0)
                })
                .collect();
            int8_gemm_at(level, m, &x, &w, &mut found, &epilogue);
            let far = distance(&found, &expected);
            assert!(far < 1e-6, "{level:?} {m} {n} {k}, epilogue: {far:e}");
        }
    }
}

#[test]
fn rounding_costs_less_than_a_hundredth() {
    let (m, n, k) = (20, 64, 2048);
    let (x, w) = (random(5, m * k), random(6, n * k));
    let exact: Vec<f64> = x.iter().map(|v| f64::from(*v)).collect();
    let exact = product(n, k, &exact, &w);
    let mut found = vec![0.0; m * n];
    let packed = Int8Weight::pack(n, k, &w);
    int8_gemm_at(Level::Amx, m, &x, &packed, &mut found, &Epilogue::default());
    let far = distance(&found, &exact);
    assert!(far < 0.01, "{far}");
}

#[test]
fn rows_do_not_depend_on_their_neighbours() {
    let (m, n, k) = (60, 96, 700);
    let (x, w) = (random(7, m * k), Int8Weight::pack(n, k, &random(8, n * k)));
    for level in available() {
        let mut together = vec![0.0; m * n];
        int8_gemm_at(level, m, &x, &w, &mut together, &Epilogue::default());
        for count in [1, 2, 7, 12, 25] {
            let mut found = vec![0.0; count * n];
            let x = &x[3 * k..(3 + count) * k];
            int8_gemm_at(level, count, x, &w, &mut found, &Epilogue::default());
            assert_eq!(found, together[3 * n..(3 + count) * n], "{level:?} {count}");
        }
    }
}

#[test]
fn nothing_in_nothing_out() {
    let w = Int8Weight::pack(5, 0, &[]);
    let mut out = vec![1.0; 10];
    int8_gemm_at(Level::Amx, 2, &[], &w, &mut out, &Epilogue::default());
    assert_eq!(out, [0.0; 10]);
    let w = Int8Weight::pack(0, 5, &[]);
    int8_gemm_at(Level::Amx, 2, &[0.0; 10], &w, &mut [], &Epilogue::default());
    let w = Int8Weight::pack(4, 300, &[0.0; 1200]);
    let mut out = vec![1.0; 4];
    int8_gemm_at(
        Level::Amx,
        1,
        &[0.0; 300],
        &w,
        &mut out,
        &Epilogue::default(),
    );
    assert_eq!(out, [0.0; 4]);
}

#[test]
fn blocks_become_panels_of_their_values() {
    for t in QuantType::ALL {
        for (n, blocks) in [(16, 1), (40, 3), (96, 8)] {
            let (m, k) = (70, blocks * t.block_len());
            let data = quantize(t, &random(9, n * k));
            let w = QuantWeight::new(t, n, k, Bytes::from_vec(data)).unwrap();
            let values = w.dequantize_all();
            let x = random(10, m * k);
            for level in available() {
                let run = |w: &QuantWeight| {
                    let mut found = vec![f32::NAN; m * n];
                    quant_gemm_int8_at(level, m, &x, w, &mut found, &Epilogue::default());
                    found
                };
                let found = run(&w);
                assert!(
                    found == run(&w.interleave()),
                    "{t:?} {level:?} side by side"
                );
                let exact: Vec<f64> = x.iter().map(|v| f64::from(*v)).collect();
                let far = distance(&found, &product(n, k, &exact, &values));
                assert!(far < 0.015, "{t:?} {level:?} {n} {k}: {far:e}");
                if level >= Level::Avx512 {
                    // The same panels but for values midway between two codes, of which few bits make many.
                    let panels = Int8Weight::pack(n, k, &values).unpack();
                    let far = distance(&found, &product(n, k, &rounded(k, &x), &panels));
                    assert!(far < 5e-3, "{t:?} {n} {k}: {far:e}");
                }
            }
        }
    }
}

/// Blocks of which the largest value is a few steps from zero, which a fixed point does not hold.
#[test]
fn blocks_that_use_few_codes_become_panels_too() {
    let (m, n, k) = (70, 40, 512);
    // Q4_0: a scale of 1 and codes around 8, that is values of -1, 0, and 1.
    let data: Vec<u8> = (0..n * k / 32 * 18)
        .map(|i| match i % 18 {
            0 => 0,
            1 => 0x3c,
            _ => [0x87, 0x98, 0x79, 0x88, 0x99][i * 7 / 3 % 5],
        })
        .collect();
    let w = QuantWeight::new(QuantType::Q4_0, n, k, Bytes::from_vec(data)).unwrap();
    let values = w.dequantize_all();
    assert!(values.iter().all(|v| v.abs() <= 1.0) && values.iter().any(|v| *v != 0.0));
    let x = random(21, m * k);
    let expected = product(n, k, &rounded(k, &x), &values);
    for level in available()
        .into_iter()
        .filter(|level| *level >= Level::Avx512)
    {
        let mut found = vec![f32::NAN; m * n];
        quant_gemm_int8_at(level, m, &x, &w, &mut found, &Epilogue::default());
        let far = distance(&found, &expected);
        // These values are codes exactly.
        assert!(far < 1e-6, "{level:?}: {far:e}");
    }
}

/// Gate, up and down one after another.
fn gated(m: usize, x: &[f32], n: [usize; 2], w: [GatedWeight; 3], f: Activation) -> Vec<f32> {
    let multiply = |x: &[f32], w: GatedWeight, n: usize, activation: Activation| {
        let mut out = vec![f32::NAN; m * n];
        let epilogue = Epilogue {
            activation,
            ..Epilogue::default()
        };
        match w {
            GatedWeight::Int8(w) => int8_gemm_at(level(), m, x, w, &mut out, &epilogue),
            GatedWeight::Blocks(w) => quant_gemm_int8_at(level(), m, x, w, &mut out, &epilogue),
        }
        out
    };
    let gate = multiply(x, w[0], n[0], f);
    let up = multiply(x, w[1], n[0], Activation::None);
    let inner: Vec<f32> = gate.iter().zip(&up).map(|(gate, up)| gate * up).collect();
    multiply(&inner, w[2], n[1], Activation::None)
}

#[test]
fn a_gated_perceptron_is_its_three_products() {
    for (m, k, inner, n) in [(1, 40, 300, 70), (5, 256, 515, 33), (900, 64, 96, 40)] {
        let matrices = [
            Int8Weight::pack(inner, k, &random(11, inner * k)),
            Int8Weight::pack(inner, k, &random(12, inner * k)),
            Int8Weight::pack(n, inner, &random(13, n * inner)),
        ];
        let weights = matrices.each_ref().map(GatedWeight::Int8);
        let (x, mut found) = (random(14, m * k), vec![f32::NAN; m * n]);
        gated_mlp(m, &x, weights, Activation::GeluTanh, &mut found);
        let expected = gated(m, &x, [inner, n], weights, Activation::GeluTanh);
        assert!(found == expected, "{m} {k} {inner} {n}");
    }
    let (m, k, inner, n) = (70, 256, 512, 48);
    let blocks = |t: QuantType, rows: usize, width: usize, seed| {
        let data = Bytes::from_vec(quantize(t, &random(seed, rows * width)));
        QuantWeight::new(t, rows, width, data).unwrap()
    };
    let gate = blocks(QuantType::Q4K, inner, k, 15);
    let up = blocks(QuantType::Q4_0, inner, k, 16).interleave();
    let down = Int8Weight::pack(n, inner, &random(17, n * inner));
    let weights = [
        GatedWeight::Blocks(&gate),
        GatedWeight::Blocks(&up),
        GatedWeight::Int8(&down),
    ];
    assert!(!takes_gated_mlp(4, &weights));
    if takes_gated_mlp(m, &weights) {
        let (x, mut found) = (random(18, m * k), vec![f32::NAN; m * n]);
        gated_mlp(m, &x, weights, Activation::Silu, &mut found);
        assert!(found == gated(m, &x, [inner, n], weights, Activation::Silu));
    }
}

/// Values that cannot be rounded spoil their own row alone, and nothing panics (overflow is checked in debug builds).
#[test]
fn rows_that_are_no_numbers_spoil_no_other() {
    let (n, k) = (40, 300);
    let w = Int8Weight::pack(n, k, &random(19, n * k));
    let clean = random(20, 2 * k);
    for level in available() {
        let mut expected = vec![0.0; 2 * n];
        int8_gemm_at(level, 2, &clean, &w, &mut expected, &Epilogue::default());
        for (name, bad) in [
            ("nan", f32::NAN),
            ("infinity", f32::INFINITY),
            ("tiny", 1e-42),
        ] {
            let x = [&clean[..k], &vec![bad; k], &clean[k..]].concat();
            let mut found = vec![0.0; 3 * n];
            int8_gemm_at(level, 3, &x, &w, &mut found, &Epilogue::default());
            assert!(found[..n] == expected[..n], "{level:?} {name}");
            assert!(found[2 * n..] == expected[n..], "{level:?} {name}");
            if name == "tiny" {
                assert!(found[n..2 * n].iter().all(|v| v.abs() < 1e-30), "{level:?}");
            }
        }
    }
}
