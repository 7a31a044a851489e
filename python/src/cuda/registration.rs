//! An arena as a device reads it: mapped for reading, as all others have it, and registered with the driver piece by piece, as
//! pieces are needed. So registering a part goes on while other parts still arrive.
#![expect(unsafe_code, reason = "calls of the driver")]

use std::{
    collections::BTreeMap,
    io,
    ops::Range,
    sync::{Arc, Mutex},
};

use weightd_client::handoff::{Arena, MmapRaw, Session, Stream};

use super::{device::Device, driver::Failure};
use crate::agents::lock;

/// What is shorter is not worth registering, as long as more may come beside it.
const MIN_BYTES: usize = 64 << 10;
/// Registered pieces begin and end on such multiples, or where the memory that is there does.
const PAGE: usize = 4096;

/// Who lends an arena.
#[derive(Debug)]
pub(crate) enum Lent {
    /// The arena of that number.
    Session(Arc<Session>, usize),
    /// Its ring.
    Stream(Arc<Stream>),
}

/// An arena as a device reads it. When it is dropped, the registration is undone once all copies are over.
#[derive(Debug)]
pub(crate) struct Window(Arc<Mapping>);

#[derive(Debug)]
struct Mapping {
    map: MmapRaw,
    lent: Lent,
    device: &'static Device,
    /// Most bytes that are registered at once.
    chunk: usize,
    /// Where each registered piece begins and ends.
    registered: Mutex<BTreeMap<usize, usize>>,
    /// A part that has its memory, which it keeps: to find one takes the longer the more there is.
    provided: Mutex<Range<usize>>,
}

impl Lent {
    fn arena(&self) -> &Arena {
        match self {
            Self::Session(session, number) => session.arena(*number),
            Self::Stream(stream) => stream.arena(),
        }
    }
}

impl Window {
    /// Maps an arena, of which at most `chunk` bytes are registered at once.
    pub(crate) fn new(lent: Lent, device: &'static Device, chunk: usize) -> io::Result<Self> {
        let map = lent.arena().map_shared()?;
        let chunk = (chunk / PAGE).max(1) * PAGE;
        Ok(Self(Arc::new(Mapping {
            map,
            lent,
            device,
            chunk,
            registered: Mutex::default(),
            provided: Mutex::new(0..0),
        })))
    }

    /// Its first byte.
    pub(super) fn start(&self) -> *const u8 {
        self.0.map.as_ptr()
    }

    /// How many bytes it has.
    pub(super) fn len(&self) -> usize {
        self.0.map.len()
    }

    /// What must stay as long as the device reads from it.
    pub(super) fn held(&self) -> Arc<dyn std::any::Any + Send + Sync> {
        self.0.clone()
    }

    /// The registered pieces of a part, in their order. With flags, what is not registered yet is; the second is why that
    /// failed. The device's context must be the thread's.
    pub(super) fn registered(
        &self,
        part: Range<usize>,
        flags: Option<u32>,
    ) -> (Vec<Range<usize>>, Option<Failure>) {
        let Mapping { chunk, .. } = *self.0;
        let mut known = lock(&self.0.registered);
        let (mut pieces, mut flags, mut failed) = (Vec::new(), flags, None);
        let mut at = part.start;
        while at < part.end {
            let before = known.range(..=at).next_back().map_or(0, |(_, &end)| end);
            if before > at {
                pieces.push(at..before.min(part.end));
                at = before;
                continue;
            }
            let chunk_start = at / chunk * chunk;
            let next = known.range(at..).next().map_or(usize::MAX, |(&start, _)| start);
            let bounds = before.max(chunk_start)..next.min(chunk_start + chunk).min(self.len());
            let (end, whole) = (bounds.end, bounds.clone());
            let Some(flags_now) = flags else {
                at = end;
                continue;
            };
            match self.there(at, bounds) {
                None => at = end,
                Some(piece) if piece.start >= part.end => break,
                Some(piece) => {
                    // What lies before it is not there, and nobody's to ask for.
                    at = at.max(piece.start);
                    if piece.len() < MIN_BYTES && piece != whole {
                        at = piece.end;
                        continue;
                    }
                    match self.register(&piece, flags_now) {
                        Ok(()) => drop(known.insert(piece.start, piece.end)),
                        Err(failure) => (flags, failed) = (None, Some(failure)),
                    }
                }
            }
        }
        (pieces, failed)
    }

    /// The first piece from there on that has its memory already. The driver would have the rest of it provided, and whoever
    /// touches memory first pays for it, which shall be the keeper.
    fn there(&self, at: usize, bounds: Range<usize>) -> Option<Range<usize>> {
        let mut provided = lock(&self.0.provided);
        // One that ends within the bounds may have grown since.
        if !provided.contains(&at) || provided.end < bounds.end {
            match self.0.lent.arena().provided(at, bounds.clone()) {
                Ok(Some(found)) => *provided = found,
                Ok(None) => return None,
                // A system that does not tell gives everything, as it does to whoever reads.
                Err(_) => return Some(bounds),
            }
        }
        Some(provided.start.max(bounds.start)..provided.end.min(bounds.end))
    }

    fn register(&self, piece: &Range<usize>, flags: u32) -> Result<(), Failure> {
        let start = self.0.map.as_ptr().wrapping_add(piece.start).cast_mut().cast();
        // SAFETY: a piece of the mapping, which outlives its registration. Nothing else of it is registered here.
        unsafe { self.0.device.driver().register(start, piece.len(), flags) }
    }
}

impl Drop for Window {
    fn drop(&mut self) {
        // In a process that was forked off nothing is registered, and there is no thread.
        if self.0.device.is_ours() && !lock(&self.0.registered).is_empty() {
            let mut mapping = self.0.clone();
            // Copies hold it as well: the last that is over lets go of it all.
            self.0
                .device
                .flights()
                .undo(Box::new(move || Arc::get_mut(&mut mapping).is_some_and(Mapping::undo)));
        }
    }
}

impl Mapping {
    /// Undoes one registration, and says whether there was one.
    fn undo(&mut self) -> bool {
        let Some(_entered) = self.device.enter_to_undo() else { return false };
        let Some((start, _)) = lock(&self.registered).pop_first() else { return false };
        let start = self.map.as_mut_ptr().wrapping_add(start).cast();
        // SAFETY: it was registered, and no copy reads it: each holds this. What cannot be undone ends with the context.
        let _ = unsafe { self.device.driver().unregister(start) };
        true
    }
}

impl Drop for Mapping {
    fn drop(&mut self) {
        while self.undo() {}
    }
}
