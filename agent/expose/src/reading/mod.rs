//! Bytes for readers: a chunk at a time, compared with its checksum, wherever it has to come from.

mod ahead;
mod cache;

use std::{
    collections::HashMap,
    future::Future,
    pin::Pin,
    sync::{Arc, Mutex, PoisonError},
};

use futures::future::{join_all, try_join_all};
use tokio::time::{Instant, timeout_at};
use weightd_store::{
    Store, StoreError, StoredBlob,
    io::{Buffer, BufferPool},
};
use weightd_types::{BlobKey, ByteRange, CHUNK_BYTES, SnapshotKey};

use crate::{
    Config, Metrics,
    shown::{Condition, Shown},
};
use ahead::Ahead;
use cache::ChunkCache;

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
}

/// Bytes of a file, in chunks that follow each other.
#[derive(Debug)]
pub(crate) struct Slices {
    range: ByteRange,
    chunks: Vec<Arc<Buffer>>,
}

impl Slices {
    /// Calls `take` with all bytes in one piece, copied only where they lie in two chunks.
    pub(crate) fn with<T>(&self, take: impl FnOnce(&[u8]) -> T) -> T {
        let base = self.range.start / CHUNK_BYTES * CHUNK_BYTES;
        let (from, to) = (to_usize(self.range.start - base), to_usize(self.range.end - base));
        match self.chunks.as_slice() {
            [] => take(&[]),
            [chunk] => take(&chunk[from..to]),
            [first, between @ .., last] => {
                let mut bytes = Vec::with_capacity(to - from);
                bytes.extend_from_slice(&first[from..]);
                between.iter().for_each(|chunk| bytes.extend_from_slice(chunk));
                bytes.extend_from_slice(&last[..to - (between.len() + 1) * Buffer::CAPACITY]);
                take(&bytes)
            }
        }
    }
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
        }
    }

    /// A range that needs no waiting.
    pub(crate) fn at_once(&self, shown: &Shown, position: usize, range: ByteRange) -> Option<Slices> {
        if shown.is_stopped() {
            return None;
        }
        let blob = shown.blob(position);
        shown.mark_read(position);
        let chunks: Option<Vec<_>> = chunks_of(range).map(|chunk| self.cache.get(&(blob, chunk))).collect();
        Some(Slices { range, chunks: chunks? })
    }

    /// A range, however long it takes up to the configured limit. The error is for people.
    pub(crate) async fn read(
        &self,
        shown: &Shown,
        position: usize,
        range: ByteRange,
    ) -> Result<Slices, String> {
        let (snapshot, blob) = (shown.key(), shown.blob(position));
        shown.mark_read(position);
        if shown.is_stopped() {
            return Err(shown.last_failure().unwrap_or_else(|| "the volume is stopped".to_owned()));
        }
        let deadline = Instant::now() + self.config.read_timeout;
        let chunks = chunks_of(range)
            .map(|chunk| self.chunk(shown, Target { snapshot, blob, chunk, range }, deadline));
        Ok(Slices { range, chunks: try_join_all(chunks).await? })
    }

    /// Has what follows a chunk ready, as far as it is on this node, for a reader who goes through a file in order.
    pub(crate) async fn read_ahead(&self, shown: &Shown, position: usize, chunk: u32) {
        let (snapshot, blob) = (shown.key(), shown.blob(position));
        let Some(length) = shown.tree.lengths.get().map(|lengths| lengths[position]) else { return };
        let follows = chunks_of(ByteRange::new(0, length)).skip(chunk as usize + 1);
        let follows = follows.take(self.ahead.chunks(blob, self.cache.capacity()));
        let deadline = Instant::now() + self.config.read_timeout;
        let load = |chunk: u32| {
            let range = ByteRange::at(u64::from(chunk) * CHUNK_BYTES, CHUNK_BYTES);
            self.chunk(shown, Target { snapshot, blob, chunk, range }, deadline)
        };
        // What fails is tried again when it is read, and then someone is told.
        join_all(follows.filter(|chunk| self.is_here(&blob, *chunk)).map(load)).await;
    }

    fn is_here(&self, blob: &BlobKey, chunk: u32) -> bool {
        self.store.arriving(blob).map_or_else(|| self.store.has_blob(blob), |partial| partial.can_read(chunk))
    }

    async fn chunk(&self, shown: &Shown, target: Target, deadline: Instant) -> Result<Arc<Buffer>, String> {
        let cell = self.cache.cell((target.blob, target.chunk));
        let load = cell.get_or_try_init(async || Ok(Arc::new(self.load(shown, target).await?)));
        match timeout_at(deadline, load).await {
            Ok(loaded) => loaded.cloned(),
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
                self.demand(target);
                tokio::select! {
                    () = advanced => {}
                    failed = Self::failed(&mut condition) => return Err(failed),
                }
            } else if let Some(blob) = self.stored(target.blob).await? {
                return self.load_stored(target, &blob).await;
            } else {
                self.demand(target);
                tokio::select! {
                    () = begun => {}
                    failed = Self::failed(&mut condition) => return Err(failed),
                }
            }
        }
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
        self.demands.repair(target.snapshot, target.blob, target.chunk).await?;
        let (buffer, good) =
            blob.check_chunk(target.chunk, self.cache.buffer().await).await.map_err(|error| text(&error))?;
        if good { Ok(buffer) } else { Err("a chunk is damaged on disk, and stays so".to_owned()) }
    }

    async fn stored(&self, key: BlobKey) -> Result<Option<Arc<StoredBlob>>, String> {
        let known = self.stored.lock().unwrap_or_else(PoisonError::into_inner).get(&key).cloned();
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
        self.stored.lock().unwrap_or_else(PoisonError::into_inner).insert(key, Arc::clone(&blob));
        Ok(Some(blob))
    }

    /// Forgets a blob whose bytes were wrong, or that nobody reads any more.
    pub(crate) fn forget(&self, blob: &BlobKey) {
        self.cache.forget(blob);
        self.stored.lock().unwrap_or_else(PoisonError::into_inner).remove(blob);
    }
}

fn text(error: &StoreError) -> String {
    error.to_string()
}

#[expect(clippy::cast_possible_truncation, reason = "32 bits count 32 PiB of chunks")]
fn chunks_of(range: ByteRange) -> impl Iterator<Item = u32> {
    (range.start / CHUNK_BYTES..range.end.div_ceil(CHUNK_BYTES)).map(|chunk| chunk as u32)
}

#[expect(clippy::cast_possible_truncation, reason = "only 64-bit targets are supported")]
fn to_usize(len: u64) -> usize {
    len as usize
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn bytes_of_several_chunks_come_in_one_piece_and_no_others() {
        let pool = BufferPool::new(3).unwrap();
        let byte = |at: u64| (at * 31 / 7).to_le_bytes()[0];
        let chunk = |number: u64| {
            let mut buffer = pool.try_acquire().unwrap();
            let bytes: Vec<u8> = (number * CHUNK_BYTES..(number + 1) * CHUNK_BYTES).map(byte).collect();
            buffer.extend_from_slice(&bytes);
            Arc::new(buffer)
        };
        let chunks = [chunk(1), chunk(2), chunk(3)];
        for (start, end) in
            [(5, 9), (0, CHUNK_BYTES), (CHUNK_BYTES - 3, CHUNK_BYTES + 2), (7, 3 * CHUNK_BYTES - 7)]
        {
            let range = ByteRange::new(CHUNK_BYTES + start, CHUNK_BYTES + end);
            let count = to_usize(end.div_ceil(CHUNK_BYTES));
            let slices = Slices { range, chunks: chunks[..count].to_vec() };
            let expected: Vec<u8> = (range.start..range.end).map(byte).collect();
            assert!(slices.with(|bytes| bytes == expected), "{range}");
        }
        let nothing = Slices { range: ByteRange::new(3, 3), chunks: Vec::new() };
        assert!(nothing.with(<[u8]>::is_empty));
    }
}
