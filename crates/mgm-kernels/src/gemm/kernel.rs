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
///   `[rows][2]` for [`RowFormat::Bf16Pairs`]; for [`RowFormat::Bf16Tiles`] it is as many pairs of tiles as hold `steps` pairs of values,
///   zero beyond `k`, each tile 16 rows of 16 pairs;
/// - `b` holds `steps` rows of `ldb` 4-byte units; each row has at least `columns` readable ones. Packed bf16 panels have
///   32 pairs in every row, packed f16 panels 32 values;
/// - `c` has `rows` rows at distance `ldc`, each with `columns` writable elements, exclusive to this call;
/// - `bias` is null or has `columns` elements; `1 <= columns <= 32`.
pub(crate) struct MicroArguments {
    pub(crate) steps: usize,
    pub(crate) rows: usize,
    pub(crate) a: *const u8,
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
    /// bf16 in AMX tiles of 16 rows and 32 values, two for 32 rows and then the next two along k, padded with zeros to whole tiles: a
    /// product reads them from first to last.
    Bf16Tiles,
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
    /// Features of one block along k.
    pub(crate) fn k_block(&self) -> usize {
        match self.format {
            // 32 KiB of a panel stay in the first-level cache while the rows of a task pass by: from the second-level cache tiles come at a
            // fraction of the rate at which they are multiplied.
            RowFormat::Bf16Tiles => 512,
            // 128 KiB of a bf16 panel are an eighth of a usual second-level cache.
            _ => 2048,
        }
    }

    /// Rows of one task; with a k block of packed rows it stays in the second-level cache.
    pub(crate) fn task_rows(&self) -> usize {
        match self.format {
            RowFormat::Bf16Tiles => 640,
            _ => 192,
        }
    }

    /// Panels that go through all blocks along k before the next: their part of the result stays in the second-level cache.
    pub(crate) fn panel_group(&self) -> usize {
        match self.format {
            RowFormat::Bf16Tiles => 6,
            _ => usize::MAX,
        }
    }

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
                    format: RowFormat::Bf16Tiles,
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
