//! Files that the kernel reads straight from their blobs.
//!
//! A blob is registered with the connection once, and its number kept for as long as the snapshot is shown: the kernel
//! refuses an open of a node through a second registration while the first is in use. The keeper keeps the numbers
//! too, because the files that were opened outlive the agent that opened them. It is told before a number is given up and
//! after one was made: what an agent that died in between left open is in no list, and closed by the next.

use std::{
    collections::{BTreeMap, BTreeSet},
    fs::{File, Metadata},
    io,
    os::{fd::OwnedFd, unix::fs::MetadataExt},
    path::Path,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
};

use fuser::{BackingId, INodeNo};
use serde::{Deserialize, Serialize};

use super::nodes::{Family, Node};
use crate::sys;

/// What is registered with a connection.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct Registered {
    by_node: BTreeMap<u64, Registration>,
    /// The highest number that the kernel ever gave: it counts upwards.
    last: u32,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct Registration {
    id: u32,
    /// Of the blob's file, which is another one after the blob was thrown away and fetched again.
    inode: u64,
    /// The file system it is on: the store's, or a read-only tier's. 0 in what an older agent left, whose files were all the
    /// store's.
    #[serde(default)]
    device: u64,
}

impl Registration {
    fn is_of(&self, file: &Metadata) -> bool {
        self.inode == file.ino() && (self.device == file.dev() || self.device == 0)
    }
}

/// What the kernel reads itself.
#[derive(Debug)]
pub(crate) struct Passthrough {
    device: Arc<OwnedFd>,
    registered: Mutex<Registered>,
}

impl Passthrough {
    pub(crate) fn new(device: Arc<OwnedFd>, registered: Registered) -> Self {
        Self { device, registered: Mutex::new(registered) }
    }

    fn lock(&self) -> MutexGuard<'_, Registered> {
        self.registered.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The registration of a node, made if there is none of its blob's file. `save` is told of a new one before anyone can
    /// use it.
    pub(crate) fn register(&self, node: Node, blob: &Path, save: impl Fn(&Registered)) -> io::Result<u32> {
        let mut registered = self.lock();
        let (number, file) = (node.number().0, File::open(blob)?);
        let found = file.metadata()?;
        if let Some(known) = registered.by_node.get(&number).copied() {
            if known.is_of(&found) {
                return Ok(known.id);
            }
            registered.by_node.remove(&number);
            save(&registered);
            self.close(known.id);
        }
        let id = BackingId::create_raw(&self.device, &file)?;
        let (inode, device) = (found.ino(), found.dev());
        registered.by_node.insert(number, Registration { id, inode, device });
        registered.last = registered.last.max(id);
        save(&registered);
        Ok(id)
    }

    /// Lets someone look at all registrations.
    pub(crate) fn with<T>(&self, look: impl FnOnce(&Registered) -> T) -> T {
        look(&self.lock())
    }

    /// Gives up the registrations of snapshots that are not shown, so that their blobs can leave the disk. `save` is told
    /// what is left, if any go.
    pub(crate) fn keep_only(&self, is_shown: impl Fn(Family) -> bool, save: impl Fn(&Registered)) {
        let mut registered = self.lock();
        let is_gone = |number: u64| Node::of(INodeNo(number)).is_none_or(|node| !is_shown(node.family));
        let gone: Vec<Registration> =
            registered.by_node.extract_if(.., |number, _| is_gone(*number)).map(|(_, gone)| gone).collect();
        if !gone.is_empty() {
            save(&registered);
        }
        gone.into_iter().for_each(|gone| self.close(gone.id));
    }

    /// Closes what an agent that died had open and in no list: everything up to the one number that it may have been given
    /// and not told anyone of.
    pub(crate) fn close_unlisted(&self) {
        let registered = self.lock();
        let listed: BTreeSet<u32> = registered.by_node.values().map(|known| known.id).collect();
        for id in (1..=registered.last.saturating_add(1)).filter(|id| !listed.contains(id)) {
            // There is hardly ever one.
            let _ = sys::close_backing(&self.device, id);
        }
    }

    fn close(&self, id: u32) {
        if let Err(error) = sys::close_backing(&self.device, id) {
            tracing::warn!(%error, id, "a file that the kernel was given stays open");
        }
    }
}
