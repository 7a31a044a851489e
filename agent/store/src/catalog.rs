//! What the store holds, in memory: read from manifests at start, changed with them.

use std::{
    collections::{BTreeMap, HashMap},
    path::PathBuf,
    sync::Arc,
};

use weightd_types::{BlobKey, SnapshotKey, SourceUri, Version};

use crate::{
    SnapshotManifest, Store, StoreError,
    store::{MICROS, now_precisely},
};

/// One snapshot of the store, as it was when asked for.
#[derive(Debug, Clone)]
pub struct SnapshotRecord {
    /// What it consists of.
    pub manifest: Arc<SnapshotManifest>,
    /// Whether all of it is here, confirmed and durable.
    pub complete: bool,
    /// Whether it is never evicted.
    pub pinned: bool,
    /// Whether it is kept because a model is wanted on this node.
    pub wanted: bool,
    /// Whether someone holds it right now.
    pub in_use: bool,
    /// Seconds since 1970.
    pub last_used_at: u64,
    /// Directory with its files, when complete; `None` also when they are in no directory, because a read-only tier has some of
    /// them.
    pub directory: Option<PathBuf>,
    /// Whether it is complete because a read-only tier has all of it.
    pub in_tier: bool,
}

impl SnapshotRecord {
    /// Its key in the store.
    pub fn key(&self) -> SnapshotKey {
        self.manifest.key()
    }
}

/// Where the files of a complete snapshot are.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Place {
    /// In the store's own directory.
    Own,
    /// In the directory of a tier that has all of them.
    Tier,
    /// In no directory: some blobs are the store's own, some a tier's.
    Parts,
}

#[derive(Debug)]
pub(crate) struct Entry {
    pub(crate) manifest: Arc<SnapshotManifest>,
    pub(crate) complete: bool,
    /// Of one that is complete.
    pub(crate) place: Place,
    pub(crate) pinned: bool,
    pub(crate) wanted: bool,
    /// Microseconds since 1970, and no two uses at the same: seconds would leave open which of two came later.
    pub(crate) last_used: u64,
    pub(crate) uses: usize,
}

/// All snapshots, and how many of them need each blob.
#[derive(Debug, Default)]
pub(crate) struct Catalog {
    entries: BTreeMap<SnapshotKey, Entry>,
    references: HashMap<BlobKey, usize>,
    /// The latest use.
    latest: u64,
}

impl Catalog {
    /// Adds a snapshot, or replaces what is known of it; its uses go on.
    pub(crate) fn insert(&mut self, mut entry: Entry) {
        let key = entry.manifest.key();
        self.latest = self.latest.max(entry.last_used);
        // What a tier has whole needs nothing of the store's own.
        for object in entry.manifest.objects.iter().filter(|_| entry.place != Place::Tier) {
            *self.references.entry(object.blob).or_default() += 1;
        }
        if let Some(old) = self.remove(&key) {
            entry.uses += old.uses;
            entry.pinned |= old.pinned;
            entry.wanted |= old.wanted;
            entry.last_used = entry.last_used.max(old.last_used);
        }
        self.entries.insert(key, entry);
    }

    /// When a use is that happens now: later than all others, whatever the clock says.
    pub(crate) fn next_use(&mut self) -> u64 {
        self.latest = now_precisely().max(self.latest.saturating_add(1));
        self.latest
    }

    pub(crate) fn remove(&mut self, key: &SnapshotKey) -> Option<Entry> {
        let entry = self.entries.remove(key)?;
        for object in entry.manifest.objects.iter().filter(|_| entry.place != Place::Tier) {
            if let Some(count) = self.references.get_mut(&object.blob) {
                *count -= 1;
                if *count == 0 {
                    self.references.remove(&object.blob);
                }
            }
        }
        Some(entry)
    }

    /// Takes a snapshot out unless someone uses it.
    pub(crate) fn remove_unused(&mut self, key: &SnapshotKey) -> Result<Option<Entry>, StoreError> {
        match self.entries.get(key) {
            Some(entry) if entry.uses > 0 => Err(StoreError::InUse { name: key.to_string() }),
            _ => Ok(self.remove(key)),
        }
    }

    pub(crate) fn get(&self, key: &SnapshotKey) -> Option<&Entry> {
        self.entries.get(key)
    }

    pub(crate) fn get_mut(&mut self, key: &SnapshotKey) -> Option<&mut Entry> {
        self.entries.get_mut(key)
    }

    /// Says that a snapshot is no longer complete.
    pub(crate) fn set_incomplete(&mut self, key: &SnapshotKey) {
        if let Some(entry) = self.remove(key) {
            self.insert(Entry { complete: false, place: Place::Own, ..entry });
        }
    }

    pub(crate) fn iter_mut(&mut self) -> impl Iterator<Item = (&SnapshotKey, &mut Entry)> {
        self.entries.iter_mut()
    }

    pub(crate) fn iter(&self) -> impl Iterator<Item = (&SnapshotKey, &Entry)> {
        self.entries.iter()
    }

    /// How many snapshots need a blob.
    pub(crate) fn references(&self) -> &HashMap<BlobKey, usize> {
        &self.references
    }

    /// Keys that a name means: all snapshots of a source, the last used first and complete ones before others, or those
    /// whose id begins with it.
    pub(crate) fn find(&self, name: &str) -> Vec<SnapshotKey> {
        let mut found: Vec<_> = match name.parse::<SourceUri>() {
            Ok(uri) => self.entries.iter().filter(|(_, entry)| is_of(&entry.manifest, &uri)).collect(),
            Err(_) if name.len() < 6 => Vec::new(),
            Err(_) => self.entries.iter().filter(|(key, _)| key.to_string().starts_with(name)).collect(),
        };
        found.sort_by_key(|(_, entry)| std::cmp::Reverse((entry.complete, entry.last_used)));
        found.into_iter().map(|(key, _)| *key).collect()
    }
}

/// Whether a snapshot is what a URI names: the same source, under the same revision or the commit that was resolved.
fn is_of(manifest: &SnapshotManifest, uri: &SourceUri) -> bool {
    let is_commit = |revision: &str| {
        manifest
            .objects
            .iter()
            .any(|entry| matches!(&entry.object.version, Version::Git { commit, .. } if commit == revision))
    };
    manifest.source == *uri || (manifest.source.root() == uri.root() && uri.revision().is_some_and(is_commit))
}

/// One hold on a snapshot. While any is alive, the snapshot is neither evicted nor removed.
#[derive(Debug)]
pub struct SnapshotUse {
    store: Store,
    key: SnapshotKey,
}

impl SnapshotUse {
    /// What is held.
    pub fn key(&self) -> SnapshotKey {
        self.key
    }
}

impl Drop for SnapshotUse {
    fn drop(&mut self) {
        if let Some(entry) = self.store.catalog().get_mut(&self.key) {
            entry.uses = entry.uses.saturating_sub(1);
        }
    }
}

impl Store {
    /// Holds a snapshot, complete or loading.
    ///
    /// # Errors
    /// [`StoreError::NotFound`] when the store does not know it.
    pub fn hold(&self, key: SnapshotKey) -> Result<SnapshotUse, StoreError> {
        match self.catalog().get_mut(&key) {
            Some(entry) => entry.uses += 1,
            None => return Err(StoreError::NotFound { name: key.to_string() }),
        }
        Ok(SnapshotUse { store: self.clone(), key })
    }

    /// All snapshots, by key.
    pub fn snapshots(&self) -> Vec<SnapshotRecord> {
        self.catalog().iter().map(|(_, entry)| self.record_of(entry)).collect()
    }

    /// One snapshot.
    pub fn snapshot(&self, key: &SnapshotKey) -> Option<SnapshotRecord> {
        self.catalog().get(key).map(|entry| self.record_of(entry))
    }

    /// The snapshot a name means: a source URI (the complete one used last, else the one used last), an id, or the beginning
    /// of one (six digits or more).
    ///
    /// # Errors
    /// [`StoreError::NotFound`], and [`StoreError::Ambiguous`] for the beginning of several ids.
    pub fn find(&self, name: &str) -> Result<SnapshotRecord, StoreError> {
        let found = self.find_all(name)?;
        let is_uri = name.parse::<SourceUri>().is_ok();
        if found.len() > 1 && !is_uri {
            return Err(StoreError::Ambiguous { name: name.to_owned(), count: found.len() });
        }
        found.into_iter().next().ok_or_else(|| StoreError::NotFound { name: name.to_owned() })
    }

    /// Every snapshot a name means.
    ///
    /// # Errors
    /// [`StoreError::NotFound`] when there is none.
    pub fn find_all(&self, name: &str) -> Result<Vec<SnapshotRecord>, StoreError> {
        let catalog = self.catalog();
        let found: Vec<_> = catalog
            .find(name)
            .iter()
            .filter_map(|key| catalog.get(key))
            .map(|entry| self.record_of(entry))
            .collect();
        if found.is_empty() { Err(StoreError::NotFound { name: name.to_owned() }) } else { Ok(found) }
    }

    fn directory_of(&self, entry: &Entry) -> Option<PathBuf> {
        let key = entry.manifest.key();
        let in_tier = |is_own| self.tier_with(&key, is_own).map(|tier| tier.paths().snapshot(&key));
        match entry.place {
            _ if !entry.complete => None,
            Place::Own => in_tier(true).or_else(|| Some(self.paths().snapshot(&key))),
            Place::Tier => in_tier(false),
            Place::Parts => None,
        }
    }

    fn record_of(&self, entry: &Entry) -> SnapshotRecord {
        SnapshotRecord {
            manifest: Arc::clone(&entry.manifest),
            complete: entry.complete,
            pinned: entry.pinned,
            wanted: entry.wanted,
            in_use: entry.uses > 0,
            last_used_at: entry.last_used / MICROS,
            directory: self.directory_of(entry),
            in_tier: entry.complete && entry.place == Place::Tier,
        }
    }
}
