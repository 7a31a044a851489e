//! Making things durable, in order: data before the index says so, data and header before the manifest says so.
//!
//! One thread does all of it, so that whatever piles up while it syncs is made durable together: a hundred thousand
//! small files cost hundreds of syncs, not hundreds of thousands.

use std::{
    collections::BTreeSet,
    fs::{File, Permissions},
    io,
    os::unix::fs::PermissionsExt,
    path::Path,
    sync::{Arc, Weak, mpsc},
    thread::JoinHandle,
    time::Instant,
};

use tokio::sync::oneshot;
use weightd_types::BlobKey;

use crate::{
    BlobManifest, PartialBlob, Store, StoreError,
    manifest::encode,
    store::{Inner, lock},
};

/// Batches above this many blobs sync the file system once instead of each file.
const FEW: usize = 8;
/// Most blobs of one batch.
const MOST: usize = 512;
/// Orders that may wait. Callers wait for their answers, so there are never more than open blobs.
pub(crate) const QUEUE: usize = 4096;

/// Work for the thread.
pub(crate) enum Order {
    /// A whole, confirmed blob becomes complete.
    Finish(Arc<PartialBlob>, oneshot::Sender<Result<Arc<BlobManifest>, StoreError>>),
    /// What is written of partial blobs is recorded now.
    Checkpoint(oneshot::Sender<Result<(), StoreError>>),
    /// The last order.
    Stop,
}

/// The thread.
#[derive(Debug)]
pub(crate) struct Committer {
    thread: JoinHandle<()>,
}

impl Committer {
    pub(crate) fn start(inner: Weak<Inner>, orders: mpsc::Receiver<Order>) -> io::Result<Self> {
        let thread = std::thread::Builder::new()
            .name("weightd-commit".to_owned())
            .spawn(move || run(&inner, &orders))?;
        Ok(Self { thread })
    }

    /// Ends it after what was ordered before.
    pub(crate) fn stop(self, orders: &mpsc::SyncSender<Order>) {
        if orders.send(Order::Stop).is_ok() && self.thread.join().is_err() {
            tracing::error!("the committing thread panicked");
        }
    }
}

fn run(inner: &Weak<Inner>, orders: &mpsc::Receiver<Order>) {
    let mut last_checkpoint = Instant::now();
    loop {
        let Some(interval) = inner.upgrade().map(|inner| inner.config.checkpoint_interval) else { return };
        let first = orders.recv_timeout(interval.saturating_sub(last_checkpoint.elapsed()));
        let Some(inner) = inner.upgrade() else { return };
        let store = Store { inner };
        let mut stop = matches!(first, Err(mpsc::RecvTimeoutError::Disconnected));
        let (mut finishing, mut asking) = (Vec::new(), Vec::new());
        for order in first.into_iter().chain(std::iter::from_fn(|| orders.try_recv().ok())).take(MOST) {
            match order {
                Order::Finish(partial, done) => finishing.push((partial, done)),
                Order::Checkpoint(done) => asking.push(done),
                Order::Stop => stop = true,
            }
        }
        finish(&store, finishing);
        if stop || !asking.is_empty() || last_checkpoint.elapsed() >= interval {
            let outcome = store.checkpoint_now();
            if let Err(error) = &outcome {
                tracing::warn!(%error, "written chunks could not be recorded; trying again");
            }
            answer(&store, asking, outcome);
            last_checkpoint = Instant::now();
        }
        if stop {
            return;
        }
    }
}

/// Everyone who asked gets an answer; errors do not clone, so the others ask for themselves.
fn answer(
    store: &Store,
    asking: Vec<oneshot::Sender<Result<(), StoreError>>>,
    outcome: Result<(), StoreError>,
) {
    let mut outcome = Some(outcome);
    for done in asking {
        let own = outcome.take().unwrap_or_else(|| store.checkpoint_now());
        if own.is_ok() {
            outcome = Some(Ok(()));
        }
        // A caller that left needs no answer.
        let _ = done.send(own);
    }
}

type Finishing = (Arc<PartialBlob>, oneshot::Sender<Result<Arc<BlobManifest>, StoreError>>);

fn finish(store: &Store, finishing: Vec<Finishing>) {
    let partials: Vec<_> = finishing.iter().map(|(partial, _)| Arc::clone(partial)).collect();
    let together = if partials.is_empty() { Ok(Vec::new()) } else { store.commit_blobs(&partials) };
    for (at, (partial, done)) in finishing.into_iter().enumerate() {
        // When the batch fails, each blob is tried alone, so that the error reaches the one it is about.
        let outcome = match &together {
            Ok(manifests) => Ok(Arc::clone(&manifests[at])),
            Err(_) => store.commit_blobs(&[partial]).map(|mut manifests| manifests.remove(0)),
        };
        let _ = done.send(outcome);
    }
}

impl Store {
    /// Makes a blob complete. Its chunks must all be written, and its object confirmed by the caller. When this
    /// returns, data and manifest are durable.
    ///
    /// # Errors
    /// [`StoreError::Io`], [`StoreError::Full`]; the blob stays partial then.
    pub async fn finish(&self, partial: Arc<PartialBlob>) -> Result<Arc<BlobManifest>, StoreError> {
        let _pass = self.inner.gate.enter()?;
        let (done, outcome) = oneshot::channel();
        self.order(Order::Finish(partial, done)).await?;
        outcome.await.map_err(|_| StoreError::Closed)?
    }

    /// Records everything written so far: a crash after this returns costs none of it.
    ///
    /// # Errors
    /// [`StoreError::Io`], [`StoreError::Index`].
    pub async fn checkpoint(&self) -> Result<(), StoreError> {
        let _pass = self.inner.gate.enter()?;
        let (done, outcome) = oneshot::channel();
        self.order(Order::Checkpoint(done)).await?;
        outcome.await.map_err(|_| StoreError::Closed)?
    }

    async fn order(&self, order: Order) -> Result<(), StoreError> {
        match self.inner.orders.try_send(order) {
            Ok(()) => Ok(()),
            Err(mpsc::TrySendError::Disconnected(_)) => Err(StoreError::Closed),
            Err(mpsc::TrySendError::Full(order)) => {
                self.blocking(move |store| store.inner.orders.send(order).map_err(|_| StoreError::Closed))
                    .await
            }
        }
    }

    fn commit_blobs(&self, partials: &[Arc<PartialBlob>]) -> Result<Vec<Arc<BlobManifest>>, StoreError> {
        let inner = &self.inner;
        let (engine, paths) = (&inner.engine, &inner.paths);
        let few = partials.len() <= FEW;
        let mut manifests = Vec::with_capacity(partials.len());
        for partial in partials {
            let path = paths.blob(&partial.key());
            seal(partial.file().buffered()).map_err(StoreError::io("seal", &path))?;
            if few {
                engine.sync(partial.file()).map_err(StoreError::io("sync", &path))?;
            }
            let manifest = partial
                .manifest()
                .ok_or_else(|| StoreError::Incomplete { name: partial.wanted().url.clone() })?;
            manifests.push(Arc::new(manifest));
        }
        let sync_all = || engine.sync_all(paths.root()).map_err(StoreError::io("sync", paths.root()));
        if !few {
            sync_all()?;
        }
        let mut directories = BTreeSet::new();
        for (partial, manifest) in partials.iter().zip(&manifests) {
            let header = &partial.wanted().header;
            if !header.is_empty() {
                self.write_whole(&paths.blob_header(&partial.key()), header, few)?;
            }
            self.write_whole(&paths.blob_manifest(&partial.key()), &encode(manifest.as_ref()), few)?;
            directories.insert(paths.blob_directory(&partial.key()));
        }
        if few {
            for directory in &directories {
                engine.sync_directory(directory).map_err(StoreError::io("sync", directory))?;
            }
        } else {
            sync_all()?;
        }
        self.retire(partials)?;
        inner.metrics.committed_blobs.inc_by(partials.len() as u64);
        Ok(manifests)
    }

    /// Complete blobs need no records.
    fn retire(&self, partials: &[Arc<PartialBlob>]) -> Result<(), StoreError> {
        let recorded: Vec<BlobKey> =
            partials.iter().filter(|partial| is_recorded(partial)).map(|partial| partial.key()).collect();
        if !recorded.is_empty() {
            self.inner.index.forget_partials(&recorded, false)?;
        }
        let mut active = lock(&self.inner.active);
        for partial in partials {
            active.remove(&partial.key());
            partial.wake();
        }
        Ok(())
    }

    pub(crate) fn write_whole(&self, path: &Path, bytes: &[u8], durable: bool) -> Result<(), StoreError> {
        let written = self.inner.engine.write_whole(path, bytes, durable);
        written.map_err(|error| self.disk_error("write", path, bytes.len() as u64, error))
    }

    /// Records what is written of every partial blob, after making it durable. One that fails keeps no other from being
    /// recorded.
    fn checkpoint_now(&self) -> Result<(), StoreError> {
        let _recording = lock(&self.inner.recording);
        let partials: Vec<_> =
            lock(&self.inner.active).values().filter(|partial| is_recorded(partial)).cloned().collect();
        let (mut recorded, mut updates, mut outcome) = (Vec::new(), Vec::new(), Ok(()));
        for partial in &partials {
            // Taken before the sync: what is written during it waits for the next round.
            let Some(update) = partial.take_unrecorded() else { continue };
            match partial.make_durable(&self.inner.paths.blob_directory(&partial.key())) {
                Ok(()) => {
                    recorded.push(partial);
                    updates.push(update);
                }
                Err(error) => {
                    partial.put_back(&update);
                    outcome = Err(error);
                }
            }
        }
        if !updates.is_empty()
            && let Err(error) = self.inner.index.record_chunks(&updates)
        {
            for (partial, update) in recorded.iter().zip(&updates) {
                partial.put_back(update);
            }
            outcome = Err(error);
        }
        drop(recorded);
        drop(partials);
        // What nobody fetches any more needs no file open.
        lock(&self.inner.active).retain(|_, partial| Arc::strong_count(partial) > 1 || is_owed(partial));
        outcome
    }
}

/// Whether a record is still to be made of it.
fn is_owed(partial: &PartialBlob) -> bool {
    is_recorded(partial) && partial.has_unrecorded()
}

/// Blobs of one chunk are fetched whole or not at all, so nothing is recorded of them.
fn is_recorded(partial: &PartialBlob) -> bool {
    partial.placement().chunk_count() > 1
}

/// Complete blobs are read-only for everyone.
fn seal(file: &File) -> io::Result<()> {
    file.set_permissions(Permissions::from_mode(0o444))
}
