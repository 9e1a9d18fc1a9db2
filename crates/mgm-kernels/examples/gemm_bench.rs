//! Speed of the matrix products for the shapes of training and decoding, for every level of this machine.
//!
//! `cargo run --release -p mgm-kernels --example gemm_bench [seconds per shape]`

use std::time::Instant;

use mgm_kernels::attention::{AttentionShape, HeadsLayout, attention_at, attention_backward_at};
use mgm_kernels::gemm::{Epilogue, PackedWeight, WeightType, gemm_at, matmul_at};
use mgm_kernels::int8::{Int8Weight, int8_gemm_at, quant_gemm_int8_at};
use mgm_kernels::level::{Level, available, has_avx512_bf16};
use mgm_kernels::quant::{Bytes, QuantType, QuantWeight, quant_gemm_at, quantize};

fn values(count: usize) -> Vec<f32> {
    let mut state = 0x9e37_79b9_7f4a_7c15u64;
    (0..count)
        .map(|_| {
            state = state
                .wrapping_mul(6_364_136_223_846_793_005)
                .wrapping_add(1_442_695_040_888_963_407);
            (state >> 40) as f32 / (1u64 << 24) as f32 - 0.5
        })
        .collect()
}

/// Best time of one call, in seconds.
fn best(seconds: f64, mut call: impl FnMut()) -> f64 {
    call();
    let begin = Instant::now();
    let mut best = f64::INFINITY;
    while begin.elapsed().as_secs_f64() < seconds {
        let start = Instant::now();
        call();
        best = best.min(start.elapsed().as_secs_f64());
    }
    best
}

fn report(level: Level, what: &str, m: usize, n: usize, k: usize, bytes: usize, time: f64) {
    println!(
        "{:8} {what:10} m {m:4} n {n:5} k {k:5}: {:8.3} ms  {:6.1} GFLOP/s  {:6.1} GB/s of weights",
        level.name(),
        time * 1e3,
        2.0 * (m * n * k) as f64 / time / 1e9,
        bytes as f64 / time / 1e9
    );
}

fn main() {
    let seconds: f64 = std::env::args()
        .nth(1)
        .and_then(|s| s.parse().ok())
        .unwrap_or(0.2);
    let only = std::env::args().nth(2);
    println!("AVX-512 BF16: {}", has_avx512_bf16());
    for level in available() {
        if level == Level::Portable || only.as_deref().is_some_and(|name| name != level.name()) {
            continue;
        }
        for t in [WeightType::Bf16, WeightType::F16, WeightType::F32] {
            for (n, k) in [
                (576, 576),
                (192, 576),
                (1536, 576),
                (576, 1536),
                (49152, 576),
            ] {
                let w = PackedWeight::pack(n, k, &values(n * k), t);
                for m in [1, 8, 20, 150, 600] {
                    if n > 10_000 && m > 20 {
                        continue;
                    }
                    let x = values(m * k);
                    let mut out = vec![0.0; m * n];
                    let time = best(seconds, || {
                        gemm_at(level, m, &x, &w, &mut out, &Epilogue::default())
                    });
                    report(level, &format!("{t:?}"), m, n, k, w.bytes(), time);
                }
            }
        }
        for (what, trans_a, trans_b, m, n, k) in [
            ("x·Aᵀ", false, true, 600, 8, 576),
            ("h·Bᵀ", false, true, 600, 576, 8),
            ("dyᵀ·h", true, false, 576, 8, 600),
            ("dhᵀ·x", true, false, 8, 576, 600),
            ("dy·B", false, false, 600, 8, 576),
            ("dyᵀ·x", true, false, 576, 576, 600),
        ] {
            let (a, b) = (values(m * k), values(n * k));
            let mut c = vec![0.0; m * n];
            let time = best(seconds, || {
                matmul_at(level, trans_a, trans_b, m, n, k, &a, &b, &mut c, false)
            });
            report(level, what, m, n, k, b.len() * 4, time);
        }
        attention(level, seconds);
        quantised(level, seconds);
    }
}

/// Attention of the 135M language model (9 heads, 3 key heads, 64 dimensions), forward and backward.
fn attention(level: Level, seconds: f64) {
    for length in [150, 600] {
        let s = AttentionShape {
            heads: 9,
            kv_heads: 3,
            head_dim: 64,
            query_len: length,
            key_len: length,
            scale: 0.125,
            causal_offset: Some(0),
        };
        let ql = HeadsLayout {
            head_stride: 64,
            row_stride: 576,
        };
        let kl = HeadsLayout {
            head_stride: 64,
            row_stride: 192,
        };
        let (q, grad) = (values(length * 576), values(length * 576));
        let (k, v) = (values(length * 192), values(length * 192));
        let mut out = vec![0.0; length * 576];
        let forward = best(seconds, || {
            attention_at(level, &s, &q, ql, &k, kl, &v, kl, &mut out, ql)
        });
        let (mut dq, mut dk, mut dv) = (q.clone(), k.clone(), v.clone());
        let backward = best(seconds, || {
            attention_backward_at(
                level, &s, &q, ql, &k, kl, &v, kl, &out, ql, &grad, ql, &mut dq, &mut dk, &mut dv,
            );
        });
        println!(
            "{:8} attention 9/3 heads of 64, {length} causal: forward {:.3} ms, backward {:.3} ms",
            level.name(),
            forward * 1e3,
            backward * 1e3
        );
    }
}

/// Decoding and prefilling with quantised weights.
fn quantised(level: Level, seconds: f64) {
    let (n, k) = (8192, 2048);
    let x = values(256 * k);
    let dense = values(n * k / 16);
    let packed = PackedWeight::pack(n, k, &values(n * k), WeightType::Bf16);
    let mut out = vec![0.0; 256 * n];
    let time = best(seconds, || {
        gemm_at(level, 256, &x, &packed, &mut out, &Epilogue::default())
    });
    report(level, "Bf16", 256, n, k, packed.bytes(), time);
    let int8 = Int8Weight::pack(n, k, &values(n * k));
    for m in [1, 4, 8, 256, 640] {
        let (x, mut out) = (values(m * k), vec![0.0; m * n]);
        let time = best(seconds, || {
            int8_gemm_at(level, m, &x, &int8, &mut out, &Epilogue::default())
        });
        report(level, "int8", m, n, k, int8.bytes(), time);
    }
    for t in QuantType::ALL {
        let mut data = Vec::new();
        for _ in 0..16 {
            data.extend(quantize(t, &dense));
        }
        let Ok(w) = QuantWeight::new(t, n, k, Bytes::from_vec(data)) else {
            continue;
        };
        for (w, how) in [(&w, "rows"), (&w.interleave(), "side")] {
            for m in [1, 4, 8, 256] {
                let mut out = vec![0.0; m * n];
                let time = best(seconds, || {
                    quant_gemm_at(level, m, &x[..m * k], w, &mut out, &Epilogue::default())
                });
                let what = format!("{} {how}", t.name());
                report(level, &what, m, n, k, w.data().len(), time);
            }
            let m = 640;
            let (x, mut out) = (values(m * k), vec![0.0; m * n]);
            let time = best(seconds, || {
                quant_gemm_int8_at(level, m, &x, w, &mut out, &Epilogue::default())
            });
            let what = format!("{} {how} 8", t.name());
            report(level, &what, m, n, k, w.data().len(), time);
        }
    }
}
