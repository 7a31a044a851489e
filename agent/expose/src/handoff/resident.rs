//! One blob in memory, for all who lease it.

use std::{
    fmt,
    sync::{Arc, OnceLock, Weak},
    time::Duration,
};

use async_trait::async_trait;
use tokio::{sync::Notify, time::sleep};
use weightd_store::{Landing, Store, StoreError, io::Buffer};
use weightd_types::{BlobKey, Crc32c, SafetensorsHeader};

use super::arena::{Arena, Chunk, Claim};
use crate::reading::Room;

/// How often it is looked whether anyone still waits for a blob to be confirmed.
const LOOK: Duration = Duration::from_millis(100);

/// Why what was handed out is not what the origin has.
const DAMAGED: &str = "part of it was damaged on its way, and was fetched again";

/// What is known of the bytes of a blob.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Trust {
    /// They arrived whole; what the origin says of the whole was not compared yet.
    Provisional,
    /// The origin has the same, as far as they are here; what comes later is compared as it comes.
    Verified,
    /// Some are not: why.
    Wrong(Arc<str>),
}

/// One blob in memory.
pub(crate) struct Resident {
    blob: BlobKey,
    header: SafetensorsHeader,
    arena: Arc<Arena>,
    /// Why it was thrown away, if it was.
    discarded: OnceLock<Arc<str>>,
    /// Told of everything that changes.
    changed: Arc<Notify>,
}

impl fmt::Debug for Resident {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Resident")
            .field("blob", &self.blob)
            .field("trust", &self.trust())
            .finish_non_exhaustive()
    }
}

impl Resident {
    pub(crate) fn new(
        blob: BlobKey,
        header: SafetensorsHeader,
        arena: Arc<Arena>,
        changed: Arc<Notify>,
    ) -> Self {
        Self { blob, header, arena, discarded: OnceLock::new(), changed }
    }

    pub(crate) fn blob(&self) -> BlobKey {
        self.blob
    }

    /// The blob's own header.
    pub(crate) fn header(&self) -> &SafetensorsHeader {
        &self.header
    }

    pub(crate) fn arena(&self) -> &Arc<Arena> {
        &self.arena
    }

    pub(crate) fn trust(&self) -> Trust {
        match self.discarded.get() {
            Some(why) => Trust::Wrong(Arc::clone(why)),
            None if self.arena.is_wrong() => Trust::Wrong(DAMAGED.into()),
            None if self.arena.is_confirmed() => Trust::Verified,
            None => Trust::Provisional,
        }
    }

    /// Says that its bytes turned out to be wrong.
    pub(crate) fn discard(&self, why: Arc<str>) {
        let _ = self.discarded.set(why);
        self.changed.notify_waiters();
    }

    /// Whether a chunk is here.
    pub(crate) fn is_here(&self, chunk: u32) -> bool {
        matches!(self.arena.state(chunk), Chunk::Here(_))
    }

    /// Waits until a chunk is here, whoever brings it.
    pub(crate) async fn until_here(&self, chunk: u32) {
        loop {
            // Made before looking, so that nothing is missed in between.
            let changed = self.changed.notified();
            if self.is_here(chunk) {
                return;
            }
            changed.await;
        }
    }

    /// Waits for the right to write a chunk. When someone else has brought it meanwhile, for ever.
    pub(crate) async fn claim(&self, chunk: u32) -> Claim {
        loop {
            let changed = self.changed.notified();
            if let Some(claim) = self.arena.claim(chunk) {
                return claim;
            }
            changed.await;
        }
    }
}

/// A chunk's own place, for bytes that can be read straight into it.
pub(crate) struct Place<'r> {
    pub(crate) resident: &'r Resident,
    pub(crate) chunk: u32,
}

impl Room for Place<'_> {
    async fn buffer(&self) -> Buffer {
        let claim = self.resident.claim(self.chunk).await;
        claim.into_buffer(0).unwrap_or_else(|_| unreachable!("only chunks that lie straight are read so"))
    }
}

#[async_trait]
impl Landing for Resident {
    async fn buffer(&self, chunk: u32, within: u64) -> Option<Buffer> {
        self.arena.arrangement().straight(chunk)?;
        // Memory that is not there yet would be the agent's to pay for.
        self.arena.provide(chunk).await.ok()?;
        self.arena.claim(chunk)?.into_buffer(within).ok()
    }
}

/// Waits until a blob is confirmed, and compares what is in memory with what was confirmed: a chunk may have been damaged on its
/// way, and fetched again since. What comes later is compared as it comes.
pub(crate) async fn confirm(resident: &Weak<Resident>, store: &Store) -> Option<()> {
    let blob = resident.upgrade()?.blob;
    loop {
        match confirmed(store, blob).await {
            Ok(Some(expected)) => {
                resident.upgrade()?.arena.expect(expected);
                return Some(());
            }
            Ok(None) => {}
            Err(error) => tracing::debug!(%blob, %error, "not confirmed yet"),
        }
        // Nobody says when a blob is confirmed, and nobody may want it any more.
        sleep(LOOK).await;
        resident.upgrade()?;
    }
}

/// Waits until all of a blob is here. Gives the checksums of its chunks.
pub(crate) async fn filled(resident: &Weak<Resident>) -> Option<Vec<Crc32c>> {
    loop {
        let here = resident.upgrade()?.arena.checksums();
        match here {
            Some(chunks) => return Some(chunks),
            None => sleep(LOOK).await,
        }
    }
}

/// Checksums of a blob's chunks, once it is what the origin has.
async fn confirmed(store: &Store, blob: BlobKey) -> Result<Option<Vec<Crc32c>>, StoreError> {
    Ok(store.stored_blob(blob).await?.map(|stored| stored.manifest().chunk_crc32c.clone()))
}
