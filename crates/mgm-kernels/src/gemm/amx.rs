//! AMX bf16 microkernel: 2×2 tiles of 16×16, by inline assembly (the intrinsics are not stable).
//!
//! Palette 1 is architectural: eight tiles of 16 rows × 64 bytes. `A` tiles are packed one after the other, 16 rows of 32 bf16 values; a
//! `B` tile is 16 pair rows of 16 columns, the left or right half of a panel (row stride 128 bytes).
//!
//! A product of tiles takes 16 cycles, four of them read four tiles. From the second-level cache these come more slowly than that, so the
//! driver walks along k in blocks of which a panel's part stays in the first-level cache, and the rows, which pass by only once,
//! are fetched ahead.

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

/// Multiplies `tiles` pairs of tiles along k at `a` with the panel at `b`; writes 32 rows and 32 columns to `c`, rows at distance `ldc` values,
/// or adds to them.
type TileProduct =
    unsafe fn(a: *const u8, b: *const u8, tiles: usize, c: *mut f32, ldc: usize, add: bool);

/// Fetches the rows' lines from byte `$from` to `$to` of the next pair of tiles but one.
macro_rules! ahead {
    (0, 512) => {
        ahead!(@ "4096" "4160" "4224" "4288" "4352" "4416" "4480" "4544")
    };
    (512, 1024) => {
        ahead!(@ "4608" "4672" "4736" "4800" "4864" "4928" "4992" "5056")
    };
    (1024, 1536) => {
        ahead!(@ "5120" "5184" "5248" "5312" "5376" "5440" "5504" "5568")
    };
    (1536, 2048) => {
        ahead!(@ "5632" "5696" "5760" "5824" "5888" "5952" "6016" "6080")
    };
    (@ $($at:literal)*) => {
        concat!($("prefetcht0 [{a} + ", $at, "]\n"),*)
    };
}

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
/// AMX is configured on this thread; `a` and `b` have `2048·tiles` bytes, `tiles >= 1`; `c` has 32 rows of 32 values.
unsafe fn hardware_product(
    a: *const u8,
    b: *const u8,
    tiles: usize,
    c: *mut f32,
    ldc: usize,
    add: bool,
) {
    // SAFETY: reads rows and panel and writes `c`, all in bounds by the contract above; fetching ahead beyond the end of the rows is no
    // access. All tile registers used are declared.
    unsafe {
        asm!(
            "test {add}, {add}",
            "jz 3f",
            "tileloadd tmm0, [{c0} + {ldc}*1]",
            "tileloadd tmm1, [{c0} + {ldc}*1 + 64]",
            "tileloadd tmm2, [{c1} + {ldc}*1]",
            "tileloadd tmm3, [{c1} + {ldc}*1 + 64]",
            "jmp 2f",
            "3:",
            "tilezero tmm0",
            "tilezero tmm1",
            "tilezero tmm2",
            "tilezero tmm3",
            "2:",
            "tileloadd tmm4, [{a} + {line}*1]",
            "tileloadd tmm6, [{b} + {stride}*1]",
            "tdpbf16ps tmm0, tmm4, tmm6",
            ahead!(0, 512),
            "tileloadd tmm7, [{b} + {stride}*1 + 64]",
            "tdpbf16ps tmm1, tmm4, tmm7",
            ahead!(512, 1024),
            "tileloadd tmm5, [{a} + {line}*1 + 1024]",
            "tdpbf16ps tmm2, tmm5, tmm6",
            ahead!(1024, 1536),
            "tdpbf16ps tmm3, tmm5, tmm7",
            ahead!(1536, 2048),
            "add {a}, 2048",
            "add {b}, 2048",
            "dec {tiles}",
            "jnz 2b",
            "tilestored [{c0} + {ldc}*1], tmm0",
            "tilestored [{c0} + {ldc}*1 + 64], tmm1",
            "tilestored [{c1} + {ldc}*1], tmm2",
            "tilestored [{c1} + {ldc}*1 + 64], tmm3",
            a = inout(reg) a => _,
            b = inout(reg) b => _,
            tiles = inout(reg) tiles => _,
            add = in(reg) usize::from(add),
            line = in(reg) 64usize,
            stride = in(reg) PANEL_STRIDE,
            ldc = in(reg) 4 * ldc,
            c0 = in(reg) c,
            c1 = in(reg) c.wrapping_add(16 * ldc),
            out("tmm0") _, out("tmm1") _, out("tmm2") _, out("tmm3") _,
            out("tmm4") _, out("tmm5") _, out("tmm6") _, out("tmm7") _,
            options(nostack),
        );
    }
}

/// One block of up to 32 rows × 32 columns with a given tile product.
///
/// # Safety
/// See [`MicroArguments`].
#[inline(always)]
unsafe fn block(product: TileProduct, arguments: &MicroArguments) {
    let MicroArguments { rows, columns, .. } = *arguments;
    let tiles = arguments.steps.div_ceil(TILE_PAIRS);
    let whole = rows == MAX_ROWS && columns == PANEL && tiles > 0;
    let mut scratch = Scratch([0.0; MAX_ROWS * PANEL]);
    if whole {
        let (c, ldc) = (arguments.c, arguments.ldc);
        // SAFETY: passed on; `c` has all rows and columns.
        unsafe { product(arguments.a, arguments.b, tiles, c, ldc, arguments.add) };
    } else if tiles > 0 {
        let c = scratch.0.as_mut_ptr();
        // SAFETY: passed on; the scratch has all rows and columns.
        unsafe { product(arguments.a, arguments.b, tiles, c, PANEL, false) };
    }
    if whole && arguments.bias.is_null() {
        return;
    }
    for (i, sums) in scratch.0.chunks_exact(PANEL).take(rows).enumerate() {
        let sums = &sums[..columns];
        // SAFETY: `c` has `columns` writable elements in each of `rows` rows, exclusive to this call; `bias` is null or
        // has `columns` elements.
        unsafe {
            let c = std::slice::from_raw_parts_mut(arguments.c.add(i * arguments.ldc), columns);
            if whole {
                // The product is there already.
            } else if arguments.add {
                c.iter_mut().zip(sums).for_each(|(c, &sum)| *c += sum);
            } else {
                c.copy_from_slice(sums);
            }
            if !arguments.bias.is_null() {
                let bias = std::slice::from_raw_parts(arguments.bias, columns);
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
    for i in 0..MAX_ROWS {
        for p in 0..PAIRS {
            let at = i * PAIRS + p;
            let tile = p / TILE_PAIRS * 2 + i / 16;
            rows[(tile * 16 + i % 16) * TILE_PAIRS + p % TILE_PAIRS] =
                bits(whole(2 * at)) | bits(whole(2 * at + 1)) << 16;
        }
    }
    for (i, pair) in panel.iter_mut().enumerate() {
        *pair = bits(whole(3 * i + 1)) | bits(whole(3 * i + 2)) << 16;
    }
    let mut got = vec![0.0f32; MAX_ROWS * PANEL];
    let mut arguments = MicroArguments {
        steps: PAIRS,
        rows: MAX_ROWS,
        a: rows.as_ptr().cast(),
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
        mut a: *const u8,
        mut b: *const u8,
        tiles: usize,
        c: *mut f32,
        ldc: usize,
        add: bool,
    ) {
        let place = |tile: usize, row: usize| (tile / 2 * 16 + row) * ldc + tile % 2 * 16;
        let mut sums = [[[0.0f32; 16]; 16]; 4];
        if add {
            for (tile, sums) in sums.iter_mut().enumerate() {
                for (row, values) in sums.iter_mut().enumerate() {
                    // SAFETY: as the hardware.
                    *values =
                        unsafe { c.add(place(tile, row)).cast::<[f32; 16]>().read_unaligned() };
                }
            }
        }
        for _ in 0..tiles {
            // SAFETY: as the hardware.
            let (t4, t6, t7, t5) = unsafe {
                (
                    load(a, 64),
                    load(b, PANEL_STRIDE),
                    load(b.add(64), PANEL_STRIDE),
                    load(a.add(1024), 64),
                )
            };
            multiply(&mut sums[0], &t4, &t6);
            multiply(&mut sums[1], &t4, &t7);
            multiply(&mut sums[2], &t5, &t6);
            multiply(&mut sums[3], &t5, &t7);
            a = a.wrapping_add(2048);
            b = b.wrapping_add(2048);
        }
        for (tile, sums) in sums.iter().enumerate() {
            for (row, values) in sums.iter().enumerate() {
                // SAFETY: as the hardware.
                unsafe {
                    c.add(place(tile, row))
                        .cast::<[f32; 16]>()
                        .write_unaligned(*values)
                };
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
            format: RowFormat::Bf16Tiles,
            tiles: false,
        };
        for (m, n, k) in [
            (1, 1, 1),
            (16, 32, 32),
            (31, 33, 63),
            (32, 64, 64),
            (70, 50, 100),
            (33, 40, 2051),
            (64, 32, 1024),
            (70, 250, 1100),
            (700, 65, 600),
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
            // The same from panels that are made a part at a time.
            let mut made = vec![1.0f32; m * n];
            let row = |j: usize, first: usize, out: &mut [f32]| {
                out.copy_from_slice(&w[j * k + first..][..out.len()]);
            };
            let rows = driver::Rows::Parts(&row);
            driver::with_generated(Level::Portable, WeightType::Bf16, n, k, rows, |panels| {
                driver::run(
                    Level::Portable,
                    family,
                    m,
                    n,
                    k,
                    &x,
                    k,
                    1,
                    panels,
                    &mut made,
                    &epilogue,
                );
            });
            assert_eq!(made, out, "{m}×{n}×{k} made");
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
