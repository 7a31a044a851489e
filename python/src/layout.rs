//! What the bytes of a tensor are: its type, its shape, and how far its elements are apart.

use std::sync::Arc;

use safetensors::Dtype;

use crate::dtype;

/// Rows of bytes that are equally far apart.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Rows {
    /// Where the first one begins.
    pub(crate) start: usize,
    /// Length of each.
    pub(crate) width: usize,
    /// From the beginning of one to that of the next.
    pub(crate) pitch: usize,
    pub(crate) count: usize,
}

/// How elements lie in memory.
#[derive(Debug, Clone)]
pub(crate) struct Layout {
    pub(crate) dtype: Dtype,
    pub(crate) shape: Arc<[usize]>,
    /// How far elements are apart that are neighbours along each dimension, in elements. None where they follow each other
    /// row by row. What is cut from a tensor keeps each run of elements that share bytes on bytes of its own.
    pub(crate) strides: Option<Arc<[usize]>>,
    /// Of all elements.
    pub(crate) bytes: usize,
}

impl Layout {
    pub(crate) fn new(dtype: Dtype, shape: &[usize], strides: Option<&[usize]>, bytes: usize) -> Self {
        Self { dtype, shape: shape.into(), strides: strides.map(Arc::from), bytes }
    }

    /// The bytes of all elements, one after the other.
    pub(crate) fn of_bytes(bytes: usize) -> Self {
        Self::new(Dtype::U8, &[bytes], None, bytes)
    }

    /// The same elements once they were copied row by row.
    pub(crate) fn contiguous(&self) -> Self {
        Self { strides: None, ..self.clone() }
    }

    /// Elements of the same size in the same place, of a type that everybody has. None where elements share bytes, but for
    /// halves of which all lie in pairs: these are bytes then.
    pub(crate) fn as_integers(&self) -> Option<Self> {
        let dtype = match self.dtype.bitsize() {
            8 => Dtype::U8,
            16 => Dtype::I16,
            32 => Dtype::I32,
            64 => Dtype::I64,
            4 => return self.in_pairs(),
            _ => return None,
        };
        Some(Self { dtype, ..self.clone() })
    }

    fn in_pairs(&self) -> Option<Self> {
        let half = |number: &usize| number.is_multiple_of(2).then_some(number / 2);
        let (last, before) = self.shape.split_last()?;
        let shape = before.iter().copied().chain([half(last)?]).collect();
        let strides = match self.strides.as_deref().and_then(<[usize]>::split_last) {
            None => None,
            Some((1, before)) => Some(before.iter().map(half).chain([Some(1)]).collect::<Option<_>>()?),
            Some(_) => return None,
        };
        Some(Self { dtype: Dtype::U8, shape, strides, bytes: self.bytes })
    }

    /// How far elements are apart, also where they follow each other; none for distances beyond what can be said.
    pub(crate) fn distances(&self) -> Option<Vec<usize>> {
        if let Some(strides) = &self.strides {
            return Some(strides.to_vec());
        }
        let mut distances = vec![1_usize; self.shape.len()];
        for at in (1..distances.len()).rev() {
            // An empty dimension makes a tensor of no bytes, wherever its others would be.
            distances[at - 1] = distances[at].checked_mul(self.shape[at].max(1))?;
        }
        Some(distances)
    }

    /// Length of the runs of bytes that it is, and where each begins, from the first on.
    pub(crate) fn runs(&self) -> (usize, impl Iterator<Item = usize>) {
        let mut outer: Vec<(usize, usize)> = Vec::new();
        let mut run = 1;
        if let Some(strides) = &self.strides {
            let dimensions = self.shape.iter().zip(strides.iter()).filter(|(length, _)| **length != 1);
            for (&length, &stride) in dimensions.rev() {
                if outer.is_empty() && stride == run {
                    run *= length;
                } else {
                    outer.push((length, stride));
                }
            }
        } else {
            run = self.shape.iter().product();
        }
        let bits = self.dtype.bitsize();
        let count = if self.bytes == 0 { 0 } else { outer.iter().map(|(length, _)| length).product() };
        let start = move |mut number: usize| {
            let mut elements = 0;
            for (length, stride) in &outer {
                elements += number % length * stride;
                number /= length;
            }
            elements * bits / 8
        };
        (run * bits / 8, (0..count).map(start))
    }

    /// The same, those together that are equally far apart, and how many bytes lie from the first to behind the last.
    pub(crate) fn rows(&self) -> (Vec<Rows>, usize) {
        let (width, starts) = self.runs();
        let (mut rows, mut span): (Vec<Rows>, usize) = (Vec::new(), 0);
        for start in starts {
            span = span.max(start + width);
            match rows.last_mut() {
                Some(last) if last.count == 1 && start > last.start => {
                    (last.pitch, last.count) = (start - last.start, 2);
                }
                Some(last) if start == last.start + last.count * last.pitch => last.count += 1,
                _ => rows.push(Rows { start, width, pitch: width, count: 1 }),
            }
        }
        (rows, span)
    }

    /// On a multiple of how many bytes its first one should be.
    pub(crate) fn alignment(&self) -> usize {
        dtype::alignment(self.dtype)
    }
}
