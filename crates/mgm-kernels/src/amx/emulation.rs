//! The tile unit in software, for tests on processors without one: a handler of the signal that an unknown instruction raises.
//!
//! The very instructions of the kernels are decoded and done here, so that packing, addresses, strides, register numbers and loops are tested as
//! they will run; only their speed is not (some microseconds for an instruction). What is no tile instruction raises the signal as
//! ever. Sources: Intel 64 and IA-32 Architectures Software Developer's Manual, volume 1 chapter 18 and volume 2 (VEX encoding,
//! `LDTILECFG`, `TILELOADD`, `TILESTORED`, `TILEZERO`, `TILERELEASE`, `TDPBF16PS`, `TDPBSUD` and its like).

use std::cell::RefCell;
use std::sync::OnceLock;

use libc::{c_int, c_void, greg_t, siginfo_t, ucontext_t};

const ROWS: usize = 16;
const ROW_BYTES: usize = 64;

type Tile = [[u8; ROW_BYTES]; ROWS];

/// The tile registers of a thread.
struct Unit {
    configured: bool,
    rows: [u8; 8],
    row_bytes: [u16; 8],
    tiles: [Tile; 8],
}

thread_local! {
    static UNIT: RefCell<Unit> = const {
        RefCell::new(Unit {
            configured: false,
            rows: [0; 8],
            row_bytes: [0; 8],
            tiles: [[[0; ROW_BYTES]; ROWS]; 8],
        })
    };
}

/// Puts the handler in place; whether that succeeded.
pub(super) fn install() -> bool {
    static INSTALLED: OnceLock<bool> = OnceLock::new();
    *INSTALLED.get_or_init(|| {
        let handler: extern "C" fn(c_int, *mut siginfo_t, *mut c_void) = handle;
        // SAFETY: an all-zero `sigaction` is a valid one; the handler has the type that SA_SIGINFO asks for, and touches nothing but
        // this thread's registers and what the interrupted instruction names.
        unsafe {
            let mut action: libc::sigaction = std::mem::zeroed();
            action.sa_sigaction = handler as *const () as usize;
            action.sa_flags = libc::SA_SIGINFO;
            libc::sigaction(libc::SIGILL, &action, std::ptr::null_mut()) == 0
        }
    })
}

extern "C" fn handle(_: c_int, _: *mut siginfo_t, context: *mut c_void) {
    // SAFETY: with SA_SIGINFO the third argument is the interrupted thread's context, ours alone until we return.
    let registers = unsafe { &mut (*context.cast::<ucontext_t>()).uc_mcontext.gregs };
    let at = registers[libc::REG_RIP as usize] as *const u8;
    let done = UNIT.with(|unit| match unit.try_borrow_mut() {
        // SAFETY: `at` is the instruction that was to be executed; what it reads and writes is the kernel's business that holds it.
        Ok(mut unit) => unsafe { execute(&mut unit, at, registers) },
        Err(_) => None,
    });
    match done {
        Some(length) => registers[libc::REG_RIP as usize] += length as greg_t,
        // SAFETY: back to what the signal does otherwise: the instruction runs again and ends the process.
        None => unsafe {
            libc::signal(libc::SIGILL, libc::SIG_DFL);
        },
    }
}

/// The value of register `number` as instructions count them.
fn register(registers: &[greg_t; 23], number: u8) -> u64 {
    const PLACES: [c_int; 16] = [
        libc::REG_RAX,
        libc::REG_RCX,
        libc::REG_RDX,
        libc::REG_RBX,
        libc::REG_RSP,
        libc::REG_RBP,
        libc::REG_RSI,
        libc::REG_RDI,
        libc::REG_R8,
        libc::REG_R9,
        libc::REG_R10,
        libc::REG_R11,
        libc::REG_R12,
        libc::REG_R13,
        libc::REG_R14,
        libc::REG_R15,
    ];
    registers[PLACES[usize::from(number)] as usize] as u64
}

/// Does the tile instruction at `at`; its length, or nothing where it is another instruction.
///
/// # Safety
/// `at` is an instruction whose operands may be read and written.
unsafe fn execute(unit: &mut Unit, at: *const u8, registers: &[greg_t; 23]) -> Option<usize> {
    // SAFETY: no instruction that is decoded here is shorter than five bytes.
    let [escape, first, second, opcode, modrm] = unsafe { at.cast::<[u8; 5]>().read_unaligned() };
    // Three-byte VEX, opcode map 0F38, 128 bits, W0.
    if escape != 0xc4 || first & 0x1f != 2 || second & 0x84 != 0 {
        return None;
    }
    let prefix = second & 3;
    let (mode, reg, rm) = (modrm >> 6, usize::from(modrm >> 3 & 7), modrm & 7);
    if mode == 3 {
        if opcode == 0x49 {
            match (prefix, modrm) {
                (0, 0xc0) => {
                    unit.configured = false;
                    unit.tiles = [[[0; ROW_BYTES]; ROWS]; 8];
                }
                (3, _) if rm == 0 => unit.tiles[reg] = [[0; ROW_BYTES]; ROWS],
                _ => return None,
            }
            return Some(5);
        }
        let third = usize::from(!second >> 3 & 7);
        let (a, b) = (usize::from(rm), third);
        if !unit.configured || reg == a || reg == b || a == b {
            return None;
        }
        match (opcode, prefix) {
            (0x5c, 2) => unit.multiply(reg, a, b, |c, a, b| {
                let wide = |bytes: &[u8]| {
                    f32::from_bits(u32::from(u16::from_le_bytes([bytes[0], bytes[1]])) << 16)
                };
                let mut sum = f32::from_bits(c);
                for half in [0, 2] {
                    sum = wide(&a[half..]).mul_add(wide(&b[half..]), sum);
                }
                sum.to_bits()
            }),
            (0x5e, _) => {
                let (signed_a, signed_b) = (prefix & 2 != 0, prefix & 1 != 0);
                let value = |byte: u8, signed: bool| match signed {
                    true => i32::from(byte as i8),
                    false => i32::from(byte),
                };
                unit.multiply(reg, a, b, |c, a, b| {
                    let products = a.iter().zip(b);
                    products.fold(c as i32, |sum, (&a, &b)| {
                        sum.wrapping_add(value(a, signed_a) * value(b, signed_b))
                    }) as u32
                })
            }
            _ => return None,
        }
        return Some(5);
    }
    // Memory: base, scaled index, displacement.
    let (high_index, high_base) = (!first >> 6 & 1, !first >> 5 & 1);
    let mut length = 5;
    let (mut base, mut index) = (Some(rm | high_base << 3), None);
    if rm == 4 {
        // SAFETY: the byte after a ModRM byte that asks for it is part of the instruction.
        let sib = unsafe { at.add(length).read() };
        length += 1;
        let scaled = (sib >> 3 & 7) | high_index << 3;
        if scaled != 4 {
            index = Some((scaled, sib >> 6));
        }
        base = Some((sib & 7) | high_base << 3);
    }
    let no_base = mode == 0 && base.is_some_and(|base| base & 7 == 5);
    // SAFETY: displacements are part of the instruction.
    let displacement = unsafe {
        match (mode, no_base) {
            (1, _) => i64::from(at.add(length).cast::<i8>().read()),
            (2, _) | (0, true) => i64::from(at.add(length).cast::<i32>().read_unaligned()),
            _ => 0,
        }
    };
    length += match (mode, no_base) {
        (1, _) => 1,
        (2, _) | (0, true) => 4,
        _ => 0,
    };
    let mut address = displacement as u64;
    if no_base && rm != 4 {
        // Relative to the next instruction.
        address = address.wrapping_add(at as u64 + length as u64);
    } else if let (false, Some(base)) = (no_base, base) {
        address = address.wrapping_add(register(registers, base));
    }
    let stride = index.map_or(0, |(number, scale)| register(registers, number) << scale);
    // SAFETY: the addresses are those that the processor would use.
    unsafe {
        match (opcode, prefix) {
            (0x49, 0) => {
                let configuration = (address as *const [u8; 64]).read();
                if configuration[0] != 1 {
                    return None;
                }
                for tile in 0..8 {
                    let bytes = &configuration[16 + 2 * tile..];
                    unit.row_bytes[tile] = u16::from_le_bytes([bytes[0], bytes[1]]);
                    unit.rows[tile] = configuration[48 + tile];
                    if unit.row_bytes[tile] > 64 || unit.rows[tile] > 16 {
                        return None;
                    }
                }
                unit.tiles = [[[0; ROW_BYTES]; ROWS]; 8];
                unit.configured = true;
            }
            // The tile instructions need a SIB byte. Loads, with and without a hint.
            (0x4b, 1 | 3) if rm == 4 && unit.configured => {
                let mut tile = [[0; ROW_BYTES]; ROWS];
                let bytes = usize::from(unit.row_bytes[reg]);
                for (row, out) in tile.iter_mut().take(unit.rows[reg].into()).enumerate() {
                    let from = address.wrapping_add(stride.wrapping_mul(row as u64)) as *const u8;
                    out[..bytes].copy_from_slice(std::slice::from_raw_parts(from, bytes));
                }
                unit.tiles[reg] = tile;
            }
            (0x4b, 2) if rm == 4 && unit.configured => {
                let bytes = usize::from(unit.row_bytes[reg]);
                let rows = usize::from(unit.rows[reg]);
                for (row, from) in unit.tiles[reg].iter().take(rows).enumerate() {
                    let to = address.wrapping_add(stride.wrapping_mul(row as u64)) as *mut u8;
                    std::ptr::copy_nonoverlapping(from.as_ptr(), to, bytes);
                }
            }
            _ => return None,
        }
    }
    Some(length)
}

impl Unit {
    /// `c [m][n] = f(c [m][n], a [m][k], b [k][n])` for every `k` in turn, of four bytes each.
    fn multiply(
        &mut self,
        c: usize,
        a: usize,
        b: usize,
        f: impl Fn(u32, &[u8; 4], &[u8; 4]) -> u32,
    ) {
        let rows = usize::from(self.rows[c]);
        let columns = usize::from(self.row_bytes[c]) / 4;
        let depth = usize::from(self.row_bytes[a]) / 4;
        let (left, right) = (self.tiles[a], self.tiles[b]);
        let mut sums = [[0; ROW_BYTES]; ROWS];
        for (m, sums) in sums.iter_mut().take(rows).enumerate() {
            let sums = sums.as_chunks_mut::<4>().0;
            sums.copy_from_slice(self.tiles[c][m].as_chunks::<4>().0);
            for (k, row) in right.iter().take(depth).enumerate() {
                let left = &left[m].as_chunks::<4>().0[k];
                let right = row.as_chunks::<4>().0;
                for (sum, right) in sums.iter_mut().zip(right).take(columns) {
                    *sum = f(u32::from_le_bytes(*sum), left, right).to_le_bytes();
                }
            }
        }
        self.tiles[c] = sums;
    }
}
