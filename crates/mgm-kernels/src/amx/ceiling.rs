//! Tile products that never touch memory: the ceiling of the AMX unit.

use std::arch::asm;

use super::{configure, release};

/// Tiles that are added up at a time; two more hold the operands.
const SUMS: u64 = 6;

macro_rules! tile_products {
    ($(#[$attribute:meta])* $name:ident, $instruction:literal, $depth:literal) => {
        $(#[$attribute])*
        pub(crate) unsafe fn $name(rounds: u64) -> u64 {
            if rounds > 0 {
                // SAFETY: the machine has AMX by the caller's promise. The loop touches tile registers only, all declared; zeros are
                // multiplied, in as many cycles as anything else.
                unsafe {
                    configure();
                    asm!(
                        "tilezero tmm0", "tilezero tmm1", "tilezero tmm2", "tilezero tmm3",
                        "tilezero tmm4", "tilezero tmm5", "tilezero tmm6", "tilezero tmm7",
                        "2:",
                        concat!($instruction, " tmm0, tmm6, tmm7"),
                        concat!($instruction, " tmm1, tmm6, tmm7"),
                        concat!($instruction, " tmm2, tmm6, tmm7"),
                        concat!($instruction, " tmm3, tmm6, tmm7"),
                        concat!($instruction, " tmm4, tmm6, tmm7"),
                        concat!($instruction, " tmm5, tmm6, tmm7"),
                        "dec {rounds}",
                        "jnz 2b",
                        rounds = inout(reg) rounds => _,
                        out("tmm0") _, out("tmm1") _, out("tmm2") _, out("tmm3") _,
                        out("tmm4") _, out("tmm5") _, out("tmm6") _, out("tmm7") _,
                        options(nostack, nomem),
                    );
                    release();
                }
            }
            rounds * SUMS * 2 * 16 * 16 * $depth
        }
    };
}

tile_products!(
    /// Products of bf16 tiles on this thread; the operations done.
    ///
    /// # Safety
    /// The machine has [`crate::level::Level::Amx`].
    bf16, "tdpbf16ps", 32
);
tile_products!(
    /// Products of tiles of signed bytes on this thread; the operations done.
    ///
    /// # Safety
    /// The machine has [`crate::level::Level::Amx`].
    int8, "tdpbssd", 64
);
