//! What of a lease is ready, and what its client was told of that.

use std::sync::Arc;

use weightd_proto::v1::{HandoffRange, HandoffReady};

use super::{
    resident::Resident,
    table::{Tensors, number},
    trust::Trust,
};
use crate::reading::chunks_of;

/// Most ranges in one message: it has to fit into a packet.
const RANGES: usize = 4000;

/// How a lease's tensors come.
#[derive(Debug)]
pub(crate) struct Progress {
    tensors: Arc<Tensors>,
    /// Chunks that each tensor still lacks, by its position.
    lacking: Vec<u32>,
    arenas: Vec<ArenaProgress>,
}

/// Of one arena.
#[derive(Debug)]
struct ArenaProgress {
    resident: Arc<Resident>,
    /// Files that are in it.
    files: Vec<usize>,
    /// Changes it had seen when it was looked at last.
    changes: Option<u64>,
    seen: Vec<bool>,
    is_verified: bool,
}

impl Progress {
    /// Of a lease of these files, each with the number of its arena.
    pub(crate) fn new(tensors: Arc<Tensors>, files: &[(String, usize)], residents: &[Arc<Resident>]) -> Self {
        let chunks = |position| chunks_of(tensors.needed(position).span).len();
        let lacking = (0..tensors.count()).map(|position| number(chunks(position))).collect();
        let arena = |(at, resident): (usize, &Arc<Resident>)| {
            let seen = vec![false; resident.arena().arrangement().chunk_count() as usize];
            let files = files.iter().enumerate().filter(|(_, (_, arena))| *arena == at);
            let files = files.map(|(file, _)| file).collect();
            ArenaProgress { resident: Arc::clone(resident), files, changes: None, seen, is_verified: false }
        };
        let arenas = residents.iter().enumerate().map(arena).collect();
        Self { tensors, lacking, arenas }
    }

    /// Whether everything is ready and verified, as far as it was looked.
    pub(crate) fn is_complete(&self) -> bool {
        self.arenas.iter().all(|arena| arena.is_verified) && self.lacking.iter().all(|&lacking| lacking == 0)
    }

    /// Why the lease must end, if something of it is wrong: file and cause.
    pub(crate) fn wrong(&self) -> Option<(usize, Arc<str>)> {
        self.arenas.iter().find_map(|arena| match arena.resident.trust() {
            Trust::Wrong(why) => Some((*arena.files.first()?, why)),
            Trust::Provisional | Trust::Verified => None,
        })
    }

    /// Looks at what has come since the last time, and says what is new.
    pub(crate) fn news(&mut self) -> Vec<HandoffReady> {
        let Self { tensors, lacking, arenas } = self;
        let (mut ready, mut verified) = (Vec::new(), Vec::new());
        for arena in arenas {
            let (changes, before) = (arena.resident.arena().changes(), ready.len());
            if arena.changes != Some(changes) {
                if arena.changes.is_none() {
                    // Those without bytes are ready from the beginning.
                    ready.extend(arena.ready(tensors, lacking));
                }
                arena.changes = Some(changes);
                for chunk in arena.resident.arena().come_since(&mut arena.seen) {
                    arena.came(chunk, tensors, lacking, &mut ready);
                }
            }
            if arena.resident.trust() != Trust::Verified {
                continue;
            }
            if std::mem::replace(&mut arena.is_verified, true) {
                verified.extend_from_slice(&ready[before..]);
            } else {
                verified.extend(arena.ready(tensors, lacking));
            }
        }
        let mut messages = messages(ready, false);
        messages.extend(self::messages(verified, true));
        messages
    }
}

impl ArenaProgress {
    /// Positions of those that lack nothing.
    fn ready<'a>(&'a self, tensors: &'a Tensors, lacking: &'a [u32]) -> impl Iterator<Item = u32> + 'a {
        let count = number(self.resident.header().tensors().len());
        let positions = self.files.iter().flat_map(move |&file| {
            let first = tensors.first(file);
            first..first + count
        });
        positions.filter(|&position| lacking[position as usize] == 0)
    }

    /// A chunk came: its tensors lack one less.
    fn came(&self, chunk: u32, tensors: &Tensors, lacking: &mut [u32], ready: &mut Vec<u32>) {
        let (range, header) =
            (self.resident.arena().arrangement().chunk_range(chunk), self.resident.header());
        let from = header.tensors().partition_point(|(_, info)| header.range_of(info).end <= range.start);
        let behind = header.tensors().partition_point(|(_, info)| header.range_of(info).start < range.end);
        for tensor in from..behind {
            for &file in &self.files {
                let position = tensors.first(file) + number(tensor);
                let span = tensors.needed(position).span;
                if span.is_empty() || !chunks_of(span).contains(&chunk) {
                    continue;
                }
                let lacking = &mut lacking[position as usize];
                *lacking -= 1;
                if *lacking == 0 {
                    ready.push(position);
                }
            }
        }
    }
}

/// Positions as ranges, in messages that fit into packets.
fn messages(mut positions: Vec<u32>, verified: bool) -> Vec<HandoffReady> {
    positions.sort_unstable();
    let ranges = HandoffRange::joined(positions);
    ranges.chunks(RANGES).map(|tensors| HandoffReady { tensors: tensors.to_vec(), verified }).collect()
}
