//! The volumes of a node: who sees what, where.
//!
//! The mount table is the truth. What is held in the store is what the table says is mounted, looked at when the agent
//! starts, when volumes come and go, and now and then, because anyone may unmount a volume.

mod changes;
mod table;
mod watch;

use std::{
    collections::{BTreeMap, BTreeSet},
    path::PathBuf,
    sync::{
        Arc, Mutex, MutexGuard, PoisonError, RwLock, Weak,
        atomic::{AtomicBool, Ordering},
    },
};

use weightd_store::{SnapshotManifest, SnapshotUse, Store, StoreError, io::BufferPool};
use weightd_types::{BlobKey, SnapshotKey};

use crate::{
    Condition, Config, Demands, ExposeError, Metrics,
    events::{Event, Events},
    fuse::{Family, Shared},
    handoff::Handoff,
    reading::{Chunks, Reader},
    session::FuseSession,
    warm_up::WarmUp,
};
use table::resolve_target;
use watch::{News, watch};

/// How a volume is read.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Serving {
    /// By the kernel, from the store's files; no agent is needed.
    Bind,
    /// Through FUSE; complete files by the kernel from their blobs.
    Passthrough,
    /// Through FUSE, by the agent.
    Fuse,
}

/// A snapshot shown at a directory.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Volume {
    /// Where.
    pub target: PathBuf,
    /// What.
    pub snapshot: SnapshotKey,
    /// How.
    pub serving: Serving,
}

/// The volumes of a node. Clones share everything.
#[derive(Debug, Clone)]
pub struct Volumes {
    inner: Arc<Inner>,
}

/// The volumes of a node, for those whom they keep alive.
#[derive(Debug, Clone)]
pub struct WeakVolumes(Weak<Inner>);

impl WeakVolumes {
    /// The volumes, as long as someone has them.
    pub fn upgrade(&self) -> Option<Volumes> {
        self.0.upgrade().map(|inner| Volumes { inner })
    }
}

#[derive(Debug)]
struct Inner {
    store: Store,
    config: Config,
    shared: Arc<Shared>,
    session: Mutex<Option<Arc<FuseSession>>>,
    /// Whether what an earlier agent left was looked at.
    adopted: AtomicBool,
    /// Set when the agent leaves: from then on its volumes are the next agent's, or gone.
    ended: AtomicBool,
    /// What is mounted, and so held.
    held: Mutex<BTreeMap<PathBuf, SnapshotUse>>,
    warm_up: Arc<WarmUp>,
    handoff: Handoff,
    /// One volume at a time comes or goes.
    changing: tokio::sync::Mutex<()>,
    events: Arc<Events>,
    metrics: Metrics,
}

impl Volumes {
    /// Looks at what is mounted, and holds that in the store. Serves nothing yet. Needs a tokio runtime.
    ///
    /// # Errors
    /// [`ExposeError::Mount`] when the mount table cannot be read.
    pub fn new(store: Store, config: Config, demands: Arc<dyn Demands>) -> Result<Self, ExposeError> {
        let metrics = Metrics::default();
        let pool = BufferPool::with_bytes(config.buffer_bytes)
            .map_err(ExposeError::mount("get memory for volumes at", &config.directory))?;
        let chunks = Arc::new(Chunks::new(store.clone(), demands, metrics.clone()));
        let handoff = Handoff::new(Arc::clone(&chunks), &config, metrics.clone())?;
        let reader = Reader::new(chunks, pool, config.clone());
        let events = Arc::new(Events::default());
        let shared = Arc::new(Shared {
            store: store.clone(),
            reader,
            metrics: metrics.clone(),
            shown: RwLock::default(),
            leaving: Arc::new(AtomicBool::new(false)),
            passes_through: AtomicBool::new(false),
            events: Arc::clone(&events),
        });
        let warm_up = Arc::new(WarmUp::new(store.clone(), &config, metrics.clone()));
        let inner = Arc::new(Inner {
            store,
            config,
            shared,
            session: Mutex::default(),
            adopted: AtomicBool::new(false),
            ended: AtomicBool::new(false),
            held: Mutex::default(),
            warm_up,
            handoff,
            changing: tokio::sync::Mutex::default(),
            events,
            metrics,
        });
        inner.refresh()?;
        tokio::spawn(watch(Arc::downgrade(&inner), News::of(&inner.store)));
        Ok(Self { inner })
    }

    /// Goes on serving what an earlier agent served: takes its connection over from the keeper, or else removes what
    /// nobody can serve any more. Gives the snapshots whose transfers are to be taken up again.
    ///
    /// # Errors
    /// [`ExposeError::Keeper`] when one is configured and cannot be reached.
    pub async fn adopt(&self) -> Result<Vec<Arc<SnapshotManifest>>, ExposeError> {
        let _changing = self.inner.changing.lock().await;
        // First: sockets of volumes that are there are to be gone on with, before there are others.
        self.inner.handoff.begin().await?;
        self.inner.blocking(Inner::adopt_now).await
    }

    /// A handle that keeps nothing alive.
    pub fn downgrade(&self) -> WeakVolumes {
        WeakVolumes(Arc::downgrade(&self.inner))
    }

    /// A target as the mount table has it: links in the directories above it are followed, whether or not all of them are
    /// there. Every other call takes one of these.
    ///
    /// # Errors
    /// [`ExposeError::BadTarget`] for a relative path, or one with `..`.
    pub async fn resolve(&self, target: PathBuf) -> Result<PathBuf, ExposeError> {
        self.inner.blocking(move |_| resolve_target(&target)).await
    }

    /// Whether what an earlier agent left was looked at. Nothing must be shown before: a second file system would leave
    /// the first without an agent.
    pub fn is_adopted(&self) -> bool {
        self.inner.adopted.load(Ordering::Acquire)
    }

    /// What it counts.
    pub fn metrics(&self) -> &Metrics {
        &self.inner.metrics
    }

    /// Shows a complete snapshot at a directory. What is shown there already is left as it is.
    ///
    /// # Errors
    /// [`ExposeError::Occupied`] when something else is mounted there, [`ExposeError::Mount`].
    pub async fn bind(&self, key: SnapshotKey, target: PathBuf) -> Result<Volume, ExposeError> {
        let _changing = self.inner.changing.lock().await;
        self.inner.blocking(move |inner| inner.bind_now(key, &target)).await
    }

    /// Shows a snapshot that is loading at a directory; its files' lengths must be known, in the manifest's order.
    ///
    /// # Errors
    /// As [`Volumes::bind`], and [`ExposeError::NoFuse`].
    pub async fn show(
        &self,
        manifest: Arc<SnapshotManifest>,
        lengths: Vec<u64>,
        target: PathBuf,
    ) -> Result<Volume, ExposeError> {
        let _changing = self.inner.changing.lock().await;
        self.inner.blocking(move |inner| inner.show_now(manifest, lengths, &target)).await
    }

    /// Takes a volume away. One that is not there is gone already; says whether it was.
    ///
    /// # Errors
    /// [`ExposeError::Occupied`] when something else is mounted there, [`ExposeError::Mount`].
    pub async fn unpublish(&self, target: PathBuf) -> Result<bool, ExposeError> {
        let _changing = self.inner.changing.lock().await;
        self.inner.blocking(move |inner| inner.unpublish_now(&target)).await
    }

    /// What is shown where.
    ///
    /// # Errors
    /// [`ExposeError::Mount`] when the mount table cannot be read.
    pub async fn list(&self) -> Result<Vec<Volume>, ExposeError> {
        // A volume that is coming or going at the moment looks after itself.
        let is_free = self.inner.changing.try_lock();
        if is_free.is_ok() {
            return self.inner.blocking(Inner::refresh).await;
        }
        self.inner.blocking(|inner| Ok(inner.volumes_in(&inner.mounts()?))).await
    }

    /// What went wrong lately, oldest first.
    pub fn events(&self) -> Vec<Event> {
        self.inner.events.all()
    }

    /// Whether a snapshot is shown or leased while it loads, so that its transfer must go on.
    pub fn is_shown(&self, key: &SnapshotKey) -> bool {
        self.inner.shared.find(Family::of(key)).is_some() || self.inner.handoff.is_leased(key)
    }

    /// Says how the transfer of a snapshot is doing.
    pub fn report(&self, key: &SnapshotKey, condition: Condition) {
        self.inner.handoff.report(key, &condition);
        let Some(shown) = self.inner.shared.find(Family::of(key)) else { return };
        if let Condition::Failed { why, .. } = &condition {
            self.inner.events.tell(&shown, None, why);
        }
        shown.report(condition);
    }

    /// Whether the operator wants every volume warm.
    pub fn warms_up_all(&self) -> bool {
        self.inner.config.warm_up
    }

    /// Reads a volume's snapshot into the page cache, in the background, as soon as it is complete. What the agent itself
    /// reads for its readers is left as it is: they would not be given those pages. Needs a tokio runtime.
    pub fn warm_up(&self, volume: &Volume) {
        if volume.serving == Serving::Fuse {
            let target = volume.target.display();
            return tracing::info!(%target, "not warmed up: the kernel does not read this volume from the store's files");
        }
        self.inner.warm_up.want(volume.snapshot);
    }

    /// Brings the tensors of a volume into memory, in the background, before a model server asks for them. Needs a tokio
    /// runtime.
    pub fn bring_into_memory(&self, volume: &Volume) {
        self.inner.handoff.bring_ahead(volume.snapshot);
    }

    /// Says that a snapshot which loaded is complete.
    pub fn completed(&self, key: &SnapshotKey) {
        self.report(key, Condition::Fine);
        let shown = self.inner.shared.find(Family::of(key)).map(|shown| Arc::downgrade(&shown));
        let has_reader = move |blob: &BlobKey| {
            shown.as_ref().and_then(Weak::upgrade).is_some_and(|shown| shown.has_reader(blob))
        };
        self.inner.warm_up.completed(*key, has_reader);
    }

    /// Says that bytes of a blob rotted on disk: an event of every volume that shows it.
    pub fn rotted(&self, blob: &BlobKey, what: &str) {
        let shown: BTreeSet<SnapshotKey> = lock(&self.inner.held).values().map(SnapshotUse::key).collect();
        for record in shown.iter().filter_map(|key| self.inner.store.snapshot(key)) {
            for entry in record.manifest.objects.iter().filter(|entry| entry.blob == *blob) {
                self.inner.events.add(record.key(), Some(entry.object.path.clone()), what);
            }
        }
    }

    /// Says that files of a snapshot are gone from where they were: an event of every volume that shows it.
    pub fn lost(&self, key: &SnapshotKey, what: &str) {
        self.inner.events.add(*key, None, what);
    }

    /// Ends serving. With a keeper volumes stay for the next agent; without one those that still loaded go.
    pub async fn end(&self) {
        let _changing = self.inner.changing.lock().await;
        let ended = self.inner.blocking(|inner| {
            inner.end_now();
            Ok(())
        });
        // It cannot fail.
        let _ = ended.await;
    }
}

impl Inner {
    async fn blocking<T: Send + 'static>(
        self: &Arc<Self>,
        work: impl FnOnce(&Self) -> Result<T, ExposeError> + Send + 'static,
    ) -> Result<T, ExposeError> {
        let (inner, runtime) = (Arc::clone(self), tokio::runtime::Handle::current());
        let outcome = tokio::task::spawn_blocking(move || {
            let _entered = runtime.enter();
            work(&inner)
        });
        match outcome.await {
            Ok(outcome) => outcome,
            Err(error) if error.is_panic() => std::panic::resume_unwind(error.into_panic()),
            Err(_) => Err(StoreError::Closed.into()),
        }
    }
}

pub(super) fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}
