//! What an earlier run left is read once before it counts: the disk may have lost it in between.

use futures::{StreamExt, TryStreamExt, stream};

use crate::{FetchError, fetcher::Inner, flight::Flying};

/// Chunks of one blob read at once.
const AT_ONCE: usize = 4;

impl Inner {
    /// Reads every chunk that came from the records. One that rotted is asked for again.
    pub(crate) async fn reread(&self, flying: &Flying) -> Result<(), FetchError> {
        let chunks = stream::iter(flying.partial.restored()).map(|chunk| self.reread_chunk(flying, chunk));
        chunks.buffer_unordered(AT_ONCE).try_collect().await
    }

    /// Reads a chunk, and asks for it again if the disk does not have what arrived.
    pub(crate) async fn reread_chunk(&self, flying: &Flying, chunk: u32) -> Result<(), FetchError> {
        let partial = &flying.partial;
        if !partial.has_chunk(chunk) {
            return Ok(());
        }
        let buffer = self.store.pool().acquire().await;
        if partial.read_chunk(chunk, buffer).await?.is_none() {
            self.miss_again(flying, chunk);
        }
        Ok(())
    }

    fn miss_again(&self, flying: &Flying, chunk: u32) {
        let partial = &flying.partial;
        let range = partial.placement().chunk_range(chunk);
        self.planner().reconsider(&partial.key(), range, |piece| partial.has_piece(piece));
        flying.progress.set_present(partial.present_bytes());
        self.wake.notify_one();
    }
}
