//! Pillow's 8-bit resize: windowed weights in double precision, 22 fractional bits, horizontal pass first.

use std::borrow::Cow;
use std::ops::Range;

use rayon::prelude::*;

use crate::RgbImage;

/// Interpolation kernel, antialiased when shrinking as in Pillow.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Filter {
    /// Cubic convolution with a = -0.5 (`PIL.Image.BICUBIC`).
    Bicubic,
    /// Triangle (`PIL.Image.BILINEAR`).
    Bilinear,
}

impl Filter {
    fn support(self) -> f64 {
        match self {
            Filter::Bicubic => 2.0,
            Filter::Bilinear => 1.0,
        }
    }

    fn weight(self, x: f64) -> f64 {
        const A: f64 = -0.5;
        let x = x.abs();
        match self {
            Filter::Bicubic if x < 1.0 => ((A + 2.0) * x - (A + 3.0)) * x * x + 1.0,
            Filter::Bicubic if x < 2.0 => (((x - 5.0) * x + 8.0) * x - 4.0) * A,
            Filter::Bilinear if x < 1.0 => 1.0 - x,
            _ => 0.0,
        }
    }
}

/// Fractional bits of a weight: 32 bits less 8 for the sample and 2 for sign and overshoot.
const PRECISION: u32 = 32 - 8 - 2;
const HALF: i32 = 1 << (PRECISION - 1);

/// The weights of one axis. The source may be a picture inside a larger, one-coloured canvas: the taps that fall on the
/// canvas are summed into one weight, so that the canvas never has to exist. Integer sums make that exact.
pub(crate) struct Axis {
    /// First real source position of each output.
    starts: Vec<usize>,
    /// Bounds of each output's taps in `weights`, one more than outputs.
    bounds: Vec<usize>,
    weights: Vec<i32>,
    /// Weight of each output's taps on the canvas colour.
    canvas: Vec<i32>,
    identity: bool,
}

impl Axis {
    /// Weights for a source of `length` lying at `before` in a canvas of `total`, resized to `output`; only the outputs
    /// in `wanted` are made.
    pub(crate) fn new(
        filter: Filter,
        length: usize,
        before: usize,
        total: usize,
        output: usize,
        wanted: Range<usize>,
    ) -> Self {
        let identity = total == output && length == total && wanted == (0..output);
        let scale = total as f64 / output as f64;
        let filter_scale = scale.max(1.0);
        let support = filter.support() * filter_scale;
        let inverse = 1.0 / filter_scale;
        let mut axis = Axis {
            starts: Vec::new(),
            bounds: vec![0],
            weights: Vec::new(),
            canvas: Vec::new(),
            identity,
        };
        let mut window = Vec::new();
        for position in wanted {
            // An unchanged axis is copied by Pillow; at scale 1 both kernels give exactly that copy.
            let center = (position as f64 + 0.5) * scale;
            let low = (center - support + 0.5).max(0.0) as usize;
            let high = ((center + support + 0.5) as usize).min(total);
            window.clear();
            window.extend(
                (low..high).map(|source| filter.weight((source as f64 - center + 0.5) * inverse)),
            );
            let sum: f64 = window.iter().sum();
            let mut canvas = 0;
            let mut start = None;
            for (source, &weight) in (low..high).zip(&window) {
                let weight = if sum == 0.0 { weight } else { weight / sum };
                let fixed = (weight * f64::from(1 << PRECISION) + 0.5f64.copysign(weight)) as i32;
                if source < before || source >= before + length {
                    canvas += fixed;
                } else {
                    start.get_or_insert(source - before);
                    axis.weights.push(fixed);
                }
            }
            axis.starts.push(start.unwrap_or(0));
            axis.bounds.push(axis.weights.len());
            axis.canvas.push(canvas);
        }
        axis
    }

    /// Weights for a whole source to a whole output.
    pub(crate) fn plain(filter: Filter, length: u32, output: u32) -> Self {
        let (length, output) = (length as usize, output as usize);
        Self::new(filter, length, 0, length, output, 0..output)
    }

    fn outputs(&self) -> usize {
        self.starts.len()
    }

    /// First source position, taps and canvas weight of an output.
    fn window(&self, output: usize) -> (usize, &[i32], i32) {
        (
            self.starts[output],
            &self.weights[self.bounds[output]..self.bounds[output + 1]],
            self.canvas[output],
        )
    }

    /// The source positions that any output reads.
    fn sources(&self) -> Range<usize> {
        let mut range: Option<Range<usize>> = None;
        for output in 0..self.outputs() {
            let (start, taps, _) = self.window(output);
            if !taps.is_empty() {
                let (low, high) =
                    range.map_or((start, 0), |range| (range.start.min(start), range.end));
                range = Some(low..high.max(start + taps.len()));
            }
        }
        range.unwrap_or(0..0)
    }
}

#[inline]
fn to_byte(sum: i32) -> u8 {
    (sum >> PRECISION).clamp(0, 255) as u8
}

/// Resizes to `width`×`height` exactly as Pillow's `Image.resize` does on 8-bit RGB.
///
/// Horizontal pass first, as in Pillow 3.3 to 12. Pillow 13 runs the vertical pass first where the height shrinks much
/// more than the width, which differs by rounding; shapes that keep their proportions are the same in all versions.
///
/// A size of zero gives a picture without pixels.
///
/// # Panics
/// If `image.data` does not have `3 * width * height` bytes (see [`RgbImage::validate`]).
pub fn resize(image: &RgbImage, width: u32, height: u32, filter: Filter) -> RgbImage {
    if width == 0 || height == 0 || image.width == 0 || image.height == 0 {
        return RgbImage::filled(width, height, [0; 3]);
    }
    if (width, height) == (image.width, image.height) {
        return image.clone();
    }
    resample(
        image,
        &Axis::plain(filter, image.width, width),
        &Axis::plain(filter, image.height, height),
        [0; 3],
    )
}

/// Both passes. `colour` is that of the canvas around the picture, if an axis has one.
pub(crate) fn resample(
    image: &RgbImage,
    horizontal: &Axis,
    vertical: &Axis,
    colour: [u8; 3],
) -> RgbImage {
    let (width, height) = (horizontal.outputs(), vertical.outputs());
    let stride = width * 3;
    let rows = vertical.sources();
    let source_stride = image.width as usize * 3;
    let needed = &image.data[rows.start * source_stride..rows.end * source_stride];
    let wide: Cow<'_, [u8]> = if horizontal.identity {
        Cow::Borrowed(needed)
    } else {
        let mut wide = vec![0u8; rows.len() * stride];
        wide.par_chunks_exact_mut(stride)
            .zip(needed.par_chunks_exact(source_stride))
            .for_each(|(output, source)| horizontal_row(source, horizontal, colour, output));
        Cow::Owned(wide)
    };
    let data = if vertical.identity {
        wide.into_owned()
    } else {
        let mut data = vec![0u8; height * stride];
        data.par_chunks_exact_mut(stride)
            .enumerate()
            .for_each(|(y, output)| vertical_row(&wide, rows.start, vertical, y, colour, output));
        data
    };
    RgbImage {
        width: width as u32,
        height: height as u32,
        data,
    }
}

fn horizontal_row(source: &[u8], axis: &Axis, colour: [u8; 3], output: &mut [u8]) {
    let (source, _) = source.as_chunks::<3>();
    let (output, _) = output.as_chunks_mut::<3>();
    for (x, pixel) in output.iter_mut().enumerate() {
        let (start, taps, canvas) = axis.window(x);
        let mut sums = colour.map(|sample| HALF + canvas * i32::from(sample));
        for (sample, &weight) in source[start..start + taps.len()].iter().zip(taps) {
            sums[0] += i32::from(sample[0]) * weight;
            sums[1] += i32::from(sample[1]) * weight;
            sums[2] += i32::from(sample[2]) * weight;
        }
        *pixel = sums.map(to_byte);
    }
}

/// One output row from rows of the same width; `first` is the source position of the first row of `wide`.
fn vertical_row(
    wide: &[u8],
    first: usize,
    axis: &Axis,
    y: usize,
    colour: [u8; 3],
    output: &mut [u8],
) {
    /// Samples summed at a time: a multiple of three that stays in the first-level cache.
    const BLOCK: usize = 1536;
    let stride = output.len();
    let (start, taps, canvas) = axis.window(y);
    let begin = colour.map(|sample| HALF + canvas * i32::from(sample));
    let mut sums = [0i32; BLOCK];
    for (block, output) in output.chunks_mut(BLOCK).enumerate() {
        let sums = &mut sums[..output.len()];
        for (index, sum) in sums.iter_mut().enumerate() {
            *sum = begin[index % 3];
        }
        for (tap, &weight) in taps.iter().enumerate() {
            let row = &wide[(start + tap - first) * stride + block * BLOCK..][..output.len()];
            for (sum, &sample) in sums.iter_mut().zip(row) {
                *sum += i32::from(sample) * weight;
            }
        }
        for (sample, &sum) in output.iter_mut().zip(sums.iter()) {
            *sample = to_byte(sum);
        }
    }
}
