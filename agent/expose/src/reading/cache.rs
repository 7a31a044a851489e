//! Chunks that were just read and checked, so that the eight reads of a megabyte each which a chunk is asked for cost
//! one read of the disk. Its memory is its own pool's, and no more.

use std::{
    collections::HashMap,
    pin::pin,
    sync::{
        Arc, Mutex, MutexGuard, PoisonError,
        atomic::{AtomicU64, Ordering},
    },
};

use tokio::sync::{Notify, OnceCell};
use weightd_store::io::{Buffer, BufferPool};
use weightd_types::BlobKey;

use super::{Loaded, Room};

/// A chunk of a blob.
pub(crate) type ChunkKey = (BlobKey, u32);

/// One chunk: empty until someone has read it. Those who want it meanwhile wait for that.
pub(crate) type Cell = OnceCell<Arc<Loaded>>;

/// Checked chunks, the least recently used of which makes room.
#[derive(Debug)]
pub(crate) struct ChunkCache {
    pool: BufferPool,
    chunks: Mutex<HashMap<ChunkKey, Entry>>,
    clock: AtomicU64,
    /// Told when there is one chunk more that could make room.
    filled: Notify,
}

#[derive(Debug)]
struct Entry {
    cell: Arc<Cell>,
    used_at: u64,
}

impl ChunkCache {
    pub(crate) fn new(pool: BufferPool) -> Self {
        Self { pool, chunks: Mutex::default(), clock: AtomicU64::new(0), filled: Notify::new() }
    }

    fn chunks(&self) -> MutexGuard<'_, HashMap<ChunkKey, Entry>> {
        self.chunks.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// How many chunks there is room for.
    pub(crate) fn capacity(&self) -> usize {
        self.pool.count()
    }

    /// A chunk that is here.
    pub(crate) fn get(&self, key: &ChunkKey) -> Option<Arc<Loaded>> {
        let now = self.clock.fetch_add(1, Ordering::Relaxed);
        let mut chunks = self.chunks();
        let entry = chunks.get_mut(key)?;
        entry.used_at = now;
        entry.cell.get().cloned()
    }

    /// A chunk's cell, for someone who will fill it.
    pub(crate) fn cell(&self, key: ChunkKey) -> Arc<Cell> {
        let used_at = self.clock.fetch_add(1, Ordering::Relaxed);
        let mut chunks = self.chunks();
        // Cells that nobody filled and nobody is filling are left of reads that failed.
        if chunks.len() > 4 * self.pool.count() {
            chunks.retain(|_, entry| entry.cell.initialized() || Arc::strong_count(&entry.cell) > 1);
        }
        Arc::clone(&chunks.entry(key).or_insert_with(|| Entry { cell: Arc::default(), used_at }).cell)
    }

    /// Says that a cell was filled.
    pub(crate) fn has_filled(&self) {
        self.filled.notify_waiters();
    }

    /// Forgets the chunk that was used longest ago. Its memory is free once nobody copies from it any more.
    fn drop_oldest(&self) -> bool {
        let mut chunks = self.chunks();
        let filled = chunks.iter().filter(|(_, entry)| entry.cell.initialized());
        let oldest = filled.min_by_key(|(_, entry)| entry.used_at).map(|(key, _)| *key);
        oldest.is_some_and(|key| chunks.remove(&key).is_some())
    }

    /// Forgets everything of a blob: its bytes were wrong.
    pub(crate) fn forget(&self, blob: &BlobKey) {
        self.chunks().retain(|(of, _), _| of != blob);
    }
}

impl Room for ChunkCache {
    /// Memory for one more chunk, in the place of the least recently used one. Waits while all of it is being filled or
    /// copied from.
    async fn buffer(&self) -> Buffer {
        loop {
            let mut filled = pin!(self.filled.notified());
            filled.as_mut().enable();
            if let Some(buffer) = self.pool.try_acquire() {
                return buffer;
            }
            if self.drop_oldest() {
                continue;
            }
            tokio::select! {
                buffer = self.pool.acquire() => return buffer,
                () = filled => {}
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use weightd_types::{BlobId, Crc32c, Layout};

    use super::*;

    fn key(chunk: u32) -> ChunkKey {
        let id: BlobId = "ab".repeat(32).parse().unwrap();
        (BlobKey { id, layout: Layout::Original }, chunk)
    }

    fn loaded(buffer: Buffer) -> Loaded {
        Loaded { crc: Crc32c::of(&buffer), buffer }
    }

    async fn fill(cache: &ChunkCache, chunk: u32) {
        let cell = cache.cell(key(chunk));
        let buffer = cache.buffer().await;
        cell.set(Arc::new(loaded(buffer))).unwrap();
        cache.has_filled();
    }

    #[tokio::test]
    async fn the_chunk_used_longest_ago_makes_room_and_memory_stays_within_its_bound() {
        let cache = ChunkCache::new(BufferPool::new(2).unwrap());
        fill(&cache, 0).await;
        fill(&cache, 1).await;
        assert!(cache.get(&key(0)).is_some());
        fill(&cache, 2).await;
        assert!(cache.get(&key(0)).is_some() && cache.get(&key(2)).is_some());
        assert!(cache.get(&key(1)).is_none());
        assert_eq!(cache.pool.count(), 2);
    }

    /// Whoever waits for memory gets that of a chunk which was still being filled when the waiting began.
    #[tokio::test]
    async fn a_chunk_that_was_filled_meanwhile_makes_room() {
        let cache = &ChunkCache::new(BufferPool::new(1).unwrap());
        let (cell, buffer) = (cache.cell(key(0)), cache.buffer().await);
        let filling = async move {
            tokio::task::yield_now().await;
            cell.set(Arc::new(loaded(buffer))).unwrap();
            // Whoever filled it has given it away by then.
            drop(cell);
            cache.has_filled();
        };
        let (_buffer, ()) = tokio::join!(cache.buffer(), filling);
        assert!(cache.get(&key(0)).is_none());
    }

    #[tokio::test]
    async fn what_is_forgotten_is_gone() {
        let cache = ChunkCache::new(BufferPool::new(2).unwrap());
        fill(&cache, 0).await;
        cache.forget(&key(0).0);
        assert!(cache.get(&key(0)).is_none());
        assert_eq!(cache.pool.in_use(), 0);
    }
}
