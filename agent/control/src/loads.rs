//! Transfers that volumes wait for: they go on as long as a volume shows their snapshot, however often they fail.

use std::{
    collections::HashMap,
    future::Future,
    pin::Pin,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::Duration,
};

use tokio::{sync::Notify, time::sleep};
use tokio_util::{sync::CancellationToken, task::TaskTracker};
use weightd_expose::{Condition, Demands, Volumes};
use weightd_fetch::{Fetcher, Transfer};
use weightd_store::SnapshotManifest;
use weightd_types::{BlobKey, ByteRange, SnapshotKey};

/// Wait before a failed transfer is tried again without anyone reading; doubles up to the limit.
const PAUSE: Duration = Duration::from_secs(5);
const PAUSE_LIMIT: Duration = Duration::from_secs(300);
/// Shortest time between two attempts, however eagerly someone reads.
const LEAST_PAUSE: Duration = Duration::from_secs(1);
/// How often a running transfer's volumes are looked for.
const LOOK: Duration = Duration::from_secs(5);

/// Transfers that volumes wait for, and the way readers reach them.
#[derive(Debug)]
pub struct Loads {
    fetcher: Fetcher,
    tasks: TaskTracker,
    stopping: CancellationToken,
    running: Mutex<HashMap<SnapshotKey, Arc<Notify>>>,
}

impl Loads {
    /// Loads of an agent that ends when `stopping` is cancelled; `tasks` are then to be waited for.
    pub fn new(fetcher: Fetcher, tasks: TaskTracker, stopping: CancellationToken) -> Self {
        Self { fetcher, tasks, stopping, running: Mutex::default() }
    }

    fn running(&self) -> MutexGuard<'_, HashMap<SnapshotKey, Arc<Notify>>> {
        self.running.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Keeps a transfer going for the volumes that show its snapshot.
    pub(crate) fn keep(self: &Arc<Self>, volumes: &Volumes, transfer: Arc<Transfer>) {
        let key = transfer.key();
        let read = Arc::new(Notify::new());
        {
            let mut running = self.running();
            if running.contains_key(&key) {
                return;
            }
            running.insert(key, Arc::clone(&read));
        }
        let (loads, volumes, stopping) = (Arc::clone(self), volumes.clone(), self.stopping.clone());
        self.tasks.spawn(async move {
            tokio::select! {
                () = stopping.cancelled() => {}
                () = loads.carry(&volumes, transfer, &read) => {}
            }
            loads.running().remove(&key);
        });
    }

    /// Takes up transfers of volumes that an earlier agent showed.
    pub fn resume(self: &Arc<Self>, volumes: &Volumes, manifests: Vec<Arc<SnapshotManifest>>) {
        for manifest in manifests {
            let (loads, volumes) = (Arc::clone(self), volumes.clone());
            self.tasks.spawn(async move {
                let stopping = loads.stopping.clone();
                tokio::select! {
                    () = stopping.cancelled() => {}
                    () = loads.take_up(&volumes, &manifest) => {}
                }
            });
        }
    }

    /// Finds out how long the files of a volume are, however often that fails, and lets its transfer go on.
    async fn take_up(self: &Arc<Self>, volumes: &Volumes, manifest: &Arc<SnapshotManifest>) {
        let key = manifest.key();
        let mut pause = PAUSE;
        while volumes.is_shown(&key) {
            let transfer = self.fetcher.resume(Arc::clone(manifest), 0);
            let lengths = match transfer.lengths().await {
                Ok(Some(lengths)) => Ok(lengths),
                Ok(None) => self.fetcher.stored_lengths(manifest).await,
                Err(error) => Err(error),
            };
            match lengths {
                Ok(lengths) => {
                    volumes.set_lengths(&key, lengths);
                    self.keep(volumes, transfer);
                    return;
                }
                Err(error) => {
                    tracing::warn!(source = %manifest.source, %error, "a volume cannot be taken up yet");
                }
            }
            sleep(pause).await;
            pause = (pause * 2).min(PAUSE_LIMIT);
        }
    }

    async fn carry(&self, volumes: &Volumes, first: Arc<Transfer>, read: &Notify) {
        let (key, manifest, priority) = (first.key(), Arc::clone(first.manifest()), first.priority());
        let mut transfer = first;
        let mut pause = PAUSE;
        loop {
            let outcome = loop {
                tokio::select! {
                    outcome = transfer.wait() => break outcome,
                    () = sleep(LOOK) => if !volumes.is_shown(&key) { return },
                }
            };
            let Err(error) = outcome else { return volumes.completed(&key) };
            let is_lasting = !error.is_retryable();
            tracing::warn!(source = %manifest.source, %error, is_lasting, "a volume's transfer failed");
            volumes.report(&key, Condition::Failed { why: error.to_string().into(), is_lasting });
            sleep(LEAST_PAUSE).await;
            if is_lasting {
                // Only someone who reads makes another attempt worth while.
                read.notified().await;
            } else {
                tokio::select! {
                    () = read.notified() => {}
                    () = sleep(pause) => pause = (pause * 2).min(PAUSE_LIMIT),
                }
            }
            if !volumes.is_shown(&key) {
                return;
            }
            volumes.report(&key, Condition::Fine);
            transfer = self.fetcher.resume(Arc::clone(&manifest), priority);
        }
    }
}

impl Demands for Loads {
    fn demand(&self, snapshot: SnapshotKey, blob: BlobKey, range: ByteRange) {
        if !self.fetcher.demand(snapshot, blob, range)
            && let Some(read) = self.running().get(&snapshot)
        {
            read.notify_one();
        }
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
}
