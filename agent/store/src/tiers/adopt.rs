//! Tiers come and go.

use std::{
    collections::HashSet,
    path::{Path, PathBuf},
    sync::Arc,
};

use weightd_types::{BlobKey, SnapshotKey};

use super::{Tier, tier::Identity};
use crate::{
    SnapshotManifest, Store, StoreError,
    catalog::{Entry, Place},
    store::{MICROS, lock},
};

/// What became of a directory that may be a tier.
#[derive(Debug)]
pub enum TierChange {
    /// It is one from now on, or has other snapshots than before.
    Here(PathBuf),
    /// It was one. Snapshots that were in use there, and are incomplete now.
    Gone(PathBuf, Vec<SnapshotKey>),
    /// It cannot be used as one.
    Refused(PathBuf, StoreError),
}

impl Store {
    /// Makes these directories the tiers, as far as they are in the store format: takes in what is new, and forgets what is no
    /// longer there. Directories that are as they were cost a look at two files. Blocks; reads manifests of snapshots only.
    ///
    /// # Errors
    /// [`StoreError::Index`], [`StoreError::Io`] of the store's own directory.
    pub fn set_tiers(&self, directories: &[PathBuf]) -> Result<Vec<TierChange>, StoreError> {
        let _looking = lock(&self.inner.tiers.looking);
        let before = self.inner.tiers.all();
        // Without `changing`: a network disk that hangs must not stop what is published.
        let (after, mut changes) = look(&before, directories);
        let _changing = lock(&self.inner.changing);
        let is_new = |tier: &&Arc<Tier>| !before.iter().any(|known| Arc::ptr_eq(known, tier));
        for tier in after.iter().filter(is_new) {
            self.condemned_in(tier.directory())?.into_iter().for_each(|blob| tier.condemn(blob));
        }
        self.inner.tiers.set(after);
        // What is open of tiers that went, or came anew, is opened anew.
        let now = self.inner.tiers.all();
        let is_over = |tier: &&Arc<Tier>| !now.iter().any(|other| Arc::ptr_eq(tier, other));
        let over: Vec<_> = before.iter().filter(is_over).collect();
        let is_gone = |tier: &Tier| !now.iter().any(|other| other.directory() == tier.directory());
        for tier in &over {
            tier.blobs().for_each(|blob| self.tell_replaced(*blob));
        }
        let lost = if over.is_empty() { Vec::new() } else { self.lose(|_| true) };
        for tier in over {
            let of_tier = lost.iter().filter(|key| tier.snapshots().contains_key(*key)).copied();
            let of_tier: Vec<_> = of_tier.collect();
            // One that only has more in it than before, or is mounted anew, has lost nothing.
            if is_gone(tier) || !of_tier.is_empty() {
                changes.push(TierChange::Gone(tier.directory().to_owned(), of_tier));
            }
        }
        self.take_in()?;
        Ok(changes)
    }

    /// Says that something in a tier's copy of a blob is wrong. Its snapshots are incomplete until it has been fetched; it is
    /// never read again from there.
    ///
    /// # Errors
    /// [`StoreError::Index`], when the next agent will not know it.
    pub(crate) fn condemn(&self, tier: &Tier, blob: BlobKey) -> Result<(), StoreError> {
        // First: a tier that comes anew in between must know it.
        let written = self.inner.index.condemn(&name(tier.directory(), &blob));
        self.disown(tier, blob);
        written
    }

    /// The same until the tier comes anew, of what cannot be read now.
    pub(crate) fn disown(&self, tier: &Tier, blob: BlobKey) {
        let _changing = lock(&self.inner.changing);
        tier.condemn(blob);
        // The tier may have been looked at anew since the blob was opened.
        let tiers = self.inner.tiers.all();
        let same = tiers.iter().filter(|other| other.directory() == tier.directory());
        same.for_each(|other| other.condemn(blob));
        self.lose(|manifest| manifest.objects.iter().any(|entry| entry.blob == blob));
        self.tell_replaced(blob);
    }

    fn condemned_in(&self, directory: &Path) -> Result<HashSet<BlobKey>, StoreError> {
        let prefix = format!("{}\n", directory.display());
        let all = self.inner.index.condemned()?;
        Ok(all.keys().filter_map(|name| name.strip_prefix(&prefix)?.parse().ok()).collect())
    }

    /// Looks again at snapshots that are complete by what tiers have: those of which something is no longer anywhere are not. Gives
    /// those that are in use. The caller holds `changing`.
    fn lose(&self, is_about: impl Fn(&SnapshotManifest) -> bool) -> Vec<SnapshotKey> {
        let shown: Vec<_> = {
            let catalog = self.catalog();
            let by_tiers = catalog.iter().filter(|(_, entry)| entry.complete && entry.place != Place::Own);
            let about = by_tiers.filter(|(_, entry)| is_about(&entry.manifest));
            about.map(|(key, entry)| (*key, Arc::clone(&entry.manifest), entry.place)).collect()
        };
        let mut lost = Vec::new();
        for (key, manifest, place) in shown {
            let is_here = match place {
                Place::Tier => self.tier_with(&key, false).is_some(),
                Place::Parts | Place::Own => {
                    manifest.objects.iter().all(|entry| self.home_of(&entry.blob).is_some())
                }
            };
            if is_here {
                continue;
            }
            for entry in &manifest.objects {
                self.tell_replaced(entry.blob);
            }
            let is_kept = self.catalog().get(&key).is_some_and(|entry| {
                entry.uses > 0 || entry.pinned || entry.wanted || entry.place == Place::Parts
            });
            if is_kept {
                if let Err(error) = self.mark_incomplete(&key) {
                    // True all the same. The next agent finds out by itself.
                    tracing::warn!(snapshot = %key, %error, "could not be written down as incomplete");
                    self.catalog().set_incomplete(&key);
                }
                lost.push(key);
            } else {
                self.catalog().remove(&key);
            }
        }
        lost
    }

    /// Makes all snapshots known that tiers have whole, and those complete again that lacked only what tiers have. What is on its way
    /// is left alone: it finds what is here.
    fn take_in(&self) -> Result<(), StoreError> {
        let tiers = self.inner.tiers.all();
        let is_unknown = |key: &SnapshotKey| self.catalog().get(key).is_none();
        self.complete_by_tiers(&tiers);
        if !tiers.iter().flat_map(|tier| tier.snapshots().keys()).any(is_unknown) {
            return Ok(());
        }
        let (pins, recency) = (self.inner.index.pins()?, self.inner.index.recency()?);
        let wanted = self.wanted_snapshots()?;
        for tier in tiers.iter() {
            for (key, manifest) in tier.snapshots() {
                if !tier.has_snapshot(key) || self.catalog().get(key).is_some() {
                    continue;
                }
                let name = key.to_string();
                let used = recency.get(&name).copied();
                self.catalog().insert(Entry {
                    manifest: Arc::clone(manifest),
                    complete: true,
                    place: Place::Tier,
                    pinned: pins.contains_key(&name),
                    wanted: wanted.contains(key),
                    last_used: used.unwrap_or(manifest.resolved_at.saturating_mul(MICROS)),
                    uses: 0,
                });
            }
        }
        Ok(())
    }

    /// Incomplete snapshots of which all is somewhere by now, some of it in tiers.
    fn complete_by_tiers(&self, tiers: &[Arc<Tier>]) {
        let has_some = |manifest: &SnapshotManifest| {
            let of_tiers = |blob: &BlobKey| tiers.iter().any(|tier| tier.has(blob));
            manifest.objects.iter().any(|entry| of_tiers(&entry.blob))
        };
        let incomplete: Vec<_> = {
            let catalog = self.catalog();
            let incomplete = catalog.iter().map(|(_, entry)| entry).filter(|entry| !entry.complete);
            incomplete
                .map(|entry| Arc::clone(&entry.manifest))
                .filter(|manifest| has_some(manifest))
                .collect()
        };
        let is_arriving = |blob: &BlobKey| lock(&self.inner.active).contains_key(blob);
        for manifest in incomplete {
            let mut blobs = manifest.objects.iter().map(|entry| &entry.blob);
            if !blobs.all(|blob| !is_arriving(blob) && self.home_of(blob).is_some()) {
                continue;
            }
            // What is all the store's own is published by whoever wants it.
            let place = self.place_for(&manifest);
            let mut catalog = self.catalog();
            if place != Place::Own
                && let Some(entry) = catalog.remove(&manifest.key())
            {
                catalog.insert(Entry { complete: true, place, ..entry });
            }
        }
    }
}

/// The tiers that are there now, and what is new about them.
fn look(before: &[Arc<Tier>], directories: &[PathBuf]) -> (Vec<Arc<Tier>>, Vec<TierChange>) {
    let (mut after, mut changes) = (Vec::new(), Vec::new());
    for directory in directories {
        let known = before.iter().find(|tier| tier.directory() == directory);
        match (known, Identity::of(directory)) {
            (Some(tier), Some(now)) if *tier.identity() == now => after.push(Arc::clone(tier)),
            (_, Some(_)) => match Tier::open(directory) {
                Ok(tier) => {
                    tier.set_speed(known.map_or(0, |tier| tier.speed()));
                    after.push(Arc::new(tier));
                    changes.push(TierChange::Here(directory.clone()));
                }
                Err(error) => changes.push(TierChange::Refused(directory.clone(), error)),
            },
            (_, None) => {}
        }
    }
    (after, changes)
}

/// What the index calls a tier's copy of a blob.
fn name(directory: &Path, blob: &BlobKey) -> String {
    format!("{}\n{blob}", directory.display())
}
