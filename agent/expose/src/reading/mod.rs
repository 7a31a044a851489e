//! Bytes for readers: a chunk at a time, compared with its checksum, wherever it has to come from.

mod ahead;
mod cache;
mod chunks;

use std::{
    future::Future,
    ops::{Deref, Range},
    pin::Pin,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
};

use futures::future::join_all;
use tokio::time::{Instant, timeout_at};
use weightd_store::io::BufferPool;
use weightd_types::{BlobKey, ByteRange, CHUNK_BYTES, SnapshotKey};

use crate::{Config, handoff::Refusal, shown::Shown};
use ahead::Ahead;
pub(crate) use cache::ChunkCache;
pub(crate) use chunks::{Chunks, Loaded, Room, Target};

/// What readers ask of whoever brings bytes: the one thing that flows against the stream.
pub trait Demands: std::fmt::Debug + Send + Sync {
    /// Someone is reading there, and it is not here. Must not block. May be said again.
    fn demand(&self, snapshot: SnapshotKey, blob: BlobKey, range: ByteRange);

    /// Something of a snapshot is missing that nobody waits for: it comes in its turn, if anything does. Must not block. May be said
    /// again.
    fn keep_coming(&self, snapshot: SnapshotKey);

    /// Someone waits for all of a file. Must not block. May be said again.
    fn prefer(&self, snapshot: SnapshotKey, blob: BlobKey);

    /// Someone takes what comes in its order, and has little room for what comes before its turn, for as long as they keep that.
    fn follow(&self) -> Arc<()>;

    /// A stored chunk is not what was recorded: brings right bytes, or says why not.
    fn repair(
        &self,
        snapshot: SnapshotKey,
        blob: BlobKey,
        chunk: u32,
    ) -> Pin<Box<dyn Future<Output = Result<(), String>> + Send + '_>>;

    /// The header of a safetensors object that has not begun to arrive.
    fn header(
        &self,
        snapshot: SnapshotKey,
        blob: BlobKey,
    ) -> Pin<Box<dyn Future<Output = Result<bytes::Bytes, Refusal>> + Send + '_>>;

    /// Finds a source's snapshot, or one by its id, for root on this node, and brings what is missing of it.
    fn bring<'s>(
        &'s self,
        source: &'s str,
    ) -> Pin<Box<dyn Future<Output = Result<Brought, Refusal>> + Send + 's>>;
}

/// A snapshot that is brought for someone.
#[derive(Debug)]
pub struct Brought {
    /// Which.
    pub key: SnapshotKey,
    /// Whatever has to stay for as long as it is wanted.
    pub held: Box<dyn std::any::Any + Send + Sync>,
}

/// Reads files of snapshots that are shown.
#[derive(Debug)]
pub(crate) struct Reader {
    chunks: Arc<Chunks>,
    cache: ChunkCache,
    ahead: Ahead,
    config: Config,
}

/// Bytes of a file, for a reader.
#[derive(Debug)]
pub(crate) enum Bytes {
    /// Part of one chunk.
    Within(Arc<Loaded>, Range<usize>),
    /// Parts of several, copied: who waits for one chunk must not hold another, or readers wait for each other's memory.
    Copied(Vec<u8>),
}

impl Deref for Bytes {
    type Target = [u8];

    fn deref(&self) -> &[u8] {
        match self {
            Self::Within(chunk, range) => &chunk.buffer[range.clone()],
            Self::Copied(bytes) => bytes,
        }
    }
}

/// The part of a range that lies in a chunk.
fn within(range: ByteRange, chunk: u32) -> Range<usize> {
    let base = u64::from(chunk) * CHUNK_BYTES;
    let start = range.start.saturating_sub(base);
    let end = (range.end - base).min(CHUNK_BYTES);
    to_usize(start)..to_usize(end)
}

impl Reader {
    pub(crate) fn new(chunks: Arc<Chunks>, pool: BufferPool, config: Config) -> Self {
        Self { chunks, cache: ChunkCache::new(pool), ahead: Ahead::default(), config }
    }

    /// A range that needs no waiting.
    pub(crate) fn at_once(&self, shown: &Shown, position: usize, range: ByteRange) -> Option<Bytes> {
        if shown.is_stopped() {
            return None;
        }
        let blob = shown.blob(position);
        shown.mark_read(position);
        let mut numbers = chunks_of(range);
        let (first, last) = (numbers.next()?, numbers.next_back());
        let Some(last) = last else {
            return Some(Bytes::Within(self.cache.get(&(blob, first))?, within(range, first)));
        };
        let mut bytes = Vec::with_capacity(to_usize(range.len()));
        for chunk in first..=last {
            bytes.extend_from_slice(&self.cache.get(&(blob, chunk))?.buffer[within(range, chunk)]);
        }
        Some(Bytes::Copied(bytes))
    }

    /// A range, however long it takes up to the configured limit. The error is for people.
    pub(crate) async fn read(
        &self,
        shown: &Shown,
        position: usize,
        range: ByteRange,
    ) -> Result<Bytes, String> {
        let (snapshot, blob) = (shown.key(), shown.blob(position));
        shown.mark_read(position);
        if shown.is_stopped() {
            return Err(shown.last_failure().unwrap_or_else(|| "the volume is stopped".to_owned()));
        }
        let deadline = Instant::now() + self.config.read_timeout;
        let chunk = |chunk| self.chunk(shown, Target::now(snapshot, blob, chunk, range), deadline);
        let mut numbers = chunks_of(range);
        match (numbers.next(), numbers.next_back()) {
            (None, _) => Ok(Bytes::Copied(Vec::new())),
            (Some(only), None) => Ok(Bytes::Within(chunk(only).await?, within(range, only))),
            (Some(first), Some(last)) => {
                let mut bytes = Vec::with_capacity(to_usize(range.len()));
                for number in first..=last {
                    bytes.extend_from_slice(&chunk(number).await?.buffer[within(range, number)]);
                }
                Ok(Bytes::Copied(bytes))
            }
        }
    }

    /// Has what follows a chunk ready, as far as it is on this node, for a reader who goes through a file in order.
    pub(crate) async fn read_ahead(&self, shown: &Shown, position: usize, chunk: u32) {
        let (snapshot, blob) = (shown.key(), shown.blob(position));
        let length = shown.tree.length(position);
        let follows = chunks_of(ByteRange::new(0, length)).skip(chunk as usize + 1);
        let follows = follows.take(self.ahead.chunks(blob, self.cache.capacity()));
        let deadline = Instant::now() + self.config.read_timeout;
        let load = async |chunk: u32| {
            let range = ByteRange::at(u64::from(chunk) * CHUNK_BYTES, CHUNK_BYTES);
            let loaded = self.chunk(shown, Target::now(snapshot, blob, chunk, range), deadline).await;
            // What failed is tried again when it is read, and then someone is told.
            drop(loaded);
        };
        join_all(follows.filter(|chunk| self.chunks.is_here(&blob, *chunk)).map(load)).await;
    }

    async fn chunk(&self, shown: &Shown, target: Target, deadline: Instant) -> Result<Arc<Loaded>, String> {
        let cell = self.cache.cell((target.blob, target.chunk));
        let load = cell.get_or_try_init(async || {
            Ok(Arc::new(self.chunks.load(shown.condition(), target, &self.cache).await?))
        });
        match timeout_at(deadline, load).await {
            Ok(loaded) => {
                self.cache.has_filled();
                loaded.cloned()
            }
            Err(_) => {
                let limit = self.config.read_timeout.as_secs();
                Err(shown
                    .last_failure()
                    .unwrap_or_else(|| format!("its bytes did not arrive within {limit} s")))
            }
        }
    }

    /// Forgets a blob whose bytes were wrong, or that nobody reads any more.
    pub(crate) fn forget(&self, blob: &BlobKey) {
        self.cache.forget(blob);
        self.chunks.close(blob);
    }

    /// Where chunks come from.
    pub(crate) fn chunks(&self) -> &Arc<Chunks> {
        &self.chunks
    }
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

#[expect(clippy::cast_possible_truncation, reason = "32 bits count 32 PiB of chunks")]
pub(crate) fn chunks_of(range: ByteRange) -> Range<u32> {
    if range.is_empty() {
        return 0..0;
    }
    (range.start / CHUNK_BYTES) as u32..range.end.div_ceil(CHUNK_BYTES) as u32
}

#[expect(clippy::cast_possible_truncation, reason = "only 64-bit targets are supported")]
pub(crate) fn to_usize(len: u64) -> usize {
    len as usize
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_range_is_cut_where_chunks_end() {
        let range = ByteRange::new(CHUNK_BYTES - 3, 2 * CHUNK_BYTES + 2);
        let capacity = weightd_store::io::Buffer::CAPACITY;
        let parts: Vec<_> = chunks_of(range).map(|chunk| within(range, chunk)).collect();
        assert_eq!(parts, [capacity - 3..capacity, 0..capacity, 0..2]);
        let range = ByteRange::new(CHUNK_BYTES + 5, CHUNK_BYTES + 9);
        assert_eq!((chunks_of(range), within(range, 1)), (1..2, 5..9));
        assert_eq!(chunks_of(ByteRange::new(7, 7)).count(), 0);
    }
}
