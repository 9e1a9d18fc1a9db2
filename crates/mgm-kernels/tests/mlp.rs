//! The fused perceptron against its parts.

use mgm_kernels::elementwise::layer_norm;
use mgm_kernels::gemm::{Activation, Epilogue, PackedWeight, WeightType, gemm_at};
use mgm_kernels::int8::{Int8Weight, int8_gemm_at};
use mgm_kernels::level::{Level, available};
use mgm_kernels::mlp::{LayerNorm, Mlp, MlpWeight, mlp_at};

fn values(count: usize, seed: u64) -> Vec<f32> {
    let mut state = seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1;
    (0..count)
        .map(|_| {
            state = state
                .wrapping_mul(6_364_136_223_846_793_005)
                .wrapping_add(1_442_695_040_888_963_407);
            (state >> 40) as f32 / (1u64 << 23) as f32 - 1.0
        })
        .collect()
}

#[derive(Clone, Copy, Debug)]
enum Storage {
    Float(WeightType),
    Int8,
}

enum Matrix {
    Float(PackedWeight),
    Int8(Int8Weight),
}

impl Matrix {
    fn pack(n: usize, k: usize, values: &[f32], storage: Storage) -> Self {
        match storage {
            Storage::Float(t) => Self::Float(PackedWeight::pack(n, k, values, t)),
            Storage::Int8 => Self::Int8(Int8Weight::pack(n, k, values)),
        }
    }

    fn weight(&self) -> MlpWeight<'_> {
        match self {
            Self::Float(weight) => MlpWeight::Packed(weight),
            Self::Int8(weight) => MlpWeight::Int8(weight),
        }
    }
}

fn multiply(level: Level, m: usize, x: &[f32], w: MlpWeight, out: &mut [f32], e: &Epilogue) {
    match w {
        MlpWeight::Packed(w) => gemm_at(level, m, x, w, out, e),
        MlpWeight::Int8(w) => int8_gemm_at(level, m, x, w, out, e),
    }
}

/// Layer by layer, with the kernels that have tests of their own.
fn reference(level: Level, m: usize, x: &[f32], w: &Mlp, residual: &[f32]) -> Vec<f32> {
    let (inner, c) = (w.first.n(), w.first.k());
    let mut normed = x.to_vec();
    if let Some(norm) = w.norm {
        let (gamma, beta) = (Some(norm.gamma), Some(norm.beta));
        layer_norm(m, c, x, gamma, beta, norm.eps, &mut normed);
    }
    let mut hidden = vec![0.0; m * inner];
    let first = Epilogue {
        bias: w.first_bias,
        activation: w.activation,
        accumulate: false,
    };
    multiply(level, m, &normed, w.first, &mut hidden, &first);
    let mut out = vec![0.0; m * c];
    let second = Epilogue {
        bias: w.second_bias,
        ..Epilogue::default()
    };
    multiply(level, m, &hidden, w.second, &mut out, &second);
    for (row, residual) in out.chunks_exact_mut(c).zip(residual.chunks_exact(c)) {
        for (channel, (out, residual)) in row.iter_mut().zip(residual).enumerate() {
            *out = residual + w.scale.map_or(1.0, |scale| scale[channel]) * *out;
        }
    }
    out
}

fn check(m: usize, c: usize, inner: usize, t: Storage, whole: bool) {
    let scaled = |count, seed, by: usize| -> Vec<f32> {
        let values = values(count, seed).into_iter();
        values.map(|v| v * (3.0 / by as f32).sqrt()).collect()
    };
    let first = Matrix::pack(inner, c, &scaled(inner * c, 1, c), t);
    let second = Matrix::pack(c, inner, &scaled(c * inner, 2, inner), t);
    let (first_bias, second_bias) = (values(inner, 3), values(c, 4));
    let (gamma, beta, scale) = (values(c, 5), values(c, 6), values(c, 7));
    let (x, residual) = (values(m * c, 8), values(m * c, 9));
    let weights = Mlp {
        norm: whole.then_some(LayerNorm {
            gamma: &gamma,
            beta: &beta,
            eps: 1e-6,
        }),
        first: first.weight(),
        first_bias: whole.then_some(&first_bias),
        activation: if whole {
            Activation::GeluErf
        } else {
            Activation::Silu
        },
        second: second.weight(),
        second_bias: whole.then_some(&second_bias),
        scale: whole.then_some(&scale),
    };
    for level in available() {
        let expected = reference(level, m, &x, &weights, &residual);
        let mut out = vec![f32::NAN; m * c];
        mlp_at(level, m, &x, &weights, &residual, &mut out);
        // Rows may be grouped in other blocks, which few levels add up in another order.
        let largest = out
            .iter()
            .zip(&expected)
            .map(|(a, b)| (a - b).abs())
            .fold(0.0f32, |a, b| if b > a || b.is_nan() { b } else { a });
        assert!(
            largest < 2e-5,
            "{level:?} {t:?} [{m}, {c}] inner {inner}: difference {largest}"
        );
    }
}

#[test]
fn tiles_and_layers_give_what_the_parts_give() {
    let floats = [WeightType::F32, WeightType::Bf16, WeightType::F16].map(Storage::Float);
    for t in floats.into_iter().chain([Storage::Int8]) {
        // Few rows go layer by layer, many by tiles; widths that fill neither panels nor k blocks.
        for (m, c, inner) in [(3, 20, 50), (511, 24, 96), (515, 24, 96), (700, 33, 70)] {
            check(m, c, inner, t, true);
            check(m, c, inner, t, false);
        }
    }
}

#[test]
fn long_inner_rows_take_several_blocks() {
    check(600, 40, 2100, Storage::Float(WeightType::F32), true);
    check(600, 40, 2100, Storage::Float(WeightType::Bf16), true);
    check(600, 40, 2100, Storage::Int8, true);
}

#[test]
fn large_weights_go_layer_by_layer() {
    check(520, 640, 2048, Storage::Float(WeightType::F32), true);
}

#[test]
fn nothing_to_do_leaves_the_residual() {
    let first = Matrix::pack(0, 4, &[], Storage::Int8);
    let second = Matrix::pack(4, 0, &[], Storage::Int8);
    let weights = Mlp {
        norm: None,
        first: first.weight(),
        first_bias: None,
        activation: Activation::None,
        second: second.weight(),
        second_bias: None,
        scale: None,
    };
    let mut out = [0.0; 8];
    let residual = [1.0, 2.0, 3.0, 4.0, 5.0, 6.0, 7.0, 8.0];
    mlp_at(Level::Portable, 2, &[0.0; 8], &weights, &residual, &mut out);
    assert_eq!(out, residual);
}
