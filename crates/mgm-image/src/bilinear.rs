//! Bilinear interpolation of planar f32 tensors as `torch.nn.functional.interpolate` does it on the CPU.

use rayon::prelude::*;

/// For each output position: the two source positions and the weight of the second.
fn taps(length: usize, output: usize) -> Vec<(usize, usize, f32)> {
    // torch works in f32 here ("area_pixel_compute_scale"), and the last bits of the weights show it.
    let scale = length as f32 / output as f32;
    (0..output)
        .map(|position| {
            let source = (scale * (position as f32 + 0.5) - 0.5).max(0.0);
            let low = (source as usize).min(length - 1);
            let high = (low + 1).min(length - 1);
            (low, high, (source - low as f32).clamp(0.0, 1.0))
        })
        .collect()
}

/// `interpolate(mode="bilinear", align_corners=False, antialias=False)` of `[channels, height, width]` to
/// `[channels, output_height, output_width]`, both planar f32.
///
/// No antialiasing: when shrinking by more than two, source values are skipped, as the official recipe does.
///
/// # Panics
/// If `source` does not hold `channels * height * width` values.
pub fn bilinear_planar(
    source: &[f32],
    channels: usize,
    height: usize,
    width: usize,
    output_height: usize,
    output_width: usize,
) -> Vec<f32> {
    assert_eq!(
        source.len(),
        channels * height * width,
        "a [{channels}, {height}, {width}] tensor"
    );
    if (height, width) == (output_height, output_width) {
        return source.to_vec();
    }
    let mut output = vec![0f32; channels * output_height * output_width];
    if source.is_empty() || output.is_empty() {
        return output;
    }
    let columns = taps(width, output_width);
    let rows = taps(height, output_height);
    output
        .par_chunks_exact_mut(output_width)
        .enumerate()
        .for_each(|(index, line)| {
            let plane = &source[index / output_height * height * width..][..height * width];
            let (upper, lower, below) = rows[index % output_height];
            let upper = &plane[upper * width..][..width];
            let lower = &plane[lower * width..][..width];
            for (value, &(left, right, after)) in line.iter_mut().zip(&columns) {
                let above = (1.0 - after) * upper[left] + after * upper[right];
                let under = (1.0 - after) * lower[left] + after * lower[right];
                *value = (1.0 - below) * above + below * under;
            }
        });
    output
}
