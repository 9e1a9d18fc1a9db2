//! Depthwise convolution against a direct sum, and its gradients against the exact derivative of that sum.

use mgm_kernels::depthwise::{DepthwiseShape, depthwise_at, depthwise_backward_at};
use mgm_kernels::level::available;

fn values(seed: u64, count: usize) -> Vec<f32> {
    let mut state = seed;
    (0..count)
        .map(|_| {
            state = state
                .wrapping_mul(6_364_136_223_846_793_005)
                .wrapping_add(1_442_695_040_888_963_407);
            (state >> 33) as f32 / (1u64 << 30) as f32 - 1.0
        })
        .collect()
}

/// Calls `f(output index, input index, weight index)` for every product of the convolution.
fn products(s: &DepthwiseShape, mut f: impl FnMut(usize, usize, usize)) {
    for b in 0..s.batch {
        for oy in 0..s.out_height() {
            for ox in 0..s.out_width() {
                for ky in 0..s.kernel {
                    for kx in 0..s.kernel {
                        let (y, x) = (oy * s.stride + ky, ox * s.stride + kx);
                        if y < s.pad_top
                            || x < s.pad_left
                            || y - s.pad_top >= s.height
                            || x - s.pad_left >= s.width
                        {
                            continue;
                        }
                        let (iy, ix) = (y - s.pad_top, x - s.pad_left);
                        for c in 0..s.channels {
                            f(
                                ((b * s.out_height() + oy) * s.out_width() + ox) * s.channels + c,
                                ((b * s.height + iy) * s.width + ix) * s.channels + c,
                                (ky * s.kernel + kx) * s.channels + c,
                            );
                        }
                    }
                }
            }
        }
    }
}

fn shapes() -> Vec<DepthwiseShape> {
    let mut shapes = Vec::new();
    for (kernel, stride, pads, height, width, channels) in [
        (7, 1, [3, 3, 3, 3], 12, 13, 37),
        (7, 1, [3, 3, 3, 3], 9, 31, 37),
        (7, 1, [2, 1, 0, 4], 8, 25, 48),
        (3, 1, [1, 1, 1, 1], 9, 7, 16),
        (3, 2, [0, 0, 1, 1], 10, 8, 33),
        (5, 1, [2, 2, 2, 2], 6, 20, 48),
        (5, 2, [1, 1, 2, 2], 11, 12, 5),
        (5, 2, [2, 1, 2, 3], 7, 9, 20),
        (7, 1, [3, 3, 3, 3], 2, 3, 17),
        (1, 1, [0, 0, 0, 0], 3, 3, 40),
        (3, 3, [5, 4, 6, 0], 4, 5, 18),
    ] {
        let [pad_top, pad_left, pad_bottom, pad_right] = pads;
        shapes.push(DepthwiseShape {
            batch: 2,
            height,
            width,
            channels,
            kernel,
            stride,
            pad_top,
            pad_left,
            pad_bottom,
            pad_right,
        });
    }
    shapes
}

fn assert_close(what: &str, got: &[f32], want: &[f64]) {
    for (i, (&g, &w)) in got.iter().zip(want).enumerate() {
        assert!(
            (f64::from(g) - w).abs() < 2e-5,
            "{what}: element {i}: got {g}, expected {w}"
        );
    }
}

#[test]
fn forward_and_backward_match_direct_sums() {
    for level in available() {
        for s in shapes() {
            let x = values(1, s.batch * s.height * s.width * s.channels);
            let weight = values(2, s.kernel * s.kernel * s.channels);
            let bias = values(3, s.channels);
            let out_len = s.batch * s.out_height() * s.out_width() * s.channels;
            let what = format!("{level:?} {s:?}");

            let mut want: Vec<f64> = (0..out_len)
                .map(|i| f64::from(bias[i % s.channels]))
                .collect();
            products(&s, |o, i, w| {
                want[o] += f64::from(x[i]) * f64::from(weight[w])
            });
            let mut out = vec![f32::NAN; out_len];
            depthwise_at(level, &s, &x, &weight, Some(&bias), &mut out);
            assert_close(&what, &out, &want);

            let grad = values(4, out_len);
            let (mut dx, mut dw) = (vec![0.0f64; x.len()], vec![0.0f64; weight.len()]);
            let mut db = vec![0.0f64; s.channels];
            products(&s, |o, i, w| {
                dx[i] += f64::from(grad[o]) * f64::from(weight[w]);
                dw[w] += f64::from(grad[o]) * f64::from(x[i]);
            });
            for (i, &g) in grad.iter().enumerate() {
                db[i % s.channels] += f64::from(g);
            }
            let (mut got_x, mut got_w, mut got_b) = (
                vec![f32::NAN; x.len()],
                vec![f32::NAN; weight.len()],
                vec![f32::NAN; s.channels],
            );
            depthwise_backward_at(
                level, &s, &x, &weight, &grad, &mut got_x, &mut got_w, &mut got_b,
            );
            assert_close(&format!("dx {what}"), &got_x, &dx);
            assert_close(&format!("dweight {what}"), &got_w, &dw);
            assert_close(&format!("dbias {what}"), &got_b, &db);
        }
    }
}

#[test]
fn a_kernel_larger_than_the_input_gives_an_empty_output() {
    let s = DepthwiseShape {
        batch: 1,
        height: 2,
        width: 2,
        channels: 3,
        kernel: 5,
        stride: 1,
        pad_top: 1,
        pad_left: 1,
        pad_bottom: 1,
        pad_right: 1,
    };
    assert_eq!((s.out_height(), s.out_width()), (0, 0));
    let (x, w) = (vec![1.0; 12], vec![1.0; 75]);
    for level in available() {
        depthwise_at(level, &s, &x, &w, None, &mut []);
        let (mut dx, mut dw, mut db) = (vec![1.0; 12], vec![1.0; 75], vec![1.0; 3]);
        depthwise_backward_at(level, &s, &x, &w, &[], &mut dx, &mut dw, &mut db);
        assert!(dx.iter().chain(&dw).chain(&db).all(|&v| v == 0.0));
    }
}
