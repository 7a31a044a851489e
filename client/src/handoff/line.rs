//! A lease's connection, of which one thread at a time hears, and all learn.

use std::{
    path::Path,
    sync::{Condvar, Mutex, MutexGuard, PoisonError},
    time::{Duration, Instant},
};

use weightd_proto::v1::{
    FailureKind, HandoffFailed, handoff_answer::Answer, handoff_request::Request as Said,
};

use super::{
    Error,
    connection::{Connection, Packet, after, left},
};

/// Most ranges in one packet. Each takes up to 14 bytes of its 64 KiB.
pub(super) const RANGES: usize = 4096;
/// How long an agent may leave unread what it is asked.
pub(super) const PATIENCE: Duration = Duration::from_secs(60);
/// How long one may wait for room before looking again at what the agent has said.
const GLANCE: Duration = Duration::from_millis(50);

/// What an agent's answers are noted down in.
pub(super) trait Notes {
    /// Takes note of what an agent says once all is open; the error says what is wrong with that.
    fn learn(&mut self, answer: Answer) -> Result<(), String>;

    /// Takes back what was never confirmed, because some of it has turned out to be wrong.
    fn forget_provisional(&mut self);
}

/// A connection to an agent, and what it has said.
#[derive(Debug)]
pub(super) struct Line<N> {
    connection: Connection,
    state: Mutex<State<N>>,
    /// The state has changed, or nobody reads the socket any more.
    changed: Condvar,
}

#[derive(Debug)]
pub(super) struct State<N> {
    pub(super) notes: N,
    /// One thread reads the socket, and all learn of it.
    is_read: bool,
    end: Option<End>,
}

/// Why the agent says nothing more.
#[derive(Debug, Clone)]
enum End {
    Gone,
    Silent,
    Failed(HandoffFailed),
    Broken(String),
}

/// What an agent says where it must not.
pub(super) fn out_of_order() -> String {
    "said things out of their order".to_owned()
}

impl<N: Notes> Line<N> {
    pub(super) fn new(connection: Connection, notes: N) -> Self {
        let state = Mutex::new(State { notes, is_read: false, end: None });
        Self { connection, state, changed: Condvar::new() }
    }

    /// The socket that it was opened at.
    pub(super) fn socket(&self) -> &Path {
        self.connection.path()
    }

    /// Whether this process made the connection.
    pub(super) fn is_ours(&self) -> bool {
        self.connection.is_ours()
    }

    pub(super) fn gone(&self) -> Error {
        self.connection.gone()
    }

    /// What is known so far. Others learn of nothing as long as this is held.
    pub(super) fn lock(&self) -> MutexGuard<'_, State<N>> {
        // Every change leaves it whole, so a panic elsewhere does no harm.
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// What is known, with all that has come.
    pub(super) fn caught_up(&self) -> MutexGuard<'_, State<N>> {
        let mut state = self.lock();
        self.catch_up(&mut state);
        state
    }

    /// Looks at what is known until there is what it looks for, or the time is over: then there is none.
    pub(super) fn wait<T>(
        &self,
        deadline: Instant,
        mut look: impl FnMut(&mut N) -> Option<T>,
    ) -> Result<Option<T>, Error> {
        let mut state = self.lock();
        loop {
            if let Some(found) = look(&mut state.notes) {
                return Ok(Some(found));
            }
            if let Some(end) = &state.end {
                return Err(self.error(end.clone()));
            }
            if !self.is_ours() {
                return Err(self.gone());
            }
            if left(deadline).is_zero() {
                return Ok(None);
            }
            state = if state.is_read { self.listen(state, deadline) } else { self.read(state, deadline) };
        }
    }

    /// Lets those who wait look again.
    pub(super) fn tell(&self) {
        self.changed.notify_all();
    }

    /// Says something, however long the agent takes to listen, but not longer than a minute.
    pub(super) fn say(&self, said: &Said) -> Result<(), Error> {
        let deadline = after(PATIENCE);
        loop {
            // An agent that cannot say what it has to say does not listen either.
            if let Some(end) = &self.caught_up().end {
                return Err(self.error(end.clone()));
            }
            match self.connection.send(said.clone()) {
                Ok(true) => return Ok(()),
                Ok(false) if left(deadline).is_zero() => return Err(self.error(End::Silent)),
                Ok(false) => drop(self.connection.wait_for_room(after(GLANCE))?),
                Err(Error::AgentGone { .. }) if self.is_ours() => return Err(self.last_words()),
                Err(error) => return Err(error),
            }
        }
    }

    /// Ends what an agent no longer listens to, unless it has ended already.
    pub(super) fn end_unheard(&self) {
        self.lock().end.get_or_insert(End::Silent);
        self.tell();
    }

    /// Reads what has come, without waiting for more.
    fn catch_up(&self, state: &mut State<N>) {
        while !state.is_read && state.end.is_none() && self.is_ours() {
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
    fn listen<'a>(&self, state: MutexGuard<'a, State<N>>, deadline: Instant) -> MutexGuard<'a, State<N>> {
        let outcome = self.changed.wait_timeout(state, left(deadline));
        outcome.unwrap_or_else(PoisonError::into_inner).0
    }

    /// Waits for a message, and takes note of it.
    fn read<'a>(
        &'a self,
        mut state: MutexGuard<'a, State<N>>,
        deadline: Instant,
    ) -> MutexGuard<'a, State<N>> {
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
            End::Silent => Error::Silent { socket: self.socket().to_owned(), waited: PATIENCE },
            End::Failed(failed) => failed.into(),
            End::Broken(problem) => self.connection.broken(problem),
        }
    }
}

impl<N: Notes> State<N> {
    fn take(&mut self, news: Result<Packet, Error>) {
        let end = match news {
            Ok(Packet { answer: Answer::Failed(failed), .. }) => {
                if failed.kind() == FailureKind::Corrupt {
                    self.notes.forget_provisional();
                }
                End::Failed(failed)
            }
            Ok(Packet { answer, .. }) => match self.notes.learn(answer) {
                Ok(()) => return,
                Err(problem) => End::Broken(problem),
            },
            Err(Error::AgentGone { .. }) => End::Gone,
            Err(Error::Broken { problem, .. }) => End::Broken(problem),
            Err(error) => End::Broken(format!("cannot be heard ({error})")),
        };
        self.end = Some(end);
    }
}
