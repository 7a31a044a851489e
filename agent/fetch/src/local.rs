//! The other layout of a blob that is here is made from it, never downloaded.

use std::sync::Arc;

use weightd_store::{PartialBlob, StoredBlob};
use weightd_types::{BlobKey, ByteRange, Crc32c, Layout, Piece};

use crate::{FetchError, fetcher::Inner};

impl Inner {
    /// Fills a blob from its twin in the other layout, if that is complete and sound. What cannot be read from it is
    /// left to be fetched.
    pub(crate) async fn fill_locally(&self, partial: &Arc<PartialBlob>) -> Result<(), FetchError> {
        let key = partial.key();
        let layout = match key.layout {
            Layout::Original => Layout::Aligned,
            Layout::Aligned => Layout::Original,
        };
        let twin = BlobKey { layout, ..key };
        if !partial.wanted().object.path.is_safetensors() {
            return Ok(());
        }
        let Ok(Some(twin)) = self.store.stored_blob(twin).await else { return Ok(()) };
        for chunk in 0..twin.placement().chunk_count() {
            let checked = twin.check_chunk(chunk, self.store.pool().acquire().await).await;
            // A sector that cannot be read is as bad as one that reads wrong.
            if !checked.is_ok_and(|(_, good)| good) {
                tracing::warn!(blob = %twin.path().display(), chunk, "damaged; the other layout is fetched instead of made from it");
                return Ok(());
            }
        }
        for (index, piece) in partial.placement().pieces().iter().enumerate() {
            if !partial.has_piece(index) {
                self.copy_piece(partial, &twin, index, piece).await?;
            }
        }
        Ok(())
    }

    async fn copy_piece(
        &self,
        partial: &PartialBlob,
        twin: &StoredBlob,
        index: usize,
        piece: &Piece,
    ) -> Result<(), FetchError> {
        // One at a time: two buffers held at once could leave every worker waiting for the second.
        let mut bytes = Vec::new();
        let replaced = ByteRange::new(0, twin.placement().replaced()).intersect(&piece.object);
        if !replaced.is_empty() {
            bytes.extend_from_slice(&twin.header()[range(replaced)]);
        }
        let mut at = piece.object.start + replaced.len();
        let pieces = twin.placement().pieces();
        while at < piece.object.end {
            let source = pieces[pieces.partition_point(|other| other.object.end <= at)];
            let end = source.object.end.min(piece.object.end);
            let blob = ByteRange::at(source.blob + (at - source.object.start), end - at);
            let (buffer, within) = twin.read(blob, self.store.pool().acquire().await).await?;
            bytes.extend_from_slice(&buffer[within]);
            at = end;
        }
        let mut buffer = self.store.pool().acquire().await;
        buffer.extend_from_slice(&bytes);
        partial.write(piece.blob, buffer, &[(index, Crc32c::of(&bytes))]).await?;
        Ok(())
    }
}

#[expect(clippy::cast_possible_truncation, reason = "only 64-bit targets are supported")]
fn range(range: ByteRange) -> std::ops::Range<usize> {
    range.start as usize..range.end as usize
}
