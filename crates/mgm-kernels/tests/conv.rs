//! Convolution and group normalisation against plain loops in f64, odd shapes, every level of the machine.

use half::bf16;
use mgm_kernels::conv::{ConvBias, ConvInput, ConvShape, ConvWeight, conv2d_at};
use mgm_kernels::conv_backward::conv2d_backward_at;
use mgm_kernels::gemm::{Activation, PackedWeight, WeightType};
use mgm_kernels::group_norm::{ChannelAffine, channel_affine_at, group_norm_affine_at};
use mgm_kernels::level::{Level, available, has_avx512_bf16};
use mgm_kernels::quant::{Bytes, QuantType, QuantWeight, quantize};

struct Random(u64);

impl Random {
    fn values(&mut self, count: usize) -> Vec<f32> {
        (0..count)
            .map(|_| {
                self.0 = self
                    .0
                    .wrapping_mul(6_364_136_223_846_793_005)
                    .wrapping_add(1_442_695_040_888_963_407);
                (self.0 >> 33) as f32 / (1u64 << 30) as f32 - 1.0
            })
            .collect()
    }
}

fn silu(x: f64) -> f64 {
    x / (1.0 + (-x).exp())
}

fn rounded(values: &[f32]) -> Vec<f32> {
    values.iter().map(|&v| bf16::from_f32(v).to_f32()).collect()
}

/// The plain convolution: `x` as `[batch, height, width, channels]`, `w [n, kernel, kernel, channels]`.
fn reference(s: &ConvShape, x: &[f64], w: &[f32], n: usize, bias: &[f32]) -> Vec<f64> {
    let (height, width) = (
        s.height * s.enlarge - s.trim[0],
        s.width * s.enlarge - s.trim[1],
    );
    let mut out = Vec::new();
    for b in 0..s.batch {
        for oy in 0..s.out_height() {
            for ox in 0..s.out_width() {
                for j in 0..n {
                    let mut sum = f64::from(bias[j]);
                    for ky in 0..s.kernel {
                        for kx in 0..s.kernel {
                            let y = (oy * s.stride + ky) as isize - s.pad_rows[0] as isize;
                            let x_ = (ox * s.stride + kx) as isize - s.pad_columns[0] as isize;
                            if y < 0 || x_ < 0 || y >= height as isize || x_ >= width as isize {
                                continue;
                            }
                            let (y, x_) = (y as usize / s.enlarge, x_ as usize / s.enlarge);
                            for c in 0..s.channels {
                                let at = ((b * s.height + y) * s.width + x_) * s.channels + c;
                                let tap = (j * s.kernel + ky) * s.kernel + kx;
                                sum += x[at] * f64::from(w[tap * s.channels + c]);
                            }
                        }
                    }
                    out.push(sum);
                }
            }
        }
    }
    out
}

fn assert_close(what: &str, got: &[f32], want: &[f64], tolerance: f64) {
    assert_eq!(got.len(), want.len(), "{what}: length");
    let largest = want.iter().fold(1e-6f64, |m, v| m.max(v.abs()));
    for (i, (&g, &w)) in got.iter().zip(want).enumerate() {
        assert!(
            (f64::from(g) - w).abs() <= tolerance * largest,
            "{what}: element {i}: got {g}, expected {w}"
        );
    }
}

fn shape(
    [batch, height, width, channels]: [usize; 4],
    kernel: usize,
    stride: usize,
    pad_rows: [usize; 2],
    pad_columns: [usize; 2],
    enlarge: usize,
) -> ConvShape {
    ConvShape {
        batch,
        height,
        width,
        channels,
        kernel,
        stride,
        pad_rows,
        pad_columns,
        enlarge,
        trim: [0, 0],
    }
}

fn shapes() -> Vec<(ConvShape, usize)> {
    vec![
        (shape([2, 5, 7, 4], 3, 1, [1, 1], [1, 1], 1), 5),
        (shape([1, 6, 6, 3], 3, 1, [1, 1], [1, 1], 1), 33),
        (shape([2, 8, 6, 32], 3, 2, [1, 1], [1, 1], 1), 40),
        // The VAE encoder's downsampling: padding below and to the right only.
        (shape([1, 8, 9, 6], 3, 2, [0, 1], [0, 1], 1), 7),
        (shape([2, 4, 5, 10], 3, 1, [1, 1], [1, 1], 2), 12),
        (
            ConvShape {
                trim: [1, 0],
                ..shape([2, 4, 5, 10], 3, 1, [1, 1], [1, 1], 2)
            },
            12,
        ),
        (
            ConvShape {
                trim: [0, 1],
                ..shape([1, 3, 3, 6], 3, 1, [1, 1], [1, 1], 1)
            },
            4,
        ),
        (shape([2, 3, 4, 70], 1, 1, [0, 0], [0, 0], 1), 20),
        (shape([1, 1, 1, 5], 3, 1, [1, 1], [1, 1], 1), 1),
        // More padding than input, and a kernel of even side.
        (shape([1, 2, 2, 5], 4, 3, [4, 2], [3, 5], 1), 3),
    ]
}

fn rounds(level: Level, t: WeightType) -> bool {
    t == WeightType::Bf16 && (level == Level::Amx || (level == Level::Avx512 && has_avx512_bf16()))
}

#[test]
fn convolutions_equal_plain_loops() {
    let mut random = Random(1);
    for (s, n) in shapes() {
        let x = random.values(s.batch * s.height * s.width * s.channels);
        let w = random.values(n * s.patch_len());
        let bias = random.values(n);
        let exact: Vec<f64> = x.iter().map(|&v| f64::from(v)).collect();
        let narrow: Vec<f64> = rounded(&x).iter().map(|&v| f64::from(v)).collect();
        for t in [WeightType::F32, WeightType::Bf16, WeightType::F16] {
            let weight = PackedWeight::pack(n, s.patch_len(), &w, t);
            let stored = weight.unpack();
            for level in available() {
                let input = if rounds(level, t) { &narrow } else { &exact };
                let want = reference(&s, input, &stored, n, &bias);
                let mut got = vec![f32::NAN; want.len()];
                let x = ConvInput {
                    values: &x,
                    affine: None,
                };
                let weight = ConvWeight::Packed(&weight);
                conv2d_at(level, &s, x, weight, ConvBias::Shared(&bias), &mut got);
                assert_close(&format!("{s:?} {t:?} {level:?}"), &got, &want, 4e-6);
            }
        }
    }
}

#[test]
fn normalisation_and_bias_of_each_picture_are_fused_in() {
    let mut random = Random(2);
    for (s, n) in shapes() {
        let x = random.values(s.batch * s.height * s.width * s.channels);
        let w = random.values(n * s.patch_len());
        let bias = random.values(s.batch * n);
        let affine = ChannelAffine {
            scale: random.values(s.batch * s.channels),
            shift: random.values(s.batch * s.channels),
        };
        let picture = s.height * s.width * s.channels;
        let weight = PackedWeight::pack(n, s.patch_len(), &w, WeightType::F32);
        for activation in [Activation::None, Activation::Silu, Activation::QuickGelu] {
            let mapped: Vec<f64> = x
                .iter()
                .enumerate()
                .map(|(i, &v)| {
                    let at = i / picture * s.channels + i % s.channels;
                    let v =
                        f64::from(v) * f64::from(affine.scale[at]) + f64::from(affine.shift[at]);
                    match activation {
                        Activation::Silu => silu(v),
                        Activation::QuickGelu => v / (1.0 + (-1.702 * v).exp()),
                        _ => v,
                    }
                })
                .collect();
            let mut want = Vec::new();
            let one = ConvShape { batch: 1, ..s };
            for b in 0..s.batch {
                let x = &mapped[b * picture..][..picture];
                want.extend(reference(&one, x, &w, n, &bias[b * n..][..n]));
            }
            for level in available() {
                let mut got = vec![f32::NAN; want.len()];
                let x = ConvInput {
                    values: &x,
                    affine: Some((&affine, activation)),
                };
                let weight = ConvWeight::Packed(&weight);
                conv2d_at(level, &s, x, weight, ConvBias::PerPicture(&bias), &mut got);
                assert_close(
                    &format!("{s:?} {activation:?} {level:?}"),
                    &got,
                    &want,
                    4e-6,
                );
            }
        }
    }
}

#[test]
fn quantised_weights_are_read_in_place() {
    let mut random = Random(3);
    let s = shape([2, 5, 6, 32], 3, 1, [1, 1], [1, 1], 1);
    let n = 21;
    let x = random.values(s.batch * s.height * s.width * s.channels);
    let w = random.values(n * s.patch_len());
    let blocks = Bytes::from_vec(quantize(QuantType::Q8_0, &w));
    let weight = QuantWeight::new(QuantType::Q8_0, n, s.patch_len(), blocks).unwrap();
    let stored = weight.dequantize_all();
    let exact: Vec<f64> = x.iter().map(|&v| f64::from(v)).collect();
    let want = reference(&s, &exact, &stored, n, &vec![0.0; n]);
    for level in available() {
        let mut got = vec![f32::NAN; want.len()];
        let x = ConvInput {
            values: &x,
            affine: None,
        };
        let weight = ConvWeight::Quantised(&weight);
        conv2d_at(level, &s, x, weight, ConvBias::None, &mut got);
        let tolerance = if rounds(level, WeightType::Bf16) {
            5e-3
        } else {
            4e-6
        };
        assert_close(&format!("{level:?}"), &got, &want, tolerance);
    }
}

/// Several bands: the packed patches of one picture are more than are kept at a time.
#[test]
fn bands_join_without_a_seam() {
    let mut random = Random(4);
    let s = shape([1, 70, 330, 40], 3, 1, [1, 1], [1, 1], 1);
    let n = 3;
    let x = random.values(s.height * s.width * s.channels);
    let w = random.values(n * s.patch_len());
    let affine = ChannelAffine {
        scale: vec![1.0; s.channels],
        shift: vec![0.0; s.channels],
    };
    let exact: Vec<f64> = x.iter().map(|&v| f64::from(v)).collect();
    let want = reference(&s, &exact, &w, n, &[0.0; 3]);
    let weight = PackedWeight::pack(n, s.patch_len(), &w, WeightType::F32);
    for affine in [None, Some((&affine, Activation::None))] {
        let mut got = vec![f32::NAN; want.len()];
        let x = ConvInput { values: &x, affine };
        let weight = ConvWeight::Packed(&weight);
        let level = *available().last().unwrap();
        conv2d_at(level, &s, x, weight, ConvBias::None, &mut got);
        assert_close("bands", &got, &want, 4e-6);
    }
}

#[test]
fn group_norm_equals_its_formula_far_from_zero_too() {
    let mut random = Random(5);
    for (batch, positions, channels, groups) in
        [(1, 1, 4, 2), (2, 35, 12, 3), (1, 700, 64, 32), (2, 3, 6, 6)]
    {
        for offset in [0.0f32, 300.0] {
            let mut x = random.values(batch * positions * channels);
            x.iter_mut().for_each(|v| *v += offset);
            let gamma = random.values(channels);
            let beta = random.values(channels);
            let width = channels / groups;
            let mut want = vec![0.0f64; x.len()];
            for b in 0..batch {
                for g in 0..groups {
                    let places: Vec<usize> = (0..positions)
                        .flat_map(|p| {
                            (g * width..(g + 1) * width)
                                .map(move |c| (b * positions + p) * channels + c)
                        })
                        .collect();
                    let count = places.len() as f64;
                    let mean = places.iter().map(|&i| f64::from(x[i])).sum::<f64>() / count;
                    let variance = places
                        .iter()
                        .map(|&i| (f64::from(x[i]) - mean).powi(2))
                        .sum::<f64>()
                        / count;
                    for i in places {
                        let c = i % channels;
                        let normal = (f64::from(x[i]) - mean) / (variance + 1e-5).sqrt();
                        want[i] = silu(normal * f64::from(gamma[c]) + f64::from(beta[c]));
                    }
                }
            }
            for level in available() {
                let affine =
                    group_norm_affine_at(level, batch, channels, groups, &x, &gamma, &beta, 1e-5);
                let mut got = vec![f32::NAN; x.len()];
                channel_affine_at(
                    level,
                    batch,
                    channels,
                    &x,
                    &affine,
                    Activation::Silu,
                    &mut got,
                );
                // Far from zero x·scale and shift nearly cancel: half an ulp of 300·scale.
                let tolerance = if offset > 0.0 { 3e-4 } else { 3e-6 };
                assert_close(
                    &format!("{level:?} offset {offset}"),
                    &got,
                    &want,
                    tolerance,
                );
            }
        }
    }
}

/// The convolution is linear in the input and in the weight: `⟨conv(x, w), g⟩ = ⟨x, dx⟩ = ⟨w, dw⟩`, and for every other pair of inputs too.
#[test]
fn gradients_are_the_adjoints() {
    let mut random = Random(6);
    let dot =
        |a: &[f32], b: &[f64]| -> f64 { a.iter().zip(b).map(|(&a, &b)| f64::from(a) * b).sum() };
    let widen = |values: &[f32]| -> Vec<f64> { values.iter().map(|&v| f64::from(v)).collect() };
    let mut all = shapes();
    // More than one band.
    all.push((shape([1, 70, 330, 40], 3, 1, [1, 1], [1, 1], 1), 3));
    for (s, n) in all {
        let count = s.batch * s.height * s.width * s.channels;
        let (x, other_x) = (random.values(count), random.values(count));
        let w = random.values(n * s.patch_len());
        let other_w = random.values(w.len());
        let g = random.values(s.batch * s.out_height() * s.out_width() * n);
        let zero = vec![0.0; n];
        for level in available() {
            let (mut dx, mut dw) = (vec![f32::NAN; count], vec![1.0; w.len()]);
            conv2d_backward_at(level, &s, &x, &w, &g, Some(&mut dx), Some(&mut dw));
            // The weight's gradient is added to what is there.
            dw.iter_mut().for_each(|v| *v -= 1.0);
            let check = |what: &str, found: f64, expected: f64| {
                let scale = expected.abs().max((g.len() as f64).sqrt());
                assert!(
                    (found - expected).abs() < 1e-4 * scale,
                    "{level:?} {s:?} {what}: {found} {expected}"
                );
            };
            check(
                "dx",
                dot(&dx, &widen(&other_x)),
                dot(&g, &reference(&s, &widen(&other_x), &w, n, &zero)),
            );
            check(
                "dw",
                dot(&dw, &widen(&other_w)),
                dot(&g, &reference(&s, &widen(&x), &other_w, n, &zero)),
            );
            let mut alone = vec![f32::NAN; count];
            conv2d_backward_at(level, &s, &x, &w, &g, Some(&mut alone), None);
            assert_eq!(alone, dx);
        }
    }
}
