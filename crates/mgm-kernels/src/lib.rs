//! CPU kernels with run-time instruction-set dispatch.
//!
//! All activations are `f32`, row-major. Weights are `f32`, `bf16`, `f16`, GGML quantised blocks or int8. Every kernel has a portable
//! implementation; on x86-64 faster ones are chosen once per process from what the processor reports.
//!
//! # Choosing the instruction set
//!
//! The environment variable `MGM_KERNEL_LEVEL` caps the level that is used:
//!
//! | value      | instruction sets                                                       |
//! |------------|------------------------------------------------------------------------|
//! | `portable` | whatever the compiler target guarantees                                |
//! | `avx2`     | AVX2, FMA and F16C                                                     |
//! | `avx512`   | AVX-512 F, BW, VL, DQ and VNNI; BF16 products where the CPU has them   |
//! | `amx`      | the same and the AMX tile unit, bf16 and int8                          |
//!
//! A level that the machine lacks is lowered to the best one it has. An unknown value is ignored, and
//! [`level::level_error`] returns one line about it.
//!
//! # Panics
//!
//! Kernels check the lengths of the slices they are given and panic with a message that names the slice when one is too
//! short; that is a programming error. Nothing that comes from a file can cause it: [`quant::QuantWeight::new`] returns
//! an error for a block buffer of the wrong size.

#[cfg(not(target_endian = "little"))]
compile_error!(
    "weights are stored little-endian and read in place; only little-endian targets are supported"
);

/// Number of the orders in which weights are stored ([`gemm::PackedWeight::stored`], [`int8::Int8Weight::stored`], [`quant::QuantWeight::interleave`]).
/// Rises whenever one of them changes, so that bytes that were kept are not taken for what they are not.
pub const STORED_LAYOUT: u32 = 2;

pub mod attention;
pub mod ceiling;
pub mod conv;
pub mod conv_backward;
pub mod depthwise;
pub mod elementwise;
pub mod gemm;
pub mod group_norm;
pub mod group_norm_backward;
pub mod int8;
pub mod level;
pub mod low_rank;
pub mod mapped;
pub mod mlp;
pub mod process;
pub mod pyramid;
pub mod quant;

#[cfg(target_arch = "x86_64")]
mod amx;
mod buffer;
mod math;
mod shared;
