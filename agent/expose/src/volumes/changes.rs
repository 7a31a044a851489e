//! Volumes come, go, and are taken over. Everything here blocks.

use std::{
    collections::BTreeSet,
    path::Path,
    sync::{Arc, PoisonError, atomic::Ordering},
};

use weightd_store::{SnapshotEntry, SnapshotManifest, SnapshotRecord, StoreError};
use weightd_types::{BlobKey, RESERVED_NAME, SnapshotKey};

use super::{Inner, Serving, Volume, lock, table::occupied};
use crate::{
    Condition, ExposeError,
    bind::{bind_read_only, detach},
    fuse::{Family, Tree},
    mount_table,
    session::{FuseSession, Left},
    shown::Shown,
};

impl Inner {
    pub(super) fn bind_now(&self, key: SnapshotKey, target: &Path) -> Result<Volume, ExposeError> {
        self.check_target(target)?;
        if let Some(volume) = self.is_there(key, target)? {
            self.attach_handoff(key, target);
            return Ok(volume);
        }
        let hold = self.store.hold(key)?;
        let not_found = || StoreError::NotFound { name: key.to_string() };
        let directory =
            self.store.snapshot(&key).and_then(|record| record.directory).ok_or_else(not_found)?;
        bind_read_only(&directory, target)?;
        self.attach_handoff(key, target);
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
            self.attach_handoff(key, target);
            return Ok(volume);
        }
        let hold = self.store.hold(key)?;
        let session = self.ensure_session()?;
        // So that the next agent can go on with it when the origin cannot be asked.
        self.store.set_lengths(key, &lengths)?;
        let shown = self.show_snapshot(manifest, lengths)?;
        if let Some(why) = shown.stopped() {
            return Err(ExposeError::Stopped { path: target.to_owned(), why });
        }
        let directory = session.directory(&key);
        let bound = bind_read_only(&directory, target);
        if bound.is_ok() {
            self.attach_handoff(key, target);
            lock(&self.held).insert(target.to_owned(), hold);
        }
        self.refresh()?;
        bound?;
        let serving = if self.shared.passes_through() { Serving::Passthrough } else { Serving::Fuse };
        Ok(Volume { target: target.to_owned(), snapshot: key, serving })
    }

    /// Puts the hand-off socket into a volume. One without it is a volume all the same: its files can be mapped.
    fn attach_handoff(&self, key: SnapshotKey, target: &Path) {
        if let Err(error) = self.handoff.attach(key, target) {
            tracing::warn!(target = %target.display(), %error, "a volume has no hand-off socket; its files are there");
        }
    }

    /// Adds a snapshot to the file system.
    pub(super) fn show_snapshot(
        &self,
        manifest: Arc<SnapshotManifest>,
        lengths: Vec<u64>,
    ) -> Result<Arc<Shown>, ExposeError> {
        let key = manifest.key();
        let family = Family::of(&key);
        if let Some(shown) = self.shared.find(family) {
            let why = || format!("its number is that of {}", shown.key());
            return if shown.key() == key { Ok(shown) } else { Err(ExposeError::NoFuse { why: why() }) };
        }
        let shown = Arc::new(Shown::new(Tree::new(manifest, lengths)?, self.store.hold(key)?));
        let mut all = self.shared.shown.write().unwrap_or_else(PoisonError::into_inner);
        all.insert(family, Arc::clone(&shown));
        Ok(shown)
    }

    /// The session that serves the FUSE mount, begun if there is none. One whose mount someone took away goes on for those
    /// who use it, and without a keeper: that one's place is taken.
    pub(super) fn ensure_session(&self) -> Result<Arc<FuseSession>, ExposeError> {
        self.check_not_ended()?;
        let mut session = lock(&self.session);
        if let Some(session) = session.as_ref()
            && session.is_mounted()?
        {
            return Ok(Arc::clone(session));
        }
        match session.take() {
            None => self.remove_orphans()?,
            Some(_) => tracing::warn!(
                directory = %self.config.directory.display(),
                "the file system of the volumes was unmounted; mounting another beside it"
            ),
        }
        let begun = Arc::new(FuseSession::mount(&self.config, &self.shared)?);
        *session = Some(Arc::clone(&begun));
        Ok(begun)
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
        if !is_volume && !mount_table::is_snapshot(mount) {
            return Err(occupied(target, format!("a mount of {}, which is no volume", mount.source)));
        }
        let socket = target.join(RESERVED_NAME);
        if mount_table::at(&mounts, &socket).is_some() {
            detach(&socket)?;
        }
        detach(target)?;
        self.refresh()?;
        Ok(true)
    }

    /// Takes an earlier agent's session over, if the keeper has one; else removes what nobody serves. Gives the snapshots
    /// whose transfers are to go on.
    pub(super) fn adopt_now(&self) -> Result<Vec<Arc<SnapshotManifest>>, ExposeError> {
        self.check_not_ended()?;
        let mut session = lock(&self.session);
        if session.is_some() {
            return Ok(Vec::new());
        }
        let Some(left) = Left::find(&self.config)? else {
            drop(session);
            self.remove_orphans()?;
            self.adopted.store(true, Ordering::Release);
            return self.refresh().map(|_| Vec::new());
        };
        let mut manifests = Vec::new();
        for record in self.still_shown(&left)? {
            match self.lengths(&record.manifest)? {
                Some(lengths) => self.show_again(&record, lengths)?,
                None => tracing::error!(
                    snapshot = %record.key(), source = %record.manifest.source,
                    "a volume cannot be served any more: the lengths of its files are lost with the index; unmount it"
                ),
            }
            manifests.push(record.manifest);
        }
        *session = Some(Arc::new(left.serve(&self.config, &self.shared)?));
        drop(session);
        self.adopted.store(true, Ordering::Release);
        self.refresh()?;
        self.want_warm(&manifests);
        Ok(manifests)
    }

    /// Snapshots that an earlier agent showed: those of volumes, and those of which someone has a file open although the
    /// volume is gone.
    fn still_shown(&self, left: &Left) -> Result<Vec<SnapshotRecord>, ExposeError> {
        let volumes = self.volumes_in(&self.mounts()?);
        let shown: BTreeSet<SnapshotKey> = volumes
            .iter()
            .filter(|volume| volume.serving != Serving::Bind)
            .map(|volume| volume.snapshot)
            .collect();
        for volume in volumes.iter().filter(|volume| shown.contains(&volume.snapshot)) {
            if self.store.snapshot(&volume.snapshot).is_none() {
                tracing::warn!(target = %volume.target.display(), "a volume shows what the store lost");
            }
        }
        let is_shown = |record: &SnapshotRecord| shown.contains(&record.key()) || left.is_used(&record.key());
        Ok(self.store.snapshots().into_iter().filter(is_shown).collect())
    }

    /// Lengths of a snapshot's files, as written down, or as the blobs have them when all are complete.
    fn lengths(&self, manifest: &SnapshotManifest) -> Result<Option<Vec<u64>>, StoreError> {
        if let Some(lengths) = self.store.lengths(manifest.key())? {
            return Ok(Some(lengths));
        }
        let length = |entry: &SnapshotEntry| self.store.blob_length_now(&entry.blob);
        Ok(manifest.objects.iter().map(length).collect())
    }

    /// Shows a snapshot that an earlier agent showed. Whether any of its provisional bytes were read nobody knows, so they
    /// were: if they turn out to be wrong, their readers must hear of it.
    fn show_again(&self, record: &SnapshotRecord, lengths: Vec<u64>) -> Result<(), ExposeError> {
        let shown = self.show_snapshot(Arc::clone(&record.manifest), lengths)?;
        let objects = record.manifest.objects.iter().enumerate();
        objects
            .filter(|(_, entry)| !self.store.has_blob(&entry.blob))
            .for_each(|(position, _)| shown.mark_read(position));
        Ok(())
    }

    /// Warms up what still loads; what is complete was warmed up by the agent before.
    fn want_warm(&self, manifests: &[Arc<SnapshotManifest>]) {
        if self.config.warm_up && self.shared.passes_through() {
            let loading = |key: &SnapshotKey| self.store.snapshot(key).is_some_and(|record| !record.complete);
            manifests
                .iter()
                .map(|manifest| manifest.key())
                .filter(loading)
                .for_each(|key| self.warm_up.want(key));
        }
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
        self.handoff.end();
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
        self.handoff.discarded(blob);
        self.shared.reader.forget(blob);
        for (shown, position) in self.positions(blob) {
            self.stop(&shown, position);
        }
    }

    pub(super) fn stop(&self, shown: &Shown, position: usize) {
        if shown.was_read(position) {
            let why = format!(
                "{} did not match its checksum after part of it was read; unmount all volumes of the snapshot and mount them again",
                shown.url(position)
            );
            tracing::error!(snapshot = %shown.key(), why, "a volume is stopped");
            self.events.tell(shown, Some(position), &why);
            shown.report(Condition::Stopped(why.into()));
        }
        // Telling the kernel may take as long as someone waits for a page: not under the lock.
        let session = lock(&self.session).clone();
        if let Some(session) = session {
            session.discarded(shown, position);
        }
    }

    /// Bytes of some files turned out to be wrong, and nobody knows of which: of any that are still arriving.
    pub(super) fn discarded_unseen(&self) {
        let all: Vec<Arc<Shown>> =
            self.shared.shown.read().unwrap_or_else(PoisonError::into_inner).values().cloned().collect();
        for blob in all.iter().flat_map(|shown| shown.tree.manifest.objects.iter().map(|entry| entry.blob)) {
            if !self.store.has_blob(&blob) {
                self.discarded(&blob);
            }
        }
    }
}
