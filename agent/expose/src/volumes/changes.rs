//! Volumes come, go, and are taken over. Everything here blocks.

use std::{
    collections::BTreeMap,
    path::Path,
    sync::{Arc, PoisonError, atomic::Ordering},
};

use weightd_store::{SnapshotManifest, StoreError};
use weightd_types::{BlobKey, SnapshotKey};

use super::{Inner, Serving, Volume, lock, table::occupied};
use crate::{
    Condition, ExposeError,
    bind::{bind_read_only, detach},
    fuse::{Family, Tree},
    mount_table,
    session::FuseSession,
    shown::Shown,
};

impl Inner {
    pub(super) fn bind_now(&self, key: SnapshotKey, target: &Path) -> Result<Volume, ExposeError> {
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

    pub(super) fn show_now(
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
    pub(super) fn show_snapshot(&self, manifest: Arc<SnapshotManifest>) -> Result<Arc<Shown>, ExposeError> {
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

    pub(super) fn ensure_session(&self) -> Result<(), ExposeError> {
        self.check_not_ended()?;
        let mut session = lock(&self.session);
        if session.is_none() {
            self.remove_orphans()?;
            *session = Some(FuseSession::mount(&self.config, &self.shared)?);
        }
        Ok(())
    }

    /// A call that was under way when the agent was told to end must not begin anew: what looks like volumes without an
    /// agent is what the next agent takes over.
    fn check_not_ended(&self) -> Result<(), ExposeError> {
        if self.ended.load(Ordering::Acquire) { Err(StoreError::Closed.into()) } else { Ok(()) }
    }

    pub(super) fn unpublish_now(&self, target: &Path) -> Result<bool, ExposeError> {
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
    pub(super) fn adopt_now(&self) -> Result<Vec<Arc<SnapshotManifest>>, ExposeError> {
        self.check_not_ended()?;
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
        // What is complete was warmed up by the agent before.
        let is_loading = |key: &SnapshotKey| self.store.snapshot(key).is_some_and(|record| !record.complete);
        if self.config.warm_up && self.shared.passes_through() {
            manifests.keys().filter(|key| is_loading(key)).for_each(|key| self.warm_up.want(*key));
        }
        Ok(if is_adopted { manifests.into_values().collect() } else { Vec::new() })
    }

    /// Removes volumes that loaded when their agent ended without leaving them to a keeper.
    pub(super) fn remove_orphans(&self) -> Result<(), ExposeError> {
        for volume in self.volumes_in(&self.mounts()?).iter().filter(|volume| volume.serving != Serving::Bind)
        {
            tracing::warn!(target = %volume.target.display(), "removing a volume that lost its agent");
            detach(&volume.target)?;
        }
        Ok(())
    }

    pub(super) fn end_now(&self) {
        self.ended.store(true, Ordering::Release);
        self.warm_up.end();
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

    /// Files that have a blob.
    pub(super) fn positions(&self, blob: &BlobKey) -> Vec<(Arc<Shown>, usize)> {
        let shown = self.shared.shown.read().unwrap_or_else(PoisonError::into_inner);
        let positions = |shown: &Arc<Shown>| {
            let shown = Arc::clone(shown);
            shown.positions(blob).into_iter().map(move |at| (Arc::clone(&shown), at)).collect::<Vec<_>>()
        };
        shown.values().flat_map(positions).collect()
    }

    /// Bytes of a file turned out to be wrong. If any reader got some of them, the volume must not go on.
    pub(super) fn discarded(&self, blob: &BlobKey) {
        self.shared.reader.forget(blob);
        for (shown, position) in self.positions(blob) {
            self.stop(&shown, position);
        }
    }

    pub(super) fn stop(&self, shown: &Shown, position: usize) {
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
