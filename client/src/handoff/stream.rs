//! A lease through a ring: tensors that come one after the other, stay as long as they are used, and make room for others.

use std::{
    fmt,
    ops::Range,
    path::Path,
    sync::Arc,
    time::{Duration, Instant},
};

use memmap2::MmapRaw;
use weightd_proto::v1::HandoffOpened;

use super::{
    Arena, Error, Opening, Request, Ring, Table,
    arena::forget,
    connection::{after, left},
    line::Line,
    opening::{Outcome, Parts},
    ring::{Awaited, RingState, Step},
};

/// After how long whoever waits looks again whether that makes sense.
const LOOK: Duration = Duration::from_secs(1);

/// A lease of the tensors of a snapshot that come through a ring. It ends when this and everything that was taken of it are
/// dropped.
///
/// Threads may share it. A process that is forked off cannot go on with it, but reopen; and what it has of the tensors
/// changes when the process that it comes from gives them back.
#[derive(Debug)]
pub struct Stream {
    shared: Arc<Shared>,
    request: Request,
    ring: Ring,
    snapshot: String,
    source: String,
    table: Arc<Table>,
}

#[derive(Debug)]
struct Shared {
    line: Line<RingState>,
    table: Arc<Table>,
    arena: Arena,
    /// All of the ring, privately: what is written to it stays here until the place is given back.
    map: MmapRaw,
}

/// A tensor that is waited for. Dropping it ends the waiting.
#[derive(Debug)]
pub struct Taking {
    shared: Arc<Shared>,
    awaited: Awaited,
}

/// A tensor in the ring, which stays there until this is dropped. It outlives the [`Stream`].
///
/// What is written to its memory is seen by this process alone, and gone afterwards.
pub struct Taken {
    shared: Arc<Shared>,
    position: usize,
    offset: usize,
}

impl Outcome for Stream {
    fn of(parts: Parts) -> Result<Self, Error> {
        let table = parts.table()?;
        let Parts { connection, request, ring, opened, mut arenas, .. } = parts;
        let ring = ring.unwrap_or_default();
        let Some(arena) = arenas.pop().filter(|_| arenas.is_empty()) else {
            return Err(connection.broken(format!("sent {} arenas, where a ring is one", opened.arenas)));
        };
        let refused = |source| Error::System { socket: connection.path().to_owned(), source };
        let map = arena.map_private().map_err(refused)?;
        let state = RingState::new(table.clone(), arena.bytes());
        let line = Line::new(connection, state);
        let shared = Arc::new(Shared { line, table: table.clone(), arena, map });
        let HandoffOpened { snapshot, source, .. } = opened;
        Ok(Self { shared, request, ring, snapshot, source, table })
    }
}

impl Stream {
    /// Name of the snapshot: `<id>.<layout>`.
    pub fn snapshot(&self) -> &str {
        &self.snapshot
    }

    /// The URI that the snapshot came from.
    pub fn source(&self) -> &str {
        &self.source
    }

    /// The socket that it was opened at.
    pub fn socket(&self) -> &Path {
        self.shared.line.socket()
    }

    /// What was asked for.
    pub fn request(&self) -> &Request {
        &self.request
    }

    /// Which tensors there are. Where they are is said by what is taken.
    pub fn table(&self) -> &Table {
        &self.table
    }

    /// Length of the ring, in bytes.
    pub fn bytes(&self) -> usize {
        self.shared.arena.bytes()
    }

    /// The ring. A tensor lies in it at [`Taken::offset`].
    pub fn arena(&self) -> &Arena {
        &self.shared.arena
    }

    /// Whether a tensor can be taken without waiting.
    ///
    /// # Panics
    /// When the table has no such position, as the other functions that take positions.
    pub fn is_there(&self, position: usize) -> bool {
        self.shared.line.is_ours() && self.shared.line.caught_up().notes.is_there(position)
    }

    /// Asks the agent to bring tensors before others, in this order, as far as they are not there.
    ///
    /// # Errors
    /// [`Error::AgentGone`] when the connection has ended; the other errors are why the agent ended it.
    pub fn want(&self, tensors: &[Range<usize>]) -> Result<(), Error> {
        if !self.shared.line.is_ours() {
            return Err(self.shared.line.gone());
        }
        self.shared.line.lock().notes.want(tensors.iter().cloned().flatten());
        self.shared.tell()
    }

    /// Begins to wait for a tensor. From now on nobody makes room of it for another one.
    pub fn taking(&self, position: usize) -> Taking {
        assert!(position < self.table.tensors().len(), "a tensor of the table");
        let awaited = Awaited::new(position);
        if self.shared.line.is_ours() {
            self.shared.line.lock().notes.begin(&awaited);
        }
        Taking { shared: self.shared.clone(), awaited }
    }

    /// Takes a tensor as soon as it is there and nobody else has it, but waits no longer than `patience`: then there is none.
    ///
    /// # Errors
    /// As of [`Taking::wait`].
    pub fn take(&self, position: usize, patience: Duration) -> Result<Option<Taken>, Error> {
        self.taking(position).wait(patience)
    }

    /// Begins to open the same once more, at the next agent. The stream that comes of it has the same table. What was taken
    /// of this one stays as it is.
    pub fn reopen(&self) -> Opening<Self> {
        Opening::again(self.socket(), &self.request, Some(self.ring), &self.snapshot, &self.table)
    }
}

impl Taking {
    /// Waits until the tensor is there and nobody else has it, but not longer than `patience`: then there is none, and this
    /// may be called again.
    ///
    /// # Errors
    /// [`Error::RingFull`] when there is no room for it and nothing was given back for ten seconds. [`Error::AgentGone`] when
    /// the connection has ended; the other errors are why the agent ended it.
    pub fn wait(&mut self, patience: Duration) -> Result<Option<Taken>, Error> {
        let (Self { shared, awaited }, deadline) = (self, after(patience));
        if !shared.line.is_ours() {
            return Err(shared.line.gone());
        }
        loop {
            let look = deadline.min(Instant::now() + LOOK);
            match shared.line.wait(look, |ring| ring.step(awaited))? {
                Some(Step::Take(offset)) => {
                    return Ok(Some(Taken { shared: shared.clone(), position: awaited.position, offset }));
                }
                // Why it cannot be told is told by the next look, unless the tensor is there all the same.
                Some(Step::Tell) => drop(shared.tell()),
                Some(Step::Stuck { tensors, held }) => {
                    return Err(shared.full(awaited.position, tensors, held));
                }
                None if left(deadline).is_zero() => return Ok(None),
                None => {}
            }
        }
    }
}

impl Drop for Taking {
    fn drop(&mut self) {
        if self.shared.line.is_ours() {
            self.shared.line.lock().notes.end(&self.awaited);
        }
    }
}

impl Taken {
    /// Its position in the table.
    pub fn position(&self) -> usize {
        self.position
    }

    /// Whether it was taken of this stream.
    pub fn is_of(&self, stream: &Stream) -> bool {
        Arc::ptr_eq(&self.shared, &stream.shared)
    }

    /// Where in the ring its bytes begin.
    pub fn offset(&self) -> usize {
        self.offset
    }

    /// How many bytes it has, which follow each other.
    pub fn bytes(&self) -> usize {
        self.shared.table.tensors()[self.position].bytes
    }

    /// Its first byte. All of them may be read and written as long as this lives.
    pub fn as_mut_ptr(&self) -> *mut u8 {
        self.shared.map.as_mut_ptr().wrapping_add(self.offset)
    }
}

impl fmt::Debug for Taken {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { position, offset, .. } = self;
        f.debug_struct("Taken").field("position", position).field("offset", offset).finish_non_exhaustive()
    }
}

impl Drop for Taken {
    fn drop(&mut self) {
        let bytes = self.bytes();
        // In a process that was forked off the place is not its own to give back.
        if bytes == 0 || !self.shared.line.is_ours() {
            return;
        }
        // Before others can have the place. A page that cannot be let go of would be seen instead of what comes into it.
        if forget(&self.shared.map, self.offset, bytes).is_ok() {
            self.shared.line.lock().notes.give_back(self.position);
            // An agent that does not hear of it has ended.
            let _ended = self.shared.tell();
            self.shared.line.tell();
        }
    }
}

impl Shared {
    /// Tells the agent what it is to be told, unless another thread does.
    fn tell(&self) -> Result<(), Error> {
        loop {
            let Some(said) = self.line.lock().notes.next_to_tell() else { return Ok(()) };
            let outcome = self.line.say(&said);
            if outcome.is_err() {
                self.line.end_unheard();
            }
            self.line.lock().notes.was_told();
            outcome?;
        }
    }

    fn full(&self, position: usize, tensors: usize, held: usize) -> Error {
        let tensor = &self.table.tensors()[position];
        Error::RingFull {
            socket: self.line.socket().to_owned(),
            tensor: tensor.name.clone(),
            bytes: tensor.bytes,
            tensors,
            held,
            ring: self.arena.bytes(),
        }
    }
}
