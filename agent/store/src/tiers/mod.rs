//! Read-only homes of blobs beside the store's own directory: boot disks with weights in them, shared volumes.
//!
//! A tier is a directory in the store format without an index. It is used in place: what it holds costs neither a download nor
//! room here. It may come and go while the agent runs, and nothing in it is ever changed; a blob in which something is wrong is
//! condemned, and from then on it is as if the tier did not have it. Where several homes have a blob, the one that was measured to
//! be fastest is read, and the store's own of those that are about equal.

mod adopt;
mod speed;
mod tier;

use std::{
    path::PathBuf,
    sync::{Arc, Mutex, PoisonError, RwLock},
};

use weightd_types::{BlobKey, SnapshotKey};

use crate::{SnapshotManifest, Store, paths::Paths, usage::is_file};

pub use adopt::TierChange;
pub(crate) use tier::Tier;

/// A tier is read although the store has a blob as well when it is so many times as fast, in percent: below that, what was
/// measured may be the moment's.
const WORTH_IT_PERCENT: u128 = 125;

/// The tiers there are, the fastest first.
#[derive(Debug, Default)]
pub(crate) struct Tiers {
    all: RwLock<Arc<[Arc<Tier>]>>,
    /// One look at a time.
    looking: Mutex<()>,
    /// Of the store's own directory, in bytes a second; 0 while that is not known.
    own_speed: std::sync::atomic::AtomicU64,
}

/// One read-only tier, as it is now.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct TierInfo {
    /// Where it is mounted.
    pub directory: PathBuf,
    /// How many complete snapshots it has.
    pub snapshots: usize,
    /// Bytes a second, measured; `None` while that is not known.
    pub bytes_per_second: Option<u64>,
    /// Whether it is mounted for writing, which nobody should need.
    pub is_writable: bool,
}

impl Tiers {
    pub(crate) fn all(&self) -> Arc<[Arc<Tier>]> {
        Arc::clone(&self.all.read().unwrap_or_else(PoisonError::into_inner))
    }

    fn set(&self, mut tiers: Vec<Arc<Tier>>) {
        tiers.sort_by_key(|tier| std::cmp::Reverse(tier.speed()));
        *self.all.write().unwrap_or_else(PoisonError::into_inner) = tiers.into();
    }

    /// Whether a tier is read although the store has the blob as well.
    fn outruns_own(&self, tier: &Tier) -> bool {
        let own = self.own_speed.load(std::sync::atomic::Ordering::Relaxed);
        own > 0 && u128::from(tier.speed()) * 100 >= u128::from(own) * WORTH_IT_PERCENT
    }
}

/// Where a complete blob is.
#[derive(Debug, Clone)]
pub(crate) enum Home {
    /// In the store's own directory.
    Own,
    /// In a tier.
    Tier(Arc<Tier>),
}

impl Store {
    /// The tiers there are, the fastest first.
    pub fn tiers(&self) -> Vec<TierInfo> {
        let info = |tier: &Arc<Tier>| TierInfo {
            directory: tier.directory().to_owned(),
            snapshots: tier.snapshots().len(),
            bytes_per_second: Some(tier.speed()).filter(|speed| *speed > 0),
            is_writable: tier.is_writable(),
        };
        self.inner.tiers.all().iter().map(info).collect()
    }

    /// A snapshot that a tier has whole, of those that are as asked for; the one resolved last of several.
    pub fn tier_snapshot(
        &self,
        is_wanted: impl Fn(&SnapshotManifest) -> bool,
    ) -> Option<Arc<SnapshotManifest>> {
        let tiers = self.inner.tiers.all();
        let all = tiers.iter().flat_map(|tier| {
            tier.snapshots().iter().filter(|(key, _)| tier.has_snapshot(key)).map(|(_, manifest)| manifest)
        });
        let wanted = all.filter(|manifest| is_wanted(manifest));
        wanted.max_by_key(|manifest| (manifest.resolved_at, manifest.size())).cloned()
    }

    /// Where a complete blob would be read from: a tier's directory, or `None` for the store's own.
    pub fn tier_of(&self, blob: &BlobKey) -> Option<PathBuf> {
        match self.home_of(blob)? {
            Home::Own => None,
            Home::Tier(tier) => Some(tier.directory().to_owned()),
        }
    }

    /// Where a blob is that is complete somewhere. Whether its manifest can be believed is not looked at.
    pub(crate) fn home_of(&self, blob: &BlobKey) -> Option<Home> {
        let tiers = &self.inner.tiers;
        let is_own = self.has_own(blob);
        let tier = tiers.all().iter().find(|tier| tier.has(blob)).cloned();
        match tier {
            Some(tier) if !is_own || tiers.outruns_own(&tier) => Some(Home::Tier(tier)),
            _ => is_own.then_some(Home::Own),
        }
    }

    /// Whether the store's own directory has a blob, complete. Whether its manifest can be believed is not looked at.
    pub(crate) fn has_own(&self, blob: &BlobKey) -> bool {
        self.paths().blob_manifest(blob).exists() && is_file(&self.paths().blob(blob))
    }

    /// The names of a blob's files, where it is; in the store's own directory when it is nowhere.
    pub(crate) fn paths_of(&self, blob: &BlobKey) -> Paths {
        match self.home_of(blob) {
            Some(Home::Tier(tier)) => tier.paths().clone(),
            Some(Home::Own) | None => self.paths().clone(),
        }
    }

    /// The tier that has a snapshot whole, if it is to be shown from there.
    pub(crate) fn tier_with(&self, key: &SnapshotKey, is_own: bool) -> Option<Arc<Tier>> {
        let tiers = &self.inner.tiers;
        let tiers_all = tiers.all();
        let tier = tiers_all.iter().find(|tier| tier.has_snapshot(key))?;
        (!is_own || tiers.outruns_own(tier)).then(|| Arc::clone(tier))
    }
}
