//! From a socket to a session: what was asked, and what has come of the answer so far.

use std::{
    mem,
    os::fd::OwnedFd,
    path::{Path, PathBuf},
    sync::Arc,
    time::{Duration, Instant},
};

use weightd_proto::v1::{
    HandoffArenas, HandoffOpen, HandoffOpened, handoff_answer::Answer, handoff_request::Request as Said,
};

use super::{
    Arena, Error, Request, Session, Table,
    connection::{Connection, Packet, after, left, pause},
};

/// Of this protocol.
const VERSION: u32 = 1;
/// Between two tries, when an agent is about to come.
const BETWEEN_TRIES: Duration = Duration::from_millis(100);

/// A session that is being opened. Dropping it takes the question back.
#[derive(Debug)]
pub struct Opening {
    socket: PathBuf,
    request: Request,
    /// What there must be again.
    before: Option<(String, Arc<Table>)>,
    since: Instant,
    answer: Option<Partial>,
    /// Why the last try came to nothing.
    last: Option<Error>,
}

/// An answer that is on its way.
#[derive(Debug)]
struct Partial {
    connection: Connection,
    opened: Option<(HandoffOpened, OwnedFd)>,
    arenas: Vec<Arena>,
}

impl Opening {
    /// Will ask the agent that listens on `socket`. Nothing is done before [`Opening::wait`].
    pub fn new(socket: &Path, request: &Request) -> Self {
        Self {
            socket: socket.to_owned(),
            request: request.clone(),
            before: None,
            since: Instant::now(),
            answer: None,
            last: None,
        }
    }

    /// Will ask the next agent for what the last one had.
    pub(super) fn again(session: &Session) -> Self {
        let before = Some((session.snapshot().to_owned(), session.shared_table()));
        Self { before, ..Self::new(session.socket(), session.request()) }
    }

    /// Asks, and waits for the answer, but not longer than `patience`: then it gives none, and may be called again. An
    /// agent that leaves meanwhile is not waited for in vain: the next one is asked.
    ///
    /// # Errors
    /// [`Error::Connect`] when nobody listens, unless this is a session that goes on; there the next agent is waited for.
    /// [`Error::Failed`] is the agent's own. [`Error::Broken`] says that what it sent makes no sense, [`Error::Changed`]
    /// that there is no going on with what was open before.
    pub fn wait(&mut self, patience: Duration) -> Result<Option<Session>, Error> {
        let deadline = after(patience);
        loop {
            let problem = match self.advance(deadline) {
                Ok(session) => return Ok(session),
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

    fn advance(&mut self, deadline: Instant) -> Result<Option<Session>, Error> {
        if self.answer.is_none() {
            self.answer = Some(Partial::ask(&self.socket, &self.request, deadline)?);
        }
        let answer = self.answer.as_mut().expect("put there above");
        while !answer.is_whole() {
            let Some(packet) = answer.connection.receive(deadline)? else { return Ok(None) };
            answer.take(packet)?;
        }
        let answer = self.answer.take().expect("it is whole");
        answer.into_session(mem::take(&mut self.request), self.before.take()).map(Some)
    }
}

impl Partial {
    fn ask(socket: &Path, request: &Request, deadline: Instant) -> Result<Self, Error> {
        let connection = Connection::new(socket, deadline)?;
        let Request { source, files, wanted_only } = request.clone();
        // Nothing was sent before, so there is room. An agent that does not listen may have said why.
        match connection.send(Said::Open(HandoffOpen { version: VERSION, source, files, wanted_only })) {
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
            (Answer::Opened(_) | Answer::Arenas(_) | Answer::Ready(_), _) => {
                Err(self.connection.broken("said things out of their order"))
            }
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

    fn into_session(self, request: Request, before: Option<(String, Arc<Table>)>) -> Result<Session, Error> {
        let Self { connection, opened, arenas } = self;
        let (opened, table) = opened.expect("an answer begins with it");
        let table = Table::read(table, opened.table_bytes, &arenas);
        let table = table.map_err(|problem| connection.broken(problem))?;
        let Some((snapshot, known)) = before else {
            return Ok(Session::new(connection, request, opened, Arc::new(table), arenas));
        };
        if snapshot != opened.snapshot || *known != table {
            let socket = connection.path().to_owned();
            return Err(Error::Changed { socket, before: snapshot, now: opened.snapshot });
        }
        Ok(Session::new(connection, request, opened, known, arenas))
    }
}
