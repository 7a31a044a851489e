//! Snapshots: what is wanted, published, pinned and used.

use std::{io, os::unix::fs::PermissionsExt, path::Path, sync::Arc};

use weightd_types::{BlobKey, Layout, SnapshotKey};

use crate::{
    Job, Reservation, SnapshotEntry, SnapshotManifest, SnapshotRecord, SnapshotUse, Store, StoreError,
    catalog::{Entry, Place},
    manifest::encode,
    partial::recorded_placement,
    store::{lock, now},
    usage::{entries, is_file},
};

/// Room to allow for the padded header of an aligned blob, beyond its object's length.
const HEADER_ROOM: u64 = 128 << 10;

impl Store {
    /// Writes down that a snapshot is wanted, and holds it. One that is complete stays so.
    ///
    /// # Errors
    /// [`StoreError::Io`], [`StoreError::Full`].
    pub async fn expect(&self, manifest: SnapshotManifest) -> Result<SnapshotUse, StoreError> {
        self.blocking(move |store| {
            let key = manifest.key();
            let _changing = lock(&store.inner.changing);
            let path = store.paths().loading_manifest(&key);
            let known = store.catalog().get(&key).map(|entry| entry.complete);
            // One whose removal failed half way is known, and nothing on the disk says so.
            if !known.is_some_and(|complete| complete || is_file(&path)) {
                store.write_whole(&path, &encode(&manifest), true)?;
                let manifest = Arc::new(manifest);
                let mut catalog = store.catalog();
                let last_used = catalog.next_use();
                catalog.insert(Entry {
                    manifest,
                    complete: false,
                    place: Place::Own,
                    pinned: false,
                    wanted: false,
                    last_used,
                    uses: 0,
                });
            }
            store.hold(key)
        })
        .await
    }

    /// Promises room for what is missing of a snapshot that is expected. Returns the promise.
    ///
    /// # Errors
    /// [`StoreError::Full`].
    pub async fn reserve_for(&self, manifest: &SnapshotManifest) -> Result<Reservation, StoreError> {
        let entries: Vec<_> = manifest.objects.iter().map(|entry| (entry.blob, entry.object.size)).collect();
        let needed = self
            .blocking(move |store| {
                let room = |layout| if layout == Layout::Aligned { HEADER_ROOM } else { 0 };
                // Partial blobs are allocated in full, so a file that is there needs nothing more.
                let is_missing = |key| !is_file(&store.paths().blob(key)) && store.home_of(key).is_none();
                let missing = entries.iter().filter(|(key, _)| is_missing(key));
                Ok(missing.map(|(key, size)| size + room(key.layout)).sum())
            })
            .await?;
        self.reserve(needed).await
    }

    /// Whether a snapshot is complete and its files are all where they should be. Files that someone deleted make it
    /// incomplete, so that a prefetch brings them back.
    ///
    /// # Errors
    /// [`StoreError::Io`].
    pub async fn is_complete(&self, key: SnapshotKey) -> Result<bool, StoreError> {
        self.blocking(move |store| {
            let Some(record) = store.snapshot(&key).filter(|record| record.complete) else { return Ok(false) };
            let has_files = |directory: &Path| record.manifest.objects.iter().all(|entry| {
                let found = std::fs::symlink_metadata(directory.join(&entry.object.path));
                let whole = |len: u64| match entry.blob.layout {
                    Layout::Aligned => store.manifest_of(&entry.blob).is_ok_and(|manifest| manifest.blob_bytes == len),
                    Layout::Original => len == entry.object.size,
                };
                found.is_ok_and(|found| found.is_file() && whole(found.len()))
            });
            let intact = match &record.directory {
                Some(directory) => has_files(directory) && store.is_intact_in_tier(&record),
                None => record.manifest.objects.iter().all(|entry| store.has_blob(&entry.blob)),
            };
            if !intact {
                tracing::warn!(snapshot = %key, "files of a complete snapshot are missing or have another length");
                let _changing = lock(&store.inner.changing);
                store.mark_incomplete(&key)?;
            }
            Ok(intact)
        })
        .await
    }

    /// Makes a snapshot's directory, all of whose blobs must be complete, and calls the snapshot complete. Durable when
    /// it returns.
    ///
    /// # Errors
    /// [`StoreError::Incomplete`] names an object whose blob is not complete (any more), [`StoreError::Io`],
    /// [`StoreError::Full`].
    pub async fn publish(&self, manifest: SnapshotManifest) -> Result<SnapshotRecord, StoreError> {
        self.blocking(move |store| {
            let key = manifest.key();
            let paths = store.paths();
            let _changing = lock(&store.inner.changing);
            if store.snapshot(&key).is_none_or(|record| !record.complete) {
                store.has_all(&manifest)?;
                let place = store.place_for(&manifest);
                if place == Place::Own {
                    if !store.is_linked(&manifest)? {
                        store.link_snapshot(&manifest)?;
                    }
                    store.write_whole(&paths.snapshot_manifest(&key), &encode(&manifest), true)?;
                    let engine = &store.inner.engine;
                    engine
                        .sync_directory(&paths.snapshots())
                        .map_err(StoreError::io("sync", paths.snapshots()))?;
                }
                // One in parts is made whole again after a restart, when the tiers are here: until then it is as if it loaded.
                if place != Place::Parts {
                    let loading = paths.loading_manifest(&key);
                    store.inner.engine.remove(&loading).map_err(StoreError::io("remove", loading))?;
                }
                let manifest = Arc::new(manifest);
                let (pinned, wanted, last_used, uses) = (false, false, 0, 0);
                let entry = Entry { manifest, complete: true, place, pinned, wanted, last_used, uses };
                store.catalog().insert(entry);
                store.inner.metrics.published_snapshots.inc();
            }
            store.mark_used(&key)?;
            store.snapshot(&key).ok_or_else(|| StoreError::NotFound { name: key.to_string() })
        })
        .await
    }

    /// Where a snapshot's files are, all of whose blobs are complete somewhere.
    pub(crate) fn place_for(&self, manifest: &SnapshotManifest) -> Place {
        match manifest.objects.iter().all(|entry| self.has_own(&entry.blob)) {
            true => Place::Own,
            false if self.tier_with(&manifest.key(), false).is_some_and(|tier| tier.is_intact(manifest)) => {
                Place::Tier
            }
            false => Place::Parts,
        }
    }

    /// Whether the files of a snapshot that a tier shows are its blobs; true of all others.
    fn is_intact_in_tier(&self, record: &SnapshotRecord) -> bool {
        let key = record.key();
        let tier = self.tier_with(&key, !record.in_tier);
        tier.is_none_or(|tier| tier.is_intact(&record.manifest))
    }

    fn has_all(&self, manifest: &SnapshotManifest) -> Result<(), StoreError> {
        let is_missing = |key: &BlobKey| self.home_of(key).is_none();
        match manifest.objects.iter().find(|entry| is_missing(&entry.blob)) {
            Some(entry) => {
                Err(StoreError::Incomplete { name: manifest.source.object_url(&entry.object.path) })
            }
            None => Ok(()),
        }
    }

    /// Turns a complete snapshot back into one that is wanted. The caller holds `changing`.
    pub(crate) fn mark_incomplete(&self, key: &SnapshotKey) -> Result<(), StoreError> {
        let (engine, paths) = (&self.inner.engine, self.paths());
        let Some(record) = self.snapshot(key).filter(|record| record.complete) else { return Ok(()) };
        self.write_whole(&paths.loading_manifest(key), &encode(record.manifest.as_ref()), true)?;
        let complete = paths.snapshot_manifest(key);
        engine.remove(&complete).map_err(StoreError::io("remove", &complete))?;
        engine.sync_directory(&paths.snapshots()).map_err(StoreError::io("sync", paths.snapshots()))?;
        self.catalog().set_incomplete(key);
        Ok(())
    }

    /// Removes a snapshot's directory. Its directories are sealed, which stops anyone but root from emptying them.
    pub(crate) fn remove_directory(&self, directory: &Path) -> Result<(), StoreError> {
        unseal(directory)?;
        self.inner.engine.remove_tree(directory).map_err(StoreError::io("remove", directory))
    }

    /// Pins or unpins a snapshot. Durable when it returns.
    ///
    /// # Errors
    /// [`StoreError::NotFound`], [`StoreError::Index`].
    pub async fn set_pinned(&self, key: SnapshotKey, pinned: bool) -> Result<(), StoreError> {
        self.blocking(move |store| {
            // One that was chosen for eviction is gone when this goes on, and not half pinned.
            let _changing = lock(&store.inner.changing);
            if store.catalog().get(&key).is_none() {
                return Err(StoreError::NotFound { name: key.to_string() });
            }
            store.inner.index.set_pin(&key, pinned.then(now))?;
            if let Some(entry) = store.catalog().get_mut(&key) {
                entry.pinned = pinned;
            }
            Ok(())
        })
        .await
    }

    /// Remembers that a snapshot was used just now.
    ///
    /// # Errors
    /// [`StoreError::Index`].
    pub async fn touch(&self, key: SnapshotKey) -> Result<(), StoreError> {
        self.blocking(move |store| store.mark_used(&key)).await
    }

    fn mark_used(&self, key: &SnapshotKey) -> Result<(), StoreError> {
        let used = {
            let mut catalog = self.catalog();
            let used = catalog.next_use();
            if let Some(entry) = catalog.get_mut(key) {
                entry.last_used = used;
            }
            used
        };
        self.inner.index.touch(key, used)
    }

    /// Remembers a detached prefetch (or, with `None`, that it ended), so that it goes on after a restart.
    ///
    /// # Errors
    /// [`StoreError::Index`].
    pub async fn set_job(&self, key: SnapshotKey, job: Option<Job>) -> Result<(), StoreError> {
        self.blocking(move |store| store.inner.index.set_job(&key, job.as_ref())).await
    }

    /// Detached prefetches that have not ended.
    ///
    /// # Errors
    /// [`StoreError::Index`].
    pub async fn jobs(&self) -> Result<Vec<(SnapshotKey, Job)>, StoreError> {
        self.blocking(|store| store.inner.index.jobs()).await
    }

    /// Writes down how long the blobs of a snapshot will be, in the manifest's order, for whoever shows it before it is
    /// complete, also after a restart. Durable when it returns. Blocks.
    ///
    /// # Errors
    /// [`StoreError::Index`], [`StoreError::Full`].
    pub fn set_lengths(&self, key: SnapshotKey, lengths: &[u64]) -> Result<(), StoreError> {
        if self.lengths(key)?.is_some_and(|known| known == lengths) {
            return Ok(());
        }
        self.inner.index.set_lengths(&key, lengths)
    }

    /// How long the blobs of a snapshot will be, if that was written down. Blocks.
    ///
    /// # Errors
    /// [`StoreError::Index`].
    pub fn lengths(&self, key: SnapshotKey) -> Result<Option<Vec<u64>>, StoreError> {
        self.inner.index.lengths(&key)
    }

    /// Bytes of each of a snapshot's objects that are in the store, and whether the whole object is confirmed.
    ///
    /// # Errors
    /// [`StoreError::Index`].
    pub async fn presence(&self, manifest: Arc<SnapshotManifest>) -> Result<Vec<(u64, bool)>, StoreError> {
        self.blocking(move |store| {
            let active = lock(&store.inner.active).clone();
            let one = |entry: &SnapshotEntry| {
                if store.paths().blob_manifest(&entry.blob).exists() || store.home_of(&entry.blob).is_some() {
                    return Ok((entry.object.size, true));
                }
                if let Some(partial) = active.get(&entry.blob) {
                    return Ok((partial.present_bytes(), false));
                }
                Ok((store.recorded_bytes(entry)?, false))
            };
            manifest.objects.iter().map(one).collect()
        })
        .await
    }
}

impl Store {
    /// Bytes of an object whose chunks are recorded.
    fn recorded_bytes(&self, entry: &SnapshotEntry) -> Result<u64, StoreError> {
        let Some((_, header, chunks)) = self.inner.index.partial(&entry.blob)? else { return Ok(0) };
        let placement = recorded_placement(&entry.blob, entry.object.size, &header);
        let Some(placement) = placement else { return Ok(0) };
        let recorded = chunks.keys().filter(|chunk| **chunk < placement.chunk_count());
        let pieces = recorded.flat_map(|chunk| placement.pieces_of_chunk(*chunk));
        let bytes: u64 = pieces.map(|&piece| placement.pieces()[piece as usize].object.len()).sum();
        Ok(placement.replaced() + bytes)
    }
}

/// Of a file or directory of the store: a symbolic link would lead to one that is not.
pub(crate) fn set_mode(path: &Path, mode: u32) -> Result<(), StoreError> {
    let is_link = std::fs::symlink_metadata(path).is_ok_and(|found| found.is_symlink());
    let changed = if is_link {
        Err(io::Error::other("a symbolic link is in the place of a file of the store; remove it"))
    } else {
        std::fs::set_permissions(path, std::fs::Permissions::from_mode(mode))
    };
    changed.map_err(StoreError::io("change the mode of", path))
}

fn unseal(directory: &Path) -> Result<(), StoreError> {
    let mut waiting = vec![directory.to_owned()];
    while let Some(directory) = waiting.pop() {
        if std::fs::symlink_metadata(&directory).is_ok_and(|found| found.is_dir()) {
            set_mode(&directory, 0o755)?;
            waiting.extend(entries(&directory)?.into_iter().filter(|path| path.is_dir()));
        }
    }
    Ok(())
}
