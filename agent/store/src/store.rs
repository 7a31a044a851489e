//! The handle that everything else in this room hangs on.

use std::{
    collections::{HashMap, HashSet},
    fs::File,
    sync::{Arc, Mutex, MutexGuard, PoisonError, Weak, mpsc},
    time::{SystemTime, UNIX_EPOCH},
};

use tokio::sync::{Notify, broadcast};
use weightd_types::BlobKey;

use crate::{
    Config, Landing, Metrics, PartialBlob, StoreError,
    catalog::Catalog,
    commit::{Committer, Order},
    gate::Gate,
    index::Index,
    io::{BufferPool, IoEngine},
    paths::Paths,
    tiers::Tiers,
    usage::Usage,
};

/// An open store. Clones share it; the directory stays locked until one of them is closed, or the last is gone.
#[derive(Debug, Clone)]
pub struct Store {
    pub(crate) inner: Arc<Inner>,
}

/// Locks that order work on the disk are taken in this order, each only while those before it are held or not needed:
/// `changing`, `beginning`, `recording`. Those that guard values come after them, for moments without IO where that can
/// be helped: `catalog`, then `usage`, or `cached`, `landings` and `active`, then the index's own.
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
    /// Blobs that stay in the page cache as they arrive.
    pub(crate) cached: Mutex<HashSet<BlobKey>>,
    /// Blobs that are wanted in memory as they arrive, and where.
    pub(crate) landings: Mutex<HashMap<BlobKey, Weak<dyn Landing>>>,
    /// Told when a blob begins to arrive.
    pub(crate) begun: Notify,
    /// Told of blobs that are thrown away because their bytes are wrong.
    pub(crate) discarded: broadcast::Sender<BlobKey>,
    /// Told of blobs that lost something on the disk.
    pub(crate) replaced: broadcast::Sender<BlobKey>,
    /// Held while the set of snapshots changes against the set of blobs, so that a blob that is about to be removed is
    /// not taken for present by a snapshot that begins to want it or is published, room is not promised twice, and
    /// no directory is built twice or collected while it is.
    pub(crate) changing: Mutex<()>,
    /// Held while a blob's file is opened or made: a caller that went away may still be at it.
    pub(crate) beginning: Mutex<()>,
    /// Held while chunks are recorded, so that nothing is recorded of a blob that was discarded.
    pub(crate) recording: Mutex<()>,
    pub(crate) gate: Gate,
    pub(crate) metrics: Metrics,
    pub(crate) committer: Mutex<Option<Committer>>,
    pub(crate) orders: mpsc::SyncSender<Order>,
    /// What keeps other agents away; `None` once closed.
    pub(crate) lock: Mutex<Option<File>>,
    /// Read-only homes of blobs. Changed while `changing` is held.
    pub(crate) tiers: Tiers,
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

    /// Waits for what is at work, records what is written, stops the threads, makes the index durable, and lets go of
    /// the directory: it can be opened again at once, also while clones are alive. Later calls fail with
    /// [`StoreError::Closed`], and so do those that come while it waits.
    ///
    /// # Errors
    /// When the last records could not be made durable.
    pub async fn close(&self) -> Result<(), StoreError> {
        self.close_and(|_| Ok(())).await
    }

    /// Closes a store that nobody is to change any more: what is left is what a read-only tier has. Opened again, it begins a new
    /// index.
    ///
    /// # Errors
    /// [`StoreError::Io`], also of what could not be made durable.
    pub async fn close_for_good(&self) -> Result<(), StoreError> {
        // What another run left half done can be gone on with.
        let partials = self.blocking(|store| store.inner.index.partials()).await?;
        if !partials.is_empty() {
            return self.close().await;
        }
        self.close_and(|store| {
            let (engine, paths) = (&store.inner.engine, store.paths());
            engine.remove(&paths.index()).map_err(StoreError::io("remove", paths.index()))?;
            engine.remove_tree(&paths.temporary()).map_err(StoreError::io("remove", paths.temporary()))?;
            engine.sync_all(paths.root()).map_err(StoreError::io("sync", paths.root()))
        })
        .await
    }

    /// `last` is done when all is written down and the directory is still locked.
    async fn close_and(
        &self,
        last: impl FnOnce(&Self) -> Result<(), StoreError> + Send + 'static,
    ) -> Result<(), StoreError> {
        let Some(everyone) = self.inner.gate.clear().await else { return Ok(()) };
        let store = self.clone();
        // Goes on to the end when the caller goes away.
        let closing = move || {
            let outcome = store.end(last);
            store.inner.gate.shut();
            drop(everyone);
            outcome
        };
        run_blocking(closing).await
    }

    fn end(&self, last: impl FnOnce(&Self) -> Result<(), StoreError>) -> Result<(), StoreError> {
        let inner = &self.inner;
        if let Some(committer) = lock(&inner.committer).take() {
            committer.stop(&inner.orders);
        }
        lock(&inner.active).clear();
        let outcome = inner.index.close().and_then(|()| last(self));
        if let Some(file) = lock(&inner.lock).take() {
            // Said aloud, because a child that is being started has the file open too, for a moment.
            let _ = file.unlock();
        }
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
        let (pass, store) = (self.inner.gate.enter()?, self.clone());
        run_blocking(move || {
            let _pass = pass;
            work(&store)
        })
        .await
    }
}

async fn run_blocking<T: Send + 'static>(
    work: impl FnOnce() -> Result<T, StoreError> + Send + 'static,
) -> Result<T, StoreError> {
    match tokio::task::spawn_blocking(work).await {
        Ok(outcome) => outcome,
        Err(error) if error.is_panic() => std::panic::resume_unwind(error.into_panic()),
        Err(_) => Err(StoreError::Closed),
    }
}

/// A lock whose holder panicked guards values that are replaced whole, so they are still good.
pub(crate) fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Microseconds of a second.
pub(crate) const MICROS: u64 = 1_000_000;

/// Seconds since 1970.
pub(crate) fn now() -> u64 {
    now_precisely() / MICROS
}

/// Microseconds since 1970.
pub(crate) fn now_precisely() -> u64 {
    let elapsed = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    u64::try_from(elapsed.as_micros()).unwrap_or(u64::MAX)
}
