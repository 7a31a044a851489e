//! A fixed number of chunk-sized buffers, which is what bounds the agent's memory whatever a model's size.
//!
//! Every buffer is an anonymous mapping of its own: page aligned, as O_DIRECT and the ring want it, and free until
//! it is first touched. The buffer used last is handed out first, so a small job touches few of them.

use std::{
    fmt, io,
    ops::{Deref, DerefMut},
    sync::{Arc, Mutex, MutexGuard, OnceLock, PoisonError},
};

use memmap2::{Advice, MmapMut};
use tokio::sync::{OwnedSemaphorePermit, Semaphore};
use weightd_types::CHUNK_BYTES;

/// A set of [`Buffer`]s. Clones are handles to the same set.
#[derive(Clone)]
pub struct BufferPool {
    shared: Arc<Shared>,
}

/// Room for one chunk, with a filled part at its front. Goes back to its pool when dropped.
pub struct Buffer {
    /// `None` only while the buffer is dropped.
    memory: Option<MmapMut>,
    /// What goes back into the pool instead of memory that was left to the kernel.
    replacement: OnceLock<MmapMut>,
    index: u32,
    filled: usize,
    pool: Arc<Shared>,
    /// Released after `drop` has put the memory back: fields are dropped after it has run.
    _permit: OwnedSemaphorePermit,
}

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
        Buffer { memory, replacement, index, filled: 0, pool, _permit: permit }
    }
}

impl Buffer {
    /// The most bytes any buffer holds: one chunk.
    #[expect(
        clippy::cast_possible_truncation,
        reason = "8 MiB fits a usize on every machine weightd runs on"
    )]
    pub const CAPACITY: usize = CHUNK_BYTES as usize;

    /// How many bytes are filled.
    pub fn len(&self) -> usize {
        self.filled
    }

    /// Whether nothing is filled.
    pub fn is_empty(&self) -> bool {
        self.filled == 0
    }

    /// How many bytes fit in all: [`Buffer::CAPACITY`].
    pub fn capacity(&self) -> usize {
        Self::CAPACITY
    }

    /// Forgets what is filled.
    pub fn clear(&mut self) {
        self.filled = 0;
    }

    /// Declares the first `len` bytes filled. What was not written since the pool began is whatever an earlier
    /// user of the buffer left there.
    ///
    /// # Panics
    /// When `len` is more than [`Buffer::CAPACITY`].
    pub fn set_len(&mut self, len: usize) {
        assert!(len <= Self::CAPACITY, "{len} bytes do not fit a buffer of {}", Self::CAPACITY);
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

    /// The part that is not filled yet. Call [`Buffer::set_len`] after writing into it.
    pub fn spare_mut(&mut self) -> &mut [u8] {
        let filled = self.filled;
        &mut self.whole_mut()[filled..]
    }

    /// The buffer's place in its pool, from zero; the ring registers it under this number.
    pub fn index(&self) -> u32 {
        self.index
    }

    /// Whether the buffer is one of `pool`'s.
    pub(super) fn belongs_to(&self, pool: &BufferPool) -> bool {
        Arc::ptr_eq(&self.pool, &pool.shared)
    }

    /// Filled or not, all of it.
    pub(super) fn whole(&self) -> &[u8] {
        self.memory.as_deref().expect("a buffer keeps its memory until it is dropped")
    }

    /// Filled or not, all of it.
    pub(super) fn whole_mut(&mut self) -> &mut [u8] {
        self.memory.as_deref_mut().expect("a buffer keeps its memory until it is dropped")
    }

    /// Leaves the memory to the kernel for ever and goes on with fresh memory: the way out for a ring that failed
    /// while the kernel may still write into it.
    pub(super) fn abandon_memory(&mut self) {
        std::mem::forget(self.memory.replace(fresh()));
    }

    /// As [`Buffer::abandon_memory`], of memory that others may be reading: they go on, and the pool gets fresh memory once
    /// the last of them is done.
    pub(super) fn abandon_shared_memory(&self) {
        self.replacement.get_or_init(fresh);
    }
}

impl Drop for Buffer {
    fn drop(&mut self) {
        let Some(mut memory) = self.memory.take() else { return };
        if let Some(fresh) = self.replacement.take() {
            std::mem::forget(std::mem::replace(&mut memory, fresh));
        }
        self.pool.free().push((self.index, memory));
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
        f.debug_struct("Buffer").field("index", &self.index).field("len", &self.filled).finish()
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
        assert_eq!((first.index(), second.index(), pool.in_use()), (0, 1, 2));
        drop(first);
        drop(second);
        assert_eq!(pool.in_use(), 0);
        assert_eq!(pool.acquire().await.index(), 1);
    }

    #[tokio::test]
    async fn an_empty_pool_makes_callers_wait() {
        let pool = BufferPool::new(1).unwrap();
        let held = pool.try_acquire().unwrap();
        assert!(pool.try_acquire().is_none());
        let waiting = tokio::spawn({
            let pool = pool.clone();
            async move { pool.acquire().await.index() }
        });
        tokio::task::yield_now().await;
        assert!(!waiting.is_finished());
        drop(held);
        assert_eq!(waiting.await.unwrap(), 0);
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
}
