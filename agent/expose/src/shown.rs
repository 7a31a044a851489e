//! A snapshot that is shown while it loads.

use std::{
    collections::HashMap,
    sync::{
        Arc, Mutex, PoisonError,
        atomic::{AtomicBool, AtomicU64, Ordering},
    },
};

use tokio::sync::watch;
use weightd_store::SnapshotUse;
use weightd_types::{BlobKey, SnapshotKey};

use crate::fuse::Tree;

/// How a snapshot's transfer is doing, as far as its readers care.
#[derive(Debug, Clone)]
pub enum Condition {
    /// Nothing is known to be wrong.
    Fine,
    /// The last attempt to bring bytes failed. The next read makes another.
    Failed {
        /// Object and cause.
        why: Arc<str>,
        /// Whether waiting would not help, so that whoever waits is told now.
        is_lasting: bool,
        /// Whether what came was not what the origin has.
        is_corrupt: bool,
    },
    /// Bytes were served that turned out to be wrong: nothing more is.
    Stopped(Arc<str>),
}

/// A snapshot that is shown while it loads.
#[derive(Debug)]
pub(crate) struct Shown {
    pub(crate) tree: Tree,
    condition: watch::Sender<Condition>,
    last_failure: Mutex<Option<Arc<str>>>,
    /// Files by their blob.
    positions: HashMap<BlobKey, Vec<usize>>,
    /// Files of which someone was given bytes.
    read: Vec<AtomicBool>,
    /// Files that someone has opened past the agent.
    passed: Vec<AtomicBool>,
    /// Which chunk of each file was read last.
    last_chunk: Vec<AtomicU64>,
    /// Keeps it in the store.
    _hold: SnapshotUse,
}

impl Shown {
    pub(crate) fn new(tree: Tree, hold: SnapshotUse) -> Self {
        let mut positions: HashMap<BlobKey, Vec<usize>> = HashMap::new();
        for (at, entry) in tree.manifest.objects.iter().enumerate() {
            positions.entry(entry.blob).or_default().push(at);
        }
        let none = || tree.manifest.objects.iter().map(|_| AtomicBool::new(false)).collect();
        let (read, passed) = (none(), none());
        let last_chunk = tree.manifest.objects.iter().map(|_| AtomicU64::new(u64::MAX)).collect();
        let (condition, last_failure) = (watch::Sender::new(Condition::Fine), Mutex::default());
        Self { tree, condition, last_failure, positions, read, passed, last_chunk, _hold: hold }
    }

    /// Files that have a blob.
    pub(crate) fn positions(&self, blob: &BlobKey) -> Vec<usize> {
        self.positions.get(blob).cloned().unwrap_or_default()
    }

    /// Remembers that someone was given bytes of a file.
    pub(crate) fn mark_read(&self, position: usize) {
        self.read[position].store(true, Ordering::Release);
    }

    /// Notes which chunk of a file is being read. Says whether it follows the one before, so that its reader will go on.
    pub(crate) fn goes_on(&self, position: usize, chunk: u64) -> bool {
        self.last_chunk[position].swap(chunk, Ordering::Relaxed).wrapping_add(1) == chunk
    }

    /// Notes that someone has opened a complete file past the agent.
    pub(crate) fn mark_passed(&self, position: usize) {
        self.passed[position].store(true, Ordering::Relaxed);
    }

    /// Whether someone is reading a blob already: past the agent, or through it and further than a header.
    pub(crate) fn has_reader(&self, blob: &BlobKey) -> bool {
        let is_far =
            |position: usize| !matches!(self.last_chunk[position].load(Ordering::Relaxed), 0 | u64::MAX);
        let positions = self.positions.get(blob).into_iter().flatten();
        positions.copied().any(|position| self.passed[position].load(Ordering::Relaxed) || is_far(position))
    }

    /// Whether anyone was given bytes of a file.
    pub(crate) fn was_read(&self, position: usize) -> bool {
        self.read[position].load(Ordering::Acquire)
    }

    pub(crate) fn key(&self) -> SnapshotKey {
        self.tree.manifest.key()
    }

    /// A file's blob.
    pub(crate) fn blob(&self, position: usize) -> BlobKey {
        self.tree.manifest.objects[position].blob
    }

    /// A file's object, for people.
    pub(crate) fn url(&self, position: usize) -> String {
        let manifest = &self.tree.manifest;
        manifest.source.object_url(&manifest.objects[position].object.path)
    }

    /// Whether wrong bytes were served, so that nothing more is.
    pub(crate) fn is_stopped(&self) -> bool {
        self.stopped().is_some()
    }

    /// Why nothing more is served, if that is so.
    pub(crate) fn stopped(&self) -> Option<String> {
        match &*self.condition.borrow() {
            Condition::Stopped(why) => Some(why.to_string()),
            Condition::Fine | Condition::Failed { .. } => None,
        }
    }

    pub(crate) fn condition(&self) -> watch::Receiver<Condition> {
        self.condition.subscribe()
    }

    /// What went wrong last, for whoever waited in vain.
    pub(crate) fn last_failure(&self) -> Option<String> {
        let failure = self.last_failure.lock().unwrap_or_else(PoisonError::into_inner);
        failure.as_ref().map(ToString::to_string)
    }

    /// Takes in how its transfer is doing. One that was stopped stays so.
    pub(crate) fn report(&self, condition: Condition) {
        let why = match &condition {
            Condition::Fine => None,
            Condition::Failed { why, .. } | Condition::Stopped(why) => Some(Arc::clone(why)),
        };
        self.condition.send_if_modified(|current| {
            let is_stopped = matches!(current, Condition::Stopped(_));
            if !is_stopped {
                *current = condition;
                *self.last_failure.lock().unwrap_or_else(PoisonError::into_inner) = why;
            }
            !is_stopped
        });
    }
}
