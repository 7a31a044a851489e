//! Elements of a tensor that do not follow each other: what a slice is that was cut along another dimension than the first.

use safetensors::Dtype;

/// How many bytes it is from the first element to behind the last one. The error says what is wrong with the strides.
///
/// Rows must not overlap, and where elements share bytes each run of them has to begin and to end on one.
pub(super) fn span(dtype: Dtype, shape: &[usize], strides: &[usize]) -> Result<usize, &'static str> {
    const TOO_FAR: &str = "whose strides reach beyond all memory";
    if shape.len() != strides.len() {
        return Err("whose strides are not as many as its dimensions");
    }
    if shape.contains(&0) {
        return Ok(0);
    }
    let bits = |elements: usize| elements.checked_mul(dtype.bitsize()).ok_or(TOO_FAR);
    let is_whole = |elements: usize| bits(elements).map(|bits| bits.is_multiple_of(8));
    let (mut extent, mut follows) = (1_usize, true);
    for (&length, &stride) in shape.iter().zip(strides).rev().filter(|(length, _)| **length > 1) {
        if stride < extent {
            return Err("whose strides make its elements overlap");
        }
        follows &= stride == extent;
        let cuts_bytes = !is_whole(extent)? || !is_whole(stride)?;
        if !follows && cuts_bytes {
            return Err("whose strides cut bytes");
        }
        let reach = stride.checked_mul(length - 1).and_then(|reach| reach.checked_add(extent));
        extent = reach.ok_or(TOO_FAR)?;
    }
    Ok(bits(extent)?.div_ceil(8))
}

/// Whether elements follow each other row by row all the same.
pub(super) fn are_row_by_row(shape: &[usize], strides: &[usize]) -> bool {
    let mut next = 1;
    shape.contains(&0)
        || shape.iter().zip(strides).rev().filter(|(length, _)| **length > 1).all(|(&length, &stride)| {
            let here = std::mem::replace(&mut next, stride.saturating_mul(length));
            stride == here
        })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_span_reaches_from_the_first_element_to_behind_the_last() {
        let span = |shape: &[usize], strides: &[usize]| span(Dtype::U16, shape, strides);
        assert_eq!(span(&[4, 4], &[8, 1]), Ok(2 * (3 * 8 + 4)));
        assert_eq!(span(&[2, 3, 4], &[24, 4, 1]), Ok(2 * (24 + 12)));
        assert_eq!((span(&[], &[]), span(&[3, 0], &[9, 1])), (Ok(2), Ok(0)));
        // Of one element along a dimension nobody asks how far the next one is.
        assert_eq!(span(&[4, 1], &[8, 0]), Ok(2 * 25));
        assert!(are_row_by_row(&[2, 1, 4], &[4, 99, 1]) && !are_row_by_row(&[2, 4], &[5, 1]));
    }

    #[test]
    fn strides_that_make_no_sense_are_refused() {
        let wrong = |dtype, shape: &[usize], strides: &[usize]| span(dtype, shape, strides).unwrap_err();
        assert!(wrong(Dtype::U8, &[4, 4], &[8]).contains("dimensions"));
        assert!(wrong(Dtype::U8, &[4, 4], &[3, 1]).contains("overlap"));
        assert!(wrong(Dtype::U8, &[4, 4], &[4, 0]).contains("overlap"));
        assert!(wrong(Dtype::U16, &[2, 2], &[usize::MAX, 1]).contains("beyond"));
        assert!(wrong(Dtype::U16, &[2, 2], &[usize::MAX / 2, 1]).contains("beyond"));
        assert!(wrong(Dtype::F4, &[4, 3], &[8, 1]).contains("cut bytes"));
        assert!(wrong(Dtype::F4, &[4, 4], &[7, 1]).contains("cut bytes"));
        assert_eq!(span(Dtype::F4, &[4, 4], &[8, 1]), Ok(14));
    }
}
