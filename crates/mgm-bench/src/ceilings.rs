//! What this machine can do at most, measured: products between registers, large matrix products, and reading memory.

use std::time::Instant;

use mgm_kernels::ceiling::{self, Memory, Operands};
use mgm_kernels::gemm::{Epilogue, PackedWeight, WeightType, gemm};
use mgm_kernels::level::{Level, level};
use mgm_kernels::quant::{Bytes, QuantType, QuantWeight, quant_gemm, quantize};
use rayon::prelude::*;
use serde::{Deserialize, Serialize};

/// Timed runs; the best one counts, as it is a bound that is looked for.
const RUNS: usize = 5;
/// Seconds that one run between registers takes.
const SECONDS: f64 = 0.03;
/// Rows, columns and inner length of the large product.
const LARGE: (usize, usize, usize) = (1024, 4096, 2048);
/// Memory that is read: more than any cache holds.
const READ_BYTES: u64 = 1 << 30;

/// Operations a second (a product and its addition are two) with one kind of operands.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct ProductRate {
    /// `f32`, `bf16` or `int8`.
    pub operands: String,
    /// One thread, operands in registers.
    pub one_thread: f64,
    /// All threads, operands in registers.
    pub all_threads: f64,
    /// What the kernels reach in a large matrix product on all threads; for int8 with Q8_0 weights.
    pub large_product: f64,
}

/// Bytes a second that are read in order from memory.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
pub struct ReadRate {
    /// One thread.
    pub one_thread: f64,
    /// All threads.
    pub all_threads: f64,
}

/// The bounds that floors are made of.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Ceilings {
    /// One entry for each kind of operands that the level in use multiplies.
    pub products: Vec<ProductRate>,
    /// Reading memory.
    pub read: ReadRate,
}

impl Ceilings {
    /// Measures them; takes a few seconds and a gigabyte of memory, or a quarter of what is free.
    pub fn measure() -> Self {
        let products = Operands::ALL.into_iter().filter_map(product_rate).collect();
        Self {
            products,
            read: read_rate(),
        }
    }

    /// Operations a second on all threads, operands in registers; those of f32 where the level has no products of this kind.
    pub(crate) fn rate(&self, operands: Operands) -> f64 {
        let rate = |operands: Operands| {
            let found = |rate: &&ProductRate| rate.operands == operands.name();
            self.products
                .iter()
                .find(found)
                .map(|rate| rate.all_threads)
        };
        rate(operands)
            .or_else(|| rate(Operands::F32))
            .unwrap_or(f64::INFINITY)
    }
}

fn product_rate(operands: Operands) -> Option<ProductRate> {
    let level = level();
    // Rounds for one run, from the time of a few.
    let probe = 1 << 16;
    let time = seconds(|| ceiling::products(level, operands, probe));
    let rounds = (probe as f64 * SECONDS / time.max(1e-9)) as u64 + 1;
    let operations = ceiling::products(level, operands, 1)? as f64 * rounds as f64;
    let one = best(|| {
        ceiling::products(level, operands, rounds);
    });
    let all = best(|| {
        rayon::broadcast(|_| ceiling::products(level, operands, rounds));
    });
    Some(ProductRate {
        operands: operands.name().to_string(),
        one_thread: operations / one,
        all_threads: operations * rayon::current_num_threads() as f64 / all,
        large_product: large_product(operands),
    })
}

fn large_product(operands: Operands) -> f64 {
    let (m, n, k) = LARGE;
    let values = |count: usize| -> Vec<f32> {
        let value = |index: usize| (index.wrapping_mul(2_654_435_761) >> 8 & 0xff) as f32;
        (0..count).map(|index| value(index) / 128.0 - 1.0).collect()
    };
    let x = values(m * k);
    let mut out = vec![0.0; m * n];
    let epilogue = Epilogue::default();
    let packed = |t| PackedWeight::pack(n, k, &values(n * k), t);
    let time = match operands {
        Operands::F32 => {
            let weight = packed(WeightType::F32);
            best(|| gemm(m, &x, &weight, &mut out, &epilogue))
        }
        Operands::Bf16 => {
            let weight = packed(WeightType::Bf16);
            best(|| gemm(m, &x, &weight, &mut out, &epilogue))
        }
        Operands::Int8 => {
            let blocks = Bytes::from_vec(quantize(QuantType::Q8_0, &values(n * k)));
            // The blocks are those of the shape, so there is nothing to refuse.
            let Ok(weight) = QuantWeight::new(QuantType::Q8_0, n, k, blocks) else {
                return 0.0;
            };
            best(|| quant_gemm(m, &x, &weight, &mut out, &epilogue))
        }
    };
    2.0 * (m * n * k) as f64 / time
}

fn read_rate() -> ReadRate {
    let free = mini_gemini::available_memory().unwrap_or(u64::MAX);
    let words = (READ_BYTES.min(free / 4) / 8) as usize;
    let mut memory = Memory::new(words);
    let level: Level = level();
    let share = words.div_ceil(rayon::current_num_threads()).max(1);
    // Written by the threads that will read it, so that every page is there.
    memory
        .words_mut()
        .par_chunks_mut(share)
        .for_each(|part| part.fill(1));
    let data = memory.words();
    let one = best(|| {
        std::hint::black_box(ceiling::read(level, data));
    });
    let all = best(|| {
        let parts = data.par_chunks(share);
        std::hint::black_box(parts.map(|part| ceiling::read(level, part) >> 32).max());
    });
    let bytes = 8.0 * words as f64;
    ReadRate {
        one_thread: bytes / one,
        all_threads: bytes / all,
    }
}

fn seconds<T>(work: impl FnOnce() -> T) -> f64 {
    let started = Instant::now();
    std::hint::black_box(work());
    started.elapsed().as_secs_f64()
}

/// The shortest of several times, in seconds, after one that does not count.
fn best(mut work: impl FnMut()) -> f64 {
    work();
    (0..RUNS)
        .map(|_| seconds(&mut work))
        .fold(f64::INFINITY, f64::min)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn missing_products_count_as_f32() {
        let f32_rate = ProductRate {
            operands: "f32".into(),
            one_thread: 1.0,
            all_threads: 2.0,
            large_product: 1.5,
        };
        let int8_rate = ProductRate {
            operands: "int8".into(),
            all_threads: 8.0,
            ..f32_rate.clone()
        };
        let ceilings = Ceilings {
            products: vec![f32_rate, int8_rate],
            read: ReadRate {
                one_thread: 1.0,
                all_threads: 1.0,
            },
        };
        assert_eq!(ceilings.rate(Operands::Int8), 8.0);
        assert_eq!(ceilings.rate(Operands::Bf16), 2.0);
    }
}
