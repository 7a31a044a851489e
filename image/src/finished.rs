//! What is known of a blob once all of its bytes were seen: its manifest, in as many bytes as were kept for it.

use weightd_store::{BlobManifest, FORMAT_VERSION};
use weightd_types::{CHUNK_BYTES, Crc32c, Placement};

use crate::contents::Blob;

/// Decimal digits of the largest checksum.
const CHECKSUM_DIGITS: u64 = 10;

/// Bytes that are kept for a blob's manifest: enough, whatever its checksums turn out to be.
pub(crate) fn manifest_bytes(blob: &Blob) -> u64 {
    let chunks = blob.wanted.placement.chunk_count() as usize;
    let longest = of_checksums(blob, vec![Crc32c(u32::MAX); chunks]).encode();
    longest.len() as u64 + CHECKSUM_DIGITS
}

/// A blob's manifest, given the checksum of each of its pieces in the order of the object. Padded with spaces in front of the
/// last line's end to the length that was kept.
pub(crate) fn manifest(blob: &Blob, pieces: &[Crc32c]) -> Vec<u8> {
    let placement = &blob.wanted.placement;
    let chunks = (0..placement.chunk_count()).map(|chunk| chunk_checksum(placement, chunk, pieces));
    let mut text = of_checksums(blob, chunks.collect()).encode();
    let kept = usize::try_from(manifest_bytes(blob)).expect("manifests are small");
    // It ends in a line's end, before which JSON may have spaces.
    text.pop();
    text.resize(kept - 1, b' ');
    text.push(b'\n');
    text
}

/// The checksum of the whole object, from those of its pieces.
pub(crate) fn object_checksum(blob: &Blob, pieces: &[Crc32c]) -> Crc32c {
    let replaced = Crc32c::of(&blob.wanted.header);
    let lengths = blob.wanted.placement.pieces().iter().map(|piece| piece.object.len());
    pieces.iter().zip(lengths).fold(replaced, |sum, (piece, len)| sum.combine(*piece, len))
}

fn chunk_checksum(placement: &Placement, chunk: u32, pieces: &[Crc32c]) -> Crc32c {
    let literal = Crc32c::of(&placement.literal_of_chunk(chunk));
    placement.pieces_of_chunk(chunk).iter().fold(literal, |sum, &at| {
        sum.combine(pieces[at as usize], placement.pieces()[at as usize].object.len())
    })
}

fn of_checksums(blob: &Blob, chunk_crc32c: Vec<Crc32c>) -> BlobManifest {
    let wanted = &blob.wanted;
    BlobManifest {
        format: FORMAT_VERSION,
        key: wanted.key,
        url: wanted.url.clone(),
        object: wanted.object.clone(),
        blob_bytes: wanted.placement.blob_len(),
        chunk_bytes: CHUNK_BYTES,
        chunk_crc32c,
        header_bytes: wanted.header.len() as u64,
        header_crc32c: Crc32c::of(&wanted.header),
        runs: wanted.placement.runs().to_vec(),
    }
}
