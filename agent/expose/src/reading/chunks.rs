//! One chunk, wherever it has to come from: what arrives, what is stored, what someone has to bring first.

use std::{
    collections::HashMap,
    sync::{Arc, Mutex},
    time::Duration,
};

use tokio::{
    sync::watch,
    task::JoinHandle,
    time::{MissedTickBehavior, interval},
};
use weightd_store::{PartialBlob, Store, StoreError, StoredBlob, io::Buffer};
use weightd_types::{BlobKey, ByteRange, Crc32c, SnapshotKey};

use super::{Demands, lock};
use crate::{Metrics, shown::Condition};

/// How often a reader who waits says so.
const DEMAND_AGAIN: Duration = Duration::from_secs(1);

/// A chunk of a file of a snapshot, and which part of the file someone reads.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Target {
    pub(crate) snapshot: SnapshotKey,
    pub(crate) blob: BlobKey,
    pub(crate) chunk: u32,
    pub(crate) range: ByteRange,
    /// Whether someone waits for it. What nobody does comes in its turn: to demand it costs others their connections.
    pub(crate) is_awaited: bool,
}

impl Target {
    /// What someone waits for.
    pub(crate) fn now(snapshot: SnapshotKey, blob: BlobKey, chunk: u32, range: ByteRange) -> Self {
        Self { snapshot, blob, chunk, range, is_awaited: true }
    }
}

/// A repair. It goes on without whoever came to it first: others wait for the rest of the blob, whose requests would end with it.
type Mending = JoinHandle<Result<(), String>>;

/// A chunk that was read, and its checksum.
#[derive(Debug)]
pub(crate) struct Loaded {
    pub(crate) buffer: Buffer,
    pub(crate) crc: Crc32c,
}

/// Gives memory for a chunk that is about to be read.
pub(crate) trait Room: Sync {
    /// Memory for one chunk; waits until there is some.
    fn buffer(&self) -> impl Future<Output = Buffer> + Send;
}

/// Finds chunks. What is open stays open for the next one.
#[derive(Debug)]
pub(crate) struct Chunks {
    store: Store,
    demands: Arc<dyn Demands>,
    metrics: Metrics,
    /// Complete blobs that were read through the agent, open.
    stored: Mutex<HashMap<BlobKey, Arc<StoredBlob>>>,
    /// Interrupted blobs that were read while nobody brought the rest, open.
    interrupted: Mutex<HashMap<BlobKey, Arc<PartialBlob>>>,
}

impl Chunks {
    pub(crate) fn new(store: Store, demands: Arc<dyn Demands>, metrics: Metrics) -> Self {
        Self { store, demands, metrics, stored: Mutex::default(), interrupted: Mutex::default() }
    }

    pub(crate) fn store(&self) -> &Store {
        &self.store
    }

    /// Whom to ask for what is not here.
    pub(crate) fn demands(&self) -> &Arc<dyn Demands> {
        &self.demands
    }

    /// Whether a chunk can be had without asking anyone for it.
    pub(crate) fn is_here(&self, blob: &BlobKey, chunk: u32) -> bool {
        self.store.arriving(blob).map_or_else(|| self.store.has_blob(blob), |partial| partial.can_read(chunk))
    }

    /// Waits for a chunk to be here, wherever it comes from, and reads it into memory that is asked for when it is.
    pub(crate) async fn load(
        &self,
        mut condition: watch::Receiver<Condition>,
        target: Target,
        memory: &impl Room,
    ) -> Result<Loaded, String> {
        // Saying it once is enough, but for a request that failed since, whose bytes are no longer urgent.
        let mut demands = interval(DEMAND_AGAIN);
        demands.set_missed_tick_behavior(MissedTickBehavior::Delay);
        // The blob is being brought to the store because a tier's copy of it is damaged.
        let mut mending: Option<Mending> = None;
        loop {
            // All made before looking, so that nothing is missed in between.
            let begun = self.store.begun();
            let mut begun = std::pin::pin!(begun);
            begun.as_mut().enable();
            if let Condition::Stopped(why) = &*condition.borrow_and_update() {
                return Err(why.to_string());
            }
            if let Some(partial) = self.store.arriving(&target.blob) {
                let advanced = partial.advanced();
                let mut advanced = std::pin::pin!(advanced);
                advanced.as_mut().enable();
                if partial.can_read(target.chunk) {
                    let buffer = memory.buffer().await;
                    let read =
                        partial.read_chunk(target.chunk, buffer).await.map_err(|error| text(&error))?;
                    if let Some((buffer, crc)) = read {
                        self.metrics.served_chunks.inc();
                        return Ok(Loaded { buffer, crc });
                    }
                    // The disk has lost it, which nobody else may have found out.
                    self.demand(target);
                }
                tokio::select! {
                    () = advanced => {}
                    _ = demands.tick() => self.ask(target),
                    mended = ended(&mut mending) => mended?,
                    failed = Self::failed(&mut condition) => return Err(failed),
                }
            } else if mending.is_some() {
                tokio::select! {
                    () = begun => {}
                    mended = ended(&mut mending) => mended?,
                    failed = Self::failed(&mut condition) => return Err(failed),
                }
            } else if let Some(blob) = self.stored(target.blob).await? {
                match self.load_stored(target, &blob, memory).await? {
                    Some(loaded) => return Ok(loaded),
                    None => mending = Some(self.mend(target)),
                }
            } else if !self.take_up_interrupted(target.blob).await? {
                tokio::select! {
                    () = begun => {}
                    _ = demands.tick() => self.ask(target),
                    failed = Self::failed(&mut condition) => return Err(failed),
                }
            }
        }
    }

    /// Has what is here of an interrupted blob found as if it was arriving, although the origin may be away. Says whether
    /// there is any; not twice of one blob.
    async fn take_up_interrupted(&self, key: BlobKey) -> Result<bool, String> {
        let is_known = || lock(&self.interrupted).contains_key(&key);
        if is_known() {
            return Ok(false);
        }
        let Some(partial) = self.store.take_up_recorded(key).await.map_err(|error| text(&error))? else {
            return Ok(false);
        };
        lock(&self.interrupted).insert(key, partial);
        Ok(true)
    }

    fn mend(&self, target: Target) -> Mending {
        let (demands, Target { snapshot, blob, chunk, .. }) = (Arc::clone(&self.demands), target);
        tokio::spawn(async move { demands.repair(snapshot, blob, chunk).await })
    }

    /// Asks for what is not here.
    fn ask(&self, target: Target) {
        if target.is_awaited { self.demand(target) } else { self.demands.keep_coming(target.snapshot) }
    }

    fn demand(&self, target: Target) {
        self.metrics.demands.inc();
        self.demands.demand(target.snapshot, target.blob, target.range);
    }

    /// Waits for a failure that waiting longer does not mend.
    async fn failed(condition: &mut watch::Receiver<Condition>) -> String {
        loop {
            if condition.changed().await.is_err() {
                return "the volume is gone".to_owned();
            }
            match &*condition.borrow_and_update() {
                Condition::Stopped(why) | Condition::Failed { why, is_lasting: true, .. } => {
                    return why.to_string();
                }
                Condition::Failed { .. } | Condition::Fine => {}
            }
        }
    }

    /// A chunk of a complete blob; nothing when it is damaged in a tier, where nothing can be written: the blob comes to the store
    /// then, most of it from that very copy, and whoever waits for a part has it as soon as it is there.
    async fn load_stored(
        &self,
        target: Target,
        blob: &StoredBlob,
        memory: &impl Room,
    ) -> Result<Option<Loaded>, String> {
        let crc = blob.manifest().chunk_crc32c[target.chunk as usize];
        let mut buffer = memory.buffer().await;
        if blob.take_cached_chunk(target.chunk, &mut buffer) {
            self.metrics.served_chunks.inc();
            return Ok(Some(Loaded { buffer, crc }));
        }
        match blob.check_chunk(target.chunk, buffer).await {
            Ok((buffer, true)) => {
                self.metrics.served_chunks.inc();
                return Ok(Some(Loaded { buffer, crc }));
            }
            Ok((_, false)) => {}
            // What a tier's disk cannot read may be had elsewhere.
            Err(error) if blob.is_in_tier() => {
                tracing::warn!(path = %blob.path().display(), %error, "cannot be read");
            }
            Err(error) => return Err(text(&error)),
        }
        tracing::warn!(path = %blob.path().display(), chunk = target.chunk, "a stored chunk rotted; fetching it again");
        if blob.is_in_tier() {
            self.close(&target.blob);
            return Ok(None);
        }
        let repaired = self.demands.repair(target.snapshot, target.blob, target.chunk).await;
        // What is open may not be the blob any more: the next read opens it anew, or demands what is missing.
        self.close(&target.blob);
        repaired?;
        let checked = blob.check_chunk(target.chunk, memory.buffer().await).await;
        match checked.map_err(|error| text(&error))? {
            (buffer, true) => Ok(Some(Loaded { buffer, crc })),
            _ => Err("a chunk is damaged on disk; the next read looks again".to_owned()),
        }
    }

    /// A complete blob, open.
    pub(crate) async fn stored(&self, key: BlobKey) -> Result<Option<Arc<StoredBlob>>, String> {
        let known = lock(&self.stored).get(&key).cloned();
        if known.is_some() {
            return Ok(known);
        }
        let Some(blob) = self.store.stored_blob(key).await.map_err(|error| text(&error))? else {
            return Ok(None);
        };
        if self.store.is_cached(&key) {
            blob.read_cached();
        }
        let blob = Arc::new(blob);
        lock(&self.interrupted).remove(&key);
        lock(&self.stored).insert(key, Arc::clone(&blob));
        Ok(Some(blob))
    }

    /// Lets go of all files.
    pub(crate) fn close_all(&self) {
        lock(&self.interrupted).clear();
        lock(&self.stored).clear();
    }

    /// Lets go of a blob's file: the blob is in another one, or will be.
    pub(crate) fn close(&self, blob: &BlobKey) {
        lock(&self.interrupted).remove(blob);
        lock(&self.stored).remove(blob);
    }
}

/// Waits for the end of a repair, if there is one, and forgets it then.
async fn ended(mending: &mut Option<Mending>) -> Result<(), String> {
    match mending {
        Some(repair) => {
            let outcome = repair.await;
            *mending = None;
            outcome.unwrap_or_else(|error| Err(error.to_string()))
        }
        None => std::future::pending().await,
    }
}

fn text(error: &StoreError) -> String {
    error.to_string()
}
