//! Norms, softmax, activations and conversions against double precision. The process-wide level is used here; the
//! activations are run at every level through the products' epilogue too.

use half::{bf16, f16};
use mgm_kernels::elementwise::*;

/// Values over the whole range that matters, dense near zero, with the special ones.
fn inputs() -> Vec<f32> {
    let mut values: Vec<f32> = (-40_000..=40_000).map(|i| i as f32 * 5e-4).collect();
    values.extend((-1000..=1000).map(|i| i as f32 * 0.1));
    values.extend((0..200).flat_map(|i| [2f32.powi(-i / 2), -(2f32.powi(-i / 2))]));
    values
}

/// `erfc` by its continued fraction for large arguments and the series of `erf` for small ones.
fn erfc(x: f64) -> f64 {
    if x < 0.0 {
        return 2.0 - erfc(-x);
    }
    if x < 2.5 {
        let (mut term, mut sum) = (x, x);
        for n in 1..200 {
            term *= -x * x / f64::from(n);
            sum += term / f64::from(2 * n + 1);
        }
        return 1.0 - 2.0 / std::f64::consts::PI.sqrt() * sum;
    }
    let mut fraction = x;
    for n in (1..200).rev() {
        fraction = x + f64::from(n) / 2.0 / fraction;
    }
    (-x * x).exp() / std::f64::consts::PI.sqrt() / fraction
}

fn check(
    name: &str,
    f: impl Fn(&mut [f32]),
    reference: impl Fn(f64) -> f64,
    relative: f64,
    absolute: f64,
) {
    let x = inputs();
    let mut out = x.clone();
    f(&mut out);
    let mut worst = (0.0f64, 0.0f32);
    for (&x, &got) in x.iter().zip(&out) {
        let want = reference(f64::from(x));
        if want.abs() > f64::from(f32::MAX) {
            assert!(got == f32::INFINITY, "{name}({x}) = {got}");
            continue;
        }
        let error = (f64::from(got) - want).abs();
        if error > absolute && want != 0.0 && error / want.abs() > worst.0 {
            worst = (error / want.abs(), x);
        }
        assert!(
            want != 0.0 || error <= absolute,
            "{name}({x}) = {got}, expected {want}"
        );
    }
    assert!(
        worst.0 < relative,
        "{name}: relative error {:.3e} at {}",
        worst.0,
        worst.1
    );
}

#[test]
fn functions_are_accurate() {
    check("exp", exp, f64::exp, 3e-7, 2e-38);
    check("tanh", tanh, f64::tanh, 1e-6, 1e-38);
    check("erf", erf, |x| 1.0 - erfc(x), 1e-6, 1e-9);
    let phi = |x: f64| 0.5 * erfc(-x / 2f64.sqrt());
    // Far tails: the exponent's own rounding is multiplied by its size, so the bound there is absolute.
    check("gelu_erf", gelu_erf, |x| x * phi(x), 1e-6, 2e-9);
    let tanh_gelu = |x: f64| {
        x / (1.0 + (-2.0 * (2.0 / std::f64::consts::PI).sqrt() * (x + 0.044715 * x * x * x)).exp())
    };
    // The exponential multiplies the rounding of its argument by the argument, so 1e-6 is not reached without FMA.
    check("gelu_tanh", gelu_tanh, tanh_gelu, 1.5e-6, 2e-9);
    check(
        "quick_gelu",
        quick_gelu,
        |x| x / (1.0 + (-1.702 * x).exp()),
        2e-6,
        2e-9,
    );
    check("silu", silu, |x| x / (1.0 + (-x).exp()), 1e-6, 1e-36);
    check("relu6", relu6, |x| x.clamp(0.0, 6.0), 0.0 + 1e-12, 0.0);
}

#[test]
fn special_values_pass_through() {
    for f in [gelu_erf, gelu_tanh, quick_gelu, silu] {
        let mut x = [f32::NAN, f32::NEG_INFINITY, f32::INFINITY, 0.0, -1e30, 1e30];
        f(&mut x);
        assert!(x[0].is_nan());
        assert_eq!(x[1..], [0.0, f32::INFINITY, 0.0, 0.0, 1e30]);
    }
    let mut x = [f32::NAN, f32::NEG_INFINITY, f32::INFINITY];
    exp(&mut x);
    assert!(x[0].is_nan() && x[1] == 0.0 && x[2] == f32::INFINITY);
}

#[test]
fn norms_match_double_precision() {
    for (rows, c) in [(1, 1), (3, 7), (5, 64), (2, 577), (70, 512)] {
        let x: Vec<f32> = (0..rows * c)
            .map(|i| ((i * 37 % 101) as f32 - 50.0) * 0.07 + 3.0)
            .collect();
        let gamma: Vec<f32> = (0..c).map(|i| 0.5 + (i % 5) as f32 * 0.2).collect();
        let beta: Vec<f32> = (0..c).map(|i| (i % 3) as f32 - 1.0).collect();
        let mut out = vec![0.0; rows * c];
        for (g, b) in [
            (None, None),
            (Some(&gamma), None),
            (None, Some(&beta)),
            (Some(&gamma), Some(&beta)),
        ] {
            layer_norm(
                rows,
                c,
                &x,
                g.map(|g| &g[..]),
                b.map(|b| &b[..]),
                1e-5,
                &mut out,
            );
            for (row, got) in x.chunks(c).zip(out.chunks(c)) {
                let mean = row.iter().map(|&v| f64::from(v)).sum::<f64>() / c as f64;
                let variance = row
                    .iter()
                    .map(|&v| (f64::from(v) - mean).powi(2))
                    .sum::<f64>()
                    / c as f64;
                for i in 0..c {
                    let mut want = (f64::from(row[i]) - mean) / (variance + 1e-5).sqrt();
                    want *= g.map_or(1.0, |g| f64::from(g[i]));
                    want += b.map_or(0.0, |b| f64::from(b[i]));
                    assert!((f64::from(got[i]) - want).abs() < 2e-5, "{} {want}", got[i]);
                }
            }
        }
        rms_norm(rows, c, &x, &gamma, 1e-6, 1.0, &mut out);
        for (row, got) in x.chunks(c).zip(out.chunks(c)) {
            let square = row.iter().map(|&v| f64::from(v).powi(2)).sum::<f64>() / c as f64;
            for i in 0..c {
                let want = f64::from(row[i]) / (square + 1e-6).sqrt() * (f64::from(gamma[i]) + 1.0);
                assert!(
                    (f64::from(got[i]) - want).abs() < 2e-6 * want.abs().max(1.0),
                    "{} {want}",
                    got[i]
                );
            }
        }
    }
}

#[test]
fn softmax_sums_to_one_and_survives_masks() {
    let c = 333;
    let mut x: Vec<f32> = (0..2 * c)
        .map(|i| {
            if i % 7 == 0 {
                f32::NEG_INFINITY
            } else {
                (i % 50) as f32 * 3.0
            }
        })
        .collect();
    let want: Vec<f64> = x
        .chunks(c)
        .flat_map(|row| {
            let total: f64 = row.iter().map(|&v| (f64::from(v) - 147.0).exp()).sum();
            row.iter()
                .map(move |&v| (f64::from(v) - 147.0).exp() / total)
                .collect::<Vec<_>>()
        })
        .collect();
    softmax_rows(2, c, &mut x);
    for (got, want) in x.iter().zip(want) {
        assert!((f64::from(*got) - want).abs() < 1e-6);
    }
    let mut hidden = [f32::NEG_INFINITY; 20];
    softmax_rows(1, 20, &mut hidden);
    assert_eq!(hidden, [0.0; 20]);
}

#[test]
fn bf16_conversion_is_exact_and_rounds_to_even() {
    let every: Vec<bf16> = (0..=u16::MAX).map(bf16::from_bits).collect();
    let mut wide = vec![0.0; every.len()];
    bf16_to_f32(&every, &mut wide);
    let mut back = vec![bf16::ZERO; every.len()];
    f32_to_bf16(&wide, &mut back);
    for (a, b) in every.iter().zip(&back) {
        assert!(
            a.to_bits() == b.to_bits() || (a.is_nan() && b.is_nan()),
            "{a:?} {b:?}"
        );
    }
    let values: Vec<f32> = (0..100_000u32)
        .map(|i| f32::from_bits(i.wrapping_mul(2_654_435_761)))
        .filter(|v| !v.is_nan())
        .collect();
    let mut rounded = vec![bf16::ZERO; values.len()];
    f32_to_bf16(&values, &mut rounded);
    for (v, r) in values.iter().zip(rounded) {
        assert_eq!(r.to_bits(), bf16::from_f32(*v).to_bits(), "{v}");
    }
}

#[test]
fn f16_conversion_is_exact_and_rounds_to_even() {
    let every: Vec<f16> = (0..=u16::MAX).map(f16::from_bits).collect();
    let mut wide = vec![0.0; every.len()];
    f16_to_f32(&every, &mut wide);
    for (half, wide) in every.iter().zip(&wide) {
        let same = half.to_f32().to_bits() == wide.to_bits();
        assert!(same || (half.is_nan() && wide.is_nan()), "{half:?} {wide}");
    }
    // The numbers themselves, the ties between neighbours, and what lies just beside a tie.
    let mut values: Vec<f32> = wide.iter().copied().filter(|v| v.is_finite()).collect();
    for bits in 0..0x7c00u16 {
        let pair = [bits, bits + 1].map(|bits| f64::from(f16::from_bits(bits).to_f32()));
        let upper = if pair[1].is_finite() {
            pair[1]
        } else {
            65536.0
        };
        let tie = ((pair[0] + upper) / 2.0) as f32;
        values.extend([tie, tie.next_up(), tie.next_down()]);
        values.extend([-tie, -tie.next_up(), -tie.next_down()]);
    }
    values.extend((0..300_000u32).map(|i| f32::from_bits(i.wrapping_mul(2_654_435_761))));
    values.extend([f32::INFINITY, f32::NEG_INFINITY, f32::NAN]);
    let mut rounded = vec![f16::ZERO; values.len()];
    f32_to_f16(&values, &mut rounded);
    for (v, r) in values.iter().zip(rounded) {
        let same = r.to_bits() == f16::from_f32(*v).to_bits();
        assert!(same || (r.is_nan() && v.is_nan()), "{v} {r:?}");
    }
}
