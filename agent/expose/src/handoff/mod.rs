//! Tensors in memory that processes share. `docs/HANDOFF.md` says what clients see.
//!
//! Reading order: `memory` and `lent` (files in memory), `trust` (whether bytes are right), `files`, `model` and `table` (what a
//! client is lent); `arrangement`, `arena`, `resident` and `residents` (blobs in memory, for all who lease them), `progress` and
//! `lease` (one who does); `ring` and `stream` (one client's tensors, one after the other); `packets`, `serve` and `sockets`
//! (where clients come), `ahead` (models for whom no client has come yet).

mod ahead;
mod arena;
mod arrangement;
mod counted;
mod files;
mod huge_pages;
mod lease;
mod lent;
mod memory;
mod model;
mod packets;
mod progress;
mod refusal;
mod resident;
mod residents;
mod ring;
mod serve;
mod sockets;
mod stream;
mod table;
mod trust;

use std::{
    collections::HashMap,
    path::{Path, PathBuf},
    sync::{Arc, Mutex, MutexGuard, PoisonError, Weak},
    time::Duration,
};

use tokio::sync::watch;
use weightd_store::{Store, io::BufferPool};
use weightd_types::{BlobKey, SnapshotKey};

pub use refusal::Refusal;

use crate::{
    Config, ExposeError, Metrics,
    reading::{Brought, ChunkCache, Chunks},
    shown::Condition,
};
use ahead::Ahead;
use memory::Provider;
use residents::Residents;
use sockets::Sockets;
use trust::Seen;

/// Why what was handed out is not what the origin has.
const MISMATCH: &str = "it did not match its checksum after part of it was handed out";

/// Buffers for chunks that cannot be read straight into their place.
const BUFFERS: usize = 8;

/// What an operator decides about hand-off.
#[derive(Debug, Clone)]
pub struct HandoffConfig {
    /// Where sockets are: the node's own, and those that are mounted into volumes.
    pub directory: PathBuf,
    /// Most bytes of tensors in memory; `None` for what the keeper allows, or without one what the machine can spare.
    pub resident_limit: Option<u64>,
    /// How long what nobody leases stays in memory.
    pub linger: Duration,
    /// Most bytes that are kept from being swapped.
    pub lock_limit: u64,
    /// Most leases at once.
    pub leases: usize,
    /// Whether a node that gives shared memory no huge pages shall give them to those who ask.
    pub huge_pages: bool,
}

impl HandoffConfig {
    /// The defaults, with sockets in a directory.
    pub fn new(directory: impl Into<PathBuf>) -> Self {
        Self {
            directory: directory.into(),
            resident_limit: None,
            linger: Duration::from_mins(10),
            lock_limit: u64::MAX,
            leases: 1024,
            huge_pages: false,
        }
    }
}

/// Tensors in memory, and who has them.
#[derive(Debug, Clone)]
pub(crate) struct Handoff {
    inner: Arc<Inner>,
    ahead: Arc<Ahead>,
    sockets: Arc<Sockets>,
}

#[derive(Debug)]
pub(crate) struct Inner {
    chunks: Arc<Chunks>,
    residents: Arc<Residents>,
    /// Chunks that cannot be read straight into their place.
    cache: ChunkCache,
    /// What streams have handed out.
    streamed: Mutex<Vec<(BlobKey, Weak<Seen>)>>,
    metrics: Metrics,
    /// How transfers of leased snapshots are doing.
    conditions: Mutex<HashMap<SnapshotKey, watch::Sender<Condition>>>,
}

impl Handoff {
    pub(crate) fn new(chunks: Arc<Chunks>, config: &Config, metrics: Metrics) -> Result<Self, ExposeError> {
        let HandoffConfig { directory, resident_limit, linger, lock_limit, leases, huge_pages } =
            config.handoff.clone();
        if huge_pages {
            switch_on_huge_pages();
        }
        let pool = BufferPool::new(BUFFERS).map_err(ExposeError::mount("get memory for", &directory))?;
        let provider = Provider::new(config.keeper.clone(), resident_limit, lock_limit);
        let residents = Residents::new(Arc::clone(&chunks), provider.clone(), linger, metrics.clone());
        tokio::spawn(Residents::look_after(Arc::downgrade(&residents)));
        let (cache, streamed, conditions) = (ChunkCache::new(pool), Mutex::default(), Mutex::default());
        let inner = Arc::new(Inner { chunks, residents, cache, streamed, metrics, conditions });
        let sockets = Arc::new(Sockets::new(directory, provider, leases, Arc::downgrade(&inner)));
        let ahead = Arc::new(Ahead::new(Arc::clone(&inner)));
        Ok(Self { inner, ahead, sockets })
    }

    /// Takes over what an earlier agent left, and listens on the node's socket. May be called again.
    pub(crate) async fn begin(&self) -> Result<(), ExposeError> {
        self.inner.residents.adopt().await?;
        self.sockets.begin().await
    }

    /// Has a volume of a snapshot reach it by its socket. Blocks.
    pub(crate) fn attach(&self, key: SnapshotKey, target: &Path) -> Result<(), ExposeError> {
        self.sockets.attach(key, target)
    }

    /// Listens for volumes of these snapshots and no others.
    pub(crate) fn keep_only(&self, is_shown: impl Fn(&SnapshotKey) -> bool) {
        self.ahead.keep_only(&is_shown);
        self.sockets.keep_only(is_shown);
    }

    /// Brings a model into memory before anyone asks for it. Needs a tokio runtime.
    pub(crate) fn bring_ahead(&self, key: SnapshotKey) {
        self.ahead.want(key);
    }

    /// Whether someone leases a snapshot, so that its transfer must go on.
    pub(crate) fn is_leased(&self, key: &SnapshotKey) -> bool {
        self.inner.conditions().get(key).is_some_and(|condition| condition.receiver_count() > 0)
    }

    /// Says how the transfer of a snapshot is doing.
    pub(crate) fn report(&self, key: &SnapshotKey, condition: &Condition) {
        let mut conditions = self.inner.conditions();
        conditions.retain(|_, condition| condition.receiver_count() > 0);
        if let Some(known) = conditions.get(key) {
            known.send_replace(condition.clone());
        }
    }

    /// Bytes of a blob turned out to be wrong.
    pub(crate) fn discarded(&self, blob: &BlobKey) {
        self.inner.residents.discard(blob, MISMATCH);
        self.inner.cache.forget(blob);
        for (_, seen) in self.inner.streamed().iter().filter(|(of, _)| of == blob) {
            if let Some(seen) = seen.upgrade() {
                seen.discard(MISMATCH.into());
            }
        }
    }

    /// Ends all leases. What is in memory stays for the next agent, if there is a keeper.
    pub(crate) fn end(&self) {
        self.ahead.end();
        self.sockets.end();
    }
}

fn switch_on_huge_pages() {
    match huge_pages::give_on_request(Path::new(huge_pages::SWITCH)) {
        Ok(false) => {}
        Ok(true) => tracing::info!("this node gives shared memory huge pages from now on, to those who ask"),
        Err(error) => tracing::warn!(
            switch = huge_pages::SWITCH,
            %error,
            "memory for tensors gets no huge pages: let the agent write there, or leave handoff.huge_pages out"
        ),
    }
}

impl Inner {
    fn store(&self) -> &Store {
        self.chunks.store()
    }

    fn streamed(&self) -> MutexGuard<'_, Vec<(BlobKey, Weak<Seen>)>> {
        self.streamed.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn conditions(&self) -> MutexGuard<'_, HashMap<SnapshotKey, watch::Sender<Condition>>> {
        self.conditions.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn condition(&self, key: SnapshotKey) -> watch::Receiver<Condition> {
        let mut conditions = self.conditions();
        // What ended the leases of others is not said of a transfer that may have been mended since.
        conditions.retain(|_, condition| condition.receiver_count() > 0);
        conditions.entry(key).or_insert_with(|| watch::Sender::new(Condition::Fine)).subscribe()
    }

    /// The snapshot of a source or of that name, which is brought if it is not here.
    async fn find(&self, source: &str) -> Result<(SnapshotKey, Option<Brought>), Refusal> {
        if source.is_empty() {
            return Err(Refusal::usage("the node's socket serves every snapshot: name a source"));
        }
        let brought = self.chunks.demands().bring(source).await?;
        Ok((brought.key, Some(brought)))
    }
}
