//! A tensor as torch sees it: a strided view of a storage.

use std::ops::Range;

use mgm_kernels::quant::Bytes;

use crate::weights::element_type::ElementType;
use crate::weights::stored::StoredTensor;

/// Most axes of a tensor.
const MAX_AXES: usize = 8;

/// A view that was checked against its storage.
#[derive(Clone, Debug)]
pub(super) struct View {
    pub(super) element_type: ElementType,
    pub(super) shape: Vec<usize>,
    /// In elements.
    strides: Vec<usize>,
    /// Place of the first element in the file.
    start: usize,
    /// Place of the end of the last element in the file.
    end: usize,
}

impl View {
    /// `storage` is the storage's place in the file, `numel` what it is said to hold; `offset` and `strides` count elements. The error is
    /// one line that follows the tensor's name.
    pub(super) fn new(
        element_type: ElementType,
        storage: Range<usize>,
        numel: usize,
        offset: usize,
        shape: Vec<usize>,
        strides: Vec<usize>,
    ) -> Result<Self, String> {
        if shape.len() != strides.len() || shape.len() > MAX_AXES {
            return Err(format!(
                "has {} axes and {} strides, expected as many of both and at most {MAX_AXES}",
                shape.len(),
                strides.len()
            ));
        }
        // Without its size, a foreign type's elements cannot be found; using such a tensor is an error later.
        let Some(size) = element_type.bytes_of(1).map(|size| size as usize) else {
            return Ok(Self {
                element_type,
                shape,
                strides,
                start: storage.start,
                end: storage.start,
            });
        };
        if numel.checked_mul(size) != Some(storage.len()) {
            return Err(format!(
                "needs a storage of {numel} {element_type} elements, found {} bytes",
                storage.len()
            ));
        }
        let elements = shape
            .iter()
            .try_fold(1usize, |product, axis| product.checked_mul(*axis));
        let past = match elements {
            Some(0) => Some(offset),
            // A view with more elements than its storage would make memory out of nothing.
            Some(elements) if elements <= numel => shape
                .iter()
                .zip(&strides)
                .try_fold(offset, |last, (axis, stride)| {
                    last.checked_add((axis - 1).checked_mul(*stride)?)
                })
                .and_then(|last| last.checked_add(1)),
            _ => None,
        };
        match past {
            Some(past) if past <= numel => Ok(Self {
                start: storage.start + offset * size,
                end: storage.start + past * size,
                element_type,
                shape,
                strides,
            }),
            _ => Err(format!(
                "{shape:?} with strides {strides:?} from element {offset} reaches beyond its storage of {numel} elements"
            )),
        }
    }

    /// What the elements take; `None` for a type of unknown size.
    pub(super) fn bytes(&self) -> Option<u64> {
        let elements: usize = match &self.element_type {
            ElementType::Other(_) => return None,
            _ => self.shape.iter().product(),
        };
        self.element_type.bytes_of(elements as u64)
    }

    /// Where in the file its elements are, with whatever lies between them.
    pub(super) fn place(&self) -> Range<usize> {
        self.start..self.end
    }

    /// Rows of the first axis (a scalar has one), which must be there.
    pub(super) fn rows(&self, rows: Range<usize>) -> Self {
        let mut part = self.clone();
        let Some(first) = part.shape.first_mut() else {
            return part;
        };
        if rows == (0..*first) {
            return part;
        }
        *first = rows.len();
        let size = self.element_type.bytes_of(1).unwrap_or(0) as usize;
        if rows.is_empty() || part.shape.contains(&0) {
            part.end = part.start;
            return part;
        }
        part.start += rows.start * part.strides[0] * size;
        let span: usize = part
            .shape
            .iter()
            .zip(&part.strides)
            .map(|(axis, stride)| (axis - 1) * stride)
            .sum();
        part.end = part.start + (span + 1) * size;
        part
    }

    /// Whether the elements lie row-major without gaps.
    fn is_contiguous(&self) -> bool {
        let mut expected = 1;
        self.shape
            .iter()
            .zip(&self.strides)
            .rev()
            .all(|(&axis, &stride)| {
                let fits = axis == 1 || stride == expected;
                expected *= axis.max(1);
                fits
            })
    }

    /// The tensor out of the `file`'s bytes, in place if it lies row-major, else copied.
    pub(super) fn read(&self, file: &Bytes) -> Result<StoredTensor, String> {
        let elements = file.part(self.place()).map_err(|error| error.to_string())?;
        let empty = self.shape.contains(&0);
        let foreign = matches!(self.element_type, ElementType::Other(_));
        let elements = if empty || foreign || self.is_contiguous() {
            elements
        } else {
            Bytes::from_vec(self.gather(elements.as_slice()))
        };
        Ok(StoredTensor::from_bytes(
            self.shape.clone(),
            self.element_type.clone(),
            elements,
        ))
    }

    /// The elements row-major; `bytes` begins with the first.
    fn gather(&self, bytes: &[u8]) -> Vec<u8> {
        let size = self.element_type.bytes_of(1).unwrap_or(0) as usize;
        let (Some(&width), Some(&step)) = (self.shape.last(), self.strides.last()) else {
            return bytes.to_vec();
        };
        let rows: usize = self.shape[..self.shape.len() - 1].iter().product();
        let mut out = Vec::with_capacity(rows * width * size);
        let mut index = vec![0; self.shape.len() - 1];
        for _ in 0..rows {
            let first: usize = index
                .iter()
                .zip(&self.strides)
                .map(|(index, stride)| index * stride)
                .sum();
            if step == 1 {
                out.extend_from_slice(&bytes[first * size..][..width * size]);
            } else {
                for i in 0..width {
                    out.extend_from_slice(&bytes[(first + i * step) * size..][..size]);
                }
            }
            for (index, axis) in index.iter_mut().zip(&self.shape).rev() {
                *index += 1;
                if *index < *axis {
                    break;
                }
                *index = 0;
            }
        }
        out
    }
}
