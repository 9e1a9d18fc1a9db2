//! Small products of `f32` values, or of their bf16 roundings, inside a task, on one thread.

use std::ops::Range;

use super::kernel::{self, Family, MicroArguments, RowFormat};
use super::pack::{PANEL, PackedWeight, WeightType};
use super::rows::{RowBlocks, pack_block, row_bytes};
use crate::buffer::with_scratch;
use crate::level::Level;

/// Right operand `[k, n]` of a product: rows of `n` values, or panels of 32 columns; or panels of bf16 pairs, see [`pack_pairs`].
#[derive(Clone, Copy)]
pub(crate) struct Operand<'a> {
    /// Values, or pairs.
    words: &'a [u32],
    panel_stride: usize,
    row_stride: usize,
    pairs: bool,
}

impl<'a> Operand<'a> {
    /// Row `p` starts at `p · row_stride`.
    pub(crate) fn rows(data: &'a [f32], row_stride: usize) -> Self {
        Self {
            words: bytemuck::cast_slice(data),
            panel_stride: PANEL,
            row_stride,
            pairs: false,
        }
    }

    /// `k` rows in panels of pairs.
    pub(crate) fn pairs(words: &'a [u32], k: usize) -> Self {
        Self {
            words,
            panel_stride: k.div_ceil(2) * PANEL,
            row_stride: PANEL,
            pairs: true,
        }
    }

    /// The transpose of the rows `first..` (a multiple of 32) of an `f32` packed matrix.
    pub(crate) fn panels(packed: &'a PackedWeight, first: usize) -> Self {
        debug_assert!(packed.weight_type() == WeightType::F32 && first.is_multiple_of(PANEL));
        let panel_stride = packed.panel_bytes() / 4;
        let words: &[u32] = bytemuck::cast_slice(packed.data());
        Self {
            words: &words[first / PANEL * panel_stride..],
            panel_stride,
            row_stride: PANEL,
            pairs: false,
        }
    }
}

/// Rounds `k` rows of `n` values (a multiple of 32), at distance `row_stride`, to bf16 pairs along k in panels of 32 columns, `[n / 32][⌈k / 2⌉][32][2]`, for
/// [`Operand::pairs`].
///
/// # Panics
/// Where [`takes_pairs`] says no, or a slice is too short.
pub(crate) fn pack_pairs(k: usize, n: usize, rows: &[f32], row_stride: usize, out: &mut [u32]) {
    #[cfg(target_arch = "x86_64")]
    {
        assert!(takes_pairs(Level::Avx512), "no bf16 products here");
        // SAFETY: the machine has AVX-512 and BF16.
        unsafe { super::avx512::pack_pairs(k, n, rows, row_stride, out) };
    }
    #[cfg(not(target_arch = "x86_64"))]
    {
        let _ = (k, n, rows, row_stride, out);
        unreachable!("no bf16 products here");
    }
}

/// Whether products at this level take pairs.
pub(crate) fn takes_pairs(level: Level) -> bool {
    #[cfg(target_arch = "x86_64")]
    return level >= Level::Avx512 && crate::level::has_avx512_bf16();
    #[cfg(not(target_arch = "x86_64"))]
    return {
        let _ = level;
        false
    };
}

/// Rows `[m, k]` packed for products with several right operands.
pub(crate) struct Left<'a> {
    family: Family,
    blocks: RowBlocks,
    packed: &'a [u8],
    row_bytes: usize,
    m: usize,
    k: usize,
}

impl<'a> Left<'a> {
    /// Bytes of a buffer for [`Self::pack`].
    pub(crate) fn bytes(level: Level, m: usize, k: usize) -> usize {
        m * row_bytes(kernel::family(level, WeightType::F32, m).format, k)
    }

    /// Packs rows whose element (i, p) is `a[i · row_stride + p]`; `packed` has at least [`Self::bytes`].
    pub(crate) fn pack(
        level: Level,
        m: usize,
        k: usize,
        a: &[f32],
        row_stride: usize,
        packed: &'a mut [u8],
    ) -> Self {
        let family = kernel::family(level, WeightType::F32, m);
        Self::pack_strided(level, family, m, k, a, row_stride, 1, packed)
    }

    /// [`Self::pack`] for operands of pairs, where [`takes_pairs`] says yes.
    pub(crate) fn pack_pairs(
        m: usize,
        k: usize,
        a: &[f32],
        row_stride: usize,
        packed: &'a mut [u8],
    ) -> Self {
        // The tile unit would have to be set up for every small product.
        let level = Level::Avx512;
        let family = kernel::family(level, WeightType::Bf16, m);
        Self::pack_strided(level, family, m, k, a, row_stride, 1, packed)
    }

    fn pack_strided(
        level: Level,
        family: Family,
        m: usize,
        k: usize,
        a: &[f32],
        row_stride: usize,
        column_stride: usize,
        packed: &'a mut [u8],
    ) -> Self {
        let blocks = RowBlocks::new(m, &family);
        let row_bytes = row_bytes(family.format, k);
        let packed = &mut packed[..m * row_bytes];
        for block in 0..blocks.count() {
            let (start, end) = (blocks.start(block), blocks.start(block + 1));
            pack_block(
                level,
                family.format,
                end - start,
                k,
                &a[start * row_stride..],
                row_stride,
                column_stride,
                &mut packed[start * row_bytes..end * row_bytes],
            );
        }
        Self {
            family,
            blocks,
            packed,
            row_bytes,
            m,
            k,
        }
    }

    /// `c [m, n] (+)= a[.., steps]·b` with one row of `b` for each of `steps`, and rows of `c` at distance `ldc`. With pairs `steps` begins at one.
    pub(crate) fn product(
        &self,
        n: usize,
        steps: Range<usize>,
        b: Operand,
        c: &mut [f32],
        ldc: usize,
        add: bool,
    ) {
        let (m, k) = (self.m, steps.len());
        if m == 0 || n == 0 {
            return;
        }
        let panels = n.div_ceil(PANEL);
        let per_step = if b.pairs { 2 } else { 1 };
        assert!(
            b.pairs == (self.family.format == RowFormat::Bf16Pairs)
                && steps.start.is_multiple_of(per_step),
            "serial product: operands of two kinds"
        );
        let k = k.div_ceil(per_step);
        if k > 0 {
            let last_columns = if b.pairs {
                PANEL
            } else {
                n - (panels - 1) * PANEL
            };
            let needed = (panels - 1) * b.panel_stride + (k - 1) * b.row_stride + last_columns;
            assert!(
                needed <= b.words.len() && steps.end <= self.k,
                "serial product: an operand is too short"
            );
        }
        assert!(
            ldc >= n && (m - 1) * ldc + n <= c.len(),
            "serial product: output too short"
        );
        for panel in 0..panels {
            let columns = PANEL.min(n - panel * PANEL);
            for block in 0..self.blocks.count() {
                let (start, end) = (self.blocks.start(block), self.blocks.start(block + 1));
                let rows = end - start;
                // The rows of a block are interleaved, one value or pair of each at every step.
                let a = start * self.row_bytes + steps.start / per_step * rows * 4;
                let arguments = MicroArguments {
                    steps: k,
                    rows,
                    a: self.packed[a..].as_ptr(),
                    b: b.words.as_ptr().wrapping_add(panel * b.panel_stride).cast(),
                    ldb: b.row_stride,
                    c: c[start * ldc + panel * PANEL..].as_mut_ptr(),
                    ldc,
                    columns,
                    bias: std::ptr::null(),
                    add,
                };
                // SAFETY: the machine has the family's level; the assertions above and the packing bound every access.
                unsafe { self.family.kernels[rows - 1](&arguments) };
            }
        }
    }
}

/// `c [m, n] (+)= a·b` with `a` element (i, p) at `i · row_stride + p · column_stride` (one stride is 1) and rows of `c`
/// at distance `ldc`.
pub(crate) fn product(
    level: Level,
    m: usize,
    n: usize,
    k: usize,
    a: &[f32],
    row_stride: usize,
    column_stride: usize,
    b: Operand,
    c: &mut [f32],
    ldc: usize,
    add: bool,
) {
    if m == 0 || n == 0 {
        return;
    }
    with_scratch(Left::bytes(level, m, k), |scratch| {
        let packed = scratch.cast_mut();
        let family = kernel::family(level, WeightType::F32, m);
        Left::pack_strided(level, family, m, k, a, row_stride, column_stride, packed).product(
            n,
            0..k,
            b,
            c,
            ldc,
            add,
        );
    });
}

/// Part of a packed weight `W [n, k]`: columns of the product and steps along k.
#[derive(Clone, Copy)]
pub(crate) struct PackedPart {
    /// First row of W; a multiple of 32.
    pub(crate) first_column: usize,
    pub(crate) columns: usize,
    /// First input feature; a multiple of 2.
    pub(crate) first_step: usize,
    pub(crate) steps: usize,
}

/// `c [m, columns] (+)= a [m, steps]·Wᵀ` with part of a packed weight, in its own type; rows of `a` at distance `lda`, of `c` at `ldc`. Not for
/// the tile unit, which a task has to set up: `level` is below [`Level::Amx`].
pub(crate) fn packed_product(
    level: Level,
    m: usize,
    a: &[f32],
    lda: usize,
    w: &PackedWeight,
    part: PackedPart,
    c: &mut [f32],
    ldc: usize,
    add: bool,
) {
    let (n, k) = (part.columns, part.steps);
    if m == 0 || n == 0 || k == 0 {
        return;
    }
    assert!(
        level < Level::Amx
            && part.first_column.is_multiple_of(PANEL)
            && part.first_step.is_multiple_of(2),
        "packed product: part does not begin at a panel and a pair"
    );
    assert!(
        part.first_column + n <= w.n() && part.first_step + k <= w.k(),
        "packed product: part is not inside the weight"
    );
    assert!(
        (m - 1) * lda + k <= a.len() && ldc >= n && (m - 1) * ldc + n <= c.len(),
        "packed product: rows too short"
    );
    let family = kernel::family(level, w.weight_type(), m);
    let per_step = match family.format {
        RowFormat::F32 => 1,
        RowFormat::F32Pairs | RowFormat::Bf16Pairs | RowFormat::Bf16Tiles => 2,
    };
    let blocks = RowBlocks::new(m, &family);
    let row_bytes = row_bytes(family.format, k);
    let ldb = w.panel_step();
    with_scratch(m * row_bytes, |scratch| {
        let packed = &mut scratch.cast_mut::<u8>()[..m * row_bytes];
        for block in 0..blocks.count() {
            let (start, end) = (blocks.start(block), blocks.start(block + 1));
            let out = &mut packed[start * row_bytes..end * row_bytes];
            pack_block(
                level,
                family.format,
                end - start,
                k,
                &a[start * lda..],
                lda,
                1,
                out,
            );
        }
        for panel in 0..n.div_ceil(PANEL) {
            let columns = PANEL.min(n - panel * PANEL);
            let at = (part.first_column / PANEL + panel) * w.panel_bytes();
            let b = &w.data()[at + part.first_step / per_step * ldb * 4..];
            for block in 0..blocks.count() {
                let (start, end) = (blocks.start(block), blocks.start(block + 1));
                let arguments = MicroArguments {
                    steps: k.div_ceil(per_step),
                    rows: end - start,
                    a: packed[start * row_bytes..].as_ptr(),
                    b: b.as_ptr(),
                    ldb,
                    c: c[start * ldc + panel * PANEL..].as_mut_ptr(),
                    ldc,
                    columns,
                    bias: std::ptr::null(),
                    add,
                };
                // SAFETY: the machine has the family's level; the assertions above and the packing bound every access (panels are
                // zero-padded to whole pairs).
                unsafe { family.kernels[end - start - 1](&arguments) };
            }
        }
    });
}
