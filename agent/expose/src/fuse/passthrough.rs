//! Files that the kernel reads straight from their blobs.
//!
//! A blob is registered with the connection once, and its number kept for as long as the snapshot is shown: the kernel
//! refuses an open of a node through a second registration while the first is in use. The keeper keeps the numbers
//! too, because the files that were opened outlive the agent that opened them.

use std::{
    collections::BTreeMap,
    os::fd::OwnedFd,
    path::Path,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
};

use fuser::BackingId;

use super::nodes::{Family, Node};
use crate::sys;

/// Registrations by node number.
pub(crate) type Registered = BTreeMap<u64, u32>;

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

    /// The registration of a node, made if there is none. `save` is told of a new one before anyone can use it.
    pub(crate) fn register(
        &self,
        node: Node,
        blob: &Path,
        save: impl FnOnce(&Registered),
    ) -> std::io::Result<u32> {
        let mut registered = self.lock();
        let number = node.number().0;
        if let Some(id) = registered.get(&number) {
            return Ok(*id);
        }
        let id = BackingId::create_raw(&self.device, &std::fs::File::open(blob)?)?;
        registered.insert(number, id);
        save(&registered);
        Ok(id)
    }

    /// Lets someone look at all registrations.
    pub(crate) fn with<T>(&self, look: impl FnOnce(&Registered) -> T) -> T {
        look(&self.lock())
    }

    /// Gives up a snapshot's registrations, so that its blobs can leave the disk. Gives what is left, if any went.
    pub(crate) fn forget(&self, family: Family) -> Option<Registered> {
        let mut registered = self.lock();
        let is_of = |number: u64| Node::of(fuser::INodeNo(number)).is_some_and(|node| node.family == family);
        let gone: Registered = registered.extract_if(.., |number, _| is_of(*number)).collect();
        for id in gone.values() {
            if let Err(error) = sys::close_backing(&self.device, *id) {
                tracing::warn!(%error, id, "a file that the kernel was given stays open");
            }
        }
        (!gone.is_empty()).then(|| registered.clone())
    }
}
