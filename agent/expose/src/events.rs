//! What went wrong with volumes lately, for those who look after them.

use std::{
    collections::VecDeque,
    sync::{Mutex, MutexGuard, PoisonError},
    time::SystemTime,
};

use weightd_types::{ObjectPath, SnapshotKey};

use crate::shown::Shown;

/// Events that are kept.
const KEPT: usize = 256;

/// Something that went wrong with a volume.
#[derive(Debug, Clone)]
pub struct Event {
    /// When.
    pub at: SystemTime,
    /// The snapshot.
    pub snapshot: SnapshotKey,
    /// The file, where it is about one.
    pub path: Option<ObjectPath>,
    /// Object and cause.
    pub message: String,
}

/// The last events, oldest first.
#[derive(Debug, Default)]
pub(crate) struct Events {
    events: Mutex<VecDeque<Event>>,
}

impl Events {
    fn lock(&self) -> MutexGuard<'_, VecDeque<Event>> {
        self.events.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Adds one about a snapshot that is shown through FUSE.
    pub(crate) fn tell(&self, shown: &Shown, position: Option<usize>, why: &str) {
        let path = position.map(|at| shown.tree.manifest.objects[at].object.path.clone());
        self.add(shown.key(), path, why);
    }

    /// Adds one. A reader that goes on trying is no news.
    pub(crate) fn add(&self, snapshot: SnapshotKey, path: Option<ObjectPath>, why: &str) {
        let event = Event { at: SystemTime::now(), snapshot, path, message: why.to_owned() };
        let mut events = self.lock();
        let same = |known: &Event| {
            (known.snapshot, &known.path, &known.message) == (event.snapshot, &event.path, &event.message)
        };
        events.retain(|known| !same(known));
        if events.len() == KEPT {
            events.pop_front();
        }
        events.push_back(event);
    }

    pub(crate) fn all(&self) -> Vec<Event> {
        self.lock().iter().cloned().collect()
    }
}
