//! Memory for the tensors of one blob: a file in memory that is filled once, chunk by chunk, and lent to clients.
#![allow(unsafe_code, reason = "the agent writes through a mapping that others map too")]

use std::{
    io,
    os::fd::OwnedFd,
    ptr::NonNull,
    sync::{
        Arc, Mutex, MutexGuard, PoisonError,
        atomic::{AtomicU64, Ordering},
    },
};

use tokio::sync::Notify;
use weightd_store::io::{BLOCK_BYTES, Buffer, Lender};
use weightd_types::{ByteRange, Crc32c};

use super::{arrangement::Arrangement, lent::LentMemory, memory::Provider, trust::Seen};
use crate::reading::to_usize;

/// Memory for the tensors of one blob.
#[derive(Debug)]
pub(crate) struct Arena {
    arrangement: Arrangement,
    memory: LentMemory,
    chunks: Mutex<Vec<Chunk>>,
    seen: Arc<Seen>,
    /// Counts chunks that came, and those that are free again.
    changes: AtomicU64,
    /// Told of each.
    changed: Arc<Notify>,
}

/// How a chunk of the blob stands.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Chunk {
    /// Nobody brings it.
    Absent,
    /// Someone writes it.
    Claimed,
    /// It is here, and never written again.
    Here,
}

/// The right to write a chunk. One that is dropped before the chunk is here leaves it to the next.
#[derive(Debug)]
pub(crate) struct Claim {
    arena: Arc<Arena>,
    chunk: u32,
}

impl Arena {
    /// An arena over a file in memory that is as long as the arrangement says. From here on nobody else can write to it.
    pub(crate) fn new(
        name: String,
        arrangement: Arrangement,
        memory: OwnedFd,
        provider: Provider,
        changed: Arc<Notify>,
    ) -> io::Result<Self> {
        let memory = LentMemory::new(name, arrangement.arena_bytes(), memory, provider)?;
        Ok(Self::over(arrangement, memory, Chunk::Absent, changed))
    }

    /// An arena that an earlier agent filled: what chunks it has is known, and that they are right.
    pub(crate) fn adopt(
        name: String,
        arrangement: Arrangement,
        memory: OwnedFd,
        provider: Provider,
        chunks: Vec<Crc32c>,
        changed: Arc<Notify>,
    ) -> io::Result<Self> {
        if chunks.len() != arrangement.chunk_count() as usize {
            return Err(io::Error::other("it has another length"));
        }
        let memory = LentMemory::adopt(name, arrangement.arena_bytes(), memory, provider)?;
        let arena = Self::over(arrangement, memory, Chunk::Here, changed);
        for (crc, chunk) in chunks.iter().zip(0..) {
            arena.seen.saw(chunk, *crc);
        }
        arena.seen.expect(chunks);
        Ok(arena)
    }

    fn over(arrangement: Arrangement, memory: LentMemory, chunk: Chunk, changed: Arc<Notify>) -> Self {
        let seen = Arc::new(Seen::new(arrangement.chunk_count(), Arc::clone(&changed)));
        let chunks = Mutex::new(vec![chunk; arrangement.chunk_count() as usize]);
        Self { arrangement, memory, chunks, seen, changes: AtomicU64::new(0), changed }
    }

    pub(crate) fn arrangement(&self) -> &Arrangement {
        &self.arrangement
    }

    pub(crate) fn memory(&self) -> &LentMemory {
        &self.memory
    }

    /// What is known of its bytes.
    pub(crate) fn seen(&self) -> &Arc<Seen> {
        &self.seen
    }

    fn chunks(&self) -> MutexGuard<'_, Vec<Chunk>> {
        self.chunks.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Chunks that are here and were not seen yet; from then on they were.
    pub(crate) fn come_since(&self, seen: &mut [bool]) -> Vec<u32> {
        let chunks = self.chunks();
        let news = chunks.iter().zip(seen).zip(0..).filter_map(|((chunk, seen), number)| {
            let is_news = !*seen && *chunk == Chunk::Here;
            *seen |= is_news;
            is_news.then_some(number)
        });
        news.collect()
    }

    /// How a chunk stands.
    pub(crate) fn state(&self, chunk: u32) -> Chunk {
        self.chunks()[chunk as usize]
    }

    /// How often any chunk's state has changed, for whoever looks again.
    pub(crate) fn changes(&self) -> u64 {
        self.changes.load(Ordering::Acquire)
    }

    fn tell(&self) {
        self.changes.fetch_add(1, Ordering::AcqRel);
        self.changed.notify_waiters();
    }

    /// Takes the right to write a chunk, if nobody has it and it is not here.
    pub(crate) fn claim(self: &Arc<Self>, chunk: u32) -> Option<Claim> {
        let mut chunks = self.chunks();
        let state = chunks.get_mut(chunk as usize).filter(|state| **state == Chunk::Absent)?;
        *state = Chunk::Claimed;
        Some(Claim { arena: Arc::clone(self), chunk })
    }

    /// Has the memory of a chunk provided, charged to whom it should be.
    pub(crate) async fn provide(&self, chunk: u32) -> Result<(), String> {
        for part in self.arrangement.parts(chunk) {
            self.memory.provide(part.arena, part.blob.len()).await?;
        }
        Ok(())
    }

    /// Shows the bytes of a chunk that is here, part by part, with where in the blob each lies. `None` when it is not here.
    pub(crate) fn show(&self, chunk: u32, mut look: impl FnMut(ByteRange, &[u8])) -> Option<()> {
        if self.state(chunk) != Chunk::Here {
            return None;
        }
        for part in self.arrangement.parts(chunk) {
            let (start, len) = (self.memory.at(part.arena), to_usize(part.blob.len()));
            // SAFETY: parts lie within the arena, and a chunk that is here is never written again.
            look(part.blob, unsafe { std::slice::from_raw_parts(start, len) });
        }
        Some(())
    }
}

impl Claim {
    /// Memory for the chunk from `within` bytes behind its beginning on, where it can be read straight into its place.
    /// `None` when it must be put there in parts. The claim lasts as long as the buffer.
    pub(crate) fn into_buffer(self, within: u64) -> Result<Buffer, Self> {
        let range = self.arena.arrangement.chunk_range(self.chunk);
        let place = self.arena.arrangement.straight(self.chunk).map(|place| place + within);
        let Some(place) = place.filter(|place| place.is_multiple_of(BLOCK_BYTES) && within < range.len())
        else {
            return Err(self);
        };
        let len = to_usize((range.len() - within).next_multiple_of(BLOCK_BYTES));
        assert!(
            place + len as u64 <= self.arena.arrangement.arena_bytes(),
            "an arena has room behind its end"
        );
        let start = NonNull::new(self.arena.memory.at(place)).expect("a mapping is somewhere");
        // SAFETY: the mapping lasts as long as the arena, which the claim keeps. Only who has the claim reaches these bytes:
        // other chunks lie elsewhere, and this one goes to the next only when the claim is gone.
        Ok(unsafe { Buffer::lent(start, len, Box::new(self)) })
    }

    /// Puts the chunk's bytes where they belong, part by part.
    pub(crate) fn put(&self, bytes: &[u8]) {
        let range = self.arena.arrangement.chunk_range(self.chunk);
        assert_eq!(bytes.len() as u64, range.len(), "the whole chunk");
        for part in self.arena.arrangement.parts(self.chunk) {
            let bytes =
                &bytes[to_usize(part.blob.start - range.start)..to_usize(part.blob.end - range.start)];
            let place = self.arena.memory.at(part.arena);
            // SAFETY: parts lie within the arena, and nobody but who has the claim writes there; it was made for writing, as
            // in an adopted arena nothing can be claimed.
            unsafe { std::ptr::copy_nonoverlapping(bytes.as_ptr(), place, bytes.len()) };
        }
    }

    /// Says that all bytes of the chunk are in their place.
    pub(crate) fn landed(&self, crc: Crc32c) {
        // First, so that nothing is here of which nobody knows whether it is right.
        let _may_be_right = self.arena.seen.saw(self.chunk, crc);
        self.arena.chunks()[self.chunk as usize] = Chunk::Here;
        self.arena.tell();
    }
}

impl Lender for Claim {
    fn landed(&self, crc: Crc32c) {
        Self::landed(self, crc);
    }
}

impl Drop for Claim {
    fn drop(&mut self) {
        let mut chunks = self.arena.chunks();
        let state = &mut chunks[self.chunk as usize];
        if *state == Chunk::Claimed {
            *state = Chunk::Absent;
            drop(chunks);
            self.arena.tell();
        }
    }
}

#[cfg(test)]
mod tests;
