//! Snapshots in the page cache before someone reads them.
//!
//! Loaders prefetch from network file systems only: from a local disk they read page by page, each time waiting for the
//! disk. So what arrives is kept in the page cache on its way to the disk, and of a complete snapshot the kernel is asked
//! for the blobs from front to back while the loader still starts. Both take what fits into memory and no more, and only
//! as long as a volume shows the snapshot.

mod pages;

use std::{
    collections::{HashMap, HashSet},
    fs::File,
    io,
    path::PathBuf,
    sync::{
        Arc, Mutex, MutexGuard, PoisonError, Weak,
        atomic::{AtomicBool, AtomicU64, Ordering},
    },
    time::Duration,
};

use tokio::{runtime::Handle, sync::Semaphore, time::sleep};
use weightd_store::{SnapshotEntry, SnapshotManifest, Store};
use weightd_types::{BlobKey, SnapshotKey, display_bytes};

use crate::{Config, Metrics, free_memory::FreeMemory};
use pages::{PIECE_BYTES, Pages};

/// How long the disk is left to a reader whom the agent has read for, before looking again.
const PAUSE: Duration = Duration::from_millis(50);

/// Which snapshots are to be warm, and how warm they are.
#[derive(Debug)]
pub(crate) struct WarmUp {
    store: Store,
    memory: FreeMemory,
    metrics: Metrics,
    state: Mutex<State>,
    /// One snapshot after the other: side by side none would be warm any sooner.
    turns: Arc<Semaphore>,
}

#[derive(Debug, Default)]
struct State {
    /// To be warmed up once they are complete.
    wanted: HashSet<SnapshotKey>,
    /// What of them stays in the page cache as it arrives.
    arriving: HashMap<SnapshotKey, Arriving>,
    /// What is being warmed up, or was, and is still shown. Taking one out ends its warm-up.
    warming: HashMap<SnapshotKey, Arc<Warming>>,
    has_ended: bool,
}

/// Blobs that stay in the page cache as they arrive.
#[derive(Debug)]
struct Arriving {
    blobs: Vec<BlobKey>,
    bytes: u64,
}

/// How far one snapshot is.
#[derive(Debug, Default)]
struct Warming {
    /// Bytes that the kernel was asked for.
    bytes: AtomicU64,
    is_over: AtomicBool,
}

/// Those whose reads a warm-up makes way for.
struct Readers<'a> {
    /// Whether someone is reading a blob already.
    has: &'a dyn Fn(&BlobKey) -> bool,
    /// Chunks that the agent has read for anyone, ever.
    served: &'a dyn Fn() -> u64,
}

/// How a warm-up ended.
#[derive(Debug)]
enum End {
    /// All of it was read.
    Done,
    /// No volume shows it any more.
    Unwanted,
    /// More does not fit: why.
    NoRoom(String),
    /// The disk failed.
    Failed(PathBuf, io::Error),
}

impl WarmUp {
    pub(crate) fn new(store: Store, config: &Config, metrics: Metrics) -> Self {
        let (memory, turns) = (FreeMemory::new("/", config.warm_up_floor_bytes), Arc::new(Semaphore::new(1)));
        Self { store, memory, metrics, state: Mutex::default(), turns }
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Wants a snapshot warm: what arrives from now on stays in the page cache, and the rest is read into it as soon as the
    /// snapshot is complete.
    pub(crate) fn want(self: &Arc<Self>, key: SnapshotKey) {
        self.state().wanted.insert(key);
        match self.store.snapshot(&key) {
            // It may have become complete before it was wanted.
            Some(record) if record.complete => self.completed(key, |_| false),
            Some(record) => self.keep_arriving(&record.manifest),
            None => {}
        }
    }

    /// Has the blobs of a snapshot stay in the page cache as they arrive: the first ones, as many as fit.
    fn keep_arriving(&self, manifest: &SnapshotManifest) {
        let mut state = self.state();
        if state.has_ended || state.arriving.contains_key(&manifest.key()) {
            return;
        }
        let warm = state.warm_bytes();
        let mut arriving = Arriving { blobs: Vec::new(), bytes: 0 };
        for entry in in_order(manifest) {
            let bytes = arriving.bytes + entry.object.size;
            if let Err(why) = self.memory.has_room_for(warm + bytes) {
                let fits = display_bytes(arriving.bytes);
                tracing::info!(source = %manifest.source, fits, why, "not all of a volume stays in memory as it arrives");
                break;
            }
            arriving.bytes = bytes;
            arriving.blobs.push(entry.blob);
        }
        state.arriving.insert(manifest.key(), arriving);
        self.store.set_cached(state.arriving_blobs());
    }

    /// A snapshot is complete: the moment to begin, if it is wanted, with all files that nobody is reading by then. Needs a
    /// tokio runtime.
    pub(crate) fn completed(
        self: &Arc<Self>,
        key: SnapshotKey,
        has_reader: impl Fn(&BlobKey) -> bool + Send + 'static,
    ) {
        let warming = {
            let mut state = self.state();
            let is_running = state.warming.get(&key).is_some_and(|known| !known.is_over());
            if !state.wanted.remove(&key) || is_running || state.has_ended {
                return;
            }
            let warming = Arc::new(Warming::default());
            state.warming.insert(key, Arc::clone(&warming));
            Arc::downgrade(&warming)
        };
        let Some(record) = self.store.snapshot(&key) else { return };
        let (this, turns) = (Arc::downgrade(self), Arc::clone(&self.turns));
        let served = self.metrics.served_chunks.clone();
        tokio::spawn(async move {
            // It is never closed.
            let Ok(_turn) = turns.acquire().await else { return };
            let work = move || {
                let readers = Readers { has: &has_reader, served: &|| served.get() };
                Self::warm(&this, &warming, &record.manifest, &readers);
            };
            // It cannot panic; an agent that ends takes it along.
            let _ = tokio::task::spawn_blocking(work).await;
        });
    }

    /// Forgets what is not shown any more, and ends its warm-up.
    pub(crate) fn keep_only(&self, is_shown: impl Fn(&SnapshotKey) -> bool) {
        let mut state = self.state();
        state.wanted.retain(|key| is_shown(key));
        state.warming.retain(|key, _| is_shown(key));
        let before = state.arriving.len();
        state.arriving.retain(|key, _| is_shown(key));
        if state.arriving.len() < before {
            self.store.set_cached(state.arriving_blobs());
        }
    }

    /// Ends everything, for good.
    pub(crate) fn end(&self) {
        *self.state() = State { has_ended: true, ..State::default() };
        self.store.set_cached(HashSet::new());
    }

    /// Reads a snapshot into the page cache, and says how that ended. Blocks. Holds nothing that would keep it going
    /// when nobody wants it.
    fn warm(this: &Weak<Self>, warming: &Weak<Warming>, manifest: &SnapshotManifest, readers: &Readers<'_>) {
        let key = manifest.key();
        let mut bytes = 0;
        let end = Self::warm_files(this, warming, manifest, readers, &mut bytes);
        let read = display_bytes(bytes);
        match end {
            End::Done => tracing::info!(source = %manifest.source, snapshot = %key, read, "warmed up"),
            End::Unwanted => {
                tracing::debug!(snapshot = %key, read, "the warm-up of a volume that is gone ended");
            }
            End::NoRoom(why) => {
                tracing::warn!(source = %manifest.source, snapshot = %key, read, why, "a warm-up stopped for want of memory");
            }
            End::Failed(path, error) => {
                tracing::warn!(path = %path.display(), %error, "a warm-up stopped");
            }
        }
        if let Some(warming) = warming.upgrade() {
            warming.is_over.store(true, Ordering::Release);
        }
    }

    fn warm_files(
        this: &Weak<Self>,
        warming: &Weak<Warming>,
        manifest: &SnapshotManifest,
        readers: &Readers<'_>,
        read: &mut u64,
    ) -> End {
        // Someone for whom the agent reads waits for the disk now, and whoever this is for may never come.
        let mut served = (readers.served)();
        for entry in in_order(manifest).into_iter().filter(|entry| !(readers.has)(&entry.blob)) {
            let Some(path) = this.upgrade().map(|this| this.store.blob_path(&entry.blob)) else {
                return End::Unwanted;
            };
            let opened = File::open(&path).and_then(Pages::of);
            let mut pages = match opened {
                Ok(pages) => pages,
                Err(error) => return End::Failed(path, error),
            };
            while pages.left() > 0 {
                let (Some(this), Some(warming)) = (this.upgrade(), warming.upgrade()) else {
                    return End::Unwanted;
                };
                let now_served = (readers.served)();
                if now_served != served {
                    served = now_served;
                    drop((this, warming));
                    Handle::current().block_on(sleep(PAUSE));
                    continue;
                }
                let piece = pages.left().min(PIECE_BYTES);
                if let Err(why) = this.memory.has_room_for(this.state().warm_bytes() + piece) {
                    return End::NoRoom(why);
                }
                if let Err(error) = pages.read(piece) {
                    return End::Failed(path, error);
                }
                warming.bytes.fetch_add(piece, Ordering::Relaxed);
                this.metrics.warmed_bytes.inc_by(piece);
                *read += piece;
            }
            if let Err(error) = pages.finish() {
                return End::Failed(path, error);
            }
        }
        End::Done
    }
}

impl State {
    /// What is in the page cache of all snapshots that are shown, or will be: all of it is to stay there. A warm-up goes
    /// over what has arrived there before it goes on.
    fn warm_bytes(&self) -> u64 {
        let warmed = |key| self.warming.get(key).map_or(0, |warming| warming.bytes.load(Ordering::Relaxed));
        let arriving = |key| self.arriving.get(key).map_or(0, |arriving| arriving.bytes);
        let keys: HashSet<_> = self.warming.keys().chain(self.arriving.keys()).collect();
        keys.into_iter().map(|key| warmed(key).max(arriving(key))).sum()
    }

    fn arriving_blobs(&self) -> HashSet<BlobKey> {
        self.arriving.values().flat_map(|arriving| arriving.blobs.iter().copied()).collect()
    }
}

impl Warming {
    fn is_over(&self) -> bool {
        self.is_over.load(Ordering::Acquire)
    }
}

/// Files in the order that loaders read them: shards by name, as the index of a model numbers them. What else there is
/// comes after them, because few loaders read a model's weights in two formats.
fn in_order(manifest: &SnapshotManifest) -> Vec<&SnapshotEntry> {
    let mut seen = HashSet::new();
    let mut entries: Vec<_> = manifest.objects.iter().filter(|entry| seen.insert(entry.blob)).collect();
    entries.sort_by_key(|entry| !entry.object.path.is_safetensors());
    entries
}

#[cfg(test)]
mod tests;
