//! Chunks on their way to the disk: who waits for one need not wait for the disk.

use std::sync::Arc;

use weightd_types::{ByteRange, CHUNK_BYTES, Crc32c};

use super::PartialBlob;
use crate::{io::Buffer, store::lock};

/// A chunk that can be had from memory for as long as this lives.
pub(super) struct InMemory<'p> {
    partial: &'p PartialBlob,
    chunk: u32,
    buffer: Arc<Buffer>,
}

impl Drop for InMemory<'_> {
    fn drop(&mut self) {
        let in_memory = &mut lock(&self.partial.state).in_memory;
        // The same chunk may be written twice, when it had rotted in between.
        if in_memory.get(&self.chunk).is_some_and(|shown| Arc::ptr_eq(shown, &self.buffer)) {
            in_memory.remove(&self.chunk);
        }
    }
}

impl PartialBlob {
    /// Lets readers have a chunk whose bytes are all in a buffer that is about to be written.
    pub(super) fn show_in_memory(
        &self,
        blob_offset: u64,
        buffer: &Arc<Buffer>,
        pieces: &[(usize, Crc32c)],
    ) -> Option<InMemory<'_>> {
        let range = ByteRange::at(blob_offset, buffer.len() as u64);
        let chunk = u32::try_from(range.start / CHUNK_BYTES).ok()?;
        let literal = self.placement().literal_of_chunk(chunk).len() as u64;
        let whole = self.placement().chunk_range(chunk);
        if buffer.is_empty() || range != ByteRange::new(whole.start + literal, whole.end) {
            return None;
        }
        if let (true, [(_, crc)]) = (buffer.is_lent(), pieces) {
            let literal = Crc32c::of(&self.placement().literal_of_chunk(chunk));
            buffer.landed(literal.combine(*crc, buffer.len() as u64));
        }
        lock(&self.state).in_memory.insert(chunk, Arc::clone(buffer));
        self.advanced.notify_waiters();
        Some(InMemory { partial: self, chunk, buffer: Arc::clone(buffer) })
    }
}
