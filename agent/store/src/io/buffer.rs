//! A fixed number of chunk-sized buffers, which is what bounds the agent's memory whatever a model's size.
//!
//! Every buffer is an anonymous mapping of its own: page aligned, as O_DIRECT and the ring want it, and free until
//! it is first touched. The buffer used last is handed out first, so a small job touches few of them. A buffer may also be
//! a piece of memory that is someone else's, in which the bytes are to stay.
#![allow(unsafe_code, reason = "memory of others is reached by its address")]

use std::{
    fmt, io,
    ops::{Deref, DerefMut},
    ptr::NonNull,
    sync::{Arc, Mutex, MutexGuard, OnceLock, PoisonError},
};

use memmap2::{Advice, MmapMut};
use tokio::sync::{OwnedSemaphorePermit, Semaphore};
use weightd_types::{CHUNK_BYTES, Crc32c};

use super::stream_copy;

/// A set of [`Buffer`]s. Clones are handles to the same set.
#[derive(Clone)]
pub struct BufferPool {
    shared: Arc<Shared>,
}

/// Room for one chunk, with a filled part at its front. Goes back where it came from when dropped.
pub struct Buffer {
    memory: Memory,
    filled: usize,
}

enum Memory {
    Pooled(Pooled),
    Lent(Lent),
}

/// Memory of a pool.
struct Pooled {
    /// `None` only while the buffer is dropped.
    memory: Option<MmapMut>,
    /// What goes back into the pool instead of memory that was left to the kernel.
    replacement: OnceLock<MmapMut>,
    index: u32,
    pool: Arc<Shared>,
    /// Released after `drop` has put the memory back: fields are dropped after it has run.
    _permit: OwnedSemaphorePermit,
}

/// Who lends memory for a chunk. It is dropped when nobody, the kernel included, uses the memory any more.
pub trait Lender: Send + Sync {
    /// All bytes of the chunk are in the memory; they have this checksum, as the blob has them.
    fn landed(&self, crc: Crc32c);
}

/// Memory of someone else.
struct Lent {
    start: NonNull<u8>,
    len: usize,
    is_awaited: bool,
    /// Keeps it; `None` only while the buffer is dropped.
    owner: Option<Box<dyn Lender>>,
    /// Set when the memory was left to the kernel: then nobody may ever have it again.
    is_abandoned: OnceLock<()>,
}

// SAFETY: whoever lends the memory promises that no other reference to it exists while the buffer does.
unsafe impl Send for Lent {}
// SAFETY: as above; shared, it is only read.
unsafe impl Sync for Lent {}

struct Shared {
    /// A stack: the buffer that came back last is on top.
    free: Mutex<Vec<(u32, MmapMut)>>,
    /// Its waiters are served in the order they came, so no transfer starves.
    permits: Arc<Semaphore>,
    count: usize,
}

impl BufferPool {
    /// Reserves address space for `count` buffers (at least one). Memory is used only as buffers are.
    pub fn new(count: usize) -> io::Result<Self> {
        let count = count.max(1);
        let last = u32::try_from(count - 1).map_err(|_| io::Error::from(io::ErrorKind::InvalidInput))?;
        let free = (0..=last).rev().map(|index| Ok((index, map()?))).collect::<io::Result<Vec<_>>>()?;
        let permits = Arc::new(Semaphore::new(count));
        Ok(Self { shared: Arc::new(Shared { free: Mutex::new(free), permits, count }) })
    }

    /// As many buffers as fit into `bytes`, at least one.
    pub fn with_bytes(bytes: u64) -> io::Result<Self> {
        Self::new(usize::try_from(bytes / CHUNK_BYTES).unwrap_or(usize::MAX))
    }

    /// Waits for a buffer, first come first served. It comes empty.
    pub async fn acquire(&self) -> Buffer {
        let permit = Arc::clone(&self.shared.permits).acquire_owned().await;
        self.take(permit.expect("the pool never closes its semaphore"))
    }

    /// A buffer if one is free now and nobody waits for it.
    pub fn try_acquire(&self) -> Option<Buffer> {
        Some(self.take(Arc::clone(&self.shared.permits).try_acquire_owned().ok()?))
    }

    /// How many buffers there are.
    pub fn count(&self) -> usize {
        self.shared.count
    }

    /// How many buffers are out.
    pub fn in_use(&self) -> usize {
        self.shared.count - self.shared.free().len()
    }

    /// The most memory that all buffers can take.
    pub fn capacity_bytes(&self) -> u64 {
        self.shared.count as u64 * CHUNK_BYTES
    }

    fn take(&self, permit: OwnedSemaphorePermit) -> Buffer {
        let (index, memory) = self.shared.free().pop().expect("there is a free buffer for every free permit");
        let (memory, replacement, pool) = (Some(memory), OnceLock::new(), Arc::clone(&self.shared));
        let pooled = Pooled { memory, replacement, index, pool, _permit: permit };
        Buffer { memory: Memory::Pooled(pooled), filled: 0 }
    }
}

impl Buffer {
    /// The most bytes any buffer holds: one chunk.
    #[expect(
        clippy::cast_possible_truncation,
        reason = "8 MiB fits a usize on every machine weightd runs on"
    )]
    pub const CAPACITY: usize = CHUNK_BYTES as usize;

    /// A buffer over memory of the caller's, where the bytes are to stay. It comes empty.
    ///
    /// # Safety
    /// `len` bytes from `start` on are there as long as `owner` is, and nobody else in this process has a reference to any of
    /// them for as long.
    ///
    /// # Panics
    /// When the memory does not begin on a block, as direct IO needs it, or is longer than [`Buffer::CAPACITY`].
    pub unsafe fn lent(start: NonNull<u8>, len: usize, owner: Box<dyn Lender>) -> Self {
        assert!((start.as_ptr() as u64).is_multiple_of(super::BLOCK_BYTES), "it begins on a block");
        assert!(len <= Self::CAPACITY, "{len} bytes are more than a chunk");
        let lent = Lent { start, len, is_awaited: true, owner: Some(owner), is_abandoned: OnceLock::new() };
        Self { memory: Memory::Lent(lent), filled: 0 }
    }

    /// How many bytes are filled.
    pub fn len(&self) -> usize {
        self.filled
    }

    /// Whether nothing is filled.
    pub fn is_empty(&self) -> bool {
        self.filled == 0
    }

    /// How many bytes fit in all: [`Buffer::CAPACITY`], unless it is someone else's memory.
    pub fn capacity(&self) -> usize {
        match &self.memory {
            Memory::Pooled(_) => Self::CAPACITY,
            Memory::Lent(lent) => lent.len,
        }
    }

    /// Tells who lent the memory that all bytes of a chunk are in it, which have this checksum.
    pub fn landed(&self, crc: Crc32c) {
        if let Memory::Lent(Lent { owner: Some(owner), .. }) = &self.memory {
            owner.landed(crc);
        }
    }

    /// Says that nobody waits yet for what is read into lent memory: what someone waits for is read before it.
    #[must_use]
    pub fn for_later(mut self) -> Self {
        if let Memory::Lent(lent) = &mut self.memory {
            lent.is_awaited = false;
        }
        self
    }

    /// Whether someone waits for what is read into it.
    pub(super) fn is_awaited(&self) -> bool {
        !matches!(&self.memory, Memory::Lent(Lent { is_awaited: false, .. }))
    }

    /// Whether it is someone else's memory.
    pub fn is_lent(&self) -> bool {
        matches!(self.memory, Memory::Lent(_))
    }

    /// Forgets what is filled.
    pub fn clear(&mut self) {
        self.filled = 0;
    }

    /// Declares the first `len` bytes filled. What was not written since the pool began is whatever an earlier
    /// user of the buffer left there.
    ///
    /// # Panics
    /// When `len` is more than [`Buffer::capacity`].
    pub fn set_len(&mut self, len: usize) {
        assert!(len <= self.capacity(), "{len} bytes do not fit a buffer of {}", self.capacity());
        self.filled = len;
    }

    /// Appends as many of `bytes` as there is room for, and says how many that was.
    pub fn extend_from_slice(&mut self, bytes: &[u8]) -> usize {
        let spare = self.spare_mut();
        let taken = spare.len().min(bytes.len());
        spare[..taken].copy_from_slice(&bytes[..taken]);
        self.filled += taken;
        taken
    }

    /// Appends `bytes`, all of which must fit, and gives the checksum of what was summed so far followed by them.
    ///
    /// # Panics
    /// When they do not fit.
    pub fn extend_summed(&mut self, bytes: &[u8], sum: Crc32c) -> Crc32c {
        let spare = &mut self.spare_mut()[..bytes.len()];
        let sum = stream_copy::copy_summed(spare, bytes, sum);
        self.filled += bytes.len();
        sum
    }

    /// The part that is not filled yet. Call [`Buffer::set_len`] after writing into it.
    pub fn spare_mut(&mut self) -> &mut [u8] {
        let filled = self.filled;
        &mut self.whole_mut()[filled..]
    }

    /// The buffer's place in that pool, from zero, if it is one of it; the ring registers it under this number.
    pub(super) fn index_in(&self, pool: &BufferPool) -> Option<u32> {
        match &self.memory {
            Memory::Pooled(pooled) => Arc::ptr_eq(&pooled.pool, &pool.shared).then_some(pooled.index),
            Memory::Lent(_) => None,
        }
    }

    /// Filled or not, all of it.
    pub(super) fn whole(&self) -> &[u8] {
        match &self.memory {
            Memory::Pooled(pooled) => pooled.memory.as_deref().expect(KEPT),
            // SAFETY: whoever lent it promised that it is there, and nobody else's.
            Memory::Lent(lent) => unsafe { std::slice::from_raw_parts(lent.start.as_ptr(), lent.len) },
        }
    }

    /// Filled or not, all of it.
    pub(super) fn whole_mut(&mut self) -> &mut [u8] {
        match &mut self.memory {
            Memory::Pooled(pooled) => pooled.memory.as_deref_mut().expect(KEPT),
            // SAFETY: as for `whole`.
            Memory::Lent(lent) => unsafe { std::slice::from_raw_parts_mut(lent.start.as_ptr(), lent.len) },
        }
    }

    /// Leaves the memory to the kernel for ever, and a pool goes on with fresh memory: the way out for a ring that failed
    /// while the kernel may still write into it.
    pub(super) fn abandon_memory(&mut self) {
        match &mut self.memory {
            Memory::Pooled(pooled) => std::mem::forget(pooled.memory.replace(fresh())),
            Memory::Lent(lent) => drop(lent.is_abandoned.set(())),
        }
    }

    /// As [`Buffer::abandon_memory`], of memory that others may be reading: they go on, and the pool gets fresh memory once
    /// the last of them is done.
    pub(super) fn abandon_shared_memory(&self) {
        match &self.memory {
            Memory::Pooled(pooled) => drop(pooled.replacement.get_or_init(fresh)),
            Memory::Lent(lent) => drop(lent.is_abandoned.set(())),
        }
    }
}

const KEPT: &str = "a buffer keeps its memory until it is dropped";

impl Drop for Pooled {
    fn drop(&mut self) {
        let Some(mut memory) = self.memory.take() else { return };
        if let Some(fresh) = self.replacement.take() {
            std::mem::forget(std::mem::replace(&mut memory, fresh));
        }
        self.pool.free().push((self.index, memory));
    }
}

impl Drop for Lent {
    fn drop(&mut self) {
        if self.is_abandoned.get().is_some() {
            std::mem::forget(self.owner.take());
        }
    }
}

impl Deref for Buffer {
    type Target = [u8];

    fn deref(&self) -> &[u8] {
        &self.whole()[..self.filled]
    }
}

impl DerefMut for Buffer {
    fn deref_mut(&mut self) -> &mut [u8] {
        let filled = self.filled;
        &mut self.whole_mut()[..filled]
    }
}

impl fmt::Debug for Buffer {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Buffer").field("is_lent", &self.is_lent()).field("len", &self.filled).finish()
    }
}

impl fmt::Debug for BufferPool {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("BufferPool").field("count", &self.count()).field("in_use", &self.in_use()).finish()
    }
}

impl Shared {
    fn free(&self) -> MutexGuard<'_, Vec<(u32, MmapMut)>> {
        self.free.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Memory for one buffer, in huge pages where the kernel has them: a device takes a limited number of segments in a
/// request, and with pages of 4 KiB that halved the measured speed of 8 MiB transfers.
fn map() -> io::Result<MmapMut> {
    let memory = MmapMut::map_anon(Buffer::CAPACITY)?;
    if let Err(error) = memory.advise(Advice::HugePage) {
        tracing::debug!(%error, "buffers get small pages");
    }
    Ok(memory)
}

/// Memory in place of what a failed ring left to the kernel.
fn fresh() -> MmapMut {
    map().expect("a mapping of 8 MiB is refused only when the process has run out of addresses")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn buffers_come_back_and_the_last_one_used_is_handed_out_first() {
        let pool = BufferPool::new(3).unwrap();
        let first = pool.acquire().await;
        let second = pool.acquire().await;
        let indices = [&first, &second].map(|buffer| buffer.index_in(&pool));
        assert_eq!((indices, pool.in_use()), ([Some(0), Some(1)], 2));
        drop(first);
        drop(second);
        assert_eq!(pool.in_use(), 0);
        assert_eq!(pool.acquire().await.index_in(&pool), Some(1));
    }

    #[tokio::test]
    async fn an_empty_pool_makes_callers_wait() {
        let pool = BufferPool::new(1).unwrap();
        let held = pool.try_acquire().unwrap();
        assert!(pool.try_acquire().is_none());
        let waiting = tokio::spawn({
            let pool = pool.clone();
            async move { pool.acquire().await.index_in(&pool) }
        });
        tokio::task::yield_now().await;
        assert!(!waiting.is_finished());
        drop(held);
        assert_eq!(waiting.await.unwrap(), Some(0));
    }

    #[test]
    fn a_buffer_fills_up_to_its_capacity_and_is_page_aligned() {
        let pool = BufferPool::with_bytes(3 * CHUNK_BYTES + 5).unwrap();
        assert_eq!(pool.capacity_bytes(), 3 * CHUNK_BYTES);
        let mut buffer = pool.try_acquire().unwrap();
        assert_eq!(buffer.whole().as_ptr() as usize % 4096, 0);
        buffer.set_len(Buffer::CAPACITY - 3);
        assert_eq!(buffer.extend_from_slice(b"abcdef"), 3);
        assert_eq!(&buffer[Buffer::CAPACITY - 3..], b"abc");
        buffer.clear();
        assert!(buffer.is_empty());
    }

    impl Lender for Arc<()> {
        fn landed(&self, _: Crc32c) {}
    }

    #[test]
    fn lent_memory_is_filled_in_place_and_given_back() {
        let mut memory = MmapMut::map_anon(2 * 4096).unwrap();
        let owner = Arc::new(());
        let lend = |memory: &mut MmapMut| {
            let start = NonNull::new(memory.as_mut_ptr()).unwrap();
            // SAFETY: the mapping outlives the buffers of this test, and is not looked at meanwhile.
            unsafe { Buffer::lent(start, 4096, Box::new(Arc::clone(&owner))) }
        };
        let mut buffer = lend(&mut memory);
        assert_eq!((buffer.capacity(), buffer.extend_from_slice(&[7; 5000])), (4096, 4096));
        assert_eq!(Arc::strong_count(&owner), 2);
        drop(buffer);
        assert_eq!(Arc::strong_count(&owner), 1);
        assert_eq!((memory[4095], memory[4096]), (7, 0));
        lend(&mut memory).abandon_memory();
        assert_eq!(Arc::strong_count(&owner), 2, "the kernel may still write there");
    }
}
