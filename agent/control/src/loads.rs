//! Transfers that volumes wait for: they go on as long as a volume shows their snapshot, however often they fail.

use std::{
    collections::HashMap,
    future::{Future, pending},
    pin::Pin,
    sync::{Arc, Mutex, MutexGuard, OnceLock, PoisonError},
    time::Duration,
};

use bytes::Bytes;
use tokio::{sync::Notify, time::sleep};
use tokio_util::{sync::CancellationToken, task::TaskTracker};
use weightd_access::Access;
use weightd_expose::{Brought, Condition, Demands, ExposeError, Refusal, Volumes, WeakVolumes};
use weightd_fetch::{FetchError, Fetcher, Transfer};
use weightd_proto::v1::FailureKind;
use weightd_types::{BlobKey, ByteRange, InvalidUri, Layout, Selection, SnapshotKey, SourceUri};

use crate::failure;

/// Wait before a failed transfer is tried again without anyone reading; doubles up to the limit.
const PAUSE: Duration = Duration::from_secs(5);
const PAUSE_LIMIT: Duration = Duration::from_secs(300);
/// Shortest time between two attempts, however eagerly someone reads.
const LEAST_PAUSE: Duration = Duration::from_secs(1);
/// How often a transfer's volumes are looked for.
const LOOK: Duration = Duration::from_secs(5);

/// By snapshot, and how to say that another attempt is wanted at once.
type Running = Mutex<HashMap<SnapshotKey, Arc<Notify>>>;

/// Transfers that volumes wait for, and the way readers reach them.
#[derive(Debug)]
pub struct Loads {
    fetcher: Fetcher,
    access: Access,
    tasks: TaskTracker,
    stopping: CancellationToken,
    /// Set once: volumes are made with a way to reach this.
    volumes: OnceLock<WeakVolumes>,
    running: Arc<Running>,
}

/// One snapshot's transfer, until nobody waits for it.
struct Load {
    fetcher: Fetcher,
    access: Access,
    volumes: Volumes,
    running: Arc<Running>,
    key: SnapshotKey,
    wanted: Arc<Notify>,
}

impl Loads {
    /// Loads of an agent that ends when `stopping` is cancelled; `tasks` are then to be waited for.
    pub fn new(fetcher: Fetcher, access: Access, tasks: TaskTracker, stopping: CancellationToken) -> Self {
        Self { fetcher, access, tasks, stopping, volumes: OnceLock::new(), running: Arc::default() }
    }

    /// Says whose transfers these are. Until then nothing is carried.
    pub fn look_after(&self, volumes: &Volumes) {
        // An agent has one set of volumes.
        let _ = self.volumes.set(volumes.downgrade());
    }

    /// Keeps a transfer going for the volumes that show its snapshot. One that is going already, and waits after a failure,
    /// makes its next attempt at once.
    pub(crate) fn keep(&self, transfer: Arc<Transfer>) {
        let Some(volumes) = self.volumes.get().and_then(WeakVolumes::upgrade) else { return };
        let (key, wanted) = (transfer.key(), Arc::new(Notify::new()));
        {
            let mut running = lock(&self.running);
            if let Some(known) = running.get(&key) {
                return known.notify_one();
            }
            running.insert(key, Arc::clone(&wanted));
        }
        let (fetcher, access) = (self.fetcher.clone(), self.access.clone());
        let running = Arc::clone(&self.running);
        let load = Load { fetcher, access, volumes, running, key, wanted };
        let stopping = self.stopping.clone();
        self.tasks.spawn(async move {
            tokio::select! {
                () = stopping.cancelled() => {}
                () = load.carry(transfer) => {}
            }
        });
    }

    /// Takes over the volumes of an earlier agent, and takes up their transfers: as the node what is the operator's, and the
    /// rest as soon as kubelet brings credentials.
    ///
    /// # Errors
    /// As [`Volumes::adopt`].
    pub async fn take_over(&self, volumes: &Volumes) -> Result<(), ExposeError> {
        // First: a volume may be unmounted as soon as it is served, and who has one of its files open reads on.
        self.adopt_leases(volumes).await?;
        for manifest in volumes.adopt().await? {
            self.keep(self.fetcher.resume(manifest, 0));
        }
        Ok(())
    }

    async fn adopt_leases(&self, volumes: &Volumes) -> Result<(), ExposeError> {
        for volume in volumes.list().await? {
            if let Some(record) = self.fetcher.store().snapshot(&volume.snapshot) {
                self.access.adopt(&volume.target, volume.snapshot, &record.manifest.source).await;
            }
        }
        Ok(())
    }

    /// A source's snapshot as the node may read it, or one of the store by its id, on its way if it is not complete.
    async fn bring_source(&self, source: &str) -> Result<Brought, Refusal> {
        if !source.contains("://") {
            let record = self.fetcher.store().find(source);
            let record =
                record.map_err(|error| Refusal::new(failure::of_store(&error), error.to_string()))?;
            if !record.complete {
                self.keep(self.fetcher.resume(Arc::clone(&record.manifest), 0));
            }
            return Ok(Brought { key: record.key(), held: Box::new(()) });
        }
        let uri: SourceUri = source
            .parse()
            .map_err(|error: InvalidUri| Refusal::new(FailureKind::Usage, error.to_string()))?;
        let lease = self.access.operator(&uri);
        let resolution = match self.fetcher.resolve(&uri, &Selection::default()).await {
            Ok(resolution) => resolution,
            Err(error) => return self.earlier(source, &error).ok_or_else(|| failure::refusal(&error)),
        };
        let transfer = self.fetcher.prefetch(resolution, Layout::Aligned, 0);
        // From then on the store knows it, and all headers are here.
        transfer.lengths().await.map_err(|error| failure::refusal(&error))?;
        let key = transfer.key();
        self.keep(transfer);
        Ok(Brought { key, held: Box::new(lease) })
    }

    /// What a source was, when its origin cannot be asked what it is.
    fn earlier(&self, source: &str, error: &FetchError) -> Option<Brought> {
        let record = self.fetcher.store().find(source).ok()?;
        if !record.complete || !error.is_retryable() {
            return None;
        }
        tracing::warn!(source, %error, "handing out what is here, because its origin cannot be asked");
        Some(Brought { key: record.key(), held: Box::new(()) })
    }

    /// Has another attempt made now, or begins anew: what was complete may have lost a chunk since.
    fn want(&self, snapshot: SnapshotKey) {
        if let Some(known) = lock(&self.running).get(&snapshot) {
            return known.notify_one();
        }
        if let Some(record) = self.fetcher.store().snapshot(&snapshot) {
            self.keep(self.fetcher.resume(record.manifest, 0));
        }
    }
}

impl Load {
    async fn carry(&self, first: Arc<Transfer>) {
        let (manifest, priority) = (Arc::clone(first.manifest()), first.priority());
        let mut transfer = first;
        let mut pause = PAUSE;
        loop {
            let outcome = tokio::select! {
                outcome = transfer.wait() => outcome,
                () = self.unwanted() => return,
            };
            let Err(error) = outcome else { return self.volumes.completed(&self.key) };
            let (is_lasting, is_paused) = (!error.is_retryable(), error.is_paused());
            tracing::warn!(source = %manifest.source, %error, is_lasting, "a volume's transfer failed");
            let (why, is_corrupt) = (error.to_string().into(), matches!(error, FetchError::Corrupt { .. }));
            self.volumes.report(&self.key, Condition::Failed { why, is_lasting, is_corrupt });
            sleep(LEAST_PAUSE).await;
            if is_paused {
                // Until someone comes as whom to ask, no attempt is worth while, whoever reads.
                tokio::select! {
                    () = self.access.until_there(&manifest.source) => {}
                    () = self.unwanted() => return,
                }
                self.volumes.report(&self.key, Condition::Fine);
                transfer = self.fetcher.resume(Arc::clone(&manifest), priority);
                continue;
            }
            // Where waiting would not help, only someone who reads makes another attempt worth while.
            let retry = async || if is_lasting { pending().await } else { sleep(pause).await };
            tokio::select! {
                () = self.wanted.notified() => {}
                () = retry() => pause = (pause * 2).min(PAUSE_LIMIT),
                () = self.unwanted() => return,
            }
            self.volumes.report(&self.key, Condition::Fine);
            transfer = self.fetcher.resume(Arc::clone(&manifest), priority);
        }
    }

    /// Waits until no volume shows the snapshot. From then on whoever shows it again begins anew.
    async fn unwanted(&self) {
        loop {
            sleep(LOOK).await;
            let mut running = lock(&self.running);
            // Looked at under the lock: whoever shows it first and then comes here is seen, or begins a load of their own.
            if !self.volumes.is_shown(&self.key) {
                running.remove(&self.key);
                return;
            }
        }
    }
}

impl Drop for Load {
    /// However it ends.
    fn drop(&mut self) {
        let mut running = lock(&self.running);
        if running.get(&self.key).is_some_and(|known| Arc::ptr_eq(known, &self.wanted)) {
            running.remove(&self.key);
        }
    }
}

fn lock(running: &Running) -> MutexGuard<'_, HashMap<SnapshotKey, Arc<Notify>>> {
    running.lock().unwrap_or_else(PoisonError::into_inner)
}

impl Demands for Loads {
    fn demand(&self, snapshot: SnapshotKey, blob: BlobKey, range: ByteRange) {
        if !self.fetcher.demand(snapshot, blob, range) {
            self.want(snapshot);
        }
    }

    fn keep_coming(&self, snapshot: SnapshotKey) {
        if !self.fetcher.is_fetching(snapshot) {
            self.want(snapshot);
        }
    }

    fn prefer(&self, snapshot: SnapshotKey, blob: BlobKey) {
        // What is here needs no transfer to be compared.
        if !self.fetcher.prefer(snapshot, blob) && !self.fetcher.store().has_blob(&blob) {
            self.want(snapshot);
        }
    }

    fn follow(&self) -> Arc<()> {
        self.fetcher.follow()
    }

    fn repair(
        &self,
        snapshot: SnapshotKey,
        blob: BlobKey,
        chunk: u32,
    ) -> Pin<Box<dyn Future<Output = Result<(), String>> + Send + '_>> {
        Box::pin(async move {
            let repaired = self.fetcher.repair_chunk(snapshot, blob, chunk).await;
            repaired.map_err(|error| error.to_string())
        })
    }

    fn header(
        &self,
        snapshot: SnapshotKey,
        blob: BlobKey,
    ) -> Pin<Box<dyn Future<Output = Result<Bytes, Refusal>> + Send + '_>> {
        Box::pin(async move {
            // One that failed, and waits for its next attempt, makes it now.
            if !self.fetcher.transfers().iter().any(|transfer| transfer.key() == snapshot) {
                self.want(snapshot);
            }
            let header =
                self.fetcher.header(snapshot, blob).await.map_err(|error| failure::refusal(&error))?;
            let unknown =
                || Refusal::new(FailureKind::TryAgain, format!("{snapshot}: its headers are not here yet"));
            header.ok_or_else(unknown)
        })
    }

    fn bring<'s>(
        &'s self,
        source: &'s str,
    ) -> Pin<Box<dyn Future<Output = Result<Brought, Refusal>> + Send + 's>> {
        Box::pin(self.bring_source(source))
    }
}
