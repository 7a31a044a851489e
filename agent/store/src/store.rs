//! The handle that everything else in this room hangs on.

use std::{
    collections::HashMap,
    fs::File,
    sync::{
        Arc, Mutex, MutexGuard, PoisonError,
        atomic::{AtomicBool, Ordering},
        mpsc,
    },
    time::{SystemTime, UNIX_EPOCH},
};

use tokio::sync::{Notify, broadcast};
use weightd_types::BlobKey;

use crate::{
    Config, Metrics, PartialBlob, StoreError,
    catalog::Catalog,
    commit::{Committer, Order},
    index::Index,
    io::{BufferPool, IoEngine},
    paths::Paths,
    usage::Usage,
};

/// An open store. Clones share it; the directory stays locked until the last clone is gone.
#[derive(Debug, Clone)]
pub struct Store {
    pub(crate) inner: Arc<Inner>,
}

#[derive(Debug)]
pub(crate) struct Inner {
    pub(crate) config: Config,
    pub(crate) paths: Paths,
    pub(crate) engine: Arc<dyn IoEngine>,
    pub(crate) pool: BufferPool,
    pub(crate) index: Arc<Index>,
    pub(crate) catalog: Mutex<Catalog>,
    pub(crate) usage: Mutex<Usage>,
    /// Blobs that are arriving: recorded now and then, and left alone by eviction and garbage collection.
    pub(crate) active: Mutex<HashMap<BlobKey, Arc<PartialBlob>>>,
    /// Told when a blob begins to arrive.
    pub(crate) begun: Notify,
    /// Told of blobs that are thrown away.
    pub(crate) discarded: broadcast::Sender<BlobKey>,
    /// Held while a snapshot's directory is built: two transfers may end with the same one.
    pub(crate) publishing: Mutex<()>,
    /// Held while the set of snapshots changes against the set of blobs, so that a blob that is about to be removed is
    /// not taken for present by a snapshot that begins to want it, and room is not promised twice.
    pub(crate) changing: Mutex<()>,
    /// Held while a blob's file is opened or made: a caller that went away may still be at it.
    pub(crate) beginning: Mutex<()>,
    /// Held while chunks are recorded, so that nothing is recorded of a blob that was discarded.
    pub(crate) recording: Mutex<()>,
    pub(crate) closed: AtomicBool,
    pub(crate) metrics: Metrics,
    pub(crate) committer: Mutex<Option<Committer>>,
    pub(crate) orders: mpsc::SyncSender<Order>,
    /// Its lock ends with it.
    pub(crate) _lock: File,
}

impl Store {
    /// Memory for chunks on their way between network and disk.
    pub fn pool(&self) -> &BufferPool {
        &self.inner.pool
    }

    /// What the operator decided.
    pub fn config(&self) -> &Config {
        &self.inner.config
    }

    /// How it touches the disk.
    pub fn engine(&self) -> &Arc<dyn IoEngine> {
        &self.inner.engine
    }

    /// What it counts.
    pub fn metrics(&self) -> &Metrics {
        &self.inner.metrics
    }

    /// Records what is written, stops the threads, and makes the index durable. Later calls fail with
    /// [`StoreError::Closed`].
    ///
    /// # Errors
    /// When the last records could not be made durable.
    pub async fn close(&self) -> Result<(), StoreError> {
        let work = |store: &Self| {
            let committer = lock(&store.inner.committer).take();
            if let Some(committer) = committer {
                committer.stop(&store.inner.orders);
            }
            store.inner.index.flush()
        };
        if self.inner.closed.load(Ordering::Acquire) {
            return Ok(());
        }
        let outcome = self.blocking(work).await;
        self.inner.closed.store(true, Ordering::Release);
        outcome
    }

    pub(crate) fn paths(&self) -> &Paths {
        &self.inner.paths
    }

    pub(crate) fn catalog(&self) -> MutexGuard<'_, Catalog> {
        lock(&self.inner.catalog)
    }

    /// Runs disk work where it may block.
    pub(crate) async fn blocking<T: Send + 'static>(
        &self,
        work: impl FnOnce(&Self) -> Result<T, StoreError> + Send + 'static,
    ) -> Result<T, StoreError> {
        if self.inner.closed.load(Ordering::Acquire) {
            return Err(StoreError::Closed);
        }
        let store = self.clone();
        match tokio::task::spawn_blocking(move || work(&store)).await {
            Ok(outcome) => outcome,
            Err(error) if error.is_panic() => std::panic::resume_unwind(error.into_panic()),
            Err(_) => Err(StoreError::Closed),
        }
    }
}

/// A lock whose holder panicked guards values that are replaced whole, so they are still good.
pub(crate) fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Seconds since 1970.
pub(crate) fn now() -> u64 {
    SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |elapsed| elapsed.as_secs())
}
