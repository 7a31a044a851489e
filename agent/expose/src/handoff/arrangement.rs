//! Where the bytes of a blob lie in an arena: every tensor on 256 bytes, and as much as possible as in the file.
//!
//! Bytes that lie as in the file, shifted by whole blocks, are read from disk straight into their place. So tensors that
//! begin on 256 bytes in the file keep their distance from each other, and only those that do not are moved.

use weightd_types::{ByteRange, CHUNK_BYTES, SafetensorsHeader};

/// On what every tensor begins: what processors, accelerators and the copies between them like best.
pub(crate) const TENSOR_ALIGNMENT: u64 = 256;
/// What direct reads need memory and file to agree in.
const BLOCK: u64 = weightd_store::io::BLOCK_BYTES;
/// Arenas are whole huge pages.
const PAGE: u64 = 2 << 20;

/// Of this way to arrange tensors. An arena that an agent of another version filled is not found by it.
pub(crate) const VERSION: u32 = 1;

/// Where the bytes of a blob lie in an arena.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Arrangement {
    blob_bytes: u64,
    arena_bytes: u64,
    /// In order, without gaps in the blob.
    stretches: Vec<Stretch>,
}

/// A range of the blob that lies in the arena without a break.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Stretch {
    pub(crate) blob: ByteRange,
    pub(crate) arena: u64,
}

impl Arrangement {
    /// Arranges a blob by its own header.
    pub(crate) fn of(header: &SafetensorsHeader, blob_bytes: u64) -> Self {
        let data = header.raw().len() as u64;
        let mut stretches = vec![Stretch { blob: ByteRange::new(0, data), arena: 0 }];
        // Where the last tensor ends in the arena.
        let mut end = data;
        for (_, info) in header.tensors() {
            let blob = header.range_of(info);
            if blob.is_empty() {
                continue;
            }
            let open = stretches.last_mut().expect("there is the header's");
            let straight = open.arena + (blob.start - open.blob.start);
            let arena = place(blob.start, straight, end);
            if arena == straight {
                open.blob.end = blob.end;
            } else {
                stretches.push(Stretch { blob, arena });
            }
            end = arena + blob.len();
        }
        // A direct read of the last block goes beyond its file.
        let arena_bytes = (end + BLOCK).next_multiple_of(PAGE);
        Self { blob_bytes, arena_bytes, stretches }
    }

    /// Length of the arena.
    pub(crate) fn arena_bytes(&self) -> u64 {
        self.arena_bytes
    }

    /// Length of the blob.
    pub(crate) fn blob_bytes(&self) -> u64 {
        self.blob_bytes
    }

    /// Number of chunks of the blob.
    pub(crate) fn chunk_count(&self) -> u32 {
        u32::try_from(self.blob_bytes.div_ceil(CHUNK_BYTES)).expect("32 bits count 32 PiB of chunks")
    }

    /// The bytes of the blob that a chunk is.
    pub(crate) fn chunk_range(&self, chunk: u32) -> ByteRange {
        ByteRange::of_chunk(chunk, self.blob_bytes)
    }

    /// Where a byte of the blob lies in the arena.
    pub(crate) fn place_of(&self, blob: u64) -> u64 {
        let stretch = self.stretches[self.stretch_at(blob)];
        stretch.arena + (blob - stretch.blob.start)
    }

    /// Where a chunk lies in the arena, if all of it lies there as in the file, so that it can be read straight.
    pub(crate) fn straight(&self, chunk: u32) -> Option<u64> {
        let range = self.chunk_range(chunk);
        let stretch = self.stretches[self.stretch_at(range.start)];
        let place = stretch.arena + (range.start - stretch.blob.start);
        (range.end <= stretch.blob.end && place.is_multiple_of(BLOCK)).then_some(place)
    }

    /// The parts of a chunk, each without a break.
    pub(crate) fn parts(&self, chunk: u32) -> impl Iterator<Item = Stretch> + '_ {
        let range = self.chunk_range(chunk);
        let from = self.stretch_at(range.start);
        let stretches =
            self.stretches[from..].iter().take_while(move |stretch| stretch.blob.start < range.end);
        stretches.map(move |stretch| {
            let blob = stretch.blob.intersect(&range);
            Stretch { blob, arena: stretch.arena + (blob.start - stretch.blob.start) }
        })
    }

    fn stretch_at(&self, blob: u64) -> usize {
        self.stretches.partition_point(|stretch| stretch.blob.end <= blob).min(self.stretches.len() - 1)
    }
}

/// Where a tensor goes that begins in the blob at `blob`, would lie at `straight` if it lay as in the file behind the last
/// one, which ends at `end`.
fn place(blob: u64, straight: u64, end: u64) -> u64 {
    let is_direct = |arena: u64| arena % BLOCK == blob % BLOCK;
    if blob.is_multiple_of(TENSOR_ALIGNMENT) {
        if is_direct(straight) {
            return straight;
        }
        // The next place from which on direct reads are possible again.
        return end + (blob % BLOCK + BLOCK - end % BLOCK) % BLOCK;
    }
    if straight.is_multiple_of(TENSOR_ALIGNMENT) { straight } else { end.next_multiple_of(TENSOR_ALIGNMENT) }
}

#[cfg(test)]
mod tests {
    use bytes::Bytes;

    use super::*;

    /// A blob with tensors of these lengths behind a header of that many bytes.
    fn header(lengths: &[u64], bytes: usize) -> (SafetensorsHeader, u64) {
        let mut at = 0;
        let entries: Vec<String> = lengths
            .iter()
            .enumerate()
            .map(|(number, length)| {
                let start = at;
                at += length;
                format!(r#""t{number:04}":{{"dtype":"U8","shape":[{length}],"data_offsets":[{start},{at}]}}"#)
            })
            .collect();
        let json = format!("{{{}}}", entries.join(","));
        let mut raw = ((bytes - 8) as u64).to_le_bytes().to_vec();
        raw.extend_from_slice(json.as_bytes());
        assert!(raw.len() <= bytes, "the header fits");
        raw.resize(bytes, b' ');
        let blob = bytes as u64 + at;
        (SafetensorsHeader::parse(Bytes::from(raw), blob).unwrap(), blob)
    }

    /// Every tensor is on 256 bytes, none lies over another, and every chunk's parts are all of it.
    fn check(lengths: &[u64], bytes: usize) -> Arrangement {
        let (header, blob) = header(lengths, bytes);
        let arrangement = Arrangement::of(&header, blob);
        let mut end = bytes as u64;
        for (name, info) in
            header.tensors().iter().filter(|(_, info)| info.data_offsets.0 < info.data_offsets.1)
        {
            let at = arrangement.place_of((bytes + info.data_offsets.0) as u64);
            let length = (info.data_offsets.1 - info.data_offsets.0) as u64;
            assert!(at.is_multiple_of(TENSOR_ALIGNMENT) && at >= end, "{name} at {at}, after {end}");
            assert_eq!(
                arrangement.place_of((bytes + info.data_offsets.1) as u64 - 1),
                at + length - 1,
                "{name}"
            );
            end = at + length;
        }
        assert!(end + BLOCK <= arrangement.arena_bytes() && arrangement.arena_bytes().is_multiple_of(PAGE));
        for chunk in 0..arrangement.chunk_count() {
            let mut at = arrangement.chunk_range(chunk).start;
            for part in arrangement.parts(chunk) {
                assert_eq!((part.blob.start, part.arena), (at, arrangement.place_of(at)));
                at = part.blob.end;
            }
            assert_eq!(at, arrangement.chunk_range(chunk).end);
            if let Some(place) = arrangement.straight(chunk) {
                assert_eq!(arrangement.parts(chunk).count(), 1);
                assert!(place.is_multiple_of(BLOCK));
            }
        }
        arrangement
    }

    #[test]
    fn what_lies_well_in_the_file_lies_so_in_the_arena() {
        let arrangement = check(&[1 << 20, 512, CHUNK_BYTES, 256, 3 * CHUNK_BYTES], 64 << 10);
        assert_eq!(arrangement.stretches.len(), 1);
        assert!((0..arrangement.chunk_count()).all(|chunk| arrangement.straight(chunk).is_some()));
    }

    #[test]
    fn what_does_not_is_moved_and_what_follows_is_read_straight_again() {
        // The odd ones come last in the aligned layout, but for those that are multiples of 64 only.
        let arrangement = check(&[64, 2 * CHUNK_BYTES + 192, 4 * CHUNK_BYTES, 7, 0, 9], 64 << 10);
        let straight = (0..arrangement.chunk_count()).filter(|&chunk| arrangement.straight(chunk).is_some());
        assert!(straight.count() >= 3, "{arrangement:?}");
    }

    #[test]
    fn any_lengths_behind_any_header_are_arranged() {
        bolero::check!().with_type::<(Vec<u32>, u16)>().for_each(|(lengths, extra)| {
            let lengths: Vec<u64> =
                lengths.iter().take(50).map(|length| u64::from(*length % (9 << 20))).collect();
            check(&lengths, 8192 + 8 * usize::from(*extra));
        });
    }
}
