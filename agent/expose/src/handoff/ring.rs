//! A ring: memory through which one client gets tensors, each in a place of its own until the client gives it back.
#![allow(unsafe_code, reason = "the agent writes through a mapping that a client maps too")]

use std::{
    collections::BTreeMap,
    ptr::NonNull,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
};

use rustix::param::page_size;
use weightd_store::io::{BLOCK_BYTES, Buffer, Lender};
use weightd_types::{ByteRange, CHUNK_BYTES, Crc32c};

use super::{arrangement::TENSOR_ALIGNMENT, lent::LentMemory, residents::Kept};

/// Memory for the tensors of one client.
#[derive(Debug)]
pub(crate) struct Ring {
    memory: LentMemory,
    free: Mutex<FreeSpace>,
    _kept: Kept,
}

/// What of a ring nobody uses: lengths, by where they begin.
#[derive(Debug)]
struct FreeSpace {
    stretches: BTreeMap<u64, u64>,
    /// Where the last place ended. Going on there leaves what is given back together.
    next: u64,
}

/// A place for one tensor. It is free again when this is dropped.
#[derive(Debug)]
pub(crate) struct Place {
    ring: Arc<Ring>,
    /// Whole pages.
    pages: ByteRange,
    /// Where the tensor's bytes begin.
    start: u64,
    bytes: u64,
}

/// How many bytes of a ring a tensor takes that has so many, and from its first page to its first byte. `blob` is where in
/// the blob it begins: bytes that lie on their pages as in the file are read from disk straight into their place.
fn layout(blob: u64, bytes: u64) -> (u64, u64) {
    let within = blob % BLOCK_BYTES;
    let shift = if within.is_multiple_of(TENSOR_ALIGNMENT) { within } else { 0 };
    ((shift + bytes).next_multiple_of(page()), shift)
}

/// How many bytes of a ring a tensor takes.
pub(crate) fn bytes_of_place(blob: u64, bytes: u64) -> u64 {
    layout(blob, bytes).0
}

/// No two places share a page: the client drops what it wrote to one page by page.
fn page() -> u64 {
    (page_size() as u64).max(BLOCK_BYTES)
}

impl Ring {
    pub(crate) fn new(memory: LentMemory, kept: Kept) -> Self {
        let stretches = BTreeMap::from([(0, memory.bytes())]);
        Self { memory, free: Mutex::new(FreeSpace { stretches, next: 0 }), _kept: kept }
    }

    pub(crate) fn memory(&self) -> &LentMemory {
        &self.memory
    }

    fn free(&self) -> MutexGuard<'_, FreeSpace> {
        self.free.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// A place for a tensor of so many bytes, which begins at `blob` in its blob. `None` when there is no room.
    pub(crate) fn place(self: &Arc<Self>, blob: u64, bytes: u64) -> Option<Place> {
        let (length, shift) = layout(blob, bytes);
        let start = self.free().take(length)?;
        let pages = ByteRange::at(start, length);
        Some(Place { ring: Arc::clone(self), pages, start: start + shift, bytes })
    }
}

impl FreeSpace {
    fn take(&mut self, length: u64) -> Option<u64> {
        let fits = |stretch: &(&u64, &u64)| *stretch.1 >= length;
        let behind = self.stretches.range(self.next..).find(fits);
        let (&start, &there) = behind.or_else(|| self.stretches.iter().find(fits))?;
        self.stretches.remove(&start);
        self.next = start + length;
        if there > length {
            self.stretches.insert(self.next, there - length);
        }
        Some(start)
    }

    fn give_back(&mut self, range: ByteRange) {
        let (mut start, mut end) = (range.start, range.end);
        if let Some((&before, &length)) = self.stretches.range(..start).next_back()
            && before + length == start
        {
            self.stretches.remove(&before);
            start = before;
        }
        if let Some(length) = self.stretches.remove(&end) {
            end += length;
        }
        self.stretches.insert(start, end - start);
        // What lies before it was in use until now, so a place that ended in here ends nowhere any more.
        if (start..end).contains(&self.next) {
            self.next = start;
        }
    }
}

impl Place {
    /// Where the tensor's bytes begin in the ring.
    pub(crate) fn start(&self) -> u64 {
        self.start
    }

    /// Has its memory provided, charged to whom it should be.
    pub(crate) async fn provide(&self) -> Result<(), String> {
        self.ring.memory.provide(self.pages.start, self.pages.len()).await
    }

    /// Puts bytes where the tensor has them from `at` on. Whoever fills a place is alone with that part of it.
    pub(crate) fn put(&self, at: u64, bytes: &[u8]) {
        assert!(at + bytes.len() as u64 <= self.bytes, "a part of the tensor");
        let place = self.ring.memory.at(self.start + at);
        // SAFETY: that lies within this place, which nobody else writes to, and whose client has not heard of it yet.
        unsafe { std::ptr::copy_nonoverlapping(bytes.as_ptr(), place, bytes.len()) };
    }

    /// Memory for the whole chunk that the tensor has from `at` on, where it can be read straight into its place. Other parts
    /// of the tensor may be put elsewhere meanwhile.
    pub(crate) fn straight(self: &Arc<Self>, at: u64) -> Option<Straight> {
        let start = self.start + at;
        let fits = start.is_multiple_of(BLOCK_BYTES) && at + CHUNK_BYTES <= self.bytes;
        fits.then(|| Straight { place: Arc::clone(self), start })
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        self.ring.free().give_back(self.pages);
    }
}

/// Room for one chunk in the midst of a tensor.
#[derive(Debug, Clone)]
pub(crate) struct Straight {
    place: Arc<Place>,
    start: u64,
}

impl crate::reading::Room for Straight {
    async fn buffer(&self) -> Buffer {
        let start = NonNull::new(self.place.ring.memory.at(self.start)).expect("a mapping is somewhere");
        // SAFETY: the mapping lasts as long as the ring, which the place keeps. Each chunk of a tensor is brought by one task,
        // which asks for this and does nothing else with these bytes.
        unsafe { Buffer::lent(start, Buffer::CAPACITY, Box::new(self.clone())) }
    }
}

impl Lender for Straight {
    /// Who asked for the chunk learns of it as of any other.
    fn landed(&self, _: Crc32c) {}
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn places_never_overlap_and_what_is_given_back_is_one_again() {
        const WHOLE: u64 = 1 << 20;
        bolero::check!().with_type::<Vec<(u16, u8)>>().for_each(|steps| {
            let mut free = FreeSpace { stretches: BTreeMap::from([(0, WHOLE)]), next: 0 };
            let mut taken: Vec<ByteRange> = Vec::new();
            for (length, which) in steps {
                let length = (u64::from(*length) + 1).next_multiple_of(4096);
                match free.take(length) {
                    Some(start) => {
                        let new = ByteRange::at(start, length);
                        assert!(new.end <= WHOLE);
                        assert!(taken.iter().all(|other| other.end <= new.start || new.end <= other.start));
                        taken.push(new);
                    }
                    None if taken.is_empty() => panic!("{length} bytes fit into an empty ring"),
                    None => free.give_back(taken.swap_remove(usize::from(*which) % taken.len())),
                }
            }
            taken.into_iter().for_each(|range| free.give_back(range));
            assert_eq!(free.stretches, BTreeMap::from([(0, WHOLE)]));
        });
    }

    #[test]
    fn tensors_keep_where_they_lie_on_their_pages_if_that_is_a_good_place() {
        assert_eq!(layout(3 * 4096 + 512, 4096), ((512 + 4096_u64).next_multiple_of(page()), 512));
        assert_eq!(layout(3 * 4096 + 8, 100), (page(), 0));
    }
}
