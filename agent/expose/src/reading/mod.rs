//! Bytes for readers: a chunk at a time, compared with its checksum, wherever it has to come from.

mod ahead;
mod cache;

use std::{
    collections::HashMap,
    future::Future,
    ops::{Deref, Range},
    pin::Pin,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::Duration,
};

use futures::future::join_all;
use tokio::time::{Instant, MissedTickBehavior, interval, timeout_at};
use weightd_store::{
    PartialBlob, Store, StoreError, StoredBlob,
    io::{Buffer, BufferPool},
};
use weightd_types::{BlobKey, ByteRange, CHUNK_BYTES, SnapshotKey};

use crate::{
    Config, Metrics,
    shown::{Condition, Shown},
};
use ahead::Ahead;
use cache::ChunkCache;

/// How often a reader who waits says so.
const DEMAND_AGAIN: Duration = Duration::from_secs(1);

/// What readers ask of whoever brings bytes: the one thing that flows against the stream.
pub trait Demands: std::fmt::Debug + Send + Sync {
    /// Someone is reading there, and it is not here. Must not block. May be said again.
    fn demand(&self, snapshot: SnapshotKey, blob: BlobKey, range: ByteRange);

    /// A stored chunk is not what was recorded: brings right bytes, or says why not.
    fn repair(
        &self,
        snapshot: SnapshotKey,
        blob: BlobKey,
        chunk: u32,
    ) -> Pin<Box<dyn Future<Output = Result<(), String>> + Send + '_>>;
}

/// Reads files of snapshots that are shown.
#[derive(Debug)]
pub(crate) struct Reader {
    store: Store,
    cache: ChunkCache,
    ahead: Ahead,
    demands: Arc<dyn Demands>,
    config: Config,
    metrics: Metrics,
    /// Complete blobs that were read through the agent, open.
    stored: Mutex<HashMap<BlobKey, Arc<StoredBlob>>>,
    /// Interrupted blobs that were read while nobody brought the rest, open.
    interrupted: Mutex<HashMap<BlobKey, Arc<PartialBlob>>>,
}

/// Bytes of a file, for a reader.
#[derive(Debug)]
pub(crate) enum Bytes {
    /// Part of one chunk.
    Within(Arc<Buffer>, Range<usize>),
    /// Parts of several, copied: who waits for one chunk must not hold another, or readers wait for each other's memory.
    Copied(Vec<u8>),
}

impl Deref for Bytes {
    type Target = [u8];

    fn deref(&self) -> &[u8] {
        match self {
            Self::Within(chunk, range) => &chunk[range.clone()],
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

/// A file of a snapshot, as far as reading it goes.
#[derive(Debug, Clone, Copy)]
struct Target {
    snapshot: SnapshotKey,
    blob: BlobKey,
    chunk: u32,
    range: ByteRange,
}

impl Reader {
    pub(crate) fn new(
        store: Store,
        pool: BufferPool,
        demands: Arc<dyn Demands>,
        config: Config,
        metrics: Metrics,
    ) -> Self {
        Self {
            store,
            cache: ChunkCache::new(pool),
            ahead: Ahead::default(),
            demands,
            config,
            metrics,
            stored: Mutex::default(),
            interrupted: Mutex::default(),
        }
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
            bytes.extend_from_slice(&self.cache.get(&(blob, chunk))?[within(range, chunk)]);
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
        let chunk = |chunk| self.chunk(shown, Target { snapshot, blob, chunk, range }, deadline);
        let mut numbers = chunks_of(range);
        match (numbers.next(), numbers.next_back()) {
            (None, _) => Ok(Bytes::Copied(Vec::new())),
            (Some(only), None) => Ok(Bytes::Within(chunk(only).await?, within(range, only))),
            (Some(first), Some(last)) => {
                let mut bytes = Vec::with_capacity(to_usize(range.len()));
                for number in first..=last {
                    bytes.extend_from_slice(&chunk(number).await?[within(range, number)]);
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
            let loaded = self.chunk(shown, Target { snapshot, blob, chunk, range }, deadline).await;
            // What failed is tried again when it is read, and then someone is told.
            drop(loaded);
        };
        join_all(follows.filter(|chunk| self.is_here(&blob, *chunk)).map(load)).await;
    }

    fn is_here(&self, blob: &BlobKey, chunk: u32) -> bool {
        self.store.arriving(blob).map_or_else(|| self.store.has_blob(blob), |partial| partial.can_read(chunk))
    }

    async fn chunk(&self, shown: &Shown, target: Target, deadline: Instant) -> Result<Arc<Buffer>, String> {
        let cell = self.cache.cell((target.blob, target.chunk));
        let load = cell.get_or_try_init(async || Ok(Arc::new(self.load(shown, target).await?)));
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

    /// Waits for a chunk to be here, wherever it comes from, and reads it.
    async fn load(&self, shown: &Shown, target: Target) -> Result<Buffer, String> {
        let mut condition = shown.condition();
        // Saying it once is enough, but for a request that failed since, whose bytes are no longer urgent.
        let mut demands = interval(DEMAND_AGAIN);
        demands.set_missed_tick_behavior(MissedTickBehavior::Delay);
        loop {
            // All made before looking, so that nothing is missed in between.
            let begun = self.store.begun();
            let mut begun = std::pin::pin!(begun);
            begun.as_mut().enable();
            if let Condition::Stopped(why) = &*condition.borrow_and_update() {
                return Err(why.to_string());
            }
            if let Some(partial) = self.store.arriving(&target.blob) {
                let advanced = partial.advanced();
                let mut advanced = std::pin::pin!(advanced);
                advanced.as_mut().enable();
                if partial.can_read(target.chunk) {
                    let buffer = self.cache.buffer().await;
                    let read =
                        partial.read_chunk(target.chunk, buffer).await.map_err(|error| text(&error))?;
                    if let Some(buffer) = read {
                        self.metrics.served_chunks.inc();
                        return Ok(buffer);
                    }
                }
                tokio::select! {
                    () = advanced => {}
                    _ = demands.tick() => self.demand(target),
                    failed = Self::failed(&mut condition) => return Err(failed),
                }
            } else if let Some(blob) = self.stored(target.blob).await? {
                return self.load_stored(target, &blob).await;
            } else if !self.take_up_interrupted(target.blob).await? {
                tokio::select! {
                    () = begun => {}
                    _ = demands.tick() => self.demand(target),
                    failed = Self::failed(&mut condition) => return Err(failed),
                }
            }
        }
    }

    /// Has what is here of an interrupted blob found as if it was arriving, although the origin may be away. Says whether
    /// there is any; not twice of one blob.
    async fn take_up_interrupted(&self, key: BlobKey) -> Result<bool, String> {
        let is_known = || lock(&self.interrupted).contains_key(&key);
        if is_known() {
            return Ok(false);
        }
        let Some(partial) = self.store.take_up_recorded(key).await.map_err(|error| text(&error))? else {
            return Ok(false);
        };
        lock(&self.interrupted).insert(key, partial);
        Ok(true)
    }

    fn demand(&self, target: Target) {
        self.metrics.demands.inc();
        self.demands.demand(target.snapshot, target.blob, target.range);
    }

    /// Waits for a failure that waiting longer does not mend.
    async fn failed(condition: &mut tokio::sync::watch::Receiver<Condition>) -> String {
        loop {
            if condition.changed().await.is_err() {
                return "the volume is gone".to_owned();
            }
            match &*condition.borrow_and_update() {
                Condition::Stopped(why) | Condition::Failed { why, is_lasting: true } => {
                    return why.to_string();
                }
                Condition::Failed { .. } | Condition::Fine => {}
            }
        }
    }

    async fn load_stored(&self, target: Target, blob: &StoredBlob) -> Result<Buffer, String> {
        let (buffer, good) =
            blob.check_chunk(target.chunk, self.cache.buffer().await).await.map_err(|error| text(&error))?;
        if good {
            self.metrics.served_chunks.inc();
            return Ok(buffer);
        }
        drop(buffer);
        tracing::warn!(path = %blob.path().display(), chunk = target.chunk, "a stored chunk rotted; fetching it again");
        let repaired = self.demands.repair(target.snapshot, target.blob, target.chunk).await;
        // What is open may not be the blob any more: the next read opens it anew, or demands what is missing.
        self.close(&target.blob);
        repaired?;
        let (buffer, good) =
            blob.check_chunk(target.chunk, self.cache.buffer().await).await.map_err(|error| text(&error))?;
        if good {
            Ok(buffer)
        } else {
            Err("a chunk is damaged on disk; the next read looks again".to_owned())
        }
    }

    async fn stored(&self, key: BlobKey) -> Result<Option<Arc<StoredBlob>>, String> {
        let known = lock(&self.stored).get(&key).cloned();
        if known.is_some() {
            return Ok(known);
        }
        let Some(blob) = self.store.stored_blob(key).await.map_err(|error| text(&error))? else {
            return Ok(None);
        };
        if self.store.is_cached(&key) {
            blob.read_cached();
        }
        let blob = Arc::new(blob);
        lock(&self.interrupted).remove(&key);
        lock(&self.stored).insert(key, Arc::clone(&blob));
        Ok(Some(blob))
    }

    /// Forgets a blob whose bytes were wrong, or that nobody reads any more.
    pub(crate) fn forget(&self, blob: &BlobKey) {
        self.cache.forget(blob);
        self.close(blob);
    }

    /// Lets go of all files.
    pub(crate) fn close_all(&self) {
        lock(&self.interrupted).clear();
        lock(&self.stored).clear();
    }

    /// Lets go of a blob's file: the blob is in another one, or will be.
    pub(crate) fn close(&self, blob: &BlobKey) {
        lock(&self.interrupted).remove(blob);
        lock(&self.stored).remove(blob);
    }
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

fn text(error: &StoreError) -> String {
    error.to_string()
}

#[expect(clippy::cast_possible_truncation, reason = "32 bits count 32 PiB of chunks")]
fn chunks_of(range: ByteRange) -> Range<u32> {
    if range.is_empty() {
        return 0..0;
    }
    (range.start / CHUNK_BYTES) as u32..range.end.div_ceil(CHUNK_BYTES) as u32
}

#[expect(clippy::cast_possible_truncation, reason = "only 64-bit targets are supported")]
fn to_usize(len: u64) -> usize {
    len as usize
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_range_is_cut_where_chunks_end() {
        let range = ByteRange::new(CHUNK_BYTES - 3, 2 * CHUNK_BYTES + 2);
        let capacity = Buffer::CAPACITY;
        let parts: Vec<_> = chunks_of(range).map(|chunk| within(range, chunk)).collect();
        assert_eq!(parts, [capacity - 3..capacity, 0..capacity, 0..2]);
        let range = ByteRange::new(CHUNK_BYTES + 5, CHUNK_BYTES + 9);
        assert_eq!((chunks_of(range), within(range, 1)), (1..2, 5..9));
        assert_eq!(chunks_of(ByteRange::new(7, 7)).count(), 0);
    }
}
