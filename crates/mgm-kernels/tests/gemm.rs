//! Matrix products against a scalar reference, odd shapes, every level of the machine.

use half::{bf16, f16};
use mgm_kernels::gemm::{
    Activation, Epilogue, PackedWeight, WeightType, gemm, gemm_at, gemm_streamed, matmul_at,
};
use mgm_kernels::level::{Level, available, has_avx512_bf16};

struct Random(u64);

impl Random {
    fn next(&mut self) -> u64 {
        self.0 = self
            .0
            .wrapping_mul(6_364_136_223_846_793_005)
            .wrapping_add(1_442_695_040_888_963_407);
        self.0 >> 33
    }

    fn below(&mut self, bound: usize) -> usize {
        self.next() as usize % bound
    }

    fn values(&mut self, count: usize) -> Vec<f32> {
        (0..count)
            .map(|_| self.next() as f32 / (1u64 << 30) as f32 - 1.0)
            .collect()
    }
}

fn round(values: &[f32]) -> Vec<f32> {
    values.iter().map(|&v| bf16::from_f32(v).to_f32()).collect()
}

/// What a weight of this type holds of `values`.
fn stored(t: WeightType, values: &[f32]) -> Vec<f32> {
    match t {
        WeightType::F32 => values.to_vec(),
        WeightType::F16 => values.iter().map(|&v| f16::from_f32(v).to_f32()).collect(),
        WeightType::Bf16 => round(values),
    }
}

const TYPES: [WeightType; 3] = [WeightType::F32, WeightType::F16, WeightType::Bf16];

fn reference(
    m: usize,
    n: usize,
    k: usize,
    x: &[f32],
    w: &[f32],
    mut finish: impl FnMut(usize, f64) -> f64,
) -> Vec<f64> {
    let mut out = Vec::with_capacity(m * n);
    for i in 0..m {
        for j in 0..n {
            let sum = (0..k)
                .map(|p| f64::from(x[i * k + p]) * f64::from(w[j * k + p]))
                .sum();
            out.push(finish(i * n + j, sum));
        }
    }
    out
}

fn assert_close(what: &str, got: &[f32], want: &[f64], tolerance: f64) {
    assert_eq!(got.len(), want.len());
    for (i, (&g, &w)) in got.iter().zip(want).enumerate() {
        assert!(
            (f64::from(g) - w).abs() <= tolerance,
            "{what}: element {i}: got {g}, expected {w}"
        );
    }
}

/// Whether rows are rounded to bf16 with these weights.
fn rounds_rows(level: Level, t: WeightType) -> bool {
    t == WeightType::Bf16 && (level == Level::Amx || (level == Level::Avx512 && has_avx512_bf16()))
}

#[test]
fn gemm_matches_the_reference_on_every_level() {
    let mut random = Random(7);
    let mut shapes = vec![
        (1, 1, 1),
        (1, 33, 7),
        (5, 16, 64),
        (14, 32, 31),
        (15, 48, 33),
        (13, 17, 5000),
        (200, 70, 2049),
    ];
    for m in 1..=30 {
        shapes.push((m, 1 + random.below(90), 1 + random.below(130)));
    }
    shapes.push((431, 97, 65));
    for level in available() {
        for t in TYPES {
            for &(m, n, k) in &shapes {
                let (x, w, bias) = (random.values(m * k), random.values(n * k), random.values(n));
                let packed = PackedWeight::pack(n, k, &w, t);
                let w = stored(t, &w);
                let exact_x = if rounds_rows(level, t) {
                    round(&x)
                } else {
                    x.clone()
                };
                let tolerance = 1e-6 * (k as f64).sqrt() * 8.0 + 1e-6;
                let what = format!("{level:?} {t:?} {m}×{n}×{k}");

                let mut out = vec![f32::NAN; m * n];
                gemm_at(level, m, &x, &packed, &mut out, &Epilogue::default());
                assert_close(
                    &what,
                    &out,
                    &reference(m, n, k, &exact_x, &w, |_, s| s),
                    tolerance,
                );

                let before = random.values(m * n);
                let mut out = before.clone();
                let epilogue = Epilogue {
                    bias: Some(&bias),
                    accumulate: true,
                    ..Epilogue::default()
                };
                gemm_at(level, m, &x, &packed, &mut out, &epilogue);
                let want = reference(m, n, k, &exact_x, &w, |i, s| {
                    s + f64::from(before[i]) + f64::from(bias[i % n])
                });
                assert_close(&what, &out, &want, tolerance);

                let mut out = before.clone();
                let epilogue = Epilogue {
                    bias: Some(&bias),
                    activation: Activation::Silu,
                    accumulate: true,
                };
                gemm_at(level, m, &x, &packed, &mut out, &epilogue);
                let want = reference(m, n, k, &exact_x, &w, |i, s| {
                    let s = s + f64::from(bias[i % n]);
                    f64::from(before[i]) + s / (1.0 + (-s).exp())
                });
                assert_close(&what, &out, &want, tolerance * 2.0);
            }
        }
    }
}

#[test]
fn every_activation_is_applied_once() {
    let mut random = Random(11);
    let (m, n, k) = (17, 40, 3000);
    let (x, w) = (random.values(m * k), random.values(n * k));
    let x: Vec<f32> = x.iter().map(|v| v * 0.05).collect();
    let packed = PackedWeight::pack(n, k, &w, WeightType::F32);
    let erf = |z: f64| {
        // Trapezoidal integral of the density: independent of the kernel's polynomial.
        let steps = 4000;
        let h = z / f64::from(steps);
        let f = |t: f64| (-t * t).exp();
        let inner: f64 = (1..steps).map(|i| f(h * f64::from(i))).sum();
        2.0 / std::f64::consts::PI.sqrt() * h * (inner + 0.5 * (f(0.0) + f(z)))
    };
    for level in available() {
        for activation in [
            Activation::None,
            Activation::GeluErf,
            Activation::GeluTanh,
            Activation::QuickGelu,
            Activation::Silu,
            Activation::Relu6,
        ] {
            let mut out = vec![0.0; m * n];
            gemm_at(
                level,
                m,
                &x,
                &packed,
                &mut out,
                &Epilogue {
                    activation,
                    ..Epilogue::default()
                },
            );
            let want = reference(m, n, k, &x, &w, |_, s| match activation {
                Activation::None => s,
                Activation::GeluErf => 0.5 * s * (1.0 + erf(s / 2f64.sqrt())),
                Activation::GeluTanh => {
                    0.5 * s * (1.0 + (0.797_884_560_802_865_4 * (s + 0.044715 * s * s * s)).tanh())
                }
                Activation::QuickGelu => s / (1.0 + (-1.702 * s).exp()),
                Activation::Silu => s / (1.0 + (-s).exp()),
                Activation::Relu6 => s.clamp(0.0, 6.0),
            });
            assert_close(&format!("{level:?} {activation:?}"), &out, &want, 2e-5);
        }
    }
}

#[test]
fn packing_round_trips_and_transposes() {
    let mut random = Random(3);
    for (n, k) in [(1, 1), (3, 5), (32, 32), (33, 31), (100, 77), (64, 200)] {
        let w = random.values(n * k);
        let w_kn: Vec<f32> = (0..k * n).map(|i| w[(i % n) * k + i / n]).collect();
        for t in TYPES {
            let want = stored(t, &w);
            let want_kn = stored(t, &w_kn);
            let packed = PackedWeight::pack(n, k, &w, t);
            assert_eq!(packed.unpack(), want);
            assert_eq!(PackedWeight::pack_transposed(n, k, &w_kn, t).unpack(), want);
            let transposed = packed.transposed();
            assert_eq!((transposed.n(), transposed.k()), (k, n));
            assert_eq!(transposed.unpack(), want_kn);
            let halves: Vec<bf16> = w.iter().map(|&v| bf16::from_f32(v)).collect();
            assert_eq!(
                PackedWeight::pack_bf16(n, k, &halves, t).unpack(),
                stored(t, &round(&w))
            );
            let halves: Vec<f16> = w.iter().map(|&v| f16::from_f32(v)).collect();
            assert_eq!(
                PackedWeight::pack_f16(n, k, &halves, t).unpack(),
                stored(t, &stored(WeightType::F16, &w))
            );
        }
    }
}

#[test]
fn matmul_matches_in_all_four_orientations() {
    let mut random = Random(19);
    let mut shapes = vec![
        (1, 1, 1),
        (8, 576, 301),
        (301, 8, 576),
        (301, 576, 8),
        (50, 33, 2100),
        (40, 100, 70),
        (77, 3, 50),
        (130, 16, 33),
        (64, 1, 1),
    ];
    for _ in 0..20 {
        shapes.push((
            1 + random.below(60),
            1 + random.below(80),
            1 + random.below(90),
        ));
    }
    for level in available() {
        for &(m, n, k) in &shapes {
            let (a, b, before) = (
                random.values(m * k),
                random.values(n * k),
                random.values(m * n),
            );
            for (trans_a, trans_b) in [(false, false), (false, true), (true, false), (true, true)] {
                let x: Vec<f32> = if trans_a {
                    (0..m * k).map(|i| a[(i % k) * m + i / k]).collect()
                } else {
                    a.clone()
                };
                let w: Vec<f32> = if trans_b {
                    b.clone()
                } else {
                    (0..n * k).map(|i| b[(i % k) * n + i / k]).collect()
                };
                for accumulate in [false, true] {
                    let mut c = before.clone();
                    matmul_at(level, trans_a, trans_b, m, n, k, &a, &b, &mut c, accumulate);
                    let want = reference(m, n, k, &x, &w, |i, s| {
                        if accumulate {
                            s + f64::from(before[i])
                        } else {
                            s
                        }
                    });
                    let tolerance = 1e-6 * (k as f64).sqrt() * 8.0 + 1e-6;
                    assert_close(
                        &format!("{level:?} {trans_a} {trans_b} {m}×{n}×{k}"),
                        &c,
                        &want,
                        tolerance,
                    );
                }
            }
        }
    }
}

#[test]
fn extreme_half_weights_are_stored_as_rounded() {
    // Subnormals, ties, the largest value, what rounds to infinity, and signed zeros.
    let w = [
        0.0,
        -0.0,
        5.960_464_5e-8,
        2.9e-8,
        -3.1e-8,
        6.103_515_6e-5,
        1.000_488_3,
        1.001_464_8,
        65504.0,
        65519.9,
        65520.0,
        -1e9,
        f32::INFINITY,
        1e-30,
    ];
    let packed = PackedWeight::pack(1, w.len(), &w, WeightType::F16);
    let bits = |values: &[f32]| values.iter().map(|v| v.to_bits()).collect::<Vec<_>>();
    assert_eq!(bits(&packed.unpack()), bits(&stored(WeightType::F16, &w)));
}

#[test]
fn empty_dimensions_are_harmless() {
    for level in available() {
        let w = PackedWeight::pack(3, 0, &[], WeightType::Bf16);
        let mut out = [9.0; 6];
        gemm_at(
            level,
            2,
            &[],
            &w,
            &mut out,
            &Epilogue {
                bias: Some(&[1.0, 2.0, 3.0]),
                ..Epilogue::default()
            },
        );
        assert_eq!(out, [1.0, 2.0, 3.0, 1.0, 2.0, 3.0]);
        let w = PackedWeight::pack(0, 4, &[], WeightType::F32);
        gemm_at(level, 2, &[0.0; 8], &w, &mut [], &Epilogue::default());
        assert_eq!(w.transposed().unpack(), Vec::<f32>::new());
    }
}

#[test]
fn streamed_weights_give_what_packed_ones_do() {
    for (m, n, k) in [
        (1, 70, 96),
        (3, 33, 45),
        (40, 64, 129),
        (800, 40, 64),
        (5, 40, 4500),
        (0, 5, 5),
        (2, 0, 3),
    ] {
        let values: Vec<f32> = (0..n * k)
            .map(|i| ((i * 37 % 101) as f32 - 50.0) / 64.0)
            .collect();
        let x: Vec<f32> = (0..m * k)
            .map(|i| ((i * 53 % 97) as f32 - 48.0) / 32.0)
            .collect();
        let bias: Vec<f32> = (0..n).map(|i| i as f32 / 8.0).collect();
        let epilogue = Epilogue {
            bias: Some(&bias),
            activation: Activation::Relu6,
            accumulate: false,
        };
        for t in [WeightType::F32, WeightType::F16, WeightType::Bf16] {
            let mut expected = vec![0.0; m * n];
            gemm(
                m,
                &x,
                &PackedWeight::pack(n, k, &values, t),
                &mut expected,
                &epilogue,
            );
            let mut found = vec![0.0; m * n];
            let row = |j: usize, out: &mut [f32]| out.copy_from_slice(&values[j * k..][..k]);
            gemm_streamed(m, n, k, t, &x, &row, &mut found, &epilogue);
            let expected: Vec<f64> = expected.iter().map(|value| f64::from(*value)).collect();
            assert_close(&format!("{t:?} {m}×{n}×{k}"), &found, &expected, 1e-5);
        }
    }
}

/// Whatever rows stand beside a row, its results have the same bits: answers given together equal answers given alone. Only the AMX tiles,
/// which are used from a number of rows on, add up in another order.
#[test]
fn rows_do_not_depend_on_their_neighbours() {
    let mut random = Random(29);
    for level in available() {
        for t in TYPES {
            if level == Level::Amx && t == WeightType::Bf16 {
                continue;
            }
            for (n, k) in [(7, 5), (45, 130), (70, 4099)] {
                let w = PackedWeight::pack(n, k, &random.values(n * k), t);
                let (x, bias) = (random.values(40 * k), random.values(n));
                let before = random.values(40 * n);
                for accumulate in [false, true] {
                    let epilogue = Epilogue {
                        bias: Some(&bias),
                        activation: Activation::None,
                        accumulate,
                    };
                    let mut alone = before.clone();
                    for (row, out) in x.chunks(k).zip(alone.chunks_mut(n)) {
                        gemm_at(level, 1, row, &w, out, &epilogue);
                    }
                    for m in (2..=16).chain([27, 28, 40]) {
                        let mut out = before[..m * n].to_vec();
                        gemm_at(level, m, &x[..m * k], &w, &mut out, &epilogue);
                        assert_eq!(out, alone[..m * n], "{level:?} {t:?} {m}×{n}×{k}");
                    }
                }
            }
        }
    }
}
