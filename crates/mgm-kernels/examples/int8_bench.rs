use mgm_kernels::gemm::{Activation, Epilogue};
use mgm_kernels::int8::{GatedWeight, Int8Weight, gated_mlp, int8_gemm};
use std::time::Instant;
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
fn best(seconds: f64, mut call: impl FnMut()) -> (f64, f64) {
    call();
    let begin = Instant::now();
    let mut all = vec![];
    while begin.elapsed().as_secs_f64() < seconds {
        let s = Instant::now();
        call();
        all.push(s.elapsed().as_secs_f64());
    }
    all.sort_by(f64::total_cmp);
    (all[0], all[all.len() / 2])
}
fn main() {
    for (m, n, k) in [
        (640, 2048, 2048),
        (640, 16384, 2048),
        (640, 2048, 16384),
        (577, 4096, 1024),
        (577, 1024, 4096),
        (577, 1024, 1024),
    ] {
        let w = Int8Weight::pack(n, k, &values(n * k));
        let x = values(m * k);
        let mut out = vec![0.0; m * n];
        let (b, md) = best(1.0, || int8_gemm(m, &x, &w, &mut out, &Epilogue::default()));
        println!(
            "{m} {n} {k}: {:.3} {:.3} ms  {:.1} {:.1} Gop/s",
            b * 1e3,
            md * 1e3,
            2e-9 * (m * n * k) as f64 / b,
            2e-9 * (m * n * k) as f64 / md
        );
    }
    let (m, n, k) = (640, 16384, 2048);
    let g = Int8Weight::pack(n, k, &values(n * k));
    let u = Int8Weight::pack(n, k, &values(n * k));
    let d = Int8Weight::pack(k, n, &values(n * k));
    let x = values(m * k);
    let mut out = vec![0.0; m * k];
    let (b, md) = best(2.0, || {
        gated_mlp(
            m,
            &x,
            [
                GatedWeight::Int8(&g),
                GatedWeight::Int8(&u),
                GatedWeight::Int8(&d),
            ],
            Activation::GeluTanh,
            &mut out,
        )
    });
    println!(
        "gated {:.3} {:.3} ms  {:.1} {:.1} Gop/s",
        b * 1e3,
        md * 1e3,
        6e-9 * (m * n * k) as f64 / b,
        6e-9 * (m * n * k) as f64 / md
    );
}
