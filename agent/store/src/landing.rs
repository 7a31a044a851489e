//! Blobs that are wanted in memory as they arrive: their bytes are put where they are to stay, and written to disk from there.

use std::{
    fmt,
    sync::{Arc, PoisonError, Weak},
};

use async_trait::async_trait;
use weightd_types::{BlobKey, Piece};

use crate::{PartialBlob, Store, io::Buffer, store::lock};

/// Memory for a blob that arrives.
#[async_trait]
pub trait Landing: fmt::Debug + Send + Sync {
    /// Memory for a chunk's bytes, from those that are `within` bytes behind its beginning to its end. `None` when the chunk
    /// is there already, or cannot lie in one piece: then it goes through a buffer of the pool.
    async fn buffer(&self, chunk: u32, within: u64) -> Option<Buffer>;
}

impl Store {
    /// Has a blob put into memory from now on as it arrives, as long as someone has that memory; also if it is arriving now.
    pub fn land_in(&self, blob: BlobKey, landing: Weak<dyn Landing>) {
        let mut landings = lock(&self.inner.landings);
        landings.retain(|_, landing| landing.strong_count() > 0);
        landings.insert(blob, Weak::clone(&landing));
        if let Some(partial) = lock(&self.inner.active).get(&blob) {
            partial.land_in(landing);
        }
    }
}

impl PartialBlob {
    pub(crate) fn land_in(&self, landing: Weak<dyn Landing>) {
        *self.landing.write().unwrap_or_else(PoisonError::into_inner) = Some(landing);
    }

    pub(crate) fn landing(&self) -> Option<Arc<dyn Landing>> {
        self.landing.read().unwrap_or_else(PoisonError::into_inner).as_ref()?.upgrade()
    }

    /// Where a piece is to stay in memory, if someone wants it there and it is all that its chunk has of the object.
    pub async fn landing_buffer(&self, piece: &Piece) -> Option<Buffer> {
        let landing = self.landing()?;
        if self.placement().pieces_of_chunk(piece.chunk).len() != 1 {
            return None;
        }
        landing.buffer(piece.chunk, piece.blob - self.placement().chunk_range(piece.chunk).start).await
    }
}
