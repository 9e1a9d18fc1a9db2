//! The AMX tile unit: whether it may be used, and its configuration.
//!
//! Palette 1 is architectural: eight tiles of 16 rows × 64 bytes. The products themselves stand beside the other kernels, in
//! [`crate::gemm`] for bf16 and in [`crate::int8`] for bytes, in inline assembly (the intrinsics are not stable).

pub(crate) mod ceiling;
#[cfg(all(feature = "emulated-amx", target_os = "linux"))]
mod emulation;

use std::arch::asm;
use std::arch::x86_64::__cpuid_count;

/// Tile configuration, 64 bytes as `ldtilecfg` reads them.
#[repr(C, align(64))]
struct Configuration {
    palette: u8,
    start_row: u8,
    reserved: [u8; 14],
    row_bytes: [u16; 16],
    rows: [u8; 16],
}

/// Whether AMX bf16 and int8 exist, the operating system grants them to this process, and they compute what portable code does.
/// With the feature `emulated-amx` a processor without them has them in software.
pub(crate) fn usable() -> bool {
    (exists() && permitted() || emulated())
        && crate::gemm::amx_self_test()
        && crate::int8::amx_self_test()
}

fn emulated() -> bool {
    #[cfg(all(feature = "emulated-amx", target_os = "linux"))]
    return emulation::install();
    #[cfg(not(all(feature = "emulated-amx", target_os = "linux")))]
    false
}

fn exists() -> bool {
    if __cpuid_count(0, 0).eax < 7 {
        return false;
    }
    let features = __cpuid_count(7, 0).edx;
    let (bf16, tiles, int8) = (features >> 22 & 1, features >> 24 & 1, features >> 25 & 1);
    let os_saves = __cpuid_count(1, 0).ecx >> 27 & 1;
    if bf16 & tiles & int8 & os_saves == 0 {
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

/// Bytes of the rows, and of the panel, that one step along k of a product takes: two tiles.
pub(crate) const STEP_BYTES: usize = 2048;
/// Columns of a product, and rows.
pub(crate) const EDGE: usize = 32;

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

macro_rules! product {
    ($(#[$attribute:meta])* $name:ident, $instruction:literal, $sum:ty) => {
        $(#[$attribute])*
        ///
        /// Multiplies 32 rows at `a` (of each step two tiles, one after the other) with the 32 columns at `b` (of each step 16 lines of
        /// 128 bytes, four of each column) for `steps` steps; writes the sums to `c`, rows at distance `ldc` values, or adds to them.
        ///
        /// # Safety
        /// AMX is configured on this thread; `a` and `b` have `2048·steps` bytes, `steps >= 1`; `c` has 32 rows of 32 values.
        pub(crate) unsafe fn $name(
            a: *const u8,
            b: *const u8,
            steps: usize,
            c: *mut $sum,
            ldc: usize,
            add: bool,
        ) {
            // SAFETY: reads rows and panel and writes `c`, all in bounds by the contract above; fetching ahead beyond the end of the rows
            // is no access. All tile registers used are declared.
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
                    concat!($instruction, " tmm0, tmm4, tmm6"),
                    ahead!(0, 512),
                    "tileloadd tmm7, [{b} + {stride}*1 + 64]",
                    concat!($instruction, " tmm1, tmm4, tmm7"),
                    ahead!(512, 1024),
                    "tileloadd tmm5, [{a} + {line}*1 + 1024]",
                    concat!($instruction, " tmm2, tmm5, tmm6"),
                    ahead!(1024, 1536),
                    concat!($instruction, " tmm3, tmm5, tmm7"),
                    ahead!(1536, 2048),
                    "add {a}, 2048",
                    "add {b}, 2048",
                    "dec {steps}",
                    "jnz 2b",
                    "tilestored [{c0} + {ldc}*1], tmm0",
                    "tilestored [{c0} + {ldc}*1 + 64], tmm1",
                    "tilestored [{c1} + {ldc}*1], tmm2",
                    "tilestored [{c1} + {ldc}*1 + 64], tmm3",
                    a = inout(reg) a => _,
                    b = inout(reg) b => _,
                    steps = inout(reg) steps => _,
                    add = in(reg) usize::from(add),
                    line = in(reg) 64usize,
                    stride = in(reg) 4 * EDGE,
                    ldc = in(reg) 4 * ldc,
                    c0 = in(reg) c,
                    c1 = in(reg) c.wrapping_add(16 * ldc),
                    out("tmm0") _, out("tmm1") _, out("tmm2") _, out("tmm3") _,
                    out("tmm4") _, out("tmm5") _, out("tmm6") _, out("tmm7") _,
                    options(nostack),
                );
            }
        }
    };
}

product!(
    /// bf16 pairs, 32 values along k in a step.
    product_bf16, "tdpbf16ps", f32
);
product!(
    /// Signed bytes of the rows with unsigned ones of the columns, 64 values along k in a step.
    product_int8, "tdpbsud", i32
);

#[cfg(test)]
mod tests {
    use crate::level::{Level, available};

    #[test]
    fn usable_agrees_with_the_detected_levels() {
        assert_eq!(
            super::usable() && available().contains(&Level::Avx512),
            available().contains(&Level::Amx)
        );
    }

    #[test]
    #[cfg(feature = "emulated-amx")]
    fn the_emulation_is_a_level() {
        if available().contains(&Level::Avx512) {
            assert!(available().contains(&Level::Amx));
        }
    }
}
