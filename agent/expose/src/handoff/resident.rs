//! One blob in memory, for all who lease it.

use std::{fmt, sync::Arc};

use async_trait::async_trait;
use tokio::sync::Notify;
use weightd_store::{Landing, io::Buffer};
use weightd_types::{BlobKey, SafetensorsHeader};

use super::{
    arena::{Arena, Chunk, Claim},
    trust::Trust,
};
use crate::reading::Room;

/// One blob in memory.
pub(crate) struct Resident {
    blob: BlobKey,
    header: SafetensorsHeader,
    arena: Arc<Arena>,
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
        Self { blob, header, arena, changed }
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
        self.arena.seen().trust()
    }

    /// Whether a chunk is here.
    pub(crate) fn is_here(&self, chunk: u32) -> bool {
        self.arena.state(chunk) == Chunk::Here
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
    /// Whether anyone waits for it.
    pub(crate) is_awaited: bool,
}

impl Room for Place<'_> {
    async fn buffer(&self) -> Buffer {
        let claim = self.resident.claim(self.chunk).await;
        let buffer = claim.into_buffer(0);
        let buffer = buffer.unwrap_or_else(|_| unreachable!("only chunks that lie straight are read so"));
        if self.is_awaited { buffer } else { buffer.for_later() }
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
