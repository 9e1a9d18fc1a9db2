//! What a processor can do at most: products whose operands never leave the registers, and memory that is only read.
//!
//! No kernel can be faster, so a stage's operations over the first and its bytes over the second are the floor of its time. The loops
//! here do nothing else and are timed by their caller, one call on every thread.

use std::hint::black_box;

use crate::buffer::Aligned;
use crate::level::{self, Level};
use crate::math::multiversion;

/// What is multiplied. Sums are f32, or 32-bit integers for [`Operands::Int8`].
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Operands {
    /// f32 multiply-adds.
    F32,
    /// Pairs of bf16.
    Bf16,
    /// Groups of four unsigned and signed bytes, as quantised products are made of.
    Int8,
}

impl Operands {
    /// All of them.
    pub const ALL: [Self; 3] = [Self::F32, Self::Bf16, Self::Int8];

    /// A name for tables.
    pub fn name(self) -> &'static str {
        match self {
            Self::F32 => "f32",
            Self::Bf16 => "bf16",
            Self::Int8 => "int8",
        }
    }
}

/// Multiplies and adds in registers on this thread, `rounds` times as many products as fill the registers. Returns the operations done, two
/// for a product and its addition; `None` where the level has no instructions for these operands.
pub fn products(level: Level, operands: Operands, rounds: u64) -> Option<u64> {
    let level = level::clamp(level);
    #[cfg(target_arch = "x86_64")]
    {
        use crate::amx::ceiling as amx;
        // SAFETY: `clamp` returns levels that the machine has; BF16 is asked for.
        unsafe {
            match (level, operands) {
                (Level::Amx, Operands::Bf16) => return Some(amx::bf16(rounds)),
                (Level::Amx, Operands::Int8) => return Some(amx::int8(rounds)),
                (Level::Avx512 | Level::Amx, Operands::F32) => return Some(x86::f32_512(rounds)),
                (Level::Avx512, Operands::Bf16) if level::has_avx512_bf16() => {
                    return Some(x86::bf16_512(rounds));
                }
                (Level::Avx512, Operands::Int8) => return Some(x86::int8_512(rounds)),
                (Level::Avx2, Operands::F32) => return Some(x86::f32_256(rounds)),
                (Level::Avx2, Operands::Int8) => return Some(x86::int8_256(rounds)),
                _ => {}
            }
        }
    }
    match (level, operands) {
        (Level::Portable, Operands::F32) => Some(portable_f32(rounds)),
        _ => None,
    }
}

/// Multiply-adds as the compiler target has them.
fn portable_f32(rounds: u64) -> u64 {
    const SUMS: usize = 10;
    const LANES: usize = 4;
    let factor = black_box([1e-3f32; LANES]);
    let x = black_box([0.5f32; LANES]);
    let mut sums = [[0.0f32; LANES]; SUMS];
    for _ in 0..rounds {
        for sum in &mut sums {
            for lane in 0..LANES {
                sum[lane] += factor[lane] * x[lane];
            }
        }
        // Without this the product, the same in every round, would be made once.
        sums = black_box(sums);
    }
    black_box(sums);
    rounds * (2 * SUMS * LANES) as u64
}

#[cfg(target_arch = "x86_64")]
mod x86 {
    use std::arch::x86_64::*;
    use std::hint::black_box;

    /// Independent sums: enough to hide the latency of any of these instructions, and few enough for the registers.
    const SUMS_512: usize = 24;
    const SUMS_256: usize = 12;

    #[target_feature(enable = "avx512f")]
    pub(super) fn f32_512(rounds: u64) -> u64 {
        let factor = black_box(_mm512_set1_ps(1e-3));
        let x = black_box(_mm512_set1_ps(0.5));
        let mut sums = [_mm512_setzero_ps(); SUMS_512];
        for _ in 0..rounds {
            for sum in &mut sums {
                *sum = _mm512_fmadd_ps(factor, x, *sum);
            }
        }
        black_box(sums);
        rounds * (SUMS_512 * 2 * 16) as u64
    }

    #[target_feature(enable = "avx512f,avx512bf16")]
    pub(super) fn bf16_512(rounds: u64) -> u64 {
        let ones = _mm512_set1_ps(1.0);
        let factor = black_box(_mm512_cvtne2ps_pbh(ones, ones));
        let mut sums = [_mm512_setzero_ps(); SUMS_512];
        for _ in 0..rounds {
            for sum in &mut sums {
                *sum = _mm512_dpbf16_ps(*sum, factor, factor);
            }
        }
        black_box(sums);
        rounds * (SUMS_512 * 2 * 32) as u64
    }

    #[target_feature(enable = "avx512f,avx512vnni")]
    pub(super) fn int8_512(rounds: u64) -> u64 {
        let factor = black_box(_mm512_set1_epi8(3));
        let mut sums = [_mm512_setzero_si512(); SUMS_512];
        for _ in 0..rounds {
            for sum in &mut sums {
                *sum = _mm512_dpbusd_epi32(*sum, factor, factor);
            }
        }
        black_box(sums);
        rounds * (SUMS_512 * 2 * 64) as u64
    }

    #[target_feature(enable = "avx2,fma")]
    pub(super) fn f32_256(rounds: u64) -> u64 {
        let factor = black_box(_mm256_set1_ps(1e-3));
        let x = black_box(_mm256_set1_ps(0.5));
        let mut sums = [_mm256_setzero_ps(); SUMS_256];
        for _ in 0..rounds {
            for sum in &mut sums {
                *sum = _mm256_fmadd_ps(factor, x, *sum);
            }
        }
        black_box(sums);
        rounds * (SUMS_256 * 2 * 8) as u64
    }

    /// Bytes by pairs to 16 bits, these by pairs to 32 bits, and the addition: what AVX2 has in place of one instruction.
    #[target_feature(enable = "avx2,fma")]
    pub(super) fn int8_256(rounds: u64) -> u64 {
        let ones = _mm256_set1_epi16(1);
        let x = black_box(_mm256_set1_epi8(3));
        let mut sums = [_mm256_setzero_si256(); SUMS_256];
        for _ in 0..rounds {
            for sum in &mut sums {
                // Every product has a factor of its own; equal ones would be multiplied once.
                let pairs = _mm256_maddubs_epi16(x, *sum);
                *sum = _mm256_add_epi32(*sum, _mm256_madd_epi16(pairs, ones));
            }
        }
        black_box(sums);
        rounds * (SUMS_256 * 2 * 32) as u64
    }
}

#[inline(always)]
fn sum_words<const FMA: bool>(data: &[u64]) -> u64 {
    // Eight cache lines under way at a time.
    let mut lanes = [0u64; 64];
    let (chunks, tail) = data.as_chunks::<64>();
    for chunk in chunks {
        for (lane, word) in lanes.iter_mut().zip(chunk) {
            *lane = lane.wrapping_add(*word);
        }
    }
    tail.iter()
        .chain(&lanes)
        .fold(0, |sum, word| sum.wrapping_add(*word))
}

multiversion!(fn sum_words_at(data: &[u64]) -> u64 = sum_words);

/// Reads all words once, in order; returns their sum, so that the reading cannot be left out.
pub fn read(level: Level, data: &[u64]) -> u64 {
    sum_words_at(level, data)
}

/// Words to [`read`], in memory of the kind that weights lie in: in large pages where the system has them.
pub struct Memory {
    data: Aligned,
    words: usize,
}

impl Memory {
    /// So many words, zeros.
    pub fn new(words: usize) -> Self {
        Self {
            data: Aligned::lasting(8 * words),
            words,
        }
    }

    /// The words.
    pub fn words(&self) -> &[u64] {
        &self.data.cast()[..self.words]
    }

    /// The words, to be written.
    pub fn words_mut(&mut self) -> &mut [u64] {
        &mut self.data.cast_mut()[..self.words]
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::level::available;

    #[test]
    fn work_grows_with_the_rounds() {
        for level in available() {
            for operands in Operands::ALL {
                let one = products(level, operands, 1);
                let thousand = products(level, operands, 1000);
                assert_eq!(
                    one.map(|ops| 1000 * ops),
                    thousand,
                    "{level:?} {operands:?}"
                );
            }
            assert!(products(level, Operands::F32, 1).is_some_and(|ops| ops > 0));
        }
    }

    #[test]
    fn every_word_is_read() {
        let mut memory = Memory::new(1000);
        for (index, word) in memory.words_mut().iter_mut().enumerate() {
            *word = (index * index + 1) as u64;
        }
        let data = memory.words();
        for level in available() {
            for len in [0, 1, 63, 64, 65, 1000] {
                assert_eq!(read(level, &data[..len]), data[..len].iter().sum::<u64>());
            }
        }
    }
}
