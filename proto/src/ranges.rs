//! Positions of tensors, as ranges.

use crate::v1::HandoffRange;

impl HandoffRange {
    /// Positions in their order, those that follow each other as one range.
    pub fn joined(positions: impl IntoIterator<Item = u32>) -> Vec<Self> {
        let mut ranges: Vec<Self> = Vec::new();
        for position in positions {
            match ranges.last_mut() {
                Some(last) if last.end == position => last.end += 1,
                _ => ranges.push(Self { start: position, end: position + 1 }),
            }
        }
        ranges
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_follows_is_joined_and_the_order_stays() {
        let range = |start, end| HandoffRange { start, end };
        assert_eq!(HandoffRange::joined([7, 8, 9, 3, 4, 4]), [range(7, 10), range(3, 5), range(4, 5)]);
        assert_eq!(HandoffRange::joined([]), []);
    }
}
