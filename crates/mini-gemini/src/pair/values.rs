//! The values of planned tensors, a few rows at a time: read, adapters merged, rows reordered, encoded.

use half::slice::HalfFloatSliceExt;
use half::{bf16, f16};
use mgm_kernels::quant::{quantize, quantize_weighted};
use mgm_nn::ElementType;

use super::plan::Planned;
use crate::checkpoint::Checkpoint;
use crate::error::{Error, Result};

/// Values read at a time: 16 MB as `f32`.
const CHUNK: usize = 1 << 22;

/// A checkpoint's weights with its adapters merged in.
pub(super) struct Values<'a>(pub(super) &'a Checkpoint);

impl Values<'_> {
    /// Hands out the bytes of a tensor in order, in pieces of a few million values, each with the number of values it stands for. `importance`
    /// has one number a column (of every expert, one after the other, for a stack).
    pub(super) fn encode(
        &self,
        planned: &Planned,
        importance: Option<&[f32]>,
        emit: &mut dyn FnMut(&[u8], u64) -> Result<()>,
    ) -> Result<()> {
        let shape = &planned.target.shape;
        let row_axes = if planned.sources.len() > 1 {
            &shape[1..]
        } else {
            shape
        };
        let rows = row_axes.first().copied().unwrap_or(1);
        let row_values: usize = row_axes[1.min(row_axes.len())..].iter().product();
        let width = shape.last().copied().unwrap_or(1);
        let unit = planned.interleaved.unwrap_or(1);
        let step = (CHUNK / row_values.max(1)).max(1).next_multiple_of(unit);
        for (index, source) in planned.sources.iter().enumerate() {
            if self.copies(planned, source) {
                let bytes = self.0.weights.stored_bytes(source)?;
                let bytes = bytes.as_slice();
                let values = (rows * row_values) as u64;
                // In steps, so that work on a large tensor can be stopped.
                let pieces = bytes.len().div_ceil(4 * CHUNK).max(1) as u64;
                for piece in bytes.chunks(4 * CHUNK) {
                    emit(piece, values / pieces)?;
                    self.0.weights.release(source);
                }
                continue;
            }
            let importance = importance.and_then(|all| all.get(index * width..(index + 1) * width));
            let mut start = 0;
            while start < rows {
                let range = start..(start + step).min(rows);
                let mut values = self.0.merged_rows(source, range.clone())?;
                if let Some(head_dim) = planned.interleaved {
                    values = interleave(&values, head_dim, row_values);
                }
                if planned.offset != 0.0 {
                    values.iter_mut().for_each(|value| *value += planned.offset);
                }
                let bytes = encode(&planned.target.element_type, &values, width, importance)
                    .map_err(|problem| {
                        let file = self.0.weights.info(source).map(|info| info.file);
                        Error::Input(format!(
                            "{}: tensor {source}: {problem}",
                            file.unwrap_or_default()
                        ))
                    })?;
                emit(&bytes, values.len() as u64)?;
                start = range.end;
                // What was read is not read again; an embedding's pages alone would be a gigabyte.
                self.0.weights.release(source);
            }
        }
        Ok(())
    }

    /// Whether the stored bytes are what the file shall hold: blocks are not taken apart and made anew.
    fn copies(&self, planned: &Planned, source: &str) -> bool {
        planned.interleaved.is_none()
            && planned.offset == 0.0
            && self
                .0
                .weights
                .info(source)
                .is_some_and(|info| info.element_type == planned.target.element_type)
            && !self.0.is_adapted(source)
    }
}

/// Whole heads of rows from half-split to interleaved order.
fn interleave(values: &[f32], head_dim: usize, width: usize) -> Vec<f32> {
    let half = head_dim / 2;
    let mut moved = Vec::with_capacity(values.len());
    for head in values.chunks_exact(head_dim * width) {
        for pair in 0..half {
            for row in [pair, half + pair] {
                moved.extend_from_slice(&head[row * width..(row + 1) * width]);
            }
        }
    }
    moved
}

/// The bytes of `values`, whose rows have `width`.
fn encode(
    element_type: &ElementType,
    values: &[f32],
    width: usize,
    importance: Option<&[f32]>,
) -> Result<Vec<u8>, String> {
    if let Some(at) = values.iter().position(|value| !value.is_finite()) {
        return Err(format!(
            "expected finite numbers, found {} in row {}",
            values[at],
            at / width
        ));
    }
    Ok(match element_type {
        ElementType::F32 => bytemuck::cast_slice(values).to_vec(),
        ElementType::Bf16 => {
            let mut halves = vec![bf16::ZERO; values.len()];
            halves.convert_from_f32_slice(values);
            bytemuck::cast_slice(&halves).to_vec()
        }
        ElementType::F16 => {
            let mut halves = vec![f16::ZERO; values.len()];
            halves.convert_from_f32_slice(values);
            if let Some(at) = halves.iter().position(|value| value.is_infinite()) {
                return Err(format!(
                    "{} is more than a 16-bit float can hold: use BF16",
                    values[at]
                ));
            }
            bytemuck::cast_slice(&halves).to_vec()
        }
        ElementType::Quantised(quant_type) => match importance {
            Some(importance) => quantize_weighted(*quant_type, values, width, importance),
            None => quantize(*quant_type, values),
        },
        other => return Err(format!("cannot be written as {}", other.name())),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn rows_of_a_head_alternate() {
        // Two heads of four rows, one value a row.
        let rows: Vec<f32> = (0..8).map(|row| row as f32).collect();
        assert_eq!(
            interleave(&rows, 4, 1),
            [0.0, 2.0, 1.0, 3.0, 4.0, 6.0, 5.0, 7.0]
        );
    }

    #[test]
    fn values_that_a_type_cannot_hold_are_refused() {
        let refused =
            |element_type, value: f32| encode(&element_type, &[0.0, value], 2, None).unwrap_err();
        assert!(refused(ElementType::F16, 1e6).contains("16-bit"));
        assert!(refused(ElementType::F32, f32::NAN).contains("NaN in row 0"));
        assert!(encode(&ElementType::Bf16, &[1e30], 1, None).is_ok());
    }
}
