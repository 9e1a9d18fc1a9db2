//! Bilinear resizing of 8-bit pictures as OpenCV does it (`INTER_LINEAR`), which is what the networks were trained and are run with
//! elsewhere. There is no antialiasing: shrinking by more than two skips pixels.

use mgm_image::RgbImage;
use rayon::prelude::*;

/// Fractional bits of the weights.
const WEIGHT_BITS: u32 = 11;

/// First source position, second source position, and their weights.
type Tap = (usize, usize, i32, i32);

fn taps(length: usize, output: usize) -> Vec<Tap> {
    let scale = length as f64 / output as f64;
    let one = 1 << WEIGHT_BITS;
    (0..output)
        .map(|position| {
            let source = ((position as f64 + 0.5) * scale - 0.5) as f32;
            let low = source.floor();
            let second = source - low;
            let weight = |part: f32| (part * one as f32).round_ties_even() as i32;
            if low < 0.0 {
                (0, 0, one, 0)
            } else if low as usize + 1 >= length {
                (length - 1, length - 1, one, 0)
            } else {
                let low = low as usize;
                (low, low + 1, weight(1.0 - second), weight(second))
            }
        })
        .collect()
}

/// `image` at `width`×`height` pixels.
pub(crate) fn resize(image: &RgbImage, width: u32, height: u32) -> RgbImage {
    if (image.width, image.height) == (width, height) {
        return image.clone();
    }
    let row_bytes = width as usize * 3;
    let mut resized = RgbImage::filled(width, height, [0; 3]);
    if u64::from(image.width) == 2 * u64::from(width)
        && u64::from(image.height) == 2 * u64::from(height)
    {
        // OpenCV averages in this one case.
        resized
            .data
            .par_chunks_exact_mut(row_bytes)
            .enumerate()
            .for_each(|(y, line)| halve(image, y as u32, line));
        return resized;
    }
    let columns = taps(image.width as usize, width as usize);
    let rows = taps(image.height as usize, height as usize);
    let across = |y: usize| {
        let source = image.row(y as u32);
        columns
            .iter()
            .flat_map(move |(left, right, first, second)| {
                (0..3).map(move |channel| {
                    i32::from(source[left * 3 + channel]) * first
                        + i32::from(source[right * 3 + channel]) * second
                })
            })
            .collect::<Vec<i32>>()
    };
    resized
        .data
        .par_chunks_exact_mut(row_bytes)
        .zip(&rows)
        .for_each(|(line, (upper, lower, first, second))| {
            let (upper, lower) = (across(*upper), across(*lower));
            for ((value, above), below) in line.iter_mut().zip(&upper).zip(&lower) {
                let above = ((above >> 4) * first) >> 16;
                let below = ((below >> 4) * second) >> 16;
                *value = ((above + below + 2) >> 2).clamp(0, 255) as u8;
            }
        });
    resized
}

/// One row of the picture at half its size.
fn halve(image: &RgbImage, y: u32, line: &mut [u8]) {
    let (upper, lower) = (image.row(2 * y), image.row(2 * y + 1));
    for (x, pixel) in line.chunks_exact_mut(3).enumerate() {
        for (channel, value) in pixel.iter_mut().enumerate() {
            let (left, right) = (6 * x + channel, 6 * x + 3 + channel);
            let sum = [upper[left], upper[right], lower[left], lower[right]]
                .map(u32::from)
                .iter()
                .sum::<u32>();
            *value = ((sum + 2) >> 2) as u8;
        }
    }
}
