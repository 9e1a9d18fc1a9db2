//! AMX bf16 microkernel: 2×2 tiles of 16×16, by inline assembly (the intrinsics are not stable).
//!
//! Palette 1 is architectural: eight tiles of 16 rows × 64 bytes. An `A` tile is 16 rows of 32 bf16 values read where the
//! packed rows lie; a `B` tile is 16 pair rows of 16 columns, the left or right half of a panel (row stride 128 bytes).

use std::arch::asm;
use std::arch::x86_64::__cpuid_count;

use super::kernel::{MicroArguments, MicroKernel};
use super::pack::PANEL;
use super::portable;

/// Rows of one microkernel.
pub(crate) const MAX_ROWS: usize = 32;
/// bf16 pairs along k in one tile.
const TILE_PAIRS: usize = 16;
/// Bytes of one panel step (32 pairs), and of one row of the result.
const PANEL_STRIDE: usize = 4 * PANEL;

/// Result of one 2×2 tile product, `[32][32]`.
#[repr(C, align(64))]
struct Scratch([f32; MAX_ROWS * PANEL]);

/// Multiplies `tiles` tiles along k: rows at `a` (16) and `a + 16·lda` (16), panel at `b`; writes the scratch.
type TileProduct =
    unsafe fn(a: *const u8, lda: usize, b: *const u8, tiles: usize, scratch: &mut Scratch);

/// Tile configuration, 64 bytes as `ldtilecfg` reads them.
#[repr(C, align(64))]
struct Configuration {
    palette: u8,
    start_row: u8,
    reserved: [u8; 14],
    row_bytes: [u16; 16],
    rows: [u8; 16],
}

/// Loads the tile configuration of the current thread. Pair with [`release`] on the same thread.
///
/// # Safety
/// The machine must have AMX and the process the permission, see [`usable`].
pub(crate) unsafe fn configure() {
    let mut configuration = Configuration {
        palette: 1,
        start_row: 0,
        reserved: [0; 14],
        row_bytes: [0; 16],
        rows: [0; 16],
    };
    configuration.row_bytes[..8].fill(64);
    configuration.rows[..8].fill(16);
    // SAFETY: `configuration` is 64 readable bytes; the instruction exists by the caller's promise.
    unsafe {
        asm!("ldtilecfg [{0}]", in(reg) &configuration, options(nostack, readonly, preserves_flags))
    };
}

/// Returns the tile registers to their initial state, so that context switches need not save them.
///
/// # Safety
/// As for [`configure`].
pub(crate) unsafe fn release() {
    // SAFETY: the instruction exists by the caller's promise.
    unsafe { asm!("tilerelease", options(nostack, nomem, preserves_flags)) };
}

/// # Safety
/// AMX is configured on this thread; `a` has 32 rows of `64·tiles` bytes at distance `lda`, `b` has `2048·tiles` bytes,
/// `tiles >= 1`.
unsafe fn hardware_product(
    a: *const u8,
    lda: usize,
    b: *const u8,
    tiles: usize,
    scratch: &mut Scratch,
) {
    let c = scratch.0.as_mut_ptr();
    // SAFETY: reads the rows and the panel and writes the 4 KiB scratch, all in bounds by the contract above. All tile
    // registers used are declared.
    unsafe {
        asm!(
            "tilezero tmm0",
            "tilezero tmm1",
            "tilezero tmm2",
            "tilezero tmm3",
            "2:",
            "tileloadd tmm4, [{a0} + {lda}*1]",
            "tileloadd tmm6, [{b} + {stride}*1]",
            "tileloadd tmm7, [{b} + {stride}*1 + 64]",
            "tileloadd tmm5, [{a1} + {lda}*1]",
            "tdpbf16ps tmm0, tmm4, tmm6",
            "tdpbf16ps tmm1, tmm4, tmm7",
            "tdpbf16ps tmm2, tmm5, tmm6",
            "tdpbf16ps tmm3, tmm5, tmm7",
            "add {a0}, 64",
            "add {a1}, 64",
            "add {b}, 2048",
            "dec {tiles}",
            "jnz 2b",
            "tilestored [{c0} + {stride}*1], tmm0",
            "tilestored [{c0} + {stride}*1 + 64], tmm1",
            "tilestored [{c1} + {stride}*1], tmm2",
            "tilestored [{c1} + {stride}*1 + 64], tmm3",
            a0 = inout(reg) a => _,
            a1 = inout(reg) a.wrapping_add(16 * lda) => _,
            b = inout(reg) b => _,
            tiles = inout(reg) tiles => _,
            lda = in(reg) lda,
            stride = in(reg) PANEL_STRIDE,
            c0 = in(reg) c,
            c1 = in(reg) c.wrapping_add(16 * PANEL),
            out("tmm0") _, out("tmm1") _, out("tmm2") _, out("tmm3") _,
            out("tmm4") _, out("tmm5") _, out("tmm6") _, out("tmm7") _,
            options(nostack),
        );
    }
}

/// One block of up to 32 rows × 32 columns with a given tile product.
///
/// # Safety
/// See [`MicroArguments`]; 32 rows of `a` at distance `lda` are readable, and rows and panel are padded to whole tiles.
#[inline(always)]
unsafe fn block(product: TileProduct, arguments: &MicroArguments) {
    let mut scratch = Scratch([0.0; MAX_ROWS * PANEL]);
    let tiles = arguments.steps.div_ceil(TILE_PAIRS);
    if tiles > 0 {
        // SAFETY: passed on.
        unsafe { product(arguments.a, arguments.lda, arguments.b, tiles, &mut scratch) };
    }
    for (i, sums) in scratch
        .0
        .chunks_exact(PANEL)
        .take(arguments.rows)
        .enumerate()
    {
        let sums = &sums[..arguments.columns];
        // SAFETY: `c` has `columns` writable elements in each of `rows` rows, exclusive to this call; `bias` is null or
        // has `columns` elements.
        unsafe {
            let c = std::slice::from_raw_parts_mut(
                arguments.c.add(i * arguments.ldc),
                arguments.columns,
            );
            if arguments.add {
                c.iter_mut().zip(sums).for_each(|(c, &sum)| *c += sum);
            } else {
                c.copy_from_slice(sums);
            }
            if !arguments.bias.is_null() {
                let bias = std::slice::from_raw_parts(arguments.bias, arguments.columns);
                c.iter_mut().zip(bias).for_each(|(c, &bias)| *c += bias);
            }
        }
    }
}

/// # Safety
/// See [`block`]; AMX is configured on this thread.
#[target_feature(enable = "avx512f")]
unsafe fn hardware_rows(arguments: &MicroArguments) {
    // SAFETY: passed on.
    unsafe { block(hardware_product, arguments) }
}

/// The microkernel, for every number of rows up to 32.
pub(crate) static BF16: [MicroKernel; MAX_ROWS] = [hardware_rows; MAX_ROWS];

/// Whether AMX bf16 exists, the operating system grants it to this process, and it computes what the portable code does.
pub(crate) fn usable() -> bool {
    exists() && permitted() && self_test()
}

fn exists() -> bool {
    if __cpuid_count(0, 0).eax < 7 {
        return false;
    }
    let features = __cpuid_count(7, 0).edx;
    let (bf16, tiles) = (features >> 22 & 1, features >> 24 & 1);
    let os_saves = __cpuid_count(1, 0).ecx >> 27 & 1;
    if bf16 & tiles & os_saves == 0 {
        return false;
    }
    let (low, high): (u32, u32);
    // SAFETY: OSXSAVE is set, so the instruction exists.
    unsafe {
        asm!("xgetbv", in("ecx") 0, out("eax") low, out("edx") high, options(nostack, nomem, preserves_flags))
    };
    let _ = high;
    // Tile configuration and tile data state.
    low >> 17 & 3 == 3
}

/// Asks the kernel for the tile state, once for the process. Linux kills a process that uses tiles without it.
#[cfg(target_os = "linux")]
fn permitted() -> bool {
    const ARCH_PRCTL: u64 = 158;
    const ARCH_REQUEST_PERMISSION: u64 = 0x1023;
    const TILE_DATA: u64 = 18;
    let result: i64;
    // SAFETY: the system call takes two numbers and touches no memory; rcx and r11 are declared as it changes them.
    unsafe {
        asm!(
            "syscall",
            inlateout("rax") ARCH_PRCTL => result,
            in("rdi") ARCH_REQUEST_PERMISSION,
            in("rsi") TILE_DATA,
            out("rcx") _,
            out("r11") _,
            options(nostack),
        );
    }
    result == 0
}

#[cfg(not(target_os = "linux"))]
fn permitted() -> bool {
    false
}

/// Compares one product of small whole numbers, exact in any order of summation, with the portable microkernel. Calls no
/// function that asks for the level: it runs while that is being found out.
fn self_test() -> bool {
    const PAIRS: usize = 2 * TILE_PAIRS;
    let whole = |i: usize| ((i * 7 + i / 5) % 13) as f32 - 6.0;
    let bits = |value: f32| value.to_bits() >> 16;
    let mut rows = vec![0u32; MAX_ROWS * PAIRS];
    let mut panel = vec![0u32; PAIRS * PANEL];
    for (i, pair) in rows.iter_mut().enumerate() {
        *pair = bits(whole(2 * i)) | bits(whole(2 * i + 1)) << 16;
    }
    for (i, pair) in panel.iter_mut().enumerate() {
        *pair = bits(whole(3 * i + 1)) | bits(whole(3 * i + 2)) << 16;
    }
    let mut got = vec![0.0f32; MAX_ROWS * PANEL];
    let mut arguments = MicroArguments {
        steps: PAIRS,
        rows: MAX_ROWS,
        a: rows.as_ptr().cast(),
        lda: PAIRS * 4,
        b: panel.as_ptr().cast(),
        ldb: PANEL,
        c: got.as_mut_ptr(),
        ldc: PANEL,
        columns: PANEL,
        bias: std::ptr::null(),
        add: false,
    };
    // SAFETY: `exists` and `permitted` held; the buffers have the sizes that the arguments state. AVX-512 is there
    // because the level below was found first.
    unsafe {
        configure();
        hardware_rows(&arguments);
        release();
    }
    for i in 0..MAX_ROWS {
        let row: Vec<f32> = (0..2 * PAIRS).map(|p| whole(2 * PAIRS * i + p)).collect();
        let mut want = [0.0f32; PANEL];
        arguments.rows = 1;
        arguments.a = row.as_ptr().cast();
        arguments.c = want.as_mut_ptr();
        // SAFETY: one row of 2·PAIRS values, the panel, and one row of output.
        unsafe { portable::BF16[0](&arguments) };
        if got[i * PANEL..][..PANEL] != want {
            return false;
        }
    }
    true
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::gemm::kernel::{Family, RowFormat};
    use crate::gemm::{Activation, Epilogue, PackedWeight, WeightType, driver};
    use crate::level::Level;

    /// Reads a tile as `tileloadd` does: 16 rows of 64 bytes at distance `stride`.
    unsafe fn load(base: *const u8, stride: usize) -> [[[u16; 2]; 16]; 16] {
        // SAFETY: the caller passes addresses that the hardware would read.
        std::array::from_fn(|row| unsafe {
            base.add(row * stride)
                .cast::<[[u16; 2]; 16]>()
                .read_unaligned()
        })
    }

    fn widen(bits: u16) -> f32 {
        f32::from_bits(u32::from(bits) << 16)
    }

    /// `tdpbf16ps`: `c[m][n] += Σ a[m][k].0·b[k][n].0 + a[m][k].1·b[k][n].1`.
    fn multiply(c: &mut [[f32; 16]; 16], a: &[[[u16; 2]; 16]; 16], b: &[[[u16; 2]; 16]; 16]) {
        for m in 0..16 {
            for k in 0..16 {
                for n in 0..16 {
                    c[m][n] += widen(a[m][k][0]) * widen(b[k][n][0])
                        + widen(a[m][k][1]) * widen(b[k][n][1]);
                }
            }
        }
    }

    /// The assembly above, instruction by instruction, with the same addresses.
    unsafe fn emulated_product(
        a: *const u8,
        lda: usize,
        b: *const u8,
        tiles: usize,
        scratch: &mut Scratch,
    ) {
        let mut sums = [[[0.0f32; 16]; 16]; 4];
        let (mut a0, mut a1, mut b) = (a, a.wrapping_add(16 * lda), b);
        for _ in 0..tiles {
            // SAFETY: as the hardware.
            let (t4, t6, t7, t5) = unsafe {
                (
                    load(a0, lda),
                    load(b, PANEL_STRIDE),
                    load(b.add(64), PANEL_STRIDE),
                    load(a1, lda),
                )
            };
            multiply(&mut sums[0], &t4, &t6);
            multiply(&mut sums[1], &t4, &t7);
            multiply(&mut sums[2], &t5, &t6);
            multiply(&mut sums[3], &t5, &t7);
            a0 = a0.wrapping_add(64);
            a1 = a1.wrapping_add(64);
            b = b.wrapping_add(2048);
        }
        for (tile, sums) in sums.iter().enumerate() {
            for (row, values) in sums.iter().enumerate() {
                let start = (tile / 2 * 16 + row) * PANEL + tile % 2 * 16;
                scratch.0[start..start + 16].copy_from_slice(values);
            }
        }
    }

    unsafe fn emulated_rows(arguments: &MicroArguments) {
        // SAFETY: passed on.
        unsafe { block(emulated_product, arguments) }
    }

    static EMULATED: [MicroKernel; MAX_ROWS] = [emulated_rows; MAX_ROWS];

    #[test]
    fn packing_and_tile_addresses_give_the_product() {
        let family = Family {
            kernels: &EMULATED,
            format: RowFormat::Bf16Rows,
            tiles: false,
        };
        for (m, n, k) in [
            (1, 1, 1),
            (16, 32, 32),
            (31, 33, 63),
            (32, 64, 64),
            (70, 50, 100),
            (33, 40, 2051),
        ] {
            // Small whole numbers: exact in bf16 and in any order of summation.
            let x: Vec<f32> = (0..m * k)
                .map(|i| ((i * 5 + i / 7) % 9) as f32 - 4.0)
                .collect();
            let w: Vec<f32> = (0..n * k)
                .map(|i| ((i * 3 + i / 11) % 9) as f32 - 4.0)
                .collect();
            let bias: Vec<f32> = (0..n).map(|j| j as f32).collect();
            let packed = PackedWeight::pack(n, k, &w, WeightType::Bf16);
            let mut out = vec![1.0f32; m * n];
            let epilogue = Epilogue {
                bias: Some(&bias),
                activation: Activation::None,
                accumulate: true,
            };
            driver::product_with(Level::Portable, family, m, &x, &packed, &mut out, &epilogue);
            for i in 0..m {
                for j in 0..n {
                    let sum: f32 = (0..k).map(|p| x[i * k + p] * w[j * k + p]).sum();
                    assert_eq!(
                        out[i * n + j],
                        sum + bias[j] + 1.0,
                        "{m}×{n}×{k} at ({i}, {j})"
                    );
                }
            }
        }
    }

    #[test]
    fn usable_agrees_with_the_detected_levels() {
        assert_eq!(
            usable() && crate::level::available().contains(&Level::Avx512),
            { crate::level::available().contains(&Level::Amx) }
        );
    }
}
