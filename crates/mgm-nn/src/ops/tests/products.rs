//! Matrix products in all storages, and the output head.

use std::sync::Arc;

use candle_core::{Tensor, Var};
use mgm_kernels::gemm::{Activation, PackedWeight, WeightType};
use mgm_kernels::int8::Int8Weight;
use mgm_kernels::quant::{self, Bytes, QuantType, QuantWeight};

use super::super::*;
use super::{assert_close, check, check_equal, random};
use crate::{FrozenWeight, Linear};

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
fn the_fused_perceptron_is_its_layers() {
    use mgm_kernels::gemm::{Activation, WeightType};

    use crate::{FrozenWeight, Linear};

    let (rows, c, inner) = (600, 24, 96);
    let flat = |tensor: &Tensor| tensor.flatten_all().unwrap().to_vec1::<f32>().unwrap();
    let layer = |output: usize, input: usize, seed| {
        let weight = flat(&random(&[output, input], seed));
        let weight = FrozenWeight::pack(output, input, &weight, WeightType::F32);
        Linear::frozen(weight, Some(flat(&random(&[output], seed + 1)))).unwrap()
    };
    let (first, second) = (layer(inner, c, 50), layer(c, inner, 52));
    let (gamma, beta, scale) = (random(&[c], 54), random(&[c], 55), random(&[c], 56));
    let (x, residual) = (random(&[rows, c], 57), random(&[rows, c], 58));
    let norm = NormSpec {
        gamma: &gamma,
        beta: &beta,
        eps: 1e-5,
    };
    let run = |x: &Tensor, scale: Option<&Tensor>| {
        residual_mlp(
            x,
            &norm,
            &first,
            Activation::GeluErf,
            &second,
            scale,
            &residual,
        )
        .unwrap()
    };
    for scale in [Some(&scale), None] {
        let fused = run(&x, scale);
        // On the tape it goes layer by layer, with a gradient.
        let variable = candle_core::Var::from_tensor(&x).unwrap();
        let layers = run(variable.as_tensor(), scale);
        assert!(layers.track_op() && !fused.track_op());
        assert_close("fused perceptron", &fused, &layers, 1e-5);
        let grads = layers.sum_all().unwrap().backward().unwrap();
        assert!(grads.get(&variable).is_some());
    }
    let short = random(&[c - 1], 59);
    let wrong = NormSpec {
        gamma: &short,
        ..norm
    };
    let error = residual_mlp(
        &x,
        &wrong,
        &first,
        Activation::Silu,
        &second,
        None,
        &residual,
    );
    let error = error.unwrap_err().to_string();
    assert!(
        error.contains("gamma has shape [23], expected [24]"),
        "{error}"
    );
}

#[test]
fn a_gated_mlp_is_its_layers_in_every_storage() {
    let int8 = |n: usize, k: usize, seed| {
        let (_, values) = dense(n, k, seed);
        FrozenWeight::int8(Int8Weight::pack(n, k, &values))
    };
    let packed = |n: usize, k: usize, seed| {
        let (_, values) = dense(n, k, seed);
        FrozenWeight::pack(n, k, &values, WeightType::F32)
    };
    type Make<'a> = &'a dyn Fn(usize, usize, u64) -> Arc<FrozenWeight>;
    for make in [&int8 as Make, &packed as Make] {
        let layer = |n, k, seed| Linear::frozen(make(n, k, seed), None).unwrap();
        let (gate, up) = (layer(300, 40, 1), layer(300, 40, 2));
        let down = layer(24, 300, 3);
        let x = random(&[2, 3, 40], 4);
        let run = |x: &Tensor| gated_mlp(x, &gate, &up, &down, Activation::Silu).unwrap();
        let inner = (silu(&gate.forward(&x).unwrap()).unwrap() * up.forward(&x).unwrap()).unwrap();
        assert_close("gated MLP", &run(&x), &down.forward(&inner).unwrap(), 1e-6);
        // On the tape it is its layers, with a gradient.
        let variable = Var::from_tensor(&x).unwrap();
        let found = run(variable.as_tensor());
        assert_close("on the tape", &found, &run(&x), 1e-6);
        let gradients = found.sum_all().unwrap().backward().unwrap();
        assert!(gradients.get(variable.as_tensor()).is_some());
    }
    let narrow = Linear::frozen(int8(24, 299, 5), None).unwrap();
    let layer = |seed| Linear::frozen(int8(300, 40, seed), None).unwrap();
    let x = random(&[1, 40], 6);
    let refused = gated_mlp(&x, &layer(1), &layer(2), &narrow, Activation::Silu);
    assert!(refused.unwrap_err().to_string().contains("[24, 299]"));
}

/// More rows than go through a wide gated MLP at once give what each gives alone.
#[test]
fn a_gated_mlp_in_parts_is_the_whole() {
    let (rows, k, inner) = (520, 4, 16_384);
    let layer = |n: usize, k: usize, seed| {
        let (_, values) = dense(n, k, seed);
        Linear::frozen(FrozenWeight::pack(n, k, &values, WeightType::F32), None).unwrap()
    };
    let (gate, up, down) = (layer(inner, k, 1), layer(inner, k, 2), layer(k, inner, 3));
    let x = random(&[rows, k], 4);
    let hidden = (silu(&gate.forward(&x).unwrap()).unwrap() * up.forward(&x).unwrap()).unwrap();
    let found = gated_mlp(&x, &gate, &up, &down, Activation::Silu).unwrap();
    assert_close("in parts", &found, &down.forward(&hidden).unwrap(), 1e-5);
}
