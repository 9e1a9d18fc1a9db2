//! What a product costs by its number of rows: how far decoding several sequences together is cheaper than one after another.
//!
//! `cargo run --release -p mgm-kernels --example rows_bench [seconds per shape [output features, input features [most rows]]]`

use std::time::Instant;

use mgm_kernels::gemm::{Epilogue, PackedWeight, WeightType, gemm};
use mgm_kernels::quant::{Bytes, QuantType, QuantWeight, quant_gemm, quantize};

const ROWS: [usize; 10] = [1, 2, 4, 8, 12, 16, 24, 32, 64, 256];

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

fn report(
    what: &str,
    n: usize,
    k: usize,
    most: usize,
    seconds: f64,
    mut product: impl FnMut(usize),
) {
    print!("{what:5} {n:6} × {k:5}:");
    let mut one = 0.0;
    for m in ROWS.into_iter().filter(|m| *m <= most) {
        let time = best(seconds, || product(m));
        if m == 1 {
            one = time;
        }
        print!("  {m}: {:.3} ms ({:.1})", time * 1e3, time / one);
    }
    println!();
}

fn main() {
    let number = |index| std::env::args().nth(index)?.parse::<f64>().ok();
    let seconds = number(1).unwrap_or(0.1);
    let most = number(4).unwrap_or(256.0) as usize;
    let shapes = match (number(2), number(3)) {
        (Some(n), Some(k)) => vec![(n as usize, k as usize)],
        _ => vec![(576, 576), (1536, 576), (576, 1536), (16384, 2048)],
    };
    for (n, k) in shapes {
        let x = values(256 * k);
        let mut out = vec![0.0; 256 * n];
        for t in [
            QuantType::Q4_1,
            QuantType::Q8_0,
            QuantType::Q5_0,
            QuantType::Q4K,
            QuantType::Q6K,
        ] {
            if !k.is_multiple_of(t.block_len()) {
                continue;
            }
            let Ok(w) = QuantWeight::new(t, n, k, Bytes::from_vec(quantize(t, &values(n * k))))
            else {
                continue;
            };
            report(t.name(), n, k, most, seconds, |m| {
                quant_gemm(m, &x[..m * k], &w, &mut out[..m * n], &Epilogue::default());
            });
        }
        for t in [WeightType::F32, WeightType::F16, WeightType::Bf16] {
            let w = PackedWeight::pack(n, k, &values(n * k), t);
            report(&format!("{t:?}"), n, k, most, seconds, |m| {
                gemm(m, &x[..m * k], &w, &mut out[..m * n], &Epilogue::default());
            });
        }
    }
}
