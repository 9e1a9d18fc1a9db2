//! Convolution over channels-last maps as a packed matrix product.
//!
//! The patch of every output position is a row `[kernel_height, kernel_width, channels]` of a matrix that is never stored: bands of
//! output rows are gathered straight into the row format of the product's microkernels. A normalisation before the convolution
//! ([`ConvInput::affine`]) is applied band by band too, and nearest-neighbour doubling of the input is a matter of where the gathering
//! reads.

use rayon::prelude::*;

use crate::buffer::with_scratch;
use crate::gemm::{Activation, Epilogue, Gathered, PackedWeight, gathered_product, gemm_at};
use crate::group_norm::{ChannelAffine, affine_rows};
use crate::level::{self, Level, level};
use crate::quant::{QuantWeight, quant_gemm_at};

/// Sizes of a convolution.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ConvShape {
    /// Pictures.
    pub batch: usize,
    /// Rows of the input.
    pub height: usize,
    /// Columns of the input.
    pub width: usize,
    /// Channels of the input.
    pub channels: usize,
    /// Side of the square kernel.
    pub kernel: usize,
    /// Step in both directions.
    pub stride: usize,
    /// Zero rows above and below the (enlarged) input.
    pub pad_rows: [usize; 2],
    /// Zero columns left and right of it.
    pub pad_columns: [usize; 2],
    /// Every input pixel stands for a square of this side (nearest-neighbour enlargement); 1 for a plain convolution.
    pub enlarge: usize,
    /// Rows below and columns right that are cut off the enlarged input before it is padded.
    pub trim: [usize; 2],
}

impl ConvShape {
    /// Rows of the output; 0 where the kernel does not fit.
    pub fn out_height(&self) -> usize {
        self.out_side(self.grid()[0], self.pad_rows)
    }

    /// Columns of the output; 0 where the kernel does not fit.
    pub fn out_width(&self) -> usize {
        self.out_side(self.grid()[1], self.pad_columns)
    }

    /// Rows and columns of the enlarged input.
    pub(crate) fn grid(&self) -> [usize; 2] {
        [
            (self.height * self.enlarge).saturating_sub(self.trim[0]),
            (self.width * self.enlarge).saturating_sub(self.trim[1]),
        ]
    }

    fn out_side(&self, side: usize, padding: [usize; 2]) -> usize {
        let padded = side + padding[0] + padding[1];
        match padded.checked_sub(self.kernel) {
            Some(room) if self.stride > 0 => room / self.stride + 1,
            _ => 0,
        }
    }

    /// Values of one patch: columns of the weight matrix.
    pub fn patch_len(&self) -> usize {
        self.kernel * self.kernel * self.channels
    }

    /// Whether the input itself is the matrix of patches.
    fn is_pointwise(&self) -> bool {
        self.kernel == 1
            && self.stride == 1
            && self.enlarge == 1
            && self.trim == [0, 0]
            && self.pad_rows == [0, 0]
            && self.pad_columns == [0, 0]
    }
}

/// Weight `[n, kernel · kernel · channels]`, the patch in the order row, column, channel.
#[derive(Clone, Copy)]
pub enum ConvWeight<'a> {
    /// Packed floats.
    Packed(&'a PackedWeight),
    /// Quantised blocks.
    Quantised(&'a QuantWeight),
}

impl ConvWeight<'_> {
    /// Output channels.
    pub fn n(&self) -> usize {
        match self {
            Self::Packed(weight) => weight.n(),
            Self::Quantised(weight) => weight.n(),
        }
    }

    /// Values of one patch.
    pub fn k(&self) -> usize {
        match self {
            Self::Packed(weight) => weight.k(),
            Self::Quantised(weight) => weight.k(),
        }
    }
}

/// Input of a convolution.
#[derive(Clone, Copy)]
pub struct ConvInput<'a> {
    /// `[batch, height, width, channels]`.
    pub values: &'a [f32],
    /// Scale, shift and activation applied to the values as they are read; padding stays zero.
    pub affine: Option<(&'a ChannelAffine, Activation)>,
}

/// What is added to the product.
#[derive(Clone, Copy)]
pub enum ConvBias<'a> {
    /// Nothing.
    None,
    /// `[n]`.
    Shared(&'a [f32]),
    /// `[batch, n]`.
    PerPicture(&'a [f32]),
}

impl<'a> ConvBias<'a> {
    fn of(&self, picture: usize, n: usize) -> Option<&'a [f32]> {
        match *self {
            Self::None => None,
            Self::Shared(bias) => Some(bias),
            Self::PerPicture(bias) => Some(&bias[picture * n..][..n]),
        }
    }
}

/// Bytes of packed patches that exist at a time.
pub(crate) const BAND_BYTES: usize = 24 << 20;

/// `out [batch, out_height, out_width, n] = conv(activation(x · scale + shift), W) + bias`, in parallel.
///
/// # Panics
/// When a slice has the wrong length or the kernel does not fit the padded input.
pub fn conv2d(s: &ConvShape, x: ConvInput, w: ConvWeight, bias: ConvBias, out: &mut [f32]) {
    conv2d_at(level(), s, x, w, bias, out);
}

/// [`conv2d`] at a forced level.
pub fn conv2d_at(
    level: Level,
    s: &ConvShape,
    x: ConvInput,
    w: ConvWeight,
    bias: ConvBias,
    out: &mut [f32],
) {
    let level = level::clamp(level);
    let (n, k) = (w.n(), s.patch_len());
    let (out_height, out_width) = (s.out_height(), s.out_width());
    assert!(s.enlarge > 0, "conv2d: enlarge must not be 0");
    assert!(
        out_height > 0 && out_width > 0,
        "conv2d: the kernel does not fit the padded input"
    );
    assert_eq!(w.k(), k, "conv2d: weight must be [{n}, {k}]");
    let picture = s.height * s.width * s.channels;
    assert_eq!(x.values.len(), s.batch * picture, "conv2d: x length");
    let out_picture = out_height * out_width * n;
    assert_eq!(out.len(), s.batch * out_picture, "conv2d: out length");
    match bias {
        ConvBias::None => {}
        ConvBias::Shared(bias) => assert_eq!(bias.len(), n, "conv2d: bias length"),
        ConvBias::PerPicture(bias) => {
            assert_eq!(bias.len(), s.batch * n, "conv2d: bias length");
        }
    }
    if let Some((affine, _)) = x.affine {
        let expected = s.batch * s.channels;
        assert_eq!(affine.scale.len(), expected, "conv2d: scale length");
        assert_eq!(affine.shift.len(), expected, "conv2d: shift length");
    }
    let band_rows = (BAND_BYTES / (4 * k * out_width)).clamp(1, out_height);
    for index in 0..s.batch {
        let values = &x.values[index * picture..][..picture];
        let out = &mut out[index * out_picture..][..out_picture];
        let epilogue = Epilogue {
            bias: bias.of(index, n),
            ..Epilogue::default()
        };
        for first in (0..out_height).step_by(band_rows) {
            let rows = band_rows.min(out_height - first);
            let out = &mut out[first * out_width * n..][..rows * out_width * n];
            let input_rows = input_rows(s, first, rows);
            let band = &values
                [input_rows.start * s.width * s.channels..input_rows.end * s.width * s.channels];
            let multiply = |band: &[f32], out: &mut [f32]| {
                let band = Band {
                    shape: s,
                    values: band,
                    first_input: input_rows.start,
                    first_output: first,
                    out_width,
                };
                band.multiply(level, rows * out_width, w, out, &epilogue);
            };
            match x.affine {
                None => multiply(band, out),
                Some((affine, activation)) => with_scratch(band.len() * 4, |scratch| {
                    let normalised = &mut scratch.cast_mut::<f32>()[..band.len()];
                    let of = index * s.channels..(index + 1) * s.channels;
                    let (scale, shift) = (&affine.scale[of.clone()], &affine.shift[of]);
                    let row = (s.width * s.channels).max(1);
                    band.par_chunks(row)
                        .zip(normalised.par_chunks_mut(row))
                        .for_each(|(x, out)| affine_rows(level, x, scale, shift, activation, out));
                    multiply(normalised, out);
                }),
            }
        }
    }
}

/// Input rows that the output rows `first..first + rows` read.
pub(crate) fn input_rows(s: &ConvShape, first: usize, rows: usize) -> std::ops::Range<usize> {
    let top = (first * s.stride).saturating_sub(s.pad_rows[0]) / s.enlarge;
    let last = (first + rows - 1) * s.stride + s.kernel - 1;
    let bottom = match last.checked_sub(s.pad_rows[0]) {
        Some(last) => (last / s.enlarge + 1).min(s.height),
        None => 0,
    };
    top.min(bottom)..bottom
}

/// Some rows of one picture, and the output rows made from them.
pub(crate) struct Band<'a> {
    pub(crate) shape: &'a ConvShape,
    pub(crate) values: &'a [f32],
    pub(crate) first_input: usize,
    pub(crate) first_output: usize,
    pub(crate) out_width: usize,
}

impl Band<'_> {
    /// `out [positions, n]` of the band.
    fn multiply(
        &self,
        level: Level,
        positions: usize,
        w: ConvWeight,
        out: &mut [f32],
        epilogue: &Epilogue,
    ) {
        let s = self.shape;
        if s.is_pointwise() {
            match w {
                ConvWeight::Packed(w) => gemm_at(level, positions, self.values, w, out, epilogue),
                ConvWeight::Quantised(w) => {
                    quant_gemm_at(level, positions, self.values, w, out, epilogue);
                }
            }
            return;
        }
        let write = |position: usize, kernel_row: usize, out: &mut [f32]| {
            self.patch_row(position, kernel_row, out);
        };
        let rows = Gathered {
            segments: s.kernel,
            segment_len: s.kernel * s.channels,
            write: &write,
        };
        gathered_product(level, positions, &rows, w, out, epilogue);
    }

    /// Row `kernel_row` of the patch at an output position of the band: `[kernel, channels]`.
    pub(crate) fn patch_row(&self, position: usize, kernel_row: usize, out: &mut [f32]) {
        let s = self.shape;
        let y = (self.first_output + position / self.out_width) * s.stride + kernel_row;
        let [grid_height, grid_width] = s.grid();
        let row = y
            .checked_sub(s.pad_rows[0])
            .filter(|&y| y < grid_height)
            .map(|y| y / s.enlarge);
        let Some(row) = row else {
            out.fill(0.0);
            return;
        };
        let c = s.channels;
        let row = &self.values[(row - self.first_input) * s.width * c..][..s.width * c];
        let left = position % self.out_width * s.stride;
        // The usual case, all columns inside and side by side, is one copy.
        if s.enlarge == 1
            && let Some(first) = left.checked_sub(s.pad_columns[0])
            && first + s.kernel <= grid_width
        {
            out.copy_from_slice(&row[first * c..][..s.kernel * c]);
            return;
        }
        for (column, out) in out.chunks_exact_mut(c).enumerate() {
            let source = (left + column)
                .checked_sub(s.pad_columns[0])
                .filter(|&x| x < grid_width)
                .map(|x| x / s.enlarge);
            match source {
                Some(x) => out.copy_from_slice(&row[x * c..][..c]),
                None => out.fill(0.0),
            }
        }
    }
}
