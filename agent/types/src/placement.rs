//! Where an object's bytes lie in a blob.
//!
//! A blob may begin with literal bytes that replace the object's first ones (the padded header of the aligned
//! layout). All other bytes of the object are placed by runs: a range of the object and where it begins in the
//! blob. Cut at chunk boundaries, runs become pieces, the smallest things that are fetched and summed. Pieces in
//! object order give the object's checksum, pieces in blob order give each chunk's.

use std::ops::Range;

use bytes::Bytes;
use serde::{Deserialize, Serialize};

use crate::{ByteRange, CHUNK_BYTES};

/// A range of the object that lies in the blob without a break.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct Run {
    /// Range of the object.
    pub object: ByteRange,
    /// Where it begins in the blob.
    pub blob: u64,
}

/// The part of a run that lies in one chunk.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Piece {
    /// The chunk it lies in.
    pub chunk: u32,
    /// Range of the object.
    pub object: ByteRange,
    /// Where it begins in the blob.
    pub blob: u64,
}

impl Piece {
    /// Its range in the blob.
    pub fn blob_range(&self) -> ByteRange {
        ByteRange::at(self.blob, self.object.len())
    }
}

/// Where all of an object's bytes lie in a blob.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Placement {
    object_len: u64,
    literal: Bytes,
    replaced: u64,
    runs: Vec<Run>,
    /// In object order.
    pieces: Vec<Piece>,
    /// Indices into `pieces`, in blob order.
    by_blob: Vec<u32>,
    /// Where each chunk's pieces begin in `by_blob`; one more entry than there are chunks.
    chunk_starts: Vec<u32>,
}

impl Placement {
    /// Byte for byte.
    pub fn original(object_len: u64) -> Self {
        let whole = Run { object: ByteRange::new(0, object_len), blob: 0 };
        Self::build(object_len, Bytes::new(), 0, if object_len == 0 { vec![] } else { vec![whole] })
    }

    /// A blob that begins with `literal` in place of the object's first `replaced` bytes, and holds the rest as
    /// `runs` say. Neighbouring runs are joined. `None` when the runs do not cover the rest of the object and
    /// the rest of the blob exactly once each, as those of a damaged manifest may not.
    pub fn checked(object_len: u64, literal: Bytes, replaced: u64, mut runs: Vec<Run>) -> Option<Self> {
        runs.retain(|run| !run.object.is_empty());
        runs.sort_unstable_by_key(|run| run.blob);
        let blob_len = (literal.len() as u64).checked_add(object_len.checked_sub(replaced)?)?;
        let in_blob = runs.iter().map(|run| (run.blob, run.object.len()));
        let blob_covered = covers(in_blob, literal.len() as u64, blob_len);
        runs.sort_unstable_by_key(|run| run.object.start);
        let in_object = runs.iter().map(|run| (run.object.start, run.object.len()));
        let object_covered = covers(in_object, replaced, object_len);
        (blob_covered && object_covered).then(|| Self::build(object_len, literal, replaced, runs))
    }

    fn build(object_len: u64, literal: Bytes, replaced: u64, runs: Vec<Run>) -> Self {
        let runs = joined(runs);
        let pieces: Vec<Piece> = runs.iter().flat_map(cut).collect();
        let blob_len = literal.len() as u64 + (object_len - replaced);
        let mut by_blob: Vec<u32> = (0..index(pieces.len())).collect();
        by_blob.sort_unstable_by_key(|&at| pieces[at as usize].blob);
        let chunks = blob_len.div_ceil(CHUNK_BYTES);
        let first_of =
            |chunk: u64| index(by_blob.partition_point(|&at| u64::from(pieces[at as usize].chunk) < chunk));
        let chunk_starts = (0..=chunks).map(first_of).collect();
        Self { object_len, literal, replaced, runs, pieces, by_blob, chunk_starts }
    }

    /// Length of the object in bytes.
    pub fn object_len(&self) -> u64 {
        self.object_len
    }

    /// Length of the blob in bytes.
    pub fn blob_len(&self) -> u64 {
        self.literal.len() as u64 + (self.object_len - self.replaced)
    }

    /// Bytes the blob begins with that are not from the object; empty in the original layout.
    pub fn literal(&self) -> &Bytes {
        &self.literal
    }

    /// How many of the object's first bytes the literal stands for.
    pub fn replaced(&self) -> u64 {
        self.replaced
    }

    /// The runs, in object order.
    pub fn runs(&self) -> &[Run] {
        &self.runs
    }

    /// The pieces, in object order.
    pub fn pieces(&self) -> &[Piece] {
        &self.pieces
    }

    /// Number of chunks of the blob.
    pub fn chunk_count(&self) -> u32 {
        index(self.chunk_starts.len() - 1)
    }

    /// The bytes of the blob that a chunk is.
    pub fn chunk_range(&self, chunk: u32) -> ByteRange {
        ByteRange::of_chunk(chunk, self.blob_len())
    }

    /// The literal bytes within a chunk, which begin where the chunk does; empty for most.
    pub fn literal_of_chunk(&self, chunk: u32) -> Bytes {
        let range = self.chunk_range(chunk).intersect(&ByteRange::new(0, self.literal.len() as u64));
        if range.is_empty() { Bytes::new() } else { self.literal.slice(to_usize(range)) }
    }

    /// Indices into [`Placement::pieces`] of a chunk's pieces, in blob order.
    pub fn pieces_of_chunk(&self, chunk: u32) -> &[u32] {
        let (start, end) = (self.chunk_starts[chunk as usize], self.chunk_starts[chunk as usize + 1]);
        &self.by_blob[start as usize..end as usize]
    }

    /// Indices of the pieces that begin in a range of the object.
    pub fn pieces_in(&self, object: ByteRange) -> Range<usize> {
        let from = self.pieces.partition_point(|piece| piece.object.start < object.start);
        let to = self.pieces.partition_point(|piece| piece.object.start < object.end);
        from..to.max(from)
    }

    /// The blob of an object that is in memory.
    ///
    /// # Panics
    /// When `object` does not have the object's length.
    pub fn apply(&self, object: &[u8]) -> Vec<u8> {
        assert_eq!(object.len() as u64, self.object_len, "the object has another length");
        let mut blob = vec![0; to_usize(ByteRange::new(0, self.blob_len())).end];
        blob[..self.literal.len()].copy_from_slice(&self.literal);
        for run in &self.runs {
            blob[to_usize(ByteRange::at(run.blob, run.object.len()))]
                .copy_from_slice(&object[to_usize(run.object)]);
        }
        blob
    }
}

fn joined(runs: Vec<Run>) -> Vec<Run> {
    let mut out: Vec<Run> = Vec::with_capacity(runs.len());
    for run in runs {
        match out.last_mut() {
            Some(last)
                if last.object.end == run.object.start && last.blob + last.object.len() == run.blob =>
            {
                last.object.end = run.object.end;
            }
            _ => out.push(run),
        }
    }
    out
}

/// Whether stretches of (start, length), in order, fill `from..to` without gap or overlap.
fn covers(stretches: impl Iterator<Item = (u64, u64)>, from: u64, to: u64) -> bool {
    let mut at = Some(from);
    for (start, len) in stretches {
        at = at.filter(|&at| at == start).and_then(|at| at.checked_add(len));
    }
    at == Some(to)
}

fn cut(run: &Run) -> impl Iterator<Item = Piece> + use<> {
    let run = *run;
    let end = run.blob + run.object.len();
    (run.blob / CHUNK_BYTES..end.div_ceil(CHUNK_BYTES)).map(move |chunk| {
        let start = (chunk * CHUNK_BYTES).max(run.blob);
        let stop = ((chunk + 1) * CHUNK_BYTES).min(end);
        let object = ByteRange::at(run.object.start + (start - run.blob), stop - start);
        #[expect(clippy::cast_possible_truncation, reason = "32 bits count 32 PiB of chunks")]
        Piece { chunk: chunk as u32, object, blob: start }
    })
}

#[expect(clippy::cast_possible_truncation, reason = "32 bits count 32 PiB of chunks")]
fn index(at: usize) -> u32 {
    at as u32
}

#[expect(clippy::cast_possible_truncation, reason = "only 64-bit targets are supported")]
fn to_usize(range: ByteRange) -> Range<usize> {
    range.start as usize..range.end as usize
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn original_pieces_are_chunks() {
        let placement = Placement::original(2 * CHUNK_BYTES + 5);
        assert_eq!(placement.chunk_count(), 3);
        assert_eq!(placement.chunk_range(2), ByteRange::at(2 * CHUNK_BYTES, 5));
        assert_eq!(placement.pieces().len(), 3);
        assert_eq!(placement.pieces_of_chunk(1), [1]);
        assert_eq!(placement.pieces_in(ByteRange::new(CHUNK_BYTES, 2 * CHUNK_BYTES)), 1..2);
        assert_eq!(Placement::original(0).chunk_count(), 0);
    }

    #[test]
    fn moved_runs_are_cut_at_the_blobs_chunks_and_nothing_is_lost() {
        let (header, c) = (100, CHUNK_BYTES);
        let object_len = header + 3 * c + 7;
        // The 7 odd bytes come first in the object and last in the blob.
        let runs = vec![
            Run { object: ByteRange::at(header, 7), blob: 64 + 3 * c },
            Run { object: ByteRange::at(header + 7, 3 * c), blob: 64 },
        ];
        let literal = Bytes::from(vec![b'h'; 64]);
        let placement = Placement::checked(object_len, literal.clone(), header, runs.clone()).unwrap();
        assert_eq!(
            Placement::checked(object_len, literal, header, runs[1..].to_vec()),
            None,
            "a run is missing"
        );
        assert_eq!(placement.blob_len(), 64 + 3 * c + 7);
        assert_eq!(placement.literal_of_chunk(0).len(), 64);
        assert!(placement.literal_of_chunk(1).is_empty());
        let last = placement.pieces_of_chunk(3);
        assert_eq!(last.len(), 2, "the tail of the long run, then the odd bytes");
        let mut total = 64;
        for chunk in 0..placement.chunk_count() {
            let mut at = placement.chunk_range(chunk).start + placement.literal_of_chunk(chunk).len() as u64;
            for &piece in placement.pieces_of_chunk(chunk) {
                let piece = placement.pieces()[piece as usize];
                assert_eq!(piece.blob, at, "no gap within a chunk");
                at += piece.object.len();
                total += piece.object.len();
            }
            assert_eq!(at, placement.chunk_range(chunk).end);
        }
        assert_eq!(total, placement.blob_len());
    }
}
