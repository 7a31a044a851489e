//! From a socket to a session or a stream: what was asked, and what has come of the answer so far.

use std::{
    marker::PhantomData,
    mem,
    os::fd::OwnedFd,
    path::{Path, PathBuf},
    sync::Arc,
    time::{Duration, Instant},
};

use weightd_proto::v1::{
    HandoffArenas, HandoffOpen, HandoffOpened, HandoffRing, HandoffSlice, handoff_answer::Answer,
    handoff_request::Request as Said,
};

use super::{
    Arena, Error, Request, Ring, Session, Slice, Stream, Table,
    connection::{Connection, Packet, after, left, pause},
    table::Room,
};

/// Of this protocol.
const VERSION: u32 = 1;
/// Between two tries, when an agent is about to come.
const BETWEEN_TRIES: Duration = Duration::from_millis(100);

/// A session or a stream that is being opened. Dropping it takes the question back.
#[derive(Debug)]
pub struct Opening<O = Session> {
    socket: PathBuf,
    request: Request,
    /// Through which everything comes, if through one.
    ring: Option<Ring>,
    /// What there must be again.
    before: Option<(String, Arc<Table>)>,
    since: Instant,
    answer: Option<Partial>,
    /// Why the last try came to nothing.
    last: Option<Error>,
    outcome: PhantomData<fn() -> O>,
}

/// What comes of an opening.
pub trait Outcome: Sized {
    /// Of a whole answer.
    #[doc(hidden)]
    fn of(parts: Parts) -> Result<Self, Error>;
}

/// A whole answer, and what was asked.
#[derive(Debug)]
pub struct Parts {
    pub(super) connection: Connection,
    pub(super) request: Request,
    pub(super) ring: Option<Ring>,
    pub(super) opened: HandoffOpened,
    pub(super) arenas: Vec<Arena>,
    table: OwnedFd,
    before: Option<(String, Arc<Table>)>,
}

/// An answer that is on its way.
#[derive(Debug)]
struct Partial {
    connection: Connection,
    opened: Option<(HandoffOpened, OwnedFd)>,
    arenas: Vec<Arena>,
}

impl Opening {
    /// Will ask the agent that listens on `socket` for tensors that stay. Nothing is done before [`Opening::wait`].
    pub fn new(socket: &Path, request: &Request) -> Self {
        Self::asking(socket, request, None, None)
    }
}

impl Opening<Stream> {
    /// Will ask the agent that listens on `socket` for tensors that come through a ring. Nothing is done before
    /// [`Opening::wait`].
    pub fn streaming(socket: &Path, request: &Request, ring: Ring) -> Self {
        Self::asking(socket, request, Some(ring), None)
    }
}

impl<O: Outcome> Opening<O> {
    /// Will ask the next agent for what the last one had.
    pub(super) fn again(
        socket: &Path,
        request: &Request,
        ring: Option<Ring>,
        snapshot: &str,
        table: &Arc<Table>,
    ) -> Self {
        Self::asking(socket, request, ring, Some((snapshot.to_owned(), table.clone())))
    }

    fn asking(
        socket: &Path,
        request: &Request,
        ring: Option<Ring>,
        before: Option<(String, Arc<Table>)>,
    ) -> Self {
        let (socket, request, since) = (socket.to_owned(), request.clone(), Instant::now());
        Self { socket, request, ring, before, since, answer: None, last: None, outcome: PhantomData }
    }

    /// Asks, and waits for the answer, but not longer than `patience`: then it gives none, and may be called again. An
    /// agent that leaves meanwhile is not waited for in vain: the next one is asked.
    ///
    /// # Errors
    /// [`Error::Connect`] when nobody listens, unless this goes on with what was open; there the next agent is waited for.
    /// [`Error::Failed`] is the agent's own. [`Error::Broken`] says that what it sent makes no sense, [`Error::Changed`]
    /// that there is no going on with what was open before.
    pub fn wait(&mut self, patience: Duration) -> Result<Option<O>, Error> {
        let deadline = after(patience);
        loop {
            let problem = match self.advance(deadline) {
                Ok(outcome) => return Ok(outcome),
                Err(problem) => problem,
            };
            self.answer = None;
            let will_pass =
                problem.is_absence() && (self.before.is_some() || !matches!(problem, Error::Connect { .. }));
            if !will_pass {
                return Err(problem);
            }
            self.last = Some(problem);
            pause(BETWEEN_TRIES.min(left(deadline)));
            if left(deadline).is_zero() {
                return Ok(None);
            }
        }
    }

    /// Why nothing has come so far, for those who wait no longer.
    pub fn give_up(self) -> Error {
        self.last.unwrap_or(Error::Silent { socket: self.socket, waited: self.since.elapsed() })
    }

    fn advance(&mut self, deadline: Instant) -> Result<Option<O>, Error> {
        if self.answer.is_none() {
            self.answer = Some(Partial::ask(&self.socket, &self.request, self.ring, deadline)?);
        }
        let answer = self.answer.as_mut().expect("put there above");
        while !answer.is_whole() {
            let Some(packet) = answer.connection.receive(deadline)? else { return Ok(None) };
            answer.take(packet)?;
        }
        let Partial { connection, opened, arenas } = self.answer.take().expect("it is whole");
        let (opened, table) = opened.expect("an answer begins with it");
        let (request, ring, before) = (mem::take(&mut self.request), self.ring, self.before.take());
        O::of(Parts { connection, request, ring, opened, arenas, table, before }).map(Some)
    }
}

impl Partial {
    fn ask(socket: &Path, request: &Request, ring: Option<Ring>, deadline: Instant) -> Result<Self, Error> {
        let connection = Connection::new(socket, deadline)?;
        let Request { source, files, wanted_only, slices } = request.clone();
        let slices = slices.into_iter().map(HandoffSlice::from).collect();
        let ring = ring.map(|Ring { bytes, verified }| HandoffRing { bytes, verified });
        let open = HandoffOpen { version: VERSION, source, files, wanted_only, slices, ring };
        // Nothing was sent before, so there is room. An agent that does not listen may have said why.
        match connection.send(Said::Open(open)) {
            Ok(_) | Err(Error::AgentGone { .. }) => {}
            Err(error) => return Err(error),
        }
        Ok(Self { connection, opened: None, arenas: Vec::new() })
    }

    fn is_whole(&self) -> bool {
        self.opened.as_ref().is_some_and(|(opened, _)| self.arenas.len() >= opened.arenas as usize)
    }

    fn take(&mut self, packet: Packet) -> Result<(), Error> {
        match (packet.answer, &self.opened) {
            (Answer::Failed(failed), _) => Err(failed.into()),
            (Answer::Opened(opened), None) => {
                let [table] = <[OwnedFd; 1]>::try_from(packet.descriptors).map_err(|descriptors| {
                    let problem = format!("sent {} descriptors where it has one table", descriptors.len());
                    self.connection.broken(problem)
                })?;
                self.opened = Some((opened, table));
                Ok(())
            }
            (Answer::Arenas(arenas), Some((opened, _))) => {
                let most = opened.arenas as usize;
                self.take_arenas(&arenas, packet.descriptors, most)
            }
            (
                Answer::Opened(_)
                | Answer::Arenas(_)
                | Answer::Ready(_)
                | Answer::Delivered(_)
                | Answer::Full(_),
                _,
            ) => Err(self.connection.broken("said things out of their order")),
        }
    }

    fn take_arenas(&mut self, arenas: &HandoffArenas, files: Vec<OwnedFd>, most: usize) -> Result<(), Error> {
        let broken = |problem: String| self.connection.broken(problem);
        let first = self.arenas.len();
        if arenas.first as usize != first || first + arenas.lengths.len() > most || files.is_empty() {
            return Err(broken("sent other arenas than it said".to_owned()));
        }
        if files.len() != arenas.lengths.len() {
            let problem = format!("sent {} descriptors for {} arenas", files.len(), arenas.lengths.len());
            return Err(broken(problem));
        }
        let checked = files.into_iter().zip(&arenas.lengths).map(|(file, &bytes)| Arena::new(file, bytes));
        let checked = checked.collect::<Result<Vec<_>, _>>();
        self.arenas.extend(checked.map_err(|problem| broken(format!("sent an arena that {problem}")))?);
        Ok(())
    }
}

impl Parts {
    /// Which tensors there are; the same as before, when this goes on with what was open.
    pub(super) fn table(&self) -> Result<Arc<Table>, Error> {
        let broken = |problem: String| self.connection.broken(problem);
        let table = self.table.try_clone().map_err(|error| broken(error.to_string()))?;
        let lengths: Vec<_> = self.arenas.iter().map(Arena::bytes).collect();
        let room = match self.ring {
            Some(_) => Room::Ring,
            None => Room::Arenas { lengths: &lengths, sliced: !self.request.slices.is_empty() },
        };
        let table = Table::read(table, self.opened.table_bytes, room).map_err(broken)?;
        match &self.before {
            None => Ok(Arc::new(table)),
            Some((snapshot, known)) if *snapshot == self.opened.snapshot && **known == table => {
                Ok(known.clone())
            }
            Some((snapshot, _)) => Err(Error::Changed {
                socket: self.connection.path().to_owned(),
                before: snapshot.clone(),
                now: self.opened.snapshot.clone(),
            }),
        }
    }
}

impl From<Slice> for HandoffSlice {
    fn from(Slice { tensors, dimension, part, parts }: Slice) -> Self {
        Self { tensors, dimension, part, parts }
    }
}
