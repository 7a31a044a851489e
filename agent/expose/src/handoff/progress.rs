//! What of a lease is ready, and what its client was told of that.

use std::sync::Arc;

use weightd_proto::v1::{HandoffRange, HandoffReady};

use super::resident::{Resident, Trust};
use crate::reading;

/// Most ranges in one message: it has to fit into a packet.
const RANGES: usize = 4000;

/// How a lease's tensors come.
#[derive(Debug)]
pub(crate) struct Progress {
    files: Vec<FileProgress>,
    /// Files by arena.
    by_arena: Vec<Vec<usize>>,
    arenas: Vec<ArenaProgress>,
}

/// Of one file.
#[derive(Debug)]
struct FileProgress {
    /// Position in the table of its first tensor.
    first: u32,
    /// Chunks that each tensor still lacks.
    lacking: Vec<u32>,
}

/// Of one arena.
#[derive(Debug)]
struct ArenaProgress {
    resident: Arc<Resident>,
    /// Changes it had seen when it was looked at last.
    changes: Option<u64>,
    seen: Vec<bool>,
    is_verified: bool,
}

/// Chunks that a tensor lies in; none for one without bytes.
pub(crate) fn chunks_of_tensor(resident: &Resident, tensor: usize) -> std::ops::Range<u32> {
    let header = resident.header();
    reading::chunks_of(header.range_of(&header.tensors()[tensor].1))
}

impl Progress {
    /// Of a lease of these files, each with the number of its arena.
    pub(crate) fn new(files: &[(String, usize)], residents: &[Arc<Resident>]) -> Self {
        let mut by_arena = vec![Vec::new(); residents.len()];
        let mut first = 0;
        let progress = files.iter().enumerate().map(|(at, (_, arena))| {
            by_arena[*arena].push(at);
            let resident = &residents[*arena];
            let tensors = 0..resident.header().tensors().len();
            let lacking: Vec<u32> =
                tensors.map(|tensor| count(chunks_of_tensor(resident, tensor).len())).collect();
            let file = FileProgress { first, lacking };
            first += count(file.lacking.len());
            file
        });
        let files = progress.collect();
        let arena = |resident: &Arc<Resident>| {
            let seen = vec![false; resident.arena().arrangement().chunk_count() as usize];
            ArenaProgress { resident: Arc::clone(resident), changes: None, seen, is_verified: false }
        };
        Self { files, by_arena, arenas: residents.iter().map(arena).collect() }
    }

    /// File and tensor at a position of the table.
    pub(crate) fn locate(&self, position: u32) -> Option<(usize, usize)> {
        let file = self.files.partition_point(|file| file.first <= position).checked_sub(1)?;
        // Files without tensors begin where the next one does.
        let tensor = (position - self.files[file].first) as usize;
        (tensor < self.files[file].lacking.len()).then_some((file, tensor))
    }

    /// How many tensors there are.
    pub(crate) fn tensors(&self) -> u32 {
        self.files.last().map_or(0, |file| file.first + count(file.lacking.len()))
    }

    /// Whether everything is ready and verified, as far as it was looked.
    pub(crate) fn is_complete(&self) -> bool {
        let is_ready = || self.files.iter().flat_map(|file| &file.lacking).all(|&lacking| lacking == 0);
        self.arenas.iter().all(|arena| arena.is_verified) && is_ready()
    }

    /// Why the lease must end, if something of it is wrong: file and cause.
    pub(crate) fn wrong(&self) -> Option<(usize, Arc<str>)> {
        self.arenas.iter().enumerate().find_map(|(at, arena)| match arena.resident.trust() {
            Trust::Wrong(why) => Some((self.by_arena[at].first().copied()?, why)),
            Trust::Provisional | Trust::Verified => None,
        })
    }

    /// Looks at what has come since the last time, and says what is new.
    pub(crate) fn news(&mut self) -> Vec<HandoffReady> {
        let (mut ready, mut verified) = (Vec::new(), Vec::new());
        for (at, arena) in self.arenas.iter_mut().enumerate() {
            let files = &self.by_arena[at];
            let (changes, before) = (arena.resident.arena().changes(), ready.len());
            if arena.changes != Some(changes) {
                if arena.changes.is_none() {
                    // Those without bytes are ready from the beginning.
                    files.iter().for_each(|&file| ready.extend(self.files[file].ready()));
                }
                arena.changes = Some(changes);
                for chunk in arena.resident.arena().come_since(&mut arena.seen) {
                    for &file in files {
                        self.files[file].came(chunk, &arena.resident, &mut ready);
                    }
                }
            }
            if arena.resident.trust() != Trust::Verified {
                continue;
            }
            if std::mem::replace(&mut arena.is_verified, true) {
                verified.extend_from_slice(&ready[before..]);
            } else {
                files.iter().for_each(|&file| verified.extend(self.files[file].ready()));
            }
        }
        let mut messages = messages(ready, false);
        messages.extend(self::messages(verified, true));
        messages
    }
}

impl FileProgress {
    /// Positions in the table of those that lack nothing.
    fn ready(&self) -> impl Iterator<Item = u32> + '_ {
        let ready = self.lacking.iter().enumerate().filter(|(_, lacking)| **lacking == 0);
        ready.map(|(tensor, _)| self.first + count(tensor))
    }

    /// A chunk came: its tensors lack one less.
    fn came(&mut self, chunk: u32, resident: &Resident, ready: &mut Vec<u32>) {
        let (range, header) = (resident.arena().arrangement().chunk_range(chunk), resident.header());
        let from = header.tensors().partition_point(|(_, info)| header.range_of(info).end <= range.start);
        for (tensor, (_, info)) in header.tensors().iter().enumerate().skip(from) {
            let bytes = header.range_of(info);
            if bytes.start >= range.end {
                break;
            }
            if bytes.is_empty() {
                continue;
            }
            self.lacking[tensor] -= 1;
            if self.lacking[tensor] == 0 {
                ready.push(self.first + count(tensor));
            }
        }
    }
}

/// Chunks of a file, and tensors of a lease, are counted in 32 bits.
fn count(number: usize) -> u32 {
    u32::try_from(number).expect("headers of 100 MB have fewer tensors, and 32 bits count 32 PiB of chunks")
}

/// Positions as ranges, in messages that fit into packets.
fn messages(mut positions: Vec<u32>, verified: bool) -> Vec<HandoffReady> {
    positions.sort_unstable();
    let ranges = HandoffRange::joined(positions);
    ranges.chunks(RANGES).map(|tensors| HandoffReady { tensors: tensors.to_vec(), verified }).collect()
}
