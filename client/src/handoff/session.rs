//! An open session: a lease, and what is known of its tensors.

use std::{
    collections::HashSet,
    ops::Range,
    path::Path,
    sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError},
    time::{Duration, Instant},
};

use weightd_proto::v1::{
    FailureKind, HandoffFailed, HandoffOpened, HandoffRange, HandoffWant, handoff_answer::Answer,
    handoff_request::Request as Said,
};

use super::{
    Arena, Error, Opening, Request, Table,
    connection::{Connection, Packet, after, left},
    readiness::Readiness,
};

/// Most ranges in one packet. Each takes up to 14 bytes of its 64 KiB.
const RANGES: usize = 4096;
/// How long an agent may leave unread what it is asked.
const PATIENCE: Duration = Duration::from_secs(60);
/// How long one may wait for room before looking again at what the agent has said.
const GLANCE: Duration = Duration::from_millis(50);

/// A lease of the tensors of a snapshot. It ends when this is dropped, so this must live as long as any of the memory.
///
/// Threads may share it. A process that is forked off cannot go on with it, but resume; what was ready stays so.
#[derive(Debug)]
pub struct Session {
    connection: Connection,
    request: Request,
    snapshot: String,
    source: String,
    table: Arc<Table>,
    arenas: Vec<Arena>,
    state: Mutex<State>,
    /// The state has changed, or nobody reads the socket any more.
    changed: Condvar,
}

#[derive(Debug)]
struct State {
    readiness: Readiness,
    /// One thread reads the socket, and all learn of it.
    is_read: bool,
    end: Option<End>,
}

/// Why the agent says nothing more.
#[derive(Debug, Clone)]
enum End {
    Gone,
    Failed(HandoffFailed),
    Broken(String),
}

impl Session {
    pub(super) fn new(
        connection: Connection,
        request: Request,
        opened: HandoffOpened,
        table: Arc<Table>,
        arenas: Vec<Arena>,
    ) -> Self {
        let readiness = Readiness::new(table.tensors().len(), opened.complete);
        let state = Mutex::new(State { readiness, is_read: false, end: None });
        let HandoffOpened { snapshot, source, .. } = opened;
        Self { connection, request, snapshot, source, table, arenas, state, changed: Condvar::new() }
    }

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
        self.connection.path()
    }

    /// What was asked for.
    pub fn request(&self) -> &Request {
        &self.request
    }

    /// Which tensors there are.
    pub fn table(&self) -> &Table {
        &self.table
    }

    pub(super) fn shared_table(&self) -> Arc<Table> {
        self.table.clone()
    }

    /// How many arenas there are.
    pub fn arenas(&self) -> usize {
        self.arenas.len()
    }

    /// The memory of that number.
    ///
    /// # Panics
    /// When there is none. Those that a tensor of the table with bytes names are there.
    pub fn arena(&self, number: usize) -> &Arena {
        &self.arenas[number]
    }

    /// Whether a tensor may be used, with all that lies on its pages. Only of tensors that were asked for the agent is
    /// sure to speak.
    ///
    /// # Panics
    /// When the table has no such position, as the other functions that take positions.
    pub fn is_ready(&self, position: usize, verified: bool) -> bool {
        let mut state = self.lock();
        if !self.has(&state, position, verified) {
            self.catch_up(&mut state);
        }
        self.has(&state, position, verified)
    }

    /// Whether there is any tensor so far.
    pub fn has_any(&self) -> bool {
        let mut state = self.lock();
        if !state.readiness.has_any() {
            self.catch_up(&mut state);
        }
        state.readiness.has_any()
    }

    /// Whether every tensor is there, and known to be what the origin has.
    pub fn is_complete(&self) -> bool {
        let mut state = self.lock();
        if !state.readiness.is_complete() {
            self.catch_up(&mut state);
        }
        state.readiness.is_complete()
    }

    /// Asks the agent to bring tensors before others, in this order: those that are not there yet, or with `verified` not
    /// known to be what the origin has.
    ///
    /// # Errors
    /// [`Error::AgentGone`] when the connection has ended; the other errors are why the agent ended it.
    pub fn want(&self, tensors: &[Range<usize>], verified: bool) -> Result<(), Error> {
        let missing = self.missing(tensors, verified);
        missing.chunks(RANGES).try_for_each(|ranges| self.say_want(ranges.to_vec()))
    }

    /// Waits until all of these are there, or `patience` is over: then it is false. Ask for them with [`Session::want`]
    /// before. Threads may wait at the same time.
    ///
    /// # Errors
    /// As of [`Session::want`].
    pub fn wait_for(
        &self,
        tensors: &[Range<usize>],
        verified: bool,
        patience: Duration,
    ) -> Result<bool, Error> {
        let deadline = after(patience);
        let mut rest = tensors.iter().cloned().flatten().peekable();
        let mut state = self.lock();
        loop {
            // What is there stays there, so nothing is looked at twice.
            while rest.next_if(|&position| self.has(&state, position, verified)).is_some() {}
            if rest.peek().is_none() {
                return Ok(true);
            }
            if let Some(end) = &state.end {
                return Err(self.error(end.clone()));
            }
            if !self.connection.is_ours() {
                return Err(self.connection.gone());
            }
            if left(deadline).is_zero() {
                return Ok(false);
            }
            state = if state.is_read { self.listen(state, deadline) } else { self.read(state, deadline) };
        }
    }

    /// Asks for these tensors, and waits until they are there, however long that takes.
    ///
    /// # Errors
    /// As of [`Session::want`]. After [`Error::AgentGone`], [`Session::resume`].
    pub fn wait(&self, tensors: &[Range<usize>], verified: bool) -> Result<(), Error> {
        let asked = self.want(tensors, verified);
        // What arrived before the agent ended is there.
        if self.wait_for(tensors, verified, Duration::ZERO)? {
            return Ok(());
        }
        asked?;
        while !self.wait_for(tensors, verified, PATIENCE)? {}
        Ok(())
    }

    /// Begins to open the same once more, at the next agent. The session that comes of it has the same table. Its arenas
    /// may be others: what was not complete is brought into new ones. So keep this one for the tensors that were ready here,
    /// and ask the other for the rest.
    pub fn reopen(&self) -> Opening {
        Opening::again(self)
    }

    /// Does so, and waits for the next agent, but not longer than `patience`.
    ///
    /// # Errors
    /// As of [`Opening::wait`], and the last reason why there is no session when the time is over.
    pub fn resume(&self, patience: Duration) -> Result<Self, Error> {
        let mut opening = self.reopen();
        match opening.wait(patience)? {
            Some(session) => Ok(session),
            None => Err(opening.give_up()),
        }
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        // Every change leaves it whole, so a panic elsewhere does no harm.
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn has(&self, state: &State, position: usize, verified: bool) -> bool {
        let on_its_pages = self.table.on_pages_of(position);
        on_its_pages.iter().all(|&other| state.readiness.has(other as usize, verified))
    }

    /// What must arrive before these tensors may be used, in their order.
    fn missing(&self, tensors: &[Range<usize>], verified: bool) -> Vec<HandoffRange> {
        let mut state = self.lock();
        self.catch_up(&mut state);
        let mut known = HashSet::new();
        let needed = tensors.iter().cloned().flatten().flat_map(|position| self.table.on_pages_of(position));
        let is_missing =
            |position: &u32| !state.readiness.has(*position as usize, verified) && known.insert(*position);
        HandoffRange::joined(needed.copied().filter(is_missing))
    }

    fn say_want(&self, tensors: Vec<HandoffRange>) -> Result<(), Error> {
        let deadline = after(PATIENCE);
        let want = Said::Want(HandoffWant { tensors });
        loop {
            // An agent that cannot say what it has to say does not listen either.
            let mut state = self.lock();
            self.catch_up(&mut state);
            if let Some(end) = &state.end {
                return Err(self.error(end.clone()));
            }
            drop(state);
            match self.connection.send(want.clone()) {
                Ok(true) => return Ok(()),
                Ok(false) if left(deadline).is_zero() => {
                    let socket = self.socket().to_owned();
                    return Err(Error::Silent { socket, waited: PATIENCE });
                }
                Ok(false) => drop(self.connection.wait_for_room(after(GLANCE))?),
                Err(Error::AgentGone { .. }) if self.connection.is_ours() => return Err(self.last_words()),
                Err(error) => return Err(error),
            }
        }
    }

    /// Reads what has come, without waiting for more.
    fn catch_up(&self, state: &mut State) {
        while !state.is_read && state.end.is_none() && self.connection.is_ours() {
            match self.connection.receive(Instant::now()).transpose() {
                None => return,
                Some(news) => state.take(news),
            }
        }
    }

    /// Why the agent has ended a connection, which it may have said before it did.
    fn last_words(&self) -> Error {
        let mut state = self.lock();
        loop {
            self.catch_up(&mut state);
            match &state.end {
                Some(end) => return self.error(end.clone()),
                // Somebody else is about to read the end.
                None => state = self.listen(state, after(GLANCE)),
            }
        }
    }

    /// Waits for whoever reads the socket.
    fn listen<'a>(&self, state: MutexGuard<'a, State>, deadline: Instant) -> MutexGuard<'a, State> {
        let outcome = self.changed.wait_timeout(state, left(deadline));
        outcome.unwrap_or_else(PoisonError::into_inner).0
    }

    /// Waits for a message, and takes note of it.
    fn read<'a>(&'a self, mut state: MutexGuard<'a, State>, deadline: Instant) -> MutexGuard<'a, State> {
        state.is_read = true;
        drop(state);
        let news = self.connection.receive(deadline).transpose();
        let mut state = self.lock();
        state.is_read = false;
        if let Some(news) = news {
            state.take(news);
        }
        // Others have learned of it, or one of them reads on.
        self.changed.notify_all();
        state
    }

    fn error(&self, end: End) -> Error {
        match end {
            End::Gone => self.connection.gone(),
            End::Failed(failed) => failed.into(),
            End::Broken(problem) => self.connection.broken(problem),
        }
    }
}

impl State {
    fn take(&mut self, news: Result<Packet, Error>) {
        let end = match news {
            Ok(Packet { answer: Answer::Ready(ready), .. }) => match self.readiness.learn(&ready) {
                Ok(()) => return,
                Err(problem) => End::Broken(problem.to_owned()),
            },
            Ok(Packet { answer: Answer::Failed(failed), .. }) => {
                if failed.kind() == FailureKind::Corrupt {
                    self.readiness.forget_provisional();
                }
                End::Failed(failed)
            }
            Ok(Packet { answer: Answer::Opened(_) | Answer::Arenas(_), .. }) => {
                End::Broken("said things out of their order".to_owned())
            }
            Err(Error::AgentGone { .. }) => End::Gone,
            Err(Error::Broken { problem, .. }) => End::Broken(problem),
            Err(error) => End::Broken(format!("cannot be heard ({error})")),
        };
        self.end = Some(end);
    }
}
