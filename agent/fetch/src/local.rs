//! What is here already is never downloaded: the other layout of a blob is made from it, and of one that is damaged in a read-only
//! tier the sound chunks are taken.

use std::sync::Arc;

use bytes::Bytes;
use futures::{StreamExt, TryStreamExt, stream};
use weightd_store::{PartialBlob, StoredBlob};
use weightd_types::{BlobKey, ByteRange, Crc32c, Layout, Piece, SafetensorsHeader};

use crate::{FetchError, Route, fetcher::Inner};

/// Chunks of a damaged copy that are read at once.
const AT_ONCE: usize = 4;

impl Inner {
    /// Fills a blob from its twin in the other layout, if that is complete and sound. What cannot be read from it is
    /// left to be fetched.
    pub(crate) async fn fill_locally(&self, partial: &Arc<PartialBlob>) -> Result<(), FetchError> {
        let key = partial.key();
        if let Some(damaged) = self.store.condemned_blob(key).await? {
            self.take_sound_chunks(partial, &damaged).await?;
        }
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

    /// Takes what is right in a blob in which something is wrong.
    async fn take_sound_chunks(
        &self,
        partial: &Arc<PartialBlob>,
        damaged: &StoredBlob,
    ) -> Result<(), FetchError> {
        let (placement, runs) = (partial.placement(), damaged.placement().runs());
        if placement.runs() != runs || placement.literal() != damaged.placement().literal() {
            return Ok(());
        }
        let chunks = stream::iter(0..placement.chunk_count());
        let taking = chunks.map(|chunk| self.take_sound_chunk(partial, damaged, chunk));
        taking.buffer_unordered(AT_ONCE).try_collect().await
    }

    async fn take_sound_chunk(
        &self,
        partial: &Arc<PartialBlob>,
        damaged: &StoredBlob,
        chunk: u32,
    ) -> Result<(), FetchError> {
        let placement = partial.placement();
        let pieces = placement.pieces_of_chunk(chunk).iter().map(|&at| at as usize);
        let missing: Vec<usize> = pieces.filter(|&at| !partial.has_piece(at)).collect();
        if missing.is_empty() {
            return Ok(());
        }
        // A sector that cannot be read is as bad as one that reads wrong.
        let checked = damaged.check_chunk(chunk, self.store.pool().acquire().await).await;
        let Ok((buffer, true)) = checked else { return Ok(()) };
        // One buffer at a time: two held at once could leave every worker waiting for the second.
        let bytes = buffer.to_vec();
        drop(buffer);
        let start = placement.chunk_range(chunk).start;
        for at in missing {
            let piece = placement.pieces()[at];
            let bytes = &bytes[range(ByteRange::at(piece.blob - start, piece.object.len()))];
            let mut buffer = self.store.pool().acquire().await;
            let crc = buffer.extend_summed(bytes, Crc32c::EMPTY);
            partial.write(piece.blob, buffer, &[(at, crc)]).await?;
        }
        Ok(())
    }

    /// The header of an object of which a tier has a damaged copy, if it is not the header that is damaged.
    pub(crate) async fn header_of_damaged(
        &self,
        route: &Route,
        key: BlobKey,
    ) -> Result<Option<SafetensorsHeader>, FetchError> {
        let Some(damaged) = self.store.condemned_blob(key).await? else { return Ok(None) };
        let size = route.object.size;
        let raw = match key.layout {
            Layout::Aligned => damaged.header().clone(),
            Layout::Original => {
                let checked = damaged.check_chunk(0, self.store.pool().acquire().await).await;
                let Ok((buffer, true)) = checked else { return Ok(None) };
                let length = SafetensorsHeader::length(&buffer, size).unwrap_or(u64::MAX);
                match usize::try_from(length).ok().and_then(|length| buffer.get(..length)) {
                    Some(raw) => Bytes::copy_from_slice(raw),
                    None => return Ok(None),
                }
            }
        };
        Ok(SafetensorsHeader::parse(raw, size).ok())
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
