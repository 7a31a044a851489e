//! As whom an origin may be asked right now: credentials of volumes that are mounted, and of calls under way.

use std::{
    collections::{BTreeMap, HashSet},
    path::{Path, PathBuf},
    sync::{Arc, Mutex, MutexGuard, PoisonError},
};

use tokio::{sync::watch, time::Instant};
use weightd_source::Credential;
use weightd_types::{SnapshotKey, SourceUri};

use crate::{error::Refusal, identity::Principal};

/// Someone as whom a source may be asked.
#[derive(Debug, Clone)]
pub(crate) struct Holder {
    /// What the names of its objects begin with.
    root: String,
    pub(crate) principal: Principal,
    pub(crate) credential: Credential,
    ends: Option<Instant>,
    /// How the origin refused it since it came.
    refused: Option<Refusal>,
    place: Place,
}

/// What a holder's time is bound to.
#[derive(Debug, Clone)]
enum Place {
    /// A call under way, which has the lease.
    Call,
    /// A volume that is mounted.
    Volume { target: PathBuf, snapshot: SnapshotKey, since: Instant },
    /// A volume of the operator's that was unmounted: who has one of its files open reads on, as long as no pod is shown
    /// anything of the source. A pod would be given what the node fetches.
    Left { snapshot: SnapshotKey },
}

/// As whom origins may be asked. Clones share it.
#[derive(Debug, Clone, Default)]
pub(crate) struct Holders {
    all: Arc<Mutex<All>>,
    changed: Arc<watch::Sender<()>>,
}

#[derive(Debug, Default)]
struct All {
    /// The newest last.
    by_number: BTreeMap<u64, Holder>,
    next: u64,
}

/// A credential that may be used as long as this is kept, or as long as its volume is mounted.
#[derive(Debug)]
#[must_use]
pub struct Lease {
    holders: Holders,
    number: u64,
}

impl Lease {
    /// Binds the credential to a volume that is mounted now. One that the volume had before ends.
    pub fn settle(self, target: &Path, snapshot: SnapshotKey) {
        let holders = self.holders.clone();
        let mut all = holders.lock();
        all.by_number.retain(|number, holder| *number == self.number || !holder.is_of(target));
        all.settle(self.number, target, snapshot);
        // Dropping the lease leaves it, now that it is a volume's.
        drop(all);
    }

    /// The same for a volume that has no credential yet; one that it has goes before this.
    pub(crate) fn settle_first(self, target: &Path, snapshot: SnapshotKey) {
        let holders = self.holders.clone();
        let mut all = holders.lock();
        if !all.by_number.values().any(|holder| holder.is_of(target)) {
            all.settle(self.number, target, snapshot);
        }
        drop(all);
    }
}

impl All {
    fn settle(&mut self, number: u64, target: &Path, snapshot: SnapshotKey) {
        if let Some(holder) = self.by_number.get_mut(&number) {
            holder.place = Place::Volume { target: target.to_owned(), snapshot, since: Instant::now() };
        }
        self.drop_left();
    }

    /// Of volumes that were unmounted, only the operator's are kept, each snapshot once, and none of whose source a pod is
    /// shown anything, in whatever layout or version: objects are asked for by their names.
    fn drop_left(&mut self) {
        let is_pods = |holder: &&Holder| {
            matches!(holder.place, Place::Volume { .. }) && holder.credential != Credential::Node
        };
        let shown: HashSet<String> =
            self.by_number.values().filter(is_pods).map(|holder| holder.root.clone()).collect();
        let is_shown = |root: &str| shown.iter().any(|pods| covers(pods, root) || covers(root, pods));
        let mut kept = HashSet::new();
        self.by_number.retain(|_, holder| match holder.place {
            Place::Left { snapshot } => {
                holder.credential == Credential::Node
                    && !is_shown(&holder.root)
                    && kept.insert((holder.root.clone(), snapshot))
            }
            Place::Volume { .. } | Place::Call => true,
        });
    }
}

impl Drop for Lease {
    fn drop(&mut self) {
        let mut all = self.holders.lock();
        if all.by_number.get(&self.number).is_some_and(|holder| matches!(holder.place, Place::Call)) {
            all.by_number.remove(&self.number);
        }
    }
}

impl Holders {
    fn lock(&self) -> MutexGuard<'_, All> {
        self.all.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Adds someone for the time of a call.
    pub(crate) fn add(
        &self,
        source: &SourceUri,
        principal: Principal,
        credential: Credential,
        ends: Option<Instant>,
    ) -> Lease {
        let holder =
            Holder { root: source.root(), principal, credential, ends, refused: None, place: Place::Call };
        let number = {
            let mut all = self.lock();
            let number = all.next;
            all.next += 1;
            all.by_number.insert(number, holder);
            number
        };
        self.changed.send_replace(());
        Lease { holders: self.clone(), number }
    }

    /// Those as whom an object of a source, or all of it, may be asked for now: each credential once, the newest first, the
    /// node last. All names in the source begin with `source`.
    pub(crate) fn of(&self, url: &str, source: &str) -> Vec<Holder> {
        let now = Instant::now();
        let mut found: Vec<Holder> = Vec::new();
        for holder in self.lock().by_number.values().rev() {
            let is_new = || found.iter().all(|known| known.credential != holder.credential);
            // Names in a directory are relative to it: it serves its own source only.
            let serves = !matches!(holder.credential, Credential::Directory(_)) || holder.root == source;
            if holder.is_live(now) && serves && covers(&holder.root, url) && is_new() {
                found.push(holder.clone());
            }
        }
        found.sort_by_key(|holder| holder.credential == Credential::Node);
        found
    }

    /// Remembers that an origin refused a credential: it is not used for such an object again before it comes anew. What
    /// else it is for is another matter, above all where it is nobody's in particular.
    pub(crate) fn refuse(&self, url: &str, credential: &Credential, refusal: Refusal) {
        let mut all = self.lock();
        all.by_number
            .values_mut()
            .filter(|holder| holder.credential == *credential && covers(&holder.root, url))
            .for_each(|holder| holder.refused = Some(refusal));
    }

    /// Whether a pod has named a server that an object is at, whether or not it may ask there now.
    pub(crate) fn is_named_by_pod(&self, url: &str) -> bool {
        let all = self.lock();
        let mut there = all.by_number.values().filter(|holder| covers(&holder.root, url));
        there.any(|holder| matches!(holder.credential, Credential::Web(_)))
    }

    /// Whether someone was refused an object, and all who were are told that it is not there.
    pub(crate) fn is_hidden(&self, url: &str) -> bool {
        let all = self.lock();
        let mut refused =
            all.by_number.values().filter(|holder| covers(&holder.root, url)).filter_map(|h| h.refused);
        refused.next().is_some_and(|first| {
            first == Refusal::Hidden && refused.all(|refusal| refusal == Refusal::Hidden)
        })
    }

    /// Credentials as which origins may be asked now.
    pub(crate) fn live(&self) -> usize {
        let (now, all) = (Instant::now(), self.lock());
        let live = all.by_number.values().filter(|holder| holder.is_live(now));
        live.map(|holder| &holder.credential).collect::<HashSet<_>>().len()
    }

    /// Waits until there is someone as whom a source may be asked.
    pub(crate) async fn until_there(&self, source: &SourceUri) {
        let mut changed = self.changed.subscribe();
        while self.of(&source.root(), &source.root()).is_empty() {
            // The sender is here.
            let _ = changed.changed().await;
        }
    }

    /// Ends the credential of a volume that was unmounted.
    pub(crate) fn end(&self, target: &Path) {
        self.end_where(|known, _| known == target);
    }

    /// Ends the credentials of volumes that had settled by then and are not there now.
    pub(crate) fn keep_only(
        &self,
        by_then: Instant,
        is_there: impl Fn(&Path) -> bool,
        is_open: impl Fn(&SnapshotKey) -> bool,
    ) {
        self.end_where(|target, since| since < by_then && !is_there(target));
        let is_over =
            |holder: &Holder| matches!(&holder.place, Place::Left { snapshot } if !is_open(snapshot));
        self.lock().by_number.retain(|_, holder| !is_over(holder));
    }

    fn end_where(&self, is_gone: impl Fn(&Path, Instant) -> bool) {
        let mut all = self.lock();
        for holder in all.by_number.values_mut() {
            let Place::Volume { target, snapshot, since } = &holder.place else { continue };
            if is_gone(target, *since) {
                holder.place = Place::Left { snapshot: *snapshot };
            }
        }
        all.drop_left();
    }

    #[cfg(test)]
    pub(crate) fn count(&self) -> usize {
        self.lock().by_number.len()
    }
}

impl Holder {
    fn is_live(&self, now: Instant) -> bool {
        self.refused.is_none() && self.ends.is_none_or(|ends| ends > now)
    }

    fn is_of(&self, target: &Path) -> bool {
        matches!(&self.place, Place::Volume { target: known, .. } if known == target)
    }
}

/// Whether a name is that of a source's root, or of something below it.
pub(crate) fn covers(root: &str, url: &str) -> bool {
    url.strip_prefix(root).is_some_and(|below| below.is_empty() || below.starts_with('/'))
}
