//! What is known of one blob: which of its pieces are here, which are on their way and with whom.

use std::{cmp::Reverse, collections::VecDeque, sync::Arc};

use weightd_types::{ByteRange, CHUNK_BYTES, Placement};

/// The furthest that is fetched ahead of a reader who goes through a file in order: the chunks of four connections.
const AHEAD_LIMIT: u64 = 4 * CHUNK_BYTES;

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Piece {
    Missing,
    /// Behind others of the request of this number.
    Asked(u64),
    /// Next on the connection of the request of this number.
    Arriving(u64),
    Here,
}

/// Order of blobs: higher priority first, then small files (readers want configuration before tensors), then those that someone
/// waits for all of, then those that were asked for first: readers take files in that order, whichever is ready first.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(super) struct Rank {
    pub(super) priority: Reverse<i32>,
    pub(super) is_large: bool,
    /// The place among those that someone waits for; after all of them when nobody does.
    pub(super) preference: u64,
    pub(super) turn: u64,
    pub(super) arrival: u64,
}

#[derive(Debug)]
pub(super) struct Blob {
    pub(super) placement: Arc<Placement>,
    pub(super) pieces: Vec<Piece>,
    /// No piece before it is missing.
    pub(super) cursor: usize,
    pub(super) rank: Rank,
    /// What was fetched ahead of the last demand.
    pub(super) ahead: ByteRange,
}

impl Blob {
    /// What follows a demand and is likely to be read next: a chunk, because what shares the network with a demand delays
    /// it; for a reader who has come to what was ahead of the last demand, twice as far as that, up to the limit.
    pub(super) fn look_ahead(&mut self, demand: ByteRange) -> ByteRange {
        let next = demand.end.next_multiple_of(CHUNK_BYTES);
        // One who says again where they are goes no further.
        if self.ahead.start != next || self.ahead.is_empty() {
            let chunk = demand.start / CHUNK_BYTES * CHUNK_BYTES;
            let goes_on = !self.ahead.is_empty() && (self.ahead.start..=self.ahead.end).contains(&chunk);
            let length = if goes_on { (2 * self.ahead.len()).min(AHEAD_LIMIT) } else { CHUNK_BYTES };
            self.ahead = ByteRange::at(next, length);
        }
        self.ahead
    }

    /// Pieces of the chunks that a range of the blob touches, in the order of the blob.
    pub(super) fn pieces_in(&self, range: ByteRange) -> Vec<usize> {
        let last = range.end.min(self.placement.blob_len()).div_ceil(CHUNK_BYTES);
        let chunks = range.start / CHUNK_BYTES..last;
        #[expect(clippy::cast_possible_truncation, reason = "32 bits count 32 PiB of chunks")]
        let pieces = chunks.flat_map(|chunk| self.placement.pieces_of_chunk(chunk as u32));
        pieces.map(|&piece| piece as usize).collect()
    }

    pub(super) fn missing_in(&self, range: ByteRange) -> VecDeque<usize> {
        self.pieces_in(range).into_iter().filter(|&piece| self.pieces[piece] == Piece::Missing).collect()
    }

    /// Makes pieces missing that bulk requests would come to later than new ones, of which there may be so many at once; says how
    /// many bytes those are. One that comes next is left: asking anew would not bring it sooner. Nor would it from a request that
    /// someone waits for, or one ahead, which holds hardly more than a chunk; and to cut one costs its connection.
    ///
    /// `first_of` is the first piece of a bulk request.
    pub(super) fn take_back(
        &mut self,
        range: ByteRange,
        slots: usize,
        first_of: impl Fn(u64) -> Option<usize>,
    ) -> u64 {
        // How many pieces new requests come to before one: those that they are asked for, and those that others were.
        let (mut taken, mut before) = (Vec::new(), 0);
        for piece in self.pieces_in(range) {
            let comes_late = match self.pieces[piece] {
                Piece::Missing => true,
                Piece::Arriving(_) | Piece::Here => false,
                Piece::Asked(number) => match first_of(number) {
                    Some(first) => {
                        let turn = self.turn_of(piece, number, first);
                        turn.is_none_or(|turn| turn > 1 + before / slots)
                    }
                    None => {
                        before += 1;
                        false
                    }
                },
            };
            if comes_late {
                before += 1;
                taken.push(piece);
            }
        }
        taken.retain(|&piece| self.pieces[piece] != Piece::Missing);
        for &piece in &taken {
            self.pieces[piece] = Piece::Missing;
            self.cursor = self.cursor.min(piece);
        }
        taken.iter().map(|&piece| self.placement.pieces()[piece].object.len()).sum()
    }

    /// After how many others a request, which began with that one, comes to a piece: never, if one in between was taken away.
    fn turn_of(&self, piece: usize, number: u64, first: usize) -> Option<usize> {
        let before = self.pieces[first..piece].iter().rev();
        let asked = before.take_while(|state| **state == Piece::Asked(number)).count();
        match self.pieces[first..piece - asked].last() {
            None => Some(asked),
            Some(state) => (*state == Piece::Arriving(number)).then_some(asked + 1),
        }
    }

    /// Pieces of a range that are with a request, and its number.
    pub(super) fn coming_in(&self, range: ByteRange) -> Vec<(u64, usize)> {
        let with_request = |piece| match self.pieces[piece] {
            Piece::Asked(number) | Piece::Arriving(number) => Some((number, piece)),
            Piece::Missing | Piece::Here => None,
        };
        self.pieces_in(range).into_iter().filter_map(with_request).collect()
    }
}
