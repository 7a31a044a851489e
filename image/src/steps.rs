//! The order in which a disk is written: as it lies, so that it can also go where one can only write on and on.
//!
//! A blob is asked for in requests of a few chunks, in the order of its object, because sums may need that. Its bytes mostly
//! lie in that order on the disk too; pieces that lie behind others which come later are *late*: they wait for their turn.

use std::ops::Range;

use weightd_types::{ByteRange, Placement};

use crate::{
    contents::Contents,
    disk::{Content, Disk},
};

/// Longest request in bytes: long enough that a bucket's answer is worth its wait, short enough that several in flight fit a
/// small memory.
const ASK_BYTES: u64 = 16 << 20;

/// One step.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Step {
    /// A range of what ext4 needs.
    Metadata(ByteRange),
    /// The file of that number, whose bytes are known, or are by then.
    File(usize),
    /// A part of a blob.
    Ask(Ask),
}

/// A part of a blob that is asked for at once.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Ask {
    /// The file that the blob is.
    pub(crate) file: usize,
    /// The blob.
    pub(crate) blob: usize,
    /// Its pieces, in the order of the object.
    pub(crate) pieces: Range<usize>,
}

impl Ask {
    /// Whether the blob begins with it.
    pub(crate) fn is_first(&self) -> bool {
        self.pieces.start == 0
    }
}

/// Which pieces are late: they lie behind one that comes later in the object. All others lie in the order in which they come.
pub(crate) fn late_pieces(placement: &Placement) -> Vec<bool> {
    let pieces = placement.pieces();
    let mut late = vec![false; pieces.len()];
    let mut least = u64::MAX;
    for (at, piece) in pieces.iter().enumerate().rev() {
        late[at] = piece.blob > least;
        least = least.min(piece.blob);
    }
    late
}

/// All steps of a disk.
pub(crate) fn steps(disk: &Disk, contents: &Contents) -> Vec<Step> {
    let first_file = disk.files.first().map_or(u64::MAX, |file| file.at);
    // Copies of the superblock may lie behind all files.
    let (front, back): (Vec<_>, Vec<_>) =
        disk.metadata.ranges().iter().copied().partition(|range| range.start < first_file);
    let mut steps: Vec<Step> = front.into_iter().map(Step::Metadata).collect();
    for (at, file) in disk.files.iter().enumerate() {
        match file.content {
            Content::Known(_) | Content::Manifest(_) => steps.push(Step::File(at)),
            Content::Blob(blob) => {
                let placement = &contents.blobs[blob].wanted.placement;
                steps.extend(
                    asks(placement).into_iter().map(|pieces| Step::Ask(Ask { file: at, blob, pieces })),
                );
            }
        }
    }
    steps.extend(back.into_iter().map(Step::Metadata));
    steps
}

/// Divides an object into requests. One without pieces, which the header alone makes up, is one request for nothing.
fn asks(placement: &Placement) -> Vec<Range<usize>> {
    let pieces = placement.pieces();
    let mut asks = Vec::new();
    let mut start = 0;
    for at in 1..=pieces.len() {
        let whole = |end: usize| pieces[end - 1].object.end - pieces[start].object.start;
        if at == pieces.len() || whole(at + 1) > ASK_BYTES {
            asks.push(start..at);
            start = at;
        }
    }
    if pieces.is_empty() {
        asks.push(0..0);
    }
    asks
}

#[cfg(test)]
mod tests {
    use bytes::Bytes;
    use weightd_types::Run;

    use super::*;

    fn moved() -> Placement {
        // Object: A 100, b 10, C 100, d 10; blob: A C b d.
        let runs = [(0, 100, 0), (110, 210, 100), (100, 110, 200), (210, 220, 210)];
        let run = |(start, end, blob)| Run { object: ByteRange::new(start, end), blob };
        Placement::checked(220, Bytes::new(), 0, runs.map(run).to_vec()).unwrap()
    }

    #[test]
    fn what_lies_behind_something_later_is_late() {
        assert_eq!(late_pieces(&moved()), [false, true, false, false]);
        assert_eq!(late_pieces(&Placement::original(3 << 23)), [false; 3]);
    }

    #[test]
    fn requests_cover_the_object_in_its_order_and_are_not_long() {
        let placement = Placement::original(5 * (8 << 20) + 1);
        let asks = asks(&placement);
        assert_eq!(asks, [0..2, 2..4, 4..6]);
        let none = super::asks(&Placement::original(0));
        assert_eq!((none.len(), none[0].clone()), (1, 0..0));
        let one = super::asks(&Placement::original(1));
        assert_eq!((one.len(), one[0].clone()), (1, 0..1));
    }
}
