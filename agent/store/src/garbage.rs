//! What nothing needs any more: left by crashes, by transfers that were given up, by removals that failed.

use std::{collections::HashMap, io::ErrorKind, time::Duration};

use weightd_types::{BlobKey, SnapshotKey};

use crate::{
    Store, StoreError,
    io::is_leftover,
    store::{MICROS, lock, now},
    usage::{blob_files, entries, is_directory, warn_of_stranger},
};

/// What a garbage collection did.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Collected {
    /// Bytes of files removed.
    pub freed_bytes: u64,
    /// Blobs removed, whole and partial.
    pub removed_blobs: u64,
    /// Snapshots evicted to get below the quota.
    pub evicted: Vec<SnapshotKey>,
}

impl Store {
    /// Removes what no snapshot needs (all partial blobs too, if `partials`), and evicts down to the low watermark
    /// when the store is above the high one.
    ///
    /// # Errors
    /// [`StoreError::Io`], [`StoreError::Index`].
    pub async fn collect_garbage(&self, partials: bool) -> Result<Collected, StoreError> {
        self.blocking(move |store| {
            let _changing = lock(&store.inner.changing);
            let keep = if partials { Duration::ZERO } else { store.config().partials_keep };
            let mut collected = Collected::default();
            for key in store.expired_snapshots(keep) {
                match store.remove_now(&key) {
                    // Someone takes it up again.
                    Err(StoreError::InUse { .. }) => {}
                    Err(error) => {
                        tracing::warn!(snapshot = %key, %error, "a snapshot that was given up cannot be removed");
                    }
                    Ok(freed) => collected.freed_bytes += freed,
                }
            }
            store.remove_orphans(keep, &mut collected)?;
            store.remove_unfinished()?;
            store.remove_unnamed()?;
            let before = store.usage_now()?.used;
            // An empty need still asks for the watermarks; what cannot be evicted is no error here.
            match store.make_room(0) {
                Ok(evicted) => collected.evicted = evicted,
                Err(StoreError::Full { .. }) => {}
                Err(error) => return Err(error),
            }
            collected.freed_bytes += before.saturating_sub(store.usage_now()?.used);
            Ok(collected)
        })
        .await
    }

    /// Snapshots whose transfer was interrupted long ago, and that no detached job wants.
    fn expired_snapshots(&self, keep: Duration) -> Vec<SnapshotKey> {
        let jobs: Vec<_> =
            self.inner.index.jobs().unwrap_or_default().into_iter().map(|(key, _)| key).collect();
        let before = now().saturating_sub(keep.as_secs());
        let catalog = self.catalog();
        let expired = catalog.iter().filter(|(key, entry)| {
            !entry.complete
                && entry.uses == 0
                && !entry.pinned
                && !entry.wanted
                && entry.last_used / MICROS <= before
                && !jobs.contains(key)
        });
        expired.map(|(key, _)| *key).collect()
    }

    /// Removes directories of snapshots that were never renamed into place.
    fn remove_unfinished(&self) -> Result<(), StoreError> {
        for path in entries(&self.paths().temporary())? {
            let name = path.file_name().and_then(|name| name.to_str()).unwrap_or_default();
            match name.parse::<SnapshotKey>() {
                Ok(_) => self.remove_directory(&path)?,
                Err(_) => warn_of_stranger(&path),
            }
        }
        Ok(())
    }

    /// Removes directories of snapshots that the catalog does not name; their hard links would keep the blobs' room taken.
    /// The caller holds `changing`, so that none is being published.
    fn remove_unnamed(&self) -> Result<(), StoreError> {
        for path in entries(&self.paths().snapshots())? {
            let key = path.file_name().and_then(|name| name.to_str()).and_then(|name| name.parse().ok());
            let is_unnamed = key.is_some_and(|key: SnapshotKey| self.catalog().get(&key).is_none());
            if is_unnamed && is_directory(&path) {
                self.remove_directory(&path)?;
            }
        }
        Ok(())
    }

    /// Removes blob files that belong to nothing: left by crashes, by failed transfers, by repairs.
    fn remove_orphans(&self, keep: Duration, collected: &mut Collected) -> Result<(), StoreError> {
        let (idle, _) = self.idle_partials(keep)?;
        let kept: HashMap<_, _> = self.inner.index.partials()?.into_iter().collect();
        let (mut orphans, mut strange) = (HashMap::<BlobKey, u64>::new(), Vec::new());
        for (path, metadata) in blob_files(&self.paths().blobs())? {
            let name = path.file_name().and_then(|name| name.to_str()).unwrap_or_default();
            let stem = name.strip_suffix(".json").or_else(|| name.strip_suffix(".header")).unwrap_or(name);
            let key =
                stem.parse().ok().filter(|key| path.parent() == Some(&self.paths().blob_directory(key)));
            match (key, metadata) {
                (Some(key), Ok(found)) if !found.is_dir() => *orphans.entry(key).or_default() += found.len(),
                (None, _) if is_leftover(&path) => {
                    self.inner.engine.remove(&path).map_err(StoreError::io("remove", &path))?;
                }
                (_, Err(error)) if error.kind() == ErrorKind::NotFound => {}
                (key, _) => {
                    strange.extend(key);
                    warn_of_stranger(&path);
                }
            }
        }
        orphans.retain(|key, _| !strange.contains(key));
        {
            let (catalog, active) = (self.catalog(), lock(&self.inner.active));
            let needed = |key: &BlobKey| {
                catalog.references().contains_key(key)
                    || active.contains_key(key)
                    || (kept.contains_key(key) && !idle.contains(key))
            };
            orphans.retain(|key, _| !needed(key));
        }
        let keys: Vec<_> = orphans.keys().copied().collect();
        self.discard(&keys, true)?;
        collected.removed_blobs += keys.len() as u64;
        collected.freed_bytes += orphans.values().sum::<u64>();
        Ok(())
    }
}
