//! The volumes of a node: who sees what, where.
//!
//! The mount table is the truth. What is held in the store is what the table says is mounted, looked at when the agent
//! starts, when volumes come and go, and now and then, because anyone may unmount a volume.

use std::{
    collections::BTreeMap,
    path::{Path, PathBuf},
    sync::{
        Arc, Mutex, MutexGuard, PoisonError, RwLock, Weak,
        atomic::{AtomicBool, Ordering},
    },
};

use tokio::sync::broadcast::error::RecvError;
use weightd_store::{SnapshotManifest, SnapshotUse, Store, StoreError, io::BufferPool};
use weightd_types::{BlobKey, SnapshotKey};

use crate::{
    Condition, Config, Demands, ExposeError, Metrics,
    bind::{bind_read_only, detach},
    events::{Event, Events},
    fuse::{Family, Shared, Tree},
    mount_table::{self, Mount},
    reading::Reader,
    session::FuseSession,
    shown::Shown,
};

/// How often volumes are looked for that others unmounted.
const LOOK: std::time::Duration = std::time::Duration::from_secs(10);

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

#[derive(Debug)]
struct Inner {
    store: Store,
    config: Config,
    shared: Arc<Shared>,
    session: Mutex<Option<FuseSession>>,
    /// Whether what an earlier agent left was looked at.
    adopted: AtomicBool,
    /// What is mounted, and so held.
    held: Mutex<BTreeMap<PathBuf, SnapshotUse>>,
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
        let reader = Reader::new(store.clone(), pool, demands, config.clone(), metrics.clone());
        let events = Arc::new(Events::default());
        let shared = Arc::new(Shared {
            store: store.clone(),
            reader,
            metrics: metrics.clone(),
            shown: RwLock::default(),
            leaving: Arc::new(AtomicBool::new(false)),
            through: RwLock::default(),
            events: Arc::clone(&events),
        });
        let inner = Arc::new(Inner {
            store,
            config,
            shared,
            session: Mutex::default(),
            adopted: AtomicBool::new(false),
            held: Mutex::default(),
            changing: tokio::sync::Mutex::default(),
            events,
            metrics,
        });
        inner.refresh()?;
        tokio::spawn(watch(Arc::downgrade(&inner), inner.store.discarded()));
        Ok(Self { inner })
    }

    /// Goes on serving what an earlier agent served: takes its connection over from the keeper, or else removes what
    /// nobody can serve any more. Gives the snapshots whose transfers are to be taken up again.
    ///
    /// # Errors
    /// [`ExposeError::Keeper`] when one is configured and cannot be reached.
    pub async fn adopt(&self) -> Result<Vec<Arc<SnapshotManifest>>, ExposeError> {
        let _changing = self.inner.changing.lock().await;
        self.inner.blocking(Inner::adopt_now).await
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

    /// Whether a snapshot is shown while it loads, so that its transfer must go on.
    pub fn is_shown(&self, key: &SnapshotKey) -> bool {
        self.inner.shared.find(Family::of(key)).is_some()
    }

    /// Says how long the files of a snapshot are that an earlier agent showed.
    pub fn set_lengths(&self, key: &SnapshotKey, lengths: Vec<u64>) {
        if let Some(shown) = self.inner.shared.find(Family::of(key)) {
            // They are what they were.
            let _ = shown.tree.lengths.set(lengths);
        }
    }

    /// Says how the transfer of a snapshot is doing.
    pub fn report(&self, key: &SnapshotKey, condition: Condition) {
        let Some(shown) = self.inner.shared.find(Family::of(key)) else { return };
        if let Condition::Failed { why, .. } = &condition {
            self.inner.events.tell(&shown, None, why);
        }
        shown.report(condition);
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

    fn mounts(&self) -> Result<Vec<Mount>, ExposeError> {
        mount_table::read().map_err(ExposeError::mount("read the mount table for", &self.config.directory))
    }

    /// What the mount table says is shown where.
    fn volumes_in(&self, mounts: &[Mount]) -> Vec<Volume> {
        let snapshots = self.store.snapshots_directory();
        let under = mount_table::containing(mounts, &snapshots).and_then(|mount| {
            let within = snapshots.strip_prefix(&mount.target).ok()?;
            Some((&mount.device, mount.root.join(within)))
        });
        let source = self.config.source();
        let volume = |mount: &Mount| {
            let is_fuse = mount.kind == "fuse" && mount.source == source;
            let root = match &under {
                _ if is_fuse => mount.root.strip_prefix("/").ok()?,
                Some((device, within)) if mount.device == **device => mount.root.strip_prefix(within).ok()?,
                _ => return None,
            };
            let snapshot: SnapshotKey = root.components().next()?.as_os_str().to_str()?.parse().ok()?;
            let serving = match is_fuse {
                false => Serving::Bind,
                true if self.shared.passes_through() => Serving::Passthrough,
                true => Serving::Fuse,
            };
            Some(Volume { target: mount.target.clone(), snapshot, serving })
        };
        mount_table::visible(mounts).filter_map(volume).collect()
    }

    /// Looks at the mount table, and holds in the store what is mounted, no more and no less.
    fn refresh(&self) -> Result<Vec<Volume>, ExposeError> {
        let volumes = self.volumes_in(&self.mounts()?);
        let mut held = lock(&self.held);
        held.retain(|target, hold| {
            volumes.iter().any(|volume| volume.target == *target && volume.snapshot == hold.key())
        });
        for volume in &volumes {
            if !held.contains_key(&volume.target) {
                match self.store.hold(volume.snapshot) {
                    Ok(hold) => drop(held.insert(volume.target.clone(), hold)),
                    Err(error) => {
                        tracing::warn!(target = %volume.target.display(), %error, "a volume shows what the store does not know");
                    }
                }
            }
        }
        drop(held);
        self.metrics.volumes.set(i64::try_from(volumes.len()).unwrap_or(i64::MAX));
        self.hide_unseen(&volumes);
        Ok(volumes)
    }

    /// Forgets snapshots of the file system that no volume shows and nobody has open.
    fn hide_unseen(&self, volumes: &[Volume]) {
        let is_seen = |key: &SnapshotKey| {
            volumes.iter().any(|volume| volume.serving != Serving::Bind && volume.snapshot == *key)
        };
        let gone: Vec<Arc<Shown>> = {
            let mut shown = self.shared.shown.write().unwrap_or_else(PoisonError::into_inner);
            shown
                .extract_if(|_, shown| !is_seen(&shown.key()) && !shown.is_open())
                .map(|(_, shown)| shown)
                .collect()
        };
        for shown in gone {
            for entry in &shown.tree.manifest.objects {
                self.shared.reader.forget(&entry.blob);
            }
            if let Some(session) = lock(&self.session).as_ref() {
                session.hidden(&shown.key());
            }
        }
    }

    /// What is mounted at a target: nothing, the snapshot, or something else.
    fn is_there(&self, key: SnapshotKey, target: &Path) -> Result<Option<Volume>, ExposeError> {
        let mounts = self.mounts()?;
        let Some(mount) = mount_table::at(&mounts, target) else { return Ok(None) };
        let volume = self.volumes_in(&mounts).into_iter().find(|volume| volume.target == target);
        match volume {
            Some(volume) if volume.snapshot == key => Ok(Some(volume)),
            Some(volume) => Err(occupied(target, format!("snapshot {}", volume.snapshot))),
            None => Err(occupied(target, format!("a mount of {}", mount.source))),
        }
    }

    fn bind_now(&self, key: SnapshotKey, target: &Path) -> Result<Volume, ExposeError> {
        self.check_target(target)?;
        if let Some(volume) = self.is_there(key, target)? {
            return Ok(volume);
        }
        let hold = self.store.hold(key)?;
        let not_found = || StoreError::NotFound { name: key.to_string() };
        let directory =
            self.store.snapshot(&key).and_then(|record| record.directory).ok_or_else(not_found)?;
        bind_read_only(&directory, target)?;
        lock(&self.held).insert(target.to_owned(), hold);
        self.refresh()?;
        Ok(Volume { target: target.to_owned(), snapshot: key, serving: Serving::Bind })
    }

    fn show_now(
        &self,
        manifest: Arc<SnapshotManifest>,
        lengths: Vec<u64>,
        target: &Path,
    ) -> Result<Volume, ExposeError> {
        let key = manifest.key();
        self.check_target(target)?;
        if let Some(volume) = self.is_there(key, target)? {
            return Ok(volume);
        }
        let hold = self.store.hold(key)?;
        self.ensure_session()?;
        let shown = self.show_snapshot(manifest)?;
        // They are the same for everyone who knows them.
        let _ = shown.tree.lengths.set(lengths);
        let directory = lock(&self.session).as_ref().expect("it was just made").directory(&key);
        let bound = bind_read_only(&directory, target);
        if bound.is_ok() {
            lock(&self.held).insert(target.to_owned(), hold);
        }
        self.refresh()?;
        bound?;
        let serving = if self.shared.passes_through() { Serving::Passthrough } else { Serving::Fuse };
        Ok(Volume { target: target.to_owned(), snapshot: key, serving })
    }

    /// Adds a snapshot to the file system.
    fn show_snapshot(&self, manifest: Arc<SnapshotManifest>) -> Result<Arc<Shown>, ExposeError> {
        let key = manifest.key();
        let family = Family::of(&key);
        if let Some(shown) = self.shared.find(family) {
            let why = || format!("its number is that of {}", shown.key());
            return if shown.key() == key { Ok(shown) } else { Err(ExposeError::NoFuse { why: why() }) };
        }
        let shown = Arc::new(Shown::new(Tree::new(manifest)?, self.store.hold(key)?));
        let mut all = self.shared.shown.write().unwrap_or_else(PoisonError::into_inner);
        all.insert(family, Arc::clone(&shown));
        Ok(shown)
    }

    fn ensure_session(&self) -> Result<(), ExposeError> {
        let mut session = lock(&self.session);
        if session.is_none() {
            self.remove_orphans()?;
            *session = Some(FuseSession::mount(&self.config, &self.shared)?);
        }
        Ok(())
    }

    fn unpublish_now(&self, target: &Path) -> Result<bool, ExposeError> {
        let mounts = self.mounts()?;
        let Some(mount) = mount_table::at(&mounts, target) else { return Ok(false) };
        let is_volume = self.volumes_in(&mounts).iter().any(|volume| volume.target == target);
        if !is_volume {
            return Err(occupied(target, format!("a mount of {}, which is no volume", mount.source)));
        }
        detach(target)?;
        self.refresh()?;
        Ok(true)
    }

    /// Takes an earlier agent's session over, if the keeper has one; else removes what nobody serves.
    fn adopt_now(&self) -> Result<Vec<Arc<SnapshotManifest>>, ExposeError> {
        let mut session = lock(&self.session);
        if session.is_some() {
            return Ok(Vec::new());
        }
        let mut manifests = BTreeMap::new();
        for volume in self.volumes_in(&self.mounts()?) {
            match self.store.snapshot(&volume.snapshot) {
                _ if volume.serving == Serving::Bind => {}
                Some(record) => drop(manifests.insert(volume.snapshot, record.manifest)),
                None => {
                    tracing::warn!(target = %volume.target.display(), "a volume shows what the store lost");
                }
            }
        }
        // Shown before the session begins, which answers at once what was left unanswered.
        for manifest in manifests.values() {
            self.show_snapshot(Arc::clone(manifest))?;
        }
        *session = FuseSession::adopt(&self.config, &self.shared)?;
        let is_adopted = session.is_some();
        drop(session);
        if !is_adopted {
            self.remove_orphans()?;
        }
        self.adopted.store(true, Ordering::Release);
        self.refresh()?;
        Ok(if is_adopted { manifests.into_values().collect() } else { Vec::new() })
    }

    /// Removes volumes that loaded when their agent ended without leaving them to a keeper.
    fn remove_orphans(&self) -> Result<(), ExposeError> {
        for volume in self.volumes_in(&self.mounts()?).iter().filter(|volume| volume.serving != Serving::Bind)
        {
            tracing::warn!(target = %volume.target.display(), "removing a volume that lost its agent");
            detach(&volume.target)?;
        }
        Ok(())
    }

    fn end_now(&self) {
        if self.config.keeper.is_none()
            && let Ok(mounts) = self.mounts()
        {
            let volumes = self.volumes_in(&mounts);
            for volume in volumes.iter().filter(|volume| volume.serving != Serving::Bind) {
                if let Err(error) = detach(&volume.target) {
                    tracing::warn!(target = %volume.target.display(), %error, "a volume stays mounted");
                }
            }
        }
        if let Some(session) = lock(&self.session).take() {
            session.end(&self.shared);
        }
    }

    fn check_target(&self, target: &Path) -> Result<(), ExposeError> {
        let bad = |why| Err(ExposeError::BadTarget { path: target.to_owned(), why });
        let is_plain = target.components().all(|part| !matches!(part, std::path::Component::ParentDir));
        if !target.is_absolute() || !is_plain {
            return bad("a target is an absolute path without ..");
        }
        if target.starts_with(self.store.config().directory.as_path()) {
            return bad("it lies in the store");
        }
        if target.starts_with(&self.config.directory) {
            return bad("it lies where weightd mounts its own file system");
        }
        match std::fs::symlink_metadata(target) {
            Ok(found) if found.is_symlink() => bad("it is a symbolic link"),
            Ok(found) if !found.is_dir() => bad("it is a file"),
            _ => Ok(()),
        }
    }

    /// Files that have a blob.
    fn positions(&self, blob: &BlobKey) -> Vec<(Arc<Shown>, usize)> {
        let shown = self.shared.shown.read().unwrap_or_else(PoisonError::into_inner);
        let positions = |shown: &Arc<Shown>| {
            let shown = Arc::clone(shown);
            shown.positions(blob).into_iter().map(move |at| (Arc::clone(&shown), at)).collect::<Vec<_>>()
        };
        shown.values().flat_map(positions).collect()
    }

    /// Bytes of a file turned out to be wrong. If any reader got some of them, the volume must not go on.
    fn discarded(&self, blob: &BlobKey) {
        self.shared.reader.forget(blob);
        for (shown, position) in self.positions(blob) {
            self.stop(&shown, position);
        }
    }

    fn stop(&self, shown: &Shown, position: usize) {
        if shown.was_read(position) {
            let why = format!(
                "{} did not match its checksum after part of it was read; unmount the volume and mount it again",
                shown.url(position)
            );
            tracing::error!(snapshot = %shown.key(), why, "a volume is stopped");
            self.events.tell(shown, Some(position), &why);
            shown.report(Condition::Stopped(why.into()));
        }
        if let Some(session) = lock(&self.session).as_ref() {
            session.discarded(shown, position);
        }
    }
}

/// Listens for blobs whose bytes were wrong, and looks now and then for volumes that others unmounted.
async fn watch(inner: Weak<Inner>, mut discarded: tokio::sync::broadcast::Receiver<BlobKey>) {
    let mut ticks = tokio::time::interval(LOOK);
    loop {
        let news = tokio::select! {
            blob = discarded.recv() => Some(blob),
            _ = ticks.tick() => None,
        };
        let Some(inner) = inner.upgrade() else { return };
        let outcome = match news {
            // The kernel may make a caller wait who tells it to forget something.
            Some(Ok(blob)) => {
                inner
                    .blocking(move |inner| {
                        inner.discarded(&blob);
                        Ok(())
                    })
                    .await
            }
            Some(Err(RecvError::Lagged(_))) => Ok(()),
            Some(Err(RecvError::Closed)) => return,
            None => {
                let _changing = inner.changing.lock().await;
                inner.blocking(|inner| inner.refresh().map(drop)).await
            }
        };
        if let Err(error) = outcome {
            tracing::warn!(%error, "could not look after the volumes");
        }
    }
}

fn occupied(target: &Path, found: String) -> ExposeError {
    ExposeError::Occupied { path: target.to_owned(), found }
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}
