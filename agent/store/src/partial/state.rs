//! What is here of a blob that is still arriving.

use std::{
    collections::{BTreeSet, HashMap},
    sync::Arc,
};

use weightd_types::{Crc32c, Placement};

use super::count;
use crate::{index::ChunkMap, io::Buffer};

#[derive(Debug)]
pub(super) struct State {
    /// Checksum of each written piece.
    pub(super) pieces: Vec<Option<Crc32c>>,
    /// Pieces each chunk still lacks.
    pub(super) lacking: Vec<u32>,
    /// Chunks that are written and not recorded.
    pub(super) unrecorded: Vec<u32>,
    /// Chunks that are not present.
    pub(super) absent: u32,
    /// Chunks that an earlier run wrote, and that nobody has read back since.
    pub(super) restored: BTreeSet<u32>,
    /// Chunks all of whose bytes are in memory, on their way to the disk: who waits for one need not wait for the disk.
    pub(super) in_memory: HashMap<u32, Arc<Buffer>>,
}

impl State {
    pub(super) fn new(placement: &Placement) -> Self {
        let lacking: Vec<u32> =
            (0..placement.chunk_count()).map(|chunk| count(placement.pieces_of_chunk(chunk).len())).collect();
        let absent = count(lacking.iter().filter(|&&lacking| lacking > 0).count());
        let pieces = vec![None; placement.pieces().len()];
        Self {
            pieces,
            lacking,
            unrecorded: Vec::new(),
            absent,
            restored: BTreeSet::new(),
            in_memory: HashMap::new(),
        }
    }

    pub(super) fn mark(&mut self, placement: &Placement, piece: usize, crc: Crc32c) {
        if self.pieces[piece].replace(crc).is_some() {
            return;
        }
        let chunk = placement.pieces()[piece].chunk;
        let lacking = &mut self.lacking[chunk as usize];
        *lacking -= 1;
        if *lacking == 0 {
            self.unrecorded.push(chunk);
            self.absent -= 1;
        }
    }

    /// Makes a chunk missing again.
    pub(super) fn forget(&mut self, placement: &Placement, chunk: u32) {
        let pieces = placement.pieces_of_chunk(chunk);
        let forgotten = pieces.iter().filter(|&&piece| self.pieces[piece as usize].take().is_some()).count();
        if forgotten > 0 && self.lacking[chunk as usize] == 0 {
            self.absent += 1;
        }
        self.lacking[chunk as usize] += count(forgotten);
        self.unrecorded.retain(|unrecorded| *unrecorded != chunk);
        self.restored.remove(&chunk);
    }

    /// Checksum of a chunk's bytes in the blob, if they are all written.
    pub(super) fn chunk_crc(&self, placement: &Placement, chunk: u32) -> Option<Crc32c> {
        let literal = Crc32c::of(&placement.literal_of_chunk(chunk));
        placement.pieces_of_chunk(chunk).iter().try_fold(literal, |crc, &piece| {
            let len = placement.pieces()[piece as usize].object.len();
            Some(crc.combine(self.pieces[piece as usize]?, len))
        })
    }

    /// CRC-32C of the whole object behind its header, combined from its pieces; `None` while any is missing.
    pub(super) fn object_crc(&self, placement: &Placement, header: &[u8]) -> Option<Crc32c> {
        // Asked after every write, and most times for nothing.
        if self.absent > 0 {
            return None;
        }
        let mut pieces = placement.pieces().iter().zip(&self.pieces);
        pieces
            .try_fold(Crc32c::of(header), |crc, (piece, own)| Some(crc.combine((*own)?, piece.object.len())))
    }

    /// Takes over recorded chunks; those that do not fit the placement are as good as missing.
    pub(super) fn restore(&mut self, placement: &Placement, recorded: &ChunkMap) {
        for (&chunk, crcs) in recorded.range(..placement.chunk_count()) {
            let pieces = placement.pieces_of_chunk(chunk);
            if pieces.len() == crcs.len() {
                for (&piece, &crc) in pieces.iter().zip(crcs) {
                    self.mark(placement, piece as usize, crc);
                }
            }
        }
        self.restored = self.unrecorded.drain(..).collect();
    }
}
