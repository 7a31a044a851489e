//! Memory for the tensors of one blob: a file in memory that is filled once, chunk by chunk, and lent to clients.
#![allow(unsafe_code, reason = "the agent writes through a mapping that others map too")]

use std::{
    fs::{File, OpenOptions},
    io,
    os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd},
    ptr::NonNull,
    sync::{
        Arc, Mutex, MutexGuard, OnceLock, PoisonError,
        atomic::{AtomicBool, AtomicU64, Ordering},
    },
};

use futures::{StreamExt, TryStreamExt, stream};
use memmap2::{Advice, MmapOptions, MmapRaw};
use rustix::fs::{Mode, SealFlags, fchmod, fcntl_add_seals};
use tokio::sync::{Notify, OnceCell};
use weightd_store::io::{BLOCK_BYTES, Buffer, Lender};
use weightd_types::Crc32c;

use super::{arrangement::Arrangement, memory::Provider};
use crate::reading::to_usize;

/// Memory is provided so much at a time, ahead of what fills it.
const STEP: u64 = 64 << 20;

/// Memory for the tensors of one blob.
#[derive(Debug)]
pub(crate) struct Arena {
    name: String,
    arrangement: Arrangement,
    mapping: Arc<MmapRaw>,
    /// What clients are given: open for reading only.
    lent: OwnedFd,
    provider: Provider,
    /// For each step, whether its memory is there.
    steps: Vec<OnceCell<()>>,
    chunks: Mutex<Vec<Chunk>>,
    /// Counts chunks that came, and those that are free again.
    changes: AtomicU64,
    /// Told of each.
    changed: Arc<Notify>,
    /// Checksums of the chunks, once the origin has confirmed them.
    expected: OnceLock<Vec<Crc32c>>,
    is_wrong: AtomicBool,
    /// Bytes that are kept from being swapped.
    locked: AtomicU64,
}

/// How a chunk of the blob stands.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Chunk {
    /// Nobody brings it.
    Absent,
    /// Someone writes it.
    Claimed,
    /// It is here, with this checksum as the blob has it, and never written again.
    Here(Crc32c),
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
        let file = File::from(memory);
        let len = to_usize(arrangement.arena_bytes());
        let mapping = MmapOptions::new().len(len).map_raw(&file)?;
        let _ = mapping.advise(Advice::HugePage);
        fcntl_add_seals(&file, SealFlags::FUTURE_WRITE | SealFlags::GROW | SealFlags::SHRINK)?;
        let absent = vec![Chunk::Absent; arrangement.chunk_count() as usize];
        Self::over(name, arrangement, &file, mapping, provider, absent, changed)
    }

    /// An arena that an earlier agent filled. It was sealed, so it is only lent from here on.
    pub(crate) fn adopt(
        name: String,
        arrangement: Arrangement,
        memory: OwnedFd,
        provider: Provider,
        chunks: &[Crc32c],
        changed: Arc<Notify>,
    ) -> io::Result<Self> {
        let file = File::from(memory);
        let is_right = file.metadata()?.len() == arrangement.arena_bytes()
            && chunks.len() == arrangement.chunk_count() as usize;
        if !is_right {
            return Err(io::Error::other("it has another length"));
        }
        let len = to_usize(arrangement.arena_bytes());
        let lent = read_only(file.as_fd())?;
        let mapping = MmapOptions::new().len(len).map_raw_read_only(&lent)?;
        let here = chunks.iter().copied().map(Chunk::Here).collect();
        let arena = Self::over(name, arrangement, &file, mapping, provider, here, changed)?;
        arena.steps.iter().for_each(|step| drop(step.set(())));
        arena.expect(chunks.to_vec());
        let locked = arena.provider.keep_from_swap(&arena.mapping, 0, len);
        arena.locked.store(locked, Ordering::Relaxed);
        Ok(arena)
    }

    fn over(
        name: String,
        arrangement: Arrangement,
        file: &File,
        mapping: MmapRaw,
        provider: Provider,
        chunks: Vec<Chunk>,
        changed: Arc<Notify>,
    ) -> io::Result<Self> {
        // Whoever gets a descriptor must not open the file anew for more than it was given for.
        fchmod(file, Mode::RUSR)?;
        let lent = read_only(file.as_fd())?;
        let steps = (0..arrangement.arena_bytes().div_ceil(STEP)).map(|_| OnceCell::new()).collect();
        let (changes, chunks) = (AtomicU64::new(0), Mutex::new(chunks));
        let mapping = Arc::new(mapping);
        let (expected, is_wrong, locked) = (OnceLock::new(), AtomicBool::new(false), AtomicU64::new(0));
        Ok(Self {
            name,
            arrangement,
            mapping,
            lent,
            provider,
            steps,
            chunks,
            changes,
            changed,
            expected,
            is_wrong,
            locked,
        })
    }

    /// What it is called, with the keeper too.
    pub(crate) fn name(&self) -> &str {
        &self.name
    }

    pub(crate) fn arrangement(&self) -> &Arrangement {
        &self.arrangement
    }

    /// What clients map.
    pub(crate) fn descriptor(&self) -> BorrowedFd<'_> {
        self.lent.as_fd()
    }

    fn chunks(&self) -> MutexGuard<'_, Vec<Chunk>> {
        self.chunks.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Chunks that are here and were not seen yet; from then on they were.
    pub(crate) fn come_since(&self, seen: &mut [bool]) -> Vec<u32> {
        let chunks = self.chunks();
        let news = chunks.iter().zip(seen).zip(0..).filter_map(|((chunk, seen), number)| {
            let is_news = !*seen && matches!(chunk, Chunk::Here(_));
            *seen |= is_news;
            is_news.then_some(number)
        });
        news.collect()
    }

    /// How a chunk stands.
    pub(crate) fn state(&self, chunk: u32) -> Chunk {
        self.chunks()[chunk as usize]
    }

    /// Checksums of all chunks, once they are here.
    pub(crate) fn checksums(&self) -> Option<Vec<Crc32c>> {
        let crc = |chunk: &Chunk| if let Chunk::Here(crc) = chunk { Some(*crc) } else { None };
        self.chunks().iter().map(crc).collect()
    }

    /// Takes in what the chunks' checksums have to be. What is here is compared now, and what comes later as it comes.
    pub(crate) fn expect(&self, expected: Vec<Crc32c>) {
        let is_like = |(chunk, expected): (&Chunk, &Crc32c)| match chunk {
            Chunk::Here(crc) => crc == expected,
            Chunk::Absent | Chunk::Claimed => true,
        };
        let chunks = self.chunks();
        if chunks.len() != expected.len() || !chunks.iter().zip(&expected).all(is_like) {
            self.is_wrong.store(true, Ordering::Release);
        }
        // Under the lock, so that what lands is compared by one of both; and last, so that nothing wrong is confirmed.
        let _ = self.expected.set(expected);
        drop(chunks);
        self.tell();
    }

    /// Whether it is known what the chunks' checksums have to be.
    pub(crate) fn is_confirmed(&self) -> bool {
        self.expected.get().is_some()
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

    /// Whether what is here is not what was expected.
    pub(crate) fn is_wrong(&self) -> bool {
        self.is_wrong.load(Ordering::Acquire)
    }

    /// Has the memory of a chunk provided, charged to whom it should be.
    pub(crate) async fn provide(&self, chunk: u32) -> Result<(), String> {
        for part in self.arrangement.parts(chunk) {
            let (first, last) = (part.arena / STEP, (part.arena + part.blob.len() - 1) / STEP);
            for step in first..=last {
                self.provide_step(step).await?;
            }
        }
        Ok(())
    }

    /// Has all of its memory provided, from front to back.
    pub(crate) async fn provide_all(&self) -> Result<(), String> {
        // The keeper makes one step while the agent maps the one before.
        let steps = stream::iter(0..self.steps.len() as u64).map(|step| self.provide_step(step));
        steps.buffered(2).try_collect().await
    }

    /// Bytes of memory that were provided, and those that were not yet.
    pub(crate) fn provided(&self) -> (u64, u64) {
        let bytes = self.arrangement.arena_bytes();
        let there = self.steps.iter().filter(|step| step.initialized()).count() as u64 * STEP;
        (there.min(bytes), bytes - there.min(bytes))
    }

    async fn provide_step(&self, step: u64) -> Result<(), String> {
        let cell = &self.steps[usize::try_from(step).expect("there are few steps")];
        let from = step * STEP;
        let bytes = STEP.min(self.arrangement.arena_bytes() - from);
        let provide = async || {
            let locked = self.provider.provide(&self.name, &self.mapping, from, bytes).await?;
            self.locked.fetch_add(locked, Ordering::Relaxed);
            Ok(())
        };
        cell.get_or_try_init(provide).await.copied()
    }
}

impl Drop for Arena {
    fn drop(&mut self) {
        self.provider.unlocked(self.locked.load(Ordering::Relaxed));
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
        let start = NonNull::new(self.arena.mapping.as_mut_ptr().wrapping_add(to_usize(place)));
        let start = start.expect("a mapping is somewhere");
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
            let place = self.arena.mapping.as_mut_ptr().wrapping_add(to_usize(part.arena));
            // SAFETY: parts lie within the arena, and nobody but who has the claim writes there; it was made for writing, as
            // in an adopted arena nothing can be claimed.
            unsafe { std::ptr::copy_nonoverlapping(bytes.as_ptr(), place, bytes.len()) };
        }
    }

    /// Says that all bytes of the chunk are in their place.
    pub(crate) fn landed(&self, crc: Crc32c) {
        let arena = &self.arena;
        let mut chunks = arena.chunks();
        if arena.expected.get().is_some_and(|expected| expected.get(self.chunk as usize) != Some(&crc)) {
            arena.is_wrong.store(true, Ordering::Release);
        }
        chunks[self.chunk as usize] = Chunk::Here(crc);
        drop(chunks);
        arena.tell();
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

/// The same file, open for reading only.
fn read_only(memory: BorrowedFd<'_>) -> io::Result<OwnedFd> {
    let path = format!("/proc/self/fd/{}", memory.as_raw_fd());
    Ok(OpenOptions::new().read(true).open(path)?.into())
}

#[cfg(test)]
mod tests;
