//! What a microkernel is, and which family of them a level and weight type use.

use super::pack::WeightType;
use super::portable;
#[cfg(target_arch = "x86_64")]
use crate::level;
use crate::level::Level;

/// Arguments of one microkernel call: `rows` (the kernel's own) × up to 32 columns, `steps` steps along k.
///
/// Contract of every call:
/// - `a` holds `steps` groups of interleaved row values: `f32 [rows]`, twice that for [`RowFormat::F32Pairs`], `bf16` pairs
///   `[rows][2]` for [`RowFormat::Bf16Pairs`]; for [`RowFormat::Bf16Rows`] it is 32 readable rows at distance `lda` bytes
///   with `steps` pairs each, rounded up to a multiple of 16 pairs, zero beyond `k`;
/// - `b` holds `steps` rows of `ldb` 4-byte units; each row has at least `columns` readable ones. Packed bf16 panels have
///   32 pairs in every row, packed f16 panels 32 values;
/// - `c` has `rows` rows at distance `ldc`, each with `columns` writable elements, exclusive to this call;
/// - `bias` is null or has `columns` elements; `1 <= columns <= 32`.
pub(crate) struct MicroArguments {
    pub(crate) steps: usize,
    pub(crate) rows: usize,
    pub(crate) a: *const u8,
    pub(crate) lda: usize,
    pub(crate) b: *const u8,
    pub(crate) ldb: usize,
    pub(crate) c: *mut f32,
    pub(crate) ldc: usize,
    pub(crate) columns: usize,
    pub(crate) bias: *const f32,
    pub(crate) add: bool,
}

/// A microkernel for a fixed number of rows.
pub(crate) type MicroKernel = unsafe fn(&MicroArguments);

/// How the rows of `x` are packed for a family of microkernels.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum RowFormat {
    /// `f32`, one value of each row per step.
    F32,
    /// `f32`, two values of each row per step (weights are bf16 pairs).
    F32Pairs,
    /// bf16 pairs, one pair of each row per step.
    Bf16Pairs,
    /// bf16, row after row, each padded with zeros to whole AMX tiles.
    Bf16Rows,
}

/// Microkernels for 1..=len rows and the row format that they read.
#[derive(Clone, Copy)]
pub(crate) struct Family {
    pub(crate) kernels: &'static [MicroKernel],
    pub(crate) format: RowFormat,
    /// The thread must have the AMX tiles configured.
    pub(crate) tiles: bool,
}

impl Family {
    const fn new(kernels: &'static [MicroKernel], format: RowFormat) -> Self {
        Self {
            kernels,
            format,
            tiles: false,
        }
    }
}

/// Rows below which a product is bound by the weights and the tile unit has nothing to gain.
#[cfg(target_arch = "x86_64")]
const AMX_MIN_ROWS: usize = 12;

/// The family for a weight type and `m` rows at a level that the machine has.
pub(crate) fn family(level: Level, weight_type: WeightType, m: usize) -> Family {
    #[cfg(target_arch = "x86_64")]
    {
        use super::{amx, avx2, avx512};
        match (level, weight_type) {
            (Level::Amx, WeightType::Bf16) if m >= AMX_MIN_ROWS => {
                return Family {
                    kernels: &amx::BF16,
                    format: RowFormat::Bf16Rows,
                    tiles: true,
                };
            }
            (Level::Avx512 | Level::Amx, WeightType::F32) => {
                return Family::new(&avx512::F32, RowFormat::F32);
            }
            (Level::Avx512 | Level::Amx, WeightType::Bf16) if level::has_avx512_bf16() => {
                return Family::new(&avx512::BF16, RowFormat::Bf16Pairs);
            }
            (Level::Avx512 | Level::Amx, WeightType::Bf16) => {
                return Family::new(&avx512::WIDEN, RowFormat::F32Pairs);
            }
            (Level::Avx512 | Level::Amx, WeightType::F16) => {
                return Family::new(&avx512::F16, RowFormat::F32);
            }
            (Level::Avx2, WeightType::F32) => return Family::new(&avx2::F32, RowFormat::F32),
            (Level::Avx2, WeightType::F16) => return Family::new(&avx2::F16, RowFormat::F32),
            (Level::Avx2, WeightType::Bf16) => {
                return Family::new(&avx2::WIDEN, RowFormat::F32Pairs);
            }
            (Level::Portable, _) => {}
        }
    }
    let _ = (level, m);
    match weight_type {
        WeightType::F32 => Family::new(&portable::F32, RowFormat::F32),
        WeightType::F16 => Family::new(&portable::F16, RowFormat::F32),
        WeightType::Bf16 => Family::new(&portable::BF16, RowFormat::F32Pairs),
    }
}
