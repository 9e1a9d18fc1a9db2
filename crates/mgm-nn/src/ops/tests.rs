//! Every operation against finite differences and against a composition of candle's own operations.

use std::sync::Arc;

use candle_core::{DType, Device, Result, Tensor, Var};
use mgm_kernels::attention::AttentionShape;
use mgm_kernels::gemm::{Activation, PackedWeight, WeightType};
use mgm_kernels::quant::{self, Bytes, QuantType, QuantWeight};

use super::*;
use crate::{FrozenWeight, Linear};

/// Deterministic values in ±1.
pub(crate) fn random(shape: &[usize], seed: u64) -> Tensor {
    let mut state = seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) ^ 0x1234_5678;
    let values: Vec<f32> = (0..shape.iter().product::<usize>())
        .map(|_| {
            state = state
                .wrapping_mul(6_364_136_223_846_793_005)
                .wrapping_add(1_442_695_040_888_963_407);
            ((state >> 40) as f32 / (1u64 << 23) as f32) - 1.0
        })
        .collect();
    Tensor::from_vec(values, shape, &Device::Cpu).unwrap()
}

fn dot(a: &Tensor, b: &Tensor) -> f64 {
    let a = a.flatten_all().unwrap().to_vec1::<f32>().unwrap();
    let b = b.flatten_all().unwrap().to_vec1::<f32>().unwrap();
    assert_eq!(a.len(), b.len());
    a.iter()
        .zip(&b)
        .map(|(&a, &b)| f64::from(a) * f64::from(b))
        .sum()
}

pub(crate) fn assert_close(name: &str, found: &Tensor, expected: &Tensor, tolerance: f32) {
    assert_eq!(found.dims(), expected.dims(), "{name}");
    let expected = expected.flatten_all().unwrap().to_vec1::<f32>().unwrap();
    let found = found.flatten_all().unwrap().to_vec1::<f32>().unwrap();
    let scale = expected
        .iter()
        .fold(1e-2f32, |scale, value| scale.max(value.abs()));
    for (i, (&found, &expected)) in found.iter().zip(&expected).enumerate() {
        let error = (found - expected).abs() / scale;
        assert!(
            error <= tolerance,
            "{name}[{i}]: found {found}, expected {expected}, error {error:e}"
        );
    }
}

type Function<'a> = &'a dyn Fn(&[Tensor]) -> Result<Tensor>;

/// Value of a function and the gradients of `Σ value·projection`.
fn value_and_gradients(function: Function, inputs: &[Tensor]) -> (Tensor, Tensor, Vec<Tensor>) {
    let variables: Vec<Tensor> = inputs
        .iter()
        .map(|input| Var::from_tensor(input).unwrap().into_inner())
        .collect();
    let value = function(&variables).unwrap();
    let projection = random(value.dims(), 77);
    let gradients = (&value * &projection)
        .unwrap()
        .sum_all()
        .unwrap()
        .backward()
        .unwrap();
    let of = |variable: &Tensor| {
        gradients
            .get(variable)
            .cloned()
            .unwrap_or_else(|| panic!("an input got no gradient"))
    };
    (
        value.detach(),
        projection,
        variables.iter().map(of).collect(),
    )
}

/// Gradients against central differences along a random direction of each input.
fn check_differences(name: &str, function: Function, inputs: &[Tensor]) {
    let (_, projection, gradients) = value_and_gradients(function, inputs);
    for (i, gradient) in gradients.iter().enumerate() {
        let direction = random(inputs[i].dims(), 1000 + i as u64);
        let step = 1e-2;
        let at = |sign: f64| {
            let mut moved = inputs.to_vec();
            moved[i] = (&inputs[i] + (&direction * (sign * step)).unwrap()).unwrap();
            dot(&function(&moved).unwrap(), &projection)
        };
        let expected = (at(1.0) - at(-1.0)) / (2.0 * step);
        let found = dot(gradient, &direction);
        let scale = expected.abs().max(0.05);
        assert!(
            (found - expected).abs() / scale < 1e-2,
            "{name}, input {i}: gradient {found}, difference {expected}"
        );
    }
}

/// Values and gradients against another way to write the same function.
fn check_equal(
    name: &str,
    function: Function,
    reference: Function,
    inputs: &[Tensor],
    tolerance: f32,
) {
    let (value, _, gradients) = value_and_gradients(function, inputs);
    let (expected_value, _, expected_gradients) = value_and_gradients(reference, inputs);
    assert_close(name, &value, &expected_value, tolerance);
    for (i, (found, expected)) in gradients.iter().zip(&expected_gradients).enumerate() {
        assert_close(&format!("{name}, gradient {i}"), found, expected, tolerance);
    }
}

fn check(name: &str, function: Function, reference: Function, inputs: &[Tensor]) {
    check_differences(name, function, inputs);
    check_equal(name, function, reference, inputs, 1e-5);
}

#[test]
fn linear_has_the_right_gradients() {
    let inputs = [
        random(&[2, 5, 37], 1),
        random(&[19, 37], 2),
        random(&[19], 3),
    ];
    check(
        "linear",
        &|t| linear(&t[0], &t[1]),
        &|t| linear::composed(&t[0], &t[1], None),
        &inputs[..2],
    );
    check(
        "linear with bias",
        &|t| linear_bias(&t[0], &t[1], &t[2]),
        &|t| linear::composed(&t[0], &t[1], Some(&t[2])),
        &inputs,
    );
    // A view that is not contiguous.
    let views = [random(&[37, 6], 4), random(&[37, 11], 5)];
    check(
        "linear of views",
        &|t| linear(&t[0].t()?, &t[1].t()?),
        &|t| t[0].t()?.contiguous()?.matmul(&t[1]),
        &views,
    );
    let transposed = [random(&[3, 4, 19], 6), random(&[19, 37], 7)];
    check(
        "transposed linear",
        &|t| linear_transposed(&t[0], &t[1]),
        &|t| t[0].reshape((12, 19))?.matmul(&t[1])?.reshape((3, 4, 37)),
        &transposed,
    );
}

fn dense(n: usize, k: usize, seed: u64) -> (Tensor, Vec<f32>) {
    let tensor = random(&[n, k], seed);
    let values = tensor.flatten_all().unwrap().to_vec1().unwrap();
    (tensor, values)
}

#[test]
fn frozen_linear_gives_the_input_its_gradient() {
    let (n, k) = (33, 64);
    let (weight, values) = dense(n, k, 8);
    let packed = FrozenWeight::pack(n, k, &values, WeightType::F32);
    let on_device = FrozenWeight::dense(weight.clone()).unwrap();
    let x = [random(&[7, k], 9)];
    let reference = |t: &[Tensor]| t[0].matmul(&weight.t()?);
    check(
        "frozen linear",
        &|t| frozen_linear(&t[0], &packed),
        &reference,
        &x,
    );
    check(
        "dense frozen linear",
        &|t| frozen_linear(&t[0], &on_device),
        &reference,
        &x,
    );
    let y = [random(&[7, n], 10)];
    let reference = |t: &[Tensor]| t[0].matmul(&weight);
    check(
        "transposed",
        &|t| frozen_linear_transposed(&t[0], &packed),
        &reference,
        &y,
    );
    check(
        "dense transposed",
        &|t| frozen_linear_transposed(&t[0], &on_device),
        &reference,
        &y,
    );

    // bf16 weights (and, on some machines, inputs): the values that were stored, within bf16's precision.
    let rounded = FrozenWeight::pack(n, k, &values, WeightType::Bf16);
    let stored = rounded.to_tensor().unwrap();
    assert_close("bf16 weight", &stored, &weight, 1.0 / 256.0);
    check_equal(
        "bf16 frozen linear",
        &|t| frozen_linear(&t[0], &rounded),
        &|t| t[0].matmul(&stored.t()?),
        &x,
        1e-2,
    );
}

#[test]
fn quantised_linear_equals_its_dequantised_weight() {
    for quant_type in QuantType::ALL {
        let (n, k) = (24, 512);
        let (_, values) = dense(n, k, 11);
        let blocks = Bytes::from_vec(quant::quantize(quant_type, &values));
        let weight = FrozenWeight::quantised(QuantWeight::new(quant_type, n, k, blocks).unwrap());
        let dequantised = weight.to_tensor().unwrap();
        for rows in [1, 5, 200] {
            let x = [random(&[rows, k], 12)];
            // Inputs are quantised to 8 bits for few rows, rounded to bf16 for many; the backward is in bf16.
            check_equal(
                &format!("{} with {rows} rows", quant_type.name()),
                &|t| frozen_linear(&t[0], &weight),
                &|t| t[0].matmul(&dequantised.t()?),
                &x,
                1e-2,
            );
        }
    }
}

#[test]
fn adapters_train_and_freeze() {
    let (n, k, rank) = (21, 40, 3);
    let (weight, values) = dense(n, k, 13);
    let packed = FrozenWeight::pack(n, k, &values, WeightType::F32);
    let bias: Arc<[f32]> = random(&[n], 14).to_vec1::<f32>().unwrap().into();
    let bias_tensor = random(&[n], 14);
    let inputs = [
        random(&[6, k], 15),
        random(&[rank, k], 16),
        random(&[n, rank], 17),
    ];
    check(
        "LoRA",
        &|t| lora_linear(&t[0], &packed, Some(&bias), &t[1], &t[2], 0.7),
        &|t| {
            let low = (t[0].matmul(&t[1].t()?)?.matmul(&t[2].t()?)? * 0.7)?;
            (t[0].matmul(&weight.t()?)? + low)?.broadcast_add(&bias_tensor)
        },
        &inputs,
    );
}

#[test]
fn norms_have_the_right_gradients() {
    let inputs = [
        random(&[3, 70, 29], 18),
        random(&[29], 19),
        random(&[29], 20),
    ];
    for offset in [0.0, 1.0] {
        check(
            "RMSNorm",
            &|t| rms_norm(&t[0], &t[1], 1e-5, offset),
            &|t| norm::composed_rms_norm(&t[0], &t[1], 1e-5, offset),
            &inputs[..2],
        );
    }
    check(
        "LayerNorm",
        &|t| layer_norm(&t[0], &t[1], &t[2], 1e-5),
        &|t| {
            norm::composed_layer_norm(&t[0], 1e-5)?
                .broadcast_mul(&t[1])?
                .broadcast_add(&t[2])
        },
        &inputs,
    );
    check(
        "LayerNorm without affine",
        &|t| layer_norm_without_affine(&t[0], 1e-5),
        &|t| norm::composed_layer_norm(&t[0], 1e-5),
        &inputs[..1],
    );
}

#[test]
fn rope_rotates_and_rotates_back() {
    let positions = [0, 1, 5, 1000, 2];
    // The table starts too small and grows; the second one rotates a part of each head.
    for (table, head_dim) in [
        (RopeTable::new(8, 10000.0, 4), 8),
        (RopeTable::new(6, 500.0, 4), 10),
    ] {
        for style in [RopeStyle::Half, RopeStyle::Interleaved] {
            let x = [random(&[5, 3, head_dim], 21)];
            check(
                "rope",
                &|t| rope(&t[0], &table, &positions, style),
                &|t| rope::composed_for_tests(&t[0], &table, &positions, style),
                &x,
            );
        }
    }
    // Position 1, first pair: an angle of one radian.
    let table = RopeTable::new(4, 10000.0, 2);
    let x = Tensor::new(&[[[1f32, 0., 0., 0.]]], &Device::Cpu).unwrap();
    let half = rope(&x, &table, &[1], RopeStyle::Half)
        .unwrap()
        .flatten_all()
        .unwrap()
        .to_vec1::<f32>()
        .unwrap();
    assert_eq!(half, [1f32.cos(), 0.0, 1f32.sin(), 0.0]);
    let interleaved = rope(&x, &table, &[1], RopeStyle::Interleaved)
        .unwrap()
        .flatten_all()
        .unwrap();
    assert_eq!(
        interleaved.to_vec1::<f32>().unwrap(),
        [1f32.cos(), 1f32.sin(), 0.0, 0.0]
    );
    assert!(rope(&x, &table, &[1, 2], RopeStyle::Half).is_err());
}

#[test]
fn ragged_attention_equals_one_segment_at_a_time() {
    for (heads, kv_heads, causal, segments) in [
        (4, 2, true, vec![5, 1, 17, 0, 9]),
        (3, 3, false, vec![12, 12]),
        (6, 1, true, vec![40]),
    ] {
        let rows: usize = segments.iter().sum();
        let spec = AttentionSpec {
            scale: 0.6,
            causal,
            segments,
        };
        let inputs = [
            random(&[rows, heads, 8], 22),
            random(&[rows, kv_heads, 8], 23),
            random(&[rows, kv_heads, 8], 24),
        ];
        check(
            "attention",
            &|t| attention(&t[0], &t[1], &t[2], &spec),
            &|t| attention::composed(&t[0], &t[1], &t[2], &spec),
            &inputs,
        );
    }
    let x = random(&[4, 2, 8], 25);
    let wrong = AttentionSpec {
        scale: 1.0,
        causal: true,
        segments: vec![3],
    };
    let message = attention(&x, &x, &x, &wrong).unwrap_err().to_string();
    assert!(
        message.contains("segments add up to 3 rows, found 4"),
        "{message}"
    );
    // The shape of the kernels' interface that this crate relies on.
    let _ = AttentionShape {
        heads: 1,
        kv_heads: 1,
        head_dim: 1,
        query_len: 1,
        key_len: 1,
        scale: 1.0,
        causal_offset: None,
    };
}

#[test]
fn cached_attention_continues_a_causal_sequence() {
    let (rows, heads, kv_heads, d, capacity) = (11, 4, 2, 8, 16);
    let (q, k, v) = (
        random(&[rows, heads, d], 26),
        random(&[rows, kv_heads, d], 27),
        random(&[rows, kv_heads, d], 28),
    );
    let spec = AttentionSpec {
        scale: 0.4,
        causal: true,
        segments: vec![rows],
    };
    let expected = attention(&q, &k, &v, &spec).unwrap();
    let cache = |x: &Tensor| {
        let cache = Tensor::full(9e9f32, (kv_heads, capacity, d), &Device::Cpu).unwrap();
        cache
            .slice_set(&x.transpose(0, 1).unwrap().contiguous().unwrap(), 1, 0)
            .unwrap();
        cache
    };
    let (keys, values) = (cache(&k), cache(&v));
    for new in [1, 4, rows] {
        let newest = q.narrow(0, rows - new, new).unwrap();
        let found = cached_attention(&newest, &keys, &values, rows, 0.4).unwrap();
        assert_close(
            "cached attention",
            &found,
            &expected.narrow(0, rows - new, new).unwrap(),
            1e-5,
        );
    }
    assert!(cached_attention(&q, &keys, &values, capacity + 1, 0.4).is_err());
    // A gradient is refused, not dropped.
    let q = Var::from_tensor(&q).unwrap();
    let out = cached_attention(q.as_tensor(), &keys, &values, rows, 0.4).unwrap();
    assert!(out.sum_all().unwrap().backward().is_err());
}

#[test]
fn activations_have_the_right_gradients() {
    use Activation::{GeluErf, GeluTanh, QuickGelu, Relu6, Silu};
    // Wide enough to reach both tails; 0 is a special case of the derivative.
    let x = (random(&[3, 4001], 29) * 6.0).unwrap();
    let x = Tensor::cat(
        &[
            &x,
            &Tensor::zeros((3, 1), DType::F32, &Device::Cpu).unwrap(),
        ],
        1,
    )
    .unwrap();
    for kind in [GeluErf, GeluTanh, QuickGelu, Silu] {
        let name = format!("{kind:?}");
        check(
            &name,
            &|t| activation(&t[0], kind),
            &|t| activation::composed(&t[0], kind),
            &[x.clone()],
        );
    }
    // Candle's clamp has no gradient at the ends; ours is tested where finite differences are.
    let inside = (random(&[50], 30) + 3.0).unwrap();
    check_differences("ReLU6", &|t| activation(&t[0], Relu6), &[inside]);
    let ends = Var::new(&[-1f32, 0.5, 7.0], &Device::Cpu).unwrap();
    let y = relu6(ends.as_tensor()).unwrap();
    assert_eq!(y.to_vec1::<f32>().unwrap(), [0.0, 0.5, 6.0]);
    let gradients = y.sum_all().unwrap().backward().unwrap();
    assert_eq!(
        gradients.get(&ends).unwrap().to_vec1::<f32>().unwrap(),
        [0.0, 1.0, 0.0]
    );

    let pair = [
        (random(&[5, 1700], 31) * 4.0).unwrap(),
        random(&[5, 1700], 32),
    ];
    type Gated = fn(&Tensor, &Tensor) -> Result<Tensor>;
    let kinds: [(Gated, Activation); 3] = [
        (gated_silu, Silu),
        (gated_gelu_tanh, GeluTanh),
        (gated_gelu_erf, GeluErf),
    ];
    for (gated, kind) in kinds {
        let reference = |t: &[Tensor]| activation::composed(&t[0], kind)? * &t[1];
        check(
            &format!("gated {kind:?}"),
            &|t| gated(&t[0], &t[1]),
            &reference,
            &pair,
        );
    }
}

#[test]
fn depthwise_has_the_right_gradients() {
    let unlike = DepthwiseParams {
        kernel: 5,
        stride: 2,
        pad_top: 1,
        pad_left: 2,
        pad_bottom: 2,
        pad_right: 1,
    };
    for params in [
        DepthwiseParams::symmetric(3, 1, 1),
        unlike,
        DepthwiseParams::symmetric(7, 1, 3),
    ] {
        let taps = params.kernel * params.kernel;
        let inputs = [
            random(&[2, 9, 10, 6], 33),
            random(&[taps, 6], 34),
            random(&[6], 35),
        ];
        check(
            "depthwise",
            &|t| depthwise(&t[0], &t[1], Some(&t[2]), &params),
            &|t| depthwise::composed(&t[0], &t[1], Some(&t[2]), &params),
            &inputs,
        );
        check_differences(
            "depthwise",
            &|t| depthwise(&t[0], &t[1], None, &params),
            &inputs[..2],
        );
    }
    let small = random(&[1, 2, 2, 6], 36);
    assert!(
        depthwise(
            &small,
            &random(&[49, 6], 37),
            None,
            &DepthwiseParams::symmetric(7, 1, 0)
        )
        .is_err()
    );
}

#[test]
fn bilinear_has_the_right_gradients() {
    for (height, width, out_height, out_width) in
        [(5, 7, 10, 14), (6, 6, 24, 17), (12, 9, 5, 4), (1, 3, 4, 9)]
    {
        let x = [random(&[2, 3, height, width], 38)];
        check(
            "bilinear",
            &|t| bilinear(&t[0], out_height, out_width),
            &|t| bilinear::composed(&t[0], out_height, out_width),
            &x,
        );
    }
    // torch.nn.functional.interpolate([0, 1, 2, 3], size=8, mode="linear", align_corners=False)
    let row = Tensor::new(&[[[[0f32, 1., 2., 3.]]]], &Device::Cpu).unwrap();
    let found = bilinear(&row, 1, 8)
        .unwrap()
        .flatten_all()
        .unwrap()
        .to_vec1::<f32>()
        .unwrap();
    assert_eq!(found, [0.0, 0.25, 0.75, 1.25, 1.75, 2.25, 2.75, 3.0]);
}

#[test]
fn region_attention_equals_the_official_order_of_operations() {
    let (grid, inner) = (3, 7);
    let stages = [
        random(&[5, 12, 12], 39),
        random(&[8, 6, 6], 40),
        random(&[9, 3, 3], 41),
    ];
    let cells = RegionCells::new(&stages, grid).unwrap();
    let (n, c) = (cells.regions(), cells.channels());
    assert_eq!((n, c, cells.cells_per_region()), (9, 22, 16));

    let inputs = [(random(&[n, c], 42) * 0.5).unwrap(), random(&[n], 43)];
    check(
        "region attention",
        &|t| region_attention(&t[0], &t[1], &cells),
        &|t| region::composed(&t[0], &t[1], &cells),
        &inputs,
    );

    // The unfolded way: LayerNorm with affine, key and value projections of every cell, softmax, weighted sum.
    let (gain, shift) = (random(&[2, c], 44), random(&[2, c], 45));
    let (key, key_bias) = (random(&[inner, c], 46), random(&[inner], 47));
    let (value, value_bias) = (random(&[inner, c], 48), random(&[inner], 49));
    let query = random(&[n, inner], 50);
    let normalised = region::composed_cells(&cells).unwrap();
    let affine = |i: usize| {
        let scaled = normalised
            .broadcast_mul(&gain.narrow(0, i, 1).unwrap().squeeze(0).unwrap())
            .unwrap();
        scaled
            .broadcast_add(&shift.narrow(0, i, 1).unwrap().squeeze(0).unwrap())
            .unwrap()
    };
    let keys = linear::composed(&affine(0), &key, Some(&key_bias)).unwrap();
    let values = linear::composed(&affine(1), &value, Some(&value_bias)).unwrap();
    let scale = 1.0 / (inner as f64).sqrt();
    let scores = (keys
        .matmul(&query.unsqueeze(2).unwrap())
        .unwrap()
        .squeeze(2)
        .unwrap()
        * scale)
        .unwrap();
    let weights = attention::composed_softmax(&scores).unwrap();
    let expected = weights
        .unsqueeze(1)
        .unwrap()
        .matmul(&values)
        .unwrap()
        .squeeze(1)
        .unwrap();

    let row = |x: &Tensor, i: usize| x.narrow(0, i, 1).unwrap().squeeze(0).unwrap();
    let through_key = (linear_transposed(&query, &key).unwrap() * scale).unwrap();
    let folded_query = through_key.broadcast_mul(&row(&gain, 0)).unwrap();
    let constant = through_key
        .broadcast_mul(&row(&shift, 0))
        .unwrap()
        .sum(1)
        .unwrap();
    let constant = (constant
        + (query.broadcast_mul(&key_bias).unwrap().sum(1).unwrap() * scale).unwrap())
    .unwrap();
    let mined = region_attention(&folded_query, &constant, &cells).unwrap();
    let mined = mined
        .broadcast_mul(&row(&gain, 1))
        .unwrap()
        .broadcast_add(&row(&shift, 1))
        .unwrap();
    let found = linear_bias(&mined, &value, &value_bias).unwrap();
    assert_close("folded mining", &found, &expected, 2e-5);

    let found_weights = region_attention_weights(&folded_query, &constant, &cells).unwrap();
    assert_close("attention weights", &found_weights, &weights, 2e-5);

    assert!(RegionCells::new(&stages, 5).is_err());
    assert!(region_attention(&query, &constant, &cells).is_err());
    let tracked = Var::from_tensor(&stages[0]).unwrap().into_inner();
    assert!(RegionCells::new(&[tracked], 3).is_err());
}

#[test]
fn cross_entropy_counts_labelled_rows_only() {
    let logits = [(random(&[5, 33], 51) * 4.0).unwrap()];
    let labels = [3, IGNORE_LABEL, 32, 0, IGNORE_LABEL];
    let targets = cross_entropy::Targets::new(&labels, 5, 33).unwrap();
    check(
        "cross-entropy",
        &|t| cross_entropy(&t[0], &labels),
        &|t| cross_entropy::composed(&t[0], &targets),
        &logits,
    );
    let loss =
        |labels: &[i64]| cross_entropy(&logits[0], labels).map_err(|error| error.to_string());
    assert!(
        loss(&[IGNORE_LABEL; 5])
            .unwrap_err()
            .contains("none of the 5 rows is labelled")
    );
    assert!(
        loss(&[0, 1, 2, 3, 33])
            .unwrap_err()
            .contains("label 33 of row 4")
    );
    assert!(loss(&[0, 1, 2, 3, -1]).is_err());
    assert!(loss(&[0]).is_err());
    // Uniform logits cost ln(vocabulary), however large they are.
    let uniform = Tensor::full(3e4f32, (2, 16), &Device::Cpu).unwrap();
    let found = cross_entropy(&uniform, &[1, 2])
        .unwrap()
        .to_scalar::<f32>()
        .unwrap();
    assert!((found - 16f32.ln()).abs() < 1e-6);
}

#[test]
fn the_fused_head_equals_head_and_cross_entropy() {
    let (rows, k, vocabulary) = (150, 12, 40);
    let (weight, values) = dense(vocabulary, k, 52);
    let labels: Vec<i64> = (0..rows)
        .map(|row| {
            if row % 4 == 1 {
                IGNORE_LABEL
            } else {
                (row * 7 % vocabulary) as i64
            }
        })
        .collect();
    let hidden = [random(&[rows, k], 53)];
    let frozen = Linear::frozen(
        FrozenWeight::packed(PackedWeight::pack(vocabulary, k, &values, WeightType::F32)),
        None,
    )
    .unwrap();
    let reference = |t: &[Tensor]| cross_entropy(&t[0].matmul(&weight.t()?)?, &labels);
    check(
        "frozen head",
        &|t| linear_cross_entropy(&t[0], &frozen, &labels),
        &reference,
        &hidden,
    );
    let both = [hidden[0].clone(), weight.clone()];
    check(
        "trainable head",
        &|t| linear_cross_entropy(&t[0], &Linear::from_tensors(t[1].clone(), None)?, &labels),
        &|t| cross_entropy(&t[0].matmul(&t[1].t()?)?, &labels),
        &both,
    );
    let untracked = linear_cross_entropy(&hidden[0], &frozen, &labels)
        .unwrap()
        .to_scalar::<f32>()
        .unwrap();
    let expected = reference(&hidden).unwrap().to_scalar::<f32>().unwrap();
    assert!((untracked - expected).abs() < 1e-5);
}

#[test]
fn checkpoints_deliver_all_gradients() {
    let x = random(&[4, 6], 54);
    let (inner, outer) = (random(&[8, 6], 55), random(&[6, 8], 56));
    let variables = [&inner, &outer].map(|tensor| Var::from_tensor(tensor).unwrap());
    let block =
        |x: &Tensor, inner: &Tensor, outer: &Tensor| linear(&silu(&linear(x, inner)?)?, outer);

    let run = |x: &Tensor, sink: Option<&GradientSink>| {
        let mut hidden = x.clone();
        // The same parameters in two segments: their gradients must add up.
        for _ in 0..2 {
            let (inner, outer) = (
                variables[0].as_tensor().clone(),
                variables[1].as_tensor().clone(),
            );
            hidden = match sink {
                Some(sink) => checkpoint(sink, &hidden, move |x| block(x, &inner, &outer)).unwrap(),
                None => block(&hidden, &inner, &outer).unwrap(),
            };
        }
        // And once outside of any segment.
        let last = linear(&hidden, variables[0].as_tensor()).unwrap();
        let mut gradients = last.sqr().unwrap().sum_all().unwrap().backward().unwrap();
        if let Some(sink) = sink {
            sink.drain_into(&mut gradients).unwrap();
        }
        (last.detach(), gradients)
    };

    for tracked in [true, false] {
        let x = if tracked {
            Var::from_tensor(&x).unwrap().into_inner()
        } else {
            x.clone()
        };
        let sink = GradientSink::new();
        let (value, gradients) = run(&x, Some(&sink));
        let (expected_value, expected) = run(&x, None);
        assert_close("checkpointed value", &value, &expected_value, 1e-6);
        for variable in &variables {
            let name = "checkpointed parameter";
            assert_close(
                name,
                gradients.get(variable).unwrap(),
                expected.get(variable).unwrap(),
                1e-5,
            );
        }
        assert_eq!(gradients.get(&x).is_some(), tracked);
        if tracked {
            assert_close(
                "checkpointed input",
                gradients.get(&x).unwrap(),
                expected.get(&x).unwrap(),
                1e-5,
            );
        }
    }

    // Nothing to train: no tape, no cost.
    let frozen = inner.clone();
    let plain = checkpoint(&GradientSink::new(), &x, move |x| linear(x, &frozen)).unwrap();
    assert!(!plain.track_op());
}

#[test]
fn types_other_than_f32_are_refused() {
    let x = random(&[2, 3], 57).to_dtype(DType::F64).unwrap();
    let weight = random(&[4, 3], 58);
    assert!(
        linear(&x, &weight)
            .unwrap_err()
            .to_string()
            .contains("linear")
    );
    assert!(silu(&x).is_err());
}
