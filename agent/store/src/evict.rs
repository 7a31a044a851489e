//! Making room: least recently used first, never what is pinned or in use.

use std::{
    collections::{BTreeMap, HashMap, HashSet},
    fs::Metadata,
    io,
    path::PathBuf,
    sync::Arc,
    time::Duration,
};

use weightd_types::{BlobKey, SnapshotKey};

use crate::{
    Reservation, SnapshotRecord, Store, StoreError,
    catalog::{Entry, Place},
    store::{lock, now},
    usage::{DiskUsage, blob_files, is_file},
};

/// What removing snapshots freed.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Removed {
    /// The snapshots.
    pub snapshots: Vec<SnapshotKey>,
    /// Bytes of files removed.
    pub freed_bytes: u64,
}

impl Store {
    /// Promises room for `bytes` more, evicting for it if need be. Nothing is evicted when that would not help.
    ///
    /// # Errors
    /// [`StoreError::Full`].
    pub async fn reserve(&self, bytes: u64) -> Result<Reservation, StoreError> {
        self.blocking(move |store| {
            let _changing = lock(&store.inner.changing);
            if bytes > 0 {
                store.make_room(bytes)?;
            }
            Ok(Reservation::new(store.clone(), bytes))
        })
        .await
    }

    /// A snapshot that cannot be removed keeps no other from going.
    pub(crate) fn make_room(&self, needed: u64) -> Result<Vec<SnapshotKey>, StoreError> {
        let (mut evicted, mut stuck) = (Vec::new(), BTreeMap::new());
        loop {
            let victims = match self.choose_and_discard(needed, &stuck) {
                // What is in the way says more than that there is no room.
                Err(full @ StoreError::Full { .. }) => {
                    return Err(stuck.into_values().next().unwrap_or(full));
                }
                chosen => chosen?,
            };
            let count = evicted.len() + victims.len();
            for key in victims {
                match self.remove_now(&key) {
                    Ok(_) => {
                        tracing::info!(snapshot = %key, "evicted the least recently used snapshot to make room");
                        self.inner.metrics.evicted_snapshots.inc();
                        evicted.push(key);
                    }
                    // Someone began to use it meanwhile: another has to go.
                    Err(StoreError::InUse { .. }) => {}
                    Err(error) => {
                        tracing::warn!(snapshot = %key, %error, "a snapshot cannot be evicted; another has to go");
                        stuck.insert(key, error);
                    }
                }
            }
            if evicted.len() == count {
                return Ok(evicted);
            }
        }
    }

    /// Discards the partial blobs that are in nobody's hands, if room is needed, and chooses the snapshots that follow.
    fn choose_and_discard(&self, needed: u64, stuck: &Stuck) -> Result<Vec<SnapshotKey>, StoreError> {
        let _beginning = lock(&self.inner.beginning);
        let (idle, victims) = self.choose(needed, stuck)?;
        self.discard(&idle, true)?;
        Ok(victims)
    }

    /// Partial blobs and snapshots to remove so that `needed` more bytes fit. The caller holds `beginning`.
    fn choose(&self, needed: u64, stuck: &Stuck) -> Result<(Vec<BlobKey>, Vec<SnapshotKey>), StoreError> {
        let usage = self.usage_now()?;
        let shortage = self.shortage(&usage, needed);
        if shortage.wished == 0 {
            return Ok((Vec::new(), Vec::new()));
        }
        let (mut idle, mut idle_bytes) = self.idle_partials(Duration::ZERO)?;
        for (key, bytes) in self.unrecorded_files()? {
            idle.push(key);
            idle_bytes += bytes;
        }
        let (victims, freed) = self.victims(shortage.wished.saturating_sub(idle_bytes), &idle, stuck);
        if idle_bytes + freed < shortage.required {
            let available = (needed + idle_bytes + freed).saturating_sub(shortage.required);
            let directory = self.paths().root().to_owned();
            return Err(StoreError::Full { directory, needed, available, limit: shortage.limit });
        }
        Ok((idle, victims))
    }

    /// What has to be freed before `needed` more bytes fit.
    fn shortage(&self, usage: &DiskUsage, needed: u64) -> Shortage {
        let free_after = usage.free.saturating_sub(usage.reserved);
        let below_floor = (needed + usage.floor).saturating_sub(free_after);
        let (mut required, mut wished) = (below_floor, below_floor);
        // In words: kubelet takes a percent sign in an error for one of a format.
        let mut limit = format!(
            "{:.0} percent of the file system stays free: `store.floor`, lower it for more",
            self.config().floor * 100.0
        );
        if let Some(quota) = self.config().quota_bytes {
            let after = usage.used + usage.reserved + needed;
            let over = after.saturating_sub(quota);
            if over > required {
                limit = "the store's quota: `store.quota`, raise it for more".to_owned();
            }
            required = required.max(over);
            if after > share(quota, self.config().high_watermark) {
                wished = wished.max(after.saturating_sub(share(quota, self.config().low_watermark)));
            }
            wished = wished.max(required);
        }
        Shortage { required, wished, limit }
    }

    /// The least recently used snapshots whose blobs, once nobody else needs them, free that much; all there are if
    /// that is not enough.
    fn victims(&self, bytes: u64, idle: &[BlobKey], stuck: &Stuck) -> (Vec<SnapshotKey>, u64) {
        let catalog = self.catalog();
        let mut references = catalog.references().clone();
        // What arrives is not freed, what is idle is freed already.
        let mut counted: HashSet<BlobKey> = lock(&self.inner.active).keys().copied().collect();
        counted.extend(idle);
        let is_candidate = |key: &SnapshotKey, entry: &Entry| may_evict(entry) && !stuck.contains_key(key);
        let mut candidates: Vec<_> = catalog.iter().filter(|(key, entry)| is_candidate(key, entry)).collect();
        candidates.sort_by_key(|(_, entry)| entry.last_used);
        let (mut victims, mut freed) = (Vec::new(), 0);
        for (key, entry) in candidates {
            if freed >= bytes {
                break;
            }
            for blob in unreferenced(&mut references, entry) {
                if counted.insert(blob) {
                    freed += std::fs::metadata(self.paths().blob(&blob)).map_or(0, |found| found.len());
                }
            }
            victims.push((key, entry));
        }
        // One whose blobs are all needed by snapshots that stay would be evicted for nothing.
        let is_of_use = |entry: &Entry| {
            entry.manifest.objects.iter().any(|object| references.get(&object.blob) == Some(&0))
        };
        victims.retain(|(_, entry)| is_of_use(entry));
        (victims.into_iter().map(|(key, _)| *key).collect(), freed)
    }

    /// Partial blobs that nobody fetches or waits for and that were not touched for so long: keys, and bytes they take.
    pub(crate) fn idle_partials(&self, idle: Duration) -> Result<(Vec<BlobKey>, u64), StoreError> {
        let held: HashSet<BlobKey> = {
            let catalog = self.catalog();
            let held = catalog.iter().filter(|(_, entry)| !may_evict(entry));
            held.flat_map(|(_, entry)| entry.manifest.objects.iter().map(|object| object.blob)).collect()
        };
        let active = lock(&self.inner.active);
        let before = now().saturating_sub(idle.as_secs());
        let recorded = self.inner.index.partials()?;
        // A record may outlive the blob's completion.
        let is_partial = |key: &BlobKey| !self.paths().blob_manifest(key).exists();
        let is_idle = |key: &BlobKey| !active.contains_key(key) && !held.contains(key) && is_partial(key);
        let old = recorded.into_iter().filter(|(key, record)| record.updated_at <= before && is_idle(key));
        let keys: Vec<_> = old.map(|(key, _)| key).collect();
        let bytes = keys
            .iter()
            .filter_map(|key| std::fs::metadata(self.paths().blob(key)).ok())
            .map(|found| found.len())
            .sum();
        Ok((keys, bytes))
    }

    /// Files of blobs that are neither complete nor recorded nor arriving: nobody can take them up. The caller holds
    /// `beginning`, so that none has just been made.
    fn unrecorded_files(&self) -> Result<Vec<(BlobKey, u64)>, StoreError> {
        let recorded: HashSet<BlobKey> =
            self.inner.index.partials()?.into_iter().map(|(key, _)| key).collect();
        // Before the manifests are looked for: a blob leaves it when it has one.
        let active: HashSet<BlobKey> = lock(&self.inner.active).keys().copied().collect();
        let unrecorded = |(path, metadata): (PathBuf, io::Result<Metadata>)| {
            let key: BlobKey = path.file_name()?.to_str()?.parse().ok()?;
            let found = metadata.ok().filter(|found| found.is_file() && self.paths().blob(&key) == path)?;
            let known = recorded.contains(&key) || active.contains(&key);
            (!known && !self.paths().blob_manifest(&key).exists()).then_some((key, found.len()))
        };
        Ok(blob_files(&self.paths().blobs())?.into_iter().filter_map(unrecorded).collect())
    }

    /// Removes snapshots that a name means: all of a source, or one by its id.
    ///
    /// # Errors
    /// [`StoreError::NotFound`], [`StoreError::InUse`], and [`StoreError::Pinned`] or [`StoreError::Wanted`] unless
    /// forced; nothing is removed then.
    pub async fn remove(&self, name: &str, force: bool) -> Result<Removed, StoreError> {
        let name = name.to_owned();
        self.blocking(move |store| {
            let _changing = lock(&store.inner.changing);
            let found = store.find_all(&name)?;
            if found.len() > 1 && name.parse::<weightd_types::SourceUri>().is_err() {
                return Err(StoreError::Ambiguous { name, count: found.len() });
            }
            let blocked = |why: fn(&SnapshotRecord) -> bool| found.iter().any(why);
            if blocked(|record| record.in_use) {
                return Err(StoreError::InUse { name });
            }
            if !force && blocked(|record| record.pinned) {
                return Err(StoreError::Pinned { name });
            }
            if !force && blocked(|record| record.wanted) {
                return Err(StoreError::Wanted { name });
            }
            if let Some(record) = found.iter().find(|record| record.in_tier) {
                let directory = record.directory.clone().unwrap_or_default();
                return Err(StoreError::InTier { name, directory });
            }
            let mut removed = Removed::default();
            for record in &found {
                removed.freed_bytes += store.remove_now(&record.key())?;
                removed.snapshots.push(record.key());
            }
            Ok(removed)
        })
        .await
    }

    /// Removes a snapshot, and the blobs that nothing else needs; [`StoreError::InUse`] when it is used after all. From
    /// the moment that is checked it is unknown, so that nobody begins to use what is going. After an error it is known
    /// again: its hard links may still take room, and whoever repeats the call gets to the end.
    pub(crate) fn remove_now(&self, key: &SnapshotKey) -> Result<u64, StoreError> {
        let Some(entry) = self.catalog().remove_unused(key)? else { return Ok(0) };
        let removed = self.remove_files(key, &entry);
        if removed.is_err() {
            let has_manifest = || is_file(&self.paths().snapshot_manifest(key));
            let complete = entry.complete && (entry.place != Place::Own || has_manifest());
            self.catalog().insert(Entry { complete, ..entry });
        }
        removed
    }

    /// Removes what is on the disk of a snapshot that the catalog no longer names. What is gone already is no error.
    fn remove_files(&self, key: &SnapshotKey, entry: &Entry) -> Result<u64, StoreError> {
        let paths = self.paths();
        self.remove_manifests(key)?;
        self.inner.index.forget_snapshot(key)?;
        self.remove_directory(&paths.snapshot(key))?;
        let _beginning = lock(&self.inner.beginning);
        let orphans: Vec<BlobKey> = {
            // While it records, the committing thread has arriving blobs in hand that nobody fetches any more.
            let _recording = lock(&self.inner.recording);
            let (catalog, mut active) = (self.catalog(), lock(&self.inner.active));
            let unwanted = |blob: &BlobKey| !catalog.references().contains_key(blob);
            active.retain(|blob, partial| Arc::strong_count(partial) > 1 || !unwanted(blob));
            let needed = |blob: &BlobKey| !unwanted(blob) || active.contains_key(blob);
            entry.manifest.objects.iter().map(|object| object.blob).filter(|blob| !needed(blob)).collect()
        };
        let bytes = orphans
            .iter()
            .filter_map(|blob| std::fs::metadata(paths.blob(blob)).ok())
            .map(|found| found.len())
            .sum();
        let recorded = !entry.complete;
        self.discard(&orphans, recorded)?;
        Ok(bytes)
    }

    /// They go first, durably: a snapshot whose files are going must not look complete after a crash.
    fn remove_manifests(&self, key: &SnapshotKey) -> Result<(), StoreError> {
        let (engine, paths) = (&self.inner.engine, self.paths());
        for manifest in [paths.snapshot_manifest(key), paths.loading_manifest(key)] {
            engine.remove(&manifest).map_err(StoreError::io("remove", &manifest))?;
        }
        engine.sync_directory(&paths.snapshots()).map_err(StoreError::io("sync", paths.snapshots()))
    }
}

/// Snapshots that could not be removed, and why.
type Stuck = BTreeMap<SnapshotKey, StoreError>;

struct Shortage {
    /// What must be freed, or the bytes cannot be had.
    required: u64,
    /// What should be freed, so that the next request does not evict again.
    wished: u64,
    /// Which limit binds.
    limit: String,
}

fn may_evict(entry: &Entry) -> bool {
    let is_in_tier = entry.complete && entry.place == Place::Tier;
    !entry.pinned && !entry.wanted && entry.uses == 0 && !is_in_tier
}

/// An entry's blobs that nothing needs once it is gone; counts it as gone.
fn unreferenced(references: &mut HashMap<BlobKey, usize>, entry: &Entry) -> Vec<BlobKey> {
    let mut unreferenced = Vec::new();
    for object in &entry.manifest.objects {
        if let Some(count) = references.get_mut(&object.blob) {
            *count -= 1;
            if *count == 0 {
                unreferenced.push(object.blob);
            }
        }
    }
    unreferenced
}

#[expect(
    clippy::cast_possible_truncation,
    clippy::cast_sign_loss,
    clippy::cast_precision_loss,
    reason = "watermarks need no exact bytes"
)]
fn share(bytes: u64, part: f64) -> u64 {
    (bytes as f64 * part) as u64
}
