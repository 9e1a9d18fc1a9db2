//! Convolution, group normalisation, cross attention and the gated halves.

use std::collections::HashMap;

use candle_core::{Tensor, Var};

use super::super::*;
use super::{assert_close, check, check_differences, random, value_and_gradients};
use crate::{Activation, Bias, WeightPolicy, WeightSource, WeightStorage};

fn source(entries: &[(&str, Tensor)], storage: WeightStorage, trainable: &[&str]) -> WeightSource {
    let tensors: HashMap<String, Tensor> = entries
        .iter()
        .map(|(name, tensor)| (name.to_string(), tensor.clone()))
        .collect();
    WeightSource::from_tensors(tensors).with_policy(WeightPolicy {
        storage,
        trainable: trainable.iter().map(|name| name.to_string()).collect(),
        ..WeightPolicy::default()
    })
}

fn cases() -> Vec<ConvParams> {
    vec![
        ConvParams::same(3),
        ConvParams::same(1),
        ConvParams::strided(3, 2, 1),
        ConvParams {
            pad_rows: [0, 1],
            pad_columns: [0, 1],
            ..ConvParams::strided(3, 2, 0)
        },
        ConvParams {
            enlarge: 2,
            trim: [1, 0],
            ..ConvParams::same(3)
        },
    ]
}

/// The frozen layer (one fused operation) and the trainable one (several with gradients) are the same function.
#[test]
fn convolutions_are_the_same_frozen_and_trainable() {
    let x = random(&[2, 6, 5, 8], 1);
    let shift = random(&[2, 12], 2);
    for params in cases() {
        let kernel = params.kernel;
        let entries = [
            ("conv.weight", random(&[12, 8, kernel, kernel], 3)),
            ("conv.bias", random(&[12], 4)),
            ("norm.weight", random(&[8], 5)),
            ("norm.bias", random(&[8], 6)),
        ];
        let layer = |storage, trainable: &[&str]| {
            let source = source(&entries, storage, trainable);
            let conv = source.conv2d("conv", 8, 12, params, Bias::Yes).unwrap();
            (conv, source.group_norm("norm", 4, 8, 1e-5).unwrap())
        };
        let (frozen, norm) = layer(WeightStorage::F32, &[]);
        let (trainable, trainable_norm) = layer(WeightStorage::F32, &["conv", "norm"]);
        let name = format!("{params:?}");
        assert_close(
            &name,
            &frozen.forward(&x).unwrap(),
            &trainable.forward(&x).unwrap(),
            1e-5,
        );
        for activation in [Activation::None, Activation::Silu] {
            assert_close(
                &format!("{name}, normalised"),
                &frozen
                    .forward_normed(&x, &norm, activation, Some(&shift))
                    .unwrap(),
                &trainable
                    .forward_normed(&x, &trainable_norm, activation, Some(&shift))
                    .unwrap(),
                1e-5,
            );
        }
        // Rounded forms stay close; 8 · 9 columns are no whole blocks and fall back to bf16.
        for storage in [WeightStorage::Bf16, WeightStorage::Q8_0] {
            let (rounded, norm) = layer(storage, &[]);
            assert_close(
                &format!("{name}, {storage:?}"),
                &rounded
                    .forward_normed(&x, &norm, Activation::Silu, None)
                    .unwrap(),
                &frozen
                    .forward_normed(&x, &norm, Activation::Silu, None)
                    .unwrap(),
                2e-2,
            );
        }
        assert!(frozen.forward(&random(&[2, 6, 5, 7], 7)).is_err());
    }
}

#[test]
fn convolutions_have_the_right_gradients() {
    for params in cases() {
        let kernel = params.kernel;
        let inputs = [
            // Both sides even: candle's own gradient of a strided convolution fails where one side leaves a rest and the other none.
            random(&[2, 6, 4, 4], 22),
            random(&[5, 4, kernel, kernel], 23),
            random(&[5], 24),
        ];
        check(
            &format!("{params:?}"),
            &|t| conv2d(&t[0], &t[1], Some(&t[2]), &params),
            &|t| conv2d::composed(&t[0], &t[1], Some(&t[2]), &params),
            &inputs,
        );
    }
}

/// A tracked input takes the road with gradients, through a frozen layer too.
#[test]
fn convolutions_have_gradients_where_they_are_asked_for() {
    let entries = [
        ("conv.weight", random(&[6, 4, 3, 3], 8)),
        ("conv.bias", random(&[6], 9)),
    ];
    let frozen = source(&entries, WeightStorage::F32, &[])
        .conv2d("conv", 4, 6, ConvParams::same(3), Bias::Yes)
        .unwrap();
    check_differences(
        "frozen convolution",
        &|t| frozen.forward(&t[0]),
        &[random(&[1, 5, 4, 4], 10)],
    );
    let source = source(&entries, WeightStorage::F32, &["conv"]);
    let trainable = source
        .conv2d("conv", 4, 6, ConvParams::same(3), Bias::Yes)
        .unwrap();
    let y = trainable.forward(&random(&[1, 5, 4, 4], 10)).unwrap();
    let gradients = y.sqr().unwrap().sum_all().unwrap().backward().unwrap();
    let mut names: Vec<String> = Vec::new();
    for (name, variable) in source.parameters().all() {
        assert!(gradients.get(variable.as_tensor()).is_some(), "{name}");
        names.push(name.to_string());
    }
    names.sort();
    assert_eq!(names, ["conv.bias", "conv.weight"]);
}

#[test]
fn group_norm_has_the_right_values_and_gradients() {
    let inputs = [
        random(&[2, 3, 5, 8], 11),
        random(&[8], 12),
        random(&[8], 13),
    ];
    for kind in [Activation::None, Activation::Silu] {
        let fused = group_norm(&inputs[0], 4, &inputs[1], &inputs[2], 1e-5, kind).unwrap();
        let (trained, ..) =
            value_and_gradients(&|t| group_norm(&t[0], 4, &t[1], &t[2], 1e-5, kind), &inputs);
        assert_close("group norm", &fused, &trained, 1e-6);
        check(
            "group norm",
            &|t| group_norm(&t[0], 4, &t[1], &t[2], 1e-5, kind),
            &|t| {
                let normed = super::super::group_norm::composed(&t[0], 4, &t[1], &t[2], 1e-5)?;
                activation(&normed, kind)
            },
            &inputs,
        );
    }
    assert!(
        group_norm(
            &inputs[0],
            3,
            &inputs[1],
            &inputs[2],
            1e-5,
            Activation::None
        )
        .is_err()
    );
}

#[test]
fn cross_attention_has_the_right_gradients() {
    let inputs = [
        random(&[2 * 5, 3, 4], 14),
        random(&[2 * 7, 3, 4], 15),
        random(&[2 * 7, 3, 4], 16),
    ];
    check(
        "cross attention",
        &|t| cross_attention(&t[0], &t[1], &t[2], 2, 0.5, AttentionPrecision::Bf16),
        &|t| {
            let pair = |x: &Tensor, rows: usize, index: usize| {
                x.narrow(0, index * rows, rows)?
                    .transpose(0, 1)?
                    .contiguous()
            };
            let parts = (0..2)
                .map(|index| {
                    let (q, k) = (pair(&t[0], 5, index)?, pair(&t[1], 7, index)?);
                    let scores = (q.matmul(&k.t()?)? * 0.5)?;
                    let weights = attention::composed_softmax(&scores)?;
                    weights.matmul(&pair(&t[2], 7, index)?)?.transpose(0, 1)
                })
                .collect::<candle_core::Result<Vec<_>>>()?;
            Tensor::cat(&parts, 0)
        },
        &inputs,
    );
    let full = AttentionPrecision::Full;
    assert!(cross_attention(&inputs[0], &inputs[1], &inputs[2], 3, 0.5, full).is_err());
    let wide = [
        random(&[40, 2, 32], 19),
        random(&[77, 2, 32], 20),
        random(&[77, 2, 32], 21),
    ];
    let of = |precision| cross_attention(&wide[0], &wide[1], &wide[2], 1, 0.2, precision).unwrap();
    assert_close("in bf16", &of(AttentionPrecision::Bf16), &of(full), 1e-2);
}

#[test]
fn geglu_is_the_same_with_and_without_a_gradient() {
    let x = random(&[3, 5, 14], 17);
    let fused = geglu(&x).unwrap();
    let tracked = Var::from_tensor(&x).unwrap().into_inner();
    assert_close("GEGLU", &fused, &geglu(&tracked).unwrap().detach(), 1e-6);
    check_differences("GEGLU", &|t| geglu(&t[0]), &[x]);
    assert!(geglu(&random(&[2, 3], 18)).is_err());
}
