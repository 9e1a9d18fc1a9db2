//! Norms, positions, attention, activations, losses and checkpoints.

use candle_core::{DType, Device, Tensor, Var};
use mgm_kernels::gemm::Activation;

use super::super::*;
use super::{assert_close, check, check_differences, random};

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
fn paged_attention_continues_several_sequences() {
    use crate::kv::{KvPool, KvShape};
    const FULL: AttentionPrecision = AttentionPrecision::Full;
    let (heads, kv_heads, d) = (4, 2, 8);
    let pool = KvPool::new(KvShape {
        layers: 3,
        kv_heads,
        head_dim: d,
    });
    let lengths = [41usize, 5, 64];
    let sequences: Vec<_> = lengths
        .iter()
        .enumerate()
        .map(|(index, rows)| {
            let seed = 40 + 3 * index as u64;
            let [q, k, v] = [
                random(&[*rows, heads, d], seed),
                random(&[*rows, kv_heads, d], seed + 1),
                random(&[*rows, kv_heads, d], seed + 2),
            ];
            let spec = AttentionSpec {
                scale: 0.4,
                causal: true,
                segments: vec![*rows],
            };
            let expected = attention(&q, &k, &v, &spec).unwrap();
            (q, k, v, expected)
        })
        .collect();
    let mut caches: Vec<_> = lengths.iter().map(|_| pool.cache()).collect();
    // Everything but three rows of each first, then these.
    for first in [true, false] {
        let part = |x: &Tensor| {
            let rows = x.dims()[0];
            let (start, count) = if first { (0, rows - 3) } else { (rows - 3, 3) };
            x.narrow(0, start, count).unwrap()
        };
        let join = |pick: &dyn Fn(usize) -> Tensor| {
            let parts: Vec<Tensor> = (0..3).map(|index| part(&pick(index))).collect();
            Tensor::cat(&parts, 0).unwrap()
        };
        let (q, k, v) = (
            join(&|index| sequences[index].0.clone()),
            join(&|index| sequences[index].1.clone()),
            join(&|index| sequences[index].2.clone()),
        );
        let expected = join(&|index| sequences[index].3.clone());
        for layer in [2, 0] {
            let mut rows: Vec<_> = caches
                .iter_mut()
                .zip(lengths)
                .map(|(cache, length)| PagedRows {
                    cache,
                    new: if first { length - 3 } else { 3 },
                    queries: if first { length - 3 } else { 3 },
                })
                .collect();
            let found = paged_attention(&q, &k, &v, layer, 0.4, FULL, &mut rows).unwrap();
            assert_close("paged attention", &found, &expected, 1e-5);
            // The last two rows of the first, none of the second, and the last row of the third attend to the same.
            let mut end = 0;
            let mut tails = Vec::new();
            for (rows, queries) in rows.iter_mut().zip([2, 0, 1]) {
                end += rows.new;
                rows.queries = queries;
                tails.extend((queries > 0).then_some((end - queries, queries)));
            }
            let tails_of = |x: &Tensor| {
                let parts = tails
                    .iter()
                    .map(|(start, count)| x.narrow(0, *start, *count));
                Tensor::cat(&parts.collect::<Result<Vec<_>, _>>().unwrap(), 0).unwrap()
            };
            let found_tails =
                paged_attention(&tails_of(&q), &k, &v, layer, 0.4, FULL, &mut rows).unwrap();
            let values = |x: &Tensor| x.flatten_all().unwrap().to_vec1::<f32>().unwrap();
            assert_eq!(values(&found_tails), values(&tails_of(&found)));
            assert!(paged_attention(&q, &k, &v, layer, 0.4, FULL, &mut rows).is_err());
            rows[1].queries = rows[1].new + 1;
            let too_many = random(&[rows[1].new + 4, heads, d], 6);
            assert!(paged_attention(&too_many, &k, &v, layer, 0.4, FULL, &mut rows).is_err());
            rows.pop();
            assert!(paged_attention(&q, &k, &v, layer, 0.4, FULL, &mut rows).is_err());
        }
        for (cache, length) in caches.iter_mut().zip(lengths) {
            cache.advance(if first { length - 3 } else { 3 });
        }
    }
    let row = random(&[1, heads, d], 7);
    let key = random(&[1, kv_heads, d], 8);
    let mut cache = [PagedRows {
        cache: &mut caches[0],
        new: 1,
        queries: 1,
    }];
    assert!(paged_attention(&row, &key, &key, 3, 0.4, FULL, &mut cache).is_err());
    let tracked = Var::from_tensor(&row).unwrap();
    assert!(paged_attention(tracked.as_tensor(), &key, &key, 0, 0.4, FULL, &mut cache).is_err());
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
            std::slice::from_ref(&x),
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
    for kind in [Silu, GeluTanh, GeluErf] {
        let reference = |t: &[Tensor]| activation::composed(&t[0], kind)? * &t[1];
        check(
            &format!("gated {kind:?}"),
            &|t| activation::gated(&t[0], &t[1], kind),
            &reference,
            &pair,
        );
    }
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
